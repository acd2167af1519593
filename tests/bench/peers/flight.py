"""Arrow Flight: pyarrow's C++ server over a table in memory, and the client that reads from every server."""

import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from harness import data

# As large as our servers' batches.
BATCH_ROWS = 16_384
TUNED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.http2.lookahead_bytes", 64 * 1024 * 1024),
    ("grpc.http2.max_frame_size", 1024 * 1024),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.optimization_target", "throughput"),
]
SCHEMA = pa.schema(
    [pa.field("open_time", pa.timestamp("ms", tz="UTC"), False)]
    + [pa.field(name, pa.float64(), False) for name in data.COLUMNS[1:6]]
    + [pa.field("open_interest", pa.float64())]
)


def table_of(columns, rows=slice(None), times=None):
    stamps = pa.array(columns["open_time"][rows] if times is None else times[rows]).cast(SCHEMA.field(0).type)
    floats = [pa.array(columns[name][rows]) for name in data.COLUMNS[1:6]]
    absent = pa.nulls(len(stamps), pa.float64())
    return pa.table([stamps, *floats, absent], schema=SCHEMA)


class Served(flight.FlightServerBase):
    def __init__(self, table):
        super().__init__("grpc://127.0.0.1:0")
        self.table = table

    def do_get(self, context, ticket):
        return flight.RecordBatchStream(self.table)


class Server:
    def __init__(self, request):
        columns, _ = data.load(request["data"])
        table = table_of(columns)
        self.server = Served(pa.Table.from_batches(table.combine_chunks().to_batches(BATCH_ROWS)))

    def describe(self):
        return {"address": f"127.0.0.1:{self.server.port}"}

    def close(self):
        self.server.shutdown()


class Client:
    """Reads what the ticket names and lets go of it, batch by batch."""

    options = None

    def __init__(self, request):
        self.client = flight.connect(f"grpc://{request['address']}", generic_options=self.options)
        self.ticket = flight.Ticket(request["ticket"].encode())

    def run(self):
        started = time.perf_counter()
        rows = size = batches = 0
        volume = 0.0
        for chunk in self.client.do_get(self.ticket):
            rows += chunk.data.num_rows
            size += chunk.data.nbytes
            batches += 1
            column = chunk.data.column(5).to_numpy()
            volume += column[0] + column[-1]
        return {"rows": rows, "payload_bytes": size, "batches": batches, "seconds": time.perf_counter() - started}

    def close(self):
        self.client.close()


class TunedClient(Client):
    options = TUNED


class Loader:
    """Puts the data: as one long series of a market that never closes, or each instrument as it is."""

    def __init__(self, request):
        self.client = flight.connect(f"grpc://{request['address']}")
        self.columns, self.meta = data.load(request["data"])
        self.is_one = request["instruments"] == 1

    def run(self):
        rows = self.meta["rows"] // len(self.meta["instruments"])
        if self.is_one:
            # 2000-01-01 and the minutes after it.
            times = 946_684_800_000 + np.arange(self.meta["rows"], dtype=np.int64) * data.MINUTE_MS
            return {"rows": self.put("CRYPTO|BENCH", table_of(self.columns, times=times))}
        total = 0
        for index, key in enumerate(self.meta["instruments"]):
            total += self.put(key, table_of(self.columns, slice(index * rows, (index + 1) * rows)))
        return {"rows": total}

    def put(self, key, table):
        command = json.dumps({"stored_candles": {"instrument_key": key, "timeframe": "1m"}})
        writer, reader = self.client.do_put(flight.FlightDescriptor.for_command(command), table.schema)
        stored = 0
        for batch in table.to_batches(max_chunksize=100_000):
            writer.write_batch(batch)
            stored += json.loads(reader.read().to_pybytes())["stored"]
        writer.close()
        return stored


class Export:
    """Reads every instrument in one timeframe, one after the other."""

    def __init__(self, request):
        self.client = flight.connect(f"grpc://{request['address']}")
        self.keys = request["keys"]
        self.timeframe = request["timeframe"]

    def run(self):
        rows = 0
        for key in self.keys:
            command = json.dumps({"candles": {"instrument_key": key, "timeframe": self.timeframe}})
            rows += sum(chunk.data.num_rows for chunk in self.client.do_get(flight.Ticket(command.encode())))
        return {"rows": rows}


PEERS = {"pyarrow": Server, "client": Client, "tuned": TunedClient, "load": Loader, "export": Export}

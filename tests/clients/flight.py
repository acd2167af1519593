"""An Arrow Flight client: puts a table of candles, and gets candles and indicators back as tables.

usage: flight.py HOST:PORT
"""

import json
import sys

import pyarrow as pa
import pyarrow.flight as flight

INSTRUMENT = "NSE_EQ|ARROW"
# 2024-01-02 09:15 in Mumbai, the open of a session.
OPEN_MS = 1_704_167_100_000
MINUTES = 30
OPTIONS = flight.FlightCallOptions(timeout=30)


def check(claim, *what):
    if not claim:
        raise SystemExit(f"not as expected: {what}")


def descriptor(**ticket):
    return flight.FlightDescriptor.for_command(json.dumps(ticket))


def minutes():
    """Closes rise by one a minute."""
    closes = [100.0 + index for index in range(MINUTES)]
    return pa.table(
        {
            "open_time": pa.array([OPEN_MS + 60_000 * i for i in range(MINUTES)], pa.timestamp("ms", tz="UTC")),
            "open": [close - 1.0 for close in closes],
            "high": [close + 0.5 for close in closes],
            "low": [close - 1.5 for close in closes],
            "close": closes,
            "volume": [10.0] * MINUTES,
        }
    )


def put(client, table):
    """Puts a table; returns what the server acknowledged, batch by batch."""
    writer, reader = client.do_put(
        descriptor(stored_candles={"instrument_key": INSTRUMENT, "timeframe": "1m"}), table.schema, OPTIONS
    )
    acknowledged = []
    for batch in table.to_batches(max_chunksize=10):
        writer.write_batch(batch)
        acknowledged.append(json.loads(reader.read().to_pybytes()))
    writer.close()
    return acknowledged


def get(client, **ticket):
    """Asks for the flight of a ticket, and reads it from its endpoint."""
    info = client.get_flight_info(descriptor(**ticket), OPTIONS)
    (endpoint,) = info.endpoints
    table = client.do_get(endpoint.ticket, OPTIONS).read_all()
    check(table.schema.equals(info.schema), table.schema, info.schema)
    return table


def main(address):
    client = flight.connect(f"grpc://{address}")
    for stored, unchanged in [(10, 0), (0, 10)]:
        acknowledged = put(client, minutes())
        check([(a["stored"], a["unchanged"], a["rejected"]) for a in acknowledged] == [(stored, unchanged, [])] * 3, acknowledged)

    bad = minutes().slice(0, 3).set_column(3, "low", pa.array([0.0, 1_000.0, 0.0]))
    (acknowledged,) = put(client, bad)
    (rejected,) = acknowledged["rejected"]
    check(acknowledged["stored"] == 2 and rejected["row"] == 1 and "low" in rejected["reason"], acknowledged)
    put(client, minutes())

    commands = [info.descriptor.command for info in client.list_flights(options=OPTIONS)]
    check(any(INSTRUMENT.encode() in command for command in commands), commands)

    candles = get(client, candles={"instrument_key": INSTRUMENT, "timeframe": "5m"})
    check(candles.num_rows == MINUTES // 5, candles)
    first = candles.slice(0, 1).to_pylist()[0]
    check([first[name] for name in ["open", "high", "low", "close", "volume"]] == [99.0, 104.5, 98.5, 104.0, 50.0], first)
    check((first["source_count"], first["complete"], first["open_interest"]) == (5, True, None), first)

    indicators = get(
        client, indicators={"instrument_key": INSTRUMENT, "timeframe": "1m", "indicators": ["sma:9", "bbands:20,2"]}
    )
    check(indicators.num_rows == MINUTES, indicators)
    sma = indicators.column("sma:9").to_pylist()
    # The mean of nine values that rise by one is the middle one.
    check(sma[:8] == [None] * 8 and abs(sma[-1] - (100.0 + MINUTES - 1 - 4)) < 1e-9, sma)
    check("bbands:20,2.upper" in indicators.column_names, indicators.column_names)

    stored = get(client, stored_candles={"instrument_key": INSTRUMENT, "timeframe": "1m"})
    check(stored.select(minutes().column_names).to_pydict() == minutes().to_pydict(), stored)

    try:
        get(client, candles={"instrument_key": "NSE_EQ|NOBODY", "timeframe": "5m"})
    except flight.FlightError as error:
        check("NSE_EQ|NOBODY" in str(error), error)
    except (KeyError, pa.ArrowKeyError) as error:
        check("NSE_EQ|NOBODY" in str(error), error)
    else:
        raise SystemExit("an unknown instrument was answered")


if __name__ == "__main__":
    main(sys.argv[1])

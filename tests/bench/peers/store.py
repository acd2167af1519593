"""Stores every candle durably, and reads back: everything, or one instrument's month."""

import io
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness import data

NAMES = data.COLUMNS[:6]
CORES = 2
MONTH_SESSIONS = 22
MONTH_ROWS = 8177
SCALED = 100
# Row groups of a month, so that its statistics find it.
GROUP_ROWS = 22 * 375


def folder_bytes(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def sync(path):
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def sync_all(folder):
    """Makes files and their names durable."""
    for path in [*Path(folder).rglob("*"), Path(folder)]:
        sync(path)


def sums(columns):
    """rows and sums, under the names of NAMES."""
    times = columns[0]
    result = {"rows": len(times), "open_time": int(times.view(np.int64).sum())}
    return result | {name: float(column.sum()) for name, column in zip(NAMES[1:], columns[1:])}


def merge(parts):
    total = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total


class Peer:
    def __init__(self, request):
        self.folder = Path(request["folder"])
        self.case = request["case"]
        self.scale = request.get("scale") or 1
        self.turn = 0
        # A reader needs the names only, but the months are cut where ours are.
        columns, self.meta = data.load(request["data"])
        self.rows = self.meta["rows"] // len(self.meta["instruments"])
        keys = self.meta["instruments"]
        self.names = [key if copy == 0 else f"{key}-{copy}" for copy in range(self.scale) for key in keys]
        first = columns["open_time"][: self.rows]
        months = len(self.meta["sessions"]) // MONTH_SESSIONS
        starts = [month * MONTH_SESSIONS * self.meta["minutes"] for month in range(months)]
        self.months = [(int(first[at]), int(first[at + MONTH_ROWS - 1]) + data.MINUTE_MS) for at in starts]
        self.columns = columns if self.case == "store" else None

    def instrument(self, index):
        at = index % len(self.meta["instruments"]) * self.rows
        return [self.columns[name][at : at + self.rows] for name in NAMES]

    def ready(self):
        if self.case == "store":
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self.open_empty()

    def open_empty(self):
        pass

    def run(self):
        if self.case == "store":
            self.store_all()
            return {"rows": len(self.names) * self.rows}
        if self.case == "read":
            return self.read_all()
        return self.read_months()

    def after(self):
        return {"bytes": self.size()} if self.case == "store" else {}

    def size(self):
        return folder_bytes(self.folder)

    def read_months(self):
        """One instrument's month after the other, as ours: another of each at every turn."""
        started = time.perf_counter()
        parts = []
        for turn, (start, end) in enumerate(self.months):
            index = (self.turn * len(self.months) + turn) * 7 % len(self.names)
            parts.append(self.read_month(index, start, end))
        self.turn += 1
        return merge(parts) | {"seconds": (time.perf_counter() - started) / len(self.months)}

    def by_threads(self, read):
        """Two readers that take instruments in turn."""
        lock, indices = threading.Lock(), iter(range(len(self.names)))

        def work(reader):
            parts = []
            while True:
                with lock:
                    index = next(indices, None)
                if index is None:
                    return merge(parts)
                parts.append(read(index, reader))

        with ThreadPoolExecutor(CORES) as pool:
            return merge(pool.map(work, range(CORES)))


class DuckDb(Peer):
    """One table in insertion order; sums are taken inside it, so nothing has to leave it."""

    def __init__(self, request):
        super().__init__(request)
        self.database = None
        self.readers = []
        if self.case != "store":
            self.database = self.connect()

    def connect(self):
        import duckdb

        return duckdb.connect(str(self.folder / "candles.duckdb"), config={"threads": CORES})

    def open_empty(self):
        if self.database:
            self.database.close()
        self.database = self.connect()
        self.database.execute(
            "create table candles (instrument integer, open_time bigint, open double, high double, low double,"
            " close double, volume double)"
        )

    def store_all(self):
        self.database.execute("begin")
        for index in range(len(self.names)):
            columns = dict(zip(NAMES, self.instrument(index)))
            minutes = pa.table({"instrument": np.full(self.rows, index, np.int32), **columns})
            self.database.register("minutes", minutes)
            self.database.execute("insert into candles select * from minutes")
        self.database.execute("commit")
        self.database.execute("checkpoint")

    SUMS = "select count(*), sum(open_time), " + ", ".join(f"sum({name})" for name in NAMES[1:]) + " from candles"

    def read_all(self):
        row = self.database.execute(self.SUMS).fetchone()
        return dict(zip(["rows", *NAMES], [int(row[0]), int(row[1]) % 2**64, *row[2:]]))

    def read_month(self, index, start, end):
        where = " where instrument = ? and open_time >= ? and open_time < ?"
        found = self.database.execute(f"select {', '.join(NAMES)} from candles{where}", [index, start, end])
        table = found.to_arrow_table()
        return sums([column.to_numpy() for column in table.columns])


class Parquet(Peer):
    """A file per instrument: prices as delta-packed integers, zstd, a row group per month; fsync of files and folder."""

    def path(self, index):
        return self.folder / f"{self.names[index].replace('|', '_')}.parquet"

    def store_all(self):
        for index in range(len(self.names)):
            packed = [pa.array(column) for column in self.instrument(index)[:1]]
            for name, column in zip(NAMES[1:], self.instrument(index)[1:]):
                scale = 1 if name == "volume" else SCALED
                packed.append(pa.array(np.rint(column * scale).astype(np.int32)))
            table = pa.table(packed, names=NAMES)
            encodings = {name: "DELTA_BINARY_PACKED" for name in NAMES}
            path = self.path(index)
            pq.write_table(
                table, path, compression="zstd", use_dictionary=False, column_encoding=encodings, row_group_size=GROUP_ROWS
            )
            sync(path)
        sync(self.folder)

    def values(self, batch):
        columns = [batch.column(0).to_numpy()]
        for name in NAMES[1:]:
            column = batch.column(NAMES.index(name)).to_numpy()
            columns.append(column.astype(np.float64) if name == "volume" else column / SCALED)
        return columns

    def read_all(self):
        def read(index, _):
            with pq.ParquetFile(self.path(index)) as file:
                return merge(sums(self.values(batch)) for batch in file.iter_batches(131_072, use_threads=False))

        return self.by_threads(read)

    def read_month(self, index, start, end):
        with pq.ParquetFile(self.path(index)) as file:
            groups = []
            for group in range(file.metadata.num_row_groups):
                times = file.metadata.row_group(group).column(0).statistics
                if times.max >= start and times.min < end:
                    groups.append(group)
            table = file.read_row_groups(groups, use_threads=False).combine_chunks()
        columns = self.values(table)
        first, last = np.searchsorted(columns[0], [start, end])
        return sums([column[first:last] for column in columns])


class ArcticDb(Peer):
    """A symbol per instrument on LMDB, with the stamps as a pandas index, as its users do."""

    def __init__(self, request):
        super().__init__(request)
        self.library = None
        if self.case != "store":
            self.open()

    def open(self):
        import arcticdb

        # LMDB reserves address space, it does not write it.
        self.store = arcticdb.Arctic(f"lmdb://{self.folder}?map_size=64GB")
        self.library = self.store.get_library("candles", create_if_missing=True)

    def open_empty(self):
        self.library = self.store = None
        self.open()

    def store_all(self):
        import pandas as pd

        for index in range(len(self.names)):
            times, *values = self.instrument(index)
            stamps = pd.DatetimeIndex(times.view("datetime64[ms]").astype("datetime64[ns]"))
            self.library.write(self.names[index], pd.DataFrame(dict(zip(NAMES[1:], values)), index=stamps))
        sync_all(self.folder)

    def columns_of(self, frame):
        times = frame.index.values.astype("datetime64[ms]").astype(np.int64)
        return [times, *[frame[name].values for name in NAMES[1:]]]

    def read_all(self):
        return self.by_threads(lambda index, _: sums(self.columns_of(self.library.read(self.names[index]).data)))

    def read_month(self, index, start, end):
        import pandas as pd

        span = (pd.Timestamp(start, unit="ms"), pd.Timestamp(end - 1, unit="ms"))
        return sums(self.columns_of(self.library.read(self.names[index], date_range=span).data))


class PostgreSql(Peer):
    """A table of rows with a primary key, filled by binary COPY, read by binary COPY."""

    def __init__(self, request):
        super().__init__(request)
        import psycopg

        self.url = request["database_url"]
        self.database = psycopg.connect(self.url, autocommit=True)
        self.readers = [psycopg.connect(self.url) for _ in range(CORES)] if self.case == "read" else []

    def open_empty(self):
        self.database.execute("drop table if exists candles")
        self.database.execute(
            "create table candles (instrument int4, open_time int8, open float8, high float8, low float8, close float8,"
            " volume float8, primary key (instrument, open_time))"
        )

    def store_all(self):
        """One transaction; the rows are packed by numpy, so that Python's own cost is small."""
        fields = [("count", ">i2"), ("size0", ">i4"), ("instrument", ">i4"), ("size1", ">i4"), ("open_time", ">i8")]
        for name in NAMES[1:]:
            fields += [(f"{name}_size", ">i4"), (name, ">f8")]
        packed = np.zeros(self.rows, np.dtype(fields))
        packed["count"], packed["size0"], packed["size1"] = len(NAMES) + 1, 4, 8
        with self.database.transaction(), self.database.cursor() as cursor:
            with cursor.copy("copy candles from stdin (format binary)") as copy:
                copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
                for index in range(len(self.names)):
                    packed["instrument"] = index
                    for name, column in zip(NAMES, self.instrument(index)):
                        packed[name] = column
                        if name != "open_time":
                            packed[f"{name}_size"] = 8
                    copy.write(packed.tobytes())
                copy.write(b"\xff\xff")

    def size(self):
        self.database.execute("checkpoint")
        return self.database.execute("select pg_total_relation_size('candles')").fetchone()[0]

    def copy_out(self, database, query):
        buffer = io.BytesIO()
        with database.cursor() as cursor, cursor.copy(f"copy ({query}) to stdout (format binary)") as copy:
            for block in copy:
                buffer.write(block)
        fields = [("count", ">i2"), ("size", ">i4"), ("open_time", ">i8")]
        for name in NAMES[1:]:
            fields += [(f"{name}_size", ">i4"), (name, ">f8")]
        rows = np.frombuffer(buffer.getbuffer()[19:-2], np.dtype(fields))
        return [rows["open_time"].astype(np.int64), *[rows[name].astype(np.float64) for name in NAMES[1:]]]

    def read_all(self):
        query = f"select {', '.join(NAMES)} from candles where instrument = {{}} order by open_time"
        return self.by_threads(lambda index, reader: sums(self.copy_out(self.readers[reader], query.format(index))))

    def read_month(self, index, start, end):
        where = f"instrument = {index} and open_time >= {start} and open_time < {end} order by open_time"
        return sums(self.copy_out(self.database, f"select {', '.join(NAMES)} from candles where {where}"))

    def close(self):
        for connection in [self.database, *self.readers]:
            connection.close()


PEERS = {"duckdb": DuckDb, "parquet": Parquet, "arcticdb": ArcticDb, "postgres": PostgreSql}

"""Five-minute candles anchored at the session's open, with source_count, expected_count, closed and complete."""

import time
from pathlib import Path

import duckdb
import numba
import numpy as np
import polars as pl
import pyarrow as pa
import raptorbt

from harness import data

WIDTH = 5 * data.MINUTE_MS
NOW = 1_900_000_000_000
NAMES = ["open_time", "open", "high", "low", "close", "volume", "source_count", "expected_count", "closed", "complete"]
TYPES = {"open_time": "i64", "source_count": "u32", "expected_count": "u32", "closed": "u8", "complete": "u8"}


class Peer:
    def __init__(self, request):
        self.columns, self.meta = data.load(request["data"])
        self.scale = request.get("scale") or 1
        self.rows = self.meta["rows"] // len(self.meta["instruments"])
        self.sessions = np.array(self.meta["sessions"], np.int64)
        self.session_ms = self.meta["minutes"] * data.MINUTE_MS

    def run(self):
        """Time of the core: what other work on the machine takes away is not in it."""
        started = time.process_time()
        bars = sum(self.once() for _ in range(self.scale))
        return {"rows": self.meta["rows"] * self.scale, "bars": bars, "seconds": time.process_time() - started}

    def write(self, folder):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, column in zip(NAMES, self.result()):
            kind = TYPES.get(name, "f64")
            types = {"i64": np.int64, "u32": np.uint32, "u8": np.uint8, "f64": np.float64}
            np.asarray(column).astype(types[kind]).tofile(folder / f"{name}.{kind}")


@numba.njit
def fold(times, open_, high, low, close, volume, interest, sessions, session_ms, width, now, out, counts, flags, stamps):
    """One instrument into reused buffers; returns the number of bars."""
    o, h, l, c, v, i = out
    bars, row, day = -1, 0, -1
    day_end = bucket_end = np.int64(-(2**62))
    n = len(times)
    while row < n:
        at = times[row]
        if at >= day_end:
            day += 1
            while day + 1 < len(sessions) and sessions[day + 1] <= at:
                day += 1
            day_end = sessions[day + 1] if day + 1 < len(sessions) else np.int64(2**62)
            bucket_end = np.int64(-(2**62))
        anchor = sessions[day]
        if at >= bucket_end:
            bars += 1
            start = anchor + (at - anchor) // width * width
            bucket_end = start + width
            stamps[bars] = start
            o[bars], h[bars], l[bars], c[bars], v[bars] = open_[row], high[row], low[row], close[row], volume[row]
            i[bars] = interest[row]
            counts[0, bars] = 1
            inside = max(0, min(bucket_end, anchor + session_ms) - start)
            counts[1, bars] = (inside if inside > 0 else width) // 60_000
        else:
            h[bars] = max(h[bars], high[row])
            l[bars] = min(l[bars], low[row])
            c[bars] = close[row]
            v[bars] += volume[row]
            if interest[row] == interest[row]:
                i[bars] = interest[row]
            counts[0, bars] += 1
        row += 1
    for bar in range(bars + 1):
        closed = stamps[bar] + width <= now
        flags[0, bar] = closed
        flags[1, bar] = closed and counts[0, bar] >= counts[1, bar]
    return bars + 1


@numba.njit
def fold_fast(times, open_, high, low, close, volume, interest, sessions, session_ms, width, now, out, counts, flags, stamps):
    """As `fold`, with a bucket's accumulators in registers and its rows in an inner loop."""
    o, h, l, c, v, i = out
    bars, row, day = 0, 0, 0
    n = len(times)
    while row < n:
        at = times[row]
        while day + 1 < len(sessions) and sessions[day + 1] <= at:
            day += 1
        anchor = sessions[day]
        start = anchor + (at - anchor) // width * width
        end = start + width
        first = row
        top, bottom, total, known = high[row], low[row], volume[row], interest[row]
        row += 1
        while row < n and times[row] < end:
            if high[row] > top:
                top = high[row]
            if low[row] < bottom:
                bottom = low[row]
            total += volume[row]
            if interest[row] == interest[row]:
                known = interest[row]
            row += 1
        stamps[bars] = start
        o[bars], h[bars], l[bars], c[bars], v[bars], i[bars] = open_[first], top, bottom, close[row - 1], total, known
        inside = max(0, min(end, anchor + session_ms) - start)
        expected = (inside if inside > 0 else width) // 60_000
        counts[0, bars] = row - first
        counts[1, bars] = expected
        flags[0, bars] = end <= now
        flags[1, bars] = end <= now and row - first >= expected
        bars += 1
    return bars


class Numba(Peer):
    kernel = staticmethod(fold)

    def __init__(self, request):
        super().__init__(request)
        self.out = np.empty((6, self.rows))
        self.counts = np.empty((2, self.rows), np.uint32)
        self.flags = np.empty((2, self.rows), np.bool_)
        self.stamps = np.empty(self.rows, np.int64)
        self.once()

    def instrument(self, index):
        rows = slice(index * self.rows, (index + 1) * self.rows)
        columns = [self.columns[name][rows] for name in data.COLUMNS]
        buffers = (tuple(self.out), self.counts, self.flags, self.stamps)
        return self.kernel(*columns, self.sessions, self.session_ms, WIDTH, NOW, *buffers)

    def once(self):
        return sum(self.instrument(index) for index in range(len(self.meta["instruments"])))

    def result(self):
        parts = []
        for index in range(len(self.meta["instruments"])):
            bars = self.instrument(index)
            columns = [self.stamps, *self.out[:5], *self.counts, *self.flags]
            parts.append([column[:bars].copy() for column in columns])
        return [np.concatenate(column) for column in zip(*parts)]


class NumbaRegisters(Numba):
    kernel = staticmethod(fold_fast)


class DuckDb(Peer):
    """One statement over an Arrow table in memory; sorted back by instrument and time."""

    SQL = f"""
        select anchor + (open_time - anchor) // {WIDTH} * {WIDTH} as bucket, arg_min(open, open_time), max(high), min(low),
            arg_max(close, open_time), sum(volume), count(*), {WIDTH} // {data.MINUTE_MS}, bucket + {WIDTH} <= {NOW},
            bucket + {WIDTH} <= {NOW} and count(*) >= {WIDTH} // {data.MINUTE_MS}
        from minutes group by instrument, bucket{{}}
    """

    def __init__(self, request):
        super().__init__(request)
        names = ["open_time", "open", "high", "low", "close", "volume"]
        count = len(self.meta["instruments"])
        # The session's open of each row is given, as a join by date would cost it more.
        anchors = np.tile(np.repeat(self.sessions, self.meta["minutes"]), count)
        table = {name: self.columns[name] for name in names}
        table["instrument"] = np.repeat(np.arange(count, dtype=np.int32), self.rows)
        self.minutes = pa.table({**table, "anchor": anchors})
        self.database = duckdb.connect(config={"threads": 1})
        self.database.register("arrow_minutes", self.minutes)
        self.database.execute("create table minutes as select * from arrow_minutes")

    def once(self):
        return self.database.execute(self.SQL.format("")).to_arrow_table().num_rows

    def result(self):
        table = self.database.execute(self.SQL.format(" order by instrument, bucket")).to_arrow_table()
        return [column.to_numpy() for column in table.columns]


class Polars(Peer):
    def __init__(self, request):
        super().__init__(request)
        names = ["open_time", "open", "high", "low", "close", "volume"]
        frame = pl.DataFrame({name: self.columns[name] for name in names})
        count = len(self.meta["instruments"])
        instrument = pl.Series("instrument", np.repeat(np.arange(count, dtype=np.int32), self.rows))
        self.frame = frame.with_columns(pl.col("open_time").cast(pl.Datetime("ms", "UTC")), instrument)
        # Its windows start at multiples of the width since the epoch: NSE's 03:45 UTC is one.
        assert all(at % WIDTH == 0 for at in self.meta["sessions"])

    def table(self):
        windows = self.frame.group_by_dynamic("open_time", every="5m", group_by="instrument", start_by="window")
        count = pl.len().alias("source_count")
        frame = windows.agg(
            pl.first("open"), pl.max("high"), pl.min("low"), pl.last("close"), pl.sum("volume"), count
        )
        closed = pl.col("open_time").dt.epoch("ms") + WIDTH <= NOW
        expected = pl.lit(WIDTH // data.MINUTE_MS).alias("expected_count")
        frame = frame.with_columns(expected, closed.alias("closed"))
        complete = pl.col("closed") & (pl.col("source_count") >= pl.col("expected_count"))
        return frame.with_columns(complete.alias("complete"))

    def once(self):
        return self.table().height

    def result(self):
        frame = self.table().with_columns(pl.col("open_time").dt.epoch("ms"))
        return [frame[name].to_numpy() for name in NAMES]


class Raptorbt(Peer):
    """Its own aggregation: prices and volume only, no counts and no flags."""

    def aggregate(self, index):
        rows = slice(index * self.rows, (index + 1) * self.rows)
        return raptorbt.aggregate_bars(self.nanoseconds[rows], *[self.columns[name][rows] for name in NAMES[1:6]], 5, "m")

    def __init__(self, request):
        super().__init__(request)
        self.nanoseconds = self.columns["open_time"] * 1_000_000

    def once(self):
        return sum(len(self.aggregate(index)[0]) for index in range(len(self.meta["instruments"])))


PEERS = {
    "numba": Numba,
    "numba-registers": NumbaRegisters,
    "duckdb": DuckDb,
    "polars": Polars,
    "raptorbt": Raptorbt,
}

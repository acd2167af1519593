"""Makes the candles every side reads: instruments x NSE sessions x 375 minutes, the same on every run.

With real minutes at hand (CANDLEMESH_TEST_DATA, its NSE shares) a session is put together from five-minute stretches of real
sessions of one share, each at its own time of day, so that ticks, ranges and volumes are as hard to compress as real ones. Without
them it is a random walk on a 0.05 tick. The columns lie one after the other as raw little-endian files, instrument after instrument.
"""

import csv
import gzip
import json
from datetime import datetime
from pathlib import Path

import numpy as np

MINUTES = 375
STRETCH = 5
TICK = 0.05
MINUTE_MS = 60_000
SEED = 20240101
COLUMNS = ["open_time", "open", "high", "low", "close", "volume", "open_interest"]
# Raised when the same seed makes other candles.
REVISION = 1


def make(folder, instruments, sessions, shared):
    """Writes the data unless it is there. `sessions` are the open instants in ms; returns the folder and its description."""
    real = real_shares(shared)
    origin = f"{len(real)} real NSE shares" if real else "random walk"
    folder = Path(folder) / f"{instruments}x{len(sessions)}-{'real' if real else 'made'}-{REVISION}"
    meta = {
        "instruments": [f"NSE_EQ|BENCH{index:05d}" for index in range(instruments)],
        "sessions": sessions,
        "minutes": MINUTES,
        "rows": instruments * len(sessions) * MINUTES,
        "origin": origin,
    }
    if (folder / "meta.json").exists() and json.loads((folder / "meta.json").read_text()) == meta:
        return folder, meta
    folder.mkdir(parents=True, exist_ok=True)
    times = np.add.outer(np.array(sessions, np.int64), np.arange(MINUTES, dtype=np.int64) * MINUTE_MS).ravel()
    files = [open(folder / name, "wb") for name in COLUMNS]
    for index in range(instruments):
        random = np.random.default_rng([SEED, index])
        source = real[index % len(real)] if real else None
        rows = from_real(source, len(sessions), random) if real else random_walk(len(sessions), random)
        absent = np.full(len(times), np.nan)
        for file, column in zip(files, [times, *rows, absent]):
            column.tofile(file)
    for file in files:
        file.close()
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder, meta


def real_shares(shared):
    """Whole sessions of each real NSE share: integers [day, minute, (gap, high, low, close, volume, open)] in ticks."""
    shares = []
    if not shared:
        return shares
    for path in sorted(Path(shared).glob("1m/NSE_EQ_*.csv.gz")):
        days = {}
        with gzip.open(path, "rt") as file:
            for row in csv.DictReader(file):
                days.setdefault(row["timestamp"][:10], {})[row["timestamp"]] = [
                    float(row[name]) for name in ("open", "high", "low", "close", "volume")
                ]
        whole = []
        for rows in days.values():
            stamps = sorted(rows)
            first = datetime.fromisoformat(stamps[0].replace("Z", "+00:00"))
            if len(stamps) != MINUTES or (first.hour, first.minute) != (3, 45):
                continue
            values = np.array([rows[stamp] for stamp in stamps])
            ticks = np.rint(values[:, :4] / TICK).astype(np.int64)
            opened, high, low, close = ticks.T
            gap = opened - np.concatenate([opened[:1], close[:-1]])
            volume = values[:, 4].astype(np.int64)
            whole.append(np.stack([gap, high - opened, low - opened, close - opened, volume, opened], 1))
        if len(whole) >= 5:
            shares.append(np.stack(whole))
    return shares


def from_real(days, sessions, random):
    stretches = MINUTES // STRETCH
    picked = random.integers(0, len(days), (sessions, stretches)).repeat(STRETCH, axis=1)
    rows = days[picked, np.arange(MINUTES)[None, :]]
    gap, high, low, close, volume, _ = np.moveaxis(rows, 2, 0)
    # Each session opens where a real one did, a little off, so that prices stay in the share's range.
    opens = days[random.integers(0, len(days), sessions), 0, 5]
    opens = opens + random.integers(-20, 21, sessions)
    gap = gap.copy()
    gap[:, 0] = 0
    moves = gap + np.concatenate([np.zeros((sessions, 1), np.int64), close[:, :-1]], axis=1)
    opened = np.maximum(opens[:, None] + np.cumsum(moves, axis=1), 200)
    volume = np.rint(volume * random.uniform(0.5, 1.5, volume.shape))
    return columns(opened, np.maximum(high, np.maximum(close, 0)), np.minimum(low, np.minimum(close, 0)), close, volume)


def random_walk(sessions, random):
    shape = (sessions, MINUTES)
    start = random.integers(2_000, 60_000)
    scale = max(1.0, start / 4_000)
    close = np.rint(random.normal(0, 2 * scale, shape)).astype(np.int64)
    gap = random.integers(-1, 2, shape)
    opened = start + np.cumsum(gap.ravel() + np.concatenate([[0], close.ravel()[:-1]])).reshape(shape)
    opened = np.abs(opened - 500) + 500
    high = np.maximum(close, 0) + random.poisson(1.5 * scale, shape)
    low = np.minimum(close, 0) - random.poisson(1.5 * scale, shape)
    # Busy at the open and the close, quiet at noon.
    hour = np.linspace(-1, 1, MINUTES)
    volume = np.rint(random.lognormal(7, 1, shape) * (0.5 + 2 * hour**2))
    return columns(opened, high, low, close, volume)


def columns(opened, high, low, close, volume):
    """Prices in ticks to the doubles nearest to their decimals."""
    ticks = [opened, opened + high, np.maximum(opened + low, 1), np.maximum(opened + close, 1)]
    prices = [np.ascontiguousarray(np.rint(tick * (TICK * 100)).ravel() / 100.0) for tick in ticks]
    return [*prices, np.ascontiguousarray(volume.ravel().astype(np.float64))]


def load(folder):
    """The columns as arrays, and the description."""
    folder = Path(folder)
    meta = json.loads((folder / "meta.json").read_text())
    types = {"open_time": np.int64}
    return {name: np.fromfile(folder / name, types.get(name, np.float64)) for name in COLUMNS}, meta

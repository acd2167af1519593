"""The D3 set: SMA 9, EMA 5, 9 and 50, RSI 14, ATR 14, Bollinger bands (20, 2) with their width, session VWAP."""

import ctypes
import time
from pathlib import Path

import numba
import numpy as np
import polars as pl
import talib

from harness import data

COLUMNS = ["sma9", "ema5", "ema9", "ema50", "rsi14", "atr14", "upper", "middle", "lower", "width", "vwap"]
EMAS = [5, 9, 50]


class Peer:
    """Takes the instruments one after the other, into buffers of one instrument that are reused."""

    def __init__(self, request):
        columns, self.meta = data.load(request["data"])
        instruments = len(self.meta["instruments"])
        self.rows = self.meta["rows"] // instruments
        self.day = np.repeat(np.arange(len(self.meta["sessions"]), dtype=np.int32), self.meta["minutes"])
        taken = min(request.get("instruments") or instruments, instruments)
        self.passes = request.get("scale") or 1
        self.compared = request["compared"]
        self.series = [
            tuple(columns[name][index * self.rows : (index + 1) * self.rows].copy() for name in data.COLUMNS[1:6])
            for index in range(taken)
        ]
        self.out = np.zeros((len(COLUMNS), self.rows))

    def run(self):
        """Time of the core: what other work on the machine takes away is not in it."""
        started = time.process_time()
        for _ in range(self.passes):
            for index in range(len(self.series)):
                self.once(index)
        return {"rows": self.passes * len(self.series) * self.rows, "seconds": time.process_time() - started}

    def write(self, folder):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        results = [self.result(index) for index in range(min(self.compared, len(self.series)))]
        for number, name in enumerate(COLUMNS):
            np.concatenate([result[number] for result in results]).tofile(folder / f"{name}.f64")

    def result(self, index):
        self.once(index)
        return self.out.copy()


@numba.njit
def fused(high, low, close, volume, day, out):
    """All in one pass, each row's candle read once: sums that move, averages that carry on."""
    sma, ema5, ema9, ema50, rsi, atr, upper, middle, lower, width, vwap = out
    n = len(close)
    nan = np.nan
    sum9 = sum20 = squares20 = 0.0
    sum5 = sum9e = sum50 = 0.0
    e5 = e9 = e50 = gain = loss = true_range = 0.0
    turnover = traded = 0.0
    # Relative to the first close, so that squares stay small.
    origin = close[0]
    for i in range(n):
        c, h, l, v = close[i], high[i], low[i], volume[i]
        x = c - origin
        # Moving windows.
        sum9 += x
        if i >= 9:
            sum9 -= close[i - 9] - origin
        sma[i] = sum9 / 9.0 + origin if i >= 8 else nan
        sum20 += x
        squares20 += x * x
        if i >= 20:
            old = close[i - 20] - origin
            sum20 -= old
            squares20 -= old * old
        if i >= 19:
            mean = sum20 / 20.0
            variance = squares20 / 20.0 - mean * mean
            reach = 2.0 * np.sqrt(variance) if variance > 0.0 else 0.0
            middle[i] = mean + origin
            upper[i] = mean + origin + reach
            lower[i] = mean + origin - reach
            width[i] = upper[i] - lower[i]
        else:
            middle[i] = upper[i] = lower[i] = width[i] = nan
        # Exponential averages.
        if i >= 5:
            e5 += (c - e5) * (2.0 / 6.0)
            ema5[i] = e5
        else:
            sum5 += c
            e5 = sum5 / 5.0
            ema5[i] = e5 if i == 4 else nan
        if i >= 9:
            e9 += (c - e9) * (2.0 / 10.0)
            ema9[i] = e9
        else:
            sum9e += c
            e9 = sum9e / 9.0
            ema9[i] = e9 if i == 8 else nan
        if i >= 50:
            e50 += (c - e50) * (2.0 / 51.0)
            ema50[i] = e50
        else:
            sum50 += c
            e50 = sum50 / 50.0
            ema50[i] = e50 if i == 49 else nan
        # Wilder's averages.
        if i == 0:
            rsi[i] = atr[i] = nan
        else:
            before = close[i - 1]
            change = c - before
            up = change if change > 0.0 else 0.0
            down = -change if change < 0.0 else 0.0
            reach = max(h - l, abs(before - h), abs(before - l))
            if i <= 14:
                gain += up / 14.0
                loss += down / 14.0
                true_range += reach / 14.0
            else:
                gain += (up - gain) * (1.0 / 14.0)
                loss += (down - loss) * (1.0 / 14.0)
                true_range += (reach - true_range) * (1.0 / 14.0)
            total = gain + loss
            rsi[i] = nan if i < 14 else (100.0 * gain / total if total != 0.0 else 0.0)
            atr[i] = nan if i < 14 else true_range
        # Volume-weighted price of the day.
        if i == 0 or day[i] != day[i - 1]:
            turnover = traded = 0.0
        turnover += (h + l + c) * (1.0 / 3.0) * v
        traded += v
        vwap[i] = turnover / traded if traded > 0.0 else nan


@numba.njit
def fused_lean(high, low, close, volume, day, out):
    """As `fused`, with the first rows in a loop of their own, so that the rest has no branch but the day's."""
    sma, ema5, ema9, ema50, rsi, atr, upper, middle, lower, width, vwap = out
    warm = min(50, len(close))
    fused(high[:warm], low[:warm], close[:warm], volume[:warm], day[:warm], out[:, :warm])
    if warm < 50:
        return
    origin = close[0]
    sum9 = sum20 = squares20 = gain = loss = 0.0
    for i in range(1, 50):
        change = close[i] - close[i - 1]
        up, down = max(change, 0.0), max(-change, 0.0)
        gain = gain + up / 14.0 if i <= 14 else gain + (up - gain) * (1.0 / 14.0)
        loss = loss + down / 14.0 if i <= 14 else loss + (down - loss) * (1.0 / 14.0)
    for i in range(30, 50):
        x = close[i] - origin
        sum20 += x
        squares20 += x * x
        if i >= 41:
            sum9 += x
    turnover = traded = 0.0
    for i in range(50):
        if i > 0 and day[i] != day[i - 1]:
            turnover = traded = 0.0
        turnover += (high[i] + low[i] + close[i]) * (1.0 / 3.0) * volume[i]
        traded += volume[i]
    e5, e9, e50, true_range = ema5[49], ema9[49], ema50[49], atr[49]
    before = close[49]
    for i in range(50, len(close)):
        c, h, l, v = close[i], high[i], low[i], volume[i]
        x = c - origin
        sum9 += x - (close[i - 9] - origin)
        old = close[i - 20] - origin
        sum20 += x - old
        squares20 += x * x - old * old
        mean = sum20 * (1.0 / 20.0)
        reach = 2.0 * np.sqrt(max(squares20 * (1.0 / 20.0) - mean * mean, 0.0))
        sma[i] = sum9 * (1.0 / 9.0) + origin
        mean += origin
        middle[i] = mean
        upper[i] = mean + reach
        lower[i] = mean - reach
        width[i] = 2.0 * reach
        e5 += (c - e5) * (2.0 / 6.0)
        e9 += (c - e9) * (2.0 / 10.0)
        e50 += (c - e50) * (2.0 / 51.0)
        ema5[i], ema9[i], ema50[i] = e5, e9, e50
        change = c - before
        gain += (max(change, 0.0) - gain) * (1.0 / 14.0)
        loss += (max(-change, 0.0) - loss) * (1.0 / 14.0)
        true_range += (max(h - l, abs(before - h), abs(before - l)) - true_range) * (1.0 / 14.0)
        before = c
        total = gain + loss
        rsi[i] = 100.0 * gain / total if total != 0.0 else 0.0
        atr[i] = true_range
        if day[i] != day[i - 1]:
            turnover = traded = 0.0
        turnover += (h + l + c) * (1.0 / 3.0) * v
        traded += v
        vwap[i] = turnover / traded if traded > 0.0 else np.nan


class Numba(Peer):
    kernel = staticmethod(fused)

    def once(self, index):
        _, high, low, close, volume = self.series[index]
        self.kernel(high, low, close, volume, self.day, self.out)


class NumbaLean(Numba):
    kernel = staticmethod(fused_lean)


@numba.njit
def session_vwap(high, low, close, volume, day, out):
    turnover = traded = 0.0
    for i in range(len(close)):
        if i == 0 or day[i] != day[i - 1]:
            turnover = traded = 0.0
        turnover += (high[i] + low[i] + close[i]) * (1.0 / 3.0) * volume[i]
        traded += volume[i]
        out[i] = turnover / traded if traded > 0.0 else np.nan


class TaLibC(Peer):
    """TA-Lib's C functions, called with pointers made beforehand; what it has not (width, VWAP) by numpy and numba into buffers."""

    def __init__(self, request):
        super().__init__(request)
        self.out[:] = np.nan
        (library,) = (Path(talib.__file__).parent.parent / "ta_lib.libs").glob("libta-lib*")
        self.library = ctypes.CDLL(str(library))
        assert self.library.TA_Initialize() == 0
        double, integer = ctypes.c_double, ctypes.c_int
        self.begin, self.count = ctypes.c_int(), ctypes.c_int()
        count = (ctypes.byref(self.begin), ctypes.byref(self.count))
        place = {name: self.out[number] for number, name in enumerate(COLUMNS)}

        def at(array, row=0):
            return ctypes.c_void_p(array.ctypes.data + 8 * row)

        self.calls = []
        for _, high, low, close, _ in self.series:
            calls = []

            def call(name, inputs, parameters, outputs, lookback):
                function = getattr(self.library, f"TA_{name}")
                pointers = [at(place[output], lookback) for output in outputs]
                calls.append((function, (integer(0), integer(self.rows - 1), *map(at, inputs), *parameters, *count, *pointers)))

            call("SMA", [close], [integer(9)], ["sma9"], 8)
            for period in EMAS:
                call("EMA", [close], [integer(period)], [f"ema{period}"], period - 1)
            call("RSI", [close], [integer(14)], ["rsi14"], 14)
            call("ATR", [high, low, close], [integer(14)], ["atr14"], 14)
            call("BBANDS", [close], [integer(20), double(2), double(2), integer(0)], ["upper", "middle", "lower"], 19)
            self.calls.append(calls)
        self.place = place

    def once(self, index):
        for function, arguments in self.calls[index]:
            function(*arguments)
        place = self.place
        np.subtract(place["upper"], place["lower"], out=place["width"])
        session_vwap(*self.series[index][1:], self.day, place["vwap"])


class TaLibPython(Peer):
    """The package as it is used: each call gives a new array."""

    def once(self, index):
        _, high, low, close, volume = self.series[index]
        upper, middle, lower = talib.BBANDS(close, 20, 2, 2)
        emas = [talib.EMA(close, period) for period in EMAS]
        session_vwap(high, low, close, volume, self.day, self.out[10])
        self.made = [talib.SMA(close, 9), *emas, talib.RSI(close, 14), talib.ATR(high, low, close, 14)]
        self.made += [upper, middle, lower, upper - lower, self.out[10]]

    def result(self, index):
        self.once(index)
        return [column.copy() for column in self.made]


class Polars(Peer):
    """Expressions over all instruments at once; its averages are seeded as TA-Lib's by putting the mean where they begin."""

    def __init__(self, request):
        super().__init__(request)
        names = data.COLUMNS[1:6]
        self.frames = [pl.DataFrame({**dict(zip(names, series)), "day": self.day}) for series in self.series]
        row = pl.int_range(pl.len())
        close, before = pl.col("close"), pl.col("close").shift(1)

        def smooth(series, alpha, period, start):
            seed = series.slice(start, period).mean()
            seeded = pl.when(row < start + period - 1).then(None).when(row == start + period - 1).then(seed).otherwise(series)
            return seeded.ewm_mean(alpha=alpha, adjust=False, ignore_nulls=True)

        change = close - before
        gain = smooth(change.clip(lower_bound=0), 1 / 14, 14, 1)
        loss = smooth((-change).clip(lower_bound=0), 1 / 14, 14, 1)
        reach = pl.max_horizontal(pl.col("high") - pl.col("low"), (before - pl.col("high")).abs(), (before - pl.col("low")).abs())
        middle, deviation = close.rolling_mean(20), close.rolling_std(20, ddof=0)
        price = (pl.col("high") + pl.col("low") + close) / 3 * pl.col("volume")
        traded = pl.col("volume").cum_sum().over("day")
        self.expressions = [
            close.rolling_mean(9).alias("sma9"),
            *[smooth(close, 2 / (period + 1), period, 0).alias(f"ema{period}") for period in EMAS],
            pl.when(gain + loss == 0).then(0.0).otherwise(100 * gain / (gain + loss)).alias("rsi14"),
            smooth(reach, 1 / 14, 14, 1).alias("atr14"),
            (middle + 2 * deviation).alias("upper"),
            middle.alias("middle"),
            (middle - 2 * deviation).alias("lower"),
            (4 * deviation).alias("width"),
            pl.when(traded > 0).then(price.cum_sum().over("day") / traded).alias("vwap"),
        ]

    def once(self, index):
        self.frame = self.frames[index].select(self.expressions)

    def result(self, index):
        self.once(index)
        return [self.frame[name].to_numpy() for name in COLUMNS]


PEERS = {"numba": Numba, "numba-lean": NumbaLean, "talib-c": TaLibC, "talib-python": TaLibPython, "polars": Polars}

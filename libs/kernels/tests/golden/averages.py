"""Moving averages by TA-Lib 0.8.2; the Hull and the volume-weighted one by tulipy 0.4.0, with numpy 2.4.6 throughout.

What two libraries have in common is compared here, before it is written.
"""

import numpy as np
import talib
import tulipy

from market import ROWS, market, write

m = market()
close, volume = m["close"], m["volume"]


def whole(values):
    """tulipy leaves the undefined rows out."""
    return np.concatenate([np.full(ROWS - len(values), np.nan), values])


def both(one, other):
    np.testing.assert_allclose(one, whole(other), rtol=1e-9)
    return one


def naive_hull(close, period):
    """A. Hull's definition: WMA over the root of the period, of twice the WMA over half of it less the WMA over the whole."""

    def weighted(values, n):
        weights = np.arange(1, n + 1) / (n * (n + 1) / 2)
        return np.array([np.nan] * (n - 1) + [values[i - n : i] @ weights for i in range(n, len(values) + 1)])

    return weighted(2 * weighted(close, period // 2) - weighted(close, period), int(period**0.5))


def naive_volume_weighted(close, volume, period):
    windows = (slice(i - period, i) for i in range(period, ROWS + 1))
    return np.array([(close[w] * volume[w]).sum() / volume[w].sum() for w in windows])


columns = {
    "sma:20": talib.SMA(close, 20),
    "sma:1": close,
    "ema:9": talib.EMA(close, 9),
    "ema:50": talib.EMA(close, 50),
    "wma": both(talib.WMA(close), tulipy.wma(close, 30)),
    "wma:2": both(talib.WMA(close, 2), tulipy.wma(close, 2)),
    "wma:101": both(talib.WMA(close, 101), tulipy.wma(close, 101)),
    "dema": talib.DEMA(close),
    "dema:9": talib.DEMA(close, 9),
    "tema": talib.TEMA(close),
    "tema:9": talib.TEMA(close, 9),
    "trima": both(talib.TRIMA(close), tulipy.trima(close, 30)),
    "trima:2": both(talib.TRIMA(close, 2), tulipy.trima(close, 2)),
    "trima:15": both(talib.TRIMA(close, 15), tulipy.trima(close, 15)),
    "kama": talib.KAMA(close),
    "kama:10": talib.KAMA(close, 10),
    "kama:2": talib.KAMA(close, 2),
    "t3": talib.T3(close),
    "t3:8,0.25": talib.T3(close, 8, 0.25),
    "t3:5,0": talib.T3(close, 5, 0.0),
    "hma": both(naive_hull(close, 9), tulipy.hma(close, 9)),
    "hma:16": both(naive_hull(close, 16), tulipy.hma(close, 16)),
    "hma:55": both(naive_hull(close, 55), tulipy.hma(close, 55)),
    "vwma": both(whole(naive_volume_weighted(close, volume, 20)), tulipy.vwma(close, volume, 20)),
    "vwma:7": both(whole(naive_volume_weighted(close, volume, 7)), tulipy.vwma(close, volume, 7)),
}
write(__file__, columns)

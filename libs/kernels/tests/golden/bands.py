"""Ranges and bands by TA-Lib 0.8.2 (C library 0.8.1), numpy 2.4.6.

Widths and %B are not in TA-Lib: they are written out here, and compared with pandas-ta-classic 0.8.32 (pandas 3.1.1) where no window is
flat.
"""

import numpy as np
import pandas as pd
import pandas_ta_classic as ta
import talib

from market import market, write

m = market()
high, low, close = (m[name] for name in ("high", "low", "close"))


def windows(values, period):
    """Rows of the last `period` values; undefined rows in front."""
    full = np.lib.stride_tricks.sliding_window_view(values, period)
    return np.vstack([np.full((period - 1, period), np.nan), full])


def bollinger(period, multiplier):
    window = windows(close, period)
    middle, deviation = window.mean(axis=1), window.std(axis=1)
    # Two passes leave a rounding where all closes are equal.
    deviation[window.max(axis=1) == window.min(axis=1)] = 0.0
    upper, lower = middle + multiplier * deviation, middle - multiplier * deviation
    width = upper - lower
    with np.errstate(invalid="ignore"):
        percent = np.where(width == 0.0, 0.5, (close - lower) / width)
    return upper, middle, lower, width, percent


columns = {"tr": talib.TRANGE(high, low, close)}
for period in (14, 1, 5, 60):
    columns[f"atr:{period}"] = talib.ATR(high, low, close, period)
for period in (14, 2, 5, 60):
    columns[f"natr:{period}"] = talib.NATR(high, low, close, period)
for period, multiplier in ((20, 2), (5, 1.5), (2, 0.25), (77, 3)):
    upper, middle, lower, width, percent = bollinger(period, multiplier)
    known = talib.BBANDS(close, period, multiplier, multiplier, 0)
    np.testing.assert_allclose([upper, middle, lower], known, rtol=1e-9)
    if period >= 20:
        other = ta.bbands(pd.Series(close), period, multiplier, talib=False).to_numpy().T
        np.testing.assert_allclose([lower, middle, upper, 100 * width / middle, percent], other, rtol=1e-9, atol=1e-9)
    columns |= {
        f"bbands:{period},{multiplier}.upper": upper,
        f"bbands:{period},{multiplier}.middle": middle,
        f"bbands:{period},{multiplier}.lower": lower,
        f"bbands:{period},{multiplier}.width": width,
        f"bbands:{period},{multiplier}.width_normalized": width / middle,
        f"bbands_percent:{period},{multiplier}": percent,
    }
for period, atr_period, multiplier in ((20, 10, 2), (5, 12, 1.5), (2, 1, 0.5), (11, 10, 3)):
    bands = talib.KC(high, low, close, period, atr_period, multiplier)
    for name, values in zip(("upper", "middle", "lower"), bands):
        columns[f"keltner:{period},{atr_period},{multiplier}.{name}"] = values
for period in (20, 2, 7, 100):
    bands = talib.DONCHIAN(high, low, period)
    np.testing.assert_array_equal(bands[::-1], ta.donchian(pd.Series(high), pd.Series(low), period, period).to_numpy().T)
    for name, values in zip(("upper", "middle", "lower"), bands):
        columns[f"donchian:{period}.{name}"] = values
write(__file__, columns)

"""Direction by TA-Lib 0.8.2 (C library 0.8.1), numpy 2.4.6; seeds of the stops and of the directional sums are TA-Lib's."""

import numpy as np
import talib

from market import market, write

m = market()
high, low, close = (m[name] for name in ("high", "low", "close"))
columns = {}
for period in (14, 2, 5, 30):
    for name in ("adx", "plus_di", "minus_di", "dx", "adxr"):
        columns[f"{name}:{period}"] = getattr(talib, name.upper())(high, low, close, period)
for period in (14, 1, 2, 30):
    for name in ("plus_dm", "minus_dm"):
        columns[f"{name}:{period}"] = getattr(talib, name.upper())(high, low, period)
for acceleration, maximum in ((0.02, 0.2), (0.05, 0.11), (0.3, 0.1), (0, 0.2), (1.5, 3)):
    columns[f"sar:{acceleration},{maximum}"] = talib.SAR(high, low, acceleration, maximum)
for period, multiplier in ((10, 3), (2, 0.5), (7, 1.25), (40, 2)):
    value, direction = talib.SUPERTREND(high, low, close, period, multiplier)
    columns[f"supertrend:{period},{multiplier}.value"] = value
    # TA-Lib's whole numbers have no NaN for warm-up.
    columns[f"supertrend:{period},{multiplier}.direction"] = np.where(np.isnan(value), np.nan, direction)
write(__file__, columns)

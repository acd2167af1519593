"""Volume by TA-Lib 0.8.2 (C library 0.8.1), numpy 2.4.6; the A/D line and oscillator compared with tulipy 0.4.0.

TA-Lib's VWAP is of all rows: it is given the rows of each anchored stretch. Before volume trades it answers 0, where we
leave the value undefined.
"""

import numpy as np
import talib
import tulipy

from market import market, write

m = market()
high, low, close, volume, day = (m[name] for name in ("high", "low", "close", "volume", "day"))


def anchored(days):
    out = np.full(len(close), np.nan)
    for stretch in np.unique(day // days):
        rows = day // days == stretch
        price = talib.VWAP(high[rows], low[rows], close[rows], volume[rows])
        out[rows] = np.where(np.cumsum(volume[rows]) > 0, price, np.nan)
    return out


columns = {"obv": talib.OBV(close, volume), "ad": talib.AD(high, low, close, volume), "vwap": anchored(1)}
np.testing.assert_allclose(columns["ad"], tulipy.ad(high, low, close, volume), rtol=1e-9)
# The default anchors once in these four days.
for days in (5, 1, 2, 3):
    columns[f"vwap_anchored:{days}"] = anchored(days)
for fast, slow in ((3, 10), (2, 3), (12, 50)):
    columns[f"adosc:{fast},{slow}"] = talib.ADOSC(high, low, close, volume, fast, slow)
    known = columns[f"adosc:{fast},{slow}"][slow - 1 :]
    np.testing.assert_allclose(known, tulipy.adosc(high, low, close, volume, fast, slow), rtol=1e-9, atol=1e-6)
for period in (14, 2, 5, 60):
    columns[f"mfi:{period}"] = talib.MFI(high, low, close, volume, period)
write(__file__, columns)

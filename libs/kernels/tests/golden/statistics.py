"""Statistics of the last candles by TA-Lib 0.8.2, compared with tulipy 0.4.0 and numpy 2.4.6 where those have them."""

import numpy as np
import talib
import tulipy

from market import ROWS, market, write

m = market()
high, low, close = m["high"], m["low"], m["close"]


def whole(values):
    """tulipy leaves the undefined rows out."""
    return np.concatenate([np.full(ROWS - len(values), np.nan), values])


def both(one, other, near_zero=1e-9):
    np.testing.assert_allclose(one, whole(other), rtol=1e-9, atol=near_zero)
    return one


def rolling(of, period, *columns):
    """`of` of every window."""
    return np.array([of(*(column[i - period : i] for column in columns)) for i in range(period, len(columns[0]) + 1)])


def correlation(x, y):
    return 0.0 if np.ptp(x) == 0.0 or np.ptp(y) == 0.0 else np.corrcoef(x, y)[0, 1]


def slope(x, y):
    """Of y on x."""
    return 0.0 if np.ptp(x) == 0.0 else np.cov(x, y)[0, 1] / np.var(x, ddof=1)


def returns(prices):
    return np.diff(prices) / prices[:-1]


columns = {
    "linearreg": both(talib.LINEARREG(close), tulipy.linreg(close, 14)),
    "linearreg:2": both(talib.LINEARREG(close, 2), tulipy.linreg(close, 2)),
    "linearreg:100": both(talib.LINEARREG(close, 100), tulipy.linreg(close, 100)),
    "linearreg_slope": both(talib.LINEARREG_SLOPE(close), tulipy.linregslope(close, 14)),
    "linearreg_slope:50": both(talib.LINEARREG_SLOPE(close, 50), tulipy.linregslope(close, 50)),
    "linearreg_intercept": both(talib.LINEARREG_INTERCEPT(close), tulipy.linregintercept(close, 14)),
    "linearreg_intercept:33": talib.LINEARREG_INTERCEPT(close, 33),
    "linearreg_angle": talib.LINEARREG_ANGLE(close),
    "linearreg_angle:33": talib.LINEARREG_ANGLE(close, 33),
    "tsf": both(talib.TSF(close), tulipy.tsf(close, 14)),
    "tsf:40": talib.TSF(close, 40),
    "stddev": both(talib.STDDEV(close), rolling(np.std, 5, close)),
    "stddev:20,2.5": both(talib.STDDEV(close, 20, 2.5), 2.5 * rolling(np.std, 20, close)),
    "var": both(talib.VAR(close), rolling(np.var, 5, close)),
    "var:50": both(talib.VAR(close, 50), rolling(np.var, 50, close)),
    "correl": both(talib.CORREL(high, low), rolling(correlation, 30, high, low)),
    "correl:7": both(talib.CORREL(high, low, 7), rolling(correlation, 7, high, low), 1e-6),
    "beta": both(talib.BETA(high, low), rolling(slope, 5, returns(high), returns(low)), 1e-6),
    "beta:60": both(talib.BETA(high, low, 60), rolling(slope, 60, returns(high), returns(low))),
    "min": both(talib.MIN(close), tulipy.min(close, 30)),
    "min:5": both(talib.MIN(close, 5), tulipy.min(close, 5)),
    "max": both(talib.MAX(close), tulipy.max(close, 30)),
    "max:5": both(talib.MAX(close, 5), tulipy.max(close, 5)),
    "midpoint": talib.MIDPOINT(close),
    "midpoint:50": talib.MIDPOINT(close, 50),
    "midprice": talib.MIDPRICE(high, low),
    "midprice:50": talib.MIDPRICE(high, low, 50),
}
for text, period in {"minmax": 30, "minmax:7": 7}.items():
    columns[f"{text}.min"], columns[f"{text}.max"] = talib.MINMAX(close, period)
write(__file__, columns)

"""Oscillators of recurrences in a market that moves and then stands still for long, by TA-Lib 0.8.2 (C library 0.8.1)."""

import numpy as np
import talib

import market

MOVING, STILL = 100, 900
random = np.random.default_rng(7)
close = np.round(100 + np.cumsum(np.round(random.normal(0, 4, MOVING)) * 0.05), 2)
close = np.concatenate([close, np.full(STILL, close[-1])])
reach = np.concatenate([np.round(random.random((2, MOVING)) * 4) * 0.05, np.zeros((2, STILL))], axis=1)
high, low = np.round(close + reach[0], 2), np.round(close - reach[1], 2)
rows = {"open": close, "high": high, "low": low, "close": close, "volume": np.full(len(close), 10.0)}
market.market = lambda: rows | {"day": np.arange(len(close)) // 250}
columns = {
    "plus_di": talib.PLUS_DI(high, low, close, 14),
    "minus_di": talib.MINUS_DI(high, low, close, 14),
    "dx": talib.DX(high, low, close, 14),
    "adx": talib.ADX(high, low, close, 14),
    "rsi": talib.RSI(close, 14),
    "rsi:2": talib.RSI(close, 2),
    "cmo": talib.CMO(close, 14),
}
market.write(__file__, columns)

"""Oscillators by TA-Lib 0.8.1 (Python package 0.8.2)."""

import talib

from market import market, write

m = market()
open_, high, low, close = m["open"], m["high"], m["low"], m["close"]


def named(spec, outputs, values):
    return {f"{spec}.{output}": column for output, column in zip(outputs, values, strict=True)}


columns = {}
for period in (14, 5, 2):
    columns[f"rsi:{period}"] = talib.RSI(close, period)
    columns[f"cmo:{period}"] = talib.CMO(close, period)
    columns[f"cci:{period}"] = talib.CCI(high, low, close, period)
    columns[f"willr:{period}"] = talib.WILLR(high, low, close, period)
    columns |= named(f"aroon:{period}", ("down", "up"), talib.AROON(high, low, period))
    columns[f"aroonosc:{period}"] = talib.AROONOSC(high, low, period)
for k, slow_k, d in ((14, 3, 3), (5, 1, 4)):
    lines = talib.STOCH(high, low, close, k, slow_k, 0, d, 0)
    columns |= named(f"stoch:{k},{slow_k},{d}", "kd", lines)
for k, d in ((5, 3), (21, 7)):
    columns |= named(f"stochf:{k},{d}", "kd", talib.STOCHF(high, low, close, k, d, 0))
for period, k, d in ((14, 5, 3), (7, 14, 2), (2, 3, 1)):
    columns |= named(f"stochrsi:{period},{k},{d}", "kd", talib.STOCHRSI(close, period, k, d, 0))
for periods in ((7, 14, 28), (3, 5, 10), (9, 6, 3)):
    columns[f"ultosc:{','.join(map(str, periods))}"] = talib.ULTOSC(high, low, close, *periods)
columns["bop"] = talib.BOP(open_, high, low, close)
write(__file__, columns)

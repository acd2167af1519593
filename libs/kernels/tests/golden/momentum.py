"""Momentum by TA-Lib 0.8.1 (Python package 0.8.2)."""

import talib

from market import market, write

close = market()["close"]
EXPONENTIAL = 1


def lines(spec, values):
    return {f"{spec}.{output}": column for output, column in zip(("macd", "signal", "histogram"), values, strict=True)}


columns = {}
for fast, slow, signal in ((12, 26, 9), (3, 10, 16), (5, 8, 1)):
    columns |= lines(f"macd:{fast},{slow},{signal}", talib.MACD(close, fast, slow, signal))
    for average in (0, EXPONENTIAL):
        values = talib.MACDEXT(close, fast, average, slow, average, signal, average)
        columns |= lines(f"macdext:{fast},{slow},{signal},{average}", values)
    columns |= lines(f"macdfix:{signal}", talib.MACDFIX(close, signal))
for fast, slow in ((12, 26), (3, 10)):
    columns[f"apo:{fast},{slow}"] = talib.APO(close, fast, slow, EXPONENTIAL)
    columns[f"ppo:{fast},{slow}"] = talib.PPO(close, fast, slow, EXPONENTIAL)
for period in (30, 5, 1):
    columns[f"trix:{period}"] = talib.TRIX(close, period)
for period in (10, 1, 63):
    columns[f"mom:{period}"] = talib.MOM(close, period)
    columns[f"roc:{period}"] = talib.ROC(close, period)
    columns[f"rocp:{period}"] = talib.ROCP(close, period)
    columns[f"rocr:{period}"] = talib.ROCR(close, period)
    columns[f"rocr100:{period}"] = talib.ROCR100(close, period)
write(__file__, columns)

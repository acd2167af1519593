"""What differs in TradingView's profile, from the definitions in the Pine Script v6 reference manual and of the built-in scripts, with
numpy 2.4.6 and pandas 3.1.1; over the made-up market, and over one that stands still, rises without a fall, and stands still again.
ta.ema alone begins as on charts, where the manual's code has the first value (QuantConnect/Lean#6336).

Averages: pandas' `ewm(adjust=False)` from a seed; all else a plain loop over the rows.
"""

from pathlib import Path

import numpy as np
import pandas as pd

import market

NA = np.nan


def quotient(a, b):
    """Of nothing: na."""
    return NA if b == 0 or np.isnan(a) or np.isnan(b) else a / b


def before(x):
    return np.concatenate([[NA], x[:-1]])


def smoothed(x, n, alpha):
    """From the mean of the first n values on that are not na."""
    known = np.flatnonzero(~np.isnan(x))
    seeded = np.array(x, dtype=float)
    if len(known) < n:
        return np.full(len(x), NA)
    seed = known[n - 1]
    seeded[:seed] = NA
    seeded[seed] = x[known[:n]].mean()
    return pd.Series(seeded).ewm(alpha=alpha, adjust=False).mean().to_numpy()


def ema(x, n):
    return smoothed(x, n, 2 / (n + 1))


def rma(x, n):
    return smoothed(x, n, 1 / n)


def sma(x, n):
    """ta.sma: na values are ignored."""
    out, known = [], []
    for value in x:
        if not np.isnan(value):
            known.append(value)
        out.append(np.mean(known[-n:]) if len(known) >= n else NA)
    return np.array(out)


def windows(of, n, *series):
    """of(window, ...) where the windows of n rows are complete and known."""
    rows = len(series[0])
    out = np.full(rows, NA)
    for i in range(n - 1, rows):
        parts = [x[i - n + 1 : i + 1] for x in series]
        if not any(np.isnan(part).any() for part in parts):
            out[i] = of(*parts)
    return out


def true_range(m, first):
    high, low, close = m["high"], m["low"], before(m["close"])
    range_ = np.maximum(high - low, np.maximum(abs(high - close), abs(low - close)))
    range_[0] = high[0] - low[0] if first else NA
    return range_


def atr(m, n):
    return rma(true_range(m, True), n)


def rsi(close, n):
    change = close - before(close)
    up, down = rma(np.maximum(change, 0), n), rma(-np.minimum(change, 0), n)
    pairs = zip(up, down)
    return np.array([NA if np.isnan(d) else 100 if d == 0 else 0 if u == 0 else 100 - 100 / (1 + u / d) for u, d in pairs])


def stoch(close, high, low, n):
    def place(close, high, low):
        span = high.max() - low.min()
        # What rounding leaves of an unmoving index is no movement.
        return quotient(100 * (close[-1] - low.min()), span if span > 1e-12 else 0)

    return windows(place, n, close, high, low)


def lines(name, outputs, values):
    return {f"{name}.{output}": column for output, column in zip(outputs, values, strict=True)}


def stochastic(name, raw, k, d):
    first = sma(raw, k)
    return lines(name, ("k", "d"), (first, sma(first, d)))


def macd(close, average, fast, slow, signal):
    line = average(close, fast) - average(close, slow)
    signal = average(line, signal)
    return line, signal, line - signal


def cmo(close, n):
    change = close - before(close)
    gain, loss = np.where(change >= 0, change, np.where(np.isnan(change), NA, 0)), np.where(change >= 0, 0, -change)
    return windows(lambda gain, loss: quotient(100 * (gain.sum() - loss.sum()), gain.sum() + loss.sum()), n, gain, loss)


def cci(typical, n):
    def index(window):
        dev = abs(window - window.mean()).mean()
        return quotient(window[-1] - window.mean(), 0.015 * dev if dev > 1e-10 else 0)

    return windows(index, n, typical)


def wpr(m, n):
    place = lambda close, high, low: quotient(100 * (close[-1] - high.max()), high.max() - low.min())
    return windows(place, n, m["close"], m["high"], m["low"])


def ultimate(m, *periods):
    close = before(m["close"])
    high, low = np.maximum(m["high"], close), np.minimum(m["low"], close)
    pressure, range_ = m["close"] - low, high - low
    a, b, c = (windows(lambda bp, tr: quotient(bp.sum(), tr.sum()), n, pressure, range_) for n in periods)
    return 100 * (4 * a + 2 * b + c) / 7


def dmi(m, n):
    up, down = m["high"] - before(m["high"]), before(m["low"]) - m["low"]
    plus = np.where(np.isnan(up), NA, np.where((up > down) & (up > 0), up, 0))
    minus = np.where(np.isnan(down), NA, np.where((down > up) & (down > 0), down, 0))
    range_ = rma(true_range(m, False), n)

    def indicator(movement):
        raw = pd.Series([100 * quotient(a, b) for a, b in zip(rma(movement, n), range_)])
        return raw.ffill().to_numpy()  # fixnan

    plus, minus = indicator(plus), indicator(minus)
    total = plus + minus
    index = abs(plus - minus) / np.where(total == 0, 1, total)
    return plus, minus, 100 * index, 100 * rma(index, n)


def sar(m, start, increment, maximum):
    high, low, close = m["high"], m["low"], m["close"]
    out = [NA]
    for i in range(1, len(close)):
        turned = False
        if i == 1:
            rising = close[1] > close[0]
            result, extreme, factor, turned = (low[0], high[1], start, True) if rising else (high[0], low[1], start, True)
        result = result + factor * (extreme - result)
        if rising and result > low[i]:
            turned, rising, result, extreme, factor = True, False, max(high[i], extreme), low[i], start
        elif not rising and result < high[i]:
            turned, rising, result, extreme, factor = True, True, min(low[i], extreme), high[i], start
        if not turned and rising and high[i] > extreme:
            extreme, factor = high[i], min(factor + increment, maximum)
        if not turned and not rising and low[i] < extreme:
            extreme, factor = low[i], min(factor + increment, maximum)
        for age in (1, 2)[: min(i, 2)]:
            result = min(result, low[i - age]) if rising else max(result, high[i - age])
        out.append(result)
    return np.array(out)


def supertrend(m, n, factor):
    middle, range_, close = (m["high"] + m["low"]) / 2, atr(m, n), m["close"]
    line, direction = np.full(len(close), NA), np.full(len(close), NA)
    upper, lower = np.zeros(len(close)), np.zeros(len(close))
    for i in range(n - 1, len(close)):
        upper[i], lower[i] = middle[i] + factor * range_[i], middle[i] - factor * range_[i]
        if not (lower[i] > lower[i - 1] or close[i - 1] < lower[i - 1]):
            lower[i] = lower[i - 1]
        if not (upper[i] < upper[i - 1] or close[i - 1] > upper[i - 1]):
            upper[i] = upper[i - 1]
        if i == n - 1:
            direction[i] = 1
        elif line[i - 1] == upper[i - 1]:
            direction[i] = -1 if close[i] > upper[i] else 1
        else:
            direction[i] = 1 if close[i] < lower[i] else -1
        line[i] = lower[i] if direction[i] == -1 else upper[i]
    return line, direction


def keltner(m, n, range_n, factor):
    middle, range_ = ema(m["close"], n), ema(true_range(m, False), range_n)
    return middle + range_ * factor, middle, middle - range_ * factor


def percent_b(close, n, factor):
    def place(window):
        reach = factor * window.std()
        # Equal closes differ from their mean by rounding.
        return quotient(window[-1] - (window.mean() - reach), 2 * reach if reach > 1e-9 else 0)

    return windows(place, n, close)


def accumulated(m):
    span = m["high"] - m["low"]
    flow = (2 * m["close"] - m["low"] - m["high"]) / np.where(span == 0, 1, span) * m["volume"]
    return np.cumsum(np.where(span == 0, 0, flow))


def obv(m):
    change = m["close"] - before(m["close"])
    return np.cumsum(np.nan_to_num(np.sign(change) * m["volume"]))


def mfi(m, n):
    typical = (m["high"] + m["low"] + m["close"]) / 3
    change = typical - before(typical)
    change[abs(change) < 1e-11] = 0
    # A comparison with na is false: the first candle counts on both sides.
    up, down = np.where(change <= 0, 0, typical) * m["volume"], np.where(change >= 0, 0, typical) * m["volume"]
    return windows(lambda up, down: 100 * quotient(up.sum(), up.sum() + down.sum()), n, up, down)


def columns(m):
    close, high, low = m["close"], m["high"], m["low"]
    out = {}
    for n in (30, 5, 1):
        cubed = ema(ema(ema(np.log(close), n), n), n)
        out[f"trix:{n}"] = 10_000 * (cubed - before(cubed))
    for fast, slow, signal in ((12, 26, 9), (3, 10, 16), (5, 8, 1)):
        name = f"{fast},{slow},{signal}"
        out |= lines(f"macd:{name}", ("macd", "signal", "histogram"), macd(close, ema, fast, slow, signal))
        for kind, average in enumerate((sma, ema)):
            values = macd(close, average, fast, slow, signal)
            out |= lines(f"macdext:{name},{kind}", ("macd", "signal", "histogram"), values)
    for fast, slow in ((12, 26), (3, 10)):
        quick, slack = ema(close, fast), ema(close, slow)
        out[f"ppo:{fast},{slow}"] = (quick - slack) / slack * 100
        line = accumulated(m)
        out[f"adosc:{fast},{slow}"] = ema(line, fast) - ema(line, slow)
    for n in (14, 2):
        out[f"rsi:{n}"] = rsi(close, n)
        out[f"cmo:{n}"] = cmo(close, n)
        out[f"cci:{n}"] = cci((high + low + close) / 3, n)
        out[f"willr:{n}"] = wpr(m, n)
        out[f"mfi:{n}"] = mfi(m, n)
        plus, minus, index, average = dmi(m, n)
        out |= {f"plus_di:{n}": plus, f"minus_di:{n}": minus, f"dx:{n}": index, f"adx:{n}": average}
    for n, k, d in ((14, 3, 3), (5, 2, 4), (1, 1, 1)):
        raw = stoch(close, high, low, n)
        out |= stochastic(f"stoch:{n},{k},{d}", raw, k, d)
        out |= stochastic(f"stochf:{n},{d}", raw, 1, d)
    for n, window, k, d in ((14, 14, 3, 3), (5, 9, 1, 4)):
        index = rsi(close, n)
        out |= stochastic(f"stochrsi:{n},{window},{d},{k}", stoch(index, index, index, window), k, d)
    out["ultosc:7,14,28"] = ultimate(m, 7, 14, 28)
    out["ultosc:28,7,14"] = ultimate(m, 28, 7, 14)
    out["bop"] = np.array([quotient(a, b) for a, b in zip(close - m["open"], high - low)])
    for n in (14, 2):
        out[f"atr:{n}"] = atr(m, n)
        out[f"natr:{n}"] = atr(m, n) / close * 100
    out["atr:1"] = atr(m, 1)
    for n, factor in ((20, 2), (5, 1.5)):
        out[f"bbands_percent:{n},{factor}"] = percent_b(close, n, factor)
    for n, range_n, factor in ((20, 20, 2), (5, 10, 1.5), (12, 4, 1)):
        values = keltner(m, n, range_n, factor)
        out |= lines(f"keltner:{n},{range_n},{factor}", ("upper", "middle", "lower"), values)
    for start, maximum in ((0.02, 0.2), (0.1, 0.5), (0.5, 0.1)):
        out[f"sar:{start},{maximum}"] = sar(m, start, start, maximum)
    for n, factor in ((10, 3), (2, 1)):
        out |= lines(f"supertrend:{n},{factor}", ("value", "direction"), supertrend(m, n, factor))
    out["obv"] = obv(m)
    return {profiled(name): values for name, values in out.items()}


def profiled(name):
    """The profile goes before the output."""
    for output in (".k", ".d", ".macd", ".signal", ".histogram", ".upper", ".middle", ".lower", ".value", ".direction"):
        if name.endswith(output):
            return name.removesuffix(output) + "@tradingview" + output
    return name + "@tradingview"


def still():
    """40 candles of one price, 30 that only rise, 40 of one price, then moves."""
    random = np.random.default_rng(11)
    steps = np.concatenate([np.zeros(40), np.full(30, 0.25), np.zeros(40), np.round(random.normal(0, 8, 90)) * 0.05])
    close = np.round(100 + np.cumsum(steps), 2)
    reach = np.where(np.arange(len(steps)) < 110, np.where(steps == 0, 0, 0.1), np.round(random.random(len(steps)) * 8) * 0.05)
    opened = np.concatenate([[close[0]], close[:-1]])
    high = np.round(np.maximum(opened, close) + reach, 2)
    low = np.round(np.minimum(opened, close) - reach, 2)
    volume = np.full(len(close), 10.0)
    return {"open": opened, "high": high, "low": low, "close": close, "volume": volume, "day": np.arange(len(close)) // 80}


market.write(__file__, columns(market.market()))
rows = still()
market.market = lambda: rows
# A window of one candle, or a whole market, may have nothing that is defined.
known = {name: values for name, values in columns(rows).items() if not np.isnan(values).all()}
market.write(Path(__file__).with_name("tradingview_still.py"), known)

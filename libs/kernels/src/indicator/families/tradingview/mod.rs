//! What is another thing in TradingView's profile than by default: averages from another candle on, no answer where a market stands still,
//! another formula.
//!
//! Source: the equivalent code of each function in the Pine Script v6 reference manual, tradingview.com/pine-script-reference/v6; for an
//! indicator without a function the built-in script of the name given. Where `ta.ema` begins is that of the charts, not of the manual's
//! code: after its length of values, at their mean (published comparisons with exported charts, QuantConnect/Lean#6336).
//!
//! Two rules of the language go through all of it: an average ignores undefined values (`na`) and is of as many others as its length, and a
//! quotient of nothing is undefined.

mod bands;
mod direction;
mod momentum;
mod oscillators;
mod volume;

use crate::indicator::catalogue::Info;

pub(super) const ENTRIES: [&[Info]; 5] =
    [&momentum::ENTRIES, &oscillators::ENTRIES, &direction::ENTRIES, &bands::ENTRIES, &volume::ENTRIES];

/// One definition in both profiles, for all prices but 0: `ta.sma`, `ta.ema`, the built-in scripts Double EMA and Triple EMA, the line of
/// `ta.macd` (`apo`), `ta.wma`, `ta.hma`, `ta.vwma`, `ta.mom`, `ta.roc` on four scales,
/// `ta.tr`, `ta.bb`, `ta.linreg` with its offset, `ta.stdev`, `ta.variance`, `ta.lowest`, `ta.highest` and their middle, `ta.accdist`,
/// `ta.vwap` from any anchor, and the built-in script Donchian Channels.
///
/// What stands in neither table has no definition there, or none that says what equal values do: `trima`, `kama`, `t3`, `macdfix`, `adxr`,
/// `plus_dm`, `minus_dm`, `beta`, `correl`, `aroon`, `aroonosc`.
pub(super) const SAME: [&str; 31] = [
    "sma",
    "ema",
    "dema",
    "tema",
    "apo",
    "wma",
    "hma",
    "vwma",
    "mom",
    "roc",
    "rocp",
    "rocr",
    "rocr100",
    "tr",
    "bbands",
    "donchian",
    "vwap",
    "vwap_anchored",
    "ad",
    "linearreg",
    "linearreg_slope",
    "linearreg_intercept",
    "linearreg_angle",
    "tsf",
    "stddev",
    "var",
    "min",
    "max",
    "minmax",
    "midpoint",
    "midprice",
];

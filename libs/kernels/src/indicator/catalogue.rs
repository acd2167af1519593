//! Names, parameters and outputs of every indicator.

/// Largest period accepted, in candles: forty trading days of NSE minutes are 15 000, and no published rule looks further.
pub const MAX_PERIOD: u32 = 10_000;

/// One parameter of an indicator, in the order it is written after the colon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameter {
    pub name: &'static str,
    pub default: f64,
    /// Smallest accepted value.
    pub min: f64,
    /// Largest accepted value.
    pub max: f64,
    /// Whole numbers only; otherwise decimals with up to four places.
    pub is_integer: bool,
}

/// What a client may ask of one indicator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Info {
    pub name: &'static str,
    pub summary: &'static str,
    pub parameters: &'static [Parameter],
    /// Candle columns it reads.
    pub inputs: &'static [&'static str],
    /// Output names; a single output is named by the request itself.
    pub outputs: &'static [&'static str],
}

const fn period(name: &'static str, default: u32, min: u32) -> Parameter {
    Parameter { name, default: default as f64, min: min as f64, max: MAX_PERIOD as f64, is_integer: true }
}

const fn single(default: u32, min: u32) -> [Parameter; 1] {
    [period("period", default, min)]
}

const MULTIPLIER: Parameter =
    Parameter { name: "multiplier", default: 2.0, min: 0.0001, max: 100.0, is_integer: false };
const CLOSE: &[&str] = &["close"];
const HIGH_LOW_CLOSE: &[&str] = &["high", "low", "close"];

static CATALOGUE: [Info; 13] = [
    Info {
        name: "sma",
        summary: "simple moving average of the close",
        parameters: &single(20, 1),
        inputs: CLOSE,
        outputs: &["value"],
    },
    Info {
        name: "ema",
        summary: "exponential moving average of the close, alpha 2/(period+1), seeded with the mean of the first period closes",
        parameters: &single(20, 1),
        inputs: CLOSE,
        outputs: &["value"],
    },
    Info {
        name: "rsi",
        summary: "relative strength index by Wilder's smoothing, 0 to 100, 0 when nothing moved",
        parameters: &single(14, 2),
        inputs: CLOSE,
        outputs: &["value"],
    },
    Info {
        name: "atr",
        summary: "average true range by Wilder's smoothing, seeded with the mean of the first period ranges",
        parameters: &single(14, 1),
        inputs: HIGH_LOW_CLOSE,
        outputs: &["value"],
    },
    Info {
        name: "bbands",
        summary: "Bollinger bands: simple moving average of the close and multiplier population standard deviations around it",
        parameters: &[period("period", 20, 2), MULTIPLIER],
        inputs: CLOSE,
        outputs: &["upper", "middle", "lower", "width", "width_normalized"],
    },
    Info {
        name: "vwap",
        summary: "volume-weighted average of the typical price since the trading day began, undefined until volume trades",
        parameters: &[],
        inputs: &["high", "low", "close", "volume", "day"],
        outputs: &["value"],
    },
    Info {
        name: "macd",
        summary: "difference of two exponential averages of the close, its exponential average and what remains (TA-Lib's seeds)",
        parameters: &[period("fast", 12, 2), period("slow", 26, 3), period("signal", 9, 1)],
        inputs: CLOSE,
        outputs: &["macd", "signal", "histogram"],
    },
    Info {
        name: "adx",
        summary: "average directional index by Wilder's smoothing, 0 to 100",
        parameters: &single(14, 2),
        inputs: HIGH_LOW_CLOSE,
        outputs: &["value"],
    },
    Info {
        name: "plus_di",
        summary: "positive directional indicator by Wilder's smoothing, 0 to 100",
        parameters: &single(14, 2),
        inputs: HIGH_LOW_CLOSE,
        outputs: &["value"],
    },
    Info {
        name: "minus_di",
        summary: "negative directional indicator by Wilder's smoothing, 0 to 100",
        parameters: &single(14, 2),
        inputs: HIGH_LOW_CLOSE,
        outputs: &["value"],
    },
    Info {
        name: "stoch",
        summary: "slow stochastic: place of the close in the range of the window, smoothed twice by simple averages; 0 in a flat window",
        parameters: &[period("window", 14, 1), period("k_smoothing", 3, 1), period("d_smoothing", 3, 1)],
        inputs: HIGH_LOW_CLOSE,
        outputs: &["k", "d"],
    },
    Info {
        name: "obv",
        summary: "on-balance volume: volume added when the close rises, subtracted when it falls, starting at the first volume",
        parameters: &[],
        inputs: &["close", "volume"],
        outputs: &["value"],
    },
    Info {
        name: "tr",
        summary: "true range: the candle's range extended to the close before it",
        parameters: &[],
        inputs: HIGH_LOW_CLOSE,
        outputs: &["value"],
    },
];

/// Lists every indicator with its parameters, inputs and outputs, in a fixed order.
pub fn catalogue() -> &'static [Info] {
    &CATALOGUE
}

/// Looks an indicator up by its lower-case name.
pub(super) fn find(name: &str) -> Option<&'static Info> {
    CATALOGUE.iter().find(|info| info.name == name)
}

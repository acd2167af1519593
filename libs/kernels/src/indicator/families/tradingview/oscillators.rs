//! Oscillators: other answers where nothing moved, and lines that show as soon as they can.

use serde::{Deserialize, Serialize};

use crate::indicator::catalogue::{HIGH_LOW_CLOSE, Info, period, single, tradingview_entry};
use crate::indicator::families::oscillators::{Balance, Cci, Changes, ROUNDING, Ultimate, WilliamsR, share_or};
use crate::indicator::fold::Row;
use crate::indicator::formula;
use crate::indicator::state::{State, Values, write};
use crate::indicator::window::{Extremes, Mean, Range};

pub(super) const ENTRIES: [Info; 9] = [
    tradingview_entry::<Rsi>(
        "rsi",
        "relative strength index by Wilder's smoothing, 0 to 100, 100 when nothing fell, even when nothing rose either (ta.rsi)",
        &single(14, 2),
        |values| values.period(0),
    ),
    tradingview_entry::<Stochastic>(
        "stoch",
        "slow stochastic: place of the close in the range of the window, smoothed twice by simple averages that leave flat windows \
         out (built-in script Stochastic); d is defined later than k",
        &[period("window", 14, 1), period("k_smoothing", 3, 1), period("d_smoothing", 3, 1)],
        |values| values.period(0) + values.period(1) - 2,
    )
    .reads(HIGH_LOW_CLOSE)
    .gives(&["k", "d"]),
    tradingview_entry::<FastStochastic>(
        "stochf",
        "stoch with a k_smoothing of 1",
        &[period("window", 5, 1), period("d_smoothing", 3, 1)],
        |values| values.period(0) - 1,
    )
    .reads(HIGH_LOW_CLOSE)
    .gives(&["k", "d"]),
    tradingview_entry::<StochasticRsi>(
        "stochrsi",
        "stochastic of the relative strength index, smoothed twice by simple averages that leave windows out where it does not move \
         (built-in script Stochastic RSI); d is defined later than k",
        &[period("period", 14, 2), period("window", 14, 1), period("d_smoothing", 3, 1), period("k_smoothing", 3, 1)],
        |values| values.period(0) + values.period(1) + values.period(3) - 2,
    )
    .gives(&["k", "d"]),
    tradingview_entry::<Cmo>(
        "cmo",
        "Chande momentum oscillator by plain sums over the window, -100 to 100, undefined when nothing moved (ta.cmo)",
        &single(14, 2),
        |values| values.period(0),
    ),
    tradingview_entry::<Cci>(
        "cci",
        "commodity channel index: distance of the typical price to its mean in mean deviations of 0.015; undefined in a flat window \
         (ta.cci)",
        &single(14, 2),
        |values| values.period(0) - 1,
    )
    .reads(HIGH_LOW_CLOSE)
    .costs(|values| 1 + values.period(0) / 16),
    tradingview_entry::<WilliamsR>(
        "willr",
        "Williams %R: place of the close in the range of the window, -100 to 0; undefined in a flat window (ta.wpr)",
        &single(14, 2),
        |values| values.period(0) - 1,
    )
    .reads(HIGH_LOW_CLOSE),
    tradingview_entry::<Ultimate>(
        "ultosc",
        "ultimate oscillator: buying pressure over true range in three windows, the first the heaviest, 0 to 100; undefined where a \
         window has no range (built-in script Ultimate Oscillator)",
        &[period("short", 7, 1), period("middle", 14, 1), period("long", 28, 1)],
        Ultimate::lookback,
    )
    .reads(HIGH_LOW_CLOSE),
    tradingview_entry::<Balance>(
        "bop",
        "balance of power: body over range, -1 to 1; undefined where there is no range (built-in script Balance of Power)",
        &[],
        |_| 0,
    )
    .reads(&["open", "high", "low", "close"]),
];

/// Relative strength index. No loss: 100, even when there is no gain.
///
/// Source: Pine Script v6 reference, `ta.rsi` over `ta.rma`; what it answers without loss or gain is in the built-in script Relative
/// Strength Index.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Rsi(Changes);

impl Rsi {
    fn of(&mut self, close: f64) -> Option<f64> {
        self.0.push(close).map(|(gain, loss)| formula::relative_strength_or_full(gain, loss))
    }
}

impl State for Rsi {
    fn new(values: &Values) -> Self {
        Self(Changes::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.of(row.close).map(|index| [index]));
    }
}

/// Simple average that ignores undefined values: the mean of the last `period` others, on a row without one that of before.
///
/// Source: Pine Script v6 reference, `ta.sma`, remark on `na`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct DefinedMean {
    mean: Mean,
    value: Option<f64>,
}

impl DefinedMean {
    fn new(period: usize) -> Self {
        Self { mean: Mean::new(period), value: None }
    }

    fn push(&mut self, x: Option<f64>) -> Option<f64> {
        if let Some(x) = x {
            self.value = self.mean.push(x);
        }
        self.value
    }
}

/// The two smoothings of a place in a range.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Smoothings {
    k: DefinedMean,
    d: DefinedMean,
}

impl Smoothings {
    fn new(k: usize, d: usize) -> Self {
        Self { k: DefinedMean::new(k), d: DefinedMean::new(d) }
    }

    /// Takes a place, none in a flat window.
    fn push(&mut self, place: Option<f64>, out: &mut [f64]) {
        let k = self.k.push(place);
        let d = self.d.push(k);
        write(out, Some([k, d].map(|line| line.unwrap_or(f64::NAN))));
    }
}

/// Source: Pine Script v6 reference, `ta.stoch`; TradingView's built-in script Stochastic.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stochastic {
    range: Range,
    lines: Smoothings,
}

impl Stochastic {
    fn over(window: usize, k: usize, d: usize) -> Self {
        Self { range: Range::new(window), lines: Smoothings::new(k, d) }
    }
}

impl State for Stochastic {
    fn new(values: &Values) -> Self {
        Self::over(values.period(0), values.period(1), values.period(2))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some(Extremes { highest, lowest }) = self.range.push(row.high, row.low) else { return };
        let place = (highest > lowest).then(|| formula::place_in_range(row.close, highest, lowest));
        self.lines.push(place, out);
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct FastStochastic(Stochastic);

impl State for FastStochastic {
    fn new(values: &Values) -> Self {
        Self(Stochastic::over(values.period(0), 1, values.period(1)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        self.0.push(row, out);
    }
}

/// A window in which the index moves by no more than rounding is flat.
///
/// Source: TradingView's built-in script Stochastic RSI.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct StochasticRsi {
    index: Rsi,
    range: Range,
    lines: Smoothings,
}

impl State for StochasticRsi {
    fn new(values: &Values) -> Self {
        Self {
            index: Rsi::new(values),
            range: Range::new(values.period(1)),
            lines: Smoothings::new(values.period(3), values.period(2)),
        }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some(index) = self.index.of(row.close) else { return };
        let Some(Extremes { highest, lowest }) = self.range.push(index, index) else { return };
        let moved = highest - lowest > ROUNDING * (highest + lowest);
        self.lines.push(moved.then(|| formula::place_in_range(index, highest, lowest)), out);
    }
}

/// Chande momentum oscillator over plain sums, as its author has it.
///
/// Source: Pine Script v6 reference, `ta.cmo`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Cmo {
    previous_close: Option<f64>,
    gain: Mean,
    loss: Mean,
}

impl State for Cmo {
    fn new(values: &Values) -> Self {
        let window = Mean::new(values.period(0));
        Self { previous_close: None, gain: window.clone(), loss: window }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some(previous) = self.previous_close.replace(row.close) else { return };
        let gain = self.gain.push(formula::gain(row.close, previous));
        let loss = self.loss.push(formula::loss(row.close, previous));
        let of = |(gain, loss): (f64, f64)| [share_or(100.0 * (gain - loss), gain + loss, f64::NAN)];
        write(out, gain.zip(loss).map(of));
    }
}

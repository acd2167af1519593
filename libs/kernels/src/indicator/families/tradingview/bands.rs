//! Ranges that count the first candle's, and bands around the price.

use serde::{Deserialize, Serialize};

use crate::indicator::catalogue::{HIGH_LOW_CLOSE, Info, period, single, tradingview_entry};
use crate::indicator::families::bands::{BollingerPercent, MULTIPLIER};
use crate::indicator::fold::Row;
use crate::indicator::formula;
use crate::indicator::smooth::{Shape, Smooth};
use crate::indicator::state::{State, Values, write};

pub(super) const ENTRIES: [Info; 4] = [
    tradingview_entry::<Atr>(
        "atr",
        "average true range by Wilder's smoothing, seeded with the mean of the first period ranges, the first candle's included (ta.atr)",
        &single(14, 1),
        |values| values.period(0) - 1,
    )
    .reads(HIGH_LOW_CLOSE),
    tradingview_entry::<Natr>(
        "natr",
        "average true range (ta.atr) in percent of the close, undefined at a close of 0",
        &single(14, 2),
        |values| values.period(0) - 1,
    )
    .reads(HIGH_LOW_CLOSE),
    tradingview_entry::<BollingerPercent>(
        "bbands_percent",
        "place of the close between the Bollinger bands (%B): 0 on the lower, 1 on the upper, undefined in a flat window (built-in \
         script Bollinger Bands %b)",
        &[period("period", 20, 2), MULTIPLIER],
        |values| values.period(0) - 1,
    ),
    tradingview_entry::<Keltner>(
        "keltner",
        "Keltner channels: exponential moving average of the close and multiplier exponential averages of the true range around it \
         (ta.kc where both periods are equal); the middle does not wait for the bands",
        &[period("period", 20, 2), period("atr_period", 20, 1), MULTIPLIER],
        |values| values.period(0) - 1,
    )
    .reads(HIGH_LOW_CLOSE)
    .gives(&["upper", "middle", "lower"]),
];

/// Average true range. The first candle, which has no close before it, counts with its own range. Seed: mean of the first `period`.
///
/// Source: Pine Script v6 reference, `ta.atr` over `ta.tr(true)` and `ta.rma`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Atr {
    previous_close: Option<f64>,
    mean: Smooth,
}

impl Atr {
    pub(super) fn of(&mut self, row: &Row) -> Option<f64> {
        self.mean.push(match self.previous_close.replace(row.close) {
            Some(previous) => formula::true_range(row.high, row.low, previous),
            None => row.high - row.low,
        })
    }
}

impl State for Atr {
    fn new(values: &Values) -> Self {
        Self { previous_close: None, mean: Smooth::new(Shape::wilder_mean(values.period(0))) }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.of(row).map(|mean| [mean]));
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Natr(Atr);

impl State for Natr {
    fn new(values: &Values) -> Self {
        Self(Atr::new(values))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let percent = |range: f64| if row.close == 0.0 { f64::NAN } else { range / row.close * 100.0 };
        write(out, self.0.of(row).map(|range| [percent(range)]));
    }
}

/// Keltner channels. The first candle has no true range, so with equal periods the middle shows a candle before the bands.
///
/// Source: Pine Script v6 reference, `ta.kc` over `ta.tr`, which has one length for both averages.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Keltner {
    previous_close: Option<f64>,
    middle: Smooth,
    range: Smooth,
    multiplier: f64,
}

impl State for Keltner {
    fn new(values: &Values) -> Self {
        let [middle, range] = [0, 1].map(|index| Smooth::new(Shape::exponential(values.period(index))));
        Self { previous_close: None, middle, range, multiplier: values.decimal(2) }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let previous = self.previous_close.replace(row.close);
        let range = previous.and_then(|previous| self.range.push(formula::true_range(row.high, row.low, previous)));
        let Some(middle) = self.middle.push(row.close) else { return };
        let reach = range.map_or(f64::NAN, |range| self.multiplier * range);
        write(out, Some([middle + reach, middle, middle - reach]));
    }
}

//! Directional movement over Wilder's means, and stops that follow the price.

use serde::{Deserialize, Serialize};

use super::bands::Atr;
use crate::indicator::catalogue::{HIGH_LOW_CLOSE, Info, decimal, period, single, tradingview_entry};
use crate::indicator::families::direction::{MOST_FACTOR, Prices, Run};
use crate::indicator::fold::Row;
use crate::indicator::formula;
use crate::indicator::smooth::{Shape, Smooth};
use crate::indicator::state::{State, Values, write};

pub(super) const ENTRIES: [Info; 6] = [
    tradingview_entry::<Adx>(
        "adx",
        "average directional index by Wilder's smoothing of the same period, 0 to 100 (ta.dmi with two equal lengths)",
        &single(14, 2),
        |values| 2 * values.period(0) - 1,
    )
    .reads(HIGH_LOW_CLOSE),
    tradingview_entry::<PlusDi>(
        "plus_di",
        "positive directional indicator by Wilder's smoothing, seeded with means, 0 to 100; without range the one before (ta.dmi)",
        &single(14, 2),
        |values| values.period(0),
    )
    .reads(HIGH_LOW_CLOSE),
    tradingview_entry::<MinusDi>(
        "minus_di",
        "negative directional indicator by Wilder's smoothing, seeded with means, 0 to 100; without range the one before (ta.dmi)",
        &single(14, 2),
        |values| values.period(0),
    )
    .reads(HIGH_LOW_CLOSE),
    tradingview_entry::<Dx>(
        "dx",
        "directional index: distance between the directional indicators of ta.dmi in percent of their sum, 0 where that is 0",
        &single(14, 2),
        |values| values.period(0),
    )
    .reads(HIGH_LOW_CLOSE),
    tradingview_entry::<Sar>(
        "sar",
        "parabolic stop and reverse, long from the second candle if that closes higher; nothing but the price beyond the stop turns it \
         (ta.sar with the acceleration as start and increment)",
        &[decimal("acceleration", 0.02, 0.0, MOST_FACTOR), decimal("maximum", 0.2, 0.0, MOST_FACTOR)],
        |_| 1,
    )
    .reads(HIGH_LOW_CLOSE),
    tradingview_entry::<Supertrend>(
        "supertrend",
        "band of multiplier average true ranges around the middle of the candle that only nears the price until the close crosses it; \
         direction is -1 while the band is below the price, 1 while it is above; starts with 1 (ta.supertrend)",
        &[period("period", 10, 2), decimal("multiplier", 3.0, 0.0001, 100.0)],
        |values| values.period(0) - 1,
    )
    .reads(HIGH_LOW_CLOSE)
    .gives(&["value", "direction"]),
];

/// Directional indicators. Seed: means of the first `period` movements and true ranges, none of the first candle. No range: those of
/// before, undefined while there are none.
///
/// Source: Pine Script v6 reference, `ta.dmi`; its code is in the built-in script Directional Movement Index.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Directional {
    previous: Option<Row>,
    plus: Smooth,
    minus: Smooth,
    range: Smooth,
    indicators: Option<Indicators>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Indicators {
    plus: f64,
    minus: f64,
}

impl Indicators {
    /// Distance as a part of the sum, 0 to 1.
    fn index(self) -> f64 {
        let sum = self.plus + self.minus;
        (self.plus - self.minus).abs() / if sum == 0.0 { 1.0 } else { sum }
    }
}

impl Directional {
    fn new(values: &Values) -> Self {
        let mean = Smooth::new(Shape::wilder_mean(values.period(0)));
        Self { previous: None, plus: mean.clone(), minus: mean.clone(), range: mean, indicators: None }
    }

    fn push(&mut self, row: &Row) -> Option<Indicators> {
        let previous = self.previous.replace(*row)?;
        let (up, down) = (row.high - previous.high, previous.low - row.low);
        let plus = self.plus.push(formula::plus_movement(up, down));
        let minus = self.minus.push(formula::minus_movement(up, down));
        let range = self.range.push(formula::true_range(row.high, row.low, previous.close));
        let (plus, minus, range) = (plus?, minus?, range?);
        // Smaller, it has lost its digits on the way to 0.
        if range.is_normal() {
            self.indicators = Some(Indicators { plus: 100.0 * (plus / range), minus: 100.0 * (minus / range) });
        }
        self.indicators
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct PlusDi(Directional);

impl State for PlusDi {
    fn new(values: &Values) -> Self {
        Self(Directional::new(values))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row).map(|now| [now.plus]));
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct MinusDi(Directional);

impl State for MinusDi {
    fn new(values: &Values) -> Self {
        Self(Directional::new(values))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row).map(|now| [now.minus]));
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Dx(Directional);

impl State for Dx {
    fn new(values: &Values) -> Self {
        Self(Directional::new(values))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row).map(|now| [100.0 * now.index()]));
    }
}

/// Seed: mean of the first `period` indices that are defined.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Adx(Directional, Smooth);

impl State for Adx {
    fn new(values: &Values) -> Self {
        Self(Directional::new(values), Smooth::new(Shape::wilder_mean(values.period(0))))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some(now) = self.0.push(row) else { return };
        write(out, self.1.push(now.index()).map(|mean| [100.0 * mean]));
    }
}

/// Parabolic stop and reverse. Seed: the second candle is long when it closes above the first, otherwise short; its stop is the first
/// candle's low or high, moved once already, its extreme its own. A price beyond the stop reverses, a touch does not.
///
/// Source: Pine Script v6 reference, `ta.sar`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Sar {
    acceleration: f64,
    maximum: f64,
    previous_close: f64,
    previous: Option<Prices>,
    before_previous: Option<Prices>,
    run: Option<Run>,
}

impl State for Sar {
    fn new(values: &Values) -> Self {
        let (acceleration, maximum) = (values.decimal(0), values.decimal(1));
        Self { acceleration, maximum, previous_close: 0.0, previous: None, before_previous: None, run: None }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let now = Prices { high: row.high, low: row.low };
        let previous_close = std::mem::replace(&mut self.previous_close, row.close);
        let Some(previous) = self.previous.replace(now) else { return };
        let before_previous = self.before_previous.replace(previous);
        let begin = |side: f64, stop: f64| Run { side, stop, extreme: now.best(side), factor: self.acceleration };
        let mut is_new = self.run.is_none();
        let mut run = self.run.unwrap_or_else(|| {
            let side = if row.close > previous_close { 1.0 } else { -1.0 };
            begin(side, previous.worst(side))
        });
        run.stop += run.factor * (run.extreme - run.stop);
        if run.stop > now.worst(run.side) {
            is_new = true;
            let side = -run.side;
            run = begin(side, formula::smaller(-run.extreme, now.worst(side)));
        }
        let best = now.best(run.side);
        if !is_new && best > run.extreme {
            run.extreme = best;
            run.factor = formula::smaller(run.factor + self.acceleration, self.maximum);
        }
        for earlier in [Some(previous), before_previous].into_iter().flatten() {
            run.stop = formula::smaller(run.stop, earlier.worst(run.side));
        }
        self.run = Some(run);
        write(out, Some([run.side * run.stop]));
    }
}

/// Supertrend: falling on the first candle that has an average true range. The bands before that one count as 0, so a lower band
/// begins at 0 or above.
///
/// Source: Pine Script v6 reference, `ta.supertrend`; the manual's code gives 0 on the very first candle, which is left undefined here.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Supertrend {
    multiplier: f64,
    range: Atr,
    previous_close: f64,
    upper: f64,
    lower: f64,
    /// Line of the candle before.
    value: Option<f64>,
}

impl State for Supertrend {
    fn new(values: &Values) -> Self {
        let multiplier = values.decimal(1);
        Self { multiplier, range: Atr::new(values), previous_close: 0.0, upper: 0.0, lower: 0.0, value: None }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let previous_close = std::mem::replace(&mut self.previous_close, row.close);
        let Some(range) = self.range.of(row) else { return };
        let (middle, reach) = ((row.high + row.low) / 2.0, self.multiplier * range);
        let (mut upper, mut lower) = (middle + reach, middle - reach);
        if !(lower > self.lower || previous_close < self.lower) {
            lower = self.lower;
        }
        if !(upper < self.upper || previous_close > self.upper) {
            upper = self.upper;
        }
        let is_falling = match self.value {
            None => true,
            Some(before) if before == self.upper => row.close <= upper,
            Some(_) => row.close < lower,
        };
        let value = if is_falling { upper } else { lower };
        (self.upper, self.lower, self.value) = (upper, lower, Some(value));
        write(out, Some([value, if is_falling { 1.0 } else { -1.0 }]));
    }
}

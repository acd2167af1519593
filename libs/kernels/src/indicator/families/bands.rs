//! How far the price reaches: ranges, and bands around it.

use serde::{Deserialize, Serialize};

use crate::indicator::catalogue::{HIGH_LOW, HIGH_LOW_CLOSE, Info, Parameter, decimal, entry, period, single};
use crate::indicator::fold::Row;
use crate::indicator::formula;
use crate::indicator::smooth::{Shape, Smooth};
use crate::indicator::state::{State, Values, write};
use crate::indicator::window::{Dispersion, Range};

/// How many times a measure of dispersion lies between the middle and a band.
pub(super) const MULTIPLIER: Parameter = decimal("multiplier", 2.0, 0.0001, 100.0);

pub(super) const ENTRIES: [Info; 7] = [
    entry::<Atr>(
        "atr",
        "average true range by Wilder's smoothing, seeded with the mean of the first period ranges",
        &single(14, 1),
        |values| values.period(0),
    )
    .reads(HIGH_LOW_CLOSE),
    entry::<TrueRange>("tr", "true range: the candle's range extended to the close before it", &[], |_| 1)
        .reads(HIGH_LOW_CLOSE),
    entry::<Bollinger>(
        "bbands",
        "Bollinger bands: simple moving average of the close and multiplier population standard deviations around it",
        &[period("period", 20, 2), MULTIPLIER],
        |values| values.period(0) - 1,
    )
    .gives(&["upper", "middle", "lower", "width", "width_normalized"]),
    entry::<Natr>(
        "natr",
        "average true range by Wilder's smoothing in percent of the close, 0 at a close of 0",
        // Period 1 is left out: TA-Lib answers it with the true range itself, in another unit.
        &single(14, 2),
        |values| values.period(0),
    )
    .reads(HIGH_LOW_CLOSE),
    entry::<BollingerPercent>(
        "bbands_percent",
        "place of the close between the Bollinger bands (%B): 0 on the lower, 1 on the upper, 0.5 in a flat window",
        &[period("period", 20, 2), MULTIPLIER],
        |values| values.period(0) - 1,
    ),
    entry::<Keltner>(
        "keltner",
        "Keltner channels: exponential moving average of the typical price and multiplier average true ranges around it",
        &[period("period", 20, 2), period("atr_period", 10, 1), MULTIPLIER],
        |values| keltner_lookback(values.period(0), values.period(1)),
    )
    .reads(HIGH_LOW_CLOSE)
    .gives(&["upper", "middle", "lower"]),
    entry::<Donchian>(
        "donchian",
        "Donchian channels: highest high and lowest low of the window, this candle included, and their mean",
        &single(20, 2),
        |values| values.period(0) - 1,
    )
    .reads(HIGH_LOW)
    .gives(&["upper", "middle", "lower"]),
];

/// True range. Undefined on the first candle, which has no close before it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct TrueRange {
    previous_close: Option<f64>,
}

impl TrueRange {
    fn of(&mut self, row: &Row) -> Option<f64> {
        let previous = self.previous_close.replace(row.close)?;
        Some(formula::true_range(row.high, row.low, previous))
    }
}

impl State for TrueRange {
    fn new(_: &Values) -> Self {
        Self::default()
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.of(row).map(|range| [range]));
    }
}

/// Average true range. Seed: mean of the first `period` true ranges.
///
/// Source: J. W. Wilder, New Concepts in Technical Trading Systems, 1978, section III.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Atr {
    range: TrueRange,
    mean: Smooth,
}

impl Atr {
    fn over(period: usize) -> Self {
        Self { range: TrueRange::default(), mean: Smooth::new(Shape::wilder_mean(period)) }
    }

    pub(super) fn of(&mut self, row: &Row) -> Option<f64> {
        let range = self.range.of(row)?;
        self.mean.push(range)
    }
}

impl State for Atr {
    fn new(values: &Values) -> Self {
        Self::over(values.period(0))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.of(row).map(|mean| [mean]));
    }
}

/// Average true range in percent of the close. A close of 0: 0.
///
/// Source: J. Forman, Cross-Market Evaluations with Normalized Average True Range, Technical Analysis of Stocks & Commodities,
/// May 2006.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Natr(Atr);

impl State for Natr {
    fn new(values: &Values) -> Self {
        Self(Atr::new(values))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let percent = |range: f64| if row.close == 0.0 { 0.0 } else { range / row.close * 100.0 };
        write(out, self.0.of(row).map(|range| [percent(range)]));
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Bollinger {
    window: Dispersion,
    multiplier: f64,
}

impl State for Bollinger {
    fn new(values: &Values) -> Self {
        Self { window: Dispersion::new(values.period(0)), multiplier: values.decimal(1) }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let bands = self.window.push(row.close);
        let bands = bands.map(|window| formula::bands(window.mean, window.variance, self.multiplier));
        write(out, bands.map(|row| [row.upper, row.middle, row.lower, row.width, row.width_normalized]));
    }
}

/// %B: how far the close is from the lower band, in widths of the bands. A flat window, whose bands have no width: 0.5, in
/// TradingView's profile undefined.
///
/// Source: J. Bollinger, Bollinger on Bollinger Bands, 2001.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct BollingerPercent {
    window: Dispersion,
    multiplier: f64,
    flat: f64,
}

impl State for BollingerPercent {
    fn new(values: &Values) -> Self {
        Self { window: Dispersion::new(values.period(0)), multiplier: values.decimal(1), flat: values.flat(0.5) }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some(window) = self.window.push(row.close) else { return };
        let reach = self.multiplier * window.variance.sqrt();
        // From the middle, so that the bands themselves need not be subtracted.
        let place = 0.5 + (row.close - window.mean) / (2.0 * reach);
        write(out, Some([if reach == 0.0 { self.flat } else { place }]));
    }
}

/// Keltner channels in TA-Lib's profile: the middle is of the typical price (others take the close), the reach Wilder's average true
/// range (Keltner took the mean of high less low over the same candles).
///
/// Seed: both averages show their seeds on the first defined candle, so the one that needs fewer candles is seeded late.
///
/// Source: C. W. Keltner, How to Make Money in Commodities, 1960; the form with true ranges: L. B. Raschke.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Keltner {
    middle: Smooth,
    /// Candles the middle still has to skip; likewise the range.
    middle_skip: usize,
    range: Atr,
    range_skip: usize,
    multiplier: f64,
}

/// What the slower of the two averages needs.
fn keltner_lookback(period: usize, atr_period: usize) -> usize {
    (period - 1).max(atr_period)
}

impl State for Keltner {
    fn new(values: &Values) -> Self {
        let (period, atr_period) = (values.period(0), values.period(1));
        let lookback = keltner_lookback(period, atr_period);
        Self {
            middle: Smooth::new(Shape::exponential(period)),
            middle_skip: lookback - (period - 1),
            range: Atr::over(atr_period),
            range_skip: lookback - atr_period,
            multiplier: values.decimal(2),
        }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let typical = (row.high + row.low + row.close) / 3.0;
        let middle = if self.middle_skip == 0 { self.middle.push(typical) } else { None };
        let range = if self.range_skip == 0 { self.range.of(row) } else { None };
        self.middle_skip = self.middle_skip.saturating_sub(1);
        self.range_skip = self.range_skip.saturating_sub(1);
        let Some((middle, range)) = middle.zip(range) else { return };
        let reach = self.multiplier * range;
        write(out, Some([middle + reach, middle, middle - reach]));
    }
}

/// Donchian channels.
///
/// Source: R. D. Donchian's four-week rule, which trades their break; a break is seen against the bands of the candle before.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Donchian(Range);

impl State for Donchian {
    fn new(values: &Values) -> Self {
        Self(Range::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let range = self.0.push(row.high, row.low);
        write(out, range.map(|range| [range.highest, (range.highest + range.lowest) / 2.0, range.lowest]));
    }
}

#[cfg(test)]
mod tests {
    use crate::indicator::{Machine, Row, Spec};

    fn last(text: &str, rows: impl Iterator<Item = Row>) -> Vec<f64> {
        let spec: Spec = text.parse().unwrap();
        let (mut machine, mut out) = (Machine::new(&spec), vec![f64::NAN; spec.outputs().len()]);
        rows.for_each(|row| machine.push(&row, &mut out));
        out
    }

    fn candle(high: f64, low: f64, close: f64) -> Row {
        Row { open: close, high, low, close, volume: 1.0, day: 0 }
    }

    #[test]
    fn unmoving_prices_have_named_answers() {
        let flat = |price: f64| (0..700).map(move |_| candle(price, price, price));
        assert_eq!(last("natr", flat(123.45)), [0.0]);
        assert_eq!(last("natr", flat(0.0)), [0.0]);
        assert_eq!(last("bbands_percent", flat(123.45)), [0.5]);
        assert_eq!(last("bbands_percent:333,0.1", flat(123.45)), [0.5]);
        assert_eq!(last("donchian", flat(123.45)), [123.45; 3]);
        let [upper, middle, lower] = last("keltner", flat(123.45))[..] else { panic!("three outputs") };
        assert!(upper == middle && middle == lower && (middle / 123.45 - 1.0).abs() < 1e-13);
    }

    #[test]
    fn percent_is_the_place_between_the_bands() {
        let closes = (0..50).map(|i| 15_000.0 + f64::from(i * 7919 % 101) * 0.05);
        let rows = || closes.clone().map(|close| candle(close, close, close));
        let [_, _, lower, width, _] = last("bbands:20,2", rows())[..] else { panic!("five outputs") };
        let close = closes.clone().next_back().unwrap();
        assert!((last("bbands_percent:20,2", rows())[0] - (close - lower) / width).abs() < 1e-9);
        // Nineteen equal closes and one above: (x - mean) / deviation is the root of 19.
        let step = (0..19).map(|_| 100.0).chain([101.0]).map(|close| candle(close, close, close));
        let wanted = 0.5 + 19_f64.sqrt() / 4.0;
        assert!((last("bbands_percent:20,2", step)[0] - wanted).abs() < 1e-12);
    }
}

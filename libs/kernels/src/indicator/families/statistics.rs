//! Statistics of the last candles: lines through them, how they vary, alone and together, and their extremes.

use serde::{Deserialize, Serialize};

use crate::indicator::blocks::{Blocks, Line, Pair};
use crate::indicator::catalogue::{HIGH_LOW, Info, decimal, entry, period, single};
use crate::indicator::fold::Row;
use crate::indicator::formula;
use crate::indicator::state::{State, Values, write};
use crate::indicator::window::{Dispersion, Range};

pub(super) const ENTRIES: [Info; 14] = [
    entry::<LinearReg>(
        "linearreg",
        "end of the least-squares line through the last closes",
        &single(14, 2),
        |values| values.period(0) - 1,
    ),
    entry::<LinearRegSlope>(
        "linearreg_slope",
        "slope of the least-squares line through the last closes, per candle",
        &single(14, 2),
        |values| values.period(0) - 1,
    ),
    entry::<LinearRegIntercept>(
        "linearreg_intercept",
        "start of the least-squares line through the last closes",
        &single(14, 2),
        |values| values.period(0) - 1,
    ),
    entry::<LinearRegAngle>(
        "linearreg_angle",
        "angle of the least-squares line through the last closes, in degrees of price per candle",
        &single(14, 2),
        |values| values.period(0) - 1,
    ),
    entry::<Tsf>(
        "tsf",
        "time series forecast: the least-squares line through the last closes, one candle on",
        &single(14, 2),
        |values| values.period(0) - 1,
    ),
    entry::<StdDev>(
        "stddev",
        "population standard deviation of the close, times the multiplier",
        &[period("period", 5, 2), decimal("multiplier", 1.0, 0.0001, 100.0)],
        |values| values.period(0) - 1,
    ),
    entry::<Var>("var", "population variance of the close", &single(5, 1), |values| values.period(0) - 1),
    entry::<Correl>(
        "correl",
        "Pearson's correlation of high and low, -1 to 1, 0 where either stands still",
        &single(30, 1),
        |values| values.period(0) - 1,
    )
    .reads(HIGH_LOW),
    entry::<Beta>(
        "beta",
        "slope of the low's returns on the high's, 0 where the high's do not vary",
        &single(5, 1),
        |values| values.period(0),
    )
    .reads(HIGH_LOW),
    entry::<Min>("min", "lowest close", &single(30, 2), |values| values.period(0) - 1),
    entry::<Max>("max", "highest close", &single(30, 2), |values| values.period(0) - 1),
    entry::<MinMax>("minmax", "lowest and highest close", &single(30, 2), |values| values.period(0) - 1)
        .gives(&["min", "max"]),
    entry::<MidPoint>("midpoint", "middle between the lowest and the highest close", &single(14, 2), |values| {
        values.period(0) - 1
    }),
    entry::<MidPrice>("midprice", "middle between the lowest low and the highest high", &single(14, 2), |values| {
        values.period(0) - 1
    })
    .reads(HIGH_LOW),
];

/// Least-squares line through the last closes.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Regression {
    window: Blocks<Line>,
    period: f64,
    /// Sum of the squared distances of the places from their middle.
    spread: f64,
}

/// Mean and slope say all of a line.
#[derive(Debug, Clone, Copy)]
struct Fit {
    mean: f64,
    slope: f64,
    period: f64,
}

impl Regression {
    fn new(values: &Values) -> Self {
        let n = values.period(0) as f64;
        Self { window: Blocks::new(values.period(0)), period: n, spread: n * (n * n - 1.0) / 12.0 }
    }

    fn push(&mut self, close: f64) -> Option<Fit> {
        let line = self.window.push(Line::one(close))?;
        let mean = line.first + line.sum / self.period;
        Some(Fit { mean, slope: line.tilt / self.spread, period: self.period })
    }
}

impl Fit {
    /// Value of the line at a place: 0 is the oldest candle's.
    fn at(self, place: f64) -> f64 {
        self.mean + self.slope * (place - 0.5 * (self.period - 1.0))
    }
}

/// Line at the newest candle.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LinearReg(Regression);

impl State for LinearReg {
    fn new(values: &Values) -> Self {
        Self(Regression::new(values))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close).map(|fit| [fit.at(fit.period - 1.0)]));
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct LinearRegSlope(Regression);

impl State for LinearRegSlope {
    fn new(values: &Values) -> Self {
        Self(Regression::new(values))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close).map(|fit| [fit.slope]));
    }
}

/// Line at the oldest candle of the window.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LinearRegIntercept(Regression);

impl State for LinearRegIntercept {
    fn new(values: &Values) -> Self {
        Self(Regression::new(values))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close).map(|fit| [fit.at(0.0)]));
    }
}

/// Arc tangent of the slope. It depends on the unit of price, as TA-Lib's does.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LinearRegAngle(Regression);

impl State for LinearRegAngle {
    fn new(values: &Values) -> Self {
        Self(Regression::new(values))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close).map(|fit| [fit.slope.atan().to_degrees()]));
    }
}

/// Line at the candle after the newest.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Tsf(Regression);

impl State for Tsf {
    fn new(values: &Values) -> Self {
        Self(Regression::new(values))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close).map(|fit| [fit.at(fit.period)]));
    }
}

/// Standard deviation with divisor n, 0 for equal closes only.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct StdDev {
    window: Dispersion,
    multiplier: f64,
}

impl State for StdDev {
    fn new(values: &Values) -> Self {
        Self { window: Dispersion::new(values.period(0)), multiplier: values.decimal(1) }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.window.push(row.close).map(|moments| [moments.variance.sqrt() * self.multiplier]));
    }
}

/// Variance with divisor n.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Var(Dispersion);

impl State for Var {
    fn new(values: &Values) -> Self {
        Self(Dispersion::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close).map(|moments| [moments.variance]));
    }
}

/// Correlation of high and low, the columns TA-Lib's abstract interface gives it. Either unmoving: 0.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Correl(Blocks<Pair>);

impl State for Correl {
    fn new(values: &Values) -> Self {
        Self(Blocks::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let pair = self.0.push(Pair::one(row.high, row.low));
        write(out, pair.map(|pair| [correlation(pair)]));
    }
}

fn correlation(pair: Pair) -> f64 {
    let [x, y] = pair.squares.map(f64::sqrt);
    // Rounding may carry it past 1.
    if x == 0.0 || y == 0.0 { 0.0 } else { (pair.products / (x * y)).clamp(-1.0, 1.0) }
}

/// Beta as TA-Lib's code has it: the returns of its first column, here the high, are those regressed on, and the slope is that of the
/// second column's, here the low's. A price of 0 returns 0; so does, as in TA-Lib, beta where the high's returns hardly vary, or what
/// rounding leaves of equal returns would count.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Beta {
    previous: Option<[f64; 2]>,
    window: Blocks<Pair>,
    period: f64,
}

impl State for Beta {
    fn new(values: &Values) -> Self {
        let period = values.period(0);
        Self { previous: None, window: Blocks::new(period), period: period as f64 }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some([high, low]) = self.previous.replace([row.high, row.low]) else { return };
        let pair = self.window.push(Pair::one(change(row.high, high), change(row.low, low)));
        write(out, pair.map(|pair| [slope(pair, self.period)]));
    }
}

/// Change relative to the price before it.
fn change(price: f64, previous: f64) -> f64 {
    if previous == 0.0 { 0.0 } else { (price - previous) / previous }
}

/// 0 where the sum of squares is what rounding leaves of equal growth, by an absolute threshold that TA-Lib no longer has: returns below
/// some 3e-8 count as none.
fn slope(pair: Pair, n: f64) -> f64 {
    let [squares, _] = pair.squares;
    if n * squares < formula::NEGLIGIBLE { 0.0 } else { pair.products / squares }
}

/// Extremes of the last closes.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct MinMax(Range);

impl State for MinMax {
    fn new(values: &Values) -> Self {
        Self(Range::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close, row.close).map(|range| [range.lowest, range.highest]));
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Min(Range);

impl State for Min {
    fn new(values: &Values) -> Self {
        Self(Range::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close, row.close).map(|range| [range.lowest]));
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Max(Range);

impl State for Max {
    fn new(values: &Values) -> Self {
        Self(Range::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close, row.close).map(|range| [range.highest]));
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct MidPoint(Range);

impl State for MidPoint {
    fn new(values: &Values) -> Self {
        Self(Range::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close, row.close).map(|range| [0.5 * (range.highest + range.lowest)]));
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct MidPrice(Range);

impl State for MidPrice {
    fn new(values: &Values) -> Self {
        Self(Range::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.high, row.low).map(|range| [0.5 * (range.highest + range.lowest)]));
    }
}

#[cfg(test)]
mod tests {
    use crate::indicator::{Machine, Row, Spec};

    /// Values at the last of some candles of one price each, or of a high and a low.
    fn last(text: &str, prices: impl IntoIterator<Item = (f64, f64)>) -> Vec<f64> {
        let spec: Spec = text.parse().unwrap();
        let (mut machine, mut out) = (Machine::new(&spec), vec![0.0; spec.outputs().len()]);
        for (high, low) in prices {
            machine.push(&Row { open: low, high, low, close: high, volume: 1.0, day: 0 }, &mut out);
        }
        out
    }

    #[test]
    fn unmoving_prices_have_named_answers() {
        let flat = || std::iter::repeat_n((123.45, 123.45), 900);
        for text in ["linearreg", "linearreg:700", "linearreg_intercept", "tsf", "min", "max", "midpoint", "midprice"] {
            assert_eq!(last(text, flat()), [123.45], "{text}");
        }
        for text in ["linearreg_slope", "linearreg_angle", "stddev", "stddev:700,3", "var", "correl", "beta"] {
            assert_eq!(last(text, flat()), [0.0], "{text}");
        }
        assert_eq!(last("minmax", flat()), [123.45; 2]);
        // One side unmoving, and windows in which nothing can vary.
        let half = || (0..50).map(|row| (200.0 + f64::from(row % 7), 123.45));
        assert_eq!((last("correl", half()), last("correl:1", half())), (vec![0.0], vec![0.0]));
        assert_eq!((last("beta", half()), last("beta:1", half())), (vec![0.0], vec![0.0]));
        assert_eq!(last("var:1", half()), [0.0]);
    }

    #[test]
    fn a_straight_line_is_found_at_any_price_and_length() {
        for (start, step) in [(0.0, 1.0), (1e6, -0.25), (1e9, 0.5)] {
            let line = || (0..12_000).map(|row| start + step * f64::from(row)).map(|price| (price, price));
            for period in [2, 14, 333, 10_000] {
                let end = start + step * 11_999.0;
                let oldest = end - step * f64::from(period - 1);
                for (name, wanted) in [
                    ("linearreg", end),
                    ("linearreg_intercept", oldest),
                    ("linearreg_slope", step),
                    ("linearreg_angle", step.atan().to_degrees()),
                    ("tsf", end + step),
                    ("midpoint", 0.5 * (oldest + end)),
                    ("stddev", step.abs() * ((f64::from(period).powi(2) - 1.0) / 12.0).sqrt()),
                    ("correl", 1.0),
                ] {
                    let got = last(&format!("{name}:{period}"), line())[0];
                    assert!((got / wanted - 1.0).abs() < 1e-13, "{name}:{period} {got} and {wanted}");
                }
            }
        }
    }

    #[test]
    fn small_prices_vary_as_large_ones_do() {
        // A power of two scales without rounding.
        let small = 2_f64.powi(-40);
        let prices = |scale: f64| {
            (0..200_u32).map(move |row| (scale * f64::from(row * 7919 % 101 + 1), scale * f64::from(row * 31 % 97 + 1)))
        };
        assert_eq!(last("stddev", prices(small))[0], small * last("stddev", prices(1.0))[0]);
        assert_eq!(last("correl", prices(small)), last("correl", prices(1.0)));
        assert_eq!(last("beta", prices(small)), last("beta", prices(1.0)));
    }

    #[test]
    fn beta_is_the_slope_of_returns_on_returns() {
        // The low moves by twice the high's part.
        let mut prices = vec![(100.0, 50.0)];
        for part in [0.01, -0.02, 0.03, 0.005, -0.015, 0.02] {
            let &(high, low) = prices.last().unwrap();
            prices.push((high * (1.0 + part), low * (1.0 + 2.0 * part)));
        }
        assert!((last("beta", prices.clone())[0] - 2.0).abs() < 1e-12);
        // Equal returns do not vary.
        let growth = (0..40).map(|row| (100.0 * 1.001_f64.powi(row), 50.0 * 1.002_f64.powi(row)));
        assert_eq!(last("beta", growth), [0.0]);
    }
}

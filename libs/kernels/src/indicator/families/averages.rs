//! Moving averages.

use serde::{Deserialize, Serialize};

use crate::indicator::blocks::{Blocks, Line, Weighted};
use crate::indicator::catalogue::{Info, decimal, entry, period, single};
use crate::indicator::fold::Row;
use crate::indicator::formula;
use crate::indicator::recent::Delay;
use crate::indicator::smooth::{Shape, Smooth};
use crate::indicator::state::{State, Values, write};
use crate::indicator::window::Mean;

pub(super) const ENTRIES: [Info; 10] = [
    entry::<Sma>("sma", "simple moving average of the close", &single(20, 1), |values| values.period(0) - 1),
    entry::<Ema>(
        "ema",
        "exponential moving average of the close, alpha 2/(period+1), seeded with the mean of the first period closes",
        &single(20, 1),
        |values| values.period(0) - 1,
    ),
    entry::<Wma>(
        "wma",
        "weighted moving average of the close, weights 1 for the oldest to period for the newest",
        &single(30, 2),
        |values| values.period(0) - 1,
    ),
    entry::<Dema>(
        "dema",
        "double exponential moving average: twice the exponential average less that average's own",
        &single(30, 2),
        |values| 2 * (values.period(0) - 1),
    ),
    entry::<Tema>(
        "tema",
        "triple exponential moving average: 3 e1 - 3 e2 + e3, each the exponential average of the one before",
        &single(30, 2),
        |values| 3 * (values.period(0) - 1),
    ),
    entry::<Trima>(
        "trima",
        "triangular moving average of the close, weights rising to the middle of the period and falling after it",
        &single(30, 2),
        |values| values.period(0) - 1,
    ),
    entry::<Kama>(
        "kama",
        "Kaufman's adaptive moving average, between the speeds of exponential averages over 2 and 30 candles",
        &single(30, 2),
        |values| values.period(0),
    ),
    entry::<T3>(
        "t3",
        "Tillson's T3: six exponential averages in a row, with what they lag added back by the v factor",
        &[period("period", 5, 2), decimal("v_factor", 0.7, 0.0, 1.0)],
        |values| 6 * (values.period(0) - 1),
    ),
    entry::<Hma>(
        "hma",
        "Hull moving average: weighted average over the root of the period of 2 wma(period/2) - wma(period)",
        &single(9, 2),
        |values| values.period(0) + values.period(0).isqrt() - 2,
    ),
    entry::<Vwma>(
        "vwma",
        "average of the close weighted by volume, undefined while nothing traded in the whole period",
        &single(20, 1),
        |values| values.period(0) - 1,
    )
    .reads(&["close", "volume"]),
];

/// Mean of the last closes.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Sma(Mean);

impl State for Sma {
    fn new(values: &Values) -> Self {
        Self(Mean::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close).map(|mean| [mean]));
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ema(Smooth);

impl State for Ema {
    fn new(values: &Values) -> Self {
        Self(Smooth::new(Shape::exponential(values.period(0))))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close).map(|mean| [mean]));
    }
}

/// Average with the weights 1, 2, ... `period`: the mean, moved by the tilt of the values.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct WeightedMean {
    window: Blocks<Line>,
    /// 1 / `period`.
    share: f64,
    /// 1 / (1 + 2 + ... + `period`).
    weight: f64,
}

impl WeightedMean {
    fn new(period: usize) -> Self {
        let n = period as f64;
        Self { window: Blocks::new(period), share: 1.0 / n, weight: 2.0 / (n * (n + 1.0)) }
    }

    fn push(&mut self, x: f64) -> Option<f64> {
        let line = self.window.push(Line::one(x))?;
        Some(line.first + (line.sum * self.share + line.tilt * self.weight))
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Wma(WeightedMean);

impl State for Wma {
    fn new(values: &Values) -> Self {
        Self(WeightedMean::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close).map(|mean| [mean]));
    }
}

/// Exponential averages in a row. Seed of each: mean of the first `period` values of the one before it (as TA-Lib).
fn cascade<const N: usize>(period: usize) -> [Smooth; N] {
    std::array::from_fn(|_| Smooth::new(Shape::exponential(period)))
}

/// Takes a value through a cascade; answers with every average once the last one has its seed.
fn through<const N: usize>(cascade: &mut [Smooth; N], x: f64) -> Option<[f64; N]> {
    let mut averages = [x; N];
    let mut value = x;
    for (smooth, average) in cascade.iter_mut().zip(&mut averages) {
        value = smooth.push(value)?;
        *average = value;
    }
    Some(averages)
}

/// Double exponential moving average.
///
/// Source: P. Mulloy, Smoothing Data with Faster Moving Averages, Technical Analysis of Stocks & Commodities, 1994.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Dema([Smooth; 2]);

impl State for Dema {
    fn new(values: &Values) -> Self {
        Self(cascade(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, through(&mut self.0, row.close).map(|[once, twice]| [2.0 * once - twice]));
    }
}

/// Triple exponential moving average. Source: as [`Dema`].
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Tema([Smooth; 3]);

impl State for Tema {
    fn new(values: &Values) -> Self {
        Self(cascade(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let averages = through(&mut self.0, row.close);
        write(out, averages.map(|[once, twice, thrice]| [3.0 * once - 3.0 * twice + thrice]));
    }
}

/// Triangular moving average: the mean of means, over half the period each, one candle more in the first where the period is even.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Trima {
    first: Mean,
    second: Mean,
}

impl State for Trima {
    fn new(values: &Values) -> Self {
        let period = values.period(0);
        Self { first: Mean::new(period / 2 + 1), second: Mean::new(period.div_ceil(2)) }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some(mean) = self.first.push(row.close) else { return };
        write(out, self.second.push(mean).map(|mean| [mean]));
    }
}

/// Kaufman's adaptive moving average. Seed: the close before the first value (as TA-Lib).
///
/// Efficiency is the change over the period by the sum of the changes within it; 1 where nothing moved, so that the average goes on as
/// in a straight move. Source: P. Kaufman, Trading Systems and Methods, 1995.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kama {
    previous_close: Option<f64>,
    closes: Delay,
    change: Mean,
    period: f64,
    value: Option<f64>,
}

impl Kama {
    /// Factors of exponential averages over 2 and 30 candles.
    const FAST: f64 = 2.0 / 3.0;
    const SLOW: f64 = 2.0 / 31.0;
}

impl State for Kama {
    fn new(values: &Values) -> Self {
        let period = values.period(0);
        Self {
            previous_close: None,
            closes: Delay::new(period),
            change: Mean::new(period),
            period: period as f64,
            value: None,
        }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let oldest = self.closes.push(row.close);
        let Some(previous) = self.previous_close.replace(row.close) else { return };
        let change = self.change.push((row.close - previous).abs());
        let Some((oldest, change)) = oldest.zip(change) else { return };
        let (net, travelled) = ((row.close - oldest).abs(), change * self.period);
        // A straight move may round past 1.
        let efficiency = if travelled <= net { 1.0 } else { net / travelled };
        let alpha = efficiency * (Self::FAST - Self::SLOW) + Self::SLOW;
        let start = self.value.unwrap_or(previous);
        let value = start + alpha * alpha * (row.close - start);
        self.value = Some(value);
        write(out, Some([value]));
    }
}

/// Tillson's T3. Source: T. Tillson, Better Moving Averages, Technical Analysis of Stocks & Commodities, 1998.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct T3 {
    averages: [Smooth; 6],
    /// Of the last four averages, from the sixth back.
    weights: [f64; 4],
}

impl State for T3 {
    fn new(values: &Values) -> Self {
        let v = values.decimal(1);
        let (square, cube) = (v * v, v * v * v);
        let weights =
            [-cube, 3.0 * (square + cube), -6.0 * square - 3.0 * (v + cube), 1.0 + 3.0 * v + 3.0 * square + cube];
        Self { averages: cascade(values.period(0)), weights }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some([.., third, fourth, fifth, sixth]) = through(&mut self.averages, row.close) else { return };
        let [of_sixth, of_fifth, of_fourth, of_third] = self.weights;
        write(out, Some([of_sixth * sixth + of_fifth * fifth + of_fourth * fourth + of_third * third]));
    }
}

/// Hull moving average; half the period and its root are rounded down (as Hull's `Integer`, tulipy and pandas-ta).
///
/// Source: A. Hull, How to reduce lag in a moving average, alanhull.com/hull-moving-average, 2005.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Hma {
    half: WeightedMean,
    whole: WeightedMean,
    last: WeightedMean,
}

impl State for Hma {
    fn new(values: &Values) -> Self {
        let period = values.period(0);
        let [half, whole, last] = [period / 2, period, period.isqrt()].map(WeightedMean::new);
        Self { half, whole, last }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let (half, whole) = (self.half.push(row.close), self.whole.push(row.close));
        let Some((half, whole)) = half.zip(whole) else { return };
        write(out, self.last.push(2.0 * half - whole).map(|mean| [mean]));
    }
}

/// Volume-weighted moving average: sum of close times volume by the sum of volume. No volume in the window: undefined.
///
/// The definition is that of tulipy and pandas-ta.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Vwma(Blocks<Weighted>);

impl State for Vwma {
    fn new(values: &Values) -> Self {
        Self(Blocks::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some(window) = self.0.push(Weighted::one(row.close, row.volume)) else { return };
        write(out, Some([window.first + formula::weighted_price(window.sum, window.weight)]));
    }
}

#[cfg(test)]
mod tests {
    use crate::indicator::{Machine, Row, Spec};

    /// Last value over candles of one price each.
    fn last(text: &str, closes: impl IntoIterator<Item = (f64, f64)>) -> f64 {
        let spec: Spec = text.parse().unwrap();
        let (mut machine, mut out) = (Machine::new(&spec), [0.0]);
        for (close, volume) in closes {
            machine.push(&Row { open: close, high: close, low: close, close, volume, day: 0 }, &mut out);
        }
        out[0]
    }

    #[test]
    fn an_unmoving_close_is_its_own_average() {
        let flat = || std::iter::repeat_n((123.45, 10.0), 900);
        for text in ["wma", "wma:700", "hma", "hma:600", "kama", "kama:2", "vwma", "vwma:700"] {
            assert_eq!(last(text, flat()), 123.45, "{text}");
        }
        for text in ["dema", "tema", "trima", "trima:31", "t3", "t3:5,0", "t3:5,1"] {
            assert!((last(text, flat()) / 123.45 - 1.0).abs() < 1e-13, "{text} {}", last(text, flat()));
        }
    }

    #[test]
    fn a_straight_line_shows_the_lag_each_average_has() {
        let line = |rows: u32| (0..rows).map(|row| (f64::from(row), 1.0));
        for (text, value) in [
            // An exponential average lags as a simple one does; T3 is three of them at v factor 0.
            ("wma:10", 899.0 - 3.0),
            ("trima:9", 899.0 - 4.0),
            ("trima:10", 899.0 - 4.5),
            ("vwma:9", 899.0 - 4.0),
            ("dema:9", 899.0),
            ("tema:9", 899.0),
            ("t3:5,0", 899.0 - 6.0),
            ("t3:5,1", 899.0),
            // 2 * 899 - 2 * 4/3 over 5 candles less 899 - 3 over 10, then 2/3 for the root.
            ("hma:10", 899.0 + 1.0 / 3.0 - 2.0 / 3.0),
        ] {
            assert!((last(text, line(900)) - value).abs() < 1e-9, "{text} {}", last(text, line(900)));
        }
    }

    #[test]
    fn without_volume_in_the_window_the_weighted_average_is_undefined() {
        let traded = [(5.0, 2.0), (7.0, 0.0), (8.0, 0.0)];
        assert_eq!(last("vwma:3", traded), 5.0);
        assert!(last("vwma:2", traded).is_nan());
        assert_eq!(last("vwma:2", traded.into_iter().chain([(9.0, 3.0)])), 9.0);
    }

    #[test]
    fn a_straight_move_is_followed_at_the_fast_speed() {
        // Both ways: each value is (2/3)² of the way from the one before to the close.
        for sign in [1.0, -1.0] {
            let closes = || [1.0, 2.0, 3.0, 4.0].into_iter().map(|close| (sign * close, 1.0));
            let first = 2.0 + 4.0 / 9.0;
            assert!((last("kama:2", closes().take(3)) - sign * first).abs() < 1e-15);
            assert!((last("kama:2", closes()) - sign * (first + 4.0 / 9.0 * (4.0 - first))).abs() < 1e-15);
        }
    }
}

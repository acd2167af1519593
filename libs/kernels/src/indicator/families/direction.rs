//! Whether there is a trend, and which way: Wilder's directional movement, and stops that follow the price.

use serde::{Deserialize, Serialize};

use super::bands::Atr;
use crate::indicator::catalogue::{HIGH_LOW, HIGH_LOW_CLOSE, Info, decimal, entry, period, single};
use crate::indicator::fold::Row;
use crate::indicator::formula;
use crate::indicator::recent::Delay;
use crate::indicator::smooth::{DirectionMean, Shape, Smooth};
use crate::indicator::state::{State, Values, write};

pub(super) const ENTRIES: [Info; 9] = [
    entry::<Adx>("adx", "average directional index by Wilder's smoothing, 0 to 100", &single(14, 2), |values| {
        2 * values.period(0) - 1
    })
    .reads(HIGH_LOW_CLOSE),
    entry::<PlusDi>(
        "plus_di",
        "positive directional indicator by Wilder's smoothing, 0 to 100",
        &single(14, 2),
        |values| values.period(0),
    )
    .reads(HIGH_LOW_CLOSE),
    entry::<MinusDi>(
        "minus_di",
        "negative directional indicator by Wilder's smoothing, 0 to 100",
        &single(14, 2),
        |values| values.period(0),
    )
    .reads(HIGH_LOW_CLOSE),
    entry::<Dx>(
        "dx",
        "directional index: distance between the directional indicators in percent of their sum, 0 to 100",
        &single(14, 2),
        |values| values.period(0),
    )
    .reads(HIGH_LOW_CLOSE),
    entry::<Adxr>(
        "adxr",
        "average directional index rating: mean of the average directional index now and period - 1 candles ago, 0 to 100",
        &single(14, 2),
        |values| 3 * values.period(0) - 2,
    )
    .reads(HIGH_LOW_CLOSE),
    entry::<PlusDm>(
        "plus_dm",
        "positive directional movement, summed by Wilder's smoothing, in units of price",
        &single(14, 1),
        movement_lookback,
    )
    .reads(HIGH_LOW),
    entry::<MinusDm>(
        "minus_dm",
        "negative directional movement, summed by Wilder's smoothing, in units of price",
        &single(14, 1),
        movement_lookback,
    )
    .reads(HIGH_LOW),
    entry::<Sar>(
        "sar",
        "parabolic stop and reverse: a stop that nears the extreme of the run by a factor that grows with each new extreme",
        &[decimal("acceleration", 0.02, 0.0, MOST_FACTOR), decimal("maximum", 0.2, 0.0, MOST_FACTOR)],
        |_| 1,
    )
    .reads(HIGH_LOW),
    entry::<Supertrend>(
        "supertrend",
        "band of multiplier average true ranges around the middle of the candle that only nears the price until the close \
         crosses it; direction is 1 while the band is below the price, -1 while it is above; starts with 1",
        &[period("period", 10, 2), decimal("multiplier", 3.0, 0.0001, 100.0)],
        |values| values.period(0),
    )
    .reads(HIGH_LOW_CLOSE)
    .gives(&["value", "direction"]),
];

/// Beyond a factor of 1 the stop is past the extreme and only the last two candles hold it; TA-Lib has no limit.
pub(super) const MOST_FACTOR: f64 = 100.0;

/// A movement takes two candles, and the seed `period - 1` movements.
fn movement_lookback(values: &Values) -> usize {
    (values.period(0) - 1).max(1)
}

/// Wilder's directional movement. Seed: sums over the first `period - 1` movements, smoothed once before they show (as TA-Lib).
///
/// Source: J. W. Wilder, New Concepts in Technical Trading Systems, 1978, section IV.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Directional {
    /// Rows that have a row before them, up to the period.
    moves: usize,
    period: usize,
    previous: Option<Row>,
    plus: Smooth,
    minus: Smooth,
    range: Smooth,
}

#[derive(Debug, Clone, Copy)]
struct Movement {
    plus: f64,
    minus: f64,
    range: f64,
}

impl Directional {
    fn new(period: usize) -> Self {
        let sum = Smooth::new(Shape::wilder_sum(period));
        Self { moves: 0, period, previous: None, plus: sum.clone(), minus: sum.clone(), range: sum }
    }

    fn push(&mut self, row: &Row) -> Option<Movement> {
        let previous = self.previous.replace(*row)?;
        let (up, down) = (row.high - previous.high, previous.low - row.low);
        let plus = self.plus.push(formula::plus_movement(up, down));
        let minus = self.minus.push(formula::minus_movement(up, down));
        let range = self.range.push(formula::true_range(row.high, row.low, previous.close));
        self.moves = (self.moves + 1).min(self.period);
        if self.moves < self.period {
            return None;
        }
        Some(Movement { plus: plus?, minus: minus?, range: range? })
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct PlusDi(Directional);

impl State for PlusDi {
    fn new(values: &Values) -> Self {
        Self(Directional::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row).map(|now| [formula::directional(now.plus, now.range)]));
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct MinusDi(Directional);

impl State for MinusDi {
    fn new(values: &Values) -> Self {
        Self(Directional::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row).map(|now| [formula::directional(now.minus, now.range)]));
    }
}

/// Average directional index. Seed: mean of the first `period` directional indices.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Adx(Directional, DirectionMean);

impl Adx {
    fn of(&mut self, row: &Row) -> Option<f64> {
        let now = self.0.push(row)?;
        self.1.push(formula::directional_index(now.plus, now.minus, now.range))
    }
}

impl State for Adx {
    fn new(values: &Values) -> Self {
        Self(Directional::new(values.period(0)), DirectionMean::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.of(row).map(|mean| [mean]));
    }
}

/// Directional index. No direction: the value before, 0 when there is none (as TA-Lib).
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Dx {
    movement: Directional,
    value: f64,
}

impl State for Dx {
    fn new(values: &Values) -> Self {
        Self { movement: Directional::new(values.period(0)), value: 0.0 }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some(now) = self.movement.push(row) else { return };
        let index = formula::directional_index(now.plus, now.minus, now.range);
        self.value = if index.is_nan() { self.value } else { index };
        write(out, Some([self.value]));
    }
}

/// Average directional index rating. The earlier index is `period - 1` candles back, as in TA-Lib; Wilder's book counts `period`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Adxr {
    adx: Adx,
    earlier: Delay,
}

impl State for Adxr {
    fn new(values: &Values) -> Self {
        Self { adx: Adx::new(values), earlier: Delay::new(values.period(0) - 1) }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some(now) = self.adx.of(row) else { return };
        write(out, self.earlier.push(now).map(|before| [(now + before) / 2.0]));
    }
}

/// Directional movement of one side, as Wilder's running sum. Seed: sum of the first `period - 1` movements, which shows.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct MovementSum {
    /// High and low.
    previous: Option<(f64, f64)>,
    sum: Smooth,
}

impl MovementSum {
    fn new(values: &Values) -> Self {
        Self { previous: None, sum: Smooth::new(Shape::wilder_sum(values.period(0))) }
    }

    fn push(&mut self, row: &Row, movement: fn(f64, f64) -> f64) -> Option<f64> {
        let (high, low) = self.previous.replace((row.high, row.low))?;
        self.sum.push(movement(row.high - high, low - row.low))
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct PlusDm(MovementSum);

impl State for PlusDm {
    fn new(values: &Values) -> Self {
        Self(MovementSum::new(values))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row, formula::plus_movement).map(|sum| [sum]));
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct MinusDm(MovementSum);

impl State for MinusDm {
    fn new(values: &Values) -> Self {
        Self(MovementSum::new(values))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row, formula::minus_movement).map(|sum| [sum]));
    }
}

/// Parabolic stop and reverse in TA-Lib's profile.
///
/// Seed: the second candle is short when its negative movement is the larger, otherwise long; its stop is the first candle's low or
/// high, its extreme its own. An acceleration above the maximum counts as the maximum. A touch of the stop reverses.
///
/// Source: J. W. Wilder, New Concepts in Technical Trading Systems, 1978, section II; the seed is TA-Lib's.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Sar {
    acceleration: f64,
    maximum: f64,
    previous: Option<Prices>,
    run: Option<Run>,
}

/// A position. Its prices, seen from its side, are those of a long one: short prices are negated, which is exact.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Run {
    /// 1 long, -1 short.
    pub(super) side: f64,
    pub(super) stop: f64,
    pub(super) extreme: f64,
    pub(super) factor: f64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Prices {
    pub(super) high: f64,
    pub(super) low: f64,
}

impl Prices {
    /// The best price for a side, as the side sees it.
    pub(super) fn best(self, side: f64) -> f64 {
        if side > 0.0 { self.high } else { -self.low }
    }

    /// The worst price for a side, as the side sees it.
    pub(super) fn worst(self, side: f64) -> f64 {
        if side > 0.0 { self.low } else { -self.high }
    }
}

impl Sar {
    fn start(&self, previous: Prices, now: Prices) -> Run {
        let falls = formula::minus_movement(now.high - previous.high, previous.low - now.low) > 0.0;
        let side = if falls { -1.0 } else { 1.0 };
        Run { side, stop: previous.worst(side), extreme: now.best(side), factor: self.acceleration }
    }
}

impl State for Sar {
    fn new(values: &Values) -> Self {
        let maximum = values.decimal(1);
        Self { acceleration: formula::smaller(values.decimal(0), maximum), maximum, previous: None, run: None }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let now = Prices { high: row.high, low: row.low };
        let Some(previous) = self.previous.replace(now) else { return };
        // On its first candle a run is held by that candle alone.
        let (mut run, previous) = self.run.map_or_else(|| (self.start(previous, now), now), |run| (run, previous));
        let is_stopped = now.worst(run.side) <= run.stop;
        let side = if is_stopped { -run.side } else { run.side };
        let (best, held) = (now.best(side), formula::smaller(previous.worst(side), now.worst(side)));
        if is_stopped {
            run = Run { side, stop: formula::smaller(-run.extreme, held), extreme: best, factor: self.acceleration };
        }
        write(out, Some([run.side * run.stop]));
        if best > run.extreme {
            run.extreme = best;
            run.factor = formula::smaller(run.factor + self.acceleration, self.maximum);
        }
        run.stop = formula::smaller(run.stop + run.factor * (run.extreme - run.stop), held);
        self.run = Some(run);
    }
}

/// Supertrend in TA-Lib's profile: rising on the first candle that has an average true range, whose bands are taken as they are.
///
/// A band moves towards the price only, until a close beyond it lets it go. TradingView's has the same recurrence, counts
/// the first candle's range into the average, starts falling and gives the direction with the opposite sign.
///
/// Source: O. Seban, Tout le monde mérite d'être riche; the seed is TA-Lib's.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Supertrend {
    multiplier: f64,
    range: Atr,
    bands: Option<TrailingBands>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct TrailingBands {
    upper: f64,
    lower: f64,
    is_rising: bool,
    close: f64,
}

impl State for Supertrend {
    fn new(values: &Values) -> Self {
        Self { multiplier: values.decimal(1), range: Atr::new(values), bands: None }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some(range) = self.range.of(row) else { return };
        let (middle, reach) = ((row.high + row.low) / 2.0, self.multiplier * range);
        let mut now = TrailingBands { upper: middle + reach, lower: middle - reach, is_rising: true, close: row.close };
        if let Some(before) = self.bands {
            if !(now.upper < before.upper || before.close > before.upper) {
                now.upper = before.upper;
            }
            if !(now.lower > before.lower || before.close < before.lower) {
                now.lower = before.lower;
            }
            now.is_rising = if before.is_rising { row.close >= now.lower } else { row.close > now.upper };
        }
        self.bands = Some(now);
        write(out, Some(if now.is_rising { [now.lower, 1.0] } else { [now.upper, -1.0] }));
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
        let flat = || (0..700).map(|_| candle(123.45, 123.45, 123.45));
        for text in ["dx", "adxr", "plus_dm", "minus_dm", "plus_dm:1"] {
            assert_eq!(last(text, flat()), [0.0], "{text}");
        }
        assert_eq!(last("sar", flat()), [123.45]);
        assert_eq!(last("supertrend", flat()), [123.45, 1.0]);
    }

    #[test]
    fn the_directional_index_keeps_its_value_when_all_movement_is_forgotten() {
        let rises = (0..30).map(|i| candle(f64::from(i) + 2.0, f64::from(i), f64::from(i) + 1.0));
        assert_eq!(last("dx:2", rises.chain((0..200).map(|_| candle(31.0, 31.0, 31.0)))), [100.0]);
    }

    #[test]
    fn a_stop_follows_a_rise_and_turns_at_its_touch() {
        // Rises of 1 a candle: by hand, from the first low, 10, and the second high, 13.
        let rise =
            |count: i32| (0..count).map(|i| candle(f64::from(i) + 12.0, f64::from(i) + 10.0, f64::from(i) + 11.0));
        assert_eq!(last("sar", rise(2)), [10.0]);
        assert!((last("sar", rise(3))[0] - (10.0 + 0.02 * 3.0)).abs() < 1e-12);
        let third = 10.06 + 0.04 * (14.0 - 10.06);
        assert!((last("sar", rise(4))[0] - third).abs() < 1e-12);
        // The low touches the stop: the short run is stopped at the highest high.
        let touched = rise(3).chain([candle(13.0, third - 0.5, 12.0)]);
        assert_eq!(last("sar", touched), [14.0]);
    }

    #[test]
    fn an_acceleration_above_the_maximum_is_the_maximum() {
        let rows = || (0..90).map(|i| f64::from(i * 7919 % 101)).map(|x| candle(x + 3.0, x, x + 1.0));
        assert_eq!(last("sar:0.5,0.1", rows()), last("sar:0.1,0.1", rows()));
    }

    #[test]
    fn a_supertrend_only_nears_the_price_and_turns_behind_the_close() {
        // True range 2 throughout, so the bands are 2 around the middle of the candle.
        let at = |x: f64| candle(x + 1.0, x - 1.0, x);
        let rows = [10.0, 10.0, 10.0, 11.0, 10.5].map(at);
        assert_eq!(last("supertrend:2,1", rows[..3].iter().copied()), [8.0, 1.0]);
        assert_eq!(last("supertrend:2,1", rows[..4].iter().copied()), [9.0, 1.0]);
        assert_eq!(last("supertrend:2,1", rows.into_iter()), [9.0, 1.0]);
        let fall = candle(10.0, 8.0, 8.9);
        // Average true range (2 + 2.5) / 2 after the fall.
        assert_eq!(last("supertrend:2,1", rows.into_iter().chain([fall])), [11.25, -1.0]);
    }
}

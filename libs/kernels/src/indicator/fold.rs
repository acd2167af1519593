//! Engine V1's form and the reference: one state machine per spec, one row at a time.

use super::formula::{self, Bands};
use super::smooth::{DirectionMean, Shape, Smooth};
use super::spec::{Kind, Spec};
use super::window::{Dispersion, Mean, Range};

/// One candle, with a number that changes when the trading day does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    pub open: f64,
    pub high: f64,
    pub low: f64,
    pub close: f64,
    pub volume: f64,
    pub day: i32,
}

/// Running state of one indicator: takes candles in order, answers with the values at each.
///
/// Shape: [`Machine::push`] writes one value per output of the spec, NaN while undefined.
///
/// ```
/// use kernels::indicator::{Machine, Row};
/// let mut sma = Machine::new(&"sma:2".parse()?);
/// let mut out = [0.0];
/// for close in [3.0, 5.0] {
///     sma.push(&Row { open: 4.0, high: 6.0, low: 2.0, close, volume: 1.0, day: 0 }, &mut out);
/// }
/// assert_eq!(out, [4.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Machine {
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Sma(Mean),
    Ema(Smooth),
    Rsi(Rsi),
    Atr(Atr),
    Bands(BandsState),
    Vwap(Vwap),
    Macd(Macd),
    Directional(Directional, fn(Movement) -> f64),
    Adx(Directional, DirectionMean),
    Stochastic(Stochastic),
    Obv(Obv),
    TrueRange(TrueRange),
}

impl Machine {
    /// Starts before the first candle.
    pub fn new(spec: &Spec) -> Self {
        let state = match spec.kind() {
            Kind::Sma { period } => State::Sma(Mean::new(period)),
            Kind::Ema { period } => State::Ema(Smooth::new(Shape::exponential(period))),
            Kind::Rsi { period } => State::Rsi(Rsi::new(period)),
            Kind::Atr { period } => State::Atr(Atr::new(period)),
            Kind::Bands { period, multiplier } => {
                State::Bands(BandsState { window: Dispersion::new(period), multiplier: multiplier.value() })
            }
            Kind::Vwap => State::Vwap(Vwap::default()),
            Kind::Macd { fast, slow, signal } => State::Macd(Macd::new(fast, slow, signal)),
            Kind::PlusDi { period } => {
                State::Directional(Directional::new(period), |now| formula::directional(now.plus, now.range))
            }
            Kind::MinusDi { period } => {
                State::Directional(Directional::new(period), |now| formula::directional(now.minus, now.range))
            }
            Kind::Adx { period } => State::Adx(Directional::new(period), DirectionMean::new(period)),
            Kind::Stochastic { window, k_smoothing, d_smoothing } => State::Stochastic(Stochastic {
                range: Range::new(window),
                k: Mean::new(k_smoothing),
                d: Mean::new(d_smoothing),
            }),
            Kind::Obv => State::Obv(Obv::default()),
            Kind::TrueRange => State::TrueRange(TrueRange::default()),
        };
        Self { state }
    }

    /// Takes the next candle and writes the values at it; `out` has one place per output of the spec, further ones stay untouched.
    pub fn push(&mut self, row: &Row, out: &mut [f64]) {
        let single = match &mut self.state {
            State::Sma(sma) => sma.push(row.close),
            State::Ema(ema) => ema.push(row.close),
            State::Rsi(rsi) => rsi.push(row.close),
            State::Atr(atr) => atr.push(row),
            State::Vwap(vwap) => vwap.push(row),
            State::Directional(directional, side) => directional.push(row).map(*side),
            State::Adx(directional, mean) => directional
                .push(row)
                .and_then(|now| mean.push(formula::directional_index(now.plus, now.minus, now.range))),
            State::Obv(obv) => Some(obv.push(row)),
            State::TrueRange(range) => range.push(row),
            State::Bands(bands) => {
                let bands = bands.push(row.close);
                return write(
                    out,
                    bands.map(|row| [row.upper, row.middle, row.lower, row.width, row.width_normalized]),
                );
            }
            State::Macd(macd) => {
                let row = macd.push(row.close);
                return write(out, row.map(|row| [row.line, row.signal, row.line - row.signal]));
            }
            State::Stochastic(stochastic) => {
                let row = stochastic.push(row);
                return write(out, row.map(|row| [row.k, row.d]));
            }
        };
        write(out, single.map(|value| [value]));
    }
}

fn write<const N: usize>(out: &mut [f64], values: Option<[f64; N]>) {
    out.iter_mut().zip(values.unwrap_or([f64::NAN; N])).for_each(|(place, value)| *place = value);
}

/// Relative strength index. Seed: mean gain and mean loss of the first `period` changes. Neither gain nor loss: 0.
///
/// Source: J. W. Wilder, New Concepts in Technical Trading Systems, 1978, section VI.
#[derive(Debug, Clone)]
struct Rsi {
    previous_close: Option<f64>,
    gain: Smooth,
    loss: Smooth,
}

impl Rsi {
    fn new(period: usize) -> Self {
        let shape = Shape::wilder_mean(period);
        Self { previous_close: None, gain: Smooth::new(shape), loss: Smooth::new(shape) }
    }

    fn push(&mut self, close: f64) -> Option<f64> {
        let previous = self.previous_close.replace(close)?;
        let gain = self.gain.push(formula::gain(close, previous));
        let loss = self.loss.push(formula::loss(close, previous));
        Some(formula::relative_strength(gain?, loss?))
    }
}

/// True range. Undefined on the first candle, which has no close before it.
#[derive(Debug, Clone, Default)]
struct TrueRange {
    previous_close: Option<f64>,
}

impl TrueRange {
    fn push(&mut self, row: &Row) -> Option<f64> {
        let previous = self.previous_close.replace(row.close)?;
        Some(formula::true_range(row.high, row.low, previous))
    }
}

/// Average true range. Seed: mean of the first `period` true ranges.
///
/// Source: J. W. Wilder, New Concepts in Technical Trading Systems, 1978, section III.
#[derive(Debug, Clone)]
struct Atr {
    range: TrueRange,
    mean: Smooth,
}

impl Atr {
    fn new(period: usize) -> Self {
        Self { range: TrueRange::default(), mean: Smooth::new(Shape::wilder_mean(period)) }
    }

    fn push(&mut self, row: &Row) -> Option<f64> {
        let range = self.range.push(row)?;
        self.mean.push(range)
    }
}

#[derive(Debug, Clone)]
struct BandsState {
    window: Dispersion,
    multiplier: f64,
}

impl BandsState {
    fn push(&mut self, close: f64) -> Option<Bands> {
        self.window.push(close).map(|window| formula::bands(window.mean, window.variance, self.multiplier))
    }
}

/// Volume-weighted average of the typical price, from the first candle of the trading day. No volume yet: undefined.
#[derive(Debug, Clone, Default)]
struct Vwap {
    day: Option<i32>,
    turnover: f64,
    volume: f64,
}

impl Vwap {
    fn push(&mut self, row: &Row) -> Option<f64> {
        if self.day.replace(row.day) != Some(row.day) {
            (self.turnover, self.volume) = (0.0, 0.0);
        }
        self.turnover += formula::turnover(row.high, row.low, row.close, row.volume);
        self.volume += row.volume;
        let price = formula::weighted_price(self.turnover, self.volume);
        (!price.is_nan()).then_some(price)
    }
}

/// Moving average convergence and divergence in TA-Lib's profile.
///
/// Seed: the fast average is seeded late, so that both start on candle `slow - 1`; nothing shows before the signal does.
#[derive(Debug, Clone)]
struct Macd {
    /// Candles the fast average still has to skip.
    skip: usize,
    fast: Smooth,
    slow: Smooth,
    signal: Smooth,
}

#[derive(Debug, Clone, Copy)]
struct MacdRow {
    line: f64,
    signal: f64,
}

impl Macd {
    fn new(fast: usize, slow: usize, signal: usize) -> Self {
        let smooth = |period| Smooth::new(Shape::exponential(period));
        Self { skip: slow - fast, fast: smooth(fast), slow: smooth(slow), signal: smooth(signal) }
    }

    fn push(&mut self, close: f64) -> Option<MacdRow> {
        let slow = self.slow.push(close);
        let fast = if self.skip == 0 { self.fast.push(close) } else { None };
        self.skip = self.skip.saturating_sub(1);
        let line = fast? - slow?;
        self.signal.push(line).map(|signal| MacdRow { line, signal })
    }
}

/// Wilder's directional movement. Seed: sums over the first `period - 1` movements, smoothed once before they show (as TA-Lib).
///
/// Source: J. W. Wilder, New Concepts in Technical Trading Systems, 1978, section IV.
#[derive(Debug, Clone)]
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

/// Slow stochastic: both lines start together, when the second smoothing is full.
#[derive(Debug, Clone)]
struct Stochastic {
    range: Range,
    k: Mean,
    d: Mean,
}

#[derive(Debug, Clone, Copy)]
struct StochasticRow {
    k: f64,
    d: f64,
}

impl Stochastic {
    fn push(&mut self, row: &Row) -> Option<StochasticRow> {
        let range = self.range.push(row.high, row.low)?;
        let k = self.k.push(formula::place_in_range(row.close, range.highest, range.lowest))?;
        self.d.push(k).map(|d| StochasticRow { k, d })
    }
}

/// On-balance volume from the first candle's volume on.
#[derive(Debug, Clone, Default)]
struct Obv {
    previous_close: Option<f64>,
    total: f64,
}

impl Obv {
    fn push(&mut self, row: &Row) -> f64 {
        self.total += match self.previous_close.replace(row.close) {
            Some(previous) => formula::signed_volume(row.close, previous, row.volume),
            None => row.volume,
        };
        self.total
    }
}

//! Engine V2's form: all specs in one go over the columns.
//!
//! The columns are taken in blocks that stay in cache. Within a block, the series that several indicators need (changes, true range,
//! movements, turnover) are made once, all recurrences advance together ([`super::lanes`]), and windows are put together from blocks of
//! doubling length ([`super::columns`]), which needs no state at all. Equal averages of different specs are computed once.

use super::Inputs;
use super::columns::{Scratch, dispersion_into, highest_into, lowest_into, mean_into};
use super::fold::Machine;
use super::formula;
use super::lanes::{BLOCK, LaneSpec, Lanes, Source};
use super::smooth::{DirectionMean, Shape, Smooth};
use super::spec::{Kind, Spec};
use crate::Error;

/// Windows up to this many rows are computed block by block; beyond, in blocks of their own that are larger than the window, since
/// each block starts with the rows of one window.
const NARROW: usize = BLOCK / 4;
/// Outputs an indicator may have, which a test checks.
pub(super) const MOST_OUTPUTS: usize = 8;

/// Computes all columns; lengths and counts are checked by the caller.
///
/// Errors: stopped, when `stop` says so between two blocks.
pub(super) fn compute(
    specs: &[Spec],
    inputs: &Inputs<'_>,
    out: &mut [Vec<f64>],
    stop: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let go_on = || if stop() { Err(Error::Stopped) } else { Ok(()) };
    let rows = inputs.close.len();
    let mut plan = Plan::of(specs);
    let (mut lanes, places) = Lanes::new(&plan.lanes);
    plan.steps.iter_mut().for_each(|step| step.place(&places));
    let mut series = Series::new(&plan.lanes);
    let mut scratch = WindowScratch::default();
    for first in (0..rows).step_by(BLOCK) {
        go_on()?;
        let end = rows.min(first + BLOCK);
        series.fill(inputs, first, end);
        lanes.advance(first, inputs.day, |source| series.of(source, inputs, first, end));
        for step in &mut plan.steps {
            step.finish(&lanes, first, end, out);
        }
        for window in plan.windows.iter().filter(|window| window.span() <= NARROW) {
            window.compute(inputs, first, end, out, &mut scratch);
        }
        for &column in &plan.true_ranges {
            true_range_into(inputs, first, end, &mut out[column][first..end]);
        }
    }
    for window in plan.windows.iter().filter(|window| window.span() > NARROW) {
        let block = 4 * window.span();
        for first in (0..rows).step_by(block) {
            go_on()?;
            window.compute(inputs, first, rows.min(first + block), out, &mut scratch);
        }
    }
    for (spec, column) in &plan.machines {
        machine_into(spec, *column, inputs, out, &go_on)?;
    }
    Ok(())
}

/// Takes a state machine through all rows. One at a time: windows of long periods take megabytes.
fn machine_into(
    spec: &Spec,
    column: usize,
    inputs: &Inputs<'_>,
    out: &mut [Vec<f64>],
    go_on: &dyn Fn() -> Result<(), Error>,
) -> Result<(), Error> {
    let mut machine = Machine::new(spec);
    let mut now = [f64::NAN; MOST_OUTPUTS];
    let now = &mut now[..spec.outputs().len()];
    for row in 0..inputs.len() {
        if row % BLOCK == 0 {
            go_on()?;
        }
        machine.push(&inputs.row(row), now);
        out[column..].iter_mut().zip(&*now).for_each(|(column, value)| column[row] = *value);
    }
    Ok(())
}

/// What a call has to do, with everything shared that can be.
#[derive(Debug, Default)]
struct Plan {
    lanes: Vec<LaneSpec>,
    steps: Vec<Step>,
    windows: Vec<Window>,
    /// Columns that are the true range itself.
    true_ranges: Vec<usize>,
    /// Indicators without a form of their own for columns.
    machines: Vec<(Spec, usize)>,
}

/// Turns lanes into output columns. Lanes are named by their place, columns by their index.
#[derive(Debug)]
enum Step {
    Copy { lane: usize, column: usize },
    Rsi { gain: usize, loss: usize, column: usize },
    Vwap { turnover: usize, volume: usize, column: usize },
    Directional { movement: usize, range: usize, undefined: usize, column: usize },
    Adx { plus: usize, minus: usize, range: usize, undefined: usize, mean: DirectionMean, column: usize },
    Macd { fast: usize, slow: usize, signal: Smooth, undefined: usize, column: usize },
}

/// Indicators whose value depends on the last rows only.
#[derive(Debug)]
enum Window {
    Sma { period: usize, column: usize },
    Bands { period: usize, multiplier: f64, column: usize },
    Stochastic { window: usize, k_smoothing: usize, d_smoothing: usize, column: usize },
}

impl Plan {
    fn of(specs: &[Spec]) -> Self {
        let mut plan = Self::default();
        let mut column = 0;
        for spec in specs {
            let outputs = spec.outputs().len();
            match spec.kind() {
                Some(kind) => plan.add(kind, column),
                None => plan.machines.push((spec.clone(), column)),
            }
            column += outputs;
        }
        plan
    }

    fn add(&mut self, kind: Kind, column: usize) {
        match kind {
            Kind::Sma { period } => self.windows.push(Window::Sma { period, column }),
            Kind::Bands { period, multiplier } => {
                self.windows.push(Window::Bands { period, multiplier, column });
            }
            Kind::Stochastic { window, k_smoothing, d_smoothing } => {
                self.windows.push(Window::Stochastic { window, k_smoothing, d_smoothing, column });
            }
            Kind::Ema { period } => {
                let lane = self.lane(Source::Close, 0, Shape::exponential(period));
                self.steps.push(Step::Copy { lane, column });
            }
            Kind::Rsi { period } => {
                let gain = self.lane(Source::Gain, 1, Shape::wilder_mean(period));
                let loss = self.lane(Source::Loss, 1, Shape::wilder_mean(period));
                self.steps.push(Step::Rsi { gain, loss, column });
            }
            Kind::Atr { period } => {
                let lane = self.lane(Source::TrueRange, 1, Shape::wilder_mean(period));
                self.steps.push(Step::Copy { lane, column });
            }
            Kind::Vwap => {
                let mut lane = |source| self.share(LaneSpec { source, start: 0, shape: Shape::total(), daily: true });
                let (turnover, volume) = (lane(Source::Turnover), lane(Source::Volume));
                self.steps.push(Step::Vwap { turnover, volume, column });
            }
            Kind::Obv => {
                let lane = self.lane(Source::SignedVolume, 0, Shape::total());
                self.steps.push(Step::Copy { lane, column });
            }
            Kind::Macd { fast, slow, signal } => {
                let undefined = slow + signal - 2;
                let signal = Smooth::new(Shape::exponential(signal));
                let fast = self.lane(Source::Close, slow - fast, Shape::exponential(fast));
                let slow = self.lane(Source::Close, 0, Shape::exponential(slow));
                self.steps.push(Step::Macd { fast, slow, signal, undefined, column });
            }
            Kind::PlusDi { period } => self.directional(Source::PlusMovement, period, column),
            Kind::MinusDi { period } => self.directional(Source::MinusMovement, period, column),
            Kind::Adx { period } => {
                let shape = Shape::wilder_sum(period);
                let plus = self.lane(Source::PlusMovement, 1, shape);
                let minus = self.lane(Source::MinusMovement, 1, shape);
                let range = self.lane(Source::TrueRange, 1, shape);
                let mean = DirectionMean::new(period);
                self.steps.push(Step::Adx { plus, minus, range, undefined: period, mean, column });
            }
            Kind::TrueRange => self.true_ranges.push(column),
        }
    }

    fn directional(&mut self, source: Source, period: usize, column: usize) {
        let shape = Shape::wilder_sum(period);
        let movement = self.lane(source, 1, shape);
        let range = self.lane(Source::TrueRange, 1, shape);
        self.steps.push(Step::Directional { movement, range, undefined: period, column });
    }

    fn lane(&mut self, source: Source, start: usize, shape: Shape) -> usize {
        self.share(LaneSpec { source, start, shape, daily: false })
    }

    fn share(&mut self, spec: LaneSpec) -> usize {
        self.lanes.iter().position(|lane| *lane == spec).unwrap_or_else(|| {
            self.lanes.push(spec);
            self.lanes.len() - 1
        })
    }
}

impl Step {
    /// Exchanges lane numbers for places.
    fn place(&mut self, places: &[usize]) {
        let lanes = match self {
            Self::Copy { lane, .. } => vec![lane],
            Self::Rsi { gain, loss, .. } => vec![gain, loss],
            Self::Vwap { turnover, volume, .. } => vec![turnover, volume],
            Self::Directional { movement, range, .. } => vec![movement, range],
            Self::Adx { plus, minus, range, .. } => vec![plus, minus, range],
            Self::Macd { fast, slow, .. } => vec![fast, slow],
        };
        lanes.into_iter().for_each(|lane| *lane = places[*lane]);
    }

    fn finish(&mut self, lanes: &Lanes, first: usize, end: usize, out: &mut [Vec<f64>]) {
        let values = |place: &usize| &lanes.values(*place)[..end - first];
        match self {
            Self::Copy { lane, column } => out[*column][first..end].copy_from_slice(values(lane)),
            Self::Rsi { gain, loss, column } => {
                combine(&mut out[*column][first..end], values(gain), values(loss), formula::relative_strength);
            }
            Self::Vwap { turnover, volume, column } => {
                combine(&mut out[*column][first..end], values(turnover), values(volume), formula::weighted_price);
            }
            Self::Directional { movement, range, undefined, column } => {
                let out = &mut out[*column][first..end];
                combine(out, values(movement), values(range), formula::directional);
                blank(out, first, *undefined);
            }
            Self::Adx { plus, minus, range, undefined, mean, column } => {
                let (plus, minus, range) = (values(plus), values(minus), values(range));
                for (i, value) in out[*column][first..end].iter_mut().enumerate() {
                    let index = formula::directional_index(plus[i], minus[i], range[i]);
                    let mean = if first + i < *undefined { None } else { mean.push(index) };
                    *value = mean.unwrap_or(f64::NAN);
                }
            }
            Self::Macd { fast, slow, signal, undefined, column } => {
                let Some([lines, signals, histogram]) = out[*column..].first_chunk_mut::<3>() else { return };
                let (lines, signals) = (&mut lines[first..end], &mut signals[first..end]);
                combine(lines, values(fast), values(slow), |fast, slow| fast - slow);
                for (signal_value, &line) in signals.iter_mut().zip(lines.iter()) {
                    let mean = if line.is_nan() { None } else { signal.push(line) };
                    *signal_value = mean.unwrap_or(f64::NAN);
                }
                combine(&mut histogram[first..end], lines, signals, |line, signal| line - signal);
                blank(lines, first, *undefined);
            }
        }
    }
}

impl Window {
    /// Rows before a row that its value depends on.
    fn span(&self) -> usize {
        match *self {
            Self::Sma { period, .. } | Self::Bands { period, .. } => period - 1,
            Self::Stochastic { window, k_smoothing, d_smoothing, .. } => window + k_smoothing + d_smoothing - 3,
        }
    }

    fn compute(
        &self,
        inputs: &Inputs<'_>,
        first: usize,
        end: usize,
        out: &mut [Vec<f64>],
        scratch: &mut WindowScratch,
    ) {
        let span = self.span();
        // Rows before the first full window are undefined.
        let full = first.max(span).min(end);
        let (column, outputs) = self.columns();
        for out in &mut out[column..column + outputs] {
            out[first..full].fill(f64::NAN);
        }
        if full == end {
            return;
        }
        let begin = full - span;
        match *self {
            Self::Sma { period, column } => {
                mean_into(&inputs.close[begin..end], period, &mut out[column][full..end], &mut scratch.blocks);
            }
            Self::Bands { period, multiplier, column } => {
                let Some(columns) = out[column..].first_chunk_mut::<5>() else { return };
                let [upper, middle, lower, width, ratio] = columns.each_mut().map(|column| &mut column[full..end]);
                dispersion_into(&inputs.close[begin..end], period, middle, ratio, &mut scratch.blocks);
                for i in 0..middle.len() {
                    let bands = formula::bands(middle[i], ratio[i], multiplier);
                    upper[i] = bands.upper;
                    lower[i] = bands.lower;
                    width[i] = bands.width;
                    ratio[i] = bands.width_normalized;
                }
            }
            Self::Stochastic { window, k_smoothing, d_smoothing, column } => {
                let Some([k_column, d_column]) = out[column..].first_chunk_mut::<2>() else { return };
                let WindowScratch { blocks, raw, lowest, k } = scratch;
                let count = end - begin + 1 - window;
                raw.resize(count, 0.0);
                lowest.resize(count, 0.0);
                highest_into(&inputs.high[begin..end], window, raw, blocks);
                lowest_into(&inputs.low[begin..end], window, lowest, blocks);
                let closes = &inputs.close[begin + window - 1..end];
                for ((place, lowest), close) in raw.iter_mut().zip(lowest.iter()).zip(closes) {
                    *place = formula::place_in_range(*close, *place, *lowest);
                }
                k.resize(count + 1 - k_smoothing, 0.0);
                mean_into(raw, k_smoothing, k, blocks);
                k_column[full..end].copy_from_slice(&k[d_smoothing - 1..]);
                mean_into(k, d_smoothing, &mut d_column[full..end], blocks);
            }
        }
    }

    fn columns(&self) -> (usize, usize) {
        match *self {
            Self::Sma { column, .. } => (column, 1),
            Self::Bands { column, .. } => (column, 5),
            Self::Stochastic { column, .. } => (column, 2),
        }
    }
}

#[derive(Debug, Default)]
struct WindowScratch {
    blocks: Scratch,
    raw: Vec<f64>,
    lowest: Vec<f64>,
    k: Vec<f64>,
}

/// Series made once per block for all lanes that use them.
#[derive(Debug)]
struct Series {
    made: Vec<(Source, Vec<f64>)>,
}

impl Series {
    fn new(lanes: &[LaneSpec]) -> Self {
        let mut made: Vec<(Source, Vec<f64>)> = Vec::new();
        for lane in lanes {
            let is_given = matches!(lane.source, Source::Close | Source::Volume);
            if !is_given && made.iter().all(|(source, _)| *source != lane.source) {
                made.push((lane.source, vec![0.0; BLOCK]));
            }
        }
        Self { made }
    }

    fn fill(&mut self, inputs: &Inputs<'_>, first: usize, end: usize) {
        let Inputs { high, low, close, volume, .. } = *inputs;
        for (source, values) in &mut self.made {
            let out = &mut values[..end - first];
            match source {
                Source::Close | Source::Volume => {}
                Source::Gain => pairs(close, first, end, out, formula::gain),
                Source::Loss => pairs(close, first, end, out, formula::loss),
                Source::TrueRange => true_range_into(inputs, first, end, out),
                Source::PlusMovement => movements(high, low, first, end, out, formula::plus_movement),
                Source::MinusMovement => movements(high, low, first, end, out, formula::minus_movement),
                Source::SignedVolume => {
                    pairs(close, first, end, out, |now, before| formula::signed_volume(now, before, 1.0));
                    out.iter_mut().zip(&volume[first..end]).for_each(|(sign, volume)| *sign *= volume);
                    if first == 0 {
                        out[0] = volume[0];
                    }
                }
                Source::Turnover => {
                    let prices = high[first..end].iter().zip(&low[first..end]).zip(&close[first..end]);
                    for ((value, ((high, low), close)), volume) in out.iter_mut().zip(prices).zip(&volume[first..end]) {
                        *value = formula::turnover(*high, *low, *close, *volume);
                    }
                }
            }
        }
    }

    fn of<'a>(&'a self, source: Source, inputs: &Inputs<'a>, first: usize, end: usize) -> &'a [f64] {
        match source {
            Source::Close => &inputs.close[first..end],
            Source::Volume => &inputs.volume[first..end],
            made => {
                let found = self.made.iter().find(|(source, _)| *source == made);
                &found.expect("new makes the series of every lane").1[..end - first]
            }
        }
    }
}

/// Leaves the rows before `undefined` without a value; `out` starts at row `first`.
fn blank(out: &mut [f64], first: usize, undefined: usize) {
    let count = undefined.saturating_sub(first).min(out.len());
    out[..count].fill(f64::NAN);
}

fn combine(out: &mut [f64], a: &[f64], b: &[f64], formula: impl Fn(f64, f64) -> f64) {
    for ((value, a), b) in out.iter_mut().zip(a).zip(b) {
        *value = formula(*a, *b);
    }
}

/// Skips row 0, which has no row before it, leaving it undefined.
fn after_first_row(first: usize, out: &mut [f64]) -> (usize, &mut [f64]) {
    match (first, out) {
        (0, [value, rest @ ..]) => {
            *value = f64::NAN;
            (1, rest)
        }
        (first, out) => (first, out),
    }
}

/// Applies a formula to each row and the row before it.
fn pairs(x: &[f64], first: usize, end: usize, out: &mut [f64], formula: impl Fn(f64, f64) -> f64) {
    let (from, out) = after_first_row(first, out);
    if from < end {
        combine(out, &x[from..end], &x[from - 1..end - 1], formula);
    }
}

fn movements(high: &[f64], low: &[f64], first: usize, end: usize, out: &mut [f64], formula: impl Fn(f64, f64) -> f64) {
    let (from, out) = after_first_row(first, out);
    if from < end {
        let rises = high[from..end].iter().zip(&high[from - 1..end - 1]);
        let falls = low[from..end].iter().zip(&low[from - 1..end - 1]);
        for (value, ((high, high_before), (low, low_before))) in out.iter_mut().zip(rises.zip(falls)) {
            *value = formula(high - high_before, low_before - low);
        }
    }
}

fn true_range_into(inputs: &Inputs<'_>, first: usize, end: usize, out: &mut [f64]) {
    let Inputs { high, low, close, .. } = *inputs;
    let (from, out) = after_first_row(first, out);
    if from < end {
        let rows = high[from..end].iter().zip(&low[from..end]).zip(&close[from - 1..end - 1]);
        for (value, ((high, low), close)) in out.iter_mut().zip(rows) {
            *value = formula::true_range(*high, *low, *close);
        }
    }
}

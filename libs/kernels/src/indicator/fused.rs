//! Engine V2's form: all specs in one go over the columns.
//!
//! The columns are taken in blocks that stay in cache. Within a block, the series that several indicators need (changes, true range,
//! movements, turnover) are made once, all recurrences advance together ([`super::lanes`]), and windows are put together from blocks of
//! doubling length ([`super::columns`]), which needs no state at all. Equal averages of different specs are computed once.

use std::ops::Range;

use super::Inputs;
use super::columns::{Scratch, bands_into, highest_into, lowest_into, mean_into};
use super::fold::Machine;
use super::lanes::{self, BLOCK, Lanes};
use super::plan::{Follower, Plan, Step, Window};
use super::profile::Profile;
use super::rows;
use super::source::Source;
use super::spec::Spec;
use crate::Error;

/// Windows up to this many rows are computed block by block; beyond, in blocks of their own that are larger than the window, since
/// each block starts with the rows of one window.
const NARROW: usize = BLOCK / 4;
/// Outputs an indicator may have, which a test checks.
pub(super) const MOST_OUTPUTS: usize = 8;
/// Rows handed out at once by [`Fused::for_each_piece`]: a dozen columns of it stay in a second-level cache.
const PIECE: usize = 8 * BLOCK;

/// Specs made ready to be computed over columns, again and again, in buffers that are kept.
///
/// ```
/// use kernels::indicator::{Fused, Inputs, Spec};
/// let close = [1.0, 2.0, 6.0, 5.0];
/// let inputs = Inputs::new(&close, &close, &close, &close, &[1.0; 4], &[0; 4])?;
/// let mut fused = Fused::new(&["sma:3".parse::<Spec>()?]);
/// let mut out = vec![Vec::new(); fused.columns()];
/// fused.compute_into(&inputs, &mut out)?;
/// assert_eq!(out[0][2..], [3.0, 13.0 / 3.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Fused {
    plan: Plan,
    track: Track,
    scratch: WindowScratch,
    pieces: Vec<Vec<f64>>,
}

/// What is remembered of one instrument from block to block.
#[derive(Debug, Clone)]
struct Track {
    lanes: Lanes,
    followers: Vec<Follower>,
}

/// Buffers of columns whose first row is row `origin` of the candles.
struct Target<'a> {
    columns: &'a mut [Vec<f64>],
    origin: usize,
}

impl<'a> Target<'a> {
    /// Buffers for all rows.
    fn whole(columns: &'a mut [Vec<f64>], rows: usize) -> Self {
        columns.iter_mut().for_each(|column| column.resize(rows, f64::NAN));
        Self { columns, origin: 0 }
    }

    fn rows(&mut self, column: usize, first: usize, end: usize) -> &mut [f64] {
        &mut self.columns[column][first - self.origin..end - self.origin]
    }

    fn several<const N: usize>(&mut self, column: usize, first: usize, end: usize) -> [&mut [f64]; N] {
        let columns = self.columns[column..].first_chunk_mut::<N>().expect("a spec has all of its columns");
        columns.each_mut().map(|column| &mut column[first - self.origin..end - self.origin])
    }
}

impl Fused {
    /// Makes the specs ready.
    pub fn new(specs: &[Spec]) -> Self {
        let plan = Plan::of(specs);
        Self { track: Track::new(&plan), plan, scratch: WindowScratch::default(), pieces: Vec::new() }
    }

    /// Returns how many columns all specs have together.
    pub fn columns(&self) -> usize {
        self.plan.columns
    }

    /// Computes all columns, in the order of the specs, into the caller's buffers, one per column, whose content is replaced and whose
    /// capacity is reused. Equals [`compute_fold`](super::compute_fold) to the bit.
    ///
    /// Errors: inputs of unequal length; another number of buffers than columns.
    pub fn compute_into(&mut self, inputs: &Inputs<'_>, out: &mut [Vec<f64>]) -> Result<(), Error> {
        self.compute_into_until(inputs, out, &|| false)
    }

    /// [`Fused::compute_into`] for as long as `stop`, asked for every block of some hundred rows, says no.
    ///
    /// Errors: those of [`Fused::compute_into`]; stopped.
    pub fn compute_into_until(
        &mut self,
        inputs: &Inputs<'_>,
        out: &mut [Vec<f64>],
        stop: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        inputs.check()?;
        self.check(out.len(), 1)?;
        self.compute_one(inputs, out, stop)
    }

    /// Does [`Fused::compute_into`]'s work for several instruments of any lengths.
    ///
    /// Shape: `out` holds the columns of the first instrument, then those of the second, and so on. It saves making the specs ready for
    /// each, which counts for histories of a few hundred candles. The instruments are taken one after the other: two whose recurrences
    /// shared a loop were measured 15 % slower with columns that stay in the second-level cache, 60 % with longer ones.
    ///
    /// Errors: inputs of unequal length; another number of buffers than columns times instruments.
    pub fn compute_many_into(&mut self, inputs: &[Inputs<'_>], out: &mut [Vec<f64>]) -> Result<(), Error> {
        inputs.iter().try_for_each(Inputs::check)?;
        self.check(out.len(), inputs.len())?;
        let columns = self.columns();
        for (index, inputs) in inputs.iter().enumerate() {
            self.compute_one(inputs, &mut out[index * columns..(index + 1) * columns], &|| false)?;
        }
        Ok(())
    }

    /// Hands all columns out in pieces of a few thousand rows, in buffers that are used again for the next piece: what is not kept does
    /// not leave the cache, and memory does not grow with the history.
    ///
    /// Shape: `take` gets the first row of the piece and the columns from there on. Cost: windows of more rows than a piece are put
    /// together anew for each. Errors: inputs of unequal length.
    pub fn for_each_piece(
        &mut self,
        inputs: &Inputs<'_>,
        mut take: impl FnMut(usize, &[Vec<f64>]),
    ) -> Result<(), Error> {
        inputs.check()?;
        let rows = inputs.len();
        let Self { plan, track, scratch, pieces } = self;
        track.reset(plan);
        pieces.resize(plan.columns, Vec::new());
        let mut machines: Vec<Machine> = plan.machines.iter().map(|(spec, _)| Machine::new(spec)).collect();
        for origin in (0..rows).step_by(PIECE) {
            let piece_end = rows.min(origin + PIECE);
            pieces.iter_mut().for_each(|column| column.resize(piece_end - origin, f64::NAN));
            let mut target = Target { columns: pieces, origin };
            for first in (origin..piece_end).step_by(BLOCK) {
                let end = piece_end.min(first + BLOCK);
                track.lanes.fill(inputs, first, end - first);
                lanes::advance(&mut track.lanes, inputs.day, first, end - first);
                track.finish(plan, first, end, &mut target);
                plan.narrow(inputs, first, end, &mut target, scratch);
            }
            for window in plan.wide_windows() {
                window.compute(inputs, origin, piece_end, &mut target, scratch);
            }
            for (machine, (spec, column)) in machines.iter_mut().zip(&plan.machines) {
                advance_machine(machine, spec, *column, inputs, origin..piece_end, &mut target);
            }
            take(origin, pieces);
        }
        Ok(())
    }

    fn compute_one(&mut self, inputs: &Inputs<'_>, out: &mut [Vec<f64>], stop: &dyn Fn() -> bool) -> Result<(), Error> {
        let rows = inputs.len();
        let Self { plan, track, scratch, .. } = self;
        track.reset(plan);
        let mut target = Target::whole(out, rows);
        for first in (0..rows).step_by(BLOCK) {
            go_on(stop)?;
            let end = rows.min(first + BLOCK);
            track.lanes.fill(inputs, first, end - first);
            lanes::advance(&mut track.lanes, inputs.day, first, end - first);
            track.finish(plan, first, end, &mut target);
            plan.narrow(inputs, first, end, &mut target, scratch);
        }
        plan.rest(inputs, &mut target, scratch, stop)
    }

    fn check(&self, found: usize, instruments: usize) -> Result<(), Error> {
        let expected = self.plan.columns * instruments;
        if found == expected { Ok(()) } else { Err(Error::BufferCount { found, expected }) }
    }
}

impl Plan {
    /// What is done block by block and needs no lane: windows that are narrow, and the true range.
    fn narrow(&self, inputs: &Inputs<'_>, first: usize, end: usize, out: &mut Target<'_>, scratch: &mut WindowScratch) {
        for window in self.windows.iter().filter(|window| window.span() <= NARROW) {
            window.compute(inputs, first, end, out, scratch);
        }
        for &column in &self.true_ranges {
            Source::TrueRange.fill(inputs, first, 1.0, out.rows(column, first, end));
        }
    }

    fn wide_windows(&self) -> impl Iterator<Item = &Window> {
        self.windows.iter().filter(|window| window.span() > NARROW)
    }

    /// What is not done block by block: wide windows, and indicators without a form of their own for columns.
    fn rest(
        &self,
        inputs: &Inputs<'_>,
        out: &mut Target<'_>,
        scratch: &mut WindowScratch,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let rows = inputs.len();
        for window in self.wide_windows() {
            let block = 4 * window.span();
            for first in (0..rows).step_by(block) {
                go_on(stop)?;
                window.compute(inputs, first, rows.min(first + block), out, scratch);
            }
        }
        // One at a time: windows of long periods take megabytes.
        for (spec, column) in &self.machines {
            let mut machine = Machine::new(spec);
            for first in (0..rows).step_by(BLOCK) {
                go_on(stop)?;
                advance_machine(&mut machine, spec, *column, inputs, first..rows.min(first + BLOCK), out);
            }
        }
        Ok(())
    }
}

fn go_on(stop: &dyn Fn() -> bool) -> Result<(), Error> {
    if stop() { Err(Error::Stopped) } else { Ok(()) }
}

/// Takes a state machine through some rows.
fn advance_machine(
    machine: &mut Machine,
    spec: &Spec,
    column: usize,
    inputs: &Inputs<'_>,
    rows: Range<usize>,
    out: &mut Target<'_>,
) {
    let mut now = [f64::NAN; MOST_OUTPUTS];
    let now = &mut now[..spec.outputs().len()];
    for row in rows {
        machine.push(&inputs.row(row), now);
        let columns = out.columns[column..].iter_mut();
        columns.zip(&*now).for_each(|(column, value)| column[row - out.origin] = *value);
    }
}

impl Track {
    fn new(plan: &Plan) -> Self {
        Self { lanes: Lanes::new(&plan.lanes), followers: plan.followers.clone() }
    }

    /// Goes back to before the first row.
    fn reset(&mut self, plan: &Plan) {
        self.lanes.reset();
        self.followers.clone_from(&plan.followers);
    }

    /// Makes columns of the lanes once they have advanced.
    fn finish(&mut self, plan: &Plan, first: usize, end: usize, out: &mut Target<'_>) {
        for step in &plan.steps {
            step.finish(&self.lanes, first, end, out);
        }
        for follower in &mut self.followers {
            follower.finish(&self.lanes, first, end, out);
        }
    }
}

impl Step {
    fn finish(&self, lanes: &Lanes, first: usize, end: usize, out: &mut Target<'_>) {
        let values = |place: &usize| &lanes.values(*place)[..end - first];
        match self {
            Self::Copy { lane, column } => out.rows(*column, first, end).copy_from_slice(values(lane)),
            Self::Rsi { gain, loss, profile, column } => {
                let (out, gain, loss) = (out.rows(*column, first, end), values(gain), values(loss));
                match profile {
                    Profile::TaLib => rows::relative_strength(out, gain, loss),
                    Profile::TradingView => rows::relative_strength_or_full(out, gain, loss),
                }
            }
            Self::Vwap { turnover, volume, column } => {
                rows::weighted_price(out.rows(*column, first, end), values(turnover), values(volume));
            }
            Self::Directional { movement, range, undefined, column } => {
                let out = out.rows(*column, first, end);
                rows::directional(out, values(movement), values(range));
                blank(out, first, *undefined);
            }
        }
    }
}

impl Follower {
    fn finish(&mut self, lanes: &Lanes, first: usize, end: usize, out: &mut Target<'_>) {
        let values = |place: &usize| &lanes.values(*place)[..end - first];
        match self {
            Self::Adx { plus, minus, range, undefined, mean, column } => {
                let out = out.rows(*column, first, end);
                rows::directional_index(out, values(plus), values(minus), values(range));
                for (offset, value) in out.iter_mut().enumerate() {
                    let mean = if first + offset < *undefined { None } else { mean.push(*value) };
                    *value = mean.unwrap_or(f64::NAN);
                }
            }
            Self::Macd { fast, slow, signal, undefined, column } => {
                let [lines, signals, histogram] = out.several(*column, first, end);
                rows::difference(lines, values(fast), values(slow));
                for (signal_value, &line) in signals.iter_mut().zip(lines.iter()) {
                    let mean = if line.is_nan() { None } else { signal.push(line) };
                    *signal_value = mean.unwrap_or(f64::NAN);
                }
                rows::difference(histogram, lines, signals);
                blank(lines, first, *undefined);
            }
        }
    }
}

/// Leaves the rows before `undefined` without a value; `out` starts at row `first`.
fn blank(out: &mut [f64], first: usize, undefined: usize) {
    let count = undefined.saturating_sub(first).min(out.len());
    out[..count].fill(f64::NAN);
}

impl Window {
    fn compute(
        &self,
        inputs: &Inputs<'_>,
        first: usize,
        end: usize,
        out: &mut Target<'_>,
        scratch: &mut WindowScratch,
    ) {
        let span = self.span();
        // Rows before the first full window are undefined.
        let full = first.max(span).min(end);
        let (column, outputs) = self.columns();
        (column..column + outputs).for_each(|column| out.rows(column, first, full).fill(f64::NAN));
        if full == end {
            return;
        }
        let begin = full - span;
        match *self {
            Self::Sma { period, column } => {
                mean_into(&inputs.close[begin..end], period, out.rows(column, full, end), &mut scratch.blocks);
            }
            Self::Bands { period, multiplier, column } => {
                let columns = out.several(column, full, end);
                bands_into(&inputs.close[begin..end], period, multiplier, columns, &mut scratch.blocks);
            }
            Self::Stochastic { window, k_smoothing, d_smoothing, column } => {
                let [k_column, d_column] = out.several(column, full, end);
                let WindowScratch { blocks, raw, lowest, k } = scratch;
                let count = end - begin + 1 - window;
                raw.resize(count, 0.0);
                lowest.resize(count, 0.0);
                highest_into(&inputs.high[begin..end], window, raw, blocks);
                lowest_into(&inputs.low[begin..end], window, lowest, blocks);
                rows::place_in_range(raw, lowest, &inputs.close[begin + window - 1..end]);
                k.resize(count + 1 - k_smoothing, 0.0);
                mean_into(raw, k_smoothing, k, blocks);
                k_column.copy_from_slice(&k[d_smoothing - 1..]);
                mean_into(k, d_smoothing, d_column, blocks);
            }
        }
    }
}

#[derive(Debug, Clone, Default)]
struct WindowScratch {
    blocks: Scratch,
    raw: Vec<f64>,
    lowest: Vec<f64>,
    k: Vec<f64>,
}

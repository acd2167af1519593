//! Recurrences side by side: each lane is one average, and all lanes that are past their seed advance through a block together.
//!
//! One recurrence waits for its own last value at each row; a dozen in one loop fill that wait with each other's work. The arithmetic
//! is [`Smooth::push`]'s, so a lane equals the fold to the bit.

use super::Inputs;
use super::rows;
use super::smooth::{Shape, Smooth};
use super::source::Source;

/// Rows per block: a dozen lanes of it stay in a first-level cache.
pub(super) const BLOCK: usize = 512;

/// Keeps lanes out of each other's cache sets, which a power of two would not.
const STRIDE: usize = BLOCK + 8;

/// Most lanes in one loop: enough to hide the latency of a multiplication and an addition, few enough for the registers.
const GROUP: usize = 12;

/// Rows of a block that may be taken one by one until the seeds are complete, so that a short history is not spent on them.
const SOON: usize = BLOCK / 4;

/// Values of one lane in one block, NaN before its seed.
pub(super) type Values = [f64; STRIDE];

/// What a lane computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LaneSpec {
    pub(super) source: Source,
    /// First row taken.
    pub(super) start: usize,
    pub(super) shape: Shape,
    /// Begins again from 0 each trading day.
    pub(super) daily: bool,
}

impl LaneSpec {
    /// Rows before the first one that needs no seeding.
    pub(super) fn seeded_at(&self) -> usize {
        self.start + self.shape.count
    }
}

/// The lanes of one instrument, in the order of their seeds.
#[derive(Debug, Clone)]
pub(super) struct Lanes {
    specs: Vec<LaneSpec>,
    smooth: Vec<Smooth>,
    values: Vec<Values>,
    has_daily: bool,
}

impl Lanes {
    /// Takes the lanes in the order of their seeds.
    pub(super) fn new(specs: &[LaneSpec]) -> Self {
        let smooth = specs.iter().map(|spec| Smooth::new(spec.shape)).collect();
        let values = vec![[f64::NAN; STRIDE]; specs.len()];
        Self { specs: specs.to_vec(), smooth, values, has_daily: specs.iter().any(|spec| spec.daily) }
    }

    /// Goes back to before the first row.
    pub(super) fn reset(&mut self) {
        self.smooth.iter_mut().zip(&self.specs).for_each(|(smooth, spec)| *smooth = Smooth::new(spec.shape));
    }

    /// Values of one lane over the block last advanced.
    pub(super) fn values(&self, place: usize) -> &[f64] {
        &self.values[place]
    }

    /// Takes the inputs of the rows `first..first + rows`, and seeds what is not seeded yet.
    pub(super) fn fill(&mut self, inputs: &Inputs<'_>, first: usize, rows: usize) {
        let seeding = self.seeding(first).min(rows);
        let ready = self.ready(first);
        let lanes = self.specs.iter().zip(&mut self.smooth).zip(&mut self.values);
        for (place, ((spec, smooth), values)) in lanes.enumerate() {
            let slow = if place < ready { seeding } else { rows };
            let (slow, fast) = values[..rows].split_at_mut(slow);
            spec.source.fill(inputs, first, 1.0, slow);
            spec.source.fill(inputs, first + slow.len(), spec.shape.gain, fast);
            seed(spec, smooth, inputs.day, first, slow);
        }
    }

    /// How many lanes are past their seed at the block's first row, or soon after.
    fn ready(&self, first: usize) -> usize {
        self.specs.partition_point(|spec| spec.seeded_at() <= first + SOON)
    }

    /// How many of the block's rows the ready lanes take one by one, until the last of them is seeded.
    fn seeding(&self, first: usize) -> usize {
        self.specs[..self.ready(first)].last().map_or(0, |spec| spec.seeded_at().saturating_sub(first))
    }

    /// Rows of one day from `row` on, at most `most`, whose daily lanes begin again where the day does.
    fn begin_day(&mut self, day: &[i32], row: usize, most: usize) -> usize {
        if !self.has_daily {
            return most;
        }
        if row == 0 || day[row] != day[row - 1] {
            let daily = self.smooth.iter_mut().zip(&self.specs).filter(|(_, spec)| spec.daily);
            daily.for_each(|(smooth, _)| smooth.value = 0.0);
        }
        rows::same_day(&day[row..row + most])
    }
}

/// Advances the lanes over the rows `first..first + rows`, which were filled in.
pub(super) fn advance(lanes: &mut Lanes, day: &[i32], first: usize, rows: usize) {
    let ready = lanes.ready(first);
    let mut begin = lanes.seeding(first);
    while begin < rows {
        let end = begin + lanes.begin_day(day, first + begin, rows - begin);
        for from in (0..ready).step_by(GROUP) {
            let group = from..ready.min(from + GROUP);
            scan_group(&mut lanes.smooth[group.clone()], &mut lanes.values[group], begin, end);
        }
        begin = end;
    }
}

fn seed(spec: &LaneSpec, smooth: &mut Smooth, day: &[i32], first: usize, values: &mut [f64]) {
    for (row, value) in (first..).zip(values) {
        if spec.daily && (row == 0 || day[row] != day[row - 1]) {
            smooth.value = 0.0;
        }
        *value = if row < spec.start { f64::NAN } else { smooth.push(*value).unwrap_or(f64::NAN) };
    }
}

fn scan_group(smooth: &mut [Smooth], values: &mut [Values], begin: usize, end: usize) {
    match smooth.len() {
        1 => scan::<1>(smooth, values, begin, end),
        2 => scan::<2>(smooth, values, begin, end),
        3 => scan::<3>(smooth, values, begin, end),
        4 => scan::<4>(smooth, values, begin, end),
        5 => scan::<5>(smooth, values, begin, end),
        6 => scan::<6>(smooth, values, begin, end),
        7 => scan::<7>(smooth, values, begin, end),
        8 => scan::<8>(smooth, values, begin, end),
        9 => scan::<9>(smooth, values, begin, end),
        10 => scan::<10>(smooth, values, begin, end),
        11 => scan::<11>(smooth, values, begin, end),
        _ => scan::<GROUP>(smooth, values, begin, end),
    }
}

/// Replaces the inputs in `values` by the recurrences over them. The lane count is a constant so that all states live in registers.
#[expect(clippy::needless_range_loop, reason = "row indexes several lanes at once")]
fn scan<const N: usize>(smooth: &mut [Smooth], values: &mut [Values], begin: usize, end: usize) {
    let (Some(smooth), Some(values)) = (smooth.first_chunk_mut::<N>(), values.first_chunk_mut::<N>()) else { return };
    let mut state: [f64; N] = std::array::from_fn(|lane| smooth[lane].value);
    let carry: [f64; N] = std::array::from_fn(|lane| smooth[lane].shape.carry);
    for row in begin..end.min(STRIDE) {
        for lane in 0..N {
            state[lane] = carry[lane] * state[lane] + values[lane][row];
            values[lane][row] = state[lane];
        }
    }
    smooth.iter_mut().zip(state).for_each(|(smooth, value)| smooth.value = value);
}

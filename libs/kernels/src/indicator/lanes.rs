//! Recurrences side by side: each lane is one average, and all lanes that are past their seed advance through a block together.
//!
//! One recurrence waits for its own last value at each row; a dozen in one loop fill that wait with each other's work. The arithmetic
//! is [`Smooth::push`]'s, so a lane equals the fold to the bit.

use super::smooth::{Shape, Smooth};

/// Rows per block: a dozen lanes of it stay in a first-level cache.
pub(super) const BLOCK: usize = 512;

/// Keeps lanes out of each other's cache sets, which a power of two would not.
const STRIDE: usize = BLOCK + 8;

/// Most lanes in one loop: enough to hide the latency of a multiplication and an addition, few enough for the registers.
const GROUP: usize = 12;

/// Values of one lane in one block, NaN before its seed.
pub(super) type Values = [f64; STRIDE];

/// Series that lanes smooth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Close,
    Gain,
    Loss,
    TrueRange,
    PlusMovement,
    MinusMovement,
    SignedVolume,
    Turnover,
    Volume,
}

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

#[derive(Debug)]
struct Lane {
    spec: LaneSpec,
    smooth: Smooth,
}

impl LaneSpec {
    /// Rows before the first one that needs no seeding.
    fn seeded_at(&self) -> usize {
        self.start + self.shape.count
    }
}

/// All lanes of one call, in the order of their seeds.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    values: Vec<Values>,
    has_daily: bool,
}

impl Lanes {
    /// Takes the lanes; the second answer says where each ended up.
    pub(super) fn new(specs: &[LaneSpec]) -> (Self, Vec<usize>) {
        let mut order: Vec<usize> = (0..specs.len()).collect();
        order.sort_by_key(|&lane| specs[lane].seeded_at());
        let mut places = vec![0; specs.len()];
        order.iter().enumerate().for_each(|(place, &lane)| places[lane] = place);
        let lanes =
            order.iter().map(|&lane| Lane { spec: specs[lane], smooth: Smooth::new(specs[lane].shape) }).collect();
        let values = vec![[f64::NAN; STRIDE]; specs.len()];
        (Self { lanes, values, has_daily: specs.iter().any(|spec| spec.daily) }, places)
    }

    /// Values of one lane over the block last advanced.
    pub(super) fn values(&self, place: usize) -> &[f64] {
        &self.values[place]
    }

    /// Advances all lanes over the rows `first..first + rows`; `source` gives the block's rows of a series.
    pub(super) fn advance<'a>(&mut self, first: usize, day: &[i32], source: impl Fn(Source) -> &'a [f64]) {
        let rows = day.len() - first.min(day.len());
        let rows = rows.min(BLOCK);
        let ready = self.lanes.partition_point(|lane| lane.spec.seeded_at() <= first);
        for (lane, values) in self.lanes.iter_mut().zip(&mut self.values) {
            let input = &source(lane.spec.source)[..rows];
            if lane.spec.seeded_at() <= first {
                let gain = lane.spec.shape.gain;
                values.iter_mut().zip(input).for_each(|(value, x)| *value = gain * x);
            } else {
                lane.seed(first, input, values);
            }
        }
        let (lanes, values) = (&mut self.lanes[..ready], &mut self.values[..ready]);
        let mut begin = 0;
        while begin < rows {
            let mut end = rows;
            if self.has_daily {
                let row = first + begin;
                if row == 0 || day[row] != day[row - 1] {
                    lanes.iter_mut().filter(|lane| lane.spec.daily).for_each(|lane| lane.smooth.value = 0.0);
                }
                let same_day = day[row..first + rows].iter().take_while(|&&other| other == day[row]).count();
                end = begin + same_day;
            }
            for (lanes, values) in lanes.chunks_mut(GROUP).zip(values.chunks_mut(GROUP)) {
                scan_group(lanes, values, begin, end);
            }
            begin = end;
        }
    }
}

impl Lane {
    fn seed(&mut self, first: usize, input: &[f64], values: &mut [f64]) {
        for (offset, (value, &x)) in values.iter_mut().zip(input).enumerate() {
            *value = if first + offset < self.spec.start { f64::NAN } else { self.smooth.push(x).unwrap_or(f64::NAN) };
        }
    }
}

fn scan_group(lanes: &mut [Lane], values: &mut [Values], begin: usize, end: usize) {
    match lanes.len() {
        1 => scan::<1>(lanes, values, begin, end),
        2 => scan::<2>(lanes, values, begin, end),
        3 => scan::<3>(lanes, values, begin, end),
        4 => scan::<4>(lanes, values, begin, end),
        5 => scan::<5>(lanes, values, begin, end),
        6 => scan::<6>(lanes, values, begin, end),
        7 => scan::<7>(lanes, values, begin, end),
        8 => scan::<8>(lanes, values, begin, end),
        9 => scan::<9>(lanes, values, begin, end),
        10 => scan::<10>(lanes, values, begin, end),
        11 => scan::<11>(lanes, values, begin, end),
        _ => scan::<GROUP>(lanes, values, begin, end),
    }
}

/// Replaces the inputs in `values` by the recurrences over them. The lane count is a constant so that all states live in registers.
#[expect(clippy::needless_range_loop, reason = "row indexes several lanes at once")]
fn scan<const N: usize>(lanes: &mut [Lane], values: &mut [Values], begin: usize, end: usize) {
    let (Some(lanes), Some(values)) = (lanes.first_chunk_mut::<N>(), values.first_chunk_mut::<N>()) else { return };
    let mut state: [f64; N] = std::array::from_fn(|lane| lanes[lane].smooth.value);
    let carry: [f64; N] = std::array::from_fn(|lane| lanes[lane].spec.shape.carry);
    for row in begin..end.min(STRIDE) {
        for lane in 0..N {
            state[lane] = carry[lane] * state[lane] + values[lane][row];
            values[lane][row] = state[lane];
        }
    }
    lanes.iter_mut().zip(state).for_each(|(lane, value)| lane.smooth.value = value);
}

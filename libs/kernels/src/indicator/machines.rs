//! The states of a set of indicators together: one candle in, the values of all of them out.
//!
//! What engine V2 shares in a block of rows is shared in one row: changes, true range and turnover are made once, equal averages and
//! equal windows are kept once, and all recurrences advance in one loop. An indicator that has no part in that keeps its own machine.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::fold::{Machine, Row};
use super::formula;
use super::lanes::LaneSpec;
use super::plan::{Follower, Plan, Step};
use super::profile::Profile;
use super::smooth::Smooth;
use super::source::{Before, Source};
use super::spec::{Kind, Spec};
use super::window::{Dispersion, Mean};
use crate::Error;

/// Running states of several indicators: takes candles in order, answers with the values of all at each.
///
/// Equals a [`Machine`] per spec to the bit, in a fraction of the time.
///
/// Shape: [`Machines::push`] writes the outputs of all specs, in their order, NaN while undefined.
///
/// ```
/// use kernels::indicator::{Machines, Row, Spec};
/// let specs = ["sma:2".parse::<Spec>()?, "tr".parse()?];
/// let row = |close| Row { open: 4.0, high: 6.0, low: 2.0, close, volume: 1.0, day: 0 };
/// let mut machines = Machines::new(&specs);
/// let mut out = vec![0.0; machines.columns()];
/// machines.push(&row(3.0), &mut out);
/// let mut later = Machines::restore(&specs, &machines.save())?;
/// later.push(&row(5.0), &mut out);
/// assert_eq!((out, later.seen()), (vec![4.0, 4.0], 2));
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Machines {
    layout: Arc<Layout>,
    states: States,
    machines: Vec<Machine>,
}

/// What is done for each candle. Clones share it.
#[derive(Debug, Default)]
struct Layout {
    /// But for its lanes and windows, which are below.
    plan: Plan,
    lanes: Vec<Lane>,
    /// Period and columns of each mean.
    means: Vec<(usize, Vec<usize>)>,
    /// Period of each window with bands around it; their multipliers and first columns.
    bands: Vec<(usize, Vec<(f64, usize)>)>,
    /// Which series the lanes take, by their numbers.
    needed: [bool; Source::COUNT],
    /// Candles until the last lane is seeded.
    seeded_at: u64,
}

/// A recurrence, and where its value goes as it is: beyond all columns where it does not.
#[derive(Debug)]
struct Lane {
    spec: LaneSpec,
    column: usize,
}

/// What changes from candle to candle, but for the indicators with machines of their own.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct States {
    seen: u64,
    before: Before,
    /// By the lanes of the plan: the recurrence's value, or the sum that its seed has so far.
    lanes: Vec<f64>,
    followers: Vec<Follower>,
    means: Vec<Mean>,
    dispersions: Vec<Dispersion>,
}

impl Default for States {
    fn default() -> Self {
        Self {
            seen: 0,
            before: Before::NONE,
            lanes: Vec::new(),
            followers: Vec::new(),
            means: Vec::new(),
            dispersions: Vec::new(),
        }
    }
}

impl Machines {
    /// Starts before the first candle.
    pub fn new(specs: &[Spec]) -> Self {
        let layout = Layout::of(specs);
        let states = States {
            lanes: vec![0.0; layout.lanes.len()],
            followers: layout.plan.followers.clone(),
            means: layout.means.iter().map(|(period, _)| Mean::new(*period)).collect(),
            dispersions: layout.bands.iter().map(|(period, _)| Dispersion::new(*period)).collect(),
            ..States::default()
        };
        let machines = layout.plan.machines.iter().map(|(spec, _)| Machine::new(spec)).collect();
        Self { layout: Arc::new(layout), states, machines }
    }

    /// Takes the next candle and writes the values at it; `out` has one place per output of the specs.
    pub fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Self { layout, states, machines } = self;
        let Layout { plan, lanes, means, bands, .. } = &**layout;
        // What takes longest to answer is begun first and asked for last, so that the rest is done meanwhile.
        states.dispersions.iter_mut().for_each(|window| window.take(row.close));
        states.means.iter_mut().for_each(|window| window.take(row.close));

        let series = Source::all(row, &states.before, layout.needed);
        if row.day != states.before.day {
            let daily = states.lanes.iter_mut().zip(lanes).filter(|(_, lane)| lane.spec.daily);
            daily.for_each(|(value, _)| *value = 0.0);
        }
        let seen = states.seen;
        if seen >= layout.seeded_at {
            for (value, lane) in states.lanes.iter_mut().zip(lanes) {
                let LaneSpec { shape, source, .. } = &lane.spec;
                *value = shape.carry * *value + shape.gain * series[*source as usize];
                lane.show(*value, out);
            }
            plan.finish(seen, &mut states.followers, |lane| states.lanes[lane], out);
        } else {
            let is_seeded = |lane: &Lane| seen + 1 >= lane.spec.seeded_at() as u64;
            for (value, lane) in states.lanes.iter_mut().zip(lanes) {
                *value = seed(&lane.spec, seen, *value, series[lane.spec.source as usize]);
                lane.show(if is_seeded(lane) { *value } else { f64::NAN }, out);
            }
            let value = |lane| if is_seeded(&lanes[lane]) { states.lanes[lane] } else { f64::NAN };
            plan.finish(seen, &mut states.followers, value, out);
        }
        for &column in &plan.true_ranges {
            out[column] = series[Source::TrueRange as usize];
        }
        for (machine, (spec, column)) in machines.iter_mut().zip(&plan.machines) {
            machine.push(row, &mut out[*column..column + spec.outputs().len()]);
        }
        states.seen += 1;
        states.before = Before::of(row);

        for (window, (_, columns)) in states.means.iter().zip(means) {
            let value = window.answer().unwrap_or(f64::NAN);
            columns.iter().for_each(|column| out[*column] = value);
        }
        for (window, (_, bands)) in states.dispersions.iter().zip(bands) {
            let moments = window.answer();
            for &(multiplier, column) in bands {
                let values = moments.map(|of| formula::bands(of.mean, of.variance, multiplier));
                let values = values.map(|of| [of.upper, of.middle, of.lower, of.width, of.width_normalized]);
                out[column..column + 5].copy_from_slice(&values.unwrap_or([f64::NAN; 5]));
            }
        }
    }

    /// Returns the number of candles taken so far.
    pub fn seen(&self) -> u64 {
        self.states.seen
    }

    /// Returns how many outputs all specs have together.
    pub fn columns(&self) -> usize {
        self.layout.plan.columns
    }

    /// Returns how many bytes are held, about; with what clones share.
    pub fn size_bytes(&self) -> usize {
        let States { lanes, followers, means, dispersions, .. } = &self.states;
        let windows = means.iter().map(Mean::heap_bytes).chain(dispersions.iter().map(Dispersion::heap_bytes));
        // Windows of machines of their own count as full, as they fill up.
        let machine = |(machine, (spec, _)): (&Machine, &(Spec, usize))| {
            let missing = spec.lookback().saturating_sub(usize::try_from(machine.seen()).unwrap_or(usize::MAX));
            size_of::<Machine>() + machine.save().len() + missing * size_of::<(usize, f64)>()
        };
        size_of::<Self>()
            + self.layout.size_bytes()
            + size_of_val(&**lanes)
            + size_of_val(&**followers)
            + size_of_val(&**means)
            + size_of_val(&**dispersions)
            + windows.sum::<usize>()
            + self.machines.iter().zip(&self.layout.plan.machines).map(machine).sum::<usize>()
    }

    /// Returns the states as bytes, from which [`Machines::restore`] goes on to the bit, in this build of the kernels.
    pub fn save(&self) -> Vec<u8> {
        let machines: Vec<Vec<u8>> = self.machines.iter().map(Machine::save).collect();
        // Into memory, of types that are plain data: nothing can fail.
        postcard::to_allocvec(&(&self.states, machines)).unwrap_or_default()
    }

    /// Takes up states saved with the same specs by the same build; both, and that the bytes are whole, are for the caller to make
    /// sure of: beyond their form only how many states there are is compared.
    ///
    /// Errors: bytes that are not states of these indicators.
    pub fn restore(specs: &[Spec], bytes: &[u8]) -> Result<Self, Error> {
        let refused = || Error::State { spec: specs.iter().map(Spec::to_string).collect::<Vec<_>>().join(" ") };
        let (states, machines): (States, Vec<Vec<u8>>) = postcard::from_bytes(bytes).map_err(|_| refused())?;
        let mut restored = Self::new(specs);
        if states.counts() != restored.states.counts() || machines.len() != restored.machines.len() {
            return Err(refused());
        }
        restored.states = states;
        for ((machine, (spec, _)), bytes) in
            restored.machines.iter_mut().zip(&restored.layout.plan.machines).zip(machines)
        {
            *machine = Machine::restore(spec, &bytes)?;
        }
        Ok(restored)
    }
}

/// The value of a lane after a row that may be before the end of its seed.
fn seed(lane: &LaneSpec, row: u64, value: f64, x: f64) -> f64 {
    let Some(taken) = row.checked_sub(lane.start as u64) else { return value };
    let mut smooth = Smooth { shape: lane.shape, seen: lane.shape.count.min(taken as usize), value };
    smooth.push(x);
    smooth.value
}

impl Lane {
    #[inline(always)]
    fn show(&self, value: f64, out: &mut [f64]) {
        if let Some(place) = out.get_mut(self.column) {
            *place = value;
        }
    }
}

impl Layout {
    fn of(specs: &[Spec]) -> Self {
        let mut layout = Self::default();
        for spec in specs {
            let column = layout.plan.columns;
            match spec.kind() {
                Some(Kind::Sma { period }) => share(&mut layout.means, period, column),
                Some(Kind::Bands { period, multiplier }) => share(&mut layout.bands, period, (multiplier, column)),
                Some(Kind::Stochastic { .. }) | None => layout.plan.machines.push((spec.clone(), column)),
                Some(kind) => layout.plan.add(kind, column),
            }
            layout.plan.columns += spec.outputs().len();
        }
        layout.plan.sort_lanes();
        let Self { plan, lanes, needed, .. } = &mut layout;
        *lanes = std::mem::take(&mut plan.lanes).into_iter().map(|spec| Lane { spec, column: usize::MAX }).collect();
        lanes.iter().for_each(|lane| needed[lane.spec.source as usize] = true);
        plan.steps.retain(|step| match *step {
            Step::Copy { lane, column } if lanes[lane].column == usize::MAX => {
                lanes[lane].column = column;
                false
            }
            _ => true,
        });
        layout.seeded_at = layout.lanes.last().map_or(0, |lane| lane.spec.seeded_at() as u64);
        layout
    }
}

impl Layout {
    fn size_bytes(&self) -> usize {
        let Self { plan, lanes, means, bands, .. } = self;
        let columns = means.iter().map(|(_, columns)| size_of_val(&**columns)).sum::<usize>();
        let multipliers = bands.iter().map(|(_, bands)| size_of_val(&**bands)).sum::<usize>();
        let plan = size_of_val(&*plan.steps) + size_of_val(&*plan.machines);
        let windows = size_of_val(&**means) + size_of_val(&**bands) + columns + multipliers;
        size_of::<Self>() + size_of_val(&**lanes) + plan + windows
    }
}

/// Adds what is made of a window of some period to what others make of it.
fn share<T>(windows: &mut Vec<(usize, Vec<T>)>, period: usize, of: T) {
    match windows.iter_mut().find(|(known, _)| *known == period) {
        Some((_, all)) => all.push(of),
        None => windows.push((period, vec![of])),
    }
}

impl States {
    fn counts(&self) -> [usize; 4] {
        [self.lanes.len(), self.followers.len(), self.means.len(), self.dispersions.len()]
    }
}

impl Plan {
    /// Writes what is made of the lanes at a row.
    #[inline(always)]
    fn finish(&self, row: u64, followers: &mut [Follower], lane: impl Fn(usize) -> f64, out: &mut [f64]) {
        for step in &self.steps {
            match *step {
                Step::Copy { lane: of, column } => out[column] = lane(of),
                Step::Rsi { gain, loss, profile, column } => {
                    out[column] = match profile {
                        Profile::TaLib => formula::relative_strength(lane(gain), lane(loss)),
                        Profile::TradingView => formula::relative_strength_or_full(lane(gain), lane(loss)),
                    };
                }
                Step::Vwap { turnover, volume, column } => {
                    out[column] = formula::weighted_price(lane(turnover), lane(volume));
                }
                Step::Directional { movement, range, undefined, column } => {
                    let value = formula::directional(lane(movement), lane(range));
                    out[column] = if row < undefined as u64 { f64::NAN } else { value };
                }
            }
        }
        for follower in followers {
            match follower {
                Follower::Adx { plus, minus, range, undefined, mean, column } => {
                    let index = formula::directional_index(lane(*plus), lane(*minus), lane(*range));
                    let mean = if row < *undefined as u64 { None } else { mean.push(index) };
                    out[*column] = mean.unwrap_or(f64::NAN);
                }
                Follower::Macd { fast, slow, signal, undefined, column } => {
                    let line = lane(*fast) - lane(*slow);
                    let mean = if line.is_nan() { None } else { signal.push(line) };
                    let mean = mean.unwrap_or(f64::NAN);
                    let shown = if row < *undefined as u64 { f64::NAN } else { line };
                    out[*column..*column + 3].copy_from_slice(&[shown, mean, line - mean]);
                }
            }
        }
    }
}

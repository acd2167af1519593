//! What engine V2 does for a set of specs, with everything shared that can be.

use serde::{Deserialize, Serialize};

use super::lanes::LaneSpec;
use super::profile::Profile;
use super::smooth::{DirectionMean, Shape, Smooth};
use super::source::Source;
use super::spec::{Kind, Spec};

/// What a call has to do. Lanes are named by their place in the order of their seeds, columns by their index.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    pub(super) lanes: Vec<LaneSpec>,
    pub(super) steps: Vec<Step>,
    pub(super) followers: Vec<Follower>,
    pub(super) windows: Vec<Window>,
    /// Columns that are the true range itself.
    pub(super) true_ranges: Vec<usize>,
    /// Indicators without a form of their own for columns.
    pub(super) machines: Vec<(Spec, usize)>,
    pub(super) columns: usize,
}

/// Turns lanes into output columns.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Copy { lane: usize, column: usize },
    Rsi { gain: usize, loss: usize, profile: Profile, column: usize },
    Vwap { turnover: usize, volume: usize, column: usize },
    Directional { movement: usize, range: usize, undefined: usize, column: usize },
}

/// Turns lanes into output columns and remembers something of its own from row to row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Follower {
    Adx { plus: usize, minus: usize, range: usize, undefined: usize, mean: DirectionMean, column: usize },
    Macd { fast: usize, slow: usize, signal: Smooth, undefined: usize, column: usize },
}

/// Indicators whose value depends on the last rows only.
#[derive(Debug, Clone)]
pub(super) enum Window {
    Sma { period: usize, column: usize },
    Bands { period: usize, multiplier: f64, column: usize },
    Stochastic { window: usize, k_smoothing: usize, d_smoothing: usize, column: usize },
}

impl Plan {
    pub(super) fn of(specs: &[Spec]) -> Self {
        let mut plan = Self::default();
        for spec in specs {
            match spec.kind() {
                Some(kind) => plan.add(kind, plan.columns),
                None => plan.machines.push((spec.clone(), plan.columns)),
            }
            plan.columns += spec.outputs().len();
        }
        plan.sort_lanes();
        plan
    }

    pub(super) fn add(&mut self, kind: Kind, column: usize) {
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
            Kind::Rsi { period, profile } => {
                let gain = self.lane(Source::Gain, 1, Shape::wilder_mean(period));
                let loss = self.lane(Source::Loss, 1, Shape::wilder_mean(period));
                self.steps.push(Step::Rsi { gain, loss, profile, column });
            }
            Kind::Atr { period, profile } => {
                let (source, start) = match profile {
                    Profile::TaLib => (Source::TrueRange, 1),
                    Profile::TradingView => (Source::RangeFromFirst, 0),
                };
                let lane = self.lane(source, start, Shape::wilder_mean(period));
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
            Kind::Macd { fast, slow, signal, profile } => {
                let (start, undefined) = match profile {
                    Profile::TaLib => (slow - fast, slow + signal - 2),
                    Profile::TradingView => (0, 0),
                };
                let signal = Smooth::new(Shape::exponential(signal));
                let fast = self.lane(Source::Close, start, Shape::exponential(fast));
                let slow = self.lane(Source::Close, 0, Shape::exponential(slow));
                self.followers.push(Follower::Macd { fast, slow, signal, undefined, column });
            }
            Kind::PlusDi { period } => self.directional(Source::PlusMovement, period, column),
            Kind::MinusDi { period } => self.directional(Source::MinusMovement, period, column),
            Kind::Adx { period } => {
                let shape = Shape::wilder_sum(period);
                let plus = self.lane(Source::PlusMovement, 1, shape);
                let minus = self.lane(Source::MinusMovement, 1, shape);
                let range = self.lane(Source::TrueRange, 1, shape);
                let mean = DirectionMean::new(period);
                self.followers.push(Follower::Adx { plus, minus, range, undefined: period, mean, column });
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

    /// Brings the lanes into the order of their seeds, so that those past it are always the first ones.
    pub(super) fn sort_lanes(&mut self) {
        let mut order: Vec<usize> = (0..self.lanes.len()).collect();
        order.sort_by_key(|&lane| self.lanes[lane].seeded_at());
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, &lane)| places[lane] = place);
        self.lanes = order.iter().map(|&lane| self.lanes[lane]).collect();
        let steps = self.steps.iter_mut().flat_map(Step::lanes);
        let followers = self.followers.iter_mut().flat_map(Follower::lanes);
        steps.chain(followers).for_each(|lane| *lane = places[*lane]);
    }
}

impl Step {
    fn lanes(&mut self) -> Vec<&mut usize> {
        match self {
            Self::Copy { lane, .. } => vec![lane],
            Self::Rsi { gain, loss, .. } => vec![gain, loss],
            Self::Vwap { turnover, volume, .. } => vec![turnover, volume],
            Self::Directional { movement, range, .. } => vec![movement, range],
        }
    }
}

impl Follower {
    fn lanes(&mut self) -> Vec<&mut usize> {
        match self {
            Self::Adx { plus, minus, range, .. } => vec![plus, minus, range],
            Self::Macd { fast, slow, .. } => vec![fast, slow],
        }
    }
}

impl Window {
    /// Rows before a row that its value depends on.
    pub(super) fn span(&self) -> usize {
        match *self {
            Self::Sma { period, .. } | Self::Bands { period, .. } => period - 1,
            Self::Stochastic { window, k_smoothing, d_smoothing, .. } => window + k_smoothing + d_smoothing - 3,
        }
    }

    /// Its first column, and how many it has.
    pub(super) fn columns(&self) -> (usize, usize) {
        match *self {
            Self::Sma { column, .. } => (column, 1),
            Self::Bands { column, .. } => (column, 5),
            Self::Stochastic { column, .. } => (column, 2),
        }
    }
}

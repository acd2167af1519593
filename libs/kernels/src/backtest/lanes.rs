//! Many parameter sets side by side: eight to a group, each figure an array the compiler turns into vectors.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::backtest::Strategy;
use crate::trend::Figure;

/// Parameter sets that advance together.
const LANES: usize = 8;

/// Closes whose indicator values are kept at a time: they stay in the cache while all groups pass over them.
const BLOCK: usize = 64;

/// Averages closer than this share of their value are equal.
const TIE: f64 = 1e-12;

/// All parameter sets of one call, and the distinct indicators they need.
#[derive(Debug)]
pub(super) struct Lanes {
    indicators: Vec<Figure>,
    groups: Vec<Group>,
    /// Group and lane of each strategy.
    places: Vec<(usize, usize)>,
}

/// Figures of one parameter set at the end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tally {
    pub(super) equity: f64,
    pub(super) drawdown: f64,
    /// Mean of the returns, and the sum of squares around it.
    pub(super) mean: f64,
    pub(super) squares: f64,
    pub(super) held: f64,
    pub(super) trades: f64,
    pub(super) wins: f64,
}

/// When a parameter set is long.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// While `fast` is above `slow`; each is an indicator's place in a row of values.
    Above { fast: usize, slow: usize },
    /// From `at` below `lower` until it is above `upper`.
    Between { at: usize, lower: f64, upper: f64 },
}

/// The rules of a group, lane by lane.
#[derive(Debug, Clone)]
enum Rules {
    Above { fast: [usize; LANES], slow: [usize; LANES] },
    Between { at: [usize; LANES], lower: [f64; LANES], upper: [f64; LANES] },
}

/// One close and what all lanes share of it.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Return since the close before.
    change: f64,
    /// 1 / number of returns so far.
    share: f64,
    /// Of the equity that a trade leaves.
    kept: f64,
    /// 1, or 0 at the last close, where everything is sold.
    open: f64,
}

/// Lanes of one kind of rule; those not taken follow the first. Flags are 1 or 0, so that no lane branches.
#[derive(Debug, Clone)]
struct Group {
    rules: Rules,
    position: [f64; LANES],
    equity: [f64; LANES],
    peak: [f64; LANES],
    drawdown: [f64; LANES],
    mean: [f64; LANES],
    squares: [f64; LANES],
    held: [f64; LANES],
    trades: [f64; LANES],
    wins: [f64; LANES],
    /// Equity before the entry fee of the open trade.
    entry: [f64; LANES],
}

impl Lanes {
    pub(super) fn new(strategies: &[Strategy]) -> Lanes {
        let mut lanes = Lanes { indicators: Vec::new(), groups: Vec::new(), places: Vec::new() };
        let mut known = BTreeMap::new();
        // Group being filled, and lanes taken in it: first crossovers, then reversions.
        let mut filling = [(0, LANES); 2];
        for strategy in strategies {
            let mut at = |name: &'static str, period: u32| {
                *known.entry((name, period)).or_insert_with(|| {
                    lanes.indicators.push(Figure::new(name, period));
                    lanes.indicators.len() - 1
                })
            };
            let (kind, rule) = match *strategy {
                Strategy::SmaCrossover { fast, slow } => {
                    (0, Rule::Above { fast: at("sma", fast), slow: at("sma", slow) })
                }
                Strategy::EmaCrossover { fast, slow } => {
                    (0, Rule::Above { fast: at("ema", fast), slow: at("ema", slow) })
                }
                Strategy::RsiReversion { period, lower, upper } => {
                    (1, Rule::Between { at: at("rsi", period), lower, upper })
                }
            };
            let (group, taken) = &mut filling[kind];
            if *taken == LANES {
                (*group, *taken) = (lanes.groups.len(), 0);
                lanes.groups.push(Group::new(rule));
            }
            lanes.groups[*group].rules.set(*taken, rule);
            lanes.places.push((*group, *taken));
            *taken += 1;
        }
        lanes
    }

    /// Passes over the closes up to the range's end, trading inside it. `kept` is what a trade leaves of the equity.
    pub(super) fn walk(&mut self, close: &[f64], range: Range<usize>, kept: f64) {
        let width = self.indicators.len();
        let mut values = vec![f64::NAN; BLOCK * width];
        let mut steps: Vec<Option<Step>> = Vec::with_capacity(BLOCK);
        for first in (0..range.end).step_by(BLOCK) {
            let rows = first..(first + BLOCK).min(range.end);
            steps.clear();
            for row in rows {
                let at = (row - first) * width;
                for (value, figure) in values[at..at + width].iter_mut().zip(&mut self.indicators) {
                    *value = figure.push(close[row]).unwrap_or(f64::NAN);
                }
                steps.push((row > range.start).then(|| Step {
                    change: close[row] / close[row - 1] - 1.0,
                    share: 1.0 / (row - range.start) as f64,
                    kept,
                    open: if row + 1 < range.end { 1.0 } else { 0.0 },
                }));
            }
            for group in &mut self.groups {
                for (step, values) in steps.iter().zip(values.chunks(width)) {
                    if let Some(step) = step {
                        group.advance(step, values);
                    }
                }
            }
        }
    }

    pub(super) fn tally(&self, strategy: usize) -> Tally {
        let (group, lane) = self.places[strategy];
        let group = &self.groups[group];
        Tally {
            equity: group.equity[lane],
            drawdown: group.drawdown[lane],
            mean: group.mean[lane],
            squares: group.squares[lane],
            held: group.held[lane],
            trades: group.trades[lane],
            wins: group.wins[lane],
        }
    }
}

impl Rules {
    fn all(rule: Rule) -> Rules {
        match rule {
            Rule::Above { fast, slow } => Rules::Above { fast: [fast; LANES], slow: [slow; LANES] },
            Rule::Between { at, lower, upper } => {
                Rules::Between { at: [at; LANES], lower: [lower; LANES], upper: [upper; LANES] }
            }
        }
    }

    /// Sets a lane's rule; groups hold one kind only, which [`Lanes::new`] sees to.
    fn set(&mut self, lane: usize, rule: Rule) {
        match (self, rule) {
            (Rules::Above { fast, slow }, Rule::Above { fast: a, slow: b }) => (fast[lane], slow[lane]) = (a, b),
            (Rules::Between { at, lower, upper }, Rule::Between { at: place, lower: low, upper: high }) => {
                (at[lane], lower[lane], upper[lane]) = (place, low, high);
            }
            (rules, rule) => debug_assert!(false, "{rule:?} among {rules:?}"),
        }
    }

    /// 1 for each lane that is to be long. Undefined values are NaN, for which no comparison holds: flat stays flat.
    #[inline]
    fn wanted(&self, values: &[f64], position: &[f64; LANES]) -> [f64; LANES] {
        let mut wanted = [0.0; LANES];
        match self {
            Rules::Above { fast, slow } => {
                for lane in 0..LANES {
                    let (fast, slow) = (values[fast[lane]], values[slow[lane]]);
                    wanted[lane] = if fast - slow > TIE * slow { 1.0 } else { 0.0 };
                }
            }
            Rules::Between { at, lower, upper } => {
                for lane in 0..LANES {
                    let value = values[at[lane]];
                    let kept = if value > upper[lane] { 0.0 } else { position[lane] };
                    wanted[lane] = if value < lower[lane] { 1.0 } else { kept };
                }
            }
        }
        wanted
    }
}

impl Group {
    fn new(rule: Rule) -> Group {
        let (zero, one) = ([0.0; LANES], [1.0; LANES]);
        Group {
            rules: Rules::all(rule),
            position: zero,
            equity: one,
            peak: one,
            drawdown: zero,
            mean: zero,
            squares: zero,
            held: zero,
            trades: zero,
            wins: zero,
            entry: one,
        }
    }

    fn advance(&mut self, step: &Step, values: &[f64]) {
        let wanted = self.rules.wanted(values, &self.position);
        for lane in 0..LANES {
            let held = self.position[lane];
            let wanted = wanted[lane] * step.open;
            let opened = wanted * (1.0 - held);
            let closed = held * (1.0 - wanted);
            let grown = 1.0 + held * step.change;
            let growth = if opened + closed > 0.0 { grown * step.kept } else { grown };
            let before_fee = (self.equity[lane] * grown).min(f64::MAX);
            let equity = (self.equity[lane] * growth).min(f64::MAX);

            self.wins[lane] += if equity > self.entry[lane] { closed } else { 0.0 };
            self.trades[lane] += closed;
            self.held[lane] += held;
            self.entry[lane] = if opened > 0.0 { before_fee } else { self.entry[lane] };
            self.position[lane] = wanted;
            self.equity[lane] = equity;
            self.peak[lane] = self.peak[lane].max(equity);
            self.drawdown[lane] = self.drawdown[lane].max(1.0 - equity / self.peak[lane]);

            // Welford's update.
            let from_mean = growth - 1.0 - self.mean[lane];
            self.mean[lane] += from_mean * step.share;
            self.squares[lane] += from_mean * (growth - 1.0 - self.mean[lane]);
        }
    }
}

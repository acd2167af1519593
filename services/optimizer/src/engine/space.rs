//! Parameter spaces: which combinations a strategy has, and the order in which a search tries them.

use std::collections::HashMap;

use kernels::backtest::Strategy;

/// Combinations of a grid, and draws of a random search: what one study may take.
pub(crate) const MAX_TRIALS: u64 = 100_000;
/// Values of one parameter: as many as there are periods. Also keeps the number of combinations far inside a `u64`.
pub(crate) const MAX_VALUES: u64 = 10_000;
/// Finest step; values are rounded to nine decimals, which keeps neighbours apart and makes 0.1 + 0.2 come out as 0.3.
pub(crate) const MIN_STEP: f64 = 1e-6;

/// A rule with its parameters still open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    SmaCrossover,
    EmaCrossover,
    RsiReversion,
}

/// A parameter a family has, and the values that make sense for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// Counts of candles are whole.
    pub(crate) whole: bool,
}

const CROSSOVER: [Parameter; 2] = [
    Parameter { name: "fast", min: 1.0, max: 10_000.0, whole: true },
    Parameter { name: "slow", min: 2.0, max: 10_000.0, whole: true },
];
const REVERSION: [Parameter; 3] = [
    Parameter { name: "period", min: 2.0, max: 10_000.0, whole: true },
    Parameter { name: "lower", min: 0.0, max: 100.0, whole: false },
    Parameter { name: "upper", min: 0.0, max: 100.0, whole: false },
];

impl Family {
    /// Its parameters, in the order of the grid: the first varies slowest. Of the last two the first is always the smaller.
    pub(crate) fn parameters(self) -> &'static [Parameter] {
        match self {
            Family::SmaCrossover | Family::EmaCrossover => &CROSSOVER,
            Family::RsiReversion => &REVERSION,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Family::SmaCrossover => "sma_crossover",
            Family::EmaCrossover => "ema_crossover",
            Family::RsiReversion => "rsi_reversion",
        }
    }
}

/// Values start, start + step, .. up to stop of one parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Axis {
    pub(crate) start: f64,
    pub(crate) stop: f64,
    pub(crate) step: f64,
    /// At least 1.
    pub(crate) count: u64,
}

impl Axis {
    pub(crate) fn value(&self, index: u64) -> f64 {
        (((self.start + index as f64 * self.step) * 1e9).round() / 1e9).min(self.stop)
    }

    pub(crate) fn last(&self) -> f64 {
        self.value(self.count - 1)
    }

    /// Index of the first value above `floor`, `count` where there is none.
    fn first_above(&self, floor: f64) -> u64 {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = (low + high) / 2;
            if self.value(middle) > floor { high = middle } else { low = middle + 1 }
        }
        low
    }
}

/// All combinations of a family's axes in which fast < slow, or lower < upper; the others are left out.
///
/// A combination is known by its index in grid order and is made from it, so that the space is never written out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Space {
    family: Family,
    /// One per parameter of the family, in its order.
    axes: Vec<Axis>,
    /// Ordered pairs of the last two axes before each value of the first of them, and in all.
    pairs_before: Vec<u64>,
}

impl Space {
    /// `axes` are in the order of [`Family::parameters`], as many, none longer than [`MAX_VALUES`].
    pub(crate) fn new(family: Family, axes: Vec<Axis>) -> Space {
        let (smaller, larger) = (axes[axes.len() - 2], axes[axes.len() - 1]);
        let mut pairs_before = vec![0];
        let mut pairs = 0;
        for index in 0..smaller.count {
            pairs += larger.count - larger.first_above(smaller.value(index));
            pairs_before.push(pairs);
        }
        Space { family, axes, pairs_before }
    }

    pub(crate) fn family(&self) -> Family {
        self.family
    }

    pub(crate) fn axes(&self) -> &[Axis] {
        &self.axes
    }

    /// Number of combinations.
    pub(crate) fn len(&self) -> u64 {
        let outer: u64 = self.axes[..self.axes.len() - 2].iter().map(|axis| axis.count).product();
        outer * self.pairs()
    }

    fn pairs(&self) -> u64 {
        self.pairs_before.last().copied().unwrap_or_default()
    }

    /// Values of the combination at `index` in grid order, below [`Space::len`].
    pub(crate) fn values(&self, index: u64) -> Vec<f64> {
        let (outer, pair) = (index / self.pairs(), index % self.pairs());
        let split = self.axes.len() - 2;
        let (smaller, larger) = (self.axes[split], self.axes[split + 1]);
        let row = self.pairs_before.partition_point(|before| *before <= pair) - 1;
        let low = smaller.value(row as u64);
        let high = larger.value(larger.first_above(low) + pair - self.pairs_before[row]);
        self.axes[..split].iter().map(|axis| axis.value(outer)).chain([low, high]).collect()
    }

    /// The strategy of the combination at `index`.
    pub(crate) fn strategy(&self, index: u64) -> Strategy {
        let values = self.values(index);
        match self.family {
            Family::SmaCrossover => Strategy::SmaCrossover { fast: values[0] as u32, slow: values[1] as u32 },
            Family::EmaCrossover => Strategy::EmaCrossover { fast: values[0] as u32, slow: values[1] as u32 },
            Family::RsiReversion => {
                Strategy::RsiReversion { period: values[0] as u32, lower: values[1], upper: values[2] }
            }
        }
    }

    /// Most candles any indicator of the space looks over.
    pub(crate) fn largest_period(&self) -> usize {
        let axis = match self.family {
            Family::SmaCrossover | Family::EmaCrossover => self.axes[1],
            Family::RsiReversion => self.axes[0],
        };
        axis.last() as usize
    }
}

/// How a space is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Search {
    Grid,
    Random { budget: u32, seed: u64 },
}

impl Search {
    /// Trials over a space: a random search ends early where the space is smaller than its budget.
    pub(crate) fn trials(self, space: &Space) -> u64 {
        match self {
            Search::Grid => space.len(),
            Search::Random { budget, .. } => space.len().min(u64::from(budget)),
        }
    }

    /// Index into the space of each trial, by trial number.
    ///
    /// A random order is the beginning of the seed's permutation of the space: no repetition, and a larger budget continues a smaller
    /// one. It depends on space and seed alone, in every version, so that a study can be resumed.
    pub(crate) fn order(self, space: &Space) -> Vec<u64> {
        let trials = self.trials(space);
        let Search::Random { seed, .. } = self else {
            return (0..trials).collect();
        };
        // Fisher and Yates over 0..len, of which only the places that were swapped are held.
        let mut random = SplitMix(seed);
        let mut moved: HashMap<u64, u64> = HashMap::new();
        let mut order = Vec::with_capacity(trials as usize);
        for place in 0..trials {
            let other = place + random.below(space.len() - place);
            let here = moved.get(&place).copied().unwrap_or(place);
            order.push(moved.insert(other, here).unwrap_or(other));
        }
        order
    }
}

/// Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014. Its few lines are here because a library's generator
/// may change with its version, and stored studies must not.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in 0..limit; draws that would favour small values are thrown away.
    fn below(&mut self, limit: u64) -> u64 {
        let unfair = u64::MAX - (u64::MAX % limit + 1) % limit;
        loop {
            let drawn = self.next();
            if drawn <= unfair {
                return drawn % limit;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn axis(start: f64, step: f64, count: u64) -> Axis {
        Axis { start, stop: 10_000.0, step, count }
    }

    #[test]
    fn a_grid_is_every_ordered_combination_in_order() {
        let space = Space::new(Family::SmaCrossover, vec![axis(2.0, 3.0, 4), axis(4.0, 2.0, 3)]);
        let mut naive = Vec::new();
        for fast in [2.0, 5.0, 8.0, 11.0] {
            for slow in [4.0, 6.0, 8.0] {
                if fast < slow {
                    naive.push(vec![fast, slow]);
                }
            }
        }
        let all: Vec<_> = Search::Grid.order(&space).into_iter().map(|index| space.values(index)).collect();
        assert_eq!(all, naive);
        assert_eq!(space.strategy(3), Strategy::SmaCrossover { fast: 5, slow: 6 });
        assert_eq!(space.largest_period(), 8);
    }

    #[test]
    fn a_reversion_grid_varies_the_period_slowest() {
        let space = Space::new(Family::RsiReversion, vec![axis(7.0, 7.0, 2), axis(20.0, 0.1, 3), axis(20.1, 0.1, 2)]);
        let all: Vec<_> = (0..space.len()).map(|index| space.values(index)).collect();
        let pairs = [[20.0, 20.1], [20.0, 20.2], [20.1, 20.2]];
        let naive: Vec<Vec<f64>> =
            [7.0, 14.0].iter().flat_map(|period| pairs.map(|[low, high]| vec![*period, low, high])).collect();
        assert_eq!(all, naive, "and values are the decimals they were meant to be");
        assert_eq!(space.largest_period(), 14);
    }

    #[test]
    fn nothing_is_left_where_no_pair_is_ordered() {
        let space = Space::new(Family::EmaCrossover, vec![axis(30.0, 1.0, 5), axis(10.0, 1.0, 5)]);
        assert_eq!(space.len(), 0);
    }

    #[test]
    fn a_random_search_is_seeded_and_repeats_nothing() {
        let space = Space::new(Family::SmaCrossover, vec![axis(1.0, 1.0, 40), axis(2.0, 1.0, 40)]);
        let order = |budget, seed| Search::Random { budget, seed }.order(&space);
        let whole = order(100_000, 7);
        assert_eq!(whole.iter().collect::<HashSet<_>>().len() as u64, space.len());
        assert_eq!(whole.len() as u64, space.len());
        assert_eq!(order(50, 7), whole[..50]);
        assert_ne!(order(50, 8), whole[..50]);
        assert_ne!(whole, (0..space.len()).collect::<Vec<_>>());
    }

    #[test]
    fn the_largest_space_is_searched_without_writing_it_out() {
        let wide = axis(0.0, 0.009, MAX_VALUES);
        let space = Space::new(Family::RsiReversion, vec![axis(2.0, 1.0, 9_999), wide, wide]);
        assert_eq!(space.len(), 9_999 * (MAX_VALUES * (MAX_VALUES - 1) / 2));
        let order = Search::Random { budget: 1000, seed: 1 }.order(&space);
        assert!(order.iter().all(|index| space.strategy(*index).check().is_ok()));
        assert!(space.strategy(space.len() - 1).check().is_ok());
    }

    /// The generator's published first values for the seed 1234567 (Rosetta Code, Pseudo-random numbers/Splitmix64).
    #[test]
    fn the_generator_is_the_published_one() {
        let mut random = SplitMix(1_234_567);
        let drawn: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn draws_are_spread_evenly() {
        let mut random = SplitMix(3);
        let mut counts = [0_u32; 6];
        (0..60_000).for_each(|_| counts[random.below(6) as usize] += 1);
        // Five standard deviations of a fair die: 5 * sqrt(60000 * 1/6 * 5/6) = 456.
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 456), "{counts:?}");
    }
}

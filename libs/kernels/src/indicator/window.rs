//! Moving windows, one row at a time.
//!
//! Sums and dispersions over n rows are put together from blocks of 1, 2, 4, ... rows, each block from two of half its length. So the
//! value is a function of the rows in the window alone: nothing drifts with the length of the history, and rounding grows with log n,
//! not with n. [`super::columns`] does the same additions in the same order on whole columns.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Dispersion of a block of rows around its own mean.
///
/// `sum` is taken relative to the block's first row and `squares` around the block's mean, so no large numbers cancel: a relative error
/// of a few 1e-16 times the square root of n at any price level, and exactly 0 for equal rows.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Block {
    pub(super) sum: f64,
    pub(super) squares: f64,
}

impl Block {
    /// Two rows, the second one `step` above the first.
    #[inline(always)]
    pub(super) fn of_two(step: f64) -> Self {
        Self { sum: step, squares: step * step * 0.5 }
    }
}

/// Row counts of two adjacent blocks to be joined, as the formula needs them.
///
/// Source: Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.
#[derive(Debug, Clone, Copy)]
pub(super) struct Join {
    old: f64,
    new: f64,
    weight: f64,
}

impl Join {
    pub(super) fn new(old: usize, new: usize) -> Self {
        let (old, new) = (old as f64, new as f64);
        Self { old, new, weight: 1.0 / (old * new * (old + new)) }
    }

    /// Joins the blocks; `step` is the newer block's first row minus the older one's.
    #[inline(always)]
    pub(super) fn of(self, old: Block, new: Block, step: f64) -> Block {
        let moved = self.new * step + new.sum;
        let apart = self.old * moved - self.new * old.sum;
        Block { sum: old.sum + moved, squares: old.squares + new.squares + apart * apart * self.weight }
    }
}

/// [`Join`] of two blocks of one length, where it is shorter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Doubling {
    length: f64,
    weight: f64,
}

impl Doubling {
    pub(super) fn new(length: usize) -> Self {
        Self { length: length as f64, weight: 0.5 / length as f64 }
    }

    #[inline(always)]
    pub(super) fn of(self, old: Block, new: Block, step: f64) -> Block {
        let moved = self.length * step + new.sum;
        let apart = moved - old.sum;
        Block { sum: old.sum + moved, squares: old.squares + new.squares + apart * apart * self.weight }
    }
}

/// Ring of the last values of one series.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ring<T> {
    values: Vec<T>,
}

impl<T: Copy + Default> Ring<T> {
    fn new(length: usize) -> Self {
        Self { values: vec![T::default(); length.next_power_of_two()] }
    }

    fn set(&mut self, row: usize, value: T) {
        let mask = self.values.len() - 1;
        self.values[row & mask] = value;
    }

    fn get(&self, row: usize) -> T {
        self.values[row & (self.values.len() - 1)]
    }
}

/// Mean of the last `period` inputs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Mean {
    period: usize,
    row: usize,
    /// Per block length 1, 2, 4, ...: sums by their last row.
    levels: Vec<Ring<f64>>,
}

impl Mean {
    pub(super) fn new(period: usize) -> Self {
        Self { period, row: 0, levels: rings(period) }
    }

    pub(super) fn push(&mut self, x: f64) -> Option<f64> {
        let row = self.row;
        self.row += 1;
        let mut sum = x;
        self.levels[0].set(row, sum);
        for level in 1..self.levels.len() {
            // Rows before the first read as 0; no complete window looks at a block that contains them.
            sum += self.levels[level - 1].get(row.wrapping_sub(1 << (level - 1)));
            self.levels[level].set(row, sum);
        }
        if row + 1 < self.period {
            return None;
        }
        let mut total = None;
        let mut covered = 0;
        for (level, block) in self.levels.iter().enumerate().filter(|(level, _)| self.period >> level & 1 == 1) {
            covered += 1 << level;
            let sum = block.get(row - (self.period - covered));
            total = Some(total.map_or(sum, |total: f64| total + sum));
        }
        total.map(|total| total / self.period as f64)
    }
}

/// Mean and population variance of the last `period` inputs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Dispersion {
    period: usize,
    row: usize,
    rows: Ring<f64>,
    levels: Vec<Ring<Block>>,
}

/// What [`Dispersion`] answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Moments {
    pub(super) mean: f64,
    pub(super) variance: f64,
}

impl Dispersion {
    pub(super) fn new(period: usize) -> Self {
        Self { period, row: 0, rows: Ring::new(period), levels: rings(period) }
    }

    pub(super) fn push(&mut self, x: f64) -> Option<Moments> {
        let row = self.row;
        self.row += 1;
        self.rows.set(row, x);
        let mut block = Block::default();
        self.levels[0].set(row, block);
        for level in 1..self.levels.len() {
            let half = 1 << (level - 1);
            let old = self.levels[level - 1].get(row.wrapping_sub(half));
            let step = self.rows.get((row + 1).wrapping_sub(half)) - self.rows.get((row + 1).wrapping_sub(2 * half));
            block = if half == 1 { Block::of_two(step) } else { Doubling::new(half).of(old, block, step) };
            self.levels[level].set(row, block);
        }
        if row + 1 < self.period {
            return None;
        }
        let first = row + 1 - self.period;
        let origin = self.rows.get(first);
        let mut total: Option<Block> = None;
        let mut covered = 0;
        for (level, ring) in self.levels.iter().enumerate().filter(|(level, _)| self.period >> level & 1 == 1) {
            let length = 1 << level;
            let block = ring.get(first + covered + length - 1);
            let step = self.rows.get(first + covered) - origin;
            total = Some(total.map_or(block, |total| Join::new(covered, length).of(total, block, step)));
            covered += length;
        }
        let share = 1.0 / self.period as f64;
        total.map(|total| Moments { mean: origin + total.sum * share, variance: total.squares * share })
    }
}

/// A ring per block length, as long as it is looked back into: to the block before, and where a window holds a block of the length, to
/// its end. The longest are read at their newest, the shortest ones at the window's beginning.
fn rings<T: Copy + Default>(period: usize) -> Vec<Ring<T>> {
    let reach = |level: usize| {
        let through = period & ((2 << level) - 1);
        let window = if period >> level & 1 == 1 { period - through } else { 0 };
        window.max(1 << level)
    };
    (0..=period.ilog2() as usize).map(|level| Ring::new(reach(level) + 1)).collect()
}

/// Highest and lowest of the last `period` rows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Range {
    period: usize,
    row: usize,
    /// Rows that can still become the highest, falling from the front; likewise the lowest, rising.
    highs: VecDeque<(usize, f64)>,
    lows: VecDeque<(usize, f64)>,
}

/// What [`Range`] answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Extremes {
    pub(super) highest: f64,
    pub(super) lowest: f64,
}

impl Range {
    pub(super) fn new(period: usize) -> Self {
        Self { period, row: 0, highs: VecDeque::new(), lows: VecDeque::new() }
    }

    pub(super) fn push(&mut self, high: f64, low: f64) -> Option<Extremes> {
        let row = self.row;
        self.row += 1;
        while self.highs.back().is_some_and(|&(_, value)| value <= high) {
            self.highs.pop_back();
        }
        while self.lows.back().is_some_and(|&(_, value)| value >= low) {
            self.lows.pop_back();
        }
        self.highs.push_back((row, high));
        self.lows.push_back((row, low));
        for side in [&mut self.highs, &mut self.lows] {
            if side.front().is_some_and(|&(entered, _)| entered + self.period <= row) {
                side.pop_front();
            }
        }
        let (&(_, highest), &(_, lowest)) = (self.highs.front()?, self.lows.front()?);
        (self.row >= self.period).then_some(Extremes { highest, lowest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(n: usize) -> Vec<f64> {
        (0..n).map(|i| 15_000.0 + ((i * 7919) % 101) as f64 * 0.05).collect()
    }

    #[test]
    fn mean_and_variance_are_those_of_two_passes() {
        let x = series(300);
        for period in 1..=70 {
            let (mut mean, mut dispersion) = (Mean::new(period), Dispersion::new(period));
            for (i, &value) in x.iter().enumerate() {
                let (got_mean, got) = (mean.push(value), dispersion.push(value));
                if i + 1 < period {
                    assert_eq!((got_mean, got), (None, None));
                    continue;
                }
                let window = &x[i + 1 - period..=i];
                // Relative to a round price, so that the check itself does not cancel.
                let centre = window.iter().map(|v| v - 15_000.0).sum::<f64>() / period as f64;
                let variance = window.iter().map(|v| (v - 15_000.0 - centre).powi(2)).sum::<f64>() / period as f64;
                let got = got.unwrap();
                assert!((got_mean.unwrap() - 15_000.0 - centre).abs() < 1e-11);
                assert!((got.mean - 15_000.0 - centre).abs() < 1e-11);
                assert!((got.variance - variance).abs() <= 1e-11 * variance, "{period} {i} {got:?} {variance}");
            }
        }
    }

    #[test]
    fn equal_rows_have_no_variance_at_all() {
        for period in [2, 7, 20, 31, 100] {
            let mut dispersion = Dispersion::new(period);
            let last = (0..300).filter_map(|_| dispersion.push(15_123.45)).last();
            assert_eq!(last, Some(Moments { mean: 15_123.45, variance: 0.0 }));
        }
    }

    #[test]
    fn range_is_that_of_a_scan() {
        let x = series(200);
        let mut range = Range::new(14);
        for i in 0..x.len() {
            let got = range.push(x[i] + 1.0, x[i] - 1.0);
            let wanted = (i >= 13).then(|| {
                let window = &x[i - 13..=i];
                let highest = window.iter().fold(f64::MIN, |a, &b| a.max(b + 1.0));
                Extremes { highest, lowest: window.iter().fold(f64::MAX, |a, &b| a.min(b - 1.0)) }
            });
            assert_eq!(got, wanted);
        }
    }
}

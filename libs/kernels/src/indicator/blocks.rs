//! Moving windows put together from blocks of 1, 2, 4, ... rows, whatever is wanted of the rows.
//!
//! What a window answers is a function of its rows alone, and takes log(period) steps per row. Figures are kept relative to the first
//! row of their block, so no large numbers cancel, and equal rows have no slope and no dispersion at all.

use std::mem;

use serde::{Deserialize, Serialize};

/// Figures of adjacent rows that can be had from those of an older and a newer part.
pub(super) trait Block: Copy + Default {
    /// Joins `self`, the figures of `older` rows, to those of the `newer` rows after them.
    fn join(self, next: Self, older: f64, newer: f64) -> Self;
}

/// The last `period` rows, as one block.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Blocks<B> {
    period: usize,
    row: usize,
    /// Per block length 1, 2, 4, ...: as many last blocks as the length, by their last row.
    levels: Vec<Vec<B>>,
}

impl<B: Block> Blocks<B> {
    pub(super) fn new(period: usize) -> Self {
        let levels = (0..=period.ilog2()).map(|level| vec![B::default(); 1 << level]).collect();
        Self { period, row: 0, levels }
    }

    /// Takes the figures of the next row alone; answers once the window is full.
    pub(super) fn push(&mut self, one: B) -> Option<B> {
        let row = self.row;
        self.row += 1;
        let mut block = one;
        for (level, ring) in self.levels.iter_mut().enumerate() {
            let length = 1 << level;
            // The block that ended `length` rows ago. Before the first row it is made up; no complete window looks at what it goes into.
            let before = mem::replace(&mut ring[row & (length - 1)], block);
            if self.period > length {
                block = before.join(block, length as f64, length as f64);
            }
        }
        if self.row < self.period {
            return None;
        }
        // From the oldest rows, in the longest block, to the newest.
        let mut window: Option<B> = None;
        let mut covered = 0;
        for (level, ring) in self.levels.iter().enumerate().rev().filter(|(level, _)| self.period >> level & 1 == 1) {
            let length = 1 << level;
            let block = ring[(row - (self.period - covered - length)) & (length - 1)];
            window = Some(window.map_or(block, |window| window.join(block, covered as f64, length as f64)));
            covered += length;
        }
        window
    }
}

/// What lines through equally spaced values need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) first: f64,
    /// Of the values, relative to the first.
    pub(super) sum: f64,
    /// Sum of the values times their places, 0, 1, 2, ..., relative to the place in the middle.
    pub(super) tilt: f64,
}

impl Line {
    pub(super) fn one(first: f64) -> Self {
        Self { first, sum: 0.0, tilt: 0.0 }
    }
}

impl Block for Line {
    #[inline]
    fn join(self, next: Self, older: f64, newer: f64) -> Self {
        let moved = newer * (next.first - self.first) + next.sum;
        let apart = older * moved - newer * self.sum;
        Self { first: self.first, sum: self.sum + moved, tilt: self.tilt + next.tilt + 0.5 * apart }
    }
}

/// How two series vary, each and together: sums of products of distances from the means.
///
/// Source: Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Pair {
    first: [f64; 2],
    sum: [f64; 2],
    pub(super) squares: [f64; 2],
    pub(super) products: f64,
}

impl Pair {
    pub(super) fn one(x: f64, y: f64) -> Self {
        Self { first: [x, y], ..Self::default() }
    }
}

impl Block for Pair {
    #[inline]
    fn join(self, next: Self, older: f64, newer: f64) -> Self {
        let moved: [f64; 2] = std::array::from_fn(|of| newer * (next.first[of] - self.first[of]) + next.sum[of]);
        let apart: [f64; 2] = std::array::from_fn(|of| older * moved[of] - newer * self.sum[of]);
        let weight = 1.0 / (older * newer * (older + newer));
        Self {
            first: self.first,
            sum: std::array::from_fn(|of| self.sum[of] + moved[of]),
            squares: std::array::from_fn(|of| self.squares[of] + next.squares[of] + apart[of] * apart[of] * weight),
            products: self.products + next.products + apart[0] * apart[1] * weight,
        }
    }
}

/// Values and their weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Weighted {
    pub(super) first: f64,
    pub(super) weight: f64,
    /// Sum of the values, relative to the first, times their weights.
    pub(super) sum: f64,
}

impl Weighted {
    pub(super) fn one(first: f64, weight: f64) -> Self {
        Self { first, weight, sum: 0.0 }
    }
}

impl Block for Weighted {
    #[inline]
    fn join(self, next: Self, _: f64, _: f64) -> Self {
        let moved = (next.first - self.first) * next.weight + next.sum;
        Self { first: self.first, weight: self.weight + next.weight, sum: self.sum + moved }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distances from 15 000, so that the checks themselves do not cancel.
    fn series(rows: usize, step: usize) -> Vec<f64> {
        (0..rows).map(|row| ((row * step) % 101) as f64 * 0.05).collect()
    }

    fn near(got: f64, wanted: f64, scale: f64) {
        assert!((got - wanted).abs() <= 1e-11 * scale.abs().max(1e-3), "{got} and {wanted}");
    }

    #[test]
    fn windows_of_every_length_are_those_of_two_passes() {
        let (x, y) = (series(300, 7919), series(300, 31));
        for period in 1..=70 {
            let mut lines = Blocks::new(period);
            let mut pairs = Blocks::new(period);
            let mut weights = Blocks::new(period);
            for row in 0..x.len() {
                let line = lines.push(Line::one(15_000.0 + x[row]));
                let pair = pairs.push(Pair::one(15_000.0 + x[row], 15_000.0 - y[row]));
                let weighted = weights.push(Weighted::one(15_000.0 + x[row], y[row]));
                assert_eq!(line.is_some(), row + 1 >= period);
                let (Some(line), Some(pair), Some(weighted)) = (line, pair, weighted) else { continue };
                let n = period as f64;
                let (x, y) = (&x[row + 1 - period..=row], &y[row + 1 - period..=row]);
                let mean = |of: &[f64]| of.iter().sum::<f64>() / n;
                let (mean_x, mean_y) = (mean(x), mean(y));
                let sum = |of: &dyn Fn(usize) -> f64| (0..period).map(of).sum::<f64>();
                near(line.first + line.sum / n - 15_000.0, mean_x, 1.0);
                near(line.tilt, sum(&|i| (i as f64 - (n - 1.0) / 2.0) * (x[i] - mean_x)), n * n);
                let squares = [sum(&|i| (x[i] - mean_x).powi(2)), sum(&|i| (y[i] - mean_y).powi(2))];
                near(pair.squares[0], squares[0], squares[0]);
                near(pair.squares[1], squares[1], squares[1]);
                near(pair.products, -sum(&|i| (x[i] - mean_x) * (y[i] - mean_y)), squares[0].max(squares[1]));
                near(weighted.weight, sum(&|i| y[i]), n);
                near(weighted.sum, sum(&|i| (x[i] - x[0]) * y[i]), n);
            }
        }
    }

    #[test]
    fn what_a_window_answers_does_not_depend_on_the_rows_before_it() {
        let values = series(400, 7919);
        for period in [1, 2, 3, 14, 63, 64, 100] {
            let mut long = Blocks::new(period);
            let all: Vec<Option<Line>> = values.iter().map(|&value| long.push(Line::one(value))).collect();
            for start in [1, 77, 300] {
                let mut short = Blocks::new(period);
                let last = values[start..start + period].iter().map(|&value| short.push(Line::one(value))).last();
                assert_eq!(last, Some(all[start + period - 1]));
            }
        }
    }

    #[test]
    fn equal_rows_have_no_slope_and_no_dispersion_at_all() {
        for period in [1, 2, 7, 20, 31, 100] {
            let (mut lines, mut pairs) = (Blocks::new(period), Blocks::new(period));
            for _ in 0..200 {
                let line = lines.push(Line::one(15_123.45));
                let pair = pairs.push(Pair::one(15_123.45, 0.1));
                assert!(line.is_none_or(|line| line == Line::one(15_123.45)));
                assert!(pair.is_none_or(|pair| pair == Pair::one(15_123.45, 0.1)));
            }
        }
    }
}

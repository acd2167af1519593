//! Moving windows, one row at a time.
//!
//! Sums and dispersions over n rows are put together from blocks of 1, 2, 4, ... rows, each block from two of half its length. So the
//! value is a function of the rows in the window alone: nothing drifts with the length of the history, and rounding grows with log n,
//! not with n. [`super::columns`] does the same additions in the same order on whole columns.

use std::collections::VecDeque;
use std::mem;

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
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
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

    /// [`Join::of`] on [`Mirrored`] blocks.
    #[inline(always)]
    fn of_mirrored(self, old: Mirrored, new: Mirrored, step: f64) -> Mirrored {
        let moved = self.new * step + new.sum;
        let apart = self.old * moved - self.new * old.sum;
        Mirrored { sum: old.sum + moved, squares: old.squares + new.squares - apart * apart * self.weight }
    }
}

/// A [`Block`] whose squares have the other sign, which rounds alike.
///
/// A sum that is added to and squares that are subtracted from are two chains of instructions. Both added to, the compiler makes them
/// one, in one register, and the sum, which the next length waits for, waits for the squares.
#[derive(Debug, Clone, Copy)]
struct Mirrored {
    sum: f64,
    squares: f64,
}

impl Mirrored {
    const ONE_ROW: Self = Self { sum: 0.0, squares: -0.0 };
}

/// [`Join`] of two blocks of one length, where it is shorter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Doubling {
    length: f64,
    weight: f64,
}

impl Doubling {
    /// Of blocks of 1, 2, 4, ... rows.
    const ALL: [Self; usize::BITS as usize] = {
        let mut all = [Self::new(1); usize::BITS as usize];
        let mut level = 1;
        while level < all.len() {
            all[level] = Self::new(1 << level);
            level += 1;
        }
        all
    };

    pub(super) const fn new(length: usize) -> Self {
        Self { length: length as f64, weight: 0.5 / length as f64 }
    }

    #[inline(always)]
    pub(super) fn of(self, old: Block, new: Block, step: f64) -> Block {
        let moved = self.length * step + new.sum;
        let apart = moved - old.sum;
        Block { sum: old.sum + moved, squares: old.squares + new.squares + apart * apart * self.weight }
    }

    /// [`Doubling::of`] on [`Mirrored`] blocks.
    #[inline(always)]
    fn of_mirrored(self, old: Mirrored, new: Mirrored, step: f64) -> Mirrored {
        let moved = self.length * step + new.sum;
        let apart = moved - old.sum;
        Mirrored { sum: old.sum + moved, squares: old.squares + new.squares - apart * apart * self.weight }
    }
}

/// Ring of the last values of one series, a power of two long.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ring {
    values: Box<[f64]>,
}

impl Ring {
    fn new(length: usize) -> Self {
        Self { values: vec![0.0; length.next_power_of_two()].into() }
    }

    /// Takes the value of a row; answers with that of `ago` rows before, which may be as many as the ring is long.
    #[inline(always)]
    fn turn(&mut self, row: usize, ago: usize, value: f64) -> f64 {
        let mask = self.values.len() - 1;
        let before = self.values[row.wrapping_sub(ago) & mask];
        self.values[row & mask] = value;
        before
    }
}

/// Lengths of the blocks in a window, the shortest first.
fn lengths(period: usize) -> impl Iterator<Item = usize> {
    (0..=period.ilog2()).map(|level| 1 << level).filter(move |length| period & length != 0)
}

/// How many rows of a window are newer than its block of a length: all those of the longer ones.
#[inline(always)]
fn newer(period: usize, length: usize) -> usize {
    period & !(2 * length - 1)
}

/// Calls a method with the length of the longest block, as a constant where periods are usual: its loop over the lengths is then
/// unrolled, which takes less than half the instructions.
macro_rules! with_longest {
    ($self:ident.$method:ident($longest:expr, $x:expr)) => {
        match $longest {
            8 => $self.$method(8, $x),
            16 => $self.$method(16, $x),
            32 => $self.$method(32, $x),
            longest => $self.$method(longest, $x),
        }
    };
}

/// Mean of the last `period` inputs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Mean {
    period: usize,
    /// `period` as a number.
    n: f64,
    row: usize,
    total: f64,
    /// Sums of the last blocks of each length below the longest: those of n rows at n..2n, by their last row.
    sums: Box<[f64]>,
    /// Of the shorter blocks in the window, which end before the last row.
    older: Box<[Ring]>,
}

impl Mean {
    pub(super) fn new(period: usize) -> Self {
        let older = lengths(period).map(|length| newer(period, length)).filter(|newer| *newer > 0).map(Ring::new);
        let sums = vec![0.0; 1 << period.ilog2()].into();
        Self { period, n: period as f64, row: 0, total: 0.0, sums, older: older.collect() }
    }

    pub(super) fn push(&mut self, x: f64) -> Option<f64> {
        self.take(x);
        self.answer()
    }

    /// The first half of [`Mean::push`], for those that have something else to do before they need the answer.
    #[inline]
    pub(super) fn take(&mut self, x: f64) {
        with_longest!(self.advance(self.sums.len(), x));
    }

    #[inline(always)]
    fn advance(&mut self, longest: usize, x: f64) {
        let row = self.row;
        self.row += 1;
        let sums = &mut self.sums[..longest];
        let mut older = self.older.iter_mut();
        let mut sum = x;
        // What every number stays the same when added to; 0 would lose the sign of another.
        let mut total = -0.0;
        let mut length = 1;
        while length < longest {
            if self.period & length != 0
                && let Some(older) = older.next()
            {
                total += older.turn(row, newer(self.period, length), sum);
            }
            // Rows before the first read as 0; no complete window looks at a block that contains them.
            sum += mem::replace(&mut sums[length | row & (length - 1)], sum);
            length *= 2;
        }
        self.total = total + sum;
    }

    /// The other half.
    #[inline]
    pub(super) fn answer(&self) -> Option<f64> {
        (self.row >= self.period).then(|| self.total / self.n)
    }

    /// Bytes held beside itself.
    pub(super) fn heap_bytes(&self) -> usize {
        let older: usize = self.older.iter().map(|older| size_of_val(&*older.values)).sum();
        size_of_val(&*self.sums) + size_of_val(&*self.older) + older
    }
}

/// Mean and population variance of the last `period` inputs.
///
/// What belongs to sums lies apart from what belongs to squares: side by side, the compiler computes both in one register, and the sum,
/// which the next length waits for, waits for the squares.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Dispersion {
    mean: f64,
    period: usize,
    row: usize,
    /// 1 / `period`.
    share: f64,
    /// Of the shorter blocks to the longest.
    join: Join,
    /// The last rows, in a ring of twice the longest block.
    rows: Box<[f64]>,
    /// As the sums of [`Mean`]; likewise the squares.
    sums: Box<[f64]>,
    squares: Box<[f64]>,
    /// A block of one row has no sum of its own and no spread, and is left out.
    older: Box<[Older]>,
    variance: f64,
}

/// A block of the window that ends before the last row.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Older {
    sum: Ring,
    squares: Ring,
    /// Of the shorter ones to it.
    join: Join,
}

/// What [`Dispersion`] answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Moments {
    pub(super) mean: f64,
    pub(super) variance: f64,
}

impl Dispersion {
    pub(super) fn new(period: usize) -> Self {
        let join = |length: usize| Join::new(period & (length - 1), length);
        let older = |length: usize| {
            let ring = Ring::new(newer(period, length));
            Older { sum: ring.clone(), squares: ring, join: join(length) }
        };
        let longest = 1 << period.ilog2();
        Self {
            mean: 0.0,
            period,
            row: 0,
            share: 1.0 / period as f64,
            join: join(longest),
            rows: vec![0.0; 2 * longest].into(),
            sums: vec![0.0; longest].into(),
            squares: vec![0.0; longest].into(),
            older: lengths(period).filter(|length| (2..longest).contains(length)).map(older).collect(),
            variance: 0.0,
        }
    }

    pub(super) fn push(&mut self, x: f64) -> Option<Moments> {
        self.take(x);
        self.answer()
    }

    /// The first half of [`Dispersion::push`], for those that have something else to do before they need the answer.
    pub(super) fn take(&mut self, x: f64) {
        with_longest!(self.advance(self.sums.len(), x));
    }

    #[inline(always)]
    fn advance(&mut self, longest: usize, x: f64) {
        let (row, period) = (self.row, self.period);
        self.row += 1;
        let rows = &mut self.rows[..2 * longest];
        let mask = 2 * longest - 1;
        rows[row & mask] = x;
        let before = |ago: usize| rows[row.wrapping_sub(ago) & mask];
        let origin = before(period - 1);
        // The last block of each length in turn, and its first row.
        let (mut block, mut first) = (Mirrored::ONE_ROW, x);
        // The rows of the window in shorter blocks, joined.
        let (mut window, mut covered) = (Mirrored::ONE_ROW, period & 1);
        if longest > 1 {
            first = before(1);
            let pair = Block::of_two(x - first);
            block = Mirrored { sum: pair.sum, squares: -pair.squares };
        }
        let mut older = self.older.iter_mut();
        let (sums, squares) = (&mut self.sums[..longest], &mut self.squares[..longest]);
        let mut doublings = Doubling::ALL[1..].iter();
        let mut length = 2;
        while length < longest
            && let Some(doubling) = doublings.next()
        {
            if period & length != 0
                && let Some(older) = older.next()
            {
                let ago = newer(period, length);
                let inside = Mirrored {
                    sum: older.sum.turn(row, ago, block.sum),
                    squares: older.squares.turn(row, ago, block.squares),
                };
                let step = before(period - 1 - covered) - origin;
                window = if covered == 0 { inside } else { older.join.of_mirrored(window, inside, step) };
                covered += length;
            }
            let place = length | row & (length - 1);
            let old = Mirrored {
                sum: mem::replace(&mut sums[place], block.sum),
                squares: mem::replace(&mut squares[place], block.squares),
            };
            let oldest = before(2 * length - 1);
            block = doubling.of_mirrored(old, block, first - oldest);
            first = oldest;
            length *= 2;
        }
        let is_joined = covered > 0 && longest > 1;
        let total = if is_joined { self.join.of_mirrored(window, block, first - origin) } else { block };
        self.mean = origin + total.sum * self.share;
        self.variance = -total.squares * self.share;
    }

    /// The other half.
    #[inline]
    pub(super) fn answer(&self) -> Option<Moments> {
        (self.row >= self.period).then_some(Moments { mean: self.mean, variance: self.variance })
    }

    /// Bytes held beside itself.
    pub(super) fn heap_bytes(&self) -> usize {
        let older: usize = self.older.iter().map(|older| 2 * size_of_val(&*older.sum.values)).sum();
        let blocks = size_of_val(&*self.sums) + size_of_val(&*self.squares);
        size_of_val(&*self.rows) + blocks + size_of_val(&*self.older) + older
    }
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

//! Moving windows over columns: the additions of [`super::window`] in the same order, many rows at a time.

use super::formula::{larger, smaller};
use super::window::{Block, Doubling, Join};

/// Buffers of one engine call, kept between blocks of rows.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    sums: [Vec<f64>; 2],
    squares: [Vec<f64>; 2],
}

/// Writes the mean of each window of `period` rows.
///
/// Shape: `x` holds `out.len() + period - 1` rows; `out[i]` is the window of rows `i..i + period`.
pub(super) fn mean_into(x: &[f64], period: usize, out: &mut [f64], scratch: &mut Scratch) {
    let [current, next] = &mut scratch.sums;
    let mut length = 1;
    let mut covered = 0;
    loop {
        let blocks: &[f64] = if length == 1 { x } else { current };
        if period & length != 0 {
            let blocks = &blocks[covered..][..out.len()];
            if covered == 0 {
                out.copy_from_slice(blocks);
            } else {
                out.iter_mut().zip(blocks).for_each(|(total, sum)| *total += sum);
            }
            covered += length;
        }
        if covered == period {
            break;
        }
        let count = blocks.len() - length;
        next.resize(count, 0.0);
        for ((sum, old), new) in next.iter_mut().zip(&blocks[..count]).zip(&blocks[length..]) {
            *sum = new + old;
        }
        std::mem::swap(current, next);
        length *= 2;
    }
    let n = period as f64;
    out.iter_mut().for_each(|total| *total /= n);
}

/// Writes the mean and the population variance of each window of `period` rows.
///
/// Shape: as [`mean_into`], for `mean` and `variance` of equal length. Domain: period at least 2.
pub(super) fn dispersion_into(x: &[f64], period: usize, mean: &mut [f64], variance: &mut [f64], scratch: &mut Scratch) {
    let rows = mean.len();
    let mut blocks = Blocks::pairs(x, scratch);
    // A first block of one row has no sum of its own and no spread.
    mean.fill(0.0);
    variance.fill(0.0);
    let mut covered = period & 1;
    loop {
        if period & blocks.length != 0 {
            let (sums, squares) = (&blocks.sums[covered..][..rows], &blocks.squares[covered..][..rows]);
            if covered == 0 {
                mean.copy_from_slice(sums);
                variance.copy_from_slice(squares);
            } else {
                let join = Join::new(covered, blocks.length);
                let steps = x[..rows].iter().zip(&x[covered..][..rows]);
                let totals = mean.iter_mut().zip(variance.iter_mut());
                for (((mean, variance), (sum, squares)), (old, new)) in totals.zip(sums.iter().zip(squares)).zip(steps)
                {
                    let total = Block { sum: *mean, squares: *variance };
                    let total = join.of(total, Block { sum: *sum, squares: *squares }, new - old);
                    (*mean, *variance) = (total.sum, total.squares);
                }
            }
            covered += blocks.length;
        }
        if covered == period {
            break;
        }
        blocks.double(x);
    }
    let share = 1.0 / period as f64;
    for ((mean, variance), origin) in mean.iter_mut().zip(variance.iter_mut()).zip(x) {
        *mean = origin + *mean * share;
        *variance *= share;
    }
}

/// All blocks of one length, by their first row.
struct Blocks<'a> {
    length: usize,
    sums: &'a mut Vec<f64>,
    squares: &'a mut Vec<f64>,
    next_sums: &'a mut Vec<f64>,
    next_squares: &'a mut Vec<f64>,
}

impl<'a> Blocks<'a> {
    /// Starts with blocks of two rows.
    fn pairs(x: &[f64], scratch: &'a mut Scratch) -> Self {
        let [sums, next_sums] = &mut scratch.sums;
        let [squares, next_squares] = &mut scratch.squares;
        let count = x.len() - 1;
        sums.resize(count, 0.0);
        squares.resize(count, 0.0);
        for (((sum, squares), old), new) in sums.iter_mut().zip(squares.iter_mut()).zip(x).zip(&x[1..]) {
            let block = Block::of_two(new - old);
            (*sum, *squares) = (block.sum, block.squares);
        }
        Self { length: 2, sums, squares, next_sums, next_squares }
    }

    /// Joins each block with the one that follows it.
    fn double(&mut self, x: &[f64]) {
        let length = self.length;
        let count = self.sums.len() - length;
        self.next_sums.resize(count, 0.0);
        self.next_squares.resize(count, 0.0);
        let (next_sums, next_squares) = (&mut self.next_sums[..count], &mut self.next_squares[..count]);
        let (old_x, new_x) = (&x[..count], &x[length..][..count]);
        let (old_sums, new_sums) = (&self.sums[..count], &self.sums[length..][..count]);
        let (old_squares, new_squares) = (&self.squares[..count], &self.squares[length..][..count]);
        let doubling = Doubling::new(length);
        for i in 0..count {
            let old = Block { sum: old_sums[i], squares: old_squares[i] };
            let new = Block { sum: new_sums[i], squares: new_squares[i] };
            let block = doubling.of(old, new, new_x[i] - old_x[i]);
            next_sums[i] = block.sum;
            next_squares[i] = block.squares;
        }
        std::mem::swap(self.sums, self.next_sums);
        std::mem::swap(self.squares, self.next_squares);
        self.length *= 2;
    }
}

/// Writes the highest value of each window of `period` rows. Shape: as [`mean_into`].
pub(super) fn highest_into(x: &[f64], period: usize, out: &mut [f64], scratch: &mut Scratch) {
    extreme_into(x, period, out, scratch, larger);
}

/// Writes the lowest value of each window of `period` rows. Shape: as [`mean_into`].
pub(super) fn lowest_into(x: &[f64], period: usize, out: &mut [f64], scratch: &mut Scratch) {
    extreme_into(x, period, out, scratch, smaller);
}

/// Windows may overlap for an extreme, so the last two blocks do instead of one per binary digit.
fn extreme_into(
    x: &[f64],
    period: usize,
    out: &mut [f64],
    scratch: &mut Scratch,
    choose: impl Fn(f64, f64) -> f64 + Copy,
) {
    let [current, next] = &mut scratch.sums;
    let mut length = 1;
    while 2 * length <= period {
        let blocks: &[f64] = if length == 1 { x } else { current };
        let count = blocks.len() - length;
        next.resize(count, 0.0);
        for ((chosen, old), new) in next.iter_mut().zip(&blocks[..count]).zip(&blocks[length..]) {
            *chosen = choose(*new, *old);
        }
        std::mem::swap(current, next);
        length *= 2;
    }
    let blocks: &[f64] = if length == 1 { x } else { current };
    let (first, last) = (&blocks[..out.len()], &blocks[period - length..][..out.len()]);
    for ((chosen, old), new) in out.iter_mut().zip(first).zip(last) {
        *chosen = choose(*new, *old);
    }
}

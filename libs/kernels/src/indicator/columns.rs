//! Moving windows over columns: the additions of [`super::window`] in the same order, many rows at a time, in the widest vector registers
//! of the machine at hand.

use multiversion::multiversion;

use super::formula::{self, larger, smaller};
use super::window::{Block, Doubling, Join};

/// Buffers of one engine call, kept between blocks of rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch {
    sums: [Vec<f64>; 2],
    squares: [Vec<f64>; 2],
}

/// Writes the mean of each window of `period` rows.
///
/// Shape: `x` holds `out.len() + period - 1` rows; `out[i]` is the window of rows `i..i + period`.
#[multiversion(targets = "simd")]
pub(super) fn mean_into(x: &[f64], period: usize, out: &mut [f64], scratch: &mut Scratch) {
    let [current, next] = &mut scratch.sums;
    let n = period as f64;
    let mut length = 1;
    let mut covered = 0;
    loop {
        let blocks: &[f64] = if length == 1 { x } else { current };
        if period & length != 0 {
            let blocks = &blocks[covered..][..out.len()];
            // A first block of one row is read where it lies; the last block's turn brings the division.
            let oldest = if covered == 1 { Some(&x[..out.len()]) } else { None };
            let is_last = covered + length == period;
            match (covered, oldest) {
                (0, _) if is_last => out.iter_mut().zip(blocks).for_each(|(total, sum)| *total = sum / n),
                (0, _) if length == 1 => {}
                (0, _) => out.copy_from_slice(blocks),
                (_, Some(oldest)) => {
                    let divisor = if is_last { n } else { 1.0 };
                    for ((total, first), sum) in out.iter_mut().zip(oldest).zip(blocks) {
                        *total = (first + sum) / divisor;
                    }
                }
                _ if is_last => out.iter_mut().zip(blocks).for_each(|(total, sum)| *total = (*total + sum) / n),
                _ => out.iter_mut().zip(blocks).for_each(|(total, sum)| *total += sum),
            }
            covered += length;
        }
        if covered == period {
            return;
        }
        let count = blocks.len() - length;
        next.resize(count, 0.0);
        for ((sum, old), new) in next.iter_mut().zip(&blocks[..count]).zip(&blocks[length..]) {
            *sum = new + old;
        }
        std::mem::swap(current, next);
        length *= 2;
    }
}

/// Writes the Bollinger bands of each window of `period` rows: upper, middle, lower, width and normalised width.
///
/// Shape: as [`mean_into`], for all five. Domain: period at least 2.
#[multiversion(targets = "simd")]
pub(super) fn bands_into(x: &[f64], period: usize, multiplier: f64, out: [&mut [f64]; 5], scratch: &mut Scratch) {
    let [upper, middle, lower, width, ratio] = out;
    let rows = middle.len();
    let mut blocks = Blocks::pairs(x, scratch);
    // A first block of one row has no sum of its own and no spread.
    middle.fill(0.0);
    ratio.fill(0.0);
    let mut covered = period & 1;
    // Sum and squares of the rows covered so far are kept in what becomes the middle and the ratio.
    while covered + blocks.length < period {
        if period & blocks.length != 0 {
            let (sums, squares) = (&blocks.sums[covered..][..rows], &blocks.squares[covered..][..rows]);
            if covered == 0 {
                middle.copy_from_slice(sums);
                ratio.copy_from_slice(squares);
            } else {
                let join = Join::new(covered, blocks.length);
                let (old_x, new_x) = (&x[..rows], &x[covered..][..rows]);
                let (middle, ratio) = (&mut middle[..rows], &mut ratio[..rows]);
                for i in 0..rows {
                    let total = Block { sum: middle[i], squares: ratio[i] };
                    let total = join.of(total, Block { sum: sums[i], squares: squares[i] }, new_x[i] - old_x[i]);
                    (middle[i], ratio[i]) = (total.sum, total.squares);
                }
            }
            covered += blocks.length;
        }
        blocks.double(x);
    }
    let (sums, squares) = (&blocks.sums[covered..][..rows], &blocks.squares[covered..][..rows]);
    let (old_x, new_x) = (&x[..rows], &x[covered..][..rows]);
    let (upper, middle, lower) = (&mut upper[..rows], &mut middle[..rows], &mut lower[..rows]);
    let (width, ratio) = (&mut width[..rows], &mut ratio[..rows]);
    let share = 1.0 / period as f64;
    let is_joined = covered > 0;
    let join = Join::new(covered.max(1), blocks.length);
    for i in 0..rows {
        let newest = Block { sum: sums[i], squares: squares[i] };
        let joined = join.of(Block { sum: middle[i], squares: ratio[i] }, newest, new_x[i] - old_x[i]);
        let total = if is_joined { joined } else { newest };
        let bands = formula::bands(old_x[i] + total.sum * share, total.squares * share, multiplier);
        upper[i] = bands.upper;
        middle[i] = bands.middle;
        lower[i] = bands.lower;
        width[i] = bands.width;
        ratio[i] = bands.width_normalized;
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
    #[inline(always)]
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
    #[inline(always)]
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
#[multiversion(targets = "simd")]
pub(super) fn highest_into(x: &[f64], period: usize, out: &mut [f64], scratch: &mut Scratch) {
    extreme_into(x, period, out, scratch, larger);
}

/// Writes the lowest value of each window of `period` rows. Shape: as [`mean_into`].
#[multiversion(targets = "simd")]
pub(super) fn lowest_into(x: &[f64], period: usize, out: &mut [f64], scratch: &mut Scratch) {
    extreme_into(x, period, out, scratch, smaller);
}

/// Windows may overlap for an extreme, so the last two blocks do instead of one per binary digit.
#[inline(always)]
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

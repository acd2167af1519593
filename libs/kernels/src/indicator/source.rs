//! The series that recurrences smooth, made from the columns of candles.

use serde::{Deserialize, Serialize};

use super::Inputs;
use super::fold::Row;
use super::formula;
use super::rows;

/// Series that lanes smooth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Close,
    Gain,
    Loss,
    TrueRange,
    /// The true range, on the first row that row's own range.
    RangeFromFirst,
    PlusMovement,
    MinusMovement,
    SignedVolume,
    Turnover,
    Volume,
}

/// What the series of a row need of the row before it.
///
/// In another order than in [`Row`], so that the compiler does not copy two prices at once: a row is often written price by price just
/// before, and a wider read of it would wait until those writes have left the processor's queue, and everything before them.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Before {
    low: f64,
    high: f64,
    close: f64,
    pub(super) day: i32,
}

impl Before {
    /// There is none.
    pub(super) const NONE: Self = Self { low: f64::NAN, high: f64::NAN, close: f64::NAN, day: 0 };

    #[inline(always)]
    pub(super) fn of(row: &Row) -> Self {
        Self { low: row.low, high: row.high, close: row.close, day: row.day }
    }
}

impl Source {
    pub(super) const COUNT: usize = Self::Volume as usize + 1;

    /// All of them at one row, by their numbers, but for those that nobody needs and that take longer than to ask. What needs a row
    /// before the first is of no use there.
    #[inline(always)]
    pub(super) fn all(row: &Row, before: &Before, is_needed: [bool; Self::COUNT]) -> [f64; Self::COUNT] {
        let Row { high, low, close, volume, .. } = *row;
        let mut all = [f64::NAN; Self::COUNT];
        all[Self::Close as usize] = close;
        all[Self::Gain as usize] = formula::gain(close, before.close);
        all[Self::Loss as usize] = formula::loss(close, before.close);
        all[Self::TrueRange as usize] = formula::true_range(high, low, before.close);
        all[Self::Volume as usize] = volume;
        if is_needed[Self::RangeFromFirst as usize] {
            let range = all[Self::TrueRange as usize];
            all[Self::RangeFromFirst as usize] = if before.close.is_nan() { high - low } else { range };
        }
        if is_needed[Self::Turnover as usize] {
            all[Self::Turnover as usize] = formula::turnover(high, low, close, volume);
        }
        if is_needed[Self::PlusMovement as usize] || is_needed[Self::MinusMovement as usize] {
            let (up, down) = (high - before.high, before.low - low);
            all[Self::PlusMovement as usize] = formula::plus_movement(up, down);
            all[Self::MinusMovement as usize] = formula::minus_movement(up, down);
        }
        if is_needed[Self::SignedVolume as usize] {
            let signed = formula::signed_volume(close, before.close, volume);
            all[Self::SignedVolume as usize] = if before.close.is_nan() { volume } else { signed };
        }
        all
    }

    /// Writes the rows from `first` on, as many as `out` has, times `factor`. What needs a row before the first is undefined there.
    pub(super) fn fill<'a>(self, inputs: &Inputs<'a>, first: usize, factor: f64, out: &mut [f64]) {
        let Inputs { high, low, close, volume, .. } = *inputs;
        let end = first + out.len();
        match self {
            Self::Close => return rows::scale(out, &close[first..end], factor),
            Self::Volume => return rows::scale(out, &volume[first..end], factor),
            Self::Turnover => {
                let prices = [high, low, close].map(|column| &column[first..end]);
                return rows::turnover(out, prices, &volume[first..end], factor);
            }
            Self::SignedVolume if first == 0 && end > 0 => out[0] = factor * volume[0],
            Self::RangeFromFirst if first == 0 && end > 0 => out[0] = factor * (high[0] - low[0]),
            _ if first == 0 && end > 0 => out[0] = f64::NAN,
            _ => {}
        }
        let from = first.max(1);
        if from >= end {
            return;
        }
        let later = &mut out[from - first..];
        let now = |column: &'a [f64]| &column[from..end];
        let before = |column: &'a [f64]| &column[from - 1..end - 1];
        let both = |column: &'a [f64]| [now(column), before(column)];
        match self {
            Self::Close | Self::Volume | Self::Turnover => {}
            Self::Gain => rows::gain(later, now(close), before(close), factor),
            Self::Loss => rows::loss(later, now(close), before(close), factor),
            Self::TrueRange | Self::RangeFromFirst => {
                rows::true_range(later, now(high), now(low), before(close), factor)
            }
            Self::PlusMovement => rows::plus_movement(later, both(high), both(low), factor),
            Self::MinusMovement => rows::minus_movement(later, both(high), both(low), factor),
            Self::SignedVolume => {
                rows::sign_of_change(later, now(close), before(close));
                rows::multiply(later, now(volume), factor);
            }
        }
    }
}

//! The series that recurrences smooth, made from the columns of candles.

use super::Inputs;
use super::rows;

/// Series that lanes smooth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Close,
    Gain,
    Loss,
    TrueRange,
    PlusMovement,
    MinusMovement,
    SignedVolume,
    Turnover,
    Volume,
}

impl Source {
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
            Self::TrueRange => rows::true_range(later, now(high), now(low), before(close), factor),
            Self::PlusMovement => rows::plus_movement(later, both(high), both(low), factor),
            Self::MinusMovement => rows::minus_movement(later, both(high), both(low), factor),
            Self::SignedVolume => {
                rows::sign_of_change(later, now(close), before(close));
                rows::multiply(later, now(volume), factor);
            }
        }
    }
}

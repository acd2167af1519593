//! A block of candles: how rows are assigned to one, merged into one, and laid out as bytes.

mod codec;
mod column;
mod merge;

pub(crate) use codec::{Encoder, decode};
pub(crate) use merge::{Chunk, Merged, block_dates, merge, split};

use market::Frame;

/// Most rows of one block: ten thousand and eighty are a week of minutes, more than any trading date or year of days has.
pub(crate) const MAX_BLOCK_ROWS: usize = 10_080;

/// A block as one candle, for plain SQL.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    pub(crate) open: f64,
    pub(crate) high: f64,
    pub(crate) low: f64,
    pub(crate) close: f64,
    /// Sum from first to last.
    pub(crate) volume: f64,
    /// The last one present.
    pub(crate) open_interest: Option<f64>,
}

impl Summary {
    /// Of a frame with at least one row.
    pub(crate) fn of(frame: &Frame) -> Self {
        Self {
            open: frame.open()[0],
            high: frame.high().iter().copied().fold(f64::NEG_INFINITY, f64::max),
            low: frame.low().iter().copied().fold(f64::INFINITY, f64::min),
            close: frame.close()[frame.len() - 1],
            volume: frame.volume().iter().sum(),
            open_interest: frame.open_interest().iter().copied().rfind(|value| !value.is_nan()),
        }
    }
}

//! A block of candles: how rows are assigned to one, merged into one, and laid out as bytes.

mod codec;
mod column;
mod merge;
mod packing;
mod version1;

pub(crate) use codec::{Decoder, Encoder};
pub(crate) use merge::{Chunk, Merged, block_dates, merge, split};

use market::{Frame, Millis, TimeRange};

use crate::{Error, Result};

/// Most rows of one block: ten thousand and eighty are a week of minutes, more than any trading date or year of days has.
pub(crate) const MAX_BLOCK_ROWS: usize = 10_080;

/// Encodes 1 to 10 080 rows as the payload of a stored block; equal frames give equal bytes. For fuzzing and for tools; stores do it themselves.
///
/// Errors: `Invalid` for a frame of other length, and for open times outside [`TimeRange::ALL`], which no store takes.
pub fn encode_block(frame: &Frame) -> Result<Vec<u8>> {
    if !(1..=MAX_BLOCK_ROWS).contains(&frame.len()) {
        return Err(Error::invalid("rows", format!("{} in one block, which takes 1 to {MAX_BLOCK_ROWS}", frame.len())));
    }
    // Open times ascend. Two that lie within the range have a difference that does not overflow.
    for at in [frame.open_time()[0], frame.open_time()[frame.len() - 1]] {
        if !TimeRange::ALL.contains(at) {
            let (start, end) = (TimeRange::ALL.start(), TimeRange::ALL.end());
            return Err(Error::invalid("open_time", format!("{at} is not from {start} to before {end}")));
        }
    }
    Encoder::new().and_then(|mut encoder| encoder.encode(frame)).map_err(Error::internal)
}

/// Decodes the payload of a stored block. Any bytes give a frame or an error, at bounded cost. For checks of the database and for fuzzing.
///
/// Errors: `Invalid`, saying what is wrong.
pub fn decode_block(payload: &[u8]) -> Result<Frame> {
    decode(payload).map_err(|reason| Error::invalid("payload", reason))
}

/// One block as a frame.
pub(crate) fn decode(payload: &[u8]) -> std::result::Result<Frame, String> {
    let mut columns = Columns::default();
    Decoder::default().decode(payload, &mut columns)?;
    columns.into_frame()
}

/// Columns being decoded: not yet known to be a frame.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    pub(crate) open_time: Vec<Millis>,
    /// Open, high, low, close, volume.
    pub(crate) ohlcv: [Vec<f64>; 5],
    pub(crate) open_interest: Vec<f64>,
}

impl Columns {
    pub(crate) fn truncate(&mut self, rows: usize) {
        self.open_time.truncate(rows);
        self.ohlcv.iter_mut().for_each(|column| column.truncate(rows));
        self.open_interest.truncate(rows);
    }

    pub(crate) fn into_frame(self) -> std::result::Result<Frame, String> {
        Frame::from_columns(self.open_time, self.ohlcv, self.open_interest).map_err(|cause| cause.to_string())
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_times_that_no_store_takes_are_refused() {
        let price = || vec![1.0; 2];
        let (start, end) = (TimeRange::ALL.start(), TimeRange::ALL.end());
        let of = |times: [Millis; 2]| {
            Frame::from_columns(times.to_vec(), [price(), price(), price(), price(), price()], vec![f64::NAN; 2])
                .unwrap()
        };
        for times in [[i64::MIN, i64::MAX], [start - 1, start], [start, end]] {
            let refused = encode_block(&of(times));
            assert!(matches!(refused, Err(Error::Invalid { field: "open_time", .. })), "{times:?}: {refused:?}");
        }
        let widest = of([start, end - 1]);
        assert_eq!(decode_block(&encode_block(&widest).unwrap()).unwrap().open_time(), widest.open_time());
    }
}

use std::ops::RangeInclusive;

use crate::Error;
use crate::sequence::refusal;

/// Values outside are refused by [`Candles::check`]: squares and long sums stay inside f64 with the others.
const ACCEPTED: RangeInclusive<f64> = -1e100..=1e100;

/// Columns of one instrument's candles, oldest first.
///
/// Shape: all columns have the same length. Domain: finite values; [`check`](Candles::check) says so with an error. Functions that
/// cannot return one look only at the rows all columns have.
#[derive(Debug, Clone, Copy)]
pub struct Candles<'a> {
    pub open: &'a [f64],
    pub high: &'a [f64],
    pub low: &'a [f64],
    pub close: &'a [f64],
    pub volume: &'a [f64],
}

impl<'a> Candles<'a> {
    /// Rows that all columns have.
    pub fn len(&self) -> usize {
        self.columns().iter().map(|(_, column)| column.len()).min().unwrap_or(0)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `count` candles, or all if there are fewer: what was known at the end of an earlier candle.
    pub fn first(&self, count: usize) -> Candles<'a> {
        let count = count.min(self.len());
        Candles {
            open: &self.open[..count],
            high: &self.high[..count],
            low: &self.low[..count],
            close: &self.close[..count],
            volume: &self.volume[..count],
        }
    }

    /// The last `count` candles, or all if there are fewer.
    pub fn last(&self, count: usize) -> Candles<'a> {
        let end = self.len();
        let rows = end - count.min(end)..end;
        Candles {
            open: &self.open[rows.clone()],
            high: &self.high[rows.clone()],
            low: &self.low[rows.clone()],
            close: &self.close[rows.clone()],
            volume: &self.volume[rows],
        }
    }

    /// Refuses columns of unequal length, values that are not finite or absurdly large, and negative volume.
    pub fn check(&self) -> Result<(), Error> {
        for (name, column) in self.columns() {
            if column.len() != self.open.len() {
                return Err(Error::UnequalLengths { column: name, found: column.len(), expected: self.open.len() });
            }
            if let Some(row) = column.iter().position(|value| !ACCEPTED.contains(value)) {
                return Err(refusal(&format!("{name}[{row}]"), column[row], "a finite number up to 1e100"));
            }
        }
        match self.volume.iter().position(|volume| *volume < 0.0) {
            Some(row) => Err(refusal(&format!("volume[{row}]"), self.volume[row], "0 or more")),
            None => Ok(()),
        }
    }

    fn columns(&self) -> [(&'static str, &'a [f64]); 5] {
        [("open", self.open), ("high", self.high), ("low", self.low), ("close", self.close), ("volume", self.volume)]
    }
}

//! Columns of one instrument and timeframe.

use crate::{Candle, Date, Error, Factor, Millis, Result};

/// Candles as columns of equal length with strictly increasing open time. Gaps are legal and visible.
///
/// `open_interest` holds NaN where the source gave none; every other value is finite.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Frame {
    open_time: Vec<Millis>,
    open: Vec<f64>,
    high: Vec<f64>,
    low: Vec<f64>,
    close: Vec<f64>,
    volume: Vec<f64>,
    open_interest: Vec<f64>,
}

impl Frame {
    pub fn with_capacity(rows: usize) -> Self {
        Self {
            open_time: Vec::with_capacity(rows),
            open: Vec::with_capacity(rows),
            high: Vec::with_capacity(rows),
            low: Vec::with_capacity(rows),
            close: Vec::with_capacity(rows),
            volume: Vec::with_capacity(rows),
            open_interest: Vec::with_capacity(rows),
        }
    }

    /// Takes whole columns, in the order open time, open, high, low, close, volume, open interest (NaN where absent).
    ///
    /// Errors: [`Error::Frame`] when lengths differ, open time does not strictly increase, or a price or volume is not finite.
    pub fn from_columns(open_time: Vec<Millis>, ohlcv: [Vec<f64>; 5], open_interest: Vec<f64>) -> Result<Self> {
        let rows = open_time.len();
        if ohlcv.iter().chain([&open_interest]).any(|column| column.len() != rows) {
            return Err(Error::Frame("columns differ in length".into()));
        }
        if let Some(index) = (1..rows).find(|&i| open_time[i - 1] >= open_time[i]) {
            return Err(Error::Frame(format!("open_time does not increase at row {index}")));
        }
        if ohlcv.iter().any(|column| column.iter().any(|value| !value.is_finite())) {
            return Err(Error::Frame("a price or volume is not finite".into()));
        }
        let [open, high, low, close, volume] = ohlcv;
        Ok(Self { open_time, open, high, low, close, volume, open_interest })
    }

    /// Appends a candle.
    ///
    /// Errors: [`Error::Frame`] when it breaks [`Candle::check`] or does not come after the last one.
    pub fn push(&mut self, candle: &Candle) -> Result<()> {
        candle.check().map_err(|fault| Error::Frame(fault.to_string()))?;
        if self.open_time.last().is_some_and(|last| *last >= candle.open_time) {
            return Err(Error::Frame("candle does not come after the last one".into()));
        }
        self.open_time.push(candle.open_time);
        self.open.push(candle.open);
        self.high.push(candle.high);
        self.low.push(candle.low);
        self.close.push(candle.close);
        self.volume.push(candle.volume);
        self.open_interest.push(candle.open_interest.unwrap_or(f64::NAN));
        Ok(())
    }

    /// Appends all of `other`, which must start after the last row of `self`.
    pub fn append(&mut self, other: &Frame) -> Result<()> {
        if let (Some(last), Some(first)) = (self.open_time.last(), other.open_time.first())
            && last >= first
        {
            return Err(Error::Frame("frames overlap".into()));
        }
        self.open_time.extend_from_slice(&other.open_time);
        self.open.extend_from_slice(&other.open);
        self.high.extend_from_slice(&other.high);
        self.low.extend_from_slice(&other.low);
        self.close.extend_from_slice(&other.close);
        self.volume.extend_from_slice(&other.volume);
        self.open_interest.extend_from_slice(&other.open_interest);
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.open_time.len()
    }

    pub fn is_empty(&self) -> bool {
        self.open_time.is_empty()
    }

    pub fn open_time(&self) -> &[Millis] {
        &self.open_time
    }

    pub fn open(&self) -> &[f64] {
        &self.open
    }

    pub fn high(&self) -> &[f64] {
        &self.high
    }

    pub fn low(&self) -> &[f64] {
        &self.low
    }

    pub fn close(&self) -> &[f64] {
        &self.close
    }

    pub fn volume(&self) -> &[f64] {
        &self.volume
    }

    /// NaN where the source gave none.
    pub fn open_interest(&self) -> &[f64] {
        &self.open_interest
    }

    /// The candle at `index`; panics when out of bounds, like a slice.
    pub fn candle(&self, index: usize) -> Candle {
        let open_interest = self.open_interest[index];
        Candle {
            open_time: self.open_time[index],
            open: self.open[index],
            high: self.high[index],
            low: self.low[index],
            close: self.close[index],
            volume: self.volume[index],
            open_interest: (!open_interest.is_nan()).then_some(open_interest),
        }
    }

    pub fn candles(&self) -> impl ExactSizeIterator<Item = Candle> + '_ {
        (0..self.len()).map(|index| self.candle(index))
    }

    /// Rows whose open time lies in `[start, end)`, as an index range.
    pub fn rows_between(&self, start: Millis, end: Millis) -> std::ops::Range<usize> {
        let from = self.open_time.partition_point(|at| *at < start);
        let to = self.open_time.partition_point(|at| *at < end);
        from..to.max(from)
    }

    /// Puts a factor on prices and volume; open interest stays.
    ///
    /// Errors: [`Error::Frame`] when a price or volume is too large for it; the frame is then of no use.
    pub fn adjust(&mut self, factor: Factor) -> Result<()> {
        for prices in [&mut self.open, &mut self.high, &mut self.low, &mut self.close] {
            prices.iter_mut().for_each(|price| *price = factor.price(*price));
        }
        self.volume.iter_mut().for_each(|volume| *volume = factor.volume(*volume));
        let columns = [&self.open, &self.high, &self.low, &self.close, &self.volume];
        match columns.iter().all(|column| column.iter().all(|value| value.is_finite())) {
            true => Ok(()),
            false => Err(Error::Frame("an adjusted price or volume is not finite".into())),
        }
    }

    /// The columns, as [`from_columns`](Self::from_columns) takes them.
    pub fn into_columns(self) -> (Vec<Millis>, [Vec<f64>; 5], Vec<f64>) {
        (self.open_time, [self.open, self.high, self.low, self.close, self.volume], self.open_interest)
    }

    /// Copies the rows of an index range.
    pub fn slice(&self, rows: std::ops::Range<usize>) -> Frame {
        Frame {
            open_time: self.open_time[rows.clone()].to_vec(),
            open: self.open[rows.clone()].to_vec(),
            high: self.high[rows.clone()].to_vec(),
            low: self.low[rows.clone()].to_vec(),
            close: self.close[rows.clone()].to_vec(),
            volume: self.volume[rows.clone()].to_vec(),
            open_interest: self.open_interest[rows].to_vec(),
        }
    }
}

/// A frame of an aggregated timeframe: each row also says how whole its bucket is.
///
/// All columns have the length of `frame`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BucketFrame {
    pub frame: Frame,
    /// The bucket's range had passed when the answer was made.
    pub closed: Vec<bool>,
    /// Closed and no session minute missing.
    pub complete: Vec<bool>,
    /// Minutes that exist in the bucket (source candles, where the source is not minutes).
    pub source_count: Vec<u32>,
    /// Session minutes of the bucket; outside the session its width in minutes.
    pub expected_count: Vec<u32>,
    /// Trading date of the bucket; the first one for 1w and 1mo.
    pub trading_date: Vec<Date>,
}

impl BucketFrame {
    pub fn len(&self) -> usize {
        self.frame.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frame.is_empty()
    }

    /// Appends all of `other`, which must start after the last row of `self`.
    pub fn append(&mut self, other: &BucketFrame) -> Result<()> {
        self.frame.append(&other.frame)?;
        self.closed.extend_from_slice(&other.closed);
        self.complete.extend_from_slice(&other.complete);
        self.source_count.extend_from_slice(&other.source_count);
        self.expected_count.extend_from_slice(&other.expected_count);
        self.trading_date.extend_from_slice(&other.trading_date);
        Ok(())
    }

    /// Copies the rows of an index range.
    pub fn slice(&self, rows: std::ops::Range<usize>) -> BucketFrame {
        BucketFrame {
            frame: self.frame.slice(rows.clone()),
            closed: self.closed[rows.clone()].to_vec(),
            complete: self.complete[rows.clone()].to_vec(),
            source_count: self.source_count[rows.clone()].to_vec(),
            expected_count: self.expected_count[rows.clone()].to_vec(),
            trading_date: self.trading_date[rows].to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candle(minute: i64) -> Candle {
        Candle {
            open_time: minute * 60_000,
            open: 1.0,
            high: 2.0,
            low: 0.5,
            close: 1.5,
            volume: 3.0,
            open_interest: None,
        }
    }

    #[test]
    fn rows_must_advance() {
        let mut frame = Frame::default();
        frame.push(&candle(1)).unwrap();
        assert!(frame.push(&candle(1)).is_err());
        frame.push(&candle(3)).unwrap();
        assert_eq!(frame.rows_between(60_000, 180_000), 0..1);
        assert_eq!(frame.candle(1).open_interest, None);
    }

    #[test]
    fn columns_of_unequal_length_or_order_are_refused() {
        let column = vec![1.0, 1.0];
        let ohlcv = || std::array::from_fn::<_, 5, _>(|_| column.clone());
        assert!(Frame::from_columns(vec![1, 2], ohlcv(), vec![f64::NAN; 2]).is_ok());
        assert!(Frame::from_columns(vec![2, 2], ohlcv(), vec![f64::NAN; 2]).is_err());
        assert!(Frame::from_columns(vec![1, 2, 3], ohlcv(), vec![f64::NAN; 2]).is_err());
    }
}

//! Wire messages to domain types and back. Every refusal names the request field.

use market::{
    ActionTerms, Adjustment, BucketFrame, Candle, CorporateAction, Frame, Instrument, InstrumentKey, Millis, TimeRange,
    Timeframe,
};
use prost_types::Timestamp;

use crate::{ingestion, wire};

/// A request field that was refused: what it is called, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FieldError {
    pub field: String,
    pub reason: String,
}

impl FieldError {
    pub fn new(field: impl Into<String>, reason: impl ToString) -> Self {
        Self { field: field.into(), reason: reason.to_string() }
    }
}

/// Parses a required instrument key.
pub fn instrument_key(field: &str, text: &str) -> Result<InstrumentKey, FieldError> {
    text.parse().map_err(|error: market::Error| FieldError::new(field, error))
}

/// Parses a list of keys, at least one and at most `limit`; duplicates are kept once, in order.
pub fn instrument_keys(field: &str, texts: &[String], limit: usize) -> Result<Vec<InstrumentKey>, FieldError> {
    if texts.is_empty() || texts.len() > limit {
        return Err(FieldError::new(field, format!("{} keys given; accepted: 1 to {limit}", texts.len())));
    }
    let mut seen = std::collections::HashSet::with_capacity(texts.len());
    let mut keys = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let key = instrument_key(&format!("{field}[{index}]"), text)?;
        if seen.insert(key.clone()) {
            keys.push(key);
        }
    }
    Ok(keys)
}

/// Parses a timeframe; empty text takes `default`, and is refused where there is none.
pub fn timeframe(field: &str, text: &str, default: Option<Timeframe>) -> Result<Timeframe, FieldError> {
    match (text.is_empty(), default) {
        (true, Some(default)) => Ok(default),
        _ => text.parse().map_err(|error: market::Error| FieldError::new(field, error)),
    }
}

/// Parses a range; an absent bound reaches as far as instants are accepted.
pub fn time_range(range: Option<&wire::TimeRange>) -> Result<TimeRange, FieldError> {
    let bound = |stamp: Option<&Timestamp>, field: &str, open: Millis| match stamp {
        Some(stamp) => millis(stamp).ok_or_else(|| FieldError::new(field, "is not a valid instant")),
        None => Ok(open),
    };
    let (start, end) = match range {
        None => (None, None),
        Some(range) => (range.start_time.as_ref(), range.end_time.as_ref()),
    };
    let start = bound(start, "range.start_time", TimeRange::ALL.start())?;
    let end = bound(end, "range.end_time", TimeRange::ALL.end())?;
    TimeRange::new(start, end).map_err(|error| FieldError::new("range", error))
}

/// The wire form of a range; bounds at the limits of what is accepted become absent.
pub fn wire_range(range: TimeRange) -> wire::TimeRange {
    wire::TimeRange {
        start_time: (range.start() > TimeRange::ALL.start()).then(|| timestamp(range.start())),
        end_time: (range.end() < TimeRange::ALL.end()).then(|| timestamp(range.end())),
    }
}

/// Stored candles as columns.
pub fn columns_of_frame(frame: &Frame) -> wire::CandleColumns {
    let interest = frame.open_interest();
    let is_absent = interest.iter().all(|value| value.is_nan());
    wire::CandleColumns {
        open_time_ms: frame.open_time().to_vec(),
        open: frame.open().to_vec(),
        high: frame.high().to_vec(),
        low: frame.low().to_vec(),
        close: frame.close().to_vec(),
        volume: frame.volume().to_vec(),
        open_interest: if is_absent {
            Vec::new()
        } else {
            interest.iter().map(|value| if value.is_nan() { 0.0 } else { *value }).collect()
        },
        open_interest_absent: if is_absent { Vec::new() } else { absent_rows(interest) },
    }
}

fn absent_rows(values: &[f64]) -> Vec<wire::RowRange> {
    let mut ranges: Vec<wire::RowRange> = Vec::new();
    for row in (0..values.len() as u32).filter(|row| values[*row as usize].is_nan()) {
        match ranges.last_mut() {
            Some(range) if range.end == row => range.end = row + 1,
            _ => ranges.push(wire::RowRange { start: row, end: row + 1 }),
        }
    }
    ranges
}

/// Columns back to a frame.
pub fn frame_of_columns(columns: wire::CandleColumns) -> Result<Frame, FieldError> {
    let refuse = |reason: String| FieldError::new("candles", reason);
    let mut interest = columns.open_interest;
    if interest.is_empty() {
        interest = vec![f64::NAN; columns.open_time_ms.len()];
    }
    for range in columns.open_interest_absent {
        let rows = interest.get_mut(range.start as usize..range.end as usize);
        rows.ok_or_else(|| refuse(format!("rows {}..{} are not there", range.start, range.end)))?.fill(f64::NAN);
    }
    let ohlcv = [columns.open, columns.high, columns.low, columns.close, columns.volume];
    Frame::from_columns(columns.open_time_ms, ohlcv, interest).map_err(|error| refuse(error.to_string()))
}

pub fn timestamp(at: Millis) -> Timestamp {
    Timestamp { seconds: at.div_euclid(1000), nanos: (at.rem_euclid(1000) * 1_000_000) as i32 }
}

/// `None` for a stamp that protobuf itself calls invalid.
pub fn millis(stamp: &Timestamp) -> Option<Millis> {
    if !(0..1_000_000_000).contains(&stamp.nanos) {
        return None;
    }
    stamp.seconds.checked_mul(1000)?.checked_add(i64::from(stamp.nanos) / 1_000_000)
}

/// Reads a delivered candle; whether it is acceptable is [`Candle::check`]'s business. `None` without a valid open time.
pub fn candle(message: &wire::Candle) -> Option<Candle> {
    Some(Candle {
        open_time: millis(message.open_time.as_ref()?)?,
        open: message.open,
        high: message.high,
        low: message.low,
        close: message.close,
        volume: message.volume,
        open_interest: message.open_interest,
    })
}

pub fn wire_candle(candle: &Candle) -> wire::Candle {
    wire::Candle {
        open_time: Some(timestamp(candle.open_time)),
        open: candle.open,
        high: candle.high,
        low: candle.low,
        close: candle.close,
        volume: candle.volume,
        open_interest: candle.open_interest,
    }
}

/// Rows of an answer, in order.
pub fn wire_bucket_candles(frame: &BucketFrame) -> Vec<wire::BucketCandle> {
    frame
        .frame
        .candles()
        .enumerate()
        .map(|(row, candle)| wire::BucketCandle {
            open_time: Some(timestamp(candle.open_time)),
            open: candle.open,
            high: candle.high,
            low: candle.low,
            close: candle.close,
            volume: candle.volume,
            open_interest: candle.open_interest,
            closed: frame.closed[row],
            complete: frame.complete[row],
            source_count: frame.source_count[row],
            expected_count: frame.expected_count[row],
            trading_date: market::format_date(frame.trading_date[row]),
        })
        .collect()
}

pub fn wire_instrument(instrument: &Instrument) -> wire::Instrument {
    wire::Instrument {
        instrument_key: instrument.key.to_string(),
        name: instrument.name.clone(),
        exchange: instrument.exchange.clone(),
        currency: instrument.currency.clone(),
        tick_size: instrument.tick_size,
        calendar: instrument.calendar.clone(),
    }
}

/// Reads a corporate action; `field` is what the message is called in its request.
pub fn corporate_action(
    field: &str,
    message: &ingestion::CorporateAction,
) -> Result<(InstrumentKey, CorporateAction), FieldError> {
    use ingestion::corporate_action::Action;

    let key = instrument_key(&format!("{field}.instrument_key"), &message.instrument_key)?;
    let date_field = || format!("{field}.ex_date");
    let ex_date = market::parse_date(&message.ex_date).map_err(|error| FieldError::new(date_field(), error))?;
    if !(1900..2200).contains(&ex_date.year()) {
        return Err(FieldError::new(date_field(), format!("{ex_date} given; accepted: 1900-01-01 to 2199-12-31")));
    }
    let terms = match message.action {
        Some(Action::Split(ingestion::Split { from, to })) => ActionTerms::Split { from, to },
        Some(Action::Dividend(ingestion::Dividend { amount })) => ActionTerms::Dividend { amount },
        None => return Err(FieldError::new(format!("{field}.action"), "is missing; accepted: split, dividend")),
    };
    let action = CorporateAction { ex_date, terms };
    match action.check() {
        Ok(()) => Ok((key, action)),
        Err(error) => Err(FieldError::new(format!("{field}.{}", error.field()), error)),
    }
}

pub fn wire_action(key: &InstrumentKey, action: &CorporateAction) -> ingestion::CorporateAction {
    use ingestion::corporate_action::Action;

    let terms = match action.terms {
        ActionTerms::Split { from, to } => Action::Split(ingestion::Split { from, to }),
        ActionTerms::Dividend { amount } => Action::Dividend(ingestion::Dividend { amount }),
    };
    ingestion::CorporateAction {
        instrument_key: key.to_string(),
        ex_date: market::format_date(action.ex_date),
        action: Some(terms),
    }
}

/// Reads how candles are to be adjusted.
pub fn adjustment(field: &str, value: i32) -> Result<Adjustment, FieldError> {
    match wire::Adjustment::try_from(value) {
        Ok(wire::Adjustment::Unspecified) => Ok(Adjustment::Raw),
        Ok(wire::Adjustment::Splits) => Ok(Adjustment::Splits),
        Ok(wire::Adjustment::SplitsAndDividends) => Ok(Adjustment::SplitsAndDividends),
        Err(_) => {
            let accepted = "0 (as stored), ADJUSTMENT_SPLITS, ADJUSTMENT_SPLITS_AND_DIVIDENDS";
            Err(FieldError::new(field, format!("{value} given; accepted: {accepted}")))
        }
    }
}

pub fn wire_adjustment(adjustment: Adjustment) -> wire::Adjustment {
    match adjustment {
        Adjustment::Raw => wire::Adjustment::Unspecified,
        Adjustment::Splits => wire::Adjustment::Splits,
        Adjustment::SplitsAndDividends => wire::Adjustment::SplitsAndDividends,
    }
}

/// Replaces NaN by 0 and names those rows in `null_ranges`.
pub fn wire_column(name: &str, mut values: Vec<f64>) -> wire::Column {
    let mut null_ranges: Vec<wire::RowRange> = Vec::new();
    for (row, value) in values.iter_mut().enumerate() {
        if value.is_finite() {
            continue;
        }
        *value = 0.0;
        let row = row as u32;
        match null_ranges.last_mut() {
            Some(last) if last.end == row => last.end = row + 1,
            _ => null_ranges.push(wire::RowRange { start: row, end: row + 1 }),
        }
    }
    wire::Column { name: name.to_owned(), values, null_ranges }
}

/// The values of a column, `None` where undefined. Ranges outside the column are ignored.
pub fn column_values(column: &wire::Column) -> Vec<Option<f64>> {
    let mut values: Vec<Option<f64>> = column.values.iter().copied().map(Some).collect();
    for range in &column.null_ranges {
        let end = (range.end as usize).min(values.len());
        let start = (range.start as usize).min(end);
        values[start..end].fill(None);
    }
    values
}

/// Page size: 0 takes `default`, outside 1..=1000 is refused.
pub fn page_size(value: i32, default: usize) -> Result<usize, FieldError> {
    match value {
        0 => Ok(default),
        1..=1000 => Ok(value as usize),
        _ => Err(FieldError::new("page_size", format!("{value} given; accepted: 1 to 1000, 0 for the default"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undefined_values_become_null_ranges_and_return() {
        let column = wire_column("x", vec![f64::NAN, f64::NAN, 1.0, f64::NAN, 2.0, f64::INFINITY]);
        assert!(column.values.iter().all(|value| value.is_finite()));
        let ranges: Vec<_> = column.null_ranges.iter().map(|range| (range.start, range.end)).collect();
        assert_eq!(ranges, [(0, 2), (3, 4), (5, 6)]);
        assert_eq!(column_values(&column), [None, None, Some(1.0), None, Some(2.0), None]);
    }

    #[test]
    fn open_bounds_reach_everything_and_reversed_ranges_name_the_field() {
        assert_eq!(time_range(None).unwrap(), TimeRange::ALL);
        assert_eq!(wire_range(TimeRange::ALL), wire::TimeRange::default());
        let reversed = wire::TimeRange { start_time: Some(timestamp(2_000)), end_time: Some(timestamp(1_000)) };
        assert_eq!(time_range(Some(&reversed)).unwrap_err().field, "range");
        let bad = wire::TimeRange { start_time: Some(Timestamp { seconds: i64::MAX, nanos: 0 }), end_time: None };
        assert_eq!(time_range(Some(&bad)).unwrap_err().field, "range.start_time");
    }

    #[test]
    fn instants_before_the_epoch_round_trip() {
        for at in [-1, -1_001, 0, 1_471_318_500_123] {
            assert_eq!(millis(&timestamp(at)), Some(at));
        }
    }

    #[test]
    fn key_lists_are_bounded_and_name_the_bad_one() {
        let keys = vec!["US|SPY".to_owned(), "oops".to_owned()];
        assert_eq!(instrument_keys("instrument_keys", &keys, 10).unwrap_err().field, "instrument_keys[1]");
        assert!(instrument_keys("instrument_keys", &[], 10).is_err());
        let twice = vec!["US|SPY".to_owned(), "us|SPY".to_owned()];
        assert_eq!(instrument_keys("instrument_keys", &twice, 10).unwrap().len(), 1);
    }
}

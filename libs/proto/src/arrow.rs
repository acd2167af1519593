//! Arrow schemas of bulk frames and their conversion to domain frames.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{
    Array, ArrayRef, BooleanArray, Date32Array, Float64Array, PrimitiveArray, RecordBatch, TimestampMillisecondArray,
    UInt32Array,
};
use arrow_buffer::NullBuffer;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};
use market::{BucketFrame, Date, Frame};

use crate::convert::FieldError;

/// Names of the OHLCV columns, in schema order after `open_time`.
const OHLCV: [&str; 5] = ["open", "high", "low", "close", "volume"];
/// Day 0 of Arrow's date32.
const EPOCH: Date = Date::constant(1970, 1, 1);

fn time_field() -> Field {
    Field::new("open_time", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false)
}

fn candle_fields() -> Vec<Field> {
    let mut fields = vec![time_field()];
    fields.extend(OHLCV.map(|name| Field::new(name, DataType::Float64, false)));
    fields.push(Field::new("open_interest", DataType::Float64, true));
    fields
}

/// Schema metadata every frame carries.
pub fn metadata(instrument_key: &str, timeframe: &str, revision: u64) -> HashMap<String, String> {
    HashMap::from([
        ("instrument_key".to_owned(), instrument_key.to_owned()),
        ("timeframe".to_owned(), timeframe.to_owned()),
        ("revision".to_owned(), revision.to_string()),
    ])
}

/// Schema of stored candles: open_time, open, high, low, close, volume, open_interest.
pub fn candle_schema(metadata: HashMap<String, String>) -> SchemaRef {
    Arc::new(Schema::new_with_metadata(candle_fields(), metadata))
}

/// Schema of aggregated candles, followed by nullable float64 columns of the given names.
pub fn bucket_schema(columns: &[String], metadata: HashMap<String, String>) -> SchemaRef {
    let mut fields = candle_fields();
    fields.extend([
        Field::new("closed", DataType::Boolean, false),
        Field::new("complete", DataType::Boolean, false),
        Field::new("source_count", DataType::UInt32, false),
        Field::new("expected_count", DataType::UInt32, false),
        Field::new("trading_date", DataType::Date32, false),
    ]);
    fields.extend(columns.iter().map(|name| Field::new(name, DataType::Float64, true)));
    Arc::new(Schema::new_with_metadata(fields, metadata))
}

/// Schema of indicator columns: open_time, then nullable float64 columns of the given names.
pub fn indicator_schema(columns: &[String], metadata: HashMap<String, String>) -> SchemaRef {
    let mut fields = vec![time_field()];
    fields.extend(columns.iter().map(|name| Field::new(name, DataType::Float64, true)));
    Arc::new(Schema::new_with_metadata(fields, metadata))
}

/// A nullable column: NaN becomes null.
pub fn nullable_column(mut values: Vec<f64>) -> ArrayRef {
    if values.iter().all(|value| value.is_finite()) {
        return Arc::new(Float64Array::from(values));
    }
    let nulls: NullBuffer = values.iter().map(|value| value.is_finite()).collect();
    values.iter_mut().filter(|value| !value.is_finite()).for_each(|value| *value = 0.0);
    Arc::new(Float64Array::new(values.into(), Some(nulls)))
}

fn candle_columns(frame: Frame) -> Vec<ArrayRef> {
    let (open_time, ohlcv, open_interest) = frame.into_columns();
    let times = TimestampMillisecondArray::from(open_time).with_timezone("UTC");
    let mut columns: Vec<ArrayRef> = vec![Arc::new(times)];
    columns.extend(ohlcv.map(|values| Arc::new(Float64Array::from(values)) as ArrayRef));
    columns.push(nullable_column(open_interest));
    columns
}

/// Stored candles as a batch of [`candle_schema`].
pub fn candle_batch(schema: &SchemaRef, frame: Frame) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_new(Arc::clone(schema), candle_columns(frame))
}

/// Aggregated candles as a batch of [`bucket_schema`]; `columns` as long as the frame, NaN where undefined.
pub fn bucket_batch(
    schema: &SchemaRef,
    buckets: BucketFrame,
    columns: Vec<Vec<f64>>,
) -> Result<RecordBatch, ArrowError> {
    let dates = dates32(&buckets.trading_date);
    let mut arrays = candle_columns(buckets.frame);
    arrays.push(Arc::new(BooleanArray::from(buckets.closed)));
    arrays.push(Arc::new(BooleanArray::from(buckets.complete)));
    arrays.push(Arc::new(UInt32Array::from(buckets.source_count)));
    arrays.push(Arc::new(UInt32Array::from(buckets.expected_count)));
    arrays.push(Arc::new(Date32Array::from(dates)));
    arrays.extend(columns.into_iter().map(nullable_column));
    RecordBatch::try_new(Arc::clone(schema), arrays)
}

/// Days since the epoch of each date; of equal neighbours only the first is counted out, which costs more than all else here.
fn dates32(dates: &[Date]) -> Vec<i32> {
    let mut days = Vec::with_capacity(dates.len());
    let mut last: Option<(Date, i32)> = None;
    for date in dates {
        let day = match last {
            Some((known, day)) if known == *date => day,
            _ => date32(*date),
        };
        last = Some((*date, day));
        days.push(day);
    }
    days
}

/// Indicator columns as a batch of [`indicator_schema`].
pub fn indicator_batch(
    schema: &SchemaRef,
    open_time: Vec<i64>,
    columns: Vec<Vec<f64>>,
) -> Result<RecordBatch, ArrowError> {
    let times = TimestampMillisecondArray::from(open_time).with_timezone("UTC");
    let mut arrays: Vec<ArrayRef> = vec![Arc::new(times)];
    arrays.extend(columns.into_iter().map(nullable_column));
    RecordBatch::try_new(Arc::clone(schema), arrays)
}

/// Days since the epoch.
pub fn date32(date: Date) -> i32 {
    (date - EPOCH).get_days()
}

fn date_from32(days: i32) -> Result<Date, FieldError> {
    let span = jiff::Span::new().try_days(days).map_err(|error| FieldError::new("trading_date", error))?;
    EPOCH.checked_add(span).map_err(|error| FieldError::new("trading_date", error))
}

fn primitive<'a, T>(batch: &'a RecordBatch, name: &str) -> Result<&'a PrimitiveArray<T>, FieldError>
where
    T: arrow_array::ArrowPrimitiveType,
{
    let column = batch.column_by_name(name).ok_or_else(|| FieldError::new(name, "column is missing"))?;
    column
        .as_any()
        .downcast_ref()
        .ok_or_else(|| FieldError::new(name, format!("column is {}, expected {}", column.data_type(), T::DATA_TYPE)))
}

fn required(batch: &RecordBatch, name: &str) -> Result<Vec<f64>, FieldError> {
    let column = primitive::<Float64Type>(batch, name)?;
    if column.null_count() > 0 {
        return Err(FieldError::new(name, "column holds nulls"));
    }
    Ok(column.values().to_vec())
}

/// The named float64 column, NaN where null.
pub fn float_column(batch: &RecordBatch, name: &str) -> Result<Vec<f64>, FieldError> {
    let column = primitive::<Float64Type>(batch, name)?;
    Ok(match column.nulls() {
        None => column.values().to_vec(),
        Some(nulls) => {
            column.values().iter().zip(nulls).map(|(value, valid)| if valid { *value } else { f64::NAN }).collect()
        }
    })
}

/// Reads `open_time` as milliseconds; any timestamp unit is refused but milliseconds.
pub fn open_times(batch: &RecordBatch) -> Result<Vec<i64>, FieldError> {
    let column = primitive::<TimestampMillisecondType>(batch, "open_time")?;
    if column.null_count() > 0 {
        return Err(FieldError::new("open_time", "column holds nulls"));
    }
    Ok(column.values().to_vec())
}

/// Reads candle columns by name; other columns are ignored, a missing `open_interest` is absent everywhere.
pub fn frame(batch: &RecordBatch) -> Result<Frame, FieldError> {
    let open_interest = match batch.column_by_name("open_interest") {
        Some(_) => float_column(batch, "open_interest")?,
        None => vec![f64::NAN; batch.num_rows()],
    };
    let mut ohlcv: [Vec<f64>; 5] = Default::default();
    for (values, name) in ohlcv.iter_mut().zip(OHLCV) {
        *values = required(batch, name)?;
    }
    Frame::from_columns(open_times(batch)?, ohlcv, open_interest).map_err(|error| FieldError::new("batch", error))
}

/// Reads rows for ingestion as clients send them, `None` where a row has no valid open time.
///
/// Accepted: `open_time` as a timestamp of s, ms, us or ns, with or without a zone (a stamp without one is UTC; finer digits than
/// milliseconds are truncated, as in every message); the others as float or integer columns of any width (integers beyond
/// 2^53 are rounded). Order, duplicates and NaN are kept, nulls become NaN; a missing, null or NaN `open_interest` is absent.
///
/// Errors: a column that is missing or of another type, naming what is accepted.
pub fn delivered_candles(batch: &RecordBatch) -> Result<Vec<Option<market::Candle>>, FieldError> {
    let times = delivered_times(batch)?;
    let mut ohlcv: [Vec<f64>; 5] = Default::default();
    for (values, name) in ohlcv.iter_mut().zip(OHLCV) {
        *values = delivered_floats(batch, name)?;
    }
    let [open, high, low, close, volume] = ohlcv;
    let interest = match batch.column_by_name("open_interest") {
        Some(column) if *column.data_type() != DataType::Null => delivered_floats(batch, "open_interest")?,
        _ => vec![f64::NAN; batch.num_rows()],
    };
    let candle = |(row, open_time): (usize, Option<i64>)| {
        Some(market::Candle {
            open_time: open_time?,
            open: open[row],
            high: high[row],
            low: low[row],
            close: close[row],
            volume: volume[row],
            open_interest: (!interest[row].is_nan()).then_some(interest[row]),
        })
    };
    Ok(times.into_iter().enumerate().map(candle).collect())
}

fn delivered_times(batch: &RecordBatch) -> Result<Vec<Option<i64>>, FieldError> {
    let name = "open_time";
    let column = batch.column_by_name(name).ok_or_else(|| FieldError::new(name, "column is missing"))?;
    Ok(match column.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => {
            primitive::<TimestampSecondType>(batch, name)?.iter().map(|at| at?.checked_mul(1000)).collect()
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            primitive::<TimestampMillisecondType>(batch, name)?.iter().collect()
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            primitive::<TimestampMicrosecondType>(batch, name)?.iter().map(|at| Some(at?.div_euclid(1000))).collect()
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => primitive::<TimestampNanosecondType>(batch, name)?
            .iter()
            .map(|at| Some(at?.div_euclid(1_000_000)))
            .collect(),
        other => {
            let reason = format!("column is {other}, expected a timestamp of s, ms, us or ns in UTC");
            return Err(FieldError::new(name, reason));
        }
    })
}

fn delivered_floats(batch: &RecordBatch, name: &str) -> Result<Vec<f64>, FieldError> {
    fn widened<T: ArrowPrimitiveType>(
        batch: &RecordBatch,
        name: &str,
        widen: impl Fn(T::Native) -> f64,
    ) -> Result<Vec<f64>, FieldError> {
        let column = primitive::<T>(batch, name)?;
        Ok(column.iter().map(|value| value.map_or(f64::NAN, &widen)).collect())
    }
    let column = batch.column_by_name(name).ok_or_else(|| FieldError::new(name, "column is missing"))?;
    match column.data_type() {
        DataType::Float64 => float_column(batch, name),
        DataType::Float32 => widened::<Float32Type>(batch, name, f64::from),
        DataType::Int8 => widened::<Int8Type>(batch, name, f64::from),
        DataType::Int16 => widened::<Int16Type>(batch, name, f64::from),
        DataType::Int32 => widened::<Int32Type>(batch, name, f64::from),
        DataType::Int64 => widened::<Int64Type>(batch, name, |value| value as f64),
        DataType::UInt8 => widened::<UInt8Type>(batch, name, f64::from),
        DataType::UInt16 => widened::<UInt16Type>(batch, name, f64::from),
        DataType::UInt32 => widened::<UInt32Type>(batch, name, f64::from),
        DataType::UInt64 => widened::<UInt64Type>(batch, name, |value| value as f64),
        other => Err(FieldError::new(name, format!("column is {other}, expected a float or integer column"))),
    }
}

/// Reads a batch of [`bucket_schema`].
pub fn bucket_frame(batch: &RecordBatch) -> Result<BucketFrame, FieldError> {
    let flags = |name: &str| -> Result<Vec<bool>, FieldError> {
        let column = batch.column_by_name(name).ok_or_else(|| FieldError::new(name, "column is missing"))?;
        let column: &BooleanArray =
            column.as_any().downcast_ref().ok_or_else(|| FieldError::new(name, "column is not boolean"))?;
        Ok(column.values().iter().collect())
    };
    let counts = |name: &str| -> Result<Vec<u32>, FieldError> {
        let column: &UInt32Array = primitive::<UInt32Type>(batch, name)?;
        Ok(column.values().to_vec())
    };
    let dates: &Date32Array = primitive::<Date32Type>(batch, "trading_date")?;
    Ok(BucketFrame {
        frame: frame(batch)?,
        closed: flags("closed")?,
        complete: flags("complete")?,
        source_count: counts("source_count")?,
        expected_count: counts("expected_count")?,
        trading_date: dates.values().iter().map(|days| date_from32(*days)).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame_of(rows: i64) -> Frame {
        let mut frame = Frame::default();
        for row in 0..rows {
            let candle = market::Candle {
                open_time: row * 60_000,
                open: 1.0,
                high: 2.0,
                low: 0.5,
                close: 1.5,
                volume: row as f64,
                open_interest: (row % 2 == 0).then_some(0.0),
            };
            frame.push(&candle).unwrap();
        }
        frame
    }

    /// NaN differs from itself, so frames with absent open interest are compared by candle.
    fn rows(frame: &Frame) -> Vec<market::Candle> {
        frame.candles().collect()
    }

    #[test]
    fn frames_survive_the_batch_with_absent_open_interest_apart_from_zero() {
        let before = frame_of(5);
        let schema = candle_schema(metadata("US|SPY", "1m", 7));
        let batch = candle_batch(&schema, before.clone()).unwrap();
        assert_eq!(batch.column_by_name("open_interest").unwrap().null_count(), 2);
        assert_eq!(rows(&frame(&batch).unwrap()), rows(&before));
        let delivered: Vec<_> = delivered_candles(&batch).unwrap().into_iter().flatten().collect();
        assert_eq!(delivered, rows(&before));
    }

    #[test]
    fn delivered_columns_of_other_widths_and_units_mean_the_same() {
        use arrow_array::{Float32Array, Int64Array, TimestampMicrosecondArray, TimestampSecondArray};
        let batch = |times: ArrayRef, close: ArrayRef| {
            let price = || Arc::new(Float32Array::from(vec![Some(1.5), None])) as ArrayRef;
            let columns = [("open", price()), ("high", price()), ("low", price()), ("close", close)];
            let volume = Arc::new(Int64Array::from(vec![7, 8])) as ArrayRef;
            let columns = columns.into_iter().chain([("open_time", times), ("volume", volume)]);
            RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
        };
        let seconds = || Arc::new(TimestampSecondArray::from(vec![Some(-60), None])) as ArrayRef;
        let read = delivered_candles(&batch(seconds(), Arc::new(Int64Array::from(vec![2, 2])))).unwrap();
        let first = read[0].unwrap();
        assert_eq!((first.open_time, first.open, first.close, first.volume), (-60_000, 1.5, 2.0, 7.0));
        assert_eq!((first.open_interest, read[1]), (None, None));
        let micros = TimestampMicrosecondArray::from(vec![60_000_000, i64::MIN]).with_timezone("+00:00");
        let read = delivered_candles(&batch(Arc::new(micros), Arc::new(Int64Array::from(vec![2, 2])))).unwrap();
        assert_eq!(read[0].unwrap().open_time, 60_000);
        assert!(read[1].unwrap().open.is_nan());
        let refused =
            delivered_candles(&batch(seconds(), Arc::new(BooleanArray::from(vec![true, false])))).unwrap_err();
        assert_eq!(refused.field, "close");
        assert!(refused.reason.contains("expected a float or integer"), "{refused}");
        let refused = delivered_candles(&batch(Arc::new(Int64Array::from(vec![1, 2])), seconds())).unwrap_err();
        assert_eq!(refused.field, "open_time");
    }

    #[test]
    fn buckets_survive_the_batch_and_columns_hide_nan() {
        let buckets = BucketFrame {
            frame: frame_of(3),
            closed: vec![true, true, false],
            complete: vec![true, false, false],
            source_count: vec![5, 4, 1],
            expected_count: vec![5, 5, 5],
            trading_date: vec![Date::constant(2016, 8, 16), Date::constant(1969, 12, 31), Date::constant(2024, 2, 29)],
        };
        let names = vec!["sma:9".to_owned()];
        let schema = bucket_schema(&names, metadata("US|SPY", "5m", 7));
        let batch = bucket_batch(&schema, buckets.clone(), vec![vec![f64::NAN, 1.0, 2.0]]).unwrap();
        let back = bucket_frame(&batch).unwrap();
        assert_eq!(rows(&back.frame), rows(&buckets.frame));
        assert_eq!(back.trading_date, buckets.trading_date);
        assert_eq!((back.closed, back.complete), (buckets.closed, buckets.complete));
        assert_eq!(batch.column_by_name("sma:9").unwrap().null_count(), 1);
        assert!(float_column(&batch, "sma:9").unwrap()[0].is_nan());
    }

    #[test]
    fn a_batch_of_another_shape_names_the_column() {
        let schema = indicator_schema(&["close".into()], HashMap::new());
        let batch = indicator_batch(&schema, vec![0], vec![vec![1.0]]).unwrap();
        assert_eq!(frame(&batch).unwrap_err().field, "open");
    }
}

//! Columns of a put, checked and brought to the types candles have, where that changes no value.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Int64Type, TimestampMicrosecondType, TimestampNanosecondType, UInt64Type};
use arrow_array::{Array, ArrayRef, Float64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use market::Candle;
use proto::convert::FieldError;

const TIME: &str = "open_time";
const NUMBERS: [&str; 6] = ["open", "high", "low", "close", "volume", "open_interest"];
const EXPECTED: &str = "expected open_time (timestamp), open, high, low, close, volume (float64) and, where there is one, \
     open_interest (float64); other columns are ignored";
const NUMBER_TYPES: &str = "expected float64; float32, integers and decimals are taken where that changes no value";
const TIME_TYPES: &str =
    "expected timestamp[ms, UTC]; timestamps of s, us and ns and of any zone are taken where that changes no value";
/// Names of the columns of a wrong schema that an error repeats.
const MAX_NAMED: usize = 20;
/// Whole numbers up to here are exact in a double, and so are their quotients by powers of ten up to 10^22 to the nearest double.
const MAX_EXACT: u64 = 1 << 53;
const MAX_EXACT_SCALE: i8 = 22;
/// Decimals of so many digits are told apart, and printed back the same, by the doubles nearest to them.
const MAX_DECIMAL: i128 = 1_000_000_000_000_000;

/// The rows of a batch, `None` where a row has no open time.
///
/// Errors: a column that is missing, of another type, or holds a value that a candle would not hold exactly: naming the column, what
/// was got and what is expected.
pub(super) fn delivered_candles(batch: &RecordBatch) -> Result<Vec<Option<Candle>>, FieldError> {
    let schema = batch.schema_ref();
    for name in [TIME].iter().chain(&NUMBERS[..5]) {
        if schema.column_with_name(name).is_none() {
            return Err(missing(name, schema));
        }
    }
    let mut fields = vec![schema.field_with_name(TIME).map_err(|error| FieldError::new(TIME, error))?.clone()];
    let mut columns = vec![exact_times(column(batch, TIME)?)?];
    for name in NUMBERS {
        if schema.column_with_name(name).is_none() {
            continue;
        }
        let values = exact_numbers(name, column(batch, name)?)?;
        fields.push(Field::new(name, values.data_type().clone(), true));
        columns.push(values);
    }
    fields[0] = fields[0].clone().with_data_type(columns[0].data_type().clone()).with_nullable(true);
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns);
    proto::arrow::delivered_candles(&batch.map_err(|error| FieldError::new("batch", error))?)
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, FieldError> {
    batch.column_by_name(name).ok_or_else(|| missing(name, batch.schema_ref()))
}

fn missing(name: &str, schema: &Schema) -> FieldError {
    let mut got: Vec<String> = schema
        .fields()
        .iter()
        .take(MAX_NAMED)
        .map(|field| format!("{} ({})", field.name(), field.data_type()))
        .collect();
    if schema.fields().len() > MAX_NAMED {
        got.push("...".to_owned());
    }
    let got = if got.is_empty() { "no columns".to_owned() } else { got.join(", ") };
    FieldError::new(name, format!("column is missing; got {got}; {EXPECTED}"))
}

/// Times as they are, once none of them is finer than a millisecond.
fn exact_times(times: &ArrayRef) -> Result<ArrayRef, FieldError> {
    let finer = |value: Option<i64>, per_ms: i64| value.is_some_and(|value| value.rem_euclid(per_ms) != 0);
    let row = match times.data_type() {
        DataType::Timestamp(TimeUnit::Second | TimeUnit::Millisecond, _) => None,
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            times.as_primitive::<TimestampMicrosecondType>().iter().position(|value| finer(value, 1000))
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            times.as_primitive::<TimestampNanosecondType>().iter().position(|value| finer(value, 1_000_000))
        }
        other => return Err(FieldError::new(TIME, format!("column is {other}; {TIME_TYPES}"))),
    };
    match row {
        None => Ok(Arc::clone(times)),
        Some(row) => {
            let reason =
                format!("row {row} of the batch is finer than a millisecond; a candle opens on a whole minute");
            Err(FieldError::new(TIME, reason))
        }
    }
}

fn exact_numbers(name: &str, values: &ArrayRef) -> Result<ArrayRef, FieldError> {
    let inexact = |row: usize, value: String| {
        let reason = format!("{value} in row {row} of the batch is not exact as float64; {NUMBER_TYPES}");
        Err(FieldError::new(name, reason))
    };
    match values.data_type() {
        DataType::Int64 => {
            let values = values.as_primitive::<Int64Type>();
            let found = values.iter().position(|value| value.is_some_and(|value| value.unsigned_abs() > MAX_EXACT));
            if let Some(row) = found {
                return inexact(row, values.value(row).to_string());
            }
        }
        DataType::UInt64 => {
            let values = values.as_primitive::<UInt64Type>();
            if let Some(row) = values.iter().position(|value| value.is_some_and(|value| value > MAX_EXACT)) {
                return inexact(row, values.value(row).to_string());
            }
        }
        DataType::Decimal128(_, scale) if (0..=MAX_EXACT_SCALE).contains(scale) => {
            let (decimals, scale) = (values.as_primitive::<Decimal128Type>(), *scale);
            let large =
                |value: Option<i128>| value.is_some_and(|value| value.unsigned_abs() >= MAX_DECIMAL.unsigned_abs());
            if let Some(row) = decimals.iter().position(large) {
                return inexact(row, decimals.value_as_string(row));
            }
            let divisor = 10_f64.powi(i32::from(scale));
            let doubles = decimals.iter().map(|value| value.map(|value| value as f64 / divisor));
            return Ok(Arc::new(Float64Array::from_iter(doubles)));
        }
        // A column of nothing is what a library makes of an absent open interest.
        DataType::Null if name == "open_interest" => {}
        DataType::Float64
        | DataType::Float32
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32 => {}
        other => return Err(FieldError::new(name, format!("column is {other}; {NUMBER_TYPES}"))),
    }
    Ok(Arc::clone(values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{
        Decimal128Array, Float32Array, Int64Array, NullArray, StringArray, TimestampMicrosecondArray,
        TimestampSecondArray,
    };

    fn batch(changed: &[(&str, ArrayRef)]) -> RecordBatch {
        let one = || Arc::new(Float64Array::from(vec![1.0])) as ArrayRef;
        let mut columns: Vec<(&str, ArrayRef)> =
            ["open", "high", "low", "close", "volume"].map(|name| (name, one())).to_vec();
        columns.push((TIME, Arc::new(TimestampSecondArray::from(vec![60]))));
        for (name, column) in changed {
            match columns.iter_mut().find(|(other, _)| other == name) {
                Some(found) => found.1 = Arc::clone(column),
                None => columns.push((name, Arc::clone(column))),
            }
        }
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
            .unwrap()
    }

    fn read(name: &str, column: impl Array + 'static) -> Result<Candle, FieldError> {
        delivered_candles(&batch(&[(name, Arc::new(column))])).map(|rows| rows[0].unwrap())
    }

    #[test]
    fn exact_values_of_other_types_are_taken() {
        let decimal = Decimal128Array::from(vec![100_005]).with_precision_and_scale(18, 2).unwrap();
        assert_eq!(read("close", decimal).unwrap().close, 1000.05);
        assert_eq!(read("volume", Int64Array::from(vec![1 << 53])).unwrap().volume, 9_007_199_254_740_992.0);
        assert_eq!(read("close", Float32Array::from(vec![0.1])).unwrap().close, f64::from(0.1_f32));
        assert_eq!(read("open_interest", NullArray::new(1)).unwrap().open_interest, None);
        let kolkata = TimestampMicrosecondArray::from(vec![-60_000_000]).with_timezone("Asia/Kolkata");
        assert_eq!(read(TIME, kolkata).unwrap().open_time, -60_000);
    }

    #[test]
    fn what_would_change_a_value_is_refused_with_the_row() {
        let decimal = Decimal128Array::from(vec![10_i128.pow(17) + 1]).with_precision_and_scale(20, 2).unwrap();
        let cases = [
            read("volume", Int64Array::from(vec![(1 << 53) + 1])),
            read("close", decimal),
            read(TIME, TimestampMicrosecondArray::from(vec![60_000_001])),
        ];
        for (refused, field) in cases.into_iter().zip(["volume", "close", TIME]) {
            let refused = refused.unwrap_err();
            assert_eq!(refused.field, field);
            assert!(refused.reason.contains("row 0"), "{refused}");
        }
    }

    #[test]
    fn a_wrong_schema_names_column_got_and_expected() {
        let refused = read(TIME, Int64Array::from(vec![60])).unwrap_err();
        assert_eq!(refused.field, TIME);
        assert!(refused.reason.contains("Int64") && refused.reason.contains("timestamp[ms, UTC]"), "{refused}");
        let refused = read("low", StringArray::from(vec!["1"])).unwrap_err();
        assert_eq!(refused.field, "low");
        assert!(refused.reason.contains("Utf8") && refused.reason.contains("float64"), "{refused}");
        // Names of another library.
        let others = batch(&[]);
        let names = others.schema().fields().iter().map(|field| field.name().to_uppercase()).collect::<Vec<_>>();
        let others = RecordBatch::try_from_iter(
            names.iter().zip(others.columns()).map(|(name, column)| (name, Arc::clone(column))),
        );
        let refused = delivered_candles(&others.unwrap()).unwrap_err();
        assert_eq!(refused.field, TIME);
        for text in ["OPEN_TIME", "CLOSE (Float64)", "expected open_time (timestamp)"] {
            assert!(refused.reason.contains(text), "{refused}");
        }
    }
}

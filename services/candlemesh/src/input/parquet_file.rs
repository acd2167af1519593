//! Parquet candles: columns key (optional), timestamp, open, high, low, close, volume, open_interest (optional).

use std::fs::File;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, TimestampMillisecondType};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use market::{Candle, InstrumentKey};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Chunker, FileSpec, InputError, Sink, display};

const OHLCV: [&str; 5] = ["open", "high", "low", "close", "volume"];

pub(super) fn read(spec: &FileSpec, sink: &mut dyn Sink) -> Result<(), InputError> {
    let file = display(&spec.path);
    let broken = |line: u64, reason: String| InputError::Broken { file: file.clone(), line, reason };
    let opened = File::open(&spec.path).map_err(|source| InputError::Open { file: file.clone(), source })?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(opened)
        .and_then(|builder| builder.with_batch_size(super::CHUNK_ROWS).build())
        .map_err(|error| broken(0, error.to_string()))?;
    let mut chunker = Chunker::new(sink);
    let mut line = 0;
    for batch in reader {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                chunker.flush();
                return Err(broken(line + 1, error.to_string()));
            }
        };
        let go_on = rows(&batch, spec, &file, &mut line, &mut chunker)?;
        if !go_on {
            return Ok(());
        }
    }
    chunker.flush();
    Ok(())
}

fn rows(
    batch: &RecordBatch,
    spec: &FileSpec,
    file: &str,
    line: &mut u64,
    chunker: &mut Chunker<'_>,
) -> Result<bool, InputError> {
    let column = |name: &'static str| {
        batch.column_by_name(name).ok_or_else(|| InputError::Column { file: file.to_owned(), column: name })
    };
    let wrong = |name: &'static str, found: &DataType| InputError::Broken {
        file: file.to_owned(),
        line: 0,
        reason: format!("column '{name}' is {found}, which is not what a candle file holds"),
    };
    let times = column("timestamp")?;
    if !matches!(times.data_type(), DataType::Timestamp(TimeUnit::Millisecond, _)) {
        return Err(wrong("timestamp", times.data_type()));
    }
    let times = times.as_primitive::<TimestampMillisecondType>();
    let mut ohlcv = Vec::with_capacity(OHLCV.len());
    for name in OHLCV {
        let values = column(name)?;
        ohlcv.push(values.as_primitive_opt::<Float64Type>().ok_or_else(|| wrong(name, values.data_type()))?);
    }
    let interest = batch.column_by_name("open_interest").and_then(|column| column.as_primitive_opt::<Float64Type>());
    let keys = batch.column_by_name("key").and_then(|column| column.as_string_opt::<i32>());
    let mut current: Option<InstrumentKey> = spec.instrument.clone();
    for row in 0..batch.num_rows() {
        *line += 1;
        if let (Some(keys), None) = (keys, &spec.instrument) {
            let text = keys.value(row);
            if current.as_ref().is_none_or(|key| key.as_str() != text) {
                let parsed = text.parse::<InstrumentKey>();
                current = Some(parsed.map_err(|source| InputError::Value { file: file.to_owned(), source })?);
            }
        }
        let Some(key) = &current else { return Err(InputError::NoInstrument { file: file.to_owned() }) };
        if let Some(index) = (0..OHLCV.len()).find(|&index| ohlcv[index].is_null(row)) {
            if !chunker.bad_row(*line, format!("{} is null", OHLCV[index])) {
                return Ok(false);
            }
            continue;
        }
        if times.is_null(row) {
            if !chunker.bad_row(*line, "timestamp is null".to_owned()) {
                return Ok(false);
            }
            continue;
        }
        let candle = Candle {
            open_time: times.value(row),
            open: ohlcv[0].value(row),
            high: ohlcv[1].value(row),
            low: ohlcv[2].value(row),
            close: ohlcv[3].value(row),
            volume: ohlcv[4].value(row),
            open_interest: interest.filter(|column| column.is_valid(row)).map(|column| column.value(row)),
        };
        let key = key.clone();
        if !chunker.push(&key, *line, candle) {
            return Ok(false);
        }
    }
    Ok(true)
}

//! Parquet candles: columns key or instrument_key (optional), timestamp, open, high, low, close, volume, open_interest (optional).

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, TimestampMillisecondArray};
use arrow_schema::{ArrowError, DataType, Field, Schema};
use market::{Candle, InstrumentKey, Millis};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::reader::ChunkReader;

use crate::chunker::{Chunker, Flow, Row, Stop};
use crate::stamp::{self, Stamp, When};
use crate::{CANDLE_HEADER, CHUNK_ROWS, FileSpec, Format, InputError, Stamps, display};

/// Accepted names of columns that vendors name differently, ours first.
const NAMES: [(&str, &[&str]); 3] = [
    ("key", &["key", "instrument_key"]),
    ("open_time", &["timestamp", "open_time", "time", "datetime", "date"]),
    ("open_interest", &["open_interest", "oi"]),
];

pub(crate) fn read(
    spec: &FileSpec,
    opened: impl ChunkReader + 'static,
    chunker: &mut Chunker<'_>,
) -> Result<Format, Stop> {
    let file = display(&spec.path);
    if !matches!(spec.format, Format::Auto | Format::Candles | Format::Upstox) {
        let reason = format!("is Parquet, which {} files are not: pass --format candles or upstox", spec.format);
        return Err(InputError::Unreadable { file, reason }.into());
    }
    let unreadable = |error: parquet::errors::ParquetError| InputError::Unreadable {
        file: file.clone(),
        reason: format!("is truncated or damaged Parquet ({error}): fetch it again"),
    };
    let builder = ParquetRecordBatchReaderBuilder::try_new(opened).map_err(unreadable)?;
    let reader = builder.with_batch_size(CHUNK_ROWS).build().map_err(unreadable)?;
    chunker.stamps = spec.stamps.unwrap_or(Stamps::Open);
    let mut table = Table { spec, file: file.clone(), line: 0, upstox: spec.format == Format::Upstox };
    for batch in reader {
        let outcome = match batch {
            Ok(batch) => table.rows(&batch, chunker),
            Err(error) => {
                let reason = format!("is truncated or damaged Parquet ({error}): fetch it again");
                Err(InputError::Broken { file: file.clone(), line: table.line + 1, reason }.into())
            }
        };
        match outcome {
            Ok(()) => {}
            // The rows before are good and must not be lost with the one that is not.
            Err(Stop::Failed(error)) => return Err(chunker.fail(error)),
            Err(asked) => return Err(asked),
        }
    }
    Ok(if table.upstox { Format::Upstox } else { Format::Candles })
}

struct Table<'a> {
    spec: &'a FileSpec,
    file: String,
    line: u64,
    upstox: bool,
}

impl Table<'_> {
    fn rows(&mut self, batch: &RecordBatch, chunker: &mut Chunker<'_>) -> Flow {
        let batch = named_as_on_the_wire(batch).map_err(|error| self.unreadable(error.to_string()))?;
        for (name, shown) in [
            ("open_time", "timestamp"),
            ("open", "open"),
            ("high", "high"),
            ("low", "low"),
            ("close", "close"),
            ("volume", "volume"),
        ] {
            batch.column_by_name(name).ok_or_else(|| InputError::Column {
                file: self.file.clone(),
                column: shown,
                expected: CANDLE_HEADER,
            })?;
        }
        let stamps = self.stamps(&batch);
        let batch = match &stamps {
            Some(stamps) => with_times(&batch, stamps).map_err(|error| self.unreadable(error.to_string()))?,
            None => batch,
        };
        let candles = proto::arrow::delivered_candles(&batch).map_err(|error| self.unreadable(error.to_string()))?;
        let keys = batch.column_by_name("key");
        if let Some(keys) = keys.filter(|keys| !is_text(keys.data_type())) {
            return Err(self.unreadable(format!("key is {}, expected text", keys.data_type())).into());
        }
        let wall = self.spec.zone.as_ref().filter(|_| has_no_zone(&batch));
        let mut current: Option<InstrumentKey> = self.spec.instrument.clone();
        for (row, candle) in candles.into_iter().enumerate() {
            self.line += 1;
            if let Some(keys) = keys {
                let Some(text) = text(keys, row) else {
                    chunker.bad_row(self.line, "key is null")?;
                    continue;
                };
                if text.is_empty() {
                    chunker.bad_row(self.line, "key is missing")?;
                    continue;
                }
                if current.as_ref().is_none_or(|key| key.as_str() != text) {
                    let parsed = text.parse::<InstrumentKey>();
                    current = Some(parsed.map_err(|source| InputError::Value { file: self.file.clone(), source })?);
                }
            }
            let Some(key) = &current else { return Err(InputError::NoInstrument { file: self.file.clone() }.into()) };
            let read = match (candle, stamps.as_ref().map(|stamps| &stamps[row])) {
                (_, Some(Err(reason))) => Err(reason.clone()),
                (None, _) => Err("timestamp is null".to_owned()),
                (Some(candle), Some(Ok(when))) => Ok(Row { candle, date: when.date }),
                (Some(candle), None) => match wall {
                    Some(zone) => stamp::of_wall(candle.open_time, zone)
                        .map(|when| Row { candle: Candle { open_time: when.at, ..candle }, date: when.date }),
                    None => Ok(Row { candle, date: self.date(candle.open_time) }),
                },
            };
            match read {
                Ok(row) => chunker.push(key, self.line, row)?,
                Err(reason) => chunker.bad_row(self.line, reason)?,
            }
        }
        Ok(())
    }

    fn unreadable(&self, reason: String) -> InputError {
        InputError::Unreadable { file: self.file.clone(), reason }
    }

    /// Stamps written as text; nothing where the column holds timestamps.
    fn stamps(&mut self, batch: &RecordBatch) -> Option<Vec<Result<When, String>>> {
        let column = batch.column_by_name("open_time")?;
        if !is_text(column.data_type()) {
            return None;
        }
        if self.spec.format == Format::Auto {
            self.upstox |= batch.column_by_name("key").is_some();
        }
        let stamp = |row| match text(column, row) {
            Some(text) => stamp::parse(text, Stamp::Text, self.spec.zone.as_ref()),
            None => Err("timestamp is null".to_owned()),
        };
        Some((0..batch.num_rows()).map(stamp).collect())
    }

    /// The trading date of a timestamp, where the zone is known.
    fn date(&self, at: Millis) -> Option<Millis> {
        let local = self.spec.zone.as_ref()?.local(at)?;
        stamp::midnight(local.date())
    }
}

/// The batch with its columns named as in the batches clients send.
fn named_as_on_the_wire(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = batch.schema();
    let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
    for (wire, accepted) in NAMES {
        let found =
            accepted.iter().find_map(|name| fields.iter().position(|field| field.name().eq_ignore_ascii_case(name)));
        if let Some(found) = found {
            fields[found] = Arc::new(fields[found].as_ref().clone().with_name(wire));
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), batch.columns().to_vec())
}

/// The batch with its stamps as milliseconds.
fn with_times(batch: &RecordBatch, stamps: &[Result<When, String>]) -> Result<RecordBatch, ArrowError> {
    let times = TimestampMillisecondArray::from_iter(stamps.iter().map(|when| when.as_ref().ok().map(|when| when.at)));
    let times: ArrayRef = Arc::new(times);
    let schema = batch.schema();
    let index = schema.index_of("open_time")?;
    let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
    fields[index] = Arc::new(Field::new("open_time", times.data_type().clone(), true));
    let mut columns = batch.columns().to_vec();
    columns[index] = times;
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Whether stamps are wall times: pandas writes those of a naive clock so.
fn has_no_zone(batch: &RecordBatch) -> bool {
    let column = batch.column_by_name("open_time");
    column.is_some_and(|column| matches!(column.data_type(), DataType::Timestamp(_, None)))
}

/// A text of a column of any of Arrow's layouts of text; nothing for other columns and nulls.
fn text(column: &ArrayRef, row: usize) -> Option<&str> {
    if column.is_null(row) {
        return None;
    }
    match column.data_type() {
        DataType::Utf8 => Some(column.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Some(column.as_string::<i64>().value(row)),
        DataType::Utf8View => Some(column.as_string_view().value(row)),
        _ => None,
    }
}

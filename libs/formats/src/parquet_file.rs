//! Parquet candles: columns key or instrument_key (optional), timestamp, open, high, low, close, volume, open_interest (optional).

use std::io::{Chain, Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, TimestampMillisecondArray};
use arrow_schema::{ArrowError, DataType, Field, Schema};
use bytes::Bytes;
use market::{Candle, InstrumentKey, Millis};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, Length};

use crate::chunker::{Chunker, Flow, Row, Stop};
use crate::stamp::{self, Stamp, When};
use crate::thrift::{self, Malformed};
use crate::{CANDLE_HEADER, CHUNK_ROWS, FileSpec, Format, InputError, Stamps, display};

/// Length and magic at the end of a file.
const TAIL_BYTES: u64 = 8;
/// Bytes read of a page before its header is checked; more where the header is longer.
const PAGE_HEADER_BYTES: usize = 1024;
/// Longest header of a page, statistics included: as Arrow's C++ reader has it.
const MAX_PAGE_HEADER_BYTES: usize = 16 * 1024 * 1024;

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
    let unreadable = |error: ParquetError| InputError::Unreadable {
        file: file.clone(),
        reason: format!("is truncated or damaged Parquet ({error}): fetch it again"),
    };
    check_footer(&opened).map_err(unreadable)?;
    let metadata = guarded(|| ArrowReaderMetadata::load(&opened, ArrowReaderOptions::new())).map_err(unreadable)?;
    check_places(metadata.metadata(), opened.len()).map_err(unreadable)?;
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(CheckedPages(opened), metadata);
    let mut reader = guarded(|| builder.with_batch_size(CHUNK_ROWS).build()).map_err(unreadable)?;
    chunker.stamps = spec.stamps.unwrap_or(Stamps::Open);
    let mut table = Table { spec, file: file.clone(), line: 0, upstox: spec.format == Format::Upstox };
    while let Some(batch) = guarded(|| reader.next().transpose().map_err(ParquetError::from)).transpose() {
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

/// What the parquet crate makes of a file. It panics on some of what damage does to encoded values, and that is an error of the file.
/// Nothing that a panic may have left half done is used again: reading ends with an error.
fn guarded<T>(read: impl FnOnce() -> ParquetResult<T>) -> ParquetResult<T> {
    let damaged = |_| Err(ParquetError::General("its values do not decode".to_owned()));
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(damaged)
}

/// Looks over the footer. What is no footer at all is left to the parquet crate, which says so.
fn check_footer(opened: &impl ChunkReader) -> ParquetResult<()> {
    let Some(before_tail) = opened.len().checked_sub(TAIL_BYTES) else { return Ok(()) };
    let tail = opened.get_bytes(before_tail, TAIL_BYTES as usize)?;
    let Some((length, b"PAR1")) = tail.split_first_chunk::<4>() else { return Ok(()) };
    let length = u32::from_le_bytes(*length);
    let Some(start) = before_tail.checked_sub(u64::from(length)) else { return Ok(()) };
    thrift::check_footer(&opened.get_bytes(start, length as usize)?).map_err(malformed)
}

/// Looks over where columns are said to lie and how long they are: the parquet crate panics on what is negative.
fn check_places(metadata: &ParquetMetaData, file_bytes: u64) -> ParquetResult<()> {
    let groups = metadata.row_groups();
    for column in groups.iter().flat_map(|group| group.columns()) {
        let first = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
        let sizes = [column.data_page_offset(), column.uncompressed_size(), column.num_values()];
        let end = first.checked_add(column.compressed_size()).filter(|end| first >= 0 && *end >= first);
        let is_inside = end.and_then(|end| u64::try_from(end).ok()).is_some_and(|end| end <= file_bytes);
        if !is_inside || sizes.iter().any(|size| *size < 0) {
            let path = column.column_path();
            return Err(ParquetError::General(format!("column '{path}' lies outside the file by its metadata")));
        }
    }
    match groups.iter().all(|group| group.num_rows() >= 0) {
        true => Ok(()),
        false => Err(ParquetError::General("a row group has a negative number of rows by the metadata".to_owned())),
    }
}

fn malformed(reason: Malformed) -> ParquetError {
    ParquetError::General(reason.to_string())
}

/// A file whose page headers are looked over before they are read.
struct CheckedPages<R>(R);

impl<R: Length> Length for CheckedPages<R> {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl<R: ChunkReader> ChunkReader for CheckedPages<R> {
    type T = Chain<Cursor<Vec<u8>>, R::T>;

    /// The parquet crate reads a page so, header first; the metadata is read already.
    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        let mut page = self.0.get_read(start)?;
        let mut head = Vec::new();
        loop {
            let wanted = head.len().max(PAGE_HEADER_BYTES);
            let read = page.by_ref().take(wanted as u64).read_to_end(&mut head)?;
            match thrift::check_page_header(&head) {
                Ok(()) => return Ok(Cursor::new(head).chain(page)),
                Err(Malformed::Ended) if read == wanted && head.len() < MAX_PAGE_HEADER_BYTES => {}
                Err(reason) => return Err(malformed(reason)),
            }
        }
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        self.0.get_bytes(start, length)
    }
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

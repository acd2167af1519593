//! Parquet candles: columns named as in a header of text, timestamps with their zone or one that is given.

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
use crate::{CANDLE_HEADER, CHUNK_ROWS, Columns, FileSpec, Format, InputError, Stamps, Zone, display, layout};

/// Length and magic at the end of a file.
const TAIL_BYTES: u64 = 8;
/// Bytes read of a page before its header is checked; more where the header is longer.
const PAGE_HEADER_BYTES: usize = 1024;
/// Longest header of a page, statistics included: as Arrow's C++ reader has it.
const MAX_PAGE_HEADER_BYTES: usize = 16 * 1024 * 1024;

/// Where pandas says of its columns what Parquet's own types do not.
const PANDAS_METADATA: &str = "pandas";

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
    let columns = Places::of(metadata.schema(), &spec.columns, &file)?;
    let wall = columns.wall_clock(metadata.schema(), spec, &file)?;
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(CheckedPages(opened), metadata);
    let mut reader = guarded(|| builder.with_batch_size(CHUNK_ROWS).build()).map_err(unreadable)?;
    chunker.stamps = spec.stamps.unwrap_or(Stamps::Open);
    let upstox = spec.format == Format::Upstox;
    let mut table = Table { spec, columns, wall, file: file.clone(), line: 0, upstox };
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

/// Where the columns of candles are, by their names on the wire.
struct Places(Vec<(&'static str, usize)>);

impl Places {
    /// Finds them by the names that headers of text may have too.
    ///
    /// Errors: one that every file of candles has is missing.
    fn of(schema: &Schema, named: &Columns, file: &str) -> Result<Places, InputError> {
        let header: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let missing = |column| {
            let found = layout::listed(&header);
            InputError::Column { file: file.to_owned(), column, expected: CANDLE_HEADER, found }
        };
        let time = named.position(&header, "timestamp", &layout::TIME).ok_or_else(|| missing("timestamp"))?;
        let mut columns = vec![("open_time", time)];
        for name in layout::OHLC.into_iter().chain(["volume"]) {
            columns.push((name, named.position(&header, name, &[name]).ok_or_else(|| missing(name))?));
        }
        let optional = [("open_interest", &layout::OPEN_INTEREST[..]), ("key", &layout::KEY[..])];
        let optional = optional.map(|(name, accepted)| Some((name, named.position(&header, name, accepted)?)));
        columns.extend(optional.into_iter().flatten());
        Ok(Places(columns))
    }

    /// The columns of candles of a batch, named as in the batches clients send.
    fn of_batch(&self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let schema = batch.schema();
        let named = |(name, at): &(&str, usize)| Arc::new(schema.field(*at).clone().with_name(*name));
        let fields: Vec<Arc<Field>> = self.0.iter().map(named).collect();
        let columns = self.0.iter().map(|(_, at)| Arc::clone(batch.column(*at))).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
    }

    /// The zone of timestamps that are wall times; nothing where they are instants, or text.
    ///
    /// Errors: they are wall times, and nobody says of which zone.
    fn wall_clock(&self, schema: &Schema, spec: &FileSpec, file: &str) -> Result<Option<Zone>, InputError> {
        let times = schema.field(self.0[0].1);
        let is_wall =
            matches!(times.data_type(), DataType::Timestamp(_, None)) && !is_utc_in_pandas(schema, times.name());
        match (is_wall, &spec.zone) {
            (false, _) => Ok(None),
            (true, Some(zone)) => Ok(Some(zone.clone())),
            (true, None) => Err(InputError::Unreadable {
                file: file.to_owned(),
                reason: format!(
                    "timestamps of column '{}' have no zone: pass --zone, for example --zone America/New_York, or --zone UTC",
                    times.name()
                ),
            }),
        }
    }
}

/// Whether pandas says that a column has a zone: the values are of UTC then, whatever the type lost on its way.
fn is_utc_in_pandas(schema: &Schema, column: &str) -> bool {
    let said = schema.metadata().get(PANDAS_METADATA);
    let Some(said) = said.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok()) else { return false };
    let columns = said["columns"].as_array().map_or(&[][..], Vec::as_slice);
    columns.iter().any(|described| {
        let is_named = described["name"] == column || described["field_name"] == column;
        is_named && described["pandas_type"] == "datetimetz" && described["metadata"]["timezone"].is_string()
    })
}

struct Table<'a> {
    spec: &'a FileSpec,
    columns: Places,
    /// Of timestamps that are no instants.
    wall: Option<Zone>,
    file: String,
    line: u64,
    upstox: bool,
}

impl Table<'_> {
    fn rows(&mut self, batch: &RecordBatch, chunker: &mut Chunker<'_>) -> Flow {
        let batch = self.columns.of_batch(batch).map_err(|error| self.unreadable(error.to_string()))?;
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
                (Some(candle), None) => match &self.wall {
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

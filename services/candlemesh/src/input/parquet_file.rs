//! Parquet candles: columns key (optional), timestamp, open, high, low, close, volume, open_interest (optional).

use std::fs::File;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{ArrowError, DataType, FieldRef, Schema};
use market::InstrumentKey;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{CANDLE_HEADER, Chunker, FileSpec, InputError, Sink, display};

pub(super) fn read(spec: &FileSpec, sink: &mut dyn Sink) -> Result<(), InputError> {
    let file = display(&spec.path);
    let broken = |line: u64, reason: String| InputError::Broken { file: file.clone(), line, reason };
    let opened = File::open(&spec.path).map_err(|source| InputError::Open { file: file.clone(), source })?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(opened)
        .and_then(|builder| builder.with_batch_size(super::CHUNK_ROWS).build())
        .map_err(|error| InputError::Unreadable { file: file.clone(), reason: error.to_string() })?;
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
        match rows(&batch, spec, &file, &mut line, &mut chunker) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                // The rows before are good and must not be lost with the one that is not.
                chunker.flush();
                return Err(error);
            }
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
    let unreadable = |reason: String| InputError::Unreadable { file: file.to_owned(), reason };
    for name in ["timestamp", "open", "high", "low", "close", "volume"] {
        batch.column_by_name(name).ok_or_else(|| InputError::Column {
            file: file.to_owned(),
            column: name,
            expected: CANDLE_HEADER,
        })?;
    }
    let keys = batch.column_by_name("key");
    let candles = named_as_on_the_wire(batch).map_err(|error| unreadable(error.to_string()))?;
    let candles = proto::arrow::delivered_candles(&candles).map_err(|error| unreadable(error.to_string()))?;
    let mut current: Option<InstrumentKey> = spec.instrument.clone();
    for (row, candle) in candles.into_iter().enumerate() {
        *line += 1;
        if let Some(keys) = keys {
            let text =
                text(keys, row).ok_or_else(|| unreadable(format!("key is {}, expected text", keys.data_type())))?;
            if current.as_ref().is_none_or(|key| key.as_str() != text) {
                let parsed = text.parse::<InstrumentKey>();
                current = Some(parsed.map_err(|source| InputError::Value { file: file.to_owned(), source })?);
            }
        }
        let Some(key) = current.clone() else { return Err(InputError::NoInstrument { file: file.to_owned() }) };
        let go_on = match candle {
            Some(candle) => chunker.push(&key, *line, candle),
            None => chunker.bad_row(*line, "timestamp is null".to_owned()),
        };
        if !go_on {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The batch with its `timestamp` named `open_time`, as in the batches clients send.
fn named_as_on_the_wire(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let renamed = |field: &FieldRef| match field.name().as_str() {
        "timestamp" => Arc::new(field.as_ref().clone().with_name("open_time")),
        _ => Arc::clone(field),
    };
    let fields: Vec<FieldRef> = batch.schema().fields().iter().map(renamed).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), batch.columns().to_vec())
}

/// A text of a column of any of Arrow's layouts of text; nothing for other columns.
fn text(column: &ArrayRef, row: usize) -> Option<&str> {
    match column.data_type() {
        DataType::Utf8 => Some(column.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Some(column.as_string::<i64>().value(row)),
        DataType::Utf8View => Some(column.as_string_view().value(row)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{BadRow, Chunk};
    use arrow_array::{Float32Array, Int64Array, LargeStringArray, TimestampNanosecondArray};
    use market::Timeframe;

    #[derive(Default)]
    struct Collected {
        chunks: Vec<Chunk>,
        bad: Vec<BadRow>,
    }

    impl Sink for Collected {
        fn chunk(&mut self, chunk: Chunk) -> bool {
            self.chunks.push(chunk);
            true
        }
        fn bad_row(&mut self, row: BadRow) -> bool {
            self.bad.push(row);
            true
        }
    }

    /// pandas writes nanoseconds and large strings; a key in the file wins over the one given for files without.
    #[test]
    fn the_layouts_of_other_writers_are_read() {
        let price: ArrayRef = Arc::new(Float32Array::from(vec![1.5, 2.5]));
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("key", Arc::new(LargeStringArray::from(vec!["US|SPY", "US|QQQ"]))),
            ("timestamp", Arc::new(TimestampNanosecondArray::from(vec![Some(1_577_975_400_000_000_000), None]))),
            ("open", Arc::clone(&price)),
            ("high", Arc::clone(&price)),
            ("low", Arc::clone(&price)),
            ("close", price),
            ("volume", Arc::new(Int64Array::from(vec![10, 20]))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let mut writer =
            parquet::arrow::ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let spec = FileSpec { path, instrument: Some("US|OTHER".parse().unwrap()), timeframe: Timeframe::M1 };
        let mut collected = Collected::default();
        read(&spec, &mut collected).unwrap();
        assert_eq!(collected.chunks.len(), 1);
        assert_eq!(collected.chunks[0].instrument.as_str(), "US|SPY");
        let row = &collected.chunks[0].rows[0];
        assert_eq!(
            (market::format_millis(row.open_time).as_str(), row.close, row.volume),
            ("2020-01-02T14:30:00Z", 1.5, 10.0)
        );
        assert_eq!(collected.bad, [BadRow { line: 2, reason: "timestamp is null".into() }]);
    }
}

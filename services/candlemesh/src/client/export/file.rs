//! One exported file: Parquet or CSV, whole under its name or not there.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, TimestampMillisecondType};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use flate2::Compression;
use flate2::write::GzEncoder;
use market::{InstrumentKey, Timeframe, format_millis};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression as ParquetCompression, ZstdLevel};
use parquet::file::properties::WriterProperties;

/// Rows of a Parquet row group: 7 MB in memory, which is what a file being written takes.
const ROW_GROUP_ROWS: usize = 131_072;
/// Columns as `load` reads them, and the wire's names for them.
const COLUMNS: [(&str, &str); 7] = [
    ("timestamp", "open_time"),
    ("open", "open"),
    ("high", "high"),
    ("low", "low"),
    ("close", "close"),
    ("volume", "volume"),
    ("open_interest", "open_interest"),
];

/// Kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Parquet,
    Csv,
    CsvGz,
}

impl Format {
    const ALL: [Format; 3] = [Format::Parquet, Format::CsvGz, Format::Csv];

    pub fn as_str(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Csv => "csv",
            Format::CsvGz => "csv.gz",
        }
    }

    /// The format that a file's name says it has.
    pub fn of_name(path: &Path) -> Option<Format> {
        let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
        Format::ALL.into_iter().find(|format| name.ends_with(&format!(".{}", format.as_str())))
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        let found = Format::ALL.into_iter().find(|format| format.as_str() == text);
        found.ok_or_else(|| format!("'{text}' is no format; accepted: parquet, csv, csv.gz"))
    }
}

/// Name of a frame's file: no two frames have the same, and no character troubles a shell or a file system.
pub(super) fn name(key: &InstrumentKey, timeframe: Timeframe, format: Format) -> String {
    let mut name = String::new();
    for byte in key.as_str().bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' => name.push(char::from(byte)),
            b'|' => name.push('@'),
            // Writing to a String does not fail.
            _ => _ = write!(name, "%{byte:02X}"),
        }
    }
    format!("{name}_{timeframe}.{}", format.as_str())
}

enum Sink {
    Parquet(Box<ArrowWriter<File>>),
    Csv(BufWriter<File>),
    CsvGz(GzEncoder<BufWriter<File>>),
}

/// Writes batches to a temporary file, which [`finish`](Writer::finish) renames. Dropped before, it is removed.
pub(super) struct Writer {
    sink: Option<Sink>,
    schema: SchemaRef,
    path: PathBuf,
    part: PathBuf,
    rows: u64,
    text: String,
}

impl Writer {
    pub(super) fn create(
        path: &Path,
        format: Format,
        key: &InstrumentKey,
        timeframe: Timeframe,
        revision: u64,
    ) -> Result<Writer> {
        let name = path.file_name().context("the file has no name")?.to_string_lossy();
        let part = path.with_file_name(format!(".{name}.part"));
        let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
        let mut fields = vec![Field::new(COLUMNS[0].0, time, false)];
        fields.extend(COLUMNS[1..6].iter().map(|(name, _)| Field::new(*name, DataType::Float64, false)));
        fields.push(Field::new(COLUMNS[6].0, DataType::Float64, true));
        let metadata = proto::arrow::metadata(key.as_str(), timeframe.as_str(), revision);
        let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
        let file = File::create(&part).with_context(|| part.display().to_string())?;
        let sink = match format {
            Format::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(ParquetCompression::ZSTD(ZstdLevel::default()))
                    .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
                    .build();
                Sink::Parquet(Box::new(ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties))?))
            }
            Format::Csv => Sink::Csv(BufWriter::new(file)),
            Format::CsvGz => Sink::CsvGz(GzEncoder::new(BufWriter::new(file), Compression::default())),
        };
        let mut writer =
            Writer { sink: Some(sink), schema, path: path.to_path_buf(), part, rows: 0, text: String::new() };
        if format != Format::Parquet {
            let names = COLUMNS.map(|(name, _)| name).join(",");
            writer.text(&format!("{names}\n"))?;
        }
        Ok(writer)
    }

    /// Writes the candles of a batch; one that is still forming is left out, as it is no fact yet.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let closed = batch.column_by_name("closed").and_then(|column| column.as_boolean_opt());
        let rows =
            closed.map_or(batch.num_rows(), |closed| closed.iter().take_while(|closed| *closed == Some(true)).count());
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(COLUMNS.len());
        for (_, name) in COLUMNS {
            columns
                .push(batch.column_by_name(name).with_context(|| format!("the frame has no {name}"))?.slice(0, rows));
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        self.rows += rows as u64;
        if let Some(Sink::Parquet(writer)) = &mut self.sink {
            return writer.write(&batch).with_context(|| self.part.display().to_string());
        }
        let text = csv(&batch, std::mem::take(&mut self.text))?;
        self.text(&text)?;
        self.text = text;
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<()> {
        let written = match &mut self.sink {
            Some(Sink::Csv(file)) => file.write_all(text.as_bytes()),
            Some(Sink::CsvGz(file)) => file.write_all(text.as_bytes()),
            Some(Sink::Parquet(_)) | None => Ok(()),
        };
        written.with_context(|| self.part.display().to_string())
    }

    /// Makes the file durable and gives it its name. Returns its rows.
    pub(super) fn finish(mut self) -> Result<u64> {
        let flushed = |mut file: BufWriter<File>| {
            file.flush()?;
            Ok::<_, anyhow::Error>(file.get_ref().sync_all()?)
        };
        let outcome = match self.sink.take() {
            Some(Sink::Parquet(writer)) => {
                writer.into_inner().map_err(Into::into).and_then(|file| Ok(file.sync_all()?))
            }
            Some(Sink::Csv(file)) => flushed(file),
            Some(Sink::CsvGz(file)) => file.finish().map_err(Into::into).and_then(flushed),
            None => Ok(()),
        };
        outcome.with_context(|| self.part.display().to_string())?;
        std::fs::rename(&self.part, &self.path).with_context(|| self.path.display().to_string())?;
        Ok(self.rows)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After a rename there is nothing; otherwise what is there is of no use.
        let _ = std::fs::remove_file(&self.part);
    }
}

/// Rows as text, in the buffer given. A double is printed as the shortest decimal that reads back to it.
fn csv(batch: &RecordBatch, mut text: String) -> Result<String> {
    text.clear();
    let times = batch.column(0).as_primitive::<TimestampMillisecondType>();
    let values: Vec<_> = (1..COLUMNS.len()).map(|at| batch.column(at).as_primitive::<Float64Type>()).collect();
    ensure!(times.null_count() == 0, "the frame holds a candle without a time");
    for row in 0..batch.num_rows() {
        text.push_str(&format_millis(times.value(row)));
        for column in &values {
            text.push(',');
            if column.is_valid(row) {
                write!(text, "{}", column.value(row))?;
            }
        }
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_tell_frames_apart() {
        let of = |key: &str| name(&key.parse().unwrap(), Timeframe::M1, Format::CsvGz);
        assert_eq!(of("NSE_EQ|INE002A01018"), "NSE_EQ@INE002A01018_1m.csv.gz");
        assert_eq!(of("NSE_INDEX|Nifty 50"), "NSE_INDEX@Nifty%2050_1m.csv.gz");
        assert_ne!(of("CRYPTO|A:B"), of("CRYPTO|A_B"));
        assert_eq!(Format::of_name(Path::new("a/B.CSV.GZ")), Some(Format::CsvGz));
        assert_eq!(Format::of_name(Path::new("a.b/c")), None);
    }
}

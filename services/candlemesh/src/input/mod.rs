//! Candle files: csv, csv.gz and Parquet, read in bounded chunks.

mod csv_file;
mod manifest;
mod parquet_file;

use std::path::{Path, PathBuf};

use market::{Candle, InstrumentKey, Timeframe};

pub use manifest::Manifest;

/// Rows per chunk: one Flight batch, and the unit of acknowledgement.
pub const CHUNK_ROWS: usize = 16_384;

/// Why a file cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("{file}: cannot be opened: {source}")]
    Open { file: String, source: std::io::Error },
    #[error("{file}: is not a known kind of file; accepted: .csv, .csv.gz, .parquet")]
    Kind { file: String },
    #[error("{file}: is a folder; name the files in it, or load what a --manifest lists")]
    Folder { file: String },
    #[error("{file}: column '{column}' is missing; a header of {expected} is expected")]
    Column { file: String, column: &'static str, expected: &'static str },
    #[error("{file}: {reason}")]
    Unreadable { file: String, reason: String },
    #[error("{file}: no instrument is known for it; pass --instrument KEY, or --manifest with a row for it")]
    NoInstrument { file: String },
    #[error("{file}, line {line}: {reason}")]
    Broken { file: String, line: u64, reason: String },
    #[error("{file}: {source}")]
    Value { file: String, source: market::Error },
}

/// What is to be read from a file.
#[derive(Debug, Clone)]
pub struct FileSpec {
    pub path: PathBuf,
    /// For files that do not name the instrument in each row.
    pub instrument: Option<InstrumentKey>,
    pub timeframe: Timeframe,
}

/// Rows of one instrument, in file order.
#[derive(Debug, Clone)]
pub struct Chunk {
    pub instrument: InstrumentKey,
    pub rows: Vec<Candle>,
    /// Line (or row, for Parquet) of each candle, from 1; a header counts as a line.
    pub lines: Vec<u64>,
}

/// A row that could not be read; the rest of the file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    pub line: u64,
    pub reason: String,
}

/// Gets chunks and bad rows in file order; returns false to stop.
pub trait Sink {
    fn chunk(&mut self, chunk: Chunk) -> bool;
    fn bad_row(&mut self, row: BadRow) -> bool;
}

/// Reads a file into `sink`. What was read before an error has been handed over.
pub fn read(spec: &FileSpec, sink: &mut dyn Sink) -> Result<(), InputError> {
    let name = spec.path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if spec.path.is_dir() {
        return Err(InputError::Folder { file: display(&spec.path) });
    }
    if name.ends_with(".parquet") {
        parquet_file::read(spec, sink)
    } else if name.ends_with(".csv") || name.ends_with(".csv.gz") {
        csv_file::read(spec, sink)
    } else {
        Err(InputError::Kind { file: display(&spec.path) })
    }
}

/// Columns of a candle file.
const CANDLE_HEADER: &str = "timestamp,open,high,low,close,volume[,open_interest]";

fn display(path: &Path) -> String {
    path.display().to_string()
}

/// Collects rows of one instrument until a chunk is full.
struct Chunker<'a> {
    sink: &'a mut dyn Sink,
    chunk: Option<Chunk>,
}

impl<'a> Chunker<'a> {
    fn new(sink: &'a mut dyn Sink) -> Self {
        Self { sink, chunk: None }
    }

    fn push(&mut self, instrument: &InstrumentKey, line: u64, candle: Candle) -> bool {
        let fits = self.chunk.as_ref().is_some_and(|c| c.instrument == *instrument && c.rows.len() < CHUNK_ROWS);
        if !fits && !self.flush() {
            return false;
        }
        let chunk = self.chunk.get_or_insert_with(|| Chunk {
            instrument: instrument.clone(),
            rows: Vec::with_capacity(CHUNK_ROWS),
            lines: Vec::with_capacity(CHUNK_ROWS),
        });
        chunk.rows.push(candle);
        chunk.lines.push(line);
        true
    }

    fn bad_row(&mut self, line: u64, reason: String) -> bool {
        self.sink.bad_row(BadRow { line, reason })
    }

    fn flush(&mut self) -> bool {
        match self.chunk.take() {
            Some(chunk) => self.sink.chunk(chunk),
            None => true,
        }
    }
}

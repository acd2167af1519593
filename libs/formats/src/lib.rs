//! Candle files of every vendor we know, read in bounded chunks.
//!
//! [`read`] opens a file, decides its format or is told, and hands rows to a [`Sink`]: chunks of one instrument in file
//! order, and every row that could not be used with its line and the reason. Nothing is dropped or changed silently. The crate
//! knows no network and no store; `load` and backfill jobs stand on it.

mod chunker;
mod clock;
mod columns;
mod format;
mod json;
mod layout;
mod lean;
mod lines;
mod manifest;
mod open;
mod parquet_file;
mod position;
mod profile;
mod sniff;
mod stamp;
mod text;
mod thrift;
mod ticks;
mod width;
mod zip;

use std::path::{Path, PathBuf};

use market::{Candle, InstrumentKey, Timeframe};

pub use clock::{Stamps, UnknownStamps, UnknownZone, Zone};
pub use columns::{Columns, UnknownColumns};
pub use format::{Format, UnknownFormat};
pub use manifest::{ACTIONS_NAME, Entry, MANIFEST_NAME, Manifest};
pub use position::Position;
pub use profile::{Conflict, Profile};

/// Rows per chunk: one Flight batch, and the unit of acknowledgement.
pub const CHUNK_ROWS: usize = 16_384;

/// Why a file cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("{file}: cannot be opened: {source}")]
    Open { file: String, source: std::io::Error },
    #[error(
        "{file}: is not a known kind of file ({found}); accepted: CSV or text, JSON, Parquet, zip, the first two also gzipped"
    )]
    Kind { file: String, found: String },
    #[error("{file}: is a folder; name the files in it, or load what a --manifest lists")]
    Folder { file: String },
    #[error(
        "{file}: column '{column}' is missing; a header of {expected} is expected, and the columns there are: {found}"
    )]
    Column { file: String, column: &'static str, expected: &'static str, found: String },
    #[error("{file}: {reason}")]
    Unreadable { file: String, reason: String },
    #[error("{file}: no instrument is known for it; pass --instrument KEY, or --manifest with a row for it")]
    NoInstrument { file: String },
    #[error("{file}, line {line}: {reason}")]
    Broken { file: String, line: u64, reason: String },
    #[error("{file}: {source}")]
    Value { file: String, source: market::Error },
}

/// What is to be read from a file, and what is known of it beforehand.
#[derive(Debug, Clone, PartialEq)]
pub struct FileSpec {
    pub path: PathBuf,
    /// For files that do not name the instrument in each row.
    pub instrument: Option<InstrumentKey>,
    /// Width of the candles; `None`: found from the rows. A file whose rows say otherwise is refused.
    pub timeframe: Option<Timeframe>,
    pub format: Format,
    /// Zone of stamps without an offset; `None`: the format's.
    pub zone: Option<Zone>,
    /// Which end of a candle a stamp names; `None`: the format's.
    pub stamps: Option<Stamps>,
    /// Names of columns, of files whose columns have other names than usual.
    pub columns: Columns,
}

impl FileSpec {
    /// A file of which nothing is known beforehand.
    pub fn new(path: impl Into<PathBuf>) -> FileSpec {
        FileSpec {
            path: path.into(),
            instrument: None,
            timeframe: None,
            format: Format::Auto,
            zone: None,
            stamps: None,
            columns: Columns::default(),
        }
    }
}

/// Rows of one instrument, in file order.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    pub instrument: InstrumentKey,
    pub timeframe: Timeframe,
    pub rows: Vec<Candle>,
    /// Line (or row, for Parquet) of each candle, from 1; a header counts as a line.
    pub lines: Vec<u64>,
}

/// A row that could not be used; the rest of the file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    pub line: u64,
    pub reason: String,
}

/// Gets chunks and bad rows, those of an instrument each in file order; returns false to stop.
pub trait Sink {
    fn chunk(&mut self, chunk: Chunk) -> bool;
    fn bad_row(&mut self, row: BadRow) -> bool;
}

/// What was found in a file read to its end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Detected {
    pub format: Format,
    /// Absent in a file without rows.
    pub timeframe: Option<Timeframe>,
    /// What a reader of the report should know, one sentence each.
    pub notes: Vec<String>,
    /// One per instrument, in order of appearance.
    pub profiles: Vec<Profile>,
}

/// Reads a file into `sink`. What was read before an error has been handed over.
///
/// A file that is no regular one (a pipe) is read once, from its start; Parquet and zip cannot come that way.
/// Memory: bounded, whatever the file's size; see the constants.
pub fn read(spec: &FileSpec, sink: &mut dyn Sink) -> Result<Detected, InputError> {
    open::read(spec, &Position::default(), sink)
}

/// Reads a file as [`read`] does, telling how far it is.
pub fn read_watched(spec: &FileSpec, position: &Position, sink: &mut dyn Sink) -> Result<Detected, InputError> {
    open::read(spec, position, sink)
}

/// Reads bytes as [`read`] would read a file of them; `spec.path` names them in errors.
pub fn read_bytes(bytes: &[u8], spec: &FileSpec, sink: &mut dyn Sink) -> Result<Detected, InputError> {
    open::read_bytes(bytes, spec, sink)
}

/// Columns of a candle file.
const CANDLE_HEADER: &str = "timestamp,open,high,low,close,volume[,open_interest]";

fn display(path: &Path) -> String {
    path.display().to_string()
}

/// Why ingestion refused a row, where it names another row of what it was sent, in terms of the file's lines.
pub fn reason_by_line(reason: &str, line: impl Fn(u64) -> u64) -> String {
    let superseded = reason.strip_prefix("superseded by row ").and_then(|rest| rest.split_once(' '));
    match superseded.and_then(|(row, rest)| Some((row.parse().ok()?, rest))) {
        Some((row, rest)) => format!("superseded by line {} {rest}", line(row)),
        None => reason.to_owned(),
    }
}

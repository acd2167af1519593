//! The manifest of a folder: one line per complete file, in the form that `load --manifest` takes.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use formats::MANIFEST_NAME;
use market::{TimeRange, Timeframe, format_millis};
use proto::wire::Instrument;
use serde::{Deserialize, Serialize};

/// A complete file. `from` and `to` are empty where the export had no such bound.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    file: String,
    key: String,
    interval: String,
    rows: u64,
    revision: u64,
    from: String,
    to: String,
    calendar: String,
    symbol: String,
    exchange: String,
    currency: String,
    /// Empty where it is unknown.
    tick_size: String,
}

/// The row's fields, in order.
const HEADER: &[u8] = b"file,key,interval,rows,revision,from,to,calendar,symbol,exchange,currency,tick_size\n";

impl Row {
    pub(super) fn new(
        file: &str,
        instrument: &Instrument,
        timeframe: Timeframe,
        rows: u64,
        revision: u64,
        range: TimeRange,
    ) -> Row {
        let bound = |at, open| if at == open { String::new() } else { format_millis(at) };
        Row {
            file: file.to_owned(),
            key: instrument.instrument_key.clone(),
            interval: timeframe.to_string(),
            rows,
            revision,
            from: bound(range.start(), TimeRange::ALL.start()),
            to: bound(range.end(), TimeRange::ALL.end()),
            calendar: instrument.calendar.clone(),
            symbol: instrument.name.clone(),
            exchange: instrument.exchange.clone(),
            currency: instrument.currency.clone(),
            tick_size: if instrument.tick_size == 0.0 { String::new() } else { instrument.tick_size.to_string() },
        }
    }
}

pub(super) struct Manifest {
    folder: PathBuf,
    file: File,
    /// Lines of an earlier export, by file.
    earlier: HashMap<String, Row>,
}

impl Manifest {
    /// Starts a manifest, with the lines of the one that is there when resuming.
    ///
    /// Errors: a manifest is there and the export is not a resumed one: its files would be mixed with others.
    pub(super) fn begin(folder: &Path, resume: bool) -> Result<Manifest> {
        let path = folder.join(MANIFEST_NAME);
        if path.exists() && !resume {
            bail!("{} is there already; continue that export with --resume, or name another folder", path.display());
        }
        let earlier = if path.exists() { complete(folder, &path)? } else { Vec::new() };
        // Written anew, so that a line that was cut off is not continued.
        let part = folder.join(format!(".{MANIFEST_NAME}.part"));
        let mut file = File::create(&part).with_context(|| part.display().to_string())?;
        file.write_all(HEADER)?;
        for row in &earlier {
            file.write_all(&line(row)?)?;
        }
        file.sync_all()?;
        std::fs::rename(&part, &path).with_context(|| path.display().to_string())?;
        let earlier = earlier.into_iter().map(|row| (row.file.clone(), row)).collect();
        Ok(Manifest { folder: folder.to_path_buf(), file, earlier })
    }

    /// Whether the same frame, of the same revision and range, is there already.
    pub(super) fn holds(&self, wanted: &Row) -> bool {
        self.earlier.get(&wanted.file).is_some_and(|row| Row { rows: row.rows, ..wanted.clone() } == *row)
    }

    /// Adds a file that is complete. A line for a file of that name from an earlier export is outdone by the later one.
    pub(super) fn add(&mut self, row: &Row) -> Result<()> {
        let written = line(row).and_then(|line| Ok(self.file.write_all(&line)?));
        written.with_context(|| self.folder.join(MANIFEST_NAME).display().to_string())
    }
}

/// Lines that are whole and whose files are there; of two for one file the later.
fn complete(folder: &Path, path: &Path) -> Result<Vec<Row>> {
    let mut reader = csv::Reader::from_path(path).with_context(|| path.display().to_string())?;
    let mut rows: Vec<Row> = Vec::new();
    for row in reader.deserialize::<Row>() {
        let Ok(row) = row else { continue };
        rows.retain(|earlier| earlier.file != row.file);
        if folder.join(&row.file).is_file() {
            rows.push(row);
        }
    }
    Ok(rows)
}

/// A row as one write, so that it is there whole or is the last line.
fn line(row: &Row) -> Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    writer.serialize(row)?;
    Ok(writer.into_inner().map_err(csv::IntoInnerError::into_error)?)
}

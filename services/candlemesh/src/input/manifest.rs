//! A manifest says which instrument and timeframe a file holds: a CSV with columns key, file and, optionally, interval.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use market::{InstrumentKey, Timeframe};

use super::{InputError, display};

/// Files by their path relative to the manifest.
#[derive(Debug, Default)]
pub struct Manifest {
    entries: HashMap<PathBuf, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    instrument: InstrumentKey,
    timeframe: Option<Timeframe>,
}

impl Manifest {
    /// Reads a manifest. Rows of intervals that are no timeframe (ticks) are left out.
    pub fn read(path: &Path) -> Result<Manifest, InputError> {
        let file = display(path);
        let broken = |line: u64, reason: String| InputError::Broken { file: file.clone(), line, reason };
        let mut reader = csv::Reader::from_path(path)
            .map_err(|error| InputError::Unreadable { file: file.clone(), reason: error.to_string() })?;
        let headers = reader.headers().map_err(|error| broken(1, error.to_string()))?.clone();
        let position = |name: &str| headers.iter().position(|header| header == name);
        let missing = |column| InputError::Column { file: file.clone(), column, expected: "key,file[,interval]" };
        let key = position("key").ok_or_else(|| missing("key"))?;
        let name = position("file").ok_or_else(|| missing("file"))?;
        let interval = position("interval");
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut entries = HashMap::new();
        for (index, record) in reader.records().enumerate() {
            let record = record.map_err(|error| broken(index as u64 + 2, error.to_string()))?;
            let instrument = record.get(key).unwrap_or_default().parse();
            let instrument = instrument.map_err(|source| InputError::Value { file: file.clone(), source })?;
            let timeframe = match interval.and_then(|position| record.get(position)) {
                None | Some("") => None,
                Some(text) => match text.parse::<Timeframe>() {
                    Ok(timeframe) => Some(timeframe),
                    Err(_) => continue,
                },
            };
            let named = folder.join(record.get(name).unwrap_or_default());
            entries.insert(canonical(&named), Entry { instrument, timeframe });
        }
        Ok(Manifest { entries })
    }

    /// Instrument and timeframe of a file, if the manifest has it.
    pub fn find(&self, file: &Path) -> Option<(InstrumentKey, Option<Timeframe>)> {
        self.entries.get(&canonical(file)).map(|entry| (entry.instrument.clone(), entry.timeframe))
    }

    /// Every file of the manifest, in path order.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.entries.keys().cloned().collect();
        files.sort();
        files
    }
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

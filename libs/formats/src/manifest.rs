//! A manifest says what each file holds: a CSV with columns key, file and, optionally, symbol, interval, format, zone and stamps, and
//! master data of the instrument: calendar, exchange, currency and tick_size.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use market::{Calendar, InstrumentKey, Timeframe};

use crate::layout::listed;
use crate::{Columns, FileSpec, Format, InputError, Stamps, Zone, display};

const MANIFEST_HEADER: &str =
    "key,file[,symbol][,interval][,format][,zone][,stamps][,calendar][,exchange][,currency][,tick_size]";
/// Names of the manifest that a folder is loaded by, and of the splits and dividends beside it, as `candlemesh export` writes them.
pub const MANIFEST_NAME: &str = "manifest.csv";
pub const ACTIONS_NAME: &str = "actions.csv";
/// The interval of files that hold trades.
const TICK: &str = "tick";

/// Files by their path relative to the manifest.
#[derive(Debug, Default)]
pub struct Manifest {
    entries: HashMap<PathBuf, Entry>,
}

/// What a manifest says of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub instrument: InstrumentKey,
    /// Name or trading symbol of the instrument; empty when the manifest has none.
    pub symbol: String,
    pub timeframe: Option<Timeframe>,
    /// [`Format::Ticks`] where the interval is `tick`.
    pub format: Format,
    pub zone: Option<Zone>,
    pub stamps: Option<Stamps>,
    /// Name of the instrument's calendar, one of [`Calendar::NAMES`]; `None` when the manifest has none.
    pub calendar: Option<&'static str>,
    /// Empty when the manifest has none, as is the currency.
    pub exchange: String,
    pub currency: String,
    /// Smallest price step; 0 when the manifest has none.
    pub tick_size: f64,
}

impl Entry {
    /// The file as this entry describes it.
    pub fn spec(&self, path: &Path) -> FileSpec {
        FileSpec {
            path: path.to_path_buf(),
            instrument: Some(self.instrument.clone()),
            timeframe: self.timeframe,
            format: self.format,
            zone: self.zone.clone(),
            stamps: self.stamps,
            columns: Columns::default(),
        }
    }
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// Errors: a column or value that cannot be what it should, with its line.
    pub fn read(path: &Path) -> Result<Manifest, InputError> {
        let file = display(path);
        let broken = |line: u64, reason: String| InputError::Broken { file: file.clone(), line, reason };
        let mut reader = csv::Reader::from_path(path)
            .map_err(|error| InputError::Unreadable { file: file.clone(), reason: error.to_string() })?;
        let headers = reader.headers().map_err(|error| broken(1, error.to_string()))?.clone();
        let position = |name: &str| headers.iter().position(|header| header.trim() == name);
        let missing = |column| {
            let found = listed(&headers.iter().collect::<Vec<_>>());
            InputError::Column { file: file.clone(), column, expected: MANIFEST_HEADER, found }
        };
        let key = position("key").ok_or_else(|| missing("key"))?;
        let name = position("file").ok_or_else(|| missing("file"))?;
        let optional = ["symbol", "interval", "format", "zone", "stamps"].map(position);
        let master = ["calendar", "exchange", "currency", "tick_size"].map(position);
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut entries = HashMap::new();
        for (index, record) in reader.records().enumerate() {
            let line = index as u64 + 2;
            let record = record.map_err(|error| broken(line, error.to_string()))?;
            let text = |position: Option<usize>| position.and_then(|at| record.get(at)).unwrap_or_default().trim();
            let [symbol, interval, format, zone, stamps] = optional.map(text);
            let [calendar, exchange, currency, tick_size] = master.map(text);
            let entry = Entry {
                instrument: text(Some(key)).parse().map_err(|error: market::Error| broken(line, error.to_string()))?,
                symbol: symbol.to_owned(),
                timeframe: value(if interval == TICK { "" } else { interval })
                    .map_err(|error: market::Error| broken(line, error.to_string()))?,
                format: match value(format).map_err(|error: crate::UnknownFormat| broken(line, error.to_string()))? {
                    None if interval == TICK => Format::Ticks,
                    given => given.unwrap_or_default(),
                },
                zone: value(zone).map_err(|error: crate::UnknownZone| broken(line, error.to_string()))?,
                stamps: value(stamps).map_err(|error: crate::UnknownStamps| broken(line, error.to_string()))?,
                calendar: match calendar {
                    "" => None,
                    name => Some(Calendar::by_name(name).map_err(|error| broken(line, error.to_string()))?.name()),
                },
                exchange: exchange.to_owned(),
                currency: currency.to_owned(),
                tick_size: step(tick_size).map_err(|reason| broken(line, reason))?,
            };
            entries.insert(canonical(&folder.join(text(Some(name)))), entry);
        }
        Ok(Manifest { entries })
    }

    /// What the manifest says of a file, if it has it.
    pub fn find(&self, file: &Path) -> Option<&Entry> {
        self.entries.get(&canonical(file))
    }

    /// Every file of the manifest, in path order.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.entries.keys().cloned().collect();
        files.sort();
        files
    }
}

fn step(text: &str) -> Result<f64, String> {
    let step = value::<f64>(text).ok().map(Option::unwrap_or_default);
    let step = step.filter(|step| step.is_finite() && *step >= 0.0);
    step.ok_or_else(|| format!("tick_size '{text}' is not a number of 0 or more"))
}

fn value<T: FromStr>(text: &str) -> Result<Option<T>, T::Err> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some),
    }
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

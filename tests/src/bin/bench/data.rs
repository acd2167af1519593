//! The candles that the harness made, as frames.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use market::{Calendar, Date, Frame, InstrumentKey, Millis};
use serde::Deserialize;

const MINUTE_MS: Millis = 60_000;

/// Length of the sessions that data is made of.
const SESSION_MINUTES: Millis = 375;

#[derive(Debug, Deserialize)]
struct Meta {
    instruments: Vec<String>,
    sessions: Vec<Millis>,
    minutes: usize,
}

/// Minutes of one instrument.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) key: InstrumentKey,
    pub(crate) frame: Frame,
}

/// Opens of the first regular NSE sessions of 2023 and later.
pub(crate) fn sessions(count: usize) -> Result<Vec<Millis>> {
    let calendar = Calendar::by_name("NSE")?;
    let regular = |date: Date| match calendar.day(date).sessions[..] {
        [session] if session.close - session.open == SESSION_MINUTES * MINUTE_MS => Some(session.open),
        _ => None,
    };
    let dates = calendar.trading_dates(Date::constant(2023, 1, 1), Date::constant(2026, 12, 31));
    let sessions: Vec<Millis> = dates.into_iter().filter_map(regular).take(count).collect();
    ensure!(sessions.len() == count, "the calendar has only {} such sessions", sessions.len());
    Ok(sessions)
}

/// Every instrument's minutes.
pub(crate) fn load(folder: &Path) -> Result<Vec<Series>> {
    let meta: Meta = serde_json::from_reader(File::open(folder.join("meta.json"))?)?;
    let rows = meta.sessions.len() * meta.minutes;
    let time = bytes_of(folder, "open_time")?;
    let columns = ["open", "high", "low", "close", "volume", "open_interest"].map(|name| bytes_of(folder, name));
    let mut series = Vec::with_capacity(meta.instruments.len());
    for (index, key) in meta.instruments.iter().enumerate() {
        let cut = |bytes: &[u8]| bytes.get(index * rows * 8..(index + 1) * rows * 8).map(<[u8]>::to_vec);
        let floats = |column: usize| -> Result<Vec<f64>> {
            let bytes = columns[column].as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
            Ok(words(&cut(bytes).context("a column is too short")?).map(f64::from_le_bytes).collect())
        };
        let times = words(&cut(&time).context("open_time is too short")?).map(i64::from_le_bytes).collect();
        let ohlcv = [floats(0)?, floats(1)?, floats(2)?, floats(3)?, floats(4)?];
        let frame = Frame::from_columns(times, ohlcv, floats(5)?)?;
        series.push(Series { key: key.parse()?, frame });
    }
    Ok(series)
}

/// The key of an instrument's `copy`-th twin; the first is itself.
pub(crate) fn twin(key: &InstrumentKey, copy: usize) -> Result<InstrumentKey> {
    match copy {
        0 => Ok(key.clone()),
        _ => Ok(format!("{key}-{copy}").parse()?),
    }
}

fn bytes_of(folder: &Path, name: &str) -> Result<Vec<u8>> {
    let path = folder.join(name);
    std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

fn words(bytes: &[u8]) -> impl Iterator<Item = [u8; 8]> + '_ {
    bytes.as_chunks::<8>().0.iter().copied()
}

/// A column as the harness reads it.
pub(crate) fn write_column<const SIZE: usize>(
    folder: &Path,
    name: &str,
    values: impl Iterator<Item = [u8; SIZE]>,
) -> Result<()> {
    let bytes: Vec<u8> = values.flatten().collect();
    std::fs::create_dir_all(folder)?;
    Ok(std::fs::write(folder.join(name), bytes)?)
}

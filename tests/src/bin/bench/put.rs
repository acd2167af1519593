//! Storing everything durably, instrument by instrument, through [`store::Stores`].

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use market::{Calendar, Timeframe};
use serde_json::json;
use store::candle_store::Put;
use store::{StoreOptions, Stores};
use tokio::runtime::Runtime;

use crate::data::{self, Series};
use crate::{Case, Measured, Parameters};

/// Any instant: when the rows were stored.
const NOW: i64 = 1_750_000_000_000;
/// Rows of one call: what ingestion sends to the store of a large file.
const CALL_ROWS: usize = 1_000_000;

#[derive(Debug)]
pub(crate) struct StoreAll {
    runtime: Runtime,
    series: Vec<Series>,
    scale: usize,
    place: Place,
    runs: usize,
}

/// Where a database is made anew for each run.
#[derive(Debug)]
enum Place {
    Sqlite(PathBuf),
    /// URL without the name of the database, which the harness creates: `bench<run>`.
    Postgres(String),
}

impl StoreAll {
    pub(crate) fn prepare(parameters: &Parameters) -> Result<Self> {
        let place = match parameters.variant.as_str() {
            "sqlite" => Place::Sqlite(parameters.folder.clone()),
            "postgres" => Place::Postgres(parameters.database_url.clone()),
            other => bail!("there is no store '{other}'"),
        };
        Ok(Self {
            runtime: runtime()?,
            series: data::load(&parameters.data)?,
            scale: parameters.scale.max(1),
            place,
            runs: 0,
        })
    }
}

impl Case for StoreAll {
    fn run(&mut self) -> Result<Measured> {
        let url = match &self.place {
            Place::Sqlite(folder) => {
                remove_database(folder)?;
                sqlite_url(folder)
            }
            Place::Postgres(base) => format!("{base}{}", self.runs),
        };
        self.runs += 1;
        let (seconds, rows) = self.runtime.block_on(store_all(&url, &self.series, self.scale))?;
        let bytes = match &self.place {
            Place::Sqlite(folder) => folder_bytes(folder)?,
            Place::Postgres(_) => 0,
        };
        Ok(Measured::new(seconds, json!({ "rows": rows, "bytes": bytes, "database_url": url })))
    }
}

pub(crate) fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

pub(crate) fn sqlite_url(folder: &Path) -> String {
    format!("sqlite://{}", folder.join("candles.db").display())
}

fn remove_database(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    Ok(std::fs::create_dir_all(folder)?)
}

/// Seconds from the first row handed over until all are durable, and their number. Opening, migrating and closing are not counted.
async fn store_all(url: &str, series: &[Series], scale: usize) -> Result<(f64, usize)> {
    let stores = Stores::open(url, &StoreOptions::default()).await?;
    let calendar = Calendar::by_name("NSE")?;
    let mut jobs = Vec::new();
    for copy in 0..scale {
        for one in series {
            jobs.push((data::twin(&one.key, copy)?, &one.frame));
        }
    }
    let started = Instant::now();
    let mut rows = 0;
    let mut from = 0;
    while from < jobs.len() {
        let mut to = from;
        let mut pending = 0;
        while to < jobs.len() && (to == from || pending + jobs[to].1.len() <= CALL_ROWS) {
            pending += jobs[to].1.len();
            to += 1;
        }
        let put = |(key, rows)| Put { key, source: Timeframe::M1, calendar: &calendar, rows };
        let puts: Vec<Put<'_>> = jobs[from..to].iter().map(|(key, frame)| put((key, *frame))).collect();
        let outcomes = stores.candles.put_all(&puts, NOW).await?;
        let stored: u64 = outcomes.iter().map(|outcome| outcome.stored).sum();
        ensure!(stored == pending as u64, "{stored} of {pending} rows were stored");
        rows += pending;
        from = to;
    }
    let seconds = started.elapsed().as_secs_f64();
    stores.close().await;
    Ok((seconds, rows))
}

/// What the files of a folder take on disk.
pub(crate) fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

//! Reading candles back through [`store::Stores`]: everything, or one instrument's month.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, bail};
use futures::StreamExt;
use market::{Frame, InstrumentKey, TimeRange, Timeframe};
use serde_json::json;
use store::{StoreOptions, Stores};
use tokio::runtime::Runtime;

use crate::{Case, Measured, Parameters, data, put};

/// Streams that are read at once: one per core.
const READERS: usize = 2;
/// Rows of the month that is read: 22 sessions but for a piece of the last.
const MONTH_SESSIONS: usize = 22;
const MONTH_ROWS: usize = 8177;

#[derive(Debug)]
pub(crate) struct Read {
    runtime: Runtime,
    stores: Stores,
    keys: Arc<Vec<InstrumentKey>>,
    /// Of each call, for a month; everything otherwise.
    months: Option<Vec<TimeRange>>,
    runs: usize,
}

/// Sums over what was read, so that it is read.
#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    rows: usize,
    open_time: i64,
    prices: [f64; 5],
}

impl Sums {
    fn add(&mut self, frame: &Frame) {
        self.rows += frame.len();
        self.open_time = frame.open_time().iter().fold(self.open_time, |sum, at| sum.wrapping_add(*at));
        let columns = [frame.open(), frame.high(), frame.low(), frame.close(), frame.volume()];
        for (sum, column) in self.prices.iter_mut().zip(columns) {
            *sum += lanes(column);
        }
    }

    fn merge(mut self, other: Sums) -> Sums {
        self.rows += other.rows;
        self.open_time = self.open_time.wrapping_add(other.open_time);
        self.prices.iter_mut().zip(other.prices).for_each(|(sum, other)| *sum += other);
        self
    }
}

/// A sum in eight lanes, as a column engine does it.
fn lanes(column: &[f64]) -> f64 {
    let (chunks, rest) = column.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, value)| *sum += value);
    }
    sums.iter().sum::<f64>() + rest.iter().sum::<f64>()
}

impl Read {
    pub(crate) fn prepare(parameters: &Parameters) -> Result<Self> {
        let runtime = put::runtime()?;
        let url = match parameters.variant.as_str() {
            "sqlite" => put::sqlite_url(&parameters.folder),
            "postgres" => parameters.database_url.clone(),
            other => bail!("there is no store '{other}'"),
        };
        let series = data::load(&parameters.data)?;
        let mut keys = Vec::new();
        for copy in 0..parameters.scale.max(1) {
            for one in &series {
                keys.push(data::twin(&one.key, copy)?);
            }
        }
        let months = match (parameters.case.as_str(), series.first()) {
            ("month", Some(first)) => Some(months(&first.frame)?),
            _ => None,
        };
        let stores = runtime.block_on(Stores::open(&url, &StoreOptions::default()))?;
        Ok(Self { runtime, stores, keys: Arc::new(keys), months, runs: 0 })
    }
}

/// Ranges of [`MONTH_ROWS`] minutes, one after the other.
fn months(frame: &Frame) -> Result<Vec<TimeRange>> {
    let times = frame.open_time();
    let sessions = times.len() / 375;
    (0..sessions / MONTH_SESSIONS)
        .map(|month| {
            let first = month * MONTH_SESSIONS * 375;
            Ok(TimeRange::new(times[first], times[first + MONTH_ROWS - 1] + 60_000)?)
        })
        .collect()
}

impl Case for Read {
    fn run(&mut self) -> Result<Measured> {
        let run = self.runs;
        self.runs += 1;
        let started = Instant::now();
        let (sums, scale) = match &self.months {
            None => (self.runtime.block_on(read_all(&self.stores, &self.keys))?, 1.0),
            // Another instrument and month at each turn, all of them in the median.
            Some(months) => {
                let mut sums = Sums::default();
                for turn in 0..months.len() {
                    let key = &self.keys[(run * months.len() + turn) * 7 % self.keys.len()];
                    sums = sums.merge(self.runtime.block_on(read_one(&self.stores, key, months[turn]))?);
                }
                (sums, months.len() as f64)
            }
        };
        let seconds = started.elapsed().as_secs_f64() / scale;
        let [open, high, low, close, volume] = sums.prices;
        let values = json!({
            "rows": sums.rows, "open_time": sums.open_time,
            "open": open, "high": high, "low": low, "close": close, "volume": volume,
        });
        Ok(Measured::new(seconds, values))
    }
}

async fn read_one(stores: &Stores, key: &InstrumentKey, range: TimeRange) -> Result<Sums> {
    let mut blocks = stores.candles.read(key, Timeframe::M1, range, None);
    let mut sums = Sums::default();
    while let Some(block) = blocks.next().await {
        sums.add(&block?.frame);
    }
    Ok(sums)
}

async fn read_all(stores: &Stores, keys: &Arc<Vec<InstrumentKey>>) -> Result<Sums> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let (stores, keys, next) = (stores.clone(), Arc::clone(keys), Arc::clone(&next));
        readers.push(tokio::spawn(async move {
            let mut sums = Sums::default();
            while let Some(key) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
                sums = sums.merge(read_one(&stores, key, TimeRange::ALL).await?);
            }
            anyhow::Ok(sums)
        }));
    }
    let mut sums = Sums::default();
    for reader in readers {
        sums = sums.merge(reader.await??);
    }
    Ok(sums)
}

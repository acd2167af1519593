//! The series of a process, each once however many watch it, and how their histories are read.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use kernels::indicator::Spec;
use market::{BucketFrame, InstrumentKey, TimeRange, Timeframe};
use mesh::source::Candles;
use mesh::{CpuPool, Fault};
use rollout::Engine;
use tokio::sync::Semaphore;
use tonic::Code;

use super::LiveError;
use super::series::State;
use crate::engine::{Error, Indicators, Table};
use crate::query::Query;

/// Series that are kept up at present.
const SERIES: &str = "candlemesh_live_indicator_series";
/// Bytes of their states.
const STATE_BYTES: &str = "candlemesh_live_indicator_state_bytes";
/// Histories read, labelled `for`: state (a series is new, or something was not heard of), values (candles further back than is kept).
const HISTORIES: &str = "candlemesh_live_indicator_histories_total";

/// Histories read and computed at once in a process, each with its candles in memory.
const READS: usize = 4;
/// How long a computation waits for room in the queue of the CPU pool before it is tried again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Waits between attempts to read, from the first to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What tells series apart: the indicators by their canonical spelling.
type Id = (InstrumentKey, Timeframe, Arc<str>);

/// Bounds of what is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_series: usize,
    pub(super) max_state_bytes: usize,
}

/// Every series that somebody watches.
#[derive(Debug)]
pub(super) struct Shelf {
    series: Mutex<HashMap<Id, Weak<Series>>>,
    bytes: AtomicUsize,
    limits: Limits,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) key: InstrumentKey,
    pub(super) timeframe: Timeframe,
    pub(super) specs: Arc<[Spec]>,
    id: Id,
    state: Mutex<State>,
    /// Held while its history is read, which one does for all.
    pub(super) reading: tokio::sync::Mutex<()>,
    bytes: AtomicUsize,
    shelf: Arc<Shelf>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shelf {
    pub(super) fn new(limits: Limits) -> Arc<Shelf> {
        Arc::new(Shelf { series: Mutex::default(), bytes: AtomicUsize::new(0), limits })
    }

    /// The series of a subscription, in the order of keys and then timeframes; those that nobody watched yet know nothing.
    pub(super) fn take(
        self: &Arc<Self>,
        keys: &[InstrumentKey],
        timeframes: &[Timeframe],
        specs: &Arc<[Spec]>,
    ) -> Result<Vec<Arc<Series>>, LiveError> {
        let spellings: Vec<&str> = specs.iter().map(Spec::label).collect();
        let spelling: Arc<str> = spellings.join(";").into();
        let mut taken = Vec::with_capacity(keys.len() * timeframes.len());
        let mut shelf = lock(&self.series);
        for (key, timeframe) in keys.iter().flat_map(|key| timeframes.iter().map(move |timeframe| (key, *timeframe))) {
            let id = (key.clone(), timeframe, Arc::clone(&spelling));
            let known = shelf.get(&id).and_then(Weak::upgrade);
            let series = match known {
                Some(series) => series,
                None if shelf.len() >= self.limits.max_series => {
                    // What was taken must be let go without the lock, which that takes.
                    drop(shelf);
                    return Err(LiveError::TooManySeries(self.limits.max_series));
                }
                None => {
                    let series = Arc::new(Series {
                        key: key.clone(),
                        timeframe,
                        specs: Arc::clone(specs),
                        id: id.clone(),
                        state: Mutex::default(),
                        reading: tokio::sync::Mutex::default(),
                        bytes: AtomicUsize::new(0),
                        shelf: Arc::clone(self),
                    });
                    shelf.insert(id, Arc::downgrade(&series));
                    metrics::gauge!(SERIES).increment(1.0);
                    series
                }
            };
            taken.push(series);
        }
        Ok(taken)
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        (lock(&self.series).len(), self.bytes.load(Ordering::Relaxed))
    }

    /// Counts bytes that take the place of others.
    fn account(&self, before: usize, after: usize) -> Result<(), LiveError> {
        let total = self.bytes.fetch_add(after, Ordering::Relaxed) + after;
        let total = total - before;
        self.bytes.fetch_sub(before, Ordering::Relaxed);
        metrics::gauge!(STATE_BYTES).set(total as f64);
        match total > self.limits.max_state_bytes && after > before {
            true => Err(LiveError::StateFull(self.limits.max_state_bytes)),
            false => Ok(()),
        }
    }
}

impl Series {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Takes over what was read.
    pub(super) fn replace(&self, read: State) -> Result<(), LiveError> {
        let size = read.size_bytes();
        self.lock().replace(read);
        let before = self.bytes.swap(size, Ordering::Relaxed);
        self.shelf.account(before, size)
    }
}

impl Drop for Series {
    fn drop(&mut self) {
        let _ = self.shelf.account(self.bytes.load(Ordering::Relaxed), 0);
        let mut series = lock(&self.shelf.series);
        // Somebody may have put another in its place since.
        if series.get(&self.id).is_some_and(|known| known.strong_count() == 0) {
            series.remove(&self.id);
        }
        metrics::gauge!(SERIES).decrement(1.0);
    }
}

/// Reads and computes histories.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    pub(super) candles: Arc<dyn Candles>,
    pub(super) pool: Arc<CpuPool>,
    pub(super) indicators: Arc<Indicators>,
    pub(super) engine: Engine,
    pub(super) max_values: usize,
    pub(super) turns: Arc<Semaphore>,
}

impl Reader {
    pub(super) fn turns() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(READS))
    }

    /// Runs a task on the CPU pool, which may have to make room first.
    pub(super) async fn run<T, F>(&self, task: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        Ok(self.pool.run_within(PATIENCE, task).await?)
    }

    /// The state of a series as of a revision, or of now where that is no longer kept. Tried for as long as it may help.
    pub(super) async fn state(&self, series: &Series, revision: u64) -> Result<State, Error> {
        metrics::counter!(HISTORIES, "for" => "state").increment(1);
        persist(|| self.try_state(series, revision)).await
    }

    async fn try_state(&self, series: &Series, revision: u64) -> Result<State, Error> {
        // The semaphore is never closed.
        let _turn = self.turns.acquire().await;
        let read = |revision| self.candles.candles(&series.key, series.timeframe, TimeRange::ALL, revision);
        let read = match read(Some(revision)).await {
            Err(fault) if fault.code == Code::FailedPrecondition => read(None).await,
            read => read,
        };
        let (revision, history) = match read {
            Ok(buckets) => (buckets.revision, buckets.frame),
            // It may come into being.
            Err(fault) if fault.is_not_found() => (revision, BucketFrame::default()),
            Err(fault) => return Err(fault.into()),
        };
        let cost: usize = series.specs.iter().map(Spec::cost).sum();
        let (found, limit) = (history.frame.len().saturating_mul(cost), self.max_values);
        if found > limit {
            let way = "watch fewer indicators at once, or a wider timeframe";
            return Err(Error::Limit { what: "values to compute", found, limit, way });
        }
        let specs = Arc::clone(&series.specs);
        self.run(move || State::read(&specs, &history, revision)).await
    }

    /// Values of candles that are further back than is kept, as of a revision.
    pub(super) async fn values(&self, series: &Series, range: TimeRange, revision: u64) -> Result<Table, Error> {
        metrics::counter!(HISTORIES, "for" => "values").increment(1);
        let (key, timeframe, specs) = (series.key.clone(), series.timeframe, Arc::clone(&series.specs));
        let query = Query { key, timeframe, range, specs, revision: Some(revision) };
        let compute = || async {
            let _turn = self.turns.acquire().await;
            Ok(self.indicators.compute_at(self.engine, &query, revision).await?.table)
        };
        persist(compute).await
    }
}

/// Tries until it works, for as long as that may help: what is broken about one instrument stays so, a service that is away comes back.
async fn persist<T, F, R>(mut attempt: R) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
    R: FnMut() -> F,
{
    let mut wait = FIRST_WAIT;
    loop {
        match attempt().await {
            Err(error) if may_pass(&error) => {
                tracing::debug!(reason = error.reason(), "a history could not be read; it is tried again");
                tokio::time::sleep(wait).await;
            }
            outcome => return outcome,
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

fn may_pass(error: &Error) -> bool {
    super::may_pass(error.code()) || (error.code() == Code::ResourceExhausted && !matches!(error, Error::Limit { .. }))
}

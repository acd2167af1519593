//! Running one study: candles once, then trials in chunks on the CPU pool, stored as they come.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use kernels::backtest::Strategy;
use market::{InstrumentKey, Millis};
use mesh::{Cancel, Drain, PoolError, Priority, RemoteError};
use sha2::Sha256;
use store::{StudyProgress, StudyRecord, TrialOrder, TrialRecord};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::data::{self, Series};
use super::queue::Live;
use super::spec::Spec;
use super::state;
use super::trial::{self, Sums};
use crate::{Clock, Config, Ports};

/// Milliseconds of one task on the CPU pool, without its wait there.
const STEP_LATENCY: &str = "optimizer_step_latency_ms";
/// Trials evaluated and stored.
const TRIALS: &str = "candlemesh_optimizer_trials_total";

/// Trials of one chunk, and of one transaction: some hundred kilobytes.
const MAX_CHUNK: usize = 1000;
/// Trials of the first chunk, and of the smallest: the kernels run eight at the price of one.
const MIN_CHUNK: usize = 8;
/// First and longest pause before a full CPU pool is asked again.
const POOL_PAUSE: Duration = Duration::from_millis(10);
const MAX_POOL_PAUSE: Duration = Duration::from_millis(500);

/// Why a study does not run on. The text is what its owner reads.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("stopped")]
    Stopped,
    /// Another process changed the study's state.
    #[error("taken over")]
    Lost,
    #[error("candles of '{key}'")]
    Upstream { key: InstrumentKey, source: RemoteError },
    #[error("candles of '{key}' did not arrive within {seconds} s")]
    Slow { key: InstrumentKey, seconds: u64 },
    #[error("the calendar of '{key}' is none that is shipped")]
    Calendar { key: InstrumentKey, source: market::Error },
    #[error("candles of '{key}' came at revision {found}, {asked} was asked")]
    WrongRevision { key: InstrumentKey, asked: u64, found: u64 },
    #[error("too few candles of '{key}': {found} in the range, {needed} are needed")]
    TooFewCandles { key: InstrumentKey, found: usize, needed: usize },
    #[error("more than {limit} candles in all; use fewer instruments, a shorter range or a wider timeframe")]
    TooManyCandles { limit: usize },
    #[error("candles of '{key}' cannot be traded on")]
    Refused { key: InstrumentKey, source: kernels::Error },
    #[error("a figure of trial {number} overflows")]
    NotFinite { number: u32 },
    #[error("the stored study cannot be read: {0}")]
    Unreadable(String),
    #[error(transparent)]
    Pool(PoolError),
    #[error(transparent)]
    Store(store::Error),
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Conflict { .. } | store::Error::NotFound { .. } => Failure::Lost,
            error => Failure::Store(error),
        }
    }
}

/// Whether a study is to be taken up again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Ended, or left to the next start of the process.
    Over,
    /// The database is away: later.
    Again,
}

/// The two reasons to stop at the next chunk.
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    pub(crate) drain: Drain,
    pub(crate) cancel: CancellationToken,
}

impl Stop {
    pub(crate) async fn asked(&self) {
        tokio::select! {
            () = self.drain.started() => {}
            () = self.cancel.cancelled() => {}
        }
    }

    pub(crate) async fn sleep(&self, pause: Duration) -> Result<(), Failure> {
        tokio::select! {
            () = self.asked() => Err(Failure::Stopped),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }
}

/// Runs studies, one per call.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) ports: Ports,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
}

/// A study being run; what its chunks share.
struct Job<'a> {
    id: &'a str,
    spec: Arc<Spec>,
    digest: Sha256,
    data: Arc<[Series]>,
    /// Index into the space of each trial.
    order: Arc<[u64]>,
    stop: Stop,
    pace: Pace,
}

/// Trials per chunk, so that a task holds a CPU thread, and a chunk its results, no longer than configured.
struct Pace(AtomicUsize);

impl Pace {
    fn adapt(&self, trials: usize, longest_task: Duration, chunk: Duration, config: &Config) {
        let fit = |target: Duration, spent: Duration| target.as_secs_f64() / spent.as_secs_f64().max(1e-6);
        let fit = fit(config.task_time, longest_task).min(fit(config.store_interval, chunk));
        // At most twice as many: one short measurement says little.
        let next = (trials as f64 * fit.min(2.0)) as usize;
        self.0.store(next.clamp(MIN_CHUNK, MAX_CHUNK), Ordering::Relaxed);
    }
}

impl Runner {
    /// Takes a study up where it stands, and brings it to its end unless it is stopped before.
    pub(crate) async fn run(&self, id: &str, live: &Live, drain: &Drain) -> Ending {
        let stop = Stop { drain: drain.clone(), cancel: live.cancel.clone() };
        let ended = match self.work(id, live, stop).await {
            Ok(()) => Ok(()),
            Err(Failure::Stopped | Failure::Lost) => self.count_cancelled(id).await,
            // What is left belongs to the next start.
            Err(Failure::Pool(PoolError::ShuttingDown)) => Ok(()),
            Err(Failure::Store(error @ store::Error::Unavailable(_))) => Err(error.into()),
            Err(failure) => {
                let error = mesh::fault::chain(&failure);
                tracing::warn!(study = id, error, "study failed");
                self.end(id, state::FAILED, Some(error)).await
            }
        };
        live.notify();
        match ended {
            Ok(()) | Err(Failure::Lost) => Ending::Over,
            Err(failure) => {
                tracing::warn!(study = id, error = mesh::fault::chain(&failure), "study cannot be recorded now");
                Ending::Again
            }
        }
    }

    async fn work(&self, id: &str, live: &Live, stop: Stop) -> Result<(), Failure> {
        let studies = &self.ports.studies;
        let Some(study) = studies.study(id).await? else {
            return Ok(());
        };
        match study.state.as_str() {
            state::QUEUED => {
                let progress = self.progress(state::RUNNING, study.progress_done, study.progress_total, None);
                studies.update_study_state(id, Some(state::QUEUED), &progress).await?;
                live.notify();
            }
            state::RUNNING => tracing::info!(study = id, done = study.progress_done, "study resumed"),
            _ => return Ok(()),
        }
        let (spec, revisions) = Spec::load(&study.spec_json).map_err(Failure::Unreadable)?;
        let data = data::fetch(&self.ports, &self.config, &spec, &revisions, study.created_at, &stop).await?;
        let digest = trial::digest(&spec, &revisions, &data);
        let spec = Arc::new(spec);
        let order = {
            let spec = Arc::clone(&spec);
            self.on_pool(&stop, move || Arc::<[u64]>::from(spec.search.order(&spec.space))).await?
        };
        let pace = Pace(AtomicUsize::new(MIN_CHUNK));
        let job = Job { id, spec, digest, data, order, stop, pace };
        self.trials(&job, &study, live).await?;
        self.end(id, state::COMPLETED, None).await?;
        tracing::info!(study = id, trials = study.progress_total, "study completed");
        Ok(())
    }

    /// Evaluates what is not stored yet. What was finished before a stop or a failure is stored too.
    async fn trials(&self, job: &Job<'_>, study: &StudyRecord, live: &Live) -> Result<(), Failure> {
        let stored = self.stored_numbers(job.id).await?;
        let mut done = stored.len() as u64;
        let mut pending = (0..job.order.len() as u32).filter(|number| !stored.contains(number)).peekable();
        let mut running = FuturesOrdered::new();
        let mut finished: Vec<TrialRecord> = Vec::new();
        let mut stored_at = Instant::now();
        let outcome = loop {
            while running.len() < self.config.tasks_per_study.max(1) && pending.peek().is_some() {
                let chunk: Vec<u32> = pending.by_ref().take(job.pace.0.load(Ordering::Relaxed)).collect();
                running.push_back(self.chunk(job, chunk));
            }
            let chunk = tokio::select! {
                biased;
                () = job.stop.asked() => break Err(Failure::Stopped),
                chunk = running.next() => chunk,
            };
            match chunk {
                None => break Ok(()),
                Some(Err(failure)) => break Err(failure),
                Some(Ok(records)) => finished.extend(records),
            }
            if finished.len() >= MAX_CHUNK || stored_at.elapsed() >= self.config.store_interval {
                done += finished.len() as u64;
                self.put(job.id, &mut finished, done, study.progress_total, live).await?;
                stored_at = Instant::now();
            }
        };
        done += finished.len() as u64;
        outcome.and(self.put(job.id, &mut finished, done, study.progress_total, live).await)
    }

    async fn stored_numbers(&self, id: &str) -> Result<HashSet<u32>, Failure> {
        let mut numbers = HashSet::new();
        let mut after = None;
        loop {
            let page = self.ports.studies.trials(id, TrialOrder::Number { after }, MAX_CHUNK).await?;
            let Some(last) = page.last() else {
                return Ok(numbers);
            };
            after = Some(last.number);
            numbers.extend(page.iter().filter_map(|trial| u32::try_from(trial.number).ok()));
        }
    }

    /// Stores what is finished, in transactions of bounded size, empties it, and tells of the progress.
    async fn put(
        &self,
        id: &str,
        finished: &mut Vec<TrialRecord>,
        done: u64,
        total: u64,
        live: &Live,
    ) -> Result<(), Failure> {
        for trials in finished.chunks(MAX_CHUNK) {
            self.ports.studies.put_trials(id, trials).await?;
        }
        metrics::counter!(TRIALS).increment(finished.len() as u64);
        finished.clear();
        let progress = self.progress(state::RUNNING, done, total, None);
        self.ports.studies.update_study_state(id, Some(state::RUNNING), &progress).await?;
        live.notify();
        Ok(())
    }

    /// Evaluates one chunk: a task per instrument and row range, so that none is long.
    async fn chunk(&self, job: &Job<'_>, numbers: Vec<u32>) -> Result<Vec<TrialRecord>, Failure> {
        let strategies: Vec<_> =
            numbers.iter().map(|number| job.spec.space.strategy(job.order[*number as usize])).collect();
        let strategies: Arc<[Strategy]> = strategies.into();
        let mut sums = vec![Sums::default(); numbers.len()];
        let (mut longest, mut total) = (Duration::ZERO, Duration::ZERO);
        for (index, series) in job.data.iter().enumerate() {
            for (part, rows) in trial::parts(series.close.len(), job.spec.folds) {
                let (strategies, data) = (Arc::clone(&strategies), Arc::clone(&job.data));
                let task = move || {
                    let started = std::time::Instant::now();
                    let outcomes = trial::run_part(&strategies, &data[index], rows.clone());
                    (outcomes, started.elapsed())
                };
                let (outcomes, spent) = self.on_pool(&job.stop, task).await?;
                for (sum, outcome) in sums.iter_mut().zip(outcomes?) {
                    sum.add(part, job.spec.objective, &outcome);
                }
                metrics::histogram!(STEP_LATENCY).record(spent.as_secs_f64() * 1e3);
                longest = longest.max(spent);
                total += spent;
            }
        }
        job.pace.adapt(numbers.len(), longest, total, &self.config);
        let (spec, digest, order) = (Arc::clone(&job.spec), job.digest.clone(), Arc::clone(&job.order));
        let task = move || -> Result<Vec<TrialRecord>, Failure> {
            let numbered = numbers.iter().zip(&sums);
            numbered
                .map(|(number, sums)| trial::record(&spec, &digest, *number, order[*number as usize], sums))
                .collect()
        };
        self.on_pool(&job.stop, task).await?
    }

    /// Runs a task on the CPU pool, waiting while it is full: others have it then, and a study has time.
    async fn on_pool<T, F>(&self, stop: &Stop, task: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Clone + Send + 'static,
    {
        let mut pause = POOL_PAUSE;
        loop {
            let task = task.clone();
            match self.ports.pool.run_at(Priority::Batch, |_: &Cancel| task()).await {
                Err(PoolError::Full { .. }) => stop.sleep(pause).await?,
                outcome => return outcome.map_err(Failure::Pool),
            }
            pause = (pause * 2).min(MAX_POOL_PAUSE);
        }
    }

    /// Ends a running study.
    async fn end(&self, id: &str, state: &'static str, error: Option<String>) -> Result<(), Failure> {
        self.recount(id, state::RUNNING, state, error).await
    }

    /// Brings the count of a cancelled study up to date with the trials stored since; any other state is left alone.
    async fn count_cancelled(&self, id: &str) -> Result<(), Failure> {
        self.recount(id, state::CANCELLED, state::CANCELLED, None).await
    }

    async fn recount(&self, id: &str, from: &str, to: &'static str, error: Option<String>) -> Result<(), Failure> {
        let studies = &self.ports.studies;
        let (done, study) = (studies.trial_count(id).await?, studies.study(id).await?);
        let total = study.ok_or(Failure::Lost)?.progress_total;
        let progress = self.progress(to, done, total, error);
        Ok(studies.update_study_state(id, Some(from), &progress).await?)
    }

    fn progress(&self, state: &str, done: u64, total: u64, error: Option<String>) -> StudyProgress {
        let updated_at: Millis = (self.clock)();
        StudyProgress { state: state.to_owned(), progress_done: done, progress_total: total, error, updated_at }
    }
}

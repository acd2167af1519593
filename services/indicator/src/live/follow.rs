//! One subscriber's task: follows its candles, and tells what becomes of its indicators.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use market::{InstrumentKey, Timeframe};
use mesh::source::{CandleNews, NewsBatch};
use mesh::{Fault, RemoteError, to_status};
use proto::indicator::{IndicatorEvent, IndicatorFailure, IndicatorUpdate, WatchIndicatorsResponse};
use proto::wire::ItemError;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::series::{State, Taken};
use super::shelf::{Reader, Series};
use super::tell::{Account, Happened, Scribe, Told};
use super::{Config, LiveError, Ports, may_pass};
use crate::engine::Error;

/// Updates told, by event, to each subscriber.
const UPDATES: &str = "candlemesh_live_indicator_updates_total";
/// Series left out because they could not be computed, of each subscriber.
const FAILURES: &str = "candlemesh_live_indicator_failures_total";

/// Size at which a message is cut: below the 4 MiB that clients accept unless told otherwise.
const MESSAGE_BYTES: usize = 1024 * 1024;
/// Bytes of an update beside its values: key, times and the like.
const UPDATE_BYTES: usize = 96;
/// Series brought forward where the message arrived; more leave the async threads.
const INLINE_SERIES: usize = 16;
/// Series of one task of the CPU pool: about a millisecond.
const TASK_SERIES: usize = 256;
/// Tasks of one subscriber at once.
const TASKS: usize = 4;
/// Series of one subscriber whose history is waited for at once; the process reads fewer.
const WAITING: usize = 16;
/// Series told in one message of a snapshot, so that the first come while the last are read.
const SNAPSHOT_SERIES: usize = 256;
/// How often a series is read until it knows what was heard of it; once, unless others bring it forward meanwhile.
const READINGS: usize = 8;
/// Instruments asked for their revisions at once.
const REVISIONS: usize = 5000;
/// Waits between attempts to reach aggregation, from the first to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long the subscriber may have held up its task for a break with aggregation to be its own doing.
const OWN_DOING: Duration = Duration::from_secs(1);

/// Why a task ends.
enum End {
    /// Nobody listens.
    Left,
    /// Aggregation's stream broke off.
    Broke(RemoteError),
    Failed(LiveError),
}

impl From<LiveError> for End {
    fn from(error: LiveError) -> Self {
        End::Failed(error)
    }
}

/// A series as far as its subscriber has been told.
#[derive(Debug)]
struct Followed {
    series: Arc<Series>,
    told: Option<Told>,
    has_failed: bool,
}

/// What is to be told of one series.
#[derive(Debug)]
struct Job {
    index: usize,
    series: Arc<Series>,
    told: Option<Told>,
    news: Vec<CandleNews>,
    happened: Happened,
    /// More news of the series may come before those of others.
    is_cut: bool,
    /// What changed with the news is told, too.
    is_whole: bool,
}

/// What came of it.
enum Outcome {
    Told(Job, Account),
    /// The history as of a revision must be read for the series to know of the news.
    Behind(Job, u64),
    /// The series is ahead of one that comes back, who cannot be told by it what had been told.
    Ahead(Job),
}

/// The task.
#[derive(Debug)]
pub(super) struct Follower {
    ports: Ports,
    heartbeat: Duration,
    send_timeout: Duration,
    linger: Duration,
    keys: Vec<InstrumentKey>,
    timeframes: Vec<Timeframe>,
    followed: Vec<Followed>,
    places: HashMap<(InstrumentKey, Timeframe), usize>,
    scribe: Arc<Scribe>,
    /// Where aggregation's stream goes on.
    cursor: String,
    /// Where the subscriber's does: not before everything up to there has been told.
    said: String,
    /// The series of which something waits for more, and where the subscriber's stream goes on once that is told.
    held: Option<(usize, String)>,
    out: mpsc::Sender<WatchIndicatorsResponse>,
    sent_at: Instant,
    /// How long the subscriber has held up the task since the last message from aggregation.
    held_up: Duration,
    has_begun: bool,
    wants_snapshot: bool,
    /// Every series knows what was stored when the stream began.
    is_primed: bool,
    /// The series that the last message ended with, if that may have been cut, and what of it waits for the next one.
    last: Option<(usize, Option<Happened>)>,
}

impl Follower {
    #[allow(clippy::too_many_arguments, reason = "one caller, which takes them apart from a subscription")]
    pub(super) fn new(
        ports: Ports,
        config: &Config,
        keys: Vec<InstrumentKey>,
        timeframes: Vec<Timeframe>,
        series: Vec<Arc<Series>>,
        scribe: Scribe,
        cursor: String,
        out: mpsc::Sender<WatchIndicatorsResponse>,
    ) -> Follower {
        let place = |(index, series): (usize, &Arc<Series>)| ((series.key.clone(), series.timeframe), index);
        let places = series.iter().enumerate().map(place).collect();
        let follow = |series| Followed { series, told: None, has_failed: false };
        Follower {
            ports,
            heartbeat: config.heartbeat,
            send_timeout: config.send_timeout,
            linger: config.linger,
            keys,
            timeframes,
            followed: series.into_iter().map(follow).collect(),
            places,
            scribe: Arc::new(scribe),
            wants_snapshot: cursor.is_empty(),
            said: cursor.clone(),
            held: None,
            cursor,
            out,
            sent_at: Instant::now(),
            held_up: Duration::ZERO,
            has_begun: false,
            is_primed: false,
            last: None,
        }
    }

    /// Runs until nobody listens, or something ends the stream.
    pub(super) async fn run(mut self, columns: Vec<String>) -> Result<(), LiveError> {
        let out = self.out.clone();
        let outcome = tokio::select! {
            () = out.closed() => Ok(()),
            outcome = self.follow_on(&columns) => outcome,
        };
        // What found no room makes room at once.
        if !matches!(outcome, Err(LiveError::StateFull(_))) {
            let (series, linger) = (self.followed, self.linger);
            tokio::spawn(async move {
                tokio::time::sleep(linger).await;
                drop(series);
            });
        }
        outcome
    }

    /// Follows, and comes back where the break is not the subscriber's doing.
    async fn follow_on(&mut self, columns: &[String]) -> Result<(), LiveError> {
        let mut wait = FIRST_WAIT;
        loop {
            let before = self.cursor.clone();
            let fault = match self.follow(columns).await {
                End::Left => return Ok(()),
                End::Failed(error) => return Err(error),
                End::Broke(fault) => fault,
            };
            let is_slow = fault.reason == "SLOW_SUBSCRIBER";
            if is_slow && self.held_up >= OWN_DOING {
                return Err(LiveError::Slow(self.said.clone()));
            }
            if !self.has_begun || !(is_slow || may_pass(fault.code)) {
                return Err(fault.into());
            }
            tracing::debug!(error = %fault, "the stream of candles broke off; it is resumed");
            wait = if self.cursor == before { (wait * 2).min(LONGEST_WAIT) } else { FIRST_WAIT };
            tokio::time::sleep(wait).await;
        }
    }

    async fn follow(&mut self, columns: &[String]) -> End {
        let watching = self.ports.news.watch(&self.keys, &self.timeframes, &self.cursor).await;
        let mut batches = match watching {
            Ok(batches) => batches,
            Err(fault) => return End::Broke(fault),
        };
        loop {
            let batch = match batches.next().await {
                Some(Ok(batch)) => batch,
                Some(Err(fault)) => return End::Broke(fault),
                None => return End::Broke(Status::unavailable("the stream of candles ended").into()),
            };
            self.held_up = Duration::ZERO;
            if let Err(end) = self.hear(batch, columns).await {
                return end;
            }
        }
    }

    async fn hear(&mut self, batch: NewsBatch, columns: &[String]) -> Result<(), End> {
        if !std::mem::replace(&mut self.has_begun, true) {
            let cursor = if self.cursor.is_empty() { batch.cursor.clone() } else { self.cursor.clone() };
            let columns = columns.to_vec();
            self.send(WatchIndicatorsResponse { cursor, columns, ..Default::default() }).await?;
        }
        // The beginning ends with one of its own.
        let is_sign_of_life = batch.news.is_empty() && self.is_primed;
        let jobs = self.jobs(batch.news);
        let (updates, failures) = self.work(jobs).await?;
        self.publish(updates, failures, batch.cursor, is_sign_of_life).await?;
        if batch.is_caught_up && !self.is_primed {
            self.prime().await?;
            let cursor = self.said.clone();
            self.send(WatchIndicatorsResponse { cursor, caught_up: true, ..Default::default() }).await?;
        }
        Ok(())
    }

    /// What is to be told of each series, in the order of the news.
    fn jobs(&mut self, news: Vec<CandleNews>) -> Vec<Job> {
        let mut jobs: Vec<Job> = Vec::new();
        let may_be_cut = news.len() >= self.ports.cut_news;
        let last = self.last.take();
        if let Some((index, _)) = &last {
            self.followed[*index].series.lock().end_cut();
        }
        if let Some((index, Some(happened))) = last {
            jobs.push(self.job(index, happened));
        }
        let mut places: HashMap<usize, usize> = jobs.iter().map(|job| (job.index, 0)).collect();
        let mut latest = None;
        for one in news {
            let Some(index) = self.places.get(&(one.key.clone(), one.timeframe)).copied() else { continue };
            if self.followed[index].has_failed {
                continue;
            }
            let place = *places.entry(index).or_insert_with(|| {
                jobs.push(self.job(index, Happened::default()));
                jobs.len() - 1
            });
            jobs[place].news.push(one);
            latest = Some(place);
        }
        for job in &mut jobs {
            job.happened.add(&job.news);
            job.told = job.told.filter(|told| !told.was_assumed(&job.news));
        }
        if let Some(place) = latest.filter(|_| may_be_cut) {
            jobs[place].is_cut = true;
            jobs[place].is_whole = false;
            self.last = Some((jobs[place].index, None));
        }
        jobs
    }

    fn job(&self, index: usize, happened: Happened) -> Job {
        let Followed { series, told, .. } = &self.followed[index];
        let (series, told) = (Arc::clone(series), *told);
        Job { index, series, told, news: Vec::new(), happened, is_cut: false, is_whole: true }
    }

    /// Does the jobs; updates come in their order.
    async fn work(&mut self, jobs: Vec<Job>) -> Result<(Vec<IndicatorUpdate>, Vec<IndicatorFailure>), End> {
        let outcomes = match jobs.len() {
            ..=INLINE_SERIES => jobs.into_iter().map(|job| attempt(job, &self.scribe)).collect(),
            _ => self.work_aside(jobs).await?,
        };
        let (reader, scribe) = (self.ports.reader.clone(), Arc::clone(&self.scribe));
        let finish = |outcome| finish(&reader, &scribe, outcome);
        let mut finished = std::pin::pin!(futures::stream::iter(outcomes).map(finish).buffered(WAITING));
        let (mut updates, mut failures) = (Vec::new(), Vec::new());
        while let Some((mut job, outcome)) = finished.next().await {
            let followed = &mut self.followed[job.index];
            match outcome {
                Ok(told) => {
                    updates.extend(told);
                    followed.told = job.told;
                    if !job.is_whole {
                        job.happened.is_told();
                        self.last = Some((job.index, Some(job.happened)));
                    }
                }
                Err(LiveError::Engine(error)) => failures.push(fail(followed, &error)),
                Err(error) => return Err(End::Failed(error)),
            }
        }
        Ok((updates, failures))
    }

    async fn work_aside(&self, jobs: Vec<Job>) -> Result<Vec<Outcome>, End> {
        let mut jobs = jobs.into_iter().peekable();
        let mut tasks = Vec::new();
        while jobs.peek().is_some() {
            let part: Vec<Job> = jobs.by_ref().take(TASK_SERIES).collect();
            let (reader, scribe) = (self.ports.reader.clone(), Arc::clone(&self.scribe));
            tasks.push(async move {
                let task = move || part.into_iter().map(|job| attempt(job, &scribe)).collect::<Vec<_>>();
                reader.run(task).await
            });
        }
        let mut outcomes = Vec::new();
        let mut done = std::pin::pin!(futures::stream::iter(tasks).buffered(TASKS));
        while let Some(part) = done.next().await {
            // What is lost with it is told to who resumes.
            outcomes.extend(part.map_err(|error| End::Failed(error.into()))?);
        }
        Ok(outcomes)
    }

    /// Makes sure that every series knows what was stored when live news began, and tells a new subscriber of it.
    async fn prime(&mut self) -> Result<(), End> {
        let revisions = self.revisions().await?;
        let unprimed: Vec<(usize, Arc<Series>, u64)> = self
            .followed
            .iter()
            .enumerate()
            .filter(|(_, followed)| followed.told.is_none() && !followed.has_failed)
            .map(|(index, followed)| {
                let revision = revisions.get(&followed.series.key).copied().unwrap_or_default();
                (index, Arc::clone(&followed.series), revision)
            })
            .collect();
        let (reader, scribe, wants_snapshot) =
            (self.ports.reader.clone(), Arc::clone(&self.scribe), self.wants_snapshot);
        let ready = |(index, series, revision): (usize, Arc<Series>, u64)| {
            let (reader, scribe) = (&reader, &scribe);
            async move {
                let outcome = ready(reader, &series, revision).await.map(|()| {
                    let state = series.lock();
                    let told = if wants_snapshot { Told::all(&state) } else { Told::assumed(&state) };
                    (told, scribe.snapshot(&series, &state))
                });
                (index, outcome)
            }
        };
        let ready = futures::stream::iter(unprimed).map(ready).buffered(WAITING).ready_chunks(SNAPSHOT_SERIES);
        let mut ready = std::pin::pin!(ready);
        while let Some(part) = ready.next().await {
            let (mut updates, mut failures) = (Vec::new(), Vec::new());
            for (index, outcome) in part {
                let followed = &mut self.followed[index];
                match outcome {
                    Ok((told, snapshot)) => {
                        followed.told = Some(told);
                        if wants_snapshot {
                            updates.extend(snapshot);
                        }
                    }
                    Err(LiveError::Engine(error)) => failures.push(fail(followed, &error)),
                    Err(error) => return Err(End::Failed(error)),
                }
            }
            let cursor = self.cursor.clone();
            self.publish(updates, failures, cursor, false).await?;
        }
        self.is_primed = true;
        Ok(())
    }

    async fn revisions(&self) -> Result<HashMap<InstrumentKey, u64>, End> {
        let mut revisions = HashMap::with_capacity(self.keys.len());
        for keys in self.keys.chunks(REVISIONS) {
            let mut wait = FIRST_WAIT;
            let found = loop {
                match self.ports.master.revisions(keys).await {
                    Ok(found) => break found,
                    Err(fault) if may_pass(fault.code) || fault.code == Code::ResourceExhausted => {}
                    Err(fault) => return Err(End::Failed(fault.into())),
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            };
            revisions.extend(keys.iter().cloned().zip(found));
        }
        Ok(revisions)
    }

    /// Sends updates in messages of bounded size, of which only the last moves the reader on; where something of it waits for more, not
    /// beyond the message before.
    async fn publish(
        &mut self,
        updates: Vec<IndicatorUpdate>,
        failures: Vec<IndicatorFailure>,
        cursor: String,
        is_sign_of_life: bool,
    ) -> Result<(), End> {
        count(&updates);
        self.cursor = cursor;
        let waits = self.last.as_ref().filter(|(_, happened)| happened.is_some()).map(|(index, _)| *index);
        let reached = match (waits, self.held.take()) {
            (None, _) => self.cursor.clone(),
            // What waited has been told now, and something else waits.
            (Some(index), Some((waited, reached))) if waited != index => reached,
            (Some(_), _) => self.said.clone(),
        };
        self.held = waits.map(|index| (index, self.cursor.clone()));
        let before = std::mem::replace(&mut self.said, reached);
        let is_due = is_sign_of_life || self.sent_at.elapsed() >= self.heartbeat;
        if updates.is_empty() && failures.is_empty() && !is_due {
            return Ok(());
        }
        let size = (MESSAGE_BYTES / (UPDATE_BYTES + self.scribe.order.len() * size_of::<f64>())).max(1);
        let mut updates = updates.into_iter().peekable();
        let mut failures = Some(failures);
        loop {
            let part: Vec<IndicatorUpdate> = updates.by_ref().take(size).collect();
            let is_last = updates.peek().is_none();
            let cursor = if is_last { self.said.clone() } else { before.clone() };
            let failures = failures.take().unwrap_or_default();
            self.send(WatchIndicatorsResponse { updates: part, cursor, failures, ..Default::default() }).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    async fn send(&mut self, message: WatchIndicatorsResponse) -> Result<(), End> {
        let started = Instant::now();
        let sent = self.out.send_timeout(message, self.send_timeout).await;
        self.sent_at = Instant::now();
        self.held_up += self.sent_at - started;
        match sent {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Closed(_)) => Err(End::Left),
            Err(SendTimeoutError::Timeout(_)) => Err(LiveError::Slow(self.said.clone()).into()),
        }
    }
}

/// Brings the series of a job forward, if what it knows allows, and accounts for it.
fn attempt(mut job: Job, scribe: &Scribe) -> Outcome {
    let series = Arc::clone(&job.series);
    let mut state = series.lock();
    // Its news begin at its cursor, which what is known may not reach: even the next revision may not be all that is missing.
    if job.told.is_none() && !state.knows(job.happened.revision) {
        let revision = job.happened.revision.max(state.revision.unwrap_or_default());
        return Outcome::Behind(job, revision);
    }
    if let Taken::Behind { revision } = state.take(&job.news, job.is_cut) {
        return Outcome::Behind(job, revision);
    }
    let is_ahead = state.revision.is_some_and(|known| known > job.happened.revision);
    if job.is_whole && job.told.is_none() && is_ahead {
        state.settle();
        return Outcome::Ahead(job);
    }
    let account = scribe.tell(&series, &state, &mut job.told, &job.happened, job.is_whole);
    state.settle();
    Outcome::Told(job, account)
}

/// Reads what is missing for a job to be done.
async fn finish(
    reader: &Reader,
    scribe: &Scribe,
    mut outcome: Outcome,
) -> (Job, Result<Vec<IndicatorUpdate>, LiveError>) {
    for _ in 0..READINGS {
        let (mut job, account) = match outcome {
            Outcome::Told(job, account) => (job, account),
            Outcome::Ahead(mut job) => {
                let read = reader.state(&job.series, job.happened.revision).await;
                let state = match read {
                    Ok(state) => state,
                    Err(error) => return (job, Err(error.into())),
                };
                let account = scribe.tell(&job.series, &state, &mut job.told, &job.happened, job.is_whole);
                job.told = job.told.map(Told::of_another);
                (job, account)
            }
            Outcome::Behind(job, revision) => {
                let series = Arc::clone(&job.series);
                let _reading = series.reading.lock().await;
                // Another may have read it meanwhile.
                outcome = attempt(job, scribe);
                if let Outcome::Behind(job, _) = outcome {
                    let read = reader.state(&series, revision).await.map_err(LiveError::from);
                    if let Err(error) = read.and_then(|read| series.replace(read)) {
                        return (job, Err(error));
                    }
                    outcome = attempt(job, scribe);
                }
                continue;
            }
        };
        let Some(far) = account.far else { return (job, Ok(account.updates)) };
        return match reader.values(&job.series, far.range, far.revision).await {
            Ok(table) => {
                let mut updates = scribe.tell_far(&job.series, &far, &job.happened, &table);
                updates.extend(account.updates);
                (job, Ok(updates))
            }
            Err(error) => {
                job.told = None;
                (job, Err(error.into()))
            }
        };
    }
    let (Outcome::Told(job, _) | Outcome::Behind(job, _) | Outcome::Ahead(job)) = outcome;
    (job, Err(LiveError::Broken))
}

/// Reads a series unless it knows everything up to a revision.
async fn ready(reader: &Reader, series: &Series, revision: u64) -> Result<(), LiveError> {
    if series.lock().knows(revision) {
        return Ok(());
    }
    let _reading = series.reading.lock().await;
    let known = {
        let state = series.lock();
        if state.knows(revision) {
            return Ok(());
        }
        state.revision.unwrap_or_default()
    };
    let read = match revision.max(known) {
        0 => State::empty(&series.specs),
        revision => reader.state(series, revision).await?,
    };
    series.replace(read)
}

/// Leaves a series out from now on.
fn fail(followed: &mut Followed, error: &Error) -> IndicatorFailure {
    followed.has_failed = true;
    metrics::counter!(FAILURES).increment(1);
    let RemoteError { code, reason, message, .. } = RemoteError::from_status(&to_status(error));
    tracing::warn!(reason = error.reason(), error = %mesh::fault::chain(error), "a series cannot be computed");
    IndicatorFailure {
        instrument_key: followed.series.key.to_string(),
        timeframe: followed.series.timeframe.to_string(),
        error: Some(ItemError { code: code as i32, reason, message }),
    }
}

fn count(updates: &[IndicatorUpdate]) {
    for event in [IndicatorEvent::Snapshot, IndicatorEvent::Update, IndicatorEvent::Close, IndicatorEvent::Correction] {
        let count = updates.iter().filter(|update| update.event() == event).count();
        let name = event.as_str_name().trim_start_matches("INDICATOR_EVENT_");
        metrics::counter!(UPDATES, "event" => name).increment(count as u64);
    }
}

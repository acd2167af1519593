//! The one task of a process that follows the change log and tells its subscribers.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use market::{InstrumentKey, Millis, TimeRange, Timeframe};
use mesh::clock::Clock;
use mesh::source::{ChangeBatch, Changes, StoredChange};
use mesh::{Drain, Fault, RemoteError};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Code;

use super::audience::{Audience, Ended, Limits, Mailbox, Seat};
use super::board::{Board, Outcome, Pending, Reread};
use super::bucket::Candled;
use super::cursor::Position;
use super::encode::{Cuts, Group};
use super::event::{Closing, Filter, Timeframes, Update};
use super::pin::revisions_at;
use super::read::{self, Reader, Stored};
use super::{Config, LiveError};
use crate::engine::Error;

/// Reads under way at once: more would only wait in ingestion, which two cores serve.
const READS: usize = 16;
/// Instruments made ready between two looks at the change log, so that a large subscription does not hold up the others.
const PRIME_SLICE: usize = 64;
/// Instruments that wait to be made ready, at most; beyond, nobody is let in of whom some must be: ten of the largest subscriptions by
/// name.
const MAX_TO_PRIME: usize = 10 * super::MAX_KEYS;
/// Batches of the change log between two looks at everything else, and fewer while somebody waits for a seat.
const BATCHES_IN_A_ROW: usize = 16;
const BATCHES_WHILE_WAITING: usize = 4;
/// How often subscribers who left or lag are looked for when nothing happens.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// Waits between attempts to reach ingestion, from the first to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Updates from which rendering and fan-out leave the async threads.
const INLINE_CHANGES: usize = 64;

/// Furthest a vendor's daily stamp lies from its trading date.
pub(super) const STAMP_SHIFT_MS: Millis = 24 * 60 * 60 * 1000;

type Log = BoxStream<'static, Result<ChangeBatch, RemoteError>>;

/// What subscribers ask of the hub.
#[derive(Debug)]
pub(super) enum Command {
    /// Answered at once with where the seat will come, which is when the newest candles of all that the filter names are known.
    Join(Filter, oneshot::Sender<oneshot::Receiver<Seat>>),
    /// Does what is due now and says where that leads.
    #[cfg(test)]
    Locate(oneshot::Sender<Position>),
}

/// What the hub needs.
#[derive(Debug, Clone)]
pub(super) struct Ports {
    pub(super) reader: Reader,
    pub(super) changes: Arc<dyn Changes>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) drain: Drain,
}

/// The state that moves to another thread and back.
#[derive(Debug)]
struct State {
    board: Board,
    audience: Audience,
    position: Position,
}

/// Who is to have a seat once its instruments are made ready. Until then all that the filter names is followed, and told to nobody: a
/// close that was due meanwhile would be missing, or come again after a resumption.
#[derive(Debug)]
struct Waiting {
    filter: Filter,
    /// Instruments whose newest candles are still to be read, and of which timeframes.
    to_prime: VecDeque<(InstrumentKey, Timeframes)>,
    answer: oneshot::Sender<Seat>,
}

/// The task.
pub(super) struct Hub {
    ports: Ports,
    /// Absent only after a task was lost, which ends the hub.
    state: Option<State>,
    log: Log,
    commands: mpsc::Receiver<Command>,
    told: watch::Sender<Position>,
    /// A slice of the first is made ready, then it goes behind the others.
    waiting: VecDeque<Waiting>,
    linger: Duration,
}

impl Hub {
    /// Opens the change log at its end.
    pub(super) async fn open(
        ports: Ports,
        config: &Config,
        commands: mpsc::Receiver<Command>,
        told: watch::Sender<Position>,
    ) -> Result<Hub, LiveError> {
        let mut log = ports.changes.watch(None).await?;
        let first = log.try_next().await?;
        let first = first.ok_or_else(|| RemoteError::from(tonic::Status::unavailable("the change log ended")))?;
        let grace_ms = super::millis(config.close_grace);
        let limits = Limits {
            backlog_bytes: config.backlog_bytes,
            max_backlog_bytes: config.max_backlog_bytes,
            send_timeout: config.send_timeout,
        };
        let position = Position { sequence: first.sequence, watermark: ports.clock.now() };
        let state = State {
            board: Board::new(Closing { grace_ms }, config.max_accumulators),
            audience: Audience::new(limits),
            position,
        };
        told.send_replace(position);
        let linger = config.linger;
        Ok(Hub { ports, state: Some(state), log, commands, told, waiting: VecDeque::new(), linger })
    }

    /// Runs until nobody has listened for a while, or until drained.
    pub(super) async fn run(mut self) {
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        let mut idle_since = tokio::time::Instant::now();
        let mut batches = 0;
        loop {
            let Some(state) = &self.state else { return };
            if !state.audience.is_empty() || !self.waiting.is_empty() {
                idle_since = tokio::time::Instant::now();
            }
            let due = state.board.next_due().unwrap_or(Millis::MAX);
            let clock = Arc::clone(&self.ports.clock);
            let is_awaited = !self.waiting.is_empty();
            let patience = if is_awaited { BATCHES_WHILE_WAITING } else { BATCHES_IN_A_ROW };
            // The log first, so that a subscriber's place is behind all that is known by then; but a log that always has more
            // must not keep subscribers waiting, nor closes.
            tokio::select! {
                biased;
                () = self.ports.drain.started() => return,
                batch = self.log.next(), if batches < patience => {
                    batches += 1;
                    self.advance(batch).await;
                    continue;
                }
                () = clock.reach(due), if due < Millis::MAX => self.step(ChangeBatch::default()).await,
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                _ = sweep.tick() => {
                    if idle_since.elapsed() > self.linger {
                        return;
                    }
                    self.sweep();
                }
                () = std::future::ready(()), if is_awaited => self.make_ready().await,
                () = std::future::ready(()), if batches >= patience => {}
            }
            batches = 0;
        }
    }

    fn sweep(&mut self) {
        if let Some(State { board, audience, .. }) = &mut self.state
            && audience.sweep()
        {
            board.keep(|key| audience.watched(key));
        }
    }

    async fn advance(&mut self, batch: Option<Result<ChangeBatch, RemoteError>>) {
        match batch {
            Some(Ok(batch)) => self.step(batch).await,
            Some(Err(fault)) => self.reopen(Some(fault)).await,
            None => self.reopen(None).await,
        }
    }

    /// Opens the log again where it broke off. Nothing is lost: subscribers only wait.
    async fn reopen(&mut self, mut fault: Option<RemoteError>) {
        let mut wait = FIRST_WAIT;
        loop {
            let Some(state) = &mut self.state else { return };
            if fault.as_ref().is_some_and(is_expired) {
                tracing::warn!("the change log does not go on from where we are; subscribers start over");
                state.audience.end(Ended::Expired);
                self.state = None;
                return;
            }
            if let Some(fault) = &fault {
                tracing::warn!(error = %fault, "the change log broke off; it is opened again");
            }
            tokio::select! {
                () = self.ports.drain.started() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(LONGEST_WAIT);
            match self.ports.changes.watch(Some(state.position.sequence)).await {
                Ok(log) => {
                    self.log = log;
                    return;
                }
                Err(error) => fault = Some(error),
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            // Whoever asked has waited long enough.
            Command::Join(_, answer) if answer.is_closed() => {}
            Command::Join(filter, answer) => {
                let universe = match filter.keys {
                    // Without the answer, whoever asked tries again.
                    None => match universe(&self.ports.reader.clone()).await {
                        Some(universe) => universe,
                        None => return,
                    },
                    Some(_) => Vec::new(),
                };
                self.let_go();
                let queued: usize = self.waiting.iter().map(|waiting| waiting.to_prime.len()).sum();
                let (sender, receiver) = oneshot::channel();
                let Some(State { board, audience, .. }) = &mut self.state else { return };
                let keys = filter.keys.as_deref().unwrap_or(&universe).iter();
                let to_prime: VecDeque<_> = keys
                    .map(|key| (key, board.unprimed(key, filter.timeframes)))
                    .filter(|(_, wanted)| !wanted.is_empty())
                    .map(|(key, wanted)| (key.clone(), wanted))
                    .collect();
                if (!to_prime.is_empty() && queued >= MAX_TO_PRIME) || answer.send(receiver).is_err() {
                    return;
                }
                audience.expect(&filter);
                self.waiting.push_back(Waiting { filter, to_prime, answer: sender });
                self.seat().await;
            }
            #[cfg(test)]
            Command::Locate(answer) => {
                self.step(ChangeBatch::default()).await;
                if let Some(state) = &self.state {
                    let _ = answer.send(state.position);
                }
            }
        }
    }

    /// Reads the newest candles of some instruments of the first who waits, and gives it its seat if these were the last.
    async fn make_ready(&mut self) {
        self.let_go();
        let Some(mut first) = self.waiting.pop_front() else { return };
        let count = first.to_prime.len().min(PRIME_SLICE);
        let slice: Vec<_> = first.to_prime.drain(..count).collect();
        self.waiting.push_back(first);
        self.prime(slice).await;
        self.seat().await;
    }

    /// Forgets those who wait no longer.
    fn let_go(&mut self) {
        let Some(State { audience, .. }) = &mut self.state else { return };
        self.waiting.retain(|waiting| {
            let stays = !waiting.answer.is_closed();
            if !stays {
                audience.seat(&waiting.filter, None);
            }
            stays
        });
    }

    /// Gives a seat to everybody for whom all is ready.
    async fn seat(&mut self) {
        if self.waiting.iter().all(|waiting| !waiting.to_prime.is_empty()) {
            return;
        }
        // So that a seat's position is of now: closes before it have been told to those who were there.
        self.step(ChangeBatch::default()).await;
        let Some(State { audience, position, .. }) = &mut self.state else { return };
        let (ready, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.to_prime.is_empty());
        self.waiting = waiting;
        let ready: VecDeque<Waiting> = ready;
        for Waiting { filter, answer, .. } in ready {
            let mailbox = Mailbox::new();
            let seat = Seat { mailbox: Arc::clone(&mailbox), position: *position };
            let is_there = answer.send(seat).is_ok();
            audience.seat(&filter, is_there.then_some(mailbox));
        }
    }

    /// Says what is due by the clock, then what the batch changed.
    async fn step(&mut self, batch: ChangeBatch) {
        let now = match &self.state {
            Some(state) => self.ports.clock.now().max(state.position.watermark),
            None => return,
        };
        self.close_due(now).await;
        if batch.sequence == 0 {
            return;
        }
        self.learn(&batch).await;
        let size = batch.changes.len();
        let batch = Arc::new(batch);
        let (mut updates, rereads) = {
            let batch = Arc::clone(&batch);
            let apply = move |state: &mut State| {
                let State { board, audience, position } = state;
                let mut updates = Vec::with_capacity(batch.changes.len());
                let watched = |key: &InstrumentKey| audience.watched(key);
                let rereads = board.apply(&batch.changes, watched, now, &mut updates);
                if rereads.is_empty() {
                    tell(audience, position, &mut updates, now, &batch);
                }
                (updates, rereads)
            };
            match self.aside(size, apply).await {
                Some(applied) => applied,
                None => return,
            }
        };
        if !rereads.is_empty() {
            let mut outcomes = read_changes(&self.ports.reader.clone(), rereads).await;
            outcomes.sort_by_key(|outcome| outcome.reread.change);
            let size = outcomes.len().max(updates.len());
            let settle = move |state: &mut State| {
                let State { board, audience, position } = state;
                for outcome in outcomes {
                    board.settle(outcome, now, &mut updates);
                }
                tell(audience, position, &mut updates, now, &batch);
            };
            if self.aside(size, settle).await.is_none() {
                return;
            }
        }
        if let Some(state) = &mut self.state {
            state.board.evict();
            self.told.send_replace(state.position);
        }
    }

    /// Takes what lasts longer than a moment off the async threads. Not to the CPU pool: full, it refuses, and the state would go with
    /// the task. There is one such task at a time.
    async fn aside<T, F>(&mut self, size: usize, task: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut State) -> T + Send + 'static,
    {
        let mut state = self.state.take()?;
        if size <= INLINE_CHANGES {
            let outcome = task(&mut state);
            self.state = Some(state);
            return Some(outcome);
        }
        let run = move || {
            let outcome = task(&mut state);
            (state, outcome)
        };
        match tokio::task::spawn_blocking(run).await {
            Ok((state, outcome)) => {
                self.state = Some(state);
                Some(outcome)
            }
            Err(error) => {
                tracing::error!(%error, "telling changes failed; subscribers start over from their cursors");
                None
            }
        }
    }

    async fn close_due(&mut self, now: Millis) {
        let Some(state) = &mut self.state else { return };
        let mut updates = Vec::new();
        let unknown = state.board.due(now, &mut updates);
        let reads: Vec<_> = unknown
            .into_iter()
            .filter_map(|item| Some((state.board.calendar(&item.key)?, state.board.revision(&item.key), item)))
            .map(|(calendar, revision, item)| {
                let reader = self.ports.reader.clone();
                async move {
                    let range = TimeRange::new(item.range_start, item.range_end).unwrap_or(TimeRange::ALL);
                    let read = || reader.candles(&calendar, &item.key, item.timeframe, range, revision);
                    let (revision, rows) = persist(read).await.unwrap_or_default();
                    (item, revision, rows.into_iter().next_back())
                }
            })
            .collect();
        let read: Vec<(Pending, u64, Option<Candled>)> = futures::stream::iter(reads).buffered(READS).collect().await;
        let Some(State { board, audience, position }) = &mut self.state else { return };
        for (item, revision, found) in read {
            board.close_read(item, revision, found, now, &mut updates);
        }
        let after = Position { watermark: now, ..*position };
        updates.sort_by(in_order);
        let cuts = Cuts::Step { before: *position, after, groups: &[] };
        audience.tell(&updates, now, &cuts);
        *position = after;
        self.told.send_replace(after);
    }

    /// Gets to know the instruments of a batch that are watched and were not seen before, and what is stored of them before it.
    async fn learn(&mut self, batch: &ChangeBatch) {
        let Some(State { board, audience, .. }) = &mut self.state else { return };
        let mut unknown: Vec<InstrumentKey> = Vec::new();
        for change in &batch.changes {
            if !board.knows(&change.key) && !audience.watched(&change.key).is_empty() {
                unknown.push(change.key.clone());
            }
        }
        unknown.sort_unstable();
        unknown.dedup();
        let wanted = unknown.into_iter().map(|key| (audience.watched(&key), key));
        let wanted: Vec<_> = wanted.map(|(wanted, key)| (key, wanted)).collect();
        if !wanted.is_empty() {
            self.prime(wanted).await;
        }
    }

    /// Reads the newest candles of some instruments that are newly watched, as of what was told.
    async fn prime(&mut self, slice: Vec<(InstrumentKey, Timeframes)>) {
        let Some(State { board, position, .. }) = &mut self.state else { return };
        let since = position.watermark;
        let unknown: BTreeSet<InstrumentKey> =
            slice.iter().filter(|(key, _)| !board.knows(key)).map(|(key, _)| key.clone()).collect();
        for (key, found) in look_up(&self.ports.reader.clone(), unknown.into_iter().collect()).await {
            let Some(State { board, .. }) = &mut self.state else { return };
            if let Some((calendar, stored)) = found {
                board.add_series(&key, calendar, stored);
            }
        }
        // As of what was told: a change that is stored and on its way would else be known before it comes.
        let Some(State { position, .. }) = &self.state else { return };
        let keys: Vec<InstrumentKey> = slice.iter().map(|(key, _)| key.clone()).collect();
        let (ports, sequence) = (self.ports.clone(), position.sequence);
        let (changes, master) = (ports.changes.as_ref(), ports.reader.aggregator.master.as_ref());
        let pinned = persist(|| async { Ok(revisions_at(changes, master, &keys, sequence).await?) }).await;
        let Some(State { board, .. }) = &mut self.state else { return };
        let closing = board.closing;
        let mut reads = Vec::new();
        for (key, wanted) in slice {
            let (Some(calendar), Some(stored)) = (board.calendar(&key), board.stored(&key)) else { continue };
            // Where the log could not be asked, what is there now: a correction told for a close is better than a close never told.
            let revision = pinned.as_ref().map(|pinned| pinned.get(&key).copied().unwrap_or_default());
            for timeframe in board.unprimed(&key, wanted).iter() {
                let reader = self.ports.reader.clone();
                let (key, calendar) = (key.clone(), Arc::clone(&calendar));
                reads.push(async move {
                    let Some(range) = unsaid(&calendar, timeframe, stored, closing, since) else {
                        return (key, timeframe, (0, Vec::new()));
                    };
                    let read = || reader.candles(&calendar, &key, timeframe, range, revision);
                    let newest = persist(read).await.unwrap_or_default();
                    (key, timeframe, newest)
                });
            }
        }
        let read: Vec<_> = futures::stream::iter(reads).buffered(READS).collect().await;
        let Some(State { board, .. }) = &mut self.state else { return };
        for (key, timeframe, newest) in read {
            board.prime(&key, timeframe, newest, since);
        }
    }
}

type Known = (Arc<market::Calendar>, Stored);

fn tell(audience: &mut Audience, position: &mut Position, updates: &mut [Update], now: Millis, batch: &ChangeBatch) {
    let after = Position { sequence: batch.sequence.max(position.sequence), watermark: now };
    let groups = groups(&batch.changes, position.sequence);
    updates.sort_by(|a, b| groups[a.change].end.cmp(&groups[b.change].end).then_with(|| in_order(a, b)));
    audience.tell(updates, now, &Cuts::Step { before: *position, after, groups: &groups });
    *position = after;
}

/// The order in which resumptions tell.
fn in_order(a: &Update, b: &Update) -> std::cmp::Ordering {
    let place = |update: &Update| (update.timeframe, update.candle.candle.open_time);
    a.key.cmp(&b.key).then_with(|| place(a).cmp(&place(b)))
}

/// The group of each change.
fn groups(changes: &[StoredChange], mut before: u64) -> Vec<Group> {
    let mut groups = Vec::with_capacity(changes.len());
    for group in changes.chunk_by(|a, b| a.key == b.key && a.revision == b.revision) {
        let end = group.last().map_or(before, |change| change.sequence);
        groups.extend(group.iter().map(|_| Group { before, end }));
        before = end;
    }
    groups
}

/// Whether the change log cannot go on from a sequence: it was pruned ahead of it, or, restored, ends before it.
pub(super) fn is_expired(fault: &RemoteError) -> bool {
    matches!(fault.code, Code::FailedPrecondition | Code::InvalidArgument)
}

/// All instruments there are. Absent if they cannot be listed: closes of candles that are open already would be missing.
async fn universe(reader: &Reader) -> Option<Vec<InstrumentKey>> {
    match reader.aggregator.master.instruments().await {
        Ok(all) => Some(all.into_iter().map(|instrument| instrument.key).collect()),
        Err(fault) => {
            tracing::warn!(error = %fault, "the universe could not be listed");
            None
        }
    }
}

async fn look_up(reader: &Reader, keys: Vec<InstrumentKey>) -> Vec<(InstrumentKey, Option<Known>)> {
    let look = |key: InstrumentKey| {
        let reader = reader.clone();
        async move {
            let found = persist(|| async { Ok((reader.calendar(&key).await?, reader.stored(&key).await?)) }).await;
            (key, found)
        }
    };
    futures::stream::iter(keys).map(look).buffered(READS).collect().await
}

async fn read_changes(reader: &Reader, rereads: Vec<Reread>) -> Vec<Outcome> {
    let read = |reread: Reread| {
        let reader = reader.clone();
        async move {
            let Reread { key, timeframe, calendar, range, revision, .. } = &reread;
            let at = |revision| {
                let reader = &reader;
                persist(move || reader.candles(calendar, key, *timeframe, *range, Some(revision)))
            };
            let (before, after) = (at(revision.saturating_sub(1)).await, at(*revision).await);
            let (before, after) = (before.unwrap_or_default().1, after.unwrap_or_default().1);
            Outcome { reread, before, after }
        }
    };
    futures::stream::iter(rereads).map(read).buffered(READS).collect().await
}

/// The range of the candles whose close may not have been said at `since`: usually one, or none where nothing is stored of late.
fn unsaid(
    calendar: &market::Calendar,
    timeframe: Timeframe,
    stored: Stored,
    closing: Closing,
    since: Millis,
) -> Option<TimeRange> {
    let from = since.saturating_sub(closing.grace_ms);
    let first = calendar.bucket(&calendar.day_at(from), timeframe, from);
    // Vendors' daily stamps may lie a date before the one they mean.
    let last =
        if stored.minutes_only { stored.last_open_time } else { stored.last_open_time.saturating_add(STAMP_SHIFT_MS) };
    let newest = calendar.bucket(&calendar.day_at(last), timeframe, last);
    if stored.last_open_time == Millis::MIN || newest.end() <= first.start() {
        return None;
    }
    TimeRange::new(first.start(), TimeRange::ALL.end()).ok()
}

/// Tries until it works, for as long as that may help. What cannot be read is counted, logged and left out.
pub(super) async fn persist<T, F, R>(mut read: R) -> Option<T>
where
    F: Future<Output = Result<T, Error>>,
    R: FnMut() -> F,
{
    let mut wait = FIRST_WAIT;
    loop {
        match read().await {
            Ok(value) => return Some(value),
            Err(error) if read::may_pass(&error) => tokio::time::sleep(wait).await,
            Err(error) => {
                metrics::counter!("candlemesh_live_unreadable_candles_total").increment(1);
                tracing::warn!(reason = error.reason(), error = %mesh::fault::chain(&error), "candles could not be read");
                return None;
            }
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

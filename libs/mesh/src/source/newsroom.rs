//! Candles of any timeframe with their revisions and what happened to them, in memory: the twin of aggregation where a test writes while
//! others watch.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use futures::stream::BoxStream;
use market::{
    BucketFrame, Calendar, Candle, CorporateAction, Date, Frame, Instrument, InstrumentKey, Millis, TimeRange,
    Timeframe,
};
use proto::aggregation::CandleEvent;
use tokio::sync::watch;
use tonic::{Code, Status};

use super::{Buckets, CandleNews, Candles, Group, LiveCandles, MasterData, NewsBatch, SourceCoverage};
use crate::RemoteError;

type Series = (InstrumentKey, Timeframe);
/// A candle and its trading date as of each revision that changed it, ascending.
type Versions = Vec<(u64, Candle, Date)>;

/// Instruments, their candles at every revision, and what happened to each.
#[derive(Debug, Clone)]
pub struct MemoryNewsroom {
    state: Arc<Mutex<State>>,
    /// Length of the log, and how often all streams were cut.
    reached: watch::Sender<(usize, u64)>,
    /// News of one message.
    message_news: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct State {
    instruments: BTreeMap<InstrumentKey, Instrument>,
    revisions: BTreeMap<InstrumentKey, u64>,
    candles: BTreeMap<Series, BTreeMap<Millis, Versions>>,
    closed: BTreeSet<(Series, Millis)>,
    log: Vec<CandleNews>,
    /// Where each put ends in the log: a message never holds two.
    ends: Vec<usize>,
    pruned: usize,
    reads: usize,
    /// What is put when the revisions are asked for next.
    late: Option<(InstrumentKey, Vec<Put>)>,
    watchers: usize,
}

impl Default for MemoryNewsroom {
    fn default() -> Self {
        Self { state: Arc::default(), reached: watch::Sender::default(), message_news: Arc::new(usize::MAX.into()) }
    }
}

fn fault(code: Code, reason: &str, message: String, field: Option<&str>) -> RemoteError {
    let fields = field.map(|field| (field.to_owned(), message.clone())).into_iter().collect();
    RemoteError { code, reason: reason.to_owned(), message, fields, retry_after: None }
}

/// A candle, and whether its close is said with it.
type Put = (Timeframe, Candle, bool);

impl State {
    /// The state of a candle as of a revision.
    fn news(&self, series: &Series, at: Millis, event: CandleEvent, as_of: u64) -> Option<CandleNews> {
        let states = self.candles.get(series)?.get(&at)?.iter().rev();
        let (revision, candle, trading_date) = *states.into_iter().find(|(revision, ..)| *revision <= as_of)?;
        Some(CandleNews { key: series.0.clone(), timeframe: series.1, event, candle, trading_date, revision })
    }

    fn put(&mut self, rows: &[(InstrumentKey, Timeframe, Candle, bool)]) {
        let Some((key, ..)) = rows.first() else { return };
        let revision = self.revisions.entry(key.clone()).or_default();
        *revision += 1;
        let revision = *revision;
        let calendar = self.instruments.get(key).and_then(|known| Calendar::by_name(&known.calendar).ok());
        let calendar = calendar.expect("the instruments of a test have a calendar");
        for (key, timeframe, candle, closes) in rows {
            let series = (key.clone(), *timeframe);
            let at = candle.open_time;
            self.candles.entry(series.clone()).or_default().entry(at).or_default().push((
                revision,
                *candle,
                calendar.day_at(at).date,
            ));
            let event = match (self.closed.contains(&(series.clone(), at)), closes) {
                (true, _) => CandleEvent::Correction,
                (false, true) => CandleEvent::Close,
                (false, false) => CandleEvent::Update,
            };
            if event == CandleEvent::Close {
                self.closed.insert((series.clone(), at));
            }
            let news = self.news(&series, at, event, revision);
            self.log.extend(news);
        }
    }

    /// What one who comes back is told between two places: each candle that changed, as it is at the later one, and every close.
    fn missed(&self, from: usize, to: usize, wants: impl Fn(&CandleNews) -> bool) -> Vec<CandleNews> {
        let mut missed: BTreeMap<(Series, Millis), CandleEvent> = BTreeMap::new();
        let revisions: BTreeMap<&InstrumentKey, u64> =
            self.log[..to].iter().map(|news| (&news.key, news.revision)).collect();
        for news in self.log[from..to].iter().filter(|news| wants(news)) {
            let place = ((news.key.clone(), news.timeframe), news.open_time());
            let known = missed.entry(place).or_insert(news.event);
            if *known != CandleEvent::Close {
                *known = news.event;
            }
        }
        let told = missed.into_iter().filter_map(|((series, at), event)| {
            let revision = revisions.get(&series.0).copied().unwrap_or_default();
            self.news(&series, at, event, revision).map(|news| CandleNews { revision, ..news })
        });
        told.collect()
    }
}

impl MemoryNewsroom {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts messages at so many news.
    pub fn cut_messages_at(&self, news: usize) {
        self.message_news.store(news.max(1), Ordering::Relaxed);
    }

    pub fn add(&self, instrument: Instrument) {
        self.lock().instruments.insert(instrument.key.clone(), instrument);
    }

    /// Stores candles of one instrument at one new revision, each with whether its close is said now, and tells of them in order.
    pub fn put(&self, key: &InstrumentKey, rows: &[Put]) {
        let of_key =
            |(timeframe, candle, closes): &(Timeframe, Candle, bool)| (key.clone(), *timeframe, *candle, *closes);
        self.put_all(&rows.iter().map(of_key).collect::<Vec<_>>());
    }

    /// The same as soon as somebody asks for revisions, who then hears of it after its news have begun.
    pub fn put_when_asked(&self, key: &InstrumentKey, rows: &[Put]) {
        self.lock().late = Some((key.clone(), rows.to_vec()));
    }

    /// The same of several instruments, in one message where that is large enough.
    pub fn put_all(&self, rows: &[(InstrumentKey, Timeframe, Candle, bool)]) {
        let mut state = self.lock();
        let mut rows = rows.to_vec();
        rows.sort_by(|a, b| (&a.0, a.1, a.2.open_time).cmp(&(&b.0, b.1, b.2.open_time)));
        for of_key in rows.chunk_by(|a, b| a.0 == b.0) {
            state.put(of_key);
        }
        self.publish(state);
    }

    /// Says the close of a candle, as the clock does. Nothing changes.
    pub fn close(&self, key: &InstrumentKey, timeframe: Timeframe, at: Millis) {
        let mut state = self.lock();
        let series = (key.clone(), timeframe);
        if state.closed.insert((series.clone(), at)) {
            let revision = state.revisions.get(key).copied().unwrap_or_default();
            let news =
                state.news(&series, at, CandleEvent::Close, revision).map(|news| CandleNews { revision, ..news });
            state.log.extend(news);
        }
        self.publish(state);
    }

    fn publish(&self, mut state: MutexGuard<'_, State>) {
        let length = state.log.len();
        state.ends.push(length);
        // Under the lock, so that nobody else says less.
        self.reached.send_modify(|(reached, _)| *reached = length);
    }

    /// Ends every stream as a lost connection does.
    pub fn hang_up(&self) {
        self.reached.send_modify(|(_, cuts)| *cuts += 1);
    }

    /// Forgets what happened up to now: cursors from before have expired.
    pub fn prune(&self) {
        let mut state = self.lock();
        state.pruned = state.log.len();
    }

    /// What the cursor of one who has heard everything begins with.
    pub fn cursor(&self) -> String {
        format!("n{}.", self.lock().log.len())
    }

    /// Histories read so far.
    pub fn reads(&self) -> usize {
        self.lock().reads
    }
}

/// Moves on with every watcher, as time does. The last message of what was missed has one that ends in m.
fn cursor(length: usize, watchers: usize) -> String {
    format!("n{length}.{watchers}")
}

/// One watcher's place.
struct Watcher {
    room: MemoryNewsroom,
    seen: watch::Receiver<(usize, u64)>,
    keys: BTreeSet<InstrumentKey>,
    timeframes: Vec<Timeframe>,
    at: usize,
    number: usize,
    cuts: u64,
    waiting: VecDeque<NewsBatch>,
    is_over: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<NewsBatch, RemoteError>> {
        loop {
            if self.is_over {
                return None;
            }
            if let Some(batch) = self.waiting.pop_front() {
                return Some(Ok(batch));
            }
            let (at, cuts) = (self.at, self.cuts);
            let news = self.seen.wait_for(|(reached, cut)| *reached > at || *cut != cuts).await.map(|seen| *seen);
            let Ok((_, cut)) = news else { return None };
            if cut != cuts {
                self.is_over = true;
                return Some(Err(fault(Code::Unavailable, "HUB_ENDED", "the stream broke off".into(), None)));
            }
            let room = self.room.clone();
            let state = room.lock();
            let end = state.ends.iter().copied().find(|end| *end > at).unwrap_or(at);
            let news = state.log[at..end].iter().enumerate().filter(|(_, news)| self.wants(news));
            let news: Vec<(usize, CandleNews)> = news.map(|(index, news)| (at + index + 1, news.clone())).collect();
            self.at = end;
            for part in news.chunks(room.message_news.load(Ordering::Relaxed)) {
                let reached = part.last().map_or(end, |(reached, _)| *reached);
                let news = part.iter().map(|(_, news)| news.clone()).collect();
                self.waiting.push_back(NewsBatch { news, cursor: cursor(reached, self.number), is_caught_up: false });
            }
            if let Some(last) = self.waiting.back_mut() {
                last.cursor = cursor(end, self.number);
                // What may have been cut is known to be whole by the next message.
                let cursor = last.cursor.clone();
                if last.news.len() == room.message_news.load(Ordering::Relaxed) {
                    self.waiting.push_back(NewsBatch { cursor, ..NewsBatch::default() });
                }
            }
        }
    }

    fn wants(&self, news: &CandleNews) -> bool {
        self.keys.contains(&news.key) && self.timeframes.contains(&news.timeframe)
    }
}

#[tonic::async_trait]
impl LiveCandles for MemoryNewsroom {
    async fn watch(
        &self,
        keys: &[InstrumentKey],
        timeframes: &[Timeframe],
        after: &str,
    ) -> Result<BoxStream<'static, Result<NewsBatch, RemoteError>>, RemoteError> {
        let mut seen = self.reached.subscribe();
        let cuts = seen.borrow_and_update().1;
        let mut state = self.lock();
        state.watchers += 1;
        let (at, number) = (state.log.len(), state.watchers);
        let mut watcher = Watcher {
            room: self.clone(),
            seen,
            keys: keys.iter().cloned().collect(),
            timeframes: timeframes.to_vec(),
            at,
            number,
            cuts,
            waiting: VecDeque::new(),
            is_over: false,
        };
        if !after.is_empty() {
            let from = after
                .strip_prefix('n')
                .and_then(|text| text.split_once('.')?.0.parse().ok())
                .filter(|from| *from <= at);
            let refused = || fault(Code::InvalidArgument, "INVALID_FIELD", format!("'{after}'"), Some("cursor"));
            let from: usize = from.ok_or_else(refused)?;
            if from < state.pruned {
                return Err(fault(Code::FailedPrecondition, "CURSOR_EXPIRED", "no longer kept".into(), None));
            }
            // Every other one as if it had been cut off before: to its end first, and then on from there.
            let ends: Vec<usize> = state.ends.iter().copied().filter(|end| from < *end && *end < at).collect();
            let amid = ends.get(ends.len() / 2).filter(|_| number % 2 == 0);
            let mut start = from;
            for end in amid.into_iter().chain([&at]) {
                let missed = state.missed(start, *end, |news| watcher.wants(news));
                let place = if start == from { after.to_owned() } else { cursor(start, number) };
                let part =
                    |news: &[CandleNews]| NewsBatch { news: news.to_vec(), cursor: place.clone(), is_caught_up: false };
                watcher.waiting.extend(missed.chunks(self.message_news.load(Ordering::Relaxed)).map(part));
                if let Some(last) = watcher.waiting.back_mut().filter(|_| !missed.is_empty()) {
                    last.cursor = format!("{}m", cursor(*end, number));
                }
                if *end < at {
                    let cursor = cursor(*end, number);
                    watcher.waiting.push_back(NewsBatch { cursor, ..NewsBatch::default() });
                }
                start = *end;
            }
        }
        drop(state);
        let cursor = cursor(at, number);
        watcher.waiting.push_back(NewsBatch { cursor, is_caught_up: true, ..NewsBatch::default() });
        let next = |mut watcher: Watcher| async move { watcher.next().await.map(|batch| (batch, watcher)) };
        Ok(futures::stream::unfold(watcher, next).boxed())
    }
}

#[tonic::async_trait]
impl Candles for MemoryNewsroom {
    async fn candles(
        &self,
        key: &InstrumentKey,
        timeframe: Timeframe,
        range: TimeRange,
        revision: Option<u64>,
    ) -> Result<Buckets, RemoteError> {
        self.instrument(key).await?;
        let mut state = self.lock();
        state.reads += 1;
        let current = state.revisions.get(key).copied().unwrap_or_default();
        let revision = revision.unwrap_or(current);
        let series = (key.clone(), timeframe);
        let mut rows = BucketFrame { frame: Frame::default(), ..Default::default() };
        let all = state.candles.get(&series).into_iter().flat_map(|all| all.range(range.start()..range.end()));
        for (at, versions) in all {
            let version = versions.iter().rev().find(|(made, ..)| *made <= revision);
            let Some((_, candle, trading_date)) = version else { continue };
            rows.frame.push(candle).expect("the rows of a test are acceptable candles");
            let is_closed = state.closed.contains(&(series.clone(), *at));
            rows.closed.push(is_closed);
            rows.complete.push(is_closed);
            rows.source_count.push(1);
            rows.expected_count.push(1);
            rows.trading_date.push(*trading_date);
        }
        Ok(Buckets { revision, frame: rows })
    }
}

#[tonic::async_trait]
impl MasterData for MemoryNewsroom {
    async fn instrument(&self, key: &InstrumentKey) -> Result<Instrument, RemoteError> {
        let unknown = || RemoteError::from_status(&Status::not_found(format!("instrument '{key}' is not known")));
        self.lock().instruments.get(key).cloned().ok_or_else(unknown)
    }

    async fn instruments(&self) -> Result<Vec<Instrument>, RemoteError> {
        Ok(self.lock().instruments.values().cloned().collect())
    }

    async fn revisions(&self, keys: &[InstrumentKey]) -> Result<Vec<u64>, RemoteError> {
        let late = self.lock().late.take();
        if let Some((key, rows)) = late {
            self.put(&key, &rows);
        }
        let state = self.lock();
        Ok(keys.iter().map(|key| state.revisions.get(key).copied().unwrap_or_default()).collect())
    }

    async fn coverage(&self, key: &InstrumentKey) -> Result<Vec<SourceCoverage>, RemoteError> {
        self.instrument(key).await.map(|_| Vec::new())
    }

    async fn corporate_actions(&self, key: &InstrumentKey) -> Result<Vec<CorporateAction>, RemoteError> {
        self.instrument(key).await.map(|_| Vec::new())
    }

    async fn group(&self, id: &str) -> Result<Group, RemoteError> {
        Err(RemoteError::from_status(&Status::not_found(format!("group '{id}' is not known"))))
    }
}

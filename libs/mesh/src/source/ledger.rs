//! Stored candles with their revisions and their change log in memory: the twin of ingestion where a test writes while others read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use futures::stream::BoxStream;
use market::{Calendar, Candle, CorporateAction, Frame, Instrument, InstrumentKey, Millis, TimeRange, Timeframe};
use tokio::sync::watch;
use tonic::Status;

use super::{ChangeBatch, Changes, Group, MasterData, SourceCoverage, StoredCandles, StoredChange, StoredFrames};
use crate::RemoteError;

/// Changes of one message.
const BATCH: usize = 2000;

/// Instruments, their candles at every revision, and what changed.
#[derive(Debug)]
pub struct MemoryLedger {
    state: Arc<Mutex<Ledger>>,
    /// Sequence of the last change.
    sequence: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ledger {
    instruments: BTreeMap<InstrumentKey, Instrument>,
    revisions: BTreeMap<InstrumentKey, u64>,
    /// With the revision that made each, ascending.
    stored: BTreeMap<(InstrumentKey, Timeframe), Vec<(u64, Frame)>>,
    log: Vec<StoredChange>,
    pruned: u64,
}

impl Default for MemoryLedger {
    fn default() -> Self {
        Self { state: Arc::default(), sequence: watch::Sender::new(1) }
    }
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_found(key: &InstrumentKey) -> RemoteError {
    RemoteError::from_status(&Status::not_found(format!("instrument '{key}' is not known")))
}

impl Ledger {
    fn current(&self, key: &InstrumentKey, timeframe: Timeframe) -> Option<&Frame> {
        self.stored.get(&(key.clone(), timeframe))?.last().map(|(_, frame)| frame)
    }

    fn put(&mut self, key: &InstrumentKey, timeframe: Timeframe, rows: &[Candle], sequence: &mut u64) {
        let mut all: BTreeMap<i64, Candle> = BTreeMap::new();
        if let Some(frame) = self.current(key, timeframe) {
            all.extend(frame.candles().map(|candle| (candle.open_time, candle)));
        }
        let mut changed: Vec<i64> = Vec::new();
        for row in rows {
            if all.insert(row.open_time, *row) != Some(*row) {
                changed.push(row.open_time);
            }
        }
        changed.sort_unstable();
        changed.dedup();
        if changed.is_empty() {
            return;
        }
        let mut frame = Frame::with_capacity(all.len());
        for candle in all.values() {
            frame.push(candle).expect("the rows of a test are acceptable candles");
        }
        let revision = self.revisions.entry(key.clone()).or_default();
        *revision += 1;
        let revision = *revision;
        self.stored.entry((key.clone(), timeframe)).or_default().push((revision, frame));
        let name = self.instruments.get(key).map(|known| known.calendar.clone()).unwrap_or_default();
        let calendar = Calendar::by_name(&name).expect("the instruments of a test have a calendar");
        while let Some(first) = changed.first().copied() {
            let day = calendar.day_at(first);
            let rest = changed.split_off(changed.partition_point(|at| *at < day.end));
            // Gaps are legal, so there are some.
            *sequence += 1 + *sequence % 2;
            self.log.push(StoredChange {
                sequence: *sequence,
                key: key.clone(),
                timeframe,
                trading_date: day.date,
                revision,
                first_open_time: first,
                last_open_time: changed.last().copied().unwrap_or(first),
                candles: None,
            });
            changed = rest;
        }
    }

    /// Changes after a sequence, with their candles as they are by now.
    fn after(&self, sequence: u64) -> Result<ChangeBatch, RemoteError> {
        if sequence < self.pruned {
            return Err(RemoteError::from_status(&Status::failed_precondition("the changes were pruned")));
        }
        let from = self.log.partition_point(|change| change.sequence <= sequence);
        let mut batch = ChangeBatch { changes: Vec::new(), sequence };
        for change in self.log[from..].iter().take(BATCH) {
            let candles = self
                .current(&change.key, change.timeframe)
                .map(|frame| frame.slice(frame.rows_between(change.first_open_time, change.last_open_time + 1)));
            batch.sequence = change.sequence;
            batch.changes.push(StoredChange { candles, ..change.clone() });
        }
        Ok(batch)
    }
}

impl MemoryLedger {
    fn lock(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.state)
    }

    pub fn add(&self, instrument: Instrument) {
        self.lock().instruments.insert(instrument.key.clone(), instrument);
    }

    /// Stores batches in one transaction, last write wins, and returns the sequence of the last change.
    pub fn put(&self, batches: &[(InstrumentKey, Timeframe, Vec<Candle>)]) -> u64 {
        let mut ledger = self.lock();
        let mut sequence = *self.sequence.borrow();
        for (key, timeframe, rows) in batches {
            ledger.put(key, *timeframe, rows, &mut sequence);
        }
        // Under the lock, so that no other put gives out the same sequences.
        self.sequence.send_replace(sequence);
        sequence
    }

    /// Forgets the log up to a sequence.
    pub fn prune(&self, through: u64) {
        let mut ledger = self.lock();
        ledger.pruned = through;
        ledger.log.retain(|change| change.sequence > through);
    }
}

#[tonic::async_trait]
impl Changes for MemoryLedger {
    async fn watch(
        &self,
        after_sequence: Option<u64>,
    ) -> Result<BoxStream<'static, Result<ChangeBatch, RemoteError>>, RemoteError> {
        let ledger = Arc::clone(&self.state);
        let seen = self.sequence.subscribe();
        let start = after_sequence.unwrap_or(*seen.borrow());
        lock(&ledger).after(start)?;
        let state = (ledger, seen, start, true);
        let batches = futures::stream::unfold(state, |(ledger, mut seen, at, is_first)| async move {
            if !is_first {
                seen.wait_for(|sequence| *sequence > at).await.ok()?;
            }
            let batch = lock(&ledger).after(at);
            let at = batch.as_ref().map_or(at, |batch| batch.sequence);
            Some((batch, (ledger, seen, at, false)))
        });
        Ok(batches.boxed())
    }
}

#[tonic::async_trait]
impl StoredCandles for MemoryLedger {
    async fn stored(
        &self,
        key: &InstrumentKey,
        source: Timeframe,
        range: TimeRange,
        revision: Option<u64>,
    ) -> Result<StoredFrames, RemoteError> {
        self.instrument(key).await?;
        let ledger = self.lock();
        let revision = revision.unwrap_or_else(|| ledger.revisions.get(key).copied().unwrap_or_default());
        let versions = ledger.stored.get(&(key.clone(), source)).map(Vec::as_slice).unwrap_or_default();
        let frame = versions.iter().rev().find(|(made, _)| *made <= revision);
        let frames = frame.map(|(_, frame)| Ok(frame.slice(frame.rows_between(range.start(), range.end()))));
        let frames: Vec<_> = frames.into_iter().collect();
        Ok(StoredFrames { revision, frames: futures::stream::iter(frames).boxed() })
    }
}

#[tonic::async_trait]
impl MasterData for MemoryLedger {
    async fn instrument(&self, key: &InstrumentKey) -> Result<Instrument, RemoteError> {
        self.lock().instruments.get(key).cloned().ok_or_else(|| not_found(key))
    }

    async fn instruments(&self) -> Result<Vec<Instrument>, RemoteError> {
        Ok(self.lock().instruments.values().cloned().collect())
    }

    async fn revisions(&self, keys: &[InstrumentKey]) -> Result<Vec<u64>, RemoteError> {
        let ledger = self.lock();
        Ok(keys.iter().map(|key| ledger.revisions.get(key).copied().unwrap_or_default()).collect())
    }

    async fn first_change(
        &self,
        key: &InstrumentKey,
        after_revision: u64,
        revision: u64,
    ) -> Result<Option<Millis>, RemoteError> {
        let ledger = self.lock();
        let revisions = after_revision + 1..=revision;
        let told = || ledger.log.iter().filter(|change| change.key == *key && revisions.contains(&change.revision));
        let known: BTreeSet<u64> = told().map(|change| change.revision).collect();
        let first = told().map(|change| change.first_open_time).min();
        Ok(first.filter(|_| known.len() as u64 == revision.saturating_sub(after_revision)))
    }

    async fn coverage(&self, key: &InstrumentKey) -> Result<Vec<SourceCoverage>, RemoteError> {
        self.instrument(key).await?;
        let ledger = self.lock();
        let of_key = ledger.stored.iter().filter(|((stored, _), _)| stored == key);
        let covered = of_key.filter_map(|((_, timeframe), versions)| {
            let (_, frame) = versions.last()?;
            Some(SourceCoverage {
                timeframe: *timeframe,
                first_open_time: *frame.open_time().first()?,
                last_open_time: *frame.open_time().last()?,
                candle_count: frame.len() as u64,
            })
        });
        Ok(covered.collect())
    }

    async fn corporate_actions(&self, key: &InstrumentKey) -> Result<Vec<CorporateAction>, RemoteError> {
        self.instrument(key).await.map(|_| Vec::new())
    }

    async fn group(&self, id: &str) -> Result<Group, RemoteError> {
        Err(RemoteError::from_status(&Status::not_found(format!("group '{id}' is not known"))))
    }
}

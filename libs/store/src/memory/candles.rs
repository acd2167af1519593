//! Candles in maps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use market::{Candle, Date, Frame, InstrumentKey, Millis, TimeRange, Timeframe};

use super::{MemoryStore, lock};
use crate::block::{Chunk, Merged, Summary, merge, split};
use crate::candle_store::{block_date, carried, check_calendar, check_puts, check_revisions, trim};
use crate::{
    Block, CandleStore, Change, Changed, CheckReport, Coverage, Error, LastCandle, MAX_PAGE_ROWS, Pruned, Put,
    PutOutcome, Result,
};

#[derive(Debug, Default)]
pub(super) struct Candles {
    series: BTreeMap<InstrumentKey, Series>,
    changes: Vec<Change>,
    last_sequence: u64,
    pruned_sequence: u64,
}

#[derive(Debug, Default)]
struct Series {
    calendar: String,
    revision: u64,
    /// Reads as of earlier revisions are no longer possible.
    oldest_revision: u64,
    updated_at: Millis,
    /// Every kept version of a block, oldest first; the last one is current.
    blocks: BTreeMap<(Timeframe, Date), Vec<Version>>,
}

#[derive(Debug)]
struct Version {
    revision: u64,
    frame: Arc<Frame>,
    superseded: Option<Superseded>,
}

#[derive(Debug)]
struct Superseded {
    revision: u64,
    at: Millis,
}

impl Series {
    fn current(&self, source: Timeframe, date: Date) -> Option<&Version> {
        self.blocks.get(&(source, date)).and_then(|versions| versions.last())
    }

    fn of_source(&self, source: Timeframe) -> impl DoubleEndedIterator<Item = (Date, &Vec<Version>)> {
        self.blocks.range((source, Date::MIN)..=(source, Date::MAX)).map(|((_, date), versions)| (*date, versions))
    }

    fn as_of(&self, key: &InstrumentKey, as_of: Option<u64>) -> Result<u64> {
        let revision = as_of.unwrap_or(self.revision);
        if revision > self.revision {
            let reason = format!("{revision} is beyond {}, the current revision of {key}", self.revision);
            return Err(Error::invalid("as_of", reason));
        }
        if revision < self.oldest_revision {
            return Err(Error::Expired { what: "revision", requested: revision, oldest: self.oldest_revision });
        }
        Ok(revision)
    }
}

/// What one put will do, decided before anything is changed.
#[derive(Debug)]
struct Plan {
    outcome: PutOutcome,
    merged: Vec<(Date, Merged)>,
}

impl Candles {
    fn plan(&self, put: &Put<'_>, chunks: Vec<Chunk>) -> Result<Plan> {
        let series = self.series.get(put.key);
        if let Some(series) = series {
            check_calendar(put, &series.calendar)?;
        }
        let mut outcome = PutOutcome { revision: series.map_or(0, |series| series.revision), ..PutOutcome::default() };
        let mut merged = Vec::new();
        for chunk in chunks {
            let current = series.and_then(|series| series.current(put.source, chunk.block_date));
            let (date, rows) = (chunk.block_date, chunk.rows.len() as u64);
            match merge(current.map(|version| &*version.frame), chunk)? {
                None => outcome.unchanged += rows,
                Some(change) => {
                    outcome.stored += change.stored;
                    outcome.unchanged += change.unchanged;
                    outcome.changed_dates.extend_from_slice(&change.changed_dates);
                    merged.push((date, change));
                }
            }
        }
        Ok(Plan { outcome, merged })
    }

    fn apply(&mut self, put: &Put<'_>, revision: u64, merged: Vec<(Date, Merged)>, now: Millis) -> Vec<Changed> {
        let mut changed = Vec::with_capacity(merged.len());
        let series = self.series.entry(put.key.clone()).or_default();
        series.calendar = put.calendar.name().to_owned();
        series.revision = revision;
        series.updated_at = series.updated_at.max(now);
        for (date, change) in merged {
            let versions = series.blocks.entry((put.source, date)).or_default();
            if let Some(current) = versions.last_mut() {
                current.superseded = Some(Superseded { revision, at: series.updated_at });
            }
            let candles = carried(&change.frame, change.first_changed, change.last_changed);
            versions.push(Version { revision, frame: Arc::new(change.frame), superseded: None });
            self.last_sequence += 1;
            let change = Change {
                sequence: self.last_sequence,
                key: put.key.clone(),
                timeframe: put.source,
                trading_date: change.changed_dates[0],
                revision,
                first_open_time: change.first_changed,
                last_open_time: change.last_changed,
                changed_at: series.updated_at,
            };
            self.changes.push(change.clone());
            changed.push(Changed { change, candles });
        }
        changed
    }

    /// The blocks that meet a range, as of a revision; frames are shared, not copied.
    fn pinned(
        &self,
        key: &InstrumentKey,
        source: Timeframe,
        range: TimeRange,
        as_of: Option<u64>,
    ) -> Result<Vec<(Date, u64, Arc<Frame>)>> {
        let empty = Series::default();
        let series = self.series.get(key).unwrap_or(&empty);
        let pinned = series.as_of(key, as_of)?;
        let mut blocks = Vec::new();
        for (date, versions) in series.of_source(source) {
            if let Some(version) = versions.iter().rfind(|version| version.revision <= pinned)
                && !version.frame.rows_between(range.start(), range.end()).is_empty()
            {
                blocks.push((date, version.revision, Arc::clone(&version.frame)));
            }
        }
        Ok(blocks)
    }
}

impl MemoryStore {
    /// Counts what there is; frames in memory cannot differ from what was stored.
    pub(crate) fn check(&self) -> CheckReport {
        let candles = lock(&self.candles);
        let mut report = CheckReport { instruments: candles.series.len() as u64, ..CheckReport::default() };
        for versions in candles.series.values().flat_map(|series| series.blocks.values()) {
            report.superseded_blocks += versions.len().saturating_sub(1) as u64;
            if let Some(current) = versions.last() {
                report.blocks += 1;
                report.candles += current.frame.len() as u64;
            }
        }
        report
    }
}

#[async_trait]
impl CandleStore for MemoryStore {
    async fn put_all(&self, puts: &[Put<'_>], now: Millis) -> Result<Vec<PutOutcome>> {
        check_puts(puts)?;
        let chunks =
            puts.iter().map(|put| split(put.source, put.calendar, put.rows)).collect::<Result<Vec<Vec<Chunk>>>>()?;
        let mut candles = lock(&self.candles);
        let mut plans = Vec::with_capacity(puts.len());
        let mut calendars: BTreeMap<&InstrumentKey, &str> = BTreeMap::new();
        for (put, chunks) in puts.iter().zip(chunks) {
            check_calendar(put, calendars.entry(put.key).or_insert(put.calendar.name()))?;
            plans.push(candles.plan(put, chunks)?);
        }
        let changed: BTreeSet<&InstrumentKey> =
            puts.iter().zip(&plans).filter(|(_, plan)| !plan.merged.is_empty()).map(|(put, _)| put.key).collect();
        let mut outcomes = Vec::with_capacity(puts.len());
        for (put, mut plan) in puts.iter().zip(plans) {
            if changed.contains(put.key) {
                plan.outcome.revision += 1;
                plan.outcome.changes = candles.apply(put, plan.outcome.revision, plan.merged, now);
            }
            outcomes.push(plan.outcome);
        }
        Ok(outcomes)
    }

    fn read(
        &self,
        key: &InstrumentKey,
        source: Timeframe,
        range: TimeRange,
        as_of: Option<u64>,
    ) -> BoxStream<'static, Result<Block>> {
        let candles: Arc<Mutex<Candles>> = Arc::clone(&self.candles);
        let key = key.clone();
        stream::once(async move { lock(&candles).pinned(&key, source, range, as_of) })
            .flat_map(move |pinned| {
                let (blocks, error) = match pinned {
                    Ok(blocks) => (blocks, None),
                    Err(error) => (Vec::new(), Some(Err(error))),
                };
                let trimmed = blocks.into_iter().filter_map(move |(trading_date, revision, frame)| {
                    Some(Ok(Block { trading_date, revision, frame: trim(Frame::clone(&frame), range)? }))
                });
                stream::iter(error.into_iter().chain(trimmed))
            })
            .boxed()
    }

    async fn calendar(&self, key: &InstrumentKey) -> Result<Option<String>> {
        Ok(lock(&self.candles).series.get(key).map(|series| series.calendar.clone()))
    }

    async fn revisions(&self, keys: &[InstrumentKey]) -> Result<Vec<Option<u64>>> {
        let candles = lock(&self.candles);
        Ok(keys.iter().map(|key| candles.series.get(key).map(|series| series.revision)).collect())
    }

    async fn revision_at(&self, key: &InstrumentKey, at: Millis) -> Result<Option<u64>> {
        let candles = lock(&self.candles);
        let Some(series) = candles.series.get(key) else {
            return Ok(None);
        };
        if series.updated_at <= at {
            return Ok(Some(series.revision));
        }
        let known = candles.changes.iter().filter(|change| change.key == *key && change.changed_at <= at);
        match known.map(|change| change.revision).max() {
            Some(revision) => series.as_of(key, Some(revision)).map(Some),
            None if series.oldest_revision > 0 || candles.pruned_sequence > 0 => {
                Err(Error::Expired { what: "revision at", requested: 0, oldest: series.oldest_revision })
            }
            None => Ok(None),
        }
    }

    async fn coverage(&self, key: &InstrumentKey) -> Result<Vec<Coverage>> {
        let candles = lock(&self.candles);
        let mut coverage = Vec::new();
        for timeframe in Timeframe::ALL {
            let blocks = candles.series.get(key).into_iter().flat_map(|series| series.of_source(timeframe));
            let frames: Vec<&Frame> =
                blocks.filter_map(|(_, versions)| versions.last()).map(|version| &*version.frame).collect();
            let (Some(first), Some(last)) = (frames.first(), frames.last()) else {
                continue;
            };
            let candle_count = frames.iter().map(|frame| frame.len() as u64).sum();
            coverage.push(Coverage {
                timeframe,
                first_open_time: first.open_time()[0],
                last_open_time: last.open_time()[last.len() - 1],
                candle_count,
                date_count: if timeframe.width_ms().is_some() { frames.len() as u64 } else { candle_count },
            });
        }
        Ok(coverage)
    }

    async fn changes(&self, after_sequence: u64, limit: usize) -> Result<Vec<Change>> {
        let candles = lock(&self.candles);
        if after_sequence < candles.pruned_sequence {
            let oldest = candles.pruned_sequence;
            return Err(Error::Expired { what: "change cursor", requested: after_sequence, oldest });
        }
        let from = candles.changes.partition_point(|change| change.sequence <= after_sequence);
        Ok(candles.changes[from..].iter().take(limit.min(MAX_PAGE_ROWS)).cloned().collect())
    }

    async fn first_change(&self, key: &InstrumentKey, after_revision: u64, revision: u64) -> Result<Option<Millis>> {
        if !check_revisions(after_revision, revision)? {
            return Ok(None);
        }
        let candles = lock(&self.candles);
        let revisions = after_revision + 1..=revision;
        let told =
            || candles.changes.iter().filter(|change| change.key == *key && revisions.contains(&change.revision));
        let known: BTreeSet<u64> = told().map(|change| change.revision).collect();
        let first = told().map(|change| change.first_open_time).min();
        Ok(first.filter(|_| known.len() as u64 == revision - after_revision))
    }

    async fn changed_candles(&self, changes: &[Change]) -> Result<Vec<Option<Frame>>> {
        let candles = lock(&self.candles);
        let now_stored = |change: &Change| {
            let version = candles.series.get(&change.key)?.current(change.timeframe, block_date(change))?;
            carried(&version.frame, change.first_open_time, change.last_open_time)
        };
        Ok(changes.iter().map(now_stored).collect())
    }

    async fn last_sequence(&self) -> Result<u64> {
        Ok(lock(&self.candles).last_sequence)
    }

    async fn last_candles(&self, keys: &[InstrumentKey], source: Timeframe) -> Result<Vec<Option<LastCandle>>> {
        let candles = lock(&self.candles);
        let last_of = |key: &InstrumentKey| {
            let mut blocks = candles.series.get(key)?.of_source(source).rev();
            let (trading_date, versions) = blocks.next()?;
            let version = versions.last()?;
            let before = blocks.next().and_then(|(_, versions)| versions.last());
            let summary = Summary::of(&version.frame);
            Some(LastCandle {
                trading_date,
                revision: version.revision,
                candle: version.frame.candle(version.frame.len() - 1),
                block: Candle {
                    open_time: version.frame.open_time()[0],
                    open: summary.open,
                    high: summary.high,
                    low: summary.low,
                    close: summary.close,
                    volume: summary.volume,
                    open_interest: summary.open_interest,
                },
                previous_close: before.map(|version| Summary::of(&version.frame).close),
            })
        };
        Ok(keys.iter().map(last_of).collect())
    }

    async fn prune(&self, now: Millis, retention_ms: Millis) -> Result<Pruned> {
        let cutoff = now.saturating_sub(retention_ms);
        let mut candles = lock(&self.candles);
        let mut pruned = Pruned::default();
        for series in candles.series.values_mut() {
            let mut oldest = series.oldest_revision;
            for versions in series.blocks.values_mut() {
                versions.retain(|version| match &version.superseded {
                    Some(superseded) if superseded.at < cutoff => {
                        oldest = oldest.max(superseded.revision);
                        pruned.blocks += 1;
                        false
                    }
                    _ => true,
                });
            }
            series.oldest_revision = oldest;
        }
        let expired = candles.changes.iter().filter(|change| change.changed_at < cutoff);
        let last_expired = expired.map(|change| change.sequence).max().unwrap_or(0);
        // Writers' clocks may disagree: cut at a sequence, so that what is left has no holes.
        let before = candles.changes.len();
        candles.changes.retain(|change| change.sequence > last_expired);
        pruned.changes = (before - candles.changes.len()) as u64;
        candles.pruned_sequence = candles.pruned_sequence.max(last_expired);
        Ok(pruned)
    }
}

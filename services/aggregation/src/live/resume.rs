//! What a subscriber has missed: from the change log and the stored revisions alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use market::{Calendar, InstrumentKey, Millis, TimeRange, Timeframe};
use mesh::RemoteError;
use mesh::clock::Clock;
use mesh::source::{Changes, StoredChange};
use proto::aggregation::CandleEvent;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::LiveError;
use super::board;
use super::bucket::Candled;
use super::cursor::{Cursor, Place, Position, Progress};
use super::encode::{Cuts, Encoded, Message};
use super::event::{Closing, Filter, Update};
use super::hub::{self, STAMP_SHIFT_MS};
use super::pin::{ended, revisions_at};
use super::read::{Reader, Stored};
use crate::engine::Error;

/// Changes told to one who comes back: 40 minutes of 5000 instruments' minutes, or a day of a hundred and more. About 230 bytes each
/// while they are sorted, so 46 MB of one resumption.
const MAX_MISSED: usize = 200_000;
/// Longest range that is read at once: of minutes around the clock 288 000, which is below [`MAX_READ_CANDLES`].
///
/// [`MAX_READ_CANDLES`]: super::read::MAX_READ_CANDLES
const PART_MS: Millis = 200 * 24 * 60 * 60 * 1000;
/// Instruments read at once.
const READS: usize = 8;
/// Updates gathered before they become a message.
const CHUNK: usize = 4096;
/// How long they are gathered: who cannot stay for the whole of it has then come a step further with each message.
const CHUNK_WAIT: Duration = Duration::from_millis(500);

/// One resumption.
#[derive(Debug)]
pub(super) struct Catching {
    pub(super) reader: Reader,
    pub(super) changes: Arc<dyn Changes>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) closing: Closing,
    pub(super) filter: Filter,
    pub(super) out: mpsc::Sender<Result<Message, LiveError>>,
    /// How long a message may wait for its reader, while others wait for their turn.
    pub(super) send_timeout: Duration,
}

/// What happened to one instrument between two places.
#[derive(Debug)]
struct Missed {
    from: Position,
    to: Position,
    changes: Vec<StoredChange>,
    /// Its revision at the later place, if nothing changed.
    pinned: u64,
}

/// The subscriber does not hear the rest.
#[derive(Debug)]
pub(super) struct Gone;

impl Catching {
    /// Tells the newest candles if they are asked for, then what happened from the cursor to the seat, where the live messages begin. It
    /// is told whole, or ends with [`Gone`]; that it is over is not said here.
    pub(super) async fn run(
        self,
        cursor: Option<Cursor>,
        seat: Position,
        snapshot: bool,
        turns: Arc<Semaphore>,
    ) -> Result<(), Gone> {
        let telling = async {
            // The semaphore is never closed.
            let _turn = turns.acquire().await;
            self.tell(cursor, seat, snapshot).await
        };
        tokio::select! {
            () = self.out.closed() => Err(Gone),
            told = telling => told,
        }
    }

    async fn tell(&self, cursor: Option<Cursor>, seat: Position, snapshot: bool) -> Result<(), Gone> {
        if snapshot {
            self.snapshot(&cursor.clone().unwrap_or(seat.into())).await?;
        }
        let Some(Cursor { position: mut from, progress }) = cursor else { return Ok(()) };
        // One that was cut off is first told to its end.
        if let Some(progress) = progress.filter(|progress| progress.filter == self.filter.fingerprint()) {
            let to = progress.to;
            self.catch_up(from, to, Some(progress)).await?;
            self.hand(Ok(Message::empty(to))).await?;
            from = to;
        }
        self.catch_up(from, seat, None).await
    }

    async fn snapshot(&self, at: &Cursor) -> Result<(), Gone> {
        let keys: Vec<InstrumentKey> = self.filter.keys.as_deref().unwrap_or_default().to_vec();
        let newest = |key| async move {
            let mut updates = Vec::new();
            let Some((calendar, stored)) = self.look_up(&key).await? else { return Ok(updates) };
            let coverage = self.reader.coverage(&key).await?;
            for timeframe in self.filter.timeframes.iter() {
                // Of the sources that its candles are made of: another may be years ahead.
                let sources = coverage.iter().filter(|source| timeframe.divisible_by(source.timeframe));
                let Some(last) = sources.map(|source| source.last_open_time).max() else { continue };
                let from = last - if stored.minutes_only { 0 } else { STAMP_SHIFT_MS };
                let first = calendar.bucket(&calendar.day_at(from), timeframe, from);
                let range = reaching(first.start());
                let (revision, rows) = self.reader.candles(&calendar, &key, timeframe, range, None).await?;
                if let Some(candle) = rows.into_iter().next_back() {
                    let key = key.clone();
                    updates.push(Update { change: 0, key, timeframe, event: CandleEvent::Snapshot, candle, revision });
                }
            }
            Ok(updates)
        };
        let mut found = std::pin::pin!(futures::stream::iter(keys).map(newest).buffered(READS));
        let mut updates = Vec::new();
        while let Some(newest) = found.next().await {
            updates.extend(self.or_end(newest).await?);
            if updates.len() >= CHUNK {
                self.send(std::mem::take(&mut updates), &Cuts::Still(at)).await?;
            }
        }
        self.send(updates, &Cuts::Still(at)).await
    }

    /// Tells what happened between two places, or what of it comes after the last candle told.
    async fn catch_up(&self, from: Position, to: Position, progress: Option<Progress>) -> Result<(), Gone> {
        let mut changes = self.or_end(self.changes_between(from, to).await).await?;
        let last = progress.map(|progress| progress.last);
        let keys = self.or_end(self.keys(&changes, last.as_ref()).await).await?;
        let (log, master) = (self.changes.as_ref(), self.reader.aggregator.master.as_ref());
        let pinned = revisions_at(log, master, &keys, to.sequence).await.map_err(expired);
        let pinned = self.or_end(pinned).await?;
        let told = |key: InstrumentKey| {
            let changes = changes.remove(&key).unwrap_or_default();
            let missed = Missed { from, to, changes, pinned: pinned.get(&key).copied().unwrap_or_default() };
            async move { self.told(&key, &missed).await }
        };
        let mut told = std::pin::pin!(futures::stream::iter(keys).map(told).buffered(READS));
        let cuts = Cuts::Resumption { from, to };
        let (mut updates, mut sent) = (Vec::new(), Instant::now());
        while let Some(more) = told.next().await {
            let more = self.or_end(more).await?.into_iter();
            updates.extend(more.filter(|update| last.as_ref().is_none_or(|last| is_after(update, last))));
            if updates.len() >= CHUNK || sent.elapsed() >= CHUNK_WAIT {
                self.send(std::mem::take(&mut updates), &cuts).await?;
                sent = Instant::now();
            }
        }
        self.send(updates, &cuts).await
    }

    /// The instruments of which something may be told, in order, from that of the last candle told on.
    async fn keys(
        &self,
        changes: &BTreeMap<InstrumentKey, Vec<StoredChange>>,
        last: Option<&Place>,
    ) -> Result<Vec<InstrumentKey>, LiveError> {
        let mut keys: Vec<InstrumentKey> = match &self.filter.keys {
            Some(keys) => keys.to_vec(),
            None => self.reader.aggregator.master.instruments().await?.into_iter().map(|one| one.key).collect(),
        };
        keys.extend(changes.keys().cloned());
        keys.retain(|key| last.is_none_or(|last| *key >= last.key));
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    }

    /// The changes between two places, by instrument.
    async fn changes_between(
        &self,
        from: Position,
        to: Position,
    ) -> Result<BTreeMap<InstrumentKey, Vec<StoredChange>>, LiveError> {
        let mut missed: BTreeMap<InstrumentKey, Vec<StoredChange>> = BTreeMap::new();
        let (mut reached, mut count) = (from.sequence, 0);
        if reached >= to.sequence {
            return Ok(missed);
        }
        let mut log = self.changes.records(reached).await.map_err(expired)?;
        while reached < to.sequence {
            let batch = log.try_next().await.map_err(expired)?.ok_or_else(ended)?;
            reached = batch.sequence.max(reached);
            for change in batch.changes {
                if change.sequence > to.sequence || !self.filter.wants_key(&change.key) {
                    continue;
                }
                count += 1;
                if count > MAX_MISSED {
                    return Err(LiveError::TooMuchMissed(MAX_MISSED));
                }
                missed.entry(change.key.clone()).or_default().push(change);
            }
        }
        Ok(missed)
    }

    async fn look_up(&self, key: &InstrumentKey) -> Result<Option<(Arc<Calendar>, Stored)>, LiveError> {
        match self.reader.calendar(key).await {
            Ok(calendar) => Ok(Some((calendar, self.reader.stored(key).await?))),
            // It may come into being while it is watched.
            Err(Error::UnknownInstrument(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What is told of one instrument: candles that changed, as they are at the later place, and closes that came due.
    async fn told(&self, key: &InstrumentKey, missed: &Missed) -> Result<Vec<Update>, LiveError> {
        let mut updates = Vec::new();
        let Some((calendar, stored)) = self.look_up(key).await? else { return Ok(updates) };
        // Of what comes after the later place, the live messages tell.
        let after = missed.changes.last().map_or(missed.pinned, |change| change.revision);
        let before = missed.changes.first().map_or(after, |change| change.revision.saturating_sub(1));
        for timeframe in self.filter.timeframes.iter() {
            let ranges = self.ranges(&calendar, timeframe, stored, missed);
            let parts = ranges.into_iter().flat_map(|range| parts(&calendar, timeframe, range, stored.last_open_time));
            for range in parts {
                let read = async |revision| match self
                    .reader
                    .candles(&calendar, key, timeframe, range, Some(revision))
                    .await
                {
                    Err(Error::TooManyCandles { limit }) => Err(LiveError::TooMuchMissed(limit)),
                    read => Ok(read?.1),
                };
                let now = read(after).await?;
                let was = if before == after { now.clone() } else { read(before).await? };
                let (from, to) = (missed.from.watermark, missed.to.watermark);
                let diff = Diff { closing: self.closing, key, timeframe, revision: after, from, to };
                diff.tell(was, now, &mut updates);
            }
        }
        Ok(updates)
    }

    /// Disjoint ranges of whole buckets that changed, or whose close had not been said at the cursor; ascending.
    fn ranges(&self, calendar: &Calendar, timeframe: Timeframe, stored: Stored, missed: &Missed) -> Vec<TimeRange> {
        let concerns = |change: &&StoredChange| timeframe.divisible_by(change.timeframe);
        let touched = |change| board::touched(calendar, change, timeframe, stored.minutes_only);
        let mut ranges: Vec<TimeRange> = missed.changes.iter().filter(concerns).map(touched).collect();
        let from = missed.from.watermark.saturating_sub(self.closing.grace_ms);
        let first = calendar.bucket(&calendar.day_at(from), timeframe, from);
        let last = stored.last_open_time.saturating_add(if stored.minutes_only { 0 } else { STAMP_SHIFT_MS });
        if stored.last_open_time > Millis::MIN && last >= first.start() {
            ranges.push(reaching(first.start()));
        }
        ranges.sort_unstable_by_key(|range| (range.start(), range.end()));
        let mut merged: Vec<TimeRange> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start() <= last.end() => {
                    *last = TimeRange::new(last.start(), last.end().max(range.end())).unwrap_or(*last);
                }
                _ => merged.push(range),
            }
        }
        merged
    }

    async fn send(&self, updates: Vec<Update>, cuts: &Cuts<'_>) -> Result<(), Gone> {
        if updates.is_empty() {
            return Ok(());
        }
        let encoded = Encoded::of(&updates, self.clock.now());
        let wants = vec![true; updates.len()];
        for message in encoded.messages(&updates, &self.filter, &wants, cuts) {
            self.hand(Ok(message)).await?;
        }
        Ok(())
    }

    /// Hands a message to the reader. One that does not take it ends the resumption, and then its stream: it resumes from its cursor.
    async fn hand(&self, message: Result<Message, LiveError>) -> Result<(), Gone> {
        self.out.send_timeout(message, self.send_timeout).await.map_err(|_| Gone)
    }

    /// Ends the stream with an error.
    async fn or_end<T>(&self, outcome: Result<T, LiveError>) -> Result<T, Gone> {
        match outcome {
            Ok(value) => Ok(value),
            Err(error) => {
                // Whoever does not hear it any more does not need it.
                let _ = self.hand(Err(error)).await;
                Err(Gone)
            }
        }
    }
}

/// Why the log cannot be read: it is gone from there on, or away.
fn expired(fault: RemoteError) -> LiveError {
    match hub::is_expired(&fault) {
        true => LiveError::CursorExpired,
        false => LiveError::Remote(fault),
    }
}

/// Whether a candle is told after another in a resumption.
fn is_after(update: &Update, last: &Place) -> bool {
    (&update.key, update.timeframe, update.candle.candle.open_time) > (&last.key, last.timeframe, last.open_time)
}

/// From an instant on.
fn reaching(start: Millis) -> TimeRange {
    TimeRange::new(start, TimeRange::ALL.end()).unwrap_or(TimeRange::ALL)
}

/// A range cut, between buckets, into parts that one read holds. Nothing is stored after `last`, but for a daily stamp's shift.
fn parts(calendar: &Calendar, timeframe: Timeframe, range: TimeRange, last: Millis) -> Vec<TimeRange> {
    let (mut parts, mut start) = (Vec::new(), range.start());
    while range.end().min(last).saturating_sub(start) > PART_MS {
        let at = start + PART_MS;
        let cut = calendar.bucket(&calendar.day_at(at), timeframe, at).start();
        let Some(part) = TimeRange::new(start, cut).ok().filter(|_| cut > start) else { break };
        parts.push(part);
        start = cut;
    }
    parts.extend(TimeRange::new(start, range.end()));
    parts
}

/// The difference between two places.
struct Diff<'a> {
    closing: Closing,
    key: &'a InstrumentKey,
    timeframe: Timeframe,
    revision: u64,
    /// Watermarks of the two.
    from: Millis,
    to: Millis,
}

impl Diff<'_> {
    fn tell(&self, was: Vec<Candled>, now: Vec<Candled>, updates: &mut Vec<Update>) {
        let mut was = was.into_iter().peekable();
        for candle in now {
            while was.next_if(|old| old.candle.open_time < candle.candle.open_time).is_some() {}
            let old = was.next_if(|old| old.candle.open_time == candle.candle.open_time);
            let was_closed = old.as_ref().is_some_and(|old| self.closing.is_due(old, self.from));
            let event = self.closing.event(was_closed, &candle, self.to);
            if old.as_ref() == Some(&candle) && event != CandleEvent::Close {
                continue;
            }
            updates.push(Update {
                change: 0,
                key: self.key.clone(),
                timeframe: self.timeframe,
                event,
                candle,
                revision: self.revision,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::read::MAX_READ_CANDLES;
    use super::*;

    #[test]
    fn a_long_range_is_cut_between_buckets_into_parts_of_one_read() {
        let calendar = Calendar::by_name("NYSE").unwrap();
        let start = market::parse_millis("2022-01-03T09:30:00-05:00").unwrap();
        let last = start + 900 * 24 * 3_600_000;
        for timeframe in Timeframe::ALL {
            let whole = reaching(calendar.bucket(&calendar.day_at(start), timeframe, start).start());
            let parts = parts(&calendar, timeframe, whole, last);
            assert!(parts.len() >= 4, "{timeframe}: {parts:?}");
            assert_eq!((parts[0].start(), parts[parts.len() - 1].end()), (whole.start(), whole.end()));
            for pair in parts.windows(2) {
                let cut = pair[1].start();
                assert_eq!(pair[0].end(), cut);
                assert_eq!(calendar.bucket(&calendar.day_at(cut), timeframe, cut).start(), cut, "{timeframe}");
            }
            let longest = parts.iter().map(|part| part.end().min(last) - part.start()).max().unwrap();
            assert!(longest / 60_000 < MAX_READ_CANDLES as Millis);
        }
    }
}

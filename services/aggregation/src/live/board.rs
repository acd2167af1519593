//! The newest candles of every series somebody watches, and the closes that are due. No I/O: what has to be read is returned.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use market::{Calendar, Candle, InstrumentKey, Millis, TimeRange, Timeframe, TradingDay};
use mesh::source::StoredChange;
use proto::aggregation::CandleEvent;

use super::bucket::{Bucket, Candled};
use super::event::{Closing, Timeframes, Update};
use super::read::Stored;

/// Accumulators dropped because there were too many.
const EVICTED: &str = "candlemesh_live_evicted_candles_total";
/// From the end of a candle's range to the saying of its close, of candles that ended of late.
const CLOSE_LAG: &str = "candlemesh_live_close_lag_seconds";
/// How long ago a candle may have ended for its close to count as late. What ended before is history that is loaded; a feed, or we,
/// may be away for a while and come back.
const RECENT_MS: Millis = 10 * 60 * 1000;

/// One instrument.
#[derive(Debug)]
struct Series {
    calendar: Arc<Calendar>,
    stored: Stored,
    /// Timeframes whose newest candles and closes are known.
    primed: Timeframes,
    slots: Vec<Slot>,
    /// As of the last change.
    revision: u64,
    /// Round of the last change, for eviction.
    touched: u64,
    /// What was read for this revision: what one put changed on several dates comes as several changes, each with all that it made of
    /// their week.
    read: (u64, Vec<(Timeframe, TimeRange)>),
}

/// The newest candle of one timeframe, and the one before it, which may still wait for its close.
#[derive(Debug)]
struct Slot {
    timeframe: Timeframe,
    newest: Bucket,
    previous: Option<Bucket>,
    /// Revision of what was read of it; a read may be ahead of the change log, and what it holds must not be added again.
    as_of: u64,
}

/// A close that is due at an instant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pending {
    pub(super) due: Millis,
    pub(super) key: InstrumentKey,
    pub(super) timeframe: Timeframe,
    pub(super) range_start: Millis,
    pub(super) range_end: Millis,
}

/// A part of a change that cannot be added up: to be read as of its revision and the one before.
#[derive(Debug, Clone)]
pub(super) struct Reread {
    pub(super) change: usize,
    pub(super) key: InstrumentKey,
    pub(super) timeframe: Timeframe,
    pub(super) calendar: Arc<Calendar>,
    pub(super) range: TimeRange,
    pub(super) revision: u64,
}

/// What a part of a change came to.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) reread: Reread,
    pub(super) before: Vec<Candled>,
    pub(super) after: Vec<Candled>,
}

/// All series.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) closing: Closing,
    /// Most slots kept; the state of the others is read again when it is needed.
    pub(super) max_slots: usize,
    series: HashMap<InstrumentKey, Series>,
    slots: usize,
    pending: BTreeSet<Pending>,
    /// The trading day of the newest minute, by calendar.
    days: HashMap<&'static str, TradingDay>,
    round: u64,
}

impl Board {
    pub(super) fn new(closing: Closing, max_slots: usize) -> Board {
        Board {
            closing,
            max_slots,
            series: HashMap::new(),
            slots: 0,
            pending: BTreeSet::new(),
            days: HashMap::new(),
            round: 0,
        }
    }

    pub(super) fn knows(&self, key: &InstrumentKey) -> bool {
        self.series.contains_key(key)
    }

    pub(super) fn calendar(&self, key: &InstrumentKey) -> Option<Arc<Calendar>> {
        self.series.get(key).map(|series| Arc::clone(&series.calendar))
    }

    /// Revision up to which the instrument's changes have been told; what is read must not be ahead of it.
    pub(super) fn revision(&self, key: &InstrumentKey) -> Option<u64> {
        self.series.get(key).map(|series| series.revision).filter(|revision| *revision > 0)
    }

    pub(super) fn stored(&self, key: &InstrumentKey) -> Option<Stored> {
        self.series.get(key).map(|series| series.stored)
    }

    /// Timeframes of those wanted that are not followed yet.
    pub(super) fn unprimed(&self, key: &InstrumentKey, wanted: Timeframes) -> Timeframes {
        self.series.get(key).map_or(wanted, |series| wanted.without(series.primed))
    }

    pub(super) fn add_series(&mut self, key: &InstrumentKey, calendar: Arc<Calendar>, stored: Stored) {
        let (primed, slots) = (Timeframes::default(), Vec::new());
        let read = (0, Vec::new());
        let series = Series { calendar, stored, primed, slots, revision: 0, touched: self.round, read };
        self.series.entry(key.clone()).or_insert(series);
    }

    /// Forgets what nobody watches any more.
    pub(super) fn keep(&mut self, watched: impl Fn(&InstrumentKey) -> Timeframes) {
        for (key, series) in &mut self.series {
            let wanted = watched(key);
            series.primed = series.primed.without(series.primed.without(wanted));
            series.slots.retain(|slot| wanted.holds(slot.timeframe));
        }
        // Also what is not primed yet: its changes are followed.
        self.series.retain(|key, _| !watched(key).is_empty());
        self.slots = self.series.values().map(|series| series.slots.len()).sum();
        self.pending.retain(|pending| watched(&pending.key).holds(pending.timeframe));
    }

    /// Follows a timeframe from now on: `newest` are its last candles, among them all whose close had not been said at `since`.
    pub(super) fn prime(
        &mut self,
        key: &InstrumentKey,
        timeframe: Timeframe,
        (revision, newest): (u64, Vec<Candled>),
        since: Millis,
    ) {
        let Some(series) = self.series.get_mut(key) else { return };
        series.primed = series.primed.with(Timeframes::of(timeframe));
        series.revision = series.revision.max(revision);
        for candle in newest {
            // What a change has brought since is known better.
            if series.is_announced(timeframe, candle.range).is_some() {
                continue;
            }
            let is_announced = self.closing.is_due(&candle, since);
            let pending = (!is_announced).then(|| pending(key, timeframe, candle.range, candle.range.end()));
            self.slots += series.put(timeframe, candle, is_announced, revision);
            self.pending.extend(pending);
        }
    }

    /// Takes the changes of a batch that can be added up, and returns what must be read for the others.
    ///
    /// Contract: the watermark has been reached by [`Board::due`]; every watched instrument of the batch is known.
    pub(super) fn apply(
        &mut self,
        changes: &[StoredChange],
        watched: impl Fn(&InstrumentKey) -> Timeframes,
        watermark: Millis,
        updates: &mut Vec<Update>,
    ) -> Vec<Reread> {
        self.round += 1;
        let mut rereads = Vec::new();
        // A timeframe read for one change of the batch is read for its later ones too: the reads come after the additions.
        let mut is_read: HashSet<(&InstrumentKey, Timeframe)> = HashSet::new();
        for (index, change) in changes.iter().enumerate() {
            let wanted = watched(&change.key);
            let Some(series) = self.series.get_mut(&change.key) else { continue };
            series.revision = change.revision;
            series.touched = self.round;
            let is_minutes = change.timeframe == Timeframe::M1;
            series.stored.minutes_only &= is_minutes;
            // Between the first and the last minute of several may lie some of a later change, whose closes would be said too early; a
            // single one is at worst told with its later values.
            let is_single = is_minutes && change.first_open_time == change.last_open_time;
            let minute = change.candles.as_ref().filter(|rows| is_single && rows.len() == 1).map(|rows| rows.candle(0));
            let is_next = |minute: &Candle| minute.open_time > series.stored.last_minute && series.stored.minutes_only;
            let minute = minute.filter(is_next);
            for timeframe in wanted.iter().filter(|timeframe| timeframe.divisible_by(change.timeframe)) {
                let added = match &minute {
                    Some(minute) if !is_read.contains(&(&change.key, timeframe)) => {
                        let mut adding = Adding {
                            closing: self.closing,
                            days: &mut self.days,
                            pending: &mut self.pending,
                            watermark,
                            change: index,
                            key: &change.key,
                            revision: change.revision,
                            timeframe,
                        };
                        adding.add(series, minute, updates)
                    }
                    _ => None,
                };
                match added {
                    Some(made) => self.slots += made,
                    None => {
                        is_read.insert((&change.key, timeframe));
                        rereads.extend(series.reread(index, change, timeframe));
                    }
                }
            }
            if is_minutes {
                series.stored.last_minute = series.stored.last_minute.max(change.last_open_time);
            }
            series.stored.last_open_time = series.stored.last_open_time.max(change.last_open_time);
        }
        rereads
    }

    /// Takes what was read for a part of a change.
    pub(super) fn settle(&mut self, outcome: Outcome, watermark: Millis, updates: &mut Vec<Update>) {
        let Outcome { reread, before, after } = outcome;
        let Some(series) = self.series.get_mut(&reread.key) else { return };
        let mut before = before.into_iter().peekable();
        for candle in after {
            while before.next_if(|old| old.candle.open_time < candle.candle.open_time).is_some() {}
            let old = before.next_if(|old| old.candle.open_time == candle.candle.open_time);
            if old.as_ref() == Some(&candle) {
                continue;
            }
            // What was said is known best by who said it; else it follows from what there was.
            let said = series.is_announced(reread.timeframe, candle.range);
            let was_closed = said.unwrap_or_else(|| old.is_some_and(|old| self.closing.is_due(&old, watermark)));
            let event = self.closing.event(was_closed, &candle, watermark);
            let place = (&reread.key, reread.timeframe, candle.range);
            schedule(&mut self.pending, &self.closing, place, event, watermark);
            record_lag(event, &candle, watermark);
            self.slots += series.put(reread.timeframe, candle.clone(), event != CandleEvent::Update, reread.revision);
            updates.push(Update {
                change: reread.change,
                key: reread.key.clone(),
                timeframe: reread.timeframe,
                event,
                candle,
                revision: reread.revision,
            });
        }
    }

    /// When the next close is due.
    pub(super) fn next_due(&self) -> Option<Millis> {
        self.pending.first().map(|pending| pending.due)
    }

    /// Says the closes that are due, and returns those whose candles are no longer held, or not known well enough.
    pub(super) fn due(&mut self, watermark: Millis, updates: &mut Vec<Update>) -> Vec<Pending> {
        let mut unknown = Vec::new();
        while self.pending.first().is_some_and(|pending| pending.due <= watermark) {
            let Some(item) = self.pending.pop_first() else { break };
            let Some(series) = self.series.get_mut(&item.key) else { continue };
            let revision = series.revision;
            let Some(bucket) = series.bucket(item.timeframe, item.range_start) else {
                unknown.push(item);
                continue;
            };
            if bucket.is_announced {
                continue;
            }
            if bucket.is_full().is_none() {
                unknown.push(item);
                continue;
            }
            if !self.closing.is_due(&bucket.state, watermark) {
                let due = self.closing.patience(item.range_end);
                self.pending.insert(Pending { due, ..item });
                continue;
            }
            bucket.is_announced = true;
            let candle = bucket.state.clone();
            record_lag(CandleEvent::Close, &candle, watermark);
            let Pending { key, timeframe, .. } = item;
            updates.push(Update { change: 0, key, timeframe, event: CandleEvent::Close, candle, revision });
        }
        unknown
    }

    /// Says the close of a candle that had to be read; absent, there was none after all.
    pub(super) fn close_read(
        &mut self,
        item: Pending,
        revision: u64,
        found: Option<Candled>,
        watermark: Millis,
        updates: &mut Vec<Update>,
    ) {
        let (Some(candle), Some(series)) = (found, self.series.get_mut(&item.key)) else { return };
        let is_due = self.closing.is_due(&candle, watermark);
        self.slots += series.put(item.timeframe, candle.clone(), is_due, revision);
        let Pending { key, timeframe, range_end, .. } = item;
        if !is_due {
            let due = self.closing.patience(range_end);
            self.pending.insert(pending(&key, timeframe, candle.range, due));
            return;
        }
        record_lag(CandleEvent::Close, &candle, watermark);
        updates.push(Update { change: 0, key, timeframe, event: CandleEvent::Close, candle, revision });
    }

    /// Drops the slots of the series that changed longest ago while there are too many. Their closes stay due.
    pub(super) fn evict(&mut self) {
        if self.slots <= self.max_slots {
            return;
        }
        let mut rounds: Vec<u64> = self.series.values().filter(|s| !s.slots.is_empty()).map(|s| s.touched).collect();
        // Half at a time, so that the search is paid for rarely.
        let middle = rounds.len() / 2;
        let (_, middle, _) = rounds.select_nth_unstable(middle);
        let (middle, mut evicted) = (*middle, 0);
        for series in self.series.values_mut() {
            if series.touched <= middle && self.slots - evicted > self.max_slots / 2 {
                evicted += std::mem::take(&mut series.slots).len();
            }
        }
        self.slots -= evicted;
        metrics::counter!(EVICTED).increment(evicted as u64);
    }
}

impl Series {
    fn slot(&mut self, timeframe: Timeframe) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.timeframe == timeframe)
    }

    fn bucket(&mut self, timeframe: Timeframe, start: Millis) -> Option<&mut Bucket> {
        let slot = self.slot(timeframe)?;
        std::iter::once(&mut slot.newest).chain(&mut slot.previous).find(|bucket| bucket.state.range.start() == start)
    }

    fn is_announced(&mut self, timeframe: Timeframe, range: TimeRange) -> Option<bool> {
        self.bucket(timeframe, range.start()).map(|bucket| bucket.is_announced)
    }

    /// Keeps a candle that was read, if it is among the newest. Returns the number of slots made.
    fn put(&mut self, timeframe: Timeframe, candle: Candled, is_announced: bool, as_of: u64) -> usize {
        let start = candle.range.start();
        let bucket = Bucket::of(&self.calendar, timeframe, candle, is_announced);
        let Some(slot) = self.slot(timeframe) else {
            self.slots.push(Slot { timeframe, newest: bucket, previous: None, as_of });
            return 1;
        };
        let newest = slot.newest.state.range.start();
        slot.as_of = slot.as_of.max(as_of);
        match slot.previous.as_ref().map(|previous| previous.state.range.start()) {
            _ if start == newest => slot.newest = bucket,
            _ if start > newest => slot.previous = Some(std::mem::replace(&mut slot.newest, bucket)),
            Some(previous) if start < previous => {}
            _ => slot.previous = Some(bucket),
        }
        0
    }

    /// What is to be read for a change; nothing, if an earlier one of its revision has read it.
    fn reread(&mut self, index: usize, change: &StoredChange, timeframe: Timeframe) -> Option<Reread> {
        let mut range = touched(&self.calendar, change, timeframe, self.stored.minutes_only);
        if self.read.0 != change.revision {
            self.read = (change.revision, Vec::new());
        }
        let (revision, read) = (change.revision, &mut self.read.1);
        match read.iter_mut().find(|(known, _)| *known == timeframe) {
            // A put's changes ascend, so that it is the beginning that was read.
            Some((_, known)) if known.start() <= range.start() && range.start() < known.end() => {
                let rest = TimeRange::new(known.end(), range.end()).ok();
                *known = TimeRange::new(known.start(), known.end().max(range.end())).unwrap_or(*known);
                range = rest?;
            }
            Some((_, known)) => *known = range,
            None => read.push((timeframe, range)),
        }
        let (key, calendar) = (change.key.clone(), Arc::clone(&self.calendar));
        Some(Reread { change: index, key, timeframe, calendar, range, revision })
    }
}

/// The whole buckets that a change may have touched.
///
/// Of nothing but minutes, those that hold its minutes. Where other sources are stored beside, a date's candles may come from another
/// source after the change than before, so all of its dates. Vendors' daily stamps name their date by the calendar's rule.
pub(super) fn touched(
    calendar: &Calendar,
    change: &StoredChange,
    timeframe: Timeframe,
    minutes_only: bool,
) -> TimeRange {
    let (first, last) = (change.first_open_time, change.last_open_time);
    let (start, end) = if minutes_only {
        let around = |at| calendar.bucket(&calendar.day_at(at), timeframe, at);
        (around(first).start(), around(last).end())
    } else {
        let widest = timeframe.max(change.timeframe).max(Timeframe::D1);
        let around = |at| {
            let (by_time, by_stamp) = (calendar.day_at(at), calendar.day(calendar.date_of_daily_stamp(at)));
            [by_time, by_stamp].map(|day| calendar.bucket(&day, widest, day.anchor))
        };
        let (starts, ends) = (around(first), around(last));
        (starts[0].start().min(starts[1].start()), ends[0].end().max(ends[1].end()))
    };
    TimeRange::new(start, end).unwrap_or(TimeRange::ALL)
}

fn pending(key: &InstrumentKey, timeframe: Timeframe, range: TimeRange, due: Millis) -> Pending {
    Pending { due, key: key.clone(), timeframe, range_start: range.start(), range_end: range.end() }
}

/// Makes the close of a candle due, or no longer: said twice it would be if the candle had to be read for it.
fn schedule(
    due: &mut BTreeSet<Pending>,
    closing: &Closing,
    (key, timeframe, range): (&InstrumentKey, Timeframe, TimeRange),
    event: CandleEvent,
    watermark: Millis,
) {
    let patience = closing.patience(range.end());
    match event {
        CandleEvent::Update => {
            let at = if range.end() > watermark { range.end() } else { patience };
            due.insert(pending(key, timeframe, range, at));
        }
        CandleEvent::Close => {
            due.remove(&pending(key, timeframe, range, range.end()));
            due.remove(&pending(key, timeframe, range, patience));
        }
        CandleEvent::Unspecified | CandleEvent::Snapshot | CandleEvent::Correction => {}
    }
}

fn record_lag(event: CandleEvent, candle: &Candled, watermark: Millis) {
    if let Some(lag_ms) = lag_ms(event, candle.range, watermark) {
        metrics::histogram!(CLOSE_LAG).record(lag_ms as f64 / 1000.0);
    }
}

fn lag_ms(event: CandleEvent, range: TimeRange, watermark: Millis) -> Option<Millis> {
    let lag_ms = watermark.saturating_sub(range.end()).max(0);
    (event == CandleEvent::Close && lag_ms <= RECENT_MS).then_some(lag_ms)
}

/// The adding of one change's minute to one timeframe.
struct Adding<'a> {
    closing: Closing,
    days: &'a mut HashMap<&'static str, TradingDay>,
    pending: &'a mut BTreeSet<Pending>,
    watermark: Millis,
    change: usize,
    key: &'a InstrumentKey,
    revision: u64,
    timeframe: Timeframe,
}

impl Adding<'_> {
    /// Adds a minute that is later than all before. Returns the number of slots made, or `None`, with nothing changed, where what there
    /// is of its bucket is not known, or where a bucket of several dates would begin.
    fn add(&mut self, series: &mut Series, minute: &Candle, updates: &mut Vec<Update>) -> Option<usize> {
        let calendar = Arc::clone(&series.calendar);
        let (timeframe, last_minute) = (self.timeframe, series.stored.last_minute);
        let day = day_of(self.days, &calendar, minute.open_time);
        match series.slot(timeframe) {
            Some(slot) if slot.as_of >= self.revision => None,
            Some(Slot { newest, .. }) if newest.state.range.contains(minute.open_time) => {
                // Whether it is closed must be known.
                if newest.is_full().is_none() && newest.state.range.end() <= self.watermark {
                    return None;
                }
                newest.add(day, minute);
                self.say(newest, updates);
                Some(0)
            }
            slot => {
                // A bucket that begins after the last minute has none yet.
                let mut bucket = Bucket::begin(&calendar, day, timeframe, minute)?;
                if bucket.state.range.start() <= last_minute {
                    return None;
                }
                self.say(&mut bucket, updates);
                match slot {
                    Some(slot) => {
                        slot.previous = Some(std::mem::replace(&mut slot.newest, bucket));
                        Some(0)
                    }
                    None => {
                        series.slots.push(Slot { timeframe, newest: bucket, previous: None, as_of: 0 });
                        Some(1)
                    }
                }
            }
        }
    }

    fn say(&mut self, bucket: &mut Bucket, updates: &mut Vec<Update>) {
        let candle = &bucket.state;
        let event = self.closing.event(bucket.is_announced, candle, self.watermark);
        schedule(self.pending, &self.closing, (self.key, self.timeframe, candle.range), event, self.watermark);
        record_lag(event, candle, self.watermark);
        bucket.is_announced |= event == CandleEvent::Close;
        updates.push(Update {
            change: self.change,
            key: self.key.clone(),
            timeframe: self.timeframe,
            event,
            candle: bucket.state.clone(),
            revision: self.revision,
        });
    }
}

fn day_of<'a>(days: &'a mut HashMap<&'static str, TradingDay>, calendar: &Calendar, at: Millis) -> &'a TradingDay {
    let day = days.entry(calendar.name()).or_insert_with(|| calendar.day_at(at));
    if at < day.start || at >= day.end {
        *day = calendar.day_at(at);
    }
    day
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_of_history_are_not_late() {
        let range = TimeRange::new(0, 60_000).unwrap();
        let lag = |event, now| lag_ms(event, range, now);
        assert_eq!(lag(CandleEvent::Close, 60_000), Some(0));
        assert_eq!(lag(CandleEvent::Close, 62_500), Some(2500));
        assert_eq!(lag(CandleEvent::Close, 60_000 + RECENT_MS), Some(RECENT_MS));
        assert_eq!(lag(CandleEvent::Close, 60_001 + RECENT_MS), None);
        assert_eq!(lag(CandleEvent::Correction, 62_500), None);
    }
}

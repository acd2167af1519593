//! What is left of a computation for the next one of the same series: states of its kernels at the start of some trading dates.
//!
//! Kernels are causal, so a changed minute costs the rows from its trading date on, not the series. Ingestion says from where on the
//! candles of two revisions differ; states before that hold at both. A date, or the wider bucket it lies in, is the grain: a minute alone
//! may decide which source the whole date is read from.
//!
//! A series is computed over columns when it is first asked, as most are asked once; the second time row by row, leaving states on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kernels::indicator::{Column, Machines, Row, Spec};
use market::{BucketFrame, Calendar, Millis, TimeRange, Timeframe};

use super::{Error, Pinned, Table};

/// Rows between two states, at the least: what is computed again at the most, beside the date of the change. Reading so many candles takes a
/// millisecond; a year of minutes has 23 such states.
const SPACING: u64 = 4096;
/// Rows between two questions whether anybody still waits.
const STOP_EVERY: usize = 512;
/// Bytes of the states of one series; with more, they lie farther apart.
const MAX_SERIES_BYTES: usize = 4 << 20;
/// Answers of a series remembered, so that the next revision's begins with their rows.
const MAX_ANSWERS: usize = 4;
/// Bytes of a series beside its states, about.
const OVERHEAD_BYTES: usize = 512;

/// Computations that began at a state or at an earlier answer.
const SUFFIX_METRIC: &str = "candlemesh_indicator_suffix_computations_total";
/// Candles of the history that were not read and computed for that.
const SAVED_METRIC: &str = "candlemesh_indicator_saved_rows_total";

/// All series with states, bounded by bytes.
#[derive(Debug, Clone)]
pub(super) struct AllSeries {
    kept: moka::future::Cache<Arc<str>, Arc<Series>>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    computations: AtomicU64,
    rows: AtomicU64,
}

/// What is known of one instrument, timeframe and set of specs.
#[derive(Debug, Clone, Default)]
pub(super) struct Series {
    /// Data revision at which the snapshots hold.
    revision: u64,
    /// By time.
    snapshots: Vec<Snapshot>,
    answers: Vec<Remembered>,
}

/// States of all specs before the first candle at or after an instant, which begins a trading date or a wider bucket.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    at: Millis,
    seen: u64,
    states: Arc<[u8]>,
}

/// An answer that may still be in the cache.
#[derive(Debug, Clone)]
struct Remembered {
    range: TimeRange,
    revision: u64,
    /// Rows before this are the same at the series' revision.
    valid_until: Millis,
}

/// Where a computation may begin.
#[derive(Debug)]
pub(super) struct Start {
    /// Absent: before the first candle.
    pub(super) snapshot: Option<Snapshot>,
    /// Revision and range of an earlier answer, and until when its rows may be taken over.
    pub(super) earlier: Option<(u64, TimeRange, Millis)>,
}

/// What a computation has left.
#[derive(Debug, Default)]
pub(super) struct Left {
    pub(super) snapshots: Vec<Snapshot>,
}

impl Snapshot {
    pub(super) fn at(&self) -> Millis {
        self.at
    }

    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    fn bytes(&self) -> usize {
        self.states.len() + size_of::<Snapshot>()
    }
}

impl AllSeries {
    pub(super) fn new(capacity_bytes: u64) -> AllSeries {
        let kept = moka::future::Cache::builder()
            .max_capacity(capacity_bytes)
            .weigher(|key: &Arc<str>, series: &Arc<Series>| {
                u32::try_from(key.len() + series.bytes()).unwrap_or(u32::MAX)
            })
            .build();
        AllSeries { kept, counters: Arc::default() }
    }

    pub(super) async fn get(&self, key: &str) -> Option<Arc<Series>> {
        self.kept.get(key).await
    }

    /// Keeps what a computation at the pinned revision has left. Of two at once the later one's is kept; each is true by itself.
    pub(super) async fn keep(&self, key: String, series: Series) {
        self.kept.insert(key.into(), Arc::new(series)).await;
    }

    /// Forgets the series of an instrument, or all of them.
    pub(super) async fn forget(&self, instrument: Option<&str>) {
        mesh::cache::drop_tagged_keys(&self.kept, instrument).await;
    }

    pub(super) fn count(&self, saved_rows: u64) {
        self.counters.computations.fetch_add(1, Ordering::Relaxed);
        self.counters.rows.fetch_add(saved_rows, Ordering::Relaxed);
        metrics::counter!(SUFFIX_METRIC).increment(1);
        metrics::counter!(SAVED_METRIC).increment(saved_rows);
    }

    /// Computations that did not begin at the first candle, and the candles that were not computed for that.
    pub(super) fn saved(&self) -> (u64, u64) {
        (self.counters.computations.load(Ordering::Relaxed), self.counters.rows.load(Ordering::Relaxed))
    }

    /// Series and bytes kept.
    pub(super) async fn size(&self) -> (u64, u64) {
        self.kept.run_pending_tasks().await;
        (self.kept.entry_count(), self.kept.weighted_size())
    }
}

impl Series {
    /// Nothing is known of it yet.
    pub(super) fn at(revision: u64) -> Series {
        Series { revision, ..Default::default() }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn has_states(&self) -> bool {
        !self.snapshots.is_empty()
    }

    fn bytes(&self) -> usize {
        OVERHEAD_BYTES + self.snapshots.iter().map(Snapshot::bytes).sum::<usize>()
    }

    /// The same at the pinned, later revision, between which and its own no candle before `first_changed` was changed.
    pub(super) fn advanced(&self, pinned: &Pinned<'_>, first_changed: Millis) -> Series {
        let cut = bucket_start(&pinned.calendar, pinned.query.timeframe, first_changed);
        let mut series = self.clone();
        series.revision = pinned.revision;
        series.snapshots.retain(|snapshot| snapshot.at <= cut);
        for answer in &mut series.answers {
            answer.valid_until = answer.valid_until.min(cut);
        }
        series
    }

    /// Where an answer for the range may begin, at the series' own revision. The answers are tried newest first; the caller says which
    /// are still there.
    pub(super) fn starts(&self, range: TimeRange) -> Vec<Start> {
        let before = |limit: Millis| self.snapshots.iter().rev().find(|snapshot| snapshot.at <= limit).cloned();
        let mut starts = Vec::new();
        for answer in self.answers.iter().rev() {
            let until = answer.valid_until.min(answer.range.end());
            if answer.range.start() > range.start() || until <= range.start() {
                continue;
            }
            let snapshot = before(until.min(range.end()));
            let from_here = snapshot.as_ref().is_some_and(|snapshot| snapshot.at > range.start());
            if until >= range.end() || from_here {
                starts.push(Start { snapshot, earlier: Some((answer.revision, answer.range, until)) });
            }
        }
        if let Some(snapshot) = before(range.start()) {
            starts.push(Start { snapshot: Some(snapshot), earlier: None });
        }
        starts
    }

    /// Adds an answer and what its computation has left, at the series' own revision.
    pub(super) fn add(&mut self, range: TimeRange, left: Left) {
        self.answers.retain(|answer| answer.range != range);
        if self.answers.len() == MAX_ANSWERS {
            self.answers.remove(0);
        }
        self.answers.push(Remembered { range, revision: self.revision, valid_until: Millis::MAX });
        self.snapshots.extend(left.snapshots);
        self.snapshots.sort_by_key(|snapshot| snapshot.at);
        self.snapshots.dedup_by_key(|snapshot| snapshot.at);
        let mut spacing = SPACING;
        self.thin(spacing);
        while self.snapshots.len() > 1 && self.bytes() > MAX_SERIES_BYTES {
            spacing *= 2;
            self.thin(spacing);
        }
    }

    /// Leaves snapshots that lie so far apart, and the last, where most changes come after.
    fn thin(&mut self, spacing: u64) {
        let last = self.snapshots.last().map(|snapshot| snapshot.at);
        let mut kept = 0;
        self.snapshots.retain(|snapshot| {
            let is_far = snapshot.seen >= kept + spacing;
            if is_far {
                kept = snapshot.seen;
            }
            is_far || Some(snapshot.at) == last
        });
    }
}

/// Start of the trading date of an instant, or of the wider bucket that holds the date: what one changed candle may change begins there.
fn bucket_start(calendar: &Calendar, timeframe: Timeframe, at: Millis) -> Millis {
    let day = calendar.day_at(at);
    calendar.bucket(&day, timeframe.max(Timeframe::D1), day.anchor).start()
}

/// Takes the specs' machines through candles from a state on, row by row, leaving states on the way. Blocks: for the CPU pool.
///
/// The table holds the rows of the range, its `before` the candles before them. Equals the columnar kernels to the bit.
pub(super) fn advance(
    specs: &[Spec],
    from: Option<&Snapshot>,
    history: &BucketFrame,
    range: TimeRange,
    (calendar, timeframe): (&Calendar, Timeframe),
    stop: &dyn Fn() -> bool,
) -> Result<(Table, Left), Error> {
    let (frame, day) = (&history.frame, super::days(history));
    let rows = frame.rows_between(range.start(), range.end());
    let seen = from.map_or(0, |snapshot| snapshot.seen);
    let places = places(&day, seen);
    let mut states = Vec::with_capacity(places.len());
    let mut machines = match from {
        Some(snapshot) => Machines::restore(specs, &snapshot.states)?,
        None => Machines::new(specs),
    };
    let mut values = vec![Vec::with_capacity(rows.len()); machines.columns()];
    let mut now = vec![f64::NAN; machines.columns()];
    let mut next = places.iter().peekable();
    for (row, &day) in day.iter().enumerate() {
        if row % STOP_EVERY == 0 && stop() {
            return Err(kernels::Error::Stopped.into());
        }
        if next.next_if(|place| **place == row).is_some() {
            states.push(machines.save());
        }
        let candle = Row {
            open: frame.open()[row],
            high: frame.high()[row],
            low: frame.low()[row],
            close: frame.close()[row],
            volume: frame.volume()[row],
            day,
        };
        machines.push(&candle, &mut now);
        if rows.contains(&row) {
            values.iter_mut().zip(&now).for_each(|(column, value)| column.push(*value));
        }
    }
    let names = specs.iter().flat_map(Spec::columns);
    let columns = names.zip(values).map(|(name, values)| Column { name, values }).collect();
    let snapshot = |(place, states): (usize, Vec<u8>)| Snapshot {
        at: bucket_start(calendar, timeframe, frame.open_time()[place]),
        seen: seen + place as u64,
        states: states.into(),
    };
    let left = Left { snapshots: places.into_iter().zip(states).map(snapshot).collect() };
    let table = Table { before: seen + rows.start as u64, open_time: frame.open_time()[rows].to_vec(), columns };
    Ok((table, left))
}

/// Rows before which states are taken: first rows of trading dates, [`SPACING`] apart, and the last such row.
fn places(day: &[i32], seen: u64) -> Vec<usize> {
    let starts = (1..day.len()).filter(|row| day[*row] != day[row - 1]);
    let mut places = Vec::new();
    let (mut kept, mut last) = (seen, None);
    for row in starts {
        last = Some(row);
        if seen + row as u64 >= kept + SPACING {
            kept = seen + row as u64;
            places.push(row);
        }
    }
    if last > places.last().copied() {
        places.extend(last);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(at: Millis, seen: u64) -> Snapshot {
        Snapshot { at, seen, states: vec![0; 100].into() }
    }

    fn series(snapshots: &[(Millis, u64)]) -> Series {
        let mut series = Series::at(1);
        let snapshots = snapshots.iter().map(|(at, seen)| snapshot(*at, *seen)).collect();
        series.add(TimeRange::new(0, 100).unwrap(), Left { snapshots });
        series
    }

    #[test]
    fn states_lie_apart_and_the_last_one_is_kept() {
        let day: Vec<i32> = (0..10_000).map(|row| row / 1000).collect();
        assert_eq!(places(&day, 0), [5000, 9000]);
        assert_eq!(places(&day, 4000), [5000, 9000]);
        assert_eq!(places(&day[..1500], 0), [1000]);
        assert!(places(&day[..1000], 0).is_empty());
        let series = series(&[(10, 1000), (50, 5000), (60, 6000), (90, 9500), (95, 9600)]);
        let at: Vec<Millis> = series.snapshots.iter().map(|snapshot| snapshot.at).collect();
        assert_eq!(at, [50, 90, 95]);
    }

    #[test]
    fn a_computation_begins_where_state_and_earlier_rows_meet() {
        let mut series = series(&[(50, 5000), (90, 9500)]);
        let range = |start, end| TimeRange::new(start, end).unwrap();
        let begins = |series: &Series, range: TimeRange| -> Vec<(Option<Millis>, bool)> {
            let starts = series.starts(range);
            starts.iter().map(|start| (start.snapshot.as_ref().map(Snapshot::at), start.earlier.is_some())).collect()
        };
        // Its own answer, as a whole; what comes after it; what begins before it, which needs everything.
        assert_eq!(begins(&series, range(0, 100)), [(Some(90), true)]);
        assert_eq!(begins(&series, range(10, 200)), [(Some(90), true)]);
        assert_eq!(begins(&series, range(60, 200)), [(Some(90), true), (Some(50), false)]);
        assert_eq!(begins(&series, range(-10, 100)), []);
        // From here on the rows of the answer are not those of the revision.
        series.answers[0].valid_until = 60;
        assert_eq!(begins(&series, range(0, 100)), [(Some(50), true)]);
        assert_eq!(begins(&series, range(0, 55)), [(Some(50), true)]);
        assert_eq!(begins(&series, range(55, 100)), [(Some(50), false)]);
        series.snapshots.clear();
        assert_eq!(begins(&series, range(0, 100)), []);
        assert_eq!(begins(&series, range(0, 60)), [(None, true)]);
    }

    #[test]
    fn many_bytes_of_states_lie_farther_apart() {
        let mut series = Series::at(1);
        let large = |row: u64| Snapshot { at: row as Millis, seen: row * SPACING, states: vec![0; 1 << 20].into() };
        series.add(TimeRange::ALL, Left { snapshots: (1..20).map(large).collect() });
        assert!(series.bytes() <= MAX_SERIES_BYTES && series.snapshots.len() > 1, "{}", series.bytes());
        assert_eq!(series.snapshots.last().map(Snapshot::at), Some(19));
    }
}

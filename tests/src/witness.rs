//! What writers were told, and so which values a reader may see: of writes to one minute the last acknowledged one wins.
//!
//! Every write has a number, which is also the volume of its rows: a row that is read says who wrote it, and its other values tell
//! whether it is whole. Begin and end of writes and reads are stamped by one counter. A read may see a write unless another one
//! began after it was acknowledged and was itself acknowledged before the read began. A write that was not acknowledged may or
//! may not have happened, and stays possible for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use market::{Candle, Millis};

const MINUTE_MS: Millis = 60_000;
/// 2024-01-02T00:00:00Z, where the minutes begin.
const START: Millis = 1_704_153_600_000;

/// Row of an instrument, by their indexes.
type Place = (usize, i64);

/// A write to some minutes of an instrument.
#[derive(Debug, Clone)]
pub struct Write {
    number: u64,
    instrument: usize,
    minutes: std::ops::Range<i64>,
}

impl Write {
    pub fn candles(&self) -> Vec<Candle> {
        self.minutes.clone().map(|minute| candle(self.number, minute)).collect()
    }
}

/// One write, as a row knows it.
#[derive(Debug, Clone, Copy)]
struct Told {
    number: u64,
    /// Absent while it is under way, and for ever where nobody said how it ended.
    acknowledged: Option<u64>,
}

/// Remembers every write of a test.
#[derive(Debug, Default)]
pub struct Witness {
    clock: AtomicU64,
    rows: Mutex<BTreeMap<Place, Vec<Told>>>,
    /// Instruments and revisions of acknowledged writes.
    revisions: Mutex<BTreeSet<(usize, u64)>>,
    acknowledged_rows: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Open time of a minute.
pub fn open_time(minute: i64) -> Millis {
    START + minute * MINUTE_MS
}

/// The minute that is passing.
pub fn minute_of_now() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (now.as_millis() as Millis - START) / MINUTE_MS
}

/// The row that a write leaves in a minute.
fn candle(number: u64, minute: i64) -> Candle {
    let open = 100.0 + (number % 1000) as f64 / 20.0;
    let close = open + (minute % 7) as f64 / 10.0;
    Candle {
        open_time: open_time(minute),
        open,
        high: open + 2.0,
        low: open - 1.0,
        close,
        volume: number as f64,
        open_interest: None,
    }
}

impl Witness {
    /// The counter's next value.
    pub fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Begins a write; its number is when.
    pub fn begin(&self, instrument: usize, minutes: std::ops::Range<i64>) -> Write {
        let mut rows = locked(&self.rows);
        let number = self.now();
        for minute in minutes.clone() {
            rows.entry((instrument, minute)).or_default().push(Told { number, acknowledged: None });
        }
        Write { number, instrument, minutes }
    }

    /// Notes that a write was acknowledged, with the revision it made.
    pub fn acknowledge(&self, write: &Write, revision: u64) {
        let at = self.now();
        let mut rows = locked(&self.rows);
        for minute in write.minutes.clone() {
            let told = rows.entry((write.instrument, minute)).or_default();
            if let Some(told) = told.iter_mut().find(|told| told.number == write.number) {
                told.acknowledged = Some(at);
            }
        }
        locked(&self.revisions).insert((write.instrument, revision));
        self.acknowledged_rows.fetch_add(write.minutes.clone().count() as u64, Ordering::Relaxed);
    }

    /// Rows in acknowledged writes, repeats counted.
    pub fn acknowledged_rows(&self) -> u64 {
        self.acknowledged_rows.load(Ordering::Relaxed)
    }

    /// Instruments and revisions of acknowledged writes.
    pub fn revisions(&self) -> BTreeSet<(usize, u64)> {
        locked(&self.revisions).clone()
    }

    /// What is wrong with an answer of a whole instrument that was asked for at `begun`; nothing, if nothing is.
    pub fn judge(&self, instrument: usize, candles: &[Candle], begun: u64) -> Option<String> {
        let rows = locked(&self.rows);
        let mut seen: BTreeMap<i64, u64> = BTreeMap::new();
        let mut last = None;
        for row in candles {
            let minute = (row.open_time - START) / MINUTE_MS;
            let number = row.volume as u64;
            if last.is_some_and(|last| last >= row.open_time) {
                return Some(format!("{row:?} is there twice or out of order"));
            }
            last = Some(row.open_time);
            if candle(number, minute) != *row {
                return Some(format!("{row:?} is no row that was ever written"));
            }
            seen.insert(minute, number);
        }
        let written = rows.range((instrument, i64::MIN)..=(instrument, i64::MAX));
        let mut known = BTreeSet::new();
        for ((_, minute), told) in written {
            known.insert(*minute);
            let number = seen.get(minute).copied();
            if let Some(wrong) = wrong(told, number, begun) {
                return Some(format!("instrument {instrument}, minute {minute}, read begun at {begun}: {wrong}"));
            }
        }
        let unknown = seen.keys().find(|minute| !known.contains(minute));
        unknown.map(|minute| format!("minute {minute} of instrument {instrument} was never written"))
    }
}

/// What is wrong with a row in which this write, or none, is seen.
fn wrong(told: &[Told], seen: Option<u64>, begun: u64) -> Option<String> {
    // The newest beginning among writes acknowledged before the read.
    let settled =
        told.iter().filter(|told| told.acknowledged.is_some_and(|at| at < begun)).map(|told| told.number).max();
    let Some(seen) = seen else {
        return settled.map(|number| format!("write {number} was acknowledged, and nothing is there"));
    };
    let Some(write) = told.iter().find(|told| told.number == seen) else {
        return Some(format!("write {seen} never was"));
    };
    match (write.acknowledged, settled) {
        (Some(ended), Some(settled)) if ended < settled => {
            Some(format!("write {seen} is there, but {settled} began after it had ended and was acknowledged"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows as a store would hold them after the writes.
    fn held(writes: &[&Write]) -> Vec<Candle> {
        let mut rows = BTreeMap::new();
        for write in writes {
            rows.extend(write.candles().into_iter().map(|row| (row.open_time, row)));
        }
        rows.into_values().collect()
    }

    #[test]
    fn the_last_acknowledged_write_must_be_seen_and_an_unknown_one_may() {
        let witness = Witness::default();
        let judge = |rows: &[Candle]| witness.judge(0, rows, witness.now());
        let first = witness.begin(0, 0..3);
        assert_eq!((judge(&[]), judge(&held(&[&first]))), (None, None));
        witness.acknowledge(&first, 1);
        assert!(judge(&[]).unwrap().contains("nothing is there"));
        assert!(judge(&held(&[&first])[1..]).is_some());
        let second = witness.begin(0, 1..4);
        assert_eq!((judge(&held(&[&first])), judge(&held(&[&first, &second]))), (None, None));
        let during = witness.now();
        witness.acknowledge(&second, 2);
        assert!(judge(&held(&[&first])).unwrap().contains("began after it had ended"));
        assert_eq!(witness.judge(0, &held(&[&first]), during), None);
        assert_eq!(judge(&held(&[&first, &second])), None);
        // Two writers at once: either may be last.
        let (third, fourth) = (witness.begin(0, 0..4), witness.begin(0, 0..4));
        witness.acknowledge(&third, 3);
        witness.acknowledge(&fourth, 4);
        assert_eq!((judge(&held(&[&third])), judge(&held(&[&fourth]))), (None, None));
        assert!(judge(&held(&[&second, &first])).is_some());
    }

    #[test]
    fn rows_that_nobody_wrote_are_seen() {
        let witness = Witness::default();
        let write = witness.begin(0, 0..2);
        witness.acknowledge(&write, 1);
        let mut rows = held(&[&write]);
        rows[0].close += 0.05;
        assert!(witness.judge(0, &rows, witness.now()).unwrap().contains("no row that was ever written"));
        let rows = held(&[&write]);
        let twice = [rows[0], rows[0], rows[1]];
        assert!(witness.judge(0, &twice, witness.now()).unwrap().contains("twice"));
        let other = Write { minutes: 5..6, ..write.clone() };
        let stranger = held(&[&write, &other]);
        assert!(witness.judge(0, &stranger, witness.now()).unwrap().contains("never written"));
    }
}

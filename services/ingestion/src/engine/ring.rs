//! The newest changes, in the order of their sequences, bounded by count and by bytes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use store::{Change, Changed};

/// Bytes of changes kept: ten minutes of a market of five thousand instruments, a tenth of what the process may take.
const MAX_RING_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of changes that wait for earlier ones; beyond that they are read from the log when their turn comes.
const MAX_AHEAD_BYTES: usize = 8 * 1024 * 1024;
/// Changes of one message: a few tens of kilobytes where each carries its newest candle.
pub(crate) const MAX_BATCH_CHANGES: usize = 1000;
/// Bytes of one message; a single change may take 60 kB.
pub(crate) const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// Changes looked at under the lock; a watcher of one instrument looks at all.
const MAX_SCANNED: usize = 4096;
/// Bytes of a change without its candles, about; the key comes on top.
const CHANGE_BYTES: usize = 256;
/// Bytes of a candle.
const ROW_BYTES: usize = 56;

/// Ascending changes, and the sequence up to which nothing of them is missing.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) changes: Vec<Arc<Changed>>,
    pub(crate) sequence: u64,
}

/// What a watcher wants of the changes.
pub(super) trait Wants {
    fn wants(&self, changed: &Changed) -> bool;

    /// Bytes of a change in a message.
    fn size_of(&self, changed: &Changed) -> usize;
}

/// Holds every change after `floor` up to `newest`.
#[derive(Debug)]
pub(super) struct Ring {
    entries: VecDeque<Arc<Changed>>,
    floor: u64,
    newest: u64,
    bytes: usize,
    max_changes: usize,
    /// Handed over while earlier ones are still missing, by first sequence.
    ahead: BTreeMap<u64, Vec<Arc<Changed>>>,
    ahead_bytes: usize,
}

/// Bytes that a change takes in memory and, about, in a message.
pub(super) fn size_of(changed: &Changed) -> usize {
    let rows = changed.candles.as_ref().map_or(0, |candles| candles.len());
    size_of_record(&changed.change) + rows * ROW_BYTES
}

/// The same without candles.
pub(super) fn size_of_record(change: &Change) -> usize {
    CHANGE_BYTES + change.key.as_str().len()
}

impl Ring {
    /// Empty, with everything up to `newest` in the log only.
    pub(super) fn new(newest: u64, max_changes: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            floor: newest,
            newest,
            bytes: 0,
            max_changes: max_changes.max(1),
            ahead: BTreeMap::new(),
            ahead_bytes: 0,
        }
    }

    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// The last sequence that is no longer here.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// Whether a watcher at `position` must read the log.
    pub(super) fn is_behind(&self, position: u64) -> bool {
        position < self.floor
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.ahead_bytes
    }

    /// Whether changes wait for earlier ones.
    pub(super) fn has_gap(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Takes the consecutive changes of one put, which may come before those of an earlier one.
    pub(super) fn hand_over(&mut self, changes: Vec<Changed>) {
        let Some(first) = changes.first().map(|changed| changed.change.sequence) else { return };
        let bytes = changes.iter().map(size_of).sum::<usize>();
        if first > self.newest + 1 && self.ahead_bytes + bytes > MAX_AHEAD_BYTES {
            // The log has them. One entry stays, for the gap to be seen.
            self.ahead.clear();
            self.ahead_bytes = 0;
        }
        self.ahead_bytes += bytes;
        self.ahead.insert(first, changes.into_iter().map(Arc::new).collect());
        self.absorb();
    }

    /// Takes a page of the log that was read after [`newest`](Self::newest).
    pub(super) fn extend(&mut self, page: impl IntoIterator<Item = Arc<Changed>>) {
        for changed in page {
            self.push(changed);
        }
        self.absorb();
    }

    /// Forgets everything up to `newest`, which must be read from the log.
    pub(super) fn skip_to(&mut self, newest: u64) {
        if newest <= self.newest {
            return;
        }
        self.entries.clear();
        (self.bytes, self.floor, self.newest) = (0, newest, newest);
        self.absorb();
    }

    /// What a watcher at `position` gets next; `None` when it must read the log.
    pub(super) fn after(&self, position: u64, watcher: &impl Wants) -> Option<Batch> {
        if self.is_behind(position) {
            return None;
        }
        let from = self.entries.partition_point(|changed| changed.change.sequence <= position);
        let mut batch = Batch { changes: Vec::new(), sequence: position };
        let mut bytes = 0;
        for changed in self.entries.range(from..).take(MAX_SCANNED) {
            if watcher.wants(changed) {
                bytes += watcher.size_of(changed);
                let is_full = batch.changes.len() == MAX_BATCH_CHANGES || bytes > MAX_BATCH_BYTES;
                if is_full && !batch.changes.is_empty() {
                    break;
                }
                batch.changes.push(Arc::clone(changed));
            }
            batch.sequence = changed.change.sequence;
        }
        Some(batch)
    }

    fn absorb(&mut self) {
        while let Some(first) = self.ahead.first_entry().filter(|entry| *entry.key() <= self.newest + 1) {
            let changes = first.remove();
            self.ahead_bytes -= changes.iter().map(|changed| size_of(changed)).sum::<usize>();
            for changed in changes {
                self.push(changed);
            }
        }
    }

    fn push(&mut self, changed: Arc<Changed>) {
        let sequence = changed.change.sequence;
        if sequence <= self.newest {
            return;
        }
        self.newest = sequence;
        self.bytes += size_of(&changed);
        self.entries.push_back(changed);
        while self.entries.len() > self.max_changes || self.bytes > MAX_RING_BYTES {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= size_of(&oldest);
            self.floor = oldest.change.sequence;
        }
    }
}

#[cfg(test)]
mod tests {
    use market::{Date, Frame, Timeframe};

    use super::*;

    struct Everything;

    impl Wants for Everything {
        fn wants(&self, _changed: &Changed) -> bool {
            true
        }

        fn size_of(&self, changed: &Changed) -> usize {
            size_of(changed)
        }
    }

    fn changed(sequence: u64, rows: usize) -> Changed {
        let times = (0..rows as i64).map(|row| row * 60_000).collect();
        let candles = Frame::from_columns(times, std::array::from_fn(|_| vec![1.0; rows]), vec![f64::NAN; rows]);
        let change = Change {
            sequence,
            key: "NSE_EQ|A".parse().unwrap(),
            timeframe: Timeframe::M1,
            trading_date: Date::constant(2016, 8, 16),
            revision: sequence,
            first_open_time: 0,
            last_open_time: 0,
            changed_at: 0,
        };
        Changed { change, candles: Some(candles.unwrap()) }
    }

    fn put(range: std::ops::RangeInclusive<u64>) -> Vec<Changed> {
        range.map(|sequence| changed(sequence, 1)).collect()
    }

    fn sequences(batch: &Batch) -> Vec<u64> {
        batch.changes.iter().map(|changed| changed.change.sequence).collect()
    }

    #[test]
    fn puts_handed_over_in_any_order_come_out_in_theirs() {
        let mut ring = Ring::new(10, 100);
        ring.hand_over(put(14..=15));
        ring.hand_over(put(12..=13));
        assert!(ring.has_gap());
        assert_eq!(sequences(&ring.after(10, &Everything).unwrap()), [] as [u64; 0]);
        ring.hand_over(put(11..=11));
        assert!(!ring.has_gap());
        let batch = ring.after(10, &Everything).unwrap();
        assert_eq!((sequences(&batch), batch.sequence), (vec![11, 12, 13, 14, 15], 15));
        assert_eq!(sequences(&ring.after(13, &Everything).unwrap()), [14, 15]);
        assert!(ring.after(9, &Everything).is_none());
    }

    #[test]
    fn what_the_log_filled_is_not_taken_twice() {
        let mut ring = Ring::new(0, 100);
        ring.hand_over(put(3..=5));
        ring.extend(put(1..=4).into_iter().map(Arc::new));
        assert_eq!(sequences(&ring.after(0, &Everything).unwrap()), [1, 2, 3, 4, 5]);
        ring.hand_over(put(2..=3));
        assert_eq!(sequences(&ring.after(0, &Everything).unwrap()), [1, 2, 3, 4, 5]);
        ring.skip_to(4);
        assert_eq!(ring.newest(), 5);
        ring.skip_to(9);
        assert!(ring.after(8, &Everything).is_none() && ring.after(9, &Everything).unwrap().changes.is_empty());
        assert_eq!(ring.bytes(), 0);
    }

    #[test]
    fn count_and_bytes_are_bounded_in_the_ring_ahead_of_it_and_in_a_batch() {
        let mut ring = Ring::new(0, 50);
        ring.hand_over(put(1..=80));
        assert!(ring.after(29, &Everything).is_none());
        assert_eq!(sequences(&ring.after(30, &Everything).unwrap()).len(), 50);

        let mut ring = Ring::new(0, usize::MAX);
        for sequence in 1..=1500 {
            ring.hand_over(vec![changed(sequence, 1000)]);
            assert!(ring.bytes() <= MAX_RING_BYTES);
        }
        let batch = ring.after(1400, &Everything).unwrap();
        assert!(batch.changes.iter().map(|changed| size_of(changed)).sum::<usize>() <= MAX_BATCH_BYTES);
        assert_eq!(batch.sequence, 1400 + batch.changes.len() as u64);
        for sequence in 2000..3000 {
            ring.hand_over(vec![changed(sequence, 1000)]);
        }
        assert!(ring.has_gap() && ring.bytes() <= MAX_RING_BYTES + MAX_AHEAD_BYTES);
    }
}

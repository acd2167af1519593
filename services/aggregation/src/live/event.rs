//! What is told: a candle, what happened to it, and the rule that decides which.

use std::sync::Arc;

use market::{InstrumentKey, Millis, Timeframe};
use proto::aggregation::CandleEvent;

use super::bucket::Candled;

/// A set of timeframes, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Timeframes(u16);

impl Timeframes {
    pub(super) fn of(timeframe: Timeframe) -> Timeframes {
        Timeframes(1 << timeframe as u16)
    }

    pub(super) fn with(self, other: Timeframes) -> Timeframes {
        Timeframes(self.0 | other.0)
    }

    pub(super) fn without(self, other: Timeframes) -> Timeframes {
        Timeframes(self.0 & !other.0)
    }

    pub(super) fn holds(self, timeframe: Timeframe) -> bool {
        self.0 & Timeframes::of(timeframe).0 != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Timeframe> {
        Timeframe::ALL.into_iter().filter(move |timeframe| self.holds(*timeframe))
    }
}

impl FromIterator<Timeframe> for Timeframes {
    fn from_iter<I: IntoIterator<Item = Timeframe>>(timeframes: I) -> Self {
        timeframes.into_iter().fold(Timeframes::default(), |set, timeframe| set.with(Timeframes::of(timeframe)))
    }
}

/// When a candle counts as closed to subscribers, as a function of what is stored and of the watermark alone, so that every replica
/// and every resumption agrees.
#[derive(Debug, Clone, Copy)]
pub(super) struct Closing {
    /// How long a candle that lacks minutes waits for them after its end.
    pub(super) grace_ms: Millis,
}

impl Closing {
    /// Whether the close of a candle has been, or is to be, said by the watermark.
    pub(super) fn is_due(&self, candle: &Candled, watermark: Millis) -> bool {
        let end = candle.range.end();
        end <= watermark && (candle.is_full || self.patience(end) <= watermark)
    }

    /// When the close of a candle that lacks minutes is said.
    pub(super) fn patience(&self, end: Millis) -> Millis {
        end.saturating_add(self.grace_ms)
    }

    /// What happened to a candle whose close was said, or not.
    pub(super) fn event(&self, was_closed: bool, candle: &Candled, watermark: Millis) -> CandleEvent {
        match (was_closed, self.is_due(candle, watermark)) {
            (true, _) => CandleEvent::Correction,
            (false, true) => CandleEvent::Close,
            (false, false) => CandleEvent::Update,
        }
    }
}

/// One thing told.
#[derive(Debug, Clone)]
pub(super) struct Update {
    /// Index of the change that made it, in its batch: order, and where messages may be cut.
    pub(super) change: usize,
    pub(super) key: InstrumentKey,
    pub(super) timeframe: Timeframe,
    pub(super) event: CandleEvent,
    pub(super) candle: Candled,
    pub(super) revision: u64,
}

/// Which updates a subscriber wants. Equal filters share what is encoded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Filter {
    /// Sorted; absent: all.
    pub(super) keys: Option<Arc<[InstrumentKey]>>,
    pub(super) timeframes: Timeframes,
    pub(super) closed_only: bool,
}

impl Filter {
    pub(super) fn wants_key(&self, key: &InstrumentKey) -> bool {
        self.keys.as_ref().is_none_or(|keys| keys.binary_search(key).is_ok())
    }

    /// Tells filters apart in every process alike (FNV-1a, 64 bits: Fowler, Noll and Vo).
    pub(super) fn fingerprint(&self) -> u64 {
        let keys = self.keys.iter().flat_map(|keys| keys.iter());
        // No key holds a line break.
        let keys = keys.flat_map(|key| key.as_str().bytes().chain([b'\n']));
        let rest = self.timeframes.0.to_le_bytes().into_iter().chain([u8::from(self.closed_only)]);
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        keys.chain(rest).fold(0xcbf2_9ce4_8422_2325, mix)
    }

    pub(super) fn wants_event(&self, event: CandleEvent) -> bool {
        !self.closed_only || matches!(event, CandleEvent::Close | CandleEvent::Correction | CandleEvent::Snapshot)
    }
}

//! Where a service gets what it does not own: ports, their remote adapters, and an in-memory twin.

mod changes;
mod ledger;
mod live;
mod memory;
mod newsroom;
mod remote;

use std::fmt::Debug;
use std::sync::Arc;

use futures::stream::BoxStream;
use market::{BucketFrame, CorporateAction, Frame, Instrument, InstrumentKey, Millis, TimeRange, Timeframe};

pub use changes::{ChangeBatch, Changes, StoredChange};
pub use ledger::MemoryLedger;
pub use live::{CandleNews, LiveCandles, NewsBatch};
pub use memory::MemorySource;
pub use newsroom::MemoryNewsroom;
pub use remote::{RemoteAggregation, RemoteIngestion, status_of_answer};

use crate::RemoteError;

/// Candles as stored, with the revision they are pinned to.
pub struct StoredFrames {
    pub revision: u64,
    /// Disjoint frames in time order.
    pub frames: BoxStream<'static, Result<Frame, RemoteError>>,
}

impl Debug for StoredFrames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredFrames").field("revision", &self.revision).finish_non_exhaustive()
    }
}

/// What is stored of one source timeframe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceCoverage {
    pub timeframe: Timeframe,
    pub first_open_time: Millis,
    pub last_open_time: Millis,
    pub candle_count: u64,
}

/// Candles of any timeframe, with the data revision of the answer.
#[derive(Debug, Clone)]
pub struct Buckets {
    pub revision: u64,
    pub frame: BucketFrame,
}

/// A named group of instruments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub id: String,
    pub name: String,
    pub instrument_keys: Vec<InstrumentKey>,
}

/// Stored candles; ingestion's side of the store.
#[tonic::async_trait]
pub trait StoredCandles: Send + Sync + Debug {
    /// Candles of one source timeframe. NOT_FOUND for an unknown instrument; nothing stored is an empty stream.
    async fn stored(
        &self,
        key: &InstrumentKey,
        source: Timeframe,
        range: TimeRange,
        revision: Option<u64>,
    ) -> Result<StoredFrames, RemoteError>;
}

/// Master data and revisions; ingestion's too.
#[tonic::async_trait]
pub trait MasterData: Send + Sync + Debug {
    /// NOT_FOUND for an unknown instrument.
    async fn instrument(&self, key: &InstrumentKey) -> Result<Instrument, RemoteError>;

    /// The whole universe, ordered by key.
    async fn instruments(&self) -> Result<Vec<Instrument>, RemoteError>;

    /// Current revision of each key, 0 for an unknown one.
    async fn revisions(&self, keys: &[InstrumentKey]) -> Result<Vec<u64>, RemoteError>;

    /// What tells the store whose revisions were last answered from every other; empty where there is but one.
    async fn store_id(&self) -> Result<Arc<str>, RemoteError> {
        Ok(Arc::default())
    }

    /// Open time of the earliest candle changed by the revisions after one and up to another; `None` where that is not known.
    async fn first_change(
        &self,
        _key: &InstrumentKey,
        _after_revision: u64,
        _revision: u64,
    ) -> Result<Option<Millis>, RemoteError> {
        Ok(None)
    }

    /// What is stored per source timeframe, narrow to wide. NOT_FOUND for an unknown instrument.
    async fn coverage(&self, key: &InstrumentKey) -> Result<Vec<SourceCoverage>, RemoteError>;

    /// Splits and dividends as they are known now, by ex-date, splits before dividends. NOT_FOUND for an unknown instrument.
    async fn corporate_actions(&self, key: &InstrumentKey) -> Result<Vec<CorporateAction>, RemoteError>;

    /// NOT_FOUND for an unknown group.
    async fn group(&self, id: &str) -> Result<Group, RemoteError>;
}

/// Candles of any timeframe; aggregation's answers.
#[tonic::async_trait]
pub trait Candles: Send + Sync + Debug {
    /// NOT_FOUND for an unknown instrument; nothing in the range is an empty frame.
    async fn candles(
        &self,
        key: &InstrumentKey,
        timeframe: Timeframe,
        range: TimeRange,
        revision: Option<u64>,
    ) -> Result<Buckets, RemoteError>;
}

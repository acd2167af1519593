//! What was stored, as it becomes durable: the port, and its adapter over gRPC.

use std::fmt::Debug;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use market::{Date, Frame, InstrumentKey, Millis, Timeframe};
use proto::convert;
use proto::ingestion::{Change, WatchChangesRequest, WatchChangesResponse};

use super::RemoteIngestion;
use super::remote::malformed;
use crate::RemoteError;

/// One changed block of stored candles.
#[derive(Debug, Clone)]
pub struct StoredChange {
    /// Rises over all instruments; gaps are legal.
    pub sequence: u64,
    pub key: InstrumentKey,
    /// Source timeframe.
    pub timeframe: Timeframe,
    /// Of the first changed candle.
    pub trading_date: Date,
    /// Revision of the instrument that the change made.
    pub revision: u64,
    pub first_open_time: Millis,
    pub last_open_time: Millis,
    /// The stored candles from the first to the last changed one, as of this change or a later one. Absent where they are many:
    /// read them.
    pub candles: Option<Frame>,
}

/// Changes in the order of their sequences; may be empty, as a sign of life.
#[derive(Debug, Clone, Default)]
pub struct ChangeBatch {
    pub changes: Vec<StoredChange>,
    /// Resume after this.
    pub sequence: u64,
}

/// The change log of stored candles; ingestion's.
#[tonic::async_trait]
pub trait Changes: Send + Sync + Debug {
    /// Changes after a sequence, or from now on. Ends with FAILED_PRECONDITION when they were pruned, RESOURCE_EXHAUSTED when
    /// the reader does not keep up.
    async fn watch(
        &self,
        after_sequence: Option<u64>,
    ) -> Result<BoxStream<'static, Result<ChangeBatch, RemoteError>>, RemoteError>;

    /// The same after a sequence without any candles, which need not be read then: for who looks back over many.
    async fn records(
        &self,
        after_sequence: u64,
    ) -> Result<BoxStream<'static, Result<ChangeBatch, RemoteError>>, RemoteError> {
        let batches = self.watch(Some(after_sequence)).await?;
        let without = |change| StoredChange { candles: None, ..change };
        let strip = move |batch: ChangeBatch| ChangeBatch {
            changes: batch.changes.into_iter().map(without).collect(),
            ..batch
        };
        Ok(batches.map_ok(strip).boxed())
    }
}

#[tonic::async_trait]
impl Changes for RemoteIngestion {
    async fn watch(
        &self,
        after_sequence: Option<u64>,
    ) -> Result<BoxStream<'static, Result<ChangeBatch, RemoteError>>, RemoteError> {
        self.log(after_sequence, true).await
    }

    async fn records(
        &self,
        after_sequence: u64,
    ) -> Result<BoxStream<'static, Result<ChangeBatch, RemoteError>>, RemoteError> {
        self.log(Some(after_sequence), false).await
    }
}

impl RemoteIngestion {
    async fn log(
        &self,
        after_sequence: Option<u64>,
        include_candles: bool,
    ) -> Result<BoxStream<'static, Result<ChangeBatch, RemoteError>>, RemoteError> {
        let request = WatchChangesRequest { instrument_keys: Vec::new(), after_sequence, include_candles };
        let answers = self.changes.clone().watch_changes(request).await?.into_inner();
        let batches = answers.map_err(RemoteError::from).and_then(|answer| async move { batch(answer) });
        Ok(batches.boxed())
    }
}

fn batch(answer: WatchChangesResponse) -> Result<ChangeBatch, RemoteError> {
    let changes = answer.changes.into_iter().map(change).collect::<Result<_, _>>()?;
    Ok(ChangeBatch { changes, sequence: answer.sequence })
}

fn change(message: Change) -> Result<StoredChange, RemoteError> {
    let instant = |stamp: &Option<prost_types::Timestamp>| {
        stamp.as_ref().and_then(convert::millis).ok_or_else(|| malformed("a change without a time"))
    };
    Ok(StoredChange {
        sequence: message.sequence,
        key: message.instrument_key.parse().map_err(malformed)?,
        timeframe: message.timeframe.parse().map_err(malformed)?,
        trading_date: market::parse_date(&message.trading_date).map_err(malformed)?,
        revision: message.revision,
        first_open_time: instant(&message.first_open_time)?,
        last_open_time: instant(&message.last_open_time)?,
        candles: message.candles.map(|columns| convert::frame_of_columns(columns).map_err(malformed)).transpose()?,
    })
}

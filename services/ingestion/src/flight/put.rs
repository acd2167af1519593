//! Candles in: a stream of record batches, each stored and acknowledged before the next is read.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::{FlightDescriptor, PutResult};
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use market::{Candle, InstrumentKey, Timeframe};
use mesh::clock::now;
use mesh::flight::{PutStream, status_of, ticket_of};
use mesh::{Drain, PoolError};
use proto::convert::{self, FieldError};
use serde::Serialize;
use tokio::time::Instant;
use tonic::Status;

use super::columns::delivered_candles;
use super::{refuse, stored_candles};
use crate::engine::{Batch, Engine, Error, MAX_BATCH_ROWS, Outcome};

/// Rejections one acknowledgement names: 10 MB of text. `rejected_count` counts all of them.
const MAX_NAMED_REJECTIONS: usize = 100_000;
const DAMAGED: &str = "is damaged: its buffers are not what its header says";
/// How long a batch waits for room on a busy CPU pool, rather than end a stream whose client would send it all again.
const POOL_PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts: about the time a batch takes on the pool.
const POOL_PAUSE: Duration = Duration::from_millis(20);

/// Stores what the stream brings; each result acknowledges a batch as durable.
pub(super) fn acknowledged(
    stream: PutStream,
    engine: Arc<Engine>,
    drain: Drain,
) -> Result<BoxStream<'static, Result<PutResult, Status>>, Status> {
    let (key, timeframe) = target(&stream.descriptor)?;
    let put = Put { batches: stream.batches, engine, drain, key, timeframe, rows: 0 };
    Ok(put.acknowledged().boxed())
}

/// What a descriptor's candles are of: a frame of stored candles, or the path `[instrument_key]` or `[instrument_key, timeframe]`.
fn target(descriptor: &FlightDescriptor) -> Result<(InstrumentKey, Timeframe), Status> {
    let (key, timeframe) = match (descriptor.r#type(), descriptor.path.as_slice()) {
        (DescriptorType::Path, [key]) => (key.clone(), String::new()),
        (DescriptorType::Path, [key, timeframe]) if key != "stored" => (key.clone(), timeframe.clone()),
        _ => {
            let ticket = stored_candles(ticket_of(descriptor)?).map_err(refuse)?;
            if ticket.range.is_some() || ticket.revision.is_some() {
                return Err(refuse(FieldError::new(
                    "descriptor",
                    "range and revision name what is read, not what is put",
                )));
            }
            (ticket.instrument_key, ticket.timeframe)
        }
    };
    let key = convert::instrument_key("descriptor.instrument_key", &key).map_err(refuse)?;
    let timeframe = convert::timeframe("descriptor.timeframe", &timeframe, Some(Timeframe::M1)).map_err(refuse)?;
    Ok((key, timeframe))
}

/// A stream of record batches being stored.
struct Put {
    batches: FlightRecordBatchStream,
    engine: Arc<Engine>,
    drain: Drain,
    key: InstrumentKey,
    timeframe: Timeframe,
    /// Rows of the batches before.
    rows: u64,
}

impl Put {
    /// Stores a batch each time an acknowledgement is asked for; ends after the first error.
    fn acknowledged(self) -> impl Stream<Item = Result<PutResult, Status>> {
        futures::stream::try_unfold(self, |mut put| async move {
            let Some(rows) = put.next().await? else { return Ok(None) };
            let outcome = put.store(rows).await.map_err(refuse)?;
            Ok(Some((acknowledgement(outcome)?, put)))
        })
    }

    async fn next(&mut self) -> Result<Option<Vec<Option<Candle>>>, Status> {
        let batch = tokio::select! {
            biased;
            () = self.drain.started() => return Err(refuse(Error::Draining)),
            // The decoder panics where buffers lie outside of the message; the stream is not read any further then.
            batch = AssertUnwindSafe(self.batches.try_next()).catch_unwind() => {
                batch.map_err(|_| refuse(FieldError::new("batch", DAMAGED)))?.map_err(status_of)?
            }
        };
        let is_last = batch.is_none();
        // A table without rows has a schema, too, and is refused if that is wrong.
        let empty = || self.batches.schema().map(|schema| RecordBatch::new_empty(Arc::clone(schema)));
        let Some(batch) = batch.or_else(empty) else { return Ok(None) };
        let rows = delivered_candles(&batch).map_err(refuse)?;
        Ok((!is_last).then_some(rows))
    }

    /// Stores the rows of one record batch, as many transactions as its size needs.
    async fn store(&mut self, rows: Vec<Option<Candle>>) -> Result<Outcome, Error> {
        let mut total = Outcome::default();
        let mut rows = rows.into_iter();
        loop {
            let part: Vec<_> = rows.by_ref().take(MAX_BATCH_ROWS).collect();
            let (key, first_row) = (self.key.clone(), self.rows);
            self.rows += part.len() as u64;
            let batch = Batch { key, timeframe: self.timeframe, calendar: None, rows: part, first_row };
            let outcome = store_patiently(&self.engine, batch).await?;
            total.stored += outcome.stored;
            total.unchanged += outcome.unchanged;
            total.rejected.extend(outcome.rejected);
            total.revision = outcome.revision;
            if rows.len() == 0 {
                return Ok(total);
            }
        }
    }
}

/// Stores a batch, waiting for the CPU pool where that is full: nothing of the batch is stored before it was there.
async fn store_patiently(engine: &Engine, batch: Batch) -> Result<Outcome, Error> {
    let asked = Instant::now();
    loop {
        match engine.put(batch.clone(), now()).await {
            Err(Error::Pool(PoolError::Full { .. })) if asked.elapsed() < POOL_PATIENCE => {
                tokio::time::sleep(POOL_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// Content of an acknowledgement's `app_metadata`.
#[derive(Serialize)]
struct Acknowledgement {
    stored: u64,
    unchanged: u64,
    rejected: Vec<RejectedRow>,
    rejected_count: usize,
    revision: u64,
}

#[derive(Serialize)]
struct RejectedRow {
    row: u64,
    reason: String,
}

fn acknowledgement(outcome: Outcome) -> Result<PutResult, Status> {
    let rejected_count = outcome.rejected.len();
    let named = outcome.rejected.into_iter().take(MAX_NAMED_REJECTIONS);
    let content = Acknowledgement {
        stored: outcome.stored,
        unchanged: outcome.unchanged,
        rejected: named.map(|row| RejectedRow { row: row.row, reason: row.reason }).collect(),
        rejected_count,
        revision: outcome.revision,
    };
    let app_metadata = serde_json::to_vec(&content).map_err(|error| Status::internal(error.to_string()))?;
    Ok(PutResult { app_metadata: app_metadata.into() })
}

//! The Flight surface: stored candles out, candles in.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_flight::PutResult;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::flight_descriptor::DescriptorType;
use arrow_schema::SchemaRef;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use market::{Candle, InstrumentKey, TimeRange, Timeframe};
use mesh::Drain;
use mesh::clock::now;
use mesh::flight::{FrameServer, Frames, PutStream, status_of};
use mesh::to_status;
use proto::convert::{self, FieldError};
use proto::wire::{FrameTicket, StoredCandlesTicket, frame_ticket};
use serde::Serialize;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::engine::{Batch, Engine, Error, MAX_BATCH_ROWS, Outcome};

/// Rejections one acknowledgement names: 10 MB of text. `rejected_count` counts all of them.
const MAX_NAMED_REJECTIONS: usize = 100_000;

/// Serves `StoredCandlesTicket` and takes candles.
#[derive(Debug)]
pub(crate) struct CandleFrames {
    engine: Arc<Engine>,
    drain: Drain,
}

impl CandleFrames {
    pub(crate) fn new(engine: Arc<Engine>, drain: Drain) -> Self {
        Self { engine, drain }
    }
}

/// A parsed `StoredCandlesTicket`.
struct Query {
    key: InstrumentKey,
    source: Timeframe,
    range: TimeRange,
    revision: Option<u64>,
}

impl Query {
    fn schema(&self, revision: u64) -> SchemaRef {
        let metadata = proto::arrow::metadata(self.key.as_str(), self.source.as_str(), revision);
        proto::arrow::candle_schema(metadata)
    }
}

fn refuse(error: impl Into<Error>) -> Status {
    to_status(&error.into())
}

fn stored_candles(ticket: FrameTicket) -> Result<StoredCandlesTicket, FieldError> {
    match ticket.frame {
        Some(frame_ticket::Frame::StoredCandles(ticket)) => Ok(ticket),
        _ => Err(FieldError::new("ticket", "ingestion serves stored_candles only; ask aggregation or indicator")),
    }
}

fn query(ticket: FrameTicket) -> Result<Query, FieldError> {
    let ticket = stored_candles(ticket)?;
    Ok(Query {
        key: convert::instrument_key("stored_candles.instrument_key", &ticket.instrument_key)?,
        source: convert::timeframe("stored_candles.timeframe", &ticket.timeframe, Some(Timeframe::M1))?,
        range: convert::time_range(ticket.range.as_ref())?,
        revision: ticket.revision,
    })
}

#[tonic::async_trait]
impl FrameServer for CandleFrames {
    async fn get(&self, ticket: FrameTicket, _metadata: &MetadataMap) -> Result<Frames, Status> {
        let query = query(ticket).map_err(refuse)?;
        let stored = self.engine.stored(&query.key, query.source, query.range, query.revision).await.map_err(refuse)?;
        let schema = query.schema(stored.revision);
        let batch_schema = Arc::clone(&schema);
        let batches = stored.frames.map(move |frame| {
            let frame = frame.map_err(refuse)?;
            proto::arrow::candle_batch(&batch_schema, &frame).map_err(|error| Status::internal(error.to_string()))
        });
        Ok(Frames { schema, batches: batches.boxed(), metadata: MetadataMap::new() })
    }

    async fn schema(&self, ticket: FrameTicket) -> Result<SchemaRef, Status> {
        let query = query(ticket).map_err(refuse)?;
        let revision = self.engine.pinned_revision(&query.key, query.revision).await.map_err(refuse)?;
        Ok(query.schema(revision))
    }

    async fn list(&self) -> Result<Vec<FrameTicket>, Status> {
        let frames = self.engine.stored_frames().await.map_err(refuse)?;
        let tickets = frames.into_iter().map(|(key, source)| {
            let (instrument_key, timeframe) = (key.to_string(), source.to_string());
            let ticket = StoredCandlesTicket { instrument_key, timeframe, ..Default::default() };
            FrameTicket { frame: Some(frame_ticket::Frame::StoredCandles(ticket)) }
        });
        Ok(tickets.collect())
    }

    async fn put(&self, stream: PutStream) -> Result<BoxStream<'static, Result<PutResult, Status>>, Status> {
        let (key, timeframe) = target(&stream.descriptor)?;
        let (engine, drain) = (Arc::clone(&self.engine), self.drain.clone());
        let put = Put { batches: stream.batches, engine, drain, key, timeframe, rows: 0 };
        Ok(put.acknowledged().boxed())
    }
}

/// What a descriptor's candles are of: a `FrameTicket` as its command, or its path `[instrument_key, timeframe]`.
fn target(descriptor: &arrow_flight::FlightDescriptor) -> Result<(InstrumentKey, Timeframe), Status> {
    let (key, timeframe) = match (descriptor.r#type(), descriptor.path.as_slice()) {
        (DescriptorType::Path, [key]) => (key.clone(), String::new()),
        (DescriptorType::Path, [key, timeframe]) => (key.clone(), timeframe.clone()),
        (DescriptorType::Cmd, _) => {
            let ticket = proto::json::parse_ticket(&descriptor.cmd).map_err(|error| to_status(&error))?;
            let ticket = stored_candles(ticket).map_err(refuse)?;
            if ticket.range.is_some() || ticket.revision.is_some() {
                return Err(refuse(FieldError::new(
                    "descriptor",
                    "range and revision name what is read, not what is put",
                )));
            }
            (ticket.instrument_key, ticket.timeframe)
        }
        _ => {
            let expected =
                "a command holding stored_candles, or a path [instrument_key] or [instrument_key, timeframe]";
            return Err(refuse(FieldError::new("descriptor", format!("expected {expected}"))));
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
            batch = self.batches.try_next() => batch.map_err(status_of)?,
        };
        let is_last = batch.is_none();
        // A table without rows has a schema, too, and is refused if that is wrong.
        let empty = || self.batches.schema().map(|schema| RecordBatch::new_empty(Arc::clone(schema)));
        let Some(batch) = batch.or_else(empty) else { return Ok(None) };
        let rows = proto::arrow::delivered_candles(&batch).map_err(refuse)?;
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
            let outcome = self.engine.put(batch, now()).await?;
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

//! The Flight surface: stored candles out, candles in.

mod columns;
mod put;

use std::sync::Arc;

use arrow_flight::PutResult;
use arrow_schema::SchemaRef;
use futures::StreamExt;
use futures::stream::BoxStream;
use market::{InstrumentKey, TimeRange, Timeframe};
use mesh::Drain;
use mesh::flight::{Description, FrameServer, Frames, ListCriteria, Listing, PutStream, time_parts};
use mesh::to_status;
use proto::convert::{self, FieldError};
use proto::wire::{FrameTicket, StoredCandlesTicket, frame_ticket};
use store::Coverage;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::engine::{Covered, Engine, Error};

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
#[derive(Debug, Clone)]
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

    fn ticket(&self, range: Option<TimeRange>, revision: Option<u64>) -> FrameTicket {
        let ticket = StoredCandlesTicket {
            instrument_key: self.key.to_string(),
            timeframe: self.source.to_string(),
            range: range.map(convert::wire_range),
            revision,
        };
        FrameTicket { frame: Some(frame_ticket::Frame::StoredCandles(ticket)) }
    }

    /// Describes the frame at a revision; without coverage, as one part of unknown size.
    fn description(&self, revision: u64, coverage: Option<&Coverage>, is_exact: bool) -> Description {
        let schema = self.schema(revision);
        let is_whole =
            |held: &Coverage| self.range.start() <= held.first_open_time && held.last_open_time < self.range.end();
        let rows = coverage.filter(|held| is_exact && is_whole(held)).map(|held| held.candle_count);
        let range = (self.range != TimeRange::ALL).then_some(self.range);
        // Nothing was stored yet: there is no revision to pin.
        if revision == 0 {
            return Description { schema, rows: Some(0), parts: vec![self.ticket(range, self.revision)] };
        }
        let ranges = coverage.map_or_else(Vec::new, |held| {
            time_parts(self.range, held.candle_count, held.first_open_time, held.last_open_time)
        });
        let parts = match ranges.len() {
            0 | 1 => vec![self.ticket(range, Some(revision))],
            _ => ranges.into_iter().map(|part| self.ticket(Some(part), Some(revision))).collect(),
        };
        Description { schema, rows, parts }
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
            proto::arrow::candle_batch(&batch_schema, frame).map_err(|error| Status::internal(error.to_string()))
        });
        Ok(Frames { schema, batches: batches.boxed(), metadata: MetadataMap::new() })
    }

    async fn schema(&self, ticket: FrameTicket) -> Result<SchemaRef, Status> {
        let query = query(ticket).map_err(refuse)?;
        let revision = self.engine.pinned_revision(&query.key, query.revision).await.map_err(refuse)?;
        Ok(query.schema(revision))
    }

    async fn describe(&self, ticket: FrameTicket) -> Result<Description, Status> {
        let query = query(ticket).map_err(refuse)?;
        self.engine.instrument(&query.key).await.map_err(refuse)?;
        let covered = self.engine.covered_at_one_revision(query.key.clone()).await.map_err(refuse)?;
        let held = covered.coverage.iter().find(|held| held.timeframe == query.source);
        if let Some(revision) = query.revision {
            // What an earlier revision held is not counted anywhere; where to cut it is told by what is there now.
            return Ok(query.description(revision, held, false));
        }
        let mut description = query.description(covered.revision, held, covered.is_exact);
        if held.is_none() && covered.is_exact {
            description.rows = Some(0);
        }
        Ok(description)
    }

    async fn list(&self, criteria: ListCriteria) -> Result<Listing, Status> {
        let ListCriteria { segment, after, limit } = criteria.clone();
        // As ListInstruments reads it: keys hold their segment in capitals.
        let segment = segment.map(|segment| segment.trim().to_ascii_uppercase()).filter(|segment| !segment.is_empty());
        let covered = self.engine.covered(segment.as_deref(), after, limit).await;
        let (covered, has_more) = covered.map_err(refuse)?;
        let next =
            covered.last().filter(|_| has_more).map(|last| ListCriteria { after: Some(last.key.clone()), ..criteria });
        Ok(Listing { flights: covered.into_iter().flat_map(flights).collect(), next })
    }

    async fn put(&self, stream: PutStream) -> Result<BoxStream<'static, Result<PutResult, Status>>, Status> {
        put::acknowledged(stream, Arc::clone(&self.engine), self.drain.clone())
    }
}

/// The flights of an instrument: one per source timeframe, named by tickets that always mean the current revision.
fn flights(covered: Covered) -> Vec<(FrameTicket, Description)> {
    let Covered { key, coverage, revision, is_exact } = covered;
    let flight = |held: &Coverage| {
        let query = Query { key: key.clone(), source: held.timeframe, range: TimeRange::ALL, revision: None };
        let ticket = query.ticket(None, None);
        let rows = is_exact.then_some(held.candle_count);
        (ticket.clone(), Description { schema: query.schema(revision), rows, parts: vec![ticket] })
    };
    coverage.iter().map(flight).collect()
}

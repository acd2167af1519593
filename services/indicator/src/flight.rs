//! Bulk frames: an `IndicatorsTicket` as record batches.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::StreamExt;
use futures::stream;
use kernels::indicator::Column;
use mesh::engine::{Engines, answered_by};
use mesh::flight::{BATCH_ROWS, Description, FrameServer};
use mesh::to_status;
use proto::arrow::{indicator_batch, indicator_schema, metadata};
use proto::convert::FieldError;
use proto::wire::FrameTicket;
use proto::wire::frame_ticket::Frame;
use rollout::Subject;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::engine::{Answer, Indicators, Table};
use crate::query::Query;

#[derive(Debug)]
pub(crate) struct Frames {
    pub(crate) indicators: Arc<Indicators>,
    pub(crate) engines: Engines,
}

#[tonic::async_trait]
impl FrameServer for Frames {
    async fn get(&self, ticket: FrameTicket, metadata: &MetadataMap) -> Result<mesh::flight::Frames, Status> {
        let engine = self.engines.choose(Subject::Indicator, metadata)?;
        let query = parse(ticket)?;
        let answer = self.indicators.compute(engine, &query).await.map_err(|error| to_status(&error))?;
        let schema = schema_of(&query, answer.revision);
        let batches = stream::iter(batches(Arc::clone(&schema), answer)).boxed();
        let mut metadata = MetadataMap::new();
        answered_by(&mut metadata, engine);
        Ok(mesh::flight::Frames { schema, batches, metadata })
    }

    async fn schema(&self, ticket: FrameTicket) -> Result<SchemaRef, Status> {
        let query = parse(ticket)?;
        let revision = self.indicators.revision_of(&query).await.map_err(|error| to_status(&error))?;
        Ok(schema_of(&query, revision))
    }

    /// One part, pinned: columns are computed from the first candle on, whatever the range.
    async fn describe(&self, ticket: FrameTicket) -> Result<Description, Status> {
        let query = parse(ticket.clone())?;
        let revision = self.indicators.revision_of(&query).await.map_err(|error| to_status(&error))?;
        let mut part = ticket;
        if let (Some(Frame::Indicators(ticket)), true) = (&mut part.frame, revision > 0) {
            ticket.revision = Some(revision);
        }
        Ok(Description { schema: schema_of(&query, revision), rows: None, parts: vec![part] })
    }
}

fn parse(ticket: FrameTicket) -> Result<Query, Status> {
    let parsed = match ticket.frame {
        Some(Frame::Indicators(ticket)) => Query::try_from(ticket),
        Some(Frame::StoredCandles(_)) => Err(FieldError::new("frame", "stored_candles are served by ingestion").into()),
        Some(Frame::Candles(_)) => Err(FieldError::new("frame", "candles are served by aggregation").into()),
        None => Err(FieldError::new("frame", "is missing; accepted here: indicators").into()),
    };
    parsed.map_err(|error| to_status(&error))
}

fn schema_of(query: &Query, revision: u64) -> SchemaRef {
    let metadata = metadata(query.key.as_str(), query.timeframe.as_str(), revision);
    indicator_schema(&query.columns(), metadata)
}

/// Batches made one at a time as they are read. Each copies its rows: slices of one large array would be counted whole by the encoder
/// and split into tiny messages.
fn batches(schema: SchemaRef, answer: Answer) -> impl Iterator<Item = Result<RecordBatch, Status>> {
    let Table { open_time, columns, .. } = answer.table;
    (0..open_time.len()).step_by(BATCH_ROWS).map(move |start| {
        let rows = start..open_time.len().min(start + BATCH_ROWS);
        let part = |column: &Column| column.values[rows.clone()].to_vec();
        indicator_batch(&schema, open_time[rows.clone()].to_vec(), columns.iter().map(part).collect())
            .map_err(|error| Status::internal(error.to_string()))
    })
}

//! Candles as Arrow Flight frames: no limit on rows, batch after batch as they are folded.

use std::sync::Arc;

use arrow_schema::SchemaRef;
use futures::StreamExt;
use mesh::clock::now;
use mesh::engine::{Engines, answered_by};
use mesh::flight::{FrameServer, Frames};
use mesh::to_status;
use proto::arrow;
use proto::convert::FieldError;
use proto::wire::FrameTicket;
use proto::wire::frame_ticket::Frame;
use rollout::Subject;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::engine::{Aggregator, Error};
use crate::query::Query;

/// Serves tickets of candles.
#[derive(Debug)]
pub(crate) struct CandleFrames {
    pub(crate) aggregator: Arc<Aggregator>,
    pub(crate) engines: Engines,
}

fn schema(query: &Query, revision: u64) -> SchemaRef {
    arrow::bucket_schema(&query.columns(), arrow::metadata(query.key.as_str(), query.timeframe.as_str(), revision))
}

fn parse(ticket: FrameTicket) -> Result<Query, Status> {
    let parsed = match ticket.frame {
        Some(Frame::Candles(ticket)) => Query::try_from(ticket),
        _ => Err(FieldError::new("ticket", "aggregation serves candles; name them by 'candles'")),
    };
    parsed.map_err(|error| to_status(&error))
}

#[tonic::async_trait]
impl FrameServer for CandleFrames {
    #[tracing::instrument(skip_all, fields(instrument, timeframe))]
    async fn get(&self, ticket: FrameTicket, metadata: &MetadataMap) -> Result<Frames, Status> {
        let query = parse(ticket)?;
        let span = tracing::Span::current();
        span.record("instrument", query.key.as_str()).record("timeframe", query.timeframe.as_str());
        let engine = self.engines.choose(Subject::Aggregation, metadata)?;
        let opened = self.aggregator.open(engine, query.clone(), now(), None).await;
        let answer = opened.map_err(|error| to_status(&error))?;
        let schema = schema(&query, answer.revision());
        let batches = futures::stream::try_unfold((answer, Arc::clone(&schema)), |(mut answer, schema)| async move {
            let Some(batch) = answer.next().await.map_err(|error: Error| to_status(&error))? else { return Ok(None) };
            let batch = arrow::bucket_batch(&schema, &batch.buckets, batch.columns)
                .map_err(|error| Status::internal(error.to_string()))?;
            Ok(Some((batch, (answer, schema))))
        });
        let mut metadata = MetadataMap::new();
        answered_by(&mut metadata, engine);
        Ok(Frames { schema, batches: batches.boxed(), metadata })
    }

    async fn schema(&self, ticket: FrameTicket) -> Result<SchemaRef, Status> {
        let query = parse(ticket)?;
        let revision = self.aggregator.revision(&query).await.map_err(|error| to_status(&error))?;
        Ok(schema(&query, revision))
    }
}

//! Candles as Arrow Flight frames: no limit on rows, batch after batch as they are folded.

use std::sync::Arc;

use arrow_schema::SchemaRef;
use futures::StreamExt;
use market::{TimeRange, Timeframe};
use mesh::clock::now;
use mesh::engine::{Engines, answered_by};
use mesh::flight::{Description, FrameServer, Frames, time_parts};
use mesh::source::SourceCoverage;
use mesh::to_status;
use proto::arrow;
use proto::convert::{self, FieldError};
use proto::wire::frame_ticket::Frame;
use proto::wire::{CandlesTicket, FrameTicket};
use rollout::Subject;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::engine::{Aggregator, Error};
use crate::query::Query;

/// Least width of candles that are made of trading dates.
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Serves tickets of candles.
#[derive(Debug)]
pub(crate) struct CandleFrames {
    pub(crate) aggregator: Arc<Aggregator>,
    pub(crate) engines: Engines,
}

fn schema(query: &Query, revision: u64) -> SchemaRef {
    arrow::bucket_schema(&query.columns(), arrow::metadata(query.key.as_str(), query.timeframe.as_str(), revision))
}

/// Rows of the frame: a number where it is the stored one, and an estimate from above with the times they lie between.
///
/// Minutes of an instrument that is only stored as minutes are answered as they are. Anything else is counted by the sources that
/// may answer it, each as if it answered alone.
fn size(query: &Query, coverage: &[SourceCoverage]) -> (Option<u64>, u64, i64, i64) {
    let (range, timeframe) = (query.range, query.timeframe);
    let sources = || coverage.iter().filter(|held| timeframe.divisible_by(held.timeframe));
    let Some(first) = sources().map(|held| held.first_open_time).min() else { return (Some(0), 0, 0, 0) };
    let last = sources().map(|held| held.last_open_time).max().unwrap_or(first);
    let width = |timeframe: Timeframe| timeframe.width_ms().unwrap_or(DAY_MS);
    let folded =
        |held: &SourceCoverage| held.candle_count.div_ceil((width(timeframe) / width(held.timeframe)).max(1) as u64);
    let estimate = sources().map(folded).sum();
    let is_whole = range.start() <= first && last < range.end();
    let exact = match sources().collect::<Vec<_>>()[..] {
        [only] if only.timeframe == timeframe && timeframe == Timeframe::M1 && is_whole && !query.gap_fill => {
            Some(only.candle_count)
        }
        _ => None,
    };
    (exact, estimate, first, last)
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
            let batch = arrow::bucket_batch(&schema, batch.buckets, batch.columns)
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

    async fn describe(&self, ticket: FrameTicket) -> Result<Description, Status> {
        let query = parse(ticket.clone())?;
        let Some(Frame::Candles(written)) = ticket.frame else { return Err(Status::internal("a query of no candles")) };
        let refuse = |error: Error| to_status(&error);
        let revision = self.aggregator.revision(&query).await.map_err(refuse)?;
        let part = |range: Option<TimeRange>| {
            let range = range.map(convert::wire_range).or(written.range);
            // Before anything was stored there is no revision to pin.
            let revision = (revision > 0).then_some(revision);
            FrameTicket { frame: Some(Frame::Candles(CandlesTicket { range, revision, ..written.clone() })) }
        };
        let whole = |rows| Description { schema: schema(&query, revision), rows, parts: vec![part(None)] };
        // Indicators start at the first candle whatever the part, and a gap between two parts would be filled by neither.
        if !query.indicators.is_empty() || query.gap_fill {
            return Ok(whole(None));
        }
        let coverage = self.aggregator.master.coverage(&query.key).await.map_err(|fault| refuse(fault.into()))?;
        let (rows, estimate, first, last) = size(&query, &coverage);
        // The count is of the current revision: the one asked for only if that is it, and nothing was written meanwhile.
        let counted = query.revision.is_none() && self.aggregator.revision(&query).await.map_err(refuse)? == revision;
        let rows = rows.filter(|_| counted);
        let ranges = time_parts(query.range, estimate, first, last);
        match ranges.len() {
            0 | 1 => Ok(whole(rows)),
            _ => Ok(Description { parts: ranges.into_iter().map(|range| part(Some(range))).collect(), ..whole(rows) }),
        }
    }
}

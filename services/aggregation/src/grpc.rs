//! The gRPC service: parse, one call into the engine, render.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use market::Millis;
use mesh::clock::now;
use mesh::context::{RequestContext, resume};
use mesh::engine::{Engines, answered_by};
use mesh::{Drain, MAX_MESSAGE_BYTES, RemoteError, to_status};
use prost::Message;
use proto::aggregation::aggregation_service_server::AggregationService;
use proto::aggregation::batch_get_candles_response::Outcome;
use proto::aggregation::{
    BatchGetCandlesRequest, BatchGetCandlesResponse, DateGaps, GetCandlesRequest, GetCandlesResponse,
    GetMultiCandlesRequest, GetMultiCandlesResponse, ListGapsRequest, ListGapsResponse,
};
use proto::convert;
use proto::wire::ItemError;
use rollout::{Engine, Subject};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::engine::{Aggregator, Batch, Error, GapsQuery, GapsReport};
use crate::query::{self, Query};

/// The service's handlers.
#[derive(Debug)]
pub(crate) struct Handlers {
    pub(crate) aggregator: Arc<Aggregator>,
    pub(crate) engines: Engines,
    pub(crate) drain: Drain,
}

impl Handlers {
    fn choose(&self, metadata: &MetadataMap) -> Result<Engine, Status> {
        self.engines.choose(Subject::Aggregation, metadata)
    }
}

fn answered<T>(message: T, engine: Engine) -> Response<T> {
    let mut response = Response::new(message);
    answered_by(response.metadata_mut(), engine);
    response
}

#[tonic::async_trait]
impl AggregationService for Handlers {
    type BatchGetCandlesStream = BoxStream<'static, Result<BatchGetCandlesResponse, Status>>;

    #[tracing::instrument(skip_all, fields(instrument = request.get_ref().instrument_key))]
    async fn list_gaps(&self, request: Request<ListGapsRequest>) -> Result<Response<ListGapsResponse>, Status> {
        let query = GapsQuery::try_from(request.into_inner()).map_err(|error| to_status(&error))?;
        let report = self.aggregator.gaps(query, now()).await.map_err(|error| to_status(&error))?;
        Ok(Response::new(render_gaps(report)))
    }

    #[tracing::instrument(skip_all, fields(instrument = request.get_ref().instrument_key, timeframe = request.get_ref().timeframe, rows))]
    async fn get_candles(&self, request: Request<GetCandlesRequest>) -> Result<Response<GetCandlesResponse>, Status> {
        let engine = self.choose(request.metadata())?;
        let query = Query::try_from(request.into_inner()).map_err(|error| to_status(&error))?;
        let limit = self.aggregator.config.max_candles;
        let outcome = get(&self.aggregator, engine, query, now(), limit).await;
        let (message, _) = outcome.map_err(|error| to_status(&error))?;
        tracing::Span::current().record("rows", message.candles.len());
        Ok(answered(message, engine))
    }

    #[tracing::instrument(skip_all, fields(instrument = request.get_ref().instrument_key))]
    async fn get_multi_candles(
        &self,
        request: Request<GetMultiCandlesRequest>,
    ) -> Result<Response<GetMultiCandlesResponse>, Status> {
        let engine = self.choose(request.metadata())?;
        let queries = query::per_timeframe(request.into_inner()).map_err(|error| to_status(&error))?;
        let outcome = get_multi(&self.aggregator, engine, queries, now()).await;
        Ok(answered(outcome.map_err(|error| to_status(&error))?, engine))
    }

    #[tracing::instrument(skip_all, fields(instruments = request.get_ref().instrument_keys.len()))]
    async fn batch_get_candles(
        &self,
        request: Request<BatchGetCandlesRequest>,
    ) -> Result<Response<Self::BatchGetCandlesStream>, Status> {
        let engine = self.choose(request.metadata())?;
        let queries = query::per_instrument(request.into_inner()).map_err(|error| to_status(&error))?;
        let (now, context) = (now(), RequestContext::current());
        let aggregator = Arc::clone(&self.aggregator);
        let concurrency = aggregator.config.batch_concurrency.max(1);
        let items = futures::stream::iter(queries)
            .map(move |query| resume(context.clone(), item(Arc::clone(&aggregator), engine, query, now)))
            .buffer_unordered(concurrency);
        Ok(answered(self.drain.clone().cut(items.boxed()), engine))
    }
}

/// An answer as a message, and its size in bytes.
async fn get(
    aggregator: &Aggregator,
    engine: Engine,
    query: Query,
    now: Millis,
    limit: usize,
) -> Result<(GetCandlesResponse, usize), Error> {
    let (revision, batch) = aggregator.collect(engine, query.clone(), now, limit).await?;
    aggregator.pool.run(move || render(&query, revision, batch)).await?
}

/// All timeframes at one revision; the limits hold for all together.
async fn get_multi(
    aggregator: &Aggregator,
    engine: Engine,
    queries: Vec<Query>,
    now: Millis,
) -> Result<GetMultiCandlesResponse, Error> {
    let answers = aggregator.collect_all(engine, &queries, now, aggregator.config.max_candles).await?;
    let mut message = GetMultiCandlesResponse::default();
    let mut bytes = 0;
    for (query, (revision, batch)) in queries.into_iter().zip(answers) {
        let (answer, size) = aggregator.pool.run(move || render(&query, revision, batch)).await??;
        bytes += size;
        check_size(bytes)?;
        message.answers.push(answer);
    }
    Ok(message)
}

async fn item(aggregator: Arc<Aggregator>, engine: Engine, query: Query, now: Millis) -> BatchGetCandlesResponse {
    let instrument_key = query.key.to_string();
    let limit = aggregator.config.max_candles;
    let outcome = match get(&aggregator, engine, query, now, limit).await {
        Ok((answer, _)) => Outcome::Answer(answer),
        Err(error) => {
            let fault = RemoteError::from_status(&to_status(&error));
            Outcome::Error(ItemError { code: fault.code as i32, reason: fault.reason, message: fault.message })
        }
    };
    BatchGetCandlesResponse { instrument_key, outcome: Some(outcome) }
}

fn render(query: &Query, revision: u64, batch: Batch) -> Result<(GetCandlesResponse, usize), Error> {
    let names = query.columns();
    let message = GetCandlesResponse {
        instrument_key: query.key.to_string(),
        timeframe: query.timeframe.to_string(),
        revision,
        candles: convert::wire_bucket_candles(&batch.buckets),
        columns: names.iter().zip(batch.columns).map(|(name, values)| convert::wire_column(name, values)).collect(),
    };
    let bytes = message.encoded_len();
    check_size(bytes)?;
    Ok((message, bytes))
}

fn render_gaps(report: GapsReport) -> ListGapsResponse {
    let next = report.dates.last().filter(|_| report.has_more);
    let dates = report.dates.iter().map(|date| DateGaps {
        trading_date: market::format_date(date.date),
        expected_minutes: date.expected_minutes,
        present_minutes: date.present_minutes,
        gaps: date.gaps.iter().map(|gap| convert::wire_range(*gap)).collect(),
        is_cut: date.is_cut,
    });
    ListGapsResponse {
        dates: dates.collect(),
        next_page_token: next.map(|last| query::gaps_page_token(last.date, report.revision)).unwrap_or_default(),
        date_count: report.date_count,
        complete_date_count: report.complete_date_count,
        expected_minutes: report.expected_minutes,
        present_minutes: report.present_minutes,
        outside_minutes: report.outside_minutes,
        revision: report.revision,
        calendar: report.calendar,
        unverified_date_count: report.unverified_date_count,
    }
}

fn check_size(bytes: usize) -> Result<(), Error> {
    match bytes > MAX_MESSAGE_BYTES {
        true => Err(Error::MessageTooLarge { bytes, limit: MAX_MESSAGE_BYTES }),
        false => Ok(()),
    }
}

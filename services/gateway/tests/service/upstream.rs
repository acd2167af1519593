//! Stand-ins for the other roles: they record what reached them and answer with something recognisable.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use arrow_array::RecordBatch;
use futures::StreamExt;
use futures::stream::BoxStream;
use mesh::config::ServerConfig;
use mesh::engine::{Engines, answered_by};
use mesh::flight::{FrameServer, Frames};
use mesh::{Drain, Server, to_status};
use proto::aggregation::aggregation_service_server::{AggregationService, AggregationServiceServer};
use proto::aggregation::*;
use proto::convert::timestamp;
use proto::indicator::indicator_service_server::{IndicatorService, IndicatorServiceServer};
use proto::indicator::*;
use proto::wire::frame_ticket::Frame;
use proto::wire::{BucketCandle, FrameTicket, ItemError};
use rollout::Subject;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;
pub(super) type Stream<T> = BoxStream<'static, Result<T, Status>>;

/// A role that records the metadata of what it got.
#[derive(Debug, Clone)]
pub(crate) struct Fake {
    pub(crate) name: &'static str,
    pub(crate) engines: Engines,
    pub(crate) seen: Arc<Mutex<Vec<MetadataMap>>>,
}

impl Fake {
    pub(crate) fn new(name: &'static str) -> Fake {
        Fake { name, engines: Engines::BOTH, seen: Arc::default() }
    }

    fn record(&self, metadata: &MetadataMap) {
        self.seen.lock().unwrap().push(metadata.clone());
    }

    pub(crate) fn last(&self) -> MetadataMap {
        self.seen.lock().unwrap().last().expect("the upstream was called").clone()
    }

    pub(crate) fn answer<T>(&self, subject: Subject, metadata: &MetadataMap, message: T) -> Answer<T> {
        self.record(metadata);
        let mut response = Response::new(message);
        answered_by(response.metadata_mut(), self.engines.choose(subject, metadata)?);
        Ok(response)
    }

    /// Serves every service of this file plus ingestion's, on a port of its own.
    pub(crate) async fn serve(self, drain: &Drain) -> SocketAddr {
        let server = Server::bind(self.name, &ServerConfig::default()).await.unwrap();
        let address = server.address();
        let server = server
            .add_grpc(AggregationServiceServer::new(self.clone()))
            .add_grpc(IndicatorServiceServer::new(self.clone()))
            .add_grpc(super::ingestion::service(self.clone()))
            .add_grpc(super::sequence::service(self.clone()))
            .add_grpc(super::stream::service(self.clone()))
            .add_grpc(mesh::flight::service(Arc::new(self)));
        let drain = drain.clone();
        tokio::spawn(async move { server.serve(drain).await.unwrap() });
        address
    }
}

fn known(key: &str) -> Result<(), Status> {
    if key.ends_with("UNKNOWN") {
        #[derive(Debug, thiserror::Error)]
        #[error("instrument '{0}' is not known")]
        struct Unknown(String);
        impl mesh::Fault for Unknown {
            fn code(&self) -> tonic::Code {
                tonic::Code::NotFound
            }
            fn reason(&self) -> &'static str {
                "UNKNOWN_INSTRUMENT"
            }
        }
        return Err(to_status(&Unknown(key.to_owned())));
    }
    Ok(())
}

fn candle(minute: i64) -> BucketCandle {
    BucketCandle {
        open_time: Some(timestamp(1_471_319_100_000 + minute * 60_000)),
        open: 1.0,
        high: 2.0,
        low: 0.5,
        close: 1.25,
        volume: 10.0,
        open_interest: None,
        closed: true,
        complete: false,
        source_count: 4,
        expected_count: 5,
        trading_date: "2016-08-16".into(),
    }
}

pub(crate) fn candles(request: GetCandlesRequest) -> GetCandlesResponse {
    let columns = request.indicators.iter().map(|name| proto::convert::wire_column(name, vec![f64::NAN, 1.5]));
    GetCandlesResponse {
        columns: columns.collect(),
        instrument_key: request.instrument_key,
        timeframe: request.timeframe,
        revision: request.revision.unwrap_or(7),
        candles: vec![candle(0), candle(5)],
    }
}

#[tonic::async_trait]
impl AggregationService for Fake {
    type BatchGetCandlesStream = Stream<BatchGetCandlesResponse>;

    async fn list_gaps(
        &self,
        _request: Request<proto::aggregation::ListGapsRequest>,
    ) -> Answer<proto::aggregation::ListGapsResponse> {
        Err(Status::unimplemented("not yet"))
    }

    async fn get_candles(&self, request: Request<GetCandlesRequest>) -> Answer<GetCandlesResponse> {
        known(&request.get_ref().instrument_key)?;
        let metadata = request.metadata().clone();
        self.answer(Subject::Aggregation, &metadata, candles(request.into_inner()))
    }

    async fn get_multi_candles(&self, request: Request<GetMultiCandlesRequest>) -> Answer<GetMultiCandlesResponse> {
        let metadata = request.metadata().clone();
        let request = request.into_inner();
        let answers = request.timeframes.iter().map(|timeframe| {
            let (instrument_key, timeframe) = (request.instrument_key.clone(), timeframe.clone());
            candles(GetCandlesRequest { instrument_key, timeframe, ..Default::default() })
        });
        self.answer(Subject::Aggregation, &metadata, GetMultiCandlesResponse { answers: answers.collect() })
    }

    async fn batch_get_candles(&self, request: Request<BatchGetCandlesRequest>) -> Answer<Self::BatchGetCandlesStream> {
        let metadata = request.metadata().clone();
        let request = request.into_inner();
        // Completion comes in another order than asked.
        let items: Vec<_> = request
            .instrument_keys
            .into_iter()
            .rev()
            .map(|key| {
                let outcome = match known(&key) {
                    Ok(()) => batch_get_candles_response::Outcome::Answer(candles(GetCandlesRequest {
                        instrument_key: key.clone(),
                        timeframe: request.timeframe.clone(),
                        ..Default::default()
                    })),
                    Err(status) => batch_get_candles_response::Outcome::Error(ItemError {
                        code: 5,
                        reason: "UNKNOWN_INSTRUMENT".into(),
                        message: status.message().into(),
                    }),
                };
                Ok(BatchGetCandlesResponse { instrument_key: key, outcome: Some(outcome) })
            })
            .collect();
        self.answer(Subject::Aggregation, &metadata, futures::stream::iter(items).boxed())
    }
}

#[tonic::async_trait]
impl IndicatorService for Fake {
    type BatchComputeIndicatorsStream = Stream<BatchComputeIndicatorsResponse>;

    async fn compute_indicators(
        &self,
        request: Request<ComputeIndicatorsRequest>,
    ) -> Answer<ComputeIndicatorsResponse> {
        let metadata = request.metadata().clone();
        let request = request.into_inner();
        let columns = request.indicators.iter().map(|name| proto::convert::wire_column(name, vec![f64::NAN, 1.5]));
        let answer = ComputeIndicatorsResponse {
            columns: columns.collect(),
            instrument_key: request.instrument_key,
            timeframe: request.timeframe,
            revision: 7,
            open_time_ms: vec![1_471_319_100_000, 1_471_319_160_000],
            cached: true,
            compute_ms: 0.0,
            warm_ups: Vec::new(),
        };
        self.answer(Subject::Indicator, &metadata, answer)
    }

    async fn batch_compute_indicators(
        &self,
        _request: Request<BatchComputeIndicatorsRequest>,
    ) -> Answer<Self::BatchComputeIndicatorsStream> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn list_indicators(&self, request: Request<ListIndicatorsRequest>) -> Answer<ListIndicatorsResponse> {
        self.answer(Subject::Indicator, request.metadata(), ListIndicatorsResponse::default())
    }

    async fn audit_indicators(&self, request: Request<AuditIndicatorsRequest>) -> Answer<AuditIndicatorsResponse> {
        self.answer(Subject::Indicator, request.metadata(), AuditIndicatorsResponse::default())
    }

    async fn get_cache_statistics(
        &self,
        request: Request<GetCacheStatisticsRequest>,
    ) -> Answer<GetCacheStatisticsResponse> {
        self.answer(Subject::Indicator, request.metadata(), GetCacheStatisticsResponse::default())
    }

    async fn invalidate_cache(&self, request: Request<InvalidateCacheRequest>) -> Answer<InvalidateCacheResponse> {
        self.answer(Subject::Indicator, request.metadata(), InvalidateCacheResponse::default())
    }
}

#[tonic::async_trait]
impl FrameServer for Fake {
    async fn get(&self, ticket: FrameTicket, metadata: &MetadataMap) -> Result<Frames, Status> {
        self.record(metadata);
        let schema = self.schema(ticket).await?;
        let batch = proto::arrow::indicator_batch(&schema, vec![0, 60_000], vec![vec![f64::NAN, 1.5]]);
        let batch: RecordBatch = batch.map_err(|error| Status::internal(error.to_string()))?;
        let mut metadata = MetadataMap::new();
        metadata.insert("answered-by", self.name.parse().unwrap());
        Ok(Frames { schema, batches: futures::stream::iter([Ok(batch)]).boxed(), metadata })
    }

    async fn schema(&self, ticket: FrameTicket) -> Result<arrow_schema::SchemaRef, Status> {
        let kind = match ticket.frame {
            Some(Frame::StoredCandles(_)) => "stored_candles",
            Some(Frame::Candles(_)) => "candles",
            Some(Frame::Indicators(_)) => "indicators",
            None => "none",
        };
        let metadata = proto::arrow::metadata(self.name, kind, 1);
        Ok(proto::arrow::indicator_schema(&["sma:2".to_owned()], metadata))
    }

    async fn put(
        &self,
        mut stream: mesh::flight::PutStream,
    ) -> Result<BoxStream<'static, Result<arrow_flight::PutResult, Status>>, Status> {
        let mut results = Vec::new();
        while let Some(batch) = stream.batches.next().await {
            let batch = batch.map_err(mesh::flight::status_of)?;
            let app_metadata = bytes::Bytes::from(format!("{} {}", self.name, batch.num_rows()));
            results.push(Ok(arrow_flight::PutResult { app_metadata }));
        }
        Ok(futures::stream::iter(results).boxed())
    }
}

//! Ingestion's stand-in: stores nothing, counts, and refuses negative prices.

use futures::StreamExt;
use futures::stream::BoxStream;
use proto::convert::timestamp;
use proto::ingestion::ingestion_service_server::{IngestionService, IngestionServiceServer};
use proto::ingestion::*;
use proto::wire::ItemError;
use tonic::{Request, Response, Status, Streaming};

use super::upstream::Fake;

type Answer<T> = Result<Response<T>, Status>;

pub(crate) fn service(fake: Fake) -> IngestionServiceServer<Fake> {
    IngestionServiceServer::new(fake)
}

fn outcome(batch: CandleBatch) -> BatchOutcome {
    let bad = batch.candles.iter().enumerate().filter(|(_, candle)| candle.low < 0.0);
    let rejected: Vec<_> =
        bad.map(|(row, _)| RejectedRow { row: row as u64, reason: "low: is negative".into() }).collect();
    BatchOutcome { stored: (batch.candles.len() - rejected.len()) as u64, unchanged: 0, rejected, revision: 9 }
}

fn none<T>() -> Answer<T> {
    Err(Status::unimplemented("not in this test"))
}

#[tonic::async_trait]
impl IngestionService for Fake {
    type StreamCandlesStream = BoxStream<'static, Result<StreamCandlesResponse, Status>>;

    async fn put_candles(&self, request: Request<PutCandlesRequest>) -> Answer<PutCandlesResponse> {
        let outcome = outcome(request.into_inner().batch.unwrap_or_default());
        Ok(Response::new(PutCandlesResponse { outcome: Some(outcome) }))
    }

    /// Acknowledges each batch before it looks at the next, so that a proxy that buffers would hang.
    async fn stream_candles(
        &self,
        request: Request<Streaming<StreamCandlesRequest>>,
    ) -> Answer<Self::StreamCandlesStream> {
        let answers = request.into_inner().map(|message| {
            let StreamCandlesRequest { sequence, batch } = message?;
            Ok(StreamCandlesResponse { sequence, outcome: batch.map(outcome) })
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn get_quotes(&self, request: Request<GetQuotesRequest>) -> Answer<GetQuotesResponse> {
        let outcomes = request.into_inner().instrument_keys.into_iter().map(|instrument_key| {
            let outcome = if instrument_key.ends_with("UNKNOWN") {
                let message = format!("instrument '{instrument_key}' is not known");
                quote_outcome::Outcome::Error(ItemError { code: 5, reason: "UNKNOWN_INSTRUMENT".into(), message })
            } else {
                let time = Some(timestamp(1_471_319_100_000));
                quote_outcome::Outcome::Quote(Quote { last_price: 1.25, time, ..Default::default() })
            };
            QuoteOutcome { instrument_key, outcome: Some(outcome) }
        });
        Ok(Response::new(GetQuotesResponse { outcomes: outcomes.collect() }))
    }

    async fn put_candle_batches(&self, _request: Request<PutCandleBatchesRequest>) -> Answer<PutCandleBatchesResponse> {
        none()
    }

    async fn put_corporate_actions(
        &self,
        _request: Request<PutCorporateActionsRequest>,
    ) -> Answer<PutCorporateActionsResponse> {
        none()
    }

    async fn list_corporate_actions(
        &self,
        _request: Request<ListCorporateActionsRequest>,
    ) -> Answer<ListCorporateActionsResponse> {
        none()
    }

    async fn delete_corporate_action(
        &self,
        _request: Request<DeleteCorporateActionRequest>,
    ) -> Answer<DeleteCorporateActionResponse> {
        none()
    }

    async fn put_instrument(&self, _request: Request<PutInstrumentRequest>) -> Answer<PutInstrumentResponse> {
        none()
    }

    async fn get_instrument(&self, _request: Request<GetInstrumentRequest>) -> Answer<GetInstrumentResponse> {
        none()
    }

    async fn list_instruments(&self, _request: Request<ListInstrumentsRequest>) -> Answer<ListInstrumentsResponse> {
        none()
    }

    async fn put_group(&self, _request: Request<PutGroupRequest>) -> Answer<PutGroupResponse> {
        none()
    }

    async fn get_group(&self, _request: Request<GetGroupRequest>) -> Answer<GetGroupResponse> {
        none()
    }

    async fn list_groups(&self, _request: Request<ListGroupsRequest>) -> Answer<ListGroupsResponse> {
        none()
    }

    async fn delete_group(&self, _request: Request<DeleteGroupRequest>) -> Answer<DeleteGroupResponse> {
        none()
    }

    async fn get_coverage(&self, _request: Request<GetCoverageRequest>) -> Answer<GetCoverageResponse> {
        none()
    }

    async fn get_first_change(&self, _request: Request<GetFirstChangeRequest>) -> Answer<GetFirstChangeResponse> {
        none()
    }

    async fn get_revisions(&self, _request: Request<GetRevisionsRequest>) -> Answer<GetRevisionsResponse> {
        none()
    }
}

//! Sequence's stand-in: one row that passes, one that does not.

use proto::convert::timestamp;
use proto::sequence::sequence_service_server::{SequenceService, SequenceServiceServer};
use proto::sequence::*;
use rollout::Subject;
use tonic::{Request, Response, Status};

use super::upstream::Fake;

type Answer<T> = Result<Response<T>, Status>;

pub(crate) fn service(fake: Fake) -> SequenceServiceServer<Fake> {
    SequenceServiceServer::new(fake)
}

fn row() -> ScreenRow {
    ScreenRow {
        instrument_key: "US|A".into(),
        last_close: 10.0,
        mean_volume: 1e6,
        ema_distance_percent: 4.0,
        rsi: 61.0,
        strong_move_count: 8,
        strength: 0.5,
    }
}

fn none<T>() -> Answer<T> {
    Err(Status::unimplemented("not in this test"))
}

#[tonic::async_trait]
impl SequenceService for Fake {
    async fn run_filter_pipeline(
        &self,
        request: Request<RunFilterPipelineRequest>,
    ) -> Answer<RunFilterPipelineResponse> {
        let metadata = request.metadata().clone();
        let RunFilterPipelineRequest { date, stages, .. } = request.into_inner();
        let stage = || "basic".to_owned();
        let rejected =
            ScreenRejection { instrument_key: "US|B".into(), stage: stage(), reason: stages.join(","), value: 1.0 };
        let duration = Some(prost_types::Duration { seconds: 0, nanos: 1_500_000 });
        let metrics =
            StageMetrics { stage: stage(), processed: 2, passed: 1, failed: 1, duration, ..Default::default() };
        let answer = RunFilterPipelineResponse {
            date,
            bullish: vec![row()],
            bearish: Vec::new(),
            rejected: vec![rejected],
            metrics: vec![metrics],
        };
        self.answer(Subject::Sequence, &metadata, answer)
    }

    async fn get_top_screened(&self, request: Request<GetTopScreenedRequest>) -> Answer<GetTopScreenedResponse> {
        let metadata = request.metadata().clone();
        let answer = GetTopScreenedResponse { date: request.into_inner().date, rows: vec![row()] };
        self.answer(Subject::Sequence, &metadata, answer)
    }

    async fn execute_group(&self, request: Request<ExecuteGroupRequest>) -> Answer<ExecuteGroupResponse> {
        let metadata = request.metadata().clone();
        let ExecuteGroupRequest { group_id, dry_run, idempotency_key, .. } = request.into_inner();
        let intent = TradeIntent {
            intent_id: "1".into(),
            group_id: group_id.clone(),
            instrument_key: "US|A".into(),
            side: Side::Buy as i32,
            entry: 10.0,
            stop: 9.0,
            target: 12.0,
            quantity: 5.0,
            reason: format!("{idempotency_key} {dry_run}"),
            create_time: Some(timestamp(1_471_319_100_000)),
        };
        let skipped = vec![SkippedInstrument { instrument_key: "US|B".into(), reason: "basic".into() }];
        let answer = ExecuteGroupResponse { group_id, intents: vec![intent], skipped };
        self.answer(Subject::Sequence, &metadata, answer)
    }

    async fn analyze_sequences(&self, _request: Request<AnalyzeSequencesRequest>) -> Answer<AnalyzeSequencesResponse> {
        none()
    }

    async fn list_analyses(&self, _request: Request<ListAnalysesRequest>) -> Answer<ListAnalysesResponse> {
        none()
    }

    async fn get_trend(&self, _request: Request<GetTrendRequest>) -> Answer<GetTrendResponse> {
        none()
    }

    async fn get_volatility(&self, _request: Request<GetVolatilityRequest>) -> Answer<GetVolatilityResponse> {
        none()
    }

    async fn get_bollinger_width(
        &self,
        _request: Request<GetBollingerWidthRequest>,
    ) -> Answer<GetBollingerWidthResponse> {
        none()
    }

    async fn list_trade_intents(&self, _request: Request<ListTradeIntentsRequest>) -> Answer<ListTradeIntentsResponse> {
        none()
    }
}

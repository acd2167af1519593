//! The RPCs: parse, one call into an engine, render. The wall clock is read here and nowhere else.

use std::sync::Arc;

use mesh::clock::now;
use mesh::engine::{Engines, answered_by};
use mesh::to_status;
use proto::sequence::sequence_service_server::SequenceService;
use proto::sequence::{
    AnalyzeSequencesRequest, AnalyzeSequencesResponse, ExecuteGroupRequest, ExecuteGroupResponse,
    GetBollingerWidthRequest, GetBollingerWidthResponse, GetTopScreenedRequest, GetTopScreenedResponse,
    GetTrendRequest, GetTrendResponse, GetVolatilityRequest, GetVolatilityResponse, ListAnalysesRequest,
    ListAnalysesResponse, ListTradeIntentsRequest, ListTradeIntentsResponse, RunFilterPipelineRequest,
    RunFilterPipelineResponse,
};
use rollout::Subject;
use tonic::{Request, Response, Status};

use crate::engine::{Analyses, Error};
use crate::group::Groups;
use crate::history::Histories;
use crate::measure::Measures;
use crate::pipeline::Pipeline;
use crate::query::{AnalysisQuery, Moment, ScreenQuery};
use crate::{Config, Ports, render};

#[derive(Debug)]
pub(crate) struct Service {
    engines: Engines,
    analyses: Analyses,
    measures: Measures,
    pipeline: Arc<Pipeline>,
    groups: Groups,
}

impl Service {
    pub(crate) fn new(config: &Config, ports: &Ports) -> Self {
        let histories = Histories::new(config, ports);
        let pipeline = Arc::new(Pipeline::new(histories.clone(), config, ports));
        Self {
            engines: ports.engines,
            analyses: Analyses::new(histories.clone(), ports),
            measures: Measures::new(histories, ports),
            groups: Groups::new(Arc::clone(&pipeline), config, ports),
            pipeline,
        }
    }
}

#[tonic::async_trait]
impl SequenceService for Service {
    async fn analyze_sequences(
        &self,
        request: Request<AnalyzeSequencesRequest>,
    ) -> Result<Response<AnalyzeSequencesResponse>, Status> {
        let engine = self.engines.choose(Subject::Sequence, request.metadata())?;
        let query: AnalysisQuery = parse(request)?;
        let answer = self.analyses.analyze(engine, &query, now()).await;
        let mut response = respond(answer.and_then(|answer| render::analyzed(&query, answer)))?;
        answered_by(response.metadata_mut(), engine);
        Ok(response)
    }

    async fn list_analyses(
        &self,
        request: Request<ListAnalysesRequest>,
    ) -> Result<Response<ListAnalysesResponse>, Status> {
        respond(self.analyses.list(&parse(request)?).await.and_then(render::kept))
    }

    async fn get_trend(&self, request: Request<GetTrendRequest>) -> Result<Response<GetTrendResponse>, Status> {
        respond(self.measures.trend(&parse(request)?).await.map(render::trend))
    }

    async fn get_volatility(
        &self,
        request: Request<GetVolatilityRequest>,
    ) -> Result<Response<GetVolatilityResponse>, Status> {
        respond(self.measures.volatility(&parse(request)?).await.map(render::volatility))
    }

    async fn get_bollinger_width(
        &self,
        request: Request<GetBollingerWidthRequest>,
    ) -> Result<Response<GetBollingerWidthResponse>, Status> {
        let moment: Moment = parse(request)?;
        respond(self.measures.width(&moment).await.map(render::width))
    }

    async fn run_filter_pipeline(
        &self,
        request: Request<RunFilterPipelineRequest>,
    ) -> Result<Response<RunFilterPipelineResponse>, Status> {
        let query: ScreenQuery = parse(request)?;
        respond(self.pipeline.run(&query).await.and_then(render::screened))
    }

    async fn get_top_screened(
        &self,
        request: Request<GetTopScreenedRequest>,
    ) -> Result<Response<GetTopScreenedResponse>, Status> {
        let query: ScreenQuery = parse(request)?;
        respond(self.pipeline.top(&query).await.map(render::top))
    }

    async fn execute_group(
        &self,
        request: Request<ExecuteGroupRequest>,
    ) -> Result<Response<ExecuteGroupResponse>, Status> {
        respond(self.groups.execute(&parse(request)?, now()).await.map(render::executed))
    }

    async fn list_trade_intents(
        &self,
        request: Request<ListTradeIntentsRequest>,
    ) -> Result<Response<ListTradeIntentsResponse>, Status> {
        respond(self.groups.list(&parse(request)?).await.map(render::intents))
    }
}

fn parse<R, Q: TryFrom<R, Error = Error>>(request: Request<R>) -> Result<Q, Status> {
    Q::try_from(request.into_inner()).map_err(|error| to_status(&error))
}

fn respond<M>(answer: Result<M, Error>) -> Result<Response<M>, Status> {
    answer.map(Response::new).map_err(|error| to_status(&error))
}

//! The RPC: parse, one call, cut by the drain.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use mesh::{Drain, to_status};
use proto::indicator::live_service_server::LiveService;
use proto::indicator::{WatchIndicatorsRequest, WatchIndicatorsResponse};
use tonic::{Request, Response, Status};

use super::{Live, Subscription};

/// Serves `candlemesh.indicator.v1.LiveService`.
#[derive(Debug)]
pub(crate) struct LiveServer {
    pub(crate) live: Arc<Live>,
    pub(crate) drain: Drain,
}

#[tonic::async_trait]
impl LiveService for LiveServer {
    type WatchIndicatorsStream = BoxStream<'static, Result<WatchIndicatorsResponse, Status>>;

    async fn watch_indicators(
        &self,
        request: Request<WatchIndicatorsRequest>,
    ) -> Result<Response<Self::WatchIndicatorsStream>, Status> {
        let subscription = Subscription::try_from(request.into_inner()).map_err(|error| to_status(&error))?;
        let messages = self.live.watch(subscription).await.map_err(|error| to_status(&error))?;
        Ok(Response::new(self.drain.clone().cut(messages).map(Result::flatten).boxed()))
    }
}

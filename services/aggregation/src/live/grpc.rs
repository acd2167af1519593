//! LiveService over messages that are encoded already: the generated server would encode them again for each subscriber.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use mesh::{Drain, to_status};
use prost::Message;
use proto::aggregation::WatchCandlesRequest;
use proto::aggregation::live_service_server::SERVICE_NAME;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::{Request, Response, Status};

use super::{Live, Subscription};

/// The only method there is.
const WATCH_CANDLES: &str = "/candlemesh.aggregation.v1.LiveService/WatchCandles";

/// Serves `candlemesh.aggregation.v1.LiveService`.
#[derive(Debug, Clone)]
pub(crate) struct LiveServer {
    pub(crate) live: Arc<Live>,
    pub(crate) drain: Drain,
}

impl NamedService for LiveServer {
    const NAME: &'static str = SERVICE_NAME;
}

impl tower::Service<http::Request<Body>> for LiveServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != WATCH_CANDLES {
                return Ok(Status::unimplemented("LiveService has no such method").into_http());
            }
            Ok(Grpc::new(Encoded).server_streaming(service, request).await)
        })
    }
}

impl ServerStreamingService<WatchCandlesRequest> for LiveServer {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Result<Bytes, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<WatchCandlesRequest>) -> Self::Future {
        let LiveServer { live, drain } = self.clone();
        Box::pin(async move {
            let subscription = Subscription::try_from(request.into_inner()).map_err(|error| to_status(&error))?;
            let messages = live.watch(subscription).await.map_err(|error| to_status(&error))?;
            Ok(Response::new(drain.cut(messages).map(Result::flatten).boxed()))
        })
    }
}

/// Requests are decoded, answers are bytes.
#[derive(Debug, Clone, Copy)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = WatchCandlesRequest;
    type Encoder = Encoded;
    type Decoder = Encoded;

    fn encoder(&mut self) -> Encoded {
        Encoded
    }

    fn decoder(&mut self) -> Encoded {
        Encoded
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put(item);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = WatchCandlesRequest;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<WatchCandlesRequest>, Status> {
        let decoded = WatchCandlesRequest::decode(source);
        decoded.map(Some).map_err(|error| Status::invalid_argument(format!("request: {error}")))
    }
}

//! Every RPC as `POST /api/v1/rpc/{service}/{method}`: protobuf JSON in, protobuf JSON out, by descriptor.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::{Buf, BufMut};
use futures::StreamExt;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use mesh::context::RequestContext;
use mesh::{ENGINE_HEADER, MAX_MESSAGE_BYTES};
use prost_reflect::MessageDescriptor;
use proto::gateway::flag_service_server::FlagServiceServer;
use proto::gateway::rollout_service_server::RolloutServiceServer;
use rollout::Engine;
use tonic::client::{Grpc, GrpcService};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status, Streaming};

use super::call::{self, Call, name_engine};
use super::problem::{self, Problem};
use super::{PathOf, Shared};
use crate::auth::API_KEY_HEADER;
use crate::grpc::Admin;
use crate::method::{Method, Role};

/// `POST /api/v1/rpc/{service}/{method}`
pub(super) async fn call(
    State(gateway): Shared,
    headers: HeaderMap,
    path: PathOf<(String, String)>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let Path((service, name)) = path.map_err(|rejection| problem::path(&rejection))?;
    let method = Method::find(&format!("/{service}/{name}")).ok_or_else(|| unknown(&service, &name))?;
    gateway.admit(&headers, method.access, &method.path())?;
    if method.descriptor.is_client_streaming() {
        let detail = format!("{name} takes a stream, which plain JSON cannot carry; call it with gRPC on this address");
        return Err(Problem::http(StatusCode::NOT_IMPLEMENTED, "NEEDS_GRPC", detail));
    }
    let body = call::bytes(&gateway, body)?;
    let json: &[u8] = if body.is_empty() { b"{}" } else { &body };
    let message = proto::json::encode(method.descriptor.input(), json)?;
    let key = method.targeting_key(&message);
    let needed = method.access_of(&message);
    let call = Call::admit(Arc::clone(&gateway), &headers, needed, &method.path(), key.as_deref())?;
    let answer = send(&call, &method, &headers, Bytes::from(message)).await?;
    let said = answer.metadata().get(ENGINE_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
    let engine: Option<Engine> = method.role.subject().map(|_| said.unwrap_or(call.engine(method.role)));
    let mut response = match method.descriptor.is_server_streaming() {
        true => lines(method.descriptor.output(), answer.into_inner()),
        false => single(&call, &method, answer.into_inner()).await?,
    };
    name_engine(&mut response, engine);
    Ok(response)
}

fn unknown(service: &str, method: &str) -> Problem {
    let shown: String = format!("{service}/{method}").chars().take(128).collect();
    let detail = format!("there is no method {shown}; see /openapi.json for those there are");
    Problem::http(StatusCode::NOT_FOUND, "UNKNOWN_METHOD", detail)
}

type Answer = tonic::Response<Streaming<Bytes>>;

async fn send(call: &Call, method: &Method, headers: &HeaderMap, message: Bytes) -> Result<Answer, Problem> {
    let mut request = Request::new(message);
    if method.role != Role::Gateway {
        let channel = call.upstream(method.role)?.forwarding();
        return call.run(method.role, stream(channel, request, method)).await;
    }
    // Our own services look for the caller themselves.
    for name in [header::AUTHORIZATION.as_str(), API_KEY_HEADER, ENGINE_HEADER] {
        if let Some(value) = headers.get(name) {
            request.metadata_mut().as_mut().insert(name, value.clone());
        }
    }
    let admin = Admin::new(Arc::clone(&call.gateway));
    let answer = match method.descriptor.parent_service().name() {
        "FlagService" => stream(FlagServiceServer::new(admin), request, method).await,
        _ => stream(RolloutServiceServer::new(admin), request, method).await,
    };
    answer.map_err(|status| Problem::status(&status))
}

/// A unary answer is a stream of one, so that one way serves both.
async fn stream<T>(service: T, request: Request<Bytes>, method: &Method) -> Result<Answer, Status>
where
    T: GrpcService<tonic::body::Body>,
    T::ResponseBody: http_body_util::BodyExt<Data = Bytes> + Send + 'static,
    <T::ResponseBody as axum::body::HttpBody>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = PathAndQuery::try_from(method.path()).map_err(|error| Status::internal(error.to_string()))?;
    let mut client = Grpc::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES);
    client.ready().await.map_err(|error| Status::from_error(error.into()))?;
    client.server_streaming(request, path, Raw).await
}

async fn single(call: &Call, method: &Method, mut answer: Streaming<Bytes>) -> Result<Response, Problem> {
    let received = match call.upstream(method.role) {
        Ok(upstream) => answer.message().await.map_err(|status| Problem::upstream(upstream, &status))?,
        Err(_) => answer.message().await.map_err(|status| Problem::status(&status))?,
    };
    let message = received.ok_or_else(|| Problem::status(&Status::internal("the upstream answered nothing")))?;
    let output = method.descriptor.output();
    let text = call.gateway.pool.run(move || render(output, &message)).await??;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response())
}

fn render(descriptor: MessageDescriptor, message: &[u8]) -> Result<String, Problem> {
    let value = proto::json::decode(descriptor, message).map_err(|error| {
        Problem::status(&Status::internal(format!("upstream answered a malformed message: {error}")))
    })?;
    Ok(value.to_string())
}

/// One JSON object per line; a failure midway is a last line `{"error": problem}`.
fn lines(descriptor: MessageDescriptor, answer: Streaming<Bytes>) -> Response {
    let context = RequestContext::current();
    let lines = answer.then(move |item| {
        let (descriptor, context) = (descriptor.clone(), context.clone());
        async move {
            let item = item.map_err(|status| Problem::status(&status)).and_then(|bytes| render(descriptor, &bytes));
            let text = match (item, context) {
                (Ok(text), _) => text,
                (Err(problem), Some(context)) => context.scope(async { failed(problem) }).await,
                (Err(problem), None) => failed(problem),
            };
            Ok::<_, std::convert::Infallible>(text + "\n")
        }
    });
    let kind = HeaderValue::from_static("application/x-ndjson");
    ([(header::CONTENT_TYPE, kind)], Body::from_stream(lines)).into_response()
}

fn failed(problem: Problem) -> String {
    serde_json::json!({"error": problem.body()}).to_string()
}

/// Messages as the bytes they are.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = source.remaining();
        Ok(Some(source.copy_to_bytes(length)))
    }
}

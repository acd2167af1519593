//! gRPC and Flight for other roles: passed through as bytes, in both directions, with the request's context added.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use futures::TryFutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body::{Body as HttpBody, Frame as BodyFrame, SizeHint};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use mesh::client::ForwardContext;
use mesh::{DECISIONS_HEADER, ENGINE_HEADER, Fault, MAX_MESSAGE_BYTES, REQUEST_ID_HEADER, to_status};
use prost::Message;
use proto::wire::FrameTicket;
use proto::wire::frame_ticket::Frame;
use rollout::Decisions;
use tonic::service::Interceptor;
use tonic::{Code, Status};
use tower::ServiceExt;

use crate::auth::API_KEY_HEADER;
use crate::gateway::{Gateway, carrying, count};
use crate::method::{Access, Method, Role, framed, normalised};
use crate::upstream::Upstream;

const FLIGHT_PREFIX: &str = "/arrow.flight.protocol.FlightService/";
/// Headers of one connection, of this gateway's own callers, or written anew.
const NOT_FORWARDED: [HeaderName; 14] = [
    header::CONNECTION,
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
    header::PROXY_AUTHORIZATION,
    header::AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static(API_KEY_HEADER),
    HeaderName::from_static(ENGINE_HEADER),
    HeaderName::from_static(DECISIONS_HEADER),
    HeaderName::from_static(REQUEST_ID_HEADER),
    HeaderName::from_static(TIMEOUT_HEADER),
];
const TIMEOUT_HEADER: &str = "grpc-timeout";

/// Why a call did not pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("'{0}' is no method of this mesh; server reflection lists those there are")]
    UnknownMethod(String),
    #[error("the request is larger than {MAX_MESSAGE_BYTES} bytes, the limit of a message; use Arrow Flight for bulk")]
    TooLarge,
    #[error(
        "the answer is larger than {MAX_MESSAGE_BYTES} bytes; ask for less, or use gRPC or Arrow Flight, which stream it"
    )]
    AnswerTooLarge,
    #[error("the request broke off: {0}")]
    BrokenOff(String),
    #[error("{0} broke off its answer; what it has acknowledged is kept, and the rest can be sent again")]
    AnswerBrokenOff(&'static str),
    #[error("{name} is not reachable at {address}: start it, or correct upstreams.{name} of the gateway")]
    Unreachable { name: &'static str, address: String },
}

impl Error {
    pub(crate) fn unreachable(upstream: &Upstream) -> Error {
        Error::Unreachable { name: upstream.name, address: upstream.address.clone() }
    }
}

impl Fault for Error {
    fn code(&self) -> Code {
        match self {
            Error::UnknownMethod(_) => Code::Unimplemented,
            Error::TooLarge | Error::AnswerTooLarge => Code::ResourceExhausted,
            Error::BrokenOff(_) => Code::Cancelled,
            Error::Unreachable { .. } | Error::AnswerBrokenOff(_) => Code::Unavailable,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Error::UnknownMethod(_) => "UNKNOWN_METHOD",
            Error::TooLarge => "MESSAGE_TOO_LARGE",
            Error::AnswerTooLarge => "ANSWER_TOO_LARGE",
            Error::BrokenOff(_) => "REQUEST_BROKEN_OFF",
            Error::AnswerBrokenOff(_) => "UPSTREAM_BROKE_OFF",
            Error::Unreachable { .. } => "UPSTREAM_UNREACHABLE",
        }
    }
}

/// Answers any gRPC path that is not the gateway's own.
pub(crate) async fn serve(gateway: &Gateway, request: Request) -> Response {
    match forward(gateway, request).await {
        Ok(response) => response,
        Err(status) => status.into_http(),
    }
}

/// A request that knows where it goes.
struct Routed {
    role: Role,
    access: Access,
    key: Option<String>,
    body: Body,
}

async fn forward(gateway: &Gateway, request: Request) -> Result<Response, Status> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path();
    let target =
        Target::find(path).ok_or_else(|| to_status(&Error::UnknownMethod(path.chars().take(128).collect())))?;
    let admitted = gateway.admit(&parts.headers, target.access(), path).map_err(|refusal| to_status(&refusal))?;
    let Routed { role, access, key, body } = target.route(body).await?;
    admitted.caller.require(access, path).map_err(|refusal| to_status(&refusal))?;
    let decisions = gateway.decide(&admitted, key.as_deref());
    let engine = count(&decisions, role);
    let upstream =
        gateway.upstreams.of(role, engine).ok_or_else(|| to_status(&Error::UnknownMethod(path.to_owned())))?;
    parts.headers = inward(parts.headers, &decisions).await?;
    let mut request = http::Request::from_parts(parts, tonic::body::Body::new(body));
    *request.version_mut() = http::Version::HTTP_2;
    let sent = upstream.channel.clone().oneshot(request).map_err(|error| refused(upstream, error));
    let mut response = sent.await?.map(|body| Body::new(Relayed { body, name: upstream.name }));
    if role.subject().is_some() {
        let name = HeaderValue::from_static(engine.as_str());
        response.headers_mut().entry(ENGINE_HEADER).or_insert(name);
    }
    Ok(response)
}

/// What a path asks for.
enum Target {
    Method(Method),
    /// A Flight call whose request names the frame: DoGet by ticket, the others by descriptor.
    Ticket,
    Descriptor,
    /// Any other Flight call; ingestion answers.
    Flight(Access),
}

impl Target {
    fn find(path: &str) -> Option<Target> {
        Some(match path.strip_prefix(FLIGHT_PREFIX) {
            None => Target::Method(Method::find(path)?),
            Some("DoGet") => Target::Ticket,
            Some("GetFlightInfo" | "GetSchema" | "PollFlightInfo") => Target::Descriptor,
            Some("ListFlights" | "ListActions" | "Handshake") => Target::Flight(Access::Reader),
            Some("DoPut" | "DoAction" | "DoExchange") => Target::Flight(Access::Writer),
            Some(_) => return None,
        })
    }

    fn access(&self) -> Access {
        match self {
            Target::Method(method) => method.access,
            Target::Ticket | Target::Descriptor => Access::Reader,
            Target::Flight(access) => *access,
        }
    }

    /// Reads the request as far as the choice of role and engine needs it; everything else stays a stream.
    async fn route(self, body: Body) -> Result<Routed, Status> {
        match self {
            Target::Flight(access) => Ok(Routed { role: Role::Ingestion, access, key: None, body }),
            Target::Method(method) if method.role.subject().is_none() => {
                Ok(Routed { role: method.role, access: method.access, key: None, body })
            }
            Target::Method(method) => {
                let bytes = buffered(body).await?;
                // What is not one plain message is for the service to refuse.
                let message = framed(&bytes).unwrap_or_default();
                let (access, key) = (method.access_of(message), method.targeting_key(message));
                Ok(Routed { role: method.role, access, key, body: Body::from(bytes) })
            }
            Target::Ticket => {
                let bytes = buffered(body).await?;
                let ticket = decode::<arrow_flight::Ticket>(&bytes)?.ticket;
                Ok(by_ticket(&mesh::flight::parse_ticket(&ticket)?, bytes))
            }
            Target::Descriptor => {
                let bytes = buffered(body).await?;
                let descriptor = decode::<arrow_flight::FlightDescriptor>(&bytes)?;
                Ok(by_ticket(&mesh::flight::ticket_of(&descriptor)?, bytes))
            }
        }
    }
}

async fn buffered(body: Body) -> Result<Bytes, Status> {
    // Five bytes of frame header come before the message.
    let collected = Limited::new(body, MAX_MESSAGE_BYTES + 5).collect().await;
    collected.map(|collected| collected.to_bytes()).map_err(|error| {
        let too_large = error.downcast_ref::<LengthLimitError>().is_some();
        to_status(&if too_large { Error::TooLarge } else { Error::BrokenOff(error.to_string()) })
    })
}

fn decode<M: Message + Default>(body: &[u8]) -> Result<M, Status> {
    let message =
        framed(body).ok_or_else(|| Status::invalid_argument("the request is not one uncompressed message"))?;
    M::decode(message).map_err(|error| Status::invalid_argument(format!("request: {error}")))
}

fn by_ticket(ticket: &FrameTicket, body: Bytes) -> Routed {
    let (role, key) = match &ticket.frame {
        Some(Frame::Candles(candles)) => (Role::Aggregation, Some(normalised(&candles.instrument_key))),
        Some(Frame::Indicators(indicators)) => (Role::Indicator, Some(normalised(&indicators.instrument_key))),
        Some(Frame::StoredCandles(_)) | None => (Role::Ingestion, None),
    };
    Routed { role, access: Access::Reader, key, body: Body::from(body) }
}

/// The headers for the upstream: the caller's, less what is not its business, with context and decisions.
async fn inward(mut headers: HeaderMap, decisions: &Decisions) -> Result<HeaderMap, Status> {
    let bounded = headers.contains_key(TIMEOUT_HEADER);
    for name in connection_headers(&headers).into_iter().chain(NOT_FORWARDED) {
        headers.remove(name);
    }
    let context = carrying(decisions, async { ForwardContext.call(tonic::Request::new(())) }).await?;
    for (name, value) in context.metadata().as_ref() {
        headers.insert(name.clone(), value.clone());
    }
    if !bounded {
        // A stream without a deadline lives as long as its client; the gateway watches that.
        headers.remove(TIMEOUT_HEADER);
    }
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    Ok(headers)
}

/// Headers that `connection` declares to be of one connection.
fn connection_headers(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect()
}

/// A call the transport could not make: the upstream is away, or the deadline passed.
fn refused(upstream: &Upstream, error: tonic::transport::Error) -> Status {
    let status = Status::from_error(Box::new(error));
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded => Status::deadline_exceeded("the deadline passed"),
        _ => {
            tracing::warn!(upstream = upstream.name, error = %mesh::fault::chain(&status), "upstream is not reachable");
            to_status(&Error::unreachable(upstream))
        }
    }
}

/// An answer on its way out. Where the upstream breaks off, the caller gets a status instead of a torn connection.
struct Relayed {
    body: tonic::body::Body,
    name: &'static str,
}

impl HttpBody for Relayed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<BodyFrame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let Some(Err(broken)) = frame else { return Poll::Ready(frame) };
        tracing::warn!(upstream = self.name, error = %mesh::fault::chain(&broken), "upstream broke off");
        self.body = tonic::body::Body::empty();
        let mut trailers = HeaderMap::new();
        to_status(&Error::AnswerBrokenOff(self.name)).add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(BodyFrame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

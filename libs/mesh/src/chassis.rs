//! Around every request: trace, request id, deadline, concurrency limit, panic isolation, metrics. Nowhere else.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use opentelemetry::propagation::Extractor;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status};
use tracing::Instrument;

use crate::config::ServerConfig;
use crate::context::RequestContext;
use crate::{DECISIONS_HEADER, Fault, PRIORITY_HEADER, REQUEST_ID_HEADER, to_status};

/// Longest request id taken over from a caller.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// State of the chassis of one server.
#[derive(Debug, Clone)]
pub(crate) struct Chassis {
    role: &'static str,
    limit: Arc<Semaphore>,
    max_in_flight: usize,
    default_deadline: Duration,
    max_deadline: Duration,
}

impl Chassis {
    pub(crate) fn new(role: &'static str, config: &ServerConfig) -> Self {
        Self {
            role,
            limit: Arc::new(Semaphore::new(config.max_in_flight)),
            max_in_flight: config.max_in_flight,
            default_deadline: config.default_deadline,
            max_deadline: config.max_deadline,
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0} requests are in flight, which is the limit")]
    Busy(usize),
    #[error("the deadline of {0:?} passed")]
    Deadline(Duration),
    #[error("handler panicked")]
    Panicked,
}

impl Fault for Refusal {
    fn code(&self) -> Code {
        match self {
            Refusal::Busy(_) => Code::ResourceExhausted,
            Refusal::Deadline(_) => Code::DeadlineExceeded,
            Refusal::Panicked => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Refusal::Busy(_) => "TOO_MANY_REQUESTS",
            Refusal::Deadline(_) => "DEADLINE_EXCEEDED",
            Refusal::Panicked => "PANICKED",
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        matches!(self, Refusal::Busy(_)).then_some(Duration::from_millis(200))
    }
}

/// The middleware itself.
pub(crate) async fn around(State(chassis): State<Chassis>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let grpc = is_grpc(request.headers());
    let request_id = request_id(request.headers());
    // Probes must be answered while the rest is shed. They take no place either: a health watch would hold its for ever.
    let exempt = path.starts_with("/grpc.health.v1.") || path == "/healthz" || path == "/readyz";
    let span = tracing::info_span!("rpc", otel.name = %path, role = chassis.role, request_id = %request_id);
    set_parent(&span, request.headers());
    let record = Record { role: chassis.role, path: metric_path(&path), started: Instant::now(), code: None };

    let permit = match Arc::clone(&chassis.limit).try_acquire_owned() {
        _ if exempt => None,
        Ok(permit) => Some(permit),
        Err(_) => return refuse(&Refusal::Busy(chassis.max_in_flight), grpc, &request_id, record),
    };
    let allowed = match grpc_timeout(request.headers()) {
        Some(asked) => asked.min(chassis.max_deadline),
        None => chassis.default_deadline,
    };
    // A long stream without a deadline of its own lives as long as its client.
    let unbounded = grpc_timeout(request.headers()).is_none();
    let deadline = Instant::now() + allowed;
    let context = RequestContext {
        request_id: Arc::from(request_id.as_str()),
        deadline: if unbounded { Instant::now() + chassis.max_deadline } else { deadline },
        traceparent: text(request.headers(), "traceparent").map(Arc::from),
        decisions: text(request.headers(), DECISIONS_HEADER).map(Arc::from),
        // A word that is no priority is ignored: it decides about time, not about answers.
        priority: text(request.headers(), PRIORITY_HEADER).and_then(|word| word.parse().ok()).unwrap_or_default(),
    };
    let handler = AssertUnwindSafe(next.run(request)).catch_unwind();
    let served = context.clone().scope(tokio::time::timeout_at(deadline, handler)).instrument(span).await;
    let mut response = match served {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => return refuse_in(context, &Refusal::Panicked, grpc, &request_id, record).await,
        Err(_) => return refuse(&Refusal::Deadline(allowed), grpc, &request_id, record),
    };
    limit_code(&mut response);
    insert(response.headers_mut(), REQUEST_ID_HEADER, &request_id);
    let code = grpc_status(response.headers());
    let http_status = response.status();
    let mut record = record;
    record.code = if grpc { code } else { Some(i32::from(http_status.as_u16())) };
    response.map(|body| {
        Body::new(Tracked {
            body,
            record,
            deadline: (!unbounded).then(|| Box::pin(tokio::time::sleep_until(deadline))),
            grpc,
            _permit: permit,
        })
    })
}

async fn refuse_in(
    context: RequestContext,
    refusal: &Refusal,
    grpc: bool,
    request_id: &str,
    record: Record,
) -> Response {
    context.scope(async { refuse(refusal, grpc, request_id, record) }).await
}

fn refuse(refusal: &Refusal, grpc: bool, request_id: &str, mut record: Record) -> Response {
    let status = to_status(refusal);
    record.code = Some(status.code() as i32);
    let mut response = if grpc { status.into_http() } else { problem(&status, request_id) };
    insert(response.headers_mut(), REQUEST_ID_HEADER, request_id);
    response
}

/// An RFC 9457 body for callers that do not speak gRPC.
fn problem(status: &Status, request_id: &str) -> Response {
    let http_status = match status.code() {
        Code::ResourceExhausted => http::StatusCode::TOO_MANY_REQUESTS,
        Code::DeadlineExceeded => http::StatusCode::GATEWAY_TIMEOUT,
        _ => http::StatusCode::INTERNAL_SERVER_ERROR,
    };
    let body = serde_json::json!({
        "type": "about:blank",
        "title": http_status.canonical_reason().unwrap_or_default(),
        "status": http_status.as_u16(),
        "detail": status.message(),
        "request_id": request_id,
    });
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = http_status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

/// tonic answers a message over the limit with OUT_OF_RANGE; this API calls it RESOURCE_EXHAUSTED.
fn limit_code(response: &mut Response) {
    let oversized = grpc_status(response.headers()) == Some(Code::OutOfRange as i32)
        && text(response.headers(), "grpc-message").is_some_and(|message| message.contains("length%20too%20large"));
    if oversized {
        insert(response.headers_mut(), "grpc-status", &(Code::ResourceExhausted as i32).to_string());
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    text(headers, header::CONTENT_TYPE.as_str()).is_some_and(|kind| kind.starts_with("application/grpc"))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn request_id(headers: &HeaderMap) -> String {
    let usable = |id: &&str| {
        !id.is_empty()
            && id.len() <= MAX_REQUEST_ID_BYTES
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    match text(headers, REQUEST_ID_HEADER).filter(usable) {
        Some(id) => id.to_owned(),
        None => uuid::Uuid::new_v4().to_string(),
    }
}

/// Parses `grpc-timeout`: at most eight digits and a unit.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = text(headers, "grpc-timeout")?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let count: u64 = if digits.len() <= 8 { digits.parse().ok()? } else { return None };
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

fn grpc_status(headers: &HeaderMap) -> Option<i32> {
    text(headers, "grpc-status")?.parse().ok()
}

/// Methods of the protocols that are served besides our own.
const FOREIGN_METHODS: [&str; 13] = [
    "/arrow.flight.protocol.FlightService/DoGet",
    "/arrow.flight.protocol.FlightService/DoPut",
    "/arrow.flight.protocol.FlightService/DoExchange",
    "/arrow.flight.protocol.FlightService/DoAction",
    "/arrow.flight.protocol.FlightService/GetFlightInfo",
    "/arrow.flight.protocol.FlightService/GetSchema",
    "/arrow.flight.protocol.FlightService/Handshake",
    "/arrow.flight.protocol.FlightService/ListActions",
    "/arrow.flight.protocol.FlightService/ListFlights",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// REST answers below it are events: their calls last as long as their client stays.
const HTTP_STREAMS: &str = "/api/v1/stream/";

/// Bounded label: methods that exist by name, other gRPC paths as `unknown`, streams of events as `http-stream`, the rest as `http`.
fn metric_path(path: &str) -> String {
    let known = FOREIGN_METHODS.contains(&path) || is_own_method(path);
    match known {
        true => path.to_owned(),
        false if ["/candlemesh.", "/arrow.", "/grpc."].iter().any(|prefix| path.starts_with(prefix)) => {
            "unknown".to_owned()
        }
        false if path.starts_with(HTTP_STREAMS) => "http-stream".to_owned(),
        false => "http".to_owned(),
    }
}

fn is_own_method(path: &str) -> bool {
    let Some((service, method)) = path.trim_start_matches('/').split_once('/') else { return false };
    let service = proto::json::pool().get_service_by_name(service);
    service.is_some_and(|service| service.methods().any(|known| known.name() == method))
}

fn set_parent(span: &tracing::Span, headers: &HeaderMap) {
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    if headers.contains_key("traceparent") {
        let parent = opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&Headers(headers)));
        // Without an exporter there is no OpenTelemetry span to attach to; the header is then forwarded as it came.
        let _ = span.set_parent(parent);
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        text(self.0, key)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

/// Writes the request's metrics when dropped, however it ended.
struct Record {
    role: &'static str,
    path: String,
    started: Instant,
    code: Option<i32>,
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.path.is_empty() {
            return;
        }
        let code = match self.code {
            Some(code) => code.to_string(),
            None => "cancelled".to_owned(),
        };
        let path = std::mem::take(&mut self.path);
        let labels = [("role", self.role.to_owned()), ("method", path), ("code", code)];
        metrics::histogram!("candlemesh_rpc_duration_seconds", &labels).record(self.started.elapsed().as_secs_f64());
    }
}

/// A response body that holds the request's place in the limit, watches the deadline, isolates panics, and learns the final
/// status.
struct Tracked {
    body: Body,
    record: Record,
    deadline: Option<Pin<Box<Sleep>>>,
    grpc: bool,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Tracked {
    /// Ends the body as a handler that panicked ends: INTERNAL, logged.
    fn panicked(&mut self) -> Result<Frame<Bytes>, axum::Error> {
        let status = to_status(&Refusal::Panicked);
        self.deadline = None;
        self.body = Body::empty();
        self.record.code = Some(status.code() as i32);
        if !self.grpc {
            return Err(axum::Error::new(Refusal::Panicked));
        }
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers).map_err(axum::Error::new)?;
        Ok(Frame::trailers(trailers))
    }
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            self.deadline = None;
            self.body = Body::empty();
            self.record.code = Some(Code::DeadlineExceeded as i32);
            if !self.grpc {
                return Poll::Ready(Some(Err(axum::Error::new(Refusal::Deadline(self.record.started.elapsed())))));
            }
            let mut trailers = HeaderMap::new();
            insert(&mut trailers, "grpc-status", "4");
            insert(&mut trailers, "grpc-message", "the%20deadline%20passed");
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        // A stream works while it is read. Let through, its panic would end the connection, and with it everybody's calls on it.
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.body).poll_frame(cx)));
        let frame = match polled {
            Ok(frame) => std::task::ready!(frame),
            Err(_) => return Poll::Ready(Some(self.panicked())),
        };
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.record.code = grpc_status(trailers).or(self.record.code);
        }
        if frame.is_none() {
            self.deadline = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_parse_as_the_protocol_says() {
        let parse = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_static(value));
            grpc_timeout(&headers)
        };
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("3S"), Some(Duration::from_secs(3)));
        for bad in ["", "S", "123456789S", "-1S", "5x"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_stream_that_panics_ends_with_internal_and_not_the_connection() {
        use http_body_util::BodyExt;
        let tracked = |grpc| {
            let broken =
                futures::stream::poll_fn(|_| -> Poll<Option<Result<Bytes, axum::Error>>> { panic!("on purpose") });
            let record = Record { role: "test", path: String::new(), started: Instant::now(), code: None };
            Tracked { body: Body::from_stream(broken), record, deadline: None, grpc, _permit: None }
        };
        let collected = tracked(true).collect().await.unwrap();
        assert_eq!(grpc_status(collected.trailers().unwrap()), Some(Code::Internal as i32));
        assert!(tracked(false).collect().await.is_err());
    }

    #[test]
    fn labels_are_bounded_by_the_methods_that_exist() {
        let known = "/candlemesh.aggregation.v1.AggregationService/GetCandles";
        assert_eq!(metric_path(known), known);
        assert_eq!(metric_path("/candlemesh.aggregation.v1.AggregationService/Nope"), "unknown");
        assert_eq!(metric_path("/grpc.health.v1.Health/Invented"), "unknown");
        assert_eq!(metric_path("/api/v1/candles/X"), "http");
        assert_eq!(metric_path("/api/v1/stream/candles"), "http-stream");
    }

    #[test]
    fn hostile_request_ids_are_replaced() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID_HEADER, HeaderValue::from_static("a b\tc"));
        assert_eq!(request_id(&headers).len(), 36);
        headers.insert(REQUEST_ID_HEADER, HeaderValue::from_static("job-7.a"));
        assert_eq!(request_id(&headers), "job-7.a");
    }
}

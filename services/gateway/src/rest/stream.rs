//! Live candles as server-sent events, and what any stream of them needs.

mod indicators;

use std::fmt::Write;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http::{HeaderMap, HeaderValue, Uri, header};
use mesh::MAX_MESSAGE_BYTES;
use mesh::client::ForwardContext;
use mesh::context::RequestContext;
use proto::aggregation::live_service_client::LiveServiceClient;
use proto::aggregation::{CandleEvent, CandleUpdate, WatchCandlesRequest, WatchCandlesResponse};
use serde::Serialize;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status, Streaming};
use utoipa::ToSchema;

use super::Shared;
use super::body::Candle;
use super::call::Call;
use super::candles::{pairs, parse_value, unknown};
use super::problem::Problem;
use crate::gateway::Gateway;
use crate::method::{Access, Role};

pub(super) use indicators::{IndicatorEventData, indicators};

/// Header by which a browser that reconnects says where it stood.
const LAST_EVENT_ID: &str = "last-event-id";
/// Updates whose rendering takes longer than half a millisecond and leaves the async threads.
const INLINE_UPDATES: usize = 200;
/// Bytes of one rendered update, to begin with.
const EVENT_BYTES: usize = 360;

/// What happened to a candle: the data of the events `snapshot`, `update`, `close` and `correction`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CandleEventData {
    instrument_key: String,
    timeframe: String,
    /// Data revision of the candle.
    revision: u64,
    #[serde(flatten)]
    candle: Candle,
}

/// `GET /api/v1/stream/candles`
pub(super) async fn candles(State(gateway): Shared, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    let mut request = parse(&uri)?;
    if let Some(last) = last_event_id(&headers)? {
        request.cursor = last;
    }
    let stream = Stream { gateway, headers, role: Role::Aggregation, what: "watching candles" };
    let key = request.instrument_keys.first().cloned();
    watch(stream, key, |channel| async move {
        let mut client = LiveServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        client.watch_candles(request).await
    })
    .await
}

impl Message for WatchCandlesResponse {
    type Head = ();

    fn head(&self) {}

    fn size(&self) -> usize {
        self.updates.len()
    }

    fn text(self, (): &()) -> String {
        let WatchCandlesResponse { updates, cursor, caught_up } = self;
        let mut text = String::with_capacity(updates.len() * EVENT_BYTES + 64);
        write(&mut text, updates.into_iter().map(|update| (name(update.event()), data(update))), &cursor, caught_up);
        text
    }
}

/// A message of a stream as events.
trait Message: Send + 'static {
    /// What the first message says for all.
    type Head: Clone + Send + Sync + 'static;

    fn head(&self) -> Self::Head;

    /// Updates of usual size.
    fn size(&self) -> usize;

    fn text(self, head: &Self::Head) -> String;
}

/// Who asks for a stream of what.
struct Stream {
    gateway: Arc<Gateway>,
    headers: HeaderMap,
    role: Role,
    what: &'static str,
}

type Channel = InterceptedService<tonic::transport::Channel, Endless>;

/// Answers with the events of a stream that `open` asks for.
async fn watch<M, F>(stream: Stream, key: Option<String>, open: impl FnOnce(Channel) -> F) -> Result<Response, Problem>
where
    M: Message,
    F: Future<Output = Result<tonic::Response<Streaming<M>>, Status>>,
{
    let Stream { gateway, headers, role, what } = stream;
    let call = Call::admit(gateway, &headers, Access::Reader, what, key.as_deref())?;
    let channel = InterceptedService::new(call.upstream(role)?.channel.clone(), Endless);
    let messages = call.run(role, open(channel)).await?.into_inner();
    let mut listening = Listening { call, role, messages };
    // Until the first message an error is an answer of its own; upstream sends one within its heartbeat.
    let first = listening.next().await?;
    let kind = HeaderValue::from_static("text/event-stream");
    let response = ([(header::CONTENT_TYPE, kind)], Body::from_stream(events(listening, first))).into_response();
    Ok(uncached(response))
}

/// Where a browser that reconnects stood.
fn last_event_id(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(last) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let text = last.to_str().map_err(|_| Problem::field("last-event-id", "is not text"))?;
    Ok(Some(text.to_owned()))
}

/// Proxies must neither keep events back nor give them to others.
fn uncached(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// A stream of upstream's messages.
struct Listening<M> {
    call: Call,
    role: Role,
    messages: Streaming<M>,
}

impl<M: Message> Listening<M> {
    async fn next(&mut self) -> Result<Option<M>, Problem> {
        let upstream = self.call.upstream(self.role)?;
        self.messages.message().await.map_err(|status| Problem::upstream(upstream, &status))
    }

    async fn render(&self, message: M, head: &M::Head) -> Result<String, Problem> {
        let head = head.clone();
        match message.size() {
            ..=INLINE_UPDATES => Ok(message.text(&head)),
            _ => Ok(self.call.gateway.pool.run(move || message.text(&head)).await?),
        }
    }
}

type Part = Result<Bytes, std::convert::Infallible>;

/// A failure midway is a last event `error` with the problem as its data.
fn events<M: Message>(listening: Listening<M>, first: Option<M>) -> BoxStream<'static, Part> {
    let context = RequestContext::current();
    let head = first.as_ref().map(M::head);
    let parts = stream::unfold(Some((listening, Some(first))), move |state| {
        let (context, head) = (context.clone(), head.clone());
        async move {
            let (mut listening, waiting) = state?;
            let received = match waiting {
                Some(first) => Ok(first),
                None => listening.next().await,
            };
            let rendered = match (received, head) {
                (Ok(Some(message)), Some(head)) => listening.render(message, &head).await,
                (Ok(_), _) => return None,
                (Err(problem), _) => Err(problem),
            };
            let (text, state) = match rendered {
                Ok(text) => (text, Some((listening, None))),
                Err(problem) => (mesh::context::resume(context, async { failed(problem) }).await, None),
            };
            Some((Ok(Bytes::from(text)), state))
        }
    });
    parts.boxed()
}

/// Writes the events of a message. Only the last has an id: who got fewer of them resumes before the message.
fn write(
    text: &mut String,
    events: impl ExactSizeIterator<Item = (&'static str, String)>,
    cursor: &str,
    caught_up: bool,
) {
    let last = events.len().checked_sub(1);
    for (index, (name, data)) in events.enumerate() {
        let _ = writeln!(text, "event: {name}");
        if Some(index) == last {
            let _ = writeln!(text, "id: {cursor}");
        }
        let _ = writeln!(text, "data: {data}\n");
    }
    if last.is_none() {
        let data = if caught_up { r#"{"caught_up":true}"# } else { "{}" };
        let _ = writeln!(text, "event: heartbeat\nid: {cursor}\ndata: {data}\n");
    }
}

/// The parts of a list separated by commas.
fn list(value: &str) -> impl Iterator<Item = String> {
    value.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned)
}

fn name(event: CandleEvent) -> &'static str {
    match event {
        CandleEvent::Snapshot => "snapshot",
        CandleEvent::Update => "update",
        CandleEvent::Close => "close",
        CandleEvent::Correction => "correction",
        CandleEvent::Unspecified => "message",
    }
}

fn data(update: CandleUpdate) -> String {
    let CandleUpdate { instrument_key, timeframe, candle, revision, .. } = update;
    let daily = matches!(timeframe.as_str(), "1d" | "1w" | "1mo");
    let candle = Candle::new(candle.unwrap_or_default(), daily);
    let data = CandleEventData { instrument_key, timeframe, revision, candle };
    serde_json::to_string(&data).unwrap_or_default()
}

fn failed(problem: Problem) -> String {
    let body = serde_json::to_string(&problem.body()).unwrap_or_default();
    format!("event: error\ndata: {body}\n\n")
}

fn parse(uri: &Uri) -> Result<WatchCandlesRequest, Problem> {
    let mut request = WatchCandlesRequest::default();
    let mut seen: Vec<String> = Vec::new();
    for (name, value) in pairs(uri)? {
        let is_list = matches!(name.as_str(), "instrument_keys" | "timeframes");
        if !is_list && seen.contains(&name) {
            return Err(Problem::field(&name, "given more than once"));
        }
        match name.as_str() {
            "instrument_keys" => request.instrument_keys.extend(list(&value)),
            "timeframes" => request.timeframes.extend(list(&value)),
            "cursor" => request.cursor = value,
            "closed_only" => request.closed_only = parse_value(&name, &value, "true, false")?,
            "snapshot" => request.snapshot = parse_value(&name, &value, "true, false")?,
            _ => return Err(unknown(&name, "instrument_keys, timeframes, cursor, closed_only, snapshot")),
        }
        seen.push(name);
    }
    Ok(request)
}

/// Carries the request's context inward, without its deadline: a stream lives as long as its reader.
#[derive(Debug, Clone, Copy)]
struct Endless;

impl Interceptor for Endless {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let mut request = ForwardContext.call(request)?;
        request.metadata_mut().remove("grpc-timeout");
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_split_and_what_is_not_known_is_refused() {
        let parse = |text: &str| parse(&text.parse().unwrap());
        let request =
            parse("/x?instrument_keys=US%7CA,us%7CB&instrument_keys=FX%7CC&timeframes=1m,%205m&snapshot=true").unwrap();
        assert_eq!(
            (request.instrument_keys, request.timeframes.len()),
            (vec!["US|A".into(), "us|B".into(), "FX|C".into()], 2)
        );
        assert!(request.snapshot && !request.closed_only);
        for bad in ["/x?keys=1", "/x?closed_only=yes", "/x?cursor=1&cursor=2"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_last_event_of_a_message_moves_the_reader_on() {
        let update = CandleUpdate { event: CandleEvent::Close as i32, ..Default::default() };
        let message =
            WatchCandlesResponse { updates: vec![update.clone(), update], cursor: "c".into(), caught_up: false };
        let text = message.text(&());
        let events: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(events.len(), 2);
        assert!(events[0].starts_with("event: close\ndata: {") && !events[0].contains("id:"));
        assert!(events[1].starts_with("event: close\nid: c\ndata: {"));
        let message = WatchCandlesResponse { cursor: "d".into(), caught_up: true, ..Default::default() };
        assert_eq!(message.text(&()), "event: heartbeat\nid: d\ndata: {\"caught_up\":true}\n\n");
    }
}

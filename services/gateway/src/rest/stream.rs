//! Live candles as server-sent events.

use std::fmt::Write;

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
use crate::method::{Access, Role};

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
    if let Some(last) = headers.get(LAST_EVENT_ID) {
        let text = last.to_str().map_err(|_| Problem::field("last-event-id", "is not text"))?;
        text.clone_into(&mut request.cursor);
    }
    let key = request.instrument_keys.first().cloned();
    let call = Call::admit(gateway, &headers, Access::Reader, "watching candles", key.as_deref())?;
    let channel = InterceptedService::new(call.upstream(Role::Aggregation)?.channel.clone(), Endless);
    let mut client = LiveServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let mut messages = call.run(Role::Aggregation, client.watch_candles(request)).await?.into_inner();
    // Until the first message an error is an answer of its own; upstream sends one within its heartbeat.
    let first = next(&call, &mut messages).await?;
    let kind = HeaderValue::from_static("text/event-stream");
    let response = ([(header::CONTENT_TYPE, kind)], Body::from_stream(events(call, first, messages))).into_response();
    Ok(uncached(response))
}

/// Proxies must neither keep events back nor give them to others.
fn uncached(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

async fn next(
    call: &Call,
    messages: &mut Streaming<WatchCandlesResponse>,
) -> Result<Option<WatchCandlesResponse>, Problem> {
    let upstream = call.upstream(Role::Aggregation)?;
    messages.message().await.map_err(|status| Problem::upstream(upstream, &status))
}

type Part = Result<Bytes, std::convert::Infallible>;

/// A failure midway is a last event `error` with the problem as its data.
fn events(
    call: Call,
    first: Option<WatchCandlesResponse>,
    messages: Streaming<WatchCandlesResponse>,
) -> BoxStream<'static, Part> {
    let context = RequestContext::current();
    let state = Some((call, messages, Some(first)));
    let parts = stream::unfold(state, move |state| {
        let context = context.clone();
        async move {
            let (call, mut messages, waiting) = state?;
            let received = match waiting {
                Some(first) => Ok(first),
                None => next(&call, &mut messages).await,
            };
            let rendered = match received {
                Ok(Some(message)) => render(&call, message).await,
                Ok(None) => return None,
                Err(problem) => Err(problem),
            };
            let (text, state) = match rendered {
                Ok(text) => (text, Some((call, messages, None))),
                Err(problem) => (mesh::context::resume(context, async { failed(problem) }).await, None),
            };
            Some((Ok(Bytes::from(text)), state))
        }
    });
    parts.boxed()
}

async fn render(call: &Call, message: WatchCandlesResponse) -> Result<String, Problem> {
    match message.updates.len() {
        ..=INLINE_UPDATES => Ok(text(message)),
        _ => Ok(call.gateway.pool.run(move || text(message)).await?),
    }
}

/// The events of a message. Only the last has an id: who got fewer of them resumes before the message.
fn text(message: WatchCandlesResponse) -> String {
    let WatchCandlesResponse { updates, cursor } = message;
    let mut text = String::with_capacity(updates.len() * EVENT_BYTES + 64);
    let last = updates.len().checked_sub(1);
    for (index, update) in updates.into_iter().enumerate() {
        let (name, data) = (name(update.event()), data(update));
        let _ = writeln!(text, "event: {name}");
        if Some(index) == last {
            let _ = writeln!(text, "id: {cursor}");
        }
        let _ = writeln!(text, "data: {data}\n");
    }
    if last.is_none() {
        let _ = writeln!(text, "event: heartbeat\nid: {cursor}\ndata: {{}}\n");
    }
    text
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
        let parts = || value.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned);
        match name.as_str() {
            "instrument_keys" => request.instrument_keys.extend(parts()),
            "timeframes" => request.timeframes.extend(parts()),
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
        let message = WatchCandlesResponse { updates: vec![update.clone(), update], cursor: "c".into() };
        let text = text(message);
        let events: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(events.len(), 2);
        assert!(events[0].starts_with("event: close\ndata: {") && !events[0].contains("id:"));
        assert!(events[1].starts_with("event: close\nid: c\ndata: {"));
    }
}

//! Live candles as server-sent events.

use bytes::Bytes;
use futures::StreamExt;
use http::Method;
use mesh::{Fault, to_status};
use proto::aggregation::live_service_server::{LiveService, LiveServiceServer};
use proto::aggregation::{CandleEvent, CandleUpdate, WatchCandlesRequest, WatchCandlesResponse};
use proto::wire::BucketCandle;
use rollout::Subject;
use serde_json::{Value, json};
use tonic::{Code, Request, Response, Status};

use super::upstream::{Fake, Stream};
use super::world::World;

pub(super) fn service(fake: Fake) -> LiveServiceServer<Fake> {
    LiveServiceServer::new(fake)
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(&'static str, Code, &'static str);

impl Fault for Refused {
    fn code(&self) -> Code {
        self.1
    }

    fn reason(&self) -> &'static str {
        self.2
    }
}

fn update(event: CandleEvent, request: &WatchCandlesRequest) -> CandleUpdate {
    let candle = BucketCandle {
        open_time: Some(proto::convert::timestamp(1_471_319_100_000)),
        open: 1.0,
        high: 2.0,
        low: 0.5,
        close: 1.25,
        volume: 10.0,
        closed: true,
        source_count: 4,
        expected_count: 5,
        trading_date: "2016-08-16".into(),
        ..Default::default()
    };
    CandleUpdate {
        instrument_key: request.instrument_keys[0].clone(),
        timeframe: request.timeframes.join("+"),
        event: event as i32,
        candle: Some(candle),
        revision: 7,
    }
}

/// A heartbeat, a message of two updates, and then the end of a slow subscriber; or a cursor that has expired.
#[tonic::async_trait]
impl LiveService for Fake {
    type WatchCandlesStream = Stream<WatchCandlesResponse>;

    async fn watch_candles(
        &self,
        request: Request<WatchCandlesRequest>,
    ) -> Result<Response<Self::WatchCandlesStream>, Status> {
        let metadata = request.metadata().clone();
        let request = request.into_inner();
        if request.cursor == "expired" {
            let status = to_status(&Refused("the cursor has expired", Code::FailedPrecondition, "CURSOR_EXPIRED"));
            return self.answer(Subject::Aggregation, &metadata, futures::stream::iter([Err(status)]).boxed());
        }
        let beat = WatchCandlesResponse { cursor: format!("after {}", request.cursor), ..Default::default() };
        let updates = vec![update(CandleEvent::Close, &request), update(CandleEvent::Correction, &request)];
        let message = WatchCandlesResponse { updates, cursor: "c2".into(), caught_up: false };
        let slow = to_status(&Refused("resume from c2", Code::ResourceExhausted, "SLOW_SUBSCRIBER"));
        self.answer(Subject::Aggregation, &metadata, futures::stream::iter([Ok(beat), Ok(message), Err(slow)]).boxed())
    }
}

/// Name, id and data of each event.
fn events(body: &[u8]) -> Vec<(String, String, Value)> {
    let text = std::str::from_utf8(body).unwrap();
    let event = |block: &str| {
        let field = |name: &str| {
            let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.unwrap_or_default().to_owned()
        };
        (field("event"), field("id"), serde_json::from_str(&field("data")).unwrap())
    };
    text.split_terminator("\n\n").map(event).collect()
}

#[tokio::test]
async fn updates_are_events_and_the_last_of_a_message_has_its_cursor() {
    let world = World::new().await;
    let path = "/api/v1/stream/candles?instrument_keys=US%7CSPY&timeframes=1m,5m&cursor=c1&snapshot=true";
    let answer = world.get(path).await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "text/event-stream"), "{answer:?}");
    assert_eq!(answer.header("cache-control"), "no-store");
    // A stream has no deadline to be cut at.
    assert!(world.v1.last().get("grpc-timeout").is_none() && world.v1.last().get("x-request-id").is_some());
    let events = events(&answer.body);
    let data = json!({
        "instrument_key": "US|SPY", "timeframe": "1m+5m", "revision": 7,
        "open_time": "2016-08-16T03:45:00Z", "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.25, "volume": 10.0,
        "open_interest": null, "closed": true, "complete": false, "source_count": 4, "expected_count": 5,
    });
    let event = |name: &str, id: &str, data: Value| (name.to_owned(), id.to_owned(), data);
    assert_eq!(events[0], event("heartbeat", "after c1", json!({})));
    assert_eq!(events[1], event("close", "", data.clone()));
    assert_eq!(events[2], event("correction", "c2", data));
    let (name, id, problem) = &events[3];
    assert_eq!((name.as_str(), id.as_str(), &problem["reason"]), ("error", "", &json!("SLOW_SUBSCRIBER")));
    assert_eq!((&problem["status"], &problem["request_id"]), (&json!(429), &json!(answer.header("x-request-id"))));
    assert_eq!(events.len(), 4);
}

#[tokio::test]
async fn a_browser_that_reconnects_goes_on_from_its_last_event() {
    let world = World::new().await;
    let path = "/api/v1/stream/candles?instrument_keys=US%7CSPY&timeframes=1m&cursor=old";
    let answer = world.send(Method::GET, path, &[("last-event-id", "c9")], Bytes::new()).await;
    assert_eq!(events(&answer.body)[0].1, "after c9");
}

#[tokio::test]
async fn what_fails_before_the_first_event_is_a_problem() {
    let world = World::new().await;
    let expired = world.get("/api/v1/stream/candles?instrument_keys=US%7CSPY&timeframes=1m&cursor=expired").await;
    assert_eq!(expired.problem(400)["reason"], "CURSOR_EXPIRED");
    let unknown = world.get("/api/v1/stream/candles?timeframe=1m").await.problem(400);
    assert_eq!(unknown["errors"][0]["field"], "timeframe");
}

//! `watch`: candles, or indicators of them, as they form, close and are corrected.

mod indicators;

use std::time::Duration;

use anyhow::Result;
use market::{InstrumentKey, Timeframe};
use mesh::RemoteError;
use proto::aggregation::live_service_client::LiveServiceClient;
use proto::aggregation::{CandleEvent, CandleUpdate, WatchCandlesRequest, WatchCandlesResponse};
use proto::convert;
use tonic::{Code, Status, Streaming};

use super::{Connection, short};
use crate::output::say_line;

/// Waits between attempts to come back, from the first to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Silence after which the connection is given up: servers send something every 15 s.
const SILENCE: Duration = Duration::from_secs(45);

/// `watch`'s arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct WatchArgs {
    /// Instruments; none: all.
    pub instruments: Vec<InstrumentKey>,
    /// 1m 2m 3m 5m 10m 15m 30m 1h 2h 4h 1d 1w 1mo; comma-separated or repeated.
    #[arg(long = "timeframe", short = 't', value_delimiter = ',', default_value = "1m")]
    pub timeframes: Vec<Timeframe>,
    /// Begin after an earlier message, whose cursor this is; default: from now on.
    #[arg(long, default_value = "")]
    pub cursor: String,
    /// Watch indicators instead of candles, for example sma:9, of the instruments named; repeat it for more.
    #[arg(long = "indicators", alias = "indicator", short = 'i', requires = "instruments")]
    pub indicators: Vec<String>,
    /// Only closes, and corrections of closed candles.
    #[arg(long)]
    pub closed_only: bool,
    /// Begin with the newest candle of each instrument named. Indicators always begin so.
    #[arg(long)]
    pub snapshot: bool,
    /// End after so many events.
    #[arg(long)]
    pub count: Option<u64>,
    /// One JSON object per line; the last of each message has the cursor to resume with.
    #[arg(long)]
    pub json: bool,
}

/// Why watching paused.
enum Pause {
    /// Enough was seen.
    Done,
    /// The stream ended; whether any message came before.
    Lost { status: Status, has_heard: bool },
}

/// A stream that goes on from a cursor.
trait Feed {
    type Message;

    async fn open(&mut self) -> Result<Streaming<Self::Message>, Status>;

    /// Prints a message; false when enough was printed.
    fn print(&mut self, message: &Self::Message, json: bool, left: &mut Option<u64>) -> bool;

    /// What comes next begins after a message.
    fn pass(&mut self, message: Self::Message);

    fn cursor(&self) -> &str;
}

/// Candles.
struct Candles {
    client: LiveServiceClient<super::Channel>,
    request: WatchCandlesRequest,
}

impl Feed for Candles {
    type Message = WatchCandlesResponse;

    async fn open(&mut self) -> Result<Streaming<WatchCandlesResponse>, Status> {
        Ok(self.client.watch_candles(self.request.clone()).await?.into_inner())
    }

    fn print(&mut self, message: &WatchCandlesResponse, json: bool, left: &mut Option<u64>) -> bool {
        print(message, json, left)
    }

    fn pass(&mut self, message: WatchCandlesResponse) {
        self.request.cursor = message.cursor;
        // It was the beginning; a resumption has its cursor.
        self.request.snapshot = false;
    }

    fn cursor(&self) -> &str {
        &self.request.cursor
    }
}

/// `watch`.
pub async fn run(connection: &Connection, args: &WatchArgs) -> Result<()> {
    if !args.indicators.is_empty() {
        return follow(connection, args, indicators::Indicators::new(connection, args)?).await;
    }
    let request = WatchCandlesRequest {
        instrument_keys: args.instruments.iter().map(ToString::to_string).collect(),
        timeframes: args.timeframes.iter().map(ToString::to_string).collect(),
        cursor: args.cursor.clone(),
        closed_only: args.closed_only,
        snapshot: args.snapshot,
    };
    let client = LiveServiceClient::new(connection.channel()?).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
    follow(connection, args, Candles { client, request }).await
}

/// Prints what comes, and comes back when the stream ends.
async fn follow(connection: &Connection, args: &WatchArgs, mut feed: impl Feed) -> Result<()> {
    let (mut wait, mut left, mut is_connected) = (FIRST_WAIT, args.count, false);
    loop {
        let before = feed.cursor().to_owned();
        let (status, has_heard) = match watch(&mut feed, args, &mut left).await {
            Pause::Done => return Ok(()),
            Pause::Lost { status, has_heard } => (status, has_heard),
        };
        // The cursor stands still while what was missed is sent, so that it does not say whether anything came.
        let has_advanced = feed.cursor() != before;
        is_connected |= has_heard;
        // Who was never let in, or whose cursor is refused, is told so; who was there comes back.
        if !is_connected || !may_return(&status) {
            return Err(connection.explain(status));
        }
        wait = if has_advanced { FIRST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
        eprintln!("candlemesh: {}; resuming in {wait:?}", status.message());
        tokio::time::sleep(wait).await;
    }
}

/// Prints what comes until the stream ends, and keeps the cursor.
async fn watch(feed: &mut impl Feed, args: &WatchArgs, left: &mut Option<u64>) -> Pause {
    let mut messages = match feed.open().await {
        Ok(messages) => messages,
        Err(status) => return Pause::Lost { status, has_heard: false },
    };
    let mut has_heard = false;
    loop {
        let heard = match tokio::time::timeout(SILENCE, messages.message()).await {
            Ok(Ok(Some(message))) => Ok(message),
            Ok(Ok(None)) => Err(Status::unavailable("the server ended the stream")),
            Ok(Err(status)) => Err(status),
            Err(_) => Err(Status::unavailable(format!("nothing was heard for {SILENCE:?}"))),
        };
        let message = match heard {
            Ok(message) => message,
            Err(status) => return Pause::Lost { status, has_heard },
        };
        has_heard = true;
        if !feed.print(&message, args.json, left) {
            return Pause::Done;
        }
        feed.pass(message);
    }
}

fn may_return(status: &Status) -> bool {
    let returns = [
        Code::Unavailable,
        Code::DeadlineExceeded,
        Code::Cancelled,
        Code::Unknown,
        Code::Aborted,
        // What transports make of a broken connection.
        Code::Internal,
    ];
    match RemoteError::from_status(status).reason.as_str() {
        "SLOW_SUBSCRIBER" => true,
        // It would meet the same bug again.
        "RESUMPTION_BROKEN" => false,
        _ => returns.contains(&status.code()),
    }
}

/// Prints a message; false when enough was printed.
fn print(message: &WatchCandlesResponse, json: bool, left: &mut Option<u64>) -> bool {
    for (index, update) in message.updates.iter().enumerate() {
        if *left == Some(0) {
            return false;
        }
        let cursor = (index + 1 == message.updates.len()).then_some(message.cursor.as_str());
        match json {
            true => say_line!("{}", json_of(update, cursor)),
            false => say_line!("{}", line_of(update)),
        }
        if let Some(left) = left {
            *left -= 1;
        }
    }
    *left != Some(0)
}

fn name(event: CandleEvent) -> &'static str {
    match event {
        CandleEvent::Snapshot => "snapshot",
        CandleEvent::Update => "update",
        CandleEvent::Close => "close",
        CandleEvent::Correction => "correction",
        CandleEvent::Unspecified => "unknown",
    }
}

fn json_of(update: &CandleUpdate, cursor: Option<&str>) -> serde_json::Value {
    let candle = update.candle.clone().unwrap_or_default();
    let at = candle.open_time.as_ref().and_then(convert::millis).unwrap_or_default();
    let mut json = serde_json::json!({
        "event": name(update.event()),
        "instrument_key": update.instrument_key,
        "timeframe": update.timeframe,
        "revision": update.revision,
        "open_time": market::format_millis(at),
        "open": candle.open,
        "high": candle.high,
        "low": candle.low,
        "close": candle.close,
        "volume": candle.volume,
        "open_interest": candle.open_interest,
        "closed": candle.closed,
        "complete": candle.complete,
        "source_count": candle.source_count,
        "expected_count": candle.expected_count,
        "trading_date": candle.trading_date,
    });
    if let Some(cursor) = cursor {
        json["cursor"] = cursor.into();
    }
    json
}

fn line_of(update: &CandleUpdate) -> String {
    let candle = update.candle.clone().unwrap_or_default();
    let at = candle.open_time.as_ref().and_then(convert::millis).unwrap_or_default();
    format!(
        "{:<10} {:<28} {:<4} {:<20} {:>10} {:>10} {:>10} {:>10} {:>12}  {}/{}",
        name(update.event()),
        update.instrument_key,
        update.timeframe,
        market::format_millis(at),
        short(candle.open),
        short(candle.high),
        short(candle.low),
        short(candle.close),
        candle.volume,
        candle.source_count,
        candle.expected_count
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use clap::Parser;
    use futures::StreamExt;
    use futures::stream::BoxStream;
    use proto::aggregation::live_service_server::{LiveService, LiveServiceServer};
    use tonic::transport::Server;
    use tonic::transport::server::TcpIncoming;
    use tonic::{Request, Response};

    use super::*;

    /// Sends a message of a catch-up, whose cursor is the one it was asked with, and is cut; `refused` before any.
    #[derive(Debug, Clone, Default)]
    struct CutInCatchUp {
        calls: Arc<AtomicUsize>,
        refused: bool,
    }

    #[tonic::async_trait]
    impl LiveService for CutInCatchUp {
        type WatchCandlesStream = BoxStream<'static, Result<WatchCandlesResponse, Status>>;

        async fn watch_candles(
            &self,
            request: Request<WatchCandlesRequest>,
        ) -> Result<Response<Self::WatchCandlesStream>, Status> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            if self.refused {
                return Err(Status::deadline_exceeded("cut"));
            }
            let cursor = request.into_inner().cursor;
            let message = WatchCandlesResponse { updates: vec![CandleUpdate::default()], cursor, ..Default::default() };
            let sent = [Ok(message), Err(Status::deadline_exceeded("cut"))];
            Ok(Response::new(futures::stream::iter(sent).boxed()))
        }
    }

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: WatchArgs,
    }

    #[tokio::test]
    async fn who_is_cut_while_catching_up_comes_back_and_who_was_never_let_in_does_not() {
        for refused in [false, true] {
            let service = CutInCatchUp { refused, ..Default::default() };
            let calls = Arc::clone(&service.calls);
            let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let gateway = format!("http://{}", incoming.local_addr().unwrap());
            let server = Server::builder().add_service(LiveServiceServer::new(service));
            let server = tokio::spawn(server.serve_with_incoming(incoming));
            let line = Line::try_parse_from(["watch", "--cursor", "c", "--count", "2"]).unwrap();
            let outcome = run(&Connection::to(&gateway), &line.args).await;
            assert_eq!((outcome.is_ok(), calls.load(Ordering::Relaxed)), if refused { (false, 1) } else { (true, 2) });
            server.abort();
        }
    }

    #[test]
    fn the_count_ends_in_the_middle_of_a_message() {
        let message = WatchCandlesResponse {
            updates: vec![CandleUpdate::default(); 3],
            cursor: "c".into(),
            ..Default::default()
        };
        let mut left = Some(4);
        assert!(print(&message, false, &mut left));
        assert_eq!(left, Some(1));
        assert!(!print(&message, true, &mut left));
        assert_eq!(left, Some(0));
    }

    #[test]
    fn only_the_last_event_of_a_message_has_the_cursor() {
        let update = CandleUpdate { event: CandleEvent::Close as i32, ..Default::default() };
        assert_eq!(json_of(&update, Some("c"))["cursor"], "c");
        assert!(json_of(&update, None).get("cursor").is_none());
        assert_eq!(json_of(&update, None)["event"], "close");
    }
}

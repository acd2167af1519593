//! Subscribers to candles that come back with their cursor after every failure, as clients do, over gRPC and as server-sent events.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proto::aggregation::WatchCandlesRequest;
use proto::aggregation::live_service_client::LiveServiceClient;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::listener::{Listener, Told};
use crate::made_up::Numbers;
use crate::traffic::{CALL_TIMEOUT, FAILURE_PAUSE, SILENCE, Traffic};

/// What is watched.
pub const TIMEFRAMES: [&str; 2] = ["1m", "5m"];
/// Longest time after which a subscriber leaves by itself and comes back, though not before it has come a step further: one that always
/// left before would never hear anything.
const LONGEST_STAY: Duration = Duration::from_secs(4);
/// Status codes that say that it is not the request's fault: the same as of gRPC.
const PASSING: [StatusCode; 3] = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS, StatusCode::CONFLICT];

/// An event as it came: name, id and data.
#[derive(Debug, Default)]
struct Event {
    name: String,
    id: Option<String>,
    data: String,
}

impl Event {
    fn parse(text: &str) -> Event {
        let mut event = Event::default();
        for line in text.lines() {
            match line.split_once(": ") {
                Some(("event", name)) => name.clone_into(&mut event.name),
                Some(("id", id)) => event.id = Some(id.to_owned()),
                Some(("data", data)) => event.data.push_str(data),
                _ => {}
            }
        }
        event
    }
}

impl Traffic {
    /// Follows candles through every failure, until the end; leaves now and then by itself.
    pub async fn watch_candles(self, seed: u64, keys: Vec<String>, listener: Arc<Listener>) -> Result<()> {
        const NAME: &str = "candle watch";
        let mut numbers = Numbers::from_seed(seed);
        let mut stop = self.stop.clone();
        let mut cursor = String::new();
        while !self.is_over() {
            let mut client = LiveServiceClient::new(self.channel()?).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
            let request = WatchCandlesRequest {
                instrument_keys: keys.clone(),
                timeframes: TIMEFRAMES.map(str::to_owned).to_vec(),
                cursor: cursor.clone(),
                ..Default::default()
            };
            let Some(mut stream) = self.call(NAME, client.watch_candles(request)).await else { continue };
            let leaves = Instant::now() + LONGEST_STAY.mul_f64(numbers.unit());
            let mut has_moved = false;
            loop {
                let message = tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => return Ok(()),
                    () = tokio::time::sleep_until(leaves), if has_moved => {
                        break self.tally.count(&format!("{NAME}: left by itself"));
                    }
                    message = tokio::time::timeout(SILENCE, stream.message()) => message,
                };
                let message = match message {
                    Ok(Ok(Some(message))) => message,
                    Ok(Ok(None)) => break self.tally.count(&format!("{NAME}: ended")),
                    Ok(Err(status)) => break self.broke_off(NAME, &status),
                    Err(_) => break self.tally.violation(format!("a {NAME} was silent for {SILENCE:?}")),
                };
                for update in &message.updates {
                    self.heard(NAME, &listener, Told::of(update)?);
                }
                has_moved |= cursor != message.cursor;
                cursor = message.cursor;
                listener.note(message.caught_up);
            }
            tokio::time::sleep(FAILURE_PAUSE).await;
        }
        Ok(())
    }

    /// The same over HTTP, as a browser's EventSource does.
    pub async fn watch_events(self, seed: u64, keys: Vec<String>, listener: Arc<Listener>) -> Result<()> {
        const NAME: &str = "event stream";
        let mut numbers = Numbers::from_seed(seed);
        let mut stop = self.stop.clone();
        let mut cursor = String::new();
        while !self.is_over() {
            let opened = tokio::time::timeout(CALL_TIMEOUT, self.open_events(&keys, &cursor)).await;
            let mut body = match opened {
                Ok(Ok((StatusCode::OK, body))) => body,
                Ok(Ok((status, _))) => {
                    self.tally.count(&format!("{NAME}: {status}"));
                    if !PASSING.contains(&status) {
                        self.tally.violation(format!("an {NAME} was refused with {status}"));
                    }
                    tokio::time::sleep(FAILURE_PAUSE).await;
                    continue;
                }
                Ok(Err(_)) => {
                    self.tally.count(&format!("{NAME}: not connected"));
                    tokio::time::sleep(FAILURE_PAUSE).await;
                    continue;
                }
                Err(_) => {
                    self.tally.count(&format!("{NAME}: given up"));
                    continue;
                }
            };
            self.tally.count(&format!("{NAME}: answered"));
            let (mut text, mut waiting) = (Vec::new(), Vec::new());
            let leaves = Instant::now() + LONGEST_STAY.mul_f64(numbers.unit());
            let mut has_moved = false;
            loop {
                let frame = tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => return Ok(()),
                    () = tokio::time::sleep_until(leaves), if has_moved => {
                        break self.tally.count(&format!("{NAME}: left by itself"));
                    }
                    frame = tokio::time::timeout(SILENCE, body.frame()) => frame,
                };
                let Ok(frame) = frame else {
                    break self.tally.violation(format!("an {NAME} was silent for {SILENCE:?}"));
                };
                let Some(Ok(frame)) = frame else { break self.tally.count(&format!("{NAME}: lost or ended")) };
                text.extend_from_slice(frame.data_ref().map(Bytes::as_ref).unwrap_or_default());
                while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
                    let rest = text.split_off(end + 2);
                    let event = Event::parse(&String::from_utf8(std::mem::replace(&mut text, rest))?);
                    match event.name.as_str() {
                        "heartbeat" => {}
                        "error" => self.ended_by(NAME, &event.data)?,
                        name => waiting.push(Told::of_text(name, &event.data)?),
                    }
                    // Who got a part of a message gets it again.
                    if let Some(id) = event.id {
                        waiting.drain(..).for_each(|told| self.heard(NAME, &listener, told));
                        has_moved |= cursor != id;
                        cursor = id;
                        listener.note(event.data.contains("caught_up"));
                    }
                }
            }
            tokio::time::sleep(FAILURE_PAUSE).await;
        }
        Ok(())
    }

    async fn open_events(&self, keys: &[String], cursor: &str) -> Result<(StatusCode, Incoming)> {
        let address = self.gateway.borrow().trim_start_matches("http://").to_owned();
        let stream = TcpStream::connect(&address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // It ends when the body is dropped.
        tokio::spawn(connection);
        let keys: Vec<String> = keys.iter().map(|key| utf8_percent_encode(key, NON_ALPHANUMERIC).to_string()).collect();
        let query = format!("instrument_keys={}&timeframes={}", keys.join(","), TIMEFRAMES.join(","));
        let mut request = Request::get(format!("/api/v1/stream/candles?{query}")).header(header::HOST, &address);
        if !cursor.is_empty() {
            request = request.header("last-event-id", cursor);
        }
        let (parts, body) = sender.send_request(request.body(Empty::<Bytes>::new())?).await?.into_parts();
        Ok((parts.status, body))
    }

    fn heard(&self, name: &str, listener: &Listener, told: Told) {
        if let Some(wrong) = listener.hear(told) {
            self.tally.violation(format!("{name}: {wrong}"));
        }
    }

    /// A stream without a deadline does not end by one, nor does anybody cancel it.
    fn broke_off(&self, name: &str, status: &Status) {
        let own = std::error::Error::source(status).is_some();
        if !own && matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) {
            self.tally.violation(format!("a {name} broke off with {:?}: {}", status.code(), status.message()));
        }
        self.tally.failure(name, status);
    }

    fn ended_by(&self, name: &str, problem: &str) -> Result<()> {
        let data: serde_json::Value = serde_json::from_str(problem).with_context(|| problem.to_owned())?;
        let status = data["status"].as_u64().and_then(|status| StatusCode::from_u16(status as u16).ok());
        self.tally.count(&format!("{name}: error {}", data["status"]));
        if !status.is_some_and(|status| PASSING.contains(&status)) {
            self.tally.violation(format!("an {name} ended with {problem}"));
        }
        Ok(())
    }
}

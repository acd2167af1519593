//! All instruments close a minute at once: how long until the last subscriber has every close.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::uri::PathAndQuery;
use market::{Calendar, Date, Millis};
use prost_types::Timestamp;
use proto::aggregation::WatchCandlesRequest;
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{CandleBatch, PutCandleBatchesRequest};
use proto::wire::Candle;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use crate::{Case, Measured, Parameters, put};

/// Longest wait for a subscriber: far beyond the goal of 250 ms.
const WAIT: Duration = Duration::from_secs(30);
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// Followed by the number of the instrument.
const KEY_PREFIX: &str = "NSE_EQ|CLOSE";

/// What a subscriber reads of `WatchCandlesResponse`: enough to know whose candle has closed. Fifty clients that made a string of every
/// field would, on the cores of the server, mostly measure themselves.
#[derive(Clone, PartialEq, prost::Message)]
struct Told {
    #[prost(message, repeated, tag = "1")]
    updates: Vec<ToldUpdate>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ToldUpdate {
    #[prost(bytes = "bytes", tag = "1")]
    instrument_key: Bytes,
    #[prost(message, optional, tag = "4")]
    candle: Option<ToldCandle>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ToldCandle {
    #[prost(message, optional, tag = "1")]
    open_time: Option<Timestamp>,
    #[prost(bool, tag = "8")]
    closed: bool,
}

/// Instruments, subscribers that watch all of them, and the next minute to close.
#[derive(Debug)]
pub(crate) struct Closes {
    runtime: Runtime,
    ingestion: IngestionServiceClient<Channel>,
    keys: Vec<String>,
    minute: Millis,
    subscribers: usize,
    /// Minute and instant of completion, from every subscriber.
    done: mpsc::Receiver<Result<Served>>,
}

/// A subscriber has everything of one minute.
#[derive(Debug)]
struct Served {
    minute: Millis,
    at: Instant,
    updates: usize,
}

impl Closes {
    pub(crate) fn prepare(parameters: &Parameters) -> Result<Self> {
        let runtime = put::runtime()?;
        let keys: Vec<String> = (0..parameters.instruments).map(|index| format!("{KEY_PREFIX}{index:05}")).collect();
        // A session that is over: each of its minutes closes as soon as it is stored.
        let day = Calendar::by_name("NSE")?.day(Date::constant(2025, 3, 3));
        let (sender, done) = mpsc::channel(parameters.subscribers.max(1) * 2);
        let channel = |address: &str| mesh::client::raw_channel(address).context("an address");
        let ingestion = {
            // A channel takes its runtime from where it is made.
            let _inside = runtime.enter();
            IngestionServiceClient::new(channel(&parameters.ingestion)?)
                .max_encoding_message_size(MAX_MESSAGE_BYTES)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
        };
        let mut closes =
            Self { runtime, ingestion, keys, minute: day.anchor, subscribers: parameters.subscribers, done };
        // The first minute makes the instruments known, before anyone watches.
        closes.runtime.block_on(put_minute(&mut closes.ingestion, &closes.keys, closes.minute))?;
        let keys = Arc::new(closes.keys.clone());
        for _ in 0..parameters.subscribers {
            let live = {
                let _inside = closes.runtime.enter();
                Grpc::new(channel(&parameters.aggregation)?).max_decoding_message_size(MAX_MESSAGE_BYTES)
            };
            let stream = closes.runtime.block_on(subscribe(live, &keys))?;
            closes.runtime.spawn(watch(stream, keys.len(), sender.clone()));
        }
        Ok(closes)
    }
}

impl Case for Closes {
    fn describe(&self) -> Value {
        json!({ "instruments": self.keys.len(), "subscribers": self.subscribers })
    }

    /// Stores the next minute. The seconds are those from its acknowledgement until the last subscriber has all closes of it.
    fn run(&mut self) -> Result<Measured> {
        self.minute += 60_000;
        let minute = self.minute;
        self.runtime.block_on(async {
            let started = Instant::now();
            put_minute(&mut self.ingestion, &self.keys, minute).await?;
            let stored = Instant::now();
            let (mut last, mut updates) = (stored, 0);
            for _ in 0..self.subscribers {
                let served = tokio::time::timeout(WAIT, self.done.recv()).await;
                let served =
                    served.context("a subscriber does not get every close")?.context("no subscriber is left")??;
                ensure!(served.minute == minute, "closes of {} arrived instead of {minute}", served.minute);
                last = last.max(served.at);
                updates += served.updates;
            }
            let values = json!({
                "store_seconds": (stored - started).as_secs_f64(),
                "updates": updates,
                "expected": self.keys.len() * self.subscribers,
            });
            Ok(Measured::new((last - stored).as_secs_f64(), values))
        })
    }
}

/// One candle of every instrument in one call.
async fn put_minute(client: &mut IngestionServiceClient<Channel>, keys: &[String], minute: Millis) -> Result<()> {
    let batch = |(index, key): (usize, &String)| {
        let price = 100.0 + index as f64 + (minute / 60_000 % 100) as f64 * 0.05;
        let candle = Candle {
            open_time: Some(Timestamp { seconds: minute / 1000, nanos: 0 }),
            open: price,
            high: price + 0.1,
            low: price - 0.1,
            close: price + 0.05,
            volume: 100.0,
            open_interest: None,
        };
        CandleBatch {
            instrument_key: key.clone(),
            timeframe: "1m".to_owned(),
            candles: vec![candle],
            ..Default::default()
        }
    };
    let request = PutCandleBatchesRequest { batches: keys.iter().enumerate().map(batch).collect() };
    let answer = client.put_candle_batches(request).await?.into_inner();
    let stored: u64 = answer.outcomes.iter().map(|outcome| outcome.stored).sum();
    ensure!(stored == keys.len() as u64, "{stored} of {} candles were stored", keys.len());
    Ok(())
}

async fn subscribe(mut live: Grpc<Channel>, keys: &[String]) -> Result<Streaming<Told>> {
    let request = WatchCandlesRequest {
        instrument_keys: keys.to_vec(),
        timeframes: vec!["1m".to_owned()],
        closed_only: true,
        // The newest candle of each tells that the subscription stands.
        snapshot: true,
        ..Default::default()
    };
    live.ready().await?;
    let path = PathAndQuery::from_static("/candlemesh.aggregation.v1.LiveService/WatchCandles");
    let answer = live.server_streaming(tonic::Request::new(request), path, ProstCodec::default()).await?;
    let mut stream = answer.into_inner();
    let mut known = 0;
    while known < keys.len() {
        let message: Option<Told> =
            tokio::time::timeout(WAIT, stream.message()).await.context("no snapshot arrives")??;
        known += message.context("the stream ended")?.updates.len();
    }
    Ok(stream)
}

/// Counts the distinct instruments of each minute, and tells when all are there.
async fn watch(mut stream: Streaming<Told>, instruments: usize, done: mpsc::Sender<Result<Served>>) {
    let (mut minute, mut updates, mut distinct) = (0, 0, 0);
    let mut seen = vec![false; instruments];
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return send(&done, Err(anyhow::anyhow!("a stream ended"))).await,
            Err(status) => return send(&done, Err(status.into())).await,
        };
        for update in message.updates {
            let Some(candle) = update.candle.filter(|candle| candle.closed) else { continue };
            let open_time = candle.open_time.map_or(0, |at| at.seconds * 1000);
            if open_time > minute {
                (minute, updates, distinct) = (open_time, 0, 0);
                seen.fill(false);
            }
            let number = update.instrument_key.strip_prefix(KEY_PREFIX.as_bytes());
            let number = number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
            let Some(seen) = number.and_then(|number| seen.get_mut(number)) else {
                return send(&done, Err(anyhow::anyhow!("a close of {:?}", update.instrument_key))).await;
            };
            if open_time == minute {
                updates += 1;
                distinct += usize::from(!std::mem::replace(seen, true));
            }
        }
        if distinct == instruments {
            distinct = 0;
            seen.fill(false);
            send(&done, Ok(Served { minute, at: Instant::now(), updates })).await;
        }
    }
}

async fn send(done: &mpsc::Sender<Result<Served>>, served: Result<Served>) {
    // Nobody listens once the case has ended.
    let _ = done.send(served).await;
}

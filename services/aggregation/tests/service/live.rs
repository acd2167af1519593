//! Live candles over the wire.

use std::time::{Duration, Instant};

use market::{Candle, Millis};
use mesh::RemoteError;
use mesh::clock::ManualClock;
use proto::aggregation::live_service_client::LiveServiceClient;
use proto::aggregation::{CandleEvent, CandleUpdate, WatchCandlesRequest, WatchCandlesResponse};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

use super::*;

type Client = LiveServiceClient<Channel>;

const MINUTE: Millis = 60_000;
/// 2024-01-01, midnight UTC.
const START: Millis = 1_704_067_200_000;
/// For anything to arrive; only a hang takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

struct Feed {
    ledger: Arc<MemoryLedger>,
    clock: Arc<ManualClock>,
    served: Served,
    keys: Vec<InstrumentKey>,
}

async fn feed(instruments: usize, config: Config) -> Feed {
    let ledger = Arc::new(MemoryLedger::default());
    let keys: Vec<InstrumentKey> = (0..instruments).map(|number| key(&format!("CRYPTO|N{number}"))).collect();
    for key in &keys {
        ledger.add(Instrument {
            key: key.clone(),
            name: String::new(),
            exchange: String::new(),
            currency: String::new(),
            tick_size: 0.0,
            calendar: "24x7".into(),
        });
    }
    let clock = Arc::new(ManualClock::new(START));
    let parts = (Arc::clone(&ledger) as _, Arc::clone(&ledger) as _, Arc::clone(&ledger) as _);
    let served = serve_from(parts.0, parts.1, parts.2, Arc::clone(&clock) as _, "v1,v2", config).await;
    Feed { ledger, clock, served, keys }
}

impl Feed {
    fn client(&self) -> Client {
        let channel = Endpoint::from_shared(self.served.address.clone()).unwrap().connect_lazy();
        Client::new(channel).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES)
    }

    /// Every instrument's minute closes, and is stored at once.
    fn close_minute(&self, open_time: Millis) {
        self.clock.set(open_time + MINUTE);
        let row = |index: usize| {
            let close = 100.0 + index as f64;
            Candle { open_time, open: close, high: close, low: close, close, volume: 1.0, open_interest: None }
        };
        let rows = self.keys.iter().enumerate().map(|(index, key)| (key.clone(), Timeframe::M1, vec![row(index)]));
        self.ledger.put(&rows.collect::<Vec<_>>());
    }
}

fn watching(timeframe: &str, cursor: &str) -> WatchCandlesRequest {
    WatchCandlesRequest { timeframes: vec![timeframe.into()], cursor: cursor.into(), ..Default::default() }
}

async fn message(stream: &mut Streaming<WatchCandlesResponse>) -> WatchCandlesResponse {
    tokio::time::timeout(PATIENCE, stream.message())
        .await
        .expect("a message comes")
        .unwrap()
        .expect("the stream goes on")
}

/// The next updates and the cursor after them.
async fn updates(stream: &mut Streaming<WatchCandlesResponse>, count: usize) -> (Vec<CandleUpdate>, String) {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    while all.len() < count {
        let message = message(stream).await;
        all.extend(message.updates);
        cursor = message.cursor;
    }
    assert_eq!(all.len(), count);
    (all, cursor)
}

#[tokio::test]
async fn a_subscriber_hears_closes_and_resumes_at_another_replica() {
    let feed = feed(3, Config::default()).await;
    let mut stream = feed.client().watch_candles(watching("1m", "")).await.unwrap().into_inner();
    let first = message(&mut stream).await;
    assert!(first.updates.is_empty() && !first.cursor.is_empty());
    feed.close_minute(START);
    let (told, cursor) = updates(&mut stream, 3).await;
    let candle = told[1].candle.as_ref().unwrap();
    assert_eq!((told[1].instrument_key.as_str(), told[1].timeframe.as_str()), ("CRYPTO|N1", "1m"));
    assert_eq!((told[1].event(), told[1].revision, candle.close), (CandleEvent::Close, 1, 101.0));
    assert_eq!((candle.closed, candle.complete, candle.trading_date.as_str()), (true, true, "2024-01-01"));
    drop(stream);

    feed.close_minute(START + MINUTE);
    let (ledger, clock) = (&feed.ledger, &feed.clock);
    let parts = (Arc::clone(ledger) as _, Arc::clone(ledger) as _, Arc::clone(ledger) as _);
    let served = serve_from(parts.0, parts.1, parts.2, Arc::clone(clock) as _, "v1", Config::default()).await;
    let replica = Feed { ledger: Arc::clone(ledger), clock: Arc::clone(clock), served, keys: feed.keys.clone() };
    let mut again = replica.client().watch_candles(watching("1m", &cursor)).await.unwrap().into_inner();
    let (missed, _) = updates(&mut again, 3).await;
    assert!(missed.iter().all(|update| update.event() == CandleEvent::Close && update.revision == 2));
    replica.close_minute(START + 2 * MINUTE);
    let (live, _) = updates(&mut again, 3).await;
    assert!(live.iter().all(|update| update.revision == 3));
}

#[tokio::test]
async fn refusals_come_before_the_stream() {
    let feed = feed(1, Config::default()).await;
    for (request, field) in [
        (watching("7m", ""), "timeframes[0]"),
        (watching("1m", "1.zz.1"), "cursor"),
        (WatchCandlesRequest { snapshot: true, ..watching("1m", "") }, "snapshot"),
    ] {
        let fault = RemoteError::from_status(&feed.client().watch_candles(request).await.unwrap_err());
        assert_eq!((fault.code, fault.fields[0].0.as_str()), (Code::InvalidArgument, field));
    }
}

#[tokio::test]
async fn an_idle_stream_shows_that_it_is_alive_and_the_drain_ends_it() {
    let config = Config {
        live: aggregation::LiveConfig { heartbeat: Duration::from_millis(20), ..Default::default() },
        ..Config::default()
    };
    let feed = feed(1, config).await;
    let mut stream = feed.client().watch_candles(watching("1m", "")).await.unwrap().into_inner();
    let request = WatchCandlesRequest { instrument_keys: vec!["CRYPTO|OTHER".into()], ..watching("1m", "") };
    let mut other = feed.client().watch_candles(request).await.unwrap().into_inner();
    let first = message(&mut other).await.cursor;
    feed.close_minute(START);
    updates(&mut stream, 1).await;
    // Nothing happened to what it watches, and still its cursor moves on, so that a resumption stays short.
    let mut cursor = first.clone();
    while cursor == first {
        let heartbeat = message(&mut other).await;
        assert!(heartbeat.updates.is_empty());
        cursor = heartbeat.cursor;
    }
    feed.served.drain.start();
    let ended = loop {
        match tokio::time::timeout(PATIENCE, stream.message()).await.expect("the stream ends") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a drained stream must not look whole"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable);
}

/// The figures are printed; the bound only says that nothing hangs, since nothing here is built to be fast.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_instruments_close_at_once_for_fifty_subscribers() {
    let feed = feed(5000, Config::default()).await;
    let mut streams = Vec::new();
    for subscribers in [1, 10, 50] {
        while streams.len() < subscribers {
            let mut stream = feed.client().watch_candles(watching("1m", "")).await.unwrap().into_inner();
            message(&mut stream).await;
            streams.push(stream);
        }
        let round = subscribers as Millis * 10;
        let mut best = Duration::MAX;
        for minute in 0..3 {
            let expected = feed.keys.len();
            let listeners = streams.into_iter().map(|mut stream| {
                tokio::spawn(async move {
                    let (told, _) = updates(&mut stream, expected).await;
                    assert!(told.iter().all(|update| update.event() == CandleEvent::Close));
                    (stream, Instant::now())
                })
            });
            let listeners: Vec<_> = listeners.collect();
            feed.close_minute(START + (round + minute) * MINUTE);
            let stored = Instant::now();
            streams = Vec::new();
            let mut last = stored;
            for listener in listeners {
                let (stream, at) = listener.await.unwrap();
                streams.push(stream);
                last = last.max(at);
            }
            best = best.min(last - stored);
        }
        println!(
            "{subscribers} subscribers: the last has 5000 closes {:.1} ms after they were stored",
            best.as_secs_f64() * 1e3
        );
        assert!(best < Duration::from_secs(20));
    }
}

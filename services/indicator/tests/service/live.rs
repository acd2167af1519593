//! Live indicators over the wire.

use market::{Candle, Instrument, Millis};
use mesh::source::MemoryNewsroom;
use proto::indicator::{IndicatorEvent, IndicatorUpdate, WatchIndicatorsRequest, WatchIndicatorsResponse};
use tonic::Streaming;

use super::*;

const MINUTE: Millis = 60_000;
/// 2024-01-02 00:00 UTC.
const START: Millis = 1_704_153_600_000;
/// For anything to arrive; only a hang takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

struct Feed {
    room: MemoryNewsroom,
    keys: Vec<InstrumentKey>,
    service: Running,
}

async fn serve(room: &MemoryNewsroom, config: indicator::Config) -> Running {
    let room = Arc::new(room.clone());
    Running::start_live(Arc::clone(&room) as _, Arc::clone(&room) as _, room, config).await
}

async fn feed(instruments: usize, config: indicator::Config) -> Feed {
    let room = MemoryNewsroom::default();
    let keys: Vec<InstrumentKey> =
        (0..instruments).map(|number| format!("CRYPTO|N{number:04}").parse().unwrap()).collect();
    for key in &keys {
        room.add(Instrument {
            key: key.clone(),
            name: String::new(),
            exchange: String::new(),
            currency: String::new(),
            tick_size: 0.0,
            calendar: "24x7".into(),
        });
    }
    let service = serve(&room, config).await;
    Feed { room, keys, service }
}

impl Feed {
    /// Every instrument's minute closes.
    fn close_minute(&self, minute: i64) {
        let row = |index: usize| {
            let close = 100.0 + index as f64 + (minute as f64 * 0.3).sin();
            let open_time = START + minute * MINUTE;
            Candle {
                open_time,
                open: close,
                high: close + 1.0,
                low: close - 1.0,
                close,
                volume: 5.0,
                open_interest: None,
            }
        };
        let rows: Vec<_> =
            self.keys.iter().enumerate().map(|(index, key)| (key.clone(), Timeframe::M1, row(index), true)).collect();
        self.room.put_all(&rows);
    }

    fn watching(&self, cursor: &str) -> WatchIndicatorsRequest {
        WatchIndicatorsRequest {
            instrument_keys: self.keys.iter().map(ToString::to_string).collect(),
            timeframes: vec!["1m".into()],
            cursor: cursor.into(),
            ..Default::default()
        }
    }

    async fn watch(&self, cursor: &str) -> Streaming<WatchIndicatorsResponse> {
        self.service.live().watch_indicators(self.watching(cursor)).await.unwrap().into_inner()
    }
}

async fn message(stream: &mut Streaming<WatchIndicatorsResponse>) -> WatchIndicatorsResponse {
    let next = tokio::time::timeout(PATIENCE, stream.message()).await.expect("a message comes");
    next.unwrap().expect("the stream goes on")
}

/// The next updates of an event and the cursor after them.
async fn updates(
    stream: &mut Streaming<WatchIndicatorsResponse>,
    event: IndicatorEvent,
    count: usize,
) -> (Vec<IndicatorUpdate>, String) {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    while all.len() < count {
        let message = message(stream).await;
        all.extend(message.updates);
        cursor = message.cursor;
    }
    assert!(all.len() == count && all.iter().all(|update| update.event() == event), "{:?}", all.first());
    (all, cursor)
}

#[tokio::test]
async fn closes_are_told_and_another_replica_goes_on() {
    let feed = feed(3, indicator::Config::default()).await;
    (0..20).for_each(|minute| feed.close_minute(minute));
    let mut stream = feed.watch("").await;
    let head = message(&mut stream).await;
    assert_eq!(head.columns.len(), D3_SET.len() + 4);
    updates(&mut stream, IndicatorEvent::Snapshot, 3).await;
    feed.close_minute(20);
    let (told, cursor) = updates(&mut stream, IndicatorEvent::Close, 3).await;
    let answer = service_answer(&feed, &told[1]).await;
    let values: Vec<Option<f64>> = told[1]
        .values
        .iter()
        .enumerate()
        .map(|(index, value)| (!told[1].undefined.contains(&(index as u32))).then_some(*value))
        .collect();
    assert!(values == answer && values.iter().any(Option::is_none) && values.iter().any(Option::is_some), "{values:?}");
    drop(stream);

    feed.close_minute(21);
    let replica = serve(&feed.room, indicator::Config::default()).await;
    let replica = Feed { room: feed.room.clone(), keys: feed.keys.clone(), service: replica };
    let mut again = replica.watch(&cursor).await;
    let (missed, _) = updates(&mut again, IndicatorEvent::Close, 3).await;
    assert!(missed.iter().all(|update| update.open_time == Some(proto::convert::timestamp(START + 21 * MINUTE))));
    replica.close_minute(22);
    updates(&mut again, IndicatorEvent::Close, 3).await;
}

/// The last row that ComputeIndicators answers at an update's revision.
async fn service_answer(feed: &Feed, update: &IndicatorUpdate) -> Vec<Option<f64>> {
    let request = ComputeIndicatorsRequest {
        instrument_key: update.instrument_key.clone(),
        timeframe: update.timeframe.clone(),
        revision: Some(update.revision),
        ..Default::default()
    };
    let answer = feed.service.grpc().compute_indicators(forced(request, "v2")).await.unwrap().into_inner();
    answer.columns.iter().map(|column| *column_values(column).last().unwrap()).collect()
}

#[tokio::test]
async fn refusals_come_before_the_stream_and_the_drain_ends_it() {
    let config = indicator::Config {
        live: indicator::LiveConfig { heartbeat: Duration::from_millis(20), ..Default::default() },
        ..Default::default()
    };
    let feed = feed(1, config).await;
    for (request, field) in [
        (WatchIndicatorsRequest { instrument_keys: Vec::new(), ..feed.watching("") }, "instrument_keys"),
        (WatchIndicatorsRequest { timeframes: vec!["7m".into()], ..feed.watching("") }, "timeframes[0]"),
        (WatchIndicatorsRequest { indicators: vec!["sma:0".into()], ..feed.watching("") }, "indicators[0]"),
        (feed.watching("yesterday"), "cursor"),
    ] {
        let status = feed.service.live().watch_indicators(request).await.unwrap_err();
        let (code, reason, fields) = refusal(status);
        assert_eq!((code, reason.as_str(), fields[0].as_str()), (Code::InvalidArgument, "INVALID_FIELD", field));
    }
    let mut stream = feed.watch("").await;
    for _ in 0..3 {
        assert!(message(&mut stream).await.updates.is_empty(), "signs of life while nothing happens");
    }
    feed.service.drain.start();
    let ended = loop {
        match tokio::time::timeout(PATIENCE, stream.message()).await.expect("the stream ends") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a drained stream must not look whole"),
            Err(status) => break RemoteError::from_status(&status),
        }
    };
    assert_eq!((ended.code, ended.reason.as_str()), (Code::Unavailable, "DRAINING"));
}

/// The figures are printed; the bound only says that nothing hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_instruments_close_at_once_for_ten_subscribers() {
    let feed = feed(5000, indicator::Config::default()).await;
    (0..60).for_each(|minute| feed.close_minute(minute));
    let before = resident_kib();
    let mut streams = Vec::new();
    let mut minute = 60;
    for subscribers in [1, 10] {
        while streams.len() < subscribers {
            let started = std::time::Instant::now();
            let mut stream = feed.watch("").await;
            message(&mut stream).await;
            updates(&mut stream, IndicatorEvent::Snapshot, 5000).await;
            if streams.len() < 2 {
                println!("snapshot {}: {:.0} ms", streams.len() + 1, started.elapsed().as_secs_f64() * 1e3);
            }
            streams.push(stream);
        }
        let mut best = Duration::MAX;
        for _ in 0..3 {
            let listeners = streams.into_iter().map(|mut stream| {
                tokio::spawn(async move {
                    updates(&mut stream, IndicatorEvent::Close, 5000).await;
                    (stream, std::time::Instant::now())
                })
            });
            let listeners: Vec<_> = listeners.collect();
            feed.close_minute(minute);
            minute += 1;
            let stored = std::time::Instant::now();
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
            "{subscribers} subscribers: the last has 5000 closes of the D3 set after {:.0} ms",
            best.as_secs_f64() * 1e3
        );
    }
    println!("resident memory grew by {} KiB, the feed's history among it", resident_kib().saturating_sub(before));
    assert!(minute == 66);
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or_default()
}

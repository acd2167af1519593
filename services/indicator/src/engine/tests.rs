//! Both engines against in-memory twins.

use std::sync::atomic::{AtomicUsize, Ordering};

use market::{Candle, Date, Frame, Instrument};
use mesh::CpuPool;
use mesh::engine::Engines;
use mesh::source::{Buckets, MemorySource};
use proto::indicator::ComputeIndicatorsRequest;
use proto::wire;

use super::*;

const ENGINES: [Engine; 2] = [Engine::V1, Engine::V2];
const KEY: &str = "US|TEST";
const REVISION: u64 = 7;

/// Closes that rise and fall, two trading days, no volume on the first minutes of each.
fn buckets(rows: usize) -> BucketFrame {
    let mut frame = Frame::default();
    let mut trading_date = Vec::new();
    for row in 0..rows {
        let close = 100.0 + (row as f64 * 0.7).sin() * 5.0;
        let candle = Candle {
            open_time: row as i64 * 60_000,
            open: close - 0.25,
            high: close + 0.5,
            low: close - 0.5,
            close,
            volume: if row % (rows / 2) < 3 { 0.0 } else { 10.0 },
            open_interest: None,
        };
        frame.push(&candle).unwrap();
        trading_date.push(if row < rows / 2 { Date::constant(1970, 1, 1) } else { Date::constant(1970, 1, 2) });
    }
    BucketFrame {
        frame,
        closed: vec![true; rows],
        complete: vec![true; rows],
        source_count: vec![1; rows],
        expected_count: vec![1; rows],
        trading_date,
    }
}

fn source(rows: usize) -> MemorySource {
    let key: InstrumentKey = KEY.parse().unwrap();
    let instrument = Instrument {
        key: key.clone(),
        name: String::new(),
        exchange: "US".into(),
        currency: String::new(),
        tick_size: 0.0,
        calendar: "NYSE".into(),
    };
    let mut source = MemorySource { revision: REVISION, ..Default::default() };
    source.instruments.insert(key.clone(), instrument);
    source.buckets.insert((key, Timeframe::M1), Buckets { revision: REVISION, frame: buckets(rows) });
    source
}

fn indicators(config: &Config, source: MemorySource) -> Indicators {
    let source = Arc::new(source);
    with_candles(config, Arc::clone(&source) as Arc<dyn Candles>, source)
}

fn with_candles(config: &Config, candles: Arc<dyn Candles>, master: Arc<MemorySource>) -> Indicators {
    let pool = Arc::new(CpuPool::new(1, 64).unwrap());
    let live = Arc::new(mesh::source::MemoryNewsroom::default());
    let ports = Ports { candles, live, master, engines: Engines::BOTH, pool, cache: config.local_cache() };
    Indicators::new(config, &ports)
}

fn query(specs: &[&str], rows: Range<i64>) -> Query {
    let stamp = |minute: i64| Some(proto::convert::timestamp(minute * 60_000));
    ComputeIndicatorsRequest {
        instrument_key: KEY.into(),
        timeframe: "1m".into(),
        range: Some(wire::TimeRange { start_time: stamp(rows.start), end_time: stamp(rows.end) }),
        indicators: specs.iter().map(|spec| (*spec).to_owned()).collect(),
        revision: None,
    }
    .try_into()
    .unwrap()
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[tokio::test]
async fn the_range_cuts_rows_and_never_changes_a_value() {
    let indicators = indicators(&Config::default(), source(200));
    let specs = ["ema:20", "rsi", "vwap"];
    for engine in ENGINES {
        let whole = indicators.compute(engine, &query(&specs, 0..200)).await.unwrap().table;
        let part = indicators.compute(engine, &query(&specs, 50..60)).await.unwrap().table;
        assert_eq!(part.open_time, (50..60).map(|minute| minute * 60_000).collect::<Vec<_>>());
        for (whole, part) in whole.columns.iter().zip(&part.columns) {
            assert_eq!(bits(&whole.values[50..60]), bits(&part.values), "{engine} {}", part.name);
        }
    }
}

#[tokio::test]
async fn columns_come_in_the_order_and_by_the_names_asked_from_one_entry() {
    let indicators = indicators(&Config::default(), source(100));
    let asked = ["SMA:9", "rsi", "bbands", "sma", "rsi:14", "ema:9"];
    let v1 = indicators.compute(Engine::V1, &query(&asked, 0..100)).await.unwrap();
    let v2 = indicators.compute(Engine::V2, &query(&asked, 0..100)).await.unwrap();
    let names: Vec<&str> = v2.table.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(&names[..3], ["sma:9", "rsi", "bbands.upper"]);
    assert_eq!(&names[7..], ["sma", "rsi:14", "ema:9"]);
    for (a, b) in v1.table.columns.iter().zip(&v2.table.columns) {
        assert_eq!((&a.name, bits(&a.values)), (&b.name, bits(&b.values)));
    }
    // Naive definition.
    let close = buckets(100).frame.close().to_vec();
    let mean = close[3..12].iter().sum::<f64>() / 9.0;
    assert!((v2.table.columns[0].values[11] - mean).abs() < 1e-12 && v2.table.columns[0].values[7].is_nan());

    let turned = ["ema:9", "sma:20", "rsi:14", "bbands:20,2", "sma:9"];
    let again = indicators.compute(Engine::V2, &query(&turned, 0..100)).await.unwrap();
    assert_eq!((again.source, again.compute), (Source::Local, Duration::ZERO));
    assert_eq!(bits(&again.table.columns[0].values), bits(&v1.table.columns[9].values));
    assert_eq!(again.table.columns[3].name, "bbands:20,2.upper");
    assert_eq!(v1.source, Source::Computed);

    // A profile that has the same definitions is the same entry, under the names asked; one that has another is none.
    let there = ["ema:9@tradingview", "sma:20@talib", "rsi:14", "bbands:20,2@tradingview", "sma:9@tradingview"];
    let same = indicators.compute(Engine::V2, &query(&there, 0..100)).await.unwrap();
    assert_eq!((same.source, same.table.columns[1].name.as_str()), (Source::Local, "sma:20@talib"));
    assert_eq!(bits(&same.table.columns[1].values), bits(&again.table.columns[1].values));
    let there = ["ema:9", "sma:20", "rsi:14@tradingview", "bbands:20,2", "sma:9"];
    let other = indicators.compute(Engine::V2, &query(&there, 0..100)).await.unwrap();
    assert_eq!((other.source, other.table.columns[2].name.as_str()), (Source::Computed, "rsi:14@tradingview"));
}

#[tokio::test]
async fn the_cache_is_passed_by_when_switched_off_or_when_an_input_differs() {
    let off = Config { caching: false, ..Default::default() };
    let without = indicators(&off, source(50));
    let with = indicators(&Config::default(), source(50));
    for (indicators, kept) in [(without, Source::Computed), (with, Source::Local)] {
        let asked = query(&["sma:9"], 0..50);
        assert_eq!(indicators.compute(Engine::V2, &asked).await.unwrap().source, Source::Computed);
        assert_eq!(indicators.compute(Engine::V2, &asked).await.unwrap().source, kept);
        for other in [query(&["sma:8"], 0..50), query(&["sma:9"], 0..49)] {
            assert_eq!(indicators.compute(Engine::V2, &other).await.unwrap().source, Source::Computed);
        }
    }
}

#[tokio::test]
async fn a_table_too_large_to_keep_is_answered_and_not_kept() {
    // Fourteen columns of so many rows are 33.6 MB, just over what is kept.
    let rows = 300_000_i64;
    let indicators = indicators(&Config::default(), source(300_000));
    for (range, second) in [(0..rows, Source::Computed), (0..rows / 2, Source::Local)] {
        let asked = query(&[], range.clone());
        for source in [Source::Computed, second] {
            let answer = indicators.compute(Engine::V2, &asked).await.unwrap();
            assert_eq!((answer.source, answer.table.open_time.len() as i64), (source, range.end));
        }
    }
}

#[tokio::test]
async fn what_does_not_exist_is_named_and_what_has_no_candles_is_empty() {
    let mut source = source(50);
    let bare: InstrumentKey = "US|BARE".parse().unwrap();
    let instrument = Instrument { key: bare.clone(), ..source.instruments.values().next().unwrap().clone() };
    source.instruments.insert(bare.clone(), instrument);
    let indicators = indicators(&Config::default(), source);
    for engine in ENGINES {
        let unknown = Query { key: "US|NOPE".parse().unwrap(), ..query(&[], 0..50) };
        let error = indicators.compute(engine, &unknown).await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::NotFound, "UNKNOWN_INSTRUMENT"));
        assert!(error.to_string().contains("US|NOPE"));
        assert!(indicators.compute_at(engine, &unknown, 0).await.is_err());

        let future = Query { revision: Some(REVISION + 1), ..query(&[], 0..50) };
        let error = indicators.compute(engine, &future).await.unwrap_err();
        assert_eq!(error.field().as_deref(), Some("revision"));

        let bare = Query { key: bare.clone(), ..query(&["macd"], 0..50) };
        let answer = indicators.compute_at(engine, &bare, 0).await.unwrap();
        assert_eq!((answer.table.open_time.len(), answer.table.columns.len()), (0, 3));
    }
}

#[tokio::test]
async fn more_values_than_configured_are_refused() {
    let config = Config { max_values: 99, ..Default::default() };
    let indicators = indicators(&config, source(50));
    for engine in ENGINES {
        let error = indicators.compute(engine, &query(&["sma:9", "rsi"], 0..50)).await.unwrap_err();
        assert!(matches!(error, Error::Limit { found: 100, limit: 99, .. }), "{error}");
        assert_eq!(error.code(), Code::ResourceExhausted);
    }
}

/// Fails once, late, then answers: an upstream whose first caller had a short deadline.
#[derive(Debug)]
struct FailsOnce {
    source: Arc<MemorySource>,
    calls: AtomicUsize,
}

#[tonic::async_trait]
impl Candles for FailsOnce {
    async fn candles(
        &self,
        key: &InstrumentKey,
        timeframe: Timeframe,
        range: TimeRange,
        revision: Option<u64>,
    ) -> Result<Buckets, RemoteError> {
        if self.calls.fetch_add(1, Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            return Err(RemoteError::from_status(&tonic::Status::deadline_exceeded("too late")));
        }
        self.source.candles(key, timeframe, range, revision).await
    }
}

#[tokio::test]
async fn one_callers_failure_is_not_everybodys() {
    let source = Arc::new(source(50));
    let candles = Arc::new(FailsOnce { source: Arc::clone(&source), calls: AtomicUsize::new(0) });
    let indicators = with_candles(&Config::default(), Arc::clone(&candles) as Arc<dyn Candles>, source);
    let asked = query(&["sma:9"], 0..50);
    let calls = (0..10).map(|_| indicators.compute(Engine::V2, &asked));
    let outcomes = futures::future::join_all(calls).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_err()).count(), 1);
    assert_eq!(candles.calls.load(Ordering::Relaxed), 2, "the rest share one computation");
}

#[derive(Debug)]
struct WrongRevision(Arc<MemorySource>);

#[tonic::async_trait]
impl Candles for WrongRevision {
    async fn candles(
        &self,
        key: &InstrumentKey,
        timeframe: Timeframe,
        range: TimeRange,
        revision: Option<u64>,
    ) -> Result<Buckets, RemoteError> {
        let buckets = self.0.candles(key, timeframe, range, revision).await?;
        Ok(Buckets { revision: REVISION + 1, ..buckets })
    }
}

#[tokio::test]
async fn candles_of_another_revision_are_not_taken() {
    let source = Arc::new(source(50));
    let indicators = with_candles(&Config::default(), Arc::new(WrongRevision(Arc::clone(&source))), source);
    for engine in ENGINES {
        let error = indicators.compute(engine, &query(&["sma:9"], 0..50)).await.unwrap_err();
        assert_eq!(error.reason(), "WRONG_REVISION");
    }
}

#[test]
fn an_audit_stops_when_nobody_waits_for_it() {
    let specs: Vec<Spec> = ["sma:9", "ema:9", "macd"].iter().map(|text| text.parse().unwrap()).collect();
    let history = buckets(2000);
    for engine in ENGINES {
        let asked = AtomicUsize::new(0);
        let audit = |patience: usize| {
            asked.store(0, Ordering::Relaxed);
            let stop = || asked.fetch_add(1, Ordering::Relaxed) >= patience;
            audit::audit_newest(engine, &specs, &history, TimeRange::ALL, &stop)
        };
        assert_eq!(audit(usize::MAX).unwrap().1.len(), 5);
        let questions = asked.load(Ordering::Relaxed);
        assert!(questions > 17, "every one of the 17 computations asks: {questions}");
        assert_eq!(audit(20).unwrap_err(), kernels::Error::Stopped);
        assert_eq!(asked.load(Ordering::Relaxed), 21);
    }
}

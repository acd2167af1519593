//! The pipeline over hand-built universes.

use market::{BucketFrame, TimeRange};
use mesh::RemoteError;
use mesh::engine::Engines;
use mesh::source::{Buckets, Candles, MemorySource};
use store::Stores;
use tonic::Status;

use super::*;
use crate::candles::{add, daily, key, on_dates, strong};

fn pipeline(source: MemorySource) -> Pipeline {
    let source = Arc::new(source);
    with_candles(Arc::clone(&source) as Arc<dyn Candles>, source)
}

fn with_candles(candles: Arc<dyn Candles>, master: Arc<MemorySource>) -> Pipeline {
    let pool = Arc::new(CpuPool::new(1, 64).unwrap());
    let ports = Ports { candles, master, screens: Stores::memory().screens, engines: Engines::BOTH, pool };
    let config = Config::default();
    Pipeline::new(Histories::new(&config, &ports), &config, &ports)
}

fn query(date: Option<Date>) -> ScreenQuery {
    ScreenQuery { keys: None, date, params: ScreenParams::default() }
}

fn keys(hits: &[Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.key.as_str()).collect()
}

/// One instrument for each way out of the pipeline.
fn universe() -> MemorySource {
    let mut source = MemorySource::default();
    let volume = 400_000.0;
    // Above its average, but the last days fell: no strength.
    let tired = [vec![2.0; 62], vec![-1.5; 13]].concat();
    let climber = vec![1.0; 75];
    // Strong days one by one, never two in a row.
    let lonely = [vec![0.0; 55], [5.0, 0.0].repeat(10)].concat();
    // Two strong runs and two long pauses.
    let paused = [vec![0.0; 65], vec![5.0; 4], vec![0.0; 1], vec![5.0; 5]].concat();
    for (name, changes) in [
        ("NSE_EQ|RISE", strong(5.0)),
        ("NSE_EQ|FALL", strong(-5.0)),
        ("NSE_EQ|FLAT", vec![0.0; 75]),
        ("NSE_EQ|TIRED", tired),
        ("NSE_EQ|CLIMBER", climber),
        ("NSE_EQ|LONELY", lonely),
        ("NSE_EQ|PAUSED", paused),
    ] {
        add(&mut source, name, "NSE", daily(100.0, &changes, volume));
    }
    add(&mut source, "NSE_EQ|CHEAP", "NSE", daily(5.0, &strong(5.0), volume));
    add(&mut source, "NSE_EQ|DEAR", "NSE", daily(5000.0, &strong(5.0), volume));
    add(&mut source, "NSE_EQ|THIN", "NSE", daily(100.0, &strong(5.0), 299_999.0));
    // Its nine and its twenty candles lie on the last dates.
    let whole = daily(100.0, &[0.0; 75], volume);
    add(&mut source, "NSE_EQ|NEW", "NSE", whole.slice(66..75));
    add(&mut source, "NSE_EQ|YOUNG", "NSE", whole.slice(55..75));
    add(&mut source, "NSE_EQ|STALE", "NSE", whole.slice(0..60));
    add(&mut source, "NSE_EQ|EMPTY", "NSE", BucketFrame::default());
    add(&mut source, "MARS|ROCK", "MARS", whole);
    source
}

#[tokio::test]
async fn every_instrument_ends_in_one_list_and_each_rejection_says_why() {
    let source = universe();
    let count = source.instruments.len() as u32;
    let last = *source.buckets[&(key("NSE_EQ|RISE"), Timeframe::D1)].frame.trading_date.last().unwrap();
    let screened = pipeline(source).run(&query(None)).await.unwrap();
    assert_eq!(screened.date, Some(last));
    assert_eq!((keys(&screened.bullish), keys(&screened.bearish)), (vec!["NSE_EQ|RISE"], vec!["NSE_EQ|FALL"]));
    let expected = [
        ("MARS|ROCK", "universe", ["calendar", "MARS"]),
        ("NSE_EQ|CHEAP", "basic", ["8.", "below 20.00"]),
        ("NSE_EQ|CLIMBER", "strong_move", ["0 of 60 days", "below 0.1"]),
        ("NSE_EQ|DEAR", "basic", ["last close", "above 1500.00"]),
        ("NSE_EQ|EMPTY", "universe", ["no daily", "candles"]),
        ("NSE_EQ|FLAT", "ema", ["0.000 %", "within 3 %"]),
        ("NSE_EQ|LONELY", "strong_move", ["longest strong run is 1", "shorter than 2"]),
        ("NSE_EQ|NEW", "basic", ["9 candles", "fewer than 10"]),
        ("NSE_EQ|PAUSED", "strong_move", ["1 runs of more than 5 days", "a third of 2 strong runs"]),
        ("NSE_EQ|STALE", "universe", ["last candle is of 2024-03-26", "more than 7"]),
        ("NSE_EQ|THIN", "basic", ["299999", "300000"]),
        ("NSE_EQ|TIRED", "rsi", ["bullish", "below 50"]),
        ("NSE_EQ|YOUNG", "ema", ["20 candles", "50"]),
    ];
    let found: Vec<_> = screened.rejected.iter().map(|each| (each.key.as_str(), each.stage)).collect();
    assert_eq!(found, expected.map(|(name, stage, _)| (name, stage)));
    for (rejection, (name, _, parts)) in screened.rejected.iter().zip(expected) {
        assert!(parts.iter().all(|part| rejection.reason.contains(part)), "{name}: {}", rejection.reason);
        assert!(rejection.value.is_finite());
    }
    let stages: Vec<_> = screened
        .stages
        .iter()
        .map(|each| (each.stage, each.processed, each.passed, each.failed, each.bullish, each.bearish))
        .collect();
    let expected = [
        ("universe", count, 12, 3, 0, 0),
        ("basic", 12, 8, 4, 0, 0),
        ("ema", 8, 6, 2, 5, 1),
        ("rsi", 6, 5, 1, 4, 1),
        ("strong_move", 5, 2, 3, 1, 1),
    ];
    assert_eq!(stages, expected);
    assert!(screened.stages.iter().any(|stage| stage.duration > Duration::ZERO));
}

#[tokio::test]
async fn a_row_holds_the_figures_of_the_definitions() {
    let mut source = MemorySource::default();
    let frame = daily(100.0, &strong(5.0), 400_000.0);
    add(&mut source, "NSE_EQ|RISE", "NSE", frame.clone());
    let screened = pipeline(source).run(&query(None)).await.unwrap();
    let hit = &screened.bullish[0];
    let close = frame.frame.close();
    let mut ema = close[..50].iter().sum::<f64>() / 50.0;
    close[50..].iter().for_each(|close| ema += (close - ema) * 2.0 / 51.0);
    let last = close[74];
    assert!((hit.row.distance_percent.unwrap() - (last - ema) / ema * 100.0).abs() < 1e-9);
    assert_eq!((hit.row.last_close, hit.row.mean_volume, hit.row.strong_move_count), (last, 400_000.0, 12));
    assert!((hit.row.strength - 0.7 * 0.5).abs() < 1e-9, "5 % is half of full strength, volume is ordinary");
    // Wilder's: the mean of the first 14 ranges from the second candle on, then 1/14 of each.
    let (high, low) = (frame.frame.high(), frame.frame.low());
    let range = |row: usize| high[row].max(close[row - 1]) - low[row].min(close[row - 1]);
    let mut atr = (1..15).map(range).sum::<f64>() / 14.0;
    (15..75).for_each(|row| atr = (atr * 13.0 + range(row)) / 14.0);
    assert!((hit.atr.unwrap() - atr).abs() < 1e-9 * atr);
}

#[tokio::test]
async fn later_candles_never_change_an_earlier_screen() {
    let with_later = |later: &[f64]| {
        let mut source = MemorySource::default();
        for (name, percent) in [("NSE_EQ|RISE", 5.0), ("NSE_EQ|FALL", -5.0), ("NSE_EQ|SLOW", 1.0)] {
            let changes = [strong(percent), later.to_vec()].concat();
            add(&mut source, name, "NSE", daily(100.0, &changes, 400_000.0));
        }
        pipeline(source)
    };
    let date = daily(1.0, &strong(1.0), 1.0).trading_date[74];
    let known = with_later(&[]).run(&query(Some(date))).await.unwrap();
    let later = with_later(&[-15.0, -15.0, 20.0, -15.0, -15.0]);
    let again = later.run(&query(Some(date))).await.unwrap();
    assert_eq!((&known.bullish, &known.bearish, &known.rejected), (&again.bullish, &again.bearish, &again.rejected));
    assert_eq!(known.bullish.len() + known.bearish.len(), 2);
    let now = later.run(&query(None)).await.unwrap();
    assert!(now.date > Some(date));
    assert_ne!(known.rejected, now.rejected, "the later candles do matter later");
}

#[tokio::test]
async fn a_date_without_a_candle_screens_the_last_ones_before() {
    let mut source = MemorySource::default();
    let frame = daily(100.0, &strong(5.0), 400_000.0);
    let last = frame.trading_date[74];
    add(&mut source, "NSE_EQ|RISE", "NSE", frame);
    let pipeline = pipeline(source);
    let after = |days: i32| {
        let mut date = last;
        (0..days).for_each(|_| date = date.tomorrow().unwrap());
        query(Some(date))
    };
    assert_eq!(pipeline.run(&after(7)).await.unwrap().bullish.len(), 1);
    let stale = pipeline.run(&after(8)).await.unwrap();
    assert_eq!((stale.rejected[0].stage, stale.rejected[0].value), (UNIVERSE, 8.0));
    // Before the first candle nothing is known.
    let before = pipeline.run(&query(Some(Date::constant(2023, 12, 31)))).await.unwrap();
    assert_eq!(before.rejected[0].reason, "no daily candles up to 2023-12-31");
    assert_eq!(before.date, Some(Date::constant(2023, 12, 31)));
}

#[tokio::test]
async fn named_instruments_are_screened_alone_and_unknown_ones_rejected() {
    let named = ["NSE_EQ|RISE", "NSE_EQ|NOBODY"].map(key).to_vec();
    let screened = pipeline(universe()).run(&ScreenQuery { keys: Some(named), ..query(None) }).await.unwrap();
    assert_eq!(keys(&screened.bullish), ["NSE_EQ|RISE"]);
    assert_eq!(screened.rejected.len(), 1);
    let Rejection { key, stage, reason, .. } = &screened.rejected[0];
    assert_eq!((key.as_str(), *stage), ("NSE_EQ|NOBODY", UNIVERSE));
    assert_eq!(reason, "instrument 'NSE_EQ|NOBODY' is not known");
}

#[tokio::test]
async fn nothing_at_all_has_no_date() {
    let screened = pipeline(MemorySource::default()).run(&query(None)).await.unwrap();
    assert_eq!((screened.date, screened.rejected.len(), screened.stages[0].processed), (None, 0, 0));
}

#[tokio::test]
async fn stages_that_are_not_run_refuse_nobody_but_their_figures_are_there() {
    let named = ["NSE_EQ|CLIMBER", "NSE_EQ|FALL", "NSE_EQ|NEW"].map(key).to_vec();
    let params = ScreenParams { stages: vec![Stage::Basic], min_candles: 1, ..ScreenParams::default() };
    let screened = pipeline(universe()).run(&ScreenQuery { keys: Some(named), date: None, params }).await.unwrap();
    assert_eq!(keys(&screened.bullish), ["NSE_EQ|CLIMBER", "NSE_EQ|NEW"]);
    assert_eq!(keys(&screened.bearish), ["NSE_EQ|FALL"]);
    let climber = &screened.bullish[0].row;
    assert!(climber.distance_percent.unwrap() > 3.0 && climber.rsi.unwrap() == 100.0);
    assert_eq!(screened.bullish[1].row.distance_percent, None, "nine candles have no ema");
    let stages: Vec<_> = screened.stages.iter().map(|each| (each.stage, each.bullish, each.bearish)).collect();
    assert_eq!(stages, [(UNIVERSE, 0, 0), ("basic", 2, 1)]);
}

#[tokio::test]
async fn the_ten_best_rank_by_count_then_strength_then_key() {
    let mut source = MemorySource::default();
    let turns = |days: usize, percent: f64| -> Vec<f64> {
        let step = move |day: usize| if day % 4 == 3 { -percent / 4.0 } else { percent };
        [vec![0.0; 75 - days], (0..days).map(step).collect()].concat()
    };
    // 12 strong days at 5 % twice, 12 at 6 %, 13 falling at 4 %, and nine of fewer days.
    add(&mut source, "NSE_EQ|B", "NSE", daily(100.0, &turns(15, 5.0), 4e5));
    add(&mut source, "NSE_EQ|A", "NSE", daily(100.0, &turns(15, 5.0), 4e5));
    add(&mut source, "NSE_EQ|C", "NSE", daily(100.0, &turns(15, 6.0), 4e5));
    add(&mut source, "NSE_EQ|D", "NSE", daily(400.0, &turns(17, -4.0), 4e5));
    for index in 0..9 {
        add(&mut source, &format!("NSE_EQ|Z{index}"), "NSE", daily(100.0, &turns(14, 5.0), 4e5));
    }
    let (date, hits) = pipeline(source).top(&query(None)).await.unwrap();
    assert!(date.is_some());
    let expected = ["D", "C", "A", "B", "Z0", "Z1", "Z2", "Z3", "Z4", "Z5"].map(|name| format!("NSE_EQ|{name}"));
    assert_eq!(keys(&hits), expected);
    let counts: Vec<u32> = hits.iter().map(|hit| hit.row.strong_move_count).collect();
    assert_eq!(counts, [13, 12, 12, 12, 11, 11, 11, 11, 11, 11]);
}

/// Answers one instrument with a fault.
#[derive(Debug)]
struct Faulty {
    source: Arc<MemorySource>,
    key: InstrumentKey,
    code: Code,
}

#[tonic::async_trait]
impl Candles for Faulty {
    async fn candles(
        &self,
        key: &InstrumentKey,
        timeframe: Timeframe,
        range: TimeRange,
        revision: Option<u64>,
    ) -> Result<Buckets, RemoteError> {
        if *key == self.key {
            return Err(RemoteError::from_status(&Status::new(self.code, "checksum of 2024-01-02")));
        }
        self.source.candles(key, timeframe, range, revision).await
    }
}

#[tokio::test]
async fn broken_data_rejects_one_instrument_and_an_upstream_that_is_down_fails_the_screen() {
    let run = async |code| {
        let source = Arc::new(universe());
        let faulty = Faulty { source: Arc::clone(&source), key: key("NSE_EQ|FALL"), code };
        with_candles(Arc::new(faulty), source).run(&query(None)).await
    };
    let screened = run(Code::DataLoss).await.unwrap();
    assert_eq!(keys(&screened.bullish), ["NSE_EQ|RISE"]);
    let rejection = screened.rejected.iter().find(|each| each.key == key("NSE_EQ|FALL")).unwrap();
    assert_eq!((rejection.stage, rejection.reason.as_str()), (UNIVERSE, "checksum of 2024-01-02"));
    for code in [Code::Unavailable, Code::DeadlineExceeded, Code::ResourceExhausted] {
        assert_eq!(run(code).await.unwrap_err().code(), code);
    }
}

#[tokio::test]
async fn dates_of_other_calendars_count_towards_the_latest() {
    let mut source = MemorySource::default();
    let frame = daily(100.0, &strong(5.0), 4e5);
    let last = frame.trading_date[74];
    let sunday = std::iter::successors(Some(last), |date| date.tomorrow().ok())
        .find(|date| Date::weekday(*date) == Date::constant(2024, 1, 7).weekday());
    add(&mut source, "NSE_EQ|RISE", "NSE", frame);
    add(&mut source, "CRYPTO|X:Y", "24x7", on_dates("24x7", &[(sunday.unwrap(), [50.0, 51.0, 49.0, 50.0, 1e9])]));
    let screened = pipeline(source).run(&query(None)).await.unwrap();
    assert_eq!(screened.date, sunday);
    assert_eq!(keys(&screened.bullish), ["NSE_EQ|RISE"], "Friday's candle is fresh enough on Sunday");
    assert_eq!(screened.rejected[0].stage, "basic");
}

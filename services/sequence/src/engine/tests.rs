//! Both engines through the service's own path.

use kernels::sequence::{Direction, Kind};
use market::BucketFrame;
use mesh::engine::Engines;
use mesh::source::MemorySource;
use store::Stores;

use super::*;
use crate::Config;
use crate::candles::{REVISION, add, daily, key};

const NAME: &str = "NSE_EQ|A";

fn analyses(frame: BucketFrame, stores: &Stores) -> Analyses {
    let mut source = MemorySource::default();
    add(&mut source, NAME, "NSE", frame);
    let source = Arc::new(source);
    let ports = Ports {
        candles: Arc::clone(&source) as _,
        master: source,
        screens: Arc::clone(&stores.screens),
        engines: Engines::BOTH,
        pool: Arc::new(CpuPool::new(1, 64).unwrap()),
    };
    Analyses::new(Histories::new(&Config::default(), &ports), &ports)
}

fn query(range: TimeRange) -> AnalysisQuery {
    let params = AnalysisParams::default();
    AnalysisQuery { key: key(NAME), timeframe: Timeframe::D1, range, params, has_moves: true, is_kept: false }
}

/// The range of some rows.
fn rows(frame: &BucketFrame, first: usize, last: usize) -> TimeRange {
    let open_time = frame.frame.open_time();
    TimeRange::new(open_time[first], open_time[last] + 1).unwrap()
}

/// Changes of -8 to 8 percent and volumes that vary, from a fixed seed.
fn random(count: usize, seed: u64) -> BucketFrame {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / (1_u64 << 31) as f64
    };
    let changes: Vec<f64> = (0..count).map(|_| next() * 16.0 - 8.0).collect();
    let even = daily(500.0, &changes, 1.0);
    let times = even.frame.open_time().to_vec();
    let volume: Vec<f64> = (0..count).map(|_| (next() * 1e6).floor()).collect();
    let column = |values: &[f64]| values.to_vec();
    let frame = &even.frame;
    let ohlcv = [column(frame.open()), column(frame.high()), column(frame.low()), column(frame.close()), volume];
    let frame = market::Frame::from_columns(times, ohlcv, vec![f64::NAN; count]).unwrap();
    BucketFrame { frame, ..even }
}

#[tokio::test]
async fn a_run_of_strong_days_is_one_sequence() {
    // Trend is unknown for the first 68 candles, so either direction may be strong.
    let frame = daily(100.0, &[vec![0.0; 20], vec![4.0; 3], vec![1.0; 2], vec![-6.0; 2], vec![0.0; 2]].concat(), 1e6);
    let analyses = analyses(frame.clone(), &Stores::memory());
    for engine in [Engine::V1, Engine::V2] {
        let answer = analyses.analyze(engine, &query(TimeRange::ALL), 0).await.unwrap();
        let found: Vec<_> = answer
            .analysis
            .sequences
            .iter()
            .map(|each| (each.kind, each.direction, each.length, each.gap_to_next_strong))
            .collect();
        let expected = [
            (Kind::Weak, Direction::None, 20, Some(1)),
            (Kind::Strong, Direction::Up, 3, Some(3)),
            (Kind::Weak, Direction::Up, 2, Some(1)),
            (Kind::Strong, Direction::Down, 2, None),
            (Kind::Weak, Direction::None, 2, None),
        ];
        assert_eq!(found, expected, "{engine}");
        assert_eq!((answer.revision, answer.open_time.len()), (REVISION, frame.len()));
        let up = answer.analysis.sequences[1];
        assert_eq!(answer.open_time[up.start_index], frame.frame.open_time()[20]);
        assert!((up.strength - 0.7 * 0.4).abs() < 1e-12);
    }
}

#[tokio::test]
async fn the_range_never_changes_a_move_and_bounds_everything_else() {
    let frame = random(300, 11);
    let analyses = analyses(frame.clone(), &Stores::memory());
    for engine in [Engine::V1, Engine::V2] {
        let whole = analyses.analyze(engine, &query(TimeRange::ALL), 0).await.unwrap();
        let part = analyses.analyze(engine, &query(rows(&frame, 120, 219)), 0).await.unwrap();
        assert_eq!(part.analysis.moves, whole.analysis.moves[120..220]);
        assert_eq!(part.open_time, frame.frame.open_time()[120..220]);
        let mean = frame.frame.volume()[120..220].iter().sum::<f64>() / 100.0;
        assert!((part.analysis.metrics.volume_average - mean).abs() < 1e-6);
        assert!(part.analysis.sequences.iter().all(|each| each.end_index() < 100));
        let samples: u32 = part.analysis.patterns.iter().map(|each| each.frequency).sum();
        assert_eq!(samples, part.analysis.metrics.sequence_count);
    }
}

#[tokio::test]
async fn later_candles_never_change_an_earlier_analysis() {
    let frame = random(300, 5);
    let early = analyses(frame.slice(0..200), &Stores::memory());
    let late = analyses(frame.clone(), &Stores::memory());
    let asked = query(rows(&frame, 50, 199));
    for engine in [Engine::V1, Engine::V2] {
        let (early, late) = (early.analyze(engine, &asked, 0).await, late.analyze(engine, &asked, 0).await);
        assert_eq!(early.unwrap().analysis, late.unwrap().analysis);
    }
}

#[tokio::test]
async fn both_engines_agree_on_random_candles() {
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9_f64.max(1e-9 * a.abs().max(b.abs()));
    for seed in 0..20 {
        let frame = random(400, seed);
        let analyses = analyses(frame.clone(), &Stores::memory());
        for range in [TimeRange::ALL, rows(&frame, 100, 399), rows(&frame, 7, 300)] {
            let a = analyses.analyze(Engine::V1, &query(range), 0).await.unwrap().analysis;
            let b = analyses.analyze(Engine::V2, &query(range), 0).await.unwrap().analysis;
            let class =
                |of: &Analysis| of.moves.iter().map(|each| (each.is_strong, each.direction)).collect::<Vec<_>>();
            assert_eq!(class(&a), class(&b));
            assert!(a.moves.iter().any(|each| each.is_strong));
            assert!(a.moves.iter().zip(&b.moves).all(|(a, b)| near(a.strength, b.strength)));
            let shape = |of: &Analysis| {
                let shape =
                    |each: &kernels::sequence::Sequence| (each.start_index, each.length, each.gap_to_next_strong);
                of.sequences.iter().map(shape).collect::<Vec<_>>()
            };
            assert_eq!(shape(&a), shape(&b));
            assert!(near(a.metrics.quality, b.metrics.quality) && near(a.metrics.momentum, b.metrics.momentum));
            assert!(near(a.metrics.volume_trend, b.metrics.volume_trend));
            let groups = |of: &Analysis| {
                let group = |each: &kernels::sequence::Pattern| {
                    (each.kind, each.direction, each.length, each.frequency, each.sample_count, each.success_count)
                };
                of.patterns.iter().map(group).collect::<Vec<_>>()
            };
            assert_eq!(groups(&a), groups(&b));
        }
    }
}

#[tokio::test]
async fn kept_analyses_come_back_newest_first_and_filtered() {
    let frame = random(300, 3);
    let stores = Stores::memory();
    let analyses = analyses(frame.clone(), &stores);
    let (early, late) = (rows(&frame, 0, 149), rows(&frame, 150, 299));
    let keep = |range| AnalysisQuery { is_kept: true, ..query(range) };
    let made = analyses.analyze(Engine::V2, &keep(late), 10).await.unwrap();
    analyses.analyze(Engine::V2, &keep(early), 20).await.unwrap();
    analyses.analyze(Engine::V1, &query(TimeRange::ALL), 30).await.unwrap();
    let filter = |range, pattern_kind, min_frequency| AnalysisFilter {
        key: key(NAME),
        range,
        pattern_kind,
        min_frequency,
        limit: 100,
    };
    let all = analyses.list(&filter(TimeRange::ALL, None, 0)).await.unwrap();
    assert_eq!(all.iter().map(|each| each.created_at).collect::<Vec<_>>(), [20, 10], "the third was not to be kept");
    assert_eq!((all[1].revision, all[1].timeframe, all[1].key.as_str()), (REVISION, Timeframe::D1, NAME));
    assert!((all[1].metrics.quality - made.analysis.metrics.quality).abs() < 1e-12);
    assert_eq!(all[1].patterns.len(), made.analysis.patterns.len());
    for (kept, made) in all[1].patterns.iter().zip(&made.analysis.patterns) {
        let whole =
            |of: &kernels::sequence::Pattern| (of.kind, of.direction, of.length, of.frequency, of.success_count);
        assert_eq!(whole(kept), whole(made));
        assert!((kept.mean_return - made.mean_return).abs() < 1e-12);
        assert_eq!(kept.mean_gap.is_some(), made.mean_gap.is_some());
    }
    assert_eq!(analyses.list(&filter(late, None, 0)).await.unwrap().len(), 1);
    let strong = analyses.list(&filter(late, Some(Kind::Strong), 2)).await.unwrap();
    let expected = made.analysis.patterns.iter().filter(|each| each.kind == Kind::Strong && each.frequency >= 2);
    assert_eq!(strong[0].patterns.len(), expected.count());
    let newest = AnalysisFilter { limit: 1, ..filter(TimeRange::ALL, None, 0) };
    assert_eq!(analyses.list(&newest).await.unwrap()[0].created_at, 20);

    let broken = AnalysisRecord { metrics_json: "{".into(), ..record::of(&made, late, Engine::V1, 40).unwrap() };
    stores.screens.put_analysis(&broken).await.unwrap();
    assert_eq!(analyses.list(&filter(late, None, 0)).await.unwrap_err().code(), Code::DataLoss);
}

#[tokio::test]
async fn an_empty_range_is_empty_and_an_unknown_instrument_not_found() {
    let frame = daily(100.0, &[1.0; 30], 1e6);
    let analyses = analyses(frame.clone(), &Stores::memory());
    let before = TimeRange::new(0, 1).unwrap();
    let after = TimeRange::new(frame.frame.open_time()[29] + 1, TimeRange::ALL.end()).unwrap();
    for (engine, range) in [(Engine::V1, before), (Engine::V2, before), (Engine::V1, after), (Engine::V2, after)] {
        let answer = analyses.analyze(engine, &query(range), 0).await.unwrap();
        assert!(answer.open_time.is_empty() && answer.analysis.moves.is_empty());
        assert_eq!(answer.analysis.metrics, kernels::sequence::Metrics::default());
    }
    let unknown = AnalysisQuery { key: key("NSE_EQ|NOBODY"), ..query(TimeRange::ALL) };
    let error = analyses.analyze(Engine::V1, &unknown, 0).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Code::NotFound, "UNKNOWN_INSTRUMENT"));
    assert!(error.to_string().contains("NSE_EQ|NOBODY"));
}

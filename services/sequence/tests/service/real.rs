//! Real daily candles of the NSE, screened over gRPC.

use std::path::PathBuf;

use flate2::read::GzDecoder;
use market::Date;
use mesh::engine::Engines;
use mesh::source::MemorySource;
use proto::sequence::{AnalyzeSequencesRequest, RunFilterPipelineRequest, RunFilterPipelineResponse};

use crate::candles::{add, on_dates};
use crate::{Running, forced, start};

/// The daily NSE files; `None`, with a line that says so, where they are not.
fn load() -> Option<MemorySource> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data");
    let root = std::env::var("CANDLEMESH_TEST_DATA").unwrap_or_else(|_| default.to_owned());
    let folder = PathBuf::from(root).join("1d");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        let is_required = std::env::var("CANDLEMESH_REQUIRE_TEST_DATA").is_ok_and(|value| value == "1");
        assert!(!is_required, "no test data in {}", folder.display());
        println!("skipped: no test data in {}", folder.display());
        return None;
    };
    let mut source = MemorySource::default();
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(isin) = name.strip_prefix("NSE_EQ_").and_then(|rest| rest.split('_').next()) else { continue };
        let mut reader = csv::Reader::from_reader(GzDecoder::new(std::fs::File::open(&path).unwrap()));
        let rows: Vec<(Date, [f64; 5])> = reader
            .records()
            .map(|row| {
                let row = row.unwrap();
                (market::parse_date(&row[1]).unwrap(), [2, 3, 4, 5, 6].map(|column| row[column].parse().unwrap()))
            })
            .collect();
        add(&mut source, &format!("NSE_EQ|{isin}"), "NSE", on_dates("NSE", &rows));
    }
    Some(source)
}

/// Screens all instruments with the default parameters, prints what became of each, and checks that none is missing.
async fn screen(running: &mut Running, date: &str, count: usize) -> RunFilterPipelineResponse {
    let request = RunFilterPipelineRequest { date: date.into(), ..Default::default() };
    let screened = running.client.run_filter_pipeline(request).await.unwrap().into_inner();
    let passed: Vec<_> = screened.bullish.iter().chain(&screened.bearish).collect();
    assert_eq!(passed.len() + screened.rejected.len(), count);
    assert!(screened.rejected.iter().all(|each| !each.reason.is_empty() && each.value.is_finite()));
    println!("-- {}", screened.date);
    passed.iter().for_each(|row| println!("passed {row:?}"));
    screened.rejected.iter().for_each(|each| println!("{} {}: {}", each.instrument_key, each.stage, each.reason));
    screened.metrics.iter().for_each(|stage| println!("{stage:?}"));
    screened
}

/// On the last date of the files none of these calm large caps passes; in the fall of June 2022 two do.
#[tokio::test]
async fn every_real_instrument_passes_or_has_a_reason() {
    let Some(source) = load() else { return };
    let count = source.instruments.len();
    let mut running = start(source, Engines::BOTH).await;
    assert_eq!(screen(&mut running, "", count).await.date, "2026-01-29");
    let screened = screen(&mut running, "2022-06-28", count).await;
    assert!(screened.bullish.is_empty());
    // From the files by a script of its own, in Python, straight from the definitions.
    let expected = [
        ("NSE_EQ|INE144J01027", 69.85, 428_231.876_033_057_87, -8.516_583_940_345_447, 43.184_592_533_572_69, 13),
        ("NSE_EQ|INE081A01020", 87.9, 86_521_029.256_198_35, -16.520_076_346_465_455, 33.867_356_879_622_506, 8),
    ];
    let strength = [0.369_769_220_282_985_53, 0.548_890_086_008_618_2];
    assert_eq!(screened.bearish.len(), expected.len());
    for ((row, (key, last_close, volume, distance, rsi, count)), strength) in
        screened.bearish.iter().zip(expected).zip(strength)
    {
        assert_eq!((row.instrument_key.as_str(), row.last_close, row.strong_move_count), (key, last_close, count));
        let figures = [row.mean_volume, row.ema_distance_percent, row.rsi, row.strength];
        for (found, expected) in figures.into_iter().zip([volume, distance, rsi, strength]) {
            assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{key}: {found} against {expected}");
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn both_engines_agree_on_real_candles() {
    let Some(source) = load() else { return };
    let keys: Vec<String> = source.instruments.keys().map(ToString::to_string).collect();
    let mut running = start(source, Engines::BOTH).await;
    for instrument_key in keys {
        let mut answers = Vec::new();
        for engine in ["v1", "v2"] {
            let instrument_key = instrument_key.clone();
            let request = AnalyzeSequencesRequest { instrument_key, include_moves: true, ..Default::default() };
            answers.push(running.client.analyze_sequences(forced(engine, request)).await.unwrap().into_inner());
        }
        let strong = |of: usize| answers[of].moves.iter().filter(|each| each.strong).count();
        assert!(strong(0) > 0 && strong(0) == strong(1));
        assert_eq!(answers[0].sequences.len(), answers[1].sequences.len());
        let (a, b) = (answers[0].metrics.unwrap(), answers[1].metrics.unwrap());
        assert!((a.quality - b.quality).abs() < 1e-9 && (a.volume_trend - b.volume_trend).abs() < 1e-9);
        assert_eq!(answers[0].patterns.len(), answers[1].patterns.len());
    }
    running.stop().await;
}

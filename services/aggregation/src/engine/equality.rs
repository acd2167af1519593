//! Every file of real minutes through both engines: equal to the bit in every timeframe, with gaps filled and without.

use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use market::{Candle, Frame, Instrument};
use mesh::source::MemorySource;
use rollout::Engine::{V1, V2};

use super::tests::bits;
use super::*;

const LATE: Millis = 4_000_000_000_000;
/// Rows taken of the beginning, the middle and the end of a file, for the time that all of it would take: days of each season of its
/// market, and holes between them.
const PART_ROWS: usize = 600;
/// Candles compared of one answer: the rest of a series whose holes are filled is like its beginning.
const MAX_CANDLES: usize = 2500;

fn folder() -> Option<PathBuf> {
    let fallback = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let path = std::env::var_os("CANDLEMESH_TEST_DATA").map_or_else(fallback, PathBuf::from);
    if path.is_dir() {
        return Some(path);
    }
    let is_required = std::env::var("CANDLEMESH_REQUIRE_TEST_DATA").is_ok_and(|value| value == "1");
    assert!(!is_required, "{} is absent", path.display());
    println!("skipped: {} is absent", path.display());
    None
}

/// Sorted by time, the last of equal times wins.
fn minutes(path: &Path) -> Frame {
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let mut rows = std::collections::BTreeMap::new();
    let lines = text.lines().count();
    let parts = [0, lines / 2, lines.saturating_sub(PART_ROWS)];
    for (row, record) in csv::Reader::from_reader(text.as_bytes()).records().enumerate() {
        if !parts.iter().any(|part| (*part..part + PART_ROWS).contains(&row)) {
            continue;
        }
        let record = record.unwrap();
        let [open, high, low, close, volume] = [1, 2, 3, 4, 5].map(|field| record[field].parse::<f64>().unwrap());
        let open_interest = record.get(6).and_then(|text| text.parse().ok());
        let open_time = market::parse_millis(&record[0]).unwrap();
        rows.insert(open_time, Candle { open_time, open, high, low, close, volume, open_interest });
    }
    let mut frame = Frame::default();
    rows.values().for_each(|candle| frame.push(candle).unwrap());
    frame
}

fn aggregator(key: &InstrumentKey, minutes: Frame) -> Aggregator {
    let instrument = Instrument {
        key: key.clone(),
        name: String::new(),
        exchange: String::new(),
        currency: String::new(),
        tick_size: 0.0,
        calendar: Calendar::for_key(key).unwrap().name().to_owned(),
    };
    let source = Arc::new(MemorySource {
        instruments: [(key.clone(), instrument)].into(),
        stored: [((key.clone(), Timeframe::M1), minutes)].into(),
        revision: 1,
        ..Default::default()
    });
    Aggregator {
        stored: Arc::clone(&source) as _,
        master: source,
        pool: Arc::new(CpuPool::new(2, 64).unwrap()),
        config: Config::default(),
    }
}

/// The first candles of an answer, at most `limit`; where one engine ends a batch is not where the other does.
async fn beginning(aggregator: &Aggregator, choice: rollout::Engine, query: &Query, limit: usize) -> Batch {
    let mut answer = aggregator.open(choice, query.clone(), LATE, None).await.unwrap();
    let mut all = Batch::default();
    while all.len() < limit
        && let Some(batch) = answer.next().await.unwrap()
    {
        all.append(batch).unwrap();
    }
    all.buckets = all.buckets.slice(0..all.len().min(limit));
    all
}

#[tokio::test]
async fn every_file_of_minutes_is_answered_alike_by_both_engines() {
    let Some(folder) = folder() else { return };
    let list = std::fs::read_to_string(folder.join("instruments_1m.csv")).unwrap();
    let mut reader = csv::Reader::from_reader(list.as_bytes());
    let header = reader.headers().unwrap().clone();
    let field = |name: &str| header.iter().position(|column| column == name).unwrap();
    let (file, name) = (field("file"), field("key"));
    let (mut files, mut candles) = (0, 0);
    for record in reader.records() {
        let record = record.unwrap();
        let key: InstrumentKey = record[name].parse().unwrap();
        let aggregator = aggregator(&key, minutes(&folder.join(&record[file])));
        files += 1;
        for timeframe in Timeframe::ALL {
            for gap_fill in [false, true] {
                let query = Query { gap_fill, ..Query::raw(key.clone(), timeframe, TimeRange::ALL) };
                let rows = beginning(&aggregator, V1, &query, MAX_CANDLES).await;
                let columns = beginning(&aggregator, V2, &query, MAX_CANDLES).await;
                assert!(bits(&rows) == bits(&columns), "{key} {timeframe} gap_fill {gap_fill}");
                assert!(!rows.buckets.is_empty());
                candles += rows.len();
            }
        }
    }
    assert_eq!(files, 83);
    println!("{candles} candles of {files} files are equal");
}

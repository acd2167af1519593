//! Against bars computed from real data by pandas; see the data's oracle/README.md.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use market::{BucketFrame, Candle, TimeRange, format_date, format_millis, parse_millis};
use mesh::source::{Candles, RemoteAggregation};

use super::*;

/// An oracle's instrument: name of its bars, key, calendar, file of its minutes, and the window taken of them.
struct Case {
    name: &'static str,
    key: &'static str,
    calendar: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

const EARLY: &str = "1990-01-01T00:00:00Z";
const LATE: &str = "2100-01-01T00:00:00Z";

const CASES: [Case; 6] = [
    Case {
        name: "NSE_RELIANCE",
        key: "NSE_EQ|INE002A01018",
        calendar: "NSE",
        file: "NSE_EQ_INE002A01018_RELIANCE",
        from: EARLY,
        to: LATE,
    },
    Case { name: "US_SPY_EXT", key: "US|SPY-EXT", calendar: "NYSE", file: "US_SPY-EXT", from: EARLY, to: LATE },
    Case {
        name: "BINANCE_ALGOUSDT_2024-02a",
        key: "CRYPTO|BINANCE-UM:ALGOUSDT",
        calendar: "24x7",
        file: "CRYPTO_BINANCE-UM_ALGOUSDT",
        from: EARLY,
        to: "2024-02-13T00:00:00Z",
    },
    Case {
        name: "NSE_NIFTY50_2014-10",
        key: "NSE_INDEX|Nifty 50",
        calendar: "NSE",
        file: "NSE_INDEX_Nifty_50_NIFTY",
        from: "2014-10-01T00:00:00Z",
        to: "2014-12-01T00:00:00Z",
    },
    Case {
        name: "FX_GBPUSD_2012-02",
        key: "FX|GBPUSD",
        calendar: "FX",
        file: "FX_GBPUSD_GBPUSD-bid",
        from: EARLY,
        to: LATE,
    },
    Case {
        name: "BITFINEX_LTCUSD_2016-06",
        key: "CRYPTO|BITFINEX:LTCUSD",
        calendar: "24x7",
        file: "CRYPTO_BITFINEX_LTCUSD",
        from: "2016-06-01T00:00:00Z",
        to: "2016-07-01T00:00:00Z",
    },
];

/// The shared data, unless it is absent and nobody insists on it.
fn data() -> Option<PathBuf> {
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

fn records(path: &Path) -> Vec<csv::StringRecord> {
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    csv::Reader::from_reader(text.as_bytes()).records().map(Result::unwrap).collect()
}

/// Stable by time, the last of equal times wins: what a map does.
fn minutes(data: &Path, case: &Case) -> Frame {
    let window = TimeRange::new(parse_millis(case.from).unwrap(), parse_millis(case.to).unwrap()).unwrap();
    let mut rows = BTreeMap::new();
    for record in records(&data.join(format!("1m/{}.csv.gz", case.file))) {
        let number = |field: usize| record[field].parse::<f64>().unwrap();
        let open_time = parse_millis(&record[0]).unwrap();
        let candle = Candle {
            open_time,
            open: number(1),
            high: number(2),
            low: number(3),
            close: number(4),
            volume: number(5),
            open_interest: None,
        };
        if window.contains(open_time) {
            rows.insert(open_time, candle);
        }
    }
    let mut frame = Frame::default();
    rows.values().for_each(|candle| frame.push(candle).unwrap());
    frame
}

/// A bar of the oracle: bucket (a date for 1d), O H L C V, rows.
struct Bar {
    bucket: String,
    values: [f64; 5],
    count: u32,
}

fn bars(data: &Path, case: &Case, timeframe: Timeframe) -> Vec<Bar> {
    let all = records(&data.join(format!("oracle/bars_{}.csv.gz", case.name)));
    let of_timeframe = all.iter().filter(|record| &record[0] == timeframe.as_str() && &record[1] == "session");
    let bar = |record: &csv::StringRecord| Bar {
        bucket: record[2].to_owned(),
        values: std::array::from_fn(|field| record[3 + field].parse().unwrap()),
        count: record[8].parse().unwrap(),
    };
    of_timeframe.map(bar).collect()
}

/// Compares, and returns how many bars were.
fn compare(case: &Case, timeframe: Timeframe, found: &BucketFrame, bars: &[Bar]) -> usize {
    assert_eq!(found.len(), bars.len(), "{} {timeframe}", case.name);
    for (row, bar) in bars.iter().enumerate() {
        let place = format!("{} {timeframe} {}", case.name, bar.bucket);
        let candle = found.frame.candle(row);
        match timeframe {
            Timeframe::D1 => assert_eq!(format_date(found.trading_date[row]), bar.bucket, "{place}"),
            _ => assert_eq!(format_millis(candle.open_time), bar.bucket, "{place}"),
        }
        let [open, high, low, close, volume] = bar.values;
        assert_eq!([candle.open, candle.high, candle.low, candle.close], [open, high, low, close], "{place}");
        assert!((candle.volume - volume).abs() <= 1e-9 * volume.abs(), "{place}: {} {volume}", candle.volume);
        assert_eq!(found.source_count[row], bar.count, "{place}");
        assert!(found.closed[row]);
    }
    bars.len()
}

/// The oracle anchors every NSE date at 09:15 and we the Muhurat session of 2014-10-23 at its own open, 18:15: nine hours later, so
/// the buckets are the same.
#[tokio::test]
async fn every_bar_of_the_oracle_is_answered() {
    let Some(data) = data() else { return };
    let source = Arc::new(source(CASES.iter().map(|case| (case.key, case.calendar, minutes(&data, case)))));
    let mut compared = 0;
    for engines in ["v1", "v2"] {
        let served = serve(&source, engines, Config::default()).await;
        let client = RemoteAggregation::connect(&served.address).unwrap();
        for case in &CASES {
            for timeframe in [Timeframe::M5, Timeframe::M15, Timeframe::H1, Timeframe::D1] {
                let answer = client.candles(&key(case.key), timeframe, TimeRange::ALL, None).await.unwrap();
                let bars = bars(&data, case, timeframe);
                compared += compare(case, timeframe, &answer.frame, &bars);
            }
        }
    }
    println!("{compared} bars compared");
}

//! Real candles, where the development data is at hand.

use std::io::Read;
use std::path::PathBuf;

use proto::{convert, wire};

/// A row of a data file.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) candle: market::Candle,
    /// Only in daily files.
    pub(crate) trading_date: String,
}

/// The rows of a file below the data directory, as found; `None`, said aloud, where there is no such directory.
pub(crate) fn rows(file: &str) -> Option<Vec<Row>> {
    let root = std::env::var("CANDLEMESH_TEST_DATA")
        .map_or_else(|_| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")), PathBuf::from);
    if !root.is_dir() {
        let required = std::env::var("CANDLEMESH_REQUIRE_TEST_DATA").is_ok_and(|value| value == "1");
        assert!(!required, "no test data at {}", root.display());
        println!("skipped: no test data at {}", root.display());
        return None;
    }
    let mut text = String::new();
    let packed = std::fs::File::open(root.join(file)).unwrap();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let headers = reader.headers().unwrap().clone();
    let column = |name: &str| headers.iter().position(|header| header == name);
    let rows = reader.records().map(|record| {
        let record = record.unwrap();
        let number = |name: &str| record[column(name).unwrap()].parse::<f64>().unwrap();
        let candle = market::Candle {
            open_time: market::parse_millis(&record[0]).unwrap(),
            open: number("open"),
            high: number("high"),
            low: number("low"),
            close: number("close"),
            volume: number("volume"),
            open_interest: None,
        };
        let trading_date = column("trading_date").map(|at| record[at].to_owned()).unwrap_or_default();
        Row { candle, trading_date }
    });
    Some(rows.collect())
}

pub(crate) fn candles(rows: &[Row]) -> Vec<wire::Candle> {
    rows.iter().map(|row| convert::wire_candle(&row.candle)).collect()
}

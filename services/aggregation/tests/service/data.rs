//! The shared market data, read without any code of the project but its types.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use market::{Candle, Frame, TimeRange, parse_millis};

/// The shared data, unless it is absent and nobody insists on it.
pub(crate) fn folder() -> Option<PathBuf> {
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

/// The rows of a table.
pub(crate) fn records(path: &Path) -> Vec<csv::StringRecord> {
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    csv::Reader::from_reader(text.as_bytes()).records().map(Result::unwrap).collect()
}

/// Candles of a file of columns timestamp, open, high, low, close, volume, inside a window. Stable by time, the last of equal times
/// wins: what a map does.
pub(crate) fn candles(path: &Path, window: TimeRange) -> Frame {
    let mut rows = BTreeMap::new();
    for record in records(path) {
        let number = |field: usize| record[field].parse::<f64>().unwrap();
        let open_time = parse_millis(&record[0]).unwrap();
        if window.contains(open_time) {
            let [open, high, low, close, volume] = [1, 2, 3, 4, 5].map(number);
            rows.insert(open_time, Candle { open_time, open, high, low, close, volume, open_interest: None });
        }
    }
    let mut frame = Frame::default();
    rows.values().for_each(|candle| frame.push(candle).unwrap());
    frame
}

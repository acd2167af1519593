//! Real files, where the development data is at hand, and what reading gave.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use formats::{BadRow, Chunk, Detected, FileSpec, InputError, Sink};
use market::Candle;

/// Everything a reader handed over.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) bad: Vec<BadRow>,
}

impl Sink for Collected {
    fn chunk(&mut self, chunk: Chunk) -> bool {
        self.chunks.push(chunk);
        true
    }

    fn bad_row(&mut self, row: BadRow) -> bool {
        self.bad.push(row);
        true
    }
}

impl Collected {
    pub(crate) fn rows(&self) -> Vec<Candle> {
        self.chunks.iter().flat_map(|chunk| chunk.rows.iter().copied()).collect()
    }

    /// Rows of one instrument by stamp, the last one of each.
    pub(crate) fn by_time(&self, key: &str) -> BTreeMap<i64, Candle> {
        let chunks = self.chunks.iter().filter(|chunk| chunk.instrument.as_str() == key);
        chunks.flat_map(|chunk| chunk.rows.iter().map(|row| (row.open_time, *row))).collect()
    }
}

pub(crate) fn read(spec: &FileSpec) -> (Collected, Result<Detected, InputError>) {
    let mut collected = Collected::default();
    let outcome = formats::read(spec, &mut collected);
    (collected, outcome)
}

/// Reads a file that must be readable to its end.
pub(crate) fn read_whole(spec: &FileSpec) -> (Collected, Detected) {
    let (collected, outcome) = read(spec);
    let detected = outcome.unwrap_or_else(|error| panic!("{error}"));
    (collected, detected)
}

/// The data directory; `None`, said aloud, where there is none.
pub(crate) fn root() -> Option<PathBuf> {
    let root = std::env::var("CANDLEMESH_TEST_DATA")
        .map_or_else(|_| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")), PathBuf::from);
    if root.is_dir() {
        return Some(root);
    }
    let required = std::env::var("CANDLEMESH_REQUIRE_TEST_DATA").is_ok_and(|value| value == "1");
    assert!(!required, "no test data at {}", root.display());
    println!("skipped: no test data at {}", root.display());
    None
}

/// Rows of a cleaned file, read by the plainest means: stamp as text, and the numbers as their bits.
pub(crate) fn reference(file: &str) -> Option<BTreeMap<String, [u64; 5]>> {
    let mut text = String::new();
    let packed = std::fs::File::open(root()?.join(file)).unwrap();
    flate2::read::MultiGzDecoder::new(packed).read_to_string(&mut text).unwrap();
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let columns = ["open", "high", "low", "close", "volume"]
        .map(|name| header.iter().position(|column| *column == name).unwrap());
    let row = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        (fields[0].to_owned(), columns.map(|column| fields[column].parse::<f64>().unwrap().to_bits()))
    };
    Some(lines.map(row).collect())
}

/// The values of a candle as their bits.
pub(crate) fn bits(candle: &Candle) -> [u64; 5] {
    [candle.open, candle.high, candle.low, candle.close, candle.volume].map(f64::to_bits)
}

//! Parquet as other writers lay it out.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, Float32Array, Int64Array, LargeStringArray, RecordBatch, TimestampMillisecondArray,
    TimestampNanosecondArray,
};
use formats::{BadRow, FileSpec};
use market::{Timeframe, format_millis};

use crate::data::{Collected, read_whole};

fn packed(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn values() -> Vec<(&'static str, ArrayRef)> {
    let price: ArrayRef = Arc::new(Float32Array::from(vec![1.5, 2.5]));
    vec![
        ("open", Arc::clone(&price)),
        ("high", Arc::clone(&price)),
        ("low", Arc::clone(&price)),
        ("close", price),
        ("volume", Arc::new(Int64Array::from(vec![10, 20]))),
    ]
}

/// pandas writes nanoseconds and large strings; a key in the file wins over the one given for files without.
#[test]
fn the_layouts_of_other_writers_are_read() {
    let mut columns = values();
    columns.push(("key", Arc::new(LargeStringArray::from(vec!["US|SPY", "US|QQQ"]))));
    let stamps = TimestampNanosecondArray::from(vec![Some(1_577_975_400_000_000_000), None]);
    columns.push(("timestamp", Arc::new(stamps)));
    let spec = FileSpec {
        instrument: Some("US|OTHER".parse().unwrap()),
        timeframe: Some(Timeframe::M1),
        ..FileSpec::new("a.parquet")
    };
    let mut collected = Collected::default();
    formats::read_bytes(&packed(columns), &spec, &mut collected).unwrap();
    assert_eq!(collected.chunks.len(), 1);
    assert_eq!(collected.chunks[0].instrument.as_str(), "US|SPY");
    let row = &collected.rows()[0];
    assert_eq!((format_millis(row.open_time).as_str(), row.close, row.volume), ("2020-01-02T14:30:00Z", 1.5, 10.0));
    assert_eq!(collected.bad, [BadRow { line: 2, reason: "timestamp is null".into() }]);
}

#[test]
fn other_column_names_are_refused_by_the_one_that_is_missing() {
    let mut columns = values();
    columns[3].0 = "last";
    columns.push(("date", Arc::new(TimestampNanosecondArray::from(vec![1, 2]))));
    let mut collected = Collected::default();
    let error = formats::read_bytes(&packed(columns), &FileSpec::new("a.parquet"), &mut collected).unwrap_err();
    assert!(error.to_string().contains("column 'close' is missing; a header of timestamp,open"), "{error}");
    let mut columns = values();
    columns.push(("when", Arc::new(Int64Array::from(vec![1, 2]))));
    let error = formats::read_bytes(&packed(columns), &FileSpec::new("a.parquet"), &mut collected).unwrap_err();
    assert!(error.to_string().contains("column 'timestamp' is missing"), "{error}");
    assert!(collected.chunks.is_empty() && collected.bad.is_empty());
}

/// Reads rows of one price under the stamps given.
fn stamped(stamps: ArrayRef, timeframe: Option<Timeframe>, zone: Option<&str>) -> Collected {
    let price: ArrayRef = Arc::new(Float32Array::from(vec![1.5; stamps.len()]));
    let mut columns = ["open", "high", "low", "close", "volume"].map(|name| (name, Arc::clone(&price))).to_vec();
    columns.push(("timestamp", stamps));
    let spec = FileSpec {
        instrument: Some("US|SPY".parse().unwrap()),
        timeframe,
        zone: zone.map(|zone| zone.parse().unwrap()),
        ..FileSpec::new("a.parquet")
    };
    let mut collected = Collected::default();
    formats::read_bytes(&packed(columns), &spec, &mut collected).unwrap();
    collected
}

fn opens(collected: &Collected) -> Vec<String> {
    collected.rows().iter().map(|row| format_millis(row.open_time)).collect()
}

#[test]
fn stamps_without_a_zone_are_wall_times_of_the_one_given() {
    let wall = |texts: &[&str]| {
        let at = |text: &&str| market::parse_millis(text).unwrap() * 1_000_000;
        TimestampNanosecondArray::from_iter_values(texts.iter().map(at))
    };
    let zone = Some("America/New_York");
    // Two minutes of winter, one that the clocks skip, one they repeat, summer.
    let minutes = wall(&[
        "2020-01-02T09:30:00Z",
        "2020-01-02T09:31:00Z",
        "2020-03-08T02:30:00Z",
        "2020-11-01T01:30:00Z",
        "2020-07-02T09:30:00Z",
    ]);
    let read = stamped(Arc::new(minutes.clone()), Some(Timeframe::M1), zone);
    assert_eq!(opens(&read), ["2020-01-02T14:30:00Z", "2020-01-02T14:31:00Z", "2020-07-02T13:30:00Z"]);
    let bad: Vec<(u64, bool)> =
        read.bad.iter().map(|bad| (bad.line, bad.reason.contains("the clocks are changed"))).collect();
    assert_eq!(bad, [(3, true), (4, true)]);
    // Nobody said another zone than UTC; or the stamps have theirs, and are instants.
    let utc = [
        "2020-01-02T09:30:00Z",
        "2020-01-02T09:31:00Z",
        "2020-03-08T02:30:00Z",
        "2020-11-01T01:30:00Z",
        "2020-07-02T09:30:00Z",
    ];
    assert_eq!(opens(&stamped(Arc::new(minutes.clone()), Some(Timeframe::M1), None)), utc);
    assert_eq!(opens(&stamped(Arc::new(minutes.with_timezone("UTC")), Some(Timeframe::M1), zone)), utc);
    // A day is the one on the wall, east and west of Greenwich.
    for zone in ["America/New_York", "Asia/Kolkata"] {
        let days = wall(&["2020-01-02T00:00:00Z", "2020-01-03T00:00:00Z"]);
        let read = stamped(Arc::new(days), None, Some(zone));
        assert_eq!(read.chunks[0].timeframe, Timeframe::D1);
        assert_eq!(opens(&read), ["2020-01-02T00:00:00Z", "2020-01-03T00:00:00Z"], "{zone}");
    }
}

#[test]
fn a_row_without_a_key_is_refused_and_the_others_read() {
    let mut columns = values();
    for (_, column) in &mut columns {
        *column = Arc::new(Float32Array::from(vec![1.5; 4]));
    }
    columns.push(("key", Arc::new(LargeStringArray::from(vec![Some("US|SPY"), None, Some(""), Some("US|QQQ")]))));
    let stamps = (0..4).map(|row| 1_577_975_400_000 + row * 60_000);
    columns.push(("timestamp", Arc::new(TimestampMillisecondArray::from_iter_values(stamps))));
    let spec = FileSpec { timeframe: Some(Timeframe::M1), ..FileSpec::new("a.parquet") };
    let mut collected = Collected::default();
    formats::read_bytes(&packed(columns), &spec, &mut collected).unwrap();
    assert_eq!(collected.by_time("US|SPY").len(), 1);
    assert_eq!(collected.by_time("US|QQQ").len(), 1);
    let bad = |line, reason: &str| BadRow { line, reason: reason.into() };
    assert_eq!(collected.bad, [bad(2, "key is null"), bad(3, "key is missing")]);
}

/// Steps between such stamps are longer than 64 bits hold.
#[test]
fn stamps_centuries_away_are_refused_and_say_nothing_of_the_timeframe() {
    let stamps = [i64::MIN / 60_000 * 60_000, 1_577_975_400_000, i64::MAX / 60_000 * 60_000, 1_577_975_460_000];
    let stamps = |count: usize| Arc::new(TimestampMillisecondArray::from_iter_values(stamps.into_iter().take(count)));
    for zone in [None, Some("Asia/Kolkata")] {
        let read = stamped(stamps(4), None, zone);
        assert_eq!((read.chunks[0].timeframe, read.rows().len()), (Timeframe::M1, 2));
        let bad: Vec<(u64, bool)> =
            read.bad.iter().map(|bad| (bad.line, bad.reason.contains("outside 1900..2200"))).collect();
        assert_eq!(bad, [(1, true), (3, true)]);
        // Nothing else in the file is no error either: each row says why.
        assert_eq!(stamped(stamps(1), None, zone).bad.len(), 1);
    }
}

/// Footers and page headers as the writers of others make them pass the look over them.
#[test]
fn files_of_other_writers_are_read() {
    for name in ["pyarrow_v1", "pyarrow_v2", "duckdb", "polars"] {
        let path = format!("{}/tests/files/{name}.parquet", env!("CARGO_MANIFEST_DIR"));
        let (read, detected) = read_whole(&FileSpec::new(&path));
        assert_eq!((detected.timeframe, &read.bad[..]), (Some(Timeframe::M1), &[][..]), "{name}");
        let rows = read.rows();
        assert_eq!(opens(&read), ["2020-01-02T14:30:00Z", "2020-01-02T14:31:00Z", "2020-01-02T14:32:00Z"], "{name}");
        let closes: Vec<_> = rows.iter().map(|row| (row.low, row.close, row.volume, row.open_interest)).collect();
        assert_eq!(
            closes,
            [(0.5, 1.5, 10.0, None), (1.0, 2.0, 20.0, Some(5.0)), (1.0, 1.125, 0.0, Some(6.0))],
            "{name}"
        );
        // The same bytes from memory, and each file cut short: an error and no panic.
        let bytes = std::fs::read(&path).unwrap();
        let mut collected = Collected::default();
        formats::read_bytes(&bytes, &FileSpec::new(&path), &mut collected).unwrap();
        assert_eq!(collected.rows(), rows);
        for kept in (4..bytes.len()).step_by(7) {
            assert!(formats::read_bytes(&bytes[..kept], &FileSpec::new(&path), &mut collected).is_err());
        }
    }
}

/// A footer of 31 bytes that fuzzing found: one of its fields is a list that claims two billion booleans, which took 14 seconds.
#[test]
fn a_list_of_billions_in_a_footer_is_refused_at_once() {
    let bytes = b"PAR1\xc1\xc1\x2c\xc1\x05\x02\x09\xc1\xc1\xc1\xc1\xc1\x08\xc1\x8c\x8c\x8c\x8c\x8c\x2a\x8c\x8c\x8c\x00\
        \x29\x8c\x8c\x8c\x00\x00\x00\x55\x8c\x8c\x8c\x23\x8c\x8c\x8c\x8c\x8c\x8c\x8c\x4b\x8c\x8c\x8c\x8c\x04\x11\xc1\xc1\
        \xc1\x00\xc1\xc1\xc1\xc1\xc1\x04\x11\x00\x1f\x00\x00\x00PAR1";
    let asked = std::time::Instant::now();
    let error = formats::read_bytes(bytes, &FileSpec::new("a.parquet"), &mut Collected::default()).unwrap_err();
    assert!(error.to_string().contains("damaged Parquet"), "{error}");
    assert!(asked.elapsed() < std::time::Duration::from_secs(2), "{:?}", asked.elapsed());
}

/// The same claim in the header of a page, put where the header of the first page was.
#[test]
fn a_list_of_billions_in_a_page_header_is_refused_at_once() {
    for kind in [0xf1, 0xf2, 0xf7, 0xfd] {
        let mut bytes = packed(vec![("open", Arc::new(Float32Array::from(vec![1.5; 100])) as ArrayRef)]);
        bytes[4..11].copy_from_slice(&[0xf9, kind, 0xff, 0xff, 0xff, 0xff, 0x07]);
        let asked = std::time::Instant::now();
        let error = formats::read_bytes(&bytes, &FileSpec::new("a.parquet"), &mut Collected::default()).unwrap_err();
        assert!(
            error.to_string().contains("damaged Parquet (") && error.to_string().contains("the metadata"),
            "{error}"
        );
        assert!(asked.elapsed() < std::time::Duration::from_secs(2), "{:?}", asked.elapsed());
    }
}

/// Two files that fuzzing made of one by polars, on which the parquet crate panics: an offset below zero, and levels that are too short.
#[test]
fn what_makes_the_parquet_crate_panic_is_an_error_of_the_file() {
    for (name, reason) in [("damaged_offset", "lies outside the file"), ("damaged_values", "do not decode")] {
        let path = format!("{}/tests/files/{name}.parquet", env!("CARGO_MANIFEST_DIR"));
        let error = formats::read(&FileSpec::new(&path), &mut Collected::default()).unwrap_err().to_string();
        assert!(error.contains("damaged Parquet (") && error.contains(reason), "{error}");
    }
}

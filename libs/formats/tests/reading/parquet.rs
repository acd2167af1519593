//! Parquet as other writers lay it out.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, Float32Array, Int64Array, LargeStringArray, RecordBatch, TimestampMillisecondArray,
    TimestampNanosecondArray,
};
use formats::{BadRow, FileSpec};
use market::{Timeframe, format_millis};

use crate::data::Collected;

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

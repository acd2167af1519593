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
    packed_batch(&RecordBatch::try_from_iter(columns).unwrap())
}

fn packed_batch(batch: &RecordBatch) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
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
    columns.push(("timestamp", Arc::new(stamps.with_timezone("UTC"))));
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
fn other_column_names_are_refused_by_the_one_that_is_missing_and_those_that_are_there() {
    let mut columns = values();
    columns[3].0 = "last";
    columns.push(("date", Arc::new(TimestampNanosecondArray::from(vec![1, 2]))));
    let mut collected = Collected::default();
    let error = formats::read_bytes(&packed(columns), &FileSpec::new("a.parquet"), &mut collected).unwrap_err();
    assert!(error.to_string().contains("column 'close' is missing; a header of timestamp,open"), "{error}");
    assert!(error.to_string().ends_with("the columns there are: open, high, low, last, volume, date"), "{error}");
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

/// Nothing is guessed, as of text: only where the file itself says its clock.
#[test]
fn stamps_without_a_zone_are_refused_until_one_is_given_or_the_file_says_its_own() {
    let stamps = TimestampNanosecondArray::from(vec![1_577_975_400_000_000_000, 1_577_975_460_000_000_000]);
    let mut columns = values();
    columns.push(("Datetime", Arc::new(stamps)));
    let spec = FileSpec { instrument: Some("US|SPY".parse().unwrap()), ..FileSpec::new("a.parquet") };
    let mut collected = Collected::default();
    let error = formats::read_bytes(&packed(columns.clone()), &spec, &mut collected).unwrap_err().to_string();
    assert!(error.contains("column 'Datetime' have no zone: pass --zone, for example --zone"), "{error}");
    assert!(collected.chunks.is_empty() && collected.bad.is_empty());
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    for (described, is_known) in [
        (r#"{"name": "Datetime", "pandas_type": "datetimetz", "metadata": {"timezone": "America/New_York"}}"#, true),
        (
            r#"{"name": null, "field_name": "Datetime", "pandas_type": "datetimetz", "metadata": {"timezone": "UTC"}}"#,
            true,
        ),
        (r#"{"name": "Datetime", "pandas_type": "datetime", "metadata": null}"#, false),
        (r#"{"name": "open", "pandas_type": "datetimetz", "metadata": {"timezone": "UTC"}}"#, false),
    ] {
        let said = std::collections::HashMap::from([("pandas".to_owned(), format!(r#"{{"columns": [{described}]}}"#))]);
        let schema = batch.schema().as_ref().clone().with_metadata(said);
        let batch = batch.clone().with_schema(Arc::new(schema)).unwrap();
        let mut collected = Collected::default();
        let read = formats::read_bytes(&packed_batch(&batch), &spec, &mut collected);
        assert_eq!(read.is_ok(), is_known, "{described}: {read:?}");
        if is_known {
            assert_eq!(opens(&collected), ["2020-01-02T14:30:00Z", "2020-01-02T14:31:00Z"]);
        }
    }
}

/// yfinance names its columns so, and has more of them than are used; other tools shout.
#[test]
fn columns_are_known_by_the_spellings_that_text_may_have() {
    for names in [
        ["Datetime", "Open", "High", "Low", "Close", "Volume"],
        ["DATE TIME", "OPEN", "HIGH", "LOW", "CLOSE", "VOLUME"],
        ["open_time", "open", "high", "low", "close", "volume"],
    ] {
        let price: ArrayRef = Arc::new(Float32Array::from(vec![1.5, 2.5]));
        let stamps = TimestampMillisecondArray::from(vec![1_577_975_400_000, 1_577_975_460_000]).with_timezone("UTC");
        let mut columns: Vec<(&str, ArrayRef)> = vec![("Adj Close", Arc::new(Int64Array::from(vec![7, 7])))];
        columns.push((names[0], Arc::new(stamps)));
        columns.extend(names[1..].iter().map(|name| (*name, Arc::clone(&price))));
        columns.push(("Open Interest", Arc::new(Int64Array::from(vec![None, Some(3)]))));
        // A second column of times, which is none of ours.
        columns.push(("date", Arc::new(Int64Array::from(vec![1, 2]))));
        let spec = FileSpec { instrument: Some("US|SPY".parse().unwrap()), ..FileSpec::new("a.parquet") };
        let mut collected = Collected::default();
        formats::read_bytes(&packed(columns), &spec, &mut collected).unwrap();
        assert_eq!(opens(&collected), ["2020-01-02T14:30:00Z", "2020-01-02T14:31:00Z"], "{names:?}");
        let row = &collected.rows()[1];
        assert_eq!((row.close, row.volume, row.open_interest), (2.5, 2.5, Some(3.0)), "{names:?}");
    }
}

#[test]
fn columns_of_other_names_are_read_by_those_given() {
    let named: formats::Columns = "timestamp=t,open=o,high=h,low=l,close=c,volume=v".parse().unwrap();
    let spec = FileSpec { instrument: Some("US|SPY".parse().unwrap()), columns: named, ..FileSpec::new("a.parquet") };
    let stamps = TimestampMillisecondArray::from(vec![1_577_975_400_000, 1_577_975_460_000]).with_timezone("UTC");
    let mut columns = values();
    for (column, name) in columns.iter_mut().zip(["o", "h", "l", "c", "v"]) {
        column.0 = name;
    }
    columns.push(("t", Arc::new(stamps)));
    let text = "t,v,o,h,l,c\n2020-01-02T14:30:00Z,10,1.5,1.5,1.5,1.5\n2020-01-02T14:31:00Z,20,2.5,2.5,2.5,2.5\n";
    for bytes in [packed(columns), text.as_bytes().to_vec()] {
        let mut collected = Collected::default();
        formats::read_bytes(&bytes, &spec, &mut collected).unwrap();
        assert_eq!(opens(&collected), ["2020-01-02T14:30:00Z", "2020-01-02T14:31:00Z"]);
        assert_eq!((collected.rows()[1].close, collected.rows()[1].volume), (2.5, 20.0));
        // Without the names the missing one is told.
        let unnamed = FileSpec { columns: Default::default(), ..spec.clone() };
        assert!(formats::read_bytes(&bytes, &unnamed, &mut collected).is_err());
    }
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
    // The zone is UTC; or the stamps have theirs, and are instants.
    let utc = [
        "2020-01-02T09:30:00Z",
        "2020-01-02T09:31:00Z",
        "2020-03-08T02:30:00Z",
        "2020-11-01T01:30:00Z",
        "2020-07-02T09:30:00Z",
    ];
    assert_eq!(opens(&stamped(Arc::new(minutes.clone()), Some(Timeframe::M1), Some("UTC"))), utc);
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
    let stamps = TimestampMillisecondArray::from_iter_values(stamps).with_timezone("UTC");
    columns.push(("timestamp", Arc::new(stamps)));
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
    for zone in [Some("UTC"), Some("Asia/Kolkata")] {
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

/// Columns of a hundred candles; the first of the file is the open.
fn hundred_rows() -> Vec<(&'static str, ArrayRef)> {
    let price: ArrayRef = Arc::new(Float32Array::from(vec![1.5; 100]));
    let mut columns = ["open", "high", "low", "close", "volume"].map(|name| (name, Arc::clone(&price))).to_vec();
    let stamps = TimestampMillisecondArray::from_iter_values((0..100).map(|row| 1_577_975_400_000 + row * 60_000));
    columns.push(("timestamp", Arc::new(stamps.with_timezone("UTC"))));
    columns
}

/// The same claim in the header of a page, put where the header of the first page was.
#[test]
fn a_list_of_billions_in_a_page_header_is_refused_at_once() {
    for kind in [0xf1, 0xf2, 0xf7, 0xfd] {
        let mut bytes = packed(hundred_rows());
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

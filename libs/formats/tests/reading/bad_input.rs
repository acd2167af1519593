//! What is refused, and what it says.

use std::io::{Read, Write};

use formats::{BadRow, Detected, FileSpec, Format, InputError};
use market::{Timeframe, format_millis};

use crate::data::{Collected, read, read_whole};

const HEADER: &str = "timestamp,open,high,low,close,volume\n";

fn spec(name: &str) -> FileSpec {
    FileSpec { instrument: Some("US|SPY".parse().unwrap()), ..FileSpec::new(name) }
}

fn read_bytes(bytes: &[u8], spec: &FileSpec) -> (Collected, Result<Detected, InputError>) {
    let mut collected = Collected::default();
    let outcome = formats::read_bytes(bytes, spec, &mut collected);
    (collected, outcome)
}

fn refusal(bytes: &[u8], spec: &FileSpec) -> String {
    let (collected, outcome) = read_bytes(bytes, spec);
    assert!(collected.chunks.is_empty());
    outcome.unwrap_err().to_string()
}

/// Minutes from 2020-01-02T14:30Z, with the values given.
fn minutes(values: &[&str]) -> String {
    let start = market::parse_millis("2020-01-02T14:30:00Z").unwrap();
    let line = |(row, values): (usize, &&str)| format!("{},{values}\n", format_millis(start + row as i64 * 60_000));
    HEADER.to_owned() + &values.iter().enumerate().map(line).collect::<String>()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn files_of_another_kind_are_named() {
    for (bytes, says) in [
        (&b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"[..], "a PNG picture"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\x01\x02\0\0\x03binary", "binary data"),
        (b"\xff\xfet\0i\0m\0e\0", "UTF-16"),
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"Dear reader, this is a letter.\nIt holds no candles.\n", "--format help"),
        (b"PK\x03\x04 and nothing more", "truncated"),
        (b"PAR1 and nothing more", "Parquet"),
        (b"{\"candles\": []}", "no list data.candles"),
        (b"{\"status\":\"error\",\"message\":\"Invalid token\",\"data\":null}", "Invalid token"),
        (b"[1, 2]", "not the JSON of a candle answer"),
    ] {
        let error = refusal(bytes, &spec("a.csv"));
        assert!(error.starts_with("a.csv") && error.contains(says), "{error}");
        // Packed or not makes no difference.
        let error = refusal(&gzip(bytes), &spec("a.csv.gz"));
        assert!(error.starts_with("a.csv.gz"), "{error}");
    }
}

#[test]
fn only_a_header_is_no_error_but_said() {
    let (collected, outcome) = read_bytes(HEADER.as_bytes(), &spec("a.csv"));
    assert!(collected.chunks.is_empty() && collected.bad.is_empty());
    assert!(outcome.unwrap().notes[0].contains("no rows"));
}

#[test]
fn rows_that_are_no_candles_are_named_by_line_and_the_others_read() {
    let text = minutes(&[
        "1,2,0.5,1.5,10",
        "NaN,2,0.5,1.5,10",
        "1,inf,0.5,1.5,10",
        "1,2,0.5,1.5,-10",
        "1,1.2,0.5,1.5,10",
        "1,2,1.2,1.5,10",
        "1,2,0.5,x,10",
        "1,2,0.5,1.5",
        "1,2,0.5,1.5,10,99",
        "1,2,0.5,,10",
        "1,2,0.5,1.5,10",
    ]) + "2020-01-02T15:00:30Z,1,2,0.5,1.5,10\nnever,1,2,0.5,1.5,10\n";
    let (collected, outcome) = read_bytes(text.as_bytes(), &spec("a.csv"));
    let detected = outcome.unwrap();
    assert_eq!(collected.chunks[0].lines, [2, 12]);
    let says = [
        (3, "open is NaN"),
        (4, "high is inf"),
        (5, "volume -10 is negative"),
        (6, "high 1.2 is below"),
        (7, "low 1.2 is above"),
        (8, "close 'x' is not a number"),
        (9, "volume is missing"),
        (10, "7 fields under a header of 6"),
        (11, "close is missing"),
        (13, "not aligned to its minute"),
        (14, "'never'"),
    ];
    let mut bad: Vec<&BadRow> = collected.bad.iter().collect();
    bad.sort_by_key(|bad| bad.line);
    assert_eq!(bad.len(), says.len(), "{bad:?}");
    for (bad, (line, reason)) in bad.iter().zip(says) {
        assert!(bad.line == line && bad.reason.contains(reason), "{bad:?}");
    }
    assert_eq!(detected.profiles[0].off_minute, 1);
}

#[test]
fn a_repeated_stamp_with_other_values_is_reported_with_both_lines() {
    let text = HEADER.to_owned()
        + "2020-01-02T14:30:00Z,1,2,0.5,1.5,10\n2020-01-02T14:31:00Z,1,2,0.5,1.5,10\n\
           2020-01-02T14:30:00Z,1,2,0.5,1.7,10\n2020-01-02T14:31:00Z,1,2,0.5,1.5,10\n";
    let (collected, outcome) = read_bytes(text.as_bytes(), &spec("a.csv"));
    let profile = &outcome.unwrap().profiles[0];
    assert_eq!((profile.rows, profile.repeated, profile.conflicting), (4, 1, 1));
    assert_eq!((profile.conflicts[0].earlier_line, profile.conflicts[0].line), (2, 4));
    // All are handed over in file order: who stores them keeps the last.
    assert_eq!(collected.chunks[0].lines, [2, 3, 4, 5]);
    assert_eq!(collected.by_time("US|SPY")[&profile.first].close, 1.7);
}

#[test]
fn a_timeframe_the_rows_contradict_is_refused_before_anything_is_handed_over() {
    let text = minutes(&["1,2,0.5,1.5,10"; 5]);
    let daily = FileSpec { timeframe: Some(Timeframe::D1), ..spec("a.csv") };
    let error = refusal(text.as_bytes(), &daily);
    assert!(error.contains("1 minutes apart") && error.contains("--timeframe"), "{error}");
    let one = minutes(&["1,2,0.5,1.5,10"]);
    assert!(refusal(one.as_bytes(), &spec("a.csv")).contains("pass --timeframe"));
    let stated = FileSpec { timeframe: Some(Timeframe::M1), ..spec("a.csv") };
    assert_eq!(read_bytes(one.as_bytes(), &stated).0.rows().len(), 1);
}

#[test]
fn a_daily_row_is_dated_by_its_trading_date() {
    let text = "timestamp,trading_date,open,high,low,close,volume\n2022-01-02T18:30:00Z,2022-01-03,1,2,0.5,1.5,10\n\
                2022-01-03T18:30:00Z,2022-01-04,1,2,0.5,1.5,10\n";
    let (collected, _) = read_bytes(text.as_bytes(), &spec("d.csv"));
    assert_eq!(collected.chunks[0].timeframe, Timeframe::D1);
    assert_eq!(format_millis(collected.rows()[0].open_time), "2022-01-03T00:00:00Z");
}

#[test]
fn columns_are_found_by_name_and_a_missing_one_is_named() {
    let error = refusal(b"date,price\n1,2\n", &spec("a.csv"));
    assert!(error.contains("'amount' is missing"), "{error}");
    let error = refusal(b"timestamp,open,high,low,close\n2020-01-02T14:30:00Z,1,2,0.5,1.5\n", &spec("a.csv"));
    assert!(error.contains("'volume' is missing") && error.contains("timestamp,open,high"), "{error}");
    let text = "Volume;Close;Low;High;Open;Time\n10;1.5;0.5;2;1;1577975400000\n10;1.5;0.5;2;1;1577975460000\n";
    let (collected, _) = read_bytes(text.as_bytes(), &spec("a.csv"));
    assert_eq!(collected.rows()[1].high, 2.0);
    let no_instrument = FileSpec::new("a.csv");
    assert!(refusal(minutes(&["1,2,0.5,1.5,10"]).as_bytes(), &no_instrument).contains("--instrument"));
}

#[test]
fn six_columns_without_names_need_theirs() {
    // Prices that do not move fit either order.
    let text = "1451606700000,3.4,3.4,3.4,3.4,19.5\n1451606760000,3.4,3.4,3.4,3.4,1\n";
    assert!(refusal(text.as_bytes(), &spec("a.csv")).contains("--format bitfinex"));
    let named = FileSpec { format: Format::Bitfinex, ..spec("a.csv") };
    assert_eq!(read_bytes(text.as_bytes(), &named).0.rows().len(), 2);
}

#[test]
fn a_truncated_gzip_hands_over_what_was_readable_and_names_the_line() {
    let text = minutes(&vec!["1.25,2.5,0.5,1.5,1077"; 20_000]);
    // Hard to compress, as real prices are.
    let mut noisy = String::from(HEADER);
    for (row, line) in text.lines().skip(1).enumerate() {
        noisy.push_str(&line.replace("1077", &format!("{}", (row as u64).wrapping_mul(2_654_435_761) % 99_991)));
        noisy.push('\n');
    }
    let whole = gzip(noisy.as_bytes());
    let (collected, outcome) = read_bytes(&whole[..whole.len() / 2], &spec("a.csv.gz"));
    let rows = collected.rows().len() + collected.bad.len();
    assert!(rows > 1000, "{rows}");
    let Err(InputError::Broken { line, reason, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(line, rows as u64 + 2);
    assert!(reason.contains("truncated"), "{reason}");
}

#[test]
fn truncated_zips_parquets_and_json_say_so() {
    let json = b"{\"status\":\"success\",\"data\":{\"candles\":[[\"2016-09-30T15:29:00+05:30\",1,2,0.5,1.5,10,0],[\"2016-09-30T15:28:00+05:30\",1,2,0.5,1.5,10,0],[\"2016";
    let (collected, outcome) = read_bytes(json, &spec("a.json"));
    assert_eq!(collected.rows().len(), 2);
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("line 3") && error.contains("ends early"), "{error}");
    let Some(root) = crate::data::root() else { return };
    for (file, says) in
        [("vendor/lean_ES_20131007_trade_minute.zip", "zip"), ("vendor/upstox_RELIANCE_day.parquet", "Parquet")]
    {
        let bytes = std::fs::read(root.join(file)).unwrap();
        let error = refusal(&bytes[..bytes.len() * 3 / 4], &spec("cut"));
        assert!(error.contains(says) && error.contains("truncated"), "{error}");
        // Damage in the middle is found, not read as prices.
        let mut damaged = bytes.clone();
        let middle = damaged.len() / 3;
        damaged[middle..middle + 64].fill(0x5a);
        let family = FileSpec { instrument: Some("CME|ES".parse().unwrap()), ..FileSpec::new("damaged") };
        let error = read_bytes(&damaged, &family).1.unwrap_err().to_string();
        assert!(error.contains("fetch it again"), "{error}");
    }
}

#[test]
fn long_lines_and_bytes_that_are_no_text_are_passed_over_by_line() {
    let mut bytes = minutes(&["1,2,0.5,1.5,10", "1,2,0.5,1.5,10"]).into_bytes();
    bytes.extend(vec![b'7'; 1 << 20]);
    bytes.extend(b"\n\xff\xfe,1,2,0.5,1.5,10\n2020-01-02T14:40:00Z,1,2,0.5,1.5,10\n");
    let (collected, outcome) = read_bytes(&bytes, &spec("a.csv"));
    outcome.unwrap();
    assert_eq!(collected.rows().len(), 3);
    let bad: Vec<(u64, &str)> = collected.bad.iter().map(|bad| (bad.line, bad.reason.as_str())).collect();
    assert_eq!(bad.len(), 2);
    assert!(bad[0].0 == 4 && bad[0].1.contains("longer than 65536 bytes"), "{bad:?}");
    assert!(bad[1].0 == 5 && bad[1].1.contains("UTF-8"), "{bad:?}");
}

/// A file larger than what may be held is read in chunks: the sink sees the first long before the last line is written.
#[test]
fn a_pipe_is_read_as_it_comes() {
    struct Rows {
        left: u64,
        buffer: Vec<u8>,
    }
    impl Read for Rows {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            while self.buffer.len() < into.len() && self.left > 0 {
                self.left -= 1;
                let minute = format_millis((400_000 - self.left as i64) * 60_000);
                self.buffer.extend(format!("{minute},1,2,0.5,1.5,10\n").as_bytes());
            }
            let count = into.len().min(self.buffer.len());
            into[..count].copy_from_slice(&self.buffer[..count]);
            self.buffer.drain(..count);
            Ok(count)
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big.csv.gz");
    let mut encoder = flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), flate2::Compression::fast());
    let mut rows = Rows { left: 400_000, buffer: HEADER.into() };
    std::io::copy(&mut rows, &mut encoder).unwrap();
    encoder.finish().unwrap();
    let file = FileSpec { path, ..spec("big") };
    let (collected, detected) = read_whole(&file);
    assert_eq!(detected.profiles[0].rows, 400_000);
    assert!(
        collected.chunks.len() > 20 && collected.chunks.iter().all(|chunk| chunk.rows.len() <= formats::CHUNK_ROWS)
    );
}

#[test]
fn folders_and_missing_files_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let (_, outcome) = read(&spec(folder.path().to_str().unwrap()));
    assert!(outcome.unwrap_err().to_string().contains("is a folder"));
    let (_, outcome) = read(&spec("/nowhere/at/all.csv"));
    assert!(outcome.unwrap_err().to_string().contains("cannot be opened"));
}

#[test]
fn rows_of_json_that_are_no_candles_are_named_by_number() {
    let row = "[\"2016-09-30T15:29:00+05:30\",1,2,0.5,1.5,10]";
    let nested = format!("[{}]", vec!["[1]"; 1000].join(","));
    let text = format!(
        "{{\"data\":{{\"candles\":[{row},{},{nested},[1,2,3,4,5,6],[\"2016-09-30T15:28:00+05:30\",1,2,0.5,\"x\",10]]}}}}",
        row.replace("15:29", "15:27")
    );
    let (collected, outcome) = read_bytes(text.as_bytes(), &spec("a.json"));
    outcome.unwrap();
    assert_eq!(collected.rows().len(), 2);
    let bad: Vec<(u64, &str)> = collected.bad.iter().map(|bad| (bad.line, bad.reason.as_str())).collect();
    assert!(bad[0].0 == 3 && bad[0].1.contains("1000 values"), "{bad:?}");
    assert!(bad[1].0 == 4 && bad[1].1.contains("timestamp is not a text"), "{bad:?}");
    assert!(bad[2].0 == 5 && bad[2].1.contains("close 'x' is not a number"), "{bad:?}");
}

#[test]
fn a_key_column_that_is_none_stops_the_file() {
    let mut text = "key,timestamp,open,high,low,close,volume\n".to_owned();
    for row in 0..20_001 {
        text.push_str(&format!("X|{row},2020-01-02T14:30:00Z,1,2,0.5,1.5,10\n"));
    }
    let stated = FileSpec { timeframe: Some(Timeframe::M1), ..FileSpec::new("a.csv") };
    let (collected, outcome) = read_bytes(text.as_bytes(), &stated);
    assert_eq!(collected.rows().len(), 20_000);
    assert!(outcome.unwrap_err().to_string().contains("is the key column one?"));
}

#[test]
fn a_row_without_a_key_is_not_of_the_instrument_before() {
    let text = "key,timestamp,open,high,low,close,volume\nUS|SPY,2020-01-02T14:30:00Z,1,2,0.5,1.5,10\n\
                ,2020-01-02T14:31:00Z,1,2,0.5,1.5,10\nUS|SPY,2020-01-02T14:32:00Z,1,2,0.5,1.5,10\n";
    // Given for files that name none, an instrument is not the row's either.
    for spec in [FileSpec::new("a.csv"), spec("a.csv")] {
        let (collected, outcome) = read_bytes(text.as_bytes(), &spec);
        outcome.unwrap();
        assert_eq!(collected.chunks[0].lines, [2, 4]);
        assert_eq!(collected.bad, [BadRow { line: 3, reason: "key is missing".into() }]);
    }
}

#[test]
fn blank_lines_above_and_below_a_header_are_no_rows() {
    let rows = minutes(&["1,2,0.5,1.5,10", "1,2,0.5,1.5,10"]);
    for (above, first) in [("\n", 3), ("\r\n  \n", 4), ("\u{feff}\n", 3), ("\u{feff}", 2)] {
        let (collected, outcome) = read_bytes((above.to_owned() + &rows).as_bytes(), &spec("a.csv"));
        outcome.unwrap();
        assert_eq!(collected.bad, [], "{above:?}");
        assert_eq!(collected.chunks[0].lines, [first, first + 1], "{above:?}");
    }
    // Of two header lines, with blank ones between.
    let text = "Symbol: ESH22\n\n\"Date Time\",Open,High,Low,Close,Volume\n\n2022-02-10 09:30,1,2,0.5,1.5,10\n\
                2022-02-10 09:31,1,2,0.5,1.5,10\n";
    let (collected, outcome) = read_bytes(text.as_bytes(), &FileSpec { format: Format::Barchart, ..spec("a.csv") });
    outcome.unwrap();
    assert_eq!((collected.bad.len(), &collected.chunks[0].lines[..]), (0, &[5, 6][..]));
}

#[test]
fn json_that_is_too_long_is_not_called_truncated() {
    let row = "[\"2016-09-30T15:29:00+05:30\",1,2,0.5,1.5,10]";
    let answer = |blanks: usize| format!("{{\"data\":{{\"candles\":[{row}{}]}}}}", " ".repeat(blanks));
    let stated = FileSpec { timeframe: Some(Timeframe::M1), ..spec("a.json.gz") };
    let most = (64 << 20) - answer(0).len();
    let (collected, outcome) = read_bytes(&gzip(answer(most).as_bytes()), &stated);
    outcome.unwrap();
    assert_eq!(collected.rows().len(), 1);
    let (collected, outcome) = read_bytes(&gzip(answer(most + 2).as_bytes()), &stated);
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("longer than 64 MiB") && error.contains("split it"), "{error}");
    assert_eq!(collected.rows().len(), 1);
    // Cut at the limit, it is no longer than it.
    let cut = &answer(most + 2)[..64 << 20];
    assert!(read_bytes(&gzip(cut.as_bytes()), &stated).1.unwrap_err().to_string().contains("ends early"));
}

/// Spreads and some futures have such prices, shares do not.
#[test]
fn prices_of_zero_and_below_are_kept_with_a_note() {
    let text = HEADER.to_owned()
        + "2020-04-20T18:00:00Z,1,1,0,1,10\n2020-04-20T18:01:00Z,-37,-36,-38,-37,10\n2020-04-20T18:02:00Z,1,2,0.5,1,10\n";
    let (collected, outcome) = read_bytes(text.as_bytes(), &spec("a.csv"));
    let detected = outcome.unwrap();
    assert_eq!((collected.rows().len(), collected.bad.len(), detected.profiles[0].not_positive), (3, 0, 2));
    assert!(detected.notes[0].starts_with("2 rows have a price of zero or below"), "{:?}", detected.notes);
}

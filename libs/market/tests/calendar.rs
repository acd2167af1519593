//! Calendars against dates from outside: exchange_calendars lists (tests/golden) and the dates present in real candles.
//!
//! Real candles are read from CANDLEMESH_TEST_DATA; without it those tests are skipped, unless CANDLEMESH_REQUIRE_TEST_DATA=1.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its data should stop")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use market::{Calendar, Date, Millis, Timeframe, parse_date, parse_millis};

const MINUTE_MS: Millis = 60_000;

/// Reads a golden list: closed weekdays and early closes (local `HH:MM`).
fn golden(text: &str) -> BTreeMap<Date, String> {
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("date"))
        .map(|line| line.split_once(',').unwrap())
        .map(|(date, close)| (parse_date(date).unwrap(), close.to_owned()))
        .collect()
}

/// The same list as the calendar has it: closed weekdays, and closes at another local time than the regular hour.
fn irregular(name: &str, first: &str, last: &str, regular_close_hour: i64) -> BTreeMap<Date, String> {
    let calendar = Calendar::by_name(name).unwrap();
    let mut found = BTreeMap::new();
    let (mut date, last) = (parse_date(first).unwrap(), parse_date(last).unwrap());
    while date <= last {
        let day = calendar.day(date);
        let weekday = !is_weekend(date);
        match day.sessions.last() {
            None if weekday => {
                found.insert(date, "closed".to_owned());
            }
            Some(session) => {
                // Clocks do not change during a session, so its length gives the local close.
                // From midnight: a trading date of CME starts at 17:00 of the evening before.
                let evening = if name == "CME" { 7 * 60 } else { 0 };
                let minutes = (session.close - day.start) / MINUTE_MS - evening;
                if minutes != regular_close_hour * 60 {
                    found.insert(date, format!("{:02}:{:02}", minutes / 60, minutes % 60));
                }
            }
            None => {}
        }
        date = date.tomorrow().unwrap();
    }
    found
}

fn is_weekend(date: Date) -> bool {
    date.weekday().to_monday_zero_offset() >= 5
}

/// Where the shared data lies, or `None` when there is none.
fn data_dir() -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let dir = std::env::var_os("CANDLEMESH_TEST_DATA").map_or(default, PathBuf::from);
    if dir.is_dir() {
        return Some(dir);
    }
    let required = std::env::var("CANDLEMESH_REQUIRE_TEST_DATA").is_ok_and(|value| value == "1");
    assert!(!required, "test data is required but {} does not exist", dir.display());
    println!("skipped: no test data at {}", dir.display());
    None
}

/// One column of a data file.
fn column(path: &Path, name: &str) -> Vec<String> {
    let mut text = String::new();
    MultiGzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let mut lines = text.lines();
    let index = lines.next().unwrap().split(',').position(|field| field == name).unwrap();
    lines.map(|line| line.split(',').nth(index).unwrap().to_owned()).collect()
}

fn trading_dates(paths: &[PathBuf]) -> BTreeSet<Date> {
    paths.iter().flat_map(|path| column(path, "trading_date")).map(|text| parse_date(&text).unwrap()).collect()
}

fn dates(texts: &[&str]) -> BTreeSet<Date> {
    texts.iter().map(|text| parse_date(text).unwrap()).collect()
}

/// Dates the calendar has and the data has not, and the reverse, over the span of the data.
fn differences(name: &str, seen: &BTreeSet<Date>) -> (BTreeSet<Date>, BTreeSet<Date>) {
    let calendar = Calendar::by_name(name).unwrap();
    let (first, last) = (*seen.first().unwrap(), *seen.last().unwrap());
    let expected: BTreeSet<Date> = calendar.trading_dates(first, last).into_iter().collect();
    (expected.difference(seen).copied().collect(), seen.difference(&expected).copied().collect())
}

#[test]
fn nyse_closures_and_half_days_match_exchange_calendars() {
    assert_eq!(irregular("NYSE", "1993-01-01", "2026-12-31", 16), golden(include_str!("golden/nyse.csv")));
}

#[test]
fn eurex_closures_match_exchange_calendars() {
    assert_eq!(irregular("EUREX", "2007-01-01", "2026-12-31", 22), golden(include_str!("golden/eurex.csv")));
}

/// The library closes at noon on the half days of the share exchanges, where CME's own schedules say 12:15, and does not close on
/// two Good Fridays; these are the only differences.
#[test]
fn cme_closures_and_early_closes_match_pandas_market_calendars() {
    let mut ours = irregular("CME", "2013-01-01", "2026-12-31", 16);
    // A trading date starts at 17:00 of the evening before, and the close of 16:15 was regular until 2015.
    ours.retain(|date, close| close != "16:15" || *date >= parse_date("2015-09-21").unwrap());
    let golden = golden(include_str!("golden/cme.csv"));
    let mut differences = Vec::new();
    for date in ours.keys().chain(golden.keys()).collect::<BTreeSet<_>>() {
        match (ours.get(date).map(String::as_str), golden.get(date).map(String::as_str)) {
            (ours, golden) if ours == golden => {}
            (Some("12:15"), Some("12:00")) => {}
            (ours, golden) => differences.push(format!("{date} {ours:?} {golden:?}")),
        }
    }
    let expected = [
        // Mourning: futures traded until half past eight, as CME announced.
        r#"2018-12-05 Some("08:30") Some("closed")"#,
        r#"2024-03-29 Some("closed") Some("08:15")"#,
        r#"2025-01-09 Some("08:30") Some("closed")"#,
        r#"2025-04-18 Some("closed") Some("08:15")"#,
    ];
    assert_eq!(differences, expected);
}

#[test]
fn nse_closures_match_exchange_calendars_but_for_evening_sessions() {
    let calendar = Calendar::by_name("NSE").unwrap();
    let (first, last) = (parse_date("2013-01-01").unwrap(), parse_date("2026-12-31").unwrap());
    let open: BTreeSet<Date> = calendar.trading_dates(first, last).into_iter().collect();
    let mut closed: BTreeSet<Date> = golden(include_str!("golden/nse.csv")).into_keys().collect();
    // The library has no special sessions: Muhurat weekdays are closed in it. Moharram of 2013 was moved by a day.
    for muhurat in
        ["2014-10-23", "2015-11-11", "2017-10-19", "2018-11-07", "2021-11-04", "2022-10-24", "2024-11-01", "2025-10-21"]
    {
        assert!(closed.remove(&parse_date(muhurat).unwrap()), "{muhurat}");
    }
    assert!(closed.remove(&parse_date("2013-11-14").unwrap()));
    assert!(closed.insert(parse_date("2013-11-15").unwrap()));
    let mut date = first;
    while date <= last {
        if !is_weekend(date) {
            assert_eq!(open.contains(&date), !closed.contains(&date), "{date}");
        }
        date = date.tomorrow().unwrap();
    }
}

#[test]
fn nifty_minutes_fall_on_nse_sessions() {
    let Some(dir) = data_dir() else { return };
    let nse = Calendar::by_name("NSE").unwrap();
    let mut seen = BTreeSet::new();
    let mut outside = BTreeMap::<Date, u32>::new();
    for text in column(&dir.join("1m/NSE_INDEX_Nifty_50_NIFTY.csv.gz"), "timestamp") {
        let at = parse_millis(&text).unwrap();
        let day = nse.day_at(at);
        assert!(day.start <= at && at < day.end);
        seen.insert(day.date);
        if !day.sessions.iter().any(|session| session.open <= at && at < session.close) {
            *outside.entry(day.date).or_default() += 1;
        }
    }
    let (absent, unexpected) = differences("NSE", &seen);
    // The source has no file for the Muhurat session of 2013.
    assert_eq!(absent, dates(&["2013-11-03"]));
    assert!(unexpected.is_empty(), "{unexpected:?}");
    // One pre-open candle and the closing prices of the two Saturday trials, and nothing else.
    assert_eq!(outside.keys().copied().collect::<BTreeSet<_>>(), dates(&["2013-05-11", "2014-03-22"]));
    assert!(outside.values().all(|&count| count <= 3), "{outside:?}");
}

#[test]
fn nse_daily_candles_name_exactly_the_trading_dates() {
    let Some(dir) = data_dir() else { return };
    let paths: Vec<PathBuf> = std::fs::read_dir(dir.join("1d"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("NSE_EQ_")))
        .collect();
    assert!(paths.len() >= 30);
    let (absent, unexpected) = differences("NSE", &trading_dates(&paths));
    assert!(absent.is_empty(), "{absent:?}");
    // A stray row in one file out of 32, on a Saturday.
    assert_eq!(unexpected, dates(&["2025-04-26"]));
    let nse = Calendar::by_name("NSE").unwrap();
    for path in &paths {
        for (stamp, date) in column(path, "timestamp").iter().zip(column(path, "trading_date")) {
            assert_eq!(nse.date_of_daily_stamp(parse_millis(stamp).unwrap()), parse_date(&date).unwrap());
        }
    }
}

#[test]
fn us_daily_candles_name_exactly_the_trading_dates() {
    let Some(dir) = data_dir() else { return };
    let paths = ["US_AAPL-D", "US_GOOG-D", "US_SPY-D"].map(|name| dir.join(format!("1d/{name}.csv.gz")));
    let (absent, unexpected) = differences("NYSE", &trading_dates(&paths));
    assert!(absent.is_empty() && unexpected.is_empty(), "{absent:?} {unexpected:?}");
    let nyse = Calendar::by_name("NYSE").unwrap();
    for path in &paths {
        for (stamp, date) in column(path, "timestamp").iter().zip(column(path, "trading_date")) {
            assert_eq!(nyse.date_of_daily_stamp(parse_millis(stamp).unwrap()), parse_date(&date).unwrap());
        }
    }
}

/// Share of the minutes of a file that fall outside the sessions of its calendar.
fn outside_share(dir: &Path, file: &str, name: &str) -> f64 {
    let calendar = Calendar::by_name(name).unwrap();
    let stamps = column(&dir.join(file), "timestamp");
    let outside = stamps.iter().map(|text| parse_millis(text).unwrap()).filter(|&at| {
        let day = calendar.day_at(at);
        !day.sessions.iter().any(|session| session.open <= at && at < session.close)
    });
    outside.count() as f64 / stamps.len() as f64
}

#[test]
fn minutes_of_other_markets_fall_into_their_sessions() {
    let Some(dir) = data_dir() else { return };
    for (file, name) in [
        ("1m/CME_ESH22.csv.gz", "CME"),
        ("1m/CME_ESZ3_ES201312.csv.gz", "CME"),
        ("1m/EUREX_FESX-2006.csv.gz", "EUREX"),
        ("1m/FX_GBPUSD_GBPUSD-bid.csv.gz", "FX"),
        ("1m/FX_EURUSD.csv.gz", "FX"),
        ("1m/US_AAPL.csv.gz", "NYSE"),
        ("1m/CRYPTO_BITFINEX_LTCUSD.csv.gz", "24x7"),
    ] {
        assert_eq!(outside_share(&dir, file, name), 0.0, "{file}");
    }
    // Two of 5000 hours are stamped 17:00 on a Friday, when trading has just ended.
    assert_eq!(outside_share(&dir, "1h/FX_EURUSD_1h.csv.gz", "FX"), 2.0 / 5000.0);
    // Currency futures trade through the noon halt of Martin Luther King's day.
    let share = outside_share(&dir, "1m/CME_6EH4.csv.gz", "CME");
    assert!(share > 0.0 && share < 0.01, "{share}");
}

/// Every file of minutes: each date with a minute is a trading date of the key's calendar, and its minutes lie inside the sessions.
#[test]
fn every_minute_of_every_file_falls_on_a_trading_date_and_into_its_sessions() {
    let Some(dir) = data_dir() else { return };
    let list = std::fs::read_to_string(dir.join("instruments_1m.csv")).unwrap();
    let mut lines = list.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let field = |name: &str| header.iter().position(|column| *column == name).unwrap();
    let (file, key) = (field("file"), field("key"));
    let (mut files, mut found) = (0, BTreeMap::new());
    for line in lines.filter(|line| line.contains("1m/")) {
        let fields: Vec<&str> = line.split(',').collect();
        let calendar = Calendar::for_key(&fields[key].parse().unwrap()).unwrap();
        let (mut closed, mut outside) = (BTreeSet::new(), 0_u32);
        let mut day = calendar.day_at(0);
        for text in column(&dir.join(fields[file]), "timestamp") {
            let at = parse_millis(&text).unwrap();
            if !(day.start..day.end).contains(&at) {
                day = calendar.day_at(at);
            }
            match day.sessions.is_empty() {
                true => drop(closed.insert(day.date)),
                false => outside += u32::from(!day.sessions.iter().any(|s| s.open <= at && at < s.close)),
            }
        }
        files += 1;
        if outside > 0 || !closed.is_empty() {
            found.insert(fields[key].to_owned(), (closed, outside));
        }
    }
    assert_eq!(files, 83);
    let outside = [
        // Currency futures trade on through the noon halt of Martin Luther King's day.
        ("CME|6EH4", 155),
        // One pre-open candle and the closing prices of the two Saturday trials.
        ("NSE_INDEX|Nifty 50", 6),
        // Pre- and post-market: all but the 390 minutes of 8 sessions.
        ("US|SPY-EXT", 7218 - 8 * 390),
    ];
    let expected: BTreeMap<String, _> =
        outside.into_iter().map(|(key, outside)| (key.to_owned(), (BTreeSet::new(), outside))).collect();
    assert_eq!(found, expected);
}

#[test]
fn buckets_match_the_session_anchored_bars_of_the_oracle() {
    let Some(dir) = data_dir() else { return };
    for (file, name) in [
        ("NSE_RELIANCE", "NSE"),
        ("NSE_NIFTY50_2014-10", "NSE"),
        ("US_SPY_EXT", "NYSE"),
        ("FX_GBPUSD_2012-02", "FX"),
        ("BITFINEX_LTCUSD_2016-06", "24x7"),
    ] {
        let calendar = Calendar::by_name(name).unwrap();
        let path = dir.join(format!("oracle/bars_{file}.csv.gz"));
        let [interval, align, bucket, first, last] =
            ["interval", "align", "bucket", "first_stamp", "last_stamp"].map(|field| column(&path, field));
        let mut compared = 0;
        for row in (0..bucket.len()).filter(|&row| align[row] == "session") {
            let timeframe: Timeframe = interval[row].parse().unwrap();
            for stamp in [&first[row], &last[row]] {
                let at = parse_millis(stamp).unwrap();
                let day = calendar.day_at(at);
                if timeframe == Timeframe::D1 {
                    assert_eq!(day.date, parse_date(&bucket[row]).unwrap(), "{file} {stamp}");
                } else {
                    let start = calendar.bucket(&day, timeframe, at).start();
                    assert_eq!(start, parse_millis(&bucket[row]).unwrap(), "{file} {timeframe} {stamp}");
                }
            }
            compared += 1;
        }
        assert!(compared > 100, "{file}: {compared}");
    }
}

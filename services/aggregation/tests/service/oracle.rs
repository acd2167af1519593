//! Against bars computed from real data by pandas; see the data's oracle/README.md.

use std::collections::BTreeMap;
use std::path::Path;

use market::{BucketFrame, Candle, Millis, TimeRange, format_date, format_millis, parse_millis};
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

fn minutes(data: &Path, case: &Case) -> Frame {
    let window = TimeRange::new(parse_millis(case.from).unwrap(), parse_millis(case.to).unwrap()).unwrap();
    data::candles(&data.join(format!("1m/{}.csv.gz", case.file)), window)
}

/// A bar of the oracle: bucket (a date for 1d), O H L C V, rows, first and last of its minutes.
struct Bar {
    bucket: String,
    values: [f64; 5],
    count: u32,
    stamps: [Millis; 2],
}

fn bars(data: &Path, case: &Case, timeframe: Timeframe) -> Vec<Bar> {
    let all = data::records(&data.join(format!("oracle/bars_{}.csv.gz", case.name)));
    let of_timeframe = all.iter().filter(|record| &record[0] == timeframe.as_str() && &record[1] == "session");
    let bar = |record: &csv::StringRecord| Bar {
        bucket: record[2].to_owned(),
        values: std::array::from_fn(|field| record[3 + field].parse().unwrap()),
        count: record[8].parse().unwrap(),
        stamps: [9, 10].map(|field| parse_millis(&record[field]).unwrap()),
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

/// The minutes from a bar's first to its last stamp are as many as it counts, open with its open and close with its close.
fn compare_minutes(case: &Case, ones: &BucketFrame, bar: &Bar) {
    let [first, last] = bar.stamps;
    let rows = ones.frame.rows_between(first, last + 60_000);
    let (opened, closed) = (ones.frame.candle(rows.start), ones.frame.candle(rows.end - 1));
    let found = (opened.open_time, opened.open, closed.open_time, closed.close, rows.len() as u32);
    assert_eq!(found, (first, bar.values[0], last, bar.values[3], bar.count), "{} {}", case.name, bar.bucket);
}

/// The oracle anchors every NSE date at 09:15 and we the Muhurat session of 2014-10-23 at its own open, 18:15: nine hours later, so
/// the buckets are the same.
#[tokio::test]
async fn every_bar_of_the_oracle_is_answered() {
    let Some(data) = data::folder() else { return };
    let source = Arc::new(source(CASES.iter().map(|case| (case.key, case.calendar, minutes(&data, case)))));
    let mut compared = 0;
    for engines in ["v1", "v2"] {
        let served = serve(&source, engines, Config::default()).await;
        let client = RemoteAggregation::connect(&served.address).unwrap();
        for case in &CASES {
            let ones = client.candles(&key(case.key), Timeframe::M1, TimeRange::ALL, None).await.unwrap().frame;
            for timeframe in [Timeframe::M5, Timeframe::M15, Timeframe::H1, Timeframe::D1] {
                let answer = client.candles(&key(case.key), timeframe, TimeRange::ALL, None).await.unwrap();
                let bars = bars(&data, case, timeframe);
                compared += compare(case, timeframe, &answer.frame, &bars);
                bars.iter().for_each(|bar| compare_minutes(case, &ones, bar));
            }
        }
    }
    println!("{compared} bars compared");
}

/// Local clock of a case's exchange, without any calendar: what is added to UTC, where buckets are anchored, and when a date begins.
struct Clock {
    offset: fn(Millis) -> Millis,
    anchor: Millis,
    roll: Millis,
}

const MINUTE: Millis = 60_000;
const DAY: Millis = 24 * 60 * MINUTE;

fn clock(case: &Case) -> Clock {
    match case.calendar {
        "NSE" => Clock { offset: |_| 330 * MINUTE, anchor: 555 * MINUTE, roll: 0 },
        // Clocks went back at 06:00 UTC of 2025-11-02.
        "NYSE" => Clock {
            offset: |at| if at < 1_762_063_200_000 { -240 * MINUTE } else { -300 * MINUTE },
            anchor: 570 * MINUTE,
            roll: 0,
        },
        // February: winter time. The date of 17:00 is the next one's.
        "FX" => Clock { offset: |_| -300 * MINUTE, anchor: -420 * MINUTE, roll: 420 * MINUTE },
        _ => Clock { offset: |_| 0, anchor: 0, roll: 0 },
    }
}

/// Months since 1970 of a day's number, by counting: the years of the data are few.
fn month(day: Millis) -> Millis {
    let is_leap = |year: Millis| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let (mut year, mut day) = (1970, day);
    while day >= 365 + Millis::from(is_leap(year)) {
        day -= 365 + Millis::from(is_leap(year));
        year += 1;
    }
    let february = 28 + Millis::from(is_leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year - 1970) * 12 + month
}

/// The bucket of a minute by the naive definition: for widths inside a day its start, else the number of its week or month.
fn bucket(clock: &Clock, timeframe: Timeframe, at: Millis) -> Millis {
    let local = at + (clock.offset)(at);
    let day = (local + clock.roll).div_euclid(DAY);
    match timeframe.width_ms() {
        Some(width) => {
            // The one special session of these windows: Muhurat evening of 2014-10-23, from 18:15.
            let anchor = if day == 16_366 && clock.anchor == 555 * MINUTE { 1095 * MINUTE } else { clock.anchor };
            let anchor = day * DAY + anchor - (clock.offset)(at);
            let begin = day * DAY - clock.roll - (clock.offset)(at);
            (anchor + (at - anchor).div_euclid(width) * width).max(begin)
        }
        // 1970-01-01 was a Thursday.
        None if timeframe == Timeframe::W1 => (day + 3).div_euclid(7),
        None => month(day),
    }
}

/// The timeframes that the oracle has no bars of, against the definition: group the minutes, then reduce.
#[tokio::test]
async fn the_other_timeframes_are_those_of_the_naive_definition() {
    let Some(data) = data::folder() else { return };
    let source = Arc::new(source(CASES.iter().map(|case| (case.key, case.calendar, minutes(&data, case)))));
    let mut compared = 0;
    for engines in ["v1", "v2"] {
        let served = serve(&source, engines, Config::default()).await;
        let client = RemoteAggregation::connect(&served.address).unwrap();
        for case in &CASES {
            let clock = clock(case);
            let minutes = &source.stored[&(key(case.key), Timeframe::M1)];
            for text in ["2m", "3m", "10m", "30m", "2h", "4h", "1w", "1mo"] {
                let timeframe: Timeframe = text.parse().unwrap();
                let mut groups: BTreeMap<Millis, Vec<Candle>> = BTreeMap::new();
                for candle in minutes.candles() {
                    groups.entry(bucket(&clock, timeframe, candle.open_time)).or_default().push(candle);
                }
                let answer = client.candles(&key(case.key), timeframe, TimeRange::ALL, None).await.unwrap().frame;
                assert_eq!(answer.len(), groups.len(), "{} {text}", case.name);
                for (row, (start, group)) in groups.iter().enumerate() {
                    let place = format!("{} {text} row {row}", case.name);
                    let candle = answer.frame.candle(row);
                    if timeframe.width_ms().is_some() {
                        assert_eq!(candle.open_time, *start, "{place}");
                    }
                    let high = group.iter().map(|candle| candle.high).fold(f64::MIN, f64::max);
                    let low = group.iter().map(|candle| candle.low).fold(f64::MAX, f64::min);
                    let volume = group.iter().fold(0.0, |sum, candle| sum + candle.volume);
                    let expected = [group[0].open, high, low, group[group.len() - 1].close, volume];
                    let found = [candle.open, candle.high, candle.low, candle.close, candle.volume];
                    assert_eq!(found, expected, "{place}");
                    assert_eq!(answer.source_count[row] as usize, group.len(), "{place}");
                }
                compared += groups.len();
            }
        }
    }
    println!("{compared} bars compared");
}

//! Indicators and resampled bars against values from outside: TA-Lib, numpy and pandas, by way of `data/oracle` (its README names versions,
//! conventions and the script), and a published table.
//!
//! The full comparison needs the market data folder (`CANDLEMESH_TEST_DATA`, default `../shared/data` beside the workspace); without it those
//! tests say so and pass, unless `CANDLEMESH_REQUIRE_TEST_DATA=1`. The first hour of one instrument is kept in `golden/`.

#![allow(clippy::unwrap_used, reason = "functions of a test: a malformed file is a failure")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use flate2::read::GzDecoder;
use kernels::indicator::{Column, Inputs, Spec, compute_fold, compute_fused};
use kernels::resample::{Bars, Day, resample_day_into, resample_rows, resample_whole_into};

/// A relative tolerance needs a floor where the value is a difference that passes through 0.
#[derive(Clone, Copy)]
enum Floor {
    None,
    /// Difference of prices: a thousandth of the close, so 1e-12 of the price.
    Price,
    /// Percentages: 1.
    Percent,
}

/// Column of the oracle, column of ours.
const PAIRS: [(&str, &str, Floor); 24] = [
    ("sma_9", "sma:9", Floor::None),
    ("sma_20", "sma:20", Floor::None),
    ("ema_5", "ema:5", Floor::None),
    ("ema_9", "ema:9", Floor::None),
    ("ema_50", "ema:50", Floor::None),
    ("rsi_14", "rsi:14", Floor::Percent),
    ("bb_upper_exact", "bbands:20,2.upper", Floor::None),
    ("bb_mid_20_2", "bbands:20,2.middle", Floor::None),
    ("bb_lower_exact", "bbands:20,2.lower", Floor::None),
    ("width", "bbands:20,2.width", Floor::Price),
    ("width_normalized", "bbands:20,2.width_normalized", Floor::Percent),
    ("tr", "tr", Floor::Price),
    ("atr_14", "atr:14", Floor::None),
    ("macd_talib", "macd:12,26,9.macd", Floor::Price),
    ("macd_signal_talib", "macd:12,26,9.signal", Floor::Price),
    ("macd_hist_talib", "macd:12,26,9.histogram", Floor::Price),
    ("plus_di_14", "plus_di:14", Floor::Percent),
    ("minus_di_14", "minus_di:14", Floor::Percent),
    ("adx_14", "adx:14", Floor::Percent),
    ("stoch_k_14_3", "stoch:14,3,3.k", Floor::Percent),
    ("stoch_d_14_3_3", "stoch:14,3,3.d", Floor::Percent),
    ("obv", "obv", Floor::None),
    ("vwap_session", "vwap", Floor::None),
    ("close", "ema:1", Floor::None),
];

const SPECS: [&str; 16] = [
    "sma:9",
    "sma:20",
    "ema:5",
    "ema:9",
    "ema:50",
    "rsi:14",
    "bbands:20,2",
    "tr",
    "atr:14",
    "macd:12,26,9",
    "plus_di:14",
    "minus_di:14",
    "adx:14",
    "stoch:14,3,3",
    "obv",
    "vwap",
];

#[test]
fn first_hour_of_one_instrument_is_as_in_talib() {
    let table = Table::read(include_str!("golden/algousdt_60_minutes.csv"));
    assert_eq!(table.rows, 60);
    compare("golden", &table);
}

#[test]
fn heads_of_the_oracle_are_as_in_talib() {
    for name in ["NSE_RELIANCE", "US_SPY_EXT", "BINANCE_ALGOUSDT_2024-02a"] {
        let Some(text) = shared(&format!("oracle/indicators_{name}.head.csv.gz")) else { return };
        let table = Table::read(&text);
        assert_eq!(table.rows, 4000, "{name}");
        compare(name, &table);
    }
}

/// Source: StockCharts ChartSchool, Relative Strength Index (RSI), the worked table "cs-rsi" (QQQQ, 14 days), to two decimals.
#[test]
fn rsi_is_as_in_the_published_table() {
    let close = [
        44.3389, 44.0902, 44.1497, 43.6124, 44.3278, 44.8264, 45.0955, 45.4245, 45.8433, 46.0826, 45.8931, 46.0328,
        45.6140, 46.2820, 46.2820, 46.0028, 46.0328, 46.4116, 46.2222, 45.6439, 46.2122,
    ];
    let published = [70.53, 66.32, 66.55, 69.41, 66.36, 57.97, 62.93];
    let inputs = Inputs::new(&close, &close, &close, &close, &close, &[0; 21]).unwrap();
    let rsi = compute_fold(&["rsi".parse().unwrap()], &inputs).unwrap().remove(0).values;
    for (got, wanted) in rsi[14..].iter().zip(published) {
        assert!((got - wanted).abs() < 0.006, "{got} {wanted}");
    }
}

#[test]
fn bars_are_as_in_pandas() {
    const DAY_MS: i64 = 86_400_000;
    const NSE_OPEN_MS: i64 = 13_500_000;
    // In these markets the trading date is the UTC date; the anchor is the session's open on it.
    for (oracle, source, open_ms) in [
        ("NSE_RELIANCE", "NSE_EQ_INE002A01018_RELIANCE", NSE_OPEN_MS),
        ("NSE_NIFTY50_2014-10", "NSE_INDEX_Nifty_50_NIFTY", NSE_OPEN_MS),
        ("BINANCE_ALGOUSDT_2024-02a", "CRYPTO_BINANCE-UM_ALGOUSDT", 0),
        ("BITFINEX_LTCUSD_2016-06", "CRYPTO_BITFINEX_LTCUSD", 0),
    ] {
        let (Some(oracle), Some(source)) =
            (shared(&format!("oracle/bars_{oracle}.csv.gz")), shared(&format!("1m/{source}.csv.gz")))
        else {
            return;
        };
        let days = minutes_by_day(&source, DAY_MS);
        for (interval, minutes) in [("5m", 5), ("15m", 15), ("1h", 60), ("1d", 0)] {
            let wanted: Vec<Vec<&str>> = (oracle.lines().map(|line| line.split(',').collect::<Vec<_>>()))
                .filter(|row| row[0] == interval && row[1] == "session")
                .collect();
            let first = wanted[0][9][..10].to_owned();
            let last = wanted[wanted.len() - 1][9][..10].to_owned();
            let (mut got, mut reference) = (Bars::default(), Bars::default());
            for (&date, rows) in days.range(day_number(&first)..=day_number(&last)) {
                let [open, high, low, close, volume] = &rows.columns;
                let absent = vec![f64::NAN; rows.times.len()];
                let day = Day::new(&rows.times, open, high, low, close, volume, &absent).unwrap();
                let anchor = date * DAY_MS + open_ms;
                if minutes == 0 {
                    resample_whole_into(day, date * DAY_MS, &mut got);
                } else {
                    resample_day_into(day, anchor, minutes * 60_000, date * DAY_MS, &mut got);
                    resample_rows(day, anchor, minutes * 60_000, date * DAY_MS, &mut reference);
                    assert_eq!((&got.open_time, &got.volume), (&reference.open_time, &reference.volume));
                }
            }
            assert_eq!(got.len(), wanted.len(), "{interval}");
            for (i, row) in wanted.iter().enumerate() {
                let number = |column: usize| row[column].parse::<f64>().unwrap();
                assert_eq!(got.open_time[i], time_ms(row[2]), "{row:?}");
                let prices = [got.open[i], got.high[i], got.low[i], got.close[i]];
                assert_eq!(prices, [number(3), number(4), number(5), number(6)], "{row:?}");
                assert!((got.volume[i] - number(7)).abs() <= 1e-9 * number(7).abs(), "{row:?}");
                assert_eq!(got.source_count[i].to_string(), row[8], "{row:?}");
            }
        }
    }
}

struct Table {
    rows: usize,
    columns: BTreeMap<String, Vec<f64>>,
    day: Vec<i32>,
}

impl Table {
    /// Reads the oracle's text form; an empty field is an undefined value.
    fn read(text: &str) -> Self {
        let mut lines = text.lines();
        let names: Vec<&str> = lines.next().unwrap().split(',').collect();
        let mut columns: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let (mut rows, mut day) = (0, Vec::new());
        for line in lines {
            rows += 1;
            for (name, field) in names.iter().zip(line.split(',')) {
                match *name {
                    "timestamp" => {}
                    "trading_day" => day.push(i32::try_from(day_number(field)).unwrap()),
                    name => {
                        let value = if field.is_empty() { f64::NAN } else { field.parse().unwrap() };
                        columns.entry(name.to_owned()).or_default().push(value);
                    }
                }
            }
        }
        let widths = (0..rows).map(|i| columns["bb_upper_exact"][i] - columns["bb_lower_exact"][i]);
        let widths: Vec<f64> = widths.collect();
        let ratios = widths.iter().zip(&columns["bb_mid_20_2"]).map(|(width, middle)| width / middle).collect();
        columns.insert("width".to_owned(), widths);
        columns.insert("width_normalized".to_owned(), ratios);
        Self { rows, columns, day }
    }
}

fn compare(name: &str, table: &Table) {
    let [open, high, low, close, volume] =
        ["open", "high", "low", "close", "volume"].map(|column| table.columns[column].as_slice());
    let inputs = Inputs::new(open, high, low, close, volume, &table.day).unwrap();
    let specs: Vec<Spec> = SPECS.iter().chain(&["ema:1"]).map(|spec| spec.parse().unwrap()).collect();
    for columns in [compute_fold(&specs, &inputs).unwrap(), compute_fused(&specs, &inputs).unwrap()] {
        for (oracle, ours, floor) in PAIRS {
            let Column { values, .. } = columns.iter().find(|column| column.name == ours).unwrap();
            for (row, (&got, &wanted)) in values.iter().zip(&table.columns[oracle]).enumerate() {
                let floor = match floor {
                    Floor::None => 0.0,
                    Floor::Price => close[row] * 1e-3,
                    Floor::Percent => 1.0,
                };
                let is_near = (got - wanted).abs() <= 1e-9 * wanted.abs().max(got.abs()).max(floor);
                assert!(
                    is_near || (got.is_nan() && wanted.is_nan()),
                    "{name} {ours} row {row}: {got}, wanted {wanted}"
                );
            }
        }
    }
}

#[derive(Default)]
struct Minutes {
    times: Vec<i64>,
    columns: [Vec<f64>; 5],
}

/// Cleans as the oracle does: sorted by time, the last row of a time wins.
fn minutes_by_day(text: &str, day_ms: i64) -> BTreeMap<i64, Minutes> {
    let mut rows: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
    for line in text.lines().skip(1) {
        let mut fields = line.split(',');
        let time = time_ms(fields.next().unwrap());
        rows.insert(time, fields.take(5).map(|field| field.parse().unwrap()).collect());
    }
    let mut days: BTreeMap<i64, Minutes> = BTreeMap::new();
    for (time, row) in rows {
        let day = days.entry(time.div_euclid(day_ms)).or_default();
        day.times.push(time);
        day.columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
    }
    days
}

/// Days since the epoch of `YYYY-MM-DD`, by counting (Gregorian, from 1970).
fn day_number(date: &str) -> i64 {
    let parts: Vec<i64> = date.split('-').map(|part| part.parse().unwrap()).collect();
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let years: i64 = (1970..parts[0]).map(|year| 365 + i64::from(is_leap(year))).sum();
    let lengths = [31, 28 + i64::from(is_leap(parts[0])), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    years + lengths[..parts[1] as usize - 1].iter().sum::<i64>() + parts[2] - 1
}

/// Milliseconds of `YYYY-MM-DD` or `YYYY-MM-DDTHH:MM:SSZ`.
fn time_ms(text: &str) -> i64 {
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00Z"));
    let seconds = time.trim_end_matches('Z').split(':').fold(0, |sum, part| sum * 60 + part.parse::<i64>().unwrap());
    (day_number(date) * 86_400 + seconds) * 1000
}

/// Reads a gzip file of the market data folder; none when the folder is absent and not required.
fn shared(path: &str) -> Option<String> {
    let folder = std::env::var_os("CANDLEMESH_TEST_DATA")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")), PathBuf::from);
    if !folder.exists() {
        let is_required = std::env::var_os("CANDLEMESH_REQUIRE_TEST_DATA").is_some_and(|value| value == "1");
        assert!(!is_required, "market data folder {} is absent", folder.display());
        println!("skipped: market data folder {} is absent", folder.display());
        return None;
    }
    let mut text = String::new();
    GzDecoder::new(File::open(folder.join(path)).unwrap()).read_to_string(&mut text).unwrap();
    Some(text)
}

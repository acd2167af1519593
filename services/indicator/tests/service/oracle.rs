//! Both engines, over the wire, against values of TA-Lib 0.8.1 and numpy on real minutes (see the data set's own description).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use market::{Calendar, Candle, Frame, Timeframe};
use mesh::source::{Buckets, MemorySource};
use proto::convert::column_values;
use proto::indicator::{ComputeIndicatorsRequest, ComputeIndicatorsResponse};
use proto::wire::TimeRange;

use crate::running::{Running, add_instrument, buckets, forced};

/// Relative, as the oracle's own second opinions (TA-Lib, kand, pandas-ta, plain loops) agree among themselves.
const TOLERANCE: f64 = 1e-9;
/// Share of the operands' size granted besides, ninety units in the last place, where a value is what remains of larger ones and passes
/// through zero: MACD is a difference of averages as large as the price, and TA-Lib's running sums of percentages leave a residue of
/// 1e-14 in the stochastic where it is exactly 0.
const CANCELLATION: f64 = 1e-14;

/// Indicator and its columns, with the oracle's names.
const COLUMNS: [(&str, &str, &str); 19] = [
    ("sma:9", "sma:9", "sma_9"),
    ("sma:20", "sma:20", "sma_20"),
    ("ema:5", "ema:5", "ema_5"),
    ("ema:9", "ema:9", "ema_9"),
    ("ema:50", "ema:50", "ema_50"),
    ("rsi:14", "rsi:14", "rsi_14"),
    ("bbands:20,2", "bbands:20,2.upper", "bb_upper_exact"),
    ("bbands:20,2", "bbands:20,2.lower", "bb_lower_exact"),
    ("tr", "tr", "tr"),
    ("atr:14", "atr:14", "atr_14"),
    ("macd:12,26,9", "macd:12,26,9.macd", "macd_talib"),
    ("macd:12,26,9", "macd:12,26,9.signal", "macd_signal_talib"),
    ("macd:12,26,9", "macd:12,26,9.histogram", "macd_hist_talib"),
    ("adx:14", "adx:14", "adx_14"),
    ("plus_di:14", "plus_di:14", "plus_di_14"),
    ("minus_di:14", "minus_di:14", "minus_di_14"),
    ("stoch:14,3,3", "stoch:14,3,3.k", "stoch_k_14_3"),
    ("stoch:14,3,3", "stoch:14,3,3.d", "stoch_d_14_3_3"),
    ("obv", "obv", "obv"),
];
const VWAP: (&str, &str, &str) = ("vwap", "vwap", "vwap_session");

/// Key, file of minutes, oracle, calendar.
const INSTRUMENTS: [(&str, &str, &str, &str); 3] = [
    ("NSE_EQ|INE002A01018", "NSE_EQ_INE002A01018_RELIANCE", "NSE_RELIANCE", "NSE"),
    ("US|SPY-EXT", "US_SPY-EXT", "US_SPY_EXT", "NYSE"),
    ("CRYPTO|BINANCE-UM:ALGOUSDT", "CRYPTO_BINANCE-UM_ALGOUSDT", "BINANCE_ALGOUSDT_2024-02a", "24x7"),
];

/// `None` where the data set is absent and not required.
fn data() -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let data = std::env::var_os("CANDLEMESH_TEST_DATA").map_or(default, PathBuf::from);
    if data.join("oracle").is_dir() {
        return Some(data);
    }
    let required = std::env::var("CANDLEMESH_REQUIRE_TEST_DATA").is_ok_and(|value| value == "1");
    assert!(!required, "test data is required and not at {}", data.display());
    println!("skipped: no test data at {}", data.display());
    None
}

fn rows(path: &Path) -> csv::Reader<MultiGzDecoder<File>> {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    csv::Reader::from_reader(MultiGzDecoder::new(file))
}

/// Minutes as the oracle cleans them: in order of time, the last of a repeated stamp wins.
fn minutes(path: &Path) -> Frame {
    let mut by_time = BTreeMap::new();
    for row in rows(path).records() {
        let row = row.unwrap();
        let value = |column: usize| row[column].parse::<f64>().unwrap();
        let candle = Candle {
            open_time: market::parse_millis(&row[0]).unwrap(),
            open: value(1),
            high: value(2),
            low: value(3),
            close: value(4),
            volume: value(5),
            open_interest: None,
        };
        by_time.insert(candle.open_time, candle);
    }
    let mut frame = Frame::default();
    by_time.values().for_each(|candle| frame.push(candle).unwrap());
    frame
}

/// Oracle columns by name, `None` where not defined, and its trading days.
struct Oracle {
    open_time: Vec<i64>,
    trading_day: Vec<String>,
    columns: BTreeMap<String, Vec<Option<f64>>>,
}

fn oracle(path: &Path) -> Oracle {
    let mut reader = rows(path);
    let header = reader.headers().unwrap().clone();
    let mut oracle = Oracle { open_time: Vec::new(), trading_day: Vec::new(), columns: BTreeMap::new() };
    for row in reader.records() {
        for (name, text) in header.iter().zip(row.unwrap().iter()) {
            match name {
                "timestamp" => oracle.open_time.push(market::parse_millis(text).unwrap()),
                "trading_day" => oracle.trading_day.push(text.to_owned()),
                name => oracle.columns.entry(name.to_owned()).or_default().push(text.parse().ok()),
            }
        }
    }
    oracle
}

fn source(data: &Path) -> MemorySource {
    let mut source = MemorySource { revision: 1, ..Default::default() };
    for (key, file, _, calendar) in INSTRUMENTS {
        let frame = minutes(&data.join(format!("1m/{file}.csv.gz")));
        let days = Calendar::by_name(calendar).unwrap();
        let mut day = days.day_at(frame.open_time()[0]);
        let mut trading_date = Vec::with_capacity(frame.len());
        for at in frame.open_time() {
            if !(day.start..day.end).contains(at) {
                day = days.day_at(*at);
            }
            trading_date.push(day.date);
        }
        let key = add_instrument(&mut source, key, calendar);
        let frame = buckets(frame, trading_date);
        source.buckets.insert((key, Timeframe::M1), Buckets { revision: 1, frame });
    }
    source
}

fn compare(answer: &ComputeIndicatorsResponse, oracle: &Oracle, from: usize, what: &str) {
    assert_eq!(answer.open_time_ms, oracle.open_time[from..], "{what}");
    for (_, column, name) in COLUMNS.into_iter().chain([VWAP]) {
        let got = answer.columns.iter().find(|found| found.name == column).unwrap();
        for (row, (got, want)) in column_values(got).into_iter().zip(&oracle.columns[name][from..]).enumerate() {
            let close = match (got, want) {
                (None, None) => true,
                (Some(got), Some(want)) => {
                    let operands = match name {
                        "macd_talib" | "macd_signal_talib" | "macd_hist_talib" => oracle.columns["close"][from + row],
                        "stoch_k_14_3" | "stoch_d_14_3_3" => Some(100.0),
                        _ => None,
                    };
                    let granted = CANCELLATION * operands.unwrap_or_default();
                    (got - want).abs() <= TOLERANCE * want.abs().max(got.abs()) + granted
                }
                _ => false,
            };
            assert!(close, "{what} {column} row {}: {got:?}, the oracle has {want:?}", from + row);
        }
    }
}

#[tokio::test]
async fn both_engines_equal_the_oracle_including_what_is_undefined() {
    let Some(data) = data() else { return };
    let source = source(&data);
    let dates = |key: &str| -> Vec<String> {
        let buckets = &source.buckets[&(key.parse().unwrap(), Timeframe::M1)];
        buckets.frame.trading_date[..4000].iter().map(|date| market::format_date(*date)).collect()
    };
    let dates = INSTRUMENTS.map(|(key, ..)| dates(key));
    let service = Running::start_over(source).await;
    let mut indicators: Vec<String> = COLUMNS.into_iter().chain([VWAP]).map(|(spec, _, _)| spec.to_owned()).collect();
    indicators.dedup();
    for ((key, _, name, _), dates) in INSTRUMENTS.into_iter().zip(dates) {
        let oracle = oracle(&data.join(format!("oracle/indicators_{name}.head.csv.gz")));
        assert_eq!(oracle.open_time.len(), 4000);
        assert_eq!(dates, oracle.trading_day, "{name}");
        for engine in ["v1", "v2", "v2"] {
            // From the start, where everything warms up, and from the middle, where nothing may have changed.
            for from in [0, 1234] {
                let asked = ComputeIndicatorsRequest {
                    instrument_key: key.into(),
                    timeframe: "1m".into(),
                    range: Some(TimeRange {
                        start_time: Some(proto::convert::timestamp(oracle.open_time[from])),
                        end_time: Some(proto::convert::timestamp(oracle.open_time[3999] + 60_000)),
                    }),
                    indicators: indicators.clone(),
                    revision: Some(1),
                };
                let answer = service.grpc().compute_indicators(forced(asked, engine)).await.unwrap().into_inner();
                compare(&answer, &oracle, from, &format!("{name} {engine}"));
            }
        }
    }
}

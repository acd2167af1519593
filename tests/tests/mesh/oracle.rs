//! REST answers on both engines against the oracle, every row.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candlemesh::client::{Connection, load};
use candlemesh_tests::answers::{Candles, Column, Indicators};
use candlemesh_tests::in_process::InProcess;
use candlemesh_tests::oracle::{Bar, Case, cases, data_folder};
use candlemesh_tests::rest::{Rest, candles_path, indicators_path};
use formats::FileSpec;
use market::Timeframe;
use serde_json::json;

/// Of sums and smoothed values: the oracle's own libraries agree to 1e-10 (its README).
const TOLERANCE: f64 = 1e-9;

/// What a column's error is relative to.
#[derive(Debug, Clone, Copy)]
enum Scale {
    /// The value itself.
    Value,
    /// The value, at least 1: percentages, whose rounding does not shrink with them.
    Percent,
    /// The value, at least the close up to 1: differences of prices, where both terms carry the rounding of a price. Never
    /// looser than an absolute 1e-9, by which the engines must agree, too.
    Price,
}

/// Our column, the oracle's, and the scale of the tolerance.
const COLUMNS: [(&str, &str, Scale); 18] = [
    ("sma:9", "sma_9", Scale::Value),
    ("sma:20", "sma_20", Scale::Value),
    ("ema:5", "ema_5", Scale::Value),
    ("ema:9", "ema_9", Scale::Value),
    ("ema:50", "ema_50", Scale::Value),
    ("rsi:14", "rsi_14", Scale::Percent),
    ("bbands:20,2.upper", "bb_upper_exact", Scale::Value),
    ("bbands:20,2.middle", "bb_mid_20_2", Scale::Value),
    ("bbands:20,2.lower", "bb_lower_exact", Scale::Value),
    ("atr:14", "atr_14", Scale::Value),
    ("macd:12,26,9.macd", "macd_talib", Scale::Price),
    ("macd:12,26,9.signal", "macd_signal_talib", Scale::Price),
    ("macd:12,26,9.histogram", "macd_hist_talib", Scale::Price),
    ("adx:14", "adx_14", Scale::Percent),
    ("stoch:14,3,3.k", "stoch_k_14_3", Scale::Percent),
    ("stoch:14,3,3.d", "stoch_d_14_3_3", Scale::Percent),
    ("obv", "obv", Scale::Value),
    ("vwap", "vwap_session", Scale::Value),
];
const INDICATORS: [&str; 13] = [
    "sma:9",
    "sma:20",
    "ema:5",
    "ema:9",
    "ema:50",
    "rsi:14",
    "bbands:20,2",
    "atr:14",
    "vwap",
    "macd:12,26,9",
    "adx:14",
    "stoch:14,3,3",
    "obv",
];

async fn load_window(mesh: &InProcess, case: &Case) -> Result<usize> {
    let (path, rows) = case.write_window(mesh.folder())?;
    let spec =
        FileSpec { instrument: Some(case.instrument.clone()), timeframe: Some(Timeframe::M1), ..FileSpec::new(path) };
    let report = load::load(&Connection::to(&mesh.gateway()), &[spec], None, true).await?;
    ensure!(report.rejected == 0, "{}: {:?}", case.name, report.files);
    ensure!(report.stored == rows as u64, "{}: {} of {rows} rows stored", case.name, report.stored);
    Ok(rows)
}

fn is_near(ours: f64, oracle: f64, scale: f64) -> bool {
    (ours - oracle).abs() <= TOLERANCE * scale.max(ours.abs()).max(oracle.abs())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn candles_equal_the_resampled_bars_of_the_oracle_on_both_engines() -> Result<()> {
    let Some(data) = data_folder()? else { return Ok(()) };
    let mesh = InProcess::start().await?;
    let rest = Rest::to(&mesh.gateway());
    for case in cases(&data)? {
        load_window(&mesh, &case).await?;
        let bars = case.bars()?;
        for timeframe in ["5m", "15m", "1h", "1d"] {
            let bars: Vec<&Bar> = bars.iter().filter(|bar| bar.interval == timeframe).collect();
            ensure!(!bars.is_empty(), "{} has no {timeframe} bars", case.name);
            for engine in ["v1", "v2"] {
                let what = format!("{} {timeframe} {engine}", case.name);
                let answer = rest.with_engine(engine).get(&candles_path(case.instrument.as_str(), timeframe)).await?;
                ensure!(answer.engine() == Some(engine), "{what}: answered by {:?}", answer.engine());
                compare_bars(&answer.ok()?, &bars).context(what)?;
            }
        }
    }
    mesh.stop().await
}

fn compare_bars(answer: &Candles, bars: &[&Bar]) -> Result<()> {
    ensure!(answer.candles.len() == bars.len(), "{} candles, {} bars", answer.candles.len(), bars.len());
    for (candle, bar) in answer.candles.iter().zip(bars) {
        let bucket = if bar.interval == "1d" { candle.trading_date.as_ref() } else { Some(&candle.open_time) };
        ensure!(bucket == Some(&bar.bucket), "{candle:?} in place of {bar:?}");
        let ours = [candle.open, candle.high, candle.low, candle.close];
        ensure!(ours == [bar.open, bar.high, bar.low, bar.close], "{candle:?} is not {bar:?}");
        ensure!(is_near(candle.volume, bar.volume, 0.0), "volume {} is not {}", candle.volume, bar.volume);
        ensure!(candle.source_count == bar.bars, "{candle:?} is of {} minutes", bar.bars);
        ensure!(candle.closed, "{candle:?} is years old");
        ensure!(candle.complete == (candle.source_count >= candle.expected_count), "{candle:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indicators_equal_the_oracle_on_both_engines() -> Result<()> {
    let Some(data) = data_folder()? else { return Ok(()) };
    let mesh = InProcess::start().await?;
    let rest = Rest::to(&mesh.gateway());
    let cases: Vec<Case> = cases(&data)?.into_iter().filter(|case| case.has_indicators).collect();
    ensure!(cases.len() == 3, "the oracle has indicators of three instruments, not {}", cases.len());
    for case in cases {
        let rows = load_window(&mesh, &case).await?;
        let oracle = case.indicators()?;
        let close = oracle.columns.get("close").context("the oracle has closes")?;
        for engine in ["v1", "v2"] {
            let what = format!("{} {engine}", case.name);
            let path = indicators_path(case.instrument.as_str(), "1m");
            let rest = rest.with_engine(engine);
            let answer = rest.post(&path, &json!({ "indicators": INDICATORS })).await?;
            ensure!(answer.engine() == Some(engine), "{what}: answered by {:?}", answer.engine());
            let answer: Indicators = answer.ok()?;
            ensure!(answer.engine == engine, "{what}: the body says {}", answer.engine);
            ensure!(answer.open_time == oracle.open_time, "{what}: other rows than the oracle's {rows}");
            for (name, oracle_name, scale) in COLUMNS {
                let ours = answer.columns.get(name).with_context(|| format!("{what}: no column {name}"))?;
                let values = oracle.columns.get(oracle_name).with_context(|| format!("no oracle {oracle_name}"))?;
                compare_columns(ours, values, close, scale).with_context(|| format!("{what} {name}"))?;
            }
            compare_a_part(&rest, &path, &answer).await.context(what)?;
        }
    }
    mesh.stop().await
}

fn compare_columns(ours: &Column, oracle: &Column, close: &Column, scale: Scale) -> Result<()> {
    ensure!(ours.len() == oracle.len(), "{} rows, {} in the oracle", ours.len(), oracle.len());
    for (row, (a, b)) in ours.iter().zip(oracle).enumerate() {
        let least = match scale {
            Scale::Value => 0.0,
            Scale::Percent => 1.0,
            Scale::Price => close[row].unwrap_or_default().min(1.0),
        };
        let equal = match (a, b) {
            (Some(a), Some(b)) => is_near(*a, *b, least),
            (None, None) => true,
            _ => false,
        };
        ensure!(equal, "row {row}: {a:?}, in the oracle {b:?}");
    }
    Ok(())
}

/// The range asked for never changes a value.
async fn compare_a_part(rest: &Rest, path: &str, whole: &Indicators) -> Result<()> {
    let (from, to) = (whole.open_time.len() / 2, whole.open_time.len() / 2 + 100);
    let body = json!({ "start": whole.open_time[from], "end": whole.open_time[to], "indicators": INDICATORS });
    let part: Indicators = rest.post(path, &body).await?.ok()?;
    ensure!(part.open_time == whole.open_time[from..to], "the part holds other rows");
    for (name, values) in &whole.columns {
        ensure!(part.columns.get(name).is_some_and(|part| *part == values[from..to]), "{name} depends on the range");
    }
    Ok(())
}

#[test]
fn the_oracle_window_is_cut_from_the_file() -> Result<()> {
    let Some(data) = data_folder()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    for case in cases(&data)? {
        let (path, rows) = case.write_window(folder.path())?;
        assert!(rows > 0 && Path::new(&path).is_file());
        let minutes: u32 = case.bars()?.iter().filter(|bar| bar.interval == "1d").map(|bar| bar.bars).sum();
        assert_eq!(rows, minutes as usize, "{}: the oracle's days hold as many minutes as the window", case.name);
    }
    Ok(())
}

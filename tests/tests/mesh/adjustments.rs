//! Splits, dividends and missing minutes through a whole mesh, by REST and by the command line's own calls.

use anyhow::{Result, ensure};
use candlemesh::client::{Connection, actions, gaps};
use candlemesh_tests::answers::Candles;
use candlemesh_tests::in_process::InProcess;
use candlemesh_tests::rest::{Rest, candles_path};
use clap::Parser;
use serde_json::{Value, json};

const KEY: &str = "US|X";

#[derive(Debug, Parser)]
struct ActionsLine {
    #[command(subcommand)]
    command: actions::ActionsCommand,
}

#[derive(Debug, Parser)]
struct GapsLine {
    #[command(flatten)]
    args: gaps::GapsArgs,
}

/// The first three minutes of Thursday 2024-03-07 and the third of the Friday after it, at prices in dollars.
async fn store(rest: &Rest) -> Result<()> {
    let candle = |open_time: &str, close: f64| json!({"open_time": open_time, "open": close, "high": close, "low": close, "close": close, "volume": 10});
    let candles = [
        candle("2024-03-07T14:30:00Z", 98.0),
        candle("2024-03-07T14:31:00Z", 99.0),
        candle("2024-03-07T14:32:00Z", 100.0),
        candle("2024-03-08T14:32:00Z", 51.0),
    ];
    let body = json!({"instrument_key": KEY, "candles": candles});
    let answer: Value = rest.post("/api/v1/historical-data/batch-store", &body).await?.ok()?;
    ensure!(answer["stored"] == 4, "{answer}");
    Ok(())
}

async fn closes(rest: &Rest, timeframe: &str, adjustment: &str) -> Result<Vec<f64>> {
    let path = format!("{}?adjustment={adjustment}", candles_path(KEY, timeframe));
    let answer: Candles = rest.get(&path).await?.ok()?;
    Ok(answer.candles.iter().map(|candle| candle.close).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actions_put_by_the_command_line_count_in_what_is_read_and_raw_candles_stay() -> Result<()> {
    let mesh = InProcess::start().await?;
    let rest = Rest::to(&mesh.gateway());
    store(&rest).await?;
    let connection = Connection::to(&mesh.gateway());
    let run = async |line: &[&str]| actions::run(&connection, &ActionsLine::try_parse_from(line)?.command).await;
    run(&["actions", "put", KEY, "2024-03-08", "--split", "1:2"]).await?;
    let file = mesh.folder().join("actions.csv");
    std::fs::write(&file, format!("instrument_key,ex_date,kind,from,to,amount\n{KEY},2024-03-08,dividend,,,0.5\n"))?;
    run(&["actions", "put", "--file", &file.display().to_string()]).await?;
    run(&["actions", "list", KEY]).await?;

    for engine in ["v1", "v2"] {
        let rest = rest.with_engine(engine);
        assert_eq!(closes(&rest, "1d", "raw").await?, [100.0, 51.0]);
        assert_eq!(closes(&rest, "1d", "splits").await?, [50.0, 51.0]);
        // Half a dollar of the 50 that 100 became.
        assert_eq!(closes(&rest, "1d", "splits_and_dividends").await?, [50.0 * 0.99, 51.0]);
        assert_eq!(closes(&rest, "1m", "splits").await?, [49.0, 49.5, 50.0, 51.0]);
        let body = json!({"timeframes": ["1d", "1h"], "adjustment": "splits"});
        let multi: Value = rest.post(&candles_path(KEY, "multi"), &body).await?.ok()?;
        assert_eq!(multi["timeframes"]["1h"]["candles"][0]["close"], 50.0);
        let body = json!({"instrument_keys": [KEY], "timeframe": "1d", "adjustment": "splits"});
        let intraday: Value = rest.post("/api/v1/market/intraday-quotes", &body).await?.ok()?;
        assert_eq!(intraday["quotes"][0]["candles"][0]["close"], 50.0);
    }
    let refused = rest.get(&format!("{}?adjustment=all", candles_path(KEY, "1d"))).await?;
    ensure!(refused.refused(400)?.detail.contains("splits_and_dividends"));

    run(&["actions", "delete", KEY, "2024-03-08", "split"]).await?;
    run(&["actions", "delete", KEY, "2024-03-08", "dividend"]).await?;
    assert_eq!(closes(&rest, "1d", "splits_and_dividends").await?, [100.0, 51.0]);
    mesh.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_minutes_are_listed_by_rest_and_by_the_command_line() -> Result<()> {
    let mesh = InProcess::start().await?;
    let rest = Rest::to(&mesh.gateway());
    store(&rest).await?;
    let path = candles_path(KEY, "gaps");
    let answer: Value = rest.get(&path).await?.ok()?;
    // From the first to the last stored minute: 390 of Thursday and 3 of Friday.
    assert_eq!((&answer["calendar"], &answer["expected_minutes"]), (&json!("NYSE"), &json!(393)));
    assert_eq!((&answer["present_minutes"], &answer["date_count"]), (&json!(4), &json!(2)));
    let gaps_of = |date: usize| answer["dates"][date]["gaps"].clone();
    assert_eq!(gaps_of(0), json!([{"start": "2024-03-07T14:33:00Z", "end": "2024-03-07T21:00:00Z"}]));
    assert_eq!(gaps_of(1), json!([{"start": "2024-03-08T14:30:00Z", "end": "2024-03-08T14:32:00Z"}]));
    let page: Value = rest.get(&format!("{path}?page_size=1")).await?.ok()?;
    let token = page["next_page_token"].as_str().unwrap_or_default();
    let rest_of: Value = rest.get(&format!("{path}?page_size=1&page_token={token}")).await?.ok()?;
    assert_eq!((&rest_of["dates"][0], &rest_of["next_page_token"]), (&answer["dates"][1], &json!("")));
    let large: Value = rest.get(&format!("{path}?min_minutes=3")).await?.ok()?;
    assert_eq!(large["dates"].as_array().map(Vec::len), Some(1));
    ensure!(rest.get(&format!("{path}?page_size=0x")).await?.refused(400)?.detail.contains("page_size"));

    let line = GapsLine::try_parse_from(["gaps", KEY, "--min-minutes", "3"])?;
    gaps::run(&Connection::to(&mesh.gateway()), &line.args).await?;
    mesh.stop().await
}

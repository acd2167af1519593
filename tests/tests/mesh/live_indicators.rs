//! Indicators watched through the gateway: what is told is what is answered, over gRPC and as server-sent events.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use candlemesh_tests::in_process::InProcess;
use candlemesh_tests::rest::Rest;
use market::Millis;
use mesh::client::MeshChannel;
use proto::convert;
use proto::indicator::indicator_service_client::IndicatorServiceClient;
use proto::indicator::live_service_client::LiveServiceClient;
use proto::indicator::{
    ComputeIndicatorsRequest, IndicatorEvent, IndicatorUpdate, WatchIndicatorsRequest, WatchIndicatorsResponse,
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tonic::Streaming;

/// Values of the columns by open time.
type Rows = BTreeMap<Millis, Vec<Option<f64>>>;

/// Longest wait for anything: a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);
const KEY: &str = "US|X";
const SPECS: [&str; 3] = ["sma:3", "vwap", "bbands:5,2"];
/// 2024-03-07, the open of a session of New York.
const OPEN: Millis = 1_709_821_800_000;
const MINUTE: Millis = 60_000;

fn watching(cursor: &str, include_forming: bool) -> WatchIndicatorsRequest {
    WatchIndicatorsRequest {
        instrument_keys: vec![KEY.into()],
        timeframes: vec!["1m".into(), "5m".into()],
        indicators: SPECS.map(str::to_owned).to_vec(),
        cursor: cursor.into(),
        include_forming,
    }
}

async fn store(rest: &Rest, minutes: std::ops::Range<i64>, shift: f64) -> Result<()> {
    let candle = |minute: i64| {
        let close = 100.0 + shift + (minute as f64 * 0.7).sin();
        let open_time = market::format_millis(OPEN + minute * MINUTE);
        json!({"open_time": open_time, "open": close, "high": close + 0.5, "low": close - 0.5, "close": close, "volume": 10 + minute})
    };
    let body = json!({"instrument_key": KEY, "candles": minutes.map(candle).collect::<Vec<_>>()});
    rest.post("/api/v1/historical-data/batch-store", &body).await?.ok::<Value>().map(drop)
}

fn at(update: &IndicatorUpdate) -> Millis {
    update.open_time.as_ref().and_then(convert::millis).unwrap_or_default()
}

fn values(update: &IndicatorUpdate) -> Vec<Option<f64>> {
    let value = |(index, value): (usize, &f64)| (!update.undefined.contains(&(index as u32))).then_some(*value);
    update.values.iter().enumerate().map(value).collect()
}

async fn next(stream: &mut Streaming<WatchIndicatorsResponse>) -> Result<WatchIndicatorsResponse> {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await.context("nothing was told")??;
    message.context("the stream ended")
}

/// Listens until candles were told with an event each; returns all, and the cursor.
async fn until(
    stream: &mut Streaming<WatchIndicatorsResponse>,
    wanted: &[(&str, i64, IndicatorEvent)],
) -> Result<(Vec<IndicatorUpdate>, String)> {
    let mut told: Vec<IndicatorUpdate> = Vec::new();
    loop {
        let message = next(stream).await?;
        told.extend(message.updates);
        let is_told = |(timeframe, minute, event): &(&str, i64, IndicatorEvent)| {
            let is_it = |update: &IndicatorUpdate| {
                update.timeframe == *timeframe && at(update) == OPEN + minute * MINUTE && update.event() == *event
            };
            told.iter().any(is_it)
        };
        if wanted.iter().all(is_told) {
            return Ok((told, message.cursor));
        }
    }
}

/// Holds every value against the answer at its revision.
async fn check(channel: &MeshChannel, told: &[IndicatorUpdate]) -> Result<()> {
    let mut client = IndicatorServiceClient::new(channel.clone()).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
    let mut answers: BTreeMap<(String, u64), Rows> = BTreeMap::new();
    for update in told {
        let id = (update.timeframe.clone(), update.revision);
        if !answers.contains_key(&id) {
            let request = ComputeIndicatorsRequest {
                instrument_key: KEY.into(),
                timeframe: update.timeframe.clone(),
                indicators: SPECS.map(str::to_owned).to_vec(),
                revision: Some(update.revision),
                ..Default::default()
            };
            let answer = client.compute_indicators(request).await?.into_inner();
            let columns: Vec<_> = answer.columns.iter().map(convert::column_values).collect();
            let row = |(row, at): (usize, &Millis)| (*at, columns.iter().map(|column| column[row]).collect());
            answers.insert(id.clone(), answer.open_time_ms.iter().enumerate().map(row).collect());
        }
        ensure!(answers[&id].get(&at(update)) == Some(&values(update)), "told {update:?}, answered {:?}", answers[&id]);
    }
    Ok(())
}

/// The data of the first events of some names, after a cursor.
async fn events(gateway: &str, cursor: &str, names: &[&str], count: usize) -> Result<Vec<Value>> {
    let address = gateway.trim_start_matches("http://");
    let path =
        format!("/api/v1/stream/indicators?instrument_keys=US%7CX&timeframes=1m,5m&indicators={}", SPECS.join(","));
    let mut connection = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nlast-event-id: {cursor}\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut lines = BufReader::new(connection).lines();
    let (mut event, mut found) = (String::new(), Vec::new());
    while found.len() < count {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.context("no event came")??;
        let line = line.context("the events ended")?;
        if let Some(name) = line.strip_prefix("event: ") {
            name.clone_into(&mut event);
        }
        if let Some(data) = line.strip_prefix("data: ").filter(|_| names.contains(&event.as_str())) {
            found.push(serde_json::from_str(data)?);
        }
    }
    Ok(found)
}

async fn follow(mesh: &InProcess) -> Result<()> {
    use IndicatorEvent::{Close, Correction, Snapshot};
    let rest = Rest::to(&mesh.gateway());
    store(&rest, 0..30, 0.0).await?;
    let channel = mesh::client::connect(&mesh.gateway())?;
    let mut live = LiveServiceClient::new(channel.clone()).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
    let mut stream = live.watch_indicators(watching("", true)).await?.into_inner();
    let first = next(&mut stream).await?;
    ensure!(first.columns[..2] == ["sma:3", "vwap"] && first.columns.len() == 7, "{:?}", first.columns);
    let (told, _) = until(&mut stream, &[("5m", 25, Snapshot)]).await?;
    ensure!(told.iter().any(|update| update.timeframe == "1m" && at(update) == OPEN + 29 * MINUTE), "{told:?}");
    check(&channel, &told).await?;

    for minute in 30..40 {
        store(&rest, minute..minute + 1, 0.0).await?;
    }
    let (told, _) = until(&mut stream, &[("1m", 39, Close)]).await?;
    check(&channel, &told).await?;
    let closes = |told: &[IndicatorUpdate], timeframe: &str| {
        let mine = told.iter().filter(|update| update.timeframe == timeframe && update.event() == Close);
        mine.map(|update| (at(update) - OPEN) / MINUTE).collect::<Vec<_>>()
    };
    ensure!(closes(&told, "1m") == (30..40).collect::<Vec<_>>(), "{told:?}");
    // A late minute, and what came after it.
    store(&rest, 33..34, 5.0).await?;
    let (told, _) = until(&mut stream, &[("1m", 39, Correction)]).await?;
    check(&channel, &told).await?;
    let (_, cursor) = {
        store(&rest, 40..41, 0.0).await?;
        until(&mut stream, &[("1m", 40, Close)]).await?
    };

    // Lost, and resumed: by gRPC, and by a browser.
    drop(stream);
    for minute in 41..50 {
        store(&rest, minute..minute + 1, 0.0).await?;
    }
    let mut stream = live.watch_indicators(watching(&cursor, false)).await?.into_inner();
    let (told, _) = until(&mut stream, &[("1m", 49, Close), ("5m", 45, Close)]).await?;
    check(&channel, &told).await?;
    ensure!(closes(&told, "1m") == (41..50).collect::<Vec<_>>(), "{told:?}");
    ensure!(told.iter().all(|update| update.event() != Snapshot), "{told:?}");
    let missed = events(&mesh.gateway(), &cursor, &["close"], 9).await?;
    let same = told.iter().filter(|update| update.timeframe == "1m" && update.event() == Close);
    for (event, update) in missed.iter().zip(same) {
        ensure!(
            event["open_time"] == market::format_millis(at(update)).as_str() && event["timeframe"] == "1m",
            "{event}"
        );
        ensure!(event["values"]["sma:3"].as_f64() == values(update)[0], "{event} {update:?}");
        ensure!(event["values"]["vwap"].as_f64() == values(update)[1], "{event} {update:?}");
    }

    let refused =
        Rest::to(&mesh.gateway()).get("/api/v1/stream/indicators?instrument_keys=US%7CX&timeframes=7m").await?;
    ensure!(refused.status == 400 && String::from_utf8_lossy(&refused.body).contains("timeframes[0]"), "{refused:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indicators_are_told_as_they_are_answered_through_the_gateway() -> Result<()> {
    let mesh = InProcess::start().await?;
    let outcome = follow(&mesh).await;
    mesh.stop().await?;
    outcome
}

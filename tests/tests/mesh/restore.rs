//! A folder that was exported, loaded into a mesh that has nothing: it answers what the first one does.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candlemesh::client::Connection;
use candlemesh_tests::in_process::InProcess;
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{GetInstrumentRequest, PutInstrumentRequest};
use proto::wire::Instrument;
use serde_json::Value;

use crate::cli::{candlemesh, text};

/// On a calendar its segment would not have, of a segment without one, and with actions and two sources.
const KEYS: [&str; 3] = ["US|ODD", "XYZ|ODD", "US|SPL"];
const MINUTE_MS: i64 = 60_000;

/// Writes candles whose prices rise by a tenth.
fn write(path: &Path, first: &str, step_ms: i64, rows: i64) -> Result<()> {
    let first = market::parse_millis(first)?;
    let mut csv = "timestamp,open,high,low,close,volume\n".to_owned();
    for row in 0..rows {
        let (at, price) = (market::format_millis(first + row * step_ms), 100.0 + row as f64 / 10.0);
        csv += &format!("{at},{price},{},{},{price},{row}\n", price + 1.0, price - 1.0);
    }
    Ok(std::fs::write(path, csv)?)
}

async fn ok(gateway: &str, arguments: &[&str]) -> Result<String> {
    let ended = candlemesh(&[arguments, &["--gateway", gateway]].concat(), &[]).await?;
    ensure!(ended.code == Some(0), "{arguments:?}: {ended:?}");
    Ok(ended.stdout)
}

async fn fill(gateway: &str, folder: &Path) -> Result<()> {
    let path = |name: &str| -> PathBuf { folder.join(name) };
    // A Saturday; an evening in Chicago; two sessions in New York, and days before them.
    write(&path("odd.csv"), "2024-03-09T00:07:00Z", MINUTE_MS, 300)?;
    write(&path("xyz.csv"), "2024-03-06T23:00:00Z", MINUTE_MS, 400)?;
    write(&path("spl.csv"), "2024-03-07T14:30:00Z", MINUTE_MS, 1800)?;
    write(&path("days.csv"), "2024-02-26T05:00:00Z", 1440 * MINUTE_MS, 5)?;
    let load = async |key: &str, name: &str, more: &[&str]| -> Result<String> {
        let file = path(name);
        ok(gateway, &[&["load", "--strict", "--instrument", key, text(&file)?], more].concat()).await
    };
    load(KEYS[0], "odd.csv", &["--calendar", "24x7"]).await?;
    load(KEYS[1], "xyz.csv", &["--calendar", "CME"]).await?;
    load(KEYS[2], "spl.csv", &[]).await?;
    load(KEYS[2], "days.csv", &["--timeframe", "1d"]).await?;
    ok(gateway, &["actions", "put", KEYS[2], "2024-03-08", "--split", "1:3"]).await?;
    ok(gateway, &["actions", "put", KEYS[2], "2024-03-01", "--dividend", "0.47"]).await?;
    let mut client = IngestionServiceClient::new(Connection::to(gateway).channel()?);
    let known = instrument(gateway, KEYS[2]).await?;
    let (name, currency) = ("Split, and \"Sons\"".into(), "USD".into());
    let instrument = Instrument { name, currency, exchange: "ARCA".into(), tick_size: 0.01, ..known };
    client.put_instrument(PutInstrumentRequest { instrument: Some(instrument) }).await?;
    Ok(())
}

async fn instrument(gateway: &str, key: &str) -> Result<Instrument> {
    let mut client = IngestionServiceClient::new(Connection::to(gateway).channel()?);
    let answer = client.get_instrument(GetInstrumentRequest { instrument_key: key.into() }).await?;
    answer.into_inner().instrument.context("no instrument")
}

/// Everything that is asked of both, without the revisions, which count puts.
async fn answers(gateway: &str) -> Result<Vec<(String, Value)>> {
    let mut answers = Vec::new();
    for key in KEYS {
        let mut lines: Vec<Vec<&str>> = vec![vec!["gaps", key], vec!["actions", "list", key]];
        for timeframe in ["1m", "1h", "1d", "1w"] {
            for adjust in ["raw", "splits_and_dividends"] {
                lines.push(vec!["candles", key, timeframe, "--adjust", adjust]);
            }
        }
        for line in lines {
            let mut answer: Value = serde_json::from_str(&ok(gateway, &[&line[..], &["--json"]].concat()).await?)?;
            if let Some(fields) = answer.as_object_mut() {
                fields.retain(|name, _| !["revision", "as_of", "asOf"].contains(&name.as_str()));
            }
            answers.push((line.join(" "), answer));
        }
    }
    Ok(answers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exported_folder_restores_calendars_master_data_actions_and_every_source() -> Result<()> {
    let mesh = InProcess::start().await?;
    fill(&mesh.gateway(), mesh.folder()).await?;
    let backup = mesh.folder().join("backup");
    let said = ok(&mesh.gateway(), &["export", "--out", text(&backup)?]).await?;
    ensure!(said.contains("4 files, 2505 candles, 2 splits and dividends"), "{said}");

    let other = InProcess::start().await?;
    let (gateway, folder) = (other.gateway(), text(&backup)?);
    let dry = ok(&gateway, &["load", "--dry-run", "--strict", folder]).await?;
    ensure!(dry.contains("total: would store 2505, 0 unchanged, 0 rejected"), "{dry}");
    ensure!(dry.contains("splits and dividends: would put 2"), "{dry}");
    let loaded = ok(&gateway, &["load", "--strict", folder]).await?;
    ensure!(loaded.contains("manifest.csv: says what the files beside it hold"), "{loaded}");
    ensure!(loaded.contains("total: 2505 stored, 0 unchanged, 0 rejected"), "{loaded}");
    ensure!(loaded.contains("splits and dividends: 2 put, 0 unchanged") && !loaded.contains("not read"), "{loaded}");

    for key in KEYS {
        let (before, after) = (instrument(&mesh.gateway(), key).await?, instrument(&gateway, key).await?);
        ensure!(before == after, "{before:?} came back as {after:?}");
    }
    let (before, after) = (answers(&mesh.gateway()).await?, answers(&gateway).await?);
    for ((line, before), (_, after)) in before.iter().zip(&after) {
        ensure!(before == after, "{line}: {before} came back as {after}");
    }
    // The actions do change what is answered, and the calendar of 24 hours has its hours at the full one.
    let of = |wanted: &str| before.iter().find(|(line, _)| line == wanted).map(|(_, answer)| answer.clone());
    let raw = of("candles US|SPL 1d --adjust raw").context("raw")?;
    let adjusted = of("candles US|SPL 1d --adjust splits_and_dividends").context("adjusted")?;
    ensure!(raw["candles"][0]["close"] != adjusted["candles"][0]["close"], "{raw}");
    let hours = of("candles US|ODD 1h --adjust raw").context("hours")?;
    let opened = hours["candles"][0]["open_time"].as_str().context("open_time")?;
    ensure!(opened.contains("T00:00:00"), "{opened}");

    let again = ok(&gateway, &["load", "--strict", folder]).await?;
    ensure!(again.contains("total: 0 stored, 2505 unchanged, 0 rejected"), "{again}");
    ensure!(again.contains("splits and dividends: 0 put, 2 unchanged"), "{again}");
    other.stop().await?;
    mesh.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_cannot_move_a_known_instrument_to_another_calendar() -> Result<()> {
    let mesh = InProcess::start().await?;
    let gateway = mesh.gateway();
    write(&mesh.folder().join("a.csv"), "2024-03-07T14:30:00Z", MINUTE_MS, 60)?;
    let file = mesh.folder().join("a.csv");
    ok(&gateway, &["load", "--instrument", "US|A", text(&file)?]).await?;
    let manifest = mesh.folder().join("manifest.csv");
    std::fs::write(&manifest, "key,file,calendar\nUS|A,a.csv,24x7\n")?;
    for more in [&[][..], &["--dry-run"]] {
        let line = ["load", "--manifest", text(&manifest)?, "--gateway", &gateway];
        let ended = candlemesh(&[&line[..], more].concat(), &[]).await?;
        ensure!(ended.code == Some(1) && ended.stderr.contains("known with calendar NYSE, not 24x7"), "{ended:?}");
    }
    std::fs::write(&manifest, "key,file,calendar\nUS|A,a.csv,MARS\n")?;
    let ended = candlemesh(&["load", "--manifest", text(&manifest)?, "--gateway", &gateway], &[]).await?;
    ensure!(ended.code == Some(1) && ended.stderr.contains("MARS") && ended.stderr.contains("line 2"), "{ended:?}");
    // Of a segment without a calendar, and nobody names one: the option is named.
    for more in [&[][..], &["--dry-run"]] {
        let line = ["load", "--instrument", "XYZ|ODD", text(&file)?, "--gateway", &gateway];
        let ended = candlemesh(&[&line[..], more].concat(), &[]).await?;
        ensure!(ended.code == Some(1) && ended.stderr.contains("--calendar"), "{ended:?}");
    }
    mesh.stop().await
}

//! What `load` says of files that are not as they should be, and how it ends.

use std::path::Path;

use anyhow::{Result, ensure};
use candlemesh::client::Connection;
use candlemesh::client::replay::{Speed, replay};
use candlemesh_tests::in_process::InProcess;
use candlemesh_tests::processes::Up;
use proto::ingestion::GetCoverageRequest;
use proto::ingestion::ingestion_service_client::IngestionServiceClient;

use crate::cli::{Ended, candlemesh, text};
use crate::program;

const HEADER: &str = "timestamp,open,high,low,close,volume\n";

fn minutes(first: &str, rows: i64) -> Result<String> {
    let first = market::parse_millis(first)?;
    let line = |row: i64| format!("{},1,2,0.5,1.5,10\n", market::format_millis(first + row * 60_000));
    Ok(HEADER.to_owned() + &(0..rows).map(line).collect::<String>())
}

async fn load(gateway: &str, key: &str, path: &Path, more: &[&str]) -> Result<Ended> {
    candlemesh(&[&["load", "--gateway", gateway, "--instrument", key, text(path)?], more].concat(), &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_and_a_load_say_the_same_of_repeated_rows_by_their_lines() -> Result<()> {
    let mesh = InProcess::start().await?;
    let path = mesh.folder().join("twice.csv");
    // Lines 2 and 4 are equal, line 5 is another candle of the same minute.
    let row = |minute: u32, close: f64| format!("2024-01-02T03:{minute}:00Z,1,2,0.5,{close},10\n");
    let csv = [row(45, 1.5), row(46, 1.5), row(45, 1.5), row(45, 1.7)].concat();
    std::fs::write(&path, HEADER.to_owned() + &csv)?;
    let dry = load(&mesh.gateway(), "NSE_EQ|TWICE", &path, &["--dry-run"]).await?;
    let stored = load(&mesh.gateway(), "NSE_EQ|TWICE", &path, &[]).await?;
    ensure!(dry.stdout.contains("would store 2, 1 unchanged, 1 rejected"), "{dry:?}");
    ensure!(stored.stdout.contains("2 stored, 1 unchanged, 1 rejected"), "{stored:?}");
    for said in [&dry, &stored] {
        ensure!(said.stdout.contains("repeated 1, conflicting 1,"), "{said:?}");
        ensure!(said.stdout.contains("line 4: superseded by line 5 with the same open_time"), "{said:?}");
    }
    // Equal rows are no defect, and what is there already under other values is told before it is replaced.
    std::fs::write(&path, HEADER.to_owned() + &[row(45, 1.2), row(45, 1.2)].concat())?;
    let dry = load(&mesh.gateway(), "NSE_EQ|TWICE", &path, &["--dry-run", "--strict", "--timeframe", "1m"]).await?;
    ensure!(dry.code == Some(0), "{dry:?}");
    ensure!(dry.stdout.contains("would store 1 (1 over other values), 1 unchanged, 0 rejected"), "{dry:?}");
    let stored = load(&mesh.gateway(), "NSE_EQ|TWICE", &path, &["--strict", "--timeframe", "1m"]).await?;
    ensure!(stored.code == Some(0) && stored.stdout.contains("1 stored, 1 unchanged, 0 rejected"), "{stored:?}");
    mesh.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_could_use_no_row_of_a_file_fails_and_one_of_a_header_does_not() -> Result<()> {
    let mesh = InProcess::start().await?;
    let path = mesh.folder().join("bad.csv");
    for dry in [&[][..], &["--dry-run"]] {
        std::fs::write(&path, format!("{HEADER}2024-01-02T03:45:00Z,x,2,1,1,1\n2024-01-02T03:46:00Z,1,2,y,1,1\n"))?;
        let unusable = load(&mesh.gateway(), "NSE_EQ|BAD", &path, dry).await?;
        ensure!(unusable.code == Some(1), "{unusable:?}");
        ensure!(unusable.stdout.contains("no row could be used, 2 were refused"), "{unusable:?}");
        // Refused by the calendar, not by the file's reader: an hour that begins at none of the exchange's.
        std::fs::write(&path, format!("{HEADER}2024-01-02T04:00:00Z,1,2,1,1,1\n2024-01-02T05:00:00Z,1,2,1,1,1\n"))?;
        let hourly = [dry, &["--timeframe", "1h"]].concat();
        let unusable = load(&mesh.gateway(), "NSE_EQ|BAD", &path, &hourly).await?;
        ensure!(unusable.code == Some(1) && unusable.stdout.contains("2 rejected"), "{unusable:?}");
        std::fs::write(&path, HEADER)?;
        let empty = load(&mesh.gateway(), "NSE_EQ|BAD", &path, dry).await?;
        ensure!(empty.code == Some(0) && empty.stdout.contains("no rows: only a header"), "{empty:?}");
    }
    mesh.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_times_marked_as_utc_are_noted_by_the_sessions_they_miss() -> Result<()> {
    let mesh = InProcess::start().await?;
    let path = mesh.folder().join("local.csv");
    // A session of Mumbai by its local clock.
    std::fs::write(&path, minutes("2024-01-02T09:15:00Z", 375)?)?;
    let wanted =
        "note: NSE_EQ|LOCAL: 330 of 375 rows lie outside the sessions of NSE; is the zone of their stamps right?";
    for more in [&["--dry-run"][..], &[]] {
        let said = load(&mesh.gateway(), "NSE_EQ|LOCAL", &path, more).await?;
        ensure!(said.code == Some(0) && said.stdout.contains(wanted), "{said:?}");
    }
    std::fs::write(&path, minutes("2024-01-02T03:45:00Z", 375)?)?;
    let said = load(&mesh.gateway(), "NSE_EQ|RIGHT", &path, &[]).await?;
    ensure!(!said.stdout.contains("note:"), "{said:?}");
    mesh.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_is_named_by_a_known_kind_and_bounded_by_either_spelling() -> Result<()> {
    let mesh = InProcess::start().await?;
    let (gateway, path) = (mesh.gateway(), mesh.folder().join("day.csv"));
    std::fs::write(&path, minutes("2024-01-02T03:45:00Z", 375)?)?;
    load(&gateway, "NSE_EQ|X", &path, &[]).await?;
    let out = mesh.folder().join("x.txt");
    let refused = candlemesh(&["export", "--gateway", &gateway, "--out", text(&out)?], &[]).await?;
    ensure!(refused.code == Some(1) && refused.stderr.contains(".csv.gz") && !out.exists(), "{refused:?}");
    for (start, end) in [("--start", "--end"), ("--from", "--to")] {
        let out = mesh.folder().join(format!("{}.csv", &start[2..]));
        let range = [start, "2024-01-02T04:00:00Z", end, "2024-01-02T04:10:00Z"];
        let line = ["export", "--gateway", &gateway, "--out", text(&out)?, "--instrument", "NSE_EQ|X"];
        let ended = candlemesh(&[&line[..], &range].concat(), &[]).await?;
        ensure!(ended.code == Some(0) && ended.stdout.contains("1 files, 10 candles"), "{ended:?}");
        let candles = ["candles", "NSE_EQ|X", "1m", "--gateway", &gateway, "--json"];
        let ended = candlemesh(&[&candles[..], &range].concat(), &[]).await?;
        ensure!(ended.code == Some(0) && ended.stdout.matches("open_time").count() == 10, "{ended:?}");
    }
    mesh.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_goes_on_when_the_server_is_killed_and_started_again() -> Result<()> {
    const MINUTES: i64 = 40;
    let mut up = Up::start(program()).await?;
    let gateway = up.gateway()?;
    let file = tempfile::Builder::new().suffix(".csv").tempfile()?;
    std::fs::write(file.path(), minutes("2024-01-02T03:45:00Z", MINUTES)?)?;
    let connection = Connection::to(&gateway);
    let args = candlemesh::client::replay::ReplayArgs {
        file: Some(file.path().to_owned()),
        instrument: Some("NSE_EQ|FED".parse()?),
        range: candlemesh::client::RangeArgs::default(),
        calendar: String::new(),
        // Two of its minutes a second.
        speed: Speed::Times(120.0),
        shift_to: None,
        instruments: 1,
        retry_for: 300,
        json: false,
    };
    let feed = connection.clone();
    let feeding = tokio::spawn(async move { replay(&feed, &args).await });
    let mut client = IngestionServiceClient::new(connection.channel()?);
    let stored = async |client: &mut IngestionServiceClient<_>| -> Result<u64> {
        let answer = client.get_coverage(GetCoverageRequest { instrument_key: "NSE_EQ|FED".into() }).await;
        let coverage = answer.map(|answer| answer.into_inner().coverage).unwrap_or_default();
        Ok(coverage.first().map_or(0, |coverage| coverage.candle_count))
    };
    while stored(&mut client).await? < 3 {
        ensure!(!feeding.is_finished(), "the feed ended before it was disturbed: {:?}", feeding.await?);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    up.process().kill()?;
    up.process().ended().await?;
    up.restart_in_place().await?;
    let report = feeding.await??;
    let told = report.stored + report.unchanged;
    ensure!((told, report.rejected) == (MINUTES as u64, 0), "{report:?}");
    let mut client = IngestionServiceClient::new(Connection::to(&gateway).channel()?);
    ensure!(stored(&mut client).await? == MINUTES as u64, "{report:?}");
    up.stop().await
}

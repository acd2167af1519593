//! The command line: exit statuses, what errors say, and the demo.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candlemesh_tests::in_process::InProcess;
use candlemesh_tests::made_up;
use candlemesh_tests::oracle::data_folder;
use candlemesh_tests::processes::{command, run};
use candlemesh_tests::server_process::free_port;
use serde_json::Value;

use crate::program;

/// What a command said, and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) async fn candlemesh(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Ended> {
    let mut command = command(program());
    command.args(arguments).envs(variables.iter().copied());
    let output = run(command).await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ended { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
}

pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().context("path is not text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_load_with_a_rejected_row_exits_with_one_and_names_the_line() -> Result<()> {
    let mesh = InProcess::start().await?;
    let path = mesh.folder().join("bad.csv");
    let csv = "timestamp,open,high,low,close,volume\n\
        2024-01-02T03:45:00Z,100,101,99,100.5,10\n\
        2024-01-02T03:46:00Z,100,99,98,100.5,10\n\
        2024-01-02T03:47:00Z,100,101,99,x,10\n";
    std::fs::write(&path, csv)?;
    let gateway = mesh.gateway();
    let load = ["load", "--gateway", &gateway, "--instrument", "NSE_EQ|CLI", text(&path)?];
    let lenient = candlemesh(&load, &[]).await?;
    ensure!(lenient.code == Some(0), "{lenient:?}");
    ensure!(lenient.stdout.contains("1 stored, 0 unchanged, 2 rejected"), "{lenient:?}");
    ensure!(lenient.stdout.contains("line 3: ") && lenient.stdout.contains("line 4: "), "{lenient:?}");
    let strict = candlemesh(&[&load[..], &["--strict"]].concat(), &[]).await?;
    ensure!(strict.code == Some(1), "{strict:?}");
    ensure!(strict.stdout.contains("0 stored, 1 unchanged, 2 rejected"), "{strict:?}");
    mesh.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_file_is_stored_as_far_as_it_is_good_and_the_error_names_the_line() -> Result<()> {
    let mesh = InProcess::start().await?;
    let path = mesh.folder().join("cut.csv.gz");
    made_up::write_csv_gz(&path, &made_up::minutes(5, 20)?)?;
    let bytes = std::fs::read(&path)?;
    std::fs::write(&path, &bytes[..bytes.len() / 2])?;
    let gateway = mesh.gateway();
    let ended =
        candlemesh(&["load", "--gateway", &gateway, "--instrument", "NSE_EQ|CUT", "--json", text(&path)?], &[]).await?;
    ensure!(ended.code == Some(1), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout)?;
    let stored = report["stored"].as_u64().unwrap_or_default();
    ensure!(stored > 1000 && report["rejected"] == 0, "{report}");
    let error = report["files"][0]["error"].as_str().context("no error")?;
    // The line after the header and the good rows.
    ensure!(error.contains("cut.csv.gz") && error.contains(&format!("line {}", stored + 2)), "{error}");
    ensure!(error.contains("truncated"), "{error}");
    mesh.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_names_the_instrument_of_a_real_file() -> Result<()> {
    let Some(data) = data_folder()? else { return Ok(()) };
    let mesh = InProcess::start().await?;
    let (manifest, file) = (data.join("instruments_1m.csv"), data.join("1m/US_SPY-EXT.csv.gz"));
    let gateway = mesh.gateway();
    let load = ["load", "--gateway", &gateway, "--manifest", text(&manifest)?, "--strict", text(&file)?];
    let ended = candlemesh(&load, &[]).await?;
    // As many rows as the manifest says.
    ensure!(ended.code == Some(0) && ended.stdout.contains("7218 stored, 0 unchanged, 0 rejected"), "{ended:?}");
    let candles = candlemesh(&["candles", "US|SPY-EXT", "1d", "--gateway", &gateway, "--json"], &[]).await?;
    let candles: Value = serde_json::from_str(&candles.stdout).with_context(|| format!("{candles:?}"))?;
    let minutes =
        candles["candles"].as_array().context("no candles")?.iter().filter_map(|day| day["source_count"].as_u64());
    ensure!(minutes.sum::<u64>() == 7218, "{candles}");
    mesh.stop().await
}

#[tokio::test]
async fn without_a_gateway_a_client_command_says_how_to_start_one() -> Result<()> {
    let nobody = format!("http://127.0.0.1:{}", free_port()?);
    let ended = candlemesh(&["candles", "NSE_EQ|X", "5m", "--gateway", &nobody], &[]).await?;
    ensure!(ended.code == Some(1), "{ended:?}");
    ensure!(ended.stderr.contains(&nobody) && ended.stderr.contains("candlemesh up"), "{ended:?}");
    ensure!(ended.stderr.lines().count() == 1, "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn config_prints_each_value_with_its_origin_and_no_secret() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("candlemesh.yaml");
    std::fs::write(&file, "max_in_flight: 77\ncpu_queue: 5\n")?;
    let secret = "postgres://user:hunter2@db/candles";
    let variables = [("CANDLEMESH_CPU_QUEUE", "99"), ("CANDLEMESH_DATABASE_URL", secret)];
    let ended = candlemesh(&["config", "--config", text(&file)?], &variables).await?;
    ensure!(ended.code == Some(0), "{ended:?}");
    let line = |key: &str| {
        let line = ended.stdout.lines().find(|line| line.split_whitespace().next() == Some(key));
        line.map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>()).with_context(|| format!("no {key}"))
    };
    ensure!(line("cpu_queue")? == ["99", "environment"], "{:?}", line("cpu_queue"));
    let in_flight = line("max_in_flight")?;
    ensure!(in_flight[0] == "77" && in_flight[1].contains("candlemesh.yaml"), "{in_flight:?}");
    ensure!(line("engines")? == ["v1,v2", "default"], "{:?}", line("engines"));
    ensure!(!ended.stdout.contains("hunter2") && ended.stdout.contains("db/candles"), "{}", ended.stdout);
    Ok(())
}

#[tokio::test]
async fn a_bad_configuration_exits_with_64_and_one_line_naming_key_and_value() -> Result<()> {
    for (variable, value, key) in [
        ("CANDLEMESH_CPU_QUEUE", "many", "cpu_queue"),
        ("CANDLEMESH_GRACE", "soon", "grace"),
        ("CANDLEMESH_NO_SUCH_KEY", "1", "no_such_key"),
        ("CANDLEMESH_ENGINES", "v3", "v3"),
    ] {
        let folder = tempfile::tempdir()?;
        let arguments = ["up", "--data-dir", text(folder.path())?, "--listen", "127.0.0.1:0"];
        let ended = candlemesh(&arguments, &[(variable, value)]).await?;
        ensure!(ended.code == Some(64), "{variable}={value}: {ended:?}");
        let lines: Vec<&str> = ended.stderr.lines().collect();
        ensure!(lines.len() == 1 && lines[0].contains(key), "{variable}={value}: {lines:?}");
        ensure!(key == "no_such_key" || lines[0].contains(value), "{variable}={value}: {lines:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_shows_every_part_and_exits_with_zero() -> Result<()> {
    let ended = candlemesh(&["demo", "--json"], &[]).await?;
    let report: Value = serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))?;
    ensure!(ended.code == Some(0), "ended with {:?}: {}", ended.code, report["failures"]);
    ensure!(report["generated"] == true && report["failures"] == serde_json::json!([]), "{report}");
    // 20 instruments, 60 sessions, 375 minutes.
    ensure!(report["load"]["stored"] == 450_000 && report["load"]["rejected"] == 0, "{}", report["load"]);
    ensure!(report["coverage"].as_array().is_some_and(|coverage| coverage.len() == 20), "{}", report["coverage"]);
    for part in ["five_minute", "daily", "closes"] {
        ensure!(report["candles"][part].as_array().is_some_and(|rows| !rows.is_empty()), "no candles.{part}");
    }
    let indicators = &report["indicators"];
    ensure!(indicators["largest_difference"].as_f64().is_some_and(|difference| difference <= 1e-9), "{indicators}");
    ensure!(indicators["second_call_cached"] == true, "{indicators}");
    ensure!(report["sequences"]["sequences"].as_u64().is_some(), "{}", report["sequences"]);
    let screened: usize = ["bullish", "bearish", "rejected"]
        .map(|part| report["screen"][part].as_array().map_or(0, Vec::len))
        .into_iter()
        .sum();
    ensure!(screened == 20, "{} instruments screened: {}", screened, report["screen"]);
    ensure!(report["study"]["best"].as_array().is_some_and(|best| !best.is_empty()), "{}", report["study"]);
    ensure!(report["unknown_instrument"]["code"] == "NOT_FOUND", "{}", report["unknown_instrument"]);
    Ok(())
}

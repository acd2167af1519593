//! Loads that cannot go on: the disk is full, the database is gone. What was acknowledged is there, the client says how far it got,
//! and the same load run again completes it.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use candlemesh_tests::made_up::Numbers;
use candlemesh_tests::postgres::Postgres;
use candlemesh_tests::processes::{Process, Processes, command, run};
use candlemesh_tests::redis::Redis;
use candlemesh_tests::rest::Rest;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

use super::fsck;
use crate::program;

const KEY: &str = "CRYPTO|LOAD";
/// A good year of minutes, of prices that hardly compress: a dozen megabytes of store.
const ROWS: u64 = 600_000;
const WAIT: Duration = Duration::from_secs(60);

/// Writes the file that is loaded.
fn write_rows(path: &Path) -> Result<()> {
    let mut numbers = Numbers::from_seed(5);
    let mut out = GzEncoder::new(std::fs::File::create(path)?, Compression::fast());
    let mut text = String::from("timestamp,open,high,low,close,volume\n");
    for minute in 0..ROWS {
        let at = market::format_millis(1_600_000_020_000 + minute as i64 * 60_000);
        let open = 100.0 + numbers.unit();
        let (high, low, close) = (open + numbers.unit(), open - numbers.unit(), open);
        text.push_str(&format!("{at},{open},{high},{low},{close},{}\n", numbers.unit()));
    }
    out.write_all(text.as_bytes())?;
    out.finish()?;
    Ok(())
}

fn load(gateway: &str, path: &Path) -> Command {
    let mut command = command(program());
    command.args(["load", "--gateway", gateway, "--instrument", KEY, "--timeframe", "1m", "--json"]).arg(path);
    command
}

/// What a load reported: rows acknowledged, and the error it ended with.
fn reported(output: &std::process::Output) -> Result<(u64, Option<String>)> {
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    let rows =
        report["stored"].as_u64().context("no 'stored'")? + report["unchanged"].as_u64().context("no 'unchanged'")?;
    Ok((rows, report["files"][0]["error"].as_str().map(str::to_owned)))
}

/// Candles that are stored, by the mesh's own count.
async fn stored(gateway: &str) -> Result<u64> {
    let mut client =
        proto::ingestion::ingestion_service_client::IngestionServiceClient::new(mesh::client::connect(gateway)?);
    let request = proto::ingestion::GetCoverageRequest { instrument_key: KEY.to_owned() };
    match client.get_coverage(request).await {
        Ok(answer) => Ok(answer.into_inner().coverage.iter().map(|held| held.candle_count).sum()),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(0),
        Err(status) => Err(status.into()),
    }
}

/// The load ended early and said how far it got; all of that is there. Run again, it completes.
async fn completes(gateway: &str, path: &Path, ended: &std::process::Output) -> Result<()> {
    ensure!(ended.status.code() == Some(1), "{ended:?}");
    let (acknowledged, error) = reported(ended)?;
    let error = error.with_context(|| format!("no error: {ended:?}"))?;
    ensure!(acknowledged > 0 && acknowledged < ROWS, "{acknowledged} of {ROWS} rows were acknowledged");
    ensure!(error.contains("loading the same files again is safe"), "{error}");
    println!("{acknowledged} of {ROWS} rows acknowledged, then: {error}");
    let there = stored(gateway).await?;
    ensure!(there >= acknowledged, "{acknowledged} rows were acknowledged, {there} are there");
    let again = run(load(gateway, path)).await?;
    ensure!(again.status.success(), "{again:?}");
    let report: Value = serde_json::from_slice(&again.stdout)?;
    ensure!(report["unchanged"].as_u64() == Some(there) && report["stored"].as_u64() == Some(ROWS - there), "{report}");
    ensure!(stored(gateway).await? == ROWS, "{} of {ROWS} rows are there", stored(gateway).await?);
    Ok(())
}

/// A file system of its own, unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// `None` with a printed line where the system does not let us mount.
    fn mount(path: PathBuf, megabytes: u32) -> Result<Option<Disk>> {
        std::fs::create_dir_all(&path)?;
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Ok(Some(Disk(path)));
        }
        eprintln!("skipped: a file system that can be full cannot be mounted here");
        Ok(None)
    }

    fn grow(&self, megabytes: u32) -> Result<()> {
        let size = format!("remount,size={megabytes}m");
        ensure!(Command::new("mount").args(["-o", &size]).arg(&self.0).status()?.success(), "remount");
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is just ending may still have a file open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The disk is too small for the load: it says so, serves what there is, and with room the load completes.
async fn fills_and_completes(gateway: &str, path: &Path, disk: &Disk) -> Result<()> {
    let ended = run(load(gateway, path)).await?;
    let (acknowledged, error) = reported(&ended)?;
    let error = error.with_context(|| format!("the disk was not full: {ended:?}"))?;
    ensure!(error.contains("no space left"), "what is wrong is not said: {error}");
    // A full disk stops writes, not reads.
    ensure!(Rest::to(gateway).get("/healthz").await?.status.is_success(), "it does not serve any more");
    ensure!(stored(gateway).await? >= acknowledged, "acknowledged rows are missing while the disk is full");
    disk.grow(200)?;
    completes(gateway, path, &ended).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_the_acknowledged_part_is_there_and_with_room_the_load_completes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(disk) = Disk::mount(folder.path().join("data"), 12)? else { return Ok(()) };
    let path = folder.path().join("rows.csv.gz");
    write_rows(&path)?;
    let mut up = command(program());
    up.arg("up").arg("--data-dir").arg(&disk.0).args(["--listen", "127.0.0.1:0"]);
    let mut up = Process::start("up", up, folder.path()).await?;
    let gateway = up.address("gateway")?.to_owned();

    fills_and_completes(&gateway, &path, &disk).await?;
    up.terminate()?;
    ensure!(up.ended().await?.success(), "up did not end well");
    fsck(&["--data-dir", disk.0.to_str().context("path is not text")?]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_disk_of_postgresql_is_full_the_acknowledged_part_is_there_and_with_room_the_load_completes()
-> Result<()> {
    let folder = tempfile::tempdir()?;
    // The server, which is another user, must get at it.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    // An empty database takes half of it.
    let Some(disk) = Disk::mount(folder.path().join("data"), 16)? else { return Ok(()) };
    let (Some(postgres), Some(redis)) = (Postgres::start_if_installed()?, Redis::start_if_installed()?) else {
        return Ok(());
    };
    let path = folder.path().join("rows.csv.gz");
    write_rows(&path)?;
    let database = postgres.create_database_in("small", &disk.0)?;
    let mesh = Processes::start(program(), &database, &redis.url()).await?;
    fills_and_completes(&mesh.gateway()?, &path, &disk).await?;
    mesh.stop().await?;
    fsck(&["--database", &database]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_whose_database_goes_away_says_how_far_it_got_and_completes_when_run_again() -> Result<()> {
    let (Some(mut postgres), Some(redis)) = (Postgres::start_if_installed()?, Redis::start_if_installed()?) else {
        return Ok(());
    };
    let mesh = Processes::start(program(), &postgres.url(), &redis.url()).await?;
    let gateway = mesh.gateway()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("rows.csv.gz");
    write_rows(&path)?;

    let loading = tokio::spawn(run(load(&gateway, &path)));
    let asked = std::time::Instant::now();
    while stored(&gateway).await? == 0 {
        ensure!(asked.elapsed() < WAIT && !loading.is_finished(), "the load does not begin, or had ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::task::block_in_place(|| postgres.stop())?;
    let ended = loading.await??;
    tokio::task::block_in_place(|| postgres.restart())?;
    let asked = std::time::Instant::now();
    while stored(&gateway).await.is_err() {
        ensure!(asked.elapsed() < WAIT, "the mesh does not find its database again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    completes(&gateway, &path, &ended).await?;
    mesh.stop().await?;
    fsck(&["--database", &postgres.url()]).await
}

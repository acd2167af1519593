//! kill -9 in the middle of a backfill job: it goes on by itself, loses nothing, and counts nothing twice.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use candlemesh_tests::answers::Candles;
use candlemesh_tests::made_up::{self, Numbers};
use candlemesh_tests::processes::{Up, command, run};
use candlemesh_tests::rest::{Rest, candles_path};
use market::Candle;
use proto::ingestion::backfill_service_client::BackfillServiceClient;
use proto::ingestion::{
    Backfill, BackfillFile, BackfillState, CreateBackfillRequest, GetBackfillRequest, PauseBackfillRequest,
    ResumeBackfillRequest,
};

use crate::{crash, program};

/// Longest wait for the job to move: loads, restarts and the expiry of a lease on a busy machine.
const WAIT: Duration = Duration::from_secs(120);
const KILLS: u64 = 4;
/// Files, each of an instrument of its own.
const FILES: usize = 12;
/// About 30 000 minutes, two chunks, in each.
const SESSIONS: usize = 80;
/// The lease a killed worker leaves behind has to expire before the job goes on.
const LEASE: (&str, &str) = ("CANDLEMESH_INGESTION__BACKFILL_LEASE", "1s");

async fn client(up: &Up) -> Result<BackfillServiceClient<mesh::client::MeshChannel>> {
    Ok(BackfillServiceClient::new(mesh::client::connect(&up.gateway()?)?))
}

async fn get(up: &Up, id: &str) -> Result<(Backfill, Vec<BackfillFile>)> {
    let request = GetBackfillRequest { backfill_id: id.to_owned(), ..Default::default() };
    let answer = client(up).await?.get_backfill(request).await?.into_inner();
    Ok((answer.backfill.context("no job")?, answer.files))
}

async fn until(up: &Up, id: &str, wanted: impl Fn(&Backfill) -> bool) -> Result<Backfill> {
    let asked = Instant::now();
    loop {
        let (job, _) = get(up, id).await?;
        if wanted(&job) {
            return Ok(job);
        }
        ensure!(asked.elapsed() < WAIT, "the job does not move: {job:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn instrument(file: usize) -> String {
    format!("NSE_EQ|BACKFILL{file}")
}

/// Writes the files and a manifest of them; what they hold.
fn write(folder: &Path) -> Result<Vec<Vec<Candle>>> {
    let mut manifest = "key,file,interval\n".to_owned();
    let mut all = Vec::new();
    for file in 0..FILES {
        let rows = made_up::minutes(file as u64 + 1, SESSIONS)?;
        let name = format!("{file:02}.csv.gz");
        made_up::write_csv_gz(&folder.join(&name), &rows)?;
        manifest.push_str(&format!("{},{name},1m\n", instrument(file)));
        all.push(rows);
    }
    std::fs::write(folder.join("manifest.csv"), manifest)?;
    Ok(all)
}

/// What is stored is what an undisturbed load stores: every row once and whole.
async fn check_stored(up: &Up, files: &[Vec<Candle>]) -> Result<()> {
    for (file, rows) in files.iter().enumerate() {
        let answer: Candles = Rest::to(&up.gateway()?).get(&candles_path(&instrument(file), "1m")).await?.ok()?;
        ensure!(answer.candles.len() == rows.len(), "{}: {} candles", instrument(file), answer.candles.len());
        for (found, row) in answer.candles.iter().zip(rows) {
            let values = [found.open, found.high, found.low, found.close, found.volume];
            ensure!(values == [row.open, row.high, row.low, row.close, row.volume], "{found:?} was {row:?}");
            ensure!(found.open_time == market::format_millis(row.open_time) && found.source_count == 1, "{found:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_killed_at_random_moments_ends_as_if_it_had_not_been() -> Result<()> {
    let seed = crash::seed();
    println!("CANDLEMESH_TEST_SEED={seed}");
    let mut numbers = Numbers::from_seed(seed);
    let mut up = Up::start_with(program(), &[LEASE]).await?;
    let files = write(&up.data_dir().join("backfill"))?;
    let rows: u64 = files.iter().map(|rows| rows.len() as u64).sum();
    let request = CreateBackfillRequest {
        path: ".".to_owned(),
        manifest: "manifest.csv".to_owned(),
        request_id: "once".to_owned(),
        ..Default::default()
    };
    let job = client(&up).await?.create_backfill(request.clone()).await?.into_inner().backfill.context("no job")?;
    ensure!(job.files_total == FILES as u32, "the manifest is no candle file: {job:?}");
    let id = job.backfill_id;

    // A pause outlives the process. It comes first, when most of the job is still to do.
    until(&up, &id, |job| job.rows_read > 0).await?;
    client(&up).await?.pause_backfill(PauseBackfillRequest { backfill_id: id.clone() }).await?;
    let job = until(&up, &id, |job| job.state() != BackfillState::Running).await?;
    ensure!(job.state() == BackfillState::Paused, "the job was done before its pause: make it longer: {job:?}");
    ensure!((1..rows).contains(&job.rows_read), "paused in the middle: {job:?}");
    println!("paused after {} of {rows} rows", job.rows_read);
    up.process().kill()?;
    up.restart().await?;
    // Three leases: long enough for somebody to take it up, if anybody would.
    let asked = Instant::now();
    while asked.elapsed() < Duration::from_secs(3) {
        let now = get(&up, &id).await?.0;
        ensure!(now == job, "a paused job moved: {job:?}, then {now:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client(&up).await?.resume_backfill(ResumeBackfillRequest { backfill_id: id.clone() }).await?;

    let mut kills = 0;
    let mut read = job.rows_read;
    while kills < KILLS {
        let job = until(&up, &id, |job| job.rows_read > read || job.state() == BackfillState::Done).await?;
        if job.state() == BackfillState::Done {
            break;
        }
        read = job.rows_read;
        let pause = Duration::from_micros(numbers.below(60_000));
        println!("kill {kills}: {pause:?} after {read} of {rows} rows");
        tokio::time::sleep(pause).await;
        up.process().kill()?;
        up.restart().await?;
        kills += 1;
        // The call that created it, repeated by a client that never saw the answer.
        let again = client(&up).await?.create_backfill(request.clone()).await?.into_inner().backfill;
        ensure!(again.context("no job")?.backfill_id == id, "a second job for one request");
    }
    ensure!(kills >= 2, "the job was done after {kills} kills: make it longer");

    let job =
        until(&up, &id, |job| job.state() != BackfillState::Running && job.state() != BackfillState::Queued).await?;
    let (_, outcomes) = get(&up, &id).await?;
    ensure!(job.state() == BackfillState::Done, "{job:?} {outcomes:?}");
    ensure!(
        (job.rows_read, job.stored, job.unchanged, job.rejected) == (rows, rows, 0, 0),
        "an undisturbed load stores {rows} rows: {job:?}"
    );
    for (outcome, rows) in outcomes.iter().zip(&files) {
        ensure!(outcome.stored == rows.len() as u64, "{outcome:?}");
    }
    check_stored(&up, &files).await?;
    up.stop().await
}

/// The command, against a server: its exit status, and what a script can read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_starts_watches_and_shows_jobs() -> Result<()> {
    let up = Up::start_with(program(), &[LEASE]).await?;
    let folder = up.data_dir().join("backfill");
    std::fs::create_dir_all(folder.join("good"))?;
    made_up::write_csv_gz(&folder.join("good/a.csv.gz"), &made_up::minutes(5, 3)?)?;
    std::fs::write(folder.join("notes.txt"), "remember the milk\n")?;
    let gateway = up.gateway()?;
    let backfill = async |arguments: &[&str]| -> Result<(bool, serde_json::Value)> {
        let mut command = command(program());
        command.args(["--gateway", &gateway, "backfill"]).args(arguments).arg("--json");
        let output = run(command).await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let json = serde_json::from_str(&text)
            .with_context(|| format!("{arguments:?}: {text} {}", String::from_utf8_lossy(&output.stderr)))?;
        Ok((output.status.success(), json))
    };
    let (good, job) = backfill(&["start", "good", "--instrument", "NSE_EQ|A", "--wait"]).await?;
    ensure!(good && job["state"] == "BACKFILL_STATE_DONE", "{job:?}");
    let (good, job) = backfill(&["start", ".", "--instrument", "NSE_EQ|A", "--wait", "--dry-run"]).await?;
    ensure!(!good && job["state"] == "BACKFILL_STATE_FAILED", "{job:?}");
    let id = job["backfill_id"].as_str().context("no id")?;
    let (good, shown) = backfill(&["show", id, "--files"]).await?;
    let files = shown["files"].as_array().context("no files")?;
    ensure!(!good && files.len() == 2 && files[1]["path"] == "notes.txt" && files[1]["error"].is_string(), "{shown:?}");
    let (good, listed) = backfill(&["list"]).await?;
    ensure!(good && listed["backfills"].as_array().is_some_and(|jobs| jobs.len() == 2), "{listed:?}");
    let (good, watched) = backfill(&["watch", id]).await?;
    ensure!(!good && watched["backfill_id"] == id, "{watched:?}");
    let (good, cancelled) = backfill(&["cancel", id]).await?;
    ensure!(good && cancelled["state"] == "BACKFILL_STATE_CANCELLED", "{cancelled:?}");
    up.stop().await
}

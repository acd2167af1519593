//! A mesh under constant load while its processes are killed and its servers taken away at random moments: nothing acknowledged is
//! lost, nothing is there twice, the last acknowledged value wins, no read is ever wrong, a watcher hears every change once, and a
//! subscriber to candles every close.
//!
//! `CANDLEMESH_FAULT_SECONDS` is how long that goes on for each backend, `CANDLEMESH_TEST_SEED` repeats a run.

mod candles;
mod refusals;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use candlemesh::client::{Connection, load};
use candlemesh_tests::made_up::{self, Numbers};
use candlemesh_tests::postgres::Postgres;
use candlemesh_tests::processes::{Processes, ROLES, Up, command, run};
use candlemesh_tests::redis::Redis;
use candlemesh_tests::traffic::{Still, Tally, Traffic, instrument};
use candlemesh_tests::witness::Witness;
use formats::FileSpec;
use market::Timeframe;
use proto::ingestion::WatchChangesRequest;
use proto::ingestion::change_service_client::ChangeServiceClient;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::candles::Listeners;
use crate::program;

/// Writers, each with an instrument of its own; all of them meet on one more.
const WRITERS: usize = 3;
const SHARED: usize = WRITERS;
/// Instruments of which minutes are written as they pass.
const OF_NOW: std::ops::Range<usize> = SHARED + 1..SHARED + 1 + 12;
const INSTRUMENTS: usize = OF_NOW.end;
const READERS: usize = 2;
const STILL: &str = "NSE_EQ|STILL";
const STILL_SESSIONS: usize = 4;
/// Between two faults, at most.
const MAX_CALM: Duration = Duration::from_millis(2500);
/// How long a server stays away, at most.
const MAX_OUTAGE: Duration = Duration::from_millis(1500);
/// How long a mesh may take until it answers everything again after the last fault.
const RECOVERY: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// A mesh that can be hurt.
trait Victim {
    fn gateway(&self) -> Result<String>;
    /// Hurts it once and heals it; says how.
    async fn strike(&mut self, numbers: &mut Numbers) -> Result<String>;
    /// Ends it, and checks its store.
    async fn stop_and_check(self) -> Result<()>;
}

struct Distributed {
    mesh: Processes,
    postgres: Postgres,
    redis: Redis,
    database: String,
}

impl Distributed {
    async fn kill(&mut self, numbers: &mut Numbers) -> Result<String> {
        let role = ROLES[numbers.below(ROLES.len() as u64) as usize];
        self.mesh.kill(role)?;
        pause(numbers, MAX_OUTAGE).await;
        self.mesh.restart(role).await?;
        Ok(format!("kill -9 of {role}"))
    }
}

impl Victim for Distributed {
    fn gateway(&self) -> Result<String> {
        self.mesh.gateway()
    }

    async fn strike(&mut self, numbers: &mut Numbers) -> Result<String> {
        match numbers.below(10) {
            0..6 => self.kill(numbers).await,
            6..8 => {
                tokio::task::block_in_place(|| self.redis.stop())?;
                pause(numbers, MAX_OUTAGE).await;
                tokio::task::block_in_place(|| self.redis.restart())?;
                Ok("stop of Redis".to_owned())
            }
            _ => {
                tokio::task::block_in_place(|| self.postgres.restart())?;
                Ok("crash of PostgreSQL".to_owned())
            }
        }
    }

    async fn stop_and_check(self) -> Result<()> {
        self.mesh.stop().await?;
        fsck(&["--database", &self.database]).await
    }
}

impl Victim for Up {
    fn gateway(&self) -> Result<String> {
        Up::gateway(self)
    }

    async fn strike(&mut self, numbers: &mut Numbers) -> Result<String> {
        self.process().kill()?;
        pause(numbers, MAX_OUTAGE).await;
        self.restart().await?;
        Ok("kill -9 of up".to_owned())
    }

    async fn stop_and_check(mut self) -> Result<()> {
        self.process().terminate()?;
        let status = self.process().ended().await?;
        ensure!(status.success(), "up ended with {status}");
        let folder = self.data_dir();
        fsck(&["--data-dir", folder.to_str().context("path is not text")?]).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_on_postgresql_and_redis_outlives_random_faults_under_load() -> Result<()> {
    let (Some(postgres), Some(redis)) = (Postgres::start_if_installed()?, Redis::start_if_installed()?) else {
        return Ok(());
    };
    let database = postgres.url();
    let mesh = Processes::start(program(), &database, &redis.url()).await?;
    survives(Distributed { mesh, postgres, redis, database }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_on_sqlite_outlives_random_kills_under_load() -> Result<()> {
    survives(Up::start(program()).await?).await
}

async fn pause(numbers: &mut Numbers, longest: Duration) {
    tokio::time::sleep(longest.mul_f64(numbers.unit())).await;
}

fn seed() -> u64 {
    let given = std::env::var("CANDLEMESH_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    given.unwrap_or_else(|| clock().as_nanos() as u64)
}

fn duration() -> Duration {
    let given = std::env::var("CANDLEMESH_FAULT_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(given.unwrap_or(20))
}

/// Changes as they were heard: sequence, instrument, revision.
type Heard = Arc<Mutex<Vec<(u64, usize, u64)>>>;

fn copy(heard: &Heard) -> Vec<(u64, usize, u64)> {
    heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

async fn survives(mut victim: impl Victim) -> Result<()> {
    let seed = seed();
    println!("CANDLEMESH_TEST_SEED={seed}");
    let mut numbers = Numbers::from_seed(seed);
    let (gateway, at) = watch::channel(victim.gateway()?);
    let (stop, stopped) = watch::channel(false);
    let traffic = Traffic { gateway: at, stop: stopped, witness: Arc::default(), tally: Arc::default() };
    let still = prepare(&traffic, &victim.gateway()?).await.context("before the first fault")?;

    let (watched, heard) = (watch::channel(false), Heard::default());
    let watcher = Traffic { stop: watched.1, ..traffic.clone() };
    let listeners = Listeners::start(&watcher, &mut numbers).await?;
    let watching = tokio::spawn(watcher.watch_changes(Arc::clone(&heard)));
    let mut load = JoinSet::new();
    for writer in 0..WRITERS {
        load.spawn(traffic.clone().write(numbers.next_u64(), writer, SHARED));
    }
    for _ in 0..READERS {
        load.spawn(traffic.clone().read(numbers.next_u64(), INSTRUMENTS));
    }
    load.spawn(traffic.clone().write_now(numbers.next_u64(), OF_NOW));
    load.spawn(traffic.clone().read_still(numbers.next_u64(), still.clone()));

    let began = Instant::now();
    while began.elapsed() < duration() && traffic.tally.violations().is_empty() {
        pause(&mut numbers, MAX_CALM).await;
        let what = victim.strike(&mut numbers).await.context("healing the mesh")?;
        traffic.tally.count(&what);
        gateway.send_replace(victim.gateway()?);
    }
    stop.send_replace(true);
    while let Some(ended) = load.join_next().await {
        ended??;
    }
    let calm = Traffic { stop: watch::channel(false).1, ..traffic.clone() };
    let settled = async {
        settle(&calm, &still, &heard).await?;
        listeners.settle(&calm).await
    };
    let settled = settled.await;
    watched.0.send_replace(true);
    watching.await??;
    listeners.end().await?;
    report(&traffic.tally, &traffic.witness, began.elapsed());
    let violations = traffic.tally.violations();
    ensure!(violations.is_empty(), "{} violations: {violations:#?}", violations.len());
    settled?;
    victim.stop_and_check().await
}

/// Gives every instrument a first row, and the still one its candles. Returns what must be answered of that from now on.
async fn prepare(traffic: &Traffic, gateway: &str) -> Result<Still> {
    for instrument in 0..INSTRUMENTS {
        ensure!(traffic.put(instrument, 0..1).await?, "a write to a healthy mesh was not acknowledged");
    }
    let path = tempfile::Builder::new().suffix(".csv.gz").tempfile()?.into_temp_path();
    made_up::write_csv_gz(&path, &made_up::minutes(21, STILL_SESSIONS)?)?;
    let spec = FileSpec {
        instrument: Some(STILL.parse()?),
        timeframe: Some(Timeframe::M1),
        ..FileSpec::new(path.to_path_buf())
    };
    load::load(&Connection::to(gateway), &[spec], None, true).await?;
    let candles = traffic.candles(STILL, "5m", "v1").await?.context("no candles")?;
    let columns = traffic.still_columns(STILL, "v1").await?.context("no indicators")?;
    ensure!(candles.len() > 200 && columns.len() > 3, "{} candles, {} columns", candles.len(), columns.len());
    Ok(Still { key: STILL.to_owned(), candles, columns })
}

/// After the last fault: everything is answered again, by both engines and as it must be, and every acknowledged change was heard.
async fn settle(traffic: &Traffic, still: &Still, heard: &Heard) -> Result<()> {
    let asked = Instant::now();
    for instrument in 0..INSTRUMENTS {
        for engine in ["v1", "v2"] {
            while traffic.read_once(instrument, engine).await?.is_none() {
                ensure!(asked.elapsed() < RECOVERY, "instrument {instrument} is still not answered by {engine}");
            }
        }
    }
    while traffic.still_columns(&still.key, "v2").await?.is_none() {
        ensure!(asked.elapsed() < RECOVERY, "indicators are still not answered");
    }
    // A write that changed nothing is acknowledged with the revision of another, which was heard as well.
    let acknowledged = traffic.witness.revisions();
    loop {
        let told: BTreeSet<(usize, u64)> = copy(heard).into_iter().map(|(_, key, revision)| (key, revision)).collect();
        let Some(missing) = acknowledged.difference(&told).next() else { break };
        ensure!(asked.elapsed() < RECOVERY, "acknowledged, but never heard of: {missing:?} (instrument, revision)");
        tokio::time::sleep(POLL).await;
    }
    let heard = copy(heard);
    let last = heard.last().map_or(0, |(sequence, ..)| *sequence);
    let again = log(&traffic.gateway.borrow().clone(), last).await?;
    ensure!(heard == again, "{} changes were heard through the faults, {} are in the log", heard.len(), again.len());
    traffic.tally.count("watch: log compared");
    Ok(())
}

/// The change log up to a sequence, read in one go.
async fn log(gateway: &str, last: u64) -> Result<Vec<(u64, usize, u64)>> {
    let mut client = ChangeServiceClient::new(mesh::client::connect(gateway)?);
    let request = WatchChangesRequest { after_sequence: Some(0), ..Default::default() };
    let mut stream = client.watch_changes(request).await?.into_inner();
    let mut log = Vec::new();
    loop {
        let message = tokio::time::timeout(RECOVERY, stream.message()).await.context("the log is silent")??;
        let message = message.context("the log ended")?;
        for change in &message.changes {
            if let Some(key) = instrument(&change.instrument_key).filter(|_| change.sequence <= last) {
                log.push((change.sequence, key, change.revision));
            }
        }
        if message.sequence >= last {
            return Ok(log);
        }
    }
}

fn report(tally: &Tally, witness: &Witness, took: Duration) {
    println!("{:.0} s, {} rows acknowledged", took.as_secs_f64(), witness.acknowledged_rows());
    for (what, count) in tally.counts() {
        println!("  {what}: {count}");
    }
}

/// The store is clean, says the command.
async fn fsck(store: &[&str]) -> Result<()> {
    let mut command = command(program());
    command.arg("fsck").args(store).arg("--json");
    let output = run(command).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: serde_json::Value = serde_json::from_str(&said).with_context(|| format!("{output:?}"))?;
    ensure!(output.status.success() && report["findings_total"] == 0, "{said}");
    ensure!(report["candles"].as_u64() > Some(0), "{said}");
    Ok(())
}

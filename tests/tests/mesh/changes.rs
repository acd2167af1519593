//! Changes between processes: two ingestion replicas on one PostgreSQL, with and without Redis to wake each other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use candlemesh::config::Config;
use candlemesh::roles::{self, Role};
use candlemesh_tests::postgres::Postgres;
use candlemesh_tests::redis::Redis;
use market::Candle;
use mesh::Drain;
use mesh::client::MeshChannel;
use proto::convert::wire_candle;
use proto::ingestion::change_service_client::ChangeServiceClient;
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{CandleBatch, PutCandleBatchesRequest, WatchChangesRequest};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Longest wait for anything: a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// 2016-08-16 09:15 in Mumbai, an ordinary session.
const OPEN_MS: i64 = 1_471_319_100_000;
const PUTS: u64 = 40;
/// While the bus tells, the log is asked once a second: what comes sooner in the median was told.
const TOLD_WITHIN: Duration = Duration::from_millis(300);

/// An ingestion replica as `serve ingestion` builds it, in this process.
struct Replica {
    address: String,
    drain: Drain,
    serving: JoinHandle<Result<(), mesh::StartError>>,
    client: IngestionServiceClient<MeshChannel>,
}

impl Replica {
    async fn start(database_url: &str, redis_url: Option<&str>) -> Result<Replica> {
        let config = Config {
            listen: Some(([127, 0, 0, 1], 0).into()),
            database_url: Some(database_url.to_owned()),
            redis_url: redis_url.map(str::to_owned),
            ..Config::default()
        };
        let stores = roles::open_stores(&config).await?;
        let app = roles::build(Role::Ingestion, &config, Some(&stores), &roles::cpu_pool(&config)?).await?;
        let (address, drain) = (format!("http://{}", app.address()), Drain::new());
        let serving = tokio::spawn(app.serve(drain.clone()));
        let client = IngestionServiceClient::new(mesh::client::connect(&address)?);
        Ok(Replica { address, drain, serving, client })
    }

    /// Stores a minute of two instruments, and returns when it was acknowledged.
    async fn put(&self, name: &str, minute: u64) -> Result<Instant> {
        let price = 100.0 + minute as f64;
        let candle = Candle {
            open_time: OPEN_MS + minute as i64 * 60_000,
            open: price,
            high: price,
            low: price,
            close: price,
            volume: 1.0,
            open_interest: None,
        };
        let batch = |key: String| CandleBatch {
            instrument_key: key,
            candles: vec![wire_candle(&candle)],
            ..CandleBatch::default()
        };
        let batches = vec![batch(format!("NSE_EQ|{name}")), batch("NSE_EQ|SHARED".to_owned())];
        let answer = self.client.clone().put_candle_batches(PutCandleBatchesRequest { batches }).await?;
        ensure!(answer.into_inner().outcomes.iter().all(|outcome| outcome.stored == 1), "a row was not stored");
        Ok(Instant::now())
    }

    /// Every change from the first on, each with its close and when it came.
    async fn watch(&self) -> Result<mpsc::UnboundedReceiver<(u64, f64, Instant)>> {
        let mut client = ChangeServiceClient::new(mesh::client::connect(&self.address)?);
        let request =
            WatchChangesRequest { after_sequence: Some(0), include_candles: true, ..WatchChangesRequest::default() };
        let mut messages = client.watch_changes(request).await?.into_inner();
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            // Ends with the replica's drain; a watch that ended sooner is missed by who waits.
            while let Ok(Some(message)) = messages.message().await {
                for change in message.changes {
                    let close = change.candles.and_then(|candles| candles.close.last().copied());
                    let _ = sender.send((change.sequence, close.unwrap_or(f64::NAN), Instant::now()));
                }
            }
        });
        Ok(receiver)
    }

    async fn stop(self) -> Result<()> {
        self.drain.start();
        Ok(self.serving.await??)
    }
}

async fn next(watch: &mut mpsc::UnboundedReceiver<(u64, f64, Instant)>) -> Result<(u64, f64, Instant)> {
    let change = tokio::time::timeout(PATIENCE, watch.recv()).await.context("no change came")?;
    change.context("the watch ended")
}

/// Puts on the first replica, and how long after each acknowledgement a watcher of the second had both changes of it.
async fn delays(from: &Replica, to: &Replica) -> Result<Vec<Duration>> {
    let mut watch = to.watch().await?;
    let mut delays = Vec::new();
    for minute in 0..PUTS {
        let acknowledged = from.put("DELAY", minute).await?;
        let mut came = acknowledged;
        for sequence in [2 * minute + 1, 2 * minute + 2] {
            let (seen, close, at) = next(&mut watch).await?;
            ensure!(seen == sequence && close == 100.0 + minute as f64, "{seen} {close} instead of {sequence}");
            came = at;
        }
        delays.push(came.saturating_duration_since(acknowledged));
        // At no fixed phase of the poll.
        tokio::time::sleep(Duration::from_millis(7 * (minute % 13))).await;
    }
    delays.sort();
    Ok(delays)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_tells_the_other_by_redis_and_is_found_without_it() -> Result<()> {
    let (Some(postgres), Some(redis)) = (Postgres::start_if_installed()?, Redis::start_if_installed()?) else {
        return Ok(());
    };
    let redis_url = redis.url();
    for (name, redis_url) in [("polled", None), ("told", Some(redis_url.as_str()))] {
        let database = postgres.create_database(name)?;
        let (from, to) = (Replica::start(&database, redis_url).await?, Replica::start(&database, redis_url).await?);
        let delays = delays(&from, &to).await?;
        let (median, longest) = (delays[delays.len() / 2], delays[delays.len() - 1]);
        println!(
            "{name}: from acknowledgement to the other replica's watcher {median:?} in the median, {longest:?} at most"
        );
        ensure!(redis_url.is_none() || median < TOLD_WITHIN, "{name}: {delays:?}");
        from.stop().await?;
        to.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_lost_and_found_again_loses_and_doubles_no_change() -> Result<()> {
    let (Some(postgres), Some(mut redis)) = (Postgres::start_if_installed()?, Redis::start_if_installed()?) else {
        return Ok(());
    };
    let (database, redis_url) = (postgres.url(), redis.url());
    let a = Replica::start(&database, Some(&redis_url)).await?;
    let b = Replica::start(&database, Some(&redis_url)).await?;
    let mut watches = [a.watch().await?, b.watch().await?];
    let mut stored = 0;
    for phase in 0..5_u64 {
        match phase {
            1 | 3 => redis.stop()?,
            2 | 4 => redis.restart()?,
            _ => {}
        }
        // Both write at once, so that sequences of the two interleave.
        let minutes = phase * PUTS / 2..(phase + 1) * PUTS / 2;
        for minute in minutes {
            let (first, second) = tokio::join!(a.put("A", 2 * minute), b.put("B", 2 * minute + 1));
            first?;
            second?;
            stored += 4;
        }
        for watch in &mut watches {
            for sequence in stored - 2 * PUTS + 1..=stored {
                let (seen, close, _) = next(watch).await?;
                ensure!(seen == sequence && close.is_finite(), "phase {phase}: {seen} {close} instead of {sequence}");
            }
        }
    }
    for watch in &mut watches {
        ensure!(watch.try_recv().is_err(), "a change came that was not made");
    }
    a.stop().await?;
    b.stop().await
}

//! kill -9 in the middle of a load: no acknowledged row is missing, none is there twice, and the load run again completes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use candlemesh_tests::answers::Candles;
use candlemesh_tests::made_up::{self, Numbers};
use candlemesh_tests::postgres::Postgres;
use candlemesh_tests::processes::{Processes, Up};
use candlemesh_tests::redis::Redis;
use candlemesh_tests::rest::{Rest, candles_path};
use market::Candle;
use proto::convert::wire_candle;
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{BatchOutcome, CandleBatch, StreamCandlesRequest};
use tokio::sync::watch;

use crate::program;

const INSTRUMENT: &str = "NSE_EQ|CRASH";
const SESSIONS: usize = 80;
/// Not a divisor of a session's 375 minutes: most days are written by two batches, in two states.
const BATCH_ROWS: usize = 250;
const KILLS: usize = 3;

/// A mesh whose store can be killed.
trait Mortal {
    fn gateway(&self) -> Result<String>;
    fn kill(&mut self) -> Result<()>;
    async fn restart(&mut self) -> Result<()>;
}

impl Mortal for Processes {
    fn gateway(&self) -> Result<String> {
        Processes::gateway(self)
    }

    fn kill(&mut self) -> Result<()> {
        Processes::kill(self, "ingestion")
    }

    async fn restart(&mut self) -> Result<()> {
        Processes::restart(self, "ingestion").await
    }
}

impl Mortal for Up {
    fn gateway(&self) -> Result<String> {
        Up::gateway(self)
    }

    fn kill(&mut self) -> Result<()> {
        self.process().kill()
    }

    async fn restart(&mut self) -> Result<()> {
        Up::restart(self).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ingestion_on_postgresql_killed_in_a_load_loses_and_doubles_no_acknowledged_row() -> Result<()> {
    let (Some(postgres), Some(redis)) = (Postgres::start_if_installed()?, Redis::start_if_installed()?) else {
        return Ok(());
    };
    let mut mesh = Processes::start(program(), &postgres.url(), &redis.url()).await?;
    survives(&mut mesh).await?;
    mesh.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_on_sqlite_killed_in_a_load_loses_and_doubles_no_acknowledged_row() -> Result<()> {
    let mut mesh = Up::start(program()).await?;
    survives(&mut mesh).await?;
    mesh.stop().await
}

/// Batches by index, as far as they were acknowledged.
#[derive(Debug, Clone)]
struct Acknowledged {
    outcomes: Arc<Mutex<BTreeMap<usize, BatchOutcome>>>,
    count: watch::Sender<usize>,
}

impl Acknowledged {
    fn new() -> Acknowledged {
        Acknowledged { outcomes: Arc::default(), count: watch::Sender::new(0) }
    }

    fn add(&self, batch: usize, outcome: BatchOutcome) {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).insert(batch, outcome);
        self.count.send_modify(|count| *count += 1);
    }

    fn take(self) -> BTreeMap<usize, BatchOutcome> {
        std::mem::take(&mut self.outcomes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn survives(mesh: &mut impl Mortal) -> Result<()> {
    let seed = seed();
    println!("CANDLEMESH_TEST_SEED={seed}");
    let mut numbers = Numbers::from_seed(seed);
    let rows = made_up::minutes(7, SESSIONS)?;
    let batches: Vec<Vec<Candle>> = rows.chunks(BATCH_ROWS).map(<[Candle]>::to_vec).collect();
    let mut safe = BTreeSet::new();
    for round in 0..KILLS {
        // Later rounds go further, so that rows already there and new ones are both hit.
        let first = batches.len() * round / (KILLS + 1);
        let kill_after = first + 1 + numbers.below(batches.len() as u64 / (KILLS as u64 + 2)) as usize;
        let pause = Duration::from_micros(numbers.below(5_000));
        println!("round {round}: kill {pause:?} after {kill_after} of {} acknowledgements", batches.len());

        let acknowledged = Acknowledged::new();
        let mut count = acknowledged.count.subscribe();
        let load = tokio::spawn(load(mesh.gateway()?, batches.clone(), acknowledged.clone()));
        count.wait_for(|count| *count >= kill_after).await?;
        tokio::time::sleep(pause).await;
        mesh.kill()?;
        let ended = load.await?;
        mesh.restart().await?;
        ensure!(ended.is_err(), "the load had ended before the kill: make it longer");
        let new = acknowledged.take();
        check_outcomes(&batches, &new, &safe).with_context(|| format!("round {round}"))?;
        safe.extend(new.into_keys());
        check_stored(&mesh.gateway()?, &rows, &batches, &safe).await.with_context(|| format!("round {round}"))?;
    }
    let acknowledged = Acknowledged::new();
    load(mesh.gateway()?, batches.clone(), acknowledged.clone()).await.context("the last load")?;
    let outcomes = acknowledged.take();
    ensure!(outcomes.len() == batches.len(), "{} of {} batches acknowledged", outcomes.len(), batches.len());
    check_outcomes(&batches, &outcomes, &safe).context("the last load")?;
    check_stored(&mesh.gateway()?, &rows, &batches, &outcomes.into_keys().collect()).await.context("the last load")
}

/// `CANDLEMESH_TEST_SEED`, to repeat a run; else of the clock.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("CANDLEMESH_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    given.unwrap_or_else(|| clock().as_nanos() as u64)
}

/// Streams every batch through the gateway; notes each acknowledgement as it comes.
async fn load(gateway: String, batches: Vec<Vec<Candle>>, acknowledged: Acknowledged) -> Result<()> {
    let mut client = IngestionServiceClient::new(mesh::client::connect(&gateway)?);
    let requests = batches.into_iter().enumerate().map(|(index, rows)| StreamCandlesRequest {
        sequence: index as u64 + 1,
        batch: Some(CandleBatch {
            instrument_key: INSTRUMENT.to_owned(),
            timeframe: "1m".to_owned(),
            candles: rows.iter().map(wire_candle).collect(),
            ..Default::default()
        }),
    });
    let mut answers = client.stream_candles(tokio_stream::iter(requests)).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        acknowledged.add(answer.sequence as usize - 1, answer.outcome.context("no outcome")?);
    }
    Ok(())
}

/// Every row is accounted for, and those acknowledged before are already there.
fn check_outcomes(
    batches: &[Vec<Candle>],
    outcomes: &BTreeMap<usize, BatchOutcome>,
    safe: &BTreeSet<usize>,
) -> Result<()> {
    for (index, outcome) in outcomes {
        let rows = batches[*index].len() as u64;
        ensure!(outcome.rejected.is_empty(), "batch {index}: {outcome:?}");
        ensure!(outcome.stored + outcome.unchanged == rows, "batch {index} of {rows}: {outcome:?}");
        ensure!(
            !safe.contains(index) || outcome.unchanged == rows,
            "acknowledged batch {index} was not there: {outcome:?}"
        );
    }
    Ok(())
}

/// What is stored is a part of what was sent, each row once and whole, with every acknowledged row in it.
async fn check_stored(gateway: &str, rows: &[Candle], batches: &[Vec<Candle>], safe: &BTreeSet<usize>) -> Result<()> {
    let answer: Candles = Rest::to(gateway).get(&candles_path(INSTRUMENT, "1m")).await?.ok()?;
    let sent: BTreeMap<String, &Candle> =
        rows.iter().map(|candle| (market::format_millis(candle.open_time), candle)).collect();
    let mut found = BTreeSet::new();
    for candle in &answer.candles {
        let row = sent.get(&candle.open_time).with_context(|| format!("never sent: {candle:?}"))?;
        let values = [candle.open, candle.high, candle.low, candle.close, candle.volume];
        ensure!(values == [row.open, row.high, row.low, row.close, row.volume], "{candle:?} was sent as {row:?}");
        ensure!(candle.source_count == 1, "{candle:?}");
        ensure!(found.insert(row.open_time), "there twice: {candle:?}");
    }
    let missing = safe.iter().flat_map(|index| &batches[*index]).find(|row| !found.contains(&row.open_time));
    ensure!(missing.is_none(), "acknowledged, but missing: {missing:?}");
    Ok(())
}

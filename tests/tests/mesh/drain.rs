//! SIGTERM with requests in flight: each is answered whole, and the exit status is 0.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use candlemesh::client::{Connection, load};
use candlemesh_tests::answers::Indicators;
use candlemesh_tests::made_up;
use candlemesh_tests::processes::Up;
use candlemesh_tests::rest::{Rest, indicators_path};
use formats::FileSpec;
use market::Timeframe;
use serde_json::json;

use crate::program;

const INSTRUMENT: &str = "NSE_EQ|DRAIN";
const SESSIONS: usize = 40;
const IN_FLIGHT: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_answers_what_is_in_flight_and_exits_with_zero() -> Result<()> {
    let mut up = Up::start(program()).await?;
    let gateway = up.gateway()?;
    let rows = made_up::minutes(11, SESSIONS)?;
    let path = tempfile::Builder::new().suffix(".csv.gz").tempfile()?.into_temp_path();
    made_up::write_csv_gz(&path, &rows)?;
    let spec =
        FileSpec { instrument: Some(INSTRUMENT.parse()?), timeframe: Some(Timeframe::M1), ..FileSpec::new(&path) };
    load::load(&Connection::to(&gateway), &[spec], None, true).await?;

    // V1 has no cache, so that each of these takes as long as the first.
    let ask = || {
        let rest = Rest::to(&gateway).with_engine("v1");
        let body =
            json!({ "indicators": ["sma:9", "ema:50", "rsi:14", "bbands:20,2", "macd", "adx:14", "stoch:14,3,3"] });
        async move { rest.post(&indicators_path(INSTRUMENT, "1m"), &body).await?.ok::<Indicators>() }
    };
    let started = Instant::now();
    ask().await?;
    let one = started.elapsed();
    let asked: Vec<_> = (0..IN_FLIGHT).map(|_| tokio::spawn(ask())).collect();
    tokio::time::sleep((one / 3).max(Duration::from_millis(5))).await;
    ensure!(asked.iter().any(|asked| !asked.is_finished()), "everything was answered within a third of {one:?}");
    up.process().terminate()?;
    for answer in asked {
        let answer = answer.await??;
        ensure!(answer.open_time.len() == rows.len(), "{} of {} rows", answer.open_time.len(), rows.len());
    }
    let status = up.process().ended().await?;
    ensure!(status.success(), "ended with {status}");
    ensure!(Rest::to(&gateway).get("/healthz").await.is_err(), "something still listens");
    Ok(())
}

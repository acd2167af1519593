//! Everything a mesh does, once over, on candles made from a seed: in one process on SQLite, and in six on PostgreSQL and Redis.

mod answers;
mod engines;
mod refusals;
mod screens;

use anyhow::{Context, Result, ensure};
use candlemesh::client::{Connection, load};
use candlemesh_tests::answers::{Indicators, Stored};
use candlemesh_tests::in_process::InProcess;
use candlemesh_tests::made_up;
use candlemesh_tests::postgres::Postgres;
use candlemesh_tests::processes::Processes;
use candlemesh_tests::redis::Redis;
use candlemesh_tests::rest::{Answer, Rest, indicators_path};
use formats::FileSpec;
use market::{Candle, Timeframe};
use proto::aggregation::GetCandlesRequest;
use proto::aggregation::aggregation_service_client::AggregationServiceClient;
use serde_json::{Value, json};

use crate::program;

/// An instrument with minutes, put by Flight.
const MINUTES: &str = "NSE_EQ|MINUTES";
/// A second one, put by REST.
const OTHER: &str = "NSE_EQ|OTHER";
const SESSIONS: usize = 4;
const UNKNOWN: &str = "NSE_EQ|NOBODY";

/// A mesh with data in it.
struct Scenario {
    gateway: String,
    rest: Rest,
    minutes: Vec<Candle>,
    other: Vec<Candle>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_on_sqlite_does_everything() -> Result<()> {
    let mesh = InProcess::start().await?;
    run(&mesh.gateway()).await?;
    mesh.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_processes_on_postgresql_and_redis_do_everything_and_survive_redis() -> Result<()> {
    let (Some(postgres), Some(mut redis)) = (Postgres::start_if_installed()?, Redis::start_if_installed()?) else {
        return Ok(());
    };
    let mesh = Processes::start(program(), &postgres.url(), &redis.url()).await?;
    run(&mesh.gateway()?).await?;
    redis.stop()?;
    indicators_answer_without_redis(&mesh.gateway()?).await.context("without Redis")?;
    mesh.stop().await
}

async fn run(gateway: &str) -> Result<()> {
    let scenario = Scenario::load(gateway).await.context("loading")?;
    scenario.candles().await.context("candles")?;
    scenario.several_timeframes().await.context("multi")?;
    scenario.indicators().await.context("indicators")?;
    scenario.quotes().await.context("quotes")?;
    scenario.intraday_quotes().await.context("intraday quotes")?;
    scenario.screens().await.context("screens")?;
    scenario.sequences().await.context("sequences")?;
    scenario.group_execution().await.context("group")?;
    scenario.study().await.context("study")?;
    scenario.rollout().await.context("rollout")?;
    scenario.refusals().await.context("refusals")?;
    scenario.openapi().await.context("openapi")
}

impl Scenario {
    /// Puts the minutes of one instrument by Flight and those of another by REST, each twice.
    async fn load(gateway: &str) -> Result<Scenario> {
        let rest = Rest::to(gateway);
        let (minutes, other) = (made_up::minutes(1, SESSIONS)?, made_up::minutes(2, SESSIONS)?);
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("minutes.csv.gz");
        made_up::write_csv_gz(&path, &minutes)?;
        let spec =
            [FileSpec { instrument: Some(MINUTES.parse()?), timeframe: Some(Timeframe::M1), ..FileSpec::new(path) }];
        for (stored, unchanged) in [(minutes.len(), 0), (0, minutes.len())] {
            let report = load::load(&Connection::to(gateway), &spec, None, true).await?;
            let counts = (report.stored as usize, report.unchanged as usize, report.rejected);
            ensure!(counts == (stored, unchanged, 0), "Flight: {report:?}");
        }
        let body = json!({ "instrument_key": OTHER, "timeframe": "1m", "candles": made_up::json_rows(&other) });
        for (stored, unchanged) in [(other.len(), 0), (0, other.len())] {
            let answer: Stored = rest.post("/api/v1/historical-data/batch-store", &body).await?.ok()?;
            let counts = (answer.stored as usize, answer.unchanged as usize, answer.rejected.len());
            ensure!(counts == (stored, unchanged, 0) && answer.revision > 0, "REST: {answer:?}");
        }
        let scenario = Scenario { gateway: gateway.to_owned(), rest, minutes, other };
        scenario.one_bad_row_is_rejected_alone().await?;
        scenario.json_keeps_every_bit().await?;
        Ok(scenario)
    }

    /// A rejected row comes back with its index and reason; the others of the batch are stored.
    async fn one_bad_row_is_rejected_alone(&self) -> Result<()> {
        let mut rows = made_up::minutes(3, 1)?;
        rows.truncate(5);
        rows[2].high = rows[2].low - 1.0;
        let body = json!({ "instrument_key": "NSE_EQ|BADROW", "candles": made_up::json_rows(&rows) });
        let answer: Stored = self.rest.post("/api/v1/historical-data/batch-store", &body).await?.ok()?;
        ensure!(answer.stored == 4 && answer.rejected.len() == 1, "{answer:?}");
        let rejected = &answer.rejected[0];
        ensure!(rejected.row == 2 && rejected.reason.contains("high"), "{rejected:?}");
        Ok(())
    }

    /// A price of seventeen digits put as JSON comes back to the bit over gRPC.
    async fn json_keeps_every_bit(&self) -> Result<()> {
        let mut numbers = made_up::Numbers::from_seed(4);
        let mut rows = made_up::minutes(4, 1)?;
        for row in &mut rows {
            let price = 100.0 + numbers.unit() * 1000.0;
            (row.open, row.high, row.low, row.close) = (price, price, price, price);
        }
        let body = json!({ "instrument_key": "NSE_EQ|DIGITS", "candles": made_up::json_rows(&rows) });
        self.rest.post("/api/v1/historical-data/batch-store", &body).await?.ok::<Stored>()?;
        let mut client = AggregationServiceClient::new(mesh::client::connect(&self.gateway)?);
        let request = GetCandlesRequest {
            instrument_key: "NSE_EQ|DIGITS".to_owned(),
            timeframe: "1m".to_owned(),
            ..Default::default()
        };
        let answer = client.get_candles(request).await?.into_inner();
        ensure!(answer.candles.len() == rows.len(), "{} of {} rows", answer.candles.len(), rows.len());
        let changed = rows.iter().zip(&answer.candles).find(|(row, candle)| row.close != candle.close);
        ensure!(changed.is_none(), "a price was changed on its way: {changed:?}");
        Ok(())
    }

    /// Calls an RPC by its REST path.
    async fn rpc(&self, method: &str, body: &Value) -> Result<Answer> {
        self.rest.post(&format!("/api/v1/rpc/{method}"), body).await
    }
}

async fn indicators_answer_without_redis(gateway: &str) -> Result<()> {
    // What the process still has in memory, and what it must compute.
    for indicator in ["sma:9", "sma:13"] {
        for engine in ["v1", "v2"] {
            let rest = Rest::to(gateway).with_engine(engine);
            let body = json!({ "indicators": [indicator] });
            let answer: Indicators = rest.post(&indicators_path(MINUTES, "5m"), &body).await?.ok()?;
            let defined = answer.columns.get(indicator).context("no column")?.iter().flatten().count();
            ensure!(defined > 200, "{engine} {indicator}: {defined} values");
        }
    }
    Ok(())
}

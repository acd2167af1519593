//! Bad input: each refusal says which field, which value, and what is accepted. And the document that says what there is.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use candlemesh_tests::answers::Problem;
use candlemesh_tests::rest::{Answer, candles_path, indicators_path};
use http::Method;
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{CandleBatch, GetInstrumentRequest, PutCandlesRequest};
use serde_json::{Value, json};
use tonic::Code;

use super::{MINUTES, Scenario, UNKNOWN};

/// The gateway's default limit of a body.
const BODY_LIMIT_BYTES: usize = 32 * 1024 * 1024;
/// Rows accepted in one batch.
const BATCH_LIMIT_ROWS: usize = 100_000;

/// A 400 that names the field and says all of `texts`.
fn bad(answer: &Answer, field: &str, texts: &[&str]) -> Result<()> {
    let problem = answer.refused(400)?;
    ensure!(problem.code == "INVALID_ARGUMENT", "{problem:?}");
    ensure!(problem.errors.iter().any(|error| error.field.contains(field)), "{field} is not named: {problem:?}");
    says(&problem, texts)
}

fn says(problem: &Problem, texts: &[&str]) -> Result<()> {
    for text in texts {
        ensure!(problem.detail.contains(text), "'{text}' is not said: {problem:?}");
    }
    Ok(())
}

impl Scenario {
    pub(super) async fn refusals(&self) -> Result<()> {
        self.unknown_instruments().await?;
        self.bad_values().await?;
        self.too_much().await
    }

    async fn unknown_instruments(&self) -> Result<()> {
        for engine in ["v1", "v2"] {
            let rest = self.rest.with_engine(engine);
            let indicators = rest.post(&indicators_path(UNKNOWN, "5m"), &json!({ "indicators": ["sma:9"] })).await?;
            let multi = rest.post(&candles_path(UNKNOWN, "multi"), &json!({ "timeframes": ["5m"] })).await?;
            for answer in [rest.get(&candles_path(UNKNOWN, "5m")).await?, indicators, multi] {
                let problem = answer.refused(404)?;
                ensure!(problem.code == "NOT_FOUND" && problem.reason == "UNKNOWN_INSTRUMENT", "{problem:?}");
                says(&problem, &[UNKNOWN])?;
            }
        }
        Ok(())
    }

    async fn bad_values(&self) -> Result<()> {
        let rest = &self.rest;
        bad(&rest.get(&candles_path(MINUTES, "7m")).await?, "timeframe", &["7m", "5m", "1d"])?;
        bad(&rest.get(&candles_path("NOBAR", "5m")).await?, "instrument_key", &["NOBAR"])?;
        let range = "?start=2024-01-02T00:00:00Z&end=2024-01-01T00:00:00Z";
        bad(&rest.get(&(candles_path(MINUTES, "5m") + range)).await?, "range", &["2024-01-0"])?;
        bad(&rest.get(&(candles_path(MINUTES, "5m") + "?start=yesterday")).await?, "start", &["yesterday"])?;
        bad(&rest.get(&(candles_path(MINUTES, "5m") + "?from=2024-01-01")).await?, "from", &["start, end"])?;
        let specs: [(&str, &[&str]); 3] = [
            ("sma:0", &["sma period", "\"0\"", "1 to 10000"]),
            ("nope:3", &["nope", "sma"]),
            ("rsi:x", &["rsi period", "\"x\""]),
        ];
        for (spec, texts) in specs {
            for engine in ["v1", "v2"] {
                let body = json!({ "indicators": [spec] });
                let answer = rest.with_engine(engine).post(&indicators_path(MINUTES, "5m"), &body).await?;
                bad(&answer, "indicators", texts)?;
            }
        }
        let body = json!({ "indicators": ["sma:9"], "perod": 3 });
        bad(&rest.post(&indicators_path(MINUTES, "5m"), &body).await?, "perod", &["perod"])?;
        let body = json!({ "instrument_keys": [MINUTES], "colour": "red" });
        bad(&rest.post("/api/v1/market/quotes", &body).await?, "colour", &["colour"])?;
        let body = json!({ "date": "tomorrow" });
        bad(&rest.post("/api/v1/filter-pipeline/run", &body).await?, "date", &["tomorrow"])?;
        let body = json!({ "instrument_key": MINUTES, "timeframe": "5m", "gap_fil": true });
        let answer = self.rpc("candlemesh.aggregation.v1.AggregationService/GetCandles", &body).await?;
        ensure!(answer.refused(400)?.detail.contains("gap_fil"), "{answer:?}");
        let nowhere = rest.get("/api/v1/nothing").await?.refused(404)?;
        says(&nowhere, &["/api/v1/nothing"])
    }

    async fn too_much(&self) -> Result<()> {
        let body = Bytes::from(vec![b' '; BODY_LIMIT_BYTES + 1]);
        let answer = self.rest.send(Method::POST, "/api/v1/historical-data/batch-store", body).await?;
        let problem = answer.refused(413)?;
        ensure!(problem.code == "RESOURCE_EXHAUSTED", "{problem:?}");
        says(&problem, &[&BODY_LIMIT_BYTES.to_string()])?;

        let mut client = IngestionServiceClient::new(mesh::client::connect(&self.gateway)?);
        let batch = CandleBatch {
            instrument_key: "NSE_EQ|TOOMUCH".to_owned(),
            candles: vec![Default::default(); BATCH_LIMIT_ROWS + 1],
            ..Default::default()
        };
        let outcome = client.put_candles(PutCandlesRequest { batch: Some(batch) }).await;
        let status = outcome.err().context("a batch over the limit was taken")?;
        ensure!(status.code() == Code::ResourceExhausted, "{status:?}");
        ensure!(status.message().contains(&BATCH_LIMIT_ROWS.to_string()), "the limit is not named: {status:?}");

        let request = GetInstrumentRequest { instrument_key: "x".repeat(mesh::MAX_MESSAGE_BYTES + 1) };
        let status = client.get_instrument(request).await.err().context("a message over the limit was taken")?;
        ensure!(status.code() == Code::ResourceExhausted, "{:?}: {:.200}", status.code(), status.message());
        let limit = mesh::MAX_MESSAGE_BYTES.to_string();
        ensure!(status.message().contains(&limit), "the limit is not named: {:.200}", status.message());
        Ok(())
    }

    pub(super) async fn openapi(&self) -> Result<()> {
        let document: Value = self.rest.get("/openapi.json").await?.ok()?;
        let version = document["openapi"].as_str().unwrap_or_default();
        ensure!(version.starts_with("3.1"), "openapi {version}");
        for (method, path) in [
            ("get", "/api/v1/candles/{instrument_key}/{timeframe}"),
            ("post", "/api/v1/candles/{instrument_key}/multi"),
            ("post", "/api/v1/indicators/{instrument_key}/{timeframe}"),
            ("post", "/api/v1/filter-pipeline/run"),
            ("get", "/api/v1/filter-pipeline/fetch/top-10"),
            ("post", "/api/v1/groups/{id}/execute"),
            ("post", "/api/v1/market/quotes"),
            ("post", "/api/v1/market/intraday-quotes"),
            ("post", "/api/v1/historical-data/batch-store"),
            ("post", "/api/v1/rpc/candlemesh.ingestion.v1.IngestionService/PutGroup"),
            ("post", "/api/v1/rpc/candlemesh.sequence.v1.SequenceService/AnalyzeSequences"),
            ("post", "/api/v1/rpc/candlemesh.gateway.v1.RolloutService/SetRolloutShare"),
        ] {
            ensure!(document["paths"][path][method].is_object(), "{method} {path} is not in the document");
        }
        Ok(())
    }
}

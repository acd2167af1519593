//! Indicators of many instruments in one batch: how fast, and how soon a client that leaves is no burden any more.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use market::Millis;
use prost_types::Timestamp;
use proto::indicator::BatchComputeIndicatorsRequest;
use proto::indicator::batch_compute_indicators_response::Outcome;
use proto::indicator::indicator_service_client::IndicatorServiceClient;
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{CandleBatch, PutCandleBatchesRequest};
use proto::wire::Candle;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::{Case, Measured, Parameters, data, put};

const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// A year of NSE.
const SESSIONS: usize = 250;
/// Candles of 5m in a session of 375 minutes.
const PER_SESSION: usize = 75;
const STEP_MS: Millis = 300_000;
/// Instruments of one call that stores: the limit is 100 000 rows.
const PER_PUT: usize = 5;
/// Calls that store at once.
const PUTS: usize = 4;
/// Answers read before a client leaves.
const READ_BEFORE_LEAVING: usize = 20;
/// Longest wait for the service to be at rest: a hundred times the goal.
const WAIT: Duration = Duration::from_secs(10);
/// What is zero when nothing of a batch is left.
const AT_REST: [&str; 3] =
    ["candlemesh_indicator_batch_memory_bytes", "candlemesh_pool_busy_workers", "candlemesh_pool_queue_depth"];

/// A year of 5m of each instrument, stored, and a client of the indicator service.
#[derive(Debug)]
pub(crate) struct Batch {
    runtime: Arc<Runtime>,
    client: IndicatorServiceClient<Channel>,
    keys: Vec<String>,
    /// Engine; with `-leave` the client leaves early.
    engine: String,
    leaves: bool,
    /// `host:port` of the service's metrics.
    metrics: String,
}

impl Batch {
    pub(crate) fn prepare(parameters: &Parameters) -> Result<Self> {
        let runtime = Arc::new(put::runtime()?);
        let keys: Vec<String> = (0..parameters.instruments).map(|index| format!("NSE_EQ|YEAR{index:05}")).collect();
        let client = runtime.block_on(async {
            let ingestion = IngestionServiceClient::new(mesh::client::raw_channel(&parameters.ingestion)?)
                .max_encoding_message_size(MAX_MESSAGE_BYTES);
            store(ingestion, &keys).await?;
            let channel = mesh::client::raw_channel(&parameters.indicator)?;
            anyhow::Ok(IndicatorServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
        })?;
        let (engine, leaves) = match parameters.variant.strip_suffix("-leave") {
            Some(engine) => (engine, true),
            None => (parameters.variant.as_str(), false),
        };
        Ok(Self { runtime, client, keys, engine: engine.to_owned(), leaves, metrics: parameters.metrics.clone() })
    }

    async fn batch(&mut self) -> Result<Measured> {
        let message = BatchComputeIndicatorsRequest {
            instrument_keys: self.keys.clone(),
            timeframe: "5m".to_owned(),
            ..Default::default()
        };
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert(mesh::ENGINE_HEADER, self.engine.parse().context("an engine")?);
        let started = Instant::now();
        let mut items = self.client.batch_compute_indicators(request).await?.into_inner();
        let (mut answers, mut values, mut cached) = (0_usize, 0_usize, 0_usize);
        let mut first = None;
        while let Some(item) = items.message().await? {
            first.get_or_insert_with(|| started.elapsed());
            match item.outcome {
                Some(Outcome::Answer(answer)) => {
                    answers += 1;
                    cached += usize::from(answer.cached);
                    values += answer.columns.iter().map(|column| column.values.len()).sum::<usize>();
                }
                other => bail!("{}: {other:?}", item.instrument_key),
            }
            if self.leaves && answers == READ_BEFORE_LEAVING {
                drop(items);
                return self.rest().await;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let first = first.unwrap_or_default().as_secs_f64();
        let measured = json!({ "answers": answers, "values": values, "cached": cached, "first_seconds": first });
        Ok(Measured::new(seconds, measured))
    }

    /// Seconds until the service is at rest, by its metrics.
    async fn rest(&self) -> Result<Measured> {
        let left = Instant::now();
        let mut looks = 0;
        loop {
            looks += 1;
            if at_rest(&self.metrics)? {
                return Ok(Measured::new(left.elapsed().as_secs_f64(), json!({ "looks": looks })));
            }
            ensure!(left.elapsed() < WAIT, "the service goes on for a client that has left");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Case for Batch {
    fn describe(&self) -> Value {
        json!({ "instruments": self.keys.len(), "candles": self.keys.len() * SESSIONS * PER_SESSION })
    }

    fn run(&mut self) -> Result<Measured> {
        let runtime = Arc::clone(&self.runtime);
        runtime.block_on(self.batch())
    }
}

async fn store(ingestion: IngestionServiceClient<Channel>, keys: &[String]) -> Result<()> {
    let times: Vec<Millis> = data::sessions(SESSIONS)?
        .into_iter()
        .flat_map(|open| (0..PER_SESSION as Millis).map(move |index| open + index * STEP_MS))
        .collect();
    let mut running = JoinSet::new();
    for (index, keys) in keys.chunks(PER_PUT).enumerate() {
        if running.len() == PUTS {
            running.join_next().await.context("some run")???;
        }
        let (mut ingestion, keys, times) = (ingestion.clone(), keys.to_vec(), times.clone());
        running.spawn(async move {
            let batch = |(place, key): (usize, &String)| CandleBatch {
                instrument_key: key.clone(),
                timeframe: "5m".to_owned(),
                candles: candles(&times, (index * PER_PUT + place) as f64),
                ..Default::default()
            };
            let batches = keys.iter().enumerate().map(batch).collect();
            ingestion.put_candle_batches(PutCandleBatchesRequest { batches }).await.map(|_| ())
        });
    }
    while let Some(stored) = running.join_next().await {
        stored??;
    }
    Ok(())
}

/// Waves of a length and a height that differ from instrument to instrument.
fn candles(times: &[Millis], number: f64) -> Vec<Candle> {
    let price = |row: usize| 100.0 + number + ((row as f64 / (7.0 + number % 50.0)).sin() * 400.0).round() * 0.05;
    let candle = |(row, at): (usize, &Millis)| {
        let (open, close) = (price(row), price(row + 1));
        Candle {
            open_time: Some(Timestamp { seconds: at / 1000, nanos: 0 }),
            open,
            high: open.max(close) + 0.05,
            low: open.min(close) - 0.05,
            close,
            volume: 100.0 + (row % 900) as f64,
            open_interest: None,
        }
    };
    times.iter().enumerate().map(candle).collect()
}

fn at_rest(metrics: &str) -> Result<bool> {
    let mut stream = TcpStream::connect(metrics)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let is_watched = |line: &&str| AT_REST.iter().any(|name| line.starts_with(name));
    let mut values = text.lines().filter(is_watched).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(values.all(|value| value == 0.0))
}

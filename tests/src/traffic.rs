//! Constant load on a mesh that is being hurt: writers, readers and watchers that go on through every failure, and a tally of how
//! calls ended. A failure is a matter of counting; a wrong answer, or a code that is no answer to a fault, is a violation.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use market::Candle;
use mesh::client::MeshChannel;
use proto::aggregation::GetCandlesRequest;
use proto::aggregation::aggregation_service_client::AggregationServiceClient;
use proto::convert::{candle as candle_of, wire_candle};
use proto::indicator::ComputeIndicatorsRequest;
use proto::indicator::indicator_service_client::IndicatorServiceClient;
use proto::ingestion::change_service_client::ChangeServiceClient;
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{CandleBatch, PutCandlesRequest, WatchChangesRequest};
use proto::wire::{BucketCandle, Column};
use tokio::sync::watch;
use tonic::{Code, Request, Status};

use crate::made_up::Numbers;
use crate::witness::{Witness, minute_of_now};

/// A call that takes longer is given up; its write may or may not have happened.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failure, so that a mesh that is away is not asked thousands of times.
pub(crate) const FAILURE_PAUSE: Duration = Duration::from_millis(25);
/// Pause between two reads, so that readers leave writers their share of the machine.
const READ_PAUSE: Duration = Duration::from_millis(10);
/// Pause between two writes of now.
const WRITE_PAUSE: Duration = Duration::from_millis(20);
/// A watch stream says something at least every 15 s; one that is silent for longer is dead.
pub(crate) const SILENCE: Duration = Duration::from_secs(20);
/// Violations kept for the report.
const MAX_VIOLATIONS: usize = 20;
/// Minutes of the day that writers meet on.
const MINUTES: u64 = 1440;
/// Most minutes of one write.
const MAX_WRITE: u64 = 60;

/// Counts of what happened, and what should not have.
#[derive(Debug, Default)]
pub struct Tally {
    counts: Mutex<BTreeMap<String, u64>>,
    violations: Mutex<Vec<String>>,
}

impl Tally {
    pub fn count(&self, what: &str) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(what.to_owned()).or_default() += 1;
    }

    pub fn violation(&self, what: String) {
        let mut violations = self.violations.lock().unwrap_or_else(PoisonError::into_inner);
        if violations.len() < MAX_VIOLATIONS {
            violations.push(what);
        }
    }

    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts a failure by its code. What the client's own transport says is no answer of the mesh.
    pub(crate) fn failure(&self, call: &str, status: &Status) {
        let own = std::error::Error::source(status).is_some();
        self.count(&format!(
            "{call}: {}",
            if own { "connection lost".to_owned() } else { format!("{:?}", status.code()) }
        ));
        let is_proper = matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::ResourceExhausted | Code::Aborted
        );
        if !own && !is_proper {
            self.violation(format!("{call} failed with {:?}: {}", status.code(), status.message()));
        }
    }
}

/// What every part of the load needs.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// Where the gateway is now.
    pub gateway: watch::Receiver<String>,
    pub stop: watch::Receiver<bool>,
    pub witness: Arc<Witness>,
    pub tally: Arc<Tally>,
}

/// Key of a written instrument.
pub fn key(instrument: usize) -> String {
    format!("CRYPTO|FAULT{instrument}")
}

/// Index of a written instrument.
pub fn instrument(key: &str) -> Option<usize> {
    key.strip_prefix("CRYPTO|FAULT")?.parse().ok()
}

/// An instrument that nobody writes to, and what must be answered of it, whatever happens around.
#[derive(Debug, Clone)]
pub struct Still {
    pub key: String,
    pub candles: Vec<BucketCandle>,
    pub columns: Vec<Column>,
}

impl Traffic {
    pub(crate) fn channel(&self) -> Result<MeshChannel> {
        Ok(mesh::client::connect(&self.gateway.borrow())?)
    }

    pub(crate) fn is_over(&self) -> bool {
        *self.stop.borrow()
    }

    /// The outcome of a call, or `None` when it was given up.
    pub(crate) async fn call<T>(
        &self,
        name: &str,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Option<T> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(answer)) => {
                self.tally.count(&format!("{name}: answered"));
                return Some(answer.into_inner());
            }
            Ok(Err(status)) => self.tally.failure(name, &status),
            Err(_) => self.tally.count(&format!("{name}: given up after {} s", CALL_TIMEOUT.as_secs())),
        }
        tokio::time::sleep(FAILURE_PAUSE).await;
        None
    }

    /// Writes to an instrument of its own and to one it shares, until the end.
    pub async fn write(self, seed: u64, own: usize, shared: usize) -> Result<()> {
        let mut numbers = Numbers::from_seed(seed);
        while !self.is_over() {
            let instrument = if numbers.below(2) == 0 { own } else { shared };
            let (first, count) = (numbers.below(MINUTES) as i64, 1 + numbers.below(MAX_WRITE) as i64);
            self.put(instrument, first..first + count).await?;
        }
        Ok(())
    }

    /// Writes minutes of now, as feeds do, to instruments of its own, until the end: what forms, what has just passed, and late data.
    pub async fn write_now(self, seed: u64, own: std::ops::Range<usize>) -> Result<()> {
        let mut numbers = Numbers::from_seed(seed);
        while !self.is_over() {
            let instrument = own.start + numbers.below(own.len() as u64) as usize;
            let this_minute = minute_of_now();
            let minutes = match numbers.below(8) {
                0 => this_minute - 1..this_minute,
                1 => this_minute - 3..this_minute + 1,
                _ => this_minute..this_minute + 1,
            };
            self.put(instrument, minutes).await?;
            tokio::time::sleep(WRITE_PAUSE).await;
        }
        Ok(())
    }

    /// One write. Whether it was acknowledged.
    pub async fn put(&self, instrument: usize, minutes: std::ops::Range<i64>) -> Result<bool> {
        let write = self.witness.begin(instrument, minutes);
        let candles = write.candles();
        let batch = CandleBatch {
            instrument_key: key(instrument),
            timeframe: "1m".to_owned(),
            candles: candles.iter().map(wire_candle).collect(),
            ..Default::default()
        };
        let mut client = IngestionServiceClient::new(self.channel()?);
        let answer = self.call("write", client.put_candles(PutCandlesRequest { batch: Some(batch) })).await;
        let Some(outcome) = answer.and_then(|answer| answer.outcome) else { return Ok(false) };
        if !outcome.rejected.is_empty() || outcome.stored + outcome.unchanged != candles.len() as u64 {
            self.tally.violation(format!("{} good rows were acknowledged as {outcome:?}", candles.len()));
        }
        self.witness.acknowledge(&write, outcome.revision);
        Ok(true)
    }

    /// Reads written instruments and judges what it gets, until the end.
    pub async fn read(self, seed: u64, instruments: usize) -> Result<()> {
        let mut numbers = Numbers::from_seed(seed);
        while !self.is_over() {
            let instrument = numbers.below(instruments as u64) as usize;
            let engine = ["v1", "v2"][numbers.below(2) as usize];
            self.read_once(instrument, engine).await?;
            tokio::time::sleep(READ_PAUSE).await;
        }
        Ok(())
    }

    /// Reads a whole instrument. `None` where it was not answered; else its candles, judged.
    pub async fn read_once(&self, instrument: usize, engine: &'static str) -> Result<Option<Vec<Candle>>> {
        let mut client =
            AggregationServiceClient::new(self.channel()?).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
        let request =
            GetCandlesRequest { instrument_key: key(instrument), timeframe: "1m".to_owned(), ..Default::default() };
        let begun = self.witness.now();
        let Some(answer) = self.call("read", client.get_candles(forced(request, engine))).await else {
            return Ok(None);
        };
        let candles: Vec<Candle> = answer.candles.iter().map(plain).collect::<Result<_>>()?;
        if let Some(wrong) = self.witness.judge(instrument, &candles, begun) {
            self.tally.violation(format!("read by {engine} of revision {}: {wrong}", answer.revision));
        }
        Ok(Some(candles))
    }

    /// Asks for candles and indicators of an instrument that does not change, until the end.
    pub async fn read_still(self, seed: u64, still: Still) -> Result<()> {
        let mut numbers = Numbers::from_seed(seed);
        while !self.is_over() {
            let engine = ["v1", "v2"][numbers.below(2) as usize];
            if let Some(candles) = self.candles(&still.key, "5m", engine).await?
                && candles != still.candles
            {
                self.tally.violation(format!("candles of {} by {engine} are not what they were", still.key));
            }
            if let Some(columns) = self.still_columns(&still.key, engine).await?
                && !same_columns(&columns, &still.columns)
            {
                self.tally.violation(format!("indicators of {} by {engine} are not what they were", still.key));
            }
            tokio::time::sleep(READ_PAUSE).await;
        }
        Ok(())
    }

    pub async fn candles(&self, key: &str, timeframe: &str, engine: &'static str) -> Result<Option<Vec<BucketCandle>>> {
        let mut client =
            AggregationServiceClient::new(self.channel()?).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
        let request =
            GetCandlesRequest { instrument_key: key.to_owned(), timeframe: timeframe.to_owned(), ..Default::default() };
        let answer = self.call("candles", client.get_candles(forced(request, engine))).await;
        Ok(answer.map(|answer| answer.candles))
    }

    pub async fn still_columns(&self, key: &str, engine: &'static str) -> Result<Option<Vec<Column>>> {
        let mut client =
            IndicatorServiceClient::new(self.channel()?).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
        let indicators = ["sma:9", "rsi:14", "bbands:20,2"].map(str::to_owned).to_vec();
        let request = ComputeIndicatorsRequest {
            instrument_key: key.to_owned(),
            timeframe: "1m".to_owned(),
            indicators,
            ..Default::default()
        };
        let answer = self.call("indicators", client.compute_indicators(forced(request, engine))).await;
        Ok(answer.map(|answer| answer.columns))
    }

    /// Follows the change log through every failure, until the end; notes each change as (sequence, instrument, revision).
    pub async fn watch_changes(self, heard: Arc<Mutex<Vec<(u64, usize, u64)>>>) -> Result<()> {
        let mut cursor = 0;
        while !self.is_over() {
            let mut client = ChangeServiceClient::new(self.channel()?);
            let request = WatchChangesRequest { after_sequence: Some(cursor), ..Default::default() };
            let Some(mut stream) = self.call("watch", client.watch_changes(request)).await else { continue };
            let mut stop = self.stop.clone();
            loop {
                let message = tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => return Ok(()),
                    message = tokio::time::timeout(SILENCE, stream.message()) => message,
                };
                let message = match message {
                    Ok(Ok(Some(message))) => message,
                    Ok(Ok(None)) => break self.tally.count("watch: ended"),
                    Ok(Err(status)) => break self.tally.failure("watch", &status),
                    Err(_) => break self.tally.violation(format!("a watch was silent for {SILENCE:?}")),
                };
                for change in &message.changes {
                    if change.sequence <= cursor {
                        self.tally.violation(format!("change {} was told after {cursor}", change.sequence));
                    }
                    cursor = change.sequence;
                    if let Some(instrument) = instrument(&change.instrument_key) {
                        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                        heard.push((change.sequence, instrument, change.revision));
                    }
                }
                cursor = cursor.max(message.sequence);
            }
            tokio::time::sleep(FAILURE_PAUSE).await;
        }
        Ok(())
    }
}

fn forced<T>(message: T, engine: &'static str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(mesh::ENGINE_HEADER, engine.parse().expect("engine names are ASCII"));
    request
}

/// A candle of one minute, without what aggregation knows besides.
fn plain(bucket: &BucketCandle) -> Result<Candle> {
    let message = proto::wire::Candle {
        open_time: bucket.open_time,
        open: bucket.open,
        high: bucket.high,
        low: bucket.low,
        close: bucket.close,
        volume: bucket.volume,
        open_interest: bucket.open_interest,
    };
    candle_of(&message).context("a candle without a time")
}

/// Engines agree on indicators to a billionth.
fn same_columns(a: &[Column], b: &[Column]) -> bool {
    let close = |x: &f64, y: &f64| (x - y).abs() <= 1e-9_f64.max(1e-9 * x.abs().max(y.abs()));
    let same = |a: &Column, b: &Column| {
        a.name == b.name
            && a.null_ranges == b.null_ranges
            && a.values.len() == b.values.len()
            && a.values.iter().zip(&b.values).all(|(x, y)| close(x, y))
    };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
}

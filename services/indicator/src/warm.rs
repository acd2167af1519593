//! The queries asked most, remembered in Redis by all replicas, and asked by one that starts before its callers do.
//!
//! A replica warms itself while it serves already: readiness must not depend on Redis or on how much there is to warm, and a caller who asks
//! meanwhile shares the computation. It computes one query at a time, for a limited time; most answers only come over from Redis.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh::cache::{Cache, Source};
use mesh::context::RequestContext;
use mesh::{Drain, Priority};
use prost::Message;
use proto::convert;
use proto::indicator::ComputeIndicatorsRequest;
use redis::{AsyncCommands, RedisResult};
use tokio::time::Instant;

use crate::engine::Indicators;
use crate::query::Query;

/// Sorted set of queries by how often they are asked, of late rather than long ago. One slot of a Cluster for both keys.
const QUERIES: &str = "{candlemesh:indicator:asked}:queries";
/// There while the scores were halved not long ago.
const HALVED: &str = "{candlemesh:indicator:asked}:halved";
/// What was asked so long ago counts half.
const HALF_LIFE_SECONDS: u64 = 6 * 60 * 60;
/// The set is forgotten when nobody has asked anything for so long.
const MAX_AGE_SECONDS: i64 = 7 * 24 * 60 * 60;
/// How often counts go to Redis.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Different queries counted between two such times; more are not counted, as by then none stands out.
const MAX_COUNTED: usize = 4096;
/// Queries remembered beyond those that will be asked, so that one that becomes popular has a place to grow.
const SPARE: usize = 4;
/// How long a starting replica waits for Redis.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Queries asked by a starting replica, labelled `outcome`: local, shared, computed, failed.
const WARMED_METRIC: &str = "candlemesh_indicator_warmed_queries_total";

/// Counts what is asked and warms.
#[derive(Debug)]
pub(crate) struct Warm {
    cache: Cache,
    /// Most queries asked at the start; 0: none, and nothing is remembered.
    queries: usize,
    patience: Duration,
    counts: Mutex<HashMap<Vec<u8>, u64>>,
}

impl Warm {
    pub(crate) fn new(cache: Cache, queries: usize, patience: Duration) -> Self {
        Self { cache, queries, patience, counts: Mutex::default() }
    }

    /// Counts a query. Those of a given revision are not: nobody asks them again.
    pub(crate) fn count(&self, query: &Query) {
        if self.queries == 0 || query.revision.is_some() {
            return;
        }
        let mut indicators: Vec<String> = query.specs.iter().map(ToString::to_string).collect();
        indicators.sort_unstable();
        indicators.dedup();
        let message = ComputeIndicatorsRequest {
            instrument_key: query.key.to_string(),
            timeframe: query.timeframe.to_string(),
            range: Some(convert::wire_range(query.range)),
            indicators,
            revision: None,
        };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = counts.len() >= MAX_COUNTED;
        let message = message.encode_to_vec();
        match counts.get_mut(&message) {
            Some(count) => *count += 1,
            None if is_full => {}
            None => {
                counts.insert(message, 1);
            }
        }
    }

    /// Warms, then tells Redis what is asked, until drained.
    pub(crate) async fn run(self: Arc<Self>, indicators: Arc<Indicators>, drain: Drain) {
        if self.queries == 0 {
            return;
        }
        let work = async {
            if tokio::time::timeout(CONNECT_PATIENCE, self.cache.connected()).await.is_ok() {
                self.warm(&indicators).await;
            }
            loop {
                tokio::time::sleep(TELL_EVERY).await;
                self.tell().await;
            }
        };
        tokio::select! {
            () = work => {}
            () = drain.started() => self.tell().await,
        }
    }

    async fn warm(&self, indicators: &Indicators) {
        let Some((mut connection, timeout)) = self.cache.connection() else { return };
        let last = isize::try_from(self.queries).unwrap_or(isize::MAX) - 1;
        let asked = connection.zrevrange::<_, Vec<Vec<u8>>>(QUERIES, 0, last);
        let Ok(Ok(asked)) = tokio::time::timeout(timeout, asked).await else { return };
        let started = Instant::now();
        let mut warmed = 0;
        for message in &asked {
            let left = self.patience.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            // Of another release, or not ours.
            let Ok(message) = ComputeIndicatorsRequest::decode(message.as_slice()) else { continue };
            let Ok(query) = Query::try_from(message) else { continue };
            let context = RequestContext {
                request_id: "warm-up".into(),
                deadline: started + self.patience,
                traceparent: None,
                decisions: None,
                priority: Priority::Background,
            };
            let outcome = tokio::time::timeout(left, context.scope(indicators.warm(&query))).await;
            let outcome = match outcome {
                Ok(Ok(Source::Local)) => "local",
                Ok(Ok(Source::Shared)) => "shared",
                Ok(Ok(Source::Computed)) => "computed",
                Ok(Err(_)) | Err(_) => "failed",
            };
            warmed += u64::from(outcome != "failed");
            metrics::counter!(WARMED_METRIC, "outcome" => outcome).increment(1);
        }
        if !asked.is_empty() {
            tracing::info!(asked = asked.len(), warmed, took = ?started.elapsed(), "the cache is warm");
        }
    }

    /// Adds what was counted; what Redis does not take is lost.
    async fn tell(&self) {
        let counts = std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        let Some((mut connection, timeout)) = self.cache.connection().filter(|_| !counts.is_empty()) else { return };
        let told = async {
            let mut pipeline = redis::pipe();
            for (message, count) in &counts {
                pipeline.zincr(QUERIES, message, *count as f64).ignore();
            }
            let most = -isize::try_from(SPARE * self.queries).unwrap_or(isize::MAX) - 1;
            pipeline.zremrangebyrank(QUERIES, 0, most).ignore().expire(QUERIES, MAX_AGE_SECONDS).ignore();
            let _: () = pipeline.query_async(&mut connection).await?;
            let is_due: Option<String> = redis::cmd("SET")
                .arg(HALVED)
                .arg(1)
                .arg("NX")
                .arg("EX")
                .arg(HALF_LIFE_SECONDS)
                .query_async(&mut connection)
                .await?;
            if is_due.is_some() {
                let mut halve = redis::cmd("ZUNIONSTORE");
                halve.arg(QUERIES).arg(1).arg(QUERIES).arg("WEIGHTS").arg(0.5);
                let _: i64 = halve.query_async(&mut connection).await?;
            }
            RedisResult::Ok(())
        };
        match tokio::time::timeout(timeout, told).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "what is asked most is not remembered"),
            Err(_) => tracing::debug!("what is asked most is not remembered in time"),
        }
    }
}

//! The RPCs: parse, one call into the engine, render.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use kernels::indicator::{Difference, Info, Parameter, Profile, Spec, Verdict, catalogue};
use mesh::cache::{Cache, Source, Statistics};
use mesh::context::at;
use mesh::engine::{Engines, answered_by};
use mesh::{Drain, Fault, MAX_MESSAGE_BYTES, Priority, RemoteError, to_status};
use prost::Message;
use proto::convert::{self, wire_column};
use proto::indicator::indicator_service_server::IndicatorService;
use proto::indicator::{
    AuditDifference, AuditIndicatorsRequest, AuditIndicatorsResponse, AuditedColumn, BatchComputeIndicatorsRequest,
    BatchComputeIndicatorsResponse, ComputeIndicatorsRequest, ComputeIndicatorsResponse, GetCacheStatisticsRequest,
    GetCacheStatisticsResponse, IndicatorInfo, InvalidateCacheRequest, InvalidateCacheResponse, ListIndicatorsRequest,
    ListIndicatorsResponse, ParameterInfo, ProfileInfo, WarmUp,
};
use proto::wire::ItemError;
use rollout::Subject;
use tonic::{Request, Response, Status};

use crate::batch::Batches;
use crate::engine::{self, Answer, Audited, Error, Indicators, Spared};
use crate::query::{self, Query};
use crate::warm::Warm;

/// Rows of one answer; a message holds no more of a few columns, and Flight carries the rest faster.
const MAX_ROWS: usize = 500_000;
const BY_FLIGHT: &str = "take it by Arrow Flight (DoGet of an IndicatorsTicket) or ask for a shorter range";

#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) indicators: Arc<Indicators>,
    pub(crate) engines: Engines,
    pub(crate) cache: Cache,
    pub(crate) batches: Batches,
    pub(crate) warm: Arc<Warm>,
    pub(crate) drain: Drain,
}

#[tonic::async_trait]
impl IndicatorService for Service {
    type BatchComputeIndicatorsStream = BoxStream<'static, Result<BatchComputeIndicatorsResponse, Status>>;

    async fn compute_indicators(
        &self,
        request: Request<ComputeIndicatorsRequest>,
    ) -> Result<Response<ComputeIndicatorsResponse>, Status> {
        let engine = self.engines.choose(Subject::Indicator, request.metadata())?;
        let query = Query::try_from(request.into_inner()).map_err(|error| to_status(&error))?;
        self.warm.count(&query);
        let answer = self.indicators.compute(engine, &query).await.and_then(|answer| render(&query, answer));
        let mut response = Response::new(answer.map_err(|error| to_status(&error))?);
        answered_by(response.metadata_mut(), engine);
        Ok(response)
    }

    async fn batch_compute_indicators(
        &self,
        request: Request<BatchComputeIndicatorsRequest>,
    ) -> Result<Response<Self::BatchComputeIndicatorsStream>, Status> {
        let engine = self.engines.choose(Subject::Indicator, request.metadata())?;
        let batch = query::batch(request.get_ref()).map_err(|error| to_status(&error))?;
        let items = self.batches.answer(engine, batch).await.map_err(|error| to_status(&error))?;
        let items = self.drain.clone().cut(items).map(|item| item?.map_err(|error| to_status(&error)));
        let mut response = Response::new(items.boxed());
        answered_by(response.metadata_mut(), engine);
        Ok(response)
    }

    async fn audit_indicators(
        &self,
        request: Request<AuditIndicatorsRequest>,
    ) -> Result<Response<AuditIndicatorsResponse>, Status> {
        let engine = self.engines.choose(Subject::Indicator, request.metadata())?;
        let query = Query::try_from(request.into_inner()).map_err(|error| to_status(&error))?;
        // Seconds of work, where much is asked: others go first.
        let audited = at(Priority::Background, self.indicators.audit(engine, &query)).await;
        let audited = audited.map_err(|error| to_status(&error))?;
        let mut response = Response::new(render_audit(&query, &audited));
        answered_by(response.metadata_mut(), engine);
        Ok(response)
    }

    async fn list_indicators(
        &self,
        _request: Request<ListIndicatorsRequest>,
    ) -> Result<Response<ListIndicatorsResponse>, Status> {
        Ok(Response::new(ListIndicatorsResponse { indicators: catalogue().iter().map(info).collect() }))
    }

    async fn get_cache_statistics(
        &self,
        _request: Request<GetCacheStatisticsRequest>,
    ) -> Result<Response<GetCacheStatisticsResponse>, Status> {
        let (statistics, spared) = (self.cache.statistics().await, self.indicators.spared().await);
        Ok(Response::new(render_statistics(&statistics, &spared)))
    }

    async fn invalidate_cache(
        &self,
        request: Request<InvalidateCacheRequest>,
    ) -> Result<Response<InvalidateCacheResponse>, Status> {
        let key = convert::instrument_key("instrument_key", &request.get_ref().instrument_key);
        let key = key.map_err(|error| to_status(&error))?;
        let dropped = self.cache.drop_tagged(&engine::entry_prefix(), key.as_str()).await;
        let shared_error = dropped.shared.as_ref().err().map(ToString::to_string);
        Ok(Response::new(InvalidateCacheResponse {
            local_entries: dropped.local,
            shared_entries: dropped.shared.ok().flatten(),
            shared_error: shared_error.unwrap_or_default(),
        }))
    }
}

fn render_statistics(statistics: &Statistics, spared: &Spared) -> GetCacheStatisticsResponse {
    GetCacheStatisticsResponse {
        local_hits: statistics.local_hits,
        shared_hits: statistics.shared_hits,
        misses: statistics.misses,
        local_entries: statistics.local_entries,
        local_bytes: statistics.local_bytes,
        local_capacity_bytes: statistics.local_capacity_bytes,
        shared_connected: statistics.shared_connected,
        shared_errors: statistics.shared_errors,
        shared_writes: statistics.shared_writes,
        dropped_writes: statistics.dropped_writes,
        shared_value_bytes: statistics.shared_value_bytes,
        shared_written_bytes: statistics.shared_written_bytes,
        hit_rate: statistics.hit_rate(),
        suffix_computations: spared.computations,
        saved_rows: spared.rows,
        series: spared.series,
        series_bytes: spared.bytes,
    }
}

fn render_audit(query: &Query, audited: &Audited) -> AuditIndicatorsResponse {
    let time = |row: usize| audited.open_time.get(row).map(|at| convert::timestamp(*at));
    let value = |value: f64| value.is_finite().then_some(value);
    let difference = |found: Difference| AuditDifference {
        open_time: time(found.row),
        cut: time(found.cut),
        whole: value(found.whole),
        part: value(found.part),
    };
    let column = |verdict: &Verdict| AuditedColumn {
        name: verdict.column.clone(),
        look_ahead: verdict.look_ahead.map(difference),
        recursive: verdict.recursive.map(difference),
        settled_after: verdict.settled_after.map(|rows| rows as u32),
        compared_values: verdict.compared as u64,
    };
    AuditIndicatorsResponse {
        instrument_key: query.key.to_string(),
        timeframe: query.timeframe.to_string(),
        revision: audited.revision,
        candle_count: audited.open_time.len() as u32,
        columns: audited.verdicts.iter().map(column).collect(),
    }
}

/// Refuses what does not fit a message.
pub(crate) fn render(query: &Query, answer: Answer) -> Result<ComputeIndicatorsResponse, Error> {
    let rows = answer.table.open_time.len();
    if rows > MAX_ROWS {
        return Err(Error::Limit { what: "rows of an answer", found: rows, limit: MAX_ROWS, way: BY_FLIGHT });
    }
    let columns = answer.table.columns.into_iter().map(|column| wire_column(&column.name, column.values));
    let message = ComputeIndicatorsResponse {
        instrument_key: answer.key.to_string(),
        timeframe: answer.timeframe.to_string(),
        revision: answer.revision,
        open_time_ms: answer.table.open_time,
        columns: columns.collect(),
        cached: answer.source != Source::Computed,
        compute_ms: answer.compute.as_secs_f64() * 1e3,
        warm_ups: query.specs.iter().map(|spec| warm_up(spec, answer.used)).collect(),
    };
    // A batch wraps the answer in a few bytes more.
    let (found, limit) = (message.encoded_len(), MAX_MESSAGE_BYTES - 1024);
    if found > limit {
        return Err(Error::Limit { what: "bytes of an answer", found, limit, way: BY_FLIGHT });
    }
    Ok(message)
}

fn warm_up(spec: &Spec, used: u64) -> WarmUp {
    WarmUp {
        indicator: spec.label().to_owned(),
        candles_needed: u32::try_from(spec.lookback() + 1).unwrap_or(u32::MAX),
        candles_used: used,
    }
}

/// An item's error says what a status of its own would.
pub(crate) fn item_error<F: Fault>(error: &F) -> ItemError {
    let RemoteError { code, reason, message, .. } = RemoteError::from_status(&to_status(error));
    ItemError { code: code as i32, reason, message }
}

fn info(info: &Info) -> IndicatorInfo {
    let ProfileInfo { summary, parameters, inputs, lookback, .. } = profile_info(Profile::default(), info);
    let profiles =
        Profile::ALL.into_iter().filter_map(|profile| Some(profile_info(profile, info.in_profile(profile)?)));
    IndicatorInfo {
        name: info.name.to_owned(),
        summary,
        parameters,
        inputs,
        // A single output is the column itself and has no suffix.
        outputs: if info.outputs.len() > 1 { names(info.outputs) } else { Vec::new() },
        lookback,
        profiles: profiles.collect(),
    }
}

/// What an indicator is where a profile is asked for.
fn profile_info(profile: Profile, info: &Info) -> ProfileInfo {
    let parameter = |parameter: &Parameter| ParameterInfo {
        name: parameter.name.to_owned(),
        default_value: parameter.default,
        min_value: parameter.min,
        max_value: parameter.max,
        integer: parameter.is_integer,
    };
    ProfileInfo {
        name: profile.name().to_owned(),
        same_as_default: info.profile == Profile::default(),
        summary: info.summary.to_owned(),
        parameters: info.parameters.iter().map(parameter).collect(),
        // The trading day is not a column of candles; it follows from their open time.
        inputs: names(info.inputs).into_iter().filter(|name| name != "day").collect(),
        lookback: info.default_lookback() as u32,
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

//! Indicators of one instrument.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use http::HeaderMap;
use proto::indicator::ComputeIndicatorsRequest;
use proto::wire::{IndicatorsTicket, frame_ticket};
use rollout::Subject;

use super::body::{Columns, IndicatorsAnswer, IndicatorsRequest};
use super::call::{self, Call};
use super::problem::{self, Problem};
use super::{PathOf, Shared, arrow, time_range};
use crate::method::{Access, Role};

/// `POST /api/v1/indicators/{instrument_key}/{timeframe}`
pub(super) async fn compute(
    State(gateway): Shared,
    headers: HeaderMap,
    path: PathOf<(String, String)>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let Path((key, timeframe)) = path.map_err(|rejection| problem::path(&rejection))?;
    let call = Call::admit(Arc::clone(&gateway), &headers, Access::Reader, "computing indicators", Some(&key))?;
    let instrument_key = call::key(&key)?.to_string();
    let timeframe = proto::convert::timeframe("timeframe", &timeframe, None)?.to_string();
    let IndicatorsRequest { start, end, indicators, as_of: revision } = call::json(&gateway, body)?;
    let range = Some(time_range(start.as_deref(), end.as_deref())?);
    if arrow::is_asked_for(&headers) {
        let ticket = IndicatorsTicket { instrument_key, timeframe, range, indicators, revision };
        return arrow::stream(call, Role::Indicator, frame_ticket::Frame::Indicators(ticket)).await;
    }
    let request = ComputeIndicatorsRequest { instrument_key, timeframe, range, indicators, revision };
    let mut client = call.indicator()?;
    let response = call.run(Role::Indicator, client.compute_indicators(request)).await?;
    let engine = call.answered(Subject::Indicator, response.metadata());
    let answer = response.into_inner();
    let rows = answer.open_time_ms.len();
    let make = move || IndicatorsAnswer {
        instrument_key: answer.instrument_key,
        timeframe: answer.timeframe,
        engine: engine.as_str(),
        revision: answer.revision,
        cached: answer.cached,
        compute_ms: answer.compute_ms,
        open_time: answer.open_time_ms.into_iter().map(market::format_millis).collect(),
        columns: Columns(answer.columns),
    };
    call.render(Some(engine), rows, make).await
}

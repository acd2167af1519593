//! The filter pipeline and group execution.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use http::{HeaderMap, Uri};
use proto::sequence::{
    self, ExecuteGroupRequest, GetTopScreenedRequest, RunFilterPipelineRequest, RunFilterPipelineResponse, Side,
    TradeIntent,
};
use rollout::Subject;

use super::body::{
    ExecuteAnswer, ExecuteRequest, Intent, ItemReason, ScreenAnswer, ScreenRejection, ScreenRequest, ScreenRow,
    StageMetrics, TopAnswer,
};
use super::call::{self, Call};
use super::candles::{pairs, unknown};
use super::problem::{self, Problem};
use super::{PathOf, Shared, time_text};
use crate::method::{Access, Role};

/// `POST /api/v1/filter-pipeline/run`
pub(super) async fn run(
    State(gateway): Shared,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    gateway.admit(&headers, Access::Reader, "screening")?;
    let ScreenRequest { instrument_keys, date, preset, stages } = call::json(&gateway, body)?;
    if !preset.is_empty() && !stages.is_empty() {
        return Err(Problem::field("stages", "either a preset or stages are accepted, not both"));
    }
    let first = instrument_keys.first().map(String::as_str);
    let call = Call::admit(Arc::clone(&gateway), &headers, Access::Reader, "screening", first)?;
    let request = RunFilterPipelineRequest { instrument_keys, date, preset, stages, parameters: None };
    let mut client = call.sequence()?;
    let response = call.run(Role::Sequence, client.run_filter_pipeline(request)).await?;
    let engine = call.answered(Subject::Sequence, response.metadata());
    let answer = response.into_inner();
    let rows = answer.bullish.len() + answer.bearish.len() + answer.rejected.len();
    call.render(Some(engine), rows, move || screened(answer)).await
}

/// `GET /api/v1/filter-pipeline/fetch/top-10`
pub(super) async fn top(State(gateway): Shared, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    let call = Call::admit(gateway, &headers, Access::Reader, "screening", None)?;
    let mut date = String::new();
    for (name, value) in pairs(&uri)? {
        match name.as_str() {
            "date" => date = value,
            _ => return Err(unknown(&name, "date")),
        }
    }
    let mut client = call.sequence()?;
    let response = call.run(Role::Sequence, client.get_top_screened(GetTopScreenedRequest { date })).await?;
    let engine = call.answered(Subject::Sequence, response.metadata());
    let answer = response.into_inner();
    let make = move || TopAnswer { date: answer.date, rows: answer.rows.into_iter().map(row).collect() };
    call.render(Some(engine), 0, make).await
}

/// `POST /api/v1/groups/{id}/execute`
pub(super) async fn execute(
    State(gateway): Shared,
    headers: HeaderMap,
    path: PathOf<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let Path(group_id) = path.map_err(|rejection| problem::path(&rejection))?;
    let call = Call::admit(Arc::clone(&gateway), &headers, Access::Writer, "executing a group", Some(&group_id))?;
    let ExecuteRequest { date, dry_run, idempotency_key } = call::json(&gateway, body)?;
    let request = ExecuteGroupRequest { group_id, date, dry_run, idempotency_key };
    let mut client = call.sequence()?;
    let response = call.run(Role::Sequence, client.execute_group(request)).await?;
    let engine = call.answered(Subject::Sequence, response.metadata());
    let answer = response.into_inner();
    let rows = answer.intents.len() + answer.skipped.len();
    let make = move || ExecuteAnswer {
        group_id: answer.group_id,
        intents: answer.intents.into_iter().map(intent).collect(),
        skipped: answer
            .skipped
            .into_iter()
            .map(|item| ItemReason { instrument_key: item.instrument_key, reason: item.reason })
            .collect(),
    };
    call.render(Some(engine), rows, make).await
}

fn intent(intent: TradeIntent) -> Intent {
    Intent {
        side: match intent.side() {
            Side::Buy => "buy",
            Side::Sell => "sell",
            Side::Unspecified => "unspecified",
        },
        created_at: time_text(intent.create_time.as_ref()),
        instrument_key: intent.instrument_key,
        entry: intent.entry,
        stop: intent.stop,
        target: intent.target,
        quantity: intent.quantity,
        reason: intent.reason,
    }
}

fn row(row: sequence::ScreenRow) -> ScreenRow {
    ScreenRow {
        instrument_key: row.instrument_key,
        last_close: row.last_close,
        mean_volume: row.mean_volume,
        ema_distance_percent: row.ema_distance_percent,
        rsi: row.rsi,
        strong_move_count: row.strong_move_count,
        strength: row.strength,
    }
}

fn screened(answer: RunFilterPipelineResponse) -> ScreenAnswer {
    let rejection = |item: sequence::ScreenRejection| ScreenRejection {
        instrument_key: item.instrument_key,
        stage: item.stage,
        reason: item.reason,
        value: item.value,
    };
    let stage = |stage: sequence::StageMetrics| StageMetrics {
        stage: stage.stage,
        processed: stage.processed,
        passed: stage.passed,
        failed: stage.failed,
        bullish: stage.bullish,
        bearish: stage.bearish,
        duration_ms: stage.duration.map_or(0.0, |time| time.seconds as f64 * 1e3 + f64::from(time.nanos) / 1e6),
    };
    ScreenAnswer {
        date: answer.date,
        bullish: answer.bullish.into_iter().map(row).collect(),
        bearish: answer.bearish.into_iter().map(row).collect(),
        rejected: answer.rejected.into_iter().map(rejection).collect(),
        metrics: answer.metrics.into_iter().map(stage).collect(),
    }
}

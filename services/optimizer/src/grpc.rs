//! The RPCs: parse, one call into the engine, render.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use mesh::clock::now;
use mesh::to_status;
use proto::convert::{self, FieldError, timestamp};
use proto::optimizer as pb;
use proto::optimizer::optimizer_service_server::OptimizerService;
use store::{StudyRecord, TrialRecord};
use tonic::{Request, Response, Status};

use crate::engine::space::MAX_TRIALS;
use crate::engine::spec::{self, Spec};
use crate::engine::trial::Figures;
use crate::engine::{Error, Studies, state};

/// Studies or trials per page where the request does not say.
const DEFAULT_PAGE_SIZE: usize = 100;
const MAX_ID_BYTES: usize = 64;

#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) studies: Arc<Studies>,
}

type Answer<T> = Result<Response<T>, Status>;

fn refuse(error: impl Into<Error>) -> Status {
    to_status(&error.into())
}

#[tonic::async_trait]
impl OptimizerService for Service {
    type WatchStudyStream = BoxStream<'static, Result<pb::WatchStudyResponse, Status>>;

    async fn create_study(&self, request: Request<pb::CreateStudyRequest>) -> Answer<pb::CreateStudyResponse> {
        let request = request.into_inner();
        let id = match request.study_id.as_str() {
            "" => uuid::Uuid::new_v4().to_string(),
            id => study_id("study_id", id).map_err(refuse)?,
        };
        let spec = request.spec.ok_or_else(|| FieldError::new("spec", "must be set")).map_err(refuse)?;
        let spec = Spec::parse(&spec).map_err(refuse)?;
        let created = self.studies.create(id, spec, now()).await.and_then(study);
        Ok(Response::new(pb::CreateStudyResponse { study: Some(created.map_err(refuse)?) }))
    }

    async fn get_study(&self, request: Request<pb::GetStudyRequest>) -> Answer<pb::GetStudyResponse> {
        let id = study_id("study_id", &request.get_ref().study_id).map_err(refuse)?;
        let found = self.studies.study(&id).await.and_then(study);
        Ok(Response::new(pb::GetStudyResponse { study: Some(found.map_err(refuse)?) }))
    }

    async fn list_studies(&self, request: Request<pb::ListStudiesRequest>) -> Answer<pb::ListStudiesResponse> {
        let request = request.into_inner();
        let size = convert::page_size(request.page_size, DEFAULT_PAGE_SIZE).map_err(refuse)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(study_id("page_token", token).map_err(refuse)?),
        };
        let (page, has_more) = self.studies.list(after.as_deref(), size).await.map_err(refuse)?;
        let next = page.last().filter(|_| has_more).map(|study| study.id.clone());
        let studies = page.into_iter().map(study).collect::<Result<_, _>>().map_err(refuse)?;
        Ok(Response::new(pb::ListStudiesResponse { studies, next_page_token: next.unwrap_or_default() }))
    }

    async fn list_trials(&self, request: Request<pb::ListTrialsRequest>) -> Answer<pb::ListTrialsResponse> {
        let request = request.into_inner();
        let id = study_id("study_id", &request.study_id).map_err(refuse)?;
        let size = convert::page_size(request.page_size, DEFAULT_PAGE_SIZE).map_err(refuse)?;
        let offset = trial_token(&request.page_token).map_err(refuse)?;
        let (page, has_more) = self.studies.trials(&id, offset, size).await.map_err(refuse)?;
        let next_page_token = if has_more { (offset + size as u64).to_string() } else { String::new() };
        let trials = page.iter().map(|record| trial(&id, record)).collect::<Result<_, _>>().map_err(refuse)?;
        Ok(Response::new(pb::ListTrialsResponse { trials, next_page_token }))
    }

    async fn watch_study(&self, request: Request<pb::WatchStudyRequest>) -> Answer<Self::WatchStudyStream> {
        let id = study_id("study_id", &request.get_ref().study_id).map_err(refuse)?;
        let updates = self.studies.watch(id.clone()).await.map_err(refuse)?;
        let render = move |(record, best): (StudyRecord, Option<TrialRecord>)| {
            let best = best.map(|best| trial(&id, &best)).transpose()?;
            Ok(pb::WatchStudyResponse { study: Some(study(record)?), best })
        };
        Ok(Response::new(updates.map(move |update| update.and_then(&render).map_err(refuse)).boxed()))
    }

    async fn cancel_study(&self, request: Request<pb::CancelStudyRequest>) -> Answer<pb::CancelStudyResponse> {
        let id = study_id("study_id", &request.get_ref().study_id).map_err(refuse)?;
        let cancelled = self.studies.cancel(&id, now()).await.and_then(study);
        Ok(Response::new(pb::CancelStudyResponse { study: Some(cancelled.map_err(refuse)?) }))
    }
}

fn study_id(field: &str, text: &str) -> Result<String, FieldError> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    if text.is_empty() || text.len() > MAX_ID_BYTES || !text.bytes().all(fits) {
        let given: String = text.chars().take(MAX_ID_BYTES).collect();
        let reason = format!("'{given}' given; accepted: 1 to {MAX_ID_BYTES} characters of [a-z0-9_-]");
        return Err(FieldError::new(field, reason));
    }
    Ok(text.to_owned())
}

/// A page of trials begins where the last one ended. Trials that come in meanwhile may move others across the border.
fn trial_token(token: &str) -> Result<u64, FieldError> {
    match token.parse() {
        _ if token.is_empty() => Ok(0),
        Ok(offset) if offset <= MAX_TRIALS => Ok(offset),
        _ => Err(FieldError::new("page_token", "is not one that was given out")),
    }
}

fn study(record: StudyRecord) -> Result<pb::Study, Error> {
    let unreadable = |reason| Error::Unreadable { id: record.id.clone(), reason };
    let (spec, _) = spec::message(&record.spec_json).map_err(unreadable)?;
    let state = match record.state.as_str() {
        state::QUEUED => pb::StudyState::Queued,
        state::RUNNING => pb::StudyState::Running,
        state::COMPLETED => pb::StudyState::Completed,
        state::FAILED => pb::StudyState::Failed,
        state::CANCELLED => pb::StudyState::Cancelled,
        other => return Err(unreadable(format!("state '{other}'"))),
    };
    Ok(pb::Study {
        spec: Some(spec),
        state: state.into(),
        trials_done: record.progress_done as u32,
        trials_total: record.progress_total as u32,
        create_time: Some(timestamp(record.created_at)),
        update_time: Some(timestamp(record.updated_at)),
        error: record.error.unwrap_or_default(),
        study_id: record.id,
    })
}

fn trial(id: &str, record: &TrialRecord) -> Result<pb::Trial, Error> {
    let unreadable = |error: serde_json::Error| Error::Unreadable {
        id: id.to_owned(),
        reason: format!("trial {}: {error}", record.number),
    };
    let named: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&record.parameters_json).map_err(unreadable)?;
    let figures: Figures = serde_json::from_str(&record.result_json).map_err(unreadable)?;
    let value = |(name, value): (String, serde_json::Value)| pb::ParameterValue {
        name,
        value: value.as_f64().unwrap_or_default(),
    };
    Ok(pb::Trial {
        number: record.number as u32,
        parameters: named.into_iter().map(value).collect(),
        objective: record.objective,
        total_return: figures.total_return,
        sharpe: figures.sharpe,
        max_drawdown: figures.max_drawdown,
        win_rate: figures.win_rate,
        trade_count: figures.trade_count,
        in_sample: figures.walk.as_ref().map(|walk| walk.in_sample),
        out_of_sample: figures.walk.as_ref().map(|walk| walk.out_of_sample),
        overfit: figures.walk.as_ref().map(|walk| walk.overfit),
    })
}

//! Backfill jobs: parse, one call, render.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use mesh::clock::now;
use mesh::{Drain, to_status};
use proto::convert::{self, FieldError, timestamp};
use proto::ingestion as pb;
use proto::ingestion::backfill_service_server::BackfillService;
use store::{BackfillFileRecord, BackfillRecord, BackfillState};
use tonic::{Request, Response, Status};

use super::{Answer, DEFAULT_PAGE_SIZE};
use crate::backfill::{Backfills, Error, NewJob, Report, Wish};

/// Longest request id: a UUID with room to spare.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Implements `BackfillService`.
#[derive(Debug)]
pub(crate) struct BackfillCalls {
    backfills: Arc<Backfills>,
    drain: Drain,
}

impl BackfillCalls {
    pub(crate) fn new(backfills: Arc<Backfills>, drain: Drain) -> Self {
        Self { backfills, drain }
    }

    async fn wish(&self, id: &str, wish: Wish) -> Result<Option<pb::Backfill>, Status> {
        let id = backfill_id("backfill_id", id).map_err(refuse)?;
        let job = self.backfills.wish(&id, wish, now()).await.map_err(refuse)?;
        Ok(Some(wire_job(job)))
    }
}

fn refuse(error: impl Into<Error>) -> Status {
    to_status(&error.into())
}

#[tonic::async_trait]
impl BackfillService for BackfillCalls {
    type WatchBackfillStream = BoxStream<'static, Result<pb::WatchBackfillResponse, Status>>;

    async fn create_backfill(&self, request: Request<pb::CreateBackfillRequest>) -> Answer<pb::CreateBackfillResponse> {
        let job = new_job(request.into_inner()).map_err(refuse)?;
        let id = uuid::Uuid::new_v4().to_string();
        let job = self.backfills.create(id, job, now()).await.map_err(refuse)?;
        Ok(Response::new(pb::CreateBackfillResponse { backfill: Some(wire_job(job)) }))
    }

    async fn get_backfill(&self, request: Request<pb::GetBackfillRequest>) -> Answer<pb::GetBackfillResponse> {
        let request = request.into_inner();
        let id = backfill_id("backfill_id", &request.backfill_id).map_err(refuse)?;
        let page_size = convert::page_size(request.page_size, DEFAULT_PAGE_SIZE).map_err(refuse)?;
        let after = file_token(&request.page_token).map_err(refuse)?;
        let job = self.backfills.get(&id).await.map_err(refuse)?;
        let (page, has_more) = self.backfills.files(&id, after, page_size).await.map_err(refuse)?;
        let next = page.last().filter(|_| has_more).map(|file| file.number.to_string());
        let files = page.into_iter().map(|file| wire_file(file, job.state)).collect();
        let next_page_token = next.unwrap_or_default();
        Ok(Response::new(pb::GetBackfillResponse { backfill: Some(wire_job(job)), files, next_page_token }))
    }

    async fn list_backfills(&self, request: Request<pb::ListBackfillsRequest>) -> Answer<pb::ListBackfillsResponse> {
        let request = request.into_inner();
        let page_size = convert::page_size(request.page_size, DEFAULT_PAGE_SIZE).map_err(refuse)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(backfill_id("page_token", token).map_err(refuse)?),
        };
        let (page, has_more) = self.backfills.list(after.as_deref(), page_size).await.map_err(refuse)?;
        let next = page.last().filter(|_| has_more).map(|job| job.id.clone());
        let backfills = page.into_iter().map(wire_job).collect();
        Ok(Response::new(pb::ListBackfillsResponse { backfills, next_page_token: next.unwrap_or_default() }))
    }

    async fn watch_backfill(&self, request: Request<pb::WatchBackfillRequest>) -> Answer<Self::WatchBackfillStream> {
        let id = backfill_id("backfill_id", &request.get_ref().backfill_id).map_err(refuse)?;
        let updates = Arc::clone(&self.backfills).watch(&id).await.map_err(refuse)?;
        let render = |job: Result<BackfillRecord, Error>| match job {
            Ok(job) => Ok(pb::WatchBackfillResponse { backfill: Some(wire_job(job)) }),
            Err(error) => Err(refuse(error)),
        };
        // The outer result is the drain's, the inner one the job's.
        let cut = self.drain.clone().cut(updates.map(render).boxed());
        Ok(Response::new(cut.map(|item| item.and_then(|update| update)).boxed()))
    }

    async fn pause_backfill(&self, request: Request<pb::PauseBackfillRequest>) -> Answer<pb::PauseBackfillResponse> {
        let backfill = self.wish(&request.get_ref().backfill_id, Wish::Pause).await?;
        Ok(Response::new(pb::PauseBackfillResponse { backfill }))
    }

    async fn resume_backfill(&self, request: Request<pb::ResumeBackfillRequest>) -> Answer<pb::ResumeBackfillResponse> {
        let backfill = self.wish(&request.get_ref().backfill_id, Wish::Resume).await?;
        Ok(Response::new(pb::ResumeBackfillResponse { backfill }))
    }

    async fn cancel_backfill(&self, request: Request<pb::CancelBackfillRequest>) -> Answer<pb::CancelBackfillResponse> {
        let backfill = self.wish(&request.get_ref().backfill_id, Wish::Cancel).await?;
        Ok(Response::new(pb::CancelBackfillResponse { backfill }))
    }
}

fn new_job(request: pb::CreateBackfillRequest) -> Result<NewJob, FieldError> {
    let format = match request.format.as_str() {
        "" => formats::Format::Auto,
        name => name.parse().map_err(|error| FieldError::new("format", error))?,
    };
    let instrument = match request.instrument_key.as_str() {
        "" => None,
        key => Some(convert::instrument_key("instrument_key", key)?),
    };
    let timeframe = match request.timeframe.as_str() {
        "" => None,
        text => Some(convert::timeframe("timeframe", text, None)?),
    };
    let id = &request.request_id;
    if id.len() > MAX_REQUEST_ID_BYTES || id.chars().any(char::is_control) {
        let reason = format!("accepted: up to {MAX_REQUEST_ID_BYTES} bytes without control characters");
        return Err(FieldError::new("request_id", reason));
    }
    let given = |text: String| (!text.is_empty()).then_some(text);
    Ok(NewJob {
        path: request.path,
        format,
        instrument,
        timeframe,
        manifest: given(request.manifest),
        dry_run: request.dry_run,
        request_id: given(request.request_id),
    })
}

/// Ids are given out here; what is of another form cannot be one.
fn backfill_id(field: &str, text: &str) -> Result<String, FieldError> {
    match uuid::Uuid::try_parse(text) {
        Ok(id) => Ok(id.to_string()),
        Err(_) => {
            let given: String = text.chars().take(40).collect();
            Err(FieldError::new(field, format!("'{given}' is none that was given out")))
        }
    }
}

fn file_token(token: &str) -> Result<Option<u64>, FieldError> {
    match token {
        "" => Ok(None),
        token => token
            .parse::<u32>()
            .map(|number| Some(number.into()))
            .map_err(|_| FieldError::new("page_token", "is none that was given out")),
    }
}

fn wire_state(state: BackfillState) -> pb::BackfillState {
    match state {
        BackfillState::Queued => pb::BackfillState::Queued,
        BackfillState::Running => pb::BackfillState::Running,
        BackfillState::Paused => pb::BackfillState::Paused,
        BackfillState::Done => pb::BackfillState::Done,
        BackfillState::Failed => pb::BackfillState::Failed,
        BackfillState::Cancelled => pb::BackfillState::Cancelled,
    }
}

fn wire_job(job: BackfillRecord) -> pb::Backfill {
    // There are at most 100 000 files.
    let files = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    pb::Backfill {
        state: wire_state(job.state).into(),
        backfill_id: job.id,
        path: job.path,
        format: job.format,
        dry_run: job.dry_run,
        files_total: files(job.files_total),
        files_done: files(job.files_done),
        files_failed: files(job.files_failed),
        rows_read: job.counts.rows_read,
        stored: job.counts.stored,
        unchanged: job.counts.unchanged,
        rejected: job.counts.rejected,
        bytes_total: job.bytes_total,
        bytes_read: job.counts.bytes_read,
        create_time: Some(timestamp(job.created_at)),
        update_time: Some(timestamp(job.updated_at)),
        error: job.error.unwrap_or_default(),
    }
}

fn wire_file(file: BackfillFileRecord, job: BackfillState) -> pb::BackfillFile {
    // A file that has not ended is no further than its job.
    let state = match (file.state.is_ended(), job) {
        (true, _) | (false, BackfillState::Running) => file.state,
        (false, job) => job,
    };
    let report = Report::of_json(&file.details_json);
    let rejected = report.rejected.into_iter();
    pb::BackfillFile {
        path: file.path,
        state: wire_state(state).into(),
        format: file.format,
        rows_read: file.counts.rows_read,
        stored: file.counts.stored,
        unchanged: file.counts.unchanged,
        rejected: file.counts.rejected,
        first_rejected: rejected.map(|reason| pb::RejectedRow { row: reason.line, reason: reason.reason }).collect(),
        error: file.error.unwrap_or_default(),
        instrument_keys: report.instruments,
    }
}

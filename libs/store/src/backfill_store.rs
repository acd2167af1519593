//! Backfill jobs and their files: a queue that several workers share by leases.

use std::fmt::Debug;

use async_trait::async_trait;
use market::Millis;

use crate::{Error, Result};

/// State of a job or of one of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackfillState {
    /// Waiting for a worker.
    Queued,
    Running,
    Paused,
    Done,
    Failed,
    Cancelled,
}

impl BackfillState {
    pub const ALL: [BackfillState; 6] = [
        BackfillState::Queued,
        BackfillState::Running,
        BackfillState::Paused,
        BackfillState::Done,
        BackfillState::Failed,
        BackfillState::Cancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            BackfillState::Queued => "queued",
            BackfillState::Running => "running",
            BackfillState::Paused => "paused",
            BackfillState::Done => "done",
            BackfillState::Failed => "failed",
            BackfillState::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more happens by itself, and a pause makes no sense.
    pub fn is_ended(self) -> bool {
        matches!(self, BackfillState::Done | BackfillState::Failed | BackfillState::Cancelled)
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let found = BackfillState::ALL.into_iter().find(|state| state.as_str() == text);
        found.ok_or_else(|| Error::internal(format!("backfill state '{text}'")))
    }
}

/// What a running job was asked to become; its worker sees it at the next chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackfillRequest {
    Pause,
    Cancel,
}

impl BackfillRequest {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            BackfillRequest::Pause => "pause",
            BackfillRequest::Cancel => "cancel",
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        match text {
            "pause" => Ok(BackfillRequest::Pause),
            "cancel" => Ok(BackfillRequest::Cancel),
            other => Err(Error::internal(format!("backfill request '{other}'"))),
        }
    }
}

/// Rows and bytes, of a file or summed over a job's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BackfillCounts {
    pub bytes_read: u64,
    pub rows_read: u64,
    pub stored: u64,
    pub unchanged: u64,
    pub rejected: u64,
}

/// A job as stored. The specification belongs to ingestion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackfillRecord {
    pub id: String,
    /// The client's name for the call that created it.
    pub request_id: Option<String>,
    pub state: BackfillState,
    pub requested: Option<BackfillRequest>,
    pub path: String,
    pub format: String,
    pub spec_json: String,
    pub dry_run: bool,
    pub files_total: u64,
    /// Ended, well or not.
    pub files_done: u64,
    pub files_failed: u64,
    pub bytes_total: u64,
    pub counts: BackfillCounts,
    pub created_at: Millis,
    pub updated_at: Millis,
    /// Why it failed, or paused by itself, for people.
    pub error: Option<String>,
}

/// A job to be created.
#[derive(Debug, Clone)]
pub struct NewBackfill {
    pub id: String,
    pub request_id: Option<String>,
    pub path: String,
    pub format: String,
    pub spec_json: String,
    pub dry_run: bool,
}

/// A file of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackfillFileRecord {
    /// Position in the job's order of files; with the job the identity of the file.
    pub number: u64,
    pub path: String,
    pub state: BackfillState,
    pub format: String,
    pub size_bytes: u64,
    /// When the file was last modified, in nanoseconds since the epoch.
    pub modified_ns: i64,
    pub counts: BackfillCounts,
    /// Candles that the file's reader has handed over and that are acknowledged.
    pub candles_taken: u64,
    /// Rows the reader could not read, that are accounted for.
    pub unreadable_taken: u64,
    /// Revision of the instrument before the chunk under way, so that a chunk stored but not acknowledged can be counted as if it
    /// had been stored once.
    pub pending_revision: Option<u64>,
    /// Ingestion's: first rejected rows, instruments.
    pub details_json: String,
    pub error: Option<String>,
}

/// The right to run a job, until it expires or another worker takes it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackfillLease {
    pub id: String,
    /// Rises with every claim: a write under an older one is refused.
    pub fence: u64,
}

/// A change of state from outside, made only if the job is still as it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackfillChange {
    pub from: (BackfillState, Option<BackfillRequest>),
    pub to: (BackfillState, Option<BackfillRequest>),
    pub failed_files: FailedFiles,
}

/// What becomes of the files that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailedFiles {
    Keep,
    /// They go on where they stopped.
    Requeue,
}

/// How a worker lets go of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackfillRelease {
    pub state: BackfillState,
    pub error: Option<String>,
    pub expected: ExpectedRequest,
}

/// What must not have changed for a release to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedRequest {
    /// Whatever was requested meanwhile stays requested.
    Any,
    /// This is what the release answers to; it is no longer requested after.
    Exactly(Option<BackfillRequest>),
}

/// Backfill jobs.
///
/// Workers claim a job, write under the lease, and release it. `now` and the expiries are the workers' clocks: clocks apart by more
/// than a lease make a job change hands needlessly, and the fence keeps even that correct.
#[async_trait]
pub trait BackfillStore: Send + Sync + Debug {
    /// Stores a queued job with its files. Where the request id is known already, nothing is stored and the job that has it
    /// is returned.
    ///
    /// Errors: `AlreadyExists` when the id is taken.
    async fn create_backfill(
        &self,
        job: &NewBackfill,
        files: &[BackfillFileRecord],
        now: Millis,
    ) -> Result<BackfillRecord>;

    async fn backfill(&self, id: &str) -> Result<Option<BackfillRecord>>;

    async fn backfill_by_request(&self, request_id: &str) -> Result<Option<BackfillRecord>>;

    /// Jobs newest first (by creation, then id descending), after a job's id. An unknown id gives nothing.
    async fn list_backfills(&self, after: Option<&str>, limit: usize) -> Result<Vec<BackfillRecord>>;

    /// Files of a job by number, after a number.
    async fn backfill_files(&self, id: &str, after: Option<u64>, limit: usize) -> Result<Vec<BackfillFileRecord>>;

    /// How many jobs are in each state, in the order of [`BackfillState::ALL`].
    async fn count_backfills(&self) -> Result<[u64; 6]>;

    /// Changes state and request of a job. One that is queued again has no error any more.
    ///
    /// Errors: `NotFound`; `Conflict` when it is not in the expected ones.
    async fn change_backfill(&self, id: &str, change: &BackfillChange, now: Millis) -> Result<BackfillRecord>;

    /// Takes the oldest job that is queued, or running under an expired lease. Of concurrent claimers one gets it.
    async fn claim_backfill(
        &self,
        owner: &str,
        expires_at: Millis,
        now: Millis,
    ) -> Result<Option<(BackfillRecord, BackfillLease)>>;

    /// Prolongs a lease, and says what is requested of the job.
    ///
    /// Errors: `Conflict` when the job is in other hands.
    async fn renew_backfill(&self, lease: &BackfillLease, expires_at: Millis) -> Result<Option<BackfillRequest>>;

    /// The first file that has not ended.
    async fn next_backfill_file(&self, id: &str) -> Result<Option<BackfillFileRecord>>;

    /// Replaces a file's record, moves the job's sums by the difference, prolongs the lease, and says what is requested of the job;
    /// all in one transaction.
    ///
    /// Errors: `Conflict` when the job is in other hands; `NotFound` for the file.
    async fn save_backfill_file(
        &self,
        lease: &BackfillLease,
        file: &BackfillFileRecord,
        expires_at: Millis,
        now: Millis,
    ) -> Result<Option<BackfillRequest>>;

    /// Ends a lease. Whether it counted: it does not when something other than expected is requested of the job.
    ///
    /// Errors: `Conflict` when the job is in other hands.
    async fn release_backfill(&self, lease: &BackfillLease, release: &BackfillRelease, now: Millis) -> Result<bool>;
}

/// The error of a job that another worker, or nobody, runs now.
pub(crate) fn lost(lease: &BackfillLease) -> Error {
    let expected = format!("lease {}", lease.fence);
    Error::Conflict { what: "backfill", id: lease.id.clone(), expected, found: "another one".to_owned() }
}

/// The error of a job that is not as it was seen.
pub(crate) fn changed(id: &str, change: &BackfillChange, found: &BackfillRecord) -> Error {
    let shown = |(state, requested): (BackfillState, Option<BackfillRequest>)| match requested {
        None => state.as_str().to_owned(),
        Some(requested) => format!("{} and asked to {}", state.as_str(), requested.as_str()),
    };
    Error::Conflict {
        what: "backfill",
        id: id.to_owned(),
        expected: shown(change.from),
        found: shown((found.state, found.requested)),
    }
}

/// What a changed file adds to its job's sums, signed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) files_done: i64,
    pub(crate) files_failed: i64,
    pub(crate) bytes_total: i64,
    pub(crate) bytes_read: i64,
    pub(crate) rows_read: i64,
    pub(crate) stored: i64,
    pub(crate) unchanged: i64,
    pub(crate) rejected: i64,
}

impl Difference {
    pub(crate) fn between(old: &BackfillFileRecord, new: &BackfillFileRecord) -> Self {
        let apart = |old: u64, new: u64| new.wrapping_sub(old) as i64;
        let failed = |file: &BackfillFileRecord| u64::from(file.state == BackfillState::Failed);
        Difference {
            files_done: apart(old.state.is_ended().into(), new.state.is_ended().into()),
            files_failed: apart(failed(old), failed(new)),
            bytes_total: apart(old.size_bytes, new.size_bytes),
            bytes_read: apart(old.counts.bytes_read, new.counts.bytes_read),
            rows_read: apart(old.counts.rows_read, new.counts.rows_read),
            stored: apart(old.counts.stored, new.counts.stored),
            unchanged: apart(old.counts.unchanged, new.counts.unchanged),
            rejected: apart(old.counts.rejected, new.counts.rejected),
        }
    }
}

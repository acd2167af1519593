//! Backfill jobs: files of a folder, loaded by workers that share a queue in the database.
//!
//! Map: the calls here; `backfill/job.rs` how a job's state may change; `backfill/files.rs` which files it reads; `backfill/worker.rs`
//! who runs it; `backfill/load.rs` one file, chunk by chunk; `backfill/reading.rs` the thread that parses; `backfill/report.rs` what is
//! told of a file; `backfill/retry.rs` how long to wait for a database.

mod files;
mod job;
mod load;
mod reading;
mod report;
mod retry;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use market::Millis;
use mesh::Fault;
use proto::convert::FieldError;
use store::{BackfillFileRecord, BackfillRecord, BackfillState, BackfillStore, NewBackfill};
use tokio::sync::Notify;
use tonic::Code;

use crate::engine::{self, Engine};
pub(crate) use job::Wish;
use job::{Decision, Spec, decide};
pub(crate) use report::Report;

/// Jobs that have not ended: they are a queue, and a queue has a limit.
const MAX_OPEN_JOBS: u64 = 1000;
/// How often a watched job is looked at: a few times a second.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// How often a change of state is decided anew when the worker is faster.
const MAX_DECISIONS: usize = 16;

/// Why a call about backfills was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "this server has no backfill folder; set ingestion.backfill_folder (CANDLEMESH_INGESTION__BACKFILL_FOLDER) to the \
         folder whose files may be loaded"
    )]
    NoFolder,
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("path '{path}' does not exist below the backfill folder")]
    UnknownPath { path: String },
    #[error("'{path}' of the backfill folder cannot be read")]
    Folder { path: String, source: std::io::Error },
    #[error("path: more than {limit} files are below it; name a folder inside it")]
    TooManyFiles { limit: usize },
    #[error("{given} backfills have not ended, and there may be {limit}; let some end, or cancel them")]
    TooManyJobs { given: u64, limit: u64 },
    #[error("backfill '{id}' is not known")]
    UnknownBackfill { id: String },
    #[error("backfill '{id}' is {found} and cannot be {wish}")]
    NotPossible { id: String, found: &'static str, wish: &'static str },
    #[error("the reading of the folder was interrupted")]
    Interrupted,
    #[error(transparent)]
    Engine(#[from] engine::Error),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Error::Engine(error.into())
    }
}

impl Fault for Error {
    fn code(&self) -> Code {
        match self {
            Error::NoFolder | Error::NotPossible { .. } => Code::FailedPrecondition,
            Error::Field(error) => error.code(),
            Error::UnknownPath { .. } | Error::UnknownBackfill { .. } => Code::NotFound,
            Error::Folder { .. } | Error::Interrupted => Code::Unavailable,
            Error::TooManyFiles { .. } | Error::TooManyJobs { .. } => Code::ResourceExhausted,
            Error::Engine(error) => error.code(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Error::NoFolder => "NO_BACKFILL_FOLDER",
            Error::NotPossible { .. } => "BACKFILL_STATE",
            Error::Field(error) => error.reason(),
            Error::UnknownPath { .. } => "UNKNOWN_PATH",
            Error::UnknownBackfill { .. } => "UNKNOWN_BACKFILL",
            Error::Folder { .. } => "BACKFILL_FOLDER_UNREADABLE",
            Error::Interrupted => "DRAINING",
            Error::TooManyFiles { .. } | Error::TooManyJobs { .. } => "LIMIT_EXCEEDED",
            Error::Engine(error) => error.reason(),
        }
    }

    fn field(&self) -> Option<String> {
        match self {
            Error::Field(error) => Fault::field(error),
            Error::UnknownPath { .. } | Error::TooManyFiles { .. } => Some("path".to_owned()),
            Error::Engine(error) => error.field(),
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Engine(error) => error.retry_after(),
            _ => None,
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// How jobs are run here.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Absent: no jobs are taken.
    pub(crate) folder: Option<PathBuf>,
    pub(crate) workers: usize,
    pub(crate) lease: Duration,
    /// Failures in a row after which a file is given up.
    pub(crate) attempts: u32,
}

/// What a caller wants loaded; every text parsed.
#[derive(Debug)]
pub(crate) struct NewJob {
    pub(crate) path: String,
    pub(crate) format: formats::Format,
    pub(crate) instrument: Option<market::InstrumentKey>,
    pub(crate) timeframe: Option<market::Timeframe>,
    pub(crate) manifest: Option<String>,
    pub(crate) dry_run: bool,
    pub(crate) request_id: Option<String>,
}

/// The jobs, and the workers of this process.
#[derive(Debug)]
pub(crate) struct Backfills {
    engine: Arc<Engine>,
    store: Arc<dyn BackfillStore>,
    settings: Settings,
    /// Wakes this process's workers; those of others find out by asking.
    wake: Notify,
}

impl Backfills {
    pub(crate) fn new(engine: Arc<Engine>, store: Arc<dyn BackfillStore>, settings: Settings) -> Self {
        Self { engine, store, settings, wake: Notify::new() }
    }

    fn folder(&self) -> Result<&Path> {
        self.settings.folder.as_deref().ok_or(Error::NoFolder)
    }

    /// Creates a job of the files that are there now, or finds the one of an earlier call with the same request id.
    pub(crate) async fn create(&self, id: String, job: NewJob, now: Millis) -> Result<BackfillRecord> {
        let folder = self.folder()?.to_path_buf();
        if let Some(request_id) = &job.request_id
            && let Some(known) = self.store.backfill_by_request(request_id).await?
        {
            return Ok(known);
        }
        let [queued, running, paused, ..] = self.store.count_backfills().await?;
        let given = queued + running + paused;
        if given >= MAX_OPEN_JOBS {
            return Err(Error::TooManyJobs { given, limit: MAX_OPEN_JOBS });
        }
        let (path, manifest) = (job.path.clone(), job.manifest.clone());
        let listing = tokio::task::spawn_blocking(move || {
            let manifest = manifest.as_deref().map(|manifest| read_manifest(&folder, manifest)).transpose()?;
            files::list(&folder, &path, &manifest.map(|(path, _)| no_candles(path)).unwrap_or_default())
        });
        let files = listing.await.map_err(|_| Error::Interrupted)??;
        let spec = Spec {
            instrument_key: job.instrument.map(|key| key.to_string()),
            timeframe: job.timeframe.map(|timeframe| timeframe.to_string()),
            manifest: job.manifest,
        };
        let new = NewBackfill {
            id,
            request_id: job.request_id,
            path: job.path,
            format: job.format.to_string(),
            spec_json: serde_json::to_string(&spec).unwrap_or_default(),
            dry_run: job.dry_run,
        };
        let created = self.store.create_backfill(&new, &files, now).await?;
        tracing::info!(backfill = created.id, files = created.files_total, "backfill queued");
        self.wake.notify_one();
        Ok(created)
    }

    pub(crate) async fn get(&self, id: &str) -> Result<BackfillRecord> {
        let found = self.store.backfill(id).await?;
        found.ok_or_else(|| Error::UnknownBackfill { id: id.to_owned() })
    }

    /// A page of a job's files after a number, and whether there are more.
    pub(crate) async fn files(
        &self,
        id: &str,
        after: Option<u64>,
        page_size: usize,
    ) -> Result<(Vec<BackfillFileRecord>, bool)> {
        let mut page = self.store.backfill_files(id, after, page_size + 1).await?;
        let has_more = page.len() > page_size;
        page.truncate(page_size);
        Ok((page, has_more))
    }

    /// A page of jobs, newest first, and whether there are more.
    pub(crate) async fn list(&self, after: Option<&str>, page_size: usize) -> Result<(Vec<BackfillRecord>, bool)> {
        let mut page = self.store.list_backfills(after, page_size + 1).await?;
        let has_more = page.len() > page_size;
        page.truncate(page_size);
        Ok((page, has_more))
    }

    /// The job now, and whenever it has changed, until it has ended.
    pub(crate) async fn watch(self: Arc<Self>, id: &str) -> Result<BoxStream<'static, Result<BackfillRecord>>> {
        let first = self.get(id).await?;
        let rest = stream::try_unfold((self, first.clone()), |(backfills, last)| async move {
            if last.state.is_ended() {
                return Ok(None);
            }
            loop {
                tokio::time::sleep(WATCH_INTERVAL).await;
                let next = backfills.get(&last.id).await?;
                if next != last {
                    return Ok(Some((next.clone(), (backfills, next))));
                }
            }
        });
        Ok(stream::once(async { Ok(first) }).chain(rest).boxed())
    }

    /// Does what is wished, or asks the job's worker to.
    pub(crate) async fn wish(&self, id: &str, wish: Wish, now: Millis) -> Result<BackfillRecord> {
        let mut job = self.get(id).await?;
        for _ in 0..MAX_DECISIONS {
            let change = match decide(job.state, job.requested, wish) {
                Decision::Nothing => return Ok(job),
                Decision::Refused => break,
                Decision::Change(change) => change,
            };
            match self.store.change_backfill(id, &change, now).await {
                Ok(changed) => {
                    if changed.state == BackfillState::Queued {
                        self.wake.notify_one();
                    }
                    return Ok(changed);
                }
                // The worker was faster: what holds for the job as it is now?
                Err(store::Error::Conflict { .. }) => job = self.get(id).await?,
                Err(error) => return Err(error.into()),
            }
        }
        let found = match job.requested {
            Some(store::BackfillRequest::Cancel) => "being cancelled",
            _ => job.state.as_str(),
        };
        Err(Error::NotPossible { id: id.to_owned(), found, wish: wish.as_str() })
    }
}

/// What lies in the folder of a manifest and holds no candles: itself, and splits and dividends, which a job does not put.
fn no_candles(manifest: PathBuf) -> Vec<PathBuf> {
    let actions = manifest.with_file_name(formats::ACTIONS_NAME);
    vec![manifest, actions]
}

/// Where the manifest is, and what it says.
fn read_manifest(folder: &Path, manifest: &str) -> Result<(PathBuf, formats::Manifest)> {
    let path = files::resolve(folder, "manifest", manifest)?;
    let refuse = |reason: String| FieldError::new("manifest", reason);
    files::stamp(&path).map_err(|reason| refuse(format!("'{manifest}' {reason}")))?;
    let read = formats::Manifest::read(&path);
    let read = read.map_err(|error| refuse(error.to_string().replace(&path.display().to_string(), manifest)))?;
    Ok((path, read))
}

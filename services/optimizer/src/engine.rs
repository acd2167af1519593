//! Studies as their callers see them: created, listed, watched, cancelled. `engine/run.rs` runs them.

mod data;
mod queue;
mod run;
pub(crate) mod space;
pub(crate) mod spec;
pub(crate) mod trial;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use market::{InstrumentKey, Millis};
use mesh::{Drain, Fault, RemoteError};
use proto::convert::FieldError;
use store::{StudyProgress, StudyRecord, TrialOrder, TrialRecord};
use tokio::task::JoinSet;
use tonic::Code;

use crate::{Clock, Config, Ports};
use queue::Queue;
use run::{Ending, Runner};
use spec::Spec;

/// State names in the store.
pub(crate) mod state {
    pub(crate) const QUEUED: &str = "queued";
    pub(crate) const RUNNING: &str = "running";
    pub(crate) const COMPLETED: &str = "completed";
    pub(crate) const FAILED: &str = "failed";
    pub(crate) const CANCELLED: &str = "cancelled";

    pub(crate) fn is_ended(state: &str) -> bool {
        state != QUEUED && state != RUNNING
    }
}

/// Look-ups of instruments at once, while a study is checked.
const LOOKUPS: usize = 8;
/// How long a cancellation waits for the last chunk, so that its answer counts it.
const CANCEL_WAIT: Duration = Duration::from_secs(1);
/// Times a cancellation tries again when the study changes under it: it can at most begin to run and end.
const CANCEL_ATTEMPTS: usize = 4;
/// How long the caller of a full queue is told to wait: a small study takes seconds.
const QUEUE_RETRY: Duration = Duration::from_secs(5);
const STORE_RETRY: Duration = Duration::from_millis(200);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("instrument '{0}' is not known")]
    UnknownInstrument(InstrumentKey),
    #[error("study '{0}' does not exist")]
    UnknownStudy(String),
    #[error("study '{0}' exists with another specification")]
    OtherSpec(String),
    #[error("{0} studies are waiting, which is the limit")]
    QueueFull(usize),
    #[error(transparent)]
    Upstream(#[from] RemoteError),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("study '{id}' is stored in a form that cannot be read: {reason}")]
    Unreadable { id: String, reason: String },
    #[error("the service is draining; the study goes on with its next start")]
    Draining,
}

impl Fault for Error {
    fn code(&self) -> Code {
        match self {
            Error::Field(error) => error.code(),
            Error::UnknownInstrument(_) | Error::UnknownStudy(_) => Code::NotFound,
            Error::OtherSpec(_) => Code::AlreadyExists,
            Error::QueueFull(_) => Code::ResourceExhausted,
            Error::Upstream(error) => error.code(),
            Error::Store(store::Error::Unavailable(_)) | Error::Draining => Code::Unavailable,
            Error::Store(store::Error::Conflict { .. }) => Code::Aborted,
            Error::Store(store::Error::Full(_)) => Code::ResourceExhausted,
            Error::Store(_) | Error::Unreadable { .. } => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Error::Field(error) => error.reason(),
            Error::UnknownInstrument(_) => "UNKNOWN_INSTRUMENT",
            Error::UnknownStudy(_) => "UNKNOWN_STUDY",
            Error::OtherSpec(_) => "STUDY_EXISTS",
            Error::QueueFull(_) => "QUEUE_FULL",
            Error::Upstream(error) => error.reason(),
            Error::Store(store::Error::Unavailable(_)) => "STORE_UNAVAILABLE",
            Error::Store(store::Error::Conflict { .. }) => "CONFLICT",
            Error::Store(store::Error::Full(_)) => "STORE_FULL",
            Error::Store(_) => "STORE_FAULT",
            Error::Unreadable { .. } => "UNREADABLE_STUDY",
            Error::Draining => "DRAINING",
        }
    }

    fn field(&self) -> Option<String> {
        match self {
            Error::Field(error) => Fault::field(error),
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::QueueFull(_) => Some(QUEUE_RETRY),
            Error::Store(store::Error::Unavailable(_)) | Error::Draining => Some(STORE_RETRY),
            _ => None,
        }
    }

    fn remote(&self) -> Option<&RemoteError> {
        match self {
            Error::Upstream(error) => Some(error),
            _ => None,
        }
    }
}

/// All studies: the stored ones, and those waiting or running here.
#[derive(Debug)]
pub(crate) struct Studies {
    runner: Runner,
    queue: Arc<Queue>,
    drain: Drain,
}

impl Studies {
    pub(crate) fn new(ports: Ports, config: Config, clock: Clock, drain: Drain) -> Arc<Studies> {
        let queue = Queue::new(config.max_queued);
        Arc::new(Studies { runner: Runner { ports, config, clock }, queue, drain })
    }

    /// Stores and queues a study. The same id with the same specification gives the study that exists.
    pub(crate) async fn create(self: &Arc<Self>, id: String, spec: Spec, now: Millis) -> Result<StudyRecord, Error> {
        if let Some(found) = self.same(&id, &spec).await? {
            return Ok(found);
        }
        self.check_instruments(&spec.keys).await?;
        let revisions = self.runner.ports.master.revisions(&spec.keys).await?;
        let unreadable = |reason| Error::Unreadable { id: id.clone(), reason };
        let study = StudyRecord {
            id: id.clone(),
            name: spec.space.family().name().to_owned(),
            state: state::QUEUED.to_owned(),
            spec_json: spec.store(revisions).map_err(unreadable)?,
            created_at: now,
            updated_at: now,
            progress_done: 0,
            progress_total: spec.search.trials(&spec.space),
            error: None,
        };
        let place = self.queue.reserve().ok_or(Error::QueueFull(self.queue.limit()))?;
        let studies = Arc::clone(self);
        // Not undone by a caller who leaves: a study that is stored is also queued.
        let created = mesh::context::spawn(async move {
            studies.runner.ports.studies.create_study(&study).await?;
            studies.queue.push(&study.id);
            drop(place);
            Ok(study)
        });
        match created.await {
            Ok(Ok(study)) => Ok(study),
            Ok(Err(store::Error::AlreadyExists { .. })) => self.same(&id, &spec).await?.ok_or(Error::UnknownStudy(id)),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Error::Draining),
        }
    }

    async fn same(&self, id: &str, spec: &Spec) -> Result<Option<StudyRecord>, Error> {
        let Some(found) = self.runner.ports.studies.study(id).await? else {
            return Ok(None);
        };
        match spec.is_stored_as(&found.spec_json) {
            Ok(true) => Ok(Some(found)),
            Ok(false) => Err(Error::OtherSpec(found.id)),
            Err(reason) => Err(Error::Unreadable { id: found.id, reason }),
        }
    }

    async fn check_instruments(&self, keys: &[InstrumentKey]) -> Result<(), Error> {
        let check = |key: InstrumentKey| async move {
            match self.runner.ports.master.instrument(&key).await {
                Ok(_) => Ok(()),
                Err(error) if error.code == Code::NotFound => Err(Error::UnknownInstrument(key)),
                Err(error) => Err(Error::Upstream(error)),
            }
        };
        stream::iter(keys.to_vec()).map(check).buffered(LOOKUPS).try_collect().await
    }

    pub(crate) async fn study(&self, id: &str) -> Result<StudyRecord, Error> {
        let found = self.runner.ports.studies.study(id).await?;
        found.ok_or_else(|| Error::UnknownStudy(id.to_owned()))
    }

    /// A page, newest first, and whether more follow.
    pub(crate) async fn list(&self, after: Option<&str>, size: usize) -> Result<(Vec<StudyRecord>, bool), Error> {
        let mut page = self.runner.ports.studies.list_studies(after, size + 1).await?;
        let has_more = page.len() > size;
        page.truncate(size);
        Ok((page, has_more))
    }

    /// A page, best first, and whether more follow.
    pub(crate) async fn trials(&self, id: &str, offset: u64, size: usize) -> Result<(Vec<TrialRecord>, bool), Error> {
        self.study(id).await?;
        let mut page = self.runner.ports.studies.trials(id, TrialOrder::BestFirst { offset }, size + 1).await?;
        let has_more = page.len() > size;
        page.truncate(size);
        Ok((page, has_more))
    }

    async fn best(&self, id: &str) -> Result<Option<TrialRecord>, Error> {
        let best = self.runner.ports.studies.trials(id, TrialOrder::BestFirst { offset: 0 }, 1).await?;
        Ok(best.into_iter().next())
    }

    /// Cancels a study unless it has ended. One that runs here stops at its chunk; elsewhere, when it next stores.
    pub(crate) async fn cancel(&self, id: &str, now: Millis) -> Result<StudyRecord, Error> {
        let mut attempt = 1;
        loop {
            let study = self.study(id).await?;
            if state::is_ended(&study.state) {
                return Ok(study);
            }
            let progress = StudyProgress {
                state: state::CANCELLED.to_owned(),
                progress_done: study.progress_done,
                progress_total: study.progress_total,
                error: None,
                updated_at: now,
            };
            match self.runner.ports.studies.update_study_state(id, Some(&study.state), &progress).await {
                Ok(()) => break,
                Err(store::Error::Conflict { .. }) if attempt < CANCEL_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.into()),
            }
        }
        let live = self.queue.live(id);
        self.queue.cancel(id);
        if let Some(live) = live {
            live.left(CANCEL_WAIT).await;
        }
        self.study(id).await
    }

    /// Takes up what an earlier process left, then runs studies until drained. Dropped, it stops at once and loses at most the trials
    /// not stored yet, which the next start makes again.
    pub(crate) async fn work(self: Arc<Self>) {
        let mut workers = JoinSet::new();
        workers.spawn(Arc::clone(&self).take_up());
        for _ in 0..self.runner.config.max_concurrent_studies.max(1) {
            workers.spawn(Arc::clone(&self).run_studies());
        }
        while let Some(ended) = workers.join_next().await {
            // A defect met in one study must not take the place of all later ones; that study stays as it was stored.
            if ended.is_err_and(|error| error.is_panic()) {
                tracing::error!("a study's worker panicked; another takes its place");
                workers.spawn(Arc::clone(&self).run_studies());
            }
        }
    }

    async fn take_up(self: Arc<Self>) {
        loop {
            match self.runner.ports.studies.unfinished_studies(&[state::QUEUED, state::RUNNING]).await {
                Ok(left) => return left.iter().for_each(|study| self.queue.push(&study.id)),
                Err(error) => tracing::warn!(error = mesh::fault::chain(&error), "stored studies cannot be read now"),
            }
            if self.pause().await.is_none() {
                return;
            }
        }
    }

    async fn run_studies(self: Arc<Self>) {
        loop {
            let (id, live) = tokio::select! {
                biased;
                () = self.drain.started() => return,
                taken = self.queue.take() => taken,
            };
            let ending = self.runner.run(&id, &live, &self.drain).await;
            self.queue.finish(&id);
            if ending == Ending::Again {
                if self.pause().await.is_none() {
                    return;
                }
                self.queue.push(&id);
            }
        }
    }

    /// Waits out a database that is away; `None` when drained meanwhile.
    async fn pause(&self) -> Option<()> {
        tokio::select! {
            () = self.drain.started() => None,
            () = tokio::time::sleep(self.runner.config.max_retry_pause) => Some(()),
        }
    }
}

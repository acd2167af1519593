//! Workers: each claims a job, runs it file by file, and lets go of it.

use std::path::PathBuf;
use std::time::Duration;

use market::{Millis, Timeframe};
use mesh::Drain;
use mesh::clock::now;
use mesh::fault::chain;
use store::{
    BackfillFileRecord, BackfillLease, BackfillRecord, BackfillRelease, BackfillRequest, BackfillState, ExpectedRequest,
};
use tokio::sync::watch;

use super::{Backfills, Error, job::Spec, read_manifest, retry};

/// How often an idle worker asks for jobs that other replicas have queued or lost.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the jobs are counted for the metric.
const COUNT_INTERVAL: Duration = Duration::from_secs(15);

/// Jobs in the database by state; every replica tells the same.
const JOBS_METRIC: &str = "candlemesh_backfill_jobs";
/// Waits for a database that did not answer.
const RETRIES_METRIC: &str = "candlemesh_backfill_retries_total";

/// Why a job's work ends here.
#[derive(Debug)]
pub(super) enum Stop {
    Requested(BackfillRequest),
    /// Another worker has the job now.
    Lost,
    Draining,
    /// Going on makes no sense before somebody has done something about this.
    Blocked(String),
    /// The job ends as failed, whatever its files.
    Failed(String),
}

/// A job in this worker's hands.
pub(super) struct Held<'a> {
    pub(super) backfills: &'a Backfills,
    pub(super) record: BackfillRecord,
    pub(super) lease: BackfillLease,
    pub(super) folder: PathBuf,
    pub(super) drain: &'a Drain,
    /// What the heartbeat last saw requested.
    seen: &'a watch::Sender<Option<BackfillRequest>>,
}

/// What holds for all files of a job.
pub(super) struct Plan {
    pub(super) instrument: Option<market::InstrumentKey>,
    pub(super) timeframe: Option<Timeframe>,
    pub(super) format: formats::Format,
    pub(super) manifest: Option<formats::Manifest>,
}

impl Backfills {
    /// Runs this process's workers until drained; each finishes the chunk under way and hands its job back.
    pub(crate) async fn work(&self, drain: &Drain) {
        let Some(folder) = &self.settings.folder else { return };
        let workers = (0..self.settings.workers).map(|number| self.worker(number, folder, drain));
        futures::future::join(futures::future::join_all(workers), self.keep_counted(drain)).await;
    }

    async fn worker(&self, number: usize, folder: &std::path::Path, drain: &Drain) {
        let owner = format!("{}-{number}", uuid::Uuid::new_v4());
        let mut failures = 0;
        while !drain.is_started() {
            let claimed = self.store.claim_backfill(&owner, self.expiry(), now()).await;
            let pause = match claimed {
                Ok(Some((record, lease))) => {
                    failures = 0;
                    self.hold(record, lease, folder.to_path_buf(), drain).await;
                    continue;
                }
                Ok(None) => {
                    failures = 0;
                    IDLE_INTERVAL
                }
                Err(error) => {
                    failures += 1;
                    if failures == 1 {
                        tracing::warn!(error = chain(&error), "backfills cannot be claimed now");
                    }
                    retry::wait(failures).max(IDLE_INTERVAL)
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = drain.started() => {}
            }
        }
    }

    /// When a lease taken or prolonged now expires.
    pub(super) fn expiry(&self) -> Millis {
        now().saturating_add(Millis::try_from(self.settings.lease.as_millis()).unwrap_or(Millis::MAX))
    }

    async fn hold(&self, record: BackfillRecord, lease: BackfillLease, folder: PathBuf, drain: &Drain) {
        tracing::info!(backfill = record.id, fence = lease.fence, "backfill taken up");
        let seen = watch::Sender::new(record.requested);
        let held = Held { backfills: self, record, lease: lease.clone(), folder, drain, seen: &seen };
        let running = async {
            loop {
                let stop = held.files().await.err();
                if held.let_go(stop).await {
                    return;
                }
            }
        };
        // A worker that no longer has its job stops where it is: what it would write is refused anyway.
        tokio::select! {
            () = running => {}
            () = self.keep_lease(&lease, &seen) => {
                tracing::warn!(backfill = lease.id, fence = lease.fence, "backfill was taken over by another worker");
            }
        }
    }

    /// Prolongs the lease for as long as it is held.
    async fn keep_lease(&self, lease: &BackfillLease, seen: &watch::Sender<Option<BackfillRequest>>) {
        loop {
            tokio::time::sleep(self.settings.lease / 3).await;
            match self.store.renew_backfill(lease, self.expiry()).await {
                Ok(requested) => {
                    seen.send_if_modified(|last| std::mem::replace(last, requested) != requested);
                }
                Err(store::Error::Conflict { .. }) => return,
                // The work itself notices and waits.
                Err(error) => tracing::debug!(error = chain(&error), "lease not prolonged"),
            }
        }
    }

    async fn keep_counted(&self, drain: &Drain) {
        while !drain.is_started() {
            if let Ok(counts) = self.store.count_backfills().await {
                for (state, count) in BackfillState::ALL.into_iter().zip(counts) {
                    metrics::gauge!(JOBS_METRIC, "state" => state.as_str()).set(count as f64);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(COUNT_INTERVAL) => {}
                () = drain.started() => {}
            }
        }
    }
}

impl Held<'_> {
    /// Runs what is left of the job, until every file has ended.
    async fn files(&self) -> Result<(), Stop> {
        let backfills = self.backfills;
        let renewed = self.persist(|| backfills.store.renew_backfill(&self.lease, backfills.expiry())).await?;
        self.seen.send_replace(renewed);
        self.obey(renewed)?;
        let plan = self.plan().await?;
        while let Some(file) = self.persist(|| backfills.store.next_backfill_file(&self.lease.id)).await? {
            self.load(&plan, file).await?;
        }
        Ok(())
    }

    async fn plan(&self) -> Result<Plan, Stop> {
        let unreadable = |error: &dyn std::fmt::Display| Stop::Failed(format!("the job's record: {error}"));
        let spec: Spec = serde_json::from_str(&self.record.spec_json).map_err(|error| unreadable(&error))?;
        let manifest = match spec.manifest.clone() {
            None => None,
            Some(name) => {
                let folder = self.folder.clone();
                let read = tokio::task::spawn_blocking(move || read_manifest(&folder, &name)).await;
                let read = read.map_err(|_| Stop::Draining)?;
                Some(read.map_err(|error: Error| Stop::Failed(error.to_string()))?.1)
            }
        };
        Ok(Plan {
            instrument: spec.instrument().map_err(|error| unreadable(&error))?,
            timeframe: spec.timeframe().map_err(|error| unreadable(&error))?,
            format: self.record.format.parse().map_err(|error| unreadable(&error))?,
            manifest,
        })
    }

    /// Stops where something is requested.
    pub(super) fn obey(&self, requested: Option<BackfillRequest>) -> Result<(), Stop> {
        match requested {
            _ if self.drain.is_started() => Err(Stop::Draining),
            None => Ok(()),
            Some(requested) => Err(Stop::Requested(requested)),
        }
    }

    /// Writes a file's record and prolongs the lease; stops where something is requested.
    pub(super) async fn save(&self, file: &BackfillFileRecord) -> Result<(), Stop> {
        let requested = self.persist_file(file).await?;
        self.obey(requested)
    }

    /// Writes a file's record and prolongs the lease; what is requested of the job.
    pub(super) async fn persist_file(&self, file: &BackfillFileRecord) -> Result<Option<BackfillRequest>, Stop> {
        let backfills = self.backfills;
        self.persist(|| backfills.store.save_backfill_file(&self.lease, file, backfills.expiry(), now())).await
    }

    /// Writes or reads the job's own record, for as long as it takes: without it there is no going on.
    async fn persist<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, Stop>
    where
        F: Future<Output = store::Result<T>>,
    {
        let mut failures = 0;
        loop {
            match call().await {
                Ok(value) => return Ok(value),
                Err(store::Error::Conflict { .. }) => return Err(Stop::Lost),
                Err(error @ (store::Error::Unavailable(_) | store::Error::Full(_))) => {
                    failures += 1;
                    tracing::warn!(backfill = self.lease.id, failures, error = chain(&error), "progress waits");
                    // A request cannot be seen while the record cannot be written.
                    self.wait(failures).await?;
                }
                Err(error) => return Err(Stop::Blocked(chain(&error))),
            }
        }
    }

    /// Waits before another attempt; ends early with a drain.
    async fn wait(&self, failures: u32) -> Result<(), Stop> {
        metrics::counter!(RETRIES_METRIC).increment(1);
        tokio::select! {
            () = tokio::time::sleep(retry::wait(failures)) => Ok(()),
            () = self.drain.started() => Err(Stop::Draining),
        }
    }

    /// Waits before another attempt; ends early with a drain or a request.
    pub(super) async fn wait_or_stop(&self, failures: u32) -> Result<(), Stop> {
        tokio::select! {
            waited = self.wait(failures) => waited,
            stop = self.stopped() => Err(stop),
        }
    }

    /// Resolves once there is a drain, or the heartbeat has seen a request.
    pub(super) async fn stopped(&self) -> Stop {
        let mut seen = self.seen.subscribe();
        let requested = async {
            match seen.wait_for(Option::is_some).await.map(|requested| *requested) {
                Ok(Some(requested)) => requested,
                // Cannot be: the sender lives as long as this job is held.
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.drain.started() => Stop::Draining,
            requested = requested => Stop::Requested(requested),
        }
    }

    /// Gives the job back in the state that its end deserves. Whether it is done with: a request may have changed meanwhile.
    async fn let_go(&self, stop: Option<Stop>) -> bool {
        let release = match stop {
            None => match self.outcome().await {
                Some(release) => release,
                None => return true,
            },
            Some(Stop::Lost) => return true,
            Some(Stop::Draining) => {
                BackfillRelease { state: BackfillState::Queued, error: None, expected: ExpectedRequest::Any }
            }
            Some(Stop::Requested(request)) => BackfillRelease {
                state: match request {
                    BackfillRequest::Pause => BackfillState::Paused,
                    BackfillRequest::Cancel => BackfillState::Cancelled,
                },
                error: None,
                expected: ExpectedRequest::Exactly(Some(request)),
            },
            Some(Stop::Blocked(error)) => BackfillRelease {
                state: BackfillState::Paused,
                error: Some(error),
                expected: ExpectedRequest::Exactly(None),
            },
            Some(Stop::Failed(error)) => {
                BackfillRelease { state: BackfillState::Failed, error: Some(error), expected: ExpectedRequest::Any }
            }
        };
        let store = &self.backfills.store;
        let mut released = store.release_backfill(&self.lease, &release, now()).await;
        if !self.drain.is_started() && matches!(released, Err(store::Error::Unavailable(_) | store::Error::Full(_))) {
            released = match self.persist(|| store.release_backfill(&self.lease, &release, now())).await {
                Ok(counted) => Ok(counted),
                // The lease expires by itself.
                Err(_) => return true,
            };
        }
        match released {
            Ok(true) => {
                let (state, error) = (release.state.as_str(), release.error.unwrap_or_default());
                tracing::info!(backfill = self.lease.id, state, error, "backfill let go");
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::warn!(
                    backfill = self.lease.id,
                    error = chain(&error),
                    "backfill not let go: its lease expires"
                );
                true
            }
        }
    }

    /// How a job ends whose files have all ended.
    async fn outcome(&self) -> Option<BackfillRelease> {
        let store = &self.backfills.store;
        let job = self.persist(|| store.backfill(&self.lease.id)).await.ok()??;
        let expected = ExpectedRequest::Exactly(job.requested);
        Some(match job.files_failed {
            0 => BackfillRelease { state: BackfillState::Done, error: None, expected },
            failed => {
                let error = format!("{failed} of {} files could not be read to their end", job.files_total);
                BackfillRelease { state: BackfillState::Failed, error: Some(error), expected }
            }
        })
    }
}

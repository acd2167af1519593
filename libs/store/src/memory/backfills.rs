//! Backfill jobs in maps.

use std::collections::BTreeMap;

use async_trait::async_trait;
use market::Millis;

use super::{MemoryStore, lock};
use crate::backfill_store::{Difference, changed, lost};
use crate::{
    BackfillChange, BackfillCounts, BackfillFileRecord, BackfillLease, BackfillRecord, BackfillRelease,
    BackfillRequest, BackfillState, BackfillStore, Error, ExpectedRequest, FailedFiles, MAX_PAGE_ROWS, NewBackfill,
    Result,
};

#[derive(Debug, Default)]
pub(super) struct Backfills {
    jobs: BTreeMap<String, Job>,
}

#[derive(Debug)]
struct Job {
    record: BackfillRecord,
    files: BTreeMap<u64, BackfillFileRecord>,
    expires_at: Millis,
    fence: u64,
}

impl Job {
    fn age(&self) -> (Millis, &str) {
        (self.record.created_at, &self.record.id)
    }

    fn put_file(&mut self, file: BackfillFileRecord) -> Result<()> {
        let old = self.files.get_mut(&file.number).ok_or_else(|| missing(&self.record.id, file.number))?;
        let apart = Difference::between(old, &file);
        let add = |sum: &mut u64, apart: i64| *sum = sum.wrapping_add_signed(apart);
        let record = &mut self.record;
        add(&mut record.files_done, apart.files_done);
        add(&mut record.files_failed, apart.files_failed);
        add(&mut record.bytes_total, apart.bytes_total);
        add(&mut record.counts.bytes_read, apart.bytes_read);
        add(&mut record.counts.rows_read, apart.rows_read);
        add(&mut record.counts.stored, apart.stored);
        add(&mut record.counts.unchanged, apart.unchanged);
        add(&mut record.counts.rejected, apart.rejected);
        *old = file;
        Ok(())
    }
}

impl Backfills {
    fn leased(&mut self, lease: &BackfillLease) -> Result<&mut Job> {
        let held = |job: &&mut Job| job.fence == lease.fence && job.record.state == BackfillState::Running;
        self.jobs.get_mut(&lease.id).filter(held).ok_or_else(|| lost(lease))
    }
}

fn missing(id: &str, number: u64) -> Error {
    Error::not_found("backfill file", format!("{id}/{number}"))
}

#[async_trait]
impl BackfillStore for MemoryStore {
    async fn create_backfill(
        &self,
        job: &NewBackfill,
        files: &[BackfillFileRecord],
        now: Millis,
    ) -> Result<BackfillRecord> {
        let mut backfills = lock(&self.backfills);
        let of_request = |known: &&Job| job.request_id.is_some() && known.record.request_id == job.request_id;
        if let Some(known) = backfills.jobs.values().find(of_request) {
            return Ok(known.record.clone());
        }
        if backfills.jobs.contains_key(&job.id) {
            return Err(Error::AlreadyExists { what: "backfill", id: job.id.clone() });
        }
        let record = BackfillRecord {
            id: job.id.clone(),
            request_id: job.request_id.clone(),
            state: BackfillState::Queued,
            requested: None,
            path: job.path.clone(),
            format: job.format.clone(),
            spec_json: job.spec_json.clone(),
            dry_run: job.dry_run,
            files_total: files.len() as u64,
            files_done: files.iter().filter(|file| file.state.is_ended()).count() as u64,
            files_failed: files.iter().filter(|file| file.state == BackfillState::Failed).count() as u64,
            bytes_total: files.iter().map(|file| file.size_bytes).sum(),
            counts: BackfillCounts::default(),
            created_at: now,
            updated_at: now,
            error: None,
        };
        let files = files.iter().map(|file| (file.number, file.clone())).collect();
        let stored = Job { record: record.clone(), files, expires_at: 0, fence: 0 };
        backfills.jobs.insert(job.id.clone(), stored);
        Ok(record)
    }

    async fn backfill(&self, id: &str) -> Result<Option<BackfillRecord>> {
        Ok(lock(&self.backfills).jobs.get(id).map(|job| job.record.clone()))
    }

    async fn backfill_by_request(&self, request_id: &str) -> Result<Option<BackfillRecord>> {
        let backfills = lock(&self.backfills);
        let found = backfills.jobs.values().find(|job| job.record.request_id.as_deref() == Some(request_id));
        Ok(found.map(|job| job.record.clone()))
    }

    async fn list_backfills(&self, after: Option<&str>, limit: usize) -> Result<Vec<BackfillRecord>> {
        let backfills = lock(&self.backfills);
        let mut listed: Vec<&Job> = match after {
            None => backfills.jobs.values().collect(),
            Some(id) => {
                let Some(last) = backfills.jobs.get(id) else { return Ok(Vec::new()) };
                backfills.jobs.values().filter(|job| job.age() < last.age()).collect()
            }
        };
        listed.sort_by(|a, b| b.age().cmp(&a.age()));
        Ok(listed.into_iter().take(limit.min(MAX_PAGE_ROWS)).map(|job| job.record.clone()).collect())
    }

    async fn backfill_files(&self, id: &str, after: Option<u64>, limit: usize) -> Result<Vec<BackfillFileRecord>> {
        let backfills = lock(&self.backfills);
        let Some(job) = backfills.jobs.get(id) else { return Ok(Vec::new()) };
        let listed = job.files.values().filter(|file| after.is_none_or(|after| file.number > after));
        Ok(listed.take(limit.min(MAX_PAGE_ROWS)).cloned().collect())
    }

    async fn count_backfills(&self) -> Result<[u64; 6]> {
        let backfills = lock(&self.backfills);
        let of = |state| backfills.jobs.values().filter(|job| job.record.state == state).count() as u64;
        Ok(BackfillState::ALL.map(of))
    }

    async fn change_backfill(&self, id: &str, change: &BackfillChange, now: Millis) -> Result<BackfillRecord> {
        let mut backfills = lock(&self.backfills);
        let job = backfills.jobs.get_mut(id).ok_or_else(|| Error::not_found("backfill", id))?;
        if (job.record.state, job.record.requested) != change.from {
            return Err(changed(id, change, &job.record));
        }
        (job.record.state, job.record.requested) = change.to;
        job.record.updated_at = now;
        if change.to.0 == BackfillState::Queued {
            job.record.error = None;
        }
        if change.failed_files == FailedFiles::Requeue {
            let failed = job.files.values().filter(|file| file.state == BackfillState::Failed);
            let failed: Vec<BackfillFileRecord> = failed.cloned().collect();
            for file in failed {
                job.put_file(BackfillFileRecord { state: BackfillState::Queued, error: None, ..file })?;
            }
        }
        Ok(job.record.clone())
    }

    async fn claim_backfill(
        &self,
        _owner: &str,
        expires_at: Millis,
        now: Millis,
    ) -> Result<Option<(BackfillRecord, BackfillLease)>> {
        let mut backfills = lock(&self.backfills);
        let free = |job: &&mut Job| match job.record.state {
            BackfillState::Queued => true,
            BackfillState::Running => job.expires_at < now,
            _ => false,
        };
        let oldest = backfills.jobs.values_mut().filter(free).min_by(|a, b| a.age().cmp(&b.age()));
        Ok(oldest.map(|job| {
            job.record.state = BackfillState::Running;
            job.record.updated_at = now;
            job.expires_at = expires_at;
            job.fence += 1;
            (job.record.clone(), BackfillLease { id: job.record.id.clone(), fence: job.fence })
        }))
    }

    async fn renew_backfill(&self, lease: &BackfillLease, expires_at: Millis) -> Result<Option<BackfillRequest>> {
        let mut backfills = lock(&self.backfills);
        let job = backfills.leased(lease)?;
        job.expires_at = expires_at;
        Ok(job.record.requested)
    }

    async fn next_backfill_file(&self, id: &str) -> Result<Option<BackfillFileRecord>> {
        let backfills = lock(&self.backfills);
        let files = backfills.jobs.get(id).and_then(|job| job.files.values().find(|file| !file.state.is_ended()));
        Ok(files.cloned())
    }

    async fn save_backfill_file(
        &self,
        lease: &BackfillLease,
        file: &BackfillFileRecord,
        expires_at: Millis,
        now: Millis,
    ) -> Result<Option<BackfillRequest>> {
        let mut backfills = lock(&self.backfills);
        let job = backfills.leased(lease)?;
        job.put_file(file.clone())?;
        job.expires_at = expires_at;
        job.record.updated_at = now;
        Ok(job.record.requested)
    }

    async fn release_backfill(&self, lease: &BackfillLease, release: &BackfillRelease, now: Millis) -> Result<bool> {
        let mut backfills = lock(&self.backfills);
        let job = backfills.leased(lease)?;
        if let ExpectedRequest::Exactly(expected) = release.expected {
            if job.record.requested != expected {
                return Ok(false);
            }
            job.record.requested = None;
        }
        job.record.state = release.state;
        job.record.error.clone_from(&release.error);
        job.record.updated_at = now;
        Ok(true)
    }
}

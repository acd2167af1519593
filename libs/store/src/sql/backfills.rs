//! Backfill jobs. Compiled once for each database: `super` defines `Db` and the store.

use async_trait::async_trait;
use market::Millis;
use sqlx::{QueryBuilder, Row};

use super::{Db, Store};
use crate::backfill_store::{Difference, changed, lost};
use crate::sql::{fault, page_rows, signed, unsigned};
use crate::{
    BackfillChange, BackfillCounts, BackfillFileRecord, BackfillLease, BackfillRecord, BackfillRelease,
    BackfillRequest, BackfillState, BackfillStore, Error, ExpectedRequest, FailedFiles, NewBackfill, Result,
};

/// Files per statement: seventeen values each.
const FILES_PER_STATEMENT: usize = 500;

/// Columns of a job, for a select or a returning.
macro_rules! job_columns {
    () => {
        "backfill_id, request_id, state, requested, path, format, spec, dry_run, files_total, files_done, files_failed, \
         bytes_total, bytes_read, rows_read, stored, unchanged, rejected, created_at, updated_at, error, fence"
    };
}

macro_rules! file_columns {
    () => {
        "file_number, path, state, format, size_bytes, modified_ns, bytes_read, rows_read, stored, unchanged, rejected, \
         candles_taken, unreadable_taken, pending_revision, details, error"
    };
}

type DbRow = <Db as sqlx::Database>::Row;

fn number(row: &DbRow, column: &str) -> Result<u64> {
    unsigned(row.try_get(column).map_err(fault)?)
}

fn text(row: &DbRow, column: &str) -> Result<String> {
    row.try_get(column).map_err(fault)
}

fn counts_of(row: &DbRow) -> Result<BackfillCounts> {
    Ok(BackfillCounts {
        bytes_read: number(row, "bytes_read")?,
        rows_read: number(row, "rows_read")?,
        stored: number(row, "stored")?,
        unchanged: number(row, "unchanged")?,
        rejected: number(row, "rejected")?,
    })
}

fn requested_of(row: &DbRow) -> Result<Option<BackfillRequest>> {
    let requested: Option<String> = row.try_get("requested").map_err(fault)?;
    requested.as_deref().map(BackfillRequest::parse).transpose()
}

fn job_of(row: &DbRow) -> Result<BackfillRecord> {
    Ok(BackfillRecord {
        id: text(row, "backfill_id")?,
        request_id: row.try_get("request_id").map_err(fault)?,
        state: BackfillState::parse(&text(row, "state")?)?,
        requested: requested_of(row)?,
        path: text(row, "path")?,
        format: text(row, "format")?,
        spec_json: text(row, "spec")?,
        dry_run: row.try_get::<i64, _>("dry_run").map_err(fault)? != 0,
        files_total: number(row, "files_total")?,
        files_done: number(row, "files_done")?,
        files_failed: number(row, "files_failed")?,
        bytes_total: number(row, "bytes_total")?,
        counts: counts_of(row)?,
        created_at: row.try_get("created_at").map_err(fault)?,
        updated_at: row.try_get("updated_at").map_err(fault)?,
        error: row.try_get("error").map_err(fault)?,
    })
}

fn file_of(row: &DbRow) -> Result<BackfillFileRecord> {
    let pending: Option<i64> = row.try_get("pending_revision").map_err(fault)?;
    Ok(BackfillFileRecord {
        number: number(row, "file_number")?,
        path: text(row, "path")?,
        state: BackfillState::parse(&text(row, "state")?)?,
        format: text(row, "format")?,
        size_bytes: number(row, "size_bytes")?,
        modified_ns: row.try_get("modified_ns").map_err(fault)?,
        counts: counts_of(row)?,
        candles_taken: number(row, "candles_taken")?,
        unreadable_taken: number(row, "unreadable_taken")?,
        pending_revision: pending.map(unsigned).transpose()?,
        details_json: text(row, "details")?,
        error: row.try_get("error").map_err(fault)?,
    })
}

type Tx = crate::sql::limited::Held<Db>;

async fn insert_files(tx: &mut Tx, id: &str, files: &[BackfillFileRecord]) -> Result<()> {
    for files in files.chunks(FILES_PER_STATEMENT) {
        let mut statement =
            QueryBuilder::<Db>::new(concat!("insert into backfill_file (backfill_id, ", file_columns!(), ") "));
        statement.push_values(files, |mut row, file| {
            row.push_bind(id)
                .push_bind(signed(file.number))
                .push_bind(&file.path)
                .push_bind(file.state.as_str())
                .push_bind(&file.format)
                .push_bind(signed(file.size_bytes))
                .push_bind(file.modified_ns)
                .push_bind(signed(file.counts.bytes_read))
                .push_bind(signed(file.counts.rows_read))
                .push_bind(signed(file.counts.stored))
                .push_bind(signed(file.counts.unchanged))
                .push_bind(signed(file.counts.rejected))
                .push_bind(signed(file.candles_taken))
                .push_bind(signed(file.unreadable_taken))
                .push_bind(file.pending_revision.map(signed))
                .push_bind(&file.details_json)
                .push_bind(&file.error);
        });
        statement.build().execute(&mut **tx).await.map_err(fault)?;
    }
    Ok(())
}

/// Replaces a file's record; what it was before.
async fn replace_file(tx: &mut Tx, id: &str, file: &BackfillFileRecord) -> Result<BackfillFileRecord> {
    let old = sqlx::query(concat!(
        "select ",
        file_columns!(),
        " from backfill_file where backfill_id = $1 and file_number = $2",
        for_update!()
    ))
    .bind(id)
    .bind(signed(file.number))
    .fetch_optional(&mut **tx)
    .await
    .map_err(fault)?;
    let old = old.ok_or_else(|| Error::not_found("backfill file", format!("{id}/{}", file.number)))?;
    sqlx::query(
        "update backfill_file set state = $3, format = $4, size_bytes = $5, modified_ns = $6, bytes_read = $7, \
         rows_read = $8, stored = $9, unchanged = $10, rejected = $11, candles_taken = $12, unreadable_taken = $13, \
         pending_revision = $14, details = $15, error = $16 where backfill_id = $1 and file_number = $2",
    )
    .bind(id)
    .bind(signed(file.number))
    .bind(file.state.as_str())
    .bind(&file.format)
    .bind(signed(file.size_bytes))
    .bind(file.modified_ns)
    .bind(signed(file.counts.bytes_read))
    .bind(signed(file.counts.rows_read))
    .bind(signed(file.counts.stored))
    .bind(signed(file.counts.unchanged))
    .bind(signed(file.counts.rejected))
    .bind(signed(file.candles_taken))
    .bind(signed(file.unreadable_taken))
    .bind(file.pending_revision.map(signed))
    .bind(&file.details_json)
    .bind(&file.error)
    .execute(&mut **tx)
    .await
    .map_err(fault)?;
    file_of(&old)
}

async fn move_sums(tx: &mut Tx, id: &str, apart: &Difference) -> Result<()> {
    sqlx::query(
        "update backfill set files_done = files_done + $2, files_failed = files_failed + $3, \
         bytes_total = bytes_total + $4, bytes_read = bytes_read + $5, rows_read = rows_read + $6, stored = stored + $7, \
         unchanged = unchanged + $8, rejected = rejected + $9 where backfill_id = $1",
    )
    .bind(id)
    .bind(apart.files_done)
    .bind(apart.files_failed)
    .bind(apart.bytes_total)
    .bind(apart.bytes_read)
    .bind(apart.rows_read)
    .bind(apart.stored)
    .bind(apart.unchanged)
    .bind(apart.rejected)
    .execute(&mut **tx)
    .await
    .map_err(fault)?;
    Ok(())
}

async fn requeue_failed_files(tx: &mut Tx, id: &str) -> Result<()> {
    let requeued = sqlx::query(
        "update backfill_file set state = 'queued', error = null where backfill_id = $1 and state = 'failed'",
    )
    .bind(id)
    .execute(&mut **tx)
    .await
    .map_err(fault)?;
    let files = -signed(requeued.rows_affected());
    move_sums(tx, id, &Difference { files_done: files, files_failed: files, ..Difference::default() }).await
}

#[async_trait]
impl BackfillStore for Store {
    async fn create_backfill(
        &self,
        job: &NewBackfill,
        files: &[BackfillFileRecord],
        now: Millis,
    ) -> Result<BackfillRecord> {
        let mut tx = self.begin().await?;
        let bytes_total: u64 = files.iter().map(|file| file.size_bytes).sum();
        let ended = files.iter().filter(|file| file.state.is_ended()).count() as i64;
        let failed = files.iter().filter(|file| file.state == BackfillState::Failed).count() as i64;
        // Of two calls with one request id the second waits here for the first.
        let created = sqlx::query(concat!(
            "insert into backfill (backfill_id, request_id, state, path, format, spec, dry_run, files_total, files_done, ",
            "files_failed, bytes_total, bytes_read, rows_read, stored, unchanged, rejected, created_at, updated_at, ",
            "lease_expires_at, fence) values ($1, $2, 'queued', $3, $4, $5, $6, $7, $8, $9, $10, 0, 0, 0, 0, 0, $11, $11, 0, 0) ",
            "on conflict do nothing returning ",
            job_columns!()
        ))
        .bind(&job.id)
        .bind(&job.request_id)
        .bind(&job.path)
        .bind(&job.format)
        .bind(&job.spec_json)
        .bind(i64::from(job.dry_run))
        .bind(files.len() as i64)
        .bind(ended)
        .bind(failed)
        .bind(signed(bytes_total))
        .bind(now)
        .fetch_optional(&mut *tx)
        .await
        .map_err(fault)?;
        let Some(created) = created else {
            tx.rollback().await.map_err(fault)?;
            let known = match &job.request_id {
                Some(request_id) => self.backfill_by_request(request_id).await?,
                None => None,
            };
            return known.ok_or_else(|| Error::AlreadyExists { what: "backfill", id: job.id.clone() });
        };
        insert_files(&mut tx, &job.id, files).await?;
        tx.commit().await.map_err(fault)?;
        job_of(&created)
    }

    async fn backfill(&self, id: &str) -> Result<Option<BackfillRecord>> {
        let row = sqlx::query(concat!("select ", job_columns!(), " from backfill where backfill_id = $1"))
            .bind(id)
            .fetch_optional(self.reader())
            .await
            .map_err(fault)?;
        row.as_ref().map(job_of).transpose()
    }

    async fn backfill_by_request(&self, request_id: &str) -> Result<Option<BackfillRecord>> {
        let row = sqlx::query(concat!("select ", job_columns!(), " from backfill where request_id = $1"))
            .bind(request_id)
            .fetch_optional(self.reader())
            .await
            .map_err(fault)?;
        row.as_ref().map(job_of).transpose()
    }

    async fn list_backfills(&self, after: Option<&str>, limit: usize) -> Result<Vec<BackfillRecord>> {
        let query = match after {
            None => sqlx::query(concat!(
                "select ",
                job_columns!(),
                " from backfill order by created_at desc, backfill_id desc limit $1"
            ))
            .bind(page_rows(limit)),
            Some(after) => sqlx::query(concat!(
                "select ",
                job_columns!(),
                " from backfill where (created_at, backfill_id) < (select l.created_at, l.backfill_id from backfill l ",
                "where l.backfill_id = $2) order by created_at desc, backfill_id desc limit $1"
            ))
            .bind(page_rows(limit))
            .bind(after),
        };
        query.fetch_all(self.reader()).await.map_err(fault)?.iter().map(job_of).collect()
    }

    async fn backfill_files(&self, id: &str, after: Option<u64>, limit: usize) -> Result<Vec<BackfillFileRecord>> {
        let rows = sqlx::query(concat!(
            "select ",
            file_columns!(),
            " from backfill_file where backfill_id = $1 and file_number > $2 order by file_number limit $3"
        ))
        .bind(id)
        // Numbers begin with 0.
        .bind(after.map_or(-1, signed))
        .bind(page_rows(limit))
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        rows.iter().map(file_of).collect()
    }

    async fn count_backfills(&self) -> Result<[u64; 6]> {
        let rows = sqlx::query("select state, count(*) as jobs from backfill group by state")
            .fetch_all(self.reader())
            .await
            .map_err(fault)?;
        let mut counts = [0; 6];
        for row in &rows {
            let state = BackfillState::parse(&text(row, "state")?)?;
            for (count, known) in counts.iter_mut().zip(BackfillState::ALL) {
                if known == state {
                    *count = number(row, "jobs")?;
                }
            }
        }
        Ok(counts)
    }

    async fn change_backfill(&self, id: &str, change: &BackfillChange, now: Millis) -> Result<BackfillRecord> {
        let requeues = change.failed_files == FailedFiles::Requeue;
        let mut tx = self.begin().await?;
        let changed_row = sqlx::query(
            "update backfill set state = $4, requested = $5, updated_at = $6, \
             error = case when $7 = 1 then null else error end \
             where backfill_id = $1 and state = $2 and coalesce(requested, '') = $3",
        )
        .bind(id)
        .bind(change.from.0.as_str())
        .bind(change.from.1.map_or("", BackfillRequest::as_str))
        .bind(change.to.0.as_str())
        .bind(change.to.1.map(BackfillRequest::as_str))
        .bind(now)
        .bind(i64::from(change.to.0 == BackfillState::Queued))
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
        let is_made = changed_row.rows_affected() == 1;
        if is_made && requeues {
            requeue_failed_files(&mut tx, id).await?;
        }
        let row = sqlx::query(concat!("select ", job_columns!(), " from backfill where backfill_id = $1"))
            .bind(id)
            .fetch_optional(&mut *tx)
            .await
            .map_err(fault)?;
        tx.commit().await.map_err(fault)?;
        let job = job_of(&row.ok_or_else(|| Error::not_found("backfill", id))?)?;
        if is_made { Ok(job) } else { Err(changed(id, change, &job)) }
    }

    async fn claim_backfill(
        &self,
        owner: &str,
        expires_at: Millis,
        now: Millis,
    ) -> Result<Option<(BackfillRecord, BackfillLease)>> {
        // Idle workers ask often; the writer is disturbed only when there is something to take.
        let free: Option<i64> = sqlx::query_scalar(
            "select fence from backfill where state = 'queued' or (state = 'running' and lease_expires_at < $1) limit 1",
        )
        .bind(now)
        .fetch_optional(self.reader())
        .await
        .map_err(fault)?;
        if free.is_none() {
            return Ok(None);
        }
        let row = sqlx::query(concat!(
            "update backfill set state = 'running', updated_at = $1, lease_owner = $2, lease_expires_at = $3, fence = fence + 1 ",
            "where backfill_id = (select f.backfill_id from backfill f where f.state = 'queued' ",
            "or (f.state = 'running' and f.lease_expires_at < $1) order by f.created_at, f.backfill_id limit 1",
            skip_locked!(),
            ") returning ",
            job_columns!()
        ))
        .bind(now)
        .bind(owner)
        .bind(expires_at)
        .fetch_optional(self.writer())
        .await
        .map_err(fault)?;
        let Some(row) = row else { return Ok(None) };
        let job = job_of(&row)?;
        let lease = BackfillLease { id: job.id.clone(), fence: number(&row, "fence")? };
        Ok(Some((job, lease)))
    }

    async fn renew_backfill(&self, lease: &BackfillLease, expires_at: Millis) -> Result<Option<BackfillRequest>> {
        let row = sqlx::query(
            "update backfill set lease_expires_at = $3 where backfill_id = $1 and fence = $2 and state = 'running' \
             returning requested",
        )
        .bind(&lease.id)
        .bind(signed(lease.fence))
        .bind(expires_at)
        .fetch_optional(self.writer())
        .await
        .map_err(fault)?;
        requested_of(&row.ok_or_else(|| lost(lease))?)
    }

    async fn next_backfill_file(&self, id: &str) -> Result<Option<BackfillFileRecord>> {
        let row = sqlx::query(concat!(
            "select ",
            file_columns!(),
            " from backfill_file where backfill_id = $1 and state in ('queued', 'running', 'paused') ",
            "order by file_number limit 1"
        ))
        .bind(id)
        .fetch_optional(self.reader())
        .await
        .map_err(fault)?;
        row.as_ref().map(file_of).transpose()
    }

    async fn save_backfill_file(
        &self,
        lease: &BackfillLease,
        file: &BackfillFileRecord,
        expires_at: Millis,
        now: Millis,
    ) -> Result<Option<BackfillRequest>> {
        let mut tx = self.begin().await?;
        // Locks the job: nobody can take it over before the file is written.
        let row = sqlx::query(
            "update backfill set lease_expires_at = $3, updated_at = $4 \
             where backfill_id = $1 and fence = $2 and state = 'running' returning requested",
        )
        .bind(&lease.id)
        .bind(signed(lease.fence))
        .bind(expires_at)
        .bind(now)
        .fetch_optional(&mut *tx)
        .await
        .map_err(fault)?;
        let requested = requested_of(&row.ok_or_else(|| lost(lease))?)?;
        let old = replace_file(&mut tx, &lease.id, file).await?;
        let apart = Difference::between(&old, file);
        if apart != Difference::default() {
            move_sums(&mut tx, &lease.id, &apart).await?;
        }
        tx.commit().await.map_err(fault)?;
        Ok(requested)
    }

    async fn release_backfill(&self, lease: &BackfillLease, release: &BackfillRelease, now: Millis) -> Result<bool> {
        let (answers, expected) = match release.expected {
            ExpectedRequest::Any => (0, ""),
            ExpectedRequest::Exactly(expected) => (1, expected.map_or("", BackfillRequest::as_str)),
        };
        let released = sqlx::query(
            "update backfill set state = $3, error = $4, updated_at = $5, lease_owner = null, lease_expires_at = 0, \
             requested = case when $6 = 1 then null else requested end \
             where backfill_id = $1 and fence = $2 and state = 'running' and ($6 = 0 or coalesce(requested, '') = $7)",
        )
        .bind(&lease.id)
        .bind(signed(lease.fence))
        .bind(release.state.as_str())
        .bind(&release.error)
        .bind(now)
        .bind(i64::from(answers))
        .bind(expected)
        .execute(self.writer())
        .await
        .map_err(fault)?;
        if released.rows_affected() == 1 {
            return Ok(true);
        }
        let held = sqlx::query_scalar::<_, i64>(
            "select fence from backfill where backfill_id = $1 and fence = $2 and state = 'running'",
        )
        .bind(&lease.id)
        .bind(signed(lease.fence))
        .fetch_optional(self.reader())
        .await
        .map_err(fault)?;
        match held {
            Some(_) => Ok(false),
            None => Err(lost(lease)),
        }
    }
}

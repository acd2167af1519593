//! One file of a job: read, put chunk by chunk, and accounted for so that nothing counts twice.
//!
//! Of a chunk three things are written, in this order: the instrument's revision before it, the candles, and the counts with the
//! file's new position. Whoever finds the first without the last does not know whether the candles were stored; it puts
//! them again, which is safe, and counts them by comparing them with what was stored at that revision.

use std::sync::Arc;

use market::{Calendar, InstrumentKey, Millis};
use mesh::Fault;
use mesh::clock::now;
use mesh::fault::chain;
use store::{BackfillFileRecord, BackfillState};
use tonic::Code;

use formats::{Chunk, FileSpec};

use super::reading::{self, Event, Piece, Taken};
use super::report::{Reason, Report};
use super::worker::{Held, Plan, Stop};
use super::{Error, files};
use crate::engine::{self, Batch, Outcome, Rejected};

/// Rows of backfills by outcome, as this process put them: `stored`, `unchanged` or `rejected`. Dry runs count nowhere.
const ROWS_METRIC: &str = "candlemesh_backfill_rows_total";

/// Why a chunk was not put this time.
enum Failure {
    Stop(Stop),
    Fault(engine::Error),
}

impl From<engine::Error> for Failure {
    fn from(error: engine::Error) -> Self {
        Failure::Fault(error)
    }
}

/// A file under way.
struct Loading<'a> {
    held: &'a Held<'a>,
    file: BackfillFileRecord,
    report: Report,
    /// Of the instrument, where the manifest says it.
    calendar: Option<(InstrumentKey, Arc<Calendar>)>,
}

impl Held<'_> {
    /// Loads a file from where it is, to its end or to where it fails; both are outcomes of the file.
    pub(super) async fn load(&self, plan: &Plan, mut file: BackfillFileRecord) -> Result<(), Stop> {
        let spec = match self.open(plan, &mut file).await {
            Ok(spec) => spec,
            Err(reason) => return self.end(file, Err(reason)).await,
        };
        file.state = BackfillState::Running;
        self.save(&file).await?;
        let taken = Taken { candles: file.candles_taken, unreadable: file.unreadable_taken };
        let mut events = reading::start(spec.clone(), taken);
        let report = Report::of_json(&file.details_json);
        let calendar = calendar(plan, &spec);
        let mut loading = Loading { held: self, file, report, calendar };
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                stop = self.stopped() => return Err(stop),
            };
            let (piece, outcome) = match event {
                Some(Event::Piece(piece)) => (piece, None),
                Some(Event::End(piece, outcome)) => (piece, Some(outcome)),
                None => (Piece::default(), Some(Err("the reading of it broke off; resume the job".to_owned()))),
            };
            if let Err(reason) = loading.take(piece).await? {
                return self.end(loading.file, Err(reason)).await;
            }
            match outcome {
                None => self.save(&loading.file).await?,
                Some(Err(reason)) => return self.end(loading.file, Err(reason)).await,
                Some(Ok(detected)) => {
                    loading.file.format = detected.format.to_string();
                    let unchanged = self.check_unchanged(&spec, &loading.file).await;
                    return self.end(loading.file, unchanged).await;
                }
            }
        }
    }

    /// What is to be read, from the file as it is now: one that has changed since it was last looked at is read anew.
    async fn open(&self, plan: &Plan, file: &mut BackfillFileRecord) -> Result<FileSpec, String> {
        let (folder, relative) = (self.folder.clone(), file.path.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let path = files::resolve(&folder, "path", &relative).map_err(|error: Error| chain(&error))?;
            files::stamp(&path).map(|stamp| (path, stamp))
        });
        let (path, stamp) = opened.await.map_err(|_| "the reading of it broke off".to_owned())??;
        if (stamp.size_bytes, stamp.modified_ns) != (file.size_bytes, file.modified_ns) {
            let is_begun = file.candles_taken + file.unreadable_taken > 0;
            tracing::info!(backfill = self.lease.id, file = file.path, is_begun, "file has changed and is read anew");
            *file = BackfillFileRecord {
                number: file.number,
                path: std::mem::take(&mut file.path),
                state: BackfillState::Queued,
                format: String::new(),
                size_bytes: stamp.size_bytes,
                modified_ns: stamp.modified_ns,
                counts: Default::default(),
                candles_taken: 0,
                unreadable_taken: 0,
                pending_revision: None,
                details_json: Report::default().to_json(),
                error: None,
            };
        }
        let mut spec = match plan.manifest.as_ref().and_then(|manifest| manifest.find(&path)) {
            Some(entry) => entry.spec(&path),
            None => FileSpec::new(&path),
        };
        if plan.format != formats::Format::Auto {
            spec.format = plan.format;
        }
        spec.instrument = plan.instrument.clone().or(spec.instrument);
        spec.timeframe = plan.timeframe.or(spec.timeframe);
        file.format = spec.format.to_string();
        Ok(spec)
    }

    /// What was read is one content only if the file is the same after as before.
    async fn check_unchanged(&self, spec: &FileSpec, file: &BackfillFileRecord) -> Result<(), String> {
        let path = spec.path.clone();
        let stamp = tokio::task::spawn_blocking(move || files::stamp(&path)).await;
        match stamp {
            Ok(Ok(stamp)) if (stamp.size_bytes, stamp.modified_ns) == (file.size_bytes, file.modified_ns) => Ok(()),
            _ => Err("changed while it was read; resume the job to read it anew".to_owned()),
        }
    }

    async fn end(&self, mut file: BackfillFileRecord, outcome: Result<(), String>) -> Result<(), Stop> {
        match outcome {
            Ok(()) => {
                file.state = BackfillState::Done;
                file.counts.bytes_read = file.size_bytes;
                file.error = None;
            }
            Err(reason) => {
                tracing::warn!(backfill = self.lease.id, file = file.path, reason, "file failed");
                file.state = BackfillState::Failed;
                file.error = Some(reason);
            }
        }
        self.save(&file).await
    }
}

impl Loading<'_> {
    /// Puts a piece and adds it to the file's record, which is not written yet; or says why the file cannot go on.
    async fn take(&mut self, piece: Piece) -> Result<Result<(), String>, Stop> {
        let mut outcome = Outcome::default();
        if let Some(chunk) = &piece.chunk {
            self.report.add_instrument(&chunk.instrument);
            outcome = match self.put(chunk).await? {
                Ok(outcome) => outcome,
                Err(reason) => return Ok(Err(reason)),
            };
            self.report.add_reasons(reasons(&outcome, chunk));
            self.file.candles_taken += chunk.rows.len() as u64;
            self.file.pending_revision = None;
        }
        self.report.add_reasons(piece.reasons);
        let rejected = outcome.rejected.len() as u64 + piece.unreadable;
        let counts = &mut self.file.counts;
        // Read ahead, and anew on resume; the whole file is counted when it has ended.
        counts.bytes_read = counts.bytes_read.max(piece.bytes_read.min(self.file.size_bytes));
        counts.rows_read += outcome.stored + outcome.unchanged + rejected;
        counts.stored += outcome.stored;
        counts.unchanged += outcome.unchanged;
        counts.rejected += rejected;
        self.file.unreadable_taken += piece.unreadable;
        self.file.details_json = self.report.to_json();
        if !self.held.record.dry_run {
            metrics::counter!(ROWS_METRIC, "outcome" => "stored").increment(outcome.stored);
            metrics::counter!(ROWS_METRIC, "outcome" => "unchanged").increment(outcome.unchanged);
            metrics::counter!(ROWS_METRIC, "outcome" => "rejected").increment(rejected);
        }
        Ok(Ok(()))
    }

    /// Puts a chunk, as often as it takes and may be tried.
    async fn put(&mut self, chunk: &Chunk) -> Result<Result<Outcome, String>, Stop> {
        let attempts = self.held.backfills.settings.attempts.max(1);
        let mut failures = 0;
        loop {
            let error = match self.attempt(chunk, now()).await {
                Ok(outcome) => return Ok(Ok(outcome)),
                Err(Failure::Stop(stop)) => return Err(stop),
                Err(Failure::Fault(error)) => error,
            };
            failures += 1;
            match error {
                engine::Error::Store(store::Error::Full(_)) => return Err(Stop::Blocked(chain(&error))),
                error if !passes(&error) => return Ok(Err(chain(&error))),
                error if failures >= attempts => {
                    let reason = chain(&error);
                    return Ok(Err(format!("given up after {failures} attempts: {reason}; resume the job to go on")));
                }
                error => {
                    let id = &self.held.lease.id;
                    tracing::warn!(backfill = id, failures, error = chain(&error), "chunk waits to be put again");
                    self.held.wait_or_stop(failures).await?;
                }
            }
        }
    }

    /// Puts a chunk once; the counts are those of a first put even where an earlier attempt had stored it.
    async fn attempt(&mut self, chunk: &Chunk, now: Millis) -> Result<Outcome, Failure> {
        let engine = &self.held.backfills.engine;
        let revisions = engine.revisions(std::slice::from_ref(&chunk.instrument)).await?;
        let revision = revisions.first().copied().unwrap_or_default();
        if self.held.record.dry_run {
            return Ok(engine.compare(self.batch(chunk), revision).await?);
        }
        let mut counted = None;
        match self.file.pending_revision {
            Some(before) if before == revision => {}
            Some(before) => counted = self.counted_at(before, chunk).await?,
            None => {
                self.file.pending_revision = Some(revision);
                self.held.persist_file(&self.file).await.map_err(Failure::Stop)?;
            }
        }
        let outcome = engine.put(self.batch(chunk), now).await?;
        Ok(counted.unwrap_or(outcome))
    }

    fn batch(&self, chunk: &Chunk) -> Batch {
        let given = self.calendar.as_ref().filter(|(key, _)| *key == chunk.instrument);
        Batch {
            key: chunk.instrument.clone(),
            timeframe: chunk.timeframe,
            calendar: given.map(|(_, calendar)| Arc::clone(calendar)),
            rows: chunk.rows.iter().copied().map(Some).collect(),
            first_row: 0,
        }
    }

    /// What a put of the chunk would have come to at a revision; nothing where that is no longer kept.
    async fn counted_at(&self, revision: u64, chunk: &Chunk) -> Result<Option<Outcome>, Failure> {
        match self.held.backfills.engine.compare(self.batch(chunk), revision).await {
            Ok(outcome) => Ok(Some(outcome)),
            Err(engine::Error::Store(store::Error::Expired { .. } | store::Error::Invalid { .. })) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether the same call may succeed a little later.
fn passes(error: &engine::Error) -> bool {
    matches!(error, engine::Error::Pool(_))
        || matches!(error.code(), Code::Unavailable | Code::Aborted | Code::DeadlineExceeded)
}

/// The calendar that the manifest gives the instrument of a file; nothing where the job is told another instrument.
fn calendar(plan: &Plan, spec: &FileSpec) -> Option<(InstrumentKey, Arc<Calendar>)> {
    let entry = plan.manifest.as_ref()?.find(&spec.path)?;
    let calendar = Calendar::by_name(entry.calendar?).ok()?;
    (spec.instrument.as_ref() == Some(&entry.instrument)).then(|| (entry.instrument.clone(), calendar))
}

/// Rejections by line, where the engine names rows of the chunk.
fn reasons(outcome: &Outcome, chunk: &Chunk) -> Vec<Reason> {
    let line = |row: u64| usize::try_from(row).ok().and_then(|row| chunk.lines.get(row)).copied().unwrap_or_default();
    let reason = |rejected: &Rejected| Reason::new(line(rejected.row), formats::reason_by_line(&rejected.reason, line));
    outcome.rejected.iter().map(reason).collect()
}

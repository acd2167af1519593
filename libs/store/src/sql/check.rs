//! Checking everything stored against itself: every payload decodes to what its columns, the coverage, the revisions and the change log say.
//!
//! Writers go on meanwhile. What one row says of itself is damage whenever it is seen; what compares several statements, a *relative* finding,
//! counts only where the instrument was not written between them.

use std::collections::BTreeMap;

use async_trait::async_trait;
use market::{Calendar, Date, Frame, InstrumentKey, Millis, Timeframe};

use super::put::{check_columns, open_block_with};
use super::read::{ReadTables, prefix_of_later};
use super::{Series, StoredBlock, timeframe_of};
use crate::block::{Decoder, Summary};
use crate::check::{CheckReport, Finding, MAX_FINDINGS};
use crate::{Error, Result};

/// Rows fetched at a time, for the reason given in `read.rs`.
pub(super) const CHECK_PAGE: i64 = 64;
/// Times that an instrument with relative findings is looked at because it was written meanwhile; then only the others count.
const ATTEMPTS: usize = 3;

/// A current block with its summary, or a superseded one with what superseded it.
#[derive(Debug)]
pub(super) struct CheckedBlock {
    pub(super) stored: StoredBlock,
    pub(super) summary: Option<Summary>,
    pub(super) superseded_revision: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredCoverage {
    pub(super) timeframe: String,
    pub(super) first_open_time: Millis,
    pub(super) last_open_time: Millis,
    pub(super) candle_count: i64,
    pub(super) block_count: i64,
}

/// A row of a page: where it lies, and its block, if its values can be those of one.
#[derive(Debug)]
pub(super) struct CheckedRow {
    pub(super) place: Place,
    pub(super) block: Result<CheckedBlock>,
}

/// The change log: its counter's marks and the records there are.
#[derive(Debug)]
pub(super) struct ChangeSpan {
    pub(super) last_sequence: i64,
    pub(super) pruned_sequence: i64,
    pub(super) count: i64,
    pub(super) first: Option<i64>,
    pub(super) last: Option<i64>,
}

/// Position in an instrument's blocks: timeframe, date, revision.
pub(super) type Place = (String, i64, i64);

#[async_trait]
pub(super) trait CheckTables: ReadTables {
    /// Ids of instruments, ascending, also of those without candles.
    async fn series_ids_after(&self, id: i64) -> Result<Vec<i64>>;
    async fn series_by_id(&self, id: i64) -> Result<Option<Series>>;
    /// Current blocks by timeframe and date.
    async fn blocks_after(&self, series_id: i64, place: &Place) -> Result<Vec<CheckedRow>>;
    /// Superseded blocks by timeframe, date and revision.
    async fn superseded_after(&self, series_id: i64, place: &Place) -> Result<Vec<CheckedRow>>;
    async fn coverage_rows(&self, series_id: i64) -> Result<Vec<StoredCoverage>>;
    async fn change_span(&self) -> Result<ChangeSpan>;
}

pub(super) async fn check<T: CheckTables>(tables: &T, limit: usize) -> Result<CheckReport> {
    let limit = limit.min(MAX_FINDINGS);
    let mut report = CheckReport::default();
    let mut after = i64::MIN;
    loop {
        let ids = match damage(tables.series_ids_after(after).await)? {
            Ok(ids) => ids,
            Err(cause) => {
                note(&mut report, limit, of_none(format!("instruments cannot be listed beyond row {after}: {cause}")));
                break;
            }
        };
        let Some(last) = ids.last() else { break };
        after = *last;
        for id in ids {
            let seen = check_series(tables, id, limit).await?;
            report.instruments += 1;
            report.blocks += seen.blocks;
            report.superseded_blocks += seen.superseded_blocks;
            report.candles += seen.candles;
            add_findings(&mut report, limit, seen);
        }
    }
    let faults = match damage(tables.change_span().await)? {
        Ok(span) => span_faults(&span),
        Err(cause) => vec![format!("change log cannot be read: {cause}")],
    };
    for what in faults {
        note(&mut report, limit, of_none(what));
    }
    Ok(report)
}

/// Sorts what is wrong with the data, as text, from what keeps the check from looking at it.
fn damage<T>(result: Result<T>) -> Result<std::result::Result<T, String>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Error::Corrupt { reason, .. }) => Ok(Err(reason)),
        // Values that nothing can be made of, and pages that the database itself finds damaged.
        Err(Error::Internal(cause)) => Ok(Err(cause.to_string())),
        Err(other) => Err(other),
    }
}

fn of_none(what: String) -> Finding {
    Finding { instrument: None, timeframe: None, block_date: None, what }
}

fn note(report: &mut CheckReport, limit: usize, finding: Finding) {
    report.findings_total += 1;
    if report.findings.len() < limit {
        report.findings.push(finding);
    }
}

fn add_findings(report: &mut CheckReport, limit: usize, seen: CheckReport) {
    report.findings_total += seen.findings_total;
    let room = limit.saturating_sub(report.findings.len());
    report.findings.extend(seen.findings.into_iter().take(room));
}

fn span_faults(span: &ChangeSpan) -> Vec<String> {
    let mut faults = Vec::new();
    if span.pruned_sequence > span.last_sequence {
        faults
            .push(format!("change log is pruned to {}, beyond its last {}", span.pruned_sequence, span.last_sequence));
    }
    let want = (span.last_sequence - span.pruned_sequence).max(0);
    let ends = (span.first.unwrap_or(span.pruned_sequence + 1), span.last.unwrap_or(span.pruned_sequence));
    if span.count != want || ends != (span.pruned_sequence + 1, span.last_sequence) {
        faults.push(format!(
            "change log holds {} records, {} to {}, not every one of {} to {}",
            span.count,
            ends.0,
            ends.1,
            span.pruned_sequence + 1,
            span.last_sequence
        ));
    }
    faults
}

/// Looks at one instrument, again while it has relative findings and is being written.
async fn check_series<T: CheckTables>(tables: &T, id: i64, limit: usize) -> Result<CheckReport> {
    for attempt in 1..=ATTEMPTS {
        let series = match damage(tables.series_by_id(id).await)? {
            Ok(Some(series)) => series,
            Ok(None) => break,
            Err(cause) => {
                let mut report = CheckReport::default();
                note(&mut report, limit, of_none(format!("instrument of row {id} cannot be read: {cause}")));
                return Ok(report);
            }
        };
        let mut inspection = Inspection::new(&series, limit);
        if let Err(cause) = damage(inspection.run(tables).await)? {
            inspection.find(None, format!("it cannot be checked to its end: {cause}"));
        }
        let Inspection { mut report, relative, .. } = inspection;
        if relative.findings_total == 0 {
            return Ok(report);
        }
        let is_settled = match damage(tables.series_by_id(id).await)? {
            Ok(Some(now)) => !moved(&now, &series),
            _ => false,
        };
        if is_settled {
            add_findings(&mut report, limit, relative);
        }
        if is_settled || attempt == ATTEMPTS {
            return Ok(report);
        }
    }
    Ok(CheckReport::default())
}

fn moved(now: &Series, before: &Series) -> bool {
    (now.revision, now.oldest_revision) != (before.revision, before.oldest_revision)
}

/// One instrument being checked.
struct Inspection<'a> {
    series: &'a Series,
    /// `None` where the stored key is none; then its blocks are only counted.
    key: Option<InstrumentKey>,
    calendar: Option<std::sync::Arc<Calendar>>,
    decoder: Decoder,
    limit: usize,
    report: CheckReport,
    /// Findings alone: those that a writer may have made between two statements.
    relative: CheckReport,
    coverage: BTreeMap<String, StoredCoverage>,
    newest: u64,
}

impl<'a> Inspection<'a> {
    fn new(series: &'a Series, limit: usize) -> Self {
        Self {
            series,
            key: series.key.parse().ok(),
            calendar: Calendar::by_name(&series.calendar).ok(),
            decoder: Decoder::default(),
            limit,
            report: CheckReport::default(),
            relative: CheckReport::default(),
            coverage: BTreeMap::new(),
            newest: 0,
        }
    }

    fn find(&mut self, block: Option<&StoredBlock>, what: impl Into<String>) {
        note(&mut self.report, self.limit, finding(self.key.as_ref(), block, what));
    }

    fn find_relative(&mut self, block: Option<&StoredBlock>, what: impl Into<String>) {
        note(&mut self.relative, self.limit, finding(self.key.as_ref(), block, what));
    }

    /// The block of a row; `None` where its values cannot be those of one.
    fn block_of(&mut self, row: CheckedRow) -> Result<Option<CheckedBlock>> {
        let (timeframe, date, revision) = row.place;
        match damage(row.block)? {
            Ok(block) => Ok(Some(block)),
            Err(cause) => {
                let what = format!("block dated {date} of revision {revision} cannot be read: {cause}");
                let finding = Finding { timeframe: Some(timeframe), ..finding(self.key.as_ref(), None, what) };
                note(&mut self.report, self.limit, finding);
                Ok(None)
            }
        }
    }

    async fn run<T: CheckTables>(&mut self, tables: &T) -> Result<()> {
        if self.key.is_none() {
            self.find(None, format!("'{}' is no instrument key", self.series.key));
        }
        if self.calendar.is_none() {
            self.find(None, format!("calendar '{}' is unknown", self.series.calendar));
        }
        if self.series.oldest_revision > self.series.revision {
            let (oldest, current) = (self.series.oldest_revision, self.series.revision);
            self.find(None, format!("oldest revision {oldest} is beyond the current one, {current}"));
        }
        self.current_blocks(tables).await?;
        self.superseded_blocks(tables).await?;
        // The last call that changed the instrument left a block of its revision.
        if self.newest != self.series.revision {
            let (newest, current) = (self.newest, self.series.revision);
            self.find_relative(None, format!("newest block is of revision {newest}, the instrument's is {current}"));
        }
        self.check_coverage(&tables.coverage_rows(self.series.id).await?);
        Ok(())
    }

    async fn current_blocks<T: CheckTables>(&mut self, tables: &T) -> Result<()> {
        let mut place: Place = (String::new(), i64::MIN, i64::MIN);
        let mut before: Option<(String, Millis)> = None;
        loop {
            let page = tables.blocks_after(self.series.id, &place).await?;
            let Some(last) = page.last() else { return Ok(()) };
            place = last.place.clone();
            for row in page {
                self.report.blocks += 1;
                let Some(block) = self.block_of(row)? else { continue };
                self.newest = self.newest.max(block.stored.revision);
                let stored = &block.stored;
                if let Some((timeframe, at)) = &before
                    && *timeframe == stored.timeframe
                    && *at >= stored.first_open_time
                {
                    self.find(Some(stored), "it overlaps the block before");
                }
                before = Some((stored.timeframe.clone(), stored.last_open_time));
                self.count(stored);
                if let Some(frame) = self.open(tables, &block).await? {
                    self.report.candles += frame.len() as u64;
                }
            }
        }
    }

    async fn superseded_blocks<T: CheckTables>(&mut self, tables: &T) -> Result<()> {
        let mut place: Place = (String::new(), i64::MIN, i64::MIN);
        loop {
            let page = tables.superseded_after(self.series.id, &place).await?;
            let Some(last) = page.last() else { return Ok(()) };
            place = last.place.clone();
            for row in page {
                self.report.superseded_blocks += 1;
                let Some(block) = self.block_of(row)? else { continue };
                let (revision, by) = (block.stored.revision, block.superseded_revision.unwrap_or(0));
                let what = format!("revision {revision} is superseded by {by}");
                if by <= revision {
                    self.find(Some(&block.stored), what);
                } else if by > self.series.revision {
                    self.find_relative(Some(&block.stored), what);
                }
                self.open(tables, &block).await?;
            }
        }
    }

    /// Decodes a block and compares it with all that is said of it; `None` where it does not decode.
    async fn open<T: CheckTables>(&mut self, tables: &T, block: &CheckedBlock) -> Result<Option<Frame>> {
        let stored = &block.stored;
        let (revision, current) = (stored.revision, self.series.revision);
        let what = || format!("its revision {revision} is not among 1 to {current}");
        if revision == 0 {
            self.find(Some(stored), what());
        } else if revision > current {
            self.find_relative(Some(stored), what());
        }
        let Some(key) = self.key.clone() else { return Ok(None) };
        let opened = match &stored.payload {
            Some(_) => {
                open_block_with(&mut self.decoder, &key, stored).and_then(|frame| check_columns(&key, stored, frame))
            }
            None => prefix_of_later(tables, &key, stored).await,
        };
        let frame = match damage(opened)? {
            Ok(frame) => frame,
            Err(cause) if stored.payload.is_some() => {
                self.find(Some(stored), cause);
                return Ok(None);
            }
            // Its candles are those of another row, which a prune may have taken.
            Err(cause) => {
                self.find_relative(Some(stored), cause);
                return Ok(None);
            }
        };
        if let Some(summary) = &block.summary
            && !same_summary(summary, &Summary::of(&frame))
        {
            self.find(Some(stored), "its candles do not match its summary");
        }
        self.check_date(stored, &frame);
        Ok(Some(frame))
    }

    fn check_date(&mut self, stored: &StoredBlock, frame: &Frame) {
        let Ok(timeframe) = timeframe_of(&stored.timeframe) else {
            self.find(Some(stored), format!("'{}' is no timeframe", stored.timeframe));
            return;
        };
        let Some(calendar) = self.calendar.clone() else { return };
        let ends = [frame.open_time().first(), frame.open_time().last()];
        // Times ascend, so those between lie on the same date.
        if ends.into_iter().flatten().any(|at| date_of(&calendar, timeframe, *at) != stored.date) {
            self.find(Some(stored), "its candles are of another trading date");
        }
    }

    fn count(&mut self, stored: &StoredBlock) {
        let coverage = self.coverage.entry(stored.timeframe.clone()).or_insert_with(|| StoredCoverage {
            timeframe: stored.timeframe.clone(),
            first_open_time: stored.first_open_time,
            last_open_time: stored.last_open_time,
            candle_count: 0,
            block_count: 0,
        });
        coverage.first_open_time = coverage.first_open_time.min(stored.first_open_time);
        coverage.last_open_time = coverage.last_open_time.max(stored.last_open_time);
        coverage.candle_count = coverage.candle_count.saturating_add(stored.candle_count);
        coverage.block_count += 1;
    }

    fn check_coverage(&mut self, told: &[StoredCoverage]) {
        let told: BTreeMap<String, StoredCoverage> =
            told.iter().map(|coverage| (coverage.timeframe.clone(), coverage.clone())).collect();
        if told == self.coverage {
            return;
        }
        let differing: Vec<String> = told
            .keys()
            .chain(self.coverage.keys())
            .filter(|timeframe| told.get(*timeframe) != self.coverage.get(*timeframe))
            .cloned()
            .collect::<std::collections::BTreeSet<String>>()
            .into_iter()
            .collect();
        self.find_relative(None, format!("coverage of {} does not match the blocks", differing.join(", ")));
    }
}

fn finding(key: Option<&InstrumentKey>, block: Option<&StoredBlock>, what: impl Into<String>) -> Finding {
    Finding {
        instrument: key.cloned(),
        timeframe: block.map(|block| block.timeframe.clone()),
        block_date: block.map(|block| block.date),
        what: what.into(),
    }
}

fn date_of(calendar: &Calendar, timeframe: Timeframe, at: Millis) -> Date {
    match timeframe.width_ms() {
        Some(_) => calendar.day_at(at).date,
        None => calendar.date_of_daily_stamp(at).first_of_year(),
    }
}

/// Equal to the bit but for the sign of a zero, which databases may lose.
fn same_summary(a: &Summary, b: &Summary) -> bool {
    let values = |s: &Summary| [s.open, s.high, s.low, s.close, s.volume];
    values(a) == values(b) && a.open_interest == b.open_interest
}

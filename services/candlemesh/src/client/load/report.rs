//! What a load did, or would do.

use formats::{Detected, Profile};
use market::format_millis;
use serde::Serialize;

use crate::output::say_line;

/// Rejected rows kept for the report; all are counted.
const MAX_REPORTED: usize = 1000;
/// Lines of one kind printed for a file; `--json` has more.
const PRINTED: usize = 10;

/// Outcome of a load.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Nothing was stored: the counts say what would be.
    pub dry_run: bool,
    pub files: Vec<FileReport>,
    /// Files of folders that the manifest does not have.
    pub skipped: Vec<String>,
    pub stored: u64,
    pub unchanged: u64,
    /// Of a dry run: how many of `stored` have other values now. A load is not told.
    pub replaced: u64,
    pub rejected: u64,
    /// Manifests that were found in the folders named.
    pub manifests: Vec<String>,
    /// Splits and dividends from beside the manifests: put, and there already. A dry run counts all as `put`.
    pub actions: Actions,
}

/// Splits and dividends of a load.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Actions {
    pub put: u64,
    pub unchanged: u64,
}

/// Outcome of one file.
#[derive(Debug, Default, Serialize)]
pub struct FileReport {
    pub file: String,
    /// As which format the file was read; absent where it was not read to its end.
    pub format: Option<String>,
    pub stored: u64,
    pub unchanged: u64,
    pub replaced: u64,
    pub rejected: u64,
    /// The first rejected rows, with their reasons.
    pub reasons: Vec<Rejected>,
    /// What the rows look like, per instrument.
    pub profiles: Vec<Profile>,
    pub notes: Vec<String>,
    /// Why reading stopped before the end; what came before is stored.
    pub error: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct Rejected {
    pub line: u64,
    pub reason: String,
}

impl Report {
    pub(super) fn add(&mut self, file: FileReport) {
        self.stored += file.stored;
        self.unchanged += file.unchanged;
        self.replaced += file.replaced;
        self.rejected += file.rejected;
        self.files.push(file);
    }

    /// Whether a file could not be read to its end, or had rows and none that could be used.
    pub fn has_failed(&self) -> bool {
        self.files.iter().any(|file| file.error.is_some() || file.is_unusable())
    }

    pub(super) fn print(&self) {
        for manifest in &self.manifests {
            say_line!("{manifest}: says what the files beside it hold");
        }
        for file in &self.files {
            say_line!(
                "{}: {}",
                file.file,
                counts(self.dry_run, file.stored, file.unchanged, file.replaced, file.rejected)
            );
            file.print();
        }
        for skipped in self.skipped.iter().take(PRINTED) {
            say_line!("{skipped}: not in the manifest, not read");
        }
        if self.skipped.len() > PRINTED {
            say_line!("... and {} more files that are not in the manifest", self.skipped.len() - PRINTED);
        }
        if self.files.len() > 1 {
            let total = counts(self.dry_run, self.stored, self.unchanged, self.replaced, self.rejected);
            say_line!("total: {total}");
        }
        match (self.actions, self.dry_run) {
            (Actions { put: 0, unchanged: 0 }, _) => {}
            (Actions { put, .. }, true) => say_line!("splits and dividends: would put {put}"),
            (Actions { put, unchanged }, false) => say_line!("splits and dividends: {put} put, {unchanged} unchanged"),
        }
        if self.dry_run {
            say_line!("dry run: nothing was stored");
        }
    }
}

fn counts(dry_run: bool, stored: u64, unchanged: u64, replaced: u64, rejected: u64) -> String {
    match dry_run {
        true if replaced > 0 => {
            format!("would store {stored} ({replaced} over other values), {unchanged} unchanged, {rejected} rejected")
        }
        true => format!("would store {stored}, {unchanged} unchanged, {rejected} rejected"),
        false => format!("{stored} stored, {unchanged} unchanged, {rejected} rejected"),
    }
}

impl FileReport {
    /// A file without any row is none of these: a day without trades has a header only.
    fn is_unusable(&self) -> bool {
        self.rejected > 0 && self.stored + self.unchanged == 0
    }

    pub(super) fn reject(&mut self, line: u64, reason: String) {
        self.rejected += 1;
        if self.reasons.len() < MAX_REPORTED {
            self.reasons.push(Rejected { line, reason });
        }
    }

    pub(super) fn ended(&mut self, outcome: Result<Detected, String>) {
        match outcome {
            Ok(detected) => {
                self.format = Some(detected.format.to_string());
                self.profiles = detected.profiles;
                self.notes = detected.notes;
            }
            Err(error) => self.error = Some(error),
        }
    }

    fn print(&self) {
        let format = self.format.as_deref().unwrap_or("unknown");
        for profile in self.profiles.iter().take(PRINTED) {
            print_profile(format, profile);
        }
        if self.profiles.len() > PRINTED {
            say_line!("  ... and {} more instruments", self.profiles.len() - PRINTED);
        }
        for note in &self.notes {
            say_line!("  note: {note}");
        }
        for rejected in self.reasons.iter().take(PRINTED) {
            say_line!("  line {}: {}", rejected.line, rejected.reason);
        }
        if self.rejected > PRINTED as u64 {
            say_line!("  ... and {} more; all of the first {MAX_REPORTED} with --json", self.rejected - PRINTED as u64);
        }
        if let Some(error) = &self.error {
            say_line!("  stopped: {error}");
        }
    }
}

fn print_profile(format: &str, profile: &Profile) {
    let order = if profile.newest_first { ", newest first" } else { "" };
    say_line!(
        "  {} {}, read as {format}: {} rows{order}, {} .. {}",
        profile.instrument,
        profile.timeframe,
        profile.rows,
        format_millis(profile.earliest),
        format_millis(profile.latest)
    );
    say_line!(
        "    repeated {}, conflicting {}, steps backwards {}, gaps {}, longest step {} min, zero volume {}, off the minute {}",
        profile.repeated,
        profile.conflicting,
        profile.steps_backwards,
        profile.gaps,
        profile.longest_gap_min,
        profile.zero_volume,
        profile.off_minute
    );
    for conflict in profile.conflicts.iter().take(PRINTED) {
        let at = format_millis(conflict.open_time);
        say_line!(
            "    {at}: line {} differs from line {}; the later line counts",
            conflict.line,
            conflict.earlier_line
        );
    }
}

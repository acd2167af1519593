//! `fsck`: reads every block of a store that no mesh runs on, and says what is wrong with it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use store::{CheckReport, StoreOptions, Stores};

use crate::output::say_line;
use crate::up;

/// Findings that are named; all are counted. A store with more is damaged as a whole.
const MAX_FINDINGS: usize = 1000;
/// Findings printed without `--json`.
const PRINTED_FINDINGS: usize = 20;

/// `fsck`'s arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct FsckArgs {
    /// Data directory of an `up` that is not running; it counts before a database.
    // No conflict with the database: clap takes one from the environment for given, and would refuse every folder.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// URL of the database: postgres://... or sqlite:///path.
    #[arg(long, env = "CANDLEMESH_DATABASE_URL", hide_env_values = true)]
    pub database: Option<String>,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// What was read, and what is wrong with it.
#[derive(Debug, Serialize)]
struct Report {
    instruments: u64,
    blocks: u64,
    superseded_blocks: u64,
    candles: u64,
    /// The first [`MAX_FINDINGS`].
    findings: Vec<Found>,
    findings_total: u64,
}

/// Something that must not be; without an instrument it is of the change log.
#[derive(Debug, Serialize)]
struct Found {
    instrument: Option<String>,
    timeframe: Option<String>,
    block_date: Option<String>,
    what: String,
}

/// The command: exit status 0 for a clean store, 1 for one with findings.
pub async fn run(args: &FsckArgs) -> Result<ExitCode> {
    let (url, _lock) = match (&args.data_dir, &args.database) {
        (Some(directory), _) => {
            let file = directory.join("candlemesh.db");
            ensure!(file.is_file(), "{} does not exist; name the data directory of an `up`", file.display());
            let (url, lock) = up::database_in(Some(directory))?;
            (url, Some(lock))
        }
        (None, Some(url)) => (existing(url)?.to_owned(), None),
        (None, None) => bail!("name the store: --data-dir DIRECTORY, or --database URL"),
    };
    let stores = Stores::open(&url, &StoreOptions::default()).await.context("the database")?;
    let report = stores.check(MAX_FINDINGS).await;
    stores.close().await;
    let report = Report::from(report?);
    match args.json {
        true => say_line!("{}", serde_json::to_string_pretty(&report)?),
        false => print(&report),
    }
    Ok(if report.findings_total == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Opening would create a SQLite file that is not there, and an empty store is always clean.
fn existing(url: &str) -> Result<&str> {
    if let Some(path) = url.strip_prefix("sqlite://") {
        ensure!(std::path::Path::new(path).is_file(), "{path} does not exist");
    }
    Ok(url)
}

fn print(report: &Report) {
    let Report { instruments, blocks, superseded_blocks, candles, findings, findings_total } = report;
    for finding in findings.iter().take(PRINTED_FINDINGS) {
        let place = [&finding.instrument, &finding.timeframe, &finding.block_date];
        let place: Vec<&str> = place.into_iter().flatten().map(String::as_str).collect();
        let place = if place.is_empty() { vec!["change log"] } else { place };
        say_line!("{}: {}", place.join(" "), finding.what);
    }
    if *findings_total > PRINTED_FINDINGS as u64 {
        say_line!("... and {} more; --json names the first {MAX_FINDINGS}", findings_total - PRINTED_FINDINGS as u64);
    }
    let verdict = if *findings_total == 0 { "clean".to_owned() } else { format!("{findings_total} findings") };
    say_line!(
        "{instruments} instruments, {blocks} blocks and {superseded_blocks} superseded ones, {candles} candles: {verdict}"
    );
}

impl From<CheckReport> for Report {
    fn from(report: CheckReport) -> Report {
        let findings = report.findings.into_iter().map(|finding| Found {
            instrument: finding.instrument.map(|instrument| instrument.to_string()),
            timeframe: finding.timeframe,
            block_date: finding.block_date.map(market::format_date),
            what: finding.what,
        });
        Report {
            instruments: report.instruments,
            blocks: report.blocks,
            superseded_blocks: report.superseded_blocks,
            candles: report.candles,
            findings: findings.collect(),
            findings_total: report.findings_total,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: FsckArgs,
    }

    /// A database may come from the environment.
    #[tokio::test]
    async fn a_folder_counts_before_a_database() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display().to_string();
        let line = Line::try_parse_from(["fsck", "--data-dir", &path, "--database", "sqlite:///elsewhere"]).unwrap();
        let refused = run(&line.args).await.unwrap_err().to_string();
        assert!(refused.contains(&path) && refused.contains("does not exist"), "{refused}");
    }

    #[test]
    fn a_store_that_is_not_there_is_not_created() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("candlemesh.db");
        assert!(existing(&format!("sqlite://{}", path.display())).unwrap_err().to_string().contains("does not exist"));
        assert!(!path.exists());
    }
}

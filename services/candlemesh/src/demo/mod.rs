//! `demo`: the whole mesh at work on a file, a folder, or a generated market, through the gateway like any client.

mod input;
mod market;
mod render;
mod report;
mod steps;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use mesh::Drain;

use crate::client::Connection;
use crate::config::{Config, Overrides};
use crate::output::{say, say_line};
use crate::up::Mesh;

/// `demo`'s arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// A .csv, .csv.gz or .parquet file of minutes, or a folder with manifests (instruments*.csv); default: a generated market.
    #[arg(long)]
    pub input: Option<PathBuf>,
    /// Instrument of an input file that does not name it.
    #[arg(long)]
    pub instrument: Option<::market::InstrumentKey>,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the demo; exit status 0 only if every part of it worked.
pub async fn run(args: &DemoArgs) -> Result<ExitCode> {
    let started = Instant::now();
    let folder = tempfile::tempdir().context("temporary directory")?;
    let source = input::prepare(args, folder.path())?;

    let overrides = Overrides { listen: Some(([127, 0, 0, 1], 0).into()), ..Default::default() };
    let config = Config::load(None, &overrides).map_err(mesh::StartError::from)?.config;
    let drain = Drain::on_signal()?;
    let interrupted = drain.clone();
    let mesh = Mesh::start(config, Some(&folder.path().join("data")), drain).await?;
    let connection = Connection::to(&mesh.gateway());

    let tour = steps::Tour { connection: &connection, quiet: args.json };
    let outcome = tokio::select! {
        outcome = tour.run(&source) => outcome,
        () = interrupted.started() => Err(anyhow::anyhow!("interrupted")),
    };
    let stopped = mesh.stop().await;
    let mut report = outcome?;
    stopped?;
    report.seconds = started.elapsed().as_secs_f64();
    report.peak_memory_mib = peak_memory_mib();
    match args.json {
        true => say_line!("{}", serde_json::to_string_pretty(&report)?),
        false => say!("{}", render::text(&report)),
    }
    Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Largest resident set of this process so far; `None` where the kernel does not say.
fn peak_memory_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

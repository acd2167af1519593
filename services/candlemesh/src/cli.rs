//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use mesh::telemetry::Telemetry;
use mesh::{Drain, StartError};

use crate::client::{self, Connection};
use crate::config::{Config, Overrides};
use crate::demo::{self, DemoArgs};
use crate::output::say_line;
use crate::roles::{self, Role};
use crate::up::{self, Mesh};

/// Exit status of a configuration that cannot be used (EX_USAGE).
const EXIT_CONFIG: u8 = 64;

/// Market-data analytics: minute candles in; candles of any timeframe, indicators, sequences, screens and studies out.
#[derive(Debug, Parser)]
#[command(name = "candlemesh", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the whole mesh in this process, on SQLite under a data directory.
    Up(UpArgs),
    /// Runs one role of a distributed mesh.
    Serve(ServeArgs),
    /// Shows the whole mesh at work on a file, a folder, or a generated market.
    Demo(DemoArgs),
    /// Loads candle files.
    Load(client::load::LoadArgs),
    /// Loads files of the server's backfill folder as a job that survives the server.
    Backfill {
        #[command(subcommand)]
        command: client::backfill::BackfillCommand,
    },
    /// Writes candles to Parquet or CSV files that `load` reads back.
    Export(client::export::ExportArgs),
    /// Reads every block of a store that no mesh runs on; exit status 1 when something is wrong with it.
    Fsck(client::fsck::FsckArgs),
    /// Candles of any timeframe.
    Candles(client::query::CandlesArgs),
    /// Candles as they form, close and are corrected; comes back by itself after a lost connection.
    Watch(client::watch::WatchArgs),
    /// Feeds a file, or stored candles, as if they came in live.
    Replay(client::replay::ReplayArgs),
    /// Which session minutes are missing.
    Gaps(client::gaps::GapsArgs),
    /// Splits and dividends.
    Actions {
        #[command(subcommand)]
        command: client::actions::ActionsCommand,
    },
    /// Whether indicators use the future, or depend on how much history is loaded.
    Audit(client::audit::AuditArgs),
    /// The indicator cache: its statistics, what it holds of an instrument, and moving it to another Redis.
    Cache {
        #[command(subcommand)]
        command: client::cache::CacheCommand,
    },
    /// Technical indicators.
    Indicators(client::query::IndicatorsArgs),
    /// Sequences of strong moves, their metrics and patterns.
    Sequences(client::query::SequencesArgs),
    /// The filter pipeline over the universe.
    Screen(client::query::ScreenArgs),
    /// Last prices.
    Quotes(client::query::QuotesArgs),
    /// Strategy studies.
    Study {
        #[command(subcommand)]
        command: client::study::StudyCommand,
    },
    /// Which engine answers what share of the traffic.
    Rollout {
        #[command(subcommand)]
        command: client::rollout::RolloutCommand,
    },
    /// Asks a server's health; exit status 0 when it serves.
    Health {
        /// Address of the server; default: the gateway.
        #[arg(long)]
        target: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Prints the effective configuration and where each value comes from.
    Config {
        /// YAML file of settings.
        #[arg(long)]
        config: Option<PathBuf>,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
struct UpArgs {
    /// Where the database lies; created when missing.
    #[arg(long, default_value = "candlemesh-data")]
    data_dir: PathBuf,
    /// Address of the gateway: gRPC, Flight and REST on one port.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Written when everything serves: JSON with one address per role.
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// YAML file of settings.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Address of /metrics.
    #[arg(long)]
    metrics_listen: Option<SocketAddr>,
}

#[derive(Debug, clap::Args)]
struct ServeArgs {
    role: Role,
    /// Address of the role's listener.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Engines of this process: v1, v2 or v1,v2.
    #[arg(long)]
    engines: Option<String>,
    /// Address of /metrics.
    #[arg(long)]
    metrics_listen: Option<SocketAddr>,
    /// Written when the role serves.
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// YAML file of settings.
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Runs a command to its exit status.
pub async fn run(cli: Cli) -> ExitCode {
    let connection = &cli.connection;
    let outcome = match &cli.command {
        Command::Up(args) => up(args).await.map_err(anyhow::Error::from).map(|()| ExitCode::SUCCESS),
        Command::Serve(args) => serve(args).await.map_err(anyhow::Error::from).map(|()| ExitCode::SUCCESS),
        Command::Demo(args) => demo::run(args).await,
        Command::Load(args) => client::load::run(connection, args).await,
        Command::Backfill { command } => client::backfill::run(connection, command).await,
        Command::Export(args) => client::export::run(connection, args).await,
        Command::Fsck(args) => client::fsck::run(args).await,
        Command::Candles(args) => done(client::query::run_candles(connection, args).await),
        Command::Gaps(args) => done(client::gaps::run(connection, args).await),
        Command::Actions { command } => done(client::actions::run(connection, command).await),
        Command::Watch(args) => done(client::watch::run(connection, args).await),
        Command::Replay(args) => done(client::replay::run(connection, args).await),
        Command::Audit(args) => done(client::audit::run(connection, args).await),
        Command::Cache { command } => client::cache::run(connection, command).await,
        Command::Indicators(args) => done(client::query::run_indicators(connection, args).await),
        Command::Sequences(args) => done(client::query::run_sequences(connection, args).await),
        Command::Screen(args) => done(client::query::run_screen(connection, args).await),
        Command::Quotes(args) => done(client::query::run_quotes(connection, args).await),
        Command::Study { command } => done(client::study::run(connection, command).await),
        Command::Rollout { command } => done(client::rollout::run(connection, command).await),
        Command::Health { target, json } => health(target.as_deref().unwrap_or(&connection.gateway), *json).await,
        Command::Config { config, json } => done(print_config(config.as_ref(), *json)),
    };
    outcome.unwrap_or_else(|error| {
        let hint = match error.downcast_ref::<StartError>() {
            Some(StartError::Bind { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => {
                "; something listens there already: stop it, or pass another address with --listen"
            }
            _ => "",
        };
        eprintln!("candlemesh: {error:#}{hint}");
        match error.downcast_ref::<StartError>() {
            Some(StartError::Config(_)) => ExitCode::from(EXIT_CONFIG),
            _ => ExitCode::FAILURE,
        }
    })
}

fn done(outcome: Result<()>) -> Result<ExitCode> {
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn up(args: &UpArgs) -> Result<(), StartError> {
    let overrides = Overrides { listen: Some(args.listen), metrics_listen: args.metrics_listen, ..Default::default() };
    let config = Config::load(args.config.as_ref(), &overrides)?.config;
    let telemetry = Telemetry::install("up", &config.telemetry)?;
    let drain = Drain::on_signal()?;
    if let Some(path) = &args.ready_file {
        up::clear_ready_file(path)?;
    }
    if let Some(listen) = config.metrics_listen {
        mesh::telemetry::serve_metrics(listen, drain.clone()).await?;
    }
    let mesh = Mesh::start(config, Some(&args.data_dir), drain).await?;
    if let Some(path) = &args.ready_file {
        up::write_ready_file(path, mesh.addresses())?;
    }
    tracing::info!(gateway = %mesh.gateway(), "the mesh serves");
    let outcome = mesh.wait().await;
    telemetry.shutdown().await;
    outcome
}

async fn serve(args: &ServeArgs) -> Result<(), StartError> {
    let overrides =
        Overrides { listen: args.listen, metrics_listen: args.metrics_listen, engines: args.engines.clone() };
    let config = Config::load(args.config.as_ref(), &overrides)?.config;
    let telemetry = Telemetry::install(args.role.as_str(), &config.telemetry)?;
    let drain = Drain::on_signal()?;
    if let Some(path) = &args.ready_file {
        up::clear_ready_file(path)?;
    }
    let outcome = roles::serve(args.role, &config, args.ready_file.as_deref(), drain).await;
    telemetry.shutdown().await;
    outcome
}

async fn health(target: &str, json: bool) -> Result<ExitCode> {
    let outcome = client::health::check(target).await;
    if json {
        let error = outcome.as_ref().err().map(|error| format!("{error:#}"));
        let answer = serde_json::json!({ "target": target, "serving": outcome.is_ok(), "error": error });
        say_line!("{answer:#}");
        return Ok(if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    outcome?;
    say_line!("{target} serves");
    Ok(ExitCode::SUCCESS)
}

fn print_config(file: Option<&PathBuf>, json: bool) -> Result<()> {
    let loaded = Config::load(file, &Overrides::default()).map_err(StartError::from)?;
    if json {
        let settings = loaded.origins.into_iter().map(|origin| {
            let setting = serde_json::json!({ "value": origin.value, "source": origin.source });
            (origin.key, setting)
        });
        say_line!("{:#}", serde_json::Value::Object(settings.collect()));
        return Ok(());
    }
    for origin in &loaded.origins {
        say_line!("{:<36} {:<32} {}", origin.key, origin.value, origin.source);
    }
    Ok(())
}

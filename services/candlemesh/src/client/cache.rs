//! `cache`: what the indicator cache does, dropping what it holds of an instrument, and moving it to another Redis.

mod migrate;

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use market::InstrumentKey;
use proto::indicator::indicator_service_client::IndicatorServiceClient;
use proto::indicator::{GetCacheStatisticsRequest, GetCacheStatisticsResponse, InvalidateCacheRequest};

use super::Connection;
use super::query::print_json;
use crate::output::say_line;

/// What can be done with the cache.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum CacheCommand {
    /// Counters of the indicator replica that answers.
    Stats {
        #[arg(long)]
        json: bool,
    },
    /// Drops what is cached of an instrument, in every replica. Newer candles never need it.
    Invalidate {
        /// For example "NSE_EQ|INE002A01018".
        instrument: InstrumentKey,
        #[arg(long)]
        json: bool,
    },
    /// Copies the entries of one Redis to another, of whatever topology and release. Run again, it goes on where it was.
    Migrate(migrate::MigrateArgs),
}

/// Runs a command; exit status 1 when a comparison finds a difference.
pub async fn run(connection: &Connection, command: &CacheCommand) -> Result<ExitCode> {
    match command {
        CacheCommand::Stats { json } => stats(connection, *json).await?,
        CacheCommand::Invalidate { instrument, json } => invalidate(connection, instrument, *json).await?,
        CacheCommand::Migrate(args) => return migrate::run(args).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn stats(connection: &Connection, json: bool) -> Result<()> {
    let mut client = IndicatorServiceClient::new(connection.channel()?);
    let answer = client.get_cache_statistics(GetCacheStatisticsRequest {}).await;
    let answer = answer.map_err(|status| connection.explain(status))?.into_inner();
    if json {
        return print_json(&answer, "candlemesh.indicator.v1.GetCacheStatisticsResponse");
    }
    let GetCacheStatisticsResponse { local_hits, shared_hits, misses, local_entries, .. } = answer;
    say_line!("{:.1} % of {} look-ups were hits", 100.0 * answer.hit_rate, local_hits + shared_hits + misses);
    say_line!(
        "  in process   {local_hits} hits, {local_entries} entries, {} of {} bytes",
        answer.local_bytes,
        answer.local_capacity_bytes
    );
    let state = if answer.shared_connected { "connected" } else { "not in use" };
    say_line!(
        "  Redis        {state}: {shared_hits} hits, {} writes of {} bytes stored as {}, {} dropped, {} errors",
        answer.shared_writes,
        answer.shared_value_bytes,
        answer.shared_written_bytes,
        answer.dropped_writes,
        answer.shared_errors
    );
    say_line!(
        "  computed     {misses}, of which {} from a kept state: {} candles spared",
        answer.suffix_computations,
        answer.saved_rows
    );
    say_line!("  states       {} series, {} bytes", answer.series, answer.series_bytes);
    Ok(())
}

async fn invalidate(connection: &Connection, instrument: &InstrumentKey, json: bool) -> Result<()> {
    let mut client = IndicatorServiceClient::new(connection.channel()?);
    let answer = client.invalidate_cache(InvalidateCacheRequest { instrument_key: instrument.to_string() }).await;
    let answer = answer.map_err(|status| connection.explain(status))?.into_inner();
    if json {
        print_json(&answer, "candlemesh.indicator.v1.InvalidateCacheResponse")?;
    } else {
        let shared = answer.shared_entries.map_or_else(String::new, |entries| format!(", {entries} in Redis"));
        say_line!("dropped {} entries of {instrument} in process{shared}", answer.local_entries);
    }
    match answer.shared_error.as_str() {
        "" => Ok(()),
        error => Err(anyhow!(
            "Redis could not be asked, what it holds is there still, and other replicas were not told: {error}"
        )),
    }
}

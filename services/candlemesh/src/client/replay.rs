//! `replay`: a file, or stored candles, as a live feed: each minute is stored when it has passed, at N times real time.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use formats::{BadRow, Chunk, FileSpec, Sink};
use market::{Candle, InstrumentKey, Millis, TimeRange, Timeframe};
use proto::aggregation::GetCandlesRequest;
use proto::convert;
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{CandleBatch, PutCandleBatchesRequest, PutCandleBatchesResponse};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{Channel, Connection, RangeArgs, query, with_deadline};
use crate::output::say_line;

const MINUTE_MS: Millis = 60_000;
/// Candles held: five years of minutes of ten stocks, half a gigabyte. Copies are not held.
const MAX_ROWS: usize = 5_000_000;
/// Instruments of one call, half the server's limit.
const MAX_BATCHES: usize = 5_000;
/// Copies of each instrument: the largest market in one minute.
const MAX_COPIES: u32 = 10_000;
/// Stored candles asked for at a time, as time: a month of a market that never closes.
const READ_MS: Millis = 31 * 24 * 60 * MINUTE_MS;
/// Time given to one call.
const DEADLINE: Duration = Duration::from_secs(60);
/// What to do after a feed that broke off.
const RERUN: &str = "feeding the same minutes again is safe";
/// Accepted speeds: at the slowest a minute takes most of a day, and the longest feed's last minute is still a time.
const SPEEDS: RangeInclusive<f64> = 1e-3..=1e6;
/// Lag from which it is reported, and how often.
const REPORTED_LAG: Duration = Duration::from_secs(1);
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Between attempts at a call that failed: at first, and at most. Shorter than what a server needs to start is of no use.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Accepted times to go on without a server, in seconds: a day is a feed left running over a night.
const RETRY_SECONDS: RangeInclusive<u64> = 0..=86_400;

/// `replay`'s arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct ReplayArgs {
    /// File of minutes or trades, in any format `load` reads.
    #[arg(required_unless_present = "instrument")]
    pub file: Option<PathBuf>,
    /// Instrument of a file that does not name it; without a file, the stored instrument to replay.
    #[arg(long)]
    pub instrument: Option<InstrumentKey>,
    #[command(flatten)]
    pub range: RangeArgs,
    /// Calendar of instruments not seen before: NSE, NYSE, CME, FX, EUREX or 24x7.
    #[arg(long, default_value = "")]
    pub calendar: String,
    /// Times real time, 0.001 to 1000000, or max: as fast as minutes are acknowledged.
    #[arg(long, default_value = "1")]
    pub speed: Speed,
    /// Move the first minute so that it passes now, or at an RFC 3339 instant; all others follow.
    #[arg(long)]
    pub shift_to: Option<String>,
    /// Feed each instrument so many times, under the codes CODE, CODE#2, CODE#3 and so on.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_COPIES)))]
    pub instruments: u32,
    /// Seconds to try again for when the server goes away in the middle, for example because it is restarted; 0: not at all.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(RETRY_SECONDS))]
    pub retry_for: u64,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// How fast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Speed {
    Times(f64),
    Max,
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            _ if text == "max" => Ok(Speed::Max),
            Ok(times) if SPEEDS.contains(&times) => Ok(Speed::Times(times)),
            _ => Err(format!("'{text}' is no speed; accepted: {} to {}, or max", SPEEDS.start(), SPEEDS.end())),
        }
    }
}

/// What was fed.
#[derive(Debug, Default, serde::Serialize)]
pub struct Report {
    pub minutes: usize,
    pub candles: u64,
    pub stored: u64,
    pub unchanged: u64,
    pub rejected: u64,
    /// Rows of the file that could not be read.
    pub unreadable: u64,
    pub seconds: f64,
    /// How far the slowest minute came behind its time; 0 at full speed, which has none.
    pub longest_lag_seconds: f64,
    /// Calls that were made again, because the server was away.
    pub retries: u64,
    /// Of the calls that store a minute, from sending to acknowledgement.
    pub put_median_ms: f64,
    pub put_slowest_ms: f64,
}

type Minutes = BTreeMap<Millis, Vec<(InstrumentKey, Candle)>>;

/// `replay`.
pub async fn run(connection: &Connection, args: &ReplayArgs) -> Result<()> {
    let report = replay(connection, args).await?;
    if args.json {
        say_line!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    say_line!(
        "{} minutes, {} candles in {:.1} s: {} stored, {} unchanged, {} rejected",
        report.minutes,
        report.candles,
        report.seconds,
        report.stored,
        report.unchanged,
        report.rejected + report.unreadable
    );
    say_line!(
        "a minute was stored in {:.1} ms (median), {:.1} ms at worst; longest lag {:.2} s",
        report.put_median_ms,
        report.put_slowest_ms,
        report.longest_lag_seconds
    );
    if report.retries > 0 {
        say_line!("the server was away meanwhile: {} calls were made again", report.retries);
    }
    Ok(())
}

/// Feeds and measures.
pub async fn replay(connection: &Connection, args: &ReplayArgs) -> Result<Report> {
    let mut report = Report::default();
    let range = args.range.range()?;
    let minutes = match &args.file {
        Some(path) => {
            let mut spec = FileSpec::new(path);
            spec.instrument = args.instrument.clone();
            let (minutes, unreadable) = tokio::task::spawn_blocking(move || from_file(&spec, range)).await??;
            report.unreadable = unreadable;
            minutes
        }
        None => from_store(connection, args, range).await?,
    };
    let Some((first, _)) = minutes.first_key_value() else { bail!("there is nothing to replay in this range") };
    let shift = shift(args.shift_to.as_deref(), *first)?;
    feed(connection, args, minutes, shift, &mut report).await?;
    Ok(report)
}

/// What is added to every open time; whole minutes.
fn shift(to: Option<&str>, first: Millis) -> Result<Millis> {
    let Some(text) = to else { return Ok(0) };
    let at = match text {
        "now" => mesh::clock::now(),
        text => market::parse_millis(text).context("--shift-to")?,
    };
    Ok(at - at.rem_euclid(MINUTE_MS) - MINUTE_MS - first)
}

struct Collected {
    minutes: Minutes,
    range: TimeRange,
    rows: usize,
    unreadable: u64,
    fault: Option<String>,
}

impl Collected {
    fn push(&mut self, key: &InstrumentKey, candle: Candle) -> bool {
        if !self.range.contains(candle.open_time) {
            return true;
        }
        self.rows += 1;
        if self.rows > MAX_ROWS {
            self.fault =
                Some(format!("more than {MAX_ROWS} minutes to replay; narrow the range with --start and --end"));
            return false;
        }
        self.minutes.entry(candle.open_time).or_default().push((key.clone(), candle));
        true
    }
}

impl Sink for Collected {
    fn chunk(&mut self, chunk: Chunk) -> bool {
        if chunk.timeframe != Timeframe::M1 {
            self.fault =
                Some(format!("the file holds candles of {}; a feed is made of minutes or trades", chunk.timeframe));
            return false;
        }
        chunk.rows.iter().all(|candle| self.push(&chunk.instrument, *candle))
    }

    fn bad_row(&mut self, _row: BadRow) -> bool {
        self.unreadable += 1;
        true
    }
}

fn from_file(spec: &FileSpec, range: TimeRange) -> Result<(Minutes, u64)> {
    let mut collected = Collected { minutes: Minutes::new(), range, rows: 0, unreadable: 0, fault: None };
    formats::read(spec, &mut collected)?;
    match collected.fault {
        Some(fault) => bail!(fault),
        None => Ok((collected.minutes, collected.unreadable)),
    }
}

async fn from_store(connection: &Connection, args: &ReplayArgs, range: TimeRange) -> Result<Minutes> {
    let Some(key) = &args.instrument else { bail!("name a file, or --instrument") };
    if args.range.start.is_none() || args.range.end.is_none() {
        bail!("name the part of '{key}' to replay with --start and --end");
    }
    let mut collected = Collected { minutes: Minutes::new(), range, rows: 0, unreadable: 0, fault: None };
    let mut start = range.start();
    while start < range.end() {
        let end = range.end().min(start + READ_MS);
        let request = GetCandlesRequest {
            instrument_key: key.to_string(),
            timeframe: "1m".into(),
            range: Some(convert::wire_range(TimeRange::new(start, end)?)),
            ..Default::default()
        };
        let (_, answer) = query::candles(connection, request).await?;
        for candle in answer.candles {
            let open_time = candle.open_time.as_ref().and_then(convert::millis).unwrap_or_default();
            let candle = Candle {
                open_time,
                open: candle.open,
                high: candle.high,
                low: candle.low,
                close: candle.close,
                volume: candle.volume,
                open_interest: candle.open_interest,
            };
            if !collected.push(key, candle) {
                bail!(collected.fault.unwrap_or_default());
            }
        }
        start = end;
    }
    Ok(collected.minutes)
}

/// The code of a copy; the first is the instrument itself.
fn copy_of(key: &InstrumentKey, copy: usize) -> String {
    if copy == 1 { key.to_string() } else { format!("{key}#{copy}") }
}

/// Stores minute after minute, each once it has passed in the feed's time.
async fn feed(
    connection: &Connection,
    args: &ReplayArgs,
    minutes: Minutes,
    shift: Millis,
    report: &mut Report,
) -> Result<()> {
    let mut client = IngestionServiceClient::new(connection.channel()?)
        .max_encoding_message_size(mesh::MAX_MESSAGE_BYTES)
        .max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
    let first = minutes.first_key_value().map_or(0, |(at, _)| *at);
    let (started, mut reported) = (Instant::now(), None::<Instant>);
    let mut took: Vec<Duration> = Vec::with_capacity(minutes.len());
    for (at, rows) in minutes {
        let due = match args.speed {
            Speed::Times(times) => started + Duration::from_secs_f64((at - first) as f64 / 1000.0 / times),
            Speed::Max => Instant::now(),
        };
        tokio::time::sleep_until(due).await;
        let sent = Instant::now();
        put(connection, &mut client, args, &rows, shift, report).await?;
        took.push(sent.elapsed());
        report.minutes += 1;
        if args.speed == Speed::Max {
            continue;
        }
        let lag = due.elapsed();
        report.longest_lag_seconds = report.longest_lag_seconds.max(lag.as_secs_f64());
        if lag > REPORTED_LAG && reported.is_none_or(|reported| reported.elapsed() > REPORT_EVERY) {
            eprintln!("candlemesh: {:.1} s behind at {}", lag.as_secs_f64(), market::format_millis(at + shift));
            reported = Some(Instant::now());
        }
    }
    took.sort_unstable();
    let in_ms = |took: Option<&Duration>| took.map_or(0.0, |took| took.as_secs_f64() * 1000.0);
    report.put_median_ms = in_ms(took.get(took.len() / 2));
    report.put_slowest_ms = in_ms(took.last());
    report.seconds = started.elapsed().as_secs_f64();
    Ok(())
}

/// Stores one minute of all instruments.
async fn put(
    connection: &Connection,
    client: &mut IngestionServiceClient<Channel>,
    args: &ReplayArgs,
    rows: &[(InstrumentKey, Candle)],
    shift: Millis,
    report: &mut Report,
) -> Result<()> {
    // Of a minute that a file has twice the last counts, as in the store.
    let rows: BTreeMap<&InstrumentKey, &Candle> = rows.iter().map(|(key, candle)| (key, candle)).collect();
    let rows: Vec<(&InstrumentKey, &Candle)> = rows.into_iter().collect();
    let (mut at, total) = (0, rows.len() * args.instruments as usize);
    while at < total {
        let end = total.min(at + MAX_BATCHES);
        let mut batches = Vec::with_capacity(end - at);
        for index in at..end {
            let (key, candle) = rows[index % rows.len()];
            let moved = Candle { open_time: candle.open_time + shift, ..*candle };
            batches.push(CandleBatch {
                instrument_key: copy_of(key, index / rows.len() + 1),
                timeframe: "1m".into(),
                calendar: args.calendar.clone(),
                candles: vec![convert::wire_candle(&moved)],
            });
        }
        at = end;
        report.candles += batches.len() as u64;
        let request = PutCandleBatchesRequest { batches };
        for outcome in put_again(connection, client, args, request, report).await?.outcomes {
            report.stored += outcome.stored;
            report.unchanged += outcome.unchanged;
            report.rejected += outcome.rejected.len() as u64;
        }
    }
    Ok(())
}

/// Stores a call's candles, again where the server was away: what an unanswered call has stored already is unchanged then.
async fn put_again(
    connection: &Connection,
    client: &mut IngestionServiceClient<Channel>,
    args: &ReplayArgs,
    request: PutCandleBatchesRequest,
    report: &mut Report,
) -> Result<PutCandleBatchesResponse> {
    let (until, mut wait) = (Instant::now() + Duration::from_secs(args.retry_for), FIRST_WAIT);
    loop {
        let status = match with_deadline(DEADLINE, client.put_candle_batches(request.clone())).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => status,
        };
        // A server that never answered is not there; one that did may come back.
        let has_answered = report.stored + report.unchanged + report.rejected > 0;
        if !has_answered || !may_return(&status) || Instant::now() + wait > until {
            let fed = format!("{} minutes are stored; {RERUN}", report.minutes);
            return Err(connection.explain(status).context(fed));
        }
        eprintln!("candlemesh: {}; trying again in {wait:?}", status.message());
        // Between half and all of it, so that many feeds do not come back at once.
        tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..=1.0))).await;
        wait = (wait * 2).min(LONGEST_WAIT);
        report.retries += 1;
    }
}

/// Whether the same call may succeed a little later.
fn may_return(status: &Status) -> bool {
    let returns = [
        Code::Unavailable,
        Code::DeadlineExceeded,
        Code::Cancelled,
        Code::Aborted,
        Code::ResourceExhausted,
        // What transports make of a broken connection.
        Code::Unknown,
        Code::Internal,
    ];
    returns.contains(&status.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_numbers_in_their_range_or_max() {
        assert_eq!("max".parse(), Ok(Speed::Max));
        assert_eq!("2.5".parse(), Ok(Speed::Times(2.5)));
        for edge in SPEEDS.start().to_string().parse::<Speed>().into_iter().chain("1000000".parse()) {
            let Speed::Times(times) = edge else { panic!("{edge:?}") };
            // The longest feed there can be has its times.
            let longest = (TimeRange::ALL.end() - TimeRange::ALL.start()) as f64 / 1000.0 / times;
            assert!(Instant::now().checked_add(Duration::from_secs_f64(longest)).is_some());
        }
        for bad in ["0", "-1", "1e-300", "0.0009", "1000001", "inf", "NaN", "fast", ""] {
            assert!(bad.parse::<Speed>().unwrap_err().contains("max"), "{bad}");
        }
    }

    #[test]
    fn a_shifted_feed_keeps_its_minutes_and_its_first_one_passes_then() {
        let first = market::parse_millis("2016-08-16T03:45:00Z").unwrap();
        let moved = shift(Some("2024-01-02T10:00:42Z"), first).unwrap();
        assert_eq!(market::format_millis(first + moved), "2024-01-02T09:59:00Z");
        assert_eq!(shift(None, first).unwrap(), 0);
        assert!(shift(Some("soon"), first).is_err());
    }
}

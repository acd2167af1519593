//! `load`: files to ingestion, by Flight DoPut.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow_array::{Float64Array, RecordBatch, TimestampMillisecondArray};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightData, FlightDescriptor};
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use market::{InstrumentKey, Timeframe};
use prost::Message;
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{GetInstrumentRequest, PutInstrumentRequest};
use proto::wire::{FrameTicket, Instrument, StoredCandlesTicket, frame_ticket};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{Channel, Connection};
use crate::input::{self, BadRow, Chunk, FileSpec, Manifest, Sink};
use crate::output::say_line;

/// Chunks read ahead of the network.
const READ_AHEAD: usize = 4;
/// Rejected rows kept for the report; all are counted.
const MAX_REPORTED: usize = 1000;
/// What to do after a load that ended early.
const RETRY: &str = "what is counted here is stored, and loading the same files again is safe";

/// `load`'s arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct LoadArgs {
    /// Files: .csv, .csv.gz or .parquet.
    #[arg(required_unless_present = "manifest")]
    pub files: Vec<PathBuf>,
    /// Instrument of files that do not name it, for example "NSE_EQ|INE002A01018".
    #[arg(long)]
    pub instrument: Option<InstrumentKey>,
    /// Calendar of instruments not seen before: NSE, NYSE, CME, FX, EUREX or 24x7.
    #[arg(long)]
    pub calendar: Option<String>,
    /// CSV with columns key, file and interval; without files, everything in it is loaded.
    #[arg(long)]
    pub manifest: Option<PathBuf>,
    /// Width of the candles; default: the manifest's interval, else 1m.
    #[arg(long)]
    pub timeframe: Option<Timeframe>,
    /// Exit with status 1 if any row was rejected.
    #[arg(long)]
    pub strict: bool,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Outcome of a load.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub files: Vec<FileReport>,
    pub stored: u64,
    pub unchanged: u64,
    pub rejected: u64,
}

/// Outcome of one file.
#[derive(Debug, Default, Serialize)]
pub struct FileReport {
    pub file: String,
    pub stored: u64,
    pub unchanged: u64,
    pub rejected: u64,
    /// The first rejected rows, with their reasons.
    pub reasons: Vec<Rejected>,
    /// Why reading stopped before the end; what came before is stored.
    pub error: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct Rejected {
    pub line: u64,
    pub reason: String,
}

/// What ingestion says of a batch, in a PutResult's metadata.
#[derive(Debug, Deserialize)]
struct Acknowledgement {
    stored: u64,
    unchanged: u64,
    #[serde(default)]
    rejected: Vec<RejectedRow>,
}

#[derive(Debug, Deserialize)]
struct RejectedRow {
    /// Index over the whole stream.
    row: u64,
    reason: String,
}

/// Decides what each file holds.
pub fn plan(args: &LoadArgs) -> Result<Vec<FileSpec>> {
    let manifest = args.manifest.as_deref().map(Manifest::read).transpose()?;
    let files = match (&manifest, args.files.is_empty()) {
        (Some(manifest), true) => manifest.files(),
        _ => args.files.clone(),
    };
    Ok(files
        .into_iter()
        .map(|path| {
            let found = manifest.as_ref().and_then(|manifest| manifest.find(&path));
            let (named, interval) = found.map_or((None, None), |(key, interval)| (Some(key), interval));
            let timeframe = args.timeframe.or(interval).unwrap_or(Timeframe::M1);
            FileSpec { path, instrument: args.instrument.clone().or(named), timeframe }
        })
        .collect())
}

/// Loads every file, in order; a broken file does not stop the others.
///
/// Errors: the first file could not be sent. A server that fails later ends the load, with the reason in the last file's report.
pub async fn load(connection: &Connection, specs: &[FileSpec], calendar: Option<&str>, quiet: bool) -> Result<Report> {
    let loader = Loader { connection: connection.clone(), channel: connection.channel()?, calendar };
    let progress = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    let style = ProgressStyle::with_template("{spinner} {msg} {human_pos} rows, {per_sec}, {elapsed}");
    progress.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    let mut report = Report::default();
    for spec in specs {
        let name = spec.path.display().to_string();
        progress.set_message(name.clone());
        let mut file = FileReport { file: name.clone(), ..Default::default() };
        let failed = loader.file(spec, &mut file, &progress).await.err();
        let nothing_yet = report.files.is_empty() && file.stored + file.unchanged == 0;
        match &failed {
            Some(_) if nothing_yet => return Err(failed.with_context(|| name)?),
            Some(error) => file.error = Some(format!("{error:#}; {RETRY}")),
            None => file.reasons.sort_by_key(|rejected| rejected.line),
        }
        report.stored += file.stored;
        report.unchanged += file.unchanged;
        report.rejected += file.rejected;
        report.files.push(file);
        if failed.is_some() {
            break;
        }
    }
    progress.finish_and_clear();
    Ok(report)
}

/// The command.
pub async fn run(connection: &Connection, args: &LoadArgs) -> Result<std::process::ExitCode> {
    let specs = plan(args)?;
    let report = load(connection, &specs, args.calendar.as_deref(), args.json).await?;
    match args.json {
        true => say_line!("{}", serde_json::to_string_pretty(&report)?),
        false => print_report(&report),
    }
    let broken = report.files.iter().any(|file| file.error.is_some());
    let failed = broken || (args.strict && report.rejected > 0);
    Ok(if failed { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS })
}

fn print_report(report: &Report) {
    for file in &report.files {
        say_line!("{}: {} stored, {} unchanged, {} rejected", file.file, file.stored, file.unchanged, file.rejected);
        for rejected in file.reasons.iter().take(10) {
            say_line!("  line {}: {}", rejected.line, rejected.reason);
        }
        if file.rejected > 10 {
            say_line!("  ... and {} more; all of the first {MAX_REPORTED} with --json", file.rejected - 10);
        }
        if let Some(error) = &file.error {
            say_line!("  stopped: {error}");
        }
    }
    if report.files.len() > 1 {
        say_line!("total: {} stored, {} unchanged, {} rejected", report.stored, report.unchanged, report.rejected);
    }
}

/// What the reading thread sends.
enum Event {
    Chunk(Chunk),
    BadRow(BadRow),
    End(Option<String>),
}

struct Feed(mpsc::Sender<Event>);

impl Sink for Feed {
    fn chunk(&mut self, chunk: Chunk) -> bool {
        self.0.blocking_send(Event::Chunk(chunk)).is_ok()
    }

    fn bad_row(&mut self, row: BadRow) -> bool {
        self.0.blocking_send(Event::BadRow(row)).is_ok()
    }
}

struct Loader<'a> {
    connection: Connection,
    channel: Channel,
    calendar: Option<&'a str>,
}

/// One DoPut in progress: an instrument's rows on their way, and which lines they are from.
struct Put {
    instrument: InstrumentKey,
    batches: mpsc::Sender<RecordBatch>,
    answers: tonic::Streaming<arrow_flight::PutResult>,
    lines: Vec<u64>,
    in_flight: usize,
}

impl Loader<'_> {
    async fn file(&self, spec: &FileSpec, report: &mut FileReport, progress: &ProgressBar) -> Result<()> {
        let (sender, mut events) = mpsc::channel(READ_AHEAD);
        let reading = spec.clone();
        let reader = tokio::task::spawn_blocking(move || {
            let mut feed = Feed(sender);
            let outcome = input::read(&reading, &mut feed);
            let _ = feed.0.blocking_send(Event::End(outcome.err().map(|error| error.to_string())));
        });
        let mut put: Option<Put> = None;
        while let Some(event) = events.recv().await {
            match event {
                Event::BadRow(row) => reject(report, row.line, row.reason),
                Event::End(error) => report.error = error,
                Event::Chunk(chunk) => {
                    let current = match put.take() {
                        Some(current) if current.instrument == chunk.instrument => current,
                        other => {
                            if let Some(done) = other {
                                self.finish(done, report).await?;
                            }
                            self.begin(&chunk.instrument, spec.timeframe).await?
                        }
                    };
                    progress.inc(chunk.rows.len() as u64);
                    put = Some(self.send(current, chunk, report).await?);
                }
            }
        }
        if let Some(done) = put {
            self.finish(done, report).await?;
        }
        reader.await.context("reading thread")
    }

    async fn begin(&self, instrument: &InstrumentKey, timeframe: Timeframe) -> Result<Put> {
        if let Some(calendar) = self.calendar {
            self.set_calendar(instrument, calendar).await?;
        }
        let ticket = StoredCandlesTicket {
            instrument_key: instrument.to_string(),
            timeframe: timeframe.to_string(),
            ..Default::default()
        };
        let ticket = FrameTicket { frame: Some(frame_ticket::Frame::StoredCandles(ticket)) };
        let descriptor = FlightDescriptor::new_cmd(ticket.encode_to_vec());
        let (batches, receiver) = mpsc::channel(1);
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver).map(Ok);
        let schema = proto::arrow::candle_schema(Default::default());
        let data = FlightDataEncoderBuilder::new()
            .with_schema(schema)
            .with_flight_descriptor(Some(descriptor))
            .build(stream)
            // Encoding in-memory columns of a fixed schema does not fail; if it did, the stream would end short and be noticed.
            .filter_map(|data: Result<FlightData, _>| async move { data.ok() });
        let mut client = FlightServiceClient::new(self.channel.clone());
        let answers = client.do_put(data).await.map_err(|status| self.connection.explain(status))?.into_inner();
        Ok(Put { instrument: instrument.clone(), batches, answers, lines: Vec::new(), in_flight: 0 })
    }

    async fn send(&self, mut put: Put, chunk: Chunk, report: &mut FileReport) -> Result<Put> {
        let batch = batch(&chunk)?;
        put.lines.extend_from_slice(&chunk.lines);
        if put.batches.send(batch).await.is_err() {
            // The server has ended the call; its status says why.
            self.acknowledge(&mut put, report).await?;
            bail!("ingestion ended the stream early");
        }
        put.in_flight += 1;
        while put.in_flight > 1 {
            self.acknowledge(&mut put, report).await?;
        }
        Ok(put)
    }

    async fn finish(&self, mut put: Put, report: &mut FileReport) -> Result<()> {
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut put.batches, closed));
        while put.in_flight > 0 {
            self.acknowledge(&mut put, report).await?;
        }
        Ok(())
    }

    async fn acknowledge(&self, put: &mut Put, report: &mut FileReport) -> Result<()> {
        let answer = put.answers.message().await.map_err(|status| self.connection.explain(status))?;
        let answer = answer.context("ingestion ended the stream before acknowledging every batch")?;
        let answer: Acknowledgement = serde_json::from_slice(&answer.app_metadata).context("acknowledgement")?;
        put.in_flight -= 1;
        report.stored += answer.stored;
        report.unchanged += answer.unchanged;
        for row in answer.rejected {
            let line = put.lines.get(row.row as usize).copied().unwrap_or_default();
            reject(report, line, row.reason);
        }
        Ok(())
    }

    /// Names the calendar of an instrument not seen before; that of a known one is not changed by a load.
    async fn set_calendar(&self, instrument: &InstrumentKey, calendar: &str) -> Result<()> {
        let mut client = IngestionServiceClient::new(self.channel.clone());
        let known = client.get_instrument(GetInstrumentRequest { instrument_key: instrument.to_string() }).await;
        match known {
            Ok(known) => {
                let known = known.into_inner().instrument.unwrap_or_default().calendar;
                if market::Calendar::by_name(calendar)?.name() != known {
                    bail!("{instrument} is known with calendar {known}, not {calendar}");
                }
                return Ok(());
            }
            Err(status) if status.code() == tonic::Code::NotFound => {}
            Err(status) => return Err(self.connection.explain(status)),
        }
        let message =
            Instrument { instrument_key: instrument.to_string(), calendar: calendar.to_owned(), ..Default::default() };
        let request = PutInstrumentRequest { instrument: Some(message) };
        client.put_instrument(request).await.map_err(|status| self.connection.explain(status))?;
        Ok(())
    }
}

fn reject(report: &mut FileReport, line: u64, reason: String) {
    report.rejected += 1;
    if report.reasons.len() < MAX_REPORTED {
        report.reasons.push(Rejected { line, reason });
    }
}

/// Rows as they are, in file order: judging them is ingestion's business.
fn batch(chunk: &Chunk) -> Result<RecordBatch> {
    let column = |value: fn(&market::Candle) -> f64| -> arrow_array::ArrayRef {
        Arc::new(Float64Array::from_iter_values(chunk.rows.iter().map(value)))
    };
    let times = TimestampMillisecondArray::from_iter_values(chunk.rows.iter().map(|row| row.open_time));
    let interest = Float64Array::from_iter(chunk.rows.iter().map(|row| row.open_interest));
    let columns: Vec<arrow_array::ArrayRef> = vec![
        Arc::new(times.with_timezone("UTC")),
        column(|row| row.open),
        column(|row| row.high),
        column(|row| row.low),
        column(|row| row.close),
        column(|row| row.volume),
        Arc::new(interest),
    ];
    Ok(RecordBatch::try_new(proto::arrow::candle_schema(Default::default()), columns)?)
}

//! `export`: candles from Flight to Parquet or CSV files that `load` reads back to the bit.
//!
//! A file is written under a temporary name and renamed once it is whole; then the manifest gets its line. So every file that the
//! manifest names is complete, whenever the export ends.

mod file;
mod manifest;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use arrow_array::RecordBatch;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Criteria, FlightDescriptor, FlightEndpoint};
use formats::ACTIONS_NAME;
use futures::TryStreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use market::{InstrumentKey, TimeRange, Timeframe};
use mesh::flight::ListCriteria;
use mesh::source::status_of_answer;
use prost::Message;
use proto::convert::{self, wire_range};
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{GetCoverageRequest, GetInstrumentRequest, ListCorporateActionsRequest};
use proto::wire::frame_ticket::Frame;
use proto::wire::{CandlesTicket, FrameTicket, Instrument, StoredCandlesTicket};
use serde::Serialize;

pub use self::file::Format;
use self::file::Writer;
use self::manifest::{Manifest, Row};
use super::{Channel, Connection, RangeArgs, actions};
use crate::output::say_line;

/// `export`'s arguments.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ExportArgs {
    /// A folder, or the one file to write: a name that ends in .parquet, .csv or .csv.gz.
    #[arg(long)]
    pub out: PathBuf,
    /// parquet, csv or csv.gz; default: by the name of the file, else parquet.
    #[arg(long)]
    pub format: Option<Format>,
    /// For example "NSE_EQ|INE002A01018"; repeat for several. Default: every instrument.
    #[arg(long, conflicts_with = "segment")]
    pub instrument: Vec<InstrumentKey>,
    /// Every instrument of a segment, for example NSE_EQ.
    #[arg(long)]
    pub segment: Option<String>,
    /// Aggregated candles of this width; default: the candles as they are stored, one file per stored timeframe.
    #[arg(long)]
    pub timeframe: Option<Timeframe>,
    #[command(flatten)]
    pub range: RangeArgs,
    /// Revision to repeat, of the one instrument that is exported.
    #[arg(long)]
    pub revision: Option<u64>,
    /// Keep files that an earlier export into the folder completed and that are still current.
    #[arg(long)]
    pub resume: bool,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Outcome of an export.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub files: Vec<Exported>,
    pub rows: u64,
    /// Files of an earlier export that were kept.
    pub kept: u64,
    /// Splits and dividends written beside the files of a folder.
    pub actions: u64,
}

/// A file that is complete.
#[derive(Debug, Serialize)]
pub struct Exported {
    pub file: PathBuf,
    pub key: String,
    pub timeframe: String,
    pub rows: u64,
    pub revision: u64,
}

/// A frame to be written.
#[derive(Debug, Clone)]
struct Job {
    key: InstrumentKey,
    timeframe: Timeframe,
}

/// The command.
pub async fn run(connection: &Connection, args: &ExportArgs) -> Result<ExitCode> {
    let report = export(connection, args).await?;
    match args.json {
        true => say_line!("{}", serde_json::to_string_pretty(&report)?),
        false => {
            let kept = if report.kept == 0 { String::new() } else { format!(", {} files kept", report.kept) };
            let actions = match report.actions {
                0 => String::new(),
                count => format!(", {count} splits and dividends"),
            };
            say_line!("{} files, {} candles{actions}{kept}", report.files.len(), report.rows);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Exports what the arguments name.
///
/// Errors: nothing to export, or the first failure; what was completed before it stays, and the error says how to go on.
pub async fn export(connection: &Connection, args: &ExportArgs) -> Result<Report> {
    let exporter = Exporter { connection, channel: connection.channel()?, args, range: args.range.range()? };
    let jobs = exporter.jobs().await?;
    ensure!(!jobs.is_empty(), "there are no candles to export; `candlemesh load` stores some");
    let of_one = jobs.windows(2).all(|pair| pair[0].key == pair[1].key);
    ensure!(
        args.revision.is_none() || of_one,
        "--revision is of one instrument, and several are to be exported; name one with --instrument"
    );
    match Format::of_name(&args.out) {
        Some(named) if !args.out.is_dir() => exporter.one(&jobs, named).await,
        None if args.out.extension().is_some() && !args.out.is_dir() => bail!(
            "{} is neither a folder nor a file of a known kind; name a file that ends in .parquet, .csv or .csv.gz, or a folder \
             that is there or has no dot in its name",
            args.out.display()
        ),
        _ => exporter.folder(&jobs).await,
    }
}

struct Exporter<'a> {
    connection: &'a Connection,
    channel: Channel,
    args: &'a ExportArgs,
    range: TimeRange,
}

impl Exporter<'_> {
    fn flight(&self) -> FlightServiceClient<Channel> {
        FlightServiceClient::new(self.channel.clone()).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES)
    }

    /// What to write, in order of instruments and timeframes.
    async fn jobs(&self) -> Result<Vec<Job>> {
        let mut stored = match self.args.instrument.is_empty() {
            true => self.listed().await?,
            false => self.named().await?,
        };
        if let Some(timeframe) = self.args.timeframe {
            stored.iter_mut().for_each(|job| job.timeframe = timeframe);
            stored.dedup_by(|a, b| a.key == b.key);
        }
        Ok(stored)
    }

    async fn named(&self) -> Result<Vec<Job>> {
        let mut client = IngestionServiceClient::new(self.channel.clone());
        let mut jobs = Vec::new();
        for key in &self.args.instrument {
            let request = GetCoverageRequest { instrument_key: key.to_string() };
            let answer = client.get_coverage(request).await.map_err(|status| self.connection.explain(status))?;
            for held in answer.into_inner().coverage {
                let timeframe = held.timeframe.parse().context("coverage")?;
                if !jobs.iter().any(|job: &Job| job.key == *key && job.timeframe == timeframe) {
                    jobs.push(Job { key: key.clone(), timeframe });
                }
            }
        }
        Ok(jobs)
    }

    /// Every stored frame, page after page.
    async fn listed(&self) -> Result<Vec<Job>> {
        let segment = self.args.segment.clone();
        let mut criteria = ListCriteria { segment, after: None, limit: mesh::flight::MAX_LISTED_INSTRUMENTS };
        let mut jobs = Vec::new();
        loop {
            let request = Criteria { expression: criteria.to_json().into() };
            let listed = self.flight().list_flights(request).await.map_err(|status| self.connection.explain(status))?;
            let mut listed = listed.into_inner();
            let mut next = None;
            while let Some(info) = listed.message().await.map_err(|status| self.connection.explain(status))? {
                let command = info.flight_descriptor.unwrap_or_default().cmd;
                let ticket = FrameTicket::decode(command).context("a listed flight")?;
                let Some(Frame::StoredCandles(ticket)) = ticket.frame else { continue };
                let key = ticket.instrument_key.parse().context("a listed flight")?;
                let timeframe = ticket.timeframe.parse().context("a listed flight")?;
                jobs.push(Job { key, timeframe });
                next = (!info.app_metadata.is_empty()).then_some(info.app_metadata);
            }
            let Some(next) = next else { return Ok(jobs) };
            criteria = ListCriteria::parse(&next).map_err(|status| self.connection.explain(status))?;
        }
    }

    fn descriptor(&self, job: &Job) -> FlightDescriptor {
        let range = (self.range != TimeRange::ALL).then(|| wire_range(self.range));
        let (instrument_key, timeframe) = (job.key.to_string(), job.timeframe.to_string());
        let revision = self.args.revision;
        let frame = match self.args.timeframe {
            Some(_) => {
                Frame::Candles(CandlesTicket { instrument_key, timeframe, range, revision, ..Default::default() })
            }
            None => Frame::StoredCandles(StoredCandlesTicket { instrument_key, timeframe, range, revision }),
        };
        FlightDescriptor::new_cmd(FrameTicket { frame: Some(frame) }.encode_to_vec())
    }

    /// The one file that was named.
    async fn one(&self, jobs: &[Job], named: Format) -> Result<Report> {
        let out = &self.args.out;
        let [job] = jobs else {
            bail!(
                "{} is one file, and {} frames are to be exported; name a folder, or one --instrument and --timeframe",
                out.display(),
                jobs.len()
            );
        };
        let format = self.args.format.unwrap_or(named);
        let progress = self.progress();
        let info = self.info(job).await?;
        let exported = self.file(job, info, out, format, &progress).await?;
        progress.finish_and_clear();
        Ok(Report { rows: exported.rows, files: vec![exported], ..Report::default() })
    }

    /// A file per frame, and the manifest.
    async fn folder(&self, jobs: &[Job]) -> Result<Report> {
        let (folder, format) = (&self.args.out, self.args.format.unwrap_or(Format::Parquet));
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let mut manifest = Manifest::begin(folder, self.args.resume)?;
        let progress = self.progress();
        let mut report = Report::default();
        let mut known: BTreeMap<InstrumentKey, Instrument> = BTreeMap::new();
        for (done, job) in jobs.iter().enumerate() {
            let name = file::name(&job.key, job.timeframe, format);
            progress.set_message(format!("{} {}", job.key, job.timeframe));
            let outcome = async {
                let info = self.info(job).await?;
                if !known.contains_key(&job.key) {
                    known.insert(job.key.clone(), self.instrument(&job.key).await?);
                }
                let instrument = &known[&job.key];
                let (revision, path) = (info.revision, folder.join(&name));
                let row = |rows| Row::new(&name, instrument, job.timeframe, rows, revision, self.range);
                if manifest.holds(&row(0)) {
                    report.kept += 1;
                    return Ok(());
                }
                let exported = self.file(job, info, &path, format, &progress).await?;
                manifest.add(&row(exported.rows))?;
                report.rows += exported.rows;
                report.files.push(exported);
                Ok::<(), anyhow::Error>(())
            };
            outcome.await.with_context(|| {
                let total = jobs.len();
                format!(
                    "{} {}: {done} of {total} files are complete; run it again with --resume",
                    job.key, job.timeframe
                )
            })?;
        }
        report.actions = self.actions(folder, known.keys()).await?;
        progress.finish_and_clear();
        Ok(report)
    }

    /// What is known of an instrument.
    async fn instrument(&self, key: &InstrumentKey) -> Result<Instrument> {
        let mut client = IngestionServiceClient::new(self.channel.clone());
        let answer = client.get_instrument(GetInstrumentRequest { instrument_key: key.to_string() }).await;
        let answer = answer.map_err(|status| self.connection.explain(status))?;
        answer.into_inner().instrument.context("an answer without the instrument")
    }

    /// Writes the splits and dividends of instruments, where there are any. Returns how many.
    async fn actions(&self, folder: &Path, keys: impl Iterator<Item = &InstrumentKey>) -> Result<u64> {
        let mut client = IngestionServiceClient::new(self.channel.clone());
        let mut found = Vec::new();
        for key in keys {
            let request = ListCorporateActionsRequest { instrument_key: key.to_string() };
            let answer = client.list_corporate_actions(request).await;
            for message in &answer.map_err(|status| self.connection.explain(status))?.into_inner().actions {
                found.push(convert::corporate_action("action", message)?);
            }
        }
        let path = folder.join(ACTIONS_NAME);
        if found.is_empty() {
            // Those of an earlier export, which were deleted since.
            if path.exists() {
                std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
            return Ok(0);
        }
        let part = folder.join(format!(".{ACTIONS_NAME}.part"));
        actions::write(&part, &found).with_context(|| part.display().to_string())?;
        std::fs::rename(&part, &path).with_context(|| path.display().to_string())?;
        Ok(found.len() as u64)
    }

    fn progress(&self) -> ProgressBar {
        let progress = if self.args.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        let style = ProgressStyle::with_template("{spinner} {msg} {human_pos} rows, {per_sec}, {elapsed}");
        progress.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
    }

    /// The parts of a frame, all of one revision.
    async fn info(&self, job: &Job) -> Result<Info> {
        let info = self.flight().get_flight_info(self.descriptor(job)).await;
        let info = info.map_err(|status| self.connection.explain(status))?.into_inner();
        let parts = info.endpoint.clone();
        let schema = info.try_decode_schema().context("schema of the flight")?;
        let revision = schema.metadata.get("revision").and_then(|text| text.parse().ok());
        Ok(Info { parts, revision: revision.context("the flight's schema names no revision")? })
    }

    async fn file(
        &self,
        job: &Job,
        info: Info,
        path: &Path,
        format: Format,
        progress: &ProgressBar,
    ) -> Result<Exported> {
        let mut writer = Writer::create(path, format, &job.key, job.timeframe, info.revision)?;
        for part in info.parts {
            let ticket = part.ticket.context("a part without a ticket")?;
            let data = self.flight().do_get(ticket).await.map_err(|status| self.connection.explain(status))?;
            let data = data.into_inner().map_err(|status| FlightError::Tonic(Box::new(status)));
            let mut batches = FlightRecordBatchStream::new_from_flight_data(data);
            while let Some(batch) = self.next(&mut batches).await? {
                progress.inc(batch.num_rows() as u64);
                writer.write(&batch)?;
            }
        }
        let rows = writer.finish()?;
        let (key, timeframe, revision) = (job.key.to_string(), job.timeframe.to_string(), info.revision);
        Ok(Exported { file: path.to_path_buf(), key, timeframe, rows, revision })
    }

    async fn next(&self, batches: &mut FlightRecordBatchStream) -> Result<Option<RecordBatch>> {
        batches.try_next().await.map_err(|error| self.connection.explain(status_of_answer(error)))
    }
}

/// Where a frame is read.
struct Info {
    parts: Vec<FlightEndpoint>,
    revision: u64,
}

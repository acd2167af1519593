//! `backfill`: files of the server's backfill folder, loaded as a job that survives the server.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use market::{InstrumentKey, Timeframe};
use proto::ingestion::backfill_service_client::BackfillServiceClient;
use proto::ingestion::{
    Backfill, BackfillFile, BackfillState, CancelBackfillRequest, CreateBackfillRequest, GetBackfillRequest,
    ListBackfillsRequest, PauseBackfillRequest, ResumeBackfillRequest, WatchBackfillRequest,
};
use tonic::Code;

use super::query::{json_of, print_json};
use super::{Channel, Connection};
use crate::output::say_line;

/// Rows of a page.
const PAGE_SIZE: i32 = 1000;
/// Jobs listed where no number is given.
const LISTED: i32 = 100;
/// Rejected rows printed per file; all that are kept are in the JSON.
const PRINTED_REASONS: usize = 5;
/// Wait before a watch that broke off is begun again.
const RECONNECT: Duration = Duration::from_secs(1);
/// Watches in a row that may break off without news: the server is away for long, and the job goes on without us.
const MAX_RECONNECTS: u32 = 30;

/// `backfill`'s subcommands.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum BackfillCommand {
    /// Starts a job over a file or a folder of the server's backfill folder.
    Start(StartArgs),
    /// Lists jobs, newest first.
    List {
        #[arg(long)]
        json: bool,
    },
    /// Shows a job; exit status 1 when files failed.
    Show {
        id: String,
        /// And what became of each file.
        #[arg(long)]
        files: bool,
        #[arg(long)]
        json: bool,
    },
    /// Watches a job to its end; exit status 1 unless it is done.
    Watch {
        id: String,
        #[arg(long)]
        json: bool,
    },
    /// Stops a job after the rows under way.
    Pause {
        id: String,
        #[arg(long)]
        json: bool,
    },
    /// Continues a paused job, or a failed one with the files that failed.
    Resume {
        id: String,
        #[arg(long)]
        json: bool,
    },
    /// Ends a job for good; what was stored stays.
    Cancel {
        id: String,
        #[arg(long)]
        json: bool,
    },
}

/// `backfill start`'s arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct StartArgs {
    /// File or folder, relative to the server's backfill folder; "." is all of it.
    pub path: String,
    /// Name of the files' format; `candlemesh load --format help` lists them.
    #[arg(long)]
    pub format: Option<String>,
    /// Instrument of files that do not name it.
    #[arg(long)]
    pub instrument: Option<InstrumentKey>,
    /// Width of the candles; default: what the manifest or the file says.
    #[arg(long)]
    pub timeframe: Option<Timeframe>,
    /// CSV with columns file, key and, optionally, interval; relative to the backfill folder.
    #[arg(long)]
    pub manifest: Option<String>,
    /// Read everything and report, store nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// A name for this call: a second one with the same name is the same job.
    #[arg(long)]
    pub request_id: Option<String>,
    /// Watch the job to its end; exit status 1 unless it is done.
    #[arg(long)]
    pub wait: bool,
    #[arg(long)]
    pub json: bool,
}

/// A connection for one command.
struct Jobs<'a> {
    client: BackfillServiceClient<Channel>,
    connection: &'a Connection,
}

pub async fn run(connection: &Connection, command: &BackfillCommand) -> Result<ExitCode> {
    let client = BackfillServiceClient::new(connection.channel()?).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
    let mut jobs = Jobs { client, connection };
    let explain = |status| connection.explain(status);
    let (job, json, asked) = match command {
        BackfillCommand::Start(args) => return jobs.start(args).await,
        BackfillCommand::List { json } => {
            jobs.list(*json).await?;
            return Ok(ExitCode::SUCCESS);
        }
        BackfillCommand::Show { id, files, json } => return jobs.show(id, *files, *json).await,
        BackfillCommand::Watch { id, json } => return jobs.watch(id, *json).await,
        BackfillCommand::Pause { id, json } => {
            let request = PauseBackfillRequest { backfill_id: id.clone() };
            let job = jobs.client.pause_backfill(request).await.map_err(explain)?.into_inner().backfill;
            (job, *json, Some(BackfillState::Paused))
        }
        BackfillCommand::Resume { id, json } => {
            let request = ResumeBackfillRequest { backfill_id: id.clone() };
            (jobs.client.resume_backfill(request).await.map_err(explain)?.into_inner().backfill, *json, None)
        }
        BackfillCommand::Cancel { id, json } => {
            let request = CancelBackfillRequest { backfill_id: id.clone() };
            let job = jobs.client.cancel_backfill(request).await.map_err(explain)?.into_inner().backfill;
            (job, *json, Some(BackfillState::Cancelled))
        }
    };
    let job = job.unwrap_or_default();
    print_job(&job, json)?;
    if let (false, Some(note)) = (json, asked.and_then(|asked| still_running(&job, asked))) {
        say_line!("  {note}");
    }
    Ok(ExitCode::SUCCESS)
}

/// What is said of a job that is asked to stop and has not yet.
fn still_running(job: &Backfill, asked: BackfillState) -> Option<String> {
    let (id, asked) = (&job.backfill_id, state(asked));
    (job.state() == BackfillState::Running).then(|| {
        format!("asked to be {asked}: it will be after the rows under way; see: candlemesh backfill show {id}")
    })
}

impl Jobs<'_> {
    async fn start(&mut self, args: &StartArgs) -> Result<ExitCode> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let request = CreateBackfillRequest {
            path: args.path.clone(),
            format: text(&args.format),
            instrument_key: args.instrument.as_ref().map(ToString::to_string).unwrap_or_default(),
            timeframe: args.timeframe.map(|timeframe| timeframe.to_string()).unwrap_or_default(),
            manifest: text(&args.manifest),
            dry_run: args.dry_run,
            request_id: text(&args.request_id),
        };
        let created = self.client.create_backfill(request).await.map_err(|status| self.connection.explain(status))?;
        let job = created.into_inner().backfill.unwrap_or_default();
        if args.wait {
            return self.watch(&job.backfill_id, args.json).await;
        }
        print_job(&job, args.json)?;
        Ok(ExitCode::SUCCESS)
    }

    async fn list(&mut self, json: bool) -> Result<()> {
        let request = ListBackfillsRequest { page_size: LISTED, ..Default::default() };
        let answer = self.client.list_backfills(request).await.map_err(|status| self.connection.explain(status))?;
        let answer = answer.into_inner();
        if json {
            return print_json(&answer, "candlemesh.ingestion.v1.ListBackfillsResponse");
        }
        for job in &answer.backfills {
            say_line!("{}", line(job));
        }
        if !answer.next_page_token.is_empty() {
            say_line!("... and older ones");
        }
        Ok(())
    }

    async fn get(
        &mut self,
        id: &str,
        page_size: i32,
        page_token: String,
    ) -> Result<(Backfill, Vec<BackfillFile>, String)> {
        let request = GetBackfillRequest { backfill_id: id.to_owned(), page_size, page_token };
        let answer = self.client.get_backfill(request).await.map_err(|status| self.connection.explain(status))?;
        let answer = answer.into_inner();
        Ok((answer.backfill.unwrap_or_default(), answer.files, answer.next_page_token))
    }

    async fn show(&mut self, id: &str, with_files: bool, json: bool) -> Result<ExitCode> {
        let page_size = if with_files { PAGE_SIZE } else { 1 };
        let (job, mut files, mut page_token) = self.get(id, page_size, String::new()).await?;
        while with_files && !page_token.is_empty() {
            let (_, more, next) = self.get(id, page_size, page_token).await?;
            files.extend(more);
            page_token = next;
        }
        match (json, with_files) {
            (false, _) => print_job(&job, false)?,
            (true, false) => print_json(&job, "candlemesh.ingestion.v1.Backfill")?,
            (true, true) => {
                let files = files.iter().map(|file| json_of(file, "candlemesh.ingestion.v1.BackfillFile"));
                let files = files.collect::<Result<Vec<_>>>()?;
                let job = json_of(&job, "candlemesh.ingestion.v1.Backfill")?;
                say_line!("{:#}", serde_json::json!({ "backfill": job, "files": files }));
            }
        }
        if with_files && !json {
            files.iter().for_each(print_file);
        }
        Ok(if job.files_failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// Watches a job to its end, also when the server is restarted meanwhile.
    async fn watch(&mut self, id: &str, json: bool) -> Result<ExitCode> {
        let progress = if json { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}, {msg}, {elapsed}, {eta} to go");
        progress.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        progress.enable_steady_tick(Duration::from_millis(200));
        let job = self.last(id, &progress).await;
        progress.finish_and_clear();
        let job = job?;
        print_job(&job, json)?;
        Ok(if job.state() == BackfillState::Done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn last(&mut self, id: &str, progress: &ProgressBar) -> Result<Backfill> {
        let mut last = None;
        let mut broken = 0;
        // Rows and time of the first news, for the rate: a job may be watched long after its start.
        let mut first: Option<(u64, std::time::Instant)> = None;
        loop {
            let request = WatchBackfillRequest { backfill_id: id.to_owned() };
            let broke_off = match self.client.watch_backfill(request).await {
                Err(status) => status,
                Ok(updates) => {
                    let mut updates = updates.into_inner();
                    loop {
                        match updates.message().await {
                            Ok(Some(update)) => {
                                let job = update.backfill.unwrap_or_default();
                                let (rows, since) = *first.get_or_insert((job.rows_read, std::time::Instant::now()));
                                show(progress, &job, job.rows_read.saturating_sub(rows), since.elapsed());
                                last = Some(job);
                                broken = 0;
                            }
                            Ok(None) => return last.context("the server ended the watch without a word"),
                            Err(status) => break status,
                        }
                    }
                }
            };
            broken += 1;
            let passes = matches!(broke_off.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled);
            // A server that never answered is not there; one that did may come back.
            if !passes || last.is_none() || broken > MAX_RECONNECTS {
                return Err(self.connection.explain(broke_off));
            }
            progress.set_message("the server is away");
            tokio::time::sleep(RECONNECT).await;
        }
    }
}

fn show(progress: &ProgressBar, job: &Backfill, rows: u64, elapsed: Duration) {
    progress.set_length(job.bytes_total);
    progress.set_position(job.bytes_read);
    let rate = rows as f64 / elapsed.as_secs_f64().max(0.1);
    progress.set_message(format!(
        "{} of {} files, {} rows, {rate:.0} rows/s, {}",
        job.files_done,
        job.files_total,
        job.rows_read,
        state(job.state())
    ));
}

fn state(state: BackfillState) -> String {
    state.as_str_name().trim_start_matches("BACKFILL_STATE_").to_ascii_lowercase()
}

fn line(job: &Backfill) -> String {
    let dry = if job.dry_run { " (dry run)" } else { "" };
    format!(
        "{} {:<9} {}/{} files, {} rows  {}{dry}",
        job.backfill_id,
        state(job.state()),
        job.files_done,
        job.files_total,
        job.rows_read,
        job.path
    )
}

fn print_job(job: &Backfill, json: bool) -> Result<()> {
    if json {
        return print_json(job, "candlemesh.ingestion.v1.Backfill");
    }
    say_line!("{}", line(job));
    let would = if job.dry_run { "would be " } else { "" };
    say_line!("  {} {would}stored, {} unchanged, {} rejected", job.stored, job.unchanged, job.rejected);
    if job.files_failed > 0 {
        say_line!(
            "  {} files failed; see them with: candlemesh backfill show {} --files",
            job.files_failed,
            job.backfill_id
        );
    }
    if !job.error.is_empty() {
        say_line!("  {}", job.error);
    }
    Ok(())
}

fn print_file(file: &BackfillFile) {
    say_line!(
        "  {} {} ({}): {} stored, {} unchanged, {} rejected",
        state(file.state()),
        file.path,
        file.format,
        file.stored,
        file.unchanged,
        file.rejected
    );
    for rejected in file.first_rejected.iter().take(PRINTED_REASONS) {
        say_line!("    line {}: {}", rejected.row, rejected.reason);
    }
    if file.rejected > PRINTED_REASONS as u64 && !file.first_rejected.is_empty() {
        say_line!("    ... and {} more", file.rejected.saturating_sub(PRINTED_REASONS as u64));
    }
    if !file.error.is_empty() {
        say_line!("    {}", file.error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_asked_to_stop_says_so_until_it_has() {
        let job =
            |state: BackfillState| Backfill { backfill_id: "b1".into(), state: state.into(), ..Default::default() };
        let note = still_running(&job(BackfillState::Running), BackfillState::Paused).unwrap();
        assert!(note.starts_with("asked to be paused: ") && note.ends_with("backfill show b1"), "{note}");
        assert_eq!(still_running(&job(BackfillState::Paused), BackfillState::Paused), None);
        assert_eq!(still_running(&job(BackfillState::Cancelled), BackfillState::Cancelled), None);
    }
}

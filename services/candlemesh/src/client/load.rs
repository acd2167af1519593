//! `load`: files to ingestion, by Flight DoPut.

mod dry;
mod master;
mod reading;
mod report;
mod send;
mod sessions;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use formats::{Columns, FileSpec, Format, Manifest, Stamps, UnknownFormat, Zone};
use indicatif::{ProgressBar, ProgressStyle};
use market::{InstrumentKey, Timeframe};

pub use master::Master;
pub use report::{Actions, FileReport, Rejected, Report};

use self::dry::DryRun;
use self::master::Masters;
use self::send::Loader;
use super::{Connection, actions};
use crate::output::say_line;

/// What to do after a load that ended early.
const RETRY: &str = "what is counted here is stored, and loading the same files again is safe";
/// Files found in folders: more than this is a folder named by mistake.
const MAX_FILES: usize = 100_000;

/// `load`'s arguments.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct LoadArgs {
    /// Files, plain or gzipped, or folders of them with all that is below; a manifest.csv in such a folder is read as its --manifest.
    pub files: Vec<PathBuf>,
    /// Instrument of files that do not name it, for example "NSE_EQ|INE002A01018".
    #[arg(long)]
    pub instrument: Option<InstrumentKey>,
    /// Calendar of instruments not seen before: NSE, NYSE, CME, FX, EUREX or 24x7.
    #[arg(long)]
    pub calendar: Option<String>,
    /// CSV with columns key, file [, symbol] [, interval] [, format] [, zone] [, stamps] [, calendar] [, exchange] [, currency]
    /// [, tick_size]; without files, everything in it is loaded.
    #[arg(long)]
    pub manifest: Option<PathBuf>,
    /// Width of the candles; default: the manifest's interval, else what the rows say.
    #[arg(long)]
    pub timeframe: Option<Timeframe>,
    /// Format of the files; default: the manifest's, else decided from the content. `help` lists them.
    #[arg(long)]
    pub format: Option<FormatChoice>,
    /// Time zone of stamps without an offset, for example America/New_York; default: the format's.
    #[arg(long)]
    pub zone: Option<Zone>,
    /// Whether a stamp names the open or the end of its candle; default: the format's.
    #[arg(long)]
    pub stamps: Option<Stamps>,
    /// Names of columns that are not the usual ones, of CSV and Parquet: timestamp=t,open=o,high=h,low=l,close=c,volume=v.
    #[arg(long)]
    pub columns: Option<Columns>,
    /// Read and check everything, compare it with what is stored, store nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Exit with status 1 if any row was rejected; without it, if a file could not be read to its end or none of its rows was used.
    #[arg(long)]
    pub strict: bool,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// A format, or the question which there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormatChoice {
    Help,
    Named(Format),
}

impl FromStr for FormatChoice {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<FormatChoice, UnknownFormat> {
        match text {
            "help" => Ok(FormatChoice::Help),
            text => text.parse().map(FormatChoice::Named),
        }
    }
}

/// What is to be loaded.
#[derive(Debug, Default)]
pub struct Plan {
    pub specs: Vec<FileSpec>,
    /// Master data of instruments, where a manifest has any.
    pub masters: HashMap<InstrumentKey, Master>,
    /// Manifests that nobody named.
    pub manifests: Vec<PathBuf>,
    /// Files of splits and dividends beside the manifests.
    pub actions: BTreeSet<PathBuf>,
    /// Files of folders that the manifest does not have.
    pub skipped: Vec<PathBuf>,
}

/// Decides what each file holds.
pub fn plan(args: &LoadArgs) -> Result<Plan> {
    let manifest = args.manifest.as_deref().map(Manifest::read).transpose()?;
    let mut plan = Plan::default();
    let files = match (&manifest, args.files.is_empty()) {
        (Some(manifest), true) => manifest.files(),
        (None, true) => bail!("name files or folders to load, or a --manifest of them"),
        (_, false) => args.files.clone(),
    };
    for path in files {
        match path.is_dir() {
            true => plan.add_folder(&path, manifest.as_ref(), args)?,
            false => plan.add(path, manifest.as_ref(), args),
        }
    }
    if let Some(path) = &args.manifest {
        plan.add_actions(path);
    }
    Ok(plan)
}

impl Plan {
    /// The files of a folder. Its own manifest counts where no other was named.
    fn add_folder(&mut self, folder: &Path, named: Option<&Manifest>, args: &LoadArgs) -> Result<()> {
        let path = folder.join(formats::MANIFEST_NAME);
        let own = match named {
            None if path.is_file() => Some(Manifest::read(&path)?),
            _ => None,
        };
        let beside = [path.clone(), folder.join(formats::ACTIONS_NAME)];
        if own.is_some() {
            self.add_actions(&path);
            self.manifests.push(path);
        }
        for found in files_below(folder)? {
            match named.or(own.as_ref()) {
                Some(_) if own.is_some() && beside.contains(&found) => {}
                Some(manifest) if manifest.find(&found).is_none() => self.skipped.push(found),
                manifest => self.add(found, manifest, args),
            }
        }
        Ok(())
    }

    fn add_actions(&mut self, manifest: &Path) {
        let path = manifest.with_file_name(formats::ACTIONS_NAME);
        if path.is_file() {
            self.actions.insert(path);
        }
    }

    fn add(&mut self, path: PathBuf, manifest: Option<&Manifest>, args: &LoadArgs) {
        let entry = manifest.and_then(|manifest| manifest.find(&path));
        let mut spec = entry.map_or_else(|| FileSpec::new(&path), |entry| entry.spec(&path));
        if let (Some(entry), None) = (entry, &args.instrument) {
            let master = Master::of(entry);
            if master != Master::default() {
                self.masters.insert(entry.instrument.clone(), master);
            }
        }
        spec.instrument = args.instrument.clone().or(spec.instrument);
        spec.timeframe = args.timeframe.or(spec.timeframe);
        spec.zone = args.zone.clone().or(spec.zone);
        spec.stamps = args.stamps.or(spec.stamps);
        spec.columns = args.columns.clone().unwrap_or_default();
        if let Some(FormatChoice::Named(format)) = args.format {
            spec.format = format;
        }
        self.specs.push(spec);
    }
}

/// Every file of a folder and of those in it, in path order. Hidden ones and links to folders are left out.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = vec![folder.to_path_buf()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        for entry in entries {
            let entry = entry.with_context(|| folder.display().to_string())?;
            let kind = entry.file_type().with_context(|| entry.path().display().to_string())?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            match kind.is_dir() {
                true => folders.push(entry.path()),
                false if entry.path().is_file() => files.push(entry.path()),
                false => {}
            }
            if files.len() + folders.len() > MAX_FILES {
                bail!("{}: more than {MAX_FILES} files; load it in parts", folder.display());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Loads every file, in order; a broken file does not stop the others.
///
/// Errors: the first file could not be sent. A server that fails later ends the load, with the reason in the last file's report.
pub async fn load(connection: &Connection, specs: &[FileSpec], calendar: Option<&str>, quiet: bool) -> Result<Report> {
    let plan = Plan { specs: specs.to_vec(), ..Plan::default() };
    load_plan(connection, &plan, calendar, Mode::Store, quiet).await
}

/// Whether a plan is carried out or only checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Store,
    Dry,
}

/// Carries out a plan, or says what that would do.
///
/// Errors: as [`load`].
pub async fn load_plan(
    connection: &Connection,
    plan: &Plan,
    calendar: Option<&str>,
    mode: Mode,
    quiet: bool,
) -> Result<Report> {
    let channel = connection.channel()?;
    let masters = || Masters { connection, channel: channel.clone(), calendar, given: &plan.masters };
    let loader = Loader { connection: connection.clone(), channel: channel.clone(), masters: masters() };
    let mut dry =
        DryRun { connection: connection.clone(), channel: channel.clone(), masters: masters(), known: HashMap::new() };
    let progress = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    let style = ProgressStyle::with_template("{spinner} {msg} {human_pos} rows, {per_sec}, {elapsed}");
    progress.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    let named = |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect();
    let (skipped, manifests) = (named(&plan.skipped), named(&plan.manifests));
    let mut report = Report { dry_run: mode == Mode::Dry, skipped, manifests, ..Report::default() };
    for spec in &plan.specs {
        let name = spec.path.display().to_string();
        progress.set_message(name.clone());
        let mut file = FileReport { file: name.clone(), ..Default::default() };
        let failed = match mode {
            Mode::Store => loader.file(spec, &mut file, &progress).await.err(),
            Mode::Dry => dry.file(spec, &mut file, &progress).await.err(),
        };
        let nothing_yet = report.files.is_empty() && file.stored + file.unchanged == 0;
        match &failed {
            Some(_) if nothing_yet => return Err(failed.with_context(|| name)?),
            Some(error) => file.error = Some(format!("{error:#}; {RETRY}")),
            None => file.reasons.sort_by_key(|rejected| rejected.line),
        }
        report.add(file);
        if failed.is_some() {
            break;
        }
    }
    progress.finish_and_clear();
    for path in &plan.actions {
        put_actions(connection, path, mode, &mut report).await.with_context(|| path.display().to_string())?;
    }
    Ok(report)
}

/// Puts the splits and dividends of the instruments that have candles from this load.
async fn put_actions(connection: &Connection, path: &Path, mode: Mode, report: &mut Report) -> Result<()> {
    let used = report.files.iter().filter(|file| file.stored + file.unchanged > 0);
    let loaded: BTreeSet<&InstrumentKey> =
        used.flat_map(|file| &file.profiles).map(|profile| &profile.instrument).collect();
    let mut wanted = actions::read(path)?;
    wanted.retain(|(key, _)| loaded.contains(key));
    match mode {
        Mode::Dry => report.actions.put += wanted.len() as u64,
        Mode::Store => {
            let (put, unchanged) = actions::put(connection, &wanted).await?;
            report.actions.put += put;
            report.actions.unchanged += unchanged;
        }
    }
    Ok(())
}

/// The command.
pub async fn run(connection: &Connection, args: &LoadArgs) -> Result<std::process::ExitCode> {
    if args.format == Some(FormatChoice::Help) {
        for format in Format::ALL {
            say_line!("{:<13} {}", format.as_str(), format.description());
        }
        return Ok(std::process::ExitCode::SUCCESS);
    }
    let plan = plan(args)?;
    let mode = if args.dry_run { Mode::Dry } else { Mode::Store };
    let report = load_plan(connection, &plan, args.calendar.as_deref(), mode, args.json).await?;
    match args.json {
        true => say_line!("{}", serde_json::to_string_pretty(&report)?),
        false => report.print(),
    }
    let failed = report.has_failed() || (args.strict && report.rejected > 0);
    Ok(if failed { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of a folder are found wherever they lie; the manifest says which of them count, and what their instruments are called.
    #[test]
    fn a_folder_is_searched_and_the_manifest_decides() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        for file in ["a/b/one.csv", "a/two.csv", ".hidden.csv"] {
            std::fs::write(folder.path().join(file), "x").unwrap();
        }
        let manifest = folder.path().join("manifest.csv");
        std::fs::write(&manifest, "key,symbol,file,interval,zone\nX|1,ONE,a/b/one.csv,tick,Asia/Kolkata\n").unwrap();
        let args = LoadArgs {
            files: vec![folder.path().to_path_buf()],
            manifest: Some(manifest.clone()),
            stamps: Some(Stamps::End),
            dry_run: true,
            ..LoadArgs::default()
        };
        let plan = plan(&args).unwrap();
        assert_eq!(plan.specs.len(), 1);
        let spec = &plan.specs[0];
        assert!(spec.path.ends_with("a/b/one.csv"));
        assert_eq!((spec.format, spec.stamps), (Format::Ticks, Some(Stamps::End)));
        assert_eq!(spec.zone.as_ref().map(Zone::to_string).as_deref(), Some("Asia/Kolkata"));
        let names: Vec<&str> = plan.masters.values().map(|master| master.name.as_str()).collect();
        assert_eq!(names, ["ONE"]);
        assert_eq!(plan.skipped, [folder.path().join("a/two.csv"), manifest.clone()]);
        // The manifest of a folder counts without being named, and is no file of candles; the actions beside it are none either.
        std::fs::write(folder.path().join("actions.csv"), "instrument_key,ex_date,kind,from,to,amount\n").unwrap();
        let plan = super::plan(&LoadArgs { manifest: None, ..args }).unwrap();
        assert_eq!((plan.specs.len(), &plan.manifests[..]), (1, &[manifest][..]));
        assert_eq!(plan.skipped, [folder.path().join("a/two.csv")]);
        assert_eq!(plan.actions.into_iter().collect::<Vec<_>>(), [folder.path().join("actions.csv")]);
        assert!("help".parse() == Ok(FormatChoice::Help) && "excel".parse::<FormatChoice>().is_err());
    }
}

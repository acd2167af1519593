//! `cache migrate`: from one Redis to another.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh::cache::migrate::{Migration, Moved, Verified};
use mesh::topology::{RedisAddress, RedisTls};

use crate::output::say_line;

/// What all keys of the indicator cache begin with.
const PREFIX: &str = "indicator/";
/// How often progress is printed.
const PROGRESS: Duration = Duration::from_secs(1);

/// `cache migrate`'s arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct MigrateArgs {
    /// Redis to read: redis://host, redis+sentinel://host/service or redis+cluster://host,host; rediss with TLS.
    #[arg(long)]
    pub from: String,
    /// Redis to write.
    #[arg(long)]
    pub to: String,
    /// Compares every entry afterwards; exit status 1 when one is missing or differs. With --dry-run: only compares.
    #[arg(long)]
    pub verify: bool,
    /// Writes nothing: counts what would be copied.
    #[arg(long)]
    pub dry_run: bool,
    /// Store of entries in the encoding before this one, whose keys do not name it; without, they stay behind. GetRevisions tells it.
    #[arg(long)]
    pub store_id: Option<String>,
    /// Authority of rediss servers, PEM; default: those the system trusts.
    #[arg(long)]
    pub ca_file: Option<PathBuf>,
    #[arg(long)]
    pub json: bool,
}

pub(super) async fn run(args: &MigrateArgs) -> Result<ExitCode> {
    let tls = RedisTls { ca_file: args.ca_file.clone(), ..RedisTls::default() };
    let migration = Migration {
        from: RedisAddress::parse(&args.from, &tls).context("--from")?,
        to: RedisAddress::parse(&args.to, &tls).context("--to")?,
        prefix: PREFIX.to_owned(),
        renamed: indicator::entry_renamed,
        store: args.store_id.clone(),
    };
    let started = Instant::now();
    let mut shown = Instant::now();
    let mut show = |line: &dyn Fn() -> String| {
        if shown.elapsed() >= PROGRESS {
            shown = Instant::now();
            eprintln!("{}", line());
        }
    };
    let copied = migration.copy(args.dry_run, |moved| show(&|| told(moved, args.dry_run))).await;
    let moved = copied.context("copying; run it again to go on")?;
    let verified = match args.verify {
        true => Some(migration.verify(|verified| show(&|| compared(verified))).await.context("comparing")?),
        false => None,
    };
    if args.json {
        let answer = serde_json::json!({
            "dry_run": args.dry_run, "found": moved.found, "copied": moved.copied, "present": moved.present,
            "damaged": moved.damaged, "foreign": moved.foreign, "expired": moved.expired, "upgraded": moved.upgraded,
            "bytes": moved.bytes, "seconds": started.elapsed().as_secs_f64(),
            "verified": verified.map(|verified| serde_json::json!({
                "compared": verified.compared, "equal": verified.equal, "missing": verified.missing,
                "different": verified.different,
            })),
        });
        say_line!("{answer:#}");
    } else {
        say_line!("{} in {:.1} s", told(&moved, args.dry_run), started.elapsed().as_secs_f64());
        if let Some(verified) = &verified {
            say_line!("{}", compared(verified));
        }
    }
    Ok(if verified.is_none_or(|verified| verified.is_good()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn told(moved: &Moved, dry_run: bool) -> String {
    let Moved { found, copied, present, damaged, foreign, expired, upgraded, bytes } = moved;
    let done = if dry_run { "to copy" } else { "copied" };
    format!(
        "{found} entries: {copied} {done} ({bytes} bytes, {upgraded} of them from an earlier layout), {present} there already, \
         {damaged} damaged, {foreign} of another release, {expired} expired"
    )
}

fn compared(verified: &Verified) -> String {
    let Verified { compared, equal, missing, different } = verified;
    format!("{compared} compared: {equal} equal, {missing} missing, {different} different")
}

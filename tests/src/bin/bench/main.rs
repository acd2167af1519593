//! Our side of the benchmarks: does one case at a time, as the harness of `tests/bench` asks by lines of JSON.
//!
//! `{"op":"prepare","case":...,"data":...,...}` makes ready what is not measured; `{"op":"run"}` does the work once and answers with its
//! seconds and its values; `{"op":"write","folder":...}` leaves the last result as raw columns to be compared; `{"op":"sessions",...}`
//! names the sessions that data is made of. Every answer is one line; an error ends the process.

mod batch;
mod cache;
mod closes;
mod data;
mod flight;
mod indicators;
mod put;
mod read;
mod resample;

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// As in the executable, so that what is measured here is what runs there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A request line.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    Sessions { count: usize },
    Prepare(Box<Parameters>),
    Run,
    Write { folder: PathBuf },
    Finish,
}

/// What a case is told; each takes what it needs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Parameters {
    case: String,
    data: PathBuf,
    /// The data is taken this many times, under other instrument names.
    scale: usize,
    /// `v1` or `v2`; `sqlite` or `postgres`; and so on.
    variant: String,
    /// Where databases lie.
    folder: PathBuf,
    database_url: String,
    /// Address of a running mesh, and which of its roles are asked.
    ingestion: String,
    aggregation: String,
    indicator: String,
    /// `host:port` of a role's metrics.
    metrics: String,
    instruments: usize,
    /// Rows of all instruments taken together as one series; 0 takes each instrument by itself.
    rows: usize,
    /// Instruments whose columns are written to be compared; 0 for all.
    compared: usize,
    subscribers: usize,
}

/// One run.
#[derive(Debug)]
pub(crate) struct Measured {
    seconds: f64,
    values: Map<String, Value>,
}

impl Measured {
    fn new(seconds: f64, values: Value) -> Self {
        let values = match values {
            Value::Object(values) => values,
            other => Map::from_iter([("value".to_owned(), other)]),
        };
        Self { seconds, values }
    }
}

/// Something to be measured again and again.
pub(crate) trait Case {
    /// What the harness must know of it.
    fn describe(&self) -> Value {
        json!({})
    }

    /// Does the work once.
    fn run(&mut self) -> Result<Measured>;

    /// Writes the result of the work into files `<column>` of the folder.
    fn write(&mut self, _folder: &Path) -> Result<()> {
        bail!("this case has no columns to write")
    }
}

fn main() -> Result<()> {
    let mut case: Option<Box<dyn Case>> = None;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let request = serde_json::from_str(&line?).context("a request line")?;
        let answer = match request {
            Request::Sessions { count } => json!({ "sessions": data::sessions(count)? }),
            Request::Prepare(parameters) => {
                case = Some(prepare(&parameters).with_context(|| format!("preparing {}", parameters.case))?);
                current(&mut case)?.describe()
            }
            Request::Run => {
                let Measured { seconds, mut values } = current(&mut case)?.run()?;
                values.insert("seconds".to_owned(), seconds.into());
                values.insert("peak_bytes".to_owned(), memory_bytes("VmHWM").into());
                Value::Object(values)
            }
            Request::Write { folder } => {
                current(&mut case)?.write(&folder)?;
                json!({})
            }
            Request::Finish => break,
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn current(case: &mut Option<Box<dyn Case>>) -> Result<&mut (dyn Case + 'static)> {
    case.as_deref_mut().context("nothing is prepared")
}

fn prepare(parameters: &Parameters) -> Result<Box<dyn Case>> {
    Ok(match parameters.case.as_str() {
        "resample" => Box::new(resample::Resample::prepare(parameters)?),
        "store" => Box::new(put::StoreAll::prepare(parameters)?),
        "read" | "month" => Box::new(read::Read::prepare(parameters)?),
        "indicators" | "indicators-many" | "indicators-scale" => Box::new(indicators::Indicators::prepare(parameters)?),
        "indicators-stream" => Box::new(indicators::Stream::prepare(parameters)?),
        "flight" => Box::new(flight::Server::prepare(parameters)?),
        "batch" => Box::new(batch::Batch::prepare(parameters)?),
        "cache" => Box::new(cache::CacheCase::prepare(parameters)?),
        "closes" => Box::new(closes::Closes::prepare(parameters)?),
        other => bail!("there is no case '{other}'"),
    })
}

/// A line of /proc/self/status, such as VmHWM, the peak of resident memory.
fn memory_bytes(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

/// Time this thread has had a core. Other work on the machine, which would take the core away, is not in it.
pub(crate) fn processor_seconds() -> Result<f64> {
    // Giving way brings the figure up to date.
    std::thread::yield_now();
    let line = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = line.split(' ').next().context("schedstat is empty")?;
    Ok(nanoseconds.parse::<u64>()? as f64 / 1e9)
}

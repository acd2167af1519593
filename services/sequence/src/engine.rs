//! The analysis of sequences, by either engine, and what can go wrong in this service.

mod v1;
mod v2;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::sequence::{Analysis, AnalysisParams, metrics, patterns, sequences};
use market::{Date, InstrumentKey, Millis, TimeRange, Timeframe};
use mesh::{CpuPool, Fault, PoolError, RemoteError};
use proto::convert::FieldError;
use rollout::Engine;
use store::{AnalysisRecord, MAX_PAGE_ROWS, ScreenStore};
use tonic::Code;

use crate::Ports;
use crate::history::{Histories, History};
use crate::query::{AnalysisFilter, AnalysisQuery};
use crate::record::{self, KeptAnalysis};

/// Seconds of computing per analysis, labelled `engine` (v1, v2).
const ANALYSIS_SECONDS: &str = "candlemesh_sequence_analysis_seconds";
/// Quality of each analysis that found a sequence, 0 to 1, labelled `engine`.
const QUALITY_RATIO: &str = "candlemesh_sequence_quality_ratio";

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("{what}: {found}, the limit is {limit}; {way}")]
    Limit { what: &'static str, found: usize, limit: usize, way: &'static str },
    #[error("instrument '{0}' is not known")]
    UnknownInstrument(InstrumentKey),
    #[error("group '{0}' is not known")]
    UnknownGroup(String),
    #[error("calendar of '{key}' is not usable: {source}")]
    Calendar { key: InstrumentKey, source: market::Error },
    #[error("{what} of '{key}' needs {needed} candles of {timeframe}{}, found {found}", up_to(.date))]
    TooFewCandles {
        what: &'static str,
        key: InstrumentKey,
        timeframe: Timeframe,
        needed: usize,
        found: usize,
        date: Option<Date>,
    },
    #[error("{what} of '{key}' has no meaning: prices are not positive")]
    NotPositive { what: &'static str, key: InstrumentKey },
    #[error(transparent)]
    Upstream(#[from] RemoteError),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Store(#[from] store::Error),
    /// What this service once wrote does not read back.
    #[error("stored analysis of '{key}' is not readable")]
    Record { key: InstrumentKey, source: serde_json::Error },
    /// Parameters are checked when parsed; candles beyond what the kernels accept remain.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
}

fn up_to(date: &Option<Date>) -> String {
    date.map_or_else(String::new, |date| format!(" up to {}", market::format_date(date)))
}

impl Fault for Error {
    fn code(&self) -> Code {
        match self {
            Error::Field(error) => error.code(),
            Error::Limit { .. } => Code::ResourceExhausted,
            Error::UnknownInstrument(_) | Error::UnknownGroup(_) => Code::NotFound,
            Error::Calendar { .. } | Error::TooFewCandles { .. } | Error::NotPositive { .. } | Error::Kernel(_) => {
                Code::FailedPrecondition
            }
            Error::Upstream(error) => error.code(),
            Error::Pool(error) => error.code(),
            Error::Store(error) => store_code(error),
            Error::Record { .. } => Code::DataLoss,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Error::Field(error) => error.reason(),
            Error::Limit { .. } => "LIMIT_EXCEEDED",
            Error::UnknownInstrument(_) => "UNKNOWN_INSTRUMENT",
            Error::UnknownGroup(_) => "UNKNOWN_GROUP",
            Error::Calendar { .. } => "UNKNOWN_CALENDAR",
            Error::TooFewCandles { .. } => "TOO_FEW_CANDLES",
            Error::NotPositive { .. } => "PRICES_NOT_POSITIVE",
            Error::Upstream(error) => error.reason(),
            Error::Pool(error) => error.reason(),
            Error::Store(_) => "STORE",
            Error::Record { .. } => "UNREADABLE_RECORD",
            Error::Kernel(_) => "CANDLES_NOT_USABLE",
        }
    }

    fn field(&self) -> Option<String> {
        match self {
            Error::Field(error) => error.field(),
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Pool(error) => error.retry_after(),
            _ => None,
        }
    }

    fn remote(&self) -> Option<&RemoteError> {
        match self {
            Error::Upstream(error) => Some(error),
            _ => None,
        }
    }
}

fn store_code(error: &store::Error) -> Code {
    match error {
        store::Error::NotFound { .. } => Code::NotFound,
        store::Error::AlreadyExists { .. } => Code::AlreadyExists,
        store::Error::Conflict { .. } => Code::Aborted,
        store::Error::Corrupt { .. } => Code::DataLoss,
        store::Error::Expired { .. } => Code::FailedPrecondition,
        store::Error::Unavailable(_) => Code::Unavailable,
        store::Error::Full(_) => Code::ResourceExhausted,
        store::Error::Invalid { .. } => Code::InvalidArgument,
        // The enum may grow; what it grows by is nobody's fault but ours.
        _ => Code::Internal,
    }
}

/// The analysis of one instrument over a range.
#[derive(Debug)]
pub(crate) struct Analyzed {
    pub(crate) key: InstrumentKey,
    pub(crate) timeframe: Timeframe,
    pub(crate) revision: u64,
    /// Of the candles in the range; indexes of the analysis count from the first of them.
    pub(crate) open_time: Vec<Millis>,
    pub(crate) analysis: Analysis,
}

/// Makes, keeps and lists analyses.
#[derive(Debug)]
pub(crate) struct Analyses {
    histories: Histories,
    pool: Arc<CpuPool>,
    store: Arc<dyn ScreenStore>,
}

impl Analyses {
    pub(crate) fn new(histories: Histories, ports: &Ports) -> Self {
        Self { histories, pool: Arc::clone(&ports.pool), store: Arc::clone(&ports.screens) }
    }

    /// Analyses the candles of a range. Averages and trend of its first candles look back before it, so the range never changes a move.
    #[tracing::instrument(level = "debug", skip_all, fields(instrument = %query.key, timeframe = %query.timeframe, rows))]
    pub(crate) async fn analyze(&self, engine: Engine, query: &AnalysisQuery, now: Millis) -> Result<Analyzed, Error> {
        let history = self.histories.before(&query.key, query.timeframe, query.range).await?;
        let (range, params) = (query.range, query.params);
        let analyzed = self.pool.run(move || analyze(engine, history, range, &params)).await??;
        tracing::Span::current().record("rows", analyzed.open_time.len());
        if query.is_kept {
            self.store.put_analysis(&record::of(&analyzed, query.range, engine, now)?).await?;
        }
        Ok(analyzed)
    }

    /// Kept analyses whose range meets the asked one, newest first, each with the patterns that pass the filter.
    ///
    /// Of more than 10 000 such analyses of one instrument, those with the earliest ranges are looked at.
    pub(crate) async fn list(&self, filter: &AnalysisFilter) -> Result<Vec<KeptAnalysis>, Error> {
        let mut records: Vec<AnalysisRecord> = self.store.analyses(&filter.key, filter.range, MAX_PAGE_ROWS).await?;
        // The store's order decides between equals.
        records.sort_by_key(|record| std::cmp::Reverse(record.created_at));
        records.truncate(filter.limit);
        let mut kept = Vec::with_capacity(records.len());
        for record in records {
            let mut analysis = record::read(record)?;
            analysis.patterns.retain(|pattern| {
                filter.pattern_kind.is_none_or(|kind| pattern.kind == kind) && pattern.frequency >= filter.min_frequency
            });
            kept.push(analysis);
        }
        Ok(kept)
    }
}

/// Blocks: for the CPU pool.
fn analyze(engine: Engine, history: History, range: TimeRange, params: &AnalysisParams) -> Result<Analyzed, Error> {
    let started = Instant::now();
    let candles = history.candles();
    let whole = match engine {
        Engine::V1 => v1::analyze(&candles, params)?,
        Engine::V2 => v2::analyze(&candles, params)?,
    };
    let rows = history.buckets.frame.rows_between(range.start(), range.end());
    let analysis = from_row(whole, &candles, rows.start, params);
    let label = engine.as_str();
    metrics::histogram!(ANALYSIS_SECONDS, "engine" => label).record(started.elapsed().as_secs_f64());
    if analysis.metrics.sequence_count > 0 {
        metrics::histogram!(QUALITY_RATIO, "engine" => label).record(analysis.metrics.quality);
    }
    let open_time = history.buckets.frame.open_time()[rows].to_vec();
    Ok(Analyzed { key: history.key, timeframe: history.timeframe, revision: history.revision, open_time, analysis })
}

/// Keeps the moves from a row on and measures anew what rests on them.
fn from_row(
    whole: Analysis,
    candles: &kernels::sequence::Candles<'_>,
    first: usize,
    params: &AnalysisParams,
) -> Analysis {
    if first == 0 {
        return whole;
    }
    let moves = whole.moves[first.min(whole.moves.len())..].to_vec();
    let candles = candles.last(moves.len());
    let sequences = sequences(&moves, params.sequences.min_sequence_length);
    let metrics = metrics(&sequences, &candles, &params.sequences);
    let patterns = patterns(&sequences, &candles, params.sequences.forward_candles);
    Analysis { moves, sequences, metrics, patterns }
}

#[cfg(test)]
mod tests;

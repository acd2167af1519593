//! What the service does, the same for both engines: pins the data revision, takes the history, cuts to the range.

mod audit;
mod series;
mod v1;
mod v2;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::indicator::{Column, Inputs, Spec};
use market::{BucketFrame, Calendar, InstrumentKey, Millis, TimeRange, Timeframe};
use mesh::cache::Source;
use mesh::source::{Candles, MasterData};
use mesh::{Fault, PoolError, RemoteError};
use proto::convert::FieldError;
use rollout::Engine;
use tonic::Code;

use crate::query::Query;
use crate::{Config, Ports};
pub(crate) use audit::Audited;
use series::AllSeries;
use v1::V1;
pub use v2::entry_renamed;
use v2::{Kept, V2};
pub(crate) use v2::{canonical, entry_prefix};

/// Seconds of computing per answer, labelled `engine` (v1, v2); answers from a cache are not counted.
const COMPUTE_SECONDS: &str = "candlemesh_indicator_compute_seconds";
/// Values computed (history rows times columns), labelled `engine`.
const COMPUTED_VALUES: &str = "candlemesh_indicator_values_total";

/// Why a query has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("{what}: {found}, the limit is {limit}; {way}")]
    Limit { what: &'static str, found: usize, limit: usize, way: &'static str },
    #[error("instrument '{0}' is not known")]
    UnknownInstrument(InstrumentKey),
    #[error("revision: {asked} of '{key}' does not exist yet, the current one is {current}")]
    UnknownRevision { key: InstrumentKey, asked: u64, current: u64 },
    #[error("the calendar of '{key}' is none that is shipped")]
    Calendar { key: InstrumentKey, source: market::Error },
    #[error(transparent)]
    Upstream(#[from] RemoteError),
    /// A peer broke its contract.
    #[error("candles of '{key}' came at revision {found}, {asked} was asked")]
    WrongRevision { key: InstrumentKey, asked: u64, found: u64 },
    #[error(transparent)]
    Pool(Arc<PoolError>),
    /// Specs and frames are checked, so a kernel has nothing left to refuse.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        Error::Pool(Arc::new(error))
    }
}

impl Fault for Error {
    fn code(&self) -> Code {
        match self {
            Error::Field(error) => error.code(),
            Error::Limit { .. } => Code::ResourceExhausted,
            Error::UnknownInstrument(_) => Code::NotFound,
            Error::UnknownRevision { .. } => Code::InvalidArgument,
            Error::Calendar { .. } => Code::FailedPrecondition,
            Error::Upstream(error) => error.code(),
            Error::Pool(error) => error.code(),
            Error::WrongRevision { .. } | Error::Kernel(_) => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Error::Field(error) => error.reason(),
            Error::Limit { .. } => "LIMIT_EXCEEDED",
            Error::UnknownInstrument(_) => "UNKNOWN_INSTRUMENT",
            Error::UnknownRevision { .. } => "UNKNOWN_REVISION",
            Error::Calendar { .. } => "UNKNOWN_CALENDAR",
            Error::Upstream(error) => error.reason(),
            Error::WrongRevision { .. } => "WRONG_REVISION",
            Error::Pool(error) => error.reason(),
            Error::Kernel(_) => "KERNEL",
        }
    }

    fn field(&self) -> Option<String> {
        match self {
            Error::Field(error) => Some(error.field.clone()),
            Error::UnknownRevision { .. } => Some("revision".to_owned()),
            Error::Limit { .. }
            | Error::UnknownInstrument(_)
            | Error::Calendar { .. }
            | Error::Upstream(_)
            | Error::WrongRevision { .. }
            | Error::Pool(_)
            | Error::Kernel(_) => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Pool(error) => error.retry_after(),
            Error::Field(_)
            | Error::Limit { .. }
            | Error::UnknownInstrument(_)
            | Error::UnknownRevision { .. }
            | Error::Calendar { .. }
            | Error::Upstream(_)
            | Error::WrongRevision { .. }
            | Error::Kernel(_) => None,
        }
    }

    fn remote(&self) -> Option<&RemoteError> {
        match self {
            Error::Upstream(error) => Some(error),
            _ => None,
        }
    }
}

/// Indicator columns of one instrument.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) key: InstrumentKey,
    pub(crate) timeframe: Timeframe,
    pub(crate) revision: u64,
    pub(crate) table: Table,
    /// Candles from the instrument's first to the last of the answer.
    pub(crate) used: u64,
    pub(crate) source: Source,
    /// Time spent computing; zero when it came from a cache.
    pub(crate) compute: Duration,
}

/// Columns aligned with their open times, NaN where undefined.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Table {
    /// Candles of the history before the first of the table.
    pub(crate) before: u64,
    pub(crate) open_time: Vec<Millis>,
    pub(crate) columns: Vec<Column>,
}

/// A query whose data cannot change any more.
#[derive(Debug)]
struct Pinned<'a> {
    query: &'a Query,
    revision: u64,
    calendar: Arc<Calendar>,
    /// What tells the store whose revision it is from others.
    store: Arc<str>,
}

/// Computes the answer of a pinned query.
#[tonic::async_trait]
trait Compute: std::fmt::Debug + Send + Sync {
    async fn compute(&self, pinned: &Pinned<'_>) -> Result<Answer, Error>;
}

/// Both engines and what they share.
#[derive(Debug)]
pub(crate) struct Indicators {
    master: Arc<dyn MasterData>,
    v1: V1,
    v2: V2,
    series: AllSeries,
}

/// Computations that did not begin at the first candle.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spared {
    pub(crate) computations: u64,
    /// Candles that were neither read nor computed for that.
    pub(crate) rows: u64,
    /// Series with states, and their bytes.
    pub(crate) series: u64,
    pub(crate) bytes: u64,
}

impl Indicators {
    pub(crate) fn new(config: &Config, ports: &Ports) -> Self {
        let history = History { candles: Arc::clone(&ports.candles), max_values: config.max_values };
        let series = AllSeries::new(config.cache_snapshot_bytes);
        ports.cache.on_drop({
            let series = series.clone();
            move |instrument| {
                let (series, instrument) = (series.clone(), instrument.map(str::to_owned));
                tokio::spawn(async move { series.forget(instrument.as_deref()).await });
            }
        });
        let kept = config.caching.then(|| Kept { answers: ports.cache.clone(), series: series.clone() });
        let (master, pool) = (Arc::clone(&ports.master), Arc::clone(&ports.pool));
        Self {
            master: Arc::clone(&master),
            v1: V1 { history: history.clone(), pool: Arc::clone(&pool) },
            v2: V2 { history, pool, master, kept },
            series,
        }
    }

    /// Computes with V2, for the cache, what a caller may ask; answers with where it was.
    pub(crate) async fn warm(&self, query: &Query) -> Result<Source, Error> {
        Ok(self.compute(Engine::V2, query).await?.source)
    }

    /// What was spared by beginning at kept states, and what these take.
    pub(crate) async fn spared(&self) -> Spared {
        let ((computations, rows), (series, bytes)) = (self.series.saved(), self.series.size().await);
        Spared { computations, rows, series, bytes }
    }

    /// Answers one query.
    #[tracing::instrument(level = "debug", skip_all, fields(instrument = %query.key, timeframe = %query.timeframe, rows))]
    pub(crate) async fn compute(&self, engine: Engine, query: &Query) -> Result<Answer, Error> {
        let current = async { Ok(self.revisions(std::slice::from_ref(&query.key)).await?[0]) };
        let (current, calendar) = tokio::try_join!(current, self.calendar(&query.key))?;
        self.answer(engine, query, current, calendar).await
    }

    /// Answers one query of a batch, whose current revision is known already.
    #[tracing::instrument(level = "debug", skip_all, fields(instrument = %query.key, timeframe = %query.timeframe, rows))]
    pub(crate) async fn compute_at(&self, engine: Engine, query: &Query, current: u64) -> Result<Answer, Error> {
        let calendar = self.calendar(&query.key).await?;
        self.answer(engine, query, current, calendar).await
    }

    /// Current revision of each key, in order; 0 where nothing is stored or the instrument is unknown.
    pub(crate) async fn revisions(&self, keys: &[InstrumentKey]) -> Result<Vec<u64>, Error> {
        let revisions = self.master.revisions(keys).await?;
        if revisions.len() != keys.len() {
            let status = tonic::Status::internal("revisions are not aligned with the request");
            return Err(RemoteError::from_status(&status).into());
        }
        Ok(revisions)
    }

    /// The revision an answer to `query` would have.
    pub(crate) async fn revision_of(&self, query: &Query) -> Result<u64, Error> {
        let current = async { Ok(self.revisions(std::slice::from_ref(&query.key)).await?[0]) };
        let (current, _) = tokio::try_join!(current, self.calendar(&query.key))?;
        pinned_revision(query, current)
    }

    async fn answer(
        &self,
        engine: Engine,
        query: &Query,
        current: u64,
        calendar: Arc<Calendar>,
    ) -> Result<Answer, Error> {
        // Asked after the revision, which it belongs to.
        let store = self.master.store_id().await?;
        let pinned = Pinned { query, revision: pinned_revision(query, current)?, calendar, store };
        let answer = match (pinned.revision, engine) {
            // Before its first revision a known instrument has no candles; that needs neither engine nor upstream.
            (0, _) => pinned.answer(Table::empty(query), Source::Computed, Duration::ZERO),
            (_, Engine::V1) => self.v1.compute(&pinned).await?,
            (_, Engine::V2) => self.v2.compute(&pinned).await?,
        };
        tracing::Span::current().record("rows", answer.table.open_time.len());
        Ok(answer)
    }

    /// The instrument's calendar, which also says that the instrument exists.
    async fn calendar(&self, key: &InstrumentKey) -> Result<Arc<Calendar>, Error> {
        let instrument = match self.master.instrument(key).await {
            Ok(instrument) => instrument,
            Err(error) if error.is_not_found() => return Err(Error::UnknownInstrument(key.clone())),
            Err(error) => return Err(error.into()),
        };
        Calendar::by_name(&instrument.calendar).map_err(|source| Error::Calendar { key: key.clone(), source })
    }
}

/// The revision to read. One that does not exist yet is refused: its data, and so its cache entries, could still change.
fn pinned_revision(query: &Query, current: u64) -> Result<u64, Error> {
    match query.revision {
        Some(asked) if asked > current => Err(Error::UnknownRevision { key: query.key.clone(), asked, current }),
        Some(asked) => Ok(asked),
        None => Ok(current),
    }
}

impl Pinned<'_> {
    fn answer(&self, table: Table, source: Source, compute: Duration) -> Answer {
        let Query { key, timeframe, .. } = self.query;
        let used = table.before + table.open_time.len() as u64;
        Answer { key: key.clone(), timeframe: *timeframe, revision: self.revision, table, used, source, compute }
    }
}

impl Table {
    /// The rows of a part of the time that the table covers.
    fn between(mut self, start: Millis, end: Millis) -> Table {
        let rows = self.open_time.partition_point(|at| *at < start)..self.open_time.partition_point(|at| *at < end);
        self.before += rows.start as u64;
        for column in &mut self.columns {
            cut(&mut column.values, &rows);
        }
        self.open_time.truncate(rows.end);
        self.open_time.drain(..rows.start);
        self
    }

    /// This table with the rows of another, which come right after and have the same columns.
    fn followed_by(mut self, rest: Table) -> Table {
        self.open_time.extend(rest.open_time);
        for (column, rest) in self.columns.iter_mut().zip(rest.columns) {
            column.values.extend(rest.values);
        }
        self
    }

    fn empty(query: &Query) -> Table {
        let columns = query.columns().into_iter().map(|name| Column { name, values: Vec::new() });
        Table { before: 0, open_time: Vec::new(), columns: columns.collect() }
    }
}

/// Takes everything an indicator may depend on.
#[derive(Debug, Clone)]
struct History {
    candles: Arc<dyn Candles>,
    max_values: usize,
}

impl History {
    /// Candles from the instrument's first one to the end of the range, at the pinned revision. Of a `cost` per candle, as of a column.
    async fn take(&self, pinned: &Pinned<'_>, cost: usize) -> Result<BucketFrame, Error> {
        let until = TimeRange::new(TimeRange::ALL.start(), pinned.query.range.end());
        let until = until.map_err(|error| FieldError::new("range", error))?;
        let history = self.between(pinned, until).await?;
        self.check(history.frame.len(), cost)?;
        Ok(history)
    }

    async fn between(&self, pinned: &Pinned<'_>, range: TimeRange) -> Result<BucketFrame, Error> {
        let query = pinned.query;
        let buckets = self.candles.candles(&query.key, query.timeframe, range, Some(pinned.revision)).await?;
        if buckets.revision != pinned.revision {
            let (asked, found) = (pinned.revision, buckets.revision);
            return Err(Error::WrongRevision { key: query.key.clone(), asked, found });
        }
        Ok(buckets.frame)
    }

    fn check(&self, rows: usize, cost: usize) -> Result<(), Error> {
        let found = rows.saturating_mul(cost);
        if found > self.max_values {
            let way = "ask for fewer indicators at once, for shorter periods of cci, or for a wider timeframe";
            return Err(Error::Limit { what: "values to compute", found, limit: self.max_values, way });
        }
        Ok(())
    }
}

impl Error {
    fn range(error: &market::Error) -> Error {
        FieldError::new("range", error).into()
    }
}

/// Columns of some specs.
fn width(specs: &[Spec]) -> usize {
    specs.iter().map(|spec| spec.outputs().len()).sum()
}

/// Work per candle, in that of a usual column.
fn cost(specs: &[Spec]) -> usize {
    specs.iter().map(Spec::cost).sum()
}

/// Runs a kernel over a whole history and cuts its columns to the range. Blocks: for the CPU pool.
fn compute_table<F>(
    engine: Engine,
    specs: &[Spec],
    history: &BucketFrame,
    range: TimeRange,
    kernel: F,
) -> Result<(Table, Duration), Error>
where
    F: FnOnce(&Inputs<'_>) -> Result<Vec<Column>, kernels::Error>,
{
    let frame = &history.frame;
    let compute = || -> Result<Table, Error> {
        let day = days(history);
        let inputs = Inputs::new(frame.open(), frame.high(), frame.low(), frame.close(), frame.volume(), &day)?;
        let mut columns = kernel(&inputs)?;
        let rows = frame.rows_between(range.start(), range.end());
        columns.iter_mut().for_each(|column| cut(&mut column.values, &rows));
        Ok(Table { before: rows.start as u64, open_time: frame.open_time()[rows].to_vec(), columns })
    };
    let (table, took) = measured(engine, frame.len() * width(specs), compute);
    Ok((table?, took))
}

/// Times a computation of so many values.
fn measured<T>(engine: Engine, values: usize, compute: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let outcome = compute();
    let took = started.elapsed();
    metrics::histogram!(COMPUTE_SECONDS, "engine" => engine.as_str()).record(took.as_secs_f64());
    metrics::counter!(COMPUTED_VALUES, "engine" => engine.as_str()).increment(values as u64);
    (outcome, took)
}

/// A number per row that changes with the trading date.
fn days(history: &BucketFrame) -> Vec<i32> {
    history.trading_date.iter().map(|date| proto::arrow::date32(*date)).collect()
}

fn cut(values: &mut Vec<f64>, rows: &Range<usize>) {
    // A short range of a long history must not keep the history's memory.
    if rows.len() < values.len() / 2 {
        *values = values[rows.clone()].to_vec();
    } else {
        values.truncate(rows.end);
        values.drain(..rows.start);
    }
}

#[cfg(test)]
mod tests;

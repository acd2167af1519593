//! What aggregation does, in domain types: opens an answer and chooses the engine that folds it.
//!
//! Both engines take the same trading dates in the same order and must agree to the bit; everything that decides *which* candles
//! exist (source selection, range, limits, gap filling) is outside them, once.

mod adjust;
mod answer;
mod days;
mod fill;
mod gaps;
mod grid;
mod multi;
mod v1;
mod v2;

use std::fmt::Debug;
use std::sync::Arc;

use kernels::indicator::{Column, Inputs, Spec};
use market::{BucketFrame, Calendar, Date, InstrumentKey, Millis, TimeRange, Timeframe};
use mesh::source::{MasterData, StoredCandles};
use mesh::{CpuPool, Fault, PoolError, RemoteError};
use proto::convert::FieldError;
use tonic::Code;

pub(crate) use self::answer::{Answer, Batch};
use self::days::{DayRows, Days};
pub(crate) use self::gaps::{GapsQuery, GapsReport};
use self::grid::Grid;
use crate::Config;
use crate::query::Query;

/// Trading dates of one task: a date costs more than its rows where a candle is all it has.
const CHUNK_DATES: usize = 512;

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("instrument '{0}' is not known")]
    UnknownInstrument(InstrumentKey),
    #[error("instrument '{key}' has no usable calendar: {source}")]
    Calendar { key: InstrumentKey, source: market::Error },
    #[error(
        "the answer holds more than {limit} candles, the limit of one unary answer; narrow the range or use Arrow Flight"
    )]
    TooManyCandles { limit: usize },
    #[error(
        "the answer takes {bytes} bytes, more than the message limit of {limit}; ask for fewer columns or use Arrow Flight"
    )]
    MessageTooLarge { bytes: usize, limit: usize },
    #[error(
        "indicators over the history up to the end of the range take {rows} candles of {columns} columns, more than the limit of \
         {limit} values; ask for fewer indicators, a wider timeframe or an earlier end"
    )]
    HistoryTooLong { rows: usize, columns: usize, limit: usize },
    #[error("corporate actions of '{key}' cannot be applied: {source}; correct them, or ask for raw candles")]
    Adjustment { key: InstrumentKey, source: market::Error },
    #[error(
        "no close of '{key}' is stored in the 40 days before ex-date {ex_date}, so its dividend cannot be put on the candles before; \
         load them, or adjust for splits only"
    )]
    NoCloseBefore { key: InstrumentKey, ex_date: Date },
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// Stored frames that overlap, or whose sums leave the finite numbers.
    #[error("stored candles cannot be aggregated")]
    Stored(#[source] market::Error),
    #[error("columns do not fit together")]
    Kernel(#[source] kernels::Error),
}

impl Fault for Error {
    fn code(&self) -> Code {
        match self {
            Error::Field(fault) => fault.code(),
            Error::UnknownInstrument(_) => Code::NotFound,
            Error::Calendar { .. } | Error::Adjustment { .. } | Error::NoCloseBefore { .. } => Code::FailedPrecondition,
            Error::TooManyCandles { .. } | Error::MessageTooLarge { .. } | Error::HistoryTooLong { .. } => {
                Code::ResourceExhausted
            }
            Error::Remote(fault) => fault.code(),
            Error::Pool(fault) => fault.code(),
            Error::Stored(_) => Code::DataLoss,
            Error::Kernel(_) => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Error::Field(fault) => fault.reason(),
            Error::UnknownInstrument(_) => "UNKNOWN_INSTRUMENT",
            Error::Calendar { .. } => "NO_CALENDAR",
            Error::Adjustment { .. } => "BAD_CORPORATE_ACTION",
            Error::NoCloseBefore { .. } => "NO_CLOSE_BEFORE_EX_DATE",
            Error::TooManyCandles { .. } => "CANDLE_LIMIT",
            Error::MessageTooLarge { .. } => "MESSAGE_LIMIT",
            Error::HistoryTooLong { .. } => "HISTORY_LIMIT",
            Error::Remote(fault) => fault.reason(),
            Error::Pool(fault) => fault.reason(),
            Error::Stored(_) => "STORED_CANDLES_MALFORMED",
            Error::Kernel(_) => "COLUMNS_MALFORMED",
        }
    }

    fn field(&self) -> Option<String> {
        match self {
            Error::Field(fault) => fault.field(),
            Error::UnknownInstrument(_) => Some("instrument_key".to_owned()),
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<std::time::Duration> {
        match self {
            Error::Pool(fault) => fault.retry_after(),
            _ => None,
        }
    }

    fn remote(&self) -> Option<&RemoteError> {
        match self {
            Error::Remote(fault) => Some(fault),
            _ => None,
        }
    }
}

/// Folds trading dates into buckets, and computes indicators over them.
///
/// Contract: the dates come in order, each once. A bucket is appended once no later row can fall into it, in order of open time.
trait Engine: Send + Debug {
    /// Takes the next dates.
    ///
    /// Errors: sums that are not finite.
    fn fold(&mut self, days: &[DayRows], out: &mut BucketFrame) -> market::Result<()>;

    /// Appends what is still open; nothing is folded after it.
    fn finish(&mut self, out: &mut BucketFrame) -> market::Result<()>;

    /// Columns of the specs, in order, as long as the inputs; NaN where undefined.
    fn indicators(&self, specs: &[Spec], inputs: &Inputs<'_>) -> Result<Vec<Column>, kernels::Error>;
}

fn engine(choice: rollout::Engine, grid: Grid) -> Box<dyn Engine> {
    match choice {
        rollout::Engine::V1 => Box::new(v1::Rows::new(grid)),
        rollout::Engine::V2 => Box::new(v2::Columns::new(grid)),
    }
}

/// Answers queries from stored candles.
#[derive(Debug)]
pub(crate) struct Aggregator {
    pub(crate) stored: Arc<dyn StoredCandles>,
    pub(crate) master: Arc<dyn MasterData>,
    pub(crate) pool: Arc<CpuPool>,
    pub(crate) config: Config,
}

impl Aggregator {
    /// Opens an answer pinned to one revision; its candles are read and folded as they are asked for.
    ///
    /// `limit` is the most candles the answer may have, if it has one.
    pub(crate) async fn open(
        &self,
        choice: rollout::Engine,
        query: Query,
        now: Millis,
        limit: Option<usize>,
    ) -> Result<Answer, Error> {
        let calendar = self.calendar(&query.key).await?;
        // Indicators start at the first stored candle, so that the range asked for never changes a value.
        let from = if query.indicators.is_empty() { query.range.start() } else { TimeRange::ALL.start() };
        let range = whole_buckets(&calendar, query.timeframe, from, query.range.end())
            .map_err(|error| FieldError::new("range", error))?;
        let days = Days::open(self, &query, &calendar, range).await?;
        let factors = self.factors(&query, &calendar, range, days.revision(), now).await?;
        let grid = Grid { calendar, timeframe: query.timeframe, now };
        Ok(Answer::new(self, choice, grid, query, days, factors, limit))
    }

    /// The whole answer in one piece.
    pub(crate) async fn collect(
        &self,
        choice: rollout::Engine,
        query: Query,
        now: Millis,
        limit: usize,
    ) -> Result<(u64, Batch), Error> {
        let mut answer = self.open(choice, query, now, Some(limit)).await?;
        let all = answer.rest().await?;
        Ok((answer.revision(), all))
    }

    /// The revision an answer to the query would have now.
    pub(crate) async fn revision(&self, query: &Query) -> Result<u64, Error> {
        self.calendar(&query.key).await?;
        match query.revision {
            Some(revision) => Ok(revision),
            None => {
                let revisions = self.master.revisions(std::slice::from_ref(&query.key)).await?;
                Ok(revisions.first().copied().unwrap_or_default())
            }
        }
    }

    pub(crate) async fn calendar(&self, key: &InstrumentKey) -> Result<Arc<Calendar>, Error> {
        let instrument = match self.master.instrument(key).await {
            Ok(instrument) => instrument,
            Err(fault) if fault.is_not_found() => return Err(Error::UnknownInstrument(key.clone())),
            Err(fault) => return Err(fault.into()),
        };
        let found = match instrument.calendar.as_str() {
            "" => Calendar::for_key(key),
            name => Calendar::by_name(name),
        };
        found.map_err(|source| Error::Calendar { key: key.clone(), source })
    }
}

/// Widens a range to whole buckets and whole trading dates: a candle is made of all its rows, and the source of a date is chosen by
/// the whole date, whatever range was asked for.
fn whole_buckets(calendar: &Calendar, timeframe: Timeframe, start: Millis, end: Millis) -> market::Result<TimeRange> {
    let around = |at| {
        let day = calendar.day_at(at);
        calendar.bucket(&day, timeframe.max(Timeframe::D1), day.anchor)
    };
    TimeRange::new(around(start).start(), around(end - 1).end())
}

#[cfg(test)]
mod equality;
#[cfg(test)]
mod tests;

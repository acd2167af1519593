//! Storing and reading candles. Domain types only: no message, no clock.

mod batch;
mod master;
mod quote;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use market::{Calendar, Candle, Frame, Instrument, InstrumentKey, Millis, TimeRange, Timeframe};
use mesh::flight::BATCH_ROWS;
use mesh::{CpuPool, Fault, PoolError};
use store::{Block, Coverage, Pruned, Stores};
use tokio::sync::Mutex;
use tonic::Code;

pub(crate) use batch::Rejected;
use batch::{Prepared, prepare};
pub(crate) use master::exchange_of;
pub(crate) use quote::Quote;

/// Rows of one batch: 270 sessions of NSE minutes, about 6 MB of message.
pub(crate) const MAX_BATCH_ROWS: usize = 100_000;
/// Stored frames that are listed: the first ones, as an overview; the catalog is read in pages.
pub(crate) const MAX_LISTED_FRAMES: usize = 1000;
/// Rows up to which a batch is checked where it arrived; more take longer than half a millisecond.
const MAX_INLINE_ROWS: usize = 2000;
/// Items of one request that are looked up at the same time; below the store's ten connections.
const LOOKUPS: usize = 8;
/// When a caller should try again after the database was not available.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Rows of candles by outcome: `stored`, `unchanged` or `rejected`.
const ROWS_METRIC: &str = "candlemesh_ingested_rows_total";
/// Superseded blocks deleted after their retention.
const PRUNED_METRIC: &str = "candlemesh_pruned_blocks_total";
/// Time the store took for a batch, until it was durable.
const PUT_METRIC: &str = "candlemesh_store_put_seconds";

/// Why ingestion did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Field(#[from] proto::convert::FieldError),
    #[error(transparent)]
    Market(#[from] market::Error),
    #[error("{field}: {given} given, more than the limit of {limit}")]
    Limit { field: &'static str, given: usize, limit: usize },
    #[error("instrument '{0}' is not known")]
    UnknownInstrument(InstrumentKey),
    #[error("group '{0}' is not known")]
    UnknownGroup(String),
    #[error("no candles of 1d or narrower are stored of instrument '{0}'")]
    NoCandles(InstrumentKey),
    #[error("calendar: instrument '{key}' has calendar {known}, not {given}; PutInstrument is what changes it")]
    OtherCalendar { key: InstrumentKey, known: String, given: &'static str },
    #[error("calendar: candles of instrument '{key}' are stored by {known}, so it cannot become {given}")]
    CalendarInUse { key: InstrumentKey, known: String, given: String },
    #[error("the server is draining; send again what was not acknowledged")]
    Draining,
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Fault for Error {
    fn code(&self) -> Code {
        match self {
            Error::Field(error) => error.code(),
            Error::Market(error) => error.code(),
            Error::Limit { .. } => Code::ResourceExhausted,
            Error::UnknownInstrument(_) | Error::UnknownGroup(_) | Error::NoCandles(_) => Code::NotFound,
            Error::OtherCalendar { .. } | Error::CalendarInUse { .. } => Code::FailedPrecondition,
            Error::Draining => Code::Unavailable,
            Error::Pool(error) => error.code(),
            Error::Store(error) => store_code(error),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Error::Field(error) => error.reason(),
            Error::Market(error) => error.reason(),
            Error::Limit { .. } => "LIMIT_EXCEEDED",
            Error::UnknownInstrument(_) => "UNKNOWN_INSTRUMENT",
            Error::UnknownGroup(_) => "UNKNOWN_GROUP",
            Error::NoCandles(_) => "NO_CANDLES",
            Error::OtherCalendar { .. } | Error::CalendarInUse { .. } => "CALENDAR_CONFLICT",
            Error::Draining => "DRAINING",
            Error::Pool(error) => error.reason(),
            Error::Store(error) => store_reason(error),
        }
    }

    fn field(&self) -> Option<String> {
        match self {
            Error::Field(error) => Fault::field(error),
            Error::Market(error) => Fault::field(error),
            Error::Limit { field, .. } => Some((*field).to_owned()),
            Error::OtherCalendar { .. } | Error::CalendarInUse { .. } => Some("calendar".to_owned()),
            Error::Store(store::Error::Invalid { field: "as_of", .. }) => Some("revision".to_owned()),
            Error::UnknownInstrument(_)
            | Error::UnknownGroup(_)
            | Error::NoCandles(_)
            | Error::Draining
            | Error::Pool(_)
            | Error::Store(_) => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Pool(error) => error.retry_after(),
            Error::Store(store::Error::Unavailable(_)) | Error::Draining => Some(RETRY_AFTER),
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
        store::Error::Invalid { field: "calendar", .. } => Code::FailedPrecondition,
        store::Error::Invalid { .. } => Code::InvalidArgument,
        // The enum may grow; what is not known here is ours to mend.
        _ => Code::Internal,
    }
}

fn store_reason(error: &store::Error) -> &'static str {
    match error {
        store::Error::NotFound { .. } => "NOT_FOUND",
        store::Error::AlreadyExists { .. } => "ALREADY_EXISTS",
        store::Error::Conflict { .. } => "CONFLICT",
        store::Error::Corrupt { .. } => "CORRUPT_BLOCK",
        store::Error::Expired { .. } => "REVISION_EXPIRED",
        store::Error::Unavailable(_) => "STORE_UNAVAILABLE",
        store::Error::Full(_) => "STORE_FULL",
        store::Error::Invalid { field: "calendar", .. } => "CALENDAR_CONFLICT",
        store::Error::Invalid { .. } => "INVALID_FIELD",
        _ => "STORE_FAULT",
    }
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Rows of one instrument and source timeframe as delivered, in any order.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) key: InstrumentKey,
    pub(crate) timeframe: Timeframe,
    /// For an instrument not seen before.
    pub(crate) calendar: Option<Arc<Calendar>>,
    /// `None` where a row has no readable open time.
    pub(crate) rows: Vec<Option<Candle>>,
    /// Index by which the first row is named in rejections.
    pub(crate) first_row: u64,
}

/// What became of a batch; the counts and the rejections add up to its rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) stored: u64,
    pub(crate) unchanged: u64,
    pub(crate) rejected: Vec<Rejected>,
    pub(crate) revision: u64,
}

/// Stored candles pinned to a revision.
pub(crate) struct StoredCandles {
    pub(crate) revision: u64,
    /// Disjoint, in time order, about [`BATCH_ROWS`] rows each but the last.
    pub(crate) frames: BoxStream<'static, Result<Frame>>,
}

/// The service in domain types.
#[derive(Debug)]
pub(crate) struct Engine {
    stores: Stores,
    pool: CpuPool,
    /// Held while an instrument is looked up and written, so that first sight never undoes a PutInstrument.
    catalog_writes: Mutex<()>,
}

impl Engine {
    pub(crate) fn new(stores: Stores, pool: CpuPool) -> Self {
        Self { stores, pool, catalog_writes: Mutex::default() }
    }

    /// Stores the good rows of a batch in one transaction, and the instrument with them when it is new.
    ///
    /// An instrument is created after its first candles: of two first batches that disagree on the calendar the candle store
    /// accepts one, and only that one reaches the catalog. A batch without a good row creates nothing.
    #[tracing::instrument(
        level = "debug",
        skip_all,
        fields(instrument = %batch.key, timeframe = %batch.timeframe, rows = batch.rows.len())
    )]
    pub(crate) async fn put(&self, batch: Batch, now: Millis) -> Result<Outcome> {
        let given = batch.rows.len();
        if given > MAX_BATCH_ROWS {
            return Err(Error::Limit { field: "candles", given, limit: MAX_BATCH_ROWS });
        }
        let (key, timeframe) = (batch.key.clone(), batch.timeframe);
        let known = self.stores.catalog.instrument(&key).await?;
        let calendar = calendar_of(&batch, known.as_ref())?;
        let Prepared { frame, rejected, repeated } = self.prepare(batch, Arc::clone(&calendar)).await?;
        let mut outcome = Outcome { unchanged: repeated, rejected, ..Outcome::default() };
        if frame.is_empty() {
            outcome.revision = self.revision(&key).await?;
        } else {
            let started = Instant::now();
            let put = self.stores.candles.put(&key, timeframe, &calendar, &frame, now).await?;
            metrics::histogram!(PUT_METRIC).record(started.elapsed().as_secs_f64());
            outcome.stored = put.stored;
            outcome.unchanged += put.unchanged;
            outcome.revision = put.revision;
            if known.is_none() {
                self.create_instrument(&key, &calendar).await?;
            }
        }
        metrics::counter!(ROWS_METRIC, "outcome" => "stored").increment(outcome.stored);
        metrics::counter!(ROWS_METRIC, "outcome" => "unchanged").increment(outcome.unchanged);
        metrics::counter!(ROWS_METRIC, "outcome" => "rejected").increment(outcome.rejected.len() as u64);
        Ok(outcome)
    }

    async fn prepare(&self, batch: Batch, calendar: Arc<Calendar>) -> Result<Prepared> {
        let is_short = batch.rows.len() <= MAX_INLINE_ROWS;
        let work = move || prepare(&batch.rows, batch.first_row, batch.timeframe, &calendar);
        if is_short { Ok(work()) } else { Ok(self.pool.run(work).await?) }
    }

    /// Current revision of an instrument; 0 without candles.
    async fn revision(&self, key: &InstrumentKey) -> Result<u64> {
        let revisions = self.stores.candles.revisions(std::slice::from_ref(key)).await?;
        Ok(revisions.first().copied().flatten().unwrap_or_default())
    }

    /// Current revision of each instrument; 0 without candles.
    pub(crate) async fn revisions(&self, keys: &[InstrumentKey]) -> Result<Vec<u64>> {
        let revisions = self.stores.candles.revisions(keys).await?;
        Ok(revisions.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// What is stored of a known instrument, and its revision.
    pub(crate) async fn coverage(&self, key: &InstrumentKey) -> Result<(Vec<Coverage>, u64)> {
        self.instrument(key).await?;
        Ok((self.stores.candles.coverage(key).await?, self.revision(key).await?))
    }

    /// Streams stored candles of a known instrument, as of a revision or the current one.
    #[tracing::instrument(level = "debug", skip_all, fields(instrument = %key, timeframe = %source))]
    pub(crate) async fn stored(
        &self,
        key: &InstrumentKey,
        source: Timeframe,
        range: TimeRange,
        as_of: Option<u64>,
    ) -> Result<StoredCandles> {
        let revision = self.pinned_revision(key, as_of).await?;
        if as_of.is_none() && revision == 0 {
            return Ok(StoredCandles { revision, frames: futures::stream::empty().boxed() });
        }
        let mut blocks = self.stores.candles.read(key, source, range, Some(revision)).peekable();
        // A revision that is unknown or no longer kept is refused here, before anything is answered.
        let first = std::pin::Pin::new(&mut blocks).next_if(|block| block.is_err()).await;
        match first {
            Some(Err(error)) => Err(error.into()),
            _ => Ok(StoredCandles { revision, frames: grouped(blocks).boxed() }),
        }
    }

    /// The revision a read of a known instrument will be pinned to.
    pub(crate) async fn pinned_revision(&self, key: &InstrumentKey, as_of: Option<u64>) -> Result<u64> {
        self.instrument(key).await?;
        match as_of {
            Some(revision) => Ok(revision),
            None => self.revision(key).await,
        }
    }

    /// Deletes superseded candles and records of changes that are older than the retention.
    pub(crate) async fn prune(&self, retention: Duration, now: Millis) -> Result<Pruned> {
        let retention_ms = Millis::try_from(retention.as_millis()).unwrap_or(Millis::MAX);
        let pruned = self.stores.candles.prune(now, retention_ms).await?;
        metrics::counter!(PRUNED_METRIC).increment(pruned.blocks);
        Ok(pruned)
    }

    /// The first [`MAX_LISTED_FRAMES`] instruments and source timeframes that have candles, in order.
    pub(crate) async fn stored_frames(&self) -> Result<Vec<(InstrumentKey, Timeframe)>> {
        let instruments = self.stores.catalog.list_instruments(None, MAX_LISTED_FRAMES, None).await?;
        let mut sources = futures::stream::iter(instruments)
            .map(|instrument| async move {
                let coverage = self.stores.candles.coverage(&instrument.key).await?;
                Ok::<_, Error>((instrument.key, coverage))
            })
            .buffered(LOOKUPS);
        let mut frames = Vec::new();
        while let Some((key, coverage)) = sources.try_next().await? {
            frames.extend(coverage.into_iter().map(|source| (key.clone(), source.timeframe)));
            if frames.len() >= MAX_LISTED_FRAMES {
                break;
            }
        }
        frames.truncate(MAX_LISTED_FRAMES);
        Ok(frames)
    }
}

/// The calendar a batch is placed by: the instrument's, or for a new one the batch's or the segment's.
fn calendar_of(batch: &Batch, known: Option<&Instrument>) -> Result<Arc<Calendar>> {
    match (known, &batch.calendar) {
        (Some(known), Some(given)) if known.calendar != given.name() => {
            Err(Error::OtherCalendar { key: batch.key.clone(), known: known.calendar.clone(), given: given.name() })
        }
        (Some(known), _) => Ok(Calendar::by_name(&known.calendar)?),
        (None, Some(given)) => Ok(Arc::clone(given)),
        (None, None) => Ok(Calendar::for_key(&batch.key)?),
    }
}

/// Joins blocks until a frame has [`BATCH_ROWS`]; holds one frame and one block at a time.
fn grouped(
    blocks: impl Stream<Item = store::Result<Block>> + Send + Unpin,
) -> impl Stream<Item = Result<Frame>> + Send {
    futures::stream::try_unfold(blocks, |mut blocks| async move {
        let mut frame = Frame::default();
        while frame.len() < BATCH_ROWS {
            match blocks.try_next().await? {
                Some(block) => frame.append(&block.frame)?,
                None => break,
            }
        }
        Ok((!frame.is_empty()).then_some((frame, blocks)))
    })
}

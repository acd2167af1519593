//! Storing and reading candles. Domain types only: no message, no clock.

mod actions;
mod batch;
mod changes;
mod compare;
mod master;
mod put;
mod quote;
mod ring;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use market::{Calendar, Candle, Frame, InstrumentKey, Millis, TimeRange, Timeframe};
use mesh::flight::BATCH_ROWS;
use mesh::{CpuPool, Fault, PoolError};
use store::{Block, Coverage, Pruned, Stores};
use tokio::sync::{Mutex, OnceCell};
use tonic::Code;

pub(crate) use batch::Rejected;
pub(crate) use changes::{Feed, Interest, Subscription};
pub(crate) use master::exchange_of;
pub(crate) use put::{MAX_BATCH_ROWS, MAX_BATCHES};
pub(crate) use quote::Quote;
pub(crate) use ring::Batch as ChangeBatch;

/// Instruments of the catalog that are looked at together when those with candles are listed.
const LISTING_PAGE: usize = 256;
/// Attempts to count an instrument's candles between two of its writes.
const COVERAGE_ATTEMPTS: usize = 3;
/// Items of one request that are looked up at the same time: one less than the connections of the smallest store, so that a listing
/// leaves one to everybody else.
const LOOKUPS: usize = 3;
/// When a caller should try again after the database was not available.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Superseded blocks deleted after their retention.
const PRUNED_METRIC: &str = "candlemesh_pruned_blocks_total";

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
    #[error("{0} subscribers are being served, which is the limit; ask another replica, or later")]
    TooManySubscribers(usize),
    #[error("the subscriber took no message for {waited:?}; resume after sequence {sequence}")]
    SlowSubscriber { sequence: u64, waited: Duration },
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
            Error::Limit { .. } | Error::TooManySubscribers(_) | Error::SlowSubscriber { .. } => {
                Code::ResourceExhausted
            }
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
            Error::TooManySubscribers(_) => "TOO_MANY_SUBSCRIBERS",
            Error::SlowSubscriber { .. } => "SLOW_SUBSCRIBER",
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
            Error::Store(store::Error::Invalid { field: "as_of" | "revision", .. }) => Some("revision".to_owned()),
            Error::UnknownInstrument(_)
            | Error::UnknownGroup(_)
            | Error::NoCandles(_)
            | Error::Draining
            | Error::TooManySubscribers(_)
            | Error::SlowSubscriber { .. }
            | Error::Pool(_)
            | Error::Store(_) => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Pool(error) => error.retry_after(),
            Error::Store(store::Error::Unavailable(_)) | Error::Draining | Error::TooManySubscribers(_) => {
                Some(RETRY_AFTER)
            }
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
        store::Error::Expired { what: "change cursor", .. } => "CURSOR_EXPIRED",
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
#[derive(Debug, Clone)]
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

/// What is stored of an instrument.
#[derive(Debug)]
pub(crate) struct Covered {
    pub(crate) key: InstrumentKey,
    pub(crate) coverage: Vec<Coverage>,
    pub(crate) revision: u64,
    /// Whether the counts are those of the revision; not so where writes came faster than they were read.
    pub(crate) is_exact: bool,
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
    /// Held while master data is checked and written, so that two calls of this process do not both pass one check. Puts of candles and
    /// other replicas are not kept out: what may not be undone there is decided by the database.
    catalog_writes: Mutex<()>,
    feed: Arc<Feed>,
    /// Read once: a database is not exchanged under a running process.
    store_id: OnceCell<String>,
}

impl Engine {
    pub(crate) fn new(stores: Stores, pool: CpuPool, feed: Arc<Feed>) -> Self {
        Self { stores, pool, catalog_writes: Mutex::default(), feed, store_id: OnceCell::new() }
    }

    pub(crate) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Current revision of an instrument; 0 without candles.
    async fn revision(&self, key: &InstrumentKey) -> Result<u64> {
        let revisions = self.stores.candles.revisions(std::slice::from_ref(key)).await?;
        Ok(revisions.first().copied().flatten().unwrap_or_default())
    }

    /// What tells the store from every other.
    pub(crate) async fn store_id(&self) -> Result<String> {
        Ok(self.store_id.get_or_try_init(|| self.stores.catalog.store_id()).await?.clone())
    }

    /// Current revision of each instrument; 0 without candles.
    pub(crate) async fn revisions(&self, keys: &[InstrumentKey]) -> Result<Vec<u64>> {
        let revisions = self.stores.candles.revisions(keys).await?;
        Ok(revisions.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// Open time of the earliest candle that the revisions after one and up to another changed, where the log tells.
    pub(crate) async fn first_change(
        &self,
        key: &InstrumentKey,
        after_revision: u64,
        revision: u64,
    ) -> Result<Option<Millis>> {
        Ok(self.stores.candles.first_change(key, after_revision, revision).await?)
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

    /// Instruments with candles after a key, at most `limit` of them in order of their keys; and whether there are more.
    pub(crate) async fn covered(
        &self,
        segment: Option<&str>,
        mut after: Option<InstrumentKey>,
        limit: usize,
    ) -> Result<(Vec<Covered>, bool)> {
        let mut found: Vec<Covered> = Vec::new();
        loop {
            let page = self.stores.catalog.list_instruments(after.as_ref(), LISTING_PAGE, segment).await?;
            let Some(last) = page.last() else { return Ok((found, false)) };
            after = Some(last.key.clone());
            let mut looked_up = futures::stream::iter(page)
                .map(|instrument| async move { self.covered_at_one_revision(instrument.key).await })
                .buffered(LOOKUPS);
            while let Some(covered) = looked_up.try_next().await? {
                if covered.coverage.is_empty() {
                    continue;
                }
                if found.len() >= limit {
                    return Ok((found, true));
                }
                found.push(covered);
            }
        }
    }

    /// What is stored of an instrument, with the revision that it is true of.
    pub(crate) async fn covered_at_one_revision(&self, key: InstrumentKey) -> Result<Covered> {
        let mut revision = self.revision(&key).await?;
        let mut coverage = self.stores.candles.coverage(&key).await?;
        for _ in 0..COVERAGE_ATTEMPTS {
            let now = self.revision(&key).await?;
            if now == revision {
                return Ok(Covered { key, coverage, revision, is_exact: true });
            }
            revision = now;
            coverage = self.stores.candles.coverage(&key).await?;
        }
        Ok(Covered { key, coverage, revision, is_exact: false })
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

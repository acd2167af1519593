//! Candles in blocks: the trait, and what it answers with.
//!
//! **Blocks.** For timeframes inside a trading date (1m to 4h) a block holds one trading date; 1d, 1w and 1mo would
//! make a block of one row, so theirs hold a calendar year and are dated 1 January of it. Blocks of one
//! instrument and source never overlap in time. An instrument therefore keeps the calendar its candles were first stored by.
//!
//! **Revisions.** Each instrument has one counter over all its source timeframes; a call that changes anything of the instrument raises
//! it by one. Superseded blocks are kept until pruned, so a read pinned to a revision repeats its answer to the bit.
//!
//! **Changes.** Every changed block leaves one record in the change log, in the same transaction. Sequences become
//! visible in their order: a reader that has seen `n` will never find a smaller one appear later.

use std::collections::HashSet;
use std::fmt::Debug;

use async_trait::async_trait;
use futures::stream::BoxStream;
use market::{Calendar, Candle, Date, Frame, InstrumentKey, Millis, TimeRange, Timeframe};

use crate::{Error, Result};

/// Most rows one [`CandleStore::put_all`] takes: 15 years of one stock's minutes, 80 MB of frames.
pub const MAX_PUT_ROWS: usize = 1_500_000;
/// Most candles a change carries: two trading dates of minutes, 56 kB. Whoever follows the log of a bulk load reads the rest.
pub const MAX_CHANGE_ROWS: usize = 1000;

/// Most revisions one [`CandleStore::first_change`] looks at: a month of an instrument whose minutes are stored one by one.
pub const MAX_REVISIONS: u64 = 10_000;

/// Rows of one instrument and source timeframe to be stored.
#[derive(Debug, Clone, Copy)]
pub struct Put<'a> {
    pub key: &'a InstrumentKey,
    /// Timeframe the candles were delivered in.
    pub source: Timeframe,
    /// Decides the trading date of each row.
    pub calendar: &'a Calendar,
    pub rows: &'a Frame,
}

/// What became of a [`Put`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PutOutcome {
    /// Rows that were new or differed from the stored ones.
    pub stored: u64,
    /// Rows equal, to the bit, to those already stored.
    pub unchanged: u64,
    /// The instrument's revision after the call; 0 while nothing has ever been stored.
    pub revision: u64,
    /// Trading dates with a new or altered row, ascending.
    pub changed_dates: Vec<Date>,
    /// The records the put left in the change log, ascending.
    pub changes: Vec<Changed>,
}

/// Candles of one block, trimmed to the range that was asked for; never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Trading date; for 1d, 1w and 1mo 1 January of the year the block holds.
    pub trading_date: Date,
    /// The revision that last changed the block, as of the pinned one.
    pub revision: u64,
    pub frame: Frame,
}

/// How far the stored candles of one source timeframe reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    pub timeframe: Timeframe,
    pub first_open_time: Millis,
    pub last_open_time: Millis,
    pub candle_count: u64,
    /// Trading dates with candles; for 1d, 1w and 1mo the same as `candle_count`.
    pub date_count: u64,
}

/// One record of the change log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Rises by one per record over all instruments; the cursor of [`CandleStore::changes`].
    pub sequence: u64,
    pub key: InstrumentKey,
    pub timeframe: Timeframe,
    /// Trading date of the first changed candle.
    pub trading_date: Date,
    /// The instrument's revision that the change made.
    pub revision: u64,
    pub first_open_time: Millis,
    pub last_open_time: Millis,
    /// When it was stored, by the writer's clock.
    pub changed_at: Millis,
}

/// A record of the change log with what was changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    pub change: Change,
    /// The stored candles from the first to the last changed one; absent where they are more than [`MAX_CHANGE_ROWS`].
    pub candles: Option<Frame>,
}

/// The newest candle of an instrument, with what a quote shows beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct LastCandle {
    pub trading_date: Date,
    pub revision: u64,
    pub candle: Candle,
    /// The candle's block as one candle, stamped with its first open time: the day so far (for 1d, 1w and 1mo the year).
    pub block: Candle,
    /// Close of the block before, for the change since yesterday.
    pub previous_close: Option<f64>,
}

/// What [`CandleStore::prune`] removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    pub blocks: u64,
    pub changes: u64,
}

/// Durable candles of all instruments.
#[async_trait]
pub trait CandleStore: Send + Sync + Debug {
    /// Stores rows by open time: the last write wins, equal rows are counted and left alone. The outcomes follow the order of `puts`.
    ///
    /// One transaction per call, all or nothing, durable when it returns; so a minute's close of many instruments should be one
    /// call. Safe to repeat. Concurrent calls on one instrument wait for each other and lose nothing.
    ///
    /// Errors: `Invalid` for more than [`MAX_PUT_ROWS`] rows, an instrument and source named twice, or a calendar other than the one
    /// the instrument is stored by; `Corrupt` when a block that must be merged does not decode; `Full`; `Unavailable`.
    async fn put_all(&self, puts: &[Put<'_>], now: Millis) -> Result<Vec<PutOutcome>>;

    /// [`put_all`](Self::put_all) of one.
    async fn put(
        &self,
        key: &InstrumentKey,
        source: Timeframe,
        calendar: &Calendar,
        rows: &Frame,
        now: Millis,
    ) -> Result<PutOutcome> {
        let outcomes = self.put_all(&[Put { key, source, calendar, rows }], now).await?;
        Ok(outcomes.into_iter().next().unwrap_or_default())
    }

    /// Streams the blocks with candles in `range`, in time order, a bounded number of them in memory.
    ///
    /// All of them belong to one revision: `as_of`, or the current one when the stream is first polled, whatever is written
    /// meanwhile. An instrument or source without candles gives an empty stream. The stream ends after its first error.
    ///
    /// Errors: `Invalid` for an `as_of` beyond the current revision, `Expired` for one that was pruned, `Corrupt`, `Unavailable`.
    fn read(
        &self,
        key: &InstrumentKey,
        source: Timeframe,
        range: TimeRange,
        as_of: Option<u64>,
    ) -> BoxStream<'static, Result<Block>>;

    /// Name of the calendar that the instrument's candles are stored by, which [`put_all`](Self::put_all) asks for; `None` while it has none.
    async fn calendar(&self, key: &InstrumentKey) -> Result<Option<String>>;

    /// Current revision of each instrument, in order; `None` where it has no candles.
    async fn revisions(&self, keys: &[InstrumentKey]) -> Result<Vec<Option<u64>>>;

    /// The instrument's revision at the instant `at`; `None` where it had no candles by then.
    ///
    /// Errors: `Expired` when what happened until `at` was, or may have been, pruned.
    async fn revision_at(&self, key: &InstrumentKey, at: Millis) -> Result<Option<u64>>;

    /// What is stored, per source timeframe from narrow to wide; empty for an instrument without candles.
    async fn coverage(&self, key: &InstrumentKey) -> Result<Vec<Coverage>>;

    /// The change log after a cursor, at most `limit` records (and [`MAX_PAGE_ROWS`](crate::MAX_PAGE_ROWS)), ascending.
    ///
    /// Errors: `Expired` when records after the cursor were pruned: the reader must start over from the candles.
    async fn changes(&self, after_sequence: u64, limit: usize) -> Result<Vec<Change>>;

    /// Open time of the earliest candle, of whichever source timeframe, that the revisions after one and up to another changed: every
    /// candle before it is the same at both. `None` when the log does not tell of all of them, as some were pruned.
    ///
    /// Errors: `Invalid` unless `after_revision` is less than `revision`. Cost: one look-up by index, of at most [`MAX_REVISIONS`]
    /// revisions; of more it says `None`.
    async fn first_change(&self, key: &InstrumentKey, after_revision: u64, revision: u64) -> Result<Option<Millis>>;

    /// The candles now stored from the first to the last changed one of each change, in order. `None` where they are more than
    /// [`MAX_CHANGE_ROWS`], and where their block does not decode: [`read`](Self::read) says why.
    ///
    /// Cost: one statement; each block met is decoded once.
    async fn changed_candles(&self, changes: &[Change]) -> Result<Vec<Option<Frame>>>;

    /// The newest sequence of the change log, where a new reader starts; 0 when nothing was ever changed.
    async fn last_sequence(&self) -> Result<u64>;

    /// The newest candle of each instrument, in order; `None` where there is none of that source.
    async fn last_candles(&self, keys: &[InstrumentKey], source: Timeframe) -> Result<Vec<Option<LastCandle>>>;

    /// Deletes superseded blocks and change records older than `now - retention_ms`, in slices of a bounded size that are each a transaction: ended early, it has
    /// done a part, and goes on the next time. Current candles are never touched.
    async fn prune(&self, now: Millis, retention_ms: Millis) -> Result<Pruned>;
}

/// Refuses a call that is too large or ambiguous.
pub(crate) fn check_puts(puts: &[Put<'_>]) -> Result<()> {
    let rows: usize = puts.iter().map(|put| put.rows.len()).sum();
    if rows > MAX_PUT_ROWS {
        return Err(Error::invalid("rows", format!("{rows} in one call, more than {MAX_PUT_ROWS}")));
    }
    let mut seen = HashSet::new();
    match puts.iter().find(|put| !seen.insert((put.key, put.source))) {
        Some(put) => Err(Error::invalid("puts", format!("{} {} is named twice", put.key, put.source))),
        None => Ok(()),
    }
}

/// Refuses to store an instrument's candles by another calendar than those it has.
pub(crate) fn check_calendar(put: &Put<'_>, stored_by: &str) -> Result<()> {
    if stored_by == put.calendar.name() {
        return Ok(());
    }
    let reason = format!("candles of {} are stored by {stored_by}, not {}", put.key, put.calendar.name());
    Err(Error::invalid("calendar", reason))
}

/// Refuses a span of revisions that holds none; says whether it is one to be looked at.
pub(crate) fn check_revisions(after_revision: u64, revision: u64) -> Result<bool> {
    match revision.checked_sub(after_revision) {
        None | Some(0) => {
            Err(Error::invalid("revision", format!("{revision} given, which is not after {after_revision}")))
        }
        Some(count) => Ok(count <= MAX_REVISIONS),
    }
}

/// The candles of a block that a change carries.
pub(crate) fn carried(frame: &Frame, first: Millis, last: Millis) -> Option<Frame> {
    let rows = frame.rows_between(first, last.saturating_add(1));
    (rows.len() <= MAX_CHANGE_ROWS).then(|| frame.slice(rows))
}

/// Date of the block a change was made in.
pub(crate) fn block_date(change: &Change) -> Date {
    match change.timeframe.width_ms() {
        Some(_) => change.trading_date,
        None => change.trading_date.first_of_year(),
    }
}

/// The rows of a stored block that lie in the range, if any.
pub(crate) fn trim(frame: Frame, range: TimeRange) -> Option<Frame> {
    let rows = frame.rows_between(range.start(), range.end());
    if rows.is_empty() {
        return None;
    }
    if rows.len() == frame.len() { Some(frame) } else { Some(frame.slice(rows)) }
}

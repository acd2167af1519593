//! Reading blocks as a stream, pinned to a revision.

use std::collections::VecDeque;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use market::{Date, Frame, InstrumentKey, TimeRange, Timeframe};

use super::put::{check_columns, open_block};
use super::{Series, StoredBlock};
use crate::block::block_dates;
use crate::candle_store::trim;
use crate::{Block, Error, Result};

/// Blocks fetched at a time: a few hundred kilobytes encoded, a few megabytes at the most.
const PAGE_BLOCKS: i64 = 32;

/// Which blocks, after the ones already read.
#[derive(Debug, Clone)]
pub(super) struct Page {
    pub(super) series_id: i64,
    pub(super) timeframe: Timeframe,
    pub(super) first_date: Date,
    pub(super) last_date: Date,
    pub(super) range: TimeRange,
    pub(super) revision: u64,
    pub(super) limit: i64,
}

/// Single statements, each seeing one state of the database.
#[async_trait]
pub(super) trait ReadTables: Clone + Send + Sync + 'static {
    async fn series(&self, key: &InstrumentKey) -> Result<Option<Series>>;
    /// Blocks as of the revision, by date.
    async fn page(&self, page: &Page) -> Result<Vec<StoredBlock>>;
    /// The first later version of a block that has a payload of its own.
    async fn version_after(&self, block: &StoredBlock) -> Result<Option<StoredBlock>>;
}

struct Reading<T> {
    tables: T,
    key: InstrumentKey,
    page: Page,
    fetched: VecDeque<StoredBlock>,
    is_last_page: bool,
}

pub(super) fn read<T: ReadTables>(
    tables: T,
    key: InstrumentKey,
    source: Timeframe,
    range: TimeRange,
    as_of: Option<u64>,
) -> BoxStream<'static, Result<Block>> {
    stream::once(async move { start(tables, key, source, range, as_of).await })
        .flat_map(|started| match started {
            Ok(Some(reading)) => stream::try_unfold(reading, next).boxed(),
            Ok(None) => stream::empty().boxed(),
            Err(error) => stream::iter([Err(error)]).boxed(),
        })
        .boxed()
}

async fn start<T: ReadTables>(
    tables: T,
    key: InstrumentKey,
    source: Timeframe,
    range: TimeRange,
    as_of: Option<u64>,
) -> Result<Option<Reading<T>>> {
    let found = tables.series(&key).await?;
    let current = found.as_ref().map_or(0, |series| series.revision);
    let revision = as_of.unwrap_or(current);
    if revision > current {
        return Err(Error::invalid("as_of", format!("{revision} is beyond {current}, the current revision of {key}")));
    }
    let Some(series) = found else {
        return Ok(None);
    };
    check_kept(&series, revision)?;
    let (first_date, last_date) = block_dates(source, range);
    let page =
        Page { series_id: series.id, timeframe: source, first_date, last_date, range, revision, limit: PAGE_BLOCKS };
    Ok(Some(Reading { tables, key, page, fetched: VecDeque::new(), is_last_page: false }))
}

pub(super) fn check_kept(series: &Series, revision: u64) -> Result<()> {
    if revision < series.oldest_revision {
        return Err(Error::Expired { what: "revision", requested: revision, oldest: series.oldest_revision });
    }
    Ok(())
}

async fn next<T: ReadTables>(mut reading: Reading<T>) -> Result<Option<(Block, Reading<T>)>> {
    loop {
        while let Some(block) = reading.fetched.pop_front() {
            let frame = candles(&reading, &block).await?;
            if let Some(frame) = trim(frame, reading.page.range) {
                let block = Block { trading_date: block.date, revision: block.revision, frame };
                return Ok(Some((block, reading)));
            }
        }
        if reading.is_last_page {
            return Ok(None);
        }
        fetch(&mut reading).await?;
    }
}

async fn fetch<T: ReadTables>(reading: &mut Reading<T>) -> Result<()> {
    let blocks = reading.tables.page(&reading.page).await?;
    // Asked after the page: whatever a prune had taken from it, its mark is visible by now.
    let series = reading.tables.series(&reading.key).await?;
    let series = series.ok_or_else(|| Error::internal("an instrument's row has vanished"))?;
    check_kept(&series, reading.page.revision)?;
    reading.is_last_page = blocks.len() < PAGE_BLOCKS as usize;
    if let Some(block) = blocks.last() {
        reading.page.first_date = block.date.saturating_add(jiff::SignedDuration::from_hours(24));
    }
    reading.fetched = blocks.into();
    Ok(())
}

async fn candles<T: ReadTables>(reading: &Reading<T>, block: &StoredBlock) -> Result<Frame> {
    if block.payload.is_some() {
        return open_block(&reading.key, block);
    }
    let corrupt =
        |reason: &str| Error::Corrupt { instrument: reading.key.clone(), date: block.date, reason: reason.to_owned() };
    let later =
        reading.tables.version_after(block).await?.ok_or_else(|| corrupt("no later version holds its candles"))?;
    let frame = open_block(&reading.key, &later)?;
    let rows = usize::try_from(block.candle_count).unwrap_or(usize::MAX);
    if rows > frame.len() {
        return Err(corrupt("the version that followed it is shorter"));
    }
    check_columns(&reading.key, block, frame.slice(0..rows))
}

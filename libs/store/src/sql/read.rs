//! Reading blocks as a stream, pinned to a revision.

use std::collections::{HashMap, VecDeque};

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use market::{Candle, Date, Frame, InstrumentKey, TimeRange, Timeframe};
use tokio::task::JoinHandle;

use super::put::{check_columns, off_thread, open_block, open_block_with};
use super::{Series, StoredBlock};
use crate::block::{Decoder, block_dates};
use crate::candle_store::{block_date, carried, trim};
use crate::{Block, Change, Error, LastCandle, Result};

/// Blocks fetched at a time, one page ahead of the reader: of a session each, a hundred kilobytes encoded; a few megabytes at the most.
const PAGE_BLOCKS: i64 = 64;

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
    decoder: Decoder,
    fetched: VecDeque<StoredBlock>,
    /// Being fetched while the reader decodes. A reader that goes away leaves it to finish: it is one page.
    upcoming: Option<JoinHandle<Result<Vec<StoredBlock>>>>,
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
    let (decoder, fetched) = (Decoder::default(), VecDeque::new());
    Ok(Some(Reading { tables, key, page, decoder, fetched, upcoming: None, is_last_page: false }))
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
            let frame = candles(&mut reading, &block).await?;
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
    let blocks = match reading.upcoming.take() {
        Some(upcoming) => upcoming.await.map_err(Error::internal)??,
        None => fetch_page(reading.tables.clone(), reading.key.clone(), reading.page.clone()).await?,
    };
    reading.is_last_page = blocks.len() < PAGE_BLOCKS as usize;
    if let (Some(block), false) = (blocks.last(), reading.is_last_page) {
        reading.page.first_date = block.date.saturating_add(jiff::SignedDuration::from_hours(24));
        let next = fetch_page(reading.tables.clone(), reading.key.clone(), reading.page.clone());
        reading.upcoming = Some(tokio::spawn(next));
    }
    reading.fetched = blocks.into();
    Ok(())
}

/// What each change carries of the blocks they were made in.
pub(super) async fn carried_candles(
    blocks: Vec<(InstrumentKey, StoredBlock)>,
    changes: Vec<Change>,
) -> Result<Vec<Option<Frame>>> {
    let rows = blocks.iter().map(|(_, block)| usize::try_from(block.candle_count).unwrap_or(0)).sum();
    let work = move || {
        let mut of_block: HashMap<(&InstrumentKey, Timeframe, Date), Vec<usize>> = HashMap::new();
        for (index, change) in changes.iter().enumerate() {
            of_block.entry((&change.key, change.timeframe, block_date(change))).or_default().push(index);
        }
        let mut carrying = vec![None; changes.len()];
        // One block decoded at a time: they may be far larger than what is carried of them.
        for (key, block) in &blocks {
            let timeframe = super::timeframe_of(&block.timeframe)?;
            let Some(indexes) = of_block.get(&(key, timeframe, block.date)) else { continue };
            let Ok(frame) = open_block(key, block) else { continue };
            for index in indexes {
                let change = &changes[*index];
                carrying[*index] = carried(&frame, change.first_open_time, change.last_open_time);
            }
        }
        Ok(carrying)
    };
    off_thread(rows, work).await
}

/// The newest block of an instrument as fetched, with what stands beside it.
#[derive(Debug)]
pub(super) struct LastBlock {
    pub(super) key: InstrumentKey,
    pub(super) stored: StoredBlock,
    pub(super) summary: Candle,
    pub(super) previous_close: Option<f64>,
}

/// The newest candle of each block.
pub(super) async fn last_candles_of(blocks: Vec<LastBlock>) -> Result<HashMap<InstrumentKey, LastCandle>> {
    let rows = blocks.iter().map(|block| usize::try_from(block.stored.candle_count).unwrap_or(0)).sum();
    let work = move || {
        let mut decoder = Decoder::default();
        let mut found = HashMap::with_capacity(blocks.len());
        for LastBlock { key, stored, summary, previous_close } in blocks {
            let frame = open_block_with(&mut decoder, &key, &stored)?;
            let candle = frame.candle(frame.len() - 1);
            let (trading_date, revision) = (stored.date, stored.revision);
            found.insert(key, LastCandle { trading_date, revision, candle, block: summary, previous_close });
        }
        Ok(found)
    };
    off_thread(rows, work).await
}

async fn fetch_page<T: ReadTables>(tables: T, key: InstrumentKey, page: Page) -> Result<Vec<StoredBlock>> {
    let blocks = tables.page(&page).await?;
    // Asked after the page: whatever a prune had taken from it, its mark is visible by now.
    check_still_kept(&tables, &key, page.revision).await?;
    Ok(blocks)
}

async fn check_still_kept<T: ReadTables>(tables: &T, key: &InstrumentKey, revision: u64) -> Result<()> {
    let series = tables.series(key).await?.ok_or_else(|| Error::internal("an instrument's row has vanished"))?;
    check_kept(&series, revision)
}

async fn candles<T: ReadTables>(reading: &mut Reading<T>, block: &StoredBlock) -> Result<Frame> {
    if block.payload.is_some() {
        return open_block_with(&mut reading.decoder, &reading.key, block);
    }
    let opened = prefix_of_later(&reading.tables, &reading.key, block).await;
    // Asked after the later version: a prune may have taken the one that held the candles, and a newer one stood in for it, or none.
    check_still_kept(&reading.tables, &reading.key, reading.page.revision).await?;
    opened
}

/// The candles of a superseded block that has no payload, because it is the beginning of the version after it.
pub(super) async fn prefix_of_later<T: ReadTables>(
    tables: &T,
    key: &InstrumentKey,
    block: &StoredBlock,
) -> Result<Frame> {
    let corrupt =
        |reason: &str| Error::Corrupt { instrument: key.clone(), date: block.date, reason: reason.to_owned() };
    let later = tables.version_after(block).await?.ok_or_else(|| corrupt("no later version holds its candles"))?;
    let frame = open_block(key, &later)?;
    let rows = usize::try_from(block.candle_count).unwrap_or(usize::MAX);
    if rows > frame.len() {
        return Err(corrupt("the version that followed it is shorter"));
    }
    check_columns(key, block, frame.slice(0..rows))
}

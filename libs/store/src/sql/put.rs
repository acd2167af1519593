//! What a put does, around the statements: cut, encode, lock, merge, write, commit.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;
use market::{Date, Frame, InstrumentKey, Millis, Timeframe};

use super::{Series, StoredBlock, date_number};
use crate::block::{Chunk, Columns, Decoder, Encoder, Merged, Summary, merge, split};
use crate::candle_store::{carried, check_calendar, check_puts};
use crate::{Change, Changed, Error, Put, PutOutcome, Result};

/// Rows from which encoding leaves the async threads: half a millisecond of work.
const BLOCKING_ROWS: usize = 4_096;
/// Most blocking threads that share the encoding of one call; more calls at once use more.
const MAX_CODING_THREADS: usize = 4;

/// A block to write over whatever is there.
#[derive(Debug)]
pub(super) struct BlockWrite {
    pub(super) series_id: i64,
    pub(super) timeframe: Timeframe,
    pub(super) date: Date,
    pub(super) revision: u64,
    pub(super) candle_count: usize,
    pub(super) first_open_time: Millis,
    pub(super) last_open_time: Millis,
    pub(super) summary: Summary,
    pub(super) checksum: u32,
    pub(super) payload: Vec<u8>,
}

/// A block to move to the history before it is written over.
#[derive(Debug)]
pub(super) struct Superseded {
    pub(super) series_id: i64,
    pub(super) timeframe: Timeframe,
    pub(super) date: Date,
    pub(super) keeps_payload: bool,
    pub(super) by_revision: u64,
    pub(super) at: Millis,
}

/// What a put adds to the coverage of a source.
#[derive(Debug)]
pub(super) struct CoverageGrowth {
    pub(super) series_id: i64,
    pub(super) timeframe: Timeframe,
    pub(super) first_open_time: Millis,
    pub(super) last_open_time: Millis,
    pub(super) candles: i64,
    pub(super) blocks: i64,
}

/// A record of the change log, not yet numbered.
#[derive(Debug)]
pub(super) struct ChangeWrite {
    pub(super) series_id: i64,
    pub(super) timeframe: Timeframe,
    pub(super) trading_date: Date,
    pub(super) revision: u64,
    pub(super) first_open_time: Millis,
    pub(super) last_open_time: Millis,
    pub(super) changed_at: Millis,
}

/// A writing transaction. Dropped without commit it leaves nothing.
#[async_trait]
pub(super) trait WriteTables: Send {
    /// Creates what is missing and locks all until the end of the transaction, in key order so that writers cannot deadlock.
    async fn lock_series(&mut self, keys_and_calendars: &BTreeMap<&str, &str>) -> Result<Vec<Series>>;
    async fn blocks(&mut self, wanted: &[(i64, Timeframe, Date)]) -> Result<Vec<StoredBlock>>;
    async fn supersede(&mut self, blocks: &[Superseded]) -> Result<()>;
    async fn write_blocks(&mut self, blocks: &[BlockWrite]) -> Result<()>;
    async fn grow_coverage(&mut self, growth: &[CoverageGrowth]) -> Result<()>;
    async fn raise_revisions(&mut self, series: &[Series]) -> Result<()>;
    /// Numbers and writes the records, and returns the first number. The last step: other writers wait here until the commit.
    async fn log_changes(&mut self, changes: &[ChangeWrite]) -> Result<u64>;
    async fn commit(self) -> Result<()>;
}

#[derive(Debug)]
struct EncodedChunk {
    put: usize,
    chunk: Chunk,
    payload: Vec<u8>,
}

/// A chunk with the block it meets.
#[derive(Debug)]
struct Meeting {
    key: InstrumentKey,
    encoded: EncodedChunk,
    stored: Option<StoredBlock>,
}

/// A chunk that changes its block, or not.
#[derive(Debug)]
enum Effect {
    Unchanged { put: usize, rows: u64 },
    Changed { put: usize, date: Date, merged: Box<Merged>, payload: Vec<u8>, replaced_count: Option<i64> },
}

/// `begin` is told the years of the blocks that may be written.
pub(super) async fn put_all<W, B>(puts: &[Put<'_>], now: Millis, begin: B) -> Result<Vec<PutOutcome>>
where
    W: WriteTables,
    B: AsyncFnOnce(&BTreeSet<i16>) -> Result<W>,
{
    check_puts(puts)?;
    let mut chunks = Vec::with_capacity(puts.len());
    for (index, put) in puts.iter().enumerate() {
        chunks.extend(split(put.source, put.calendar, put.rows)?.into_iter().map(|chunk| (index, chunk)));
    }
    let rows = puts.iter().map(|put| put.rows.len()).sum();
    let encoded = on_threads(rows, chunks, encode_all).await?;

    let years = encoded.iter().map(|encoded| encoded.chunk.block_date.year()).collect();
    let mut tables = begin(&years).await?;
    let mut calendars = BTreeMap::new();
    for put in puts {
        check_calendar(put, calendars.entry(put.key.as_str()).or_insert(put.calendar.name()))?;
    }
    let locked = tables.lock_series(&calendars).await?;
    let mut series: HashMap<&str, Series> = HashMap::with_capacity(locked.len());
    for row in locked {
        let Some((key, _)) = calendars.get_key_value(row.key.as_str()) else { continue };
        series.insert(key, row);
    }
    let series_of =
        |put: &Put<'_>| series.get(put.key.as_str()).ok_or_else(|| Error::internal("a locked row is missing"));
    let mut wanted = Vec::new();
    for EncodedChunk { put, chunk, .. } in &encoded {
        let put = &puts[*put];
        let row = series_of(put)?;
        check_calendar(put, &row.calendar)?;
        // An instrument without a revision has no blocks to look for.
        if row.revision > 0 {
            wanted.push((row.id, put.source, chunk.block_date));
        }
    }
    let mut stored: HashMap<(i64, String, Date), StoredBlock> = HashMap::new();
    if !wanted.is_empty() {
        for block in tables.blocks(&wanted).await? {
            stored.insert((block.series_id, block.timeframe.clone(), block.date), block);
        }
    }
    let mut meetings = Vec::with_capacity(encoded.len());
    for encoded in encoded {
        let put = &puts[encoded.put];
        let block = (series_of(put)?.id, put.source.as_str().to_owned(), encoded.chunk.block_date);
        meetings.push(Meeting { key: put.key.clone(), stored: stored.remove(&block), encoded });
    }
    let effects = on_threads(rows, meetings, merge_all).await?;

    let (writes, mut outcomes) = lay_out(puts, effects, &series, now)?;
    if !writes.blocks.is_empty() {
        if !writes.superseded.is_empty() {
            tables.supersede(&writes.superseded).await?;
        }
        tables.write_blocks(&writes.blocks).await?;
        tables.grow_coverage(&writes.growth).await?;
        tables.raise_revisions(&writes.series).await?;
        let first = tables.log_changes(&writes.changes).await?;
        number(&mut outcomes, first);
    }
    // Also where nothing changed: an instrument's row may be new.
    tables.commit().await?;
    Ok(outcomes)
}

/// Runs work in place when it is short, else on a blocking thread.
pub(super) async fn off_thread<T, F>(rows: usize, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    if rows < BLOCKING_ROWS {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

/// Runs work over a list: in place when it is short, else in parts on blocking threads. The results keep the order.
async fn on_threads<T, U>(rows: usize, mut items: Vec<T>, work: fn(Vec<T>) -> Result<Vec<U>>) -> Result<Vec<U>>
where
    T: Send + 'static,
    U: Send + 'static,
{
    if rows < BLOCKING_ROWS || items.is_empty() {
        return work(items);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let part = items.len().div_ceil(cores.min(MAX_CODING_THREADS));
    let mut parts = Vec::with_capacity(MAX_CODING_THREADS);
    while !items.is_empty() {
        let rest = items.split_off(part.min(items.len()));
        let first = std::mem::replace(&mut items, rest);
        parts.push(tokio::task::spawn_blocking(move || work(first)));
    }
    let mut results = Vec::new();
    for part in parts {
        results.extend(part.await.map_err(Error::internal)??);
    }
    Ok(results)
}

/// Encodes every chunk as if its block were new, before anything is locked. Mostly it is; where an equal block exists, equal bytes
/// show it without decoding.
fn encode_all(chunks: Vec<(usize, Chunk)>) -> Result<Vec<EncodedChunk>> {
    let mut encoder = Encoder::new().map_err(Error::internal)?;
    let encode = |(put, chunk): (usize, Chunk)| {
        Ok(EncodedChunk { payload: encoder.encode(&chunk.rows).map_err(Error::internal)?, put, chunk })
    };
    chunks.into_iter().map(encode).collect()
}

fn merge_all(meetings: Vec<Meeting>) -> Result<Vec<Effect>> {
    let mut encoder = Encoder::new().map_err(Error::internal)?;
    meetings.into_iter().map(|meeting| merge_one(meeting, &mut encoder)).collect()
}

fn merge_one(meeting: Meeting, encoder: &mut Encoder) -> Result<Effect> {
    let Meeting { key, encoded: EncodedChunk { put, chunk, payload }, stored } = meeting;
    let (rows, date) = (chunk.rows.len() as u64, chunk.block_date);
    let Some(stored) = stored else {
        return Ok(match merge(None, chunk)? {
            Some(merged) => Effect::Changed { put, date, merged: Box::new(merged), payload, replaced_count: None },
            None => Effect::Unchanged { put, rows },
        });
    };
    if stored.payload.as_ref() == Some(&payload) {
        return Ok(Effect::Unchanged { put, rows });
    }
    let existing = open_block(&key, &stored)?;
    let Some(merged) = merge(Some(&existing), chunk)? else {
        return Ok(Effect::Unchanged { put, rows });
    };
    let payload = encoder.encode(&merged.frame).map_err(Error::internal)?;
    Ok(Effect::Changed { put, date, merged: Box::new(merged), payload, replaced_count: Some(stored.candle_count) })
}

/// Everything a call writes.
#[derive(Debug, Default)]
struct Writes {
    superseded: Vec<Superseded>,
    blocks: Vec<BlockWrite>,
    growth: Vec<CoverageGrowth>,
    series: Vec<Series>,
    changes: Vec<ChangeWrite>,
}

fn lay_out(
    puts: &[Put<'_>],
    effects: Vec<Effect>,
    series: &HashMap<&str, Series>,
    now: Millis,
) -> Result<(Writes, Vec<PutOutcome>)> {
    let mut writes = Writes::default();
    let mut outcomes = vec![PutOutcome::default(); puts.len()];
    let mut raised: BTreeSet<&str> = BTreeSet::new();
    for effect in effects {
        let (put, date, merged, payload, replaced_count) = match effect {
            Effect::Unchanged { put, rows } => {
                outcomes[put].unchanged += rows;
                continue;
            }
            Effect::Changed { put, date, merged, payload, replaced_count } => {
                (put, date, merged, payload, replaced_count)
            }
        };
        let outcome = &mut outcomes[put];
        outcome.stored += merged.stored;
        outcome.unchanged += merged.unchanged;
        outcome.changed_dates.extend_from_slice(&merged.changed_dates);
        let Put { key, source: timeframe, .. } = puts[put];
        let row = &series[key.as_str()];
        let (series_id, revision) = (row.id, row.revision + 1);
        // Clocks of several writers may disagree; an instrument's history never runs backwards.
        let at = now.max(row.updated_at);
        if raised.insert(key.as_str()) {
            writes.series.push(Series { revision, updated_at: at, ..row.clone() });
        }
        if replaced_count.is_some() {
            let keeps_payload = !merged.is_append;
            writes.superseded.push(Superseded { series_id, timeframe, date, keeps_payload, by_revision: revision, at });
        }
        grow(&mut writes.growth, series_id, timeframe, &merged.frame, replaced_count);
        let change = Change {
            sequence: 0,
            key: key.clone(),
            timeframe,
            trading_date: merged.changed_dates[0],
            revision,
            first_open_time: merged.first_changed,
            last_open_time: merged.last_changed,
            changed_at: at,
        };
        let candles = carried(&merged.frame, merged.first_changed, merged.last_changed);
        writes.changes.push(ChangeWrite {
            series_id,
            timeframe,
            trading_date: change.trading_date,
            revision,
            first_open_time: change.first_open_time,
            last_open_time: change.last_open_time,
            changed_at: at,
        });
        outcome.changes.push(Changed { change, candles });
        let times = merged.frame.open_time();
        writes.blocks.push(BlockWrite {
            series_id,
            timeframe,
            date,
            revision,
            candle_count: times.len(),
            first_open_time: times[0],
            last_open_time: times[times.len() - 1],
            summary: Summary::of(&merged.frame),
            checksum: crc32fast::hash(&payload),
            payload,
        });
    }
    for (put, outcome) in puts.iter().zip(&mut outcomes) {
        let key = put.key.as_str();
        outcome.revision = series[key].revision + u64::from(raised.contains(key));
    }
    Ok((writes, outcomes))
}

/// Gives the changes their sequences, in the order in which they were written.
fn number(outcomes: &mut [PutOutcome], first: u64) {
    let changes = outcomes.iter_mut().flat_map(|outcome| &mut outcome.changes);
    for (changed, sequence) in changes.zip(first..) {
        changed.change.sequence = sequence;
    }
}

/// Effects come put by put, so a source's growth is the last entry or a new one.
fn grow(
    growth: &mut Vec<CoverageGrowth>,
    series_id: i64,
    timeframe: Timeframe,
    frame: &Frame,
    replaced_count: Option<i64>,
) {
    let times = frame.open_time();
    let (first, last) = (times[0], times[times.len() - 1]);
    let candles = times.len() as i64 - replaced_count.unwrap_or(0);
    let blocks = i64::from(replaced_count.is_none());
    match growth.last_mut() {
        Some(entry) if entry.series_id == series_id && entry.timeframe == timeframe => {
            entry.first_open_time = entry.first_open_time.min(first);
            entry.last_open_time = entry.last_open_time.max(last);
            entry.candles += candles;
            entry.blocks += blocks;
        }
        _ => growth.push(CoverageGrowth {
            series_id,
            timeframe,
            first_open_time: first,
            last_open_time: last,
            candles,
            blocks,
        }),
    }
}

/// Decodes a stored block with a payload of its own, trusting nothing.
pub(super) fn open_block(key: &InstrumentKey, block: &StoredBlock) -> Result<Frame> {
    open_block_with(&mut Decoder::default(), key, block)
}

/// [`open_block`] with the buffers of a decoder.
pub(super) fn open_block_with(decoder: &mut Decoder, key: &InstrumentKey, block: &StoredBlock) -> Result<Frame> {
    let corrupt = |reason: String| Error::Corrupt { instrument: key.clone(), date: block.date, reason };
    let payload = block.payload.as_deref().unwrap_or_default();
    let checksum = crc32fast::hash(payload);
    if i64::from(checksum) != block.checksum {
        return Err(corrupt(format!("checksum is {checksum:08x}, not {:08x}", block.checksum)));
    }
    let mut columns = Columns::default();
    decoder.decode(payload, &mut columns).map_err(corrupt)?;
    let frame = columns.into_frame().map_err(corrupt)?;
    check_columns(key, block, frame)
}

/// Compares a frame with what the block's columns say of it.
pub(super) fn check_columns(key: &InstrumentKey, block: &StoredBlock, frame: Frame) -> Result<Frame> {
    let times = frame.open_time();
    let found = (times.len() as i64, times.first().copied(), times.last().copied());
    let told = (block.candle_count, Some(block.first_open_time), Some(block.last_open_time));
    if found == told {
        return Ok(frame);
    }
    let reason =
        format!("{} candles {} to {} do not match its columns", found.0, date_or_dash(found.1), date_or_dash(found.2));
    Err(Error::Corrupt { instrument: key.clone(), date: block.date, reason })
}

fn date_or_dash(at: Option<Millis>) -> String {
    at.map_or_else(|| "-".to_owned(), market::format_millis)
}

/// First and last of the dates, as numbers. A statement over a list of blocks names them too, so that the database need not look at other years.
pub(super) fn date_bounds(dates: impl Iterator<Item = Date> + Clone) -> (i64, i64) {
    let (first, last) = (dates.clone().min(), dates.max());
    (first.map_or(0, date_number), last.map_or(0, date_number))
}

/// Rows of statements that read lists as JSON.
pub(super) fn superseded_json(blocks: &[Superseded]) -> serde_json::Value {
    let row = |b: &Superseded| {
        let keeps_payload = i32::from(b.keeps_payload);
        serde_json::json!([b.series_id, b.timeframe.as_str(), date_number(b.date), keeps_payload, b.by_revision, b.at])
    };
    blocks.iter().map(row).collect()
}

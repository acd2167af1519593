//! The candle tables, one statement per function. Compiled once for each database: `super` defines `Db`, the store, and the fragments.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;
use futures::stream::BoxStream;
use market::{Candle, Date, Frame, InstrumentKey, Millis, TimeRange, Timeframe};
use sqlx::Row;

use super::{Db, Store};
use crate::candle_store::{block_date, check_revisions};
use crate::sql::limited::Held;
use crate::sql::put::{self, ChangeWrite, CoverageGrowth, Superseded, WriteTables, date_bounds, superseded_json};
use crate::sql::read::{self, LastBlock, Page, ReadTables, last_candles_of};
use crate::sql::{
    Series, StoredBlock, date_number, date_of_number, fault, json, key_of, page_rows, signed, timeframe_of, unsigned,
};
use crate::{Block, CandleStore, Change, Coverage, Error, LastCandle, Pruned, Put, PutOutcome, Result};

type DbRow = <Db as sqlx::Database>::Row;

/// Rows that one transaction of a prune deletes: writers wait for it no longer than for a large put.
const PRUNE_ROWS: i64 = 1_000;

/// A transaction on the candle tables.
#[derive(Debug)]
pub(super) struct Writer(pub(super) Held<Db>);

pub(super) fn series_of(row: &DbRow) -> Result<Series> {
    Ok(Series {
        id: row.try_get("series_id").map_err(fault)?,
        key: row.try_get("instrument_key").map_err(fault)?,
        calendar: row.try_get("calendar").map_err(fault)?,
        revision: unsigned(row.try_get("revision").map_err(fault)?)?,
        oldest_revision: unsigned(row.try_get("oldest_revision").map_err(fault)?)?,
        updated_at: row.try_get("updated_at").map_err(fault)?,
    })
}

pub(super) fn block_of(row: &DbRow) -> Result<StoredBlock> {
    Ok(StoredBlock {
        series_id: row.try_get("series_id").map_err(fault)?,
        timeframe: row.try_get("timeframe").map_err(fault)?,
        date: date_of_number(row.try_get("block_date").map_err(fault)?)?,
        revision: unsigned(row.try_get("revision").map_err(fault)?)?,
        candle_count: row.try_get("candle_count").map_err(fault)?,
        first_open_time: row.try_get("first_open_time").map_err(fault)?,
        last_open_time: row.try_get("last_open_time").map_err(fault)?,
        checksum: row.try_get("checksum").map_err(fault)?,
        payload: row.try_get("payload").map_err(fault)?,
    })
}

fn change_of(row: &DbRow) -> Result<Change> {
    Ok(Change {
        sequence: unsigned(row.try_get("sequence").map_err(fault)?)?,
        key: key_of(row.try_get("instrument_key").map_err(fault)?)?,
        timeframe: timeframe_of(row.try_get("timeframe").map_err(fault)?)?,
        trading_date: date_of_number(row.try_get("trading_date").map_err(fault)?)?,
        revision: unsigned(row.try_get("revision").map_err(fault)?)?,
        first_open_time: row.try_get("first_open_time").map_err(fault)?,
        last_open_time: row.try_get("last_open_time").map_err(fault)?,
        changed_at: row.try_get("changed_at").map_err(fault)?,
    })
}

#[async_trait]
impl WriteTables for Writer {
    async fn lock_series(&mut self, keys_and_calendars: &BTreeMap<&str, &str>) -> Result<Vec<Series>> {
        let pairs = keys_and_calendars.iter().map(|(key, calendar)| serde_json::json!([key, calendar]));
        sqlx::query(concat!(
            "insert into candle_series (instrument_key, calendar, revision, oldest_revision, updated_at) ",
            "select w.value ->> 0, w.value ->> 1, 0, 0, 0 from ",
            json_rows!("$1"),
            " w where not exists (select 1 from candle_series s where s.instrument_key = w.value ->> 0) ",
            "order by 1 on conflict (instrument_key) do nothing"
        ))
        .bind(json(pairs))
        .execute(&mut *self.0)
        .await
        .map_err(fault)?;
        let rows = sqlx::query(concat!(
            "select series_id, instrument_key, calendar, revision, oldest_revision, updated_at from candle_series ",
            "where instrument_key in (select w.value ->> 0 from ",
            json_rows!("$1"),
            " w) order by instrument_key",
            for_update!()
        ))
        .bind(json(keys_and_calendars.keys().map(|key| serde_json::json!([key]))))
        .fetch_all(&mut *self.0)
        .await
        .map_err(fault)?;
        rows.iter().map(series_of).collect()
    }

    async fn blocks(&mut self, wanted: &[(i64, Timeframe, Date)]) -> Result<Vec<StoredBlock>> {
        let (first, last) = date_bounds(wanted.iter().map(|(_, _, date)| *date));
        let wanted =
            wanted.iter().map(|(id, timeframe, date)| serde_json::json!([id, timeframe.as_str(), date_number(*date)]));
        let rows = sqlx::query(concat!(
            "select b.series_id, b.timeframe, b.block_date, b.revision, b.candle_count, b.first_open_time, ",
            "b.last_open_time, b.checksum, b.payload from ",
            json_rows!("$1"),
            " w ",
            join_block!("cast(w.value ->> 0 as bigint)", "$2", "$3")
        ))
        .bind(json(wanted))
        .bind(first)
        .bind(last)
        .fetch_all(&mut *self.0)
        .await
        .map_err(fault)?;
        rows.iter().map(block_of).collect()
    }

    async fn supersede(&mut self, blocks: &[Superseded]) -> Result<()> {
        let (first, last) = date_bounds(blocks.iter().map(|block| block.date));
        sqlx::query(concat!(
            "insert into candle_block_history (series_id, timeframe, block_date, revision, superseded_revision, ",
            "superseded_at, candle_count, first_open_time, last_open_time, checksum, payload) ",
            "select b.series_id, b.timeframe, b.block_date, b.revision, cast(w.value ->> 4 as bigint), ",
            "cast(w.value ->> 5 as bigint), b.candle_count, b.first_open_time, b.last_open_time, b.checksum, ",
            "case when cast(w.value ->> 3 as bigint) = 1 then b.payload end from ",
            json_rows!("$1"),
            " w ",
            join_block!("cast(w.value ->> 0 as bigint)", "$2", "$3")
        ))
        .bind(superseded_json(blocks).to_string())
        .bind(first)
        .bind(last)
        .execute(&mut *self.0)
        .await
        .map_err(fault)?;
        Ok(())
    }

    async fn write_blocks(&mut self, blocks: &[put::BlockWrite]) -> Result<()> {
        super::write_blocks(&mut self.0, blocks).await
    }

    async fn grow_coverage(&mut self, growth: &[CoverageGrowth]) -> Result<()> {
        let rows = growth.iter().map(|g| {
            let (timeframe, first, last) = (g.timeframe.as_str(), g.first_open_time, g.last_open_time);
            serde_json::json!([g.series_id, timeframe, first, last, g.candles, g.blocks])
        });
        sqlx::query(concat!(
            "insert into candle_coverage (series_id, timeframe, first_open_time, last_open_time, candle_count, block_count) ",
            "select cast(w.value ->> 0 as bigint), w.value ->> 1, cast(w.value ->> 2 as bigint), ",
            "cast(w.value ->> 3 as bigint), cast(w.value ->> 4 as bigint), cast(w.value ->> 5 as bigint) from ",
            json_rows!("$1"),
            " w where true on conflict (series_id, timeframe) do update set ",
            "first_open_time = case when excluded.first_open_time < candle_coverage.first_open_time ",
            "then excluded.first_open_time else candle_coverage.first_open_time end, ",
            "last_open_time = case when excluded.last_open_time > candle_coverage.last_open_time ",
            "then excluded.last_open_time else candle_coverage.last_open_time end, ",
            "candle_count = candle_coverage.candle_count + excluded.candle_count, ",
            "block_count = candle_coverage.block_count + excluded.block_count"
        ))
        .bind(json(rows))
        .execute(&mut *self.0)
        .await
        .map_err(fault)?;
        Ok(())
    }

    async fn raise_revisions(&mut self, series: &[Series]) -> Result<()> {
        let rows = series.iter().map(|s| serde_json::json!([s.id, s.revision, s.updated_at]));
        sqlx::query(concat!(
            "update candle_series set revision = cast(w.value ->> 1 as bigint), updated_at = cast(w.value ->> 2 as bigint) from ",
            json_rows!("$1"),
            " w where series_id = cast(w.value ->> 0 as bigint)"
        ))
        .bind(json(rows))
        .execute(&mut *self.0)
        .await
        .map_err(fault)?;
        Ok(())
    }

    async fn log_changes(&mut self, changes: &[ChangeWrite]) -> Result<u64> {
        let count = changes.len() as i64;
        let last: i64 = sqlx::query_scalar(
            "update candle_change_counter set last_sequence = last_sequence + $1 where counter_id = 1 returning last_sequence",
        )
        .bind(count)
        .fetch_one(&mut *self.0)
        .await
        .map_err(fault)?;
        super::write_changes(&mut self.0, changes, last - count + 1).await?;
        unsigned(last - count + 1)
    }

    async fn commit(self) -> Result<()> {
        self.0.commit().await.map_err(fault)
    }
}

#[async_trait]
impl ReadTables for Store {
    async fn series(&self, key: &InstrumentKey) -> Result<Option<Series>> {
        let row = sqlx::query(
            "select series_id, instrument_key, calendar, revision, oldest_revision, updated_at from candle_series \
             where instrument_key = $1 and revision > 0",
        )
        .bind(key.as_str())
        .fetch_optional(self.reader())
        .await
        .map_err(fault)?;
        row.as_ref().map(series_of).transpose()
    }

    async fn page(&self, page: &Page) -> Result<Vec<StoredBlock>> {
        let rows = sqlx::query(concat!(
            first_by_date!(
                "select series_id, timeframe, block_date, revision, candle_count, first_open_time, last_open_time, checksum, ",
                "payload from candle_block where series_id = $1 and timeframe = $2 and block_date between $3 and $4 ",
                "and last_open_time >= $5 and first_open_time < $6 and revision <= $7"
            ),
            " union all ",
            first_by_date!(
                "select series_id, timeframe, block_date, revision, candle_count, first_open_time, last_open_time, checksum, ",
                "payload from candle_block_history where series_id = $1 and timeframe = $2 and block_date between $3 and $4 ",
                "and last_open_time >= $5 and first_open_time < $6 and revision <= $7 and superseded_revision > $7"
            ),
            " order by block_date limit $8"
        ))
        .bind(page.series_id)
        .bind(page.timeframe.as_str())
        .bind(date_number(page.first_date))
        .bind(date_number(page.last_date))
        .bind(page.range.start())
        .bind(page.range.end())
        .bind(signed(page.revision))
        .bind(page.limit)
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        rows.iter().map(block_of).collect()
    }

    async fn version_after(&self, block: &StoredBlock) -> Result<Option<StoredBlock>> {
        let row = sqlx::query(
            "select series_id, timeframe, block_date, revision, candle_count, first_open_time, last_open_time, checksum, \
             payload from candle_block where series_id = $1 and timeframe = $2 and block_date = $3 and revision > $4 \
             union all \
             select series_id, timeframe, block_date, revision, candle_count, first_open_time, last_open_time, checksum, \
             payload from candle_block_history where series_id = $1 and timeframe = $2 and block_date = $3 \
             and revision > $4 and payload is not null \
             order by revision limit 1",
        )
        .bind(block.series_id)
        .bind(&block.timeframe)
        .bind(date_number(block.date))
        .bind(signed(block.revision))
        .fetch_optional(self.reader())
        .await
        .map_err(fault)?;
        row.as_ref().map(block_of).transpose()
    }
}

impl Store {
    async fn pruned_sequence(&self) -> Result<u64> {
        let pruned: i64 = sqlx::query_scalar("select pruned_sequence from candle_change_counter where counter_id = 1")
            .fetch_one(self.reader())
            .await
            .map_err(fault)?;
        unsigned(pruned)
    }
}

#[async_trait]
impl CandleStore for Store {
    async fn put_all(&self, puts: &[Put<'_>], now: Millis) -> Result<Vec<PutOutcome>> {
        put::put_all(puts, now, async |years| Ok(Writer(self.begin_put(years).await?))).await
    }

    fn read(
        &self,
        key: &InstrumentKey,
        source: Timeframe,
        range: TimeRange,
        as_of: Option<u64>,
    ) -> BoxStream<'static, Result<Block>> {
        read::read(self.clone(), key.clone(), source, range, as_of)
    }

    async fn calendar(&self, key: &InstrumentKey) -> Result<Option<String>> {
        sqlx::query_scalar("select calendar from candle_series where instrument_key = $1 and revision > 0")
            .bind(key.as_str())
            .fetch_optional(self.reader())
            .await
            .map_err(fault)
    }

    async fn revisions(&self, keys: &[InstrumentKey]) -> Result<Vec<Option<u64>>> {
        let rows = sqlx::query(concat!(
            "select instrument_key, revision from candle_series where revision > 0 and instrument_key in ",
            "(select w.value ->> 0 from ",
            json_rows!("$1"),
            " w)"
        ))
        .bind(json(keys.iter().map(|key| serde_json::json!([key.as_str()]))))
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        let mut revisions: HashMap<String, u64> = HashMap::with_capacity(rows.len());
        for row in &rows {
            let revision = unsigned(row.try_get("revision").map_err(fault)?)?;
            revisions.insert(row.try_get("instrument_key").map_err(fault)?, revision);
        }
        Ok(keys.iter().map(|key| revisions.get(key.as_str()).copied()).collect())
    }

    async fn revision_at(&self, key: &InstrumentKey, at: Millis) -> Result<Option<u64>> {
        let Some(series) = self.series(key).await? else {
            return Ok(None);
        };
        if series.updated_at <= at {
            return Ok(Some(series.revision));
        }
        let known: Option<i64> =
            sqlx::query_scalar("select max(revision) from candle_change where series_id = $1 and changed_at <= $2")
                .bind(series.id)
                .bind(at)
                .fetch_one(self.reader())
                .await
                .map_err(fault)?;
        match known {
            Some(revision) => {
                let revision = unsigned(revision)?;
                read::check_kept(&series, revision)?;
                Ok(Some(revision))
            }
            None if series.oldest_revision > 0 || self.pruned_sequence().await? > 0 => {
                Err(Error::Expired { what: "revision at", requested: 0, oldest: series.oldest_revision })
            }
            None => Ok(None),
        }
    }

    async fn coverage(&self, key: &InstrumentKey) -> Result<Vec<Coverage>> {
        let rows = sqlx::query(
            "select c.timeframe, c.first_open_time, c.last_open_time, c.candle_count, c.block_count \
             from candle_coverage c join candle_series s on s.series_id = c.series_id where s.instrument_key = $1",
        )
        .bind(key.as_str())
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        let mut coverage = Vec::with_capacity(rows.len());
        for row in &rows {
            let timeframe = timeframe_of(row.try_get("timeframe").map_err(fault)?)?;
            let candle_count = unsigned(row.try_get("candle_count").map_err(fault)?)?;
            let block_count = unsigned(row.try_get("block_count").map_err(fault)?)?;
            coverage.push(Coverage {
                timeframe,
                first_open_time: row.try_get("first_open_time").map_err(fault)?,
                last_open_time: row.try_get("last_open_time").map_err(fault)?,
                candle_count,
                date_count: if timeframe.width_ms().is_some() { block_count } else { candle_count },
            });
        }
        coverage.sort_by_key(|source| source.timeframe);
        Ok(coverage)
    }

    async fn changes(&self, after_sequence: u64, limit: usize) -> Result<Vec<Change>> {
        let rows = sqlx::query(
            "select c.sequence, s.instrument_key, c.timeframe, c.trading_date, c.revision, c.first_open_time, \
             c.last_open_time, c.changed_at from candle_change c join candle_series s on s.series_id = c.series_id \
             where c.sequence > $1 order by c.sequence limit $2",
        )
        .bind(signed(after_sequence))
        .bind(page_rows(limit))
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        // Asked after the records, for the reason given in read.rs.
        let oldest = self.pruned_sequence().await?;
        if after_sequence < oldest {
            return Err(Error::Expired { what: "change cursor", requested: after_sequence, oldest });
        }
        rows.iter().map(change_of).collect()
    }

    async fn first_change(&self, key: &InstrumentKey, after_revision: u64, revision: u64) -> Result<Option<Millis>> {
        if !check_revisions(after_revision, revision)? {
            return Ok(None);
        }
        // Each revision leaves at least one record: where all are counted, none was pruned whole. A prune goes on in slices, which may end
        // within a put: its records bear one instant, so what bears that of the oldest record left may have lost its like.
        let row = sqlx::query(
            "select count(distinct c.revision) as revisions, min(c.first_open_time) as first_open_time, \
             count(case when c.changed_at = (select o.changed_at from candle_change o order by o.sequence limit 1) then 1 end) \
             as doubtful, (select pruned_sequence from candle_change_counter where counter_id = 1) as pruned \
             from candle_change c join candle_series s on s.series_id = c.series_id \
             where s.instrument_key = $1 and c.revision > $2 and c.revision <= $3",
        )
        .bind(key.as_str())
        .bind(signed(after_revision))
        .bind(signed(revision))
        .fetch_one(self.reader())
        .await
        .map_err(fault)?;
        let number = |name: &str| unsigned(row.try_get(name).map_err(fault)?);
        let is_whole = number("doubtful")? == 0 || number("pruned")? == 0;
        let first: Option<Millis> = row.try_get("first_open_time").map_err(fault)?;
        let is_known = is_whole && number("revisions")? == revision - after_revision;
        Ok(first.filter(|_| is_known))
    }

    async fn changed_candles(&self, changes: &[Change]) -> Result<Vec<Option<Frame>>> {
        let wanted: BTreeSet<_> = changes.iter().map(|c| (&c.key, c.timeframe, block_date(c))).collect();
        let (first, last) = date_bounds(wanted.iter().map(|(_, _, date)| *date));
        let wanted = wanted
            .into_iter()
            .map(|(key, timeframe, date)| serde_json::json!([key.as_str(), timeframe.as_str(), date_number(date)]));
        let rows = sqlx::query(concat!(
            "select s.instrument_key, b.series_id, b.timeframe, b.block_date, b.revision, b.candle_count, ",
            "b.first_open_time, b.last_open_time, b.checksum, b.payload from ",
            json_rows!("$1"),
            " w join candle_series s on s.instrument_key = w.value ->> 0 ",
            join_block!("s.series_id", "$2", "$3")
        ))
        .bind(json(wanted))
        .bind(first)
        .bind(last)
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        let mut blocks = Vec::with_capacity(rows.len());
        for row in &rows {
            blocks.push((key_of(row.try_get("instrument_key").map_err(fault)?)?, block_of(row)?));
        }
        read::carried_candles(blocks, changes.to_vec()).await
    }

    async fn last_sequence(&self) -> Result<u64> {
        let last: i64 = sqlx::query_scalar("select last_sequence from candle_change_counter where counter_id = 1")
            .fetch_one(self.reader())
            .await
            .map_err(fault)?;
        unsigned(last)
    }

    async fn last_candles(&self, keys: &[InstrumentKey], source: Timeframe) -> Result<Vec<Option<LastCandle>>> {
        let rows = sqlx::query(concat!(
            "select s.instrument_key, b.series_id, b.timeframe, b.block_date, b.revision, b.candle_count, b.first_open_time, ",
            "b.last_open_time, b.checksum, b.payload, b.open, b.high, b.low, b.close, b.volume, b.open_interest, ",
            "(select p.close from candle_block p where p.series_id = b.series_id and p.timeframe = b.timeframe ",
            "and p.block_date < b.block_date order by p.block_date desc limit 1) as previous_close from ",
            json_rows!("$1"),
            " w join candle_series s on s.instrument_key = w.value ->> 0 ",
            join_last_block!("$2")
        ))
        .bind(json(keys.iter().map(|key| serde_json::json!([key.as_str()]))))
        .bind(source.as_str())
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        let last_blocks = rows.iter().map(last_block_of).collect::<Result<Vec<LastBlock>>>()?;
        let found = last_candles_of(last_blocks).await?;
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }

    async fn prune(&self, now: Millis, retention_ms: Millis) -> Result<Pruned> {
        let cutoff = now.saturating_sub(retention_ms);
        let mut pruned = Pruned::default();
        // A slice may hold no row only where none is left: each marks what it will delete first.
        loop {
            let blocks = self.prune_blocks(cutoff).await?;
            pruned.blocks += blocks;
            if blocks == 0 {
                break;
            }
        }
        // Cut at a sequence, so that what is left has no holes though writers' clocks disagree.
        let last: Option<i64> = sqlx::query_scalar("select max(sequence) from candle_change where changed_at < $1")
            .bind(cutoff)
            .fetch_one(self.reader())
            .await
            .map_err(fault)?;
        let Some(last) = last else { return Ok(pruned) };
        loop {
            let (changes, reached) = self.prune_changes(last).await?;
            pruned.changes += changes;
            if reached >= last {
                return Ok(pruned);
            }
        }
    }
}

impl Store {
    /// Deletes one slice of superseded blocks, the oldest first, so that no block outlives a later one that holds its candles.
    async fn prune_blocks(&self, cutoff: Millis) -> Result<u64> {
        let mut tx = self.begin().await?;
        // In key order, as writers lock them.
        sqlx::query(concat!(
            "select s.series_id from candle_series s where s.series_id in ",
            "(select h.series_id from (select series_id from candle_block_history where superseded_at < $1 ",
            "order by superseded_at, superseded_revision limit $2) h) order by s.instrument_key",
            for_update!()
        ))
        .bind(cutoff)
        .bind(PRUNE_ROWS)
        .fetch_all(&mut *tx)
        .await
        .map_err(fault)?;
        sqlx::query(
            "update candle_series set oldest_revision = h.newest from (select o.series_id, max(o.superseded_revision) as newest \
             from (select series_id, superseded_revision from candle_block_history where superseded_at < $1 \
             order by superseded_at, superseded_revision limit $2) o group by o.series_id) h \
             where h.series_id = candle_series.series_id and h.newest > candle_series.oldest_revision",
        )
        .bind(cutoff)
        .bind(PRUNE_ROWS)
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
        // Bound to the marks just set: the slice, and what the calls at its end superseded besides. Its age bounds what is looked at, by the index.
        let blocks = sqlx::query(
            "delete from candle_block_history where superseded_at <= (select max(h.superseded_at) from \
             (select superseded_at from candle_block_history where superseded_at < $1 \
             order by superseded_at, superseded_revision limit $2) h) and superseded_revision <= \
             (select s.oldest_revision from candle_series s where s.series_id = candle_block_history.series_id)",
        )
        .bind(cutoff)
        .bind(PRUNE_ROWS)
        .execute(&mut *tx)
        .await
        .map_err(fault)?
        .rows_affected();
        tx.commit().await.map_err(fault)?;
        Ok(blocks)
    }

    /// Deletes one slice of change records up to a sequence; returns how many, and the sequence it has reached.
    async fn prune_changes(&self, last: i64) -> Result<(u64, i64)> {
        let mut tx = self.begin().await?;
        let reached: i64 = sqlx::query_scalar(
            "update candle_change_counter set pruned_sequence = case when pruned_sequence >= $1 then pruned_sequence \
             when pruned_sequence + $2 < $1 then pruned_sequence + $2 else $1 end \
             where counter_id = 1 returning pruned_sequence",
        )
        .bind(last)
        .bind(PRUNE_ROWS)
        .fetch_one(&mut *tx)
        .await
        .map_err(fault)?;
        let changes = sqlx::query("delete from candle_change where sequence <= $1")
            .bind(reached)
            .execute(&mut *tx)
            .await
            .map_err(fault)?
            .rows_affected();
        tx.commit().await.map_err(fault)?;
        Ok((changes, reached))
    }
}

fn last_block_of(row: &DbRow) -> Result<LastBlock> {
    let stored = block_of(row)?;
    let summary = Candle {
        open_time: stored.first_open_time,
        open: row.try_get("open").map_err(fault)?,
        high: row.try_get("high").map_err(fault)?,
        low: row.try_get("low").map_err(fault)?,
        close: row.try_get("close").map_err(fault)?,
        volume: row.try_get("volume").map_err(fault)?,
        open_interest: row.try_get("open_interest").map_err(fault)?,
    };
    Ok(LastBlock {
        key: key_of(row.try_get("instrument_key").map_err(fault)?)?,
        stored,
        summary,
        previous_close: row.try_get("previous_close").map_err(fault)?,
    })
}

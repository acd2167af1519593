//! Statements of the check, compiled once for each database as `tables.rs` is.

use async_trait::async_trait;
use sqlx::Row;

use super::tables::{block_of, series_of};
use super::{Db, Store};
use crate::Result;
use crate::block::Summary;
use crate::sql::check::{CHECK_PAGE, ChangeSpan, CheckTables, CheckedBlock, CheckedRow, Place, StoredCoverage};
use crate::sql::{Series, fault, unsigned};

type DbRow = <Db as sqlx::Database>::Row;

fn summary_of(row: &DbRow) -> Result<Summary> {
    Ok(Summary {
        open: row.try_get("open").map_err(fault)?,
        high: row.try_get("high").map_err(fault)?,
        low: row.try_get("low").map_err(fault)?,
        close: row.try_get("close").map_err(fault)?,
        volume: row.try_get("volume").map_err(fault)?,
        open_interest: row.try_get("open_interest").map_err(fault)?,
    })
}

fn place_of(row: &DbRow) -> Result<Place> {
    let timeframe = row.try_get("timeframe").map_err(fault)?;
    let date = row.try_get("block_date").map_err(fault)?;
    Ok((timeframe, date, row.try_get("revision").map_err(fault)?))
}

#[async_trait]
impl CheckTables for Store {
    async fn series_ids_after(&self, id: i64) -> Result<Vec<i64>> {
        sqlx::query_scalar("select series_id from candle_series where series_id > $1 order by series_id limit $2")
            .bind(id)
            .bind(CHECK_PAGE)
            .fetch_all(self.reader())
            .await
            .map_err(fault)
    }

    async fn series_by_id(&self, id: i64) -> Result<Option<Series>> {
        let row = sqlx::query(
            "select series_id, instrument_key, calendar, revision, oldest_revision, updated_at from candle_series \
             where series_id = $1",
        )
        .bind(id)
        .fetch_optional(self.reader())
        .await
        .map_err(fault)?;
        row.as_ref().map(series_of).transpose()
    }

    async fn blocks_after(&self, series_id: i64, place: &Place) -> Result<Vec<CheckedRow>> {
        let rows = sqlx::query(
            "select series_id, timeframe, block_date, revision, candle_count, first_open_time, last_open_time, checksum, \
             payload, open, high, low, close, volume, open_interest from candle_block \
             where series_id = $1 and (timeframe, block_date) > ($2, $3) order by timeframe, block_date limit $4",
        )
        .bind(series_id)
        .bind(&place.0)
        .bind(place.1)
        .bind(CHECK_PAGE)
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        let block = |row: &DbRow| {
            Ok(CheckedBlock { stored: block_of(row)?, summary: Some(summary_of(row)?), superseded_revision: None })
        };
        rows.iter().map(|row| Ok(CheckedRow { place: place_of(row)?, block: block(row) })).collect()
    }

    async fn superseded_after(&self, series_id: i64, place: &Place) -> Result<Vec<CheckedRow>> {
        let rows = sqlx::query(
            "select series_id, timeframe, block_date, revision, superseded_revision, candle_count, first_open_time, \
             last_open_time, checksum, payload from candle_block_history \
             where series_id = $1 and (timeframe, block_date, revision) > ($2, $3, $4) \
             order by timeframe, block_date, revision limit $5",
        )
        .bind(series_id)
        .bind(&place.0)
        .bind(place.1)
        .bind(place.2)
        .bind(CHECK_PAGE)
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        let block = |row: &DbRow| {
            let superseded_revision = Some(unsigned(row.try_get("superseded_revision").map_err(fault)?)?);
            Ok(CheckedBlock { stored: block_of(row)?, summary: None, superseded_revision })
        };
        rows.iter().map(|row| Ok(CheckedRow { place: place_of(row)?, block: block(row) })).collect()
    }

    async fn coverage_rows(&self, series_id: i64) -> Result<Vec<StoredCoverage>> {
        let rows = sqlx::query(
            "select timeframe, first_open_time, last_open_time, candle_count, block_count from candle_coverage \
             where series_id = $1",
        )
        .bind(series_id)
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        let coverage = |row: &DbRow| {
            Ok(StoredCoverage {
                timeframe: row.try_get("timeframe").map_err(fault)?,
                first_open_time: row.try_get("first_open_time").map_err(fault)?,
                last_open_time: row.try_get("last_open_time").map_err(fault)?,
                candle_count: row.try_get("candle_count").map_err(fault)?,
                block_count: row.try_get("block_count").map_err(fault)?,
            })
        };
        rows.iter().map(coverage).collect()
    }

    async fn change_span(&self) -> Result<ChangeSpan> {
        // One statement, so that counter and records are of one state.
        let row = sqlx::query(
            "select c.last_sequence, c.pruned_sequence, (select count(*) from candle_change) as records, \
             (select min(sequence) from candle_change) as first, (select max(sequence) from candle_change) as last \
             from candle_change_counter c where c.counter_id = 1",
        )
        .fetch_one(self.reader())
        .await
        .map_err(fault)?;
        Ok(ChangeSpan {
            last_sequence: row.try_get("last_sequence").map_err(fault)?,
            pruned_sequence: row.try_get("pruned_sequence").map_err(fault)?,
            count: row.try_get("records").map_err(fault)?,
            first: row.try_get("first").map_err(fault)?,
            last: row.try_get("last").map_err(fault)?,
        })
    }
}

//! Intents and analyses, one statement per function. Compiled once for each database: `super` defines `Db` and the store.

use std::collections::HashMap;

use async_trait::async_trait;
use market::{InstrumentKey, TimeRange};
use sqlx::Row;

use super::{Db, Store};
use crate::screen_store::check_intents;
use crate::sql::{fault, key_of, page_rows, signed, timeframe_of, unsigned};
use crate::{AnalysisRecord, Error, IntentRecord, Result, ScreenStore};

type DbRow = <Db as sqlx::Database>::Row;

fn intent_of(row: &DbRow) -> Result<IntentRecord> {
    Ok(IntentRecord {
        id: row.try_get("intent_id").map_err(fault)?,
        group_id: row.try_get("group_id").map_err(fault)?,
        instrument_key: key_of(row.try_get("instrument_key").map_err(fault)?)?,
        side: row.try_get("side").map_err(fault)?,
        entry: row.try_get("entry").map_err(fault)?,
        stop: row.try_get("stop").map_err(fault)?,
        target: row.try_get("target").map_err(fault)?,
        quantity: row.try_get("quantity").map_err(fault)?,
        reason: row.try_get("reason").map_err(fault)?,
        created_at: row.try_get("created_at").map_err(fault)?,
    })
}

fn analysis_of(row: &DbRow) -> Result<AnalysisRecord> {
    Ok(AnalysisRecord {
        instrument_key: key_of(row.try_get("instrument_key").map_err(fault)?)?,
        timeframe: timeframe_of(row.try_get("timeframe").map_err(fault)?)?,
        start: row.try_get("range_start").map_err(fault)?,
        end: row.try_get("range_end").map_err(fault)?,
        engine: row.try_get("engine").map_err(fault)?,
        revision: unsigned(row.try_get("revision").map_err(fault)?)?,
        metrics_json: row.try_get("metrics").map_err(fault)?,
        patterns_json: row.try_get("patterns").map_err(fault)?,
        created_at: row.try_get("created_at").map_err(fault)?,
    })
}

#[async_trait]
impl ScreenStore for Store {
    async fn put_intents(
        &self,
        group_id: &str,
        idempotency_key: &str,
        intents: &[IntentRecord],
    ) -> Result<Vec<IntentRecord>> {
        check_intents(group_id, intents)?;
        let ids: serde_json::Value = intents.iter().map(|intent| serde_json::json!([intent.id])).collect();
        let mut tx = self.begin().await?;
        // Of two writers with one key the second waits here for the first.
        let claimed = sqlx::query(
            "insert into intent_batch (group_id, idempotency_key, intent_ids) values ($1, $2, $3) \
             on conflict (group_id, idempotency_key) do nothing",
        )
        .bind(group_id)
        .bind(idempotency_key)
        .bind(ids.to_string())
        .execute(&mut *tx)
        .await
        .map_err(fault)?;
        if claimed.rows_affected() == 0 {
            tx.rollback().await.map_err(fault)?;
            return Ok(self.intent_batch(group_id, idempotency_key).await?.unwrap_or_default());
        }
        for intent in intents {
            let written = sqlx::query(
                "insert into intent (intent_id, group_id, instrument_key, side, entry, stop, target, quantity, reason, \
                 created_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict (intent_id) do nothing",
            )
            .bind(&intent.id)
            .bind(&intent.group_id)
            .bind(intent.instrument_key.as_str())
            .bind(&intent.side)
            .bind(intent.entry)
            .bind(intent.stop)
            .bind(intent.target)
            .bind(intent.quantity)
            .bind(&intent.reason)
            .bind(intent.created_at)
            .execute(&mut *tx)
            .await
            .map_err(fault)?;
            if written.rows_affected() == 0 {
                return Err(Error::AlreadyExists { what: "intent", id: intent.id.clone() });
            }
        }
        tx.commit().await.map_err(fault)?;
        Ok(intents.to_vec())
    }

    async fn intent_batch(&self, group_id: &str, idempotency_key: &str) -> Result<Option<Vec<IntentRecord>>> {
        let ids: Option<String> =
            sqlx::query_scalar("select intent_ids from intent_batch where group_id = $1 and idempotency_key = $2")
                .bind(group_id)
                .bind(idempotency_key)
                .fetch_optional(self.reader())
                .await
                .map_err(fault)?;
        let Some(ids) = ids else { return Ok(None) };
        let rows = sqlx::query(concat!(
            "select intent_id, group_id, instrument_key, side, entry, stop, target, quantity, reason, created_at from intent ",
            "where intent_id in (select w.value ->> 0 from ",
            json_rows!("$1"),
            " w)"
        ))
        .bind(&ids)
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            let intent = intent_of(row)?;
            found.insert(intent.id.clone(), intent);
        }
        let ids: Vec<[String; 1]> = serde_json::from_str(&ids).map_err(Error::internal)?;
        Ok(Some(ids.iter().filter_map(|[id]| found.remove(id)).collect()))
    }

    async fn intents(&self, group_id: Option<&str>, after: Option<&str>, limit: usize) -> Result<Vec<IntentRecord>> {
        let query = match (group_id, after) {
            (None, None) => sqlx::query(
                "select intent_id, group_id, instrument_key, side, entry, stop, target, quantity, reason, created_at \
                 from intent order by created_at, intent_id limit $1",
            )
            .bind(page_rows(limit)),
            (None, Some(after)) => sqlx::query(
                "select intent_id, group_id, instrument_key, side, entry, stop, target, quantity, reason, created_at \
                 from intent where (created_at, intent_id) > (select l.created_at, l.intent_id from intent l \
                 where l.intent_id = $2) order by created_at, intent_id limit $1",
            )
            .bind(page_rows(limit))
            .bind(after),
            (Some(group_id), None) => sqlx::query(
                "select intent_id, group_id, instrument_key, side, entry, stop, target, quantity, reason, created_at \
                 from intent where group_id = $2 order by created_at, intent_id limit $1",
            )
            .bind(page_rows(limit))
            .bind(group_id),
            (Some(group_id), Some(after)) => sqlx::query(
                "select intent_id, group_id, instrument_key, side, entry, stop, target, quantity, reason, created_at \
                 from intent where group_id = $2 and (created_at, intent_id) > (select l.created_at, l.intent_id \
                 from intent l where l.intent_id = $3) order by created_at, intent_id limit $1",
            )
            .bind(page_rows(limit))
            .bind(group_id)
            .bind(after),
        };
        query.fetch_all(self.reader()).await.map_err(fault)?.iter().map(intent_of).collect()
    }

    async fn put_analysis(&self, analysis: &AnalysisRecord) -> Result<()> {
        sqlx::query(
            "insert into analysis (instrument_key, timeframe, range_start, range_end, engine, revision, metrics, patterns, \
             created_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
             on conflict (instrument_key, timeframe, range_start, range_end, engine) do update set \
             revision = excluded.revision, metrics = excluded.metrics, patterns = excluded.patterns, \
             created_at = excluded.created_at",
        )
        .bind(analysis.instrument_key.as_str())
        .bind(analysis.timeframe.as_str())
        .bind(analysis.start)
        .bind(analysis.end)
        .bind(&analysis.engine)
        .bind(signed(analysis.revision))
        .bind(&analysis.metrics_json)
        .bind(&analysis.patterns_json)
        .bind(analysis.created_at)
        .execute(self.writer())
        .await
        .map_err(fault)?;
        Ok(())
    }

    async fn analyses(&self, key: &InstrumentKey, range: TimeRange, limit: usize) -> Result<Vec<AnalysisRecord>> {
        let rows = sqlx::query(
            "select instrument_key, timeframe, range_start, range_end, engine, revision, metrics, patterns, created_at \
             from analysis where instrument_key = $1 and range_start < $2 and range_end > $3 \
             order by range_start, range_end, timeframe, engine limit $4",
        )
        .bind(key.as_str())
        .bind(range.end())
        .bind(range.start())
        .bind(page_rows(limit))
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        rows.iter().map(analysis_of).collect()
    }
}

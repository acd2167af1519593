//! Catalog, flags and studies, one statement per function. Compiled once for each database: `super` defines `Db` and the store.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use market::{Instrument, InstrumentKey, Millis};
use sqlx::{QueryBuilder, Row};

use super::{Db, Store};
use crate::sql::{fault, json, key_of, page_rows, signed, unsigned};
use crate::study_store::check_trials;
use crate::{
    Catalog, Error, FlagRecord, FlagStore, Group, MAX_PAGE_ROWS, Result, StudyProgress, StudyRecord, StudyStore,
    TrialOrder, TrialRecord,
};

/// Trials per statement: seven values each.
const TRIALS_PER_STATEMENT: usize = 500;

type DbRow = <Db as sqlx::Database>::Row;

fn instrument_of(row: &DbRow) -> Result<Instrument> {
    Ok(Instrument {
        key: key_of(row.try_get("instrument_key").map_err(fault)?)?,
        name: row.try_get("name").map_err(fault)?,
        exchange: row.try_get("exchange").map_err(fault)?,
        currency: row.try_get("currency").map_err(fault)?,
        tick_size: row.try_get("tick_size").map_err(fault)?,
        calendar: row.try_get("calendar").map_err(fault)?,
    })
}

fn group_of(row: &DbRow) -> Result<Group> {
    let keys: String = row.try_get("instrument_keys").map_err(fault)?;
    let keys: Vec<String> = serde_json::from_str(&keys).map_err(Error::internal)?;
    Ok(Group {
        id: row.try_get("group_id").map_err(fault)?,
        name: row.try_get("name").map_err(fault)?,
        instrument_keys: keys.iter().map(|key| key_of(key)).collect::<Result<_>>()?,
    })
}

fn flag_of(row: &DbRow) -> Result<FlagRecord> {
    Ok(FlagRecord {
        key: row.try_get("flag_key").map_err(fault)?,
        definition_json: row.try_get("definition").map_err(fault)?,
        generation: unsigned(row.try_get("generation").map_err(fault)?)?,
        updated_at: row.try_get("updated_at").map_err(fault)?,
        updated_by: row.try_get("updated_by").map_err(fault)?,
    })
}

fn study_of(row: &DbRow) -> Result<StudyRecord> {
    Ok(StudyRecord {
        id: row.try_get("study_id").map_err(fault)?,
        name: row.try_get("name").map_err(fault)?,
        state: row.try_get("state").map_err(fault)?,
        spec_json: row.try_get("spec").map_err(fault)?,
        created_at: row.try_get("created_at").map_err(fault)?,
        updated_at: row.try_get("updated_at").map_err(fault)?,
        progress_done: unsigned(row.try_get("progress_done").map_err(fault)?)?,
        progress_total: unsigned(row.try_get("progress_total").map_err(fault)?)?,
        error: row.try_get("error").map_err(fault)?,
    })
}

fn trial_of(row: &DbRow) -> Result<TrialRecord> {
    Ok(TrialRecord {
        number: unsigned(row.try_get("number").map_err(fault)?)?,
        parameters_json: row.try_get("parameters").map_err(fault)?,
        content_hash: row.try_get("content_hash").map_err(fault)?,
        objective: row.try_get("objective").map_err(fault)?,
        result_json: row.try_get("result").map_err(fault)?,
    })
}

#[async_trait]
impl Catalog for Store {
    async fn store_id(&self) -> Result<String> {
        let row = sqlx::query("select id from store_identity").fetch_one(self.reader()).await.map_err(fault)?;
        row.try_get("id").map_err(fault)
    }

    async fn upsert_instrument(&self, instrument: &Instrument) -> Result<()> {
        sqlx::query(
            "insert into instrument (instrument_key, segment, name, exchange, currency, tick_size, calendar) \
             values ($1, $2, $3, $4, $5, $6, $7) on conflict (instrument_key) do update set name = excluded.name, \
             exchange = excluded.exchange, currency = excluded.currency, tick_size = excluded.tick_size, \
             calendar = excluded.calendar",
        )
        .bind(instrument.key.as_str())
        .bind(instrument.key.segment())
        .bind(&instrument.name)
        .bind(&instrument.exchange)
        .bind(&instrument.currency)
        .bind(instrument.tick_size)
        .bind(&instrument.calendar)
        .execute(self.writer())
        .await
        .map_err(fault)?;
        Ok(())
    }

    async fn insert_instruments(&self, instruments: &[Instrument]) -> Result<u64> {
        let rows = instruments.iter().map(|i| {
            let (key, segment) = (i.key.as_str(), i.key.segment());
            serde_json::json!([key, segment, i.name, i.exchange, i.currency, i.tick_size, i.calendar])
        });
        let written = sqlx::query(concat!(
            "insert into instrument (instrument_key, segment, name, exchange, currency, tick_size, calendar) ",
            "select w.value ->> 0, w.value ->> 1, w.value ->> 2, w.value ->> 3, w.value ->> 4, ",
            "cast(w.value ->> 5 as double precision), w.value ->> 6 from ",
            json_rows!("$1"),
            // In key order, as every writer of several: they cannot deadlock.
            " w where true order by 1 on conflict (instrument_key) do nothing"
        ))
        .bind(json(rows))
        .execute(self.writer())
        .await
        .map_err(fault)?;
        Ok(written.rows_affected())
    }

    async fn instrument(&self, key: &InstrumentKey) -> Result<Option<Instrument>> {
        let row = sqlx::query(
            "select instrument_key, name, exchange, currency, tick_size, calendar from instrument where instrument_key = $1",
        )
        .bind(key.as_str())
        .fetch_optional(self.reader())
        .await
        .map_err(fault)?;
        row.as_ref().map(instrument_of).transpose()
    }

    async fn instruments(&self, keys: &[InstrumentKey]) -> Result<Vec<Option<Instrument>>> {
        let rows = sqlx::query(concat!(
            "select instrument_key, name, exchange, currency, tick_size, calendar from instrument where instrument_key in ",
            "(select w.value ->> 0 from ",
            json_rows!("$1"),
            " w)"
        ))
        .bind(json(keys.iter().map(|key| serde_json::json!([key.as_str()]))))
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        let mut found: HashMap<InstrumentKey, Instrument> = HashMap::with_capacity(rows.len());
        for row in &rows {
            let instrument = instrument_of(row)?;
            found.insert(instrument.key.clone(), instrument);
        }
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }

    async fn list_instruments(
        &self,
        after: Option<&InstrumentKey>,
        limit: usize,
        segment: Option<&str>,
    ) -> Result<Vec<Instrument>> {
        // Every key comes after the empty text.
        let after = after.map_or("", |key| key.as_str());
        let query = match segment {
            None => sqlx::query(
                "select instrument_key, name, exchange, currency, tick_size, calendar from instrument \
                 where instrument_key > $1 order by instrument_key limit $2",
            )
            .bind(after)
            .bind(page_rows(limit)),
            Some(segment) => sqlx::query(
                "select instrument_key, name, exchange, currency, tick_size, calendar from instrument \
                 where segment = $3 and instrument_key > $1 order by instrument_key limit $2",
            )
            .bind(after)
            .bind(page_rows(limit))
            .bind(segment),
        };
        query.fetch_all(self.reader()).await.map_err(fault)?.iter().map(instrument_of).collect()
    }

    async fn put_group(&self, group: &Group) -> Result<()> {
        let keys: Vec<&str> = group.instrument_keys.iter().map(InstrumentKey::as_str).collect();
        sqlx::query(
            "insert into instrument_group (group_id, name, instrument_keys) values ($1, $2, $3) \
             on conflict (group_id) do update set name = excluded.name, instrument_keys = excluded.instrument_keys",
        )
        .bind(&group.id)
        .bind(&group.name)
        .bind(serde_json::json!(keys).to_string())
        .execute(self.writer())
        .await
        .map_err(fault)?;
        Ok(())
    }

    async fn group(&self, id: &str) -> Result<Option<Group>> {
        let row = sqlx::query("select group_id, name, instrument_keys from instrument_group where group_id = $1")
            .bind(id)
            .fetch_optional(self.reader())
            .await
            .map_err(fault)?;
        row.as_ref().map(group_of).transpose()
    }

    async fn list_groups(&self, after: Option<&str>, limit: usize) -> Result<Vec<Group>> {
        let query = match after {
            None => {
                sqlx::query("select group_id, name, instrument_keys from instrument_group order by group_id limit $1")
                    .bind(page_rows(limit))
            }
            Some(after) => sqlx::query(
                "select group_id, name, instrument_keys from instrument_group where group_id > $2 \
                 order by group_id limit $1",
            )
            .bind(page_rows(limit))
            .bind(after),
        };
        query.fetch_all(self.reader()).await.map_err(fault)?.iter().map(group_of).collect()
    }

    async fn delete_group(&self, id: &str) -> Result<bool> {
        let deleted = sqlx::query("delete from instrument_group where group_id = $1")
            .bind(id)
            .execute(self.writer())
            .await
            .map_err(fault)?;
        Ok(deleted.rows_affected() > 0)
    }
}

#[async_trait]
impl FlagStore for Store {
    async fn flags(&self) -> Result<Vec<FlagRecord>> {
        let rows = sqlx::query(
            "select flag_key, definition, generation, updated_at, updated_by from flag order by flag_key limit $1",
        )
        .bind(page_rows(MAX_PAGE_ROWS))
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        rows.iter().map(flag_of).collect()
    }

    async fn flag(&self, key: &str) -> Result<Option<FlagRecord>> {
        let row = sqlx::query(
            "select flag_key, definition, generation, updated_at, updated_by from flag where flag_key = $1",
        )
        .bind(key)
        .fetch_optional(self.reader())
        .await
        .map_err(fault)?;
        row.as_ref().map(flag_of).transpose()
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected_generation: u64,
        definition_json: &str,
        updated_by: &str,
        now: Millis,
    ) -> Result<u64> {
        let query = if expected_generation == 0 {
            sqlx::query(
                "insert into flag (flag_key, definition, generation, updated_at, updated_by) values ($1, $2, $5 + 1, $3, $4) \
                 on conflict (flag_key) do nothing",
            )
        } else {
            sqlx::query(
                "update flag set definition = $2, generation = generation + 1, updated_at = $3, updated_by = $4 \
                 where flag_key = $1 and generation = $5",
            )
        };
        let written = query
            .bind(key)
            .bind(definition_json)
            .bind(now)
            .bind(updated_by)
            .bind(signed(expected_generation))
            .execute(self.writer())
            .await
            .map_err(fault)?;
        if written.rows_affected() == 1 {
            return Ok(expected_generation + 1);
        }
        let found = self.flag(key).await?.map_or(0, |flag| flag.generation);
        Err(crate::flag_store::lost(key, expected_generation, found))
    }
}

#[async_trait]
impl StudyStore for Store {
    async fn create_study(&self, study: &StudyRecord) -> Result<()> {
        let written = sqlx::query(
            "insert into study (study_id, name, state, spec, created_at, updated_at, progress_done, progress_total, error) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict (study_id) do nothing",
        )
        .bind(&study.id)
        .bind(&study.name)
        .bind(&study.state)
        .bind(&study.spec_json)
        .bind(study.created_at)
        .bind(study.updated_at)
        .bind(signed(study.progress_done))
        .bind(signed(study.progress_total))
        .bind(&study.error)
        .execute(self.writer())
        .await
        .map_err(fault)?;
        if written.rows_affected() == 0 {
            return Err(Error::AlreadyExists { what: "study", id: study.id.clone() });
        }
        Ok(())
    }

    async fn update_study_state(&self, id: &str, expected_state: Option<&str>, progress: &StudyProgress) -> Result<()> {
        let written = sqlx::query(
            "update study set state = $2, progress_done = $3, progress_total = $4, error = $5, updated_at = $6 \
             where study_id = $1 and state = coalesce($7, state)",
        )
        .bind(id)
        .bind(&progress.state)
        .bind(signed(progress.progress_done))
        .bind(signed(progress.progress_total))
        .bind(&progress.error)
        .bind(progress.updated_at)
        .bind(expected_state)
        .execute(self.writer())
        .await
        .map_err(fault)?;
        if written.rows_affected() == 1 {
            return Ok(());
        }
        let found = self.study(id).await?.ok_or_else(|| Error::not_found("study", id))?;
        Err(crate::study_store::lost(id, expected_state.unwrap_or_default(), &found.state))
    }

    async fn study(&self, id: &str) -> Result<Option<StudyRecord>> {
        let row = sqlx::query(
            "select study_id, name, state, spec, created_at, updated_at, progress_done, progress_total, error \
             from study where study_id = $1",
        )
        .bind(id)
        .fetch_optional(self.reader())
        .await
        .map_err(fault)?;
        row.as_ref().map(study_of).transpose()
    }

    async fn list_studies(&self, after: Option<&str>, limit: usize) -> Result<Vec<StudyRecord>> {
        let query = match after {
            None => sqlx::query(
                "select study_id, name, state, spec, created_at, updated_at, progress_done, progress_total, error \
                 from study order by created_at desc, study_id desc limit $1",
            )
            .bind(page_rows(limit)),
            Some(after) => sqlx::query(
                "select study_id, name, state, spec, created_at, updated_at, progress_done, progress_total, error \
                 from study where (created_at, study_id) < (select l.created_at, l.study_id from study l \
                 where l.study_id = $2) order by created_at desc, study_id desc limit $1",
            )
            .bind(page_rows(limit))
            .bind(after),
        };
        query.fetch_all(self.reader()).await.map_err(fault)?.iter().map(study_of).collect()
    }

    async fn unfinished_studies(&self, states: &[&str]) -> Result<Vec<StudyRecord>> {
        let rows = sqlx::query(concat!(
            "select study_id, name, state, spec, created_at, updated_at, progress_done, progress_total, error ",
            "from study where state in (select w.value ->> 0 from ",
            json_rows!("$1"),
            " w) order by created_at, study_id limit $2"
        ))
        .bind(states.iter().map(|state| serde_json::json!([state])).collect::<serde_json::Value>().to_string())
        .bind(page_rows(MAX_PAGE_ROWS))
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        rows.iter().map(study_of).collect()
    }

    async fn put_trials(&self, study_id: &str, trials: &[TrialRecord]) -> Result<()> {
        check_trials(trials)?;
        if self.study(study_id).await?.is_none() {
            return Err(Error::not_found("study", study_id));
        }
        // One statement cannot write a row twice; the last of a number wins.
        let trials: BTreeMap<u64, &TrialRecord> = trials.iter().map(|trial| (trial.number, trial)).collect();
        let trials: Vec<&TrialRecord> = trials.into_values().collect();
        let mut tx = self.begin().await?;
        for trials in trials.chunks(TRIALS_PER_STATEMENT) {
            let mut statement = QueryBuilder::<Db>::new(
                "insert into trial (study_id, number, parameters, content_hash, objective, result) ",
            );
            statement.push_values(trials, |mut row, trial| {
                row.push_bind(study_id)
                    .push_bind(signed(trial.number))
                    .push_bind(&trial.parameters_json)
                    .push_bind(&trial.content_hash)
                    .push_bind(trial.objective)
                    .push_bind(&trial.result_json);
            });
            statement.push(
                " on conflict (study_id, number) do update set parameters = excluded.parameters, \
                 content_hash = excluded.content_hash, objective = excluded.objective, result = excluded.result",
            );
            statement.build().execute(&mut *tx).await.map_err(fault)?;
        }
        tx.commit().await.map_err(fault)
    }

    async fn trials(&self, study_id: &str, order: TrialOrder, limit: usize) -> Result<Vec<TrialRecord>> {
        let query = match order {
            TrialOrder::Number { after } => sqlx::query(
                "select number, parameters, content_hash, objective, result from trial \
                 where study_id = $1 and number > $2 order by number limit $3",
            )
            .bind(study_id)
            .bind(after.map_or(-1, signed)),
            TrialOrder::BestFirst { offset } => sqlx::query(
                "select number, parameters, content_hash, objective, result from trial \
                 where study_id = $1 order by objective desc, number limit $3 offset $2",
            )
            .bind(study_id)
            .bind(signed(offset)),
        };
        let rows = query.bind(page_rows(limit)).fetch_all(self.reader()).await.map_err(fault)?;
        rows.iter().map(trial_of).collect()
    }

    async fn trial_count(&self, study_id: &str) -> Result<u64> {
        let count: i64 = sqlx::query_scalar("select count(*) from trial where study_id = $1")
            .bind(study_id)
            .fetch_one(self.reader())
            .await
            .map_err(fault)?;
        unsigned(count)
    }
}

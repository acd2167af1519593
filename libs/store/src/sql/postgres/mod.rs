//! PostgreSQL: one pool; writers lock the rows of the instruments they write. Current blocks lie in a partition per year.

mod years;

use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, Postgres};

use self::years::Years;
use super::check;
use super::limit::ConnectionLimit;
use super::limited::{Held, LimitedPool};
use super::put::{BlockWrite, ChangeWrite};
use super::{date_number, fault, migration_fault, migrator, signed};
use crate::{CheckReport, Error, Result, StoreOptions};

/// Rows of a JSON array, as `value`.
macro_rules! json_rows {
    ($parameter:literal) => {
        concat!("jsonb_array_elements(", $parameter, "::jsonb)")
    };
}

macro_rules! for_update {
    () => {
        " for update"
    };
}

/// Rows that others are about to take are passed over.
macro_rules! skip_locked {
    () => {
        " for update skip locked"
    };
}

/// The current block `b` of an instrument, and the timeframe and date of the row `w`, whose date lies between the bounds.
///
/// The bounds leave out the partitions of other years, by a plan made for them or, when a plan kept for any bounds starts: that one locks the other
/// partitions too, which with fifteen of them costs less than planning anew. With the limit it stays one look-up per row: joined freely, the planner
/// scans the index of a whole year for them.
macro_rules! join_block {
    ($series_id:literal, $first:literal, $last:literal) => {
        concat!(
            "cross join lateral (select * from candle_block o where o.series_id = ",
            $series_id,
            " and o.timeframe = w.value ->> 1 and o.block_date = cast(w.value ->> 2 as bigint) and o.block_date between ",
            $first,
            " and ",
            $last,
            " limit 1) b"
        )
    };
}

/// The newest block `b` of the instrument `s` and a timeframe: years are looked at from the last until one has it. Asked for by its date, the planner may
/// compare the blocks of all years.
macro_rules! join_last_block {
    ($timeframe:literal) => {
        concat!(
            "cross join lateral (select * from candle_block l where l.series_id = s.series_id and l.timeframe = ",
            $timeframe,
            " order by l.block_date desc limit 1) b"
        )
    };
}

/// A part of a union, cut to the union's own limit `$8`: else everything to the end of the range is fetched and sorted for each page.
macro_rules! first_by_date {
    ($($select:literal),+) => {
        concat!("(", $($select,)+ " order by block_date limit $8)")
    };
}

#[allow(clippy::duplicate_mod, reason = "written once, compiled for each database")]
#[path = "../actions.rs"]
mod actions;
#[allow(clippy::duplicate_mod, reason = "written once, compiled for each database")]
#[path = "../backfills.rs"]
mod backfills;
#[allow(clippy::duplicate_mod, reason = "written once, compiled for each database")]
#[path = "../check_tables.rs"]
mod check_tables;
#[allow(clippy::duplicate_mod, reason = "written once, compiled for each database")]
#[path = "../repositories.rs"]
mod repositories;
#[allow(clippy::duplicate_mod, reason = "written once, compiled for each database")]
#[path = "../screens.rs"]
mod screens;
#[allow(clippy::duplicate_mod, reason = "written once, compiled for each database")]
#[path = "../tables.rs"]
mod tables;

type Db = Postgres;
pub(crate) use self::PostgresStore as Store;

/// Blocks per statement: a megabyte or so.
const BLOCKS_PER_STATEMENT: usize = 250;

const MIGRATIONS: [(i64, &str, &str); 7] = [
    (1, "initial", include_str!("../../../migrations/postgres/0001_initial.sql")),
    (2, "change counter", include_str!("../../../migrations/postgres/0002_change_counter.sql")),
    (3, "backfill", include_str!("../../../migrations/postgres/0003_backfill.sql")),
    (4, "corporate action", include_str!("../../../migrations/postgres/0004_corporate_action.sql")),
    (5, "blocks inline", include_str!("../../../migrations/postgres/0005_blocks_inline.sql")),
    (6, "blocks by year", include_str!("../../../migrations/postgres/0006_blocks_by_year.sql")),
    (7, "store identity", include_str!("../../../migrations/postgres/0007_store_identity.sql")),
];

/// The store on a server. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct PostgresStore {
    pool: LimitedPool<Postgres>,
    years: Years,
}

/// Longest wait for another replica's migration, or for the requests of replicas of the version before.
const MIGRATION_WAIT: &str = "15min";
/// A connection that rested no longer is taken to be alive: asking it first would double the round trips of everything that makes several
/// statements. Shorter than any restart of a server takes, so that the first statement after one still finds its connection dead.
const TRUSTED_IDLE: Duration = Duration::from_millis(50);

impl PostgresStore {
    pub(crate) async fn open(url: &str, options: &StoreOptions) -> Result<Self> {
        // The cause may quote the URL, and with it a password.
        let connect = PgConnectOptions::from_str(url).map_err(|_| {
            Error::invalid("store url", "it is not of the form postgres://user:password@host:port/database")
        })?;
        let wait_ms = options.wait_timeout.as_millis().to_string();
        let connect = connect.application_name("candlemesh");
        // On a connection of its own: one that copies tables takes longer than a statement may wait, and other replicas wait for it.
        let patient = connect.clone().options([("lock_timeout", MIGRATION_WAIT)]);
        let mut connection = PgConnection::connect_with(&patient).await.map_err(fault)?;
        migrator(&MIGRATIONS).run(&mut connection).await.map_err(migration_fault)?;
        connection.close().await.map_err(fault)?;
        let connect = connect
            // Acknowledged means durable, whatever the server's default.
            .options([("lock_timeout", wait_ms.as_str()), ("synchronous_commit", "on")]);
        let pool = PgPoolOptions::new()
            .max_connections(options.max_connections.max(1))
            .acquire_timeout(options.wait_timeout)
            .test_before_acquire(false)
            .before_acquire(|connection, state| {
                Box::pin(async move {
                    if state.idle_for > TRUSTED_IDLE {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_with(connect)
            .await
            .map_err(fault)?;
        Ok(Self { pool: LimitedPool::new(pool), years: Years::default() })
    }

    fn reader(&self) -> &LimitedPool<Postgres> {
        &self.pool
    }

    fn writer(&self) -> &LimitedPool<Postgres> {
        &self.pool
    }

    async fn begin(&self) -> Result<Held<Postgres>> {
        self.pool.begin().await.map_err(fault)
    }

    /// Before the transaction, for the reason given in `years.rs`.
    async fn begin_put(&self, years: &BTreeSet<i16>) -> Result<Held<Postgres>> {
        self.years.add(&self.pool, years).await?;
        self.begin().await
    }

    pub(crate) async fn check(&self, limit: usize) -> Result<CheckReport> {
        check::check(self, limit).await
    }

    pub(crate) async fn ping(&self) -> Result<()> {
        sqlx::query("select 1").execute(&self.pool).await.map_err(fault)?;
        Ok(())
    }

    pub(crate) fn limit(&self) -> &ConnectionLimit {
        self.pool.limit()
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

async fn write_blocks(tx: &mut Held<Postgres>, blocks: &[BlockWrite]) -> Result<()> {
    fn column<'a, T>(blocks: &'a [BlockWrite], cell: impl Fn(&'a BlockWrite) -> T) -> Vec<T> {
        blocks.iter().map(cell).collect()
    }
    for blocks in blocks.chunks(BLOCKS_PER_STATEMENT) {
        sqlx::query(
            "insert into candle_block (series_id, timeframe, block_date, revision, candle_count, first_open_time, \
             last_open_time, open, high, low, close, volume, open_interest, checksum, payload) \
             select * from unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], \
             $7::bigint[], $8::float8[], $9::float8[], $10::float8[], $11::float8[], $12::float8[], $13::float8[], \
             $14::bigint[], $15::bytea[]) \
             on conflict (series_id, timeframe, block_date) do update set revision = excluded.revision, \
             candle_count = excluded.candle_count, first_open_time = excluded.first_open_time, \
             last_open_time = excluded.last_open_time, open = excluded.open, high = excluded.high, low = excluded.low, \
             close = excluded.close, volume = excluded.volume, open_interest = excluded.open_interest, \
             checksum = excluded.checksum, payload = excluded.payload",
        )
        .bind(column(blocks, |block| block.series_id))
        .bind(column(blocks, |block| block.timeframe.as_str()))
        .bind(column(blocks, |block| date_number(block.date)))
        .bind(column(blocks, |block| signed(block.revision)))
        .bind(column(blocks, |block| block.candle_count as i64))
        .bind(column(blocks, |block| block.first_open_time))
        .bind(column(blocks, |block| block.last_open_time))
        .bind(column(blocks, |block| block.summary.open))
        .bind(column(blocks, |block| block.summary.high))
        .bind(column(blocks, |block| block.summary.low))
        .bind(column(blocks, |block| block.summary.close))
        .bind(column(blocks, |block| block.summary.volume))
        .bind(column(blocks, |block| block.summary.open_interest))
        .bind(column(blocks, |block| i64::from(block.checksum)))
        .bind(column(blocks, |block| block.payload.as_slice()))
        .execute(&mut **tx)
        .await
        .map_err(fault)?;
    }
    Ok(())
}

/// Writes records numbered from `first`.
async fn write_changes(tx: &mut Held<Postgres>, changes: &[ChangeWrite], first: i64) -> Result<()> {
    fn column<'a, T>(changes: &'a [ChangeWrite], cell: impl Fn(&'a ChangeWrite) -> T) -> Vec<T> {
        changes.iter().map(cell).collect()
    }
    sqlx::query(
        "insert into candle_change (sequence, series_id, timeframe, trading_date, revision, first_open_time, \
         last_open_time, changed_at) select * from unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], \
         $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[])",
    )
    .bind((first..first + changes.len() as i64).collect::<Vec<i64>>())
    .bind(column(changes, |change| change.series_id))
    .bind(column(changes, |change| change.timeframe.as_str()))
    .bind(column(changes, |change| date_number(change.trading_date)))
    .bind(column(changes, |change| signed(change.revision)))
    .bind(column(changes, |change| change.first_open_time))
    .bind(column(changes, |change| change.last_open_time))
    .bind(column(changes, |change| change.changed_at))
    .execute(&mut **tx)
    .await
    .map_err(fault)?;
    Ok(())
}

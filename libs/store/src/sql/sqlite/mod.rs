//! SQLite: one writing connection and a pool of reading ones, in write-ahead mode, synced at every commit.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection, QueryBuilder, Sqlite};

use super::check;
use super::limit::ConnectionLimit;
use super::limited::{Held, LimitedPool};
use super::put::{BlockWrite, ChangeWrite};
use super::{date_number, fault, migration_fault, migrator, signed};
use crate::{CheckReport, Error, Result, StoreOptions};

/// Rows of a JSON array, as `value`.
macro_rules! json_rows {
    ($parameter:literal) => {
        concat!("json_each(", $parameter, ")")
    };
}

/// The one writer holds the whole database.
macro_rules! for_update {
    () => {
        ""
    };
}

/// Its one writer holds the whole database, so nobody else can be at a row.
macro_rules! skip_locked {
    () => {
        ""
    };
}

/// The current block `b` of an instrument, and the timeframe and date of the row `w`, whose date lies between the bounds.
macro_rules! join_block {
    ($series_id:literal, $first:literal, $last:literal) => {
        concat!(
            "join candle_block b on b.series_id = ",
            $series_id,
            " and b.timeframe = w.value ->> 1 and b.block_date = cast(w.value ->> 2 as bigint) and b.block_date between ",
            $first,
            " and ",
            $last
        )
    };
}

/// The newest block `b` of the instrument `s` and a timeframe.
macro_rules! join_last_block {
    ($timeframe:literal) => {
        concat!(
            "join candle_block b on b.series_id = s.series_id and b.timeframe = ",
            $timeframe,
            " and b.block_date = (select max(l.block_date) from candle_block l where l.series_id = s.series_id and l.timeframe = ",
            $timeframe,
            ")"
        )
    };
}

/// A part of a union. SQLite reads the parts in step and ends at the union's limit.
macro_rules! first_by_date {
    ($($select:literal),+) => {
        concat!($($select),+)
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

type Db = Sqlite;
pub(crate) use self::SqliteStore as Store;

/// Blocks are a few kilobytes; with larger pages less of each page stays empty.
const PAGE_BYTES: u32 = 16 * 1024;
/// Blocks per statement: 16 values each, far from SQLite's 32 766.
const BLOCKS_PER_STATEMENT: usize = 64;
/// Change records per statement: 8 values each.
const CHANGES_PER_STATEMENT: usize = 128;

/// Rows that the thread of a connection produces ahead of their reader: a page of blocks.
const ROWS_AHEAD: usize = 64;

const MIGRATIONS: [(i64, &str, &str); 5] = [
    (1, "initial", include_str!("../../../migrations/sqlite/0001_initial.sql")),
    (2, "change counter", include_str!("../../../migrations/sqlite/0002_change_counter.sql")),
    (3, "backfill", include_str!("../../../migrations/sqlite/0003_backfill.sql")),
    (4, "corporate action", include_str!("../../../migrations/sqlite/0004_corporate_action.sql")),
    (5, "store identity", include_str!("../../../migrations/sqlite/0005_store_identity.sql")),
];

/// The store in one file. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct SqliteStore {
    read: LimitedPool<Sqlite>,
    write: SqlitePool,
}

impl SqliteStore {
    pub(crate) async fn open(path: &str, options: &StoreOptions) -> Result<Self> {
        if path.is_empty() || path.contains(":memory:") {
            return Err(Error::invalid(
                "store url",
                "sqlite:// needs the path of a file; memory: is a store of its own",
            ));
        }
        let connect = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .page_size(PAGE_BYTES)
            .journal_mode(SqliteJournalMode::Wal)
            // Acknowledged means durable: in write-ahead mode only FULL syncs at every commit.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(options.wait_timeout)
            // A page of blocks is produced without waiting for its reader.
            .row_buffer_size(ROWS_AHEAD)
            .foreign_keys(true);
        let write = pool(1, options.wait_timeout).after_release(|connection, _| Box::pin(is_idle(connection)));
        let write = write.connect_with(connect.clone()).await.map_err(fault)?;
        migrator(&MIGRATIONS).run(&write).await.map_err(migration_fault)?;
        let read = pool(options.max_connections, options.wait_timeout)
            .connect_with(connect.pragma("query_only", "on"))
            .await
            .map_err(fault)?;
        Ok(Self { read: LimitedPool::new(read), write })
    }

    fn reader(&self) -> &LimitedPool<Sqlite> {
        &self.read
    }

    fn writer(&self) -> &SqlitePool {
        &self.write
    }

    /// Takes the write lock at once: a transaction that reads first could not take it later without having to start over.
    async fn begin(&self) -> Result<Held<Sqlite>> {
        self.write.begin_with("begin immediate").await.map(Held::without_limit).map_err(fault)
    }

    async fn begin_put(&self, _years: &BTreeSet<i16>) -> Result<Held<Sqlite>> {
        self.begin().await
    }

    pub(crate) async fn check(&self, limit: usize) -> Result<CheckReport> {
        check::check(self, limit).await
    }

    pub(crate) async fn ping(&self) -> Result<()> {
        sqlx::query("select 1").execute(&self.read).await.map_err(fault)?;
        Ok(())
    }

    /// Of the reading connections: there is one writer.
    pub(crate) fn limit(&self) -> &ConnectionLimit {
        self.read.limit()
    }

    pub(crate) async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }
}

fn pool(connections: u32, wait_timeout: Duration) -> SqlitePoolOptions {
    // Local connections do not go stale: keep them.
    SqlitePoolOptions::new()
        .max_connections(connections.max(1))
        .acquire_timeout(wait_timeout)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

/// Whether the connection is out of its transaction. On a full disk SQLite may have rolled back by itself, sqlx's own rollback then
/// fails, and the connection would count itself inside a transaction for ever: it must not come back.
async fn is_idle(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    // Answered after the rollback that dropping a transaction has asked for.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

async fn write_blocks(tx: &mut Held<Sqlite>, blocks: &[BlockWrite]) -> Result<()> {
    for blocks in blocks.chunks(BLOCKS_PER_STATEMENT) {
        let mut statement = QueryBuilder::<Sqlite>::new(
            "insert into candle_block (series_id, timeframe, block_date, revision, candle_count, first_open_time, \
             last_open_time, open, high, low, close, volume, open_interest, checksum, payload) ",
        );
        statement.push_values(blocks, |mut row, block| {
            row.push_bind(block.series_id)
                .push_bind(block.timeframe.as_str())
                .push_bind(date_number(block.date))
                .push_bind(signed(block.revision))
                .push_bind(block.candle_count as i64)
                .push_bind(block.first_open_time)
                .push_bind(block.last_open_time)
                .push_bind(block.summary.open)
                .push_bind(block.summary.high)
                .push_bind(block.summary.low)
                .push_bind(block.summary.close)
                .push_bind(block.summary.volume)
                .push_bind(block.summary.open_interest)
                .push_bind(i64::from(block.checksum))
                .push_bind(&block.payload);
        });
        statement.push(
            " on conflict (series_id, timeframe, block_date) do update set revision = excluded.revision, \
             candle_count = excluded.candle_count, first_open_time = excluded.first_open_time, \
             last_open_time = excluded.last_open_time, open = excluded.open, high = excluded.high, low = excluded.low, \
             close = excluded.close, volume = excluded.volume, open_interest = excluded.open_interest, \
             checksum = excluded.checksum, payload = excluded.payload",
        );
        statement.build().execute(&mut **tx).await.map_err(fault)?;
    }
    Ok(())
}

/// Writes records numbered from `first`.
async fn write_changes(tx: &mut Held<Sqlite>, changes: &[ChangeWrite], first: i64) -> Result<()> {
    for (changes, first) in changes.chunks(CHANGES_PER_STATEMENT).zip((first..).step_by(CHANGES_PER_STATEMENT)) {
        let mut statement = QueryBuilder::<Sqlite>::new(
            "insert into candle_change (sequence, series_id, timeframe, trading_date, revision, first_open_time, \
             last_open_time, changed_at) ",
        );
        statement.push_values(changes.iter().zip(first..), |mut row, (change, sequence)| {
            row.push_bind(sequence)
                .push_bind(change.series_id)
                .push_bind(change.timeframe.as_str())
                .push_bind(date_number(change.trading_date))
                .push_bind(signed(change.revision))
                .push_bind(change.first_open_time)
                .push_bind(change.last_open_time)
                .push_bind(change.changed_at);
        });
        statement.build().execute(&mut **tx).await.map_err(fault)?;
    }
    Ok(())
}

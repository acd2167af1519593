//! The store on SQL databases.
//!
//! Statements are the same for both databases but for the few fragments that each one's module defines as macros (lists travel as JSON arrays, which
//! both can read). So `tables.rs` and `repositories.rs` are written once and compiled into both modules; `put.rs` and `read.rs` hold what is decided
//! outside the database.

mod check;
mod limit;
mod limited;
mod postgres;
mod put;
mod read;
mod sqlite;

use std::borrow::Cow;

use market::{Date, InstrumentKey, Timeframe};
use sqlx::SqlSafeStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;

pub(crate) use limit::ConnectionLimit;
pub(crate) use postgres::PostgresStore;
pub(crate) use sqlite::SqliteStore;

use crate::{Error, Result};

/// An instrument's row, as locked by a writer or seen by a reader.
#[derive(Debug, Clone)]
struct Series {
    id: i64,
    key: String,
    calendar: String,
    revision: u64,
    oldest_revision: u64,
    updated_at: i64,
}

/// A block as stored, not yet trusted.
#[derive(Debug)]
struct StoredBlock {
    series_id: i64,
    timeframe: String,
    date: Date,
    revision: u64,
    candle_count: i64,
    first_open_time: i64,
    last_open_time: i64,
    checksum: i64,
    /// Absent in a superseded block that is the beginning of the one that followed it.
    payload: Option<Vec<u8>>,
}

fn migrator(files: &[(i64, &'static str, &'static str)]) -> Migrator {
    let migration = |(version, description, sql): &(i64, &'static str, &'static str)| {
        Migration::new(*version, Cow::Borrowed(*description), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(files.iter().map(migration).collect())
}

fn migration_fault(error: MigrateError) -> Error {
    match error {
        MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) => fault(cause),
        other => Error::internal(other),
    }
}

/// Sorts a database's error into those that callers tell apart.
fn fault(error: sqlx::Error) -> Error {
    match &error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => return Error::Unavailable(error.into()),
        sqlx::Error::Database(cause) => {
            if let Some(cause) = cause.try_downcast_ref::<PgDatabaseError>() {
                match cause.code() {
                    "53100" => return Error::Full(cause.message().to_owned()),
                    "22021" => return Error::invalid("text", "it holds a character the database cannot store"),
                    // Serialization, deadlock, lock and statement timeouts, a server that became a replica; a partition that was there
                    // before a failover, and is soon again (rows are never refused by a check: see postgres/years.rs).
                    "40001" | "40P01" | "55P03" | "57014" | "25006" | "23514" => {
                        return Error::Unavailable(error.into());
                    }
                    // No connection, too many of them or no memory, shutdown.
                    code if ["08", "53", "57P"].iter().any(|class| code.starts_with(class)) => {
                        return Error::Unavailable(error.into());
                    }
                    _ => {}
                }
            } else if let Some(cause) = cause.try_downcast_ref::<SqliteError>() {
                let code =
                    sqlx::error::DatabaseError::code(cause).and_then(|code| code.parse::<u32>().ok()).unwrap_or(0);
                // The low byte is the primary code: https://www.sqlite.org/rescode.html
                match code & 0xff {
                    13 => return Error::Full(cause.to_string()),
                    // BUSY, LOCKED, READONLY, IOERR, CANTOPEN.
                    5 | 6 | 8 | 10 | 14 => return Error::Unavailable(error.into()),
                    _ => {}
                }
            }
        }
        _ => {}
    }
    Error::internal(error)
}

/// yyyymmdd.
fn date_number(date: Date) -> i64 {
    i64::from(date.year()) * 10_000 + i64::from(date.month()) * 100 + i64::from(date.day())
}

fn date_of_number(number: i64) -> Result<Date> {
    let part = |value: i64| i8::try_from(value % 100).unwrap_or(0);
    let year = i16::try_from(number / 10_000).map_err(Error::internal)?;
    Date::new(year, part(number / 100), part(number)).map_err(Error::internal)
}

fn key_of(text: &str) -> Result<InstrumentKey> {
    text.parse().map_err(|cause: market::Error| Error::internal(cause))
}

fn timeframe_of(text: &str) -> Result<Timeframe> {
    text.parse().map_err(|cause: market::Error| Error::internal(cause))
}

/// Counters are stored signed; none comes near the sign.
fn unsigned(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(Error::internal)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A list as the JSON text that statements read rows from.
fn json<T: Into<serde_json::Value>>(rows: impl IntoIterator<Item = T>) -> String {
    serde_json::Value::Array(rows.into_iter().map(Into::into).collect()).to_string()
}

/// A page size for SQL, at most [`MAX_PAGE_ROWS`](crate::MAX_PAGE_ROWS).
fn page_rows(limit: usize) -> i64 {
    limit.min(crate::MAX_PAGE_ROWS) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_numbers_and_back() {
        let date = Date::constant(2016, 8, 16);
        assert_eq!(date_number(date), 20_160_816);
        assert_eq!(date_of_number(20_160_816).unwrap(), date);
        assert!(date_of_number(20_161_301).is_err());
    }

    #[test]
    fn pool_faults_are_worth_a_retry() {
        assert!(matches!(fault(sqlx::Error::PoolTimedOut), Error::Unavailable(_)));
        assert!(matches!(fault(sqlx::Error::RowNotFound), Error::Internal(_)));
    }
}

//! A pool behind its [limit](ConnectionLimit), used as the pool itself would be.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use futures::{FutureExt, TryFutureExt};
use sqlx::{Database, Either, Execute, Executor, Pool, SqlStr, Transaction};

use super::limit::{ConnectionLimit, Permit};

/// Statements run on it hold a permit until they, or the stream of their rows, have ended.
#[derive(Debug)]
pub(super) struct LimitedPool<DB: Database> {
    pool: Pool<DB>,
    limit: Arc<ConnectionLimit>,
}

impl<DB: Database> Clone for LimitedPool<DB> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), limit: Arc::clone(&self.limit) }
    }
}

impl<DB: Database> LimitedPool<DB> {
    pub(super) fn new(pool: Pool<DB>) -> Self {
        let options = pool.options();
        let limit = ConnectionLimit::new(options.get_max_connections() as usize, options.get_acquire_timeout());
        Self { pool, limit }
    }

    pub(super) fn limit(&self) -> &ConnectionLimit {
        &self.limit
    }

    pub(super) async fn begin(&self) -> Result<Held<DB>, sqlx::Error> {
        let permit = self.limit.acquire().await?;
        Ok(Held { transaction: self.pool.begin().await?, permit: Some(permit) })
    }

    pub(super) async fn close(&self) {
        self.limit.close();
        self.pool.close().await;
    }
}

impl<'p, DB: Database> Executor<'p> for &'p LimitedPool<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    type Database = DB;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<DB::QueryResult, DB::Row>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let started = async move {
            let permit = self.limit.acquire().await?;
            // The stream goes before what its closure owns, so that the connection is on its way home first.
            Ok(self.pool.fetch_many(query).inspect(move |_| {
                let _held = &permit;
            }))
        };
        started.try_flatten_stream().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<DB::Row>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        async move {
            let _permit = self.limit.acquire().await?;
            self.pool.fetch_optional(query).await
        }
        .boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, sqlx::Error>>
    where
        'p: 'e,
    {
        async move {
            let _permit = self.limit.acquire().await?;
            self.pool.prepare_with(sql, parameters).await
        }
        .boxed()
    }
}

/// A transaction with the permit of its connection, where the pool has a limit. Dropped without commit it rolls back.
#[derive(Debug)]
pub(super) struct Held<DB: Database> {
    // Before the permit, so that the connection is on its way home first.
    transaction: Transaction<'static, DB>,
    permit: Option<Permit>,
}

impl<DB: Database> Held<DB> {
    pub(super) fn without_limit(transaction: Transaction<'static, DB>) -> Self {
        Self { transaction, permit: None }
    }

    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        let Self { transaction, permit } = self;
        let outcome = transaction.commit().await;
        drop(permit);
        outcome
    }

    pub(super) async fn rollback(self) -> Result<(), sqlx::Error> {
        let Self { transaction, permit } = self;
        let outcome = transaction.rollback().await;
        drop(permit);
        outcome
    }
}

impl<DB: Database> Deref for Held<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &Self::Target {
        &self.transaction
    }
}

impl<DB: Database> DerefMut for Held<DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.transaction
    }
}

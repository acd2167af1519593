//! Opening a store by URL.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::memory::MemoryStore;
use crate::pool::{PoolPoint, PoolStatistics, SAMPLE_EVERY};
use crate::sql::{ConnectionLimit, PostgresStore, SqliteStore};
use crate::{
    ActionStore, BackfillStore, CandleStore, Catalog, CheckReport, Error, FlagStore, Result, ScreenStore, StudyStore,
};

/// A connection mostly waits for its database, so that more of them than cores are busy; many more only queue there.
const CONNECTIONS_PER_CORE: usize = 3;
/// Fewer would let one slow read hold up the others.
const MIN_CONNECTIONS: usize = 4;
/// A few services share one PostgreSQL, whose default limit is 100.
const MAX_CONNECTIONS: usize = 24;
/// Longest wait for connections to come home when closing; sqlx itself would wait for ever.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Sizes and waits of the connection pools.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Connections to PostgreSQL, or reading connections to SQLite (which has one writer besides).
    pub max_connections: u32,
    /// Longest wait for a free connection or a lock before the answer is `Unavailable`.
    pub wait_timeout: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let connections = (CONNECTIONS_PER_CORE * cores).clamp(MIN_CONNECTIONS, MAX_CONNECTIONS);
        // Ten seconds: longer than any healthy write, shorter than a caller's patience.
        Self { max_connections: connections as u32, wait_timeout: Duration::from_secs(10) }
    }
}

/// All repositories over one opened database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Stores {
    pub candles: Arc<dyn CandleStore>,
    pub catalog: Arc<dyn Catalog>,
    pub flags: Arc<dyn FlagStore>,
    pub studies: Arc<dyn StudyStore>,
    pub screens: Arc<dyn ScreenStore>,
    pub backfills: Arc<dyn BackfillStore>,
    pub actions: Arc<dyn ActionStore>,
    backend: Backend,
}

#[derive(Debug, Clone)]
enum Backend {
    Memory(Arc<MemoryStore>),
    Sqlite(Arc<SqliteStore>),
    Postgres(Arc<PostgresStore>),
}

impl Stores {
    /// Opens and migrates: `sqlite:///absolute/path.db` (created when missing), `postgres://user:password@host:port/database`, or `memory:`.
    ///
    /// Safe when several processes do it at once on one PostgreSQL. A SQLite file belongs to one process.
    ///
    /// Errors: `Invalid` for another URL, `Unavailable` when the database does not answer.
    pub async fn open(url: &str, options: &StoreOptions) -> Result<Stores> {
        tracing::info!(max_connections = options.max_connections, "store opens");
        if url == "memory:" {
            return Ok(Stores::memory());
        }
        if let Some(path) = url.strip_prefix("sqlite://") {
            let store = Arc::new(SqliteStore::open(path, options).await?);
            return Ok(Stores::over(Arc::clone(&store), Backend::Sqlite(store)));
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            let store = Arc::new(PostgresStore::open(url, options).await?);
            return Ok(Stores::over(Arc::clone(&store), Backend::Postgres(store)));
        }
        // The URL itself may hold a password and is not repeated.
        Err(Error::invalid(
            "store url",
            "accepted are sqlite:///absolute/path.db, postgres://user@host/database and memory:",
        ))
    }

    /// An empty store that lives as long as the value: for tests and demonstrations.
    pub fn memory() -> Stores {
        let store = Arc::new(MemoryStore::default());
        Stores::over(Arc::clone(&store), Backend::Memory(store))
    }

    fn over<S>(store: Arc<S>, backend: Backend) -> Stores
    where
        S: CandleStore + Catalog + FlagStore + StudyStore + ScreenStore + BackfillStore + ActionStore + 'static,
    {
        Stores {
            candles: Arc::<S>::clone(&store),
            catalog: Arc::<S>::clone(&store),
            flags: Arc::<S>::clone(&store),
            studies: Arc::<S>::clone(&store),
            screens: Arc::<S>::clone(&store),
            backfills: Arc::<S>::clone(&store),
            actions: store,
            backend,
        }
    }

    /// Reads everything stored, current and superseded, and compares it with itself: checksums, payloads, counts, times, dates, summaries, coverage,
    /// revisions and the change log. At most `limit` findings are kept (and [`MAX_FINDINGS`](crate::MAX_FINDINGS)); all are counted.
    ///
    /// Candles may be written meanwhile. Memory is bounded; the time is that of reading every block once.
    ///
    /// Errors: `Unavailable`. Damage is a finding, not an error.
    pub async fn check(&self, limit: usize) -> Result<CheckReport> {
        match &self.backend {
            Backend::Memory(store) => Ok(store.check()),
            Backend::Sqlite(store) => store.check(limit).await,
            Backend::Postgres(store) => store.check(limit).await,
        }
    }

    /// Asks the database for a sign of life, for readiness probes.
    pub async fn ping(&self) -> Result<()> {
        match &self.backend {
            Backend::Memory(_) => Ok(()),
            Backend::Sqlite(store) => store.ping().await,
            Backend::Postgres(store) => store.ping().await,
        }
    }

    /// The use of the connections at this moment. `None` for the store in memory, which has none.
    pub fn pool_statistics(&self) -> Option<PoolStatistics> {
        self.limit().map(ConnectionLimit::statistics)
    }

    /// Sets how many connections may be in use at once: at least 1, at most the pool's size, by which it starts. Returns what it became.
    ///
    /// Lowered, it takes effect as connections in use come home; raised, those who wait are let in at once. Of SQLite it concerns reads.
    pub fn resize_limit(&self, limit: usize) -> Option<usize> {
        let applied = self.limit()?.resize(limit);
        tracing::info!(limit = applied, "store connection limit set");
        Some(applied)
    }

    /// The use of the connections over the last ten minutes of [`watch_pool`](Self::watch_pool), oldest first.
    pub fn pool_history(&self) -> Vec<PoolPoint> {
        self.limit().map(ConnectionLimit::points).unwrap_or_default()
    }

    /// Samples the use of the connections for as long as it is polled: for metrics, for [`pool_history`](Self::pool_history), and to warn once when it
    /// stays above 80 %, until it has come down again. One watcher per store.
    pub async fn watch_pool(&self) -> Infallible {
        let Some(limit) = self.limit() else { return std::future::pending().await };
        let mut samples = tokio::time::interval(SAMPLE_EVERY);
        samples.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            samples.tick().await;
            limit.sample();
        }
    }

    fn limit(&self) -> Option<&ConnectionLimit> {
        match &self.backend {
            Backend::Memory(_) => None,
            Backend::Sqlite(store) => Some(store.limit()),
            Backend::Postgres(store) => Some(store.limit()),
        }
    }

    /// Closes the connections, waiting a bounded time for those in use. Later calls answer `Unavailable`.
    pub async fn close(&self) {
        let closed = match &self.backend {
            Backend::Memory(_) => Ok(()),
            Backend::Sqlite(store) => tokio::time::timeout(CLOSE_TIMEOUT, store.close()).await,
            Backend::Postgres(store) => tokio::time::timeout(CLOSE_TIMEOUT, store.close()).await,
        };
        if closed.is_err() {
            tracing::warn!("store closed while connections were still in use");
        }
    }
}

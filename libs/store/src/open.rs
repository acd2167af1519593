//! Opening a store by URL.

use std::sync::Arc;
use std::time::Duration;

use crate::memory::MemoryStore;
use crate::sql::{PostgresStore, SqliteStore};
use crate::{CandleStore, Catalog, Error, FlagStore, Result, ScreenStore, StudyStore};

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
        // Ten: a few services share one PostgreSQL, whose default limit is 100. Ten seconds: longer than any healthy
        // write, shorter than a caller's patience.
        Self { max_connections: 10, wait_timeout: Duration::from_secs(10) }
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
    backend: Backend,
}

#[derive(Debug, Clone)]
enum Backend {
    Memory,
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
        Stores::over(Arc::new(MemoryStore::default()), Backend::Memory)
    }

    fn over<S>(store: Arc<S>, backend: Backend) -> Stores
    where
        S: CandleStore + Catalog + FlagStore + StudyStore + ScreenStore + 'static,
    {
        Stores {
            candles: Arc::<S>::clone(&store),
            catalog: Arc::<S>::clone(&store),
            flags: Arc::<S>::clone(&store),
            studies: Arc::<S>::clone(&store),
            screens: store,
            backend,
        }
    }

    /// Asks the database for a sign of life, for readiness probes.
    pub async fn ping(&self) -> Result<()> {
        match &self.backend {
            Backend::Memory => Ok(()),
            Backend::Sqlite(store) => store.ping().await,
            Backend::Postgres(store) => store.ping().await,
        }
    }

    /// Closes the connections, waiting a bounded time for those in use. Later calls answer `Unavailable`.
    pub async fn close(&self) {
        let closed = match &self.backend {
            Backend::Memory => Ok(()),
            Backend::Sqlite(store) => tokio::time::timeout(CLOSE_TIMEOUT, store.close()).await,
            Backend::Postgres(store) => tokio::time::timeout(CLOSE_TIMEOUT, store.close()).await,
        };
        if closed.is_err() {
            tracing::warn!("store closed while connections were still in use");
        }
    }
}

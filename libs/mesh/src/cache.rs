//! Two-level cache of encoded answers: in process by bytes, and Redis shared by replicas.
//!
//! The key must contain every input and the data revision, so nothing stale can be read and nothing needs flushing. A
//! Redis that is down, slow or holds a broken entry costs time, never correctness and never an error.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use redis::AsyncCommands;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};

use crate::config::ConfigError;

/// How long a shared look-up or write may take before it is given up.
const SHARED_TIMEOUT: Duration = Duration::from_millis(150);
/// Pause between attempts while Redis is not reachable, so that a dead one costs one time-out per pause, not per request.
const SHARED_PAUSE: Duration = Duration::from_secs(1);
/// Largest value shared: a larger one would hold the connection, and everybody behind it, longer than computing anew.
const MAX_SHARED_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of the checksum in front of a shared value.
const CHECKSUM_BYTES: usize = 4;

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Local,
    Shared,
    Computed,
}

/// Counters of one cache since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    pub local_hits: u64,
    pub shared_hits: u64,
    pub misses: u64,
    pub local_entries: u64,
    pub local_bytes: u64,
    pub shared_errors: u64,
}

#[derive(Debug, Default)]
struct Counters {
    local_hits: AtomicU64,
    shared_hits: AtomicU64,
    misses: AtomicU64,
    shared_errors: AtomicU64,
}

struct Shared {
    connection: ConnectionManager,
    time_to_live: Duration,
    paused: AtomicBool,
}

/// The cache; cheap to clone.
#[derive(Clone)]
pub struct Cache {
    local: moka::future::Cache<Arc<str>, Bytes>,
    shared: Option<Arc<Shared>>,
    counters: Arc<Counters>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("shared", &self.shared.is_some()).field("counters", &self.counters).finish()
    }
}

impl Cache {
    /// A cache of this process alone. `capacity_bytes` bounds keys and values together.
    pub fn local(capacity_bytes: u64, time_to_live: Duration) -> Cache {
        let local = moka::future::Cache::builder()
            .max_capacity(capacity_bytes)
            .weigher(|key: &Arc<str>, value: &Bytes| u32::try_from(key.len() + value.len()).unwrap_or(u32::MAX))
            .time_to_live(time_to_live)
            .build();
        Cache { local, shared: None, counters: Arc::default() }
    }

    /// Adds Redis behind. Does not wait for it: the connection is made, and remade, in the background.
    ///
    /// Errors: a URL that does not parse.
    pub async fn with_redis(mut self, url: &str, time_to_live: Duration) -> Result<Cache, ConfigError> {
        let client = redis::Client::open(url).map_err(|error| ConfigError::new(format!("redis_url: {error}")))?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(SHARED_TIMEOUT))
            .set_number_of_retries(1);
        let connection = ConnectionManager::new_lazy_with_config(client, config)
            .map_err(|error| ConfigError::new(format!("redis_url: {error}")))?;
        self.shared = Some(Arc::new(Shared { connection, time_to_live, paused: AtomicBool::new(false) }));
        Ok(self)
    }

    /// The value of `key`, computed at most once at a time however many callers ask. Errors are not cached.
    pub async fn get_or_compute<E, F>(&self, key: &str, compute: F) -> Result<(Bytes, Source), Arc<E>>
    where
        F: Future<Output = Result<Bytes, E>>,
        E: Send + Sync + 'static,
    {
        let key: Arc<str> = Arc::from(key);
        let mut source = Source::Local;
        let value = self
            .local
            .try_get_with(Arc::clone(&key), async {
                if let Some(value) = self.get_shared(&key).await {
                    source = Source::Shared;
                    return Ok(value);
                }
                source = Source::Computed;
                let value = compute.await?;
                self.put_shared(&key, &value);
                Ok(value)
            })
            .await?;
        let (counter, label) = match source {
            Source::Local => (&self.counters.local_hits, "local"),
            Source::Shared => (&self.counters.shared_hits, "shared"),
            Source::Computed => (&self.counters.misses, "miss"),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("candlemesh_cache_requests_total", "outcome" => label).increment(1);
        Ok((value, source))
    }

    pub async fn statistics(&self) -> Statistics {
        self.local.run_pending_tasks().await;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Statistics {
            local_hits: read(&self.counters.local_hits),
            shared_hits: read(&self.counters.shared_hits),
            misses: read(&self.counters.misses),
            local_entries: self.local.entry_count(),
            local_bytes: self.local.weighted_size(),
            shared_errors: read(&self.counters.shared_errors),
        }
    }

    async fn get_shared(&self, key: &str) -> Option<Bytes> {
        let shared = self.shared.as_ref().filter(|shared| !shared.paused.load(Ordering::Relaxed))?;
        let mut connection = shared.connection.clone();
        let read = tokio::time::timeout(SHARED_TIMEOUT, connection.get::<_, Option<Vec<u8>>>(key)).await;
        let stored = match read {
            Ok(Ok(stored)) => stored?,
            Ok(Err(_)) | Err(_) => {
                self.pause(shared);
                return None;
            }
        };
        match unseal(stored) {
            Some(value) => Some(value),
            None => {
                self.count_shared_error("corrupt");
                let _: Result<Result<(), _>, _> = tokio::time::timeout(SHARED_TIMEOUT, connection.del(key)).await;
                None
            }
        }
    }

    /// Writes behind the answer; the caller does not wait.
    fn put_shared(&self, key: &Arc<str>, value: &Bytes) {
        let Some(shared) = self.shared.as_ref().filter(|shared| !shared.paused.load(Ordering::Relaxed)) else { return };
        if value.len() > MAX_SHARED_BYTES {
            return;
        }
        let (cache, shared, key, sealed) = (self.clone(), Arc::clone(shared), Arc::clone(key), seal(value));
        tokio::spawn(async move {
            let mut connection = shared.connection.clone();
            let seconds = shared.time_to_live.as_secs().max(1);
            let write = connection.set_ex::<_, _, ()>(&*key, sealed, seconds);
            if !matches!(tokio::time::timeout(SHARED_TIMEOUT, write).await, Ok(Ok(()))) {
                cache.pause(&shared);
            }
        });
    }

    fn pause(&self, shared: &Arc<Shared>) {
        self.count_shared_error("unreachable");
        if shared.paused.swap(true, Ordering::Relaxed) {
            return;
        }
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            tokio::time::sleep(SHARED_PAUSE).await;
            shared.paused.store(false, Ordering::Relaxed);
        });
    }

    fn count_shared_error(&self, kind: &'static str) {
        self.counters.shared_errors.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("candlemesh_cache_shared_errors_total", "kind" => kind).increment(1);
    }
}

fn seal(value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(CHECKSUM_BYTES + value.len());
    sealed.extend_from_slice(&crc32fast::hash(value).to_le_bytes());
    sealed.extend_from_slice(value);
    sealed
}

fn unseal(sealed: Vec<u8>) -> Option<Bytes> {
    let mut value = Bytes::from(sealed);
    if value.len() < CHECKSUM_BYTES {
        return None;
    }
    let checksum = value.split_to(CHECKSUM_BYTES);
    (checksum[..] == crc32fast::hash(&value).to_le_bytes()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn concurrent_callers_compute_once_and_errors_are_not_kept() {
        let cache = Cache::local(1 << 20, Duration::from_secs(60));
        let computed = Arc::new(AtomicU64::new(0));
        let calls = (0..50).map(|_| {
            let (cache, computed) = (cache.clone(), Arc::clone(&computed));
            async move {
                let compute = async {
                    tokio::task::yield_now().await;
                    computed.fetch_add(1, Ordering::Relaxed);
                    Ok::<_, std::io::Error>(Bytes::from_static(b"value"))
                };
                cache.get_or_compute("key", compute).await.unwrap().0
            }
        });
        let values = futures::future::join_all(calls).await;
        assert!(values.iter().all(|value| value == "value"));
        assert_eq!(computed.load(Ordering::Relaxed), 1);

        let failed = cache.get_or_compute("bad", async { Err(std::io::Error::other("no")) }).await;
        assert!(failed.is_err());
        let compute = async { Ok::<_, std::io::Error>(Bytes::from_static(b"late")) };
        assert_eq!(cache.get_or_compute("bad", compute).await.unwrap().1, Source::Computed);
    }

    #[test]
    fn a_damaged_shared_entry_is_noticed() {
        let mut sealed = seal(b"payload");
        assert_eq!(unseal(sealed.clone()).unwrap(), "payload");
        *sealed.last_mut().unwrap() ^= 1;
        assert_eq!(unseal(sealed), None);
        assert_eq!(unseal(vec![1, 2]), None);
    }

    #[tokio::test]
    async fn an_unreachable_redis_costs_no_error() {
        let cache = Cache::local(1 << 20, Duration::from_secs(60))
            .with_redis("redis://127.0.0.1:1", Duration::from_secs(60))
            .await
            .unwrap();
        let compute = async { Ok::<_, std::io::Error>(Bytes::from_static(b"v")) };
        assert_eq!(cache.get_or_compute("k", compute).await.unwrap().1, Source::Computed);
        assert!(cache.statistics().await.shared_errors >= 1);
    }
}

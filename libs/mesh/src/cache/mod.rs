//! Two-level cache of encoded answers: in process by bytes, and Redis shared by replicas.
//!
//! The key must contain every input and the data revision, so nothing stale can be read and nothing needs flushing. A
//! Redis that is down, slow or holds a broken entry costs time, never correctness and never an error.
//!
//! - `shared.rs`: Redis as the second level, and when it is left alone
//! - `entry.rs`: how a value is stored there; `migrate.rs`: all values, from one Redis to another

mod entry;
pub mod migrate;
mod shared;

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::CpuPool;
use crate::topology::{Connection, RedisAddress};
use shared::Shared;
pub use shared::SharedSettings;

const REQUESTS_METRIC: &str = "candlemesh_cache_requests_total";
const ERRORS_METRIC: &str = "candlemesh_cache_shared_errors_total";
/// Seconds until a value was there or known not to be, labelled `outcome` (local, shared, miss); without the computing of a miss.
const LOOK_UP_METRIC: &str = "candlemesh_cache_look_up_seconds";

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Local,
    Shared,
    Computed,
}

impl Source {
    fn as_str(self) -> &'static str {
        match self {
            Source::Local => "local",
            Source::Shared => "shared",
            Source::Computed => "miss",
        }
    }
}

/// Counters of one cache since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    pub local_hits: u64,
    pub shared_hits: u64,
    pub misses: u64,
    pub local_entries: u64,
    pub local_bytes: u64,
    pub local_capacity_bytes: u64,
    pub shared_connected: bool,
    pub shared_errors: u64,
    pub shared_writes: u64,
    /// Writes given up because too much was on its way, or Redis had no room.
    pub dropped_writes: u64,
    /// Of the values written, before and after compression.
    pub shared_value_bytes: u64,
    pub shared_written_bytes: u64,
}

impl Statistics {
    /// Hits among all look-ups; 0 before the first.
    pub fn hit_rate(&self) -> f64 {
        let hits = self.local_hits + self.shared_hits;
        match hits + self.misses {
            0 => 0.0,
            all => hits as f64 / all as f64,
        }
    }
}

/// Entries that were dropped.
#[derive(Debug)]
pub struct DroppedEntries {
    /// Of this process.
    pub local: u64,
    /// Of Redis; nothing where there is none.
    pub shared: Result<Option<u64>, redis::RedisError>,
}

#[derive(Debug, Default)]
struct Counters {
    local_hits: AtomicU64,
    shared_hits: AtomicU64,
    misses: AtomicU64,
}

/// Told the tag of what is dropped, or nothing where everything is.
type Dropped = Arc<dyn Fn(Option<&str>) + Send + Sync>;
type Local = moka::future::Cache<Arc<str>, Bytes>;

/// The cache; cheap to clone.
#[derive(Clone)]
pub struct Cache {
    local: Local,
    shared: Option<Arc<Shared>>,
    counters: Arc<Counters>,
    on_drop: Arc<Mutex<Vec<Dropped>>>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("shared", &self.shared).field("counters", &self.counters).finish_non_exhaustive()
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
        Cache { local, shared: None, counters: Arc::default(), on_drop: Arc::default() }
    }

    /// Adds Redis behind. Does not wait for it: the connection is made, and remade, in the background. Values beyond some 64 KiB are packed
    /// and unpacked on the pool. Must be called on a runtime.
    pub fn with_shared(mut self, address: RedisAddress, settings: SharedSettings, pool: Arc<CpuPool>) -> Cache {
        let (local, on_drop) = (self.local.clone(), Arc::clone(&self.on_drop));
        let dropped: Dropped = Arc::new(move |tag| {
            let (local, owned) = (local.clone(), tag.map(str::to_owned));
            tokio::spawn(async move { drop_tagged_keys(&local, owned.as_deref()).await });
            tell(&on_drop, tag);
        });
        self.shared = Some(Arc::new(Shared::start(address, settings, pool, dropped)));
        self
    }

    /// The value of `key`, computed at most once at a time however many callers ask. Errors are not cached.
    pub async fn get_or_compute<E, F>(&self, key: &str, compute: F) -> Result<(Bytes, Source), Arc<E>>
    where
        F: Future<Output = Result<Bytes, E>>,
        E: Send + Sync + 'static,
    {
        let asked = Instant::now();
        if let Some(value) = self.local.get(key).await {
            self.count(Source::Local, asked.elapsed());
            return Ok((value, Source::Local));
        }
        let key: Arc<str> = Arc::from(key);
        let mut found = None;
        let value = self
            .local
            .try_get_with(Arc::clone(&key), async {
                let shared = match &self.shared {
                    Some(shared) => shared.get(&key).await,
                    None => None,
                };
                let source = if shared.is_some() { Source::Shared } else { Source::Computed };
                found = Some((source, asked.elapsed()));
                if let Some(value) = shared {
                    return Ok(value);
                }
                let value = compute.await?;
                if let Some(shared) = &self.shared {
                    shared.put(&key, &value);
                }
                Ok(value)
            })
            .await?;
        // Whoever waited for another's computation found it in the end.
        let (source, took) = found.unwrap_or_else(|| (Source::Local, asked.elapsed()));
        self.count(source, took);
        Ok((value, source))
    }

    /// The value of `key` in this process, where there is one; neither counted nor kept alive by it.
    pub async fn peek(&self, key: &str) -> Option<Bytes> {
        self.local.get(key).await
    }

    /// Drops every entry whose key begins with `prefix` and ends with the tag, here and in Redis, and within a second in the other
    /// replicas.
    ///
    /// Nothing has to be dropped for the sake of newer data: keys hold the revision. This is for entries that are suspected to be wrong,
    /// and for their memory. Where Redis cannot be asked, the entries of this process are dropped all the same.
    pub async fn drop_tagged(&self, prefix: &str, tag: &str) -> DroppedEntries {
        let local = drop_tagged_keys(&self.local, Some(tag)).await;
        tell(&self.on_drop, Some(tag));
        let shared = match &self.shared {
            Some(shared) => shared.drop_matching(&format!("{prefix}*/{}", literal(tag)), tag).await.map(Some),
            None => Ok(None),
        };
        DroppedEntries { local, shared }
    }

    /// Calls back with the tag of what is dropped, by whichever replica, or with nothing where everything is.
    pub fn on_drop(&self, told: impl Fn(Option<&str>) + Send + Sync + 'static) {
        self.on_drop.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(told));
    }

    /// Waits until Redis can be used; at once where there is none.
    pub async fn connected(&self) {
        if let Some(shared) = &self.shared {
            shared.connected().await;
        }
    }

    /// A connection to the shared Redis, where it can be used now, and how long one command of it may take.
    pub fn connection(&self) -> Option<(Connection, Duration)> {
        let shared = self.shared.as_ref()?;
        Some((shared.connection()?, shared.timeout()))
    }

    pub async fn statistics(&self) -> Statistics {
        self.local.run_pending_tasks().await;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let own = Statistics {
            local_hits: read(&self.counters.local_hits),
            shared_hits: read(&self.counters.shared_hits),
            misses: read(&self.counters.misses),
            local_entries: self.local.entry_count(),
            local_bytes: self.local.weighted_size(),
            local_capacity_bytes: self.local.policy().max_capacity().unwrap_or_default(),
            ..Default::default()
        };
        let Some(shared) = &self.shared else { return own };
        let counters = shared.counters();
        Statistics {
            shared_connected: shared.is_connected(),
            shared_errors: read(&counters.errors),
            shared_writes: read(&counters.writes),
            dropped_writes: read(&counters.dropped_writes),
            shared_value_bytes: read(&counters.value_bytes),
            shared_written_bytes: read(&counters.written_bytes),
            ..own
        }
    }

    fn count(&self, source: Source, look_up: Duration) {
        let counter = match source {
            Source::Local => &self.counters.local_hits,
            Source::Shared => &self.counters.shared_hits,
            Source::Computed => &self.counters.misses,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        metrics::counter!(REQUESTS_METRIC, "outcome" => source.as_str()).increment(1);
        metrics::histogram!(LOOK_UP_METRIC, "outcome" => source.as_str()).record(look_up.as_secs_f64());
    }
}

/// Removes what has the tag from a map of such keys, or everything; answers with how many of the tag there were.
pub async fn drop_tagged_keys<V>(map: &moka::future::Cache<Arc<str>, V>, tag: Option<&str>) -> u64
where
    V: Clone + Send + Sync + 'static,
{
    let Some(tag) = tag else {
        map.invalidate_all();
        return 0;
    };
    let keys: Vec<Arc<Arc<str>>> = map.iter().map(|(key, _)| key).filter(|key| has_tag(key, tag)).collect();
    for key in &keys {
        map.invalidate(&***key).await;
    }
    keys.len() as u64
}

fn has_tag(key: &str, tag: &str) -> bool {
    key.strip_suffix(tag).is_some_and(|before| before.ends_with('/'))
}

fn tell(on_drop: &Mutex<Vec<Dropped>>, tag: Option<&str>) {
    let told = on_drop.lock().unwrap_or_else(PoisonError::into_inner).clone();
    told.iter().for_each(|told| told(tag));
}

/// A text as a pattern of Redis that matches it alone.
fn literal(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::RedisTls;

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

    #[tokio::test]
    async fn an_unreachable_redis_costs_no_error() {
        let address = RedisAddress::parse("redis://127.0.0.1:1", &RedisTls::default()).unwrap();
        let pool = Arc::new(CpuPool::new(1, 1).unwrap());
        let cache =
            Cache::local(1 << 20, Duration::from_secs(60)).with_shared(address, SharedSettings::default(), pool);
        let compute = async { Ok::<_, std::io::Error>(Bytes::from_static(b"v")) };
        assert_eq!(cache.get_or_compute("k", compute).await.unwrap().1, Source::Computed);
        let counted = async {
            while cache.statistics().await.shared_errors == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), counted).await.expect("the error is counted");
        assert!(!cache.statistics().await.shared_connected);
        assert!(cache.drop_tagged("", "k").await.shared.is_err());
    }

    #[tokio::test]
    async fn what_has_the_tag_is_dropped_and_nothing_else() {
        let cache = Cache::local(1 << 20, Duration::from_secs(60));
        let told = Arc::new(Mutex::new(Vec::new()));
        cache.on_drop({
            let told = Arc::clone(&told);
            move |tag| told.lock().unwrap().push(tag.map(str::to_owned))
        });
        for key in ["a/1/US|X", "a/2/US|X", "a/1/US|XX", "a/1/US|Y", "US|X"] {
            let compute = async { Ok::<_, std::io::Error>(Bytes::from_static(b"v")) };
            cache.get_or_compute(key, compute).await.unwrap();
        }
        let dropped = cache.drop_tagged("a/", "US|X").await;
        assert_eq!((dropped.local, dropped.shared.unwrap()), (2, None));
        for (key, is_there) in [("a/1/US|X", false), ("a/2/US|X", false), ("a/1/US|XX", true), ("US|X", true)] {
            assert_eq!(cache.peek(key).await.is_some(), is_there, "{key}");
        }
        assert_eq!(*told.lock().unwrap(), [Some("US|X".to_owned())]);
        assert_eq!(literal("NSE_FO|A[1]*?\\"), "NSE_FO|A\\[1\\]\\*\\?\\\\");
    }
}

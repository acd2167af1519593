//! The cache behind the cache: Redis, which may be gone, slow or wrong at any moment.
//!
//! One task keeps the connection. Look-ups and writes use it while it is there and never wait for one: where it is gone, or has just
//! answered too late, they go without, so that a dead or slow Redis costs each request under way one time-out and later ones nothing.
//! The task comes back with growing pauses, and only with a server that answers in time.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use redis::streams::{StreamMaxlen, StreamRangeReply};
use redis::{AsyncCommands, RedisResult};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::entry;
use super::{Dropped, ERRORS_METRIC};
use crate::CpuPool;
use crate::topology::{Connection, RedisAddress};

/// A connection is made within this or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pauses between attempts to connect double from the one to the other. They start anew once a connection has lasted for the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How often an unused connection is asked whether it lives, and for what others have dropped.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Share of the time-out beyond which an answer of a small value is slow.
const SLOW_SHARE: u32 = 4;
/// Slow answers in a row that are as good as none.
const MOST_SLOW: u32 = 8;
/// Values up to this size come in a moment or the server is slow; larger ones may take their time on the wire.
const SMALL_BYTES: usize = 64 * 1024;
/// Bytes of values on their way to Redis; beyond that, writes are dropped: each is a copy, and nobody waits for it.
const MAX_WRITE_BYTES: usize = 32 * 1024 * 1024;
/// What a write counts for at the least, which bounds their number to 512.
const MIN_WRITE_BYTES: usize = 64 * 1024;
/// Sealing and unsealing beyond this size is for the CPU pool; below it takes less than a tenth of a millisecond.
const INLINE_BYTES: usize = 64 * 1024;
/// The same of a value that is not packed, of which only the checksum is computed: handing it over takes about as long.
const INLINE_PLAIN_BYTES: usize = 1024 * 1024;
/// Where replicas tell each other what they drop. Kept short: whoever has missed more drops everything.
const DROPS: &str = "candlemesh:cache:drops";
const MAX_DROPS: usize = 1000;
const TAG: &str = "tag";
/// Keys of one step of a walk over all of them, and keys deleted together.
const SCAN_COUNT: usize = 1000;

/// How Redis is used.
#[derive(Debug, Clone)]
pub struct SharedSettings {
    pub time_to_live: Duration,
    /// How long a look-up or write may take before it is given up.
    pub timeout: Duration,
    /// Largest value shared: a larger one would hold the connection, and everybody behind it, longer than computing anew.
    pub max_value_bytes: usize,
    /// Whether values are packed: some 30 % less to send and to hold, at several times the cost of reading from a Redis close by.
    pub packing: bool,
}

impl Default for SharedSettings {
    fn default() -> Self {
        Self {
            time_to_live: Duration::from_secs(60 * 60),
            timeout: Duration::from_millis(150),
            max_value_bytes: 8 * 1024 * 1024,
            packing: false,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct SharedCounters {
    pub(super) errors: AtomicU64,
    pub(super) dropped_writes: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) value_bytes: AtomicU64,
}

/// Used by every clone of a cache; its task ends with it.
#[derive(Debug)]
pub(super) struct Shared {
    state: Arc<State>,
    address: RedisAddress,
    pool: Arc<CpuPool>,
    writes: Arc<Semaphore>,
    _task: JoinSet<Infallible>,
}

#[derive(Debug)]
struct State {
    settings: SharedSettings,
    /// Absent while Redis is not to be used.
    link: watch::Sender<Option<Link>>,
    /// Told when the link was lost in use.
    lost: Notify,
    slow_in_a_row: AtomicU32,
    counters: SharedCounters,
}

/// A connection, with a number that tells it from those before.
#[derive(Debug, Clone)]
struct Link {
    number: u64,
    connection: Connection,
}

impl Shared {
    pub(super) fn start(
        address: RedisAddress,
        settings: SharedSettings,
        pool: Arc<CpuPool>,
        dropped: Dropped,
    ) -> Shared {
        let state = Arc::new(State {
            settings,
            link: watch::Sender::new(None),
            lost: Notify::new(),
            slow_in_a_row: AtomicU32::new(0),
            counters: SharedCounters::default(),
        });
        let mut task = JoinSet::new();
        task.spawn(keep_connected(address.clone(), Arc::clone(&state), dropped));
        let writes = Arc::new(Semaphore::new(MAX_WRITE_BYTES / 1024));
        Shared { state, address, pool, writes, _task: task }
    }

    pub(super) fn counters(&self) -> &SharedCounters {
        &self.state.counters
    }

    pub(super) fn is_connected(&self) -> bool {
        self.state.link.borrow().is_some()
    }

    /// Waits until Redis can be used.
    pub(super) async fn connected(&self) {
        // The sender lives in the state held here.
        let _ = self.state.link.subscribe().wait_for(Option::is_some).await;
    }

    /// A connection of the moment for what is not an entry; who uses it bounds its time.
    pub(super) fn connection(&self) -> Option<Connection> {
        self.link().map(|link| link.connection)
    }

    pub(super) fn timeout(&self) -> Duration {
        self.state.settings.timeout
    }

    /// The value of a key, or `None` where there is none or Redis does not answer in time.
    pub(super) async fn get(&self, key: &str) -> Option<Bytes> {
        let link = self.link()?;
        let mut connection = link.connection.clone();
        let asked = Instant::now();
        let read = tokio::time::timeout(self.state.settings.timeout, connection.get::<_, Option<Bytes>>(key)).await;
        let stored = match read {
            Ok(Ok(stored)) => stored,
            Ok(Err(error)) => {
                self.state.lose(&link, "refused", &error.to_string());
                return None;
            }
            Err(_) => {
                self.state.lose(&link, "timeout", "it does not answer in time");
                return None;
            }
        };
        self.state.judge(&link, asked.elapsed(), stored.as_ref().map_or(0, Bytes::len));
        let stored = stored?;
        let limit = self.state.settings.max_value_bytes;
        let is_short = stored.len() <= INLINE_BYTES;
        let value = if is_short || (stored.len() <= INLINE_PLAIN_BYTES && !entry::is_packed(&stored)) {
            entry::unseal(stored, limit)
        } else {
            match self.pool.run(move || entry::unseal(stored, limit)).await {
                Ok(value) => value,
                // As good as a miss; what follows says how busy the pool is.
                Err(_) => return None,
            }
        };
        if value.is_none() {
            self.state.count_error("corrupt");
            let _: Result<RedisResult<()>, _> =
                tokio::time::timeout(self.state.settings.timeout, connection.del(key)).await;
        }
        value
    }

    /// Writes behind the answer; the caller does not wait. Dropped and counted where too much is on its way already.
    pub(super) fn put(&self, key: &Arc<str>, value: &Bytes) {
        let settings = &self.state.settings;
        let Some(link) = self.link().filter(|_| value.len() <= settings.max_value_bytes) else { return };
        let weight = u32::try_from(value.len().max(MIN_WRITE_BYTES).div_ceil(1024)).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.writes).try_acquire_many_owned(weight) else {
            self.state.drop_write("full");
            return;
        };
        let (state, pool, key, value) =
            (Arc::clone(&self.state), Arc::clone(&self.pool), Arc::clone(key), value.clone());
        tokio::spawn(async move {
            let _room = room;
            let size = value.len();
            let seal = if state.settings.packing { entry::seal_packed } else { entry::seal };
            let sealed = if size <= INLINE_BYTES {
                seal(&value)
            } else {
                match pool.run(move || seal(&value)).await {
                    Ok(sealed) => sealed,
                    Err(_) => return state.drop_write("busy"),
                }
            };
            state.write(link, &key, size, sealed).await;
        });
    }

    /// Deletes every key that matches a pattern, and tells the other replicas to drop what has the tag. Answers with the number.
    pub(super) async fn drop_matching(&self, pattern: &str, tag: &str) -> RedisResult<u64> {
        let Some(mut connection) = self.connection() else {
            return Err((redis::ErrorKind::Io, "Redis is not connected").into());
        };
        let mut count = 0;
        for mut part in self.address.connect_parts(CONNECT_TIMEOUT, CONNECT_TIMEOUT).await? {
            let mut cursor = 0_u64;
            loop {
                let (next, keys): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
                    .arg(cursor)
                    .arg("MATCH")
                    .arg(pattern)
                    .arg("COUNT")
                    .arg(SCAN_COUNT)
                    .query_async(&mut part)
                    .await?;
                // One by one: keys of one server of a Cluster still lie in different slots.
                let mut pipeline = redis::pipe();
                keys.iter().for_each(|key| {
                    pipeline.cmd("UNLINK").arg(key);
                });
                if !keys.is_empty() {
                    let deleted: Vec<u64> = pipeline.query_async(&mut part).await?;
                    count += deleted.iter().sum::<u64>();
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        let _: Option<String> =
            connection.xadd_maxlen(DROPS, StreamMaxlen::Approx(MAX_DROPS), "*", &[(TAG, tag)]).await?;
        Ok(count)
    }

    fn link(&self) -> Option<Link> {
        self.state.link.borrow().clone()
    }
}

impl State {
    async fn write(&self, link: Link, key: &str, size: usize, sealed: Vec<u8>) {
        let bytes = sealed.len() as u64;
        let seconds = self.settings.time_to_live.as_secs().max(1);
        let mut connection = link.connection.clone();
        let write = connection.set_ex::<_, _, ()>(key, sealed, seconds);
        match tokio::time::timeout(self.settings.timeout, write).await {
            Ok(Ok(())) => {
                self.counters.writes.fetch_add(1, Ordering::Relaxed);
                self.counters.written_bytes.fetch_add(bytes, Ordering::Relaxed);
                self.counters.value_bytes.fetch_add(size as u64, Ordering::Relaxed);
                metrics::counter!("candlemesh_cache_shared_written_bytes_total").increment(bytes);
            }
            // A full Redis still answers look-ups.
            Ok(Err(error)) if error.code() == Some("OOM") => self.drop_write("out_of_memory"),
            Ok(Err(error)) => self.lose(&link, "refused", &error.to_string()),
            Err(_) => self.lose(&link, "timeout", "it does not take a value in time"),
        }
    }

    fn drop_write(&self, why: &'static str) {
        self.counters.dropped_writes.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("candlemesh_cache_dropped_writes_total", "why" => why).increment(1);
    }

    fn count_error(&self, kind: &'static str) {
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        metrics::counter!(ERRORS_METRIC, "kind" => kind).increment(1);
    }

    /// Gives a link up, unless that was done already.
    fn lose(&self, link: &Link, kind: &'static str, why: &str) {
        self.count_error(kind);
        let mut given_up = false;
        self.link.send_if_modified(|current| {
            given_up = current.as_ref().is_some_and(|current| current.number == link.number);
            if given_up {
                *current = None;
            }
            given_up
        });
        if given_up {
            tracing::warn!(kind, why, "Redis is not used for now; answers are computed instead");
            self.lost.notify_one();
        }
    }

    /// Counts answers that came, but late.
    fn judge(&self, link: &Link, took: Duration, bytes: usize) {
        if bytes > SMALL_BYTES {
            return;
        }
        if took < self.settings.timeout / SLOW_SHARE {
            self.slow_in_a_row.store(0, Ordering::Relaxed);
        } else if self.slow_in_a_row.fetch_add(1, Ordering::Relaxed) + 1 >= MOST_SLOW {
            self.lose(link, "slow", "it answers too late, time after time");
        }
    }
}

/// Connects, and connects again, for as long as it is polled.
async fn keep_connected(address: RedisAddress, state: Arc<State>, dropped: Dropped) -> Infallible {
    let mut pause = FIRST_PAUSE;
    let mut number = 0;
    let mut told = false;
    let mut drops = Drops { heard: String::new(), dropped };
    loop {
        let made = async {
            let mut connection = address.connect(CONNECT_TIMEOUT, CONNECT_TIMEOUT).await?;
            drops.listen(&mut connection).await?;
            let asked = Instant::now();
            let _: String = redis::cmd("PING").query_async(&mut connection).await?;
            match asked.elapsed() < state.settings.timeout / SLOW_SHARE {
                true => Ok(connection),
                false => Err((redis::ErrorKind::Io, "it answers too late").into()),
            }
        };
        let made: RedisResult<Connection> = match tokio::time::timeout(2 * CONNECT_TIMEOUT, made).await {
            Ok(made) => made,
            Err(_) => Err((redis::ErrorKind::Io, "it does not answer in time").into()),
        };
        match made {
            Ok(connection) => {
                number += 1;
                let link = Link { number, connection };
                let since = Instant::now();
                state.slow_in_a_row.store(0, Ordering::Relaxed);
                state.link.send_replace(Some(link.clone()));
                tracing::info!(%address, "Redis is connected");
                metrics::gauge!("candlemesh_cache_shared_connected").set(1.0);
                stay(&state, link, &mut drops).await;
                metrics::gauge!("candlemesh_cache_shared_connected").set(0.0);
                told = true;
                if since.elapsed() >= LONGEST_PAUSE {
                    pause = FIRST_PAUSE;
                }
            }
            Err(error) => {
                state.count_error("unreachable");
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%address, %error, "Redis is not reachable; answers are computed instead");
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Ends once the link is lost.
async fn stay(state: &State, link: Link, drops: &mut Drops) {
    let mut connection = link.connection.clone();
    loop {
        tokio::select! {
            () = state.lost.notified() => {
                // Of an earlier link it may be told late.
                if state.link.borrow().is_none() {
                    return;
                }
            }
            () = tokio::time::sleep(HEARTBEAT) => {
                match tokio::time::timeout(CONNECT_TIMEOUT, drops.listen(&mut connection)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return state.lose(&link, "refused", &error.to_string()),
                    Err(_) => return state.lose(&link, "timeout", "it does not answer in time"),
                }
            }
        }
    }
}

/// What other replicas have dropped since it was last asked.
struct Drops {
    /// Place in the stream; empty before the first look.
    heard: String,
    dropped: Dropped,
}

impl Drops {
    async fn listen(&mut self, connection: &mut Connection) -> RedisResult<()> {
        if self.heard.is_empty() {
            // This process is younger than what lies there.
            let newest: StreamRangeReply = connection.xrevrange_count(DROPS, "+", "-", 1).await?;
            self.heard = newest.ids.first().map_or_else(|| "0-0".to_owned(), |entry| entry.id.clone());
            return Ok(());
        }
        let since = format!("({}", self.heard);
        let told: StreamRangeReply = connection.xrange_count(DROPS, since, "+", MAX_DROPS).await?;
        let Some(last) = told.ids.last() else { return Ok(()) };
        self.heard.clone_from(&last.id);
        if told.ids.len() == MAX_DROPS {
            (self.dropped)(None);
            return Ok(());
        }
        for tag in told.ids.iter().filter_map(|entry| entry.get::<String>(TAG)) {
            (self.dropped)(Some(&tag));
        }
        Ok(())
    }
}

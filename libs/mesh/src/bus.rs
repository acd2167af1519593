//! Wakes readers of a log in other processes once something became durable: a hint, never the data.
//!
//! Over Redis Streams every replica adds how far the log has come and reads what others added. A Redis that is down, slow or empty
//! again costs delay, never correctness and never an error: who listens also asks the log itself, more often while the bus is not
//! [connected](Bus::is_connected).

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use redis::streams::{StreamMaxlen, StreamRangeReply, StreamReadOptions, StreamReadReply};
use redis::{AsyncCommands, RedisResult};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::topology::{Connection, RedisAddress};

/// Key of the stream; meshes that share a Redis wake each other for nothing, which is harmless.
const STREAM: &str = "candlemesh:changes";
const FIELD: &str = "sequence";
/// Entries kept, about: only the newest is ever of use.
const STREAM_LENGTH: usize = 64;
/// How long a read waits for the next entry; a connection that is silent longer is taken for dead.
const BLOCK: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pauses between attempts to connect double from the one to the other.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Times the bus was lost, or was not there at the start.
const FALLBACK_METRIC: &str = "candlemesh_bus_fallbacks_total";

/// Tells the other replicas of a service how far a log has come. Cheap to clone; one of the clones listens.
#[derive(Debug, Clone, Default)]
pub struct Bus(Option<Arc<Remote>>);

#[derive(Debug)]
struct Remote {
    announced: watch::Sender<u64>,
    heard: Arc<Heard>,
    /// End with the last clone.
    _tasks: JoinSet<Infallible>,
}

#[derive(Debug, Default)]
struct Heard {
    /// The largest sequence not yet taken; 0: none.
    sequence: AtomicU64,
    news: Notify,
    is_connected: AtomicBool,
}

impl Bus {
    /// A bus nobody else hears.
    pub fn in_process() -> Bus {
        Bus(None)
    }

    /// A bus over Redis. Does not wait for it: connections are made, and remade, in the background.
    pub fn redis(address: RedisAddress) -> Bus {
        let (announced, to_tell) = watch::channel(0);
        let heard = Arc::new(Heard::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(tell(address.clone(), to_tell));
        tasks.spawn(listen(address, Arc::clone(&heard)));
        Bus(Some(Arc::new(Remote { announced, heard, _tasks: tasks })))
    }

    /// Tells that the log has come to `sequence`. Never waits; of several calls only the newest need arrive.
    pub fn announce(&self, sequence: u64) {
        if let Some(remote) = &self.0 {
            remote.announced.send_if_modified(|told| std::mem::replace(told, sequence.max(*told)) < sequence);
        }
    }

    /// The newest sequence that was told of, by others or by this process, since the last call. Safe to cancel.
    pub async fn heard(&self) -> u64 {
        let Some(remote) = &self.0 else { return std::future::pending().await };
        loop {
            match remote.heard.sequence.swap(0, Ordering::AcqRel) {
                0 => remote.heard.news.notified().await,
                sequence => return sequence,
            }
        }
    }

    /// Whether what others tell arrives at present.
    pub fn is_connected(&self) -> bool {
        self.0.as_ref().is_some_and(|remote| remote.heard.is_connected.load(Ordering::Relaxed))
    }
}

impl Heard {
    fn tell(&self, sequence: u64) {
        self.sequence.fetch_max(sequence, Ordering::AcqRel);
        self.news.notify_one();
    }
}

/// Adds what is announced, the newest where several are waiting.
async fn tell(address: RedisAddress, mut announced: watch::Receiver<u64>) -> Infallible {
    let mut pause = FIRST_PAUSE;
    loop {
        // Ends only with an error, and with it the connection.
        if let Ok(mut connection) = address.connect(CONNECT_TIMEOUT, ANSWER_TIMEOUT).await {
            while tell_next(&mut connection, &mut announced).await.is_ok() {
                pause = FIRST_PAUSE;
            }
        }
        announced.mark_changed();
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

async fn tell_next(connection: &mut Connection, announced: &mut watch::Receiver<u64>) -> RedisResult<()> {
    if announced.changed().await.is_err() {
        // Dropped with the bus, which ends this task too.
        std::future::pending::<()>().await;
    }
    let sequence = *announced.borrow_and_update();
    if sequence == 0 {
        return Ok(());
    }
    let length = StreamMaxlen::Approx(STREAM_LENGTH);
    let _: Option<String> = connection.xadd_maxlen(STREAM, length, "*", &[(FIELD, sequence)]).await?;
    Ok(())
}

async fn listen(address: RedisAddress, heard: Arc<Heard>) -> Infallible {
    let mut pause = FIRST_PAUSE;
    let mut is_lost = false;
    loop {
        let Err(error) = listen_until_lost(&address, &heard).await;
        if heard.is_connected.swap(false, Ordering::Relaxed) {
            (pause, is_lost) = (FIRST_PAUSE, false);
        }
        if !std::mem::replace(&mut is_lost, true) {
            metrics::counter!(FALLBACK_METRIC).increment(1);
            tracing::warn!(%error, "the bus is not available; other replicas' changes come later");
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

async fn listen_until_lost(address: &RedisAddress, heard: &Heard) -> RedisResult<Infallible> {
    let mut connection = address.connect(CONNECT_TIMEOUT, BLOCK + ANSWER_TIMEOUT).await?;
    // From the entry that is now the newest, which also tells what was missed meanwhile.
    let newest: StreamRangeReply = connection.xrevrange_count(STREAM, "+", "-", 1).await?;
    let mut position = "0-0".to_owned();
    take(&newest.ids, heard, &mut position);
    heard.is_connected.store(true, Ordering::Relaxed);
    let options = StreamReadOptions::default().block(usize::try_from(BLOCK.as_millis()).unwrap_or(usize::MAX));
    loop {
        let read: Option<StreamReadReply> = connection.xread_options(&[STREAM], &[position.as_str()], &options).await?;
        for key in read.into_iter().flat_map(|reply| reply.keys) {
            take(&key.ids, heard, &mut position);
        }
    }
}

fn take(entries: &[redis::streams::StreamId], heard: &Heard, position: &mut String) {
    let Some(last) = entries.last() else { return };
    position.clone_from(&last.id);
    // What somebody else put there is no reason to stop.
    if let Some(sequence) = entries.iter().filter_map(|entry| entry.get::<u64>(FIELD)).max() {
        heard.tell(sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::RedisTls;

    fn nowhere() -> Bus {
        Bus::redis(RedisAddress::parse("redis://127.0.0.1:1", &RedisTls::default()).unwrap())
    }

    #[tokio::test]
    async fn without_redis_nothing_is_heard_and_nothing_fails() {
        for bus in [Bus::in_process(), nowhere()] {
            bus.announce(7);
            let heard = tokio::time::timeout(Duration::from_millis(300), bus.heard()).await;
            assert!(heard.is_err() && !bus.is_connected());
        }
    }

    #[tokio::test]
    async fn of_what_was_told_the_newest_is_heard_once() {
        let bus = nowhere();
        let heard = Arc::clone(&bus.0.as_ref().unwrap().heard);
        heard.tell(5);
        heard.tell(9);
        heard.tell(3);
        assert_eq!(bus.heard().await, 9);
        assert!(tokio::time::timeout(Duration::from_millis(20), bus.heard()).await.is_err());
    }
}

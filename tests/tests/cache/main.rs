//! The indicator cache against real Redis servers: stopped, slow, silent and full ones, Sentinels, a Cluster and TLS; and the service
//! on it, as several replicas.
//!
//! Apart from `mesh`, because it needs none: what is tested here is built from its parts.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is its message")]

mod faults;
mod migrate;
mod replicas;
mod suffix;
mod topologies;
mod world;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh::CpuPool;
use mesh::cache::{Cache, SharedSettings, Source};
use mesh::topology::{RedisAddress, RedisTls};

/// Longest wait for anything: a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

fn pool() -> Arc<CpuPool> {
    Arc::new(CpuPool::new(2, 4096).unwrap())
}

/// A cache over the Redis at an address, on its own as a replica is.
fn replica(url: &str, settings: SharedSettings) -> Cache {
    let address = RedisAddress::parse(url, &RedisTls::default()).unwrap();
    Cache::local(64 << 20, Duration::from_secs(600)).with_shared(address, settings, pool())
}

/// A value that its key alone decides, so that a wrong one is noticed.
fn value_of(key: &str, size: usize) -> Bytes {
    let mut state = key
        .bytes()
        .fold(14_695_981_039_346_656_037_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(1_099_511_628_211));
    let bytes = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    });
    bytes.take(size).collect::<Vec<u8>>().into()
}

/// Asks for a key and checks the value, wherever it came from.
async fn ask(cache: &Cache, key: &str, size: usize) -> Source {
    let compute = async { Ok::<_, Infallible>(value_of(key, size)) };
    let (value, source) = cache.get_or_compute(key, compute).await.unwrap();
    assert!(value == value_of(key, size), "a wrong value of {key} from {source:?}");
    source
}

/// Waits for a condition, for as long as anything may take.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds().await {
            tokio::time::sleep(POLL).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

//! The same cache over a Cluster, over a master that Sentinels replace, and over TLS.

use candlemesh_tests::redis::Redis;
use candlemesh_tests::topologies::{RedisCluster, RedisSentinel, RedisTlsServer};
use mesh::cache::{Cache, SharedSettings, Source};
use mesh::topology::{RedisAddress, RedisTls};
use std::time::Duration;

use super::{ask, eventually, pool, replica};

/// Some of them large enough to be packed, and enough for every master of a cluster to hold some.
const KEYS: usize = 60;

fn key(index: usize) -> String {
    format!("entry/{index}/US|{}", index % 2)
}

fn size(index: usize) -> usize {
    100 + 1000 * index
}

async fn fill(cache: &Cache) {
    let before = cache.statistics().await.shared_writes;
    for index in 0..KEYS {
        ask(cache, &key(index), size(index)).await;
    }
    eventually("all values are written", async || cache.statistics().await.shared_writes - before == KEYS as u64).await;
}

/// Two replicas over one Redis: the second computes nothing; what one drops is gone from both.
async fn share_and_drop(url: &str) {
    // One packs its values and the other does not: each reads what the other has written.
    let packing = SharedSettings { packing: true, ..SharedSettings::default() };
    let (first, second) = (replica(url, packing), replica(url, SharedSettings::default()));
    first.connected().await;
    second.connected().await;
    fill(&first).await;
    for index in 0..KEYS {
        assert_eq!(ask(&second, &key(index), size(index)).await, Source::Shared, "{}", key(index));
    }
    assert_eq!(second.statistics().await.misses, 0);
    let half = KEYS as u64 / 2;
    let dropped = first.drop_tagged("entry/", "US|1").await;
    assert_eq!((dropped.local, dropped.shared.unwrap()), (half, Some(half)));
    eventually("the other replica drops it too", async || second.statistics().await.local_entries == half).await;
    for index in 0..KEYS {
        let source = if index % 2 == 1 { Source::Computed } else { Source::Local };
        assert_eq!(ask(&second, &key(index), size(index)).await, source);
    }
}

#[tokio::test]
async fn replicas_share_one_server() {
    let Some(redis) = Redis::start_if_installed().unwrap() else { return };
    share_and_drop(&redis.url()).await;
}

#[tokio::test]
async fn replicas_share_a_cluster_and_every_master_holds_a_part() {
    if Redis::start_if_installed().unwrap().is_none() {
        return;
    }
    let cluster = RedisCluster::start().unwrap();
    share_and_drop(&cluster.url()).await;
    for node in cluster.nodes() {
        let address = RedisAddress::parse(&node.url(), &RedisTls::default()).unwrap();
        let mut connection = address.connect(Duration::from_secs(5), Duration::from_secs(5)).await.unwrap();
        let count: usize = redis::cmd("DBSIZE").query_async(&mut connection).await.unwrap();
        assert!((1..KEYS).contains(&count), "{count}");
    }
}

#[tokio::test]
async fn a_failover_is_followed_through_the_sentinel() {
    if Redis::start_if_installed().unwrap().is_none() {
        return;
    }
    let mut service = RedisSentinel::start().unwrap();
    let (first, second) =
        (replica(&service.url(), SharedSettings::default()), replica(&service.url(), SharedSettings::default()));
    first.connected().await;
    second.connected().await;
    ask(&first, "k/1", 100).await;
    eventually("it is written", async || first.statistics().await.shared_writes == 1).await;
    service.master.stop().unwrap();
    // Answers go on while nobody is the master, and are shared again once the replica is.
    let mut index = 0;
    eventually("the new master takes values", async || {
        index += 1;
        ask(&first, &format!("failover/{index}"), 100).await;
        first.statistics().await.shared_writes >= 2
    })
    .await;
    second.connected().await;
    let last = format!("failover/{index}");
    eventually("and gives them", async || {
        let other = replica(&service.url(), SharedSettings::default());
        other.connected().await;
        ask(&other, &last, 100).await == Source::Shared
    })
    .await;
}

#[tokio::test]
async fn tls_is_spoken_with_a_server_whose_authority_is_known_and_no_other() {
    if Redis::start_if_installed().unwrap().is_none() {
        return;
    }
    let server = RedisTlsServer::start().unwrap();
    let tls = RedisTls {
        ca_file: Some(server.file("ca.pem")),
        certificate_file: Some(server.file("cert.pem")),
        key_file: Some(server.file("key.pem")),
    };
    let cache = |tls: &RedisTls| {
        let address = RedisAddress::parse(&server.url(), tls).unwrap();
        Cache::local(1 << 20, Duration::from_secs(60)).with_shared(address, SharedSettings::default(), pool())
    };
    let (first, second) = (cache(&tls), cache(&tls));
    first.connected().await;
    second.connected().await;
    ask(&first, "k/1", 300_000).await;
    eventually("it is written", async || first.statistics().await.shared_writes == 1).await;
    assert_eq!(ask(&second, "k/1", 300_000).await, Source::Shared);

    let stranger = cache(&RedisTls { ca_file: None, ..tls.clone() });
    eventually("it is refused", async || stranger.statistics().await.shared_errors > 0).await;
    assert_eq!(ask(&stranger, "k/1", 100).await, Source::Computed);
    assert!(!stranger.statistics().await.shared_connected);
}

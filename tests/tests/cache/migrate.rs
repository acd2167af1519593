//! Entries go from one Redis to another, to a Cluster too and from an earlier release, with the time left to them.

use std::process::Command;
use std::time::Duration;

use candlemesh_tests::redis::Redis;
use candlemesh_tests::topologies::RedisCluster;
use mesh::cache::SharedSettings;
use mesh::topology::{Connection, RedisAddress, RedisTls};
use serde_json::Value;

use super::{ask, eventually, replica};

const KEYS: usize = 300;
/// Of the present encoding, and of the one before.
const NOW: &str = "indicator/v2/3/";
const BEFORE: &str = "indicator/v2/2/";
const STORE: &str = "5fa1";

async fn connect(url: &str) -> Connection {
    let address = RedisAddress::parse(url, &RedisTls::default()).unwrap();
    address.connect(Duration::from_secs(5), Duration::from_secs(5)).await.unwrap()
}

fn migrate(from: &str, to: &str, more: &[&str]) -> (Value, bool) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlemesh-under-test"));
    command.args(["cache", "migrate", "--json", "--from", from, "--to", to]).args(more);
    let output = command.output().unwrap();
    let answer = serde_json::from_slice(&output.stdout);
    (answer.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr))), output.status.success())
}

fn counts(answer: &Value, names: &[&str]) -> Vec<u64> {
    names.iter().map(|name| answer[*name].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_entry_arrives_and_a_second_run_finds_it_there() {
    let Some(redis) = Redis::start_if_installed().unwrap() else { return };
    let cluster = RedisCluster::start().unwrap();
    let cache = replica(&redis.url(), SharedSettings::default());
    cache.connected().await;
    let size = |index: usize| 50 + 100 * index;
    for index in 0..KEYS {
        ask(&cache, &format!("{NOW}{index}/US|X"), size(index)).await;
    }
    eventually("all are written", async || cache.statistics().await.shared_writes == KEYS as u64).await;
    let mut from = connect(&redis.url()).await;
    let value = super::value_of(&format!("{NOW}{STORE}/old/US|X"), 40_000);
    let mut old = crc32fast::hash(&value).to_le_bytes().to_vec();
    old.extend_from_slice(&value);
    let damaged = [&old[..], b"!"].concat();
    for (key, stored) in [(format!("{BEFORE}old/US|X"), old), (format!("{BEFORE}bad/US|X"), damaged)] {
        let _: () = redis::cmd("SET").arg(key).arg(stored).arg("EX").arg(500).query_async(&mut from).await.unwrap();
    }
    let _: () = redis::cmd("SET").arg("indicator/v9/1/US|X").arg("?").query_async(&mut from).await.unwrap();
    let _: () = redis::cmd("SET").arg("somebody/else").arg("?").query_async(&mut from).await.unwrap();

    let (from_url, to_url) = (redis.url(), cluster.url());
    let run = |more: &[&str]| {
        let more = [&["--store-id", STORE], more].concat();
        tokio::task::block_in_place(|| migrate(&from_url, &to_url, &more))
    };
    let names = ["found", "copied", "present", "damaged", "foreign", "upgraded"];
    let (all, sound) = (KEYS as u64 + 3, KEYS as u64 + 1);
    let (dry, good) = run(&["--dry-run", "--verify"]);
    assert_eq!((counts(&dry, &names), good), (vec![all, sound, 0, 1, 1, 1], false));
    assert_eq!(counts(&dry["verified"], &["compared", "equal", "missing"]), [sound, 0, sound]);
    let (copied, good) = run(&["--verify"]);
    assert_eq!((counts(&copied, &names), good), (vec![all, sound, 0, 1, 1, 1], true));
    assert_eq!(counts(&copied["verified"], &["compared", "equal", "missing", "different"]), [sound, sound, 0, 0]);
    let (again, good) = run(&["--verify"]);
    assert_eq!((counts(&again, &names), good), (vec![all, 0, sound, 1, 1, 0], true));

    // The replica of the new Redis has them all, also what an earlier release wrote, for as long as they had.
    let there = replica(&to_url, SharedSettings::default());
    there.connected().await;
    for index in 0..KEYS {
        ask(&there, &format!("{NOW}{index}/US|X"), size(index)).await;
    }
    ask(&there, &format!("{NOW}{STORE}/old/US|X"), 40_000).await;
    assert_eq!((there.statistics().await.misses, there.statistics().await.shared_hits), (0, sound));
    let mut to = connect(&to_url).await;
    let left: i64 = redis::cmd("TTL").arg(format!("{NOW}{STORE}/old/US|X")).query_async(&mut to).await.unwrap();
    assert!((1..=500).contains(&left), "{left}");

    // A comparison finds what is gone and what is not what it was.
    let _: u64 = redis::cmd("DEL").arg(format!("{NOW}7/US|X")).query_async(&mut to).await.unwrap();
    let _: u64 =
        redis::cmd("SETRANGE").arg(format!("{NOW}8/US|X")).arg(20).arg("!!").query_async(&mut to).await.unwrap();
    let (found, good) = run(&["--dry-run", "--verify"]);
    assert_eq!((counts(&found["verified"], &["equal", "missing", "different"]), good), (vec![sound - 2, 1, 1], false));
}

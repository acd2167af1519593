//! Replicas over one Redis: what one has computed the other does not, and what one has stored the other sees.

use candlemesh_tests::redis::Redis;
use market::{Candle, TimeRange};
use std::process::Command;

use super::eventually;
use super::world::{Replica, World, content};

const SESSIONS: usize = 3;
const KEYS: [&str; 3] = ["NSE_EQ|A", "NSE_EQ|B", "NSE_EQ|C"];
const TIMEFRAMES: [&str; 4] = ["1m", "5m", "1h", "1d"];

async fn ask_all(replica: &Replica) -> Vec<proto::indicator::ComputeIndicatorsResponse> {
    let mut answers = Vec::new();
    for key in KEYS {
        for timeframe in TIMEFRAMES {
            answers.push(replica.ask("v2", key, timeframe, TimeRange::ALL, &[]).await);
        }
    }
    answers
}

/// Writes behind the answers have arrived.
async fn settled(replica: &Replica, writes: u64) {
    eventually("the answers are shared", async || replica.statistics().await.shared_writes >= writes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_replica_computes_nothing_and_sees_a_changed_minute_at_once() {
    let Some(redis) = Redis::start_if_installed().unwrap() else { return };
    let world = World::start().await;
    let mut stored = Vec::new();
    for (seed, key) in KEYS.into_iter().enumerate() {
        stored = world.put_sessions(key, seed as u64, SESSIONS).await;
    }
    let (first, second) =
        (world.replica(Some(&redis.url()), |_| {}).await, world.replica(Some(&redis.url()), |_| {}).await);
    let count = (KEYS.len() * TIMEFRAMES.len()) as u64;
    let computed = ask_all(&first).await;
    settled(&first, count).await;
    let shared = ask_all(&second).await;
    let statistics = second.statistics().await;
    assert_eq!((statistics.misses, statistics.shared_hits, statistics.local_hits), (0, count, 0), "{statistics:?}");
    for (computed, shared) in computed.into_iter().zip(shared) {
        assert!(!computed.cached && shared.cached);
        assert_eq!(content(computed), content(shared));
    }

    // Stored through one process, read through another, with nothing between them: no wait, no second try.
    let [.., last] = KEYS;
    let at = stored.len() / 2;
    for round in 1..=20 {
        let close = stored[at].low + (stored[at].high - stored[at].low) * f64::from(round) / 20.0;
        stored[at] = Candle { close, ..stored[at] };
        let revision = world.put(last, "1m", &stored[at..=at]).await;
        for replica in [&second, &first] {
            let answer = replica.ask("v2", last, "1m", TimeRange::ALL, &[]).await;
            assert_eq!(answer.revision, revision);
            assert_eq!(content(answer), content(replica.ask("v1", last, "1m", TimeRange::ALL, &[]).await));
        }
    }
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_store_holds_is_never_answered_for_another_that_shares_its_redis() {
    let Some(redis) = Redis::start_if_installed().unwrap() else { return };
    let mut answers = Vec::new();
    // One after the other, as when a store is made anew: revisions and instruments are the same, the candles are not.
    for seed in [1, 2] {
        let world = World::start().await;
        world.put_sessions(KEYS[0], seed, SESSIONS).await;
        let replica = world.replica(Some(&redis.url()), |_| {}).await;
        let answer = replica.ask("v2", KEYS[0], "5m", TimeRange::ALL, &[]).await;
        settled(&replica, 1).await;
        let reference = replica.ask("v1", KEYS[0], "5m", TimeRange::ALL, &[]).await;
        assert_eq!(answer.revision, reference.revision);
        assert_eq!(content(answer.clone()), content(reference));
        answers.push(answer);
        replica.stop().await;
    }
    assert_eq!(answers[0].revision, answers[1].revision);
    assert_ne!(content(answers[0].clone()), content(answers[1].clone()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_that_dies_under_the_service_costs_no_error_and_no_stale_value() {
    let Some(mut redis) = Redis::start_if_installed().unwrap() else { return };
    let world = World::start().await;
    let mut stored = Vec::new();
    for (seed, key) in KEYS.into_iter().enumerate() {
        stored = world.put_sessions(key, seed as u64, SESSIONS).await;
    }
    let replica = world.replica(Some(&redis.url()), |_| {}).await;
    for round in 0..6 {
        match round {
            1 | 4 => redis.stop().unwrap(),
            2 => redis.restart().unwrap(),
            _ => {}
        }
        let at = stored.len() - 1 - round;
        stored[at].volume += 1.0;
        world.put(KEYS[2], "1m", &stored[at..=at]).await;
        ask_all(&replica).await;
        for timeframe in TIMEFRAMES {
            let got = replica.ask("v2", KEYS[2], timeframe, TimeRange::ALL, &[]).await;
            assert_eq!(content(got), content(replica.ask("v1", KEYS[2], timeframe, TimeRange::ALL, &[]).await));
        }
    }
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_starts_asks_what_is_asked_most_before_anybody_does() {
    let Some(redis) = Redis::start_if_installed().unwrap() else { return };
    let world = World::start().await;
    for (seed, key) in KEYS.into_iter().enumerate() {
        world.put_sessions(key, seed as u64, SESSIONS).await;
    }
    let first = world.replica(Some(&redis.url()), |config| config.warm_queries = 2).await;
    for (key, times) in KEYS.into_iter().zip([1, 5, 3]) {
        for _ in 0..times {
            first.ask("v2", key, "5m", TimeRange::ALL, &[]).await;
        }
    }
    settled(&first, 3).await;
    first.stop().await;
    let second = world.replica(Some(&redis.url()), |config| config.warm_queries = 2).await;
    eventually("the two are there", async || second.statistics().await.local_entries == 2).await;
    assert_eq!(second.statistics().await.misses, 0, "they came over from Redis");
    for (key, is_warm) in KEYS.into_iter().zip([false, true, true]) {
        let before = second.statistics().await.local_hits;
        second.ask("v2", key, "5m", TimeRange::ALL, &[]).await;
        assert_eq!(second.statistics().await.local_hits - before, u64::from(is_warm), "{key}");
    }
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_shows_the_counters_and_drops_an_instrument_everywhere() {
    let Some(redis) = Redis::start_if_installed().unwrap() else { return };
    let world = World::start().await;
    for (seed, key) in KEYS.into_iter().enumerate() {
        world.put_sessions(key, seed as u64, SESSIONS).await;
    }
    let (first, second) =
        (world.replica(Some(&redis.url()), |_| {}).await, world.replica(Some(&redis.url()), |_| {}).await);
    let count = (KEYS.len() * TIMEFRAMES.len()) as u64;
    ask_all(&first).await;
    settled(&first, count).await;
    ask_all(&second).await;
    // An indicator service speaks to the same clients as a gateway.
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_candlemesh-under-test"));
        let output = command.args(["--gateway", first.address()]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let statistics = tokio::task::block_in_place(|| run(&["cache", "stats", "--json"]));
    assert_eq!((&statistics["misses"], &statistics["shared_writes"]), (&count.into(), &count.into()));
    let dropped = tokio::task::block_in_place(|| run(&["cache", "invalidate", KEYS[1], "--json"]));
    let four = || serde_json::Value::from(TIMEFRAMES.len());
    assert_eq!((&dropped["local_entries"], &dropped["shared_entries"]), (&four(), &four()), "{dropped}");
    let left = count - TIMEFRAMES.len() as u64;
    assert_eq!(first.statistics().await.local_entries, left);
    eventually("the other replica hears of it", async || second.statistics().await.local_entries == left).await;
    let before = second.statistics().await.misses;
    ask_all(&second).await;
    assert_eq!(second.statistics().await.misses - before, TIMEFRAMES.len() as u64);
    first.stop().await;
    second.stop().await;
}

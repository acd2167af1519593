//! A Redis that is stopped, slow, silent, cut off or full costs no error, no wrong value, and few requests a time-out.

use std::convert::Infallible;
use std::time::Duration;

use candlemesh_tests::redis::Redis;
use candlemesh_tests::slow_link::{SlowLink, Weather};
use futures::future::join_all;
use mesh::cache::{Cache, SharedSettings, Source};
use tokio::sync::Barrier;

use super::{ask, eventually, replica, value_of};

const SMALL: usize = 100;
/// Longer than a loaded machine makes a healthy Redis wait, so that only what a test does to it counts.
const TIMEOUT: Duration = Duration::from_secs(2);

fn settings() -> SharedSettings {
    SharedSettings { timeout: TIMEOUT, ..SharedSettings::default() }
}

/// Many requests for keys that nobody has asked for; all of them are answered.
async fn ask_anew(cache: &Cache, name: &str) {
    for index in 0..300 {
        assert_eq!(ask(cache, &format!("{name}/{index}"), SMALL).await, Source::Computed);
    }
}

async fn is_connected(cache: &Cache) -> bool {
    cache.statistics().await.shared_connected
}

/// Writes behind have arrived.
async fn settled(cache: &Cache, writes: u64) {
    eventually("the values are written", async || cache.statistics().await.shared_writes == writes).await;
}

#[tokio::test]
async fn a_stopped_redis_is_done_without_and_used_again_once_it_is_back() {
    let Some(mut redis) = Redis::start_if_installed().unwrap() else { return };
    let (first, second) = (replica(&redis.url(), settings()), replica(&redis.url(), settings()));
    first.connected().await;
    second.connected().await;
    assert_eq!(ask(&first, "k/1", SMALL).await, Source::Computed);
    settled(&first, 1).await;
    assert_eq!(ask(&second, "k/1", SMALL).await, Source::Shared);
    assert_eq!(ask(&second, "k/1", SMALL).await, Source::Local);

    redis.stop().unwrap();
    ask_anew(&first, "down").await;
    eventually("the loss is noticed", async || !is_connected(&first).await && !is_connected(&second).await).await;
    let lost = first.statistics().await;
    assert!(lost.shared_errors >= 1 && lost.dropped_writes == 0, "{lost:?}");

    redis.restart().unwrap();
    first.connected().await;
    second.connected().await;
    // Empty again: nothing of before may be taken for there.
    assert_eq!(ask(&first, "k/2", SMALL).await, Source::Computed);
    eventually("the value is shared again", async || first.statistics().await.shared_writes > lost.shared_writes).await;
    assert_eq!(ask(&second, "k/2", SMALL).await, Source::Shared);
}

#[tokio::test]
async fn a_silent_redis_costs_one_timeout_and_not_one_per_request() {
    let Some(redis) = Redis::start_if_installed().unwrap() else { return };
    let link = SlowLink::to(&format!("127.0.0.1:{}", redis.port())).await.unwrap();
    let brief = SharedSettings { timeout: Duration::from_millis(200), ..settings() };
    let cache = replica(&format!("redis://{}", link.address()), brief);
    cache.connected().await;
    link.set(Weather::Silent);
    let before = cache.statistics().await.shared_errors;
    ask_anew(&cache, "silent").await;
    let after = cache.statistics().await;
    // One look-up, and one attempt to connect again per pause; three hundred requests waited for nothing.
    assert!((1..20).contains(&(after.shared_errors - before)), "{after:?}");
    assert!(!after.shared_connected);
    link.set(Weather::Fair);
    cache.connected().await;
}

#[tokio::test]
async fn a_redis_that_answers_late_time_after_time_is_left_alone() {
    let Some(redis) = Redis::start_if_installed().unwrap() else { return };
    let link = SlowLink::to(&format!("127.0.0.1:{}", redis.port())).await.unwrap();
    let cache = replica(&format!("redis://{}", link.address()), settings());
    cache.connected().await;
    // No time-out, and yet too late: a quarter of it is slow.
    link.set(Weather::Slow(TIMEOUT / 3));
    for index in 0..9 {
        ask(&cache, &format!("late/{index}"), SMALL).await;
    }
    assert!(!is_connected(&cache).await);
    let before = cache.statistics().await;
    ask_anew(&cache, "slow").await;
    let after = cache.statistics().await;
    assert!(!after.shared_connected && after.shared_errors - before.shared_errors < 20, "{after:?}");
    link.set(Weather::Fair);
    cache.connected().await;
    assert_eq!(ask(&cache, "fair/1", SMALL).await, Source::Computed);
}

#[tokio::test]
async fn requests_under_way_while_redis_goes_and_comes_all_get_their_own_value() {
    let Some(redis) = Redis::start_if_installed().unwrap() else { return };
    let link = SlowLink::to(&format!("127.0.0.1:{}", redis.port())).await.unwrap();
    let url = format!("redis://{}", link.address());
    let (writer, reader) = (replica(&url, settings()), replica(&url, settings()));
    writer.connected().await;
    reader.connected().await;
    let weathers = [Weather::Cut, Weather::Fair, Weather::Slow(Duration::from_millis(20)), Weather::Fair];
    for (round, weather) in weathers.into_iter().cycle().take(12).enumerate() {
        let asked = join_all((0..40).map(|index| {
            let (key, size) = (format!("{}/{}", round / 2, index), 1 + 4000 * index);
            let (writer, reader) = (&writer, &reader);
            async move {
                ask(writer, &key, size).await;
                ask(reader, &key, size).await
            }
        }));
        let change = async {
            tokio::task::yield_now().await;
            link.set(weather);
        };
        tokio::join!(asked, change);
    }
}

#[tokio::test]
async fn a_full_redis_takes_no_values_and_still_gives_them() {
    let Some(redis) = Redis::start_if_installed().unwrap() else { return };
    let (first, second) = (replica(&redis.url(), settings()), replica(&redis.url(), settings()));
    first.connected().await;
    second.connected().await;
    ask(&first, "k/1", SMALL).await;
    settled(&first, 1).await;
    let (mut connection, _) = first.connection().unwrap();
    let _: () = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).query_async(&mut connection).await.unwrap();
    ask(&first, "k/2", SMALL).await;
    eventually("the write is given up", async || first.statistics().await.dropped_writes == 1).await;
    assert_eq!(ask(&second, "k/1", SMALL).await, Source::Shared);
    assert!(is_connected(&first).await && is_connected(&second).await);
}

#[tokio::test]
async fn writes_on_their_way_are_bounded_and_the_rest_is_dropped() {
    let Some(redis) = Redis::start_if_installed().unwrap() else { return };
    let link = SlowLink::to(&format!("127.0.0.1:{}", redis.port())).await.unwrap();
    let patient = SharedSettings { timeout: Duration::from_secs(300), ..settings() };
    let cache = replica(&format!("redis://{}", link.address()), patient);
    cache.connected().await;
    // All have looked Redis up before the first is computed, and then nothing is acknowledged any more.
    let all = Barrier::new(101);
    let asked = join_all((0..100).map(|index| {
        let (cache, all, key) = (&cache, &all, format!("large/{index}"));
        async move {
            let compute = async {
                all.wait().await;
                all.wait().await;
                Ok::<_, Infallible>(value_of(&key, 1 << 20))
            };
            cache.get_or_compute(&key, compute).await.unwrap()
        }
    }));
    let silence = async {
        all.wait().await;
        link.set(Weather::Silent);
        all.wait().await;
    };
    tokio::join!(asked, silence);
    // A hundred megabytes were to be written, of which 32 may be on their way.
    assert_eq!(cache.statistics().await.dropped_writes, 68);
}

#[tokio::test]
async fn a_damaged_entry_is_computed_anew_and_replaced() {
    let Some(redis) = Redis::start_if_installed().unwrap() else { return };
    let (first, second) = (replica(&redis.url(), settings()), replica(&redis.url(), settings()));
    first.connected().await;
    second.connected().await;
    for (index, size) in [SMALL, 200_000].into_iter().enumerate() {
        let key = format!("k/{size}");
        ask(&first, &key, size).await;
        settled(&first, index as u64 + 1).await;
        let (mut connection, _) = first.connection().unwrap();
        let (at, byte) = (size / 2, "\u{1}");
        let _: u64 = redis::cmd("SETRANGE").arg(&key).arg(at).arg(byte).query_async(&mut connection).await.unwrap();
        assert_eq!(ask(&second, &key, size).await, Source::Computed);
        assert_eq!(second.statistics().await.shared_errors, index as u64 + 1);
        settled(&second, index as u64 + 1).await;
        let third = replica(&redis.url(), settings());
        third.connected().await;
        assert_eq!(ask(&third, &key, size).await, Source::Shared);
    }
}

//! Snapshots, refusals, limits, and who shares what.

use super::*;

const KEY: &str = "CRYPTO|A";

fn key() -> InstrumentKey {
    KEY.parse().unwrap()
}

fn put(world: &World, minute: i64, closes: bool) {
    world.room.put(&key(), &[(Timeframe::M1, flat(START + minute * MINUTE, minute as f64), closes)]);
}

fn events(updates: &[IndicatorUpdate]) -> Vec<(IndicatorEvent, i64, bool)> {
    let of = |update: &IndicatorUpdate| (update.event(), (at(update) - START) / MINUTE, update.closed);
    updates.iter().map(of).collect()
}

fn sma(update: &IndicatorUpdate) -> Option<f64> {
    bits(update)[0].map(f64::from_bits)
}

#[tokio::test]
async fn a_snapshot_comes_first_and_a_forming_candle_never_enters_the_state() {
    use IndicatorEvent::{Close, Correction, Snapshot, Update};
    let world = world(&[KEY], Config::default());
    (0..3).for_each(|minute| put(&world, minute, true));
    put(&world, 3, false);
    let mut forming = world.watch(watching(&[KEY, "US|UNKNOWN"], true, "")).await.unwrap();
    let mut closed = world.watch(watching(&[KEY], false, "")).await.unwrap();
    let told = forming.listen(&world).await;
    assert_eq!(events(&told), [(Snapshot, 2, true), (Snapshot, 3, false)]);
    assert_eq!(told.iter().map(sma).collect::<Vec<_>>(), [Some(1.0), Some(2.0)]);
    assert_eq!(told[0].revision, 4);
    assert_eq!(events(&closed.listen(&world).await), [(Snapshot, 2, true)]);
    // The forming candle changes twice, then closes: the average is of the last of its values.
    world.room.put(&key(), &[(Timeframe::M1, flat(START + 3 * MINUTE, 30.0), false)]);
    assert_eq!(sma(&forming.listen(&world).await[0]), Some(11.0));
    world.room.put(&key(), &[(Timeframe::M1, flat(START + 3 * MINUTE, 6.0), false)]);
    let told = forming.listen(&world).await;
    assert_eq!((events(&told), sma(&told[0])), (vec![(Update, 3, false)], Some(3.0)));
    world.room.close(&key(), Timeframe::M1, START + 3 * MINUTE);
    let told = forming.listen(&world).await;
    assert_eq!((events(&told), sma(&told[0])), (vec![(Close, 3, true)], Some(3.0)));
    put(&world, 4, false);
    forming.listen(&world).await;
    // A late minute: its candle, and what came after it.
    world.room.put(&key(), &[(Timeframe::M1, flat(START + 2 * MINUTE, 8.0), true)]);
    let told = forming.listen(&world).await;
    assert_eq!(events(&told), [(Correction, 2, true), (Correction, 3, true), (Update, 4, false)]);
    let from: Vec<_> = told.iter().map(|update| update.changed_from.as_ref().and_then(convert::millis)).collect();
    assert_eq!(from, [None, Some(START + 2 * MINUTE), Some(START + 2 * MINUTE)]);
    assert_eq!(events(&closed.listen(&world).await), [(Close, 3, true), (Correction, 2, true), (Correction, 3, true)]);
}

#[tokio::test]
async fn a_change_far_back_is_told_with_the_newest_hundred() {
    let world = world(&[KEY], Config::default());
    (0..300).for_each(|minute| put(&world, minute, true));
    let mut heard = world.watch(watching(&[KEY], false, "")).await.unwrap();
    heard.listen(&world).await;
    world.room.put(&key(), &[(Timeframe::M1, flat(START + 5 * MINUTE, 1000.0), true)]);
    let told = heard.listen(&world).await;
    let minutes: Vec<i64> = told.iter().map(|update| (at(update) - START) / MINUTE).collect();
    assert_eq!(minutes[0], 5);
    assert!(told.iter().all(|update| update.event() == IndicatorEvent::Correction));
    // Of those kept only what changed: the recurrences and the running sums did, to the bit or not.
    assert!(minutes[1..].iter().all(|minute| *minute >= 200) && minutes.contains(&200), "{minutes:?}");
    check(&world, &heard, KEY, "far").await;
    check_newest(&world, &heard, KEY, "far").await;
}

#[tokio::test]
async fn equal_series_are_computed_once_and_let_go_when_nobody_watches() {
    let names: Vec<String> = (0..20).map(|index| format!("CRYPTO|N{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let world = world(&names, Config { linger: Duration::ZERO, ..Config::default() });
    for name in &names {
        world.room.put(&name.parse().unwrap(), &[(Timeframe::M1, flat(START, 1.0), true)]);
    }
    let mut all = Vec::new();
    for _ in 0..10 {
        let mut heard = world.watch(watching(&names, false, "")).await.unwrap();
        assert_eq!(heard.listen(&world).await.len(), 20);
        all.push(heard);
    }
    assert_eq!((world.room.reads(), world.live.shelf.size().0), (20, 20));
    let bytes = world.live.shelf.size().1;
    assert!(bytes > 20 * 500 && bytes < 20 * 20_000, "{bytes}");
    for name in &names {
        world.room.put(&name.parse().unwrap(), &[(Timeframe::M1, flat(START + MINUTE, 2.0), true)]);
    }
    for heard in &mut all {
        let told = heard.listen(&world).await;
        assert!(told.len() == 20 && told.iter().all(|update| update.event() == IndicatorEvent::Close));
    }
    assert_eq!(world.room.reads(), 20, "what happens is computed from what is kept");
    drop(all);
    is_empty(&world).await;
}

/// Waits until no subscriber's task is left.
async fn is_empty(world: &World) {
    let empty = async {
        while world.live.shelf.size() != (0, 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, empty).await.expect("series are let go");
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_is_cut_off_and_resumes_from_what_it_read() {
    let config = Config { send_timeout: Duration::from_millis(20), linger: Duration::ZERO, ..Config::default() };
    let world = world(&[KEY], config);
    put(&world, 0, true);
    let mut slow = world.watch(watching(&[KEY], false, "")).await.unwrap();
    let first = slow.stream.next().await.unwrap().unwrap();
    assert_eq!(first.columns[..2], ["sma:3", "ema:4"]);
    (1..20).for_each(|minute| put(&world, minute, true));
    is_empty(&world).await;
    let mut cursor = first.cursor;
    let status = loop {
        match slow.stream.next().await.unwrap() {
            Ok(message) => cursor = message.cursor,
            Err(status) => break status,
        }
    };
    let fault = RemoteError::from_status(&status);
    assert_eq!((fault.code, fault.reason.as_str()), (Code::ResourceExhausted, "SLOW_SUBSCRIBER"));
    assert!(fault.message.contains(&cursor), "{} names {cursor}", fault.message);
    assert!(slow.stream.next().await.is_none());
    let mut again = world.watch(watching(&[KEY], false, &cursor)).await.unwrap();
    let told = again.listen(&world).await;
    let last = told.iter().map(|update| (at(update) - START) / MINUTE).max();
    assert!(last == Some(19) && told.iter().all(|update| update.event() == IndicatorEvent::Close), "{told:?}");
}

#[tokio::test]
async fn refusals_name_the_field_and_limits_are_kept() {
    let config = Config { max_subscribers: 1, max_series: 2, ..Config::default() };
    let world = world(&[KEY], config);
    let refused = |request: WatchIndicatorsRequest| {
        let error = Subscription::try_from(request).unwrap_err();
        (error.code(), error.field().unwrap_or_default(), error.to_string())
    };
    let good = watching(&[KEY], false, "");
    let with = |change: fn(&mut WatchIndicatorsRequest)| {
        let mut request = good.clone();
        change(&mut request);
        refused(request)
    };
    for (got, field, value) in [
        (with(|request| request.instrument_keys = Vec::new()), "instrument_keys", ""),
        (with(|request| request.instrument_keys = vec!["x".into()]), "instrument_keys[0]", "x"),
        (with(|request| request.timeframes = Vec::new()), "timeframes", "0"),
        (with(|request| request.timeframes = vec!["1m".into(), "7m".into()]), "timeframes[1]", "7m"),
        (with(|request| request.indicators = vec!["sma:9".into(), "sma:0".into()]), "indicators[1]", "0"),
        (with(|request| request.indicators = vec!["nope".into()]), "indicators[0]", "nope"),
        (
            with(|request| request.instrument_keys = (0..10_001).map(|index| format!("US|S{index}")).collect()),
            "instrument_keys",
            "10001",
        ),
        (
            with(|request| {
                request.instrument_keys = (0..7000).map(|index| format!("US|S{index}")).collect();
                request.timeframes = vec!["1m".into(), "5m".into(), "1h".into()];
            }),
            "instrument_keys",
            "7000",
        ),
    ] {
        assert_eq!((got.0, got.1.as_str()), (Code::InvalidArgument, field), "{}", got.2);
        assert!(got.2.contains(value), "{}", got.2);
    }
    let many = world.watch(watching(&[KEY, "US|B", "US|C"], false, "")).await.err().unwrap();
    assert_eq!((many.code(), many.reason()), (Code::ResourceExhausted, "TOO_MANY_SERIES"));
    let foreign = world.watch(watching(&[KEY], false, "yesterday")).await.err().unwrap();
    assert_eq!((foreign.code(), foreign.remote().unwrap().fields[0].0.as_str()), (Code::InvalidArgument, "cursor"));
    let mut heard = world.watch(good.clone()).await.unwrap();
    let full = world.watch(good.clone()).await.err().unwrap();
    assert_eq!((full.code(), full.reason()), (Code::ResourceExhausted, "TOO_MANY_SUBSCRIBERS"));
    put(&world, 0, true);
    heard.listen(&world).await;
    let cursor = heard.cursor.clone();
    drop(heard);
    put(&world, 1, true);
    world.room.prune();
    let expired = world.watch(watching(&[KEY], false, &cursor)).await.err().unwrap();
    assert_eq!(
        (expired.code(), expired.remote().unwrap().reason.as_str()),
        (Code::FailedPrecondition, "CURSOR_EXPIRED")
    );
}

#[tokio::test]
async fn what_cannot_be_held_or_computed_is_said() {
    let config = Config { max_state_bytes: 100, ..Config::default() };
    let small = world(&[KEY], config);
    put(&small, 0, true);
    let mut heard = small.watch(watching(&[KEY], false, "")).await.unwrap();
    let status = loop {
        match heard.stream.next().await.unwrap() {
            Ok(message) => assert!(message.updates.is_empty()),
            Err(status) => break RemoteError::from_status(&status),
        }
    };
    assert_eq!((status.code, status.reason.as_str()), (Code::ResourceExhausted, "STATE_FULL"));

    let world = world(&[KEY, "CRYPTO|B"], Config::default());
    (0..50).for_each(|minute| put(&world, minute, true));
    let live = Live {
        ports: Ports {
            reader: Reader { max_values: 100, ..world.live.ports.reader.clone() },
            ..world.live.ports.clone()
        },
        ..world.live
    };
    let subscription = Subscription::try_from(watching(&[KEY, "CRYPTO|B"], false, "")).unwrap();
    let mut stream = live.watch(subscription).await.unwrap();
    let failure = loop {
        let message = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
        if let Some(failure) = message.failures.into_iter().next() {
            break failure;
        }
    };
    assert_eq!((failure.instrument_key.as_str(), failure.error.unwrap().reason.as_str()), (KEY, "LIMIT_EXCEEDED"));
    world.room.put(&"CRYPTO|B".parse().unwrap(), &[(Timeframe::M1, flat(START, 2.0), true)]);
    let told = loop {
        let message = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
        if !message.updates.is_empty() {
            break message.updates;
        }
    };
    assert_eq!((told.len(), told[0].instrument_key.as_str()), (1, "CRYPTO|B"), "the others go on");
}

/// What `max_state_bytes` is documented to hold.
#[tokio::test]
async fn a_series_of_the_default_set_takes_a_few_kilobytes() {
    let world = world(&[KEY], Config::default());
    (0..200).for_each(|minute| put(&world, minute, true));
    let mut heard =
        world.watch(WatchIndicatorsRequest { indicators: Vec::new(), ..watching(&[KEY], false, "") }).await.unwrap();
    heard.listen(&world).await;
    let (series, bytes) = world.live.shelf.size();
    println!("{bytes} bytes a series of the default set");
    assert!(series == 1 && bytes > 1_000 && bytes < 6_000, "{bytes}");
}

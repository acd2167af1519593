//! Where a resumption and the live messages meet, and where a resumption is cut: every close is told once, and nothing is missing.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use mesh::source::ChangeBatch;
use tokio::sync::watch;

use super::super::cursor::Cursor;
use super::*;

pub(super) const GRACE: Millis = 2000;
pub(super) const WATCHED: [&str; 2] = ["1m", "5m"];

/// A ledger whose changes reach the hub when they are let through; whoever else reads the log has them at once.
#[derive(Debug)]
struct Late {
    ledger: Arc<MemoryLedger>,
    is_followed: AtomicBool,
    arrives: watch::Sender<bool>,
}

#[tonic::async_trait]
impl Changes for Late {
    async fn watch(
        &self,
        after_sequence: Option<u64>,
    ) -> Result<BoxStream<'static, Result<ChangeBatch, RemoteError>>, RemoteError> {
        let log = self.ledger.watch(after_sequence).await?;
        if self.is_followed.swap(true, Ordering::SeqCst) {
            return Ok(log);
        }
        let arrives = self.arrives.subscribe();
        let held = move |batch| {
            let mut arrives = arrives.clone();
            async move {
                arrives.wait_for(|arrives| *arrives).await.expect("the sender outlives the hub");
                batch
            }
        };
        Ok(log.then(held).boxed())
    }
}

fn late(at: Millis) -> (World, Arc<Late>) {
    let mut made = None;
    let world = world_of(at, &[("CRYPTO|E", "24x7"), ("CRYPTO|F", "24x7")], Config::default(), |ledger| {
        let arrives = watch::Sender::new(true);
        let late = Arc::new(Late { ledger: Arc::clone(ledger), is_followed: AtomicBool::default(), arrives });
        made = Some(Arc::clone(&late));
        (late as _, Arc::clone(ledger) as _)
    });
    (world, made.unwrap())
}

pub(super) type Id = (String, String, Millis);

/// Candles that a subscriber who begins now takes to be closed.
async fn closed(world: &World, keys: &[InstrumentKey]) -> BTreeSet<Id> {
    let now = world.clock.now();
    let mut closed = BTreeSet::new();
    for key in keys {
        for timeframe in WATCHED {
            for candle in world.candles(key, timeframe).await {
                let at = convert::millis(candle.open_time.as_ref().unwrap()).unwrap();
                let end = at + timeframe.parse::<Timeframe>().unwrap().width_ms().unwrap();
                if (candle.complete && end <= now) || end + GRACE <= now {
                    closed.insert((key.to_string(), timeframe.to_owned(), at));
                }
            }
        }
    }
    closed
}

/// Everything that is stored was told as it is, each close once and before corrections.
pub(super) async fn check_once(
    world: &World,
    heard: &Heard,
    keys: &[InstrumentKey],
    at_start: &BTreeSet<Id>,
    what: &str,
) {
    let closed = closed(world, keys).await;
    for key in keys {
        for timeframe in WATCHED {
            for want in world.candles(key, timeframe).await {
                let at = convert::millis(want.open_time.as_ref().unwrap()).unwrap();
                let id = (key.to_string(), timeframe.to_owned(), at);
                let Some(events) = heard.events.get(&id) else {
                    assert!(at_start.contains(&id), "{what}: {id:?} was never told");
                    continue;
                };
                let said = |wanted| events.iter().filter(|(event, _)| *event == wanted).count();
                let closes = usize::from(closed.contains(&id) && !at_start.contains(&id));
                assert_eq!(said(CandleEvent::Close), closes, "{what}: {id:?}: {events:?}");
                let order: Vec<CandleEvent> = events.iter().map(|(event, _)| *event).collect();
                assert!(order.is_sorted(), "{what}: {id:?}: {order:?}");
                assert!(said(CandleEvent::Correction) == 0 || closes == 1 || at_start.contains(&id), "{what}: {id:?}");
                let (_, got) = events.last().unwrap();
                let want = BucketCandle { closed: got.closed, complete: got.complete, ..want };
                assert!(same(got, &want), "{what}: {id:?}: told {got:?}, answered {want:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_stored_and_on_its_way_when_somebody_joins_is_told_once_when_it_arrives() {
    let on_their_way: [&[Millis]; 6] = [&[0], &[1], &[0, 1], &[-2], &[-10], &[-1, 0, 1]];
    let keys = ["CRYPTO|E".parse().unwrap()];
    for minutes in on_their_way {
        for case in 0..8 {
            let (is_resumed, waits_for_grace, is_known) = (case & 1 > 0, case & 2 > 0, case & 4 > 0);
            let what = format!("minutes {minutes:?}, {is_resumed}, {waits_for_grace}, {is_known}");
            let (world, late) = late(NOON + 500);
            world.put(&keys[0], vec![minute(NOON - 2 * MINUTE, 1.0)]);
            // What the hub does not know yet it reads when the second comes.
            let first = if is_known { "CRYPTO|E" } else { "CRYPTO|F" };
            let mut heard = world.watch(watching(&[first], &WATCHED, "")).await.unwrap();
            let mut at_start = closed(&world, &keys).await;
            let here = world.live.locate().await;
            heard.listen(here, NOON + 500).await;
            let now = NOON + MINUTE + 500;
            world.clock.set(now);
            let cursor = if is_resumed { heard.cursor } else { String::new() };
            if !is_resumed {
                at_start = closed(&world, &keys).await;
            }
            // Stored, and not arrived.
            late.arrives.send_replace(false);
            let rows = minutes.iter().map(|at| minute(NOON + at * MINUTE, 20.0 + *at as f64));
            world.put(&keys[0], rows.collect());
            let mut heard = world.watch(watching(&["CRYPTO|E"], &WATCHED, &cursor)).await.unwrap();
            let here = world.live.locate().await;
            heard.listen(here, now).await;
            let now = now + if waits_for_grace { GRACE } else { 0 };
            world.clock.set(now);
            let here = world.live.locate().await;
            heard.listen(here, now).await;
            late.arrives.send_replace(true);
            let here = world.live.locate().await;
            heard.listen(here, now).await;
            check_once(&world, &heard, &keys, &at_start, &what).await;
            world.clock.set(NOON + 20 * MINUTE);
            let here = world.live.locate().await;
            heard.listen(here, NOON + 20 * MINUTE).await;
            check_once(&world, &heard, &keys, &at_start, &what).await;
        }
    }
}

#[tokio::test]
async fn a_resumption_that_is_cut_off_again_and_again_goes_on_where_it_was() {
    let world = world(NOON, &[("CRYPTO|E", "24x7"), ("CRYPTO|F", "24x7")], Config::default());
    let keys: [InstrumentKey; 2] = ["CRYPTO|E", "CRYPTO|F"].map(|key| key.parse().unwrap());
    let mut heard = world.watch(watching(&[], &WATCHED, "")).await.unwrap();
    let here = world.live.locate().await;
    heard.listen(here, NOON).await;
    const MISSED: Millis = 24_000;
    for key in &keys {
        world.put(key, (1..=MISSED).map(|back| minute(NOON - back * MINUTE, 1.0)).collect());
    }
    let mut cuts = 0;
    loop {
        let now = NOON + (cuts + 1) * MINUTE;
        world.clock.set(now);
        // What was told already is changed, and what was not.
        for key in &keys {
            world.put(key, [cuts - MISSED, cuts - 1, cuts].map(|at| minute(NOON + at * MINUTE, 2.0)).to_vec());
        }
        world.live.locate().await;
        heard.goes_on_with(world.watch(watching(&[], &WATCHED, &heard.cursor)).await.unwrap());
        heard.take(now).await;
        if heard.position().is_some() {
            break;
        }
        cuts += 1;
    }
    assert!(cuts >= 4, "{cuts} messages");
    let now = world.clock.now();
    let here = world.live.locate().await;
    heard.listen(here, now).await;
    check_once(&world, &heard, &keys, &BTreeSet::new(), "cut off").await;
    let corrections = heard.events.values().flatten().filter(|(event, _)| *event == CandleEvent::Correction).count();
    assert!(corrections > 4 && corrections < 100, "{corrections}");
}

#[tokio::test]
async fn who_leaves_in_the_middle_of_a_step_resumes_there() {
    let world = world(NOON, &[("CRYPTO|E", "24x7"), ("CRYPTO|F", "24x7")], Config::default());
    let keys: [InstrumentKey; 2] = ["CRYPTO|E", "CRYPTO|F"].map(|key| key.parse().unwrap());
    let mut heard = world.watch(watching(&[], &WATCHED, "")).await.unwrap();
    let here = world.live.locate().await;
    heard.listen(here, NOON).await;
    // Many dates by one put.
    let rows: Vec<Candle> = (1..=24_000).map(|back| minute(NOON - back * MINUTE, 1.0)).collect();
    world.ledger.put(&keys.clone().map(|key| (key, Timeframe::M1, rows.clone())));
    let here = world.live.locate().await;
    assert!(heard.take(NOON).await.len() > 4000 && heard.position().is_none(), "{}", heard.cursor);
    heard.goes_on_with(world.watch(watching(&[], &WATCHED, &heard.cursor)).await.unwrap());
    heard.listen(here, NOON).await;
    check_once(&world, &heard, &keys, &BTreeSet::new(), "left").await;
    assert_eq!(heard.events.values().map(Vec::len).sum::<usize>(), 2 * (24_000 + 4800));
}

#[tokio::test]
async fn for_another_filter_a_resumption_that_was_cut_off_begins_again() {
    let world = world(NOON, &[("CRYPTO|E", "24x7")], Config::default());
    let key: InstrumentKey = "CRYPTO|E".parse().unwrap();
    let mut heard = world.watch(watching(&[], &WATCHED, "")).await.unwrap();
    let here = world.live.locate().await;
    heard.listen(here, NOON).await;
    world.put(&key, (1..=12_000).map(|back| minute(NOON - back * MINUTE, 1.0)).collect());
    let here = world.live.locate().await;
    heard.goes_on_with(world.watch(watching(&[], &WATCHED, &heard.cursor)).await.unwrap());
    let told = heard.take(NOON).await.len();
    assert!(heard.cursor.parse::<Cursor>().unwrap().progress.is_some());
    let mut same = world.watch(watching(&[], &WATCHED, &heard.cursor)).await.unwrap();
    assert_eq!(same.listen(here, NOON).await.len() + told, 12_000 + 2400);
    let mut other = world.watch(watching(&["CRYPTO|E"], &["1m"], &heard.cursor)).await.unwrap();
    assert_eq!(other.listen(here, NOON).await.len(), 12_000);
}

#[tokio::test]
async fn a_week_of_which_one_put_changes_several_dates_closes_once() {
    let world = world(NOON, &[("CRYPTO|E", "24x7")], Config::default());
    let key: InstrumentKey = "CRYPTO|E".parse().unwrap();
    const DAY: Millis = 1440;
    // Newer weeks, so that nothing of an old one is held.
    world.put(&key, (0..5).map(|week| minute(NOON - (1 + 7 * week) * DAY * MINUTE, 1.0)).collect());
    let mut heard = world.watch(watching(&["CRYPTO|E"], &["1d", "1w"], "")).await.unwrap();
    let here = world.live.locate().await;
    heard.listen(here, NOON).await;
    world.put(&key, (60..90).map(|day| minute(NOON - day * DAY * MINUTE, day as f64)).collect());
    let here = world.live.locate().await;
    heard.listen(here, NOON).await;
    let mut told = 0;
    for timeframe in ["1d", "1w"] {
        for want in world.candles(&key, timeframe).await {
            let at = convert::millis(want.open_time.as_ref().unwrap()).unwrap();
            if at < NOON - 50 * DAY * MINUTE {
                let events = &heard.events[&(key.to_string(), timeframe.to_owned(), at)];
                assert_eq!(events.len(), 1, "{timeframe} {at}: {events:?}");
                assert!(events[0].0 == CandleEvent::Close && same(&events[0].1, &want), "{events:?}");
                told += 1;
            }
        }
    }
    assert!(told >= 34, "{told}");
}

//! Who comes back is told what changed with what it missed, whenever that was stored.

use super::*;

const MINUTES: Millis = 20;

/// Twenty closed minutes of two instruments, and the cursor of one who heard of them.
async fn told(names: &[&str; 2]) -> (World, [InstrumentKey; 2], String) {
    let world = world(names, Config::default());
    let keys = names.map(|name| name.parse::<InstrumentKey>().unwrap());
    for key in &keys {
        for minute in 0..MINUTES {
            world.room.put(key, &[(Timeframe::M1, flat(START + minute * MINUTE, 100.0 + minute as f64), true)]);
        }
    }
    let mut heard = world.watch(watching(names, false, "")).await.unwrap();
    heard.listen(&world).await;
    drop(heard.stream);
    // Its task leaves, so that what comes next is not known here.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    (world, keys, heard.cursor)
}

/// A correction so many candles back.
fn late(back: Millis) -> (Timeframe, Candle, bool) {
    (Timeframe::M1, flat(START + (MINUTES - 1 - back) * MINUTE, 50.0), false)
}

/// Minutes before the last of which it was told that they changed.
fn corrected(heard: &Heard, key: &InstrumentKey) -> Vec<Millis> {
    let of_key = heard.events.iter().filter(|((of, _), _)| *of == key.to_string());
    let corrections = of_key.filter(|(_, updates)| {
        updates.iter().filter(|update| update.event() == IndicatorEvent::Correction).count() == 1
    });
    corrections.map(|((_, at), _)| MINUTES - 1 - (at - START) / MINUTE).collect()
}

#[tokio::test]
async fn what_changed_while_a_series_was_made_ready_is_told_to_who_comes_back() {
    let names = ["CRYPTO|A", "CRYPTO|B"];
    let (world, [key, other], cursor) = told(&names).await;
    world.room.put_when_asked(&key, &[late(3)]);
    let mut heard = world.watch(watching(&names, false, &cursor)).await.unwrap();
    heard.listen(&world).await;
    assert_eq!((corrected(&heard, &key), corrected(&heard, &other)), (vec![3, 2, 1, 0], vec![]));
}

#[tokio::test]
async fn a_resumption_that_goes_on_where_another_was_cut_off_loses_no_correction() {
    let names = ["CRYPTO|A", "CRYPTO|B"];
    let (world, [key, other], cursor) = told(&names).await;
    world.room.put(&other, &[late(1)]);
    world.room.put(&key, &[late(3)]);
    // Told as one, and in two parts; by one who knows the series, and one who does not.
    for place in [over(world.room.clone(), Config::default()), world] {
        for _ in 0..2 {
            let mut heard = place.watch(watching(&names, false, &cursor)).await.unwrap();
            heard.listen(&place).await;
            assert_eq!((corrected(&heard, &key), corrected(&heard, &other)), (vec![3, 2, 1, 0], vec![1, 0]));
        }
    }
}

#[tokio::test]
async fn a_close_that_was_missed_is_told_of_what_was_stored_by_then() {
    let names = ["CRYPTO|A", "CRYPTO|B"];
    let (world, [key, other], cursor) = told(&names).await;
    let forming = flat(START + MINUTES * MINUTE, 200.0);
    // The cursor is after a change that this replica does not know, and before a close that says its revision.
    let elsewhere = over(world.room.clone(), Config::default());
    world.room.put(&key, &[(Timeframe::M1, forming, false), late(2)]);
    let mut heard = elsewhere.watch(watching(&names, true, &cursor)).await.unwrap();
    heard.listen(&elsewhere).await;
    world.room.close(&key, Timeframe::M1, forming.open_time);
    let mut back = world.watch(watching(&names, true, &heard.cursor)).await.unwrap();
    back.listen(&world).await;
    assert_eq!(back.events.len(), 1);
    assert_eq!(check(&world, &back, &key.to_string(), "back").await, 1);
    assert!(corrected(&back, &other).is_empty());
}

#[tokio::test]
async fn messages_that_may_all_be_cut_move_the_reader_on_one_behind() {
    let names: Vec<String> = (0..20).map(|index| format!("CRYPTO|K{index:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = world(&names, Config::default());
    world.room.cut_messages_at(2);
    world.live.ports.cut_news = 2;
    let mut heard = world.watch(watching(&names, false, "")).await.unwrap();
    heard.listen(&world).await;
    let rows: Vec<_> = names.iter().map(|key| (key.parse().unwrap(), Timeframe::M1, flat(START, 1.0), true)).collect();
    world.room.put_all(&rows);
    let goal = world.room.cursor();
    let mut cursors = BTreeSet::new();
    let all = async {
        while !heard.cursor.starts_with(&goal) {
            heard.cursor = heard.stream.next().await.unwrap().unwrap().cursor;
            cursors.insert(heard.cursor.clone());
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("told in time");
    assert!(cursors.len() > 8, "{cursors:?}");
}

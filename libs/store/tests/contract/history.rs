//! Facts about revisions, the change log, and what is pruned of them.

use futures::{StreamExt, TryStreamExt};
use market::{Calendar, Frame, TimeRange, Timeframe};
use store::{Block, Error, Put, Stores};

use crate::candles::{DATE, DAY, MINUTE, Model, OPEN, frame, key, minutes, model, nse, put, stored};

pub(crate) async fn a_revision_repeats_its_answer_until_pruned(stores: &Stores) {
    let key = key("NSE_EQ|A");
    // Appends, an alteration, appends again, a row before the first, another day.
    let puts = [
        minutes(10, 11, 1.0),
        minutes(11, 12, 1.0),
        minutes(11, 12, 2.0),
        minutes(12, 13, 1.0),
        minutes(13, 15, 1.0),
        minutes(0, 3, 1.0),
        frame([(OPEN + DAY, 1.0, 1.0, None)]),
        minutes(15, 16, 1.0),
    ];
    let mut models = vec![Model::new()];
    for (index, rows) in puts.iter().enumerate() {
        let now = (index as i64 + 1) * 100;
        let outcome = put(stores, &key, rows, now).await;
        assert_eq!(outcome.revision, index as u64 + 1);
        let mut next = models[index].clone();
        next.extend(model(rows));
        models.push(next);
    }
    for (revision, want) in models.iter().enumerate() {
        let got = stored(stores, &key, Timeframe::M1, Some(revision as u64)).await;
        assert_eq!(got, *want, "as of {revision}");
    }
    for (at, revision) in [(99, None), (100, Some(1)), (550, Some(5)), (9_999, Some(8))] {
        assert_eq!(stores.candles.revision_at(&key, at).await.unwrap(), revision);
    }

    // What was superseded before 450 goes: revision 4 superseded that of 3 at 400.
    let pruned = stores.candles.prune(1_450, 1_000).await.unwrap();
    assert_eq!((pruned.blocks, pruned.changes), (3, 4));
    for (revision, want) in models.iter().enumerate().skip(4) {
        assert_eq!(stored(stores, &key, Timeframe::M1, Some(revision as u64)).await, *want, "as of {revision}");
    }
    for revision in 0..4 {
        let read: Result<Vec<Block>, Error> =
            stores.candles.read(&key, Timeframe::M1, TimeRange::ALL, Some(revision)).try_collect().await;
        assert!(matches!(read, Err(Error::Expired { oldest: 4, .. })), "as of {revision}: {read:?}");
    }
    assert!(matches!(stores.candles.revision_at(&key, 150).await, Err(Error::Expired { .. })));
    assert!(matches!(stores.candles.changes(3, 10).await, Err(Error::Expired { oldest: 4, .. })));
    assert_eq!(stores.candles.changes(4, 10).await.unwrap().len(), 4);
    assert_eq!(stores.candles.prune(1_450, 1_000).await.unwrap(), store::Pruned::default());
    assert_eq!(stored(stores, &key, Timeframe::M1, None).await, models[8]);
}

pub(crate) async fn the_first_change_between_revisions_is_known_until_pruned(stores: &Stores) {
    let (key, other) = (key("NSE_EQ|A"), crate::candles::key("NSE_EQ|B"));
    // Revision 1: three minutes from the fifth on; 2: the next; 3: another day; 4: a minute of the first day again.
    put(stores, &key, &minutes(5, 8, 1.0), 100).await;
    put(stores, &other, &minutes(0, 1, 1.0), 150).await;
    put(stores, &key, &minutes(8, 9, 1.0), 200).await;
    put(stores, &key, &frame([(OPEN + DAY, 1.0, 1.0, None), (OPEN + 2 * DAY, 1.0, 1.0, None)]), 300).await;
    put(stores, &key, &minutes(6, 7, 2.0), 400).await;
    let at = |minute: i64| Some(OPEN + minute * MINUTE);
    let first = async |after, revision| stores.candles.first_change(&key, after, revision).await;
    for (after, revision, want) in [
        (0, 1, at(5)),
        (1, 2, at(8)),
        (2, 3, Some(OPEN + DAY)),
        (1, 3, at(8)),
        (3, 4, at(6)),
        (2, 4, at(6)),
        (0, 4, at(5)),
        // Nobody has made these yet.
        (4, 5, None),
        (0, 5, None),
        (0, 1_000_000, None),
    ] {
        assert_eq!(first(after, revision).await.unwrap(), want, "{after}..{revision}");
    }
    for (after, revision) in [(1, 1), (2, 1)] {
        assert!(matches!(first(after, revision).await, Err(Error::Invalid { field: "revision", .. })));
    }
    let nobody = crate::candles::key("NSE_EQ|C");
    assert_eq!(stores.candles.first_change(&nobody, 0, 1).await.unwrap(), None);

    stores.candles.prune(1_150, 1_000).await.unwrap();
    assert_eq!((first(0, 2).await.unwrap(), first(1, 2).await.unwrap()), (None, at(8)));
}

pub(crate) async fn a_stream_keeps_its_revision_while_others_write(stores: &Stores) {
    let key = key("NSE_EQ|A");
    let days = 90;
    let rows = |price: f64| frame((0..days).map(|day| (OPEN + day * DAY, price, 1.0, None)));
    put(stores, &key, &rows(1.0), 1).await;
    let mut stream = stores.candles.read(&key, Timeframe::M1, TimeRange::ALL, None);
    let mut read = model(&stream.next().await.unwrap().unwrap().frame);
    put(stores, &key, &rows(2.0), 2).await;
    put(stores, &key, &frame((0..days).map(|day| (OPEN + day * DAY + MINUTE, 3.0, 1.0, None))), 3).await;
    while let Some(block) = stream.next().await {
        let block = block.unwrap();
        assert_eq!(block.revision, 1);
        read.extend(model(&block.frame));
    }
    assert_eq!(read, model(&rows(1.0)));
    assert_eq!(stored(stores, &key, Timeframe::M1, None).await.len() as i64, 2 * days);

    // A prune in the middle ends the stream with an error, not with holes.
    let mut stream = stores.candles.read(&key, Timeframe::M1, TimeRange::ALL, Some(2));
    stream.next().await.unwrap().unwrap();
    stores.candles.prune(10, 0).await.unwrap();
    let rest: Vec<Result<Block, Error>> = stream.collect().await;
    let count = rest.iter().filter(|block| block.is_ok()).count() as i64;
    assert!(count == days - 1 || matches!(rest.last(), Some(Err(Error::Expired { .. }))), "{count}");
}

/// Superseded by an append, a block is read from the version after it; without that one, newer versions hold other values.
pub(crate) async fn a_stream_that_meets_a_prune_never_gives_newer_values(stores: &Stores) {
    let key = key("NSE_EQ|A");
    let days =
        |minute: i64, price: f64| frame((0..3).map(move |day| (OPEN + day * DAY + minute * MINUTE, price, 1.0, None)));
    put(stores, &key, &days(0, 1.0), 1).await;
    put(stores, &key, &days(1, 1.0), 2).await;
    put(stores, &key, &days(0, 9.0), 3).await;
    let mut stream = stores.candles.read(&key, Timeframe::M1, TimeRange::ALL, Some(1));
    let mut read = model(&stream.next().await.unwrap().unwrap().frame);
    stores.candles.prune(10, 0).await.unwrap();
    for block in stream.collect::<Vec<_>>().await {
        match block {
            Ok(block) => read.extend(model(&block.frame)),
            Err(error) => assert!(matches!(error, Error::Expired { oldest: 3, .. }), "{error:?}"),
        }
    }
    let pinned = model(&days(0, 1.0));
    assert!(read.iter().all(|(at, row)| pinned.get(at) == Some(row)), "{read:?}");
}

pub(crate) async fn changes_come_in_order_and_without_gaps(stores: &Stores) {
    let (a, b) = (key("NSE_EQ|A"), key("NSE_EQ|B"));
    let two_days = frame([(OPEN, 1.0, 1.0, None), (OPEN + DAY, 1.0, 1.0, None), (OPEN + DAY + MINUTE, 1.0, 1.0, None)]);
    put(stores, &a, &two_days, 10).await;
    put(stores, &b, &minutes(0, 1, 1.0), 20).await;
    put(stores, &a, &frame([(OPEN, 1.0, 1.0, None)]), 30).await;
    // A clock that runs behind does not turn the instrument's history around.
    put(stores, &a, &minutes(4, 7, 1.0), 5).await;
    let changes = stores.candles.changes(0, 100).await.unwrap();
    let seen: Vec<_> =
        changes.iter().map(|c| (c.sequence, c.key.code(), c.revision, c.first_open_time, c.last_open_time)).collect();
    let want = [
        (1, "A", 1, OPEN, OPEN),
        (2, "A", 1, OPEN + DAY, OPEN + DAY + MINUTE),
        (3, "B", 1, OPEN, OPEN),
        (4, "A", 2, OPEN + 4 * MINUTE, OPEN + 6 * MINUTE),
    ];
    assert_eq!(seen, want);
    assert_eq!(changes.iter().map(|change| change.changed_at).collect::<Vec<_>>(), [10, 10, 20, 10]);
    assert!(changes.iter().all(|change| change.timeframe == Timeframe::M1));
    assert_eq!(changes[0].trading_date, DATE);
    assert_eq!(stores.candles.changes(1, 2).await.unwrap(), changes[1..3]);
    assert!(stores.candles.changes(4, 2).await.unwrap().is_empty());
    assert_eq!(stores.candles.last_sequence().await.unwrap(), 4);
}

pub(crate) async fn random_puts_equal_a_plain_map_at_every_revision(stores: &Stores) {
    // A linear congruential generator (Knuth's MMIX constants): the same puts on every store.
    let mut seed = 42_u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let key = key("NSE_EQ|A");
    let mut want = vec![Model::new()];
    for step in 0..120 {
        let mut at = OPEN + random(3) as i64 * DAY + random(60) as i64 * MINUTE;
        let rows = frame((0..1 + random(40)).map(|_| {
            at += (1 + random(4)) as i64 * MINUTE;
            (at, 100.0 + random(2) as f64 / 4.0, random(3) as f64, (random(2) == 0).then_some(random(2) as f64))
        }));
        let before = want.last().unwrap().clone();
        let mut after = before.clone();
        after.extend(model(&rows));
        let changed = after.iter().filter(|(at, row)| before.get(at) != Some(row)).count() as u64;
        let outcome = put(stores, &key, &rows, step).await;
        assert_eq!((outcome.stored, outcome.unchanged), (changed, rows.len() as u64 - changed));
        if changed > 0 {
            want.push(after);
        }
        assert_eq!(outcome.revision, want.len() as u64 - 1);
    }
    for (revision, want) in want.iter().enumerate() {
        assert_eq!(stored(stores, &key, Timeframe::M1, Some(revision as u64)).await, *want, "as of {revision}");
    }
    let coverage = &stores.candles.coverage(&key).await.unwrap()[0];
    let all = want.last().unwrap();
    assert_eq!(coverage.candle_count as usize, all.len());
    assert_eq!(Some(&coverage.first_open_time), all.keys().next());
    assert_eq!(Some(&coverage.last_open_time), all.keys().next_back());
}

pub(crate) async fn puts_hand_over_the_changes_they_logged(stores: &Stores) {
    let (a, b, calendar) = (key("NSE_EQ|A"), key("NSE_EQ|B"), nse());
    put(stores, &a, &minutes(0, 10, 1.0), 10).await;
    // A changed row at each end of the session, and what was there in between.
    let ends = frame([(OPEN + 2 * MINUTE, 7.0, 1.0, None), (OPEN + 12 * MINUTE, 7.0, 1.0, Some(3.0))]);
    let weeks = frame((0..20).map(|minute| (OPEN + DAY + minute * MINUTE, 2.0, 1.0, None)));
    let long = frame((0..1440).map(|minute| (OPEN + minute * MINUTE, 2.0, 1.0, None)));
    let day = frame([(OPEN, 5.0, 1.0, None)]);
    let always = Calendar::by_name("24x7").unwrap();
    let c = key("CRYPTO|C");
    let puts = [
        Put { key: &a, source: Timeframe::M1, calendar: &calendar, rows: &ends },
        Put { key: &b, source: Timeframe::M1, calendar: &calendar, rows: &minutes(0, 0, 1.0) },
        Put { key: &b, source: Timeframe::M5, calendar: &calendar, rows: &weeks },
        Put { key: &b, source: Timeframe::D1, calendar: &calendar, rows: &day },
        Put { key: &c, source: Timeframe::M1, calendar: &always, rows: &long },
    ];
    let outcomes = stores.candles.put_all(&puts, 20).await.unwrap();
    let handed_over: Vec<_> = outcomes.iter().flat_map(|outcome| &outcome.changes).collect();
    let logged = stores.candles.changes(1, 100).await.unwrap();
    assert_eq!(handed_over.iter().map(|changed| changed.change.clone()).collect::<Vec<_>>(), logged);
    assert_eq!(outcomes.iter().map(|outcome| outcome.changes.len()).collect::<Vec<_>>(), [1, 0, 1, 1, 2]);
    for changed in &handed_over {
        let change = &changed.change;
        let range = TimeRange::new(change.first_open_time, change.last_open_time + 1).unwrap();
        let blocks: Vec<_> =
            stores.candles.read(&change.key, change.timeframe, range, None).try_collect().await.unwrap();
        assert_eq!(blocks.len(), 1, "{change:?}");
        let carried = changed.candles.as_ref().map(model);
        let want = (blocks[0].frame.len() <= store::candle_store::MAX_CHANGE_ROWS).then(|| model(&blocks[0].frame));
        assert_eq!(carried, want, "{change:?}");
    }
    // Minutes 2 to 9 and 12: those between two changed ones are carried with them. A 24x7 day ends 1215 minutes after the open.
    let rows: Vec<_> = handed_over.iter().map(|changed| changed.candles.as_ref().map(Frame::len)).collect();
    assert_eq!(rows, [Some(9), Some(20), Some(1), None, Some(1440 - 1215)]);
    assert_eq!(put(stores, &a, &ends, 30).await.changes, []);

    let read_later = stores.candles.changed_candles(&logged).await.unwrap();
    for (changed, later) in handed_over.iter().zip(read_later) {
        assert_eq!(changed.candles.as_ref().map(model), later.as_ref().map(model), "{:?}", changed.change);
    }
    let unknown = store::Change { key: key("NSE_EQ|NOBODY"), ..logged[0].clone() };
    assert_eq!(stores.candles.changed_candles(&[unknown]).await.unwrap(), [None]);
}

/// More superseded blocks and records than one slice of a prune holds.
pub(crate) async fn a_prune_of_several_slices_leaves_the_current_candles(stores: &Stores) {
    let key = key("NSE_EQ|A");
    let days = |price: f64| frame((0..2_000).map(move |day| (OPEN + day * DAY, price, 1.0, None)));
    put(stores, &key, &days(1.0), 10).await;
    put(stores, &key, &days(2.0), 20).await;
    let superseded = stores.check(10).await.unwrap().superseded_blocks;
    assert!(superseded > 1_000, "{superseded}");
    let pruned = stores.candles.prune(1_000, 900).await.unwrap();
    assert_eq!((pruned.blocks, pruned.changes), (superseded, 2 * superseded));
    assert_eq!(stored(stores, &key, Timeframe::M1, None).await, model(&days(2.0)));
    assert!(
        matches!(stores.candles.changes(0, 10).await, Err(Error::Expired { oldest, .. }) if oldest == 2 * superseded)
    );
    assert_eq!(stores.candles.prune(1_000, 900).await.unwrap(), store::Pruned::default());
    assert_eq!(stores.check(10).await.unwrap().findings_total, 0);
}

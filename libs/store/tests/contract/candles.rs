//! Facts about storing and reading candles.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::TryStreamExt;
use market::{Calendar, Date, Frame, InstrumentKey, Millis, TimeRange, Timeframe};
use store::{Block, Error, Put, Stores};

pub(crate) const MINUTE: Millis = 60_000;
/// Tuesday, 2016-08-16 09:15 in Mumbai, an ordinary session.
pub(crate) const OPEN: Millis = 1_471_319_100_000;
pub(crate) const DAY: Millis = 86_400_000;
pub(crate) const DATE: Date = Date::constant(2016, 8, 16);

/// A row: open time, the price of all four columns, volume, open interest.
pub(crate) type Row = (Millis, f64, f64, Option<f64>);
/// Rows by open time with floats as bits, so that they can be compared exactly.
pub(crate) type Model = BTreeMap<Millis, [u64; 6]>;

pub(crate) fn key(text: &str) -> InstrumentKey {
    text.parse().unwrap()
}

pub(crate) fn nse() -> Arc<Calendar> {
    Calendar::by_name("NSE").unwrap()
}

pub(crate) fn frame(rows: impl IntoIterator<Item = Row>) -> Frame {
    let rows: Vec<Row> = rows.into_iter().collect();
    let column = |cell: fn(&Row) -> f64| rows.iter().map(cell).collect::<Vec<f64>>();
    let price = || column(|row| row.1);
    Frame::from_columns(
        rows.iter().map(|row| row.0).collect(),
        [price(), price(), price(), price(), column(|row| row.2)],
        column(|row| row.3.unwrap_or(f64::NAN)),
    )
    .unwrap()
}

/// Minutes of the session from one index to another, at a price.
pub(crate) fn minutes(from: i64, to: i64, price: f64) -> Frame {
    frame((from..to).map(|minute| (OPEN + minute * MINUTE, price, minute as f64, None)))
}

pub(crate) fn model(frame: &Frame) -> Model {
    let bits = |candle: market::Candle| {
        let open_interest = candle.open_interest.map_or(u64::MAX, f64::to_bits);
        let columns = [candle.open, candle.high, candle.low, candle.close, candle.volume].map(f64::to_bits);
        let [open, high, low, close, volume] = columns;
        (candle.open_time, [open, high, low, close, volume, open_interest])
    };
    frame.candles().map(bits).collect()
}

pub(crate) async fn blocks(stores: &Stores, key: &InstrumentKey, source: Timeframe, as_of: Option<u64>) -> Vec<Block> {
    stores.candles.read(key, source, TimeRange::ALL, as_of).try_collect().await.unwrap()
}

/// Everything stored, having checked that it comes in order.
pub(crate) async fn stored(stores: &Stores, key: &InstrumentKey, source: Timeframe, as_of: Option<u64>) -> Model {
    let mut all = Frame::default();
    for block in blocks(stores, key, source, as_of).await {
        all.append(&block.frame).unwrap();
    }
    model(&all)
}

pub(crate) async fn put(stores: &Stores, key: &InstrumentKey, rows: &Frame, now: Millis) -> store::PutOutcome {
    stores.candles.put(key, Timeframe::M1, &nse(), rows, now).await.unwrap()
}

pub(crate) async fn a_round_trip_is_exact_to_the_bit(stores: &Stores) {
    let awkward = [-0.0, 0.0, 1e-300, 0.1 + 0.2, 2451.35, 1e300, f64::MIN_POSITIVE / 4.0, 12345678.12345678];
    for (index, price) in awkward.into_iter().enumerate() {
        let key = key(&format!("NSE_EQ|A{index}"));
        let open_interest = |minute: i64| match minute % 3 {
            0 => None,
            1 => Some(0.0),
            _ => Some(price.abs()),
        };
        let rows = frame((0..375).map(|minute| {
            let price = if minute % 2 == 0 { price } else { minute as f64 / 20.0 };
            (OPEN + minute * MINUTE, price, price.abs(), open_interest(minute))
        }));
        put(stores, &key, &rows, 1).await;
        assert_eq!(stored(stores, &key, Timeframe::M1, None).await, model(&rows), "{price:?}");
    }
}

pub(crate) async fn equal_rows_are_unchanged_and_later_rows_win(stores: &Stores) {
    let key = key("NSE_EQ|A");
    let first = put(stores, &key, &minutes(0, 10, 5.0), 1).await;
    assert_eq!((first.stored, first.unchanged, first.revision), (10, 0, 1));
    assert_eq!(first.changed_dates, [DATE]);

    let same = put(stores, &key, &minutes(0, 10, 5.0), 2).await;
    assert_eq!((same.stored, same.unchanged, same.revision), (0, 10, 1));
    assert!(same.changed_dates.is_empty());
    let part = put(stores, &key, &minutes(3, 7, 5.0), 2).await;
    assert_eq!((part.stored, part.unchanged, part.revision), (0, 4, 1));

    let over = put(stores, &key, &minutes(8, 12, 6.0), 3).await;
    assert_eq!((over.stored, over.unchanged, over.revision), (4, 0, 2));
    let mut want = model(&minutes(0, 10, 5.0));
    want.extend(model(&minutes(8, 12, 6.0)));
    assert_eq!(stored(stores, &key, Timeframe::M1, None).await, want);
    assert_eq!(stores.candles.revisions(&[key]).await.unwrap(), [Some(2)]);
}

pub(crate) async fn puts_in_any_order_give_the_same_candles(stores: &Stores) {
    let rows = |day: i64, from: i64, to: i64| {
        frame((from..to).map(|minute| (OPEN + day * DAY + minute * MINUTE, minute as f64, 1.0, None)))
    };
    let parts = [rows(3, 0, 375), rows(0, 200, 375), rows(1, 0, 375), rows(0, 0, 150), rows(0, 100, 250)];
    let key = key("NSE_EQ|A");
    let mut want = Model::new();
    for part in &parts {
        put(stores, &key, part, 1).await;
        want.extend(model(part));
    }
    assert_eq!(want.len(), 3 * 375);
    assert_eq!(stored(stores, &key, Timeframe::M1, None).await, want);
    let coverage = stores.candles.coverage(&key).await.unwrap();
    assert_eq!(coverage.len(), 1);
    assert_eq!((coverage[0].candle_count, coverage[0].date_count), (1125, 3));
    assert_eq!(coverage[0].first_open_time, OPEN);
    assert_eq!(coverage[0].last_open_time, OPEN + 3 * DAY + 374 * MINUTE);
}

pub(crate) async fn concurrent_writers_of_one_day_lose_nothing(stores: &Stores) {
    const WRITERS: i64 = 6;
    const PUTS: i64 = 15;
    let tasks = (0..WRITERS).map(|writer| {
        let stores = stores.clone();
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            for round in 0..PUTS {
                let row = frame([(OPEN + (round * WRITERS + writer) * MINUTE, 1.0 + writer as f64, 1.0, None)]);
                // Two instruments in one call and in both orders: neither may wait for the other for ever.
                let (a, b, calendar) = (key("NSE_EQ|A"), key("NSE_EQ|B"), nse());
                let one = Put { key: &a, source: Timeframe::M1, calendar: &calendar, rows: &row };
                let two = Put { key: &b, ..one };
                let puts = if writer % 2 == 0 { [one, two] } else { [two, one] };
                let outcomes = stores.candles.put_all(&puts, 1).await.unwrap();
                revisions.push(outcomes[(writer % 2) as usize].revision);
            }
            revisions
        })
    });
    let mut revisions = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        revisions.extend(task.await.unwrap());
    }
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=(WRITERS * PUTS) as u64).collect::<Vec<u64>>());
    for name in ["NSE_EQ|A", "NSE_EQ|B"] {
        assert_eq!(stored(stores, &key(name), Timeframe::M1, None).await.len() as i64, WRITERS * PUTS);
    }
    let changes = stores.candles.changes(0, 1000).await.unwrap();
    assert_eq!(changes.iter().map(|c| c.sequence).collect::<Vec<_>>(), (1..=180).collect::<Vec<u64>>());
}

pub(crate) async fn a_refused_call_stores_nothing(stores: &Stores) {
    let (a, b, fresh) = (key("NSE_EQ|A"), key("NSE_EQ|B"), key("NSE_EQ|C"));
    put(stores, &b, &minutes(0, 5, 1.0), 1).await;
    let (nse, other) = (nse(), Calendar::by_name("24x7").unwrap());
    let rows = minutes(0, 5, 2.0);
    let good = Put { key: &a, source: Timeframe::M1, calendar: &nse, rows: &rows };
    let other_calendar = Put { key: &b, calendar: &other, ..good };
    let outside = frame([(TimeRange::ALL.end() + MINUTE, 1.0, 1.0, None)]);
    let too_late = Put { key: &fresh, rows: &outside, ..good };
    for bad in [other_calendar, too_late, good] {
        let refused = stores.candles.put_all(&[good, bad], 2).await;
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }
    assert_eq!(stores.candles.revisions(&[a, b.clone(), fresh]).await.unwrap(), [None, Some(1), None]);
    assert_eq!(stored(stores, &b, Timeframe::M1, None).await, model(&minutes(0, 5, 1.0)));
    assert_eq!(stores.candles.last_sequence().await.unwrap(), 1);
}

pub(crate) async fn the_first_candles_decide_the_calendar(stores: &Stores) {
    let key = key("NSE_EQ|A");
    assert_eq!(stores.candles.calendar(&key).await.unwrap(), None);
    let other = Calendar::by_name("24x7").unwrap();
    // A call without rows stores no candles, so it decides nothing.
    stores.candles.put(&key, Timeframe::M1, &nse(), &Frame::default(), 1).await.unwrap();
    assert_eq!(stores.candles.calendar(&key).await.unwrap(), None);
    put(stores, &key, &minutes(0, 5, 1.0), 1).await;
    assert_eq!(stores.candles.calendar(&key).await.unwrap().as_deref(), Some("NSE"));
    assert!(stores.candles.put(&key, Timeframe::D1, &other, &minutes(0, 1, 1.0), 2).await.is_err());
    assert_eq!(stores.candles.calendar(&key).await.unwrap().as_deref(), Some("NSE"));
}

pub(crate) async fn ranges_are_half_open_and_trimmed(stores: &Stores) {
    let key = key("NSE_EQ|A");
    let days = 100;
    let rows = frame((0..days).flat_map(|day| {
        (0..4).map(move |minute| (OPEN + day * DAY + minute * MINUTE, (day * 4 + minute) as f64, 1.0, None))
    }));
    put(stores, &key, &rows, 1).await;
    let all = model(&rows);
    for (start, end) in [
        (OPEN + MINUTE, OPEN + 3 * MINUTE),
        (OPEN, OPEN + 1),
        (OPEN - 5 * DAY, OPEN),
        (OPEN + 40 * DAY + 2 * MINUTE, OPEN + 77 * DAY + MINUTE),
        (OPEN + 99 * DAY + 4 * MINUTE, OPEN + 400 * DAY),
        (OPEN + 10 * DAY + 10 * MINUTE, OPEN + 11 * DAY),
    ] {
        let range = TimeRange::new(start, end).unwrap();
        let read: Vec<Block> = stores.candles.read(&key, Timeframe::M1, range, None).try_collect().await.unwrap();
        let mut got = Model::new();
        for block in read {
            assert!(!block.frame.is_empty());
            got.extend(model(&block.frame));
        }
        let want: Model = all.range(start..end).map(|(at, row)| (*at, *row)).collect();
        assert_eq!(got, want, "{start} {end}");
    }
    assert_eq!(blocks(stores, &key, Timeframe::M1, None).await.len() as i64, days);
    assert_eq!(blocks(stores, &key, Timeframe::M5, None).await.len(), 0);
}

pub(crate) async fn daily_candles_lie_in_blocks_of_a_year(stores: &Stores) {
    let key = key("NSE_EQ|A");
    // Stamped with local midnight, 18:30 UTC of the day before, as vendors do: 2016-12-30 to 2017-01-03.
    let midnight = 1_483_036_200_000;
    let rows = frame((0..5).map(|day| (midnight + day * DAY, day as f64 + 1.0, 1.0, None)));
    let outcome = stores.candles.put(&key, Timeframe::D1, &nse(), &rows, 1).await.unwrap();
    let date = Date::constant;
    let dates = [date(2016, 12, 30), date(2016, 12, 31), date(2017, 1, 1), date(2017, 1, 2), date(2017, 1, 3)];
    assert_eq!(outcome.changed_dates, dates);
    let found = blocks(stores, &key, Timeframe::D1, None).await;
    let found: Vec<(Date, usize)> = found.iter().map(|block| (block.trading_date, block.frame.len())).collect();
    assert_eq!(found, [(date(2016, 1, 1), 2), (date(2017, 1, 1), 3)]);
    assert_eq!(stored(stores, &key, Timeframe::D1, None).await, model(&rows));
    // The other source of the instrument is a world of its own but for the revision.
    assert_eq!(put(stores, &key, &minutes(0, 2, 1.0), 2).await.revision, 2);
    let coverage = stores.candles.coverage(&key).await.unwrap();
    let counts: Vec<_> =
        coverage.iter().map(|source| (source.timeframe, source.candle_count, source.date_count)).collect();
    assert_eq!(counts, [(Timeframe::M1, 2, 1), (Timeframe::D1, 5, 5)]);
}

pub(crate) async fn many_instruments_in_one_call_keep_their_outcomes(stores: &Stores) {
    let keys: Vec<InstrumentKey> = (0..300).rev().map(|index| key(&format!("NSE_EQ|I{index}"))).collect();
    let rows: Vec<Frame> = (0..300).map(|index| minutes(0, 1 + index % 7, 1.0)).collect();
    let calendar = nse();
    put(stores, &keys[3], &minutes(0, 2, 1.0), 1).await;
    let put = |(key, rows)| Put { key, source: Timeframe::M1, calendar: &calendar, rows };
    let puts: Vec<Put<'_>> = keys.iter().zip(&rows).map(put).collect();
    let outcomes = stores.candles.put_all(&puts, 2).await.unwrap();
    for (index, outcome) in outcomes.iter().enumerate() {
        let rows = 1 + index as u64 % 7;
        let (unchanged, revision) = if index == 3 { (2, 2) } else { (0, 1) };
        let got = (outcome.stored, outcome.unchanged, outcome.revision);
        assert_eq!(got, (rows - unchanged, unchanged, revision), "{index}");
    }
    let empty = stores.candles.put_all(&[], 3).await.unwrap();
    assert!(empty.is_empty());
}

pub(crate) async fn last_candles_carry_the_day_and_the_close_before(stores: &Stores) {
    let (a, b) = (key("NSE_EQ|A"), key("NSE_EQ|B"));
    put(stores, &a, &frame([(OPEN - DAY, 7.0, 1.0, None), (OPEN - DAY + MINUTE, 8.0, 1.0, None)]), 1).await;
    let today = [(OPEN, 10.0, 3.0, Some(5.0)), (OPEN + MINUTE, 30.0, 4.0, None), (OPEN + 2 * MINUTE, 20.0, 5.0, None)];
    put(stores, &a, &frame(today), 2).await;
    put(stores, &b, &frame([(OPEN, 1.0, 1.0, None)]), 3).await;
    let found = stores.candles.last_candles(&[b, key("NSE_EQ|C"), a.clone(), a], Timeframe::M1).await.unwrap();
    assert_eq!(found[0].as_ref().unwrap().previous_close, None);
    assert_eq!(found[1], None);
    assert_eq!(found[2], found[3]);
    let last = found[2].as_ref().unwrap();
    assert_eq!((last.trading_date, last.revision, last.previous_close), (DATE, 2, Some(8.0)));
    assert_eq!((last.candle.open_time, last.candle.close), (OPEN + 2 * MINUTE, 20.0));
    let day = last.block;
    assert_eq!([day.open, day.high, day.low, day.close, day.volume], [10.0, 30.0, 10.0, 20.0, 12.0]);
    assert_eq!((day.open_time, day.open_interest), (OPEN, Some(5.0)));
}

pub(crate) async fn what_was_never_stored_is_empty(stores: &Stores) {
    let key = key("NSE_EQ|A");
    let outcome = put(stores, &key, &Frame::default(), 1).await;
    assert_eq!(outcome, store::PutOutcome::default());
    assert_eq!(stores.candles.revisions(std::slice::from_ref(&key)).await.unwrap(), [None]);
    assert_eq!(stores.candles.revision_at(&key, 9).await.unwrap(), None);
    assert!(stores.candles.coverage(&key).await.unwrap().is_empty());
    assert!(stored(stores, &key, Timeframe::M1, None).await.is_empty());
    assert!(stores.candles.changes(0, 10).await.unwrap().is_empty());
    assert_eq!(stores.candles.last_sequence().await.unwrap(), 0);
    let beyond: Result<Vec<Block>, Error> =
        stores.candles.read(&key, Timeframe::M1, TimeRange::ALL, Some(1)).try_collect().await;
    assert!(matches!(beyond, Err(Error::Invalid { field: "as_of", .. })));
    stores.ping().await.unwrap();
}

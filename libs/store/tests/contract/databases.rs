//! Facts that only databases can break: durability, damage, migration.

use futures::TryStreamExt;
use market::{TimeRange, Timeframe};
use store::{Block, Error, Put, StoreOptions, Stores};

use crate::candles::{DATE, DAY, Model, OPEN, frame, key, minutes, model, nse, put, stored};
use crate::postgres::Postgres;
use crate::sqlite;

/// Damages the one stored block by a statement, and expects to be told.
async fn expect_corrupt(stores: &Stores) {
    let key = key("NSE_EQ|A");
    let read: Result<Vec<Block>, Error> =
        stores.candles.read(&key, Timeframe::M1, TimeRange::ALL, None).try_collect().await;
    assert!(
        matches!(&read, Err(Error::Corrupt { instrument, date, .. }) if *instrument == key && *date == DATE),
        "{read:?}"
    );
    let put = stores.candles.put(&key, Timeframe::M1, &nse(), &minutes(7, 9, 1.0), 2).await;
    assert!(matches!(put, Err(Error::Corrupt { .. })), "{put:?}");
    assert!(stores.candles.last_candles(&[key], Timeframe::M1).await.is_err());
}

const DAMAGES: [&str; 5] = [
    "update candle_block set payload = substr(payload, 1, 12)",
    "update candle_block set checksum = checksum + 1",
    "update candle_block set candle_count = candle_count + 1",
    "update candle_block set last_open_time = last_open_time + 60000",
    // A valid checksum (CRC-32 of the empty string) does not make a block.
    "update candle_block set payload = substr(payload, 1, 0), checksum = 0",
];

#[tokio::test]
async fn a_damaged_block_is_reported_on_sqlite() {
    for damage in DAMAGES {
        let folder = tempfile::tempdir().unwrap();
        let stores = sqlite(folder.path()).await;
        put(&stores, &key("NSE_EQ|A"), &minutes(0, 5, 1.0), 1).await;
        let url = format!("sqlite://{}", folder.path().join("candles.db").display());
        let other = sqlx::SqlitePool::connect(&url).await.unwrap();
        assert_eq!(sqlx::query(damage).execute(&other).await.unwrap().rows_affected(), 1);
        expect_corrupt(&stores).await;
        other.close().await;
        stores.close().await;
    }
}

#[tokio::test]
async fn what_sqlite_acknowledged_is_there_after_opening_again() {
    let folder = tempfile::tempdir().unwrap();
    let stores = sqlite(folder.path()).await;
    let key = key("NSE_EQ|A");
    put(&stores, &key, &minutes(0, 100, 1.0), 1).await;
    // A copy of the files as they are is what a crash of the process leaves: nothing was closed.
    let crashed = tempfile::tempdir().unwrap();
    for name in ["candles.db", "candles.db-wal"] {
        std::fs::copy(folder.path().join(name), crashed.path().join(name)).unwrap();
    }
    let reopened = sqlite(crashed.path()).await;
    assert_eq!(stored(&reopened, &key, Timeframe::M1, None).await, model(&minutes(0, 100, 1.0)));
    reopened.close().await;
    stores.close().await;
    assert!(matches!(stores.ping().await, Err(Error::Unavailable(_))));
    let reopened = sqlite(folder.path()).await;
    assert_eq!(put(&reopened, &key, &minutes(0, 100, 1.0), 2).await.unchanged, 100);
    reopened.close().await;
}

#[tokio::test]
async fn a_cancelled_put_is_whole_or_absent() {
    let folder = tempfile::tempdir().unwrap();
    let stores = sqlite(folder.path()).await;
    let rows = frame((0..60).map(|day| (OPEN + day * DAY, 1.0, 1.0, None)));
    for delay_us in (0..4_000).step_by(200) {
        let key = key(&format!("NSE_EQ|T{delay_us}"));
        let calendar = nse();
        let put = stores.candles.put(&key, Timeframe::M1, &calendar, &rows, 1);
        let _ = tokio::time::timeout(std::time::Duration::from_micros(delay_us), put).await;
        let found = stored(&stores, &key, Timeframe::M1, None).await;
        assert!(found.is_empty() || found == model(&rows), "{delay_us}: {} rows", found.len());
    }
    stores.close().await;
}

#[tokio::test]
async fn other_urls_are_refused_without_repeating_them() {
    for url in ["mysql://user:secret@host/db", "sqlite://", "sqlite::memory:", "postgres://user:secret@host:99999/db"] {
        let refused = Stores::open(url, &StoreOptions::default()).await.unwrap_err();
        assert!(matches!(refused, Error::Invalid { field: "store url", .. }), "{url}: {refused:?}");
        assert!(!format!("{refused} {refused:?}").contains("secret"));
    }
    let missing = Stores::open("sqlite:///nowhere/at/all.db", &StoreOptions::default()).await.unwrap_err();
    assert!(matches!(missing, Error::Unavailable(_)), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_keeps_what_it_acknowledged_and_migrates_once() {
    let Some(mut server) = Postgres::start_if_installed().unwrap() else { return };
    let options = StoreOptions { max_connections: 4, ..StoreOptions::default() };
    // Four services start at once on an empty database.
    let url = server.create_database("shared").unwrap();
    let opened = futures::future::join_all((0..4).map(|_| Stores::open(&url, &options))).await;
    let opened: Vec<Stores> = opened.into_iter().collect::<Result<_, _>>().unwrap();
    let rows: Vec<_> = (0..4).map(|day| frame([(OPEN + day * DAY, day as f64, 1.0, Some(0.0))])).collect();
    for (stores, rows) in opened.iter().zip(&rows) {
        put(stores, &key("NSE_EQ|A"), rows, 1).await;
    }
    let want: Model = rows.iter().flat_map(model).collect();
    server.restart().unwrap();
    // The connections died with the server; the pool notices and makes new ones.
    assert_eq!(stored(&opened[0], &key("NSE_EQ|A"), Timeframe::M1, None).await, want);
    assert_eq!(put(&opened[1], &key("NSE_EQ|A"), &rows[2], 2).await.unchanged, 1);
    for stores in &opened {
        stores.close().await;
    }

    for (index, damage) in DAMAGES.into_iter().enumerate() {
        let url = server.create_database(&format!("damage{index}")).unwrap();
        let stores = Stores::open(&url, &options).await.unwrap();
        put(&stores, &key("NSE_EQ|A"), &minutes(0, 5, 1.0), 1).await;
        let other = sqlx::PgPool::connect(&url).await.unwrap();
        assert_eq!(sqlx::query(damage).execute(&other).await.unwrap().rows_affected(), 1);
        expect_corrupt(&stores).await;
        other.close().await;
        stores.close().await;
    }
    let text = "no\0text";
    let stores = Stores::open(&url, &options).await.unwrap();
    let refused = stores.flags.compare_and_set(text, 0, "{}", "test", 1).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    stores.close().await;
}

/// With one connection a call that wanted a second one while it holds the first would wait for ever.
pub(crate) async fn one_connection_serves_everyone_in_turn(stores: &Stores) {
    let Some(at_start) = stores.pool_statistics() else {
        assert_eq!((stores.resize_limit(1), stores.pool_history().len()), (None, 0));
        return;
    };
    assert_eq!((at_start.limit, at_start.in_use, at_start.waiting), (at_start.max_limit, 0, 0));
    assert_eq!(stores.resize_limit(0), Some(1));
    let key = key("NSE_EQ|A");
    // Three pages and four years.
    let rows = frame((0..150).map(|index| (OPEN + index * 7 * DAY, 1.0, 1.0, None)));
    put(stores, &key, &rows, 1).await;
    let mut reading = stores.candles.read(&key, Timeframe::M1, TimeRange::ALL, None);
    let first = reading.try_next().await.unwrap().unwrap();
    let calls = (0..24).map(|index| {
        let (stores, key) = (stores.clone(), key.clone());
        tokio::spawn(async move {
            match index % 4 {
                0 => drop(put(&stores, &key, &minutes(index, index + 1, index as f64), index).await),
                1 => {
                    // What it is pinned to may be pruned meanwhile; a connection it gets all the same.
                    let blocks = stores.candles.read(&key, Timeframe::M1, TimeRange::ALL, None);
                    let blocks: Result<Vec<Block>, Error> = blocks.try_collect().await;
                    assert!(matches!(blocks, Ok(_) | Err(Error::Expired { .. })), "{blocks:?}");
                }
                2 => drop(stores.candles.prune(index, 1).await.unwrap()),
                _ => assert_eq!(stores.check(10).await.unwrap().findings_total, 0),
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    // A stream left half read holds no connection; the pages it has not fetched may be pruned.
    assert_eq!(first.frame.len(), 1);
    drop(reading);
    assert_eq!(stores.resize_limit(usize::MAX), Some(at_start.max_limit));
    stores.ping().await.unwrap();
    let idle = || stores.pool_statistics().is_some_and(|now| now.in_use == 0 && now.waiting == 0);
    let waited = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        while !idle() {
            tokio::task::yield_now().await;
        }
    });
    waited.await.unwrap();
    let at_end = stores.pool_statistics().unwrap();
    assert!(at_end.waited_total > 0 && at_end.wait_total >= at_end.wait_max, "{at_end:?}");
    assert!(at_end.acquired_total > 24 && at_end.timeouts_total == 0, "{at_end:?}");
}

/// A put that waits longer than allowed for another writer gives up; the other's rows stand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_a_busy_writer_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("candles.db").display());
    let wait_timeout = std::time::Duration::from_millis(200);
    let stores = Stores::open(&url, &StoreOptions { max_connections: 2, wait_timeout }).await.unwrap();
    let other = sqlx::SqlitePool::connect(&url).await.unwrap();
    let busy = other.begin_with("begin immediate").await.unwrap();
    let (key, calendar, rows) = (key("NSE_EQ|A"), nse(), minutes(0, 5, 1.0));
    let one = Put { key: &key, source: Timeframe::M1, calendar: &calendar, rows: &rows };
    let refused = stores.candles.put_all(&[one], 1).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    busy.rollback().await.unwrap();
    assert_eq!(stores.candles.put_all(&[one], 1).await.unwrap()[0].stored, 5);
    stores.close().await;
}

//! Facts about candles of several years, which PostgreSQL keeps in a table each.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use futures::TryStreamExt;
use market::{Calendar, Date, Millis, TimeRange, Timeframe};
use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgPool, PgPoolCopyExt};
use store::{Block, Put, StoreOptions, Stores};

use crate::candles::{DATE, DAY, MINUTE, Model, OPEN, Row, frame, key, minutes, model, nse, put, stored};
use crate::postgres::Postgres;

/// 2017-01-01 00:00 UTC.
const NEW_YEAR: Millis = 1_483_228_800_000;

pub(crate) async fn candles_around_new_year_are_those_of_a_plain_map(stores: &Stores) {
    let (key, calendar) = (key("CRYPTO|A"), Calendar::by_name("24x7").unwrap());
    let row = |minute: i64, price: f64| -> Row { (NEW_YEAR + minute * MINUTE, price, 1.0, None) };
    let first = frame((-100..100).map(|minute| row(minute, minute as f64 + 500.0)));
    let outcome = stores.candles.put(&key, Timeframe::M1, &calendar, &first, 1).await.unwrap();
    let (before, after) = (Date::constant(2016, 12, 31), Date::constant(2017, 1, 1));
    assert_eq!((outcome.stored, &outcome.changed_dates[..]), (200, &[before, after][..]));
    // Corrected on both sides, so that both years have a superseded block.
    let correction = frame([row(-1, 7.0), row(0, 8.0)]);
    let outcome = stores.candles.put(&key, Timeframe::M1, &calendar, &correction, 2).await.unwrap();
    assert_eq!((outcome.stored, outcome.revision), (2, 2));

    let mut want = model(&first);
    assert_eq!(stored(stores, &key, Timeframe::M1, Some(1)).await, want);
    want.extend(model(&correction));
    assert_eq!(stored(stores, &key, Timeframe::M1, None).await, want);
    for (from, to) in [(-50, 50), (-50, 0), (0, 50), (-1, 1), (-100, 100), (99, 5_000)] {
        let range = TimeRange::new(NEW_YEAR + from * MINUTE, NEW_YEAR + to * MINUTE).unwrap();
        let blocks: Vec<Block> = stores.candles.read(&key, Timeframe::M1, range, None).try_collect().await.unwrap();
        let got: Model = blocks.iter().flat_map(|block| model(&block.frame)).collect();
        let part: Model = want.range(range.start()..range.end()).map(|(at, row)| (*at, *row)).collect();
        assert_eq!(got, part, "{from} {to}");
    }
    let last = stores.candles.last_candles(std::slice::from_ref(&key), Timeframe::M1).await.unwrap();
    let last = last[0].as_ref().unwrap();
    assert_eq!((last.trading_date, last.candle.close, last.previous_close), (after, 599.0, Some(7.0)));
    let carried = stores.candles.changed_candles(&stores.candles.changes(0, 10).await.unwrap()).await.unwrap();
    let rows: Vec<usize> = carried.iter().map(|frame| frame.as_ref().unwrap().len()).collect();
    assert_eq!(rows, [100, 100, 1, 1]);

    assert_eq!(stores.candles.prune(1_000, 0).await.unwrap().blocks, 2);
    assert_eq!(stored(stores, &key, Timeframe::M1, None).await, want);
    let report = stores.check(10).await.unwrap();
    assert_eq!((report.findings_total, report.blocks, report.candles), (0, 2, 200), "{report:?}");
}

/// More years, and more blocks in each, than one page of a read has.
pub(crate) async fn a_read_of_many_years_is_whole_and_in_order(stores: &Stores) {
    let key = key("CRYPTO|A");
    let calendar = Calendar::by_name("24x7").unwrap();
    let rows = frame((0..80 * 36).map(|index| (NEW_YEAR - 30 * 365 * DAY + index * 4 * DAY, index as f64, 1.0, None)));
    for part in [1_000..2_880, 0..1_000] {
        stores.candles.put(&key, Timeframe::H1, &calendar, &rows.slice(part), 1).await.unwrap();
        stores.candles.put(&key, Timeframe::D1, &calendar, &rows, 1).await.unwrap();
    }
    for source in [Timeframe::H1, Timeframe::D1] {
        assert_eq!(stored(stores, &key, source, None).await, model(&rows));
    }
    assert_eq!(stores.check(10).await.unwrap().findings_total, 0);
}

/// The schema as it was before years had tables of their own.
fn migrator_before() -> Migrator {
    let files = [
        (1, "initial", include_str!("../../migrations/postgres/0001_initial.sql")),
        (2, "change counter", include_str!("../../migrations/postgres/0002_change_counter.sql")),
        (3, "backfill", include_str!("../../migrations/postgres/0003_backfill.sql")),
        (4, "corporate action", include_str!("../../migrations/postgres/0004_corporate_action.sql")),
        (5, "blocks inline", include_str!("../../migrations/postgres/0005_blocks_inline.sql")),
    ];
    let migration = |(version, name, sql): (i64, &'static str, &'static str)| {
        Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(files.into_iter().map(migration).collect())
}

async fn copy_table(from: &PgPool, to: &PgPool, table: &str) {
    let rows = from.copy_out_raw(&format!("copy (select * from {table}) to stdout")).await.unwrap();
    let rows: Vec<_> = rows.try_collect().await.unwrap();
    let mut copy = to.copy_in_raw(&format!("copy {table} from stdin")).await.unwrap();
    for row in rows {
        copy.send(row).await.unwrap();
    }
    copy.finish().await.unwrap();
}

/// Years of the partitions, each with what it must not lose: payloads outside of compression, rows kept in the page, the foreign and the primary key.
async fn partitions(pool: &PgPool) -> BTreeMap<String, (String, String, i64, bool)> {
    let rows: Vec<(String, String, String, i64, bool)> = sqlx::query_as(
        "select c.relname::text, a.attstorage::text, coalesce(array_to_string(c.reloptions, ','), ''), \
         (select count(*) from pg_constraint k where k.conrelid = c.oid and k.contype in ('f', 'p')), \
         pg_get_expr(c.relpartbound, c.oid) like '%(''' || right(c.relname, 4) || '0000'')%' \
         from pg_inherits i join pg_class c on c.oid = i.inhrelid \
         join pg_attribute a on a.attrelid = c.oid and a.attname = 'payload' where i.inhparent = 'candle_block'::regclass",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    rows.into_iter().map(|(name, storage, options, keys, bound)| (name, (storage, options, keys, bound))).collect()
}

async fn expect_years(pool: &PgPool, years: impl IntoIterator<Item = i64>) {
    let whole = ("e".to_owned(), "toast_tuple_target=8160".to_owned(), 2, true);
    let want = years.into_iter().map(|year| (format!("candle_block_{year}"), whole.clone())).collect();
    assert_eq!(partitions(pool).await, want);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_stored_before_the_years_are_moved_into_them() {
    let Some(server) = Postgres::start_if_installed().unwrap() else { return };
    let source_url = server.create_database("source").unwrap();
    let source = Stores::open(&source_url, &StoreOptions::default()).await.unwrap();
    let (a, b) = (key("NSE_EQ|A"), key("NSE_EQ|B"));
    // 2016-08-16 on, four hundred days: three years of minutes, and of days in blocks dated 1 January.
    let days = frame((0..600).map(|day| (OPEN + day * DAY, day as f64 + 1.0, 1.0, None)));
    put(&source, &a, &days, 1).await;
    source.candles.put(&a, Timeframe::D1, &nse(), &days, 2).await.unwrap();
    put(&source, &b, &minutes(0, 5, 1.0), 3).await;
    put(&source, &b, &minutes(2, 8, 4.0), 4).await;

    let url = server.create_database("grown").unwrap();
    let (from, to) = (PgPool::connect(&source_url).await.unwrap(), PgPool::connect(&url).await.unwrap());
    migrator_before().run(&to).await.unwrap();
    sqlx::query("delete from candle_change_counter").execute(&to).await.unwrap();
    let tables = ["series", "block", "block_history", "coverage", "change", "change_counter"];
    for table in tables {
        copy_table(&from, &to, &format!("candle_{table}")).await;
    }
    sqlx::query("select setval(pg_get_serial_sequence('candle_series', 'series_id'), 2)").execute(&to).await.unwrap();
    let plain: i64 = sqlx::query_scalar("select count(*) from candle_block").fetch_one(&to).await.unwrap();

    // Two replicas of the new version start at once.
    let options = StoreOptions::default();
    let (stores, other) = tokio::join!(Stores::open(&url, &options), Stores::open(&url, &options));
    let (stores, other) = (stores.unwrap(), other.unwrap());
    let moved: i64 = sqlx::query_scalar("select count(*) from candle_block").fetch_one(&to).await.unwrap();
    assert_eq!((moved, plain), (600 + 3 + 1, 600 + 3 + 1));
    expect_years(&to, 2016..=2018).await;
    assert_eq!(stored(&stores, &a, Timeframe::M1, None).await, model(&days));
    assert_eq!(stored(&stores, &a, Timeframe::D1, None).await, model(&days));
    for revision in [1, 2] {
        let want = stored(&source, &b, Timeframe::M1, Some(revision)).await;
        assert_eq!(stored(&stores, &b, Timeframe::M1, Some(revision)).await, want);
    }
    let report = stores.check(10).await.unwrap();
    assert_eq!((report.findings_total, report.candles), (0, 1_208), "{report:?}");
    // Stored again by both, it is known; a correction and a new year are taken.
    assert_eq!(put(&other, &a, &days, 5).await.unchanged, 600);
    let later = frame([(OPEN + 599 * DAY, 9.0, 1.0, None), (OPEN + 1_000 * DAY, 9.0, 1.0, None)]);
    assert_eq!(put(&other, &a, &later, 6).await.stored, 2);
    expect_years(&to, 2016..=2019).await;
    assert_eq!(stores.check(10).await.unwrap().findings_total, 0);
    for stores in [source, stores, other] {
        stores.close().await;
    }
}

/// Each on connections of its own, as replicas are: none may fail or wait for ever, whatever the others are in the middle of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_need_the_same_new_years_at_once_all_store() {
    const WRITERS: usize = 6;
    let Some(server) = Postgres::start_if_installed().unwrap() else { return };
    let url = server.create_database("racing").unwrap();
    let options = StoreOptions { max_connections: 3, ..StoreOptions::default() };
    let mut replicas = Vec::new();
    for _ in 0..WRITERS {
        replicas.push(Stores::open(&url, &options).await.unwrap());
    }
    // Years in both directions from 2016, ten at a time in one put and one at a time in others.
    let far = |sign: i64| frame((0..10).map(move |year| (OPEN + sign * year * 365 * DAY, 5.0, 1.0, None)));
    let backwards = {
        let rows: Vec<Row> = (0..10).rev().map(|year| (OPEN - year * 365 * DAY, 5.0, 1.0, None)).collect();
        frame(rows)
    };
    let tasks = replicas.iter().cloned().enumerate().map(|(index, stores)| {
        let (forwards, backwards) = (far(1), backwards.clone());
        tokio::spawn(async move {
            let (own, shared, calendar) = (key(&format!("NSE_EQ|W{index}")), key("NSE_EQ|ALL"), nse());
            for row in 0..forwards.len() {
                let (one, other) = (forwards.slice(row..row + 1), backwards.slice(row..row + 1));
                let mut puts = vec![
                    Put { key: &own, source: Timeframe::M1, calendar: &calendar, rows: &one },
                    Put { key: &shared, source: Timeframe::M1, calendar: &calendar, rows: &other },
                ];
                puts.rotate_left(index % 2);
                stores.candles.put_all(&puts, 1).await.unwrap();
            }
            let all = Put { key: &own, source: Timeframe::M1, calendar: &calendar, rows: &backwards };
            stores.candles.put_all(&[all], 2).await.unwrap();
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let pool = PgPool::connect(&url).await.unwrap();
    expect_years(&pool, 2007..=2025).await;
    let mut want = model(&backwards);
    assert_eq!(stored(&replicas[0], &key("NSE_EQ|ALL"), Timeframe::M1, None).await, want);
    want.extend(model(&far(1)));
    for index in 0..WRITERS {
        assert_eq!(stored(&replicas[0], &key(&format!("NSE_EQ|W{index}")), Timeframe::M1, None).await, want);
    }
    assert_eq!(replicas[0].check(10).await.unwrap().findings_total, 0);
    for stores in replicas {
        stores.close().await;
    }
}

/// Whether first or by a plan kept for any range: a read looks only into the years it asks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_one_year_leave_the_others_alone() {
    const READS: i64 = 12;
    let Some(server) = Postgres::start_if_installed().unwrap() else { return };
    let url = server.create_database("alone").unwrap();
    let stores = Stores::open(&url, &StoreOptions { max_connections: 1, ..StoreOptions::default() }).await.unwrap();
    let key = key("NSE_EQ|A");
    put(&stores, &key, &frame((0..8).map(|year| (OPEN + year * 365 * DAY, 1.0, 1.0, None))), 1).await;
    let month = TimeRange::new(OPEN, OPEN + 30 * DAY).unwrap();
    for _ in 0..READS {
        let found: Vec<Block> = stores.candles.read(&key, Timeframe::M1, month, None).try_collect().await.unwrap();
        assert_eq!((found.len(), found[0].trading_date), (1, DATE));
    }
    // A connection reports what it counted when it ends, if not before.
    stores.close().await;
    let other = PgPool::connect(&url).await.unwrap();
    let scans = async || -> BTreeMap<String, i64> {
        let scans = "select relname::text, coalesce(seq_scan, 0) + coalesce(idx_scan, 0) from pg_stat_user_tables \
                     where relname ~ '^candle_block_[0-9]+$'";
        sqlx::query_as::<_, (String, i64)>(scans).fetch_all(&other).await.unwrap().into_iter().collect()
    };
    // Attaching its table looks at each year alike; of the reads only one year may know.
    let counted = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let mut scans = scans().await;
            let of_year = scans.remove("candle_block_2016").unwrap_or(0);
            if scans.len() == 7 && scans.values().all(|of_other| of_year - of_other == READS) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    counted.await.unwrap();
}

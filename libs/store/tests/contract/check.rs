//! Facts about checking everything stored: what is sound has no findings, every kind of damage has one.

use store::{CheckReport, StoreOptions, Stores};

use crate::candles::{DAY, OPEN, frame, key, minutes, put};
use crate::postgres::Postgres;
use crate::sqlite;

/// Two instruments, three dates, one superseded block with a payload and one without.
async fn fill(stores: &Stores) {
    let two_dates = frame((0..2).flat_map(|day| (0..5).map(move |m| (OPEN + day * DAY + m * 60_000, 2.5, 7.0, None))));
    put(stores, &key("NSE_EQ|A"), &two_dates, 1).await;
    put(stores, &key("NSE_EQ|B"), &minutes(0, 5, 1.0), 2).await;
    // Appended, then corrected.
    put(stores, &key("NSE_EQ|B"), &minutes(5, 8, 1.0), 3).await;
    put(stores, &key("NSE_EQ|B"), &minutes(2, 3, 4.0), 4).await;
}

fn counts(report: &CheckReport) -> (u64, u64, u64, u64) {
    (report.instruments, report.blocks, report.superseded_blocks, report.candles)
}

pub(crate) async fn what_is_sound_has_no_findings(stores: &Stores) {
    assert_eq!(counts(&stores.check(10).await.unwrap()), (0, 0, 0, 0));
    fill(stores).await;
    let report = stores.check(10).await.unwrap();
    assert_eq!((counts(&report), report.findings_total), ((2, 3, 2, 18), 0), "{report:?}");
    stores.candles.prune(1_000, 0).await.unwrap();
    let report = stores.check(10).await.unwrap();
    assert_eq!((counts(&report), report.findings_total), ((2, 3, 0, 18), 0), "{report:?}");
}

/// Appends, corrections and prunes go on while the check looks; none of them is damage.
pub(crate) async fn what_is_being_written_has_no_findings(stores: &Stores) {
    let days = |minute: i64, price: f64| {
        frame((0..100).map(move |day| (OPEN + day * DAY + minute * 60_000, price, 1.0, None)))
    };
    put(stores, &key("NSE_EQ|A"), &days(0, 1.0), 1).await;
    let writer = stores.clone();
    let writing = tokio::spawn(async move {
        for round in 1..40 {
            put(&writer, &key("NSE_EQ|A"), &days(round, 1.0), round).await;
            put(&writer, &key("NSE_EQ|A"), &days(0, round as f64), round).await;
            writer.candles.prune(round, 2).await.unwrap();
        }
    });
    while !writing.is_finished() {
        let report = stores.check(10).await.unwrap();
        assert_eq!(report.findings_total, 0, "{report:?}");
    }
    writing.await.unwrap();
    assert_eq!(counts(&stores.check(10).await.unwrap()).3, 4_000);
}

const OF_B: &str = "series_id = (select series_id from candle_series where instrument_key = 'NSE_EQ|B')";

/// A statement and what the check says of it.
fn damages() -> Vec<(String, &'static str)> {
    let of_b = |text: &str| format!("{text} where {OF_B}");
    vec![
        (of_b("update candle_block set checksum = checksum + 1"), "checksum is"),
        (of_b("update candle_block set payload = substr(payload, 1, 12)"), "checksum is"),
        (of_b("update candle_block set payload = substr(payload, 1, 0), checksum = 0"), "bytes end early"),
        (of_b("update candle_block set candle_count = candle_count + 1"), "do not match its columns"),
        (of_b("update candle_block set last_open_time = last_open_time + 60000"), "do not match its columns"),
        (of_b("update candle_block set close = close + 1"), "do not match its summary"),
        (of_b("update candle_block set open_interest = 0"), "do not match its summary"),
        (of_b("update candle_block set revision = 9"), "its revision 9 is not among 1 to 3"),
        (of_b("update candle_block set block_date = block_date + 1"), "of another trading date"),
        (of_b("update candle_block set block_date = 20161301"), "block dated 20161301 of revision 3 cannot be read"),
        (of_b("update candle_block set revision = -1"), "of revision -1 cannot be read"),
        (of_b("update candle_block_history set superseded_revision = -1"), "of revision 2 cannot be read"),
        (of_b("update candle_series set revision = -1"), "instrument of row"),
        (of_b("update candle_block set timeframe = 'x'"), "'x' is no timeframe"),
        (
            // The second date's block is moved onto the first one's minutes.
            "update candle_block set block_date = 20160801 where block_date = 20160817".to_owned(),
            "it overlaps the block before",
        ),
        (of_b("update candle_block_history set checksum = checksum + 1") + " and payload is not null", "checksum is"),
        (of_b("update candle_block_history set candle_count = 100") + " and payload is null", "is shorter"),
        (of_b("update candle_block_history set superseded_revision = revision"), "is superseded by"),
        (of_b("update candle_coverage set candle_count = candle_count - 1"), "coverage of 1m"),
        (of_b("delete from candle_coverage"), "coverage of 1m"),
        (of_b("update candle_series set revision = 4"), "newest block is of revision 3"),
        (of_b("update candle_series set oldest_revision = 5"), "oldest revision 5"),
        (of_b("update candle_series set calendar = 'MOON'"), "calendar 'MOON' is unknown"),
        ("delete from candle_change where sequence = 2".to_owned(), "change log holds"),
        ("update candle_change_counter set pruned_sequence = 1".to_owned(), "change log holds"),
        ("update candle_change_counter set last_sequence = 9".to_owned(), "change log holds"),
    ]
}

fn expect(report: &CheckReport, statement: &str, want: &str) {
    assert!(report.findings.iter().any(|finding| finding.what.contains(want)), "{statement}: {report:?}");
    assert!(report.findings_total >= report.findings.len() as u64);
}

#[tokio::test]
async fn every_kind_of_damage_is_found_on_sqlite() {
    for (statement, want) in damages() {
        let folder = tempfile::tempdir().unwrap();
        let stores = sqlite(folder.path()).await;
        fill(&stores).await;
        let url = format!("sqlite://{}", folder.path().join("candles.db").display());
        let other = sqlx::SqlitePool::connect(&url).await.unwrap();
        assert!(sqlx::query(sqlx::AssertSqlSafe(statement.clone())).execute(&other).await.unwrap().rows_affected() > 0);
        expect(&stores.check(100).await.unwrap(), &statement, want);
        let none_kept = stores.check(0).await.unwrap();
        assert!(none_kept.findings.is_empty() && none_kept.findings_total > 0);
        other.close().await;
        stores.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_damage_is_found_on_postgres() {
    let Some(server) = Postgres::start_if_installed().unwrap() else { return };
    for (index, (statement, want)) in damages().into_iter().enumerate() {
        let url = server.create_database(&format!("check{index}")).unwrap();
        let stores = Stores::open(&url, &StoreOptions::default()).await.unwrap();
        fill(&stores).await;
        let other = sqlx::PgPool::connect(&url).await.unwrap();
        assert!(sqlx::query(sqlx::AssertSqlSafe(statement.clone())).execute(&other).await.unwrap().rows_affected() > 0);
        expect(&stores.check(100).await.unwrap(), &statement, want);
        other.close().await;
        stores.close().await;
    }
}

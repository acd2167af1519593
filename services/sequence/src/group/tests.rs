//! Intents of hand-built groups.

use kernels::screen::Row;
use mesh::CpuPool;
use mesh::Fault;
use mesh::engine::Engines;
use mesh::source::MemorySource;
use store::Stores;
use tonic::Code;

use super::*;
use crate::candles::{add, daily, key, strong};
use crate::history::Histories;

const NOW: Millis = 1_700_000_000_000;

fn source() -> MemorySource {
    let mut source = MemorySource::default();
    add(&mut source, "NSE_EQ|RISE", "NSE", daily(100.0, &strong(5.0), 4e5));
    add(&mut source, "NSE_EQ|FALL", "NSE", daily(100.0, &strong(-5.0), 4e5));
    add(&mut source, "NSE_EQ|FLAT", "NSE", daily(100.0, &[0.0; 75], 4e5));
    let instrument_keys = ["NSE_EQ|RISE", "NSE_EQ|NOBODY", "NSE_EQ|FALL", "NSE_EQ|FLAT", "NSE_EQ|RISE"];
    let instrument_keys = instrument_keys.map(key).to_vec();
    source.groups.insert("g".into(), Group { id: "g".into(), name: "Group".into(), instrument_keys });
    source
}

fn groups(source: MemorySource, stores: &Stores, config: &Config) -> Groups {
    let source = Arc::new(source);
    let ports = Ports {
        candles: Arc::clone(&source) as _,
        master: source,
        screens: Arc::clone(&stores.screens),
        engines: Engines::BOTH,
        pool: Arc::new(CpuPool::new(1, 64).unwrap()),
    };
    let pipeline = Arc::new(Pipeline::new(Histories::new(config, &ports), config, &ports));
    Groups::new(pipeline, config, &ports)
}

fn query(idempotency_key: Option<&str>) -> GroupQuery {
    GroupQuery { group_id: "g".into(), date: None, idempotency_key: idempotency_key.map(str::to_owned) }
}

#[tokio::test]
async fn stop_target_and_quantity_follow_from_the_atr() {
    let groups = groups(source(), &Stores::memory(), &Config::default());
    let executed = groups.execute(&query(Some("k")), NOW).await.unwrap();
    let expected = [("NSE_EQ|FALL", "sell", -5.0, -1.0), ("NSE_EQ|RISE", "buy", 5.0, 1.0)];
    assert_eq!(executed.intents.len(), expected.len());
    for (intent, (name, side, percent, sign)) in executed.intents.iter().zip(expected) {
        let frame = daily(100.0, &strong(percent), 4e5).frame;
        let (high, low, close) = (frame.high(), frame.low(), frame.close());
        let range = |row: usize| high[row].max(close[row - 1]) - low[row].min(close[row - 1]);
        let mut atr = (1..15).map(range).sum::<f64>() / 14.0;
        (15..75).for_each(|row| atr = (atr * 13.0 + range(row)) / 14.0);
        assert_eq!((intent.instrument_key.as_str(), intent.side.as_str()), (name, side));
        assert_eq!(intent.entry, close[74]);
        assert!((intent.stop - (close[74] - sign * 2.0 * atr)).abs() < 1e-9);
        assert!((intent.target - (close[74] + sign * 3.0 * atr)).abs() < 1e-9);
        assert_eq!(intent.quantity, (10_000.0 / (2.0 * atr)).floor());
        assert_eq!((intent.created_at, intent.group_id.as_str()), (NOW, "g"));
        assert!(intent.reason.contains("2024-04-") && intent.reason.contains("12 strong days"), "{}", intent.reason);
    }
    let skipped: Vec<_> = executed.skipped.iter().map(|each| (each.key.as_str(), each.reason.as_str())).collect();
    assert_eq!(skipped[0].0, "NSE_EQ|FLAT");
    assert!(skipped[0].1.starts_with("ema: close is 0.000 %"), "{}", skipped[0].1);
    assert_eq!(skipped[1], ("NSE_EQ|NOBODY", "universe: instrument 'NSE_EQ|NOBODY' is not known"));
    assert_eq!(skipped.len(), 2);
}

#[tokio::test]
async fn a_repeated_key_answers_what_was_stored_and_another_key_is_another_request() {
    let stores = Stores::memory();
    let first = groups(source(), &stores, &Config::default()).execute(&query(Some("k")), NOW).await.unwrap();
    // Later the data, the budget and even the group have changed.
    let mut changed = source();
    changed.groups.clear();
    let later = groups(changed, &stores, &Config { risk_budget: 1.0, ..Config::default() });
    let again = later.execute(&query(Some("k")), NOW + 5).await.unwrap();
    assert_eq!((again.intents, again.skipped.len()), (first.intents.clone(), 0));
    assert!(matches!(later.execute(&query(Some("k2")), NOW).await, Err(Error::UnknownGroup(id)) if id == "g"));

    let same = groups(source(), &stores, &Config::default());
    let second = same.execute(&query(Some("k2")), NOW + 9).await.unwrap();
    assert_eq!(second.intents.len(), 2);
    assert!(second.intents.iter().all(|intent| first.intents.iter().all(|other| other.id != intent.id)));
    let listed = same.list(&IntentPageQuery { group_id: None, after: None, limit: 3 }).await.unwrap();
    assert_eq!(listed.intents.len(), 3);
    let next = IntentPageQuery { group_id: Some("g".into()), after: listed.next, limit: 3 };
    let rest = same.list(&next).await.unwrap();
    assert_eq!((rest.intents.len(), rest.next), (1, None));
    let all: Vec<Millis> = listed.intents.iter().chain(&rest.intents).map(|intent| intent.created_at).collect();
    assert_eq!(all, [NOW, NOW, NOW + 9, NOW + 9]);
}

#[tokio::test]
async fn two_requests_at_once_with_one_key_agree() {
    let stores = Stores::memory();
    let groups = groups(source(), &stores, &Config::default());
    let asked = query(Some("k"));
    let (a, b) = tokio::join!(groups.execute(&asked, NOW), groups.execute(&asked, NOW + 1));
    assert_eq!(a.unwrap().intents, b.unwrap().intents);
    assert_eq!(stores.screens.intents(None, None, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let stores = Stores::memory();
    let groups = groups(source(), &stores, &Config::default());
    let executed = groups.execute(&query(None), NOW).await.unwrap();
    assert!(executed.intents.len() == 2 && executed.intents.iter().all(|intent| intent.id.is_empty()));
    assert!(stores.screens.intents(None, None, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_request_that_found_nothing_is_remembered_too() {
    let stores = Stores::memory();
    let mut quiet = source();
    add(&mut quiet, "NSE_EQ|RISE", "NSE", daily(100.0, &[0.0; 75], 4e5));
    add(&mut quiet, "NSE_EQ|FALL", "NSE", daily(100.0, &[0.0; 75], 4e5));
    let first = groups(quiet, &stores, &Config::default()).execute(&query(Some("k")), NOW).await.unwrap();
    assert_eq!((first.intents.len(), first.skipped.len()), (0, 4));
    let again = groups(source(), &stores, &Config::default()).execute(&query(Some("k")), NOW).await.unwrap();
    assert!(again.intents.is_empty());
}

#[tokio::test]
async fn an_unknown_group_is_not_found() {
    let groups = groups(source(), &Stores::memory(), &Config::default());
    let error = groups.execute(&GroupQuery { group_id: "x".into(), ..query(None) }, NOW).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Code::NotFound, "UNKNOWN_GROUP"));
}

#[test]
fn what_cannot_be_traded_says_why() {
    let hit = |side, last_close, atr| {
        let row = Row { last_close, ..Row::default() };
        Hit { key: key("NSE_EQ|A"), side, row, atr }
    };
    let refused = |hit: Hit| levels(&hit, 100.0).unwrap_err();
    assert!(refused(hit(Side::Bullish, 50.0, None)).contains("15 candles"));
    assert!(refused(hit(Side::Bullish, 50.0, Some(25.0))).contains("stop 0.00 is not above 0"));
    assert!(refused(hit(Side::Bearish, 50.0, Some(20.0))).contains("target -10.00 is not above 0"));
    assert!(refused(hit(Side::Bullish, 50.0, Some(0.0))).contains("no distance"));
    assert!(refused(hit(Side::Bullish, 500.0, Some(51.0))).contains("102.00, more than the budget of 100.00"));
    let one = levels(&hit(Side::Bearish, 500.0, Some(50.0)), 100.0).unwrap();
    assert_eq!(one, Levels { entry: 500.0, stop: 600.0, target: 350.0, quantity: 1.0 });
}

#[test]
fn ids_cannot_be_made_to_collide_by_moving_a_boundary() {
    let name = key("NSE_EQ|A");
    assert_ne!(intent_id("ab", "c", &name), intent_id("a", "bc", &name));
    assert_eq!(intent_id("ab", "c", &name).len(), 32);
}

//! Facts about everything but candles.

use market::{Instrument, TimeRange, Timeframe};
use store::{AnalysisRecord, Error, Group, IntentRecord, Stores, StudyProgress, StudyRecord, TrialOrder, TrialRecord};

use crate::candles::key;

fn instrument(text: &str, name: &str) -> Instrument {
    Instrument {
        key: key(text),
        name: name.to_owned(),
        exchange: "NSE".to_owned(),
        currency: "INR".to_owned(),
        tick_size: 0.05,
        calendar: "NSE".to_owned(),
    }
}

pub(crate) async fn instruments_are_listed_by_key_and_segment(stores: &Stores) {
    // Byte order: capitals before small letters, whatever the locale.
    for text in ["NSE_EQ|b", "US|A", "NSE_EQ|B", "NSE_EQ|a", "NSE_INDEX|Nifty 50"] {
        stores.catalog.upsert_instrument(&instrument(text, "first")).await.unwrap();
    }
    let renamed = Instrument { currency: "USD".to_owned(), ..instrument("US|A", "second") };
    stores.catalog.upsert_instrument(&renamed).await.unwrap();
    assert_eq!(stores.catalog.instrument(&key("US|A")).await.unwrap(), Some(renamed));
    assert_eq!(stores.catalog.instrument(&key("US|B")).await.unwrap(), None);

    let listed = async |after: Option<&str>, limit, segment| {
        let after = after.map(key);
        let found = stores.catalog.list_instruments(after.as_ref(), limit, segment).await.unwrap();
        found.iter().map(|instrument| instrument.key.as_str().to_owned()).collect::<Vec<String>>()
    };
    let all = ["NSE_EQ|B", "NSE_EQ|a", "NSE_EQ|b", "NSE_INDEX|Nifty 50", "US|A"];
    assert_eq!(listed(None, 100, None).await, all);
    assert_eq!(listed(None, 2, None).await, all[..2]);
    assert_eq!(listed(Some(all[1]), 2, None).await, all[2..4]);
    assert_eq!(listed(None, 100, Some("NSE_EQ")).await, all[..3]);
    assert_eq!(listed(Some(all[0]), 1, Some("NSE_EQ")).await, all[1..2]);
    assert!(listed(None, 100, Some("NSE")).await.is_empty());
}

pub(crate) async fn instruments_inserted_together_leave_known_ones_alone(stores: &Stores) {
    let known = instrument("NSE_EQ|B", "kept");
    stores.catalog.upsert_instrument(&known).await.unwrap();
    let odd = Instrument { tick_size: 0.1 + 0.2, ..instrument("NSE_EQ|M&M \"x\"", "it's") };
    let given = [odd.clone(), instrument("NSE_EQ|B", "ignored"), instrument("US|A", "new")];
    assert_eq!(stores.catalog.insert_instruments(&given).await.unwrap(), 2);
    assert_eq!(stores.catalog.insert_instruments(&given).await.unwrap(), 0);
    assert_eq!(stores.catalog.insert_instruments(&[]).await.unwrap(), 0);
    let keys = [key("US|A"), key("US|NOBODY"), key("NSE_EQ|B"), odd.key.clone(), key("US|A")];
    let found = stores.catalog.instruments(&keys).await.unwrap();
    assert_eq!(found, [Some(given[2].clone()), None, Some(known), Some(odd), Some(given[2].clone())]);
}

pub(crate) async fn a_store_is_like_no_other(stores: &Stores) {
    let id = stores.catalog.store_id().await.unwrap();
    assert!(id.len() >= 8, "{id}");
    assert_eq!(stores.catalog.store_id().await.unwrap(), id);
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        let url = format!("sqlite://{}", folder.path().join(name).display());
        let other = Stores::open(&url, &store::StoreOptions::default()).await.unwrap();
        assert_ne!(other.catalog.store_id().await.unwrap(), id);
        other.close().await;
    }
}

pub(crate) async fn groups_keep_their_order(stores: &Stores) {
    let group = |id: &str, keys: &[&str]| Group {
        id: id.to_owned(),
        name: format!("group {id}"),
        instrument_keys: keys.iter().map(|text| key(text)).collect(),
    };
    stores.catalog.put_group(&group("g2", &[])).await.unwrap();
    stores.catalog.put_group(&group("g1", &["US|A"])).await.unwrap();
    stores.catalog.put_group(&group("g1", &["US|Z", "US|A", "NSE_EQ|M&M \"x\""])).await.unwrap();
    let want = group("g1", &["US|Z", "US|A", "NSE_EQ|M&M \"x\""]);
    assert_eq!(stores.catalog.group("g1").await.unwrap(), Some(want.clone()));
    assert_eq!(stores.catalog.list_groups(None, 1).await.unwrap(), [want]);
    assert_eq!(stores.catalog.list_groups(Some("g1"), 9).await.unwrap(), [group("g2", &[])]);
    assert!(stores.catalog.delete_group("g1").await.unwrap());
    assert!(!stores.catalog.delete_group("g1").await.unwrap());
    assert_eq!(stores.catalog.group("g1").await.unwrap(), None);
}

pub(crate) async fn one_of_many_flag_writers_wins(stores: &Stores) {
    for generation in 0..3 {
        let writers = (0..5).map(|writer| {
            let stores = stores.clone();
            tokio::spawn(async move {
                let definition = format!("{{\"writer\":{writer}}}");
                stores.flags.compare_and_set("engine", generation, &definition, "test", 7).await
            })
        });
        let mut winners = 0;
        for writer in writers.collect::<Vec<_>>() {
            match writer.await.unwrap() {
                Ok(next) => {
                    assert_eq!(next, generation + 1);
                    winners += 1;
                }
                Err(Error::Conflict { what: "flag", .. }) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        assert_eq!(winners, 1);
    }
    let lost = stores.flags.compare_and_set("other", 2, "{}", "test", 8).await.unwrap_err();
    assert_eq!(lost.to_string(), "flag 'other' was changed by someone else: expected generation 2, found no flag");
    let flags = stores.flags.flags().await.unwrap();
    assert_eq!(flags.len(), 1);
    assert_eq!((flags[0].key.as_str(), flags[0].generation, flags[0].updated_at), ("engine", 3, 7));
    assert_eq!(stores.flags.flag("engine").await.unwrap().as_ref(), flags.first());
}

fn study(id: &str, created_at: i64) -> StudyRecord {
    StudyRecord {
        id: id.to_owned(),
        name: "crossover".to_owned(),
        state: "pending".to_owned(),
        spec_json: "{\"a\": [1, 2.5]}".to_owned(),
        created_at,
        updated_at: created_at,
        progress_done: 0,
        progress_total: 10,
        error: None,
    }
}

pub(crate) async fn a_study_changes_state_only_from_the_expected_one(stores: &Stores) {
    for (id, created_at) in [("a", 1), ("b", 3), ("c", 3), ("d", 2)] {
        stores.studies.create_study(&study(id, created_at)).await.unwrap();
    }
    let again = stores.studies.create_study(&study("a", 9)).await;
    assert!(matches!(again, Err(Error::AlreadyExists { what: "study", .. })));
    assert_eq!(stores.studies.study("a").await.unwrap(), Some(study("a", 1)));

    let progress = |state: &str| StudyProgress {
        state: state.to_owned(),
        progress_done: 4,
        progress_total: 10,
        error: Some("no candles".to_owned()),
        updated_at: 50,
    };
    stores.studies.update_study_state("a", Some("pending"), &progress("running")).await.unwrap();
    let lost = stores.studies.update_study_state("a", Some("pending"), &progress("cancelled")).await;
    assert!(matches!(lost, Err(Error::Conflict { found, .. }) if found == "running"));
    stores.studies.update_study_state("a", None, &progress("failed")).await.unwrap();
    let missing = stores.studies.update_study_state("x", None, &progress("failed")).await;
    assert!(matches!(missing, Err(Error::NotFound { .. })));
    let want = StudyRecord {
        state: "failed".to_owned(),
        progress_done: 4,
        error: Some("no candles".to_owned()),
        updated_at: 50,
        ..study("a", 1)
    };
    assert_eq!(stores.studies.study("a").await.unwrap(), Some(want));

    let listed = async |after, limit| {
        let found = stores.studies.list_studies(after, limit).await.unwrap();
        found.into_iter().map(|study| study.id).collect::<String>()
    };
    assert_eq!(listed(None, 9).await, "cbda");
    assert_eq!(listed(Some("c"), 2).await, "bd");
    assert_eq!(listed(Some("unknown"), 2).await, "");
    let unfinished = stores.studies.unfinished_studies(&["pending", "running"]).await.unwrap();
    assert_eq!(unfinished.into_iter().map(|study| study.id).collect::<String>(), "dbc");
}

pub(crate) async fn trials_are_idempotent_and_ranked(stores: &Stores) {
    let trial = |number: u64, objective: f64| TrialRecord {
        number,
        parameters_json: format!("{{\"fast\":{number}}}"),
        content_hash: "h".to_owned(),
        objective,
        result_json: "{}".to_owned(),
    };
    assert!(matches!(stores.studies.put_trials("s", &[trial(0, 1.0)]).await, Err(Error::NotFound { .. })));
    stores.studies.create_study(&study("s", 1)).await.unwrap();
    let many: Vec<TrialRecord> = (0..1200).map(|number| trial(number, (number * 7 % 100) as f64 / 3.0)).collect();
    stores.studies.put_trials("s", &many).await.unwrap();
    stores.studies.put_trials("s", &many[100..700]).await.unwrap();
    assert_eq!(stores.studies.trial_count("s").await.unwrap(), 1200);
    let bad = stores.studies.put_trials("s", &[trial(5000, 1.0), trial(5001, f64::NAN)]).await;
    assert!(matches!(bad, Err(Error::Invalid { field: "objective", .. })));
    assert_eq!(stores.studies.trial_count("s").await.unwrap(), 1200);
    stores.studies.put_trials("s", &[trial(3, 1e300), trial(3, 0.1 + 0.2)]).await.unwrap();

    let mut want = many;
    want[3].objective = 0.1 + 0.2;
    let page = stores.studies.trials("s", TrialOrder::Number { after: Some(1) }, 5).await.unwrap();
    assert_eq!(page, want[2..7]);
    assert_eq!(stores.studies.trials("s", TrialOrder::Number { after: None }, 5000).await.unwrap(), want);
    want.sort_by(|a, b| b.objective.total_cmp(&a.objective).then(a.number.cmp(&b.number)));
    let best = stores.studies.trials("s", TrialOrder::BestFirst { offset: 10 }, 30).await.unwrap();
    assert_eq!(best, want[10..40]);
    assert!(stores.studies.trials("unknown", TrialOrder::BestFirst { offset: 0 }, 5).await.unwrap().is_empty());
}

pub(crate) async fn intents_are_stored_once_per_idempotency_key(stores: &Stores) {
    let intent = |id: &str, group_id: &str, created_at: i64| IntentRecord {
        id: id.to_owned(),
        group_id: group_id.to_owned(),
        instrument_key: key("NSE_EQ|A"),
        side: "buy".to_owned(),
        entry: 0.1 + 0.2,
        stop: 0.25,
        target: 1.0,
        quantity: 3.0,
        reason: "three strong moves".to_owned(),
        created_at,
    };
    let first = [intent("z", "g", 1), intent("y", "g", 2)];
    assert_eq!(stores.screens.put_intents("g", "k", &first).await.unwrap(), first);
    // Repeated with other ids, as a retry makes them: what was stored comes back.
    assert_eq!(stores.screens.put_intents("g", "k", &[intent("new", "g", 3)]).await.unwrap(), first);
    assert!(stores.screens.put_intents("g", "none", &[]).await.unwrap().is_empty());
    assert!(stores.screens.put_intents("g", "none", &[intent("new", "g", 3)]).await.unwrap().is_empty());
    assert_eq!(stores.screens.intent_batch("g", "k").await.unwrap().unwrap(), first);
    assert_eq!(stores.screens.intent_batch("g", "none").await.unwrap(), Some(Vec::new()));
    assert_eq!(stores.screens.intent_batch("g", "unseen").await.unwrap(), None);
    assert_eq!(stores.screens.intent_batch("h", "k").await.unwrap(), None);
    // The key is the group's own.
    stores.screens.put_intents("h", "k", &[intent("x", "h", 2)]).await.unwrap();
    let taken = stores.screens.put_intents("h", "k2", &[intent("w", "h", 2), intent("z", "h", 2)]).await;
    assert!(matches!(taken, Err(Error::AlreadyExists { what: "intent", .. })), "{taken:?}");
    let infinite = IntentRecord { stop: f64::INFINITY, ..intent("v", "h", 2) };
    for bad in [intent("v", "other", 1), infinite] {
        assert!(matches!(stores.screens.put_intents("h", "k3", &[bad]).await, Err(Error::Invalid { .. })));
    }

    let listed = async |group, after, limit| {
        let found = stores.screens.intents(group, after, limit).await.unwrap();
        found.into_iter().map(|intent| intent.id).collect::<String>()
    };
    assert_eq!(listed(None, None, 9).await, "zxy");
    assert_eq!(listed(Some("g"), None, 9).await, "zy");
    assert_eq!(listed(None, Some("z"), 1).await, "x");
    assert_eq!(listed(Some("g"), Some("z"), 9).await, "y");
    assert_eq!(listed(None, Some("unknown"), 9).await, "");

    // Racing retries of one request agree.
    let racers = (0..5).map(|racer| {
        let (stores, intent) = (stores.clone(), intent(&format!("r{racer}"), "race", 9));
        tokio::spawn(async move { stores.screens.put_intents("race", "k", &[intent]).await.unwrap() })
    });
    let mut answers = Vec::new();
    for racer in racers.collect::<Vec<_>>() {
        answers.push(racer.await.unwrap());
    }
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer.len() == 1));
}

pub(crate) async fn analyses_are_found_by_range(stores: &Stores) {
    let analysis = |timeframe, start, end, engine: &str, revision| AnalysisRecord {
        instrument_key: key("NSE_EQ|A"),
        timeframe,
        start,
        end,
        engine: engine.to_owned(),
        revision,
        metrics_json: "{}".to_owned(),
        patterns_json: "[]".to_owned(),
        created_at: 5,
    };
    let v1 = analysis(Timeframe::D1, 100, 200, "v1", 1);
    let v2 = analysis(Timeframe::D1, 100, 200, "v2", 1);
    let hourly = analysis(Timeframe::H1, 150, 300, "v1", 1);
    for record in [&hourly, &v2, &analysis(Timeframe::D1, 100, 200, "v1", 9), &v1] {
        stores.screens.put_analysis(record).await.unwrap();
    }
    let found = async |start, end, limit| {
        stores.screens.analyses(&key("NSE_EQ|A"), TimeRange::new(start, end).unwrap(), limit).await.unwrap()
    };
    assert_eq!(found(0, 1000, 9).await, [v1.clone(), v2.clone(), hourly.clone()]);
    assert_eq!(found(0, 1000, 1).await, [v1]);
    assert_eq!(found(200, 201, 9).await, [hourly]);
    assert!(found(0, 100, 9).await.is_empty());
}

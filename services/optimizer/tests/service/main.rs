//! The service as its clients see it: gRPC on a free port, upstreams in memory.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is its message")]

mod naive;
mod running;

use std::collections::BTreeMap;

use proto::optimizer as pb;
use proto::optimizer::StudyState;
use store::{StoreOptions, Stores, TrialOrder, TrialRecord};
use tonic::Code;

use running::{BROKEN, COIN, FLAKY, LONG, Running, SHARE, SHORT, STALLED, World, coin, refusal, share};

fn range(name: &str, start: f64, stop: f64, step: f64) -> pb::ParameterRange {
    pb::ParameterRange { name: name.into(), start, stop, step }
}

/// 4 fast and 5 slow averages, of which 17 pairs are ordered.
fn small(keys: &[&str]) -> pb::StudySpec {
    pb::StudySpec {
        strategy: pb::Strategy::SmaCrossover.into(),
        parameters: vec![range("fast", 3.0, 12.0, 3.0), range("slow", 8.0, 24.0, 4.0)],
        search: pb::Search::Grid.into(),
        objective: pb::Objective::Sharpe.into(),
        instrument_keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        timeframe: "1d".into(),
        fee_bp: 10.0,
        ..Default::default()
    }
}

/// Takes seconds, so that it can be cut off.
fn large() -> pb::StudySpec {
    pb::StudySpec {
        strategy: pb::Strategy::RsiReversion.into(),
        parameters: vec![
            range("period", 2.0, 30.0, 1.0),
            range("lower", 10.0, 45.0, 1.0),
            range("upper", 55.0, 90.0, 1.0),
        ],
        search: pb::Search::Random.into(),
        budget: 1500,
        seed: 42,
        timeframe: "1m".into(),
        folds: 3,
        ..small(&[LONG])
    }
}

async fn records(stores: &Stores, id: &str) -> Vec<TrialRecord> {
    stores.studies.trials(id, TrialOrder::Number { after: None }, 10_000).await.unwrap()
}

#[tokio::test]
async fn a_study_is_what_its_definition_says() {
    let world = World::new(Stores::memory());
    let service = world.start().await;
    let spec = pb::StudySpec { folds: 3, ..small(&[SHARE, COIN]) };
    let created = service.create("naive", &spec).await.unwrap();
    assert_eq!((created.state(), created.trials_total), (StudyState::Queued, 17));
    let study = service.ended("naive").await;
    assert_eq!((study.state(), study.trials_done, study.error.as_str()), (StudyState::Completed, 17, ""));
    assert_eq!(study.spec.unwrap(), pb::StudySpec { range: Some(Default::default()), ..spec });

    let trials = service.trials("naive").await;
    assert_eq!(trials.len(), 17);
    assert!(trials.windows(2).all(|pair| pair[0].objective >= pair[1].objective), "best first");
    let data = [(share(), 252.0_f64), (coin(), 365.0)];
    let mut expected = Vec::new();
    for fast in [3, 6, 9, 12] {
        for slow in [8, 12, 16, 20, 24] {
            if fast < slow {
                expected.push((fast, slow));
            }
        }
    }
    for trial in trials {
        let (fast, slow) = expected[trial.number as usize];
        let named: BTreeMap<_, _> = trial.parameters.iter().map(|p| (p.name.as_str(), p.value as usize)).collect();
        assert_eq!(named, BTreeMap::from([("fast", fast), ("slow", slow)]));
        let mut sums = [0.0; 7];
        for (close, per_year) in &data {
            let run = |rows| naive::crossover(close, rows, fast, slow, 0.001, *per_year);
            let whole = run(0..close.len());
            let segment = close.len() / 4;
            let train: f64 = (1..=3).map(|end| run(0..segment * end).sharpe).sum::<f64>() / 3.0;
            let test: f64 = (1..=3).map(|end| run(segment * end..segment * (end + 1)).sharpe).sum::<f64>() / 3.0;
            let figures =
                [whole.sharpe, whole.total_return, whole.max_drawdown, whole.win_rate, whole.trades, train, test];
            sums.iter_mut().zip(figures).for_each(|(sum, figure)| *sum += figure / 2.0);
        }
        let (inside, outside) = (trial.in_sample.unwrap(), trial.out_of_sample.unwrap());
        let found = [
            trial.objective,
            trial.total_return,
            trial.max_drawdown,
            trial.win_rate,
            f64::from(trial.trade_count),
            inside,
            outside,
        ];
        sums[4] = sums[4].round();
        for (found, expected) in found.iter().zip(sums) {
            assert!(
                (found - expected).abs() <= 1e-9 * expected.abs().max(1.0),
                "{found} against {expected}: {trial:?}"
            );
        }
        assert_eq!(trial.objective, trial.sharpe);
        let overfit = if inside <= 0.0 { 1.0 } else { (1.0 - outside / inside).max(0.0) };
        assert!((trial.overfit.unwrap() - overfit).abs() < 1e-12);
    }
    service.stop().await;
}

#[tokio::test]
async fn trials_do_not_depend_on_how_the_work_is_cut() {
    let mut all = Vec::new();
    for (tasks, time_ms) in [(1, 0), (4, 50)] {
        let mut world = World::new(Stores::memory());
        world.config.tasks_per_study = tasks;
        world.config.task_time = std::time::Duration::from_millis(time_ms);
        let service = world.start().await;
        let search = pb::StudySpec { search: pb::Search::Random.into(), budget: 40, seed: 9, ..small(&[COIN, SHARE]) };
        let parameters = vec![range("fast", 2.0, 20.0, 1.0), range("slow", 5.0, 60.0, 1.0)];
        let calmar = pb::Objective::Calmar.into();
        service.create("cut", &pb::StudySpec { parameters, objective: calmar, ..search }).await.unwrap();
        assert_eq!(service.ended("cut").await.state(), StudyState::Completed);
        all.push(records(&world.stores, "cut").await);
        service.stop().await;
    }
    assert_eq!(all[0].len(), 40);
    assert_eq!(all[0], all[1]);
    let hashes: std::collections::HashSet<_> = all[0].iter().map(|trial| &trial.content_hash).collect();
    assert_eq!(hashes.len(), 40, "each trial is another");
}

#[tokio::test]
async fn the_same_study_again_is_the_one_that_exists() {
    let world = World::new(Stores::memory());
    let service = world.start().await;
    let made = service.create("", &small(&[SHARE])).await.unwrap();
    assert_eq!(made.study_id.len(), 36);
    let done = service.ended(&made.study_id).await;
    let again = service.create(&made.study_id, &small(&["us|SHARE"])).await.unwrap();
    assert_eq!(again, done);
    let other = pb::StudySpec { fee_bp: 11.0, ..small(&[SHARE]) };
    let status = service.create(&made.study_id, &other).await.unwrap_err();
    assert_eq!(refusal(status), (Code::AlreadyExists, "STUDY_EXISTS".into(), vec![]));

    for id in ["b", "c"] {
        service.create(id, &small(&[SHARE])).await.unwrap();
    }
    let mut listed = Vec::new();
    let mut page_token = String::new();
    for _ in 0..3 {
        let request = pb::ListStudiesRequest { page_size: 1, page_token };
        let page = service.grpc().list_studies(request).await.unwrap().into_inner();
        listed.extend(page.studies.into_iter().map(|study| study.study_id));
        page_token = page.next_page_token;
    }
    assert!(page_token.is_empty());
    assert_eq!(listed[2], made.study_id, "newest first");
    service.stop().await;
}

#[tokio::test]
async fn bad_requests_are_refused_by_name() {
    let world = World::new(Stores::memory());
    let service = world.start().await;
    let invalid = |field: &str| (Code::InvalidArgument, "INVALID_FIELD".to_owned(), vec![field.to_owned()]);
    for (id, spec, want) in [
        ("Upper", small(&[SHARE]), invalid("study_id")),
        (&"x".repeat(65), small(&[SHARE]), invalid("study_id")),
        ("a", pb::StudySpec { search: 0, ..small(&[SHARE]) }, invalid("spec.search")),
        ("a", pb::StudySpec { parameters: vec![], ..small(&[SHARE]) }, invalid("spec.parameters")),
        ("a", small(&[SHARE, "US|NOPE"]), (Code::NotFound, "UNKNOWN_INSTRUMENT".to_owned(), vec![])),
    ] {
        let status = service.create(id, &spec).await.unwrap_err();
        assert!(!status.message().is_empty());
        assert_eq!(refusal(status), want, "{id} {spec:?}");
    }
    let without = pb::CreateStudyRequest { study_id: "a".into(), spec: None };
    assert_eq!(refusal(service.grpc().create_study(without).await.unwrap_err()), invalid("spec"));

    let unknown = (Code::NotFound, "UNKNOWN_STUDY".to_owned(), vec![]);
    let study_id = String::from("a");
    let mut grpc = service.grpc();
    let status = grpc.get_study(pb::GetStudyRequest { study_id: study_id.clone() }).await.unwrap_err();
    assert_eq!(refusal(status), unknown);
    let status = grpc.cancel_study(pb::CancelStudyRequest { study_id: study_id.clone() }).await.unwrap_err();
    assert_eq!(refusal(status), unknown);
    let status = grpc.watch_study(pb::WatchStudyRequest { study_id: study_id.clone() }).await.unwrap_err();
    assert_eq!(refusal(status), unknown);
    let trials = pb::ListTrialsRequest { study_id, ..Default::default() };
    assert_eq!(refusal(grpc.list_trials(trials.clone()).await.unwrap_err()), unknown);
    let trials = pb::ListTrialsRequest { page_token: "-1".into(), ..trials };
    assert_eq!(refusal(grpc.list_trials(trials.clone()).await.unwrap_err()), invalid("page_token"));
    let trials = pb::ListTrialsRequest { page_size: 1001, ..trials };
    assert_eq!(refusal(grpc.list_trials(trials).await.unwrap_err()), invalid("page_size"));
    service.stop().await;
}

#[tokio::test]
async fn a_study_that_cannot_run_fails_with_the_reason() {
    let mut world = World::new(Stores::memory());
    world.config.fetch_attempts = 3;
    let service = world.start().await;
    let failed = async |id: &str, spec: pb::StudySpec| {
        service.create(id, &spec).await.unwrap();
        let study = service.ended(id).await;
        assert_eq!((study.state(), study.trials_done), (StudyState::Failed, 0));
        study.error
    };
    let error = failed("short", small(&[SHARE, SHORT])).await;
    assert!(error.contains(SHORT) && error.contains("20") && error.contains("26"), "{error}");
    let error = failed("folded", pb::StudySpec { folds: 20, ..small(&[SHORT]) }).await;
    assert!(error.contains("42"), "{error}");
    let error = failed("nothing", pb::StudySpec { timeframe: "1w".into(), ..small(&[SHARE]) }).await;
    assert!(error.contains("0 in the range"), "{error}");
    let error = failed("broken", small(&[BROKEN])).await;
    assert!(error.contains(BROKEN) && error.contains("close[7]"), "{error}");

    world.fail(3);
    let error = failed("away", small(&[FLAKY])).await;
    assert!(error.contains(FLAKY) && error.contains("aggregation is away"), "{error}");
    world.fail(2);
    service.create("back", &small(&[FLAKY])).await.unwrap();
    assert_eq!(service.ended("back").await.state(), StudyState::Completed, "a passing fault is waited out");
    service.stop().await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_cancelling_frees_it() {
    let mut world = World::new(Stores::memory());
    (world.config.max_concurrent_studies, world.config.max_queued) = (1, 1);
    let service = world.start().await;
    service.create("first", &small(&[STALLED])).await.unwrap();
    let runs = async {
        while service.study("first").await.state() != StudyState::Running {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), runs).await.expect("the first runs");
    service.create("second", &small(&[SHARE])).await.unwrap();
    let status = service.create("third", &small(&[SHARE])).await.unwrap_err();
    assert_eq!(refusal(status), (Code::ResourceExhausted, "QUEUE_FULL".into(), vec![]));
    assert_eq!(service.create("second", &small(&[SHARE])).await.unwrap().state(), StudyState::Queued);

    assert_eq!(service.cancel("second").await.state(), StudyState::Cancelled);
    service.create("third", &small(&[SHARE])).await.unwrap();
    assert_eq!(service.cancel("first").await.state(), StudyState::Cancelled);
    assert_eq!(service.ended("third").await.state(), StudyState::Completed);
    assert_eq!(service.cancel("third").await.state(), StudyState::Completed, "what has ended stays as it is");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_study_keeps_what_it_has() {
    let world = World::new(Stores::memory());
    let service = world.start().await;
    service.create("long", &large()).await.unwrap();
    let mut watched = service.watch("long").await;
    service.midway("long").await;
    let cancelled = service.cancel("long").await;
    assert_eq!(cancelled.state(), StudyState::Cancelled);
    assert!((1..1500).contains(&cancelled.trials_done));
    let stored = records(&world.stores, "long").await;
    assert_eq!(stored.len() as u32, cancelled.trials_done);
    assert_eq!(service.cancel("long").await, cancelled);
    let mut last = None;
    while let Some(update) = watched.message().await.unwrap() {
        last = update.study;
    }
    assert_eq!(last.unwrap(), cancelled, "the stream ends with the study");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_study_goes_on_after_a_crash_and_after_a_drain() {
    let whole = World::new(Stores::memory());
    let service = whole.start().await;
    service.create("long", &large()).await.unwrap();
    assert_eq!(service.ended("long").await.state(), StudyState::Completed);
    service.stop().await;
    let expected = records(&whole.stores, "long").await;
    let numbers: Vec<_> = expected.iter().map(|trial| trial.number).collect();
    assert_eq!(numbers, (0..1500).collect::<Vec<_>>());

    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("studies.db").display());
    let mut done = 0;
    let ends: [fn(Running) -> futures::future::BoxFuture<'static, ()>; 2] =
        [|service| Box::pin(service.kill()), |service| Box::pin(service.stop())];
    for end in ends {
        let world = World::new(Stores::open(&url, &StoreOptions::default()).await.unwrap());
        let service = world.start().await;
        if done == 0 {
            service.create("long", &large()).await.unwrap();
        }
        let goes_on = async {
            while service.study("long").await.trials_done <= done {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), goes_on).await.expect("trials are done");
        end(service).await;
        let study = world.stores.studies.study("long").await.unwrap().unwrap();
        assert_eq!((study.state.as_str(), study.progress_done < 1500), ("running", true));
        done = study.progress_done as u32;
        world.stores.close().await;
    }
    let world = World::new(Stores::open(&url, &StoreOptions::default()).await.unwrap());
    let service = world.start().await;
    let study = service.ended("long").await;
    assert_eq!((study.state(), study.trials_done), (StudyState::Completed, 1500));
    assert_eq!(records(&world.stores, "long").await, expected, "the same trials, each once");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_cut_by_the_drain_says_so() {
    let world = World::new(Stores::memory());
    let service = world.start().await;
    service.create("long", &large()).await.unwrap();
    let mut updates = service.watch("long").await;
    service.midway("long").await;
    service.drain.start();
    let status = loop {
        match updates.message().await {
            Ok(Some(update)) => assert_eq!(update.study.unwrap().state(), StudyState::Running),
            Ok(None) => panic!("the stream ended as if the study had"),
            Err(status) => break status,
        }
    };
    assert_eq!(refusal(status), (Code::Unavailable, "DRAINING".into(), vec![]));
    drop(updates);
    service.stop().await;
}

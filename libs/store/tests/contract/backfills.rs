//! Facts about backfill jobs: who runs one, what survives, and that sums are those of the files.

use std::collections::BTreeSet;

use store::{
    BackfillChange, BackfillCounts, BackfillFileRecord, BackfillLease, BackfillRecord, BackfillRelease,
    BackfillRequest, BackfillState, Error, ExpectedRequest, FailedFiles, NewBackfill, Stores,
};

use BackfillState::{Cancelled, Done, Failed, Paused, Queued, Running};

const LEASE_MS: i64 = 1000;

fn job(id: &str, request_id: Option<&str>) -> NewBackfill {
    NewBackfill {
        id: id.to_owned(),
        request_id: request_id.map(str::to_owned),
        path: "in".to_owned(),
        format: "auto".to_owned(),
        spec_json: "{\"timeframe\":\"1m\"}".to_owned(),
        dry_run: true,
    }
}

fn file(number: u64) -> BackfillFileRecord {
    BackfillFileRecord {
        number,
        path: format!("in/{number}.csv"),
        state: Queued,
        format: String::new(),
        size_bytes: 1000 + number,
        modified_ns: 1_700_000_000_123_456_789,
        counts: BackfillCounts::default(),
        candles_taken: 0,
        unreadable_taken: 0,
        pending_revision: None,
        details_json: "{}".to_owned(),
        error: None,
    }
}

async fn create(stores: &Stores, id: &str, files: u64, now: i64) -> BackfillRecord {
    let files: Vec<_> = (0..files).map(file).collect();
    stores.backfills.create_backfill(&job(id, None), &files, now).await.unwrap()
}

async fn claim(stores: &Stores, owner: &str, now: i64) -> Option<(BackfillRecord, BackfillLease)> {
    stores.backfills.claim_backfill(owner, now + LEASE_MS, now).await.unwrap()
}

fn change(from: BackfillState, to: BackfillState) -> BackfillChange {
    BackfillChange { from: (from, None), to: (to, None), failed_files: FailedFiles::Keep }
}

/// The sums of a job are those of its files, whatever was written.
async fn check_sums(stores: &Stores, id: &str) -> BackfillRecord {
    let job = stores.backfills.backfill(id).await.unwrap().unwrap();
    let files = stores.backfills.backfill_files(id, None, 1000).await.unwrap();
    let sum = |of: fn(&BackfillFileRecord) -> u64| files.iter().map(of).sum::<u64>();
    assert_eq!(job.files_total, files.len() as u64);
    assert_eq!(job.files_done, sum(|file| file.state.is_ended().into()));
    assert_eq!(job.files_failed, sum(|file| (file.state == Failed).into()));
    assert_eq!(job.bytes_total, sum(|file| file.size_bytes));
    let counts = BackfillCounts {
        bytes_read: sum(|file| file.counts.bytes_read),
        rows_read: sum(|file| file.counts.rows_read),
        stored: sum(|file| file.counts.stored),
        unchanged: sum(|file| file.counts.unchanged),
        rejected: sum(|file| file.counts.rejected),
    };
    assert_eq!(job.counts, counts);
    job
}

pub(crate) async fn a_backfill_is_created_once_per_request_and_listed_newest_first(stores: &Stores) {
    let backfills = &stores.backfills;
    let broken = BackfillFileRecord { state: Failed, error: Some("outside".to_owned()), ..file(1) };
    let first = backfills.create_backfill(&job("b1", Some("r")), &[file(0), broken.clone()], 10).await.unwrap();
    assert_eq!((first.state, first.files_total, first.files_done, first.files_failed), (Queued, 2, 1, 1));
    assert_eq!((first.created_at, first.bytes_total, first.dry_run), (10, 2001, true));
    // Another id, the same request: the first call's job, and nothing new.
    let again = backfills.create_backfill(&job("b2", Some("r")), &[file(0)], 20).await.unwrap();
    assert_eq!(again, first);
    assert_eq!(backfills.backfill("b2").await.unwrap(), None);
    assert_eq!(backfills.backfill_by_request("r").await.unwrap(), Some(first.clone()));
    let taken = backfills.create_backfill(&job("b1", None), &[], 20).await;
    assert!(matches!(taken, Err(Error::AlreadyExists { what: "backfill", .. })), "{taken:?}");
    // Sixteen at once with one request make one job.
    let callers = (0..16).map(|caller| {
        let stores = stores.clone();
        tokio::spawn(async move {
            let files: Vec<_> = (0..3).map(file).collect();
            let job = job(&format!("c{caller}"), Some("together"));
            stores.backfills.create_backfill(&job, &files, 30).await.unwrap().id
        })
    });
    let mut ids = BTreeSet::new();
    for caller in callers.collect::<Vec<_>>() {
        ids.insert(caller.await.unwrap());
    }
    assert_eq!(ids.len(), 1, "{ids:?}");
    let together = ids.pop_first().unwrap();
    create(stores, "a3", 0, 30).await;

    let listed = async |after: Option<&str>, limit| {
        let found = backfills.list_backfills(after, limit).await.unwrap();
        found.into_iter().map(|job| job.id).collect::<Vec<String>>()
    };
    let all = [together.as_str(), "a3", "b1"];
    assert_eq!(listed(None, 10).await, all);
    assert_eq!(listed(Some(all[0]), 1).await, ["a3"]);
    assert_eq!(listed(Some("a3"), 10).await, ["b1"]);
    assert!(listed(Some("b1"), 10).await.is_empty() && listed(Some("none"), 10).await.is_empty());
    assert_eq!(backfills.backfill_files("b1", None, 10).await.unwrap(), [file(0), broken.clone()]);
    assert_eq!(backfills.backfill_files("b1", Some(0), 10).await.unwrap(), [broken]);
    assert_eq!(backfills.count_backfills().await.unwrap(), [3, 0, 0, 0, 0, 0]);
}

pub(crate) async fn of_many_claimers_each_backfill_has_one(stores: &Stores) {
    for number in 0..4 {
        create(stores, &format!("b{number}"), 1, number).await;
    }
    let claimers = (0..16).map(|claimer| {
        let stores = stores.clone();
        tokio::spawn(async move {
            let mut won = Vec::new();
            // Passing over what another is about to take may leave a claimer with nothing for a moment, so it asks again.
            for _ in 0..8 {
                won.extend(claim(&stores, &format!("w{claimer}"), 100).await.map(|(job, _)| job.id));
            }
            won
        })
    });
    let mut won = Vec::new();
    for claimer in claimers.collect::<Vec<_>>() {
        won.extend(claimer.await.unwrap());
    }
    won.sort();
    assert_eq!(won, ["b0", "b1", "b2", "b3"]);
    assert_eq!(stores.backfills.count_backfills().await.unwrap(), [0, 4, 0, 0, 0, 0]);
}

pub(crate) async fn an_expired_lease_is_taken_over_and_the_stale_owner_is_shut_out(stores: &Stores) {
    create(stores, "b2", 1, 2).await;
    create(stores, "b1", 1, 1).await;
    let (job, stale) = claim(stores, "first", 0).await.unwrap();
    assert_eq!((job.id.as_str(), job.state), ("b1", Running), "the oldest comes first");
    assert_eq!(claim(stores, "second", 10).await.unwrap().0.id, "b2");
    assert_eq!(claim(stores, "third", LEASE_MS).await, None, "both leases still hold");
    // A renewed lease holds on.
    stores.backfills.renew_backfill(&stale, 3 * LEASE_MS).await.unwrap();
    assert_eq!(claim(stores, "third", 2 * LEASE_MS).await.unwrap().0.id, "b2");
    let (taken, lease) = claim(stores, "third", 3 * LEASE_MS + 1).await.unwrap();
    assert_eq!(taken.id, "b1");
    assert!(lease.fence > stale.fence);

    let backfills = &stores.backfills;
    let written = BackfillFileRecord { candles_taken: 7, ..file(0) };
    let done = BackfillRelease { state: Done, error: None, expected: ExpectedRequest::Any };
    let conflict = |outcome: Result<(), Error>| assert!(matches!(outcome, Err(Error::Conflict { .. })), "{outcome:?}");
    conflict(backfills.renew_backfill(&stale, 99 * LEASE_MS).await.map(|_| ()));
    conflict(backfills.save_backfill_file(&stale, &written, 99 * LEASE_MS, 1).await.map(|_| ()));
    conflict(backfills.release_backfill(&stale, &done, 1).await.map(|_| ()));
    assert_eq!(backfills.next_backfill_file("b1").await.unwrap(), Some(file(0)));
    backfills.save_backfill_file(&lease, &written, 9 * LEASE_MS, 1).await.unwrap();
    assert_eq!(backfills.next_backfill_file("b1").await.unwrap(), Some(written.clone()));
    assert!(backfills.release_backfill(&lease, &done, 2).await.unwrap());
    // A job that is in nobody's hands is not written either, even under its last lease.
    conflict(backfills.save_backfill_file(&lease, &written, 9 * LEASE_MS, 3).await.map(|_| ()));
}

pub(crate) async fn sums_move_with_their_files(stores: &Stores) {
    create(stores, "b", 3, 1).await;
    let (_, lease) = claim(stores, "w", 1).await.unwrap();
    let backfills = &stores.backfills;
    let counts = BackfillCounts { bytes_read: 400, rows_read: 60, stored: 30, unchanged: 20, rejected: 10 };
    let taken = BackfillFileRecord {
        state: Running,
        format: "csv".to_owned(),
        counts,
        candles_taken: 55,
        unreadable_taken: 5,
        pending_revision: Some(9),
        details_json: "{\"instruments\":[\"US|A\"]}".to_owned(),
        ..file(0)
    };
    backfills.save_backfill_file(&lease, &taken, 2 * LEASE_MS, 2).await.unwrap();
    assert_eq!(backfills.next_backfill_file("b").await.unwrap(), Some(taken.clone()));
    assert_eq!(check_sums(stores, "b").await.updated_at, 2);
    // Read anew, as a file that has changed is: the sums go down again.
    let anew = BackfillFileRecord { size_bytes: 5, modified_ns: -1, ..file(0) };
    backfills.save_backfill_file(&lease, &anew, 2 * LEASE_MS, 3).await.unwrap();
    let job = check_sums(stores, "b").await;
    assert_eq!((job.counts, job.bytes_total), (BackfillCounts::default(), 5 + 1001 + 1002));
    let done = BackfillFileRecord { state: Done, ..taken };
    backfills.save_backfill_file(&lease, &done, 2 * LEASE_MS, 4).await.unwrap();
    let failed = BackfillFileRecord { state: Failed, counts, error: Some("truncated".to_owned()), ..file(1) };
    backfills.save_backfill_file(&lease, &failed, 2 * LEASE_MS, 5).await.unwrap();
    let job = check_sums(stores, "b").await;
    assert_eq!((job.files_done, job.files_failed), (2, 1));
    assert_eq!(backfills.next_backfill_file("b").await.unwrap().unwrap().number, 2);
    let unknown = backfills.save_backfill_file(&lease, &file(77), 2 * LEASE_MS, 6).await;
    assert!(matches!(unknown, Err(Error::NotFound { .. })), "{unknown:?}");

    let ended = BackfillRelease { state: Failed, error: Some("1 file".to_owned()), expected: ExpectedRequest::Any };
    assert!(backfills.release_backfill(&lease, &ended, 7).await.unwrap());
    assert_eq!(check_sums(stores, "b").await.error.as_deref(), Some("1 file"));
    let again = BackfillChange { failed_files: FailedFiles::Requeue, ..change(Failed, Queued) };
    let job = backfills.change_backfill("b", &again, 8).await.unwrap();
    assert_eq!((job.state, job.error.clone(), job.files_done, job.files_failed), (Queued, None, 1, 0));
    assert_eq!(check_sums(stores, "b").await, job);
    let requeued = backfills.next_backfill_file("b").await.unwrap().unwrap();
    assert_eq!(requeued, BackfillFileRecord { state: Queued, error: None, ..failed }, "it goes on where it stopped");
}

pub(crate) async fn a_request_reaches_the_worker_and_a_release_answers_it(stores: &Stores) {
    create(stores, "b", 1, 1).await;
    let backfills = &stores.backfills;
    let pause = BackfillChange { to: (Running, Some(BackfillRequest::Pause)), ..change(Running, Running) };
    // Not running yet.
    let early = backfills.change_backfill("b", &pause, 1).await;
    assert!(matches!(early, Err(Error::Conflict { what: "backfill", .. })), "{early:?}");
    let missing = backfills.change_backfill("none", &pause, 1).await;
    assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
    let (_, lease) = claim(stores, "w", 1).await.unwrap();
    assert_eq!(backfills.renew_backfill(&lease, LEASE_MS).await.unwrap(), None);
    backfills.change_backfill("b", &pause, 2).await.unwrap();
    assert_eq!(backfills.renew_backfill(&lease, LEASE_MS).await.unwrap(), Some(BackfillRequest::Pause));
    let seen = backfills.save_backfill_file(&lease, &file(0), LEASE_MS, 3).await.unwrap();
    assert_eq!(seen, Some(BackfillRequest::Pause));

    // Cancelled in the moment before the worker pauses: the pause does not count, and the worker looks again.
    let cancel = BackfillChange {
        from: (Running, Some(BackfillRequest::Pause)),
        to: (Running, Some(BackfillRequest::Cancel)),
        failed_files: FailedFiles::Keep,
    };
    backfills.change_backfill("b", &cancel, 4).await.unwrap();
    let release = |state, request| BackfillRelease { state, error: None, expected: ExpectedRequest::Exactly(request) };
    let paused = backfills.release_backfill(&lease, &release(Paused, Some(BackfillRequest::Pause)), 5).await.unwrap();
    assert!(!paused);
    let cancelled = release(Cancelled, Some(BackfillRequest::Cancel));
    assert!(backfills.release_backfill(&lease, &cancelled, 5).await.unwrap());
    let job = backfills.backfill("b").await.unwrap().unwrap();
    assert_eq!((job.state, job.requested), (Cancelled, None));
    assert_eq!(claim(stores, "w", 9 * LEASE_MS).await, None, "what has ended is not claimed");

    // A worker that stops by itself leaves the request to the next one.
    create(stores, "c", 1, 1).await;
    let (_, lease) = claim(stores, "w", 1).await.unwrap();
    backfills.change_backfill("c", &pause, 2).await.unwrap();
    let handed_back = BackfillRelease { state: Queued, error: None, expected: ExpectedRequest::Any };
    assert!(backfills.release_backfill(&lease, &handed_back, 3).await.unwrap());
    let (next, _) = claim(stores, "x", 4).await.unwrap();
    assert_eq!((next.id.as_str(), next.requested), ("c", Some(BackfillRequest::Pause)));
}

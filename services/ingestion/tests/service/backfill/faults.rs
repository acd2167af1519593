//! Workers that die, and databases that do not answer.

use super::faulty::{Fate, faulty};
use super::*;

/// A worker is ended at many moments of a job, each time without any farewell, and another takes over once the lease has expired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_workers_job_is_taken_over_and_nothing_counts_twice() {
    let folder = tempfile::tempdir().unwrap();
    let rows = minutes(0..200_000);
    write(folder.path(), "in/a.csv", csv(&rows[..100_000]));
    // Half of it is there already when it comes to it, and every hundredth row is no number.
    let mut text = csv(&rows[50_000..200_000]);
    let mut bad = 0;
    for (line, row) in csv(&rows[..150_000]).lines().skip(1).enumerate().filter(|(line, _)| line % 100 == 7) {
        bad += 1;
        text.push_str(&format!("{}x\n", row.split_at(row.len().min(20 + line % 3)).0));
    }
    write(folder.path(), "in/b.csv", &text);

    let data = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", data.path().join("candles.db").display());
    let stores = Stores::open(&url, &store::StoreOptions::default()).await.unwrap();
    let caller = replica(&stores, ingestion::Config { backfill_workers: 0, ..config(Some(folder.path())) }).await;
    let id = caller.load("in").await.backfill_id;
    let mut kills = 0;
    let mut read = 0;
    while kills < 6 {
        let worker = replica(&stores, config(Some(folder.path()))).await;
        let job = caller.until(&id, |job| job.rows_read > read || job.state() == BackfillState::Done).await;
        if job.state() == BackfillState::Done {
            break;
        }
        read = job.rows_read;
        // A different moment of the next chunk each time.
        tokio::time::sleep(Duration::from_millis(kills * 9)).await;
        worker.task.abort();
        kills += 1;
    }
    assert!(kills >= 3, "only {kills} kills before it was done");
    let worker = replica(&stores, config(Some(folder.path()))).await;
    let job = worker.ended(&id).await;
    let (_, files) = worker.get(&id).await;
    check_sums(&job, &files);
    assert_eq!(job.state(), BackfillState::Done, "{files:?}");
    assert_eq!(counts(&job), [250_000 + bad, 200_000, 50_000, bad], "as of a run without a kill");
    assert_eq!(stored(&stores, "NSE_EQ|A").await, rows_of(&rows));
    assert_eq!(files[1].first_rejected.len(), 20);
    assert_eq!(files[1].first_rejected[0].row, 150_002);
    stores.close().await;
}

/// Two replicas work on three jobs; each row is counted by one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_the_queue() {
    let folder = tempfile::tempdir().unwrap();
    let stores = Stores::memory();
    let replicas =
        [replica(&stores, config(Some(folder.path()))).await, replica(&stores, config(Some(folder.path()))).await];
    let mut ids = Vec::new();
    for number in 0..6 {
        let name = format!("{number}.csv");
        write(folder.path(), &name, csv(&minutes(number * 1000..(number + 1) * 1000)));
        ids.push(replicas[number as usize % 2].load(&name).await.backfill_id);
    }
    for id in &ids {
        let job = replicas[0].ended(id).await;
        assert_eq!((job.state(), counts(&job)), (BackfillState::Done, [1000, 1000, 0, 0]));
    }
    assert_eq!(stored(&stores, "NSE_EQ|A").await, rows_of(&minutes(0..6000)));
}

/// A put whose answer is lost has stored its rows; the next attempt counts them as the first would have.
#[tokio::test]
async fn lost_answers_change_no_count() {
    let folder = tempfile::tempdir().unwrap();
    let rows = minutes(0..50_000);
    write(folder.path(), "a.csv", csv(&rows));
    let stores = Stores::memory();
    let fates = [Fate::Unanswered, Fate::Unanswered, Fate::Stored, Fate::Unavailable, Fate::Unanswered];
    let service = replica(&faulty(&stores, fates), config(Some(folder.path()))).await;
    let job = service.load("a.csv").await;
    let job = service.ended(&job.backfill_id).await;
    assert_eq!((job.state(), counts(&job)), (BackfillState::Done, [50_000, 50_000, 0, 0]));
    assert_eq!(stored(&stores, "NSE_EQ|A").await, rows_of(&rows));
}

/// No space is nothing that another file, or another attempt, would change.
#[tokio::test]
async fn a_full_disk_pauses_the_job_until_somebody_resumes_it() {
    let folder = tempfile::tempdir().unwrap();
    let rows = minutes(0..50_000);
    write(folder.path(), "in/a.csv", csv(&rows[..25_000]));
    write(folder.path(), "in/b.csv", csv(&rows[25_000..]));
    let stores = Stores::memory();
    let service = replica(&faulty(&stores, [Fate::Stored, Fate::Full]), config(Some(folder.path()))).await;
    let id = service.load("in").await.backfill_id;
    let job = service.until(&id, |job| job.state() == BackfillState::Paused).await;
    assert_eq!((counts(&job), job.files_failed), ([16_384, 16_384, 0, 0], 0));
    assert!(job.error.contains("no space left") && job.error.contains("disk full"), "{job:?}");
    let resume = proto::ingestion::ResumeBackfillRequest { backfill_id: id.clone() };
    let resumed = service.client.clone().resume_backfill(resume).await.unwrap().into_inner().backfill.unwrap();
    assert_eq!((resumed.state(), resumed.error.as_str()), (BackfillState::Queued, ""));
    let job = service.ended(&id).await;
    assert_eq!((job.state(), counts(&job)), (BackfillState::Done, [50_000, 50_000, 0, 0]));
    assert_eq!(stored(&stores, "NSE_EQ|A").await, rows_of(&rows));
}

#[tokio::test]
async fn a_file_is_given_up_after_its_attempts_and_resumed_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let rows = minutes(0..50_000);
    write(folder.path(), "in/a.csv", csv(&rows[..25_000]));
    write(folder.path(), "in/b.csv", csv(&rows[25_000..]));
    let stores = Stores::memory();
    // The last attempt stored what it did not answer.
    let fates = [Fate::Stored, Fate::Unavailable, Fate::Unanswered];
    let settings = ingestion::Config { backfill_attempts: 2, ..config(Some(folder.path())) };
    let service = replica(&faulty(&stores, fates), settings).await;
    let id = service.load("in").await.backfill_id;
    let job = service.ended(&id).await;
    let (_, files) = service.get(&id).await;
    assert_eq!((job.state(), job.files_done, job.files_failed), (BackfillState::Failed, 2, 1), "{files:?}");
    assert!(files[0].error.contains("given up after 2 attempts"), "{files:?}");
    assert_eq!((files[0].stored, files[1].stored), (16_384, 25_000));
    let resume = proto::ingestion::ResumeBackfillRequest { backfill_id: id.clone() };
    service.client.clone().resume_backfill(resume).await.unwrap();
    let job = service.ended(&id).await;
    assert_eq!((job.state(), job.files_failed, counts(&job)), (BackfillState::Done, 0, [50_000, 50_000, 0, 0]));
    assert_eq!(stored(&stores, "NSE_EQ|A").await, rows_of(&rows));
}

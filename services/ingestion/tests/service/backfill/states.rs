//! Pausing, resuming, cancelling, listing and watching, in all orders.

use proto::ingestion::{
    BackfillState, CancelBackfillRequest, CreateBackfillRequest, GetBackfillRequest, ListBackfillsRequest,
    PauseBackfillRequest, ResumeBackfillRequest, WatchBackfillRequest,
};

use super::*;

impl Replica {
    async fn pause(&self, id: &str) -> Result<Backfill, Status> {
        let request = PauseBackfillRequest { backfill_id: id.to_owned() };
        Ok(self.client.clone().pause_backfill(request).await?.into_inner().backfill.unwrap())
    }

    async fn resume(&self, id: &str) -> Result<Backfill, Status> {
        let request = ResumeBackfillRequest { backfill_id: id.to_owned() };
        Ok(self.client.clone().resume_backfill(request).await?.into_inner().backfill.unwrap())
    }

    async fn cancel(&self, id: &str) -> Result<Backfill, Status> {
        let request = CancelBackfillRequest { backfill_id: id.to_owned() };
        Ok(self.client.clone().cancel_backfill(request).await?.into_inner().backfill.unwrap())
    }
}

/// A replica that takes jobs on, and runs none.
async fn idle(stores: &Stores, folder: &Path) -> Replica {
    replica(stores, ingestion::Config { backfill_workers: 0, ..config(Some(folder)) }).await
}

fn refused(outcome: Result<Backfill, Status>) {
    let refused = fault(outcome.unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, "BACKFILL_STATE"), "{refused:?}");
}

#[tokio::test]
async fn jobs_that_nobody_runs_change_at_once_and_ended_ones_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.csv", csv(&minutes(0..10)));
    let stores = Stores::memory();
    let service = idle(&stores, folder.path()).await;
    let id = service.load("a.csv").await.backfill_id;
    assert_eq!(service.resume(&id).await.unwrap().state(), BackfillState::Queued);
    for _ in 0..2 {
        assert_eq!(service.pause(&id).await.unwrap().state(), BackfillState::Paused);
    }
    let (_, files) = service.get(&id).await;
    assert_eq!(files[0].state(), BackfillState::Paused, "a file is no further than its job");
    assert_eq!(service.resume(&id).await.unwrap().state(), BackfillState::Queued);
    service.pause(&id).await.unwrap();
    for _ in 0..2 {
        assert_eq!(service.cancel(&id).await.unwrap().state(), BackfillState::Cancelled);
    }
    refused(service.pause(&id).await);
    refused(service.resume(&id).await);

    // A job that was paused survives those who ran it, and is run by whoever comes.
    let paused = service.load("a.csv").await.backfill_id;
    service.pause(&paused).await.unwrap();
    let queued = service.load("a.csv").await.backfill_id;
    drop(service);
    let service = replica(&stores, config(Some(folder.path()))).await;
    assert_eq!(service.ended(&queued).await.state(), BackfillState::Done);
    assert_eq!(service.get(&paused).await.0.state(), BackfillState::Paused);
    refused(service.pause(&queued).await);
    refused(service.resume(&queued).await);
    refused(service.cancel(&queued).await);
    service.resume(&paused).await.unwrap();
    let job = service.ended(&paused).await;
    assert_eq!((job.state(), counts(&job)), (BackfillState::Done, [10, 0, 10, 0]));

    let unknown = uuid_like(&queued);
    assert_eq!(fault(service.pause(&unknown).await.unwrap_err()).code, Code::NotFound);
    assert_eq!(fault(service.pause("x").await.unwrap_err()).code, Code::InvalidArgument);
}

/// Another id of the same form.
fn uuid_like(id: &str) -> String {
    let flip = if id.ends_with('0') { '1' } else { '0' };
    format!("{}{flip}", &id[..id.len() - 1])
}

#[tokio::test]
async fn a_running_job_pauses_after_a_chunk_and_goes_on_without_counting_twice() {
    let folder = tempfile::tempdir().unwrap();
    let rows = minutes(0..160_000);
    write(folder.path(), "a.csv", csv(&rows));
    let stores = Stores::memory();
    let worker = replica(&stores, config(Some(folder.path()))).await;
    // The calls go to another replica: only the database is between them.
    let caller = idle(&stores, folder.path()).await;
    let id = caller.load("a.csv").await.backfill_id;
    let mut seen = 0;
    for _ in 0..3 {
        caller.until(&id, |job| job.rows_read > seen || job.state() == BackfillState::Done).await;
        let Ok(_) = caller.pause(&id).await else { break };
        let job = caller.until(&id, |job| job.state() != BackfillState::Running).await;
        if job.state() == BackfillState::Done {
            break;
        }
        assert_eq!(job.state(), BackfillState::Paused);
        assert_eq!(job.rows_read % 16_384, 0, "whole chunks only");
        assert!(job.bytes_read > 0 && job.bytes_read <= job.bytes_total, "{job:?}");
        seen = job.rows_read;
        caller.resume(&id).await.unwrap();
    }
    assert!(seen > 0, "it was never paused");
    let job = worker.ended(&id).await;
    assert_eq!((job.state(), counts(&job)), (BackfillState::Done, [160_000, 160_000, 0, 0]));
    assert_eq!(stored(&stores, "NSE_EQ|A").await, rows_of(&rows));

    let id = caller.create(CreateBackfillRequest { dry_run: true, ..request("a.csv") }).await.unwrap().backfill_id;
    caller.until(&id, |job| job.rows_read > 0).await;
    caller.cancel(&id).await.unwrap();
    let job = worker.ended(&id).await;
    assert_eq!(job.state(), BackfillState::Cancelled);
    assert!(job.rows_read < 160_000, "{job:?}");
    refused(caller.resume(&id).await);
}

#[tokio::test]
async fn a_request_id_names_one_job_and_lists_are_paged_newest_first() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.csv", "b.csv", "c.csv"] {
        write(folder.path(), name, csv(&minutes(0..10)));
    }
    let service = idle(&Stores::memory(), folder.path()).await;
    let once = CreateBackfillRequest { request_id: "mine".to_owned(), ..request(".") };
    let first = service.create(once.clone()).await.unwrap();
    // Even when the files have gone meanwhile.
    let again = service.create(CreateBackfillRequest { path: "gone".to_owned(), ..once }).await.unwrap();
    assert_eq!(again, first);
    let second = service.load("b.csv").await;
    let mut listed = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListBackfillsRequest { page_size: 1, page_token };
        let page = service.client.clone().list_backfills(request).await.unwrap().into_inner();
        listed.extend(page.backfills);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    listed.sort_by_key(|job| job.backfill_id == first.backfill_id);
    assert_eq!(listed, [second, first.clone()]);

    let mut files = Vec::new();
    let mut page_token = String::new();
    for want in [2, 1] {
        let request = GetBackfillRequest { backfill_id: first.backfill_id.clone(), page_size: 2, page_token };
        let page = service.client.clone().get_backfill(request).await.unwrap().into_inner();
        assert_eq!(page.files.len(), want);
        files.extend(page.files.into_iter().map(|file| file.path));
        page_token = page.next_page_token;
    }
    assert_eq!((files, page_token.as_str()), (["a.csv", "b.csv", "c.csv"].map(str::to_owned).to_vec(), ""));
}

#[tokio::test]
async fn a_watch_ends_with_unavailable_when_its_server_drains() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.csv", csv(&minutes(0..10)));
    let service = idle(&Stores::memory(), folder.path()).await;
    let id = service.load("a.csv").await.backfill_id;
    let request = WatchBackfillRequest { backfill_id: id.clone() };
    let mut updates = service.client.clone().watch_backfill(request).await.unwrap().into_inner();
    assert_eq!(updates.message().await.unwrap().unwrap().backfill.unwrap().backfill_id, id);
    service.pause(&id).await.unwrap();
    let update = tokio::time::timeout(WAIT, updates.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(update.backfill.unwrap().state(), BackfillState::Paused);
    service.drain.start();
    let ended = tokio::time::timeout(WAIT, updates.message()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable);
}

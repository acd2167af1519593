//! What subscribers hear when something around the hub fails.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::stream;
use market::{CorporateAction, Instrument};
use mesh::context::RequestContext;
use mesh::source::{ChangeBatch, Group, SourceCoverage};
use tokio::sync::{Notify, Semaphore};

use super::*;

/// How the change log answers who resumes.
#[derive(Debug, Clone, Copy)]
enum Resumed {
    Fails(Code),
    Panics,
    Hangs,
}

/// A ledger that fails where it is told to.
#[derive(Debug)]
struct Faulty {
    ledger: Arc<MemoryLedger>,
    resumed: Resumed,
    /// Breaks the log off that was opened at its end.
    breaks: Arc<Notify>,
    /// Somebody tried to resume.
    tried: Notify,
    is_opened_for_a_request: AtomicBool,
    is_unlisted: AtomicBool,
    /// Openings of the log at its end that have begun, and those that may go on.
    opened: AtomicUsize,
    openings: Semaphore,
    /// Asking what is stored panics.
    is_broken: AtomicBool,
}

fn faulty(resumed: Resumed, config: Config) -> (World, Arc<Faulty>) {
    let mut made = None;
    let world = world_of(NOON, &[("CRYPTO|E", "24x7")], config, |ledger| {
        let faulty = Arc::new(Faulty {
            ledger: Arc::clone(ledger),
            resumed,
            breaks: Arc::default(),
            tried: Notify::new(),
            is_opened_for_a_request: AtomicBool::default(),
            is_unlisted: AtomicBool::default(),
            opened: AtomicUsize::new(0),
            openings: Semaphore::new(Semaphore::MAX_PERMITS),
            is_broken: AtomicBool::default(),
        });
        made = Some(Arc::clone(&faulty));
        (Arc::clone(&faulty) as _, faulty as _)
    });
    (world, made.unwrap())
}

fn fault(code: Code) -> RemoteError {
    RemoteError::from_status(&Status::new(code, "as the test wants it"))
}

#[tonic::async_trait]
impl Changes for Faulty {
    async fn watch(
        &self,
        after_sequence: Option<u64>,
    ) -> Result<BoxStream<'static, Result<ChangeBatch, RemoteError>>, RemoteError> {
        if after_sequence.is_none() {
            self.opened.fetch_add(1, Ordering::SeqCst);
            self.openings.acquire().await.unwrap().forget();
        }
        match (after_sequence, self.resumed) {
            (None, Resumed::Fails(code)) => {
                self.is_opened_for_a_request.store(RequestContext::current().is_some(), Ordering::SeqCst);
                let breaks = Arc::clone(&self.breaks);
                let log = self.ledger.watch(None).await?.take_until(async move { breaks.notified().await });
                Ok(log.chain(stream::iter([Err(fault(code))])).boxed())
            }
            (None, _) => self.ledger.watch(None).await,
            (Some(_), Resumed::Fails(code)) => {
                self.tried.notify_one();
                Err(fault(code))
            }
            (Some(_), Resumed::Panics) => panic!("as the test wants it"),
            (Some(_), Resumed::Hangs) => std::future::pending().await,
        }
    }
}

#[tonic::async_trait]
impl MasterData for Faulty {
    async fn instrument(&self, key: &InstrumentKey) -> Result<Instrument, RemoteError> {
        self.ledger.instrument(key).await
    }

    async fn instruments(&self) -> Result<Vec<Instrument>, RemoteError> {
        match self.is_unlisted.load(Ordering::SeqCst) {
            true => Err(fault(Code::Unavailable)),
            false => self.ledger.instruments().await,
        }
    }

    async fn revisions(&self, keys: &[InstrumentKey]) -> Result<Vec<u64>, RemoteError> {
        self.ledger.revisions(keys).await
    }

    async fn coverage(&self, key: &InstrumentKey) -> Result<Vec<SourceCoverage>, RemoteError> {
        assert!(!self.is_broken.load(Ordering::SeqCst), "as the test wants it");
        self.ledger.coverage(key).await
    }

    async fn corporate_actions(&self, key: &InstrumentKey) -> Result<Vec<CorporateAction>, RemoteError> {
        self.ledger.corporate_actions(key).await
    }

    async fn group(&self, id: &str) -> Result<Group, RemoteError> {
        self.ledger.group(id).await
    }
}

async fn end_of(heard: &mut Heard) -> RemoteError {
    let ended = async {
        loop {
            match heard.stream.next().await.expect("an error ends the stream") {
                Ok(message) => heard.cursor = WatchCandlesResponse::decode(message).unwrap().cursor,
                Err(status) => return RemoteError::from_status(&status),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it ends in time")
}

#[tokio::test]
async fn the_log_is_opened_without_the_deadline_of_the_first_subscriber() {
    let (world, faulty) = faulty(Resumed::Fails(Code::Unavailable), Config::default());
    let context = RequestContext {
        request_id: "first".into(),
        deadline: tokio::time::Instant::now() + Duration::from_secs(1),
        traceparent: None,
        decisions: None,
        priority: Default::default(),
    };
    context.scope(world.watch(watching(&[], &["1m"], ""))).await.unwrap();
    assert!(!faulty.is_opened_for_a_request.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_log_that_opens_slowly_is_opened_once_and_is_there_for_who_comes_back() {
    let (world, faulty) = faulty(Resumed::Fails(Code::Unavailable), Config::default());
    faulty.openings.forget_permits(Semaphore::MAX_PERMITS);
    let refused = world.watch(watching(&[], &["1m"], "")).await.err().unwrap();
    assert!(matches!(refused, LiveError::NotReady), "{refused}");
    let mut again = Box::pin(world.watch(watching(&[], &["1m"], "")));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut again).await.is_err());
    assert_eq!(faulty.opened.load(Ordering::SeqCst), 1);
    faulty.openings.add_permits(10);
    assert!(again.await.unwrap().take(NOON).await.is_empty());
}

#[tokio::test]
async fn a_resumption_that_panics_ends_its_stream_as_a_bug() {
    let (world, _) = faulty(Resumed::Panics, Config::default());
    let mut first = world.watch(watching(&[], &["1m"], "")).await.unwrap();
    let here = world.live.locate().await;
    first.listen(here, NOON).await;
    world.put(&"CRYPTO|E".parse().unwrap(), vec![minute(NOON, 1.0)]);
    world.live.locate().await;
    let mut again = world.watch(watching(&[], &["1m"], &first.cursor)).await.unwrap();
    let broken = end_of(&mut again).await;
    assert_eq!((broken.code, broken.reason.as_str()), (Code::Internal, "RESUMPTION_BROKEN"));
}

#[tokio::test]
async fn a_snapshot_that_panics_ends_its_stream_as_a_bug() {
    let (world, faulty) = faulty(Resumed::Hangs, Config::default());
    world.put(&"CRYPTO|E".parse().unwrap(), vec![minute(NOON, 1.0)]);
    let first = world.watch(watching(&["CRYPTO|E"], &["1m"], "")).await.unwrap();
    world.live.locate().await;
    // Of the hub nothing is asked any more: it knows the instrument.
    faulty.is_broken.store(true, Ordering::SeqCst);
    let request = WatchCandlesRequest { snapshot: true, ..watching(&["CRYPTO|E"], &["1m"], "") };
    let mut second = world.watch(request).await.unwrap();
    let broken = end_of(&mut second).await;
    assert_eq!((broken.code, broken.reason.as_str()), (Code::Internal, "RESUMPTION_BROKEN"));
    drop(first);
}

#[tokio::test]
async fn who_watches_everything_is_not_seated_while_it_cannot_be_listed() {
    let (world, faulty) = faulty(Resumed::Fails(Code::Unavailable), Config::default());
    world.put(&"CRYPTO|E".parse().unwrap(), vec![minute(NOON, 1.0)]);
    faulty.is_unlisted.store(true, Ordering::SeqCst);
    let refused = world.watch(watching(&[], &["1m"], "")).await.err().unwrap();
    assert_eq!((refused.code(), refused.reason()), (Code::Unavailable, "HUB_NOT_READY"));
    faulty.is_unlisted.store(false, Ordering::SeqCst);
    let mut heard = world.watch(watching(&[], &["1m"], "")).await.unwrap();
    world.live.locate().await;
    world.clock.set(NOON + MINUTE);
    let here = world.live.locate().await;
    assert_eq!(events(&heard.listen(here, NOON + MINUTE).await), [(CandleEvent::Close, 1.0, true, true)]);
}

#[tokio::test]
async fn a_log_that_went_back_expires_its_subscribers() {
    let (world, faulty) = faulty(Resumed::Fails(Code::InvalidArgument), Config::default());
    let mut heard = world.watch(watching(&[], &["1m"], "")).await.unwrap();
    faulty.breaks.notify_one();
    let expired = end_of(&mut heard).await;
    assert_eq!((expired.code, expired.reason.as_str()), (Code::FailedPrecondition, "CURSOR_EXPIRED"));
}

#[tokio::test]
async fn joining_does_not_wait_for_a_log_that_is_away() {
    let (world, faulty) = faulty(Resumed::Fails(Code::Unavailable), Config::default());
    let _heard = world.watch(watching(&[], &["1m"], "")).await.unwrap();
    faulty.breaks.notify_one();
    tokio::time::timeout(Duration::from_secs(20), faulty.tried.notified()).await.expect("in time");
    let asked = tokio::time::Instant::now();
    let refused = world.watch(watching(&[], &["1m"], "")).await.err().unwrap();
    assert_eq!((refused.code(), refused.reason()), (Code::Unavailable, "HUB_NOT_READY"));
    assert!(asked.elapsed() < JOIN_WAIT * 2, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn resumptions_are_few_at_once_and_end_with_their_subscribers() {
    let (world, _) = faulty(Resumed::Hangs, Config::default());
    let mut first = world.watch(watching(&[], &["1m"], "")).await.unwrap();
    let here = world.live.locate().await;
    first.listen(here, NOON).await;
    world.put(&"CRYPTO|E".parse().unwrap(), vec![minute(NOON, 1.0)]);
    world.live.locate().await;
    let mut again = Vec::new();
    for _ in 0..RESUMPTIONS + 1 {
        again.push(world.watch(watching(&[], &["1m"], &first.cursor)).await.unwrap());
    }
    let free = async |wanted: usize| {
        let reached = async {
            while world.live.resumptions.available_permits() != wanted {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), reached).await.expect("in time");
    };
    free(0).await;
    drop(again);
    free(RESUMPTIONS).await;
}

#[tokio::test]
async fn a_cursor_of_long_ago_has_expired() {
    let world = world(NOON, &[("CRYPTO|E", "24x7")], Config::default());
    let here = world.live.locate().await;
    let of_age = |age: Duration| Position { watermark: NOON - millis(age), ..here }.to_string();
    assert!(world.watch(watching(&[], &["1m"], &of_age(OLDEST_CURSOR))).await.is_ok());
    let older = of_age(OLDEST_CURSOR + Duration::from_millis(1));
    assert!(matches!(world.watch(watching(&[], &["1m"], &older)).await, Err(LiveError::CursorExpired)));
}

#[tokio::test]
async fn of_all_backlogs_together_the_largest_is_cut_off_and_what_is_shared_counts_once() {
    let config = Config { max_backlog_bytes: 9_000, ..Config::default() };
    let world = world(NOON, &[("CRYPTO|E", "24x7")], config);
    let key: InstrumentKey = "CRYPTO|E".parse().unwrap();
    let mut alike = Vec::new();
    for _ in 0..3 {
        alike.push(world.watch(watching(&[], &["1m"], "")).await.unwrap());
    }
    let mut largest = world.watch(watching(&[], &["1m", "5m"], "")).await.unwrap();
    let mut here = world.live.locate().await;
    for index in 0..40 {
        let now = NOON + (index + 1) * MINUTE;
        world.clock.set(now);
        world.put(&key, vec![minute(now - MINUTE, index as f64)]);
        here = world.live.locate().await;
    }
    assert_eq!(end_of(&mut largest).await.reason, "SLOW_SUBSCRIBER");
    for heard in &mut alike {
        assert_eq!(heard.listen(here, world.clock.now()).await.len(), 40);
    }
}

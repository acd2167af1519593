//! Batches: concurrency, memory, time per item, a pool without room, and what ends with the client.

use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use indicator::Config;
use mesh::{Cancel, CpuPool, PoolError, Priority};
use proto::indicator::BatchComputeIndicatorsResponse;

use super::*;

/// Longest wait for what must happen; a failure is told by it, nothing is measured.
const PATIENCE: Duration = Duration::from_secs(60);

fn many(count: usize) -> BatchComputeIndicatorsRequest {
    BatchComputeIndicatorsRequest {
        instrument_keys: (0..count).map(|index| format!("US|MANY{index}")).collect(),
        timeframe: "1m".into(),
        ..Default::default()
    }
}

/// Its candles are asked of somebody who says first that the time is over.
const EXPIRES: &str = "US|MANY3999";

/// Candles that keep count of who waits for them; those of `stuck` never come, nor do any after the first `answers`.
#[derive(Debug)]
struct Watched {
    source: MemorySource,
    stuck: &'static str,
    answers: usize,
    calls: AtomicUsize,
    in_flight: AtomicUsize,
    peak: AtomicUsize,
}

impl Watched {
    fn new(stuck: &'static str, answers: usize) -> Arc<Watched> {
        let [calls, in_flight, peak] = [const { AtomicUsize::new(0) }; 3];
        Arc::new(Watched { source: source(ROWS), stuck, answers, calls, in_flight, peak })
    }

    async fn serve(self: &Arc<Self>, config: Config, pool: &Arc<CpuPool>) -> Running {
        Running::start_configured(Arc::clone(self) as _, Arc::new(source(ROWS)), config, Arc::clone(pool)).await
    }
}

struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tonic::async_trait]
impl Candles for Watched {
    async fn candles(
        &self,
        key: &InstrumentKey,
        timeframe: Timeframe,
        range: market::TimeRange,
        revision: Option<u64>,
    ) -> Result<Buckets, RemoteError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        let _in_flight = InFlight(&self.in_flight);
        self.peak.fetch_max(now, Ordering::SeqCst);
        if key.as_str() == self.stuck || call >= self.answers {
            pending::<()>().await;
        }
        if key.as_str() == EXPIRES {
            let deadline = mesh::context::RequestContext::current().unwrap().deadline;
            tokio::time::sleep_until(deadline - mesh::context::DEADLINE_MARGIN / 2).await;
            return Err(RemoteError::from_status(&tonic::Status::deadline_exceeded("the call took too long")));
        }
        // Others get a chance to be in flight too.
        tokio::task::yield_now().await;
        self.source.candles(key, timeframe, range, revision).await
    }
}

fn pool(workers: usize, capacity: usize) -> Arc<CpuPool> {
    Arc::new(CpuPool::new(workers, capacity).unwrap())
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let asked = Instant::now();
    while !holds() {
        assert!(asked.elapsed() < PATIENCE, "{what} never came true");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn fault(item: &BatchComputeIndicatorsResponse) -> Option<(i32, &str)> {
    match item.outcome.as_ref().unwrap() {
        Outcome::Answer(_) => None,
        Outcome::Error(error) => Some((error.code, &error.reason)),
    }
}

#[tokio::test]
async fn a_batch_ends_with_its_client() {
    let (watched, pool) = (Watched::new("", 20), pool(2, 64));
    let service = watched.serve(Config::default(), &pool).await;
    let mut items = service.grpc().batch_compute_indicators(many(4000)).await.unwrap().into_inner();
    for _ in 0..20 {
        items.message().await.unwrap().unwrap();
    }
    until("all places in use", || watched.in_flight.load(Ordering::SeqCst) == 8).await;
    let left = Instant::now();
    drop(items);
    // None of the eight can be answered, so none makes room for another: they only end by being dropped, and then all is at an end.
    until("the end of all items", || watched.in_flight.load(Ordering::SeqCst) == 0).await;
    println!("freed {:?} after the client left", left.elapsed());
    assert_eq!(watched.calls.load(Ordering::SeqCst), 28);
}

#[tokio::test]
async fn a_batch_has_no_more_in_work_than_it_may() {
    for (asked, most) in [(0, 8), (100, 8), (3, 3), (1, 1)] {
        let (watched, pool) = (Watched::new("", usize::MAX), pool(2, 64));
        let service = watched.serve(Config::default(), &pool).await;
        let asked = BatchComputeIndicatorsRequest { max_concurrency: asked, ..many(300) };
        let items = service.grpc().batch_compute_indicators(asked).await.unwrap().into_inner();
        let items: Vec<_> = items.try_collect().await.unwrap();
        assert!(items.len() == 300 && items.iter().all(|item| fault(item).is_none()));
        let peak = watched.peak.load(Ordering::SeqCst);
        assert!(peak <= most, "{peak} of {most}");
    }
}

#[tokio::test]
async fn batches_without_memory_for_two_items_take_one_at_a_time() {
    let (watched, pool) = (Watched::new("", usize::MAX), pool(2, 64));
    let service = watched.serve(Config { batch_memory_bytes: 1, ..Config::default() }, &pool).await;
    let batch = async || {
        let items = service.grpc().batch_compute_indicators(many(100)).await.unwrap().into_inner();
        items.try_collect::<Vec<_>>().await.unwrap().len()
    };
    assert_eq!(tokio::join!(batch(), batch(), batch()), (100, 100, 100));
    assert_eq!(watched.peak.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_item_without_an_answer_in_its_time_fails_alone() {
    let (watched, pool) = (Watched::new(KEY, usize::MAX), pool(2, 64));
    let service = watched.serve(Config::default(), &pool).await;
    let timeout = |millis: i32| Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 });
    let mut asked = BatchComputeIndicatorsRequest { item_timeout: timeout(100), ..many(5) };
    asked.instrument_keys.splice(0..0, [KEY.to_owned(), EXPIRES.to_owned()]);
    let items = service.grpc().batch_compute_indicators(asked).await.unwrap().into_inner();
    let items: Vec<_> = items.try_collect().await.unwrap();
    assert_eq!(items.len(), 7);
    for late in [KEY, EXPIRES] {
        let late = items.iter().find(|item| item.instrument_key == late).unwrap();
        assert_eq!(fault(late), Some((Code::DeadlineExceeded as i32, "ITEM_TIMEOUT")));
    }
    for refused in [timeout(0), timeout(-1)] {
        let asked = BatchComputeIndicatorsRequest { item_timeout: refused, ..many(1) };
        let status = service.grpc().batch_compute_indicators(asked).await.unwrap_err();
        assert_eq!(refusal(status), (Code::InvalidArgument, "INVALID_FIELD".into(), vec!["item_timeout".into()]));
    }
}

#[tokio::test]
async fn a_pool_without_room_is_resource_exhausted_with_a_retry_hint() {
    let (watched, pool) = (Watched::new("", usize::MAX), pool(1, 1));
    let service = watched.serve(Config::default(), &pool).await;
    // The worker is held, and one task waits at each priority.
    let (started, mut running) = tokio::sync::mpsc::channel(1);
    let held = |priority: Priority| {
        let (pool, started) = (Arc::clone(&pool), started.clone());
        let task = move |cancel: &Cancel| {
            let _ = started.try_send(());
            while !cancel.is_cancelled() {
                std::thread::yield_now();
            }
        };
        tokio::spawn(async move { pool.run_at(priority, task).await })
    };
    let mut tasks = vec![held(Priority::Interactive)];
    running.recv().await.unwrap();
    tasks.extend(Priority::ALL.map(held));
    until("a full pool", || pool.statistics().queue_depths == [1, 1, 1]).await;

    for engine in ["v1", "v2"] {
        let status = service.grpc().compute_indicators(forced(request(&["sma:9"]), engine)).await.unwrap_err();
        let error = RemoteError::from_status(&status);
        assert_eq!((error.code, error.reason.as_str()), (Code::ResourceExhausted, "CPU_POOL_FULL"));
        assert_eq!(error.retry_after, Some(Duration::from_millis(100)));
        assert!(error.message.contains("1 interactive"), "{}", error.message);
        let asked = BatchComputeIndicatorsRequest { instrument_keys: vec![KEY.into()], ..many(0) };
        let mut items = service.grpc().batch_compute_indicators(forced(asked, engine)).await.unwrap().into_inner();
        let item = items.message().await.unwrap().unwrap();
        assert_eq!(fault(&item), Some((Code::ResourceExhausted as i32, "CPU_POOL_FULL")));
        let Some(Outcome::Error(error)) = item.outcome else { panic!("it is a fault") };
        assert!(error.message.contains("1 batch"), "{}", error.message);
    }
    let asked = AuditIndicatorsRequest { instrument_key: KEY.into(), timeframe: "1m".into(), ..Default::default() };
    let status = service.grpc().audit_indicators(asked).await.unwrap_err();
    assert!(status.message().contains("1 background"), "{status:?}");
    assert_eq!(pool.statistics().rejected, 5);

    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    until("a free pool", || pool.statistics().queue_depths == [0, 0, 0]).await;
    let answered = service.grpc().compute_indicators(request(&["sma:9"])).await;
    assert!(answered.is_ok(), "{answered:?}");
    assert!(matches!(pool.run(|| panic!("on purpose")).await, Err::<(), _>(PoolError::Panicked)));
    assert!(service.grpc().compute_indicators(request(&["sma:10"])).await.is_ok());
}

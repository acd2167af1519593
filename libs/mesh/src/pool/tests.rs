use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicUsize};
use std::sync::mpsc;

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::*;
use crate::context::RequestContext;

/// A pool with each of its workers held by a task; they go on when the sender is dropped.
async fn held(workers: usize, capacity: usize) -> (Arc<CpuPool>, mpsc::SyncSender<()>) {
    let pool = Arc::new(CpuPool::new(workers, capacity).unwrap());
    let (release, gate) = mpsc::sync_channel::<()>(0);
    let gate = Arc::new(Mutex::new(gate));
    for _ in 0..workers {
        let (started, running) = oneshot::channel();
        let gate = Arc::clone(&gate);
        let task = move || {
            let _ = started.send(());
            let _ = gate.lock().unwrap().recv();
        };
        let pool = Arc::clone(&pool);
        tokio::spawn(async move { pool.run(task).await });
        running.await.unwrap();
    }
    (pool, release)
}

/// Hands a task to the pool now; the future is the caller's wait for it.
fn submit<'a, T: Send + 'static>(
    pool: &'a CpuPool,
    priority: Priority,
    task: impl FnOnce(&Cancel) -> T + Send + 'static,
) -> LocalBoxFuture<'a, Result<T, PoolError>> {
    let mut waiting = pool.run_at(priority, task).boxed_local();
    match (&mut waiting).now_or_never() {
        Some(outcome) => std::future::ready(outcome).boxed_local(),
        None => waiting,
    }
}

#[tokio::test]
async fn a_panicking_task_harms_nobody_else() {
    struct PanicsWhenDropped;
    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic!("on purpose, where nobody catches it for the task");
        }
    }
    let pool = CpuPool::new(1, 4).unwrap();
    assert!(matches!(pool.run(|| panic!("on purpose")).await, Err::<(), _>(PoolError::Panicked)));
    assert_eq!(pool.run(|| 7).await.unwrap(), 7);
    // What is answered to a caller that left is dropped on the worker.
    let (started, running) = oneshot::channel();
    let (release, gate) = mpsc::channel::<()>();
    let left = submit(&pool, Priority::Interactive, move |_| {
        let _ = started.send(());
        let _ = gate.recv();
        PanicsWhenDropped
    });
    running.await.unwrap();
    drop(left);
    drop(release);
    assert_eq!(pool.run(|| 8).await.unwrap(), 8, "the only worker is still there");
    // A task is counted after its answer; the end waits for both.
    pool.shutdown();
    let counts = pool.statistics();
    assert_eq!((counts.submitted, counts.completed, counts.failed, counts.cancelled), (4, 2, 2, 0));
}

#[tokio::test]
async fn a_full_queue_rejects_at_once_and_no_other_priority() {
    let (pool, release) = held(1, 1).await;
    let waiting = submit(&pool, Priority::Interactive, |_| 1);
    let full = pool.run(|| ()).await.unwrap_err();
    assert!(matches!(full, PoolError::Full { priority: Priority::Interactive, capacity: 1 }), "{full:?}");
    assert_eq!(full.retry_after(), Some(RETRY_HINT));
    let other = submit(&pool, Priority::Batch, |_| 2);
    let full = pool.run_at(Priority::Batch, |_| ()).await.unwrap_err();
    assert_eq!(full.to_string(), "the CPU pool's queue of 1 batch tasks is full");
    drop(release);
    assert_eq!((waiting.await.unwrap(), other.await.unwrap(), pool.statistics().rejected), (1, 2, 2));
}

#[tokio::test]
async fn a_patient_caller_gets_the_room_that_becomes_free_and_an_error_when_none_does() {
    let (pool, release) = held(1, 1).await;
    let waiting = submit(&pool, Priority::Interactive, |_| ());
    let brief = pool.run_within(Duration::from_millis(20), || ()).await;
    assert!(matches!(brief, Err(PoolError::Full { .. })), "{brief:?}");
    let patient = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.run_within(Duration::from_secs(30), || 7).await }
    });
    drop(release);
    waiting.await.unwrap();
    assert_eq!(patient.await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn a_task_whose_caller_left_is_skipped_before_its_start_and_told_after_it() {
    let (pool, release) = held(1, 4).await;
    let ran = Arc::new(AtomicUsize::new(0));
    let skipped = submit(&pool, Priority::Interactive, {
        let ran = Arc::clone(&ran);
        move |_| ran.fetch_add(1, Ordering::SeqCst)
    });
    drop(skipped);
    let (started, running) = oneshot::channel();
    let endless = submit(&pool, Priority::Interactive, move |cancel| {
        let _ = started.send(());
        while !cancel.is_cancelled() {
            std::thread::yield_now();
        }
    });
    drop(release);
    running.await.unwrap();
    drop(endless);
    assert_eq!(pool.run(|| 7).await.unwrap(), 7, "the endless task has ended");
    assert_eq!((ran.load(Ordering::SeqCst), pool.statistics().cancelled), (0, 2));
}

#[tokio::test]
async fn background_tasks_that_last_leave_a_worker_to_the_others() {
    let pool = CpuPool::new(2, 4).unwrap();
    let (release, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let slow = || {
        let gate = Arc::clone(&gate);
        submit(&pool, Priority::Background, move |_| {
            let _ = gate.lock().unwrap().recv();
        })
    };
    let (first, second) = (slow(), slow());
    assert_eq!(pool.run(|| 7).await.unwrap(), 7);
    assert_eq!(pool.run_at(Priority::Batch, |_| 8).await.unwrap(), 8);
    drop(release);
    first.await.unwrap();
    second.await.unwrap();
}

#[tokio::test]
async fn the_request_being_served_decides_the_priority() {
    let (pool, release) = held(1, 4).await;
    let context = RequestContext {
        request_id: "r".into(),
        deadline: tokio::time::Instant::now() + Duration::from_secs(60),
        traceparent: None,
        decisions: None,
        priority: Priority::Background,
    };
    let (mut one, mut other) = (Box::pin(pool.run(|| ())), Box::pin(pool.run(|| ())));
    assert!(context.scope(async { (&mut one).now_or_never() }).await.is_none());
    assert!((&mut other).now_or_never().is_none());
    assert_eq!(pool.statistics().queue_depths, [1, 0, 1]);
    drop(release);
    one.await.unwrap();
    other.await.unwrap();
}

/// What one task of the tests below did and heard.
#[derive(Debug, Default)]
struct Trace {
    starts: AtomicU32,
    ends: AtomicU32,
}

/// What its caller knows of it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    Answered,
    Panicked,
    Left,
    Full,
    ShuttingDown,
}

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % bound
    }
}

/// Submits tasks of random priority that end, panic or wait to be told; leaves some at once and some later; hears all the others.
fn submitter(pool: &CpuPool, seed: u64, count: usize) -> Vec<(Known, Arc<Trace>)> {
    let mut numbers = Numbers(seed);
    let mut known = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..count {
        let trace = Arc::new(Trace::default());
        let kind = numbers.below(10);
        let task = {
            let trace = Arc::clone(&trace);
            move |cancel: &Cancel| {
                trace.starts.fetch_add(1, Ordering::SeqCst);
                match kind {
                    // A panic without its message, which a thousand times would bury the result.
                    0 => std::panic::resume_unwind(Box::new("on purpose")),
                    // Its caller leaves, or it would never end.
                    1 => while !cancel.is_cancelled() {},
                    _ => {}
                }
                trace.ends.fetch_add(1, Ordering::SeqCst);
            }
        };
        let priority = Priority::ALL[numbers.below(3) as usize];
        let mut outcome = submit(pool, priority, task);
        match (&mut outcome).now_or_never() {
            Some(Ok(())) => known.push((Known::Answered, trace)),
            Some(Err(PoolError::Full { .. })) => known.push((Known::Full, trace)),
            Some(Err(PoolError::ShuttingDown)) => known.push((Known::ShuttingDown, trace)),
            Some(Err(PoolError::Panicked)) => known.push((Known::Panicked, trace)),
            None if kind <= 2 && kind > 0 => {
                // Left a little later, in the middle of its life or before it.
                (0..numbers.below(200)).for_each(|_| std::hint::spin_loop());
                drop(outcome);
                known.push((Known::Left, trace));
            }
            None => waiting.push((outcome, trace)),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (outcome, trace) in waiting {
        known.push(match runtime.block_on(outcome) {
            Ok(()) => (Known::Answered, trace),
            Err(PoolError::Panicked) => (Known::Panicked, trace),
            Err(error) => panic!("an accepted task was lost: {error}"),
        });
    }
    known
}

/// Submitters race each other and a shutdown; counts what became of every task, which no task may escape.
fn race(seed: u64, submitters: u64, count: usize) -> BTreeMap<&'static str, usize> {
    let mut numbers = Numbers(seed);
    let (workers, capacity) = (1 + numbers.below(3) as usize, 1 + numbers.below(40) as usize);
    let pool = CpuPool::new(workers, capacity).unwrap();
    let heard = numbers.below(count as u64 * submitters);
    let all: Vec<(Known, Arc<Trace>)> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..submitters)
            .map(|index| {
                let pool = &pool;
                scope.spawn(move || submitter(pool, seed.wrapping_mul(31).wrapping_add(index), count))
            })
            .collect();
        // Somewhere in the middle: so many have been accepted or turned away.
        let asked = std::time::Instant::now();
        while pool.statistics().submitted + pool.statistics().rejected < heard {
            assert!(asked.elapsed() < Duration::from_secs(60), "nothing is submitted any more");
            std::thread::yield_now();
        }
        pool.shutdown();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(all.len(), count * submitters as usize);
    let mut tally = BTreeMap::new();
    for (known, trace) in &all {
        let (starts, ends) = (trace.starts.load(Ordering::SeqCst), trace.ends.load(Ordering::SeqCst));
        let name = match (known, starts, ends) {
            (Known::Answered, 1, 1) => "answered",
            (Known::Panicked, 1, 0) => "panicked",
            (Known::Left, 1, 1) => "left and run",
            (Known::Left, 0, 0) => "left and skipped",
            (Known::Full, 0, 0) => "full",
            (Known::ShuttingDown, 0, 0) => "shutting down",
            impossible => panic!("seed {seed}: {impossible:?}"),
        };
        *tally.entry(name).or_default() += 1;
    }
    let of = |name: &str| tally.get(name).copied().unwrap_or_default() as u64;
    let counts = pool.statistics();
    let accepted = of("answered") + of("panicked") + of("left and run") + of("left and skipped");
    assert_eq!(counts.submitted, accepted, "seed {seed}");
    assert_eq!(counts.completed + counts.failed + counts.cancelled, accepted, "seed {seed}");
    assert_eq!((counts.rejected, counts.failed), (of("full"), of("panicked")), "seed {seed}");
    assert!(
        counts.completed >= of("answered") && counts.cancelled >= of("left and skipped"),
        "seed {seed}: {counts:?}"
    );
    assert_eq!(counts.queue_depths, [0; 3]);
    tally
}

/// Adds up races; the sum shows that each kind of end was met.
fn races(count: u64, submitters: u64, tasks: usize) {
    let mut total: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..count {
        race(seed, submitters, tasks).into_iter().for_each(|(name, tally)| *total.entry(name).or_default() += tally);
    }
    println!("{count} shutdowns: {total:?}");
    for name in ["answered", "panicked", "left and run", "left and skipped", "full", "shutting down"] {
        assert!(total.contains_key(name), "{name} never happened: {total:?}");
    }
}

#[test]
fn a_thousand_shutdowns_under_full_load_lose_nothing_accepted() {
    races(1000, 3, 40);
}

#[test]
fn long_races_of_every_kind_of_task_add_up() {
    races(20, 4, 2000);
}

//! The bounded CPU pool: work longer than half a millisecond leaves the async threads through here.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tonic::Code;

use crate::Fault;

/// How long a rejected caller is told to wait.
const RETRY_HINT: Duration = Duration::from_millis(100);
/// How long a patient caller waits between two attempts: about the length of a task.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

type Task = Box<dyn FnOnce() + Send>;

/// Why a task has no result.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("the CPU pool's queue of {0} tasks is full")]
    Full(usize),
    #[error("the CPU pool is shutting down")]
    ShuttingDown,
    #[error("task panicked")]
    Panicked,
}

impl Fault for PoolError {
    fn code(&self) -> Code {
        match self {
            PoolError::Full(_) => Code::ResourceExhausted,
            PoolError::ShuttingDown => Code::Unavailable,
            PoolError::Panicked => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            PoolError::Full(_) => "CPU_POOL_FULL",
            PoolError::ShuttingDown => "SHUTTING_DOWN",
            PoolError::Panicked => "TASK_PANICKED",
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        matches!(self, PoolError::Full(_)).then_some(RETRY_HINT)
    }
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    capacity: usize,
}

/// Worker threads behind a queue that rejects when full. What was accepted is finished, also at shutdown,
/// except tasks whose callers left before they started: those are skipped.
pub struct CpuPool {
    shared: Arc<Shared>,
    workers: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

impl std::fmt::Debug for CpuPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuPool").field("capacity", &self.shared.capacity).finish_non_exhaustive()
    }
}

impl CpuPool {
    /// Starts `workers` threads (at least one) with room for `capacity` waiting tasks.
    pub fn new(workers: usize, capacity: usize) -> std::io::Result<CpuPool> {
        let shared = Arc::new(Shared { queue: Mutex::default(), wake: Condvar::new(), capacity });
        let mut handles = Vec::new();
        for index in 0..workers.max(1) {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(format!("cpu-{index}"));
            handles.push(thread.spawn(move || work(&shared))?);
        }
        Ok(CpuPool { shared, workers: Mutex::new(handles) })
    }

    /// Runs `task` on a worker. Dropping the returned future lets a task that has started finish unheard, and skips one that
    /// has not.
    ///
    /// Errors: [`PoolError::Full`] at once when the queue is full; [`PoolError::Panicked`] harms nobody else.
    pub async fn run<T, F>(&self, task: F) -> Result<T, PoolError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let (task, receiver) = wrapped(task);
        self.submit(task)?;
        outcome(receiver).await
    }

    /// [`run`](Self::run), but waits up to `patience` for room in the queue: for work in the middle of a stream, which would be lost
    /// with all that was sent before.
    pub async fn run_within<T, F>(&self, patience: Duration, task: F) -> Result<T, PoolError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let (mut task, receiver) = wrapped(task);
        let asked = tokio::time::Instant::now();
        loop {
            match self.offer(task) {
                Ok(()) => return outcome(receiver).await,
                Err((again, PoolError::Full(_))) if asked.elapsed() < patience => task = again,
                Err((_, error)) => return Err(rejected(error)),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    fn submit(&self, task: Task) -> Result<(), PoolError> {
        self.offer(task).map_err(|(_, error)| rejected(error))
    }

    /// Queues a task, or gives it back.
    fn offer(&self, task: Task) -> Result<(), (Task, PoolError)> {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.closed {
            return Err((task, PoolError::ShuttingDown));
        }
        if queue.tasks.len() >= self.shared.capacity {
            return Err((task, PoolError::Full(self.shared.capacity)));
        }
        queue.tasks.push_back(task);
        metrics::gauge!("candlemesh_pool_queue_depth").set(queue.tasks.len() as f64);
        drop(queue);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Takes no more tasks, finishes those accepted, and joins the workers. Blocks.
    pub fn shutdown(&self) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.wake.notify_all();
        let workers = std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        for worker in workers {
            // A worker cannot panic: tasks are isolated.
            let _ = worker.join();
        }
    }
}

impl Drop for CpuPool {
    /// Lets the workers finish on their own; never blocks an async thread.
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.wake.notify_all();
    }
}

type Caught<T> = std::thread::Result<T>;

/// A task that is measured, isolated and answers to the receiver.
fn wrapped<T, F>(task: F) -> (Task, oneshot::Receiver<Caught<T>>)
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    let submitted = Instant::now();
    let span = tracing::Span::current();
    let task = move || {
        metrics::histogram!("candlemesh_pool_wait_seconds").record(submitted.elapsed().as_secs_f64());
        if sender.is_closed() {
            return;
        }
        let _entered = span.entered();
        let started = Instant::now();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(task));
        metrics::histogram!("candlemesh_pool_execution_seconds").record(started.elapsed().as_secs_f64());
        // The caller may have left; nobody else waits for this.
        let _ = sender.send(outcome);
    };
    (Box::new(task), receiver)
}

/// Counts a task that was turned away for want of room.
fn rejected(error: PoolError) -> PoolError {
    if matches!(error, PoolError::Full(_)) {
        metrics::counter!("candlemesh_pool_rejected_total").increment(1);
    }
    error
}

async fn outcome<T>(receiver: oneshot::Receiver<Caught<T>>) -> Result<T, PoolError> {
    match receiver.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(_)) => Err(PoolError::Panicked),
        Err(_) => Err(PoolError::ShuttingDown),
    }
}

fn work(shared: &Shared) {
    loop {
        let mut queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let task = loop {
            match queue.tasks.pop_front() {
                Some(task) => break task,
                None if queue.closed => return,
                None => queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        };
        metrics::gauge!("candlemesh_pool_queue_depth").set(queue.tasks.len() as f64);
        drop(queue);
        task();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn a_panicking_task_harms_nobody_else() {
        let pool = CpuPool::new(1, 4).unwrap();
        assert!(matches!(pool.run(|| panic!("on purpose")).await, Err::<(), _>(PoolError::Panicked)));
        assert_eq!(pool.run(|| 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_full_queue_rejects_at_once() {
        let pool = Arc::new(CpuPool::new(1, 1).unwrap());
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let (started, running) = oneshot::channel();
        let busy = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move {
                pool.run(move || {
                    let _ = started.send(());
                    let _ = gate.recv();
                })
                .await
            }
        });
        running.await.unwrap();
        pool.submit(Box::new(|| {})).unwrap();
        assert!(matches!(pool.run(|| ()).await, Err(PoolError::Full(1))));
        release.send(()).unwrap();
        busy.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_patient_caller_gets_the_room_that_becomes_free_and_an_error_when_none_does() {
        let pool = Arc::new(CpuPool::new(1, 1).unwrap());
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let (started, running) = oneshot::channel();
        let task = move || {
            let _ = started.send(());
            let _ = gate.recv();
        };
        pool.submit(Box::new(task)).unwrap();
        running.await.unwrap();
        pool.submit(Box::new(|| {})).unwrap();
        let brief = pool.run_within(Duration::from_millis(20), || ()).await;
        assert!(matches!(brief, Err(PoolError::Full(1))), "{brief:?}");
        let waiting = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { pool.run_within(Duration::from_secs(30), || 7).await }
        });
        release.send(()).unwrap();
        assert_eq!(waiting.await.unwrap().unwrap(), 7);
    }

    #[test]
    fn shutdown_under_load_finishes_everything_accepted() {
        for _ in 0..200 {
            let pool = CpuPool::new(2, 1000).unwrap();
            let done = Arc::new(AtomicUsize::new(0));
            let mut accepted = 0;
            for _ in 0..100 {
                let done = Arc::clone(&done);
                let task = Box::new(move || {
                    done.fetch_add(1, Ordering::Relaxed);
                });
                accepted += usize::from(pool.submit(task).is_ok());
            }
            pool.shutdown();
            assert_eq!(done.load(Ordering::Relaxed), accepted);
            assert!(matches!(pool.submit(Box::new(|| {})), Err(PoolError::ShuttingDown)));
        }
    }
}

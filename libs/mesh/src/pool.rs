//! The bounded CPU pool: work longer than half a millisecond leaves the async threads through here.
//!
//! Three priorities, each with a queue of its own ([`queue`] says whose turn it is), rejection when full, tasks that learn that nobody
//! waits for them any more, panics that stay where they are, and a shutdown that finishes what was accepted.

mod priority;
mod queue;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tonic::Code;

use crate::Fault;
pub use priority::{Cancel, Priority};
use queue::Queue;

/// Tasks accepted, labelled `priority` (interactive, batch, background) as all counts here are.
const SUBMITTED: &str = "candlemesh_pool_submitted_total";
/// Tasks that ran to their end for a caller that was still there.
const COMPLETED: &str = "candlemesh_pool_completed_total";
/// Tasks that panicked.
const FAILED: &str = "candlemesh_pool_failed_total";
/// Tasks whose caller left before their end: skipped when that was before their start.
const CANCELLED: &str = "candlemesh_pool_cancelled_total";
/// Tasks turned away from a full queue.
const REJECTED: &str = "candlemesh_pool_rejected_total";
/// Seconds from acceptance to start, or to being skipped.
const WAIT_SECONDS: &str = "candlemesh_pool_wait_seconds";
/// Seconds of running; its sum over time and workers is the utilisation.
const EXECUTION_SECONDS: &str = "candlemesh_pool_execution_seconds";
const QUEUE_DEPTH: &str = "candlemesh_pool_queue_depth";
/// Threads, and those of them that run a task now. Of all pools of the process, as the depth is.
const WORKERS: &str = "candlemesh_pool_workers";
const BUSY_WORKERS: &str = "candlemesh_pool_busy_workers";

/// How long a rejected caller is told to wait.
const RETRY_HINT: Duration = Duration::from_millis(100);
/// How long a patient caller waits between two attempts: about the length of a task.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

type Task = Box<dyn FnOnce() -> End + Send>;

/// Why a task has no result.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("the CPU pool's queue of {capacity} {priority} tasks is full")]
    Full { priority: Priority, capacity: usize },
    #[error("the CPU pool is shutting down")]
    ShuttingDown,
    #[error("task panicked")]
    Panicked,
}

impl Fault for PoolError {
    fn code(&self) -> Code {
        match self {
            PoolError::Full { .. } => Code::ResourceExhausted,
            PoolError::ShuttingDown => Code::Unavailable,
            PoolError::Panicked => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            PoolError::Full { .. } => "CPU_POOL_FULL",
            PoolError::ShuttingDown => "SHUTTING_DOWN",
            PoolError::Panicked => "TASK_PANICKED",
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        matches!(self, PoolError::Full { .. }).then_some(RETRY_HINT)
    }
}

/// How an accepted task ended.
#[derive(Debug, Clone, Copy)]
enum End {
    Completed,
    Failed,
    Cancelled,
}

#[derive(Debug, Default)]
struct Counts {
    submitted: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    rejected: AtomicU64,
}

/// What became of all tasks so far: `submitted` is the sum of completed, failed and cancelled ones, those that run and those that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStatistics {
    pub submitted: u64,
    pub completed: u64,
    pub failed: u64,
    pub cancelled: u64,
    /// Turned away, so not among the submitted.
    pub rejected: u64,
    /// Waiting, in the order of [`Priority::ALL`].
    pub queue_depths: [usize; 3],
}

struct Shared {
    queue: Mutex<Queue<Task>>,
    wake: Condvar,
    capacity: usize,
    counts: Counts,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue<Task>> {
        // A panic while it was held cannot be: no task runs under the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.queue().is_closed = true;
        self.wake.notify_all();
    }
}

/// Worker threads behind queues that reject when full. What was accepted is finished, also at shutdown,
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
    /// Starts `workers` threads (at least one) with room for `capacity` waiting tasks of each priority.
    pub fn new(workers: usize, capacity: usize) -> std::io::Result<CpuPool> {
        let workers = workers.max(1);
        let queue = Mutex::new(Queue::new(capacity, workers));
        let shared = Arc::new(Shared { queue, wake: Condvar::new(), capacity, counts: Counts::default() });
        // Dropped when a thread cannot be started, which ends those that were.
        let pool = CpuPool { shared, workers: Mutex::default() };
        for index in 0..workers {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("cpu-{index}")).spawn(move || work(&shared))?;
            pool.workers.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(pool)
    }

    /// Runs `task` on a worker, at the priority of the request being served. Dropping the returned future lets a task that has started
    /// finish unheard, and skips one that has not.
    ///
    /// Errors: [`PoolError::Full`] at once when the queue is full; [`PoolError::Panicked`] harms nobody else.
    pub async fn run<T, F>(&self, task: F) -> Result<T, PoolError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.run_at(Priority::current(), |_: &Cancel| task()).await
    }

    /// [`run`](Self::run) at a priority of its own, for tasks that last: they ask now and then whether anybody still waits, and end
    /// early when nobody does.
    pub async fn run_at<T, F>(&self, priority: Priority, task: F) -> Result<T, PoolError>
    where
        F: FnOnce(&Cancel) -> T + Send + 'static,
        T: Send + 'static,
    {
        let (task, waiting) = wrapped(priority, task);
        self.offer(priority, task).map_err(|(_, error)| rejected(&self.shared.counts, error))?;
        waiting.outcome().await
    }

    /// [`run`](Self::run), but waits up to `patience` for room in the queue: for work in the middle of a stream, which would be lost
    /// with all that was sent before.
    pub async fn run_within<T, F>(&self, patience: Duration, task: F) -> Result<T, PoolError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let priority = Priority::current();
        let (mut task, waiting) = wrapped(priority, |_: &Cancel| task());
        let asked = tokio::time::Instant::now();
        loop {
            match self.offer(priority, task) {
                Ok(()) => return waiting.outcome().await,
                Err((again, PoolError::Full { .. })) if asked.elapsed() < patience => task = again,
                Err((_, error)) => return Err(rejected(&self.shared.counts, error)),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Queues a task, or gives it back.
    fn offer(&self, priority: Priority, task: Task) -> Result<(), (Task, PoolError)> {
        let Shared { capacity, ref counts, .. } = *self.shared;
        let mut queue = self.shared.queue();
        if queue.is_closed {
            return Err((task, PoolError::ShuttingDown));
        }
        queue.push(priority, task).map_err(|task| (task, PoolError::Full { priority, capacity }))?;
        // Under the lock, so that no task is seen to end before it was submitted.
        counts.submitted.fetch_add(1, Ordering::Relaxed);
        drop(queue);
        self.shared.wake.notify_one();
        metrics::counter!(SUBMITTED, "priority" => priority.as_str()).increment(1);
        metrics::gauge!(QUEUE_DEPTH, "priority" => priority.as_str()).increment(1.0);
        Ok(())
    }

    /// Counts of this pool; those of the process are metrics.
    pub fn statistics(&self) -> PoolStatistics {
        let queue_depths = self.shared.queue().depths();
        let Counts { submitted, completed, failed, cancelled, rejected } = &self.shared.counts;
        let [submitted, completed, failed, cancelled, rejected] =
            [submitted, completed, failed, cancelled, rejected].map(|count| count.load(Ordering::Relaxed));
        PoolStatistics { submitted, completed, failed, cancelled, rejected, queue_depths }
    }

    /// Takes no more tasks, finishes those accepted, and joins the workers. Blocks.
    pub fn shutdown(&self) {
        self.shared.close();
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
        self.shared.close();
    }
}

type Caught<T> = std::thread::Result<T>;

/// The caller's side of a task.
struct Waiting<T> {
    receiver: oneshot::Receiver<Caught<T>>,
    cancel: Cancel,
}

impl<T> Waiting<T> {
    async fn outcome(mut self) -> Result<T, PoolError> {
        match (&mut self.receiver).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) => Err(PoolError::Panicked),
            Err(_) => Err(PoolError::ShuttingDown),
        }
    }
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A task that is measured, isolated and answers to its caller.
fn wrapped<T, F>(priority: Priority, task: F) -> (Task, Waiting<T>)
where
    F: FnOnce(&Cancel) -> T + Send + 'static,
    T: Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    let cancel = Cancel::default();
    let waiting = Waiting { receiver, cancel: cancel.clone() };
    let submitted = Instant::now();
    let span = tracing::Span::current();
    let task = move || {
        metrics::histogram!(WAIT_SECONDS, "priority" => priority.as_str()).record(submitted.elapsed().as_secs_f64());
        if cancel.is_cancelled() {
            return End::Cancelled;
        }
        let _entered = span.entered();
        let started = Instant::now();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| task(&cancel)));
        metrics::histogram!(EXECUTION_SECONDS, "priority" => priority.as_str()).record(started.elapsed().as_secs_f64());
        let end = match (&outcome, cancel.is_cancelled()) {
            (Err(_), _) => End::Failed,
            (Ok(_), true) => End::Cancelled,
            (Ok(_), false) => End::Completed,
        };
        // The caller may have left; nobody else waits for this.
        let _ = sender.send(outcome);
        end
    };
    (Box::new(task), waiting)
}

/// Counts a task that was turned away for want of room.
fn rejected(counts: &Counts, error: PoolError) -> PoolError {
    if let PoolError::Full { priority, .. } = error {
        counts.rejected.fetch_add(1, Ordering::Relaxed);
        metrics::counter!(REJECTED, "priority" => priority.as_str()).increment(1);
    }
    error
}

fn work(shared: &Shared) {
    metrics::gauge!(WORKERS).increment(1.0);
    let mut queue = shared.queue();
    loop {
        let Some((priority, task)) = queue.pop() else {
            if queue.is_closed && queue.is_empty() {
                break;
            }
            queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(queue);
        metrics::gauge!(QUEUE_DEPTH, "priority" => priority.as_str()).decrement(1.0);
        run_isolated(priority, task, &shared.counts);
        queue = shared.queue();
        queue.ended(priority);
        // Others may sleep because this task was one too many in the background, or wait for the end.
        if queue.is_closed {
            shared.wake.notify_all();
        } else if priority == Priority::Background && queue.has_background() {
            shared.wake.notify_one();
        }
    }
    metrics::gauge!(WORKERS).decrement(1.0);
}

fn run_isolated(priority: Priority, task: Task, counts: &Counts) {
    metrics::gauge!(BUSY_WORKERS).increment(1.0);
    // The task isolates itself; what it returned or captured may panic when it is dropped.
    let end = std::panic::catch_unwind(AssertUnwindSafe(task)).unwrap_or(End::Failed);
    metrics::gauge!(BUSY_WORKERS).decrement(1.0);
    let (count, name) = match end {
        End::Completed => (&counts.completed, COMPLETED),
        End::Failed => (&counts.failed, FAILED),
        End::Cancelled => (&counts.cancelled, CANCELLED),
    };
    count.fetch_add(1, Ordering::Relaxed);
    metrics::counter!(name, "priority" => priority.as_str()).increment(1);
}

#[cfg(test)]
mod tests;

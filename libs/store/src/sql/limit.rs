//! A limit in front of a pool of connections, which cannot be resized itself: every call takes a permit before its connection.
//!
//! A call holds at most one permit, and none while it waits for another call; so waiting always ends. Lowered while more connections are out than the new
//! limit has, it takes effect as they come home.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::Instant;

use crate::pool::{MAX_POINTS, PoolPoint, PoolStatistics, Turn, UseWatch};

/// Connections by `state`: `in_use`, or `waiting`, the calls that want one.
const CONNECTIONS_METRIC: &str = "candlemesh_store_connections";
const LIMIT_METRIC: &str = "candlemesh_store_connection_limit";
/// Share of the limit in use, 0 to 1, as a mean since the sample before.
const SHARE_METRIC: &str = "candlemesh_store_connection_use_ratio";
/// Waits of the calls that had to wait, also of those that gave up.
const WAIT_METRIC: &str = "candlemesh_store_connection_wait_seconds";
const TIMEOUTS_METRIC: &str = "candlemesh_store_connection_timeouts_total";

/// Waits are counted by powers of two of milliseconds, the last for all longer ones: half a minute, more than a call waits.
const WAIT_CLASSES: usize = 16;

#[derive(Debug)]
struct State {
    limit: usize,
    /// Permits to take away as they come home.
    owed: usize,
    in_use: usize,
    waiting: usize,
    waited_total: u64,
    timeouts_total: u64,
    wait_total: Duration,
    wait_max: Duration,
    /// Calls that did not wait, then by class of their wait.
    acquired: [u64; 1 + WAIT_CLASSES],
    /// Seconds of connections in use, until `accounted_at`.
    busy_seconds: f64,
    accounted_at: Instant,
    watch: UseWatch,
    sampled: Sampled,
    points: VecDeque<PoolPoint>,
}

/// Sums as of the last sample.
#[derive(Debug)]
struct Sampled {
    at: Instant,
    busy_seconds: f64,
    waited_total: u64,
    timeouts_total: u64,
}

impl State {
    fn account(&mut self, now: Instant) {
        self.busy_seconds += self.in_use as f64 * (now - self.accounted_at).as_secs_f64();
        self.accounted_at = now;
    }

    /// The longest wait among the given share of the calls, rounded up to its class.
    fn wait_of(&self, share: f64) -> Duration {
        let calls: u64 = self.acquired.iter().sum();
        let mut left = (calls as f64 * share).ceil() as u64;
        for (class, count) in self.acquired.iter().enumerate() {
            if *count >= left {
                return if class == 0 { Duration::ZERO } else { Duration::from_millis(1 << (class - 1)) };
            }
            left -= count;
        }
        self.wait_max
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ConnectionLimit {
    semaphore: Arc<Semaphore>,
    max_limit: usize,
    wait_timeout: Duration,
    state: Mutex<State>,
}

impl ConnectionLimit {
    /// As many permits as the pool has connections.
    pub(crate) fn new(connections: usize, wait_timeout: Duration) -> Arc<Self> {
        let limit = connections.max(1);
        let now = Instant::now();
        let state = State {
            limit,
            owed: 0,
            in_use: 0,
            waiting: 0,
            waited_total: 0,
            timeouts_total: 0,
            wait_total: Duration::ZERO,
            wait_max: Duration::ZERO,
            acquired: [0; 1 + WAIT_CLASSES],
            busy_seconds: 0.0,
            accounted_at: now,
            watch: UseWatch::default(),
            sampled: Sampled { at: now, busy_seconds: 0.0, waited_total: 0, timeouts_total: 0 },
            points: VecDeque::new(),
        };
        let semaphore = Arc::new(Semaphore::new(limit));
        Arc::new(Self { semaphore, max_limit: limit, wait_timeout, state: Mutex::new(state) })
    }

    /// Plain sums: a panic between two of them leaves nothing that could be broken.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a permit, first come first served, as long as the pool itself would wait.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Result<Permit, sqlx::Error> {
        match Arc::clone(&self.semaphore).try_acquire_owned() {
            Ok(permit) => return Ok(self.taken(permit, None)),
            Err(TryAcquireError::Closed) => return Err(sqlx::Error::PoolClosed),
            Err(TryAcquireError::NoPermits) => {}
        }
        let started = Instant::now();
        let waiting = Waiting::of(self);
        let permit = tokio::time::timeout(self.wait_timeout, Arc::clone(&self.semaphore).acquire_owned()).await;
        drop(waiting);
        let wait = started.elapsed();
        metrics::histogram!(WAIT_METRIC).record(wait.as_secs_f64());
        match permit {
            Ok(Ok(permit)) => Ok(self.taken(permit, Some(wait))),
            Ok(Err(_closed)) => Err(sqlx::Error::PoolClosed),
            Err(_elapsed) => {
                self.state().timeouts_total += 1;
                metrics::counter!(TIMEOUTS_METRIC).increment(1);
                Err(sqlx::Error::PoolTimedOut)
            }
        }
    }

    fn taken(self: &Arc<Self>, permit: OwnedSemaphorePermit, wait: Option<Duration>) -> Permit {
        let mut state = self.state();
        state.account(Instant::now());
        state.in_use += 1;
        let class = wait.map_or(0, |wait| {
            state.waited_total += 1;
            state.wait_total += wait;
            state.wait_max = state.wait_max.max(wait);
            // Up to a millisecond is the first class, up to two the second.
            let ms = wait.as_micros().div_ceil(1_000).max(1) as u64;
            (1 + ms.next_power_of_two().trailing_zeros() as usize).min(WAIT_CLASSES)
        });
        state.acquired[class] += 1;
        drop(state);
        Permit { permit: Some(permit), limit: Arc::clone(self) }
    }

    /// Sets the limit, at least 1 and at most the pool's size; returns what it became.
    pub(crate) fn resize(&self, limit: usize) -> usize {
        let limit = limit.clamp(1, self.max_limit);
        let mut state = self.state();
        if limit > state.limit {
            // What is still owed need not come home for it.
            let added = limit - state.limit;
            let forgiven = added.min(state.owed);
            state.owed -= forgiven;
            self.semaphore.add_permits(added - forgiven);
        } else {
            let removed = state.limit - limit;
            state.owed += removed - self.semaphore.forget_permits(removed);
        }
        state.limit = limit;
        limit
    }

    pub(crate) fn statistics(&self) -> PoolStatistics {
        let state = self.state();
        PoolStatistics {
            limit: state.limit,
            max_limit: self.max_limit,
            in_use: state.in_use,
            waiting: state.waiting,
            acquired_total: state.acquired.iter().sum(),
            waited_total: state.waited_total,
            timeouts_total: state.timeouts_total,
            wait_total: state.wait_total,
            wait_max: state.wait_max,
            wait_p50: state.wait_of(0.5),
            wait_p99: state.wait_of(0.99),
        }
    }

    /// Keeps a point for trend, publishes it, and warns where use has become high or normal again.
    pub(crate) fn sample(&self) -> PoolPoint {
        let mut state = self.state();
        let now = Instant::now();
        state.account(now);
        let seconds = (now - state.sampled.at).as_secs_f64();
        let busy = state.busy_seconds - state.sampled.busy_seconds;
        let point = PoolPoint {
            limit: state.limit,
            mean_in_use: if seconds > 0.0 { busy / seconds } else { state.in_use as f64 },
            waiting: state.waiting,
            waited: state.waited_total - state.sampled.waited_total,
            timeouts: state.timeouts_total - state.sampled.timeouts_total,
        };
        let (busy_seconds, waited_total, timeouts_total) =
            (state.busy_seconds, state.waited_total, state.timeouts_total);
        state.sampled = Sampled { at: now, busy_seconds, waited_total, timeouts_total };
        if state.points.len() == MAX_POINTS {
            state.points.pop_front();
        }
        state.points.push_back(point);
        let (watch, turn) = state.watch.after(point.share());
        state.watch = watch;
        let in_use = state.in_use;
        drop(state);

        metrics::gauge!(CONNECTIONS_METRIC, "state" => "in_use").set(in_use as f64);
        metrics::gauge!(CONNECTIONS_METRIC, "state" => "waiting").set(point.waiting as f64);
        metrics::gauge!(LIMIT_METRIC).set(point.limit as f64);
        metrics::gauge!(SHARE_METRIC).set(point.share());
        match turn {
            Some(Turn::High) => tracing::warn!(
                limit = point.limit,
                mean_in_use = point.mean_in_use,
                waiting = point.waiting,
                "store connections are nearly all in use"
            ),
            Some(Turn::Recovered) => {
                tracing::info!(
                    limit = point.limit,
                    mean_in_use = point.mean_in_use,
                    "store connections are free again"
                );
            }
            None => {}
        }
        point
    }

    /// The points kept, oldest first.
    pub(crate) fn points(&self) -> Vec<PoolPoint> {
        self.state().points.iter().copied().collect()
    }

    /// Lets nobody in any more; who waits is told at once.
    pub(crate) fn close(&self) {
        self.semaphore.close();
    }
}

/// Leave to use a connection, until dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    permit: Option<OwnedSemaphorePermit>,
    limit: Arc<ConnectionLimit>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.limit.state();
        state.account(Instant::now());
        state.in_use -= 1;
        if state.owed > 0 {
            state.owed -= 1;
            if let Some(permit) = self.permit.take() {
                permit.forget();
            }
        }
        // Back before the lock is released, so that a resize finds every permit either out or home.
        self.permit = None;
    }
}

/// Counts a call that waits, however it ends.
struct Waiting<'a>(&'a ConnectionLimit);

impl<'a> Waiting<'a> {
    fn of(limit: &'a ConnectionLimit) -> Self {
        limit.state().waiting += 1;
        Self(limit)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(10);

    /// Until `count` calls wait.
    async fn until_waiting(limit: &ConnectionLimit, count: usize) {
        let wait = async {
            while limit.statistics().waiting != count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(WAIT, wait).await.expect("so many wait in time");
    }

    fn waiter(limit: &Arc<ConnectionLimit>) -> tokio::task::JoinHandle<Result<Permit, sqlx::Error>> {
        let limit = Arc::clone(limit);
        tokio::spawn(async move { limit.acquire().await })
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_bounded_and_counted() {
        let limit = ConnectionLimit::new(1, WAIT);
        let held = limit.acquire().await.unwrap();
        let started = Instant::now();
        assert!(matches!(limit.acquire().await, Err(sqlx::Error::PoolTimedOut)));
        assert_eq!(started.elapsed(), WAIT);
        let second = waiter(&limit);
        until_waiting(&limit, 1).await;
        tokio::time::advance(Duration::from_millis(3)).await;
        drop(held);
        drop(second.await.unwrap().unwrap());
        let got = limit.statistics();
        assert_eq!((got.acquired_total, got.waited_total, got.timeouts_total), (2, 1, 1));
        assert_eq!((got.in_use, got.waiting), (0, 0));
        assert_eq!((got.wait_total, got.wait_max), (Duration::from_millis(3), Duration::from_millis(3)));
        assert_eq!((got.wait_p50, got.wait_p99), (Duration::ZERO, Duration::from_millis(4)));
        // A call that goes away while it waits leaves no trace but the place it had.
        let held = limit.acquire().await.unwrap();
        let gone = waiter(&limit);
        until_waiting(&limit, 1).await;
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        assert_eq!(limit.statistics().waiting, 0);
        drop(held);
        assert!(limit.acquire().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lower_limit_takes_effect_as_connections_come_home() {
        let limit = ConnectionLimit::new(4, WAIT);
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(limit.acquire().await.unwrap());
        }
        assert_eq!(limit.resize(2), 2);
        assert_eq!(limit.statistics().in_use, 4);
        let waiting = waiter(&limit);
        until_waiting(&limit, 1).await;
        // Two come home and are taken away; only the third is given on.
        held.truncate(2);
        tokio::task::yield_now().await;
        assert_eq!((limit.statistics().in_use, limit.statistics().waiting), (2, 1));
        held.truncate(1);
        let given = waiting.await.unwrap().unwrap();
        assert_eq!(limit.statistics().in_use, 2);
        drop((held, given));
        assert_eq!(limit.semaphore.available_permits(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_higher_limit_lets_those_in_who_wait() {
        let limit = ConnectionLimit::new(4, WAIT);
        assert_eq!(limit.resize(1), 1);
        let held = limit.acquire().await.unwrap();
        let waiting = [waiter(&limit), waiter(&limit)];
        until_waiting(&limit, 2).await;
        assert_eq!(limit.resize(3), 3);
        for waiting in waiting {
            waiting.await.unwrap().unwrap();
        }
        drop(held);
        assert_eq!(limit.semaphore.available_permits(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_stays_between_one_and_the_size_of_the_pool() {
        let limit = ConnectionLimit::new(4, WAIT);
        assert_eq!((limit.resize(0), limit.semaphore.available_permits()), (1, 1));
        assert_eq!((limit.resize(99), limit.semaphore.available_permits()), (4, 4));
        // Raised again while the permits it lost are still out: they stay.
        let held = [limit.acquire().await.unwrap(), limit.acquire().await.unwrap(), limit.acquire().await.unwrap()];
        limit.resize(1);
        limit.resize(3);
        assert_eq!(limit.semaphore.available_permits(), 0);
        drop(held);
        assert_eq!(limit.semaphore.available_permits(), 3);
        assert_eq!(limit.statistics().limit, 3);
    }

    /// Whatever is resized while calls come and go, no more are let in than the limit allows, and none is lost.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn resizing_under_load_loses_no_permit() {
        let limit = ConnectionLimit::new(8, WAIT);
        let calls = (0..16).map(|_| {
            let limit = Arc::clone(&limit);
            tokio::spawn(async move {
                for _ in 0..200 {
                    let permit = limit.acquire().await.unwrap();
                    tokio::task::yield_now().await;
                    drop(permit);
                }
            })
        });
        let calls: Vec<_> = calls.collect();
        for round in 0..500_usize {
            limit.resize(1 + round * 5 % 8);
            assert!(limit.statistics().in_use <= 8);
            tokio::task::yield_now().await;
        }
        for call in calls {
            call.await.unwrap();
        }
        let got = limit.statistics();
        assert_eq!((got.acquired_total, got.in_use, got.waiting, got.timeouts_total), (3_200, 0, 0, 0));
        assert_eq!(limit.semaphore.available_permits(), got.limit);
    }

    #[tokio::test(start_paused = true)]
    async fn points_tell_the_mean_use_and_are_bounded() {
        let limit = ConnectionLimit::new(4, WAIT);
        let held = [limit.acquire().await.unwrap(), limit.acquire().await.unwrap()];
        tokio::time::advance(Duration::from_secs(5)).await;
        drop(held);
        tokio::time::advance(Duration::from_secs(5)).await;
        // Two of four for half of the time.
        let point = limit.sample();
        assert_eq!((point.mean_in_use, point.share(), point.limit), (1.0, 0.25, 4));
        for _ in 0..2 * MAX_POINTS {
            tokio::time::advance(Duration::from_secs(10)).await;
            assert_eq!(limit.sample().mean_in_use, 0.0);
        }
        assert_eq!(limit.points().len(), MAX_POINTS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_limit_turns_everyone_away() {
        let limit = ConnectionLimit::new(1, WAIT);
        let held = limit.acquire().await.unwrap();
        let waiting = waiter(&limit);
        until_waiting(&limit, 1).await;
        limit.close();
        assert!(matches!(waiting.await.unwrap(), Err(sqlx::Error::PoolClosed)));
        drop(held);
        assert!(matches!(limit.acquire().await, Err(sqlx::Error::PoolClosed)));
    }
}

//! The wall clock, read where a request comes in and nowhere below, and the port for work that waits for an instant.

use std::fmt::Debug;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use market::Millis;
use tokio::sync::watch;

/// Longest sleep before the wall clock is looked at again: it may be set while somebody sleeps.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// The instant, by the machine's clock.
pub fn now() -> Millis {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since_epoch.as_millis()).unwrap_or(Millis::MAX)
}

/// A clock for work that goes on by itself, such as closing candles.
#[tonic::async_trait]
pub trait Clock: Send + Sync + Debug {
    fn now(&self) -> Millis;

    /// Returns once `now()` is at least `at`.
    async fn reach(&self, at: Millis);
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

#[tonic::async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Millis {
        now()
    }

    async fn reach(&self, at: Millis) {
        while let left @ 1.. = at.saturating_sub(now()) {
            let left = Duration::from_millis(left.unsigned_abs());
            tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
        }
    }
}

/// A clock that stands still until it is set: the in-memory twin, for tests.
#[derive(Debug)]
pub struct ManualClock(watch::Sender<Millis>);

impl ManualClock {
    pub fn new(at: Millis) -> Self {
        Self(watch::Sender::new(at))
    }

    /// Sets the clock; it never goes back.
    pub fn set(&self, at: Millis) {
        self.0.send_modify(|now| *now = at.max(*now));
    }
}

#[tonic::async_trait]
impl Clock for ManualClock {
    fn now(&self) -> Millis {
        *self.0.borrow()
    }

    async fn reach(&self, at: Millis) {
        let mut seen = self.0.subscribe();
        // The sender lives as long as the clock does.
        let _ = seen.wait_for(|now| *now >= at).await;
    }
}

//! How busy the connections of a store are: statistics, points for trend, and when to warn.

use std::time::Duration;

/// Between two samples of [`Stores::watch_pool`](crate::Stores::watch_pool).
pub(crate) const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Samples kept: ten minutes.
pub(crate) const MAX_POINTS: usize = 60;
/// Share of the limit in use from which a pool counts as nearly exhausted. Beyond it the waits of a queue grow steeply.
const HIGH_USE: f64 = 0.8;
/// Share below which it has recovered. Apart from the other, so that a use that swings about one bound is not told of each time.
const RECOVERED_USE: f64 = 0.6;
/// Samples in a row that make a turn: half a minute, longer than one large put.
const TURN_SAMPLES: u32 = 3;

/// The connections of a store at one moment, and sums since it was opened.
///
/// For PostgreSQL all connections; for SQLite those that read.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PoolStatistics {
    /// Connections that may be in use at once.
    pub limit: usize,
    /// The pool's own size, which the limit never exceeds.
    pub max_limit: usize,
    /// May exceed the limit for a while after it was lowered.
    pub in_use: usize,
    /// Calls that wait for one.
    pub waiting: usize,
    pub acquired_total: u64,
    /// Of those, the ones that had to wait.
    pub waited_total: u64,
    /// Calls that gave up waiting.
    pub timeouts_total: u64,
    /// Sum of the waits of `waited_total`.
    pub wait_total: Duration,
    pub wait_max: Duration,
    /// Half, and 99 %, of the calls waited no longer: the next power of two of milliseconds; zero where that many did not wait at all.
    pub wait_p50: Duration,
    pub wait_p99: Duration,
}

/// The use of a store's connections over the time since the point before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PoolPoint {
    pub limit: usize,
    /// Connections in use, as a mean over time.
    pub mean_in_use: f64,
    /// Calls that waited at the end.
    pub waiting: usize,
    /// Calls that had to wait, and that gave up.
    pub waited: u64,
    pub timeouts: u64,
}

impl PoolPoint {
    /// Share of the limit in use; above 1 for a while after the limit was lowered.
    pub fn share(&self) -> f64 {
        self.mean_in_use / self.limit.max(1) as f64
    }
}

/// A change worth telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    High,
    Recovered,
}

/// Whether a pool is nearly exhausted, judged from one sample after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct UseWatch {
    is_high: bool,
    /// Samples in a row that speak for the other state.
    against: u32,
}

impl UseWatch {
    /// The state after a sample, and the turn it made.
    pub(crate) fn after(self, share: f64) -> (Self, Option<Turn>) {
        let speaks_against = if self.is_high { share < RECOVERED_USE } else { share > HIGH_USE };
        let against = if speaks_against { self.against + 1 } else { 0 };
        if against < TURN_SAMPLES {
            return (Self { against, ..self }, None);
        }
        let turn = if self.is_high { Turn::Recovered } else { Turn::High };
        (Self { is_high: !self.is_high, against: 0 }, Some(turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(shares: &[f64]) -> Vec<(usize, Turn)> {
        let mut watch = UseWatch::default();
        let mut turns = Vec::new();
        for (index, share) in shares.iter().enumerate() {
            let (next, turn) = watch.after(*share);
            watch = next;
            turns.extend(turn.map(|turn| (index, turn)));
        }
        turns
    }

    #[test]
    fn use_is_high_when_it_stays_above_eighty_percent_and_told_once() {
        assert_eq!(turns(&[0.9, 0.9, 0.9, 1.0, 1.0, 1.0, 1.0]), [(2, Turn::High)]);
        assert_eq!(turns(&[0.9, 0.9, 0.8, 0.9, 0.9, 0.1, 0.9, 0.9]), []);
        assert_eq!(turns(&[0.8; 10]), []);
    }

    #[test]
    fn use_recovers_only_well_below_the_bound_that_made_it_high() {
        let swinging = [0.9, 0.9, 0.9, 0.7, 0.9, 0.7, 0.7, 0.7, 0.61, 0.9];
        assert_eq!(turns(&swinging), [(2, Turn::High)]);
        let recovering = [0.9, 0.9, 0.9, 0.5, 0.5, 0.6, 0.5, 0.5, 0.5, 0.5, 0.9, 0.9, 0.9];
        assert_eq!(turns(&recovering), [(2, Turn::High), (8, Turn::Recovered), (12, Turn::High)]);
    }

    #[test]
    fn a_share_is_of_the_limit() {
        let point = PoolPoint { limit: 4, mean_in_use: 3.0, waiting: 0, waited: 0, timeouts: 0 };
        assert_eq!(point.share(), 0.75);
    }
}

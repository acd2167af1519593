//! How long to wait before a database is asked again.

use std::time::Duration;

use rand::RngExt;

const FIRST: Duration = Duration::from_secs(1);
/// Longest wait: an outage of hours is noticed soon enough after its end.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// The longest wait after `failures` failures in a row, of at least one: it doubles.
fn ceiling(failures: u32) -> Duration {
    FIRST.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX)).min(LONGEST)
}

/// A wait between nothing and the ceiling, all equally likely, so that workers that failed together do not return together.
///
/// Source: M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015: "full jitter".
pub(crate) fn wait(failures: u32) -> Duration {
    rand::rng().random_range(Duration::ZERO..=ceiling(failures))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_quarter_of_an_hour() {
        let seconds: Vec<u64> = (1..=12).map(|failures| ceiling(failures).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
        assert_eq!(ceiling(u32::MAX), LONGEST);
        let waits: Vec<Duration> = (0..1000).map(|_| wait(3)).collect();
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(4)));
        let mean = waits.iter().sum::<Duration>() / 1000;
        assert!((1.7..2.3).contains(&mean.as_secs_f64()), "{mean:?}");
    }
}

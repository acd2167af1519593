//! First-order recurrences: every average that remembers its own last value.

use serde::{Deserialize, Serialize};

/// A recurrence `y = carry * y + gain * x` and its seed: the sum of the first `count` inputs over `divisor`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Shape {
    pub(super) count: usize,
    pub(super) divisor: f64,
    pub(super) carry: f64,
    pub(super) gain: f64,
}

impl Shape {
    /// Exponential smoothing, alpha 2/(period+1). Seed: mean of the first `period` inputs.
    pub(super) fn exponential(period: usize) -> Self {
        let n = period as f64;
        Self { count: period, divisor: n, carry: (n - 1.0) / (n + 1.0), gain: 2.0 / (n + 1.0) }
    }

    /// Wilder smoothing, alpha 1/period. Seed: mean of the first `period` inputs.
    pub(super) fn wilder_mean(period: usize) -> Self {
        let n = period as f64;
        Self { count: period, divisor: n, carry: (n - 1.0) / n, gain: 1.0 / n }
    }

    /// Wilder's running sum as TA-Lib keeps it for directional movement. Seed: sum of the first `period - 1` inputs.
    pub(super) fn wilder_sum(period: usize) -> Self {
        let n = period as f64;
        Self { count: period - 1, divisor: 1.0, carry: (n - 1.0) / n, gain: 1.0 }
    }

    /// Plain running total from 0.
    pub(super) fn total() -> Self {
        Self { count: 0, divisor: 1.0, carry: 1.0, gain: 1.0 }
    }
}

/// State of one recurrence.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Smooth {
    pub(super) shape: Shape,
    pub(super) seen: usize,
    pub(super) value: f64,
}

impl Smooth {
    pub(super) fn new(shape: Shape) -> Self {
        Self { shape, seen: 0, value: 0.0 }
    }

    /// Takes one input; answers from the input that completes the seed on.
    pub(super) fn push(&mut self, x: f64) -> Option<f64> {
        if self.seen >= self.shape.count {
            self.value = self.shape.carry * self.value + self.shape.gain * x;
            return Some(self.value);
        }
        self.value += x;
        self.seen += 1;
        if self.seen < self.shape.count {
            return None;
        }
        self.value /= self.shape.divisor;
        Some(self.value)
    }
}

/// Wilder mean of the directional index, which stands still on rows without direction (as TA-Lib; in the seed they count 0).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct DirectionMean {
    period: usize,
    seen: usize,
    value: f64,
}

impl DirectionMean {
    pub(super) fn new(period: usize) -> Self {
        Self { period, seen: 0, value: 0.0 }
    }

    /// Takes one index, NaN where there is no direction.
    pub(super) fn push(&mut self, index: f64) -> Option<f64> {
        let n = self.period as f64;
        if self.seen < self.period {
            self.seen += 1;
            self.value += if index.is_nan() { 0.0 } else { index };
            if self.seen < self.period {
                return None;
            }
            self.value /= n;
        } else if !index.is_nan() {
            self.value = (self.value * (n - 1.0) + index) / n;
        }
        Some(self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_is_the_mean_of_the_first_period() {
        let mut ema = Smooth::new(Shape::exponential(3));
        let out: Vec<_> = [1.0, 2.0, 6.0, 5.0].into_iter().map(|x| ema.push(x)).collect();
        assert_eq!(out, [None, None, Some(3.0), Some(4.0)]);
    }

    #[test]
    fn period_one_is_the_input_itself() {
        for shape in [Shape::exponential(1), Shape::wilder_mean(1)] {
            let mut smooth = Smooth::new(shape);
            assert!([0.1, 0.7, -3.3].into_iter().all(|x| smooth.push(x) == Some(x)));
        }
    }
}

//! What the last rows hold, found in constant time per row.

use std::collections::VecDeque;
use std::mem;

use serde::{Deserialize, Serialize};

/// The value of a series `period` rows ago.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Delay {
    place: usize,
    is_full: bool,
    values: Box<[f64]>,
}

impl Delay {
    pub(super) fn new(period: usize) -> Self {
        Self { place: 0, is_full: false, values: vec![0.0; period].into() }
    }

    /// Takes the next value; answers with the one `period` rows before it.
    pub(super) fn push(&mut self, x: f64) -> Option<f64> {
        let before = mem::replace(&mut self.values[self.place], x);
        let was_full = self.is_full;
        let next = self.place + 1;
        let is_last = next == self.values.len();
        self.place = if is_last { 0 } else { next };
        self.is_full |= is_last;
        was_full.then_some(before)
    }
}

/// How many rows ago the highest of the last `period` rows was; of equal ones the latest counts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Peak {
    period: usize,
    row: usize,
    /// Rows that can still become the highest, falling from the front.
    candidates: VecDeque<(usize, f64)>,
}

impl Peak {
    pub(super) fn new(period: usize) -> Self {
        Self { period, row: 0, candidates: VecDeque::new() }
    }

    pub(super) fn push(&mut self, x: f64) -> Option<usize> {
        let row = self.row;
        self.row += 1;
        while self.candidates.back().is_some_and(|&(_, value)| value <= x) {
            self.candidates.pop_back();
        }
        self.candidates.push_back((row, x));
        if self.candidates.front().is_some_and(|&(entered, _)| entered + self.period <= row) {
            self.candidates.pop_front();
        }
        let &(entered, _) = self.candidates.front()?;
        (self.row >= self.period).then_some(row - entered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_and_peak_are_those_of_a_scan() {
        let x: Vec<f64> = (0..200).map(|i| ((i * 7919) % 23) as f64).collect();
        for period in [1, 2, 3, 14, 64, 199] {
            let (mut delay, mut peak) = (Delay::new(period), Peak::new(period));
            for i in 0..x.len() {
                assert_eq!(delay.push(x[i]), i.checked_sub(period).map(|before| x[before]));
                let wanted = (i + 1 >= period).then(|| {
                    let ages = 0..period;
                    ages.reduce(|best, age| if x[i - age] > x[i - best] { age } else { best }).unwrap()
                });
                assert_eq!(peak.push(x[i]), wanted, "{period} {i}");
            }
        }
    }
}

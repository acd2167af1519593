//! Engine V1's form and the reference: one state machine per spec, one row at a time.

use serde::{Deserialize, Serialize};

use super::spec::Spec;
use super::state::AnyState;
use crate::Error;

/// One candle, with a number that changes when the trading day does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub open: f64,
    pub high: f64,
    pub low: f64,
    pub close: f64,
    pub volume: f64,
    pub day: i32,
}

/// Running state of one indicator: takes candles in order, answers with the values at each.
///
/// Shape: [`Machine::push`] writes one value per output of the spec, NaN while undefined.
///
/// ```
/// use kernels::indicator::{Machine, Row, Spec};
/// let spec: Spec = "sma:2".parse()?;
/// let row = |close| Row { open: 4.0, high: 6.0, low: 2.0, close, volume: 1.0, day: 0 };
/// let mut sma = Machine::new(&spec);
/// let mut out = [0.0];
/// sma.push(&row(3.0), &mut out);
/// let mut later = Machine::restore(&spec, &sma.save())?;
/// later.push(&row(5.0), &mut out);
/// assert_eq!((out, later.seen()), ([4.0], 2));
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Debug)]
pub struct Machine {
    state: Box<dyn AnyState>,
    seen: u64,
}

impl Clone for Machine {
    fn clone(&self) -> Self {
        Self { state: self.state.duplicate(), seen: self.seen }
    }
}

impl Machine {
    /// Starts before the first candle.
    pub fn new(spec: &Spec) -> Self {
        Self { state: spec.start(), seen: 0 }
    }

    /// Takes the next candle and writes the values at it; `out` has one place per output of the spec.
    pub fn push(&mut self, row: &Row, out: &mut [f64]) {
        out.fill(f64::NAN);
        self.state.push(row, out);
        self.seen += 1;
    }

    /// Returns the number of candles taken so far.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Returns the state as bytes, from which [`Machine::restore`] goes on to the bit, in this revision of the kernels.
    pub fn save(&self) -> Vec<u8> {
        let mut bytes = self.seen.to_le_bytes().to_vec();
        bytes.extend(self.state.save());
        bytes
    }

    /// Takes up a state saved with the same spec and [`REVISION`](super::REVISION); both, and that the bytes are whole, are for the
    /// caller to make sure of.
    ///
    /// Errors: bytes that are not a state of this indicator.
    pub fn restore(spec: &Spec, bytes: &[u8]) -> Result<Self, Error> {
        let refused = || Error::State { spec: spec.to_string() };
        let (seen, state) = bytes.split_first_chunk().ok_or_else(refused)?;
        let state = spec.restore(state).ok_or_else(refused)?;
        Ok(Self { state, seen: u64::from_le_bytes(*seen) })
    }
}

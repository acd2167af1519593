//! What an indicator must say to be in the catalogue, and how its running state is kept.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::fold::Row;
use super::profile::Profile;
use super::spec::MULTIPLIER_SCALE;

/// What an indicator is started with: parameter values in the order of the catalogue, whole numbers as they are, decimals in
/// ten-thousandths; and whose definition is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Values {
    numbers: [u32; Values::MOST],
    profile: Profile,
}

impl Values {
    /// Parameters an indicator may have.
    pub(super) const MOST: usize = 4;

    pub(super) fn new(numbers: &[u32], profile: Profile) -> Self {
        Self { numbers: std::array::from_fn(|index| numbers.get(index).copied().unwrap_or_default()), profile }
    }

    pub(super) fn profile(&self) -> Profile {
        self.profile
    }

    /// A whole number: a period.
    pub(super) fn period(&self, index: usize) -> usize {
        self.numbers[index] as usize
    }

    /// A decimal.
    pub(super) fn decimal(&self, index: usize) -> f64 {
        f64::from(self.numbers[index]) / f64::from(MULTIPLIER_SCALE)
    }

    /// What is answered where a market that stands still leaves nothing to divide by: TA-Lib has a number for it, Pine Script `na`.
    pub(super) fn flat(&self, number: f64) -> f64 {
        match self.profile {
            Profile::TaLib => number,
            Profile::TradingView => f64::NAN,
        }
    }
}

/// Running state of one indicator. Everything it remembers is in its fields, so that it can be saved and restored: a restored state
/// goes on to the bit.
pub(super) trait State: fmt::Debug + Clone + Send + Sync + Serialize + DeserializeOwned + 'static {
    /// Starts before the first candle; the values are in the ranges of the catalogue.
    fn new(values: &Values) -> Self;

    /// Takes the next candle and writes the values at it, one per output; places left alone are undefined.
    fn push(&mut self, row: &Row, out: &mut [f64]);
}

/// [`State`] of any indicator.
pub(super) trait AnyState: fmt::Debug + Send + Sync {
    fn push(&mut self, row: &Row, out: &mut [f64]);
    fn save(&self) -> Vec<u8>;
    fn duplicate(&self) -> Box<dyn AnyState>;
}

impl<T: State> AnyState for T {
    fn push(&mut self, row: &Row, out: &mut [f64]) {
        State::push(self, row, out);
    }

    fn save(&self) -> Vec<u8> {
        // Into memory, of types that are plain data: nothing can fail.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    fn duplicate(&self) -> Box<dyn AnyState> {
        Box::new(self.clone())
    }
}

pub(super) fn start<T: State>(values: &Values) -> Box<dyn AnyState> {
    Box::new(T::new(values))
}

/// `None` for bytes that are not a state of this type.
pub(super) fn restore<T: State>(bytes: &[u8]) -> Option<Box<dyn AnyState>> {
    let state: T = postcard::from_bytes(bytes).ok()?;
    Some(Box::new(state))
}

/// Writes values that are either all defined or all undefined.
pub(super) fn write<const N: usize>(out: &mut [f64], values: Option<[f64; N]>) {
    if let Some(values) = values {
        out.iter_mut().zip(values).for_each(|(place, value)| *place = value);
    }
}

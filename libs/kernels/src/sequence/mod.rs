//! Moves, sequences of strong moves, their metrics and the statistics of their patterns.
//!
//! A move is one candle's body, judged for size and volume; a sequence is a maximal run of moves of one class. The whole analysis
//! exists twice, with equal results: [`analyze_rows`] walks the candles one by one, [`analyze_columns`] runs over whole columns.
//! All of it is causal for moves: the move of candle i depends on candles 0..=i only. Candles are normally daily, so "trading days"
//! are candles.

mod candles;
mod columns;
mod metrics;
mod moves;
#[cfg(test)]
mod tests;

use std::fmt::Display;

pub use crate::trend::{Trend, TrendParams};
pub use candles::Candles;
pub use columns::analyze_columns;
pub use metrics::{Metrics, Pattern, metrics, patterns};
pub use moves::{Direction, Kind, Move, MoveParams, Sequence, TrendInput, moves, sequences};

use crate::{Error, trend};

/// Everything an analysis can be told; the defaults are the product's.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AnalysisParams {
    pub moves: MoveParams,
    /// A move is strong only in the direction of this trend, as it stood at the end of the move's candle.
    pub trend: TrendParams,
    pub sequences: SequenceParams,
}

/// How runs become sequences, and what is measured on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceParams {
    /// Shorter runs are dropped, 1..=100.
    pub min_sequence_length: u32,
    /// Longer gaps do not count towards continuity, in trading days, 1..=1000.
    pub max_gap_length: u32,
    /// Candles of the forward return that decides a pattern's success, 1..=250.
    pub forward_candles: u32,
}

impl Default for SequenceParams {
    fn default() -> Self {
        SequenceParams { min_sequence_length: 2, max_gap_length: 5, forward_candles: 5 }
    }
}

/// The whole analysis of one instrument.
#[derive(Debug, Clone, PartialEq)]
pub struct Analysis {
    /// One per candle.
    pub moves: Vec<Move>,
    pub sequences: Vec<Sequence>,
    pub metrics: Metrics,
    pub patterns: Vec<Pattern>,
}

impl AnalysisParams {
    /// Refuses values outside their ranges, naming the field.
    pub fn check(&self) -> Result<(), Error> {
        self.moves.check()?;
        self.trend.check()?;
        self.sequences.check()
    }
}

impl SequenceParams {
    /// Refuses values outside their ranges, naming the field.
    pub fn check(&self) -> Result<(), Error> {
        require(
            (1..=100).contains(&self.min_sequence_length),
            "min_sequence_length",
            self.min_sequence_length,
            "1..=100",
        )?;
        require((1..=1000).contains(&self.max_gap_length), "max_gap_length", self.max_gap_length, "1..=1000")?;
        require((1..=250).contains(&self.forward_candles), "forward_candles", self.forward_candles, "1..=250")
    }
}

/// Analyses candle by candle: the reference form (engine V1).
///
/// Candles without enough history for a trend count as neutral, which agrees with either direction.
/// Errors: columns of unequal length, values that are not finite, parameters out of range.
/// Cost: n times (`volume_window` + trend window).
pub fn analyze_rows(candles: &Candles, params: &AnalysisParams) -> Result<Analysis, Error> {
    candles.check()?;
    params.check()?;
    let trend = trend::series(candles.close, &params.trend);
    let moves = moves(candles, &params.moves, TrendInput::Each(&trend));
    let sequences = sequences(&moves, params.sequences.min_sequence_length);
    let metrics = metrics(&sequences, candles, &params.sequences);
    let patterns = patterns(&sequences, candles, params.sequences.forward_candles);
    Ok(Analysis { moves, sequences, metrics, patterns })
}

/// Refuses a field unless its rule holds.
pub(crate) fn require(holds: bool, field: &str, value: impl Display, accepted: &str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(refusal(field, value, accepted)) }
}

pub(crate) fn refusal(field: &str, value: impl Display, accepted: &str) -> Error {
    Error::Parameter { field: field.to_owned(), value: value.to_string(), accepted: accepted.to_owned() }
}

/// `numerator / denominator`, and 0 where that is undefined or beyond the range of f64.
pub(crate) fn ratio(numerator: f64, denominator: f64) -> f64 {
    let quotient = numerator / denominator;
    if quotient.is_finite() { quotient } else { 0.0 }
}

//! Long-only backtests of three strategies, and walk-forward folds.
//!
//! A signal of close i is acted on at close i, so that it earns from the return to close i + 1 on: no look-ahead. There is no short
//! side, no leverage and no slippage beyond the fee. All parameter sets advance together over one pass of the closes; their memory
//! does not grow with the number of closes.

mod lanes;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::Error;
use crate::sequence::{ratio, refusal, require};

use lanes::{Lanes, Tally};

/// What decides when to be long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Strategy {
    /// Long while the simple average over `fast` closes is above the one over `slow`.
    SmaCrossover { fast: u32, slow: u32 },
    /// The same with exponential averages, each seeded with the mean of its first closes.
    EmaCrossover { fast: u32, slow: u32 },
    /// Long from a relative strength below `lower` until one above `upper`.
    RsiReversion { period: u32, lower: f64, upper: f64 },
}

/// What trading costs, and the scale of a year.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// Of the equity, at each entry and each exit, 0..=1000.
    pub fee_bp: f64,
    /// Scales the Sharpe ratio, above 0 up to 1 000 000: 252 for daily candles.
    pub candles_per_year: f64,
}

/// How a strategy fared, starting flat with an equity of 1. Returns are fractions per candle, flat ones included.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Outcome {
    /// final_equity - 1.
    pub total_return: f64,
    /// Mean return over its standard deviation (n-1), times the root of candles per year; 0 where returns do not vary.
    pub sharpe: f64,
    /// Largest fall from an earlier peak of equity, 0..=1.
    pub max_drawdown: f64,
    /// Entries; each is exited, at the last close at the latest.
    pub trades: u32,
    /// Share of trades that gained after fees; 0 without trades.
    pub win_rate: f64,
    /// Share of returns earned while long.
    pub exposure: f64,
    pub final_equity: f64,
}

/// One step of a walk forward: choose parameters on `train`, judge them on `test`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    pub train: Range<usize>,
    pub test: Range<usize>,
}

impl Strategy {
    /// Refuses values outside their ranges, naming the field.
    pub fn check(&self) -> Result<(), Error> {
        match *self {
            Strategy::SmaCrossover { fast, slow } | Strategy::EmaCrossover { fast, slow } => {
                require((2..=10_000).contains(&slow), "slow", slow, "2..=10000")?;
                require((1..slow).contains(&fast), "fast", fast, "1 up to below slow")
            }
            Strategy::RsiReversion { period, lower, upper } => {
                require((2..=10_000).contains(&period), "period", period, "2..=10000")?;
                require((0.0..=100.0).contains(&lower), "lower", lower, "0..=100")?;
                require(upper > lower && upper <= 100.0, "upper", upper, "above lower, up to 100")
            }
        }
    }
}

impl Costs {
    /// Refuses values outside their ranges, naming the field.
    pub fn check(&self) -> Result<(), Error> {
        require((0.0..=1000.0).contains(&self.fee_bp), "fee_bp", self.fee_bp, "0..=1000")?;
        let per_year = self.candles_per_year;
        require(per_year > 0.0 && per_year <= 1e6, "candles_per_year", per_year, "above 0, up to 1 000 000")
    }
}

/// Runs one strategy over all closes. See [`run_many`].
pub fn run(strategy: &Strategy, close: &[f64], costs: &Costs) -> Result<Outcome, Error> {
    let outcomes = run_many(std::slice::from_ref(strategy), close, 0..close.len(), costs)?;
    Ok(outcomes.into_iter().next().unwrap_or_default())
}

/// Runs many strategies over the closes of `range`, with indicators that have seen the closes before it.
///
/// Shape: one outcome per strategy, in order. The range's first close is only where the first return starts: positions are taken from
/// the second on, and none is opened at the last. Averages apart by less than 1e-12 of their value count as equal, so that rounding
/// does not trade. Fewer than two closes: nothing happens.
/// Errors: a strategy, a cost, a close (positive, 1e-100 to 1e100) or the range outside its bounds.
/// Causality: the positions up to a close, the last one apart, depend on the closes up to it.
/// Cost: closes times (strategies + distinct indicators).
pub fn run_many(
    strategies: &[Strategy],
    close: &[f64],
    range: Range<usize>,
    costs: &Costs,
) -> Result<Vec<Outcome>, Error> {
    costs.check()?;
    strategies.iter().try_for_each(Strategy::check)?;
    if range.start > range.end || range.end > close.len() {
        let text = format!("{}..{}", range.start, range.end);
        return Err(refusal("range", text, "within the closes"));
    }
    if let Some(row) = close[..range.end].iter().position(|close| !(1e-100..=1e100).contains(close)) {
        return Err(refusal(&format!("close[{row}]"), close[row], "1e-100 to 1e100"));
    }
    if strategies.is_empty() {
        return Ok(Vec::new());
    }
    let mut lanes = Lanes::new(strategies);
    lanes.walk(close, range.clone(), 1.0 - costs.fee_bp / 10_000.0);

    let returns = range.len().saturating_sub(1) as f64;
    let annual = costs.candles_per_year.sqrt();
    Ok((0..strategies.len()).map(|index| lanes.tally(index).into_outcome(returns, annual)).collect())
}

/// Splits `len` rows for a walk forward: with segments of len / (folds + 1) rows, fold i trains on all before its test segment.
///
/// Rows left over by the division come after the last test. Empty when there are fewer rows than segments.
pub fn folds(len: usize, folds: usize) -> Vec<Fold> {
    let segment = len / folds.saturating_add(1);
    if segment == 0 {
        return Vec::new();
    }
    (1..=folds).map(|end| Fold { train: 0..segment * end, test: segment * end..segment * (end + 1) }).collect()
}

/// Share of the in-sample figure that was lost out of sample: 1 where there was nothing to lose, 0 where nothing was lost.
pub fn overfit(in_sample: f64, out_of_sample: f64) -> f64 {
    if in_sample <= 0.0 { 1.0 } else { (1.0 - ratio(out_of_sample, in_sample)).max(0.0) }
}

impl Tally {
    fn into_outcome(self, returns: f64, annual: f64) -> Outcome {
        let deviation = if returns > 1.0 { (self.squares / (returns - 1.0)).sqrt() } else { 0.0 };
        // Below this a constant return's rounding would be the divisor.
        let varies = deviation > 1e-12 * self.mean.abs();
        Outcome {
            total_return: self.equity - 1.0,
            sharpe: if varies { ratio(self.mean, deviation) * annual } else { 0.0 },
            max_drawdown: self.drawdown,
            trades: self.trades as u32,
            win_rate: ratio(self.wins, self.trades),
            exposure: ratio(self.held, returns),
            final_equity: self.equity,
        }
    }
}

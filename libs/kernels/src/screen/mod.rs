//! The stock filter: basic, trend distance, relative strength and strong moves, one instrument at a time.
//!
//! Point in time: a run for day D is given the candles up to D and knows nothing else. Every rejection says its stage, the value and
//! the threshold. [`step`] runs one stage, so that a caller can count and time stages over a universe; [`screen`] runs them all.

mod stages;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use crate::Error;
use crate::sequence::{Candles, MoveParams, require};

pub use stages::step;

/// Stages of the filter, in the order they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Enough candles, price in range, enough volume.
    Basic,
    /// Distance of the last close from its exponential average.
    Ema,
    /// Relative strength on the side of the average.
    Rsi,
    /// Enough strong days, in runs, without long pauses.
    StrongMove,
}

/// Which way a passed instrument points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Bullish,
    Bearish,
}

/// Thresholds of the filter; the defaults are the product's.
#[derive(Debug, Clone, PartialEq)]
pub struct ScreenParams {
    /// Stages to run; their order and repetitions do not matter.
    pub stages: Vec<Stage>,
    /// 1..=10 000.
    pub min_candles: u32,
    /// Bounds of the last close, both inclusive.
    pub min_price: f64,
    pub max_price: f64,
    /// Least mean volume over all candles given.
    pub min_volume: f64,
    /// Period of the exponential average, 2..=1000.
    pub ema_period: u32,
    /// Bullish above this distance from the average, bearish below its negative; percent, 0..=100.
    pub ema_distance_percent: f64,
    /// Period of the relative strength index, 2..=1000.
    pub rsi_period: u32,
    /// Bullish instruments keep at least this, 0..=100.
    pub rsi_bullish_min: f64,
    /// Bearish instruments keep at most this, 0..=100 and not above `rsi_bullish_min`.
    pub rsi_bearish_max: f64,
    /// Least share of strong days in the lookback, 0..=1.
    pub min_strong_ratio: f64,
    /// Last candles the strong-move stage looks at, 1..=10 000.
    pub lookback: u32,
    /// Least length of the longest strong run, 1..=100.
    pub min_length: u32,
    /// Runs without a strong day count as long above this length, 1..=1000.
    pub long_weak_run: u32,
    pub moves: MoveParams,
}

/// What is known of an instrument on its way through the stages.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Row {
    /// Set by the ema stage, or the first later one when that is not run.
    pub side: Option<Side>,
    pub last_close: f64,
    /// Over all candles given.
    pub mean_volume: f64,
    /// Of the last close from its average; `None` before the ema stage has run.
    pub distance_percent: Option<f64>,
    /// `None` before the rsi stage has run.
    pub rsi: Option<f64>,
    /// Strong days in the lookback.
    pub strong_move_count: u32,
    /// Mean strength of those days, 0 without any.
    pub strength: f64,
}

/// An instrument that passed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Passed {
    pub side: Side,
    pub row: Row,
}

/// Why an instrument did not pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejected {
    pub stage: Stage,
    /// Names the rule with its value and threshold.
    pub reason: String,
    pub value: f64,
    /// The side it had by then.
    pub side: Option<Side>,
}

/// Outcome of the filter for one instrument.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    Passed(Passed),
    Rejected(Rejected),
}

impl Stage {
    pub const ALL: [Stage; 4] = [Stage::Basic, Stage::Ema, Stage::Rsi, Stage::StrongMove];

    pub fn name(self) -> &'static str {
        match self {
            Stage::Basic => "basic",
            Stage::Ema => "ema",
            Stage::Rsi => "rsi",
            Stage::StrongMove => "strong_move",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Stage {
    type Err = Error;

    fn from_str(name: &str) -> Result<Stage, Error> {
        let known = Stage::ALL.into_iter().find(|stage| stage.name() == name);
        known.ok_or_else(|| Error::Parameter {
            field: "stages".to_owned(),
            value: name.to_owned(),
            accepted: "basic, ema, rsi, strong_move".to_owned(),
        })
    }
}

impl Default for ScreenParams {
    fn default() -> Self {
        ScreenParams {
            stages: Stage::ALL.to_vec(),
            min_candles: 10,
            min_price: 20.0,
            max_price: 1500.0,
            min_volume: 300_000.0,
            ema_period: 50,
            ema_distance_percent: 3.0,
            rsi_period: 14,
            rsi_bullish_min: 50.0,
            rsi_bearish_max: 45.0,
            min_strong_ratio: 0.1,
            lookback: 60,
            min_length: 2,
            long_weak_run: 5,
            moves: MoveParams::default(),
        }
    }
}

impl ScreenParams {
    /// Refuses values outside their ranges, naming the field.
    pub fn check(&self) -> Result<(), Error> {
        let share = 0.0..=1.0;
        let percent = 0.0..=100.0;
        require(!self.stages.is_empty(), "stages", "empty", "at least one of basic, ema, rsi, strong_move")?;
        require((1..=10_000).contains(&self.min_candles), "min_candles", self.min_candles, "1..=10000")?;
        require(self.min_price.is_finite(), "min_price", self.min_price, "a finite number")?;
        require(
            self.max_price.is_finite() && self.max_price >= self.min_price,
            "max_price",
            self.max_price,
            "a finite number, not below min_price",
        )?;
        require(
            self.min_volume.is_finite() && self.min_volume >= 0.0,
            "min_volume",
            self.min_volume,
            "a finite number, 0 or more",
        )?;
        require((2..=1000).contains(&self.ema_period), "ema_period", self.ema_period, "2..=1000")?;
        require(
            percent.contains(&self.ema_distance_percent),
            "ema_distance_percent",
            self.ema_distance_percent,
            "0..=100",
        )?;
        require((2..=1000).contains(&self.rsi_period), "rsi_period", self.rsi_period, "2..=1000")?;
        require(percent.contains(&self.rsi_bullish_min), "rsi_bullish_min", self.rsi_bullish_min, "0..=100")?;
        require(
            (0.0..=self.rsi_bullish_min).contains(&self.rsi_bearish_max),
            "rsi_bearish_max",
            self.rsi_bearish_max,
            "0 up to rsi_bullish_min",
        )?;
        require(share.contains(&self.min_strong_ratio), "min_strong_ratio", self.min_strong_ratio, "0..=1")?;
        require((1..=10_000).contains(&self.lookback), "lookback", self.lookback, "1..=10000")?;
        require((1..=100).contains(&self.min_length), "min_length", self.min_length, "1..=100")?;
        require((1..=1000).contains(&self.long_weak_run), "long_weak_run", self.long_weak_run, "1..=1000")?;
        self.moves.check()
    }

    /// The stages to run, in order, each once.
    pub fn ordered_stages(&self) -> Vec<Stage> {
        Stage::ALL.into_iter().filter(|stage| self.stages.contains(stage)).collect()
    }
}

/// Runs the stages over one instrument's candles, oldest first, the last one being the day of the run.
///
/// Columns that do not fit together or hold values that are not finite are a rejection by the first stage. With `stages` empty
/// nothing is asked and everything with a candle passes; [`ScreenParams::check`] refuses that. Side without the ema stage: by the rsi
/// stage, else by the last close against the mean close of the lookback.
pub fn screen(candles: &Candles, params: &ScreenParams) -> Verdict {
    let mut row = Row::default();
    for stage in params.ordered_stages() {
        if let Err(rejected) = step(stage, candles, params, &mut row) {
            return Verdict::Rejected(rejected);
        }
    }
    Verdict::Passed(Passed { side: row.side.unwrap_or_else(|| stages::side_by_mean(candles, params)), row })
}

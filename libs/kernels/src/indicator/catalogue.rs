//! Names, parameters and outputs of every indicator, and what computes each.

use std::fmt;
use std::sync::LazyLock;

use super::families;
use super::profile::Profile;
use super::spec::MULTIPLIER_SCALE;
use super::state::{self, AnyState, State, Values};
use crate::Error;

/// Largest period accepted, in candles: forty trading days of NSE minutes are 15 000, and no published rule looks further.
pub const MAX_PERIOD: u32 = 10_000;

/// One parameter of an indicator, in the order it is written after the colon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameter {
    pub name: &'static str,
    pub default: f64,
    /// Smallest accepted value.
    pub min: f64,
    /// Largest accepted value.
    pub max: f64,
    /// Whole numbers only; otherwise decimals with up to four places.
    pub is_integer: bool,
}

/// What a client may ask of one indicator in one profile.
#[derive(Clone, Copy)]
pub struct Info {
    pub name: &'static str,
    /// Whose definition this is.
    pub profile: Profile,
    pub summary: &'static str,
    pub parameters: &'static [Parameter],
    /// Candle columns it reads.
    pub inputs: &'static [&'static str],
    /// Output names; a single output is named by the request itself.
    pub outputs: &'static [&'static str],
    /// Leading rows in which every output is always undefined.
    pub(super) lookback: fn(&Values) -> usize,
    /// Work per row, in that of a usual column.
    pub(super) cost: fn(&Values) -> usize,
    /// What parameters must be to each other, beyond their ranges.
    pub(super) check: fn(&Values) -> Result<(), Error>,
    pub(super) start: fn(&Values) -> Box<dyn AnyState>,
    pub(super) restore: fn(&[u8]) -> Option<Box<dyn AnyState>>,
}

impl fmt::Debug for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Info")
            .field("name", &self.name)
            .field("profile", &self.profile)
            .field("parameters", &self.parameters)
            .finish_non_exhaustive()
    }
}

/// An indicator of one output that reads the close, to be made more precise by the methods below.
pub(super) const fn entry<T: State>(
    name: &'static str,
    summary: &'static str,
    parameters: &'static [Parameter],
    lookback: fn(&Values) -> usize,
) -> Info {
    Info {
        name,
        profile: Profile::TaLib,
        summary,
        parameters,
        inputs: CLOSE,
        outputs: &["value"],
        lookback,
        cost: |_| 1,
        check: |_| Ok(()),
        start: state::start::<T>,
        restore: state::restore::<T>,
    }
}

/// [`entry`] of what is another thing in TradingView's profile.
pub(super) const fn tradingview_entry<T: State>(
    name: &'static str,
    summary: &'static str,
    parameters: &'static [Parameter],
    lookback: fn(&Values) -> usize,
) -> Info {
    Info { profile: Profile::TradingView, ..entry::<T>(name, summary, parameters, lookback) }
}

impl Info {
    /// Returns the indicator of this name in a profile: this entry itself where both have one definition, none where the profile has no
    /// definition of it.
    pub fn in_profile(&self, profile: Profile) -> Option<&'static Info> {
        match profile {
            Profile::TaLib => find(self.name),
            Profile::TradingView => families::tradingview(self.name),
        }
    }

    /// Returns how many leading values are always undefined with the default parameters.
    pub fn default_lookback(&self) -> usize {
        let scale = |parameter: &Parameter| if parameter.is_integer { 1.0 } else { f64::from(MULTIPLIER_SCALE) };
        let values: Vec<u32> =
            self.parameters.iter().map(|parameter| (parameter.default * scale(parameter)).round() as u32).collect();
        (self.lookback)(&Values::new(&values, self.profile))
    }

    pub(super) const fn reads(self, inputs: &'static [&'static str]) -> Self {
        Self { inputs, ..self }
    }

    pub(super) const fn gives(self, outputs: &'static [&'static str]) -> Self {
        Self { outputs, ..self }
    }

    pub(super) const fn costs(self, cost: fn(&Values) -> usize) -> Self {
        Self { cost, ..self }
    }

    pub(super) const fn checks(self, check: fn(&Values) -> Result<(), Error>) -> Self {
        Self { check, ..self }
    }
}

/// A number of candles.
pub(super) const fn period(name: &'static str, default: u32, min: u32) -> Parameter {
    Parameter { name, default: default as f64, min: min as f64, max: MAX_PERIOD as f64, is_integer: true }
}

/// The only parameter, a number of candles.
pub(super) const fn single(default: u32, min: u32) -> [Parameter; 1] {
    [period("period", default, min)]
}

/// A number with up to four decimals.
pub(super) const fn decimal(name: &'static str, default: f64, min: f64, max: f64) -> Parameter {
    Parameter { name, default, min, max, is_integer: false }
}

pub(super) const CLOSE: &[&str] = &["close"];
pub(super) const HIGH_LOW: &[&str] = &["high", "low"];
pub(super) const HIGH_LOW_CLOSE: &[&str] = &["high", "low", "close"];
pub(super) const HIGH_LOW_CLOSE_VOLUME: &[&str] = &["high", "low", "close", "volume"];

static CATALOGUE: LazyLock<Vec<Info>> = LazyLock::new(|| families::ALL.concat());

/// Lists every indicator with its parameters, inputs and outputs, in a fixed order and the default profile; [`Info::in_profile`] has the
/// others.
pub fn catalogue() -> &'static [Info] {
    &CATALOGUE
}

/// Looks an indicator up by its lower-case name.
pub(super) fn find(name: &str) -> Option<&'static Info> {
    CATALOGUE.iter().find(|info| info.name == name)
}

//! Whose definition of an indicator is meant, where respected ones differ.

use serde::{Deserialize, Serialize};

/// Definitions by name: seeds, answers in a flat market, and what else is not one thing everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum Profile {
    /// That of TA-Lib: what is meant where no profile is named.
    #[default]
    TaLib,
    /// That of TradingView: the equivalent code of its built-in functions in the Pine Script v6 reference manual, and for what has no
    /// function its built-in scripts; but `ta.ema` begins as on its charts, at the mean of its first length of values. Undefined (`na`)
    /// is what Pine Script divides by zero, and what nothing is known of yet.
    TradingView,
}

impl Profile {
    pub const ALL: [Self; 2] = [Self::TaLib, Self::TradingView];

    /// Returns the name it is asked by.
    pub fn name(self) -> &'static str {
        match self {
            Self::TaLib => "talib",
            Self::TradingView => "tradingview",
        }
    }

    /// Looks a profile up by its lower-case name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.name() == name)
    }
}

//! Feature flags and the sticky choice between engines V1 and V2.
//!
//! The gateway parses flagd definitions into an immutable [`Flags`] snapshot, asks it once per request which engine each service uses, and sends
//! the [`Decisions`] inward. This crate is pure: no I/O, no clock, no randomness; loading, swapping and storing snapshots is the caller's.
//!
//! The shipped set ([`Flags::default_set`]) gives V2 a share of 0: V1 is the reference, and nobody is moved off it before an operator asks.
//! A laptop's `up` starts there too; V2 is reached by the header `candlemesh-engine: v2` or by `candlemesh rollout set`.

use std::fmt;
use std::str::FromStr;

mod bucket;
mod decide;
mod flag;

pub use bucket::bucket;
pub use decide::{Decision, Decisions, Flags, Reason};
pub use flag::{CACHE_TTL_FLAG, CACHING_FLAG, Flag, State};

/// Why a definition, share, engine name or decision header was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("flag {key:?} is not one of {}", flag::KEYS.join(", "))]
    UnknownFlag { key: String },
    #[error("flag {key:?} is defined twice")]
    DuplicateFlag { key: String },
    #[error("flag {flag}: {reason}")]
    Definition { flag: &'static str, reason: String },
    #[error("flag {flag}: operator {operator:?} is not supported in targeting, only \"fractional\"")]
    Operator { flag: &'static str, operator: String },
    #[error("flag {flag}: {field} {reason}")]
    Field { flag: &'static str, field: String, reason: String },
    #[error("v2 percent {value} is not within 0..=100 in steps of 0.001")]
    Percent { value: f64 },
    #[error("weight {parts} is above {} parts", Weight::TOTAL)]
    Weight { parts: u32 },
    #[error("engine {value:?} is neither v1 nor v2")]
    Engine { value: String },
    #[error("{value:?} is not aggregation, indicator, sequence or the flag of one of them")]
    Subject { value: String },
    #[error("decision header {reason}")]
    Header { reason: String },
}

/// One of the two implementations a rollout chooses between; V1 is the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Engine {
    V1,
    V2,
}

/// A service that has two engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject {
    Aggregation,
    Indicator,
    Sequence,
}

/// V2's share of the targeting keys. Units: parts per 100 000, 0..=100 000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u32);

impl Engine {
    pub fn as_str(self) -> &'static str {
        match self {
            Engine::V1 => "v1",
            Engine::V2 => "v2",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Engine {
    type Err = Error;

    fn from_str(text: &str) -> Result<Engine, Error> {
        match text {
            "v1" => Ok(Engine::V1),
            "v2" => Ok(Engine::V2),
            _ => Err(Error::Engine { value: flag::excerpt(text) }),
        }
    }
}

impl Subject {
    pub const ALL: [Subject; 3] = [Subject::Aggregation, Subject::Indicator, Subject::Sequence];

    /// The service's name, as in the decision header.
    pub fn as_str(self) -> &'static str {
        match self {
            Subject::Aggregation => "aggregation",
            Subject::Indicator => "indicator",
            Subject::Sequence => "sequence",
        }
    }

    /// The flag that chooses this service's engine.
    pub const fn flag_key(self) -> &'static str {
        match self {
            Subject::Aggregation => "use_dataframe_aggregation",
            Subject::Indicator => "use_gonum_indicators",
            Subject::Sequence => "use_sequence_analyzer_v2",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Subject {
    type Err = Error;

    /// Accepts the service's name or its flag key.
    fn from_str(text: &str) -> Result<Subject, Error> {
        Subject::ALL
            .into_iter()
            .find(|subject| text == subject.as_str() || text == subject.flag_key())
            .ok_or_else(|| Error::Subject { value: flag::excerpt(text) })
    }
}

impl Weight {
    /// Fixed total of the two weights: the count of buckets.
    pub const TOTAL: u32 = 100_000;

    pub fn from_parts(parts: u32) -> Result<Weight, Error> {
        if parts > Weight::TOTAL { Err(Error::Weight { parts }) } else { Ok(Weight(parts)) }
    }

    /// Domain: 0..=100 in steps of 0.001; anything finer is refused rather than rounded.
    pub fn from_percent(percent: f64) -> Result<Weight, Error> {
        let parts = (percent * 1000.0).round();
        // The slack covers the decimal's own representation, far below half a step.
        if !(0.0..=100.0).contains(&percent) || (percent * 1000.0 - parts).abs() > 1e-6 {
            return Err(Error::Percent { value: percent });
        }
        Ok(Weight(parts as u32))
    }

    pub fn parts(self) -> u32 {
        self.0
    }

    pub fn percent(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_becomes_parts_and_back() {
        for (percent, parts) in [(0.0, 0), (0.001, 1), (0.1, 100), (33.333, 33_333), (99.999, 99_999), (100.0, 100_000)]
        {
            let weight = Weight::from_percent(percent).unwrap();
            assert_eq!((weight.parts(), weight.percent()), (parts, percent));
        }
        for percent in [-0.001, 100.001, 0.0005, 33.3333, f64::NAN, f64::INFINITY] {
            let error = Weight::from_percent(percent).unwrap_err();
            assert!(error.to_string().starts_with(&format!("v2 percent {percent} ")), "{error}");
        }
        assert_eq!(Weight::from_parts(100_001), Err(Error::Weight { parts: 100_001 }));
    }

    #[test]
    fn names_parse_back_and_others_are_refused() {
        for subject in Subject::ALL {
            assert_eq!(subject.as_str().parse(), Ok(subject));
            assert_eq!(subject.flag_key().parse(), Ok(subject));
        }
        assert_eq!("v2".parse(), Ok(Engine::V2));
        assert_eq!("v3".parse::<Engine>().unwrap_err().to_string(), "engine \"v3\" is neither v1 nor v2");
        assert!("cache_ttl_minutes".parse::<Subject>().is_err());
    }
}

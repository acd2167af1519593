//! One candle, and the rules for accepting it.

use std::fmt;

use crate::Millis;

/// Open, high, low, close and volume of one timeframe, named by its open time.
///
/// Units: prices in the instrument's currency, volume in the unit its exchange reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candle {
    pub open_time: Millis,
    pub open: f64,
    pub high: f64,
    pub low: f64,
    pub close: f64,
    pub volume: f64,
    /// Absent is `None`, never 0.
    pub open_interest: Option<f64>,
}

/// Why a row was not accepted. The text names the field, its value and the rule.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RowFault {
    NotFinite { field: &'static str, value: f64 },
    LowAboveBody { low: f64, body: f64 },
    HighBelowBody { high: f64, body: f64 },
    NegativeVolume(f64),
    NegativeOpenInterest(f64),
    OffTheMinute(Millis),
    OutOfRange(Millis),
    Unreadable(String),
}

impl fmt::Display for RowFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RowFault::NotFinite { field, value } => write!(f, "{field} is {value}, which is not a finite number"),
            RowFault::LowAboveBody { low, body } => write!(f, "low {low} is above the body's lower end {body}"),
            RowFault::HighBelowBody { high, body } => write!(f, "high {high} is below the body's upper end {body}"),
            RowFault::NegativeVolume(volume) => write!(f, "volume {volume} is negative"),
            RowFault::NegativeOpenInterest(value) => write!(f, "open_interest {value} is negative"),
            RowFault::OffTheMinute(at) => {
                write!(f, "open_time {} is not aligned to its minute", crate::format_millis(*at))
            }
            RowFault::OutOfRange(at) => write!(f, "open_time {} is outside 1900..2200", crate::format_millis(*at)),
            RowFault::Unreadable(text) => f.write_str(text),
        }
    }
}

impl Candle {
    /// Checks the rules of acceptance: finite, low <= open, close <= high, volume >= 0, aligned to its minute.
    pub fn check(&self) -> Result<(), RowFault> {
        let fields = [
            ("open", self.open),
            ("high", self.high),
            ("low", self.low),
            ("close", self.close),
            ("volume", self.volume),
            ("open_interest", self.open_interest.unwrap_or(0.0)),
        ];
        if let Some((field, value)) = fields.into_iter().find(|(_, value)| !value.is_finite()) {
            return Err(RowFault::NotFinite { field, value });
        }
        let (lower, upper) = (self.open.min(self.close), self.open.max(self.close));
        if self.low > lower {
            return Err(RowFault::LowAboveBody { low: self.low, body: lower });
        }
        if self.high < upper {
            return Err(RowFault::HighBelowBody { high: self.high, body: upper });
        }
        if self.volume < 0.0 {
            return Err(RowFault::NegativeVolume(self.volume));
        }
        if let Some(value) = self.open_interest.filter(|value| *value < 0.0) {
            return Err(RowFault::NegativeOpenInterest(value));
        }
        if !crate::TimeRange::ALL.contains(self.open_time) {
            return Err(RowFault::OutOfRange(self.open_time));
        }
        if self.open_time.rem_euclid(60_000) != 0 {
            return Err(RowFault::OffTheMinute(self.open_time));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Candle = Candle {
        open_time: 1_471_318_500_000,
        open: 10.0,
        high: 12.0,
        low: 9.0,
        close: 11.0,
        volume: 5.0,
        open_interest: None,
    };

    #[test]
    fn each_rule_refuses_its_own_fault() {
        assert_eq!(GOOD.check(), Ok(()));
        let refused = |candle: Candle| candle.check().unwrap_err().to_string();
        assert!(refused(Candle { close: f64::NAN, ..GOOD }).starts_with("close is NaN"));
        assert!(refused(Candle { low: 10.5, ..GOOD }).contains("low 10.5"));
        assert!(refused(Candle { high: 10.5, ..GOOD }).contains("high 10.5"));
        assert!(refused(Candle { volume: -1.0, ..GOOD }).contains("volume -1"));
        assert!(refused(Candle { open_time: GOOD.open_time + 1, ..GOOD }).contains("not aligned"));
        assert!(refused(Candle { open_interest: Some(f64::INFINITY), ..GOOD }).contains("open_interest"));
    }
}

//! The widths of candles that exist here.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Millis, Result};

/// Width of a candle. Ordered from narrow to wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timeframe {
    M1,
    M2,
    M3,
    M5,
    M10,
    M15,
    M30,
    H1,
    H2,
    H4,
    D1,
    W1,
    Mo1,
}

/// Milliseconds in a minute.
const MINUTE_MS: Millis = 60_000;

impl Timeframe {
    /// Every timeframe, narrow to wide.
    pub const ALL: [Timeframe; 13] = [
        Timeframe::M1,
        Timeframe::M2,
        Timeframe::M3,
        Timeframe::M5,
        Timeframe::M10,
        Timeframe::M15,
        Timeframe::M30,
        Timeframe::H1,
        Timeframe::H2,
        Timeframe::H4,
        Timeframe::D1,
        Timeframe::W1,
        Timeframe::Mo1,
    ];

    /// Canonical spelling: `1m` .. `1mo`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Timeframe::M1 => "1m",
            Timeframe::M2 => "2m",
            Timeframe::M3 => "3m",
            Timeframe::M5 => "5m",
            Timeframe::M10 => "10m",
            Timeframe::M15 => "15m",
            Timeframe::M30 => "30m",
            Timeframe::H1 => "1h",
            Timeframe::H2 => "2h",
            Timeframe::H4 => "4h",
            Timeframe::D1 => "1d",
            Timeframe::W1 => "1w",
            Timeframe::Mo1 => "1mo",
        }
    }

    /// Width in milliseconds for timeframes inside a trading date; `None` for 1d, 1w and 1mo, whose width the calendar decides.
    pub fn width_ms(&self) -> Option<Millis> {
        let minutes = match self {
            Timeframe::M1 => 1,
            Timeframe::M2 => 2,
            Timeframe::M3 => 3,
            Timeframe::M5 => 5,
            Timeframe::M10 => 10,
            Timeframe::M15 => 15,
            Timeframe::M30 => 30,
            Timeframe::H1 => 60,
            Timeframe::H2 => 120,
            Timeframe::H4 => 240,
            Timeframe::D1 | Timeframe::W1 | Timeframe::Mo1 => return None,
        };
        Some(minutes * MINUTE_MS)
    }

    /// Whether a candle of `self` can be built exactly from candles of `source`.
    pub fn divisible_by(&self, source: Timeframe) -> bool {
        match (self.width_ms(), source.width_ms()) {
            (Some(width), Some(part)) => width % part == 0,
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (None, None) => *self == source || source == Timeframe::D1,
        }
    }
}

impl fmt::Display for Timeframe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Timeframe {
    type Err = Error;

    /// Accepts the canonical spelling and the long one of older clients (`5minute`, `1hour`, `day`, `week`, `month`).
    fn from_str(text: &str) -> Result<Self> {
        let lower = text.trim().to_ascii_lowercase();
        let canonical = match lower.as_str() {
            "minute" => "1m".to_owned(),
            "hour" | "60m" => "1h".to_owned(),
            "day" | "1day" | "daily" => "1d".to_owned(),
            "week" | "1week" | "weekly" => "1w".to_owned(),
            "month" | "1month" | "monthly" => "1mo".to_owned(),
            other => match (other.strip_suffix("minute"), other.strip_suffix("hour")) {
                (Some(count), _) => format!("{count}m"),
                (_, Some(count)) => format!("{count}h"),
                _ => other.to_owned(),
            },
        };
        let canonical = if canonical == "60m" { "1h" } else { &canonical };
        Timeframe::ALL
            .into_iter()
            .find(|timeframe| timeframe.as_str() == canonical)
            .ok_or_else(|| Error::Timeframe(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_parse() {
        for (text, want) in
            [("5m", Timeframe::M5), ("5minute", Timeframe::M5), ("day", Timeframe::D1), ("60minute", Timeframe::H1)]
        {
            assert_eq!(text.parse::<Timeframe>().unwrap(), want);
        }
        for timeframe in Timeframe::ALL {
            assert_eq!(timeframe.as_str().parse::<Timeframe>().unwrap(), timeframe);
        }
        assert_eq!("7m".parse::<Timeframe>(), Err(Error::Timeframe("7m".into())));
    }

    #[test]
    fn a_week_is_built_from_days_but_a_month_not_from_weeks() {
        assert!(Timeframe::W1.divisible_by(Timeframe::D1));
        assert!(!Timeframe::Mo1.divisible_by(Timeframe::W1));
        assert!(Timeframe::D1.divisible_by(Timeframe::H1));
        assert!(!Timeframe::M5.divisible_by(Timeframe::M2));
        assert!(!Timeframe::H1.divisible_by(Timeframe::D1));
    }
}

//! What a file's stamps mean: the zone of those without an offset, and which end of the candle they name.

use std::fmt;
use std::str::FromStr;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use market::Millis;

/// Which end of a candle its stamp names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stamps {
    Open,
    End,
}

impl fmt::Display for Stamps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stamps::Open => "open",
            Stamps::End => "end",
        })
    }
}

/// A word that is neither end of a candle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stamps '{0}' is unknown; accepted: open (a stamp names the candle's start), end (its end)")]
pub struct UnknownStamps(String);

impl FromStr for Stamps {
    type Err = UnknownStamps;

    fn from_str(text: &str) -> Result<Stamps, UnknownStamps> {
        match text.trim().to_ascii_lowercase().as_str() {
            "open" => Ok(Stamps::Open),
            "end" => Ok(Stamps::End),
            _ => Err(UnknownStamps(text.chars().take(40).collect())),
        }
    }
}

/// A time zone of the IANA database, by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Zone(TimeZone);

/// A name that is no time zone's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("zone '{0}' is not a time zone of the IANA database; write for example America/New_York, Asia/Kolkata or UTC")]
pub struct UnknownZone(String);

impl FromStr for Zone {
    type Err = UnknownZone;

    fn from_str(text: &str) -> Result<Zone, UnknownZone> {
        let unknown = || UnknownZone(text.chars().take(60).collect());
        // "EST5EDT", "Local" and "" mean different things in different databases.
        if !text.contains('/') && !text.trim().eq_ignore_ascii_case("UTC") {
            return Err(unknown());
        }
        TimeZone::get(text.trim()).map(Zone).map_err(|_| unknown())
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.iana_name().unwrap_or("UTC"))
    }
}

impl Zone {
    pub(crate) fn named(name: &'static str) -> Zone {
        // The names in this crate are tested to exist; the database is compiled in.
        Zone(TimeZone::get(name).unwrap_or(TimeZone::UTC))
    }

    /// The instant of a local time.
    ///
    /// Errors: the local time does not exist, or exists twice, on a night the clocks are changed: which instant is meant, nobody can say.
    pub(crate) fn instant(&self, local: DateTime) -> Result<Millis, String> {
        let ambiguous = self.0.to_ambiguous_timestamp(local);
        match ambiguous.unambiguous() {
            Ok(at) => Ok(at.as_millisecond()),
            Err(_) => Err(format!("{local} is not one instant in {self}: the clocks are changed then")),
        }
    }

    /// The local time of an instant.
    pub(crate) fn local(&self, at: Millis) -> Option<DateTime> {
        let at = jiff::Timestamp::from_millisecond(at).ok()?;
        Some(self.0.to_datetime(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_times_follow_the_zones_history() {
        let zone: Zone = "America/New_York".parse().unwrap();
        let at = |text: &str| zone.instant(text.parse().unwrap());
        assert_eq!(market::format_millis(at("2019-02-15T09:30:00").unwrap()), "2019-02-15T14:30:00Z");
        assert_eq!(market::format_millis(at("2019-07-15T09:30:00").unwrap()), "2019-07-15T13:30:00Z");
        assert!(at("2019-11-03T01:30:00").unwrap_err().contains("not one instant"));
        assert!(at("2019-03-10T02:30:00").unwrap_err().contains("not one instant"));
    }

    #[test]
    fn a_wrong_zone_is_refused_with_an_example() {
        for text in ["Asia/Kolkatta", "IST", "", "+05:30"] {
            assert!(text.parse::<Zone>().unwrap_err().to_string().contains("Asia/Kolkata"), "{text}");
        }
        assert_eq!("Asia/Kolkata".parse::<Zone>().unwrap().to_string(), "Asia/Kolkata");
        assert_eq!("UTC".parse::<Zone>().unwrap().to_string(), "UTC");
    }
}

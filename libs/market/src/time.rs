//! Instants as milliseconds since the epoch, and half-open ranges of them.

use jiff::Timestamp;
use jiff::civil::Date;

use crate::{Error, Result};

/// Milliseconds since 1970-01-01T00:00:00Z.
pub type Millis = i64;

/// Earliest instant accepted anywhere: 1900-01-01T00:00:00Z.
const MIN_MILLIS: Millis = -2_208_988_800_000;
/// Latest instant accepted anywhere: 2200-01-01T00:00:00Z.
const MAX_MILLIS: Millis = 7_258_118_400_000;

/// Half-open range of instants `[start, end)`, never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimeRange {
    start: Millis,
    end: Millis,
}

impl TimeRange {
    /// Every instant the system accepts.
    pub const ALL: TimeRange = TimeRange { start: MIN_MILLIS, end: MAX_MILLIS };

    /// Builds `[start, end)`; bounds outside 1900..2200 are clamped to it.
    ///
    /// Errors: [`Error::TimeRange`] when `start >= end`.
    pub fn new(start: Millis, end: Millis) -> Result<Self> {
        let (start, end) = (start.max(MIN_MILLIS), end.min(MAX_MILLIS));
        if start >= end {
            return Err(Error::TimeRange { start: format_millis(start), end: format_millis(end) });
        }
        Ok(Self { start, end })
    }

    pub fn start(&self) -> Millis {
        self.start
    }

    pub fn end(&self) -> Millis {
        self.end
    }

    pub fn contains(&self, at: Millis) -> bool {
        self.start <= at && at < self.end
    }

    /// The part common to both, if any.
    pub fn intersect(&self, other: &TimeRange) -> Option<TimeRange> {
        TimeRange::new(self.start.max(other.start), self.end.min(other.end)).ok()
    }
}

/// Parses an RFC 3339 instant; offsets other than `Z` are accepted, finer digits than milliseconds are truncated.
pub fn parse_millis(text: &str) -> Result<Millis> {
    let stamp: Timestamp = text.trim().parse().map_err(|_| Error::Time(text.to_owned()))?;
    let at = stamp.as_millisecond();
    if !(MIN_MILLIS..=MAX_MILLIS).contains(&at) {
        return Err(Error::Time(text.to_owned()));
    }
    Ok(at)
}

/// Formats as RFC 3339 in UTC, with milliseconds only where they are not zero.
pub fn format_millis(at: Millis) -> String {
    match Timestamp::from_millisecond(at) {
        Ok(stamp) => stamp.to_string(),
        Err(_) => format!("{at}ms"),
    }
}

/// Parses `YYYY-MM-DD`.
pub fn parse_date(text: &str) -> Result<Date> {
    text.trim().parse().map_err(|_| Error::Date(text.to_owned()))
}

/// Formats as `YYYY-MM-DD`.
pub fn format_date(date: Date) -> String {
    date.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_converted_and_printed_in_utc() {
        let at = parse_millis("2016-08-16T09:15:00+05:30").unwrap();
        assert_eq!(format_millis(at), "2016-08-16T03:45:00Z");
        assert_eq!(format_millis(at + 250), "2016-08-16T03:45:00.25Z");
    }

    #[test]
    fn reversed_and_empty_ranges_are_refused() {
        assert!(matches!(TimeRange::new(5, 5), Err(Error::TimeRange { .. })));
        assert!(matches!(TimeRange::new(6, 5), Err(Error::TimeRange { .. })));
        assert!(TimeRange::new(5, 6).unwrap().contains(5));
        assert!(!TimeRange::new(5, 6).unwrap().contains(6));
    }

    #[test]
    fn text_that_is_no_instant_is_named() {
        assert_eq!(parse_millis("yesterday"), Err(Error::Time("yesterday".into())));
        assert_eq!(parse_date("2016-13-01"), Err(Error::Date("2016-13-01".into())));
    }
}

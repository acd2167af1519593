//! Stamps as vendors write them.

use jiff::civil::{Date, DateTime, Time};
use market::{Millis, TimeRange};

use crate::Zone;

/// How a stamp is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stamp {
    /// RFC 3339 with or without an offset, a date alone, or digits since the epoch (s, ms, us or ns by their number).
    Text,
    /// `M/D/YYYY H:MM`, as spreadsheets of the United States write it.
    MonthFirst,
    /// A date as `YYYYMMDD` and a time as `HH:MM`, joined by a blank.
    Compact,
}

/// An instant, and the trading date where the stamp tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct When {
    pub(crate) at: Millis,
    /// Midnight UTC of the local date.
    pub(crate) date: Option<Millis>,
}

/// Whether a stamp is no instant without a zone.
pub(crate) fn needs_zone(text: &str) -> bool {
    epoch(text).is_none() && market::parse_millis(text).is_err()
}

/// Reads a stamp; `zone` is that of stamps without an offset.
pub(crate) fn parse(text: &str, style: Stamp, zone: Option<&Zone>) -> Result<When, String> {
    let local = match style {
        Stamp::Text => match instant(text, zone) {
            Some(when) => return in_range(when, text),
            None => text.parse::<DateTime>().map_err(|_| unreadable(text, "a time like 2016-08-16T09:15:00+05:30"))?,
        },
        Stamp::MonthFirst => month_first(text).ok_or_else(|| unreadable(text, "M/D/YYYY H:MM"))?,
        Stamp::Compact => compact(text).ok_or_else(|| unreadable(text, "YYYYMMDD,HH:MM"))?,
    };
    let Some(zone) = zone else {
        return Err(format!("timestamp '{text}' has no offset: pass --zone, for example --zone Asia/Kolkata"));
    };
    in_range(When { at: zone.instant(local)?, date: midnight(local.date()) }, text)
}

/// Reads milliseconds since a day's local midnight.
pub(crate) fn since_midnight(text: &str, day: Date, zone: &Zone) -> Result<When, String> {
    const DAY_MS: i64 = 86_400_000;
    let ms: i64 = text
        .parse()
        .ok()
        .filter(|ms| (0..DAY_MS).contains(ms))
        .ok_or_else(|| unreadable(text, "milliseconds since midnight"))?;
    let time =
        Time::midnight().checked_add(jiff::SignedDuration::from_millis(ms)).map_err(|error| error.to_string())?;
    Ok(When { at: zone.instant(day.to_datetime(time))?, date: midnight(day) })
}

/// Reads a wall time written as the milliseconds since the epoch it would be in UTC.
pub(crate) fn of_wall(at: Millis, zone: &Zone) -> Result<When, String> {
    let text = market::format_millis(at);
    let text = text.trim_end_matches('Z');
    let local = jiff::Timestamp::from_millisecond(at).map(|at| jiff::tz::TimeZone::UTC.to_datetime(at));
    let local = local.map_err(|_| outside(text))?;
    in_range(When { at: zone.instant(local)?, date: midnight(local.date()) }, text)
}

/// A stamp that is an instant by itself.
fn instant(text: &str, zone: Option<&Zone>) -> Option<When> {
    if let Some(at) = epoch(text) {
        let date = zone.and_then(|zone| zone.local(at)).and_then(|local| midnight(local.date()));
        return Some(When { at, date });
    }
    let at = market::parse_millis(text).ok()?;
    let local_date = match zone {
        Some(zone) => zone.local(at).map(|local| local.date()),
        // A date in UTC is the trading date only of markets without one.
        None if text.ends_with(['Z', 'z']) || text.ends_with("+00:00") => None,
        None => text.get(..10).and_then(|date| date.parse().ok()),
    };
    Some(When { at, date: local_date.and_then(midnight) })
}

/// Digits since the epoch: seconds, milliseconds, microseconds or nanoseconds by their number.
fn epoch(text: &str) -> Option<Millis> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: i64 = text.parse().ok()?;
    match text.len() {
        9 | 10 => digits.checked_mul(1000),
        12 | 13 => Some(digits),
        15 | 16 => Some(digits / 1000),
        18 | 19 => Some(digits / 1_000_000),
        _ => None,
    }
}

fn month_first(text: &str) -> Option<DateTime> {
    let (date, time) = text.split_once(' ')?;
    let mut parts = date.split('/');
    let (month, day, year) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let date = Date::new(year.parse().ok()?, month.parse().ok()?, day.parse().ok()?).ok()?;
    Some(date.to_datetime(hour_minute(time)?))
}

fn compact(text: &str) -> Option<DateTime> {
    let (date, time) = text.split_once(' ')?;
    if date.len() != 8 || !date.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let date = Date::new(date[..4].parse().ok()?, date[4..6].parse().ok()?, date[6..].parse().ok()?).ok()?;
    Some(date.to_datetime(hour_minute(time)?))
}

fn hour_minute(text: &str) -> Option<Time> {
    let mut parts = text.split(':');
    let (hour, minute, second) = (parts.next()?, parts.next()?, parts.next().unwrap_or("0"));
    if parts.next().is_some() {
        return None;
    }
    Time::new(hour.parse().ok()?, minute.parse().ok()?, second.parse().ok()?, 0).ok()
}

/// Midnight UTC of a date.
pub(crate) fn midnight(date: Date) -> Option<Millis> {
    let at = date.to_datetime(Time::midnight()).to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(at.timestamp().as_millisecond())
}

fn in_range(when: When, text: &str) -> Result<When, String> {
    match TimeRange::ALL.contains(when.at) {
        true => Ok(when),
        false => Err(outside(text)),
    }
}

fn outside(text: &str) -> String {
    format!("timestamp '{text}' is outside 1900..2200")
}

fn unreadable(text: &str, expected: &str) -> String {
    let text: String = text.chars().take(60).collect();
    format!("timestamp '{text}' is not readable, expected {expected}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, style: Stamp, zone: Option<&str>) -> Result<String, String> {
        let zone: Option<Zone> = zone.map(|zone| zone.parse().unwrap());
        let when = parse(text, style, zone.as_ref())?;
        let date = when.date.map_or(String::new(), |date| market::format_millis(date)[..10].to_owned());
        Ok(format!("{} {date}", market::format_millis(when.at)))
    }

    #[test]
    fn every_vendors_way_of_writing_a_time() {
        for (text, style, zone, want) in [
            ("2017-12-15T09:15:00+0530", Stamp::Text, None, "2017-12-15T03:45:00Z 2017-12-15"),
            ("2022-01-03T00:00:00+05:30", Stamp::Text, None, "2022-01-02T18:30:00Z 2022-01-03"),
            ("2025-07-23 13:30:00+00:00", Stamp::Text, None, "2025-07-23T13:30:00Z "),
            ("2022-01-02T18:30:00Z", Stamp::Text, Some("Asia/Kolkata"), "2022-01-02T18:30:00Z 2022-01-03"),
            ("1637971200000", Stamp::Text, None, "2021-11-27T00:00:00Z "),
            ("1637971200", Stamp::Text, None, "2021-11-27T00:00:00Z "),
            ("1637971200000000", Stamp::Text, None, "2021-11-27T00:00:00Z "),
            ("2016-09-30 09:15:00", Stamp::Text, Some("Asia/Kolkata"), "2016-09-30T03:45:00Z 2016-09-30"),
            ("2016-09-30", Stamp::Text, Some("Asia/Kolkata"), "2016-09-29T18:30:00Z 2016-09-30"),
            ("11/5/2019 9:30", Stamp::MonthFirst, Some("America/New_York"), "2019-11-05T14:30:00Z 2019-11-05"),
            ("20130101 09:16", Stamp::Compact, Some("Asia/Kolkata"), "2013-01-01T03:46:00Z 2013-01-01"),
        ] {
            assert_eq!(at(text, style, zone).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn a_stamp_that_is_none_says_what_is_expected() {
        assert!(at("2016-09-30 09:15:00", Stamp::Text, None).unwrap_err().contains("pass --zone"));
        assert!(at("never", Stamp::Text, Some("UTC")).unwrap_err().contains("'never'"));
        assert!(at("13/5/2019 9:30", Stamp::MonthFirst, Some("UTC")).unwrap_err().contains("M/D/YYYY"));
        assert!(at("2013010 09:16", Stamp::Compact, Some("UTC")).unwrap_err().contains("YYYYMMDD"));
        assert!(at("9999-01-01T00:00:00Z", Stamp::Text, None).is_err());
    }
}

//! Wall-clock hours and the date arithmetic that holiday rules share.

use jiff::civil::{Date, Weekday};

/// A span of local wall-clock time, half-open, in minutes from midnight of the trading date; negative is the evening before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hours {
    pub(super) open: i16,
    pub(super) close: i16,
}

impl Hours {
    pub(super) const fn new(open: i16, close: i16) -> Self {
        assert!(open < close);
        Self { open, close }
    }
}

/// Minutes from midnight of the trading date.
pub(super) const fn at(hour: i16, minute: i16) -> i16 {
    hour * 60 + minute
}

/// Minutes from midnight of the trading date, for a time of the evening before.
pub(super) const fn evening_before(hour: i16, minute: i16) -> i16 {
    at(hour, minute) - at(24, 0)
}

/// The date as the number `yyyymmdd`, the form of the date tables.
pub(super) fn number(date: Date) -> u32 {
    date.year().unsigned_abs() as u32 * 10_000
        + date.month().unsigned_abs() as u32 * 100
        + u32::from(date.day().unsigned_abs())
}

pub(super) fn is_weekend(date: Date) -> bool {
    matches!(date.weekday(), Weekday::Saturday | Weekday::Sunday)
}

/// Easter Sunday, by the Gregorian computus (Meeus, Astronomical Algorithms, 1991, chapter 8), as month and day.
pub(super) fn easter(year: i16) -> (i8, i8) {
    let year = i32::from(year);
    let (a, b, c) = (year % 19, year / 100, year % 100);
    let (d, e, f) = (b / 4, b % 4, (b + 8) / 25);
    let g = (b - f + 1) / 3;
    let h = (19 * a + b - d - g + 15) % 30;
    let (i, k) = (c / 4, c % 4);
    let l = (32 + 2 * e + 2 * i - h - k) % 7;
    let m = (a + 11 * h + 22 * l) / 451;
    let n = h + l - 7 * m + 114;
    ((n / 31) as i8, (n % 31 + 1) as i8)
}

/// Whether `date` lies `days` days after Easter Sunday of its year.
pub(super) fn is_days_after_easter(date: Date, days: i16) -> bool {
    let (month, day) = easter(date.year());
    Date::new(date.year(), month, day).is_ok_and(|sunday| date.day_of_year() - sunday.day_of_year() == days)
}

/// Whether `date` is the `nth` of its weekday in its month, from 1.
pub(super) fn is_nth_weekday(date: Date, nth: i8, weekday: Weekday) -> bool {
    date.weekday() == weekday && (date.day() - 1) / 7 + 1 == nth
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn easter_falls_on_published_dates() {
        // Earliest and latest possible dates, and a few recent ones.
        for (year, want) in
            [(1818, (3, 22)), (1943, (4, 25)), (2000, (4, 23)), (2008, (3, 23)), (2024, (3, 31)), (2026, (4, 5))]
        {
            assert_eq!(easter(year), want, "{year}");
        }
    }
}

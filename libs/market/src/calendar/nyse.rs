//! New York Stock Exchange, also NASDAQ and the other US share exchanges.
//!
//! Rules exact for 1993 to 2026 (exchange_calendars 4.13.2, and daily candles 2004-08 to 2018-01 in tests/calendar.rs); years before
//! follow the same rules, which is right for most holidays since 1971 but knows no half days. Later closures by proclamation are unknown.

#![expect(clippy::inconsistent_digit_grouping, reason = "dates are written yyyy_mm_dd")]

use std::ops::RangeInclusive;

use jiff::civil::{Date, Weekday};

use super::hours::{Hours, at, is_days_after_easter, is_nth_weekday, is_weekend, number};

pub(super) const YEARS: RangeInclusive<i16> = 1993..=2026;
pub(super) const REGULAR: &[Hours] = &[Hours::new(at(9, 30), at(16, 0))];
const HALF_DAY: &[Hours] = &[Hours::new(at(9, 30), at(13, 0))];

/// First year in which half days end at 13:00; before, the few there were ended at 14:00.
const HALF_DAYS_SINCE: i16 = 1993;

/// Closed without a holiday: mourning, attacks, storms; in order.
const CLOSED: &[u32] = &[
    1994_04_27, // mourning for President Nixon
    2001_09_11, 2001_09_12, 2001_09_13, 2001_09_14, // attacks
    2004_06_11, // mourning for President Reagan
    2007_01_02, // mourning for President Ford
    2012_10_29, 2012_10_30, // hurricane Sandy
    2018_12_05, // mourning for President G. H. W. Bush
    2025_01_09, // mourning for President Carter
];

/// Half days outside the rules, in order.
const EXTRA_HALF_DAYS: &[u32] = &[1996_07_05, 1997_12_26, 1999_12_31, 2002_07_05, 2003_12_26];

/// What a date is on the US share exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UsDay {
    Open,
    HalfDay,
    Weekend,
    NewYear,
    GoodFriday,
    Christmas,
    /// Any other holiday of the rules; futures trade until noon on these.
    Holiday,
    /// Closed by proclamation.
    Proclaimed,
}

pub(super) fn hours(date: Date) -> &'static [Hours] {
    match us_day(date) {
        UsDay::Open => REGULAR,
        UsDay::HalfDay => HALF_DAY,
        _ => &[],
    }
}

pub(super) fn us_day(date: Date) -> UsDay {
    use UsDay::{Christmas, GoodFriday, HalfDay, Holiday, NewYear, Open, Proclaimed, Weekend};
    use Weekday::{Friday, Monday, Thursday};

    if is_weekend(date) {
        return Weekend;
    }
    let (year, month, day) = (date.year(), date.month(), date.day());
    let ruled = match month {
        // A New Year's Day on a Saturday is not kept: the year's last trading day stays open.
        1 if day == 1 || (day == 2 && date.weekday() == Monday) => NewYear,
        1 if year >= 1998 && is_nth_weekday(date, 3, Monday) => Holiday,
        2 if is_nth_weekday(date, 3, Monday) => Holiday,
        3 | 4 if date.weekday() == Friday && is_days_after_easter(date, -2) => GoodFriday,
        5 if date.weekday() == Monday && day > 24 => Holiday,
        6 if year >= 2022 && is_observed(date, 19) => Holiday,
        7 if is_observed(date, 4) => Holiday,
        7 if day == 3 && year >= HALF_DAYS_SINCE && is_short_july_third(date) => HalfDay,
        9 if is_nth_weekday(date, 1, Monday) => Holiday,
        11 if is_nth_weekday(date, 4, Thursday) => Holiday,
        11 if year >= HALF_DAYS_SINCE && date.weekday() == Friday && (23..=29).contains(&day) => HalfDay,
        12 if is_observed(date, 25) => Christmas,
        12 if day == 24 && year >= HALF_DAYS_SINCE => HalfDay,
        _ => Open,
    };
    let number = number(date);
    if CLOSED.binary_search(&number).is_ok() {
        Proclaimed
    } else if EXTRA_HALF_DAYS.binary_search(&number).is_ok() {
        HalfDay
    } else {
        ruled
    }
}

/// Whether a weekday keeps the holiday of `day` in its month: on the day, on Friday for a Saturday, on Monday for a Sunday.
fn is_observed(date: Date, day: i8) -> bool {
    match date.weekday() {
        Weekday::Friday => date.day() == day || date.day() == day - 1,
        Weekday::Monday => date.day() == day || date.day() == day + 1,
        _ => date.day() == day,
    }
}

/// July 3 ends early before a holiday on a weekday; on a Wednesday only since 2013.
fn is_short_july_third(date: Date) -> bool {
    match date.weekday() {
        Weekday::Monday | Weekday::Tuesday | Weekday::Thursday => true,
        Weekday::Wednesday => date.year() >= 2013,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted() {
        assert!(CLOSED.is_sorted() && EXTRA_HALF_DAYS.is_sorted());
    }
}

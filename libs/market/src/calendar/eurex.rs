//! Eurex in Frankfurt, by the day session of its equity index futures.
//!
//! Rules exact for 2007 to 2026 by exchange_calendars 4.13.2 (`XEUR`). Limit: the early session that index futures have had
//! since December 2018 (from 01:10 or 02:10) is not regular here; its candles are kept and count towards 09:00.

use std::ops::RangeInclusive;

use jiff::civil::{Date, Weekday};

use super::hours::{Hours, at, is_days_after_easter, is_weekend};

pub(super) const YEARS: RangeInclusive<i16> = 2007..=2026;
pub(super) const REGULAR: &[Hours] = &[Hours::new(at(9, 0), at(22, 0))];

pub(super) fn hours(date: Date) -> &'static [Hours] {
    let easter_closed = match date.weekday() {
        Weekday::Friday => is_days_after_easter(date, -2),
        Weekday::Monday => is_days_after_easter(date, 1),
        _ => false,
    };
    let fixed_closed = matches!((date.month(), date.day()), (1, 1) | (5, 1) | (12, 24 | 25 | 26 | 31));
    if is_weekend(date) || easter_closed || fixed_closed { &[] } else { REGULAR }
}

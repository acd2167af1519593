//! CME Globex in Chicago, by the hours of its equity index futures.
//!
//! Trading date D runs from 17:00 of the evening before; trading pauses from 16:00 to 17:00. Holidays follow the US share exchanges: New
//! Year and Christmas closed; Good Friday closed, but open until 08:15 where it is the month's first Friday (employment report); other
//! holidays until 12:00, half days until 12:15.
//!
//! Limits: currency futures trade on through most of the noon halts, so their source count exceeds the expected one there. Hours are those
//! of 2021 and later for all years (until then: a pause from 15:15 to 15:30 and, before late 2015, a close at 16:15). Days of
//! proclaimed closure before 2012 count as closed. Sources: CME holiday schedules; pandas_market_calendars 5.5.0 (its 12:00 on half days and
//! its open Good Fridays of 2024 and 2025 are not followed); minutes of ES and 6E in tests/calendar.rs.

#![expect(clippy::inconsistent_digit_grouping, reason = "dates are written yyyy_mm_dd")]

use jiff::civil::Date;

use super::hours::{Hours, at, evening_before, number};
use super::nyse::{UsDay, us_day};

const OPEN: i16 = evening_before(17, 0);

pub(super) const REGULAR: &[Hours] = &[Hours::new(OPEN, at(16, 0))];
const HALF_DAY: &[Hours] = &[Hours::new(OPEN, at(12, 15))];
const HOLIDAY: &[Hours] = &[Hours::new(OPEN, at(12, 0))];
const UNTIL_0830: &[Hours] = &[Hours::new(OPEN, at(8, 30))];
const UNTIL_0815: &[Hours] = &[Hours::new(OPEN, at(8, 15))];

pub(super) fn hours(date: Date) -> &'static [Hours] {
    match us_day(date) {
        UsDay::Open => REGULAR,
        UsDay::HalfDay => HALF_DAY,
        UsDay::Holiday => HOLIDAY,
        UsDay::GoodFriday if date.day() <= 7 => UNTIL_0815,
        UsDay::Proclaimed => match number(date) {
            2012_10_29 | 2012_10_30 => UNTIL_0815,
            2018_12_05 | 2025_01_09 => UNTIL_0830,
            _ => &[],
        },
        UsDay::Weekend | UsDay::NewYear | UsDay::GoodFriday | UsDay::Christmas => &[],
    }
}

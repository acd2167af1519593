//! CME Globex in Chicago, by the hours of its equity index futures.
//!
//! Trading date D runs from 17:00 of the evening before; trading pauses from 16:00 to 17:00. Holidays follow the US share exchanges: New
//! Year and Christmas closed; Good Friday closed, but open until 08:15 where it is the month's first Friday (employment report); other
//! holidays until 12:00, half days until 12:15.
//!
//! Until 2021-06-25 trading paused from 15:15 to 15:30, and until 2015-09-18 it closed at 16:15. Years covered: 2013 to 2026; from
//! 2005 to 2012-11 a trading date ran from 15:30 of the day before to 15:15, which is not modelled.
//!
//! Limits: these are the hours of equity index futures. Currency futures know neither the pause nor most of the noon halts, so their
//! minutes there lie outside a session. Sources: CME holiday schedules; pandas_market_calendars 5.5.0 (`CME_Equity`, listed in
//! tests/golden/cme.csv; its 12:00 on half days, its open Good Fridays of 2024 and 2025, and its close of 16:00 before 2015 are
//! not followed); minutes of ES of 2013 and 2022, and of 6E, in tests/calendar.rs.

#![expect(clippy::inconsistent_digit_grouping, reason = "dates are written yyyy_mm_dd")]

use std::ops::RangeInclusive;

use jiff::civil::Date;

use super::hours::{Hours, at, evening_before, number};
use super::nyse::{UsDay, us_day};

const OPEN: i16 = evening_before(17, 0);

pub(super) const YEARS: RangeInclusive<i16> = 2013..=2026;
pub(super) const REGULAR: &[Hours] = &[Hours::new(OPEN, at(16, 0))];
const WITH_PAUSE: &[Hours] = &[Hours::new(OPEN, at(15, 15)), Hours::new(at(15, 30), at(16, 0))];
const WITH_PAUSE_UNTIL_1615: &[Hours] = &[Hours::new(OPEN, at(15, 15)), Hours::new(at(15, 30), at(16, 15))];
/// First trading dates of the later hours.
const CLOSE_AT_1600_SINCE: Date = Date::constant(2015, 9, 21);
const NO_PAUSE_SINCE: Date = Date::constant(2021, 6, 28);

const HALF_DAY: &[Hours] = &[Hours::new(OPEN, at(12, 15))];
const HOLIDAY: &[Hours] = &[Hours::new(OPEN, at(12, 0))];
const UNTIL_0830: &[Hours] = &[Hours::new(OPEN, at(8, 30))];
const UNTIL_0815: &[Hours] = &[Hours::new(OPEN, at(8, 15))];

pub(super) fn hours(date: Date) -> &'static [Hours] {
    match us_day(date) {
        UsDay::Open if date < CLOSE_AT_1600_SINCE => WITH_PAUSE_UNTIL_1615,
        UsDay::Open if date < NO_PAUSE_SINCE => WITH_PAUSE,
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

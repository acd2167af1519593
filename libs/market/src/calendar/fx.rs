//! Spot currencies, five days a week, by New York time.
//!
//! Trading date D runs from 17:00 of the evening before to 17:00; Sunday evening opens Monday. Closed at weekends, on Christmas Day and on
//! New Year's Day, as hourly EURUSD of 2017-12 shows (tests/calendar.rs); no other holiday stops trading. All years.

use jiff::civil::Date;

use super::hours::{Hours, at, evening_before, is_weekend};

pub(super) const REGULAR: &[Hours] = &[Hours::new(evening_before(17, 0), at(17, 0))];

pub(super) fn hours(date: Date) -> &'static [Hours] {
    let closed = is_weekend(date) || matches!((date.month(), date.day()), (1, 1) | (12, 25));
    if closed { &[] } else { REGULAR }
}

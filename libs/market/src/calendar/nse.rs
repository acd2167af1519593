//! National Stock Exchange of India, cash and equity derivatives (also BSE, which keeps the same days and hours).
//!
//! Years covered: 2013 to 2026; weekdays of other years count as trading dates.
//!
//! Holidays: the list of exchange_calendars 4.13.2 (`XBOM`) less the Muhurat dates, with one correction: the exchange traded on 2013-11-14
//! and closed on 2013-11-15. Checked in tests/calendar.rs against NIFTY minutes 2013-01 to 2015-06 and daily candles of 32 shares
//! 2022-01 to 2026-01; the years between rest on that list alone.
//!
//! Special sessions: hours as reported in the press. Minutes confirm 2013-05-11, 2014-03-22, 2014-10-23 and 2015-02-28, daily candles
//! the dates since 2022; the other hours have no second source. The Muhurat session of Sunday 2026-11-08 has no known hours yet and
//! is not listed. On 2024-05-18 reports differ: shares resumed at 11:30, derivatives at 11:45.

#![expect(clippy::inconsistent_digit_grouping, reason = "dates are written yyyy_mm_dd")]

use std::ops::RangeInclusive;

use jiff::civil::Date;

use super::hours::{Hours, at, is_weekend, number};

pub(super) const YEARS: RangeInclusive<i16> = 2013..=2026;
pub(super) const REGULAR: &[Hours] = &[Hours::new(at(9, 15), at(15, 30))];

/// About an hour of token trading on Diwali; its time follows the almanac.
const MUHURAT_1345: &[Hours] = &[Hours::new(at(13, 45), at(14, 45))];
const MUHURAT_1730: &[Hours] = &[Hours::new(at(17, 30), at(18, 30))];
const MUHURAT_1745: &[Hours] = &[Hours::new(at(17, 45), at(18, 45))];
const MUHURAT_1800: &[Hours] = &[Hours::new(at(18, 0), at(19, 0))];
const MUHURAT_1815: &[Hours] = &[Hours::new(at(18, 15), at(19, 15))];
const MUHURAT_1815_LONG: &[Hours] = &[Hours::new(at(18, 15), at(19, 30))];
const MUHURAT_1830: &[Hours] = &[Hours::new(at(18, 30), at(19, 30))];
/// Saturday trading to try new software.
const SOFTWARE_TRIAL: &[Hours] = &[Hours::new(at(11, 15), at(12, 45))];
/// Saturday trading that moves to the disaster recovery site at noon.
const RECOVERY_TRIAL: &[Hours] = &[Hours::new(at(9, 15), at(10, 0)), Hours::new(at(11, 30), at(12, 30))];
/// The outage of 2021-02-24: halted at 11:40, hours extended to 17:00.
const OUTAGE: &[Hours] = &[Hours::new(at(9, 15), at(11, 40)), Hours::new(at(15, 45), at(17, 0))];

/// Dates with other than the regular hours of their weekday, in order.
const SPECIAL: &[(u32, &[Hours])] = &[
    (2013_05_11, SOFTWARE_TRIAL),
    (2013_11_03, MUHURAT_1815_LONG),
    (2014_03_22, SOFTWARE_TRIAL),
    (2014_10_23, MUHURAT_1815_LONG),
    (2015_02_28, REGULAR), // Budget
    (2015_11_11, MUHURAT_1745),
    (2016_10_30, MUHURAT_1830),
    (2017_10_19, MUHURAT_1830),
    (2018_11_07, MUHURAT_1730),
    (2019_10_27, MUHURAT_1815),
    (2020_02_01, REGULAR), // Budget
    (2020_11_14, MUHURAT_1815),
    (2021_02_24, OUTAGE),
    (2021_11_04, MUHURAT_1815),
    (2022_10_24, MUHURAT_1815),
    (2023_11_12, MUHURAT_1815),
    (2024_01_20, REGULAR), // in place of Monday the 22nd
    (2024_03_02, RECOVERY_TRIAL),
    (2024_05_18, RECOVERY_TRIAL),
    (2024_11_01, MUHURAT_1800),
    (2025_02_01, REGULAR), // Budget
    (2025_10_21, MUHURAT_1345),
    (2026_02_01, REGULAR), // Budget
];

/// Weekdays without any session, in order.
#[rustfmt::skip]
const HOLIDAYS: &[u32] = &[
    2013_03_27, 2013_03_29, 2013_04_19, 2013_04_24, 2013_05_01, 2013_08_09, 2013_08_15, 2013_09_09,
    2013_10_02, 2013_10_16, 2013_11_04, 2013_11_15, 2013_12_25,
    2014_02_27, 2014_03_17, 2014_04_08, 2014_04_14, 2014_04_18, 2014_04_24, 2014_05_01, 2014_07_29,
    2014_08_15, 2014_08_29, 2014_10_02, 2014_10_03, 2014_10_06, 2014_10_15, 2014_10_24, 2014_11_04,
    2014_11_06, 2014_12_25,
    2015_01_26, 2015_02_17, 2015_03_06, 2015_04_02, 2015_04_03, 2015_04_14, 2015_05_01, 2015_09_17,
    2015_09_25, 2015_10_02, 2015_10_22, 2015_11_12, 2015_11_25, 2015_12_25,
    2016_01_26, 2016_03_07, 2016_03_24, 2016_03_25, 2016_04_14, 2016_04_15, 2016_04_19, 2016_07_06,
    2016_08_15, 2016_09_05, 2016_09_13, 2016_10_11, 2016_10_12, 2016_10_31, 2016_11_14,
    2017_01_26, 2017_02_24, 2017_03_13, 2017_04_04, 2017_04_14, 2017_05_01, 2017_06_26, 2017_08_15,
    2017_08_25, 2017_10_02, 2017_10_20, 2017_12_25,
    2018_01_26, 2018_02_13, 2018_03_02, 2018_03_29, 2018_03_30, 2018_05_01, 2018_08_15, 2018_08_22,
    2018_09_13, 2018_09_20, 2018_10_02, 2018_10_18, 2018_11_08, 2018_11_23, 2018_12_25,
    2019_03_04, 2019_03_21, 2019_04_17, 2019_04_19, 2019_04_29, 2019_05_01, 2019_06_05, 2019_08_12,
    2019_08_15, 2019_09_02, 2019_09_10, 2019_10_02, 2019_10_08, 2019_10_21, 2019_10_28, 2019_11_12,
    2019_12_25,
    2020_02_21, 2020_03_10, 2020_04_02, 2020_04_06, 2020_04_10, 2020_04_14, 2020_05_01, 2020_05_25,
    2020_10_02, 2020_11_16, 2020_11_30, 2020_12_25,
    2021_01_26, 2021_03_11, 2021_03_29, 2021_04_02, 2021_04_14, 2021_04_21, 2021_05_13, 2021_07_21,
    2021_08_19, 2021_09_10, 2021_10_15, 2021_11_05, 2021_11_19,
    2022_01_26, 2022_03_01, 2022_03_18, 2022_04_14, 2022_04_15, 2022_05_03, 2022_08_09, 2022_08_15,
    2022_08_31, 2022_10_05, 2022_10_26, 2022_11_08,
    2023_01_26, 2023_03_07, 2023_03_30, 2023_04_04, 2023_04_07, 2023_04_14, 2023_05_01, 2023_06_29,
    2023_08_15, 2023_09_19, 2023_10_02, 2023_10_24, 2023_11_14, 2023_11_27, 2023_12_25,
    2024_01_22, 2024_01_26, 2024_03_08, 2024_03_25, 2024_03_29, 2024_04_11, 2024_04_17, 2024_05_01,
    2024_05_20, 2024_06_17, 2024_07_17, 2024_08_15, 2024_10_02, 2024_11_15, 2024_11_20, 2024_12_25,
    2025_02_26, 2025_03_14, 2025_03_31, 2025_04_10, 2025_04_14, 2025_04_18, 2025_05_01, 2025_08_15,
    2025_08_27, 2025_10_02, 2025_10_22, 2025_11_05, 2025_12_25,
    2026_01_15, 2026_01_26, 2026_03_03, 2026_03_26, 2026_03_31, 2026_04_03, 2026_04_14, 2026_05_01,
    2026_05_28, 2026_06_26, 2026_09_14, 2026_10_02, 2026_10_20, 2026_11_10, 2026_11_24, 2026_12_25,
];

pub(super) fn hours(date: Date) -> &'static [Hours] {
    let number = number(date);
    if let Ok(index) = SPECIAL.binary_search_by_key(&number, |special| special.0) {
        return SPECIAL[index].1;
    }
    if is_weekend(date) || HOLIDAYS.binary_search(&number).is_ok() { &[] } else { REGULAR }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_disjoint() {
        assert!(HOLIDAYS.is_sorted_by(|a, b| a < b));
        assert!(SPECIAL.is_sorted_by_key(|special| special.0));
        assert!(SPECIAL.iter().all(|special| HOLIDAYS.binary_search(&special.0).is_err()));
    }
}

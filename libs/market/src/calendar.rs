//! Exchange calendars: trading dates, sessions and bucket anchors.
//!
//! Sources and covered years are named in each calendar's file, and answered by [`Calendar::known_years`]: NSE from lists, 2013 to 2026;
//! NYSE, CME and EUREX from rules, exact for 1993, 2013 and 2007 to 2026; FX and 24x7 from rules for all years. Outside its years a
//! calendar still answers, by weekday or by its rules.
//!
//! A trading date runs from local midnight to midnight (NSE, NYSE, EUREX, 24x7), or from 17:00 of the evening before to 17:00 (CME, FX). The
//! label does not move over weekends: Saturday is a trading day without sessions, so every instant has exactly one date.

mod cme;
mod eurex;
mod fx;
mod hours;
mod nse;
mod nyse;

use std::ops::RangeInclusive;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use jiff::civil::Weekday;
use jiff::tz::TimeZone;

use self::hours::Hours;
use crate::{Date, Error, InstrumentKey, Millis, Result, TimeRange, Timeframe};

const MINUTE_MS: Millis = 60_000;

/// First and last date with a trading day, one inside the instants the system accepts, so that no day reaches beyond them.
const FIRST_DATE: Date = Date::constant(1900, 1, 2);
const LAST_DATE: Date = Date::constant(2199, 12, 30);

/// Longest name repeated in an error.
const MAX_NAME_CHARS: usize = 64;

/// Calendars by name, in the order of [`Calendar::NAMES`].
static SHIPPED: LazyLock<[Arc<Calendar>; 6]> = LazyLock::new(|| {
    [
        Calendar::new("NSE", 1, nse::YEARS, "Asia/Kolkata", Roll::Midnight, nse::REGULAR, nse::hours),
        Calendar::new("NYSE", 1, nyse::YEARS, "America/New_York", Roll::Midnight, nyse::REGULAR, nyse::hours),
        Calendar::new("CME", 2, cme::YEARS, "America/Chicago", Roll::EveningBefore, cme::REGULAR, cme::hours),
        Calendar::new("FX", 1, ALL_YEARS, "America/New_York", Roll::EveningBefore, fx::REGULAR, fx::hours),
        Calendar::new("EUREX", 1, eurex::YEARS, "Europe/Berlin", Roll::Midnight, eurex::REGULAR, eurex::hours),
        Calendar::new("24x7", 1, ALL_YEARS, "UTC", Roll::Midnight, AROUND_THE_CLOCK, |_| AROUND_THE_CLOCK),
    ]
    .map(Arc::new)
});

/// Of calendars by rule, with nothing to look up.
const ALL_YEARS: RangeInclusive<i16> = 1900..=2199;

const AROUND_THE_CLOCK: &[Hours] = &[Hours::new(0, hours::at(24, 0))];

/// A span of regular trading, half-open, in UTC milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    pub open: Millis,
    pub close: Millis,
}

/// Everything the calendar knows of one trading date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TradingDay {
    pub date: Date,
    /// All instants of `[start, end)` belong to this trading date; consecutive days tile the time line.
    pub start: Millis,
    pub end: Millis,
    /// Session open: buckets count from here, both ways. On dates without a session the hour of the regular open.
    pub anchor: Millis,
    /// Regular sessions, in order; empty on weekends and holidays.
    pub sessions: Vec<Session>,
}

/// Sessions of an exchange: zone, hours, holidays, half days and special sessions.
#[derive(Debug)]
pub struct Calendar {
    name: &'static str,
    revision: u32,
    known_years: RangeInclusive<i16>,
    zone: TimeZone,
    roll: Roll,
    /// Minutes from local midnight at which a regular session opens.
    regular_open: i16,
    /// Hours of a date, empty when closed. Costs a few comparisons, no zone arithmetic.
    hours: fn(Date) -> &'static [Hours],
}

/// Where one trading date ends and the next begins, in local time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Roll {
    Midnight,
    /// 17:00: the evening belongs to the next date.
    EveningBefore,
}

impl Roll {
    /// Start of a trading date in minutes from its midnight.
    fn day_start(self) -> i16 {
        match self {
            Roll::Midnight => 0,
            Roll::EveningBefore => hours::evening_before(17, 0),
        }
    }
}

impl Calendar {
    /// Names accepted by [`Calendar::by_name`].
    pub const NAMES: [&'static str; 6] = ["NSE", "NYSE", "CME", "FX", "EUREX", "24x7"];

    /// Looks a shipped calendar up, ignoring case; `NASDAQ` is `NYSE`, `24X7` and `CRYPTO` are `24x7`, `BSE` is `NSE`.
    ///
    /// Errors: [`Error::Calendar`] for any other name.
    pub fn by_name(name: &str) -> Result<Arc<Calendar>> {
        let wanted = match name.trim().to_ascii_uppercase().as_str() {
            "NSE" | "BSE" => "NSE",
            "NYSE" | "NASDAQ" => "NYSE",
            "CME" => "CME",
            "FX" => "FX",
            "EUREX" => "EUREX",
            "24X7" | "CRYPTO" => "24x7",
            _ => {
                return Err(Error::Calendar {
                    name: name.chars().take(MAX_NAME_CHARS).collect(),
                    accepted: Self::NAMES.join(", "),
                });
            }
        };
        Ok(Self::shipped(wanted))
    }

    /// Default calendar of an instrument, from the key's segment (`NSE_EQ`, `US`, `CME`, `FX`, `EUREX`, `CRYPTO`, ...).
    ///
    /// Errors: [`Error::NoCalendar`] for segments whose hours are not shipped, among them `NSE_COM`, `NCD_FO` and `MCX_FO`.
    pub fn for_key(key: &InstrumentKey) -> Result<Arc<Calendar>> {
        let segment = key.segment();
        let exchange = segment.split_once('_').map_or(segment, |(exchange, _)| exchange);
        let name = match (segment, exchange) {
            ("NSE" | "NSE_EQ" | "NSE_INDEX" | "NSE_FO" | "BSE" | "BSE_EQ" | "BSE_INDEX" | "BSE_FO", _) => "NSE",
            (_, "US" | "NYSE" | "NASDAQ" | "ARCA" | "AMEX" | "BATS") => "NYSE",
            (_, "CME") => "CME",
            (_, "FX" | "FOREX") => "FX",
            (_, "EUREX") => "EUREX",
            (_, "CRYPTO") => "24x7",
            _ => return Err(Error::NoCalendar { key: key.to_string(), accepted: Self::NAMES.join(", ") }),
        };
        Ok(Self::shipped(name))
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Rises when a shipped rule or date changes; part of cache keys.
    pub fn revision(&self) -> u32 {
        self.revision
    }

    /// Years whose holidays, half days and special sessions were checked against a published list or real candles.
    ///
    /// Outside them the calendar still answers, by weekday or by the rules of the nearest year: a holiday then counts as a session
    /// and its minutes as missing.
    pub fn known_years(&self) -> RangeInclusive<i16> {
        self.known_years.clone()
    }

    /// The trading day that holds the instant `at`.
    ///
    /// Domain: 1900-01-02 to 2199-12-30; instants outside give the first or the last day.
    /// Cost: a handful of zone look-ups and one allocation; hold on to the day while instants stay inside it.
    pub fn day_at(&self, at: Millis) -> TradingDay {
        let local = match Timestamp::from_millisecond(at.clamp(TimeRange::ALL.start(), TimeRange::ALL.end())) {
            Ok(stamp) => self.zone.to_datetime(stamp),
            Err(_) => FIRST_DATE.at(0, 0, 0, 0),
        };
        let rolled = self.roll == Roll::EveningBefore && local.hour() >= 17;
        let date = if rolled { following(local.date()) } else { local.date() };
        let day = self.day(date);
        // Where clocks were set over midnight, as in India in 1942, the local date can be one off.
        if at < day.start && day.date > FIRST_DATE {
            self.day(preceding(day.date))
        } else if at >= day.end && day.date < LAST_DATE {
            self.day(following(day.date))
        } else {
            day
        }
    }

    /// The trading day of a date.
    ///
    /// Domain: 1900-01-02 to 2199-12-30; dates outside give the first or the last day, whose `date` says so.
    pub fn day(&self, date: Date) -> TradingDay {
        let date = date.clamp(FIRST_DATE, LAST_DATE);
        let sessions: Vec<Session> = (self.hours)(date)
            .iter()
            .map(|hours| Session { open: self.instant(date, hours.open), close: self.instant(date, hours.close) })
            .collect();
        let anchor = sessions.first().map_or_else(|| self.instant(date, self.regular_open), |session| session.open);
        TradingDay { date, start: self.day_start(date), end: self.day_start(following(date)), anchor, sessions }
    }

    /// Bucket `[start, end)` of `timeframe` that holds `at`, given `at`'s trading day.
    ///
    /// Inside a day: anchored at `day.anchor`, clipped to `[day.start, day.end)`. 1d: the whole day, 1w and 1mo: whole trading dates of
    /// the Monday-based week or calendar month. An `at` outside `day` is taken for the day's nearest instant.
    pub fn bucket(&self, day: &TradingDay, timeframe: Timeframe, at: Millis) -> TimeRange {
        let (start, end) = match (timeframe.width_ms(), timeframe) {
            (Some(width), _) => {
                let at = at.clamp(day.start, day.end - 1);
                let start = at - (at - day.anchor).rem_euclid(width);
                (start.max(day.start), (start + width).min(day.end))
            }
            (None, Timeframe::W1 | Timeframe::Mo1) => {
                let (first, last) = dates_around(day.date, timeframe);
                (self.day_start(first), self.day_start(following(last)))
            }
            (None, _) => (day.start, day.end),
        };
        TimeRange::new(start, end).expect("days lie inside the accepted instants and are not empty")
    }

    /// The open time a candle of the bucket is stamped with: the bucket's start inside a day, the session open (anchor) of the
    /// first trading day with a session for 1d, 1w and 1mo.
    pub fn stamp(&self, day: &TradingDay, timeframe: Timeframe, at: Millis) -> Millis {
        match timeframe {
            Timeframe::D1 => day.anchor,
            Timeframe::W1 | Timeframe::Mo1 => {
                let (first, last) = dates_around(day.date, timeframe);
                let opened = dates(first, last).find(|date| self.has_session(*date)).unwrap_or(first);
                let minutes = (self.hours)(opened).first().map_or(self.regular_open, |hours| hours.open);
                self.instant(opened, minutes)
            }
            _ => self.bucket(day, timeframe, at).start(),
        }
    }

    /// Session minutes of a bucket; where it holds none (pre-market, closed day) its width in minutes inside a day, 0 for 1d, 1w, 1mo.
    pub fn expected_count(&self, day: &TradingDay, timeframe: Timeframe, bucket: TimeRange) -> u32 {
        let session_ms = match timeframe {
            Timeframe::W1 | Timeframe::Mo1 => {
                let (first, last) = dates_around(day.date, timeframe);
                dates(first, last)
                    .filter(|date| self.has_session(*date))
                    .map(|date| overlap_ms(&self.day(date).sessions, bucket))
                    .sum()
            }
            _ => overlap_ms(&day.sessions, bucket),
        };
        let counted_ms = match timeframe.width_ms() {
            Some(_) if session_ms == 0 => bucket.end() - bucket.start(),
            _ => session_ms,
        };
        u32::try_from(counted_ms / MINUTE_MS).unwrap_or(u32::MAX)
    }

    /// The trading date a vendor's daily, weekly or monthly stamp means.
    ///
    /// Local midnight of a date is that date, midnight UTC is the UTC date, any other instant is the trading date that holds it.
    pub fn date_of_daily_stamp(&self, at: Millis) -> Date {
        let day = self.day_at(at);
        // A day that rolls at 17:00 holds the midnight of its own date.
        if at == self.instant(day.date, 0) {
            return day.date;
        }
        match Timestamp::from_millisecond(at) {
            Ok(stamp) if at.rem_euclid(24 * 60 * MINUTE_MS) == 0 => {
                TimeZone::UTC.to_datetime(stamp).date().clamp(FIRST_DATE, LAST_DATE)
            }
            _ => day.date,
        }
    }

    /// Trading days with at least one session between two dates, both inclusive, in order.
    pub fn trading_dates(&self, first: Date, last: Date) -> Vec<Date> {
        if first > LAST_DATE {
            return Vec::new();
        }
        dates(first.max(FIRST_DATE), last.min(LAST_DATE)).filter(|date| self.has_session(*date)).collect()
    }

    fn new(
        name: &'static str,
        revision: u32,
        known_years: RangeInclusive<i16>,
        zone: &'static str,
        roll: Roll,
        regular: &'static [Hours],
        hours: fn(Date) -> &'static [Hours],
    ) -> Self {
        let zone = TimeZone::get(zone).expect("the zone database is compiled in");
        let regular_open = regular.first().map_or(roll.day_start(), |hours| hours.open);
        Self { name, revision, known_years, zone, roll, regular_open, hours }
    }

    fn shipped(name: &'static str) -> Arc<Calendar> {
        let found = SHIPPED.iter().find(|calendar| calendar.name == name);
        Arc::clone(found.expect("callers pass names of the table only"))
    }

    fn has_session(&self, date: Date) -> bool {
        !(self.hours)(date).is_empty()
    }

    fn day_start(&self, date: Date) -> Millis {
        self.instant(date, self.roll.day_start())
    }

    /// The instant of a local wall-clock time, in minutes from midnight of `date`.
    ///
    /// A time skipped by a clock change is read with the offset before it, a repeated one is the earlier.
    fn instant(&self, date: Date, minutes: i16) -> Millis {
        const DAY: i16 = hours::at(24, 0);
        let date = match minutes {
            ..0 => preceding(date),
            DAY.. => following(date),
            _ => date,
        };
        let minutes = minutes.rem_euclid(DAY);
        let local = date.at((minutes / 60) as i8, (minutes % 60) as i8, 0, 0);
        self.zone.to_timestamp(local).expect("dates are clamped far inside what a timestamp holds").as_millisecond()
    }
}

/// First and last date of the week or month around `date`; the date itself for any other timeframe.
fn dates_around(date: Date, timeframe: Timeframe) -> (Date, Date) {
    match timeframe {
        Timeframe::W1 => {
            let monday = (0..date.weekday().since(Weekday::Monday)).fold(date, |date, _| preceding(date));
            (monday, (0..6).fold(monday, |date, _| following(date)))
        }
        Timeframe::Mo1 => (date.first_of_month(), date.last_of_month()),
        _ => (date, date),
    }
}

/// Every date from `first` to `last`, both inclusive.
fn dates(first: Date, last: Date) -> impl Iterator<Item = Date> {
    std::iter::successors(Some(first), |date| Some(following(*date))).take_while(move |date| *date <= last)
}

fn following(date: Date) -> Date {
    date.tomorrow().expect("dates are clamped far inside what a date holds")
}

fn preceding(date: Date) -> Date {
    date.yesterday().expect("dates are clamped far inside what a date holds")
}

fn overlap_ms(sessions: &[Session], bucket: TimeRange) -> Millis {
    sessions.iter().map(|session| (session.close.min(bucket.end()) - session.open.max(bucket.start())).max(0)).sum()
}

#[cfg(test)]
mod tests;

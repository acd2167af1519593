//! Which rows of a delivered batch are good, and where they belong.

use market::{Calendar, Candle, Frame, Millis, RowFault, TimeRange, Timeframe, TradingDay, format_millis};

/// A row that was not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejected {
    pub(crate) row: u64,
    pub(crate) reason: String,
}

/// A batch sorted into what will be stored and what will not.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub(crate) frame: Frame,
    /// Ascending by row.
    pub(crate) rejected: Vec<Rejected>,
    /// Rows that the next one of their open time repeats to the bit.
    pub(crate) repeated: u64,
}

/// Checks, places, sorts and deduplicates rows in any order; `None` is a row without a readable open time.
///
/// Of rows with one open time the last wins: earlier ones are `repeated` where the next one equals them, else rejected. So whoever
/// reads the rows one by one counts the same. Rejections count rows from `first_row`.
pub(crate) fn prepare(rows: &[Option<Candle>], first_row: u64, timeframe: Timeframe, calendar: &Calendar) -> Prepared {
    let mut placing = Placing { timeframe, calendar, day: None };
    let mut prepared = Prepared { frame: Frame::with_capacity(rows.len()), ..Prepared::default() };
    let mut good: Vec<(u64, Candle)> = Vec::with_capacity(rows.len());
    for (row, delivered) in (first_row..).zip(rows) {
        match placing.placed(delivered) {
            Ok(candle) => good.push((row, candle)),
            Err(fault) => prepared.rejected.push(Rejected { row, reason: fault.to_string() }),
        }
    }
    // Stable, and one pass over rows that are sorted already.
    good.sort_by_key(|(_, candle)| candle.open_time);
    for rows in good.chunk_by(|(_, a), (_, b)| a.open_time == b.open_time) {
        prepared.take_last(rows);
    }
    prepared.rejected.sort_by_key(|rejected| rejected.row);
    prepared
}

impl Prepared {
    /// Keeps the last of the rows of one open time.
    fn take_last(&mut self, rows: &[(u64, Candle)]) {
        let Some((winner, candle)) = rows.last() else { return };
        for pair in rows.windows(2) {
            let [(row, superseded), (next, by)] = pair else { continue };
            if same_bits(superseded, by) {
                self.repeated += 1;
            } else {
                let reason = format!("superseded by row {next} with the same open_time");
                self.rejected.push(Rejected { row: *row, reason });
            }
        }
        // Rows were checked and come in order; should the frame see it otherwise, that is said and not hidden.
        if let Err(error) = self.frame.push(candle) {
            self.rejected.push(Rejected { row: *winner, reason: error.to_string() });
        }
    }
}

pub(super) fn same_bits(a: &Candle, b: &Candle) -> bool {
    let bits = |candle: &Candle| {
        let values = [candle.open, candle.high, candle.low, candle.close, candle.volume];
        (values.map(f64::to_bits), candle.open_interest.map(f64::to_bits))
    };
    bits(a) == bits(b)
}

/// Gives rows their open time, holding on to the trading day while they stay inside it.
struct Placing<'a> {
    timeframe: Timeframe,
    calendar: &'a Calendar,
    day: Option<TradingDay>,
}

impl Placing<'_> {
    /// The candle as it is stored, or why it is not.
    fn placed(&mut self, delivered: &Option<Candle>) -> Result<Candle, RowFault> {
        let unreadable = || RowFault::Unreadable("open_time is missing or no valid instant".to_owned());
        let mut candle = delivered.ok_or_else(unreadable)?;
        // Before anything is asked of the calendar, which would take the nearest day it knows.
        if !TimeRange::ALL.contains(candle.open_time) {
            return Err(RowFault::OutOfRange(candle.open_time));
        }
        match self.timeframe.width_ms() {
            Some(_) => {
                candle.check()?;
                self.check_bucket(candle.open_time)?;
            }
            None => {
                candle.open_time = self.session_stamp(candle.open_time);
                candle.check()?;
            }
        }
        Ok(candle)
    }

    /// Refuses an open time inside its session-anchored bucket.
    fn check_bucket(&mut self, at: Millis) -> Result<(), RowFault> {
        if self.timeframe == Timeframe::M1 {
            return Ok(());
        }
        let (timeframe, calendar) = (self.timeframe, self.calendar);
        let start = calendar.bucket(self.day_at(at), timeframe, at).start();
        if start == at {
            return Ok(());
        }
        Err(RowFault::Unreadable(format!(
            "open_time {} does not start a {timeframe} bucket of {}; the bucket that holds it starts at {}",
            format_millis(at),
            calendar.name(),
            format_millis(start),
        )))
    }

    /// The stamp of the day, week or month that a vendor's stamp means.
    fn session_stamp(&self, at: Millis) -> Millis {
        let day = self.calendar.day(self.calendar.date_of_daily_stamp(at));
        self.calendar.stamp(&day, self.timeframe, day.anchor)
    }

    fn day_at(&mut self, at: Millis) -> &TradingDay {
        let day = match self.day.take() {
            Some(day) if day.start <= at && at < day.end => day,
            _ => self.calendar.day_at(at),
        };
        self.day.insert(day)
    }
}

#[cfg(test)]
mod tests {
    use market::parse_millis;

    use super::*;

    fn candle(time: &str, close: f64) -> Option<Candle> {
        let open_time = parse_millis(time).unwrap();
        Some(Candle { open_time, open: close, high: close, low: close, close, volume: 1.0, open_interest: None })
    }

    fn nse() -> std::sync::Arc<Calendar> {
        Calendar::by_name("NSE").unwrap()
    }

    fn times(prepared: &Prepared) -> Vec<String> {
        prepared.frame.open_time().iter().map(|at| format_millis(*at)).collect()
    }

    #[test]
    fn the_last_row_of_an_open_time_wins_and_the_others_are_accounted_for() {
        let rows = [
            candle("2016-08-16T03:46:00Z", 2.0),
            candle("2016-08-16T03:45:00Z", 1.0),
            candle("2016-08-16T03:45:00Z", 1.0),
            None,
            candle("2016-08-16T03:45:00Z", 5.0),
            candle("2016-08-16T03:47:30Z", 1.0),
        ];
        let prepared = prepare(&rows, 100, Timeframe::M1, &nse());
        assert_eq!(times(&prepared), ["2016-08-16T03:45:00Z", "2016-08-16T03:46:00Z"]);
        assert_eq!(prepared.frame.close(), [5.0, 2.0]);
        assert_eq!(prepared.repeated, 1);
        let reasons: Vec<_> = prepared.rejected.iter().map(|r| (r.row, r.reason.as_str())).collect();
        assert_eq!(
            reasons,
            [
                (102, "superseded by row 104 with the same open_time"),
                (103, "open_time is missing or no valid instant"),
                (105, "open_time 2016-08-16T03:47:30Z is not aligned to its minute"),
            ]
        );
    }

    #[test]
    fn hours_count_from_the_session_open() {
        // NSE opens at 09:15 IST, 03:45 UTC.
        let rows = [candle("2016-08-16T04:00:00Z", 1.0), candle("2016-08-16T04:45:00Z", 1.0)];
        let prepared = prepare(&rows, 0, Timeframe::H1, &nse());
        assert_eq!(times(&prepared), ["2016-08-16T04:45:00Z"]);
        let reason = &prepared.rejected[0].reason;
        assert!(reason.contains("04:00:00Z") && reason.contains("1h") && reason.contains("03:45:00Z"), "{reason}");
    }

    #[test]
    fn stamps_of_days_weeks_and_months_become_session_opens() {
        // Local midnight, UTC midnight, an instant inside and the last second of the day all mean 16 August 2016, a Tuesday; the
        // Monday was Independence Day.
        for stamp in ["2016-08-15T18:30:00Z", "2016-08-16T00:00:00Z", "2016-08-16T10:00:00Z", "2016-08-16T18:29:59Z"] {
            let rows = [candle(stamp, 1.0)];
            let of = |timeframe| times(&prepare(&rows, 0, timeframe, &nse()));
            assert_eq!(of(Timeframe::D1), ["2016-08-16T03:45:00Z"], "{stamp}");
            assert_eq!(of(Timeframe::W1), ["2016-08-16T03:45:00Z"], "{stamp}");
            assert_eq!(of(Timeframe::Mo1), ["2016-08-01T03:45:00Z"], "{stamp}");
        }
    }

    #[test]
    fn instants_beyond_the_calendar_are_refused_and_not_moved() {
        let rows = [Some(Candle { open_time: i64::MAX, ..candle("2016-08-16T00:00:00Z", 1.0).unwrap() })];
        for timeframe in [Timeframe::M1, Timeframe::M5, Timeframe::D1] {
            let prepared = prepare(&rows, 0, timeframe, &nse());
            assert!(prepared.frame.is_empty());
            assert!(prepared.rejected[0].reason.contains("outside 1900..2200"), "{:?}", prepared.rejected);
        }
    }
}

//! What a bucket should hold, and whether it does.

use std::sync::Arc;

use market::{Calendar, Candle, Date, Millis, Session, TimeRange, Timeframe, TradingDay};

/// The buckets of one timeframe on a calendar, seen at one instant.
#[derive(Debug, Clone)]
pub(super) struct Grid {
    pub(super) calendar: Arc<Calendar>,
    pub(super) timeframe: Timeframe,
    /// Buckets that end by now are closed.
    pub(super) now: Millis,
}

/// How whole a bucket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flags {
    pub(super) closed: bool,
    pub(super) complete: bool,
    pub(super) source_count: u32,
    pub(super) expected_count: u32,
}

/// Counts of one bucket while it fills, date by date.
///
/// Each date is counted in candles of its own source: minutes, or 1 for a stored daily candle.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    pub(super) range: TimeRange,
    source_count: u32,
    expected: u32,
    is_short: bool,
    /// Widest source so far: dates without candles are counted in it.
    widest: Timeframe,
    /// Dates with candles; kept only where a bucket spans several.
    dates: Vec<Date>,
}

impl Tally {
    pub(super) fn new(range: TimeRange) -> Self {
        Self { range, source_count: 0, expected: 0, is_short: false, widest: Timeframe::M1, dates: Vec::new() }
    }
}

impl Grid {
    pub(super) fn bucket(&self, day: &TradingDay, at: Millis) -> TimeRange {
        self.calendar.bucket(day, self.timeframe, at)
    }

    pub(super) fn stamp(&self, day: &TradingDay, at: Millis) -> Millis {
        self.calendar.stamp(day, self.timeframe, at)
    }

    /// The (first) trading date of the bucket a candle with this stamp stands for.
    pub(super) fn trading_date(&self, day: &TradingDay, stamp: Millis) -> Date {
        if self.spans_dates() { self.calendar.day_at(stamp).date } else { day.date }
    }

    /// Whether a bucket spans several trading dates.
    pub(super) fn spans_dates(&self) -> bool {
        self.timeframe > Timeframe::D1
    }

    /// Candles of `source` that one date's sessions make in a bucket; where it has no session, what its width makes inside a day,
    /// and none in a bucket of whole dates. A stored candle of a date or more is 1.
    pub(super) fn expected(&self, day: &TradingDay, source: Timeframe, bucket: TimeRange) -> u32 {
        match source.width_ms() {
            None => 1,
            Some(_) if source == Timeframe::M1 => {
                self.calendar.expected_count(day, self.timeframe.min(Timeframe::D1), bucket)
            }
            Some(width) => {
                let parts = session_parts(day, width, bucket);
                let has_width = parts == 0 && self.timeframe < Timeframe::D1;
                let parts = if has_width { (bucket.end() - bucket.start() + width - 1) / width } else { parts };
                u32::try_from(parts).unwrap_or(u32::MAX)
            }
        }
    }

    /// Whether completeness of a bucket is judged by session rows; without a session in it every row counts.
    pub(super) fn counts_session_only(&self, day: &TradingDay, source: Timeframe, bucket: TimeRange) -> bool {
        source < Timeframe::D1 && day.sessions.iter().any(|session| clipped(session, bucket).is_some())
    }

    /// Adds one date's rows: how many there are, and how many of them count towards completeness.
    pub(super) fn count(&self, tally: &mut Tally, day: &TradingDay, source: Timeframe, rows: u32, counting: u32) {
        let expected = self.expected(day, source, tally.range);
        tally.source_count = tally.source_count.saturating_add(rows);
        tally.expected = tally.expected.saturating_add(expected);
        tally.is_short |= counting < expected;
        tally.widest = tally.widest.max(source);
        if self.spans_dates() {
            tally.dates.push(day.date);
        }
    }

    /// The flags of a bucket that gets no more rows. Trading dates of the bucket without a row are missing.
    pub(super) fn settle(&self, tally: &Tally) -> Flags {
        let (mut expected_count, mut is_short) = (tally.expected, tally.is_short);
        if self.spans_dates() && tally.widest <= Timeframe::D1 {
            for date in self.trading_dates(tally.range).into_iter().filter(|date| !tally.dates.contains(date)) {
                let missing = self.expected(&self.calendar.day(date), tally.widest, tally.range);
                expected_count = expected_count.saturating_add(missing);
                is_short = true;
            }
        }
        let closed = tally.range.end() <= self.now;
        Flags { closed, complete: closed && !is_short, source_count: tally.source_count, expected_count }
    }

    /// Trading dates with a session in a bucket of whole dates.
    pub(super) fn trading_dates(&self, bucket: TimeRange) -> Vec<Date> {
        let (first, last) = (self.calendar.day_at(bucket.start()), self.calendar.day_at(bucket.end() - 1));
        self.calendar.trading_dates(first.date, last.date)
    }
}

/// Whether a candle of `source` that opens at `at` touches a session of the day.
pub(super) fn is_in_session(day: &TradingDay, source: Timeframe, at: Millis) -> bool {
    let end = at + source.width_ms().unwrap_or(0);
    day.sessions.iter().any(|session| at < session.close && end > session.open)
}

/// One more candle of a bucket.
pub(super) fn push(out: &mut market::BucketFrame, candle: &Candle, flags: Flags, date: Date) -> market::Result<()> {
    out.frame.push(candle)?;
    out.closed.push(flags.closed);
    out.complete.push(flags.complete);
    out.source_count.push(flags.source_count);
    out.expected_count.push(flags.expected_count);
    out.trading_date.push(date);
    Ok(())
}

fn clipped(session: &Session, bucket: TimeRange) -> Option<(Millis, Millis)> {
    let (open, close) = (session.open.max(bucket.start()), session.close.min(bucket.end()));
    (open < close).then_some((open, close))
}

/// Candles of a width, counted from the day's anchor, that touch a session inside the bucket.
fn session_parts(day: &TradingDay, width: Millis, bucket: TimeRange) -> Millis {
    let (mut count, mut next) = (0, Millis::MIN);
    for (open, close) in day.sessions.iter().filter_map(|session| clipped(session, bucket)) {
        let first = (open - day.anchor).div_euclid(width).max(next);
        let last = (close - 1 - day.anchor).div_euclid(width);
        count += (last - first + 1).max(0);
        next = last + 1;
    }
    count
}

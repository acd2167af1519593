//! A candle while its minutes arrive.
//!
//! Says of a bucket what the engines say, minute by minute: same order of sums, same counts. What cannot be kept up by adding (weeks
//! and months begin by a read, and their completeness is read too) says so, and is read again.

use market::{BucketFrame, Calendar, Candle, Date, Millis, TimeRange, Timeframe, TradingDay};

/// Width of the candles that are added.
const MINUTE_MS: Millis = 60_000;

/// A candle as it would be answered, apart from the clock.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Candled {
    pub(super) range: TimeRange,
    /// Under the calendar's stamp.
    pub(super) candle: Candle,
    pub(super) trading_date: Date,
    pub(super) source_count: u32,
    pub(super) expected_count: u32,
    /// No session minute is missing.
    pub(super) is_full: bool,
}

impl Candled {
    /// The rows of an answer that was made as if all ranges had passed.
    pub(super) fn rows(calendar: &Calendar, timeframe: Timeframe, frame: &BucketFrame) -> Vec<Candled> {
        let mut day: Option<TradingDay> = None;
        let row = |(row, candle): (usize, Candle)| {
            let at = candle.open_time;
            if !day.as_ref().is_some_and(|day| day.start <= at && at < day.end) {
                day = Some(calendar.day_at(at));
            }
            let day = day.as_ref().expect("it was set in the line before");
            Candled {
                range: calendar.bucket(day, timeframe, at),
                candle,
                trading_date: frame.trading_date[row],
                source_count: frame.source_count[row],
                expected_count: frame.expected_count[row],
                is_full: frame.complete[row],
            }
        };
        frame.frame.candles().enumerate().map(row).collect()
    }
}

/// The accumulator of one bucket.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    pub(super) state: Candled,
    /// Minutes that count towards completeness; absent where adding cannot tell.
    counting: Option<u32>,
    /// Whether only session minutes count.
    session_only: bool,
    pub(super) is_announced: bool,
}

impl Bucket {
    /// Begins with the first minute. `None` for buckets of several dates, which begin by a read.
    pub(super) fn begin(calendar: &Calendar, day: &TradingDay, timeframe: Timeframe, first: &Candle) -> Option<Bucket> {
        if timeframe > Timeframe::D1 {
            return None;
        }
        let range = calendar.bucket(day, timeframe, first.open_time);
        let candle = Candle { open_time: calendar.stamp(day, timeframe, first.open_time), ..*first };
        let state = Candled {
            range,
            candle,
            trading_date: day.date,
            source_count: 0,
            expected_count: calendar.expected_count(day, timeframe, range),
            is_full: false,
        };
        let session_only = has_session(day, range);
        let mut bucket = Bucket { state, counting: Some(0), session_only, is_announced: false };
        bucket.count(day, first.open_time);
        Some(bucket)
    }

    /// Takes over a candle that was read.
    pub(super) fn of(calendar: &Calendar, timeframe: Timeframe, state: Candled, is_announced: bool) -> Bucket {
        let day = calendar.day_at(state.candle.open_time);
        let session_only = has_session(&day, state.range);
        let counting = match timeframe > Timeframe::D1 {
            true => None,
            false if !session_only || is_all_session(&day, state.range) => Some(state.source_count),
            false if state.is_full => Some(state.expected_count),
            false => None,
        };
        Bucket { state, counting, session_only, is_announced }
    }

    /// Adds a minute of `day` that is later than all before.
    pub(super) fn add(&mut self, day: &TradingDay, minute: &Candle) {
        let candle = &mut self.state.candle;
        candle.high = if minute.high > candle.high { minute.high } else { candle.high };
        candle.low = if minute.low < candle.low { minute.low } else { candle.low };
        candle.close = minute.close;
        candle.volume += minute.volume;
        candle.open_interest = minute.open_interest.or(candle.open_interest);
        self.count(day, minute.open_time);
    }

    /// Whether no session minute is missing, where that is known.
    pub(super) fn is_full(&self) -> Option<bool> {
        self.counting.map(|_| self.state.is_full)
    }

    fn count(&mut self, day: &TradingDay, at: Millis) {
        self.state.source_count = self.state.source_count.saturating_add(1);
        let in_session = |at| day.sessions.iter().any(|session| at < session.close && at + MINUTE_MS > session.open);
        let counts = !self.session_only || in_session(at);
        if let Some(counting) = &mut self.counting {
            *counting = counting.saturating_add(u32::from(counts));
            self.state.is_full = *counting >= self.state.expected_count;
        }
    }
}

/// Whether a session spans the whole range, so that every minute of it counts.
fn is_all_session(day: &TradingDay, range: TimeRange) -> bool {
    day.sessions.iter().any(|session| session.open <= range.start() && session.close >= range.end())
}

fn has_session(day: &TradingDay, range: TimeRange) -> bool {
    day.sessions.iter().any(|session| session.open < range.end() && session.close > range.start())
}

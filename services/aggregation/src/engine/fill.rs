//! Gap filling: session buckets without a candle, between two that have one.

use market::{Candle, Millis, TimeRange, Timeframe, TradingDay};

use super::answer::{Batch, Queued};
use super::grid::{self, Flags, Grid};

/// Fills gaps batch by batch: however long a gap is, a batch is all that is held.
///
/// A filled candle is the previous close with volume 0, source_count 0, never complete, and has no indicator values.
#[derive(Debug)]
pub(super) struct Fill {
    grid: Grid,
    previous: Option<Candle>,
    /// The gap being filled.
    gap: Option<Gap>,
}

impl Fill {
    pub(super) fn new(grid: Grid) -> Self {
        Self { grid, previous: None, gap: None }
    }

    /// Takes rows from the queue and returns them with the gaps before them filled, at most `max_rows`.
    pub(super) fn next(&mut self, queued: &mut Queued, max_rows: usize) -> Batch {
        let mut out = Batch { columns: vec![Vec::new(); queued.batch.columns.len()], ..Batch::default() };
        while queued.taken < queued.batch.len() && out.len() < max_rows {
            let row = queued.taken;
            let candle = queued.batch.buckets.frame.candle(row);
            if let Some(previous) = &self.previous {
                let gap =
                    self.gap.get_or_insert_with(|| Gap::between(&self.grid, previous.open_time, candle.open_time));
                if let Some((bucket, day)) = gap.next(&self.grid) {
                    self.push_filled(previous.close, bucket, &day, &mut out);
                    continue;
                }
            }
            let buckets = &queued.batch.buckets;
            let flags = Flags {
                closed: buckets.closed[row],
                complete: buckets.complete[row],
                source_count: buckets.source_count[row],
                expected_count: buckets.expected_count[row],
            };
            let pushed = grid::push(&mut out.buckets, &candle, flags, buckets.trading_date[row]);
            debug_assert_eq!(pushed, Ok(()), "rows of a frame are in order and checked");
            out.columns.iter_mut().zip(&queued.batch.columns).for_each(|(column, values)| column.push(values[row]));
            (self.previous, self.gap) = (Some(candle), None);
            queued.taken += 1;
        }
        out
    }

    fn push_filled(&self, close: f64, bucket: TimeRange, day: &TradingDay, out: &mut Batch) {
        let stamp = self.grid.stamp(day, bucket.start());
        let candle =
            Candle { open_time: stamp, open: close, high: close, low: close, close, volume: 0.0, open_interest: None };
        let flags = Flags {
            closed: bucket.end() <= self.grid.now,
            complete: false,
            source_count: 0,
            expected_count: self.grid.calendar.expected_count(day, self.grid.timeframe, bucket),
        };
        let date = self.grid.trading_date(day, stamp);
        // A calendar's buckets advance, so a refusal would only mean that the candle exists.
        if grid::push(&mut out.buckets, &candle, flags, date).is_ok() {
            out.columns.iter_mut().for_each(|column| column.push(f64::NAN));
        }
    }
}

/// Buckets with a session strictly between two candles, one after the other.
#[derive(Debug)]
struct Gap {
    day: TradingDay,
    /// Where the next bucket may start.
    at: Millis,
    end: Millis,
}

impl Gap {
    /// Between the buckets of two open times.
    fn between(grid: &Grid, previous: Millis, next: Millis) -> Self {
        let start_of = |stamp| {
            let day = grid.calendar.day_at(stamp);
            let bucket = grid.bucket(&day, stamp);
            (day, bucket)
        };
        let (day, bucket) = start_of(previous);
        Self { day, at: bucket.end(), end: start_of(next).1.start() }
    }

    fn next(&mut self, grid: &Grid) -> Option<(TimeRange, TradingDay)> {
        while self.at < self.end {
            if self.at >= self.day.end {
                self.day = grid.calendar.day_at(self.at);
            }
            let found = match grid.timeframe >= Timeframe::D1 {
                true => Some(grid.bucket(&self.day, self.at)),
                // From the next session minute of the date; the bucket that holds it may have begun before.
                false => self.session_minute().map(|at| grid.bucket(&self.day, at)),
            };
            let Some(bucket) = found else {
                self.at = self.day.end;
                continue;
            };
            let is_empty =
                grid.timeframe >= Timeframe::D1 && grid.calendar.expected_count(&self.day, grid.timeframe, bucket) == 0;
            let is_new = bucket.start() >= self.at && bucket.end() <= self.end;
            self.at = bucket.end();
            if is_new && !is_empty {
                return Some((bucket, self.day.clone()));
            }
        }
        None
    }

    fn session_minute(&self) -> Option<Millis> {
        let session = self.day.sessions.iter().find(|session| session.close > self.at)?;
        Some(session.open.max(self.at))
    }
}

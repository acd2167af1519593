//! Engine V2: columns of a trading date cut into runs of rows.

use kernels::indicator::{Column, Inputs, Spec, compute_fused};
use kernels::resample::{self, Bars, Day, Hours, flag_day_into, resample_day_into, resample_whole_into};
use market::{BucketFrame, Date, Frame, Millis, TimeRange};

use super::days::DayRows;
use super::grid::{Flags, Grid, Tally};

#[derive(Debug)]
pub(super) struct Columns {
    grid: Grid,
    /// Week or month that may get more rows. Bounded by a month of minutes, 2.5 MB.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    stamp: Millis,
    trading_date: Date,
    tally: Tally,
    rows: Frame,
}

/// Buckets of one call, before they become a frame.
#[derive(Debug, Default)]
struct Part {
    bars: Bars,
    flags: BucketFrame,
}

impl Part {
    fn flag(&mut self, flags: Flags, date: Date) {
        self.flags.closed.push(flags.closed);
        self.flags.complete.push(flags.complete);
        self.flags.source_count.push(flags.source_count);
        self.flags.expected_count.push(flags.expected_count);
        self.flags.trading_date.push(date);
    }

    fn append_to(self, out: &mut BucketFrame) -> market::Result<()> {
        let Part { bars, mut flags } = self;
        let ohlcv = [bars.open, bars.high, bars.low, bars.close, bars.volume];
        flags.frame = Frame::from_columns(bars.open_time, ohlcv, bars.open_interest)?;
        if out.is_empty() {
            *out = flags;
            return Ok(());
        }
        out.append(&flags)
    }
}

impl Columns {
    pub(super) fn new(grid: Grid) -> Self {
        Self { grid, open: None }
    }

    /// Buckets narrower than a date: cut at the anchor's multiples.
    fn fold_inside(&self, day: &DayRows, width: Millis, part: &mut Part) {
        let from = part.bars.len();
        let rows = columns(&day.rows);
        resample_day_into(rows, day.day.anchor, width, day.day.start, &mut part.bars);
        let sessions: Vec<(Millis, Millis)> =
            day.day.sessions.iter().map(|session| (session.open, session.close)).collect();
        let hours = Hours {
            start: day.day.start,
            end: day.day.end,
            anchor: day.day.anchor,
            width_ms: width,
            source_ms: day.source.width_ms().unwrap_or(width),
            sessions: &sessions,
            now: self.grid.now,
        };
        let out = &mut part.flags;
        let mut flags = resample::Flags {
            closed: std::mem::take(&mut out.closed),
            complete: std::mem::take(&mut out.complete),
            expected_count: std::mem::take(&mut out.expected_count),
        };
        flag_day_into(rows.open_time, &part.bars, from, &hours, &mut flags);
        (out.closed, out.complete, out.expected_count) = (flags.closed, flags.complete, flags.expected_count);
        out.source_count.extend_from_slice(&part.bars.source_count[from..]);
        out.trading_date.resize(part.bars.len(), day.day.date);
    }

    fn fold_whole(&self, day: &DayRows, part: &mut Part) {
        let bucket = self.grid.bucket(&day.day, day.day.anchor);
        resample_whole_into(columns(&day.rows), self.grid.stamp(&day.day, day.day.anchor), &mut part.bars);
        part.flag(self.flags_of(day, bucket, day.rows.open_time()), day.day.date);
    }

    /// Buckets of several dates: their rows are gathered, then folded in one run.
    fn gather(&mut self, day: &DayRows, part: &mut Part) -> market::Result<()> {
        if self.open.as_ref().is_some_and(|open| open.tally.range.end() <= day.day.start) {
            self.close(part);
        }
        let grid = &self.grid;
        let open = self.open.get_or_insert_with(|| {
            let stamp = grid.stamp(&day.day, day.day.anchor);
            Open {
                stamp,
                trading_date: grid.trading_date(&day.day, stamp),
                tally: Tally::new(grid.bucket(&day.day, day.day.anchor)),
                rows: Frame::default(),
            }
        });
        open.rows.append(&day.rows)?;
        let counting = counting(grid, day, open.tally.range, day.rows.open_time());
        grid.count(&mut open.tally, &day.day, day.source, count(day.rows.len()), counting);
        Ok(())
    }

    fn close(&mut self, part: &mut Part) {
        if let Some(open) = self.open.take() {
            resample_whole_into(columns(&open.rows), open.stamp, &mut part.bars);
            part.flag(self.grid.settle(&open.tally), open.trading_date);
        }
    }

    /// Flags of a bucket inside one date, given the times of its rows.
    fn flags_of(&self, day: &DayRows, bucket: TimeRange, times: &[Millis]) -> Flags {
        let closed = bucket.end() <= self.grid.now;
        let expected_count = self.grid.expected(&day.day, day.source, bucket);
        let counting = counting(&self.grid, day, bucket, times);
        Flags {
            closed,
            complete: closed && counting >= expected_count,
            source_count: count(times.len()),
            expected_count,
        }
    }
}

impl super::Engine for Columns {
    fn fold(&mut self, days: &[DayRows], out: &mut BucketFrame) -> market::Result<()> {
        let mut part = Part::default();
        for day in days.iter().filter(|day| !day.rows.is_empty()) {
            match self.grid.timeframe.width_ms() {
                Some(width) => self.fold_inside(day, width, &mut part),
                None if self.grid.spans_dates() => self.gather(day, &mut part)?,
                None => self.fold_whole(day, &mut part),
            }
        }
        part.append_to(out)
    }

    fn finish(&mut self, out: &mut BucketFrame) -> market::Result<()> {
        let mut part = Part::default();
        self.close(&mut part);
        part.append_to(out)
    }

    fn indicators(&self, specs: &[Spec], inputs: &Inputs<'_>) -> Result<Vec<Column>, kernels::Error> {
        compute_fused(specs, inputs)
    }
}

/// Rows that count towards completeness: those that touch a session, all where the bucket holds none.
fn counting(grid: &Grid, day: &DayRows, bucket: TimeRange, times: &[Millis]) -> u32 {
    if !grid.counts_session_only(&day.day, day.source, bucket) {
        return count(times.len());
    }
    let width = day.source.width_ms().unwrap_or(0);
    let (mut total, mut next) = (0, 0);
    for session in &day.day.sessions {
        // The common case, and the only one that costs nothing: all rows lie in the session.
        let is_inside = |at: &Millis| at + width > session.open && *at < session.close;
        if times.first().is_some_and(is_inside) && times.last().is_some_and(is_inside) {
            return count(times.len());
        }
        let from = times.partition_point(|at| at + width <= session.open).max(next);
        let to = times.partition_point(|at| *at < session.close).max(from);
        total += to - from;
        next = to;
    }
    count(total)
}

fn count(rows: usize) -> u32 {
    u32::try_from(rows).unwrap_or(u32::MAX)
}

fn columns(frame: &Frame) -> Day<'_> {
    Day {
        open_time: frame.open_time(),
        open: frame.open(),
        high: frame.high(),
        low: frame.low(),
        close: frame.close(),
        volume: frame.volume(),
        open_interest: frame.open_interest(),
    }
}

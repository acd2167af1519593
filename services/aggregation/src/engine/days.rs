//! Stored candles, trading date by trading date, each date from one source.
//!
//! A date is answered from its minutes where it has any, else from the coarsest stored timeframe that divides the one asked for. A week
//! or month without any minute is answered from the week or month as stored, where there is one. Frames are read as they come:
//! one date of each source is in memory at a time (one bucket where a stored week or month competes with its dates).

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use market::{Calendar, Candle, Frame, Millis, TimeRange, Timeframe, TradingDay};
use mesh::RemoteError;
use mesh::source::StoredFrames;

use super::{Aggregator, Error};
use crate::query::Query;

/// Furthest a vendor's daily stamp lies from its trading date: midnight UTC is the evening before in the Americas.
const STAMP_SHIFT_MS: Millis = 24 * 60 * 60 * 1000;

/// One trading date's candles of the source chosen for it.
#[derive(Debug)]
pub(super) struct DayRows {
    pub(super) day: TradingDay,
    pub(super) source: Timeframe,
    /// In order; candles of 1d and more are stamped by the calendar, whatever stamp they were stored with.
    pub(super) rows: Frame,
}

/// The dates of a range, merged from all sources.
#[derive(Debug)]
pub(super) struct Days {
    calendar: Arc<Calendar>,
    timeframe: Timeframe,
    revision: u64,
    /// Minutes, then from coarse to fine.
    sources: Vec<Source>,
    /// Weeks or months stored as such.
    whole: Option<Source>,
    /// First date of the bucket after the current one; used only beside `whole`.
    next: Option<DayRows>,
    ready: VecDeque<DayRows>,
}

impl Days {
    /// Opens the sources at one revision: that of the query, else the one current when the minutes are opened.
    ///
    /// `range` holds whole buckets and dates.
    pub(super) async fn open(
        aggregator: &Aggregator,
        query: &Query,
        calendar: &Arc<Calendar>,
        range: TimeRange,
    ) -> Result<Days, Error> {
        let timeframe = query.timeframe;
        let minutes = aggregator.stored.stored(&query.key, Timeframe::M1, range, query.revision).await?;
        let revision = minutes.revision;
        let mut days = Days {
            calendar: Arc::clone(calendar),
            timeframe,
            revision,
            sources: vec![Source::new(calendar, Timeframe::M1, range, minutes)],
            whole: None,
            next: None,
            ready: VecDeque::new(),
        };
        if timeframe == Timeframe::M1 {
            return Ok(days);
        }
        // Asked after the revision is pinned, so it names at least every source of that revision.
        let coverage = aggregator.master.coverage(&query.key).await?;
        let mut coarser: Vec<Timeframe> = coverage.into_iter().map(|item| item.timeframe).collect();
        coarser.retain(|source| *source != Timeframe::M1 && timeframe.divisible_by(*source));
        coarser.sort_unstable_by(|a, b| b.cmp(a));
        coarser.dedup();
        for source in coarser {
            let window = match source.width_ms() {
                Some(_) => range,
                None => TimeRange::new(range.start() - STAMP_SHIFT_MS, range.end() + STAMP_SHIFT_MS)
                    .map_err(Error::Stored)?,
            };
            let frames = aggregator.stored.stored(&query.key, source, window, Some(revision)).await?;
            let opened = Source::new(calendar, source, range, frames);
            match source > Timeframe::D1 {
                true => days.whole = Some(opened),
                false => days.sources.push(opened),
            }
        }
        Ok(days)
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The next date with candles.
    pub(super) async fn next(&mut self) -> Result<Option<DayRows>, Error> {
        if self.whole.is_some() && self.ready.is_empty() {
            self.choose_bucket().await?;
        }
        match self.whole {
            Some(_) => Ok(self.ready.pop_front()),
            None => self.next_date().await,
        }
    }

    /// The earliest date of all sources, from the first that has it.
    async fn next_date(&mut self) -> Result<Option<DayRows>, Error> {
        for source in &mut self.sources {
            source.fill().await?;
        }
        let dates = self.sources.iter().filter_map(|source| source.head.as_ref().map(|head| head.day.date));
        let Some(date) = dates.min() else { return Ok(None) };
        let mut chosen = None;
        for source in &mut self.sources {
            if let Some(head) = source.head.take_if(|head| head.day.date == date) {
                chosen.get_or_insert(head);
            }
        }
        Ok(chosen)
    }

    /// Makes the dates of the next week or month ready, or the candle stored for it.
    async fn choose_bucket(&mut self) -> Result<(), Error> {
        if self.next.is_none() {
            self.next = self.next_date().await?;
        }
        let Some(whole) = &mut self.whole else { return Ok(()) };
        whole.fill().await?;
        let (calendar, timeframe) = (Arc::clone(&self.calendar), self.timeframe);
        let start_of = |rows: &DayRows| calendar.bucket(&rows.day, timeframe, rows.day.anchor).start();
        let candidates = self.next.iter().chain(&whole.head).map(start_of);
        let Some(start) = candidates.min() else { return Ok(()) };
        let stored = whole.head.take_if(|head| start_of(head) == start);
        while let Some(day) = self.next.take_if(|day| start_of(day) == start) {
            self.ready.push_back(day);
            self.next = self.next_date().await?;
        }
        if let Some(stored) = stored
            && self.ready.iter().all(|day| day.source != Timeframe::M1)
        {
            self.ready = VecDeque::from([stored]);
        }
        Ok(())
    }
}

/// One source timeframe's frames, cut into trading dates.
struct Source {
    calendar: Arc<Calendar>,
    source: Timeframe,
    /// Rows outside are dropped; holds whole dates.
    range: TimeRange,
    frames: BoxStream<'static, Result<Frame, RemoteError>>,
    /// The frame being cut, and how many of its rows are gone.
    frame: Frame,
    taken: usize,
    last_open_time: Millis,
    /// Calendar's stamp of the newest stored day, week or month that was given.
    last_stamp: Millis,
    head: Option<DayRows>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Source {
    fn new(calendar: &Arc<Calendar>, source: Timeframe, range: TimeRange, stored: StoredFrames) -> Self {
        Self {
            calendar: Arc::clone(calendar),
            source,
            range,
            frames: stored.frames,
            frame: Frame::default(),
            taken: 0,
            last_open_time: Millis::MIN,
            last_stamp: Millis::MIN,
            head: None,
        }
    }

    /// Makes the next date the head, unless there is one.
    async fn fill(&mut self) -> Result<(), Error> {
        if self.head.is_none() {
            self.head = match self.source.width_ms() {
                Some(_) => self.next_rows().await?,
                None => self.next_candle().await?,
            };
        }
        Ok(())
    }

    /// The rows of the next date.
    async fn next_rows(&mut self) -> Result<Option<DayRows>, Error> {
        let Some(first) = self.peek().await? else { return Ok(None) };
        let day = self.calendar.day_at(first);
        let mut rows = Frame::default();
        let mut next = Some(first);
        while next.is_some_and(|at| at < day.end || rows.is_empty()) {
            let times = &self.frame.open_time()[self.taken..];
            let count = times.partition_point(|at| *at < day.end).max(1);
            if rows.is_empty() && self.taken == 0 && count == times.len() {
                rows = std::mem::take(&mut self.frame);
            } else {
                rows.append(&self.frame.slice(self.taken..self.taken + count)).map_err(Error::Stored)?;
                self.taken += count;
            }
            next = self.peek().await?;
        }
        Ok(Some(DayRows { day, source: self.source, rows }))
    }

    /// The next stored day, week or month, under the calendar's stamp. Of several with one stamp the last wins.
    async fn next_candle(&mut self) -> Result<Option<DayRows>, Error> {
        let mut found: Option<(TradingDay, Candle)> = None;
        while let Some(at) = self.peek().await? {
            let day = self.calendar.day(self.calendar.date_of_daily_stamp(at));
            let stamp = self.calendar.stamp(&day, self.source, day.anchor);
            if found.is_some() && stamp > self.last_stamp {
                break;
            }
            let candle = Candle { open_time: stamp, ..self.frame.candle(self.taken) };
            self.taken += 1;
            // A stamp that goes back is a second vendor's for a date that was given already.
            let is_current = stamp > self.last_stamp || (found.is_some() && stamp == self.last_stamp);
            if is_current && self.range.contains(stamp) {
                self.last_stamp = stamp;
                found = Some((day, candle));
            }
        }
        let Some((day, candle)) = found else { return Ok(None) };
        let mut rows = Frame::with_capacity(1);
        rows.push(&candle).map_err(Error::Stored)?;
        Ok(Some(DayRows { day, source: self.source, rows }))
    }

    /// Open time of the next row, which is `frame[taken]`.
    async fn peek(&mut self) -> Result<Option<Millis>, Error> {
        while self.taken >= self.frame.len() {
            let Some(frame) = self.frames.next().await else { return Ok(None) };
            self.frame = self.within(frame?)?;
            self.taken = 0;
        }
        Ok(Some(self.frame.open_time()[self.taken]))
    }

    /// Checks that a frame comes after the one before, and drops rows that were not asked for.
    fn within(&mut self, frame: Frame) -> Result<Frame, Error> {
        let (Some(first), Some(last)) = (frame.open_time().first(), frame.open_time().last()) else {
            return Ok(frame);
        };
        if *first <= self.last_open_time {
            return Err(Error::Stored(market::Error::Frame("stored frames overlap".into())));
        }
        self.last_open_time = *last;
        if self.source.width_ms().is_none() || (self.range.contains(*first) && self.range.contains(*last)) {
            return Ok(frame);
        }
        Ok(frame.slice(frame.rows_between(self.range.start(), self.range.end())))
    }
}

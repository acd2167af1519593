//! What is missing of the session minutes, by trading date of the calendar.
//!
//! The stored minutes are streamed once, a chunk of dates in memory at a time, and every date of the range is counted; only the page
//! asked for is listed.

use std::sync::Arc;

use market::{Calendar, Date, InstrumentKey, Millis, TimeRange, Timeframe, TradingDay};

use super::days::{DayRows, Days};
use super::{Aggregator, CHUNK_DATES, Error};
use crate::query::Query;

const MINUTE_MS: Millis = 60_000;
/// Gaps listed of one date: more than a thinly traded share has, and a page of a thousand dates stays inside a message.
const MAX_GAPS_PER_DATE: usize = 500;

/// Which gaps to list.
#[derive(Debug, Clone)]
pub(crate) struct GapsQuery {
    pub(crate) key: InstrumentKey,
    /// An open bound is the first or the last stored minute.
    pub(crate) range: TimeRange,
    /// Shorter gaps are counted and not listed.
    pub(crate) min_minutes: u32,
    pub(crate) page_size: usize,
    /// Last date of the page before, and the revision of its answer.
    pub(crate) after: Option<(Date, u64)>,
}

/// Missing minutes of one trading date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DateGaps {
    pub(crate) date: Date,
    pub(crate) expected_minutes: u32,
    pub(crate) present_minutes: u32,
    pub(crate) gaps: Vec<TimeRange>,
    pub(crate) is_cut: bool,
}

/// A page of dates, and the totals of the whole range.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct GapsReport {
    pub(crate) dates: Vec<DateGaps>,
    pub(crate) has_more: bool,
    pub(crate) date_count: u32,
    pub(crate) complete_date_count: u32,
    pub(crate) expected_minutes: u64,
    pub(crate) present_minutes: u64,
    pub(crate) outside_minutes: u64,
    /// Dates outside the years that the calendar knows.
    pub(crate) unverified_date_count: u32,
    pub(crate) calendar: String,
    pub(crate) revision: u64,
}

impl Aggregator {
    pub(crate) async fn gaps(&self, query: GapsQuery, now: Millis) -> Result<GapsReport, Error> {
        let calendar = self.calendar(&query.key).await?;
        let minutes = Query {
            revision: query.after.map(|(_, revision)| revision),
            ..Query::raw(query.key.clone(), Timeframe::M1, query.range)
        };
        let Some(range) = self.bounds(&query, now).await? else {
            let revision = self.revision(&minutes).await?;
            return Ok(GapsReport { calendar: calendar.name().to_owned(), revision, ..Default::default() });
        };
        let mut days = Days::open(self, &minutes, &calendar, range).await?;
        let mut count = Count::new(calendar, range, query);
        count.report.revision = days.revision();
        loop {
            let (mut chunk, mut rows): (Vec<DayRows>, usize) = (Vec::new(), 0);
            while rows < self.config.chunk_rows.max(1) && chunk.len() < CHUNK_DATES {
                let Some(day) = days.next().await? else { break };
                rows += day.rows.len();
                chunk.push(day);
            }
            let is_read = chunk.is_empty();
            let work = move || {
                chunk.iter().for_each(|day| count.add(&day.day, day.rows.open_time()));
                if is_read {
                    count.finish();
                }
                count
            };
            count = self.pool.run(work).await?;
            if is_read {
                return Ok(count.report);
            }
        }
    }

    /// The minutes that are looked at: those asked for, as far as data exists where that is open, and only what has passed by `now`.
    async fn bounds(&self, query: &GapsQuery, now: Millis) -> Result<Option<TimeRange>, Error> {
        let (mut start, mut end) = (query.range.start(), query.range.end());
        if start == TimeRange::ALL.start() || end == TimeRange::ALL.end() {
            let coverage = self.master.coverage(&query.key).await?;
            let Some(minutes) = coverage.iter().find(|item| item.timeframe == Timeframe::M1) else { return Ok(None) };
            if start == TimeRange::ALL.start() {
                start = minutes.first_open_time;
            }
            if end == TimeRange::ALL.end() {
                end = minutes.last_open_time + MINUTE_MS;
            }
        }
        // Minutes whose open time lies in the range, and whose end has passed.
        let whole = |at: Millis| at.div_euclid(MINUTE_MS) * MINUTE_MS;
        let (start, end) = (whole(start + MINUTE_MS - 1), whole(end + MINUTE_MS - 1).min(whole(now)));
        Ok(TimeRange::new(start, end).ok())
    }
}

/// Counts dates in order.
#[derive(Debug)]
struct Count {
    calendar: Arc<Calendar>,
    range: TimeRange,
    min_ms: Millis,
    page_size: usize,
    after: Option<Date>,
    /// First date that is not counted yet.
    next: Date,
    report: GapsReport,
}

impl Count {
    fn new(calendar: Arc<Calendar>, range: TimeRange, query: GapsQuery) -> Self {
        let report = GapsReport { calendar: calendar.name().to_owned(), ..Default::default() };
        Self {
            next: calendar.day_at(range.start()).date,
            calendar,
            range,
            min_ms: Millis::from(query.min_minutes.max(1)) * MINUTE_MS,
            page_size: query.page_size,
            after: query.after.map(|(date, _)| date),
            report,
        }
    }

    /// Adds a date with minutes, and the dates without before it.
    fn add(&mut self, day: &TradingDay, times: &[Millis]) {
        if let Ok(before) = day.date.yesterday() {
            self.add_empty(before);
        }
        self.count(day, times);
        if let Ok(next) = day.date.tomorrow() {
            self.next = next;
        }
    }

    /// Adds the dates without minutes that are left.
    fn finish(&mut self) {
        self.add_empty(self.calendar.day_at(self.range.end() - 1).date);
    }

    fn add_empty(&mut self, last: Date) {
        for date in self.calendar.trading_dates(self.next, last) {
            let day = self.calendar.day(date);
            self.count(&day, &[]);
        }
    }

    fn count(&mut self, day: &TradingDay, times: &[Millis]) {
        let (mut expected, mut present) = (0, 0);
        let mut gaps = Gaps { min_ms: self.min_ms, listed: Vec::new(), is_cut: false };
        for session in &day.sessions {
            let (open, close) = (session.open.max(self.range.start()), session.close.min(self.range.end()));
            if open >= close {
                continue;
            }
            let from = times.partition_point(|at| *at < open);
            let to = times.partition_point(|at| *at < close).max(from);
            expected += (close - open) / MINUTE_MS;
            present += to - from;
            let mut next = open;
            for at in &times[from..to] {
                gaps.add(next, *at);
                next = at + MINUTE_MS;
            }
            gaps.add(next, close);
        }
        let report = &mut self.report;
        report.outside_minutes += (times.len() - present) as u64;
        if expected == 0 {
            return;
        }
        let (expected_minutes, present_minutes) = (expected as u32, present as u32);
        report.date_count += 1;
        report.complete_date_count += u32::from(present_minutes >= expected_minutes);
        report.expected_minutes += u64::from(expected_minutes);
        report.present_minutes += u64::from(present_minutes);
        report.unverified_date_count += u32::from(!self.calendar.known_years().contains(&day.date.year()));
        if gaps.listed.is_empty() || self.after.is_some_and(|after| day.date <= after) {
            return;
        }
        if report.dates.len() == self.page_size {
            report.has_more = true;
            return;
        }
        let Gaps { listed, is_cut, .. } = gaps;
        report.dates.push(DateGaps { date: day.date, expected_minutes, present_minutes, gaps: listed, is_cut });
    }
}

/// The gaps of one date that are long enough.
#[derive(Debug)]
struct Gaps {
    min_ms: Millis,
    listed: Vec<TimeRange>,
    is_cut: bool,
}

impl Gaps {
    fn add(&mut self, start: Millis, end: Millis) {
        if end - start < self.min_ms {
            return;
        }
        let Ok(gap) = TimeRange::new(start, end) else { return };
        match self.listed.len() < MAX_GAPS_PER_DATE {
            true => self.listed.push(gap),
            false => self.is_cut = true,
        }
    }
}

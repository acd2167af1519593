//! Splits and dividends, put on candles as they are read.
//!
//! Factors are put on the stored rows of a trading date before an engine folds them. Inside a date there is one factor, and
//! dividing or multiplying by a positive number keeps the order of prices, so open, high, low and close equal those of adjusting the
//! answered candle, to the bit; but a week or month that holds an ex-date is right only this way. A stored week or month that
//! competes with no dates has one factor, that of the date it is stamped with.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use market::{ActionKind, Adjustment, Calendar, Date, Factors, Millis, TimeRange, Timeframe};

use super::days::{DayRows, Days};
use super::{Aggregator, Error, grid};
use crate::query::Query;

const DAY_MS: Millis = 24 * 60 * 60 * 1000;
/// How far before an ex-date its close is looked for: first over any holidays, then as far as a close says something of the ex-date.
const CLOSE_WINDOWS_DAYS: [Millis; 2] = [8, 40];
/// Closes looked up at the same time, each a read of a few days.
const LOOKUPS: usize = 4;

impl Aggregator {
    /// The factors of a query's candles over a range, by the actions known and in force at `now` and the closes of `revision`.
    ///
    /// An action is in force from the trading date of its ex-date on: before, the shares still trade as they were.
    ///
    /// Cost: one call for the actions, and a read of some days for each dividend later than the range's start.
    pub(super) async fn factors(
        &self,
        query: &Query,
        calendar: &Arc<Calendar>,
        range: TimeRange,
        revision: u64,
        now: Millis,
    ) -> Result<Factors, Error> {
        // Before anything was stored there is nothing to adjust, and no revision to read closes at.
        if query.adjustment == Adjustment::Raw || revision == 0 {
            return Ok(Factors::default());
        }
        let refused = |source| Error::Adjustment { key: query.key.clone(), source };
        let (first, today) = (calendar.day_at(range.start()).date, calendar.day_at(now).date);
        let mut actions = self.master.corporate_actions(&query.key).await?;
        actions.retain(|action| action.ex_date > first && action.ex_date <= today && query.adjustment.counts(action));
        let dividends = actions.iter().filter(|action| action.kind() == ActionKind::Dividend);
        // Collected first: the borrow checker cannot follow a closure that borrows through a buffered stream.
        let lookups: Vec<_> = dividends
            .map(|action| async move {
                let close = self.close_before(query, calendar, action.ex_date, revision).await?;
                Ok::<_, Error>((action.ex_date, close))
            })
            .collect();
        let closes: BTreeMap<Date, Option<f64>> =
            futures::stream::iter(lookups).buffered(LOOKUPS).try_collect().await?;
        Factors::new(&actions, query.adjustment, |date| closes.get(&date).copied().flatten()).map_err(refused)
    }

    /// Raw close of the session before an ex-date; `None` where no candle is stored before it.
    async fn close_before(
        &self,
        query: &Query,
        calendar: &Arc<Calendar>,
        ex_date: Date,
        revision: u64,
    ) -> Result<Option<f64>, Error> {
        let end = calendar.day(ex_date).start;
        let mut start = end;
        for days in CLOSE_WINDOWS_DAYS {
            start = calendar.day_at(end - days * DAY_MS).start;
            let Ok(window) = TimeRange::new(start, end) else { return Ok(None) };
            let daily = Query { timeframe: Timeframe::D1, revision: Some(revision), ..query.clone() };
            let mut dates = Days::open(self, &daily, calendar, window).await?;
            let mut close = None;
            while let Some(day) = dates.next().await? {
                close = session_close(&day).or(close);
            }
            if close.is_some() {
                return Ok(close);
            }
        }
        let coverage = self.master.coverage(&query.key).await?;
        match coverage.iter().any(|item| item.first_open_time < start) {
            true => Err(Error::NoCloseBefore { key: query.key.clone(), ex_date }),
            false => Ok(None),
        }
    }
}

/// The last close inside the date's sessions; of a date with none inside, its last.
fn session_close(day: &DayRows) -> Option<f64> {
    let times = day.rows.open_time();
    let inside = times.iter().rposition(|at| grid::is_in_session(&day.day, day.source, *at));
    let row = inside.or_else(|| times.len().checked_sub(1))?;
    day.rows.close().get(row).copied()
}

/// Puts each date's factor on its rows.
pub(super) fn adjust(days: &mut [DayRows], factors: &Factors) -> market::Result<()> {
    for day in days {
        if let Some(factor) = factors.at(day.day.date) {
            day.rows.adjust(factor)?;
        }
    }
    Ok(())
}

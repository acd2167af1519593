//! Several timeframes of one instrument from one reading of its minutes.

use std::sync::Arc;

use market::{Millis, TimeRange, Timeframe};
use proto::convert::FieldError;

use super::adjust::adjust;
use super::answer::{Answer, SOURCE_ROWS, check_values};
use super::days::{DayRows, Days};
use super::{Aggregator, Batch, CHUNK_DATES, Error, Grid, whole_buckets};
use crate::query::Query;

impl Aggregator {
    /// Answers to queries that differ in nothing but their timeframe, in their order and at one revision; all together have at most
    /// `limit` candles, and hold at most the history of one answer for their indicators.
    ///
    /// The minutes are read once for all of them. Where other timeframes are stored beside them, the source of a date depends on the
    /// timeframe asked for, and each query reads for itself.
    pub(crate) async fn collect_all(
        &self,
        choice: rollout::Engine,
        queries: &[Query],
        now: Millis,
        limit: usize,
    ) -> Result<Vec<(u64, Batch)>, Error> {
        let Some(first) = queries.first() else { return Ok(Vec::new()) };
        let calendar = self.calendar(&first.key).await?;
        let from = if first.indicators.is_empty() { first.range.start() } else { TimeRange::ALL.start() };
        let mut range: Option<TimeRange> = None;
        for query in queries {
            let whole = whole_buckets(&calendar, query.timeframe, from, query.range.end());
            let whole = whole.map_err(|error| FieldError::new("range", error))?;
            let (start, end) = range.map_or((whole.start(), whole.end()), |range| {
                (range.start().min(whole.start()), range.end().max(whole.end()))
            });
            range = TimeRange::new(start, end).ok();
        }
        let range = range.unwrap_or(first.range);
        let minutes = Query { timeframe: Timeframe::M1, ..first.clone() };
        let mut days = Days::open(self, &minutes, &calendar, range).await?;
        let revision = days.revision();
        // Asked after the revision is pinned, so it names at least every source of that revision.
        let coverage = self.master.coverage(&first.key).await?;
        if coverage.iter().any(|item| item.timeframe != Timeframe::M1) {
            return self.one_by_one(choice, queries, revision, now, limit).await;
        }
        let factors = self.factors(first, &calendar, range, revision, now).await?;
        let fed = |query: &Query| {
            let grid = Grid { calendar: Arc::clone(&calendar), timeframe: query.timeframe, now };
            Answer::fed(self, choice, grid, query.clone(), revision, limit)
        };
        let specs = Arc::clone(&first.indicators);
        let mut answers: Vec<Answer> = queries.iter().map(fed).collect();
        let mut is_last = false;
        while !is_last {
            let (mut chunk, mut rows): (Vec<DayRows>, usize) = (Vec::new(), 0);
            while rows < self.config.chunk_rows.max(1) && chunk.len() < CHUNK_DATES && !is_last {
                match days.next().await? {
                    Some(day) => {
                        rows += day.rows.len();
                        chunk.push(day);
                    }
                    None => is_last = true,
                }
            }
            metrics::counter!(SOURCE_ROWS, "engine" => choice.as_str()).increment(rows as u64);
            if !factors.is_empty() {
                let (factors, key) = (factors.clone(), first.key.clone());
                let adjusted = move || adjust(&mut chunk, &factors).map(|()| chunk);
                let adjusted = self.pool.run(adjusted).await?;
                chunk = adjusted.map_err(|source| Error::Adjustment { key, source })?;
            }
            let chunk = Arc::new(chunk);
            let (mut rows, mut candles) = (0, 0);
            for answer in &mut answers {
                let held = answer.feed(Arc::clone(&chunk), is_last).await?;
                rows += held.rows;
                candles += held.in_range;
                check_values(rows, &specs, self.config.max_history_values)?;
            }
            if candles > limit {
                return Err(Error::TooManyCandles { limit });
            }
        }
        let mut batches = Vec::with_capacity(answers.len());
        for answer in &mut answers {
            answer.finish().await?;
            batches.push((revision, answer.rest().await?));
        }
        Ok(batches)
    }

    /// One query after the other, so that the history of one at a time is held.
    async fn one_by_one(
        &self,
        choice: rollout::Engine,
        queries: &[Query],
        revision: u64,
        now: Millis,
        limit: usize,
    ) -> Result<Vec<(u64, Batch)>, Error> {
        let mut batches: Vec<(u64, Batch)> = Vec::with_capacity(queries.len());
        let mut left = limit;
        for query in queries {
            let query = Query { revision: Some(revision), ..query.clone() };
            let outcome = self.collect(choice, query, now, left).await.map_err(|error| match error {
                Error::TooManyCandles { .. } => Error::TooManyCandles { limit },
                other => other,
            })?;
            left -= outcome.1.len();
            batches.push(outcome);
        }
        Ok(batches)
    }
}

//! An answer as it is read: fold, indicators, cut to the range, gap filling, batches.
//!
//! Without indicators only a chunk of stored rows and a batch are in memory at a time; with indicators the candles up to the end of
//! the range are, within a limit. Reading waits on the async threads, everything else runs on the CPU pool.

use std::sync::Arc;
use std::time::Duration;

use kernels::indicator::{Inputs, Spec};
use market::{BucketFrame, Factors, InstrumentKey, TimeRange};
use mesh::CpuPool;
use mesh::flight::BATCH_ROWS;

use super::adjust::adjust;
use super::days::{DayRows, Days};
use super::fill::Fill;
use super::grid::Grid;
use super::{Aggregator, CHUNK_DATES, Engine, Error, engine};
use crate::query::Query;

/// Stored candles folded, by engine.
pub(super) const SOURCE_ROWS: &str = "candlemesh_aggregation_source_rows_total";
/// Candles answered, by engine.
const CANDLES: &str = "candlemesh_aggregation_candles_total";
/// How long a stream waits for room on a busy CPU pool, rather than break off in its middle; a unary answer does not wait.
const POOL_PATIENCE: Duration = Duration::from_secs(5);
/// Size of a bucket's row in values of 8 bytes, for the limit on values held.
const BUCKET_VALUES: usize = 9;

/// Candles with their indicator columns, aligned.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) buckets: BucketFrame,
    /// NaN where undefined, among them rows made by gap filling.
    pub(crate) columns: Vec<Vec<f64>>,
}

impl Batch {
    pub(crate) fn len(&self) -> usize {
        self.buckets.len()
    }

    pub(crate) fn append(&mut self, other: Batch) -> market::Result<()> {
        if self.len() == 0 {
            *self = other;
            return Ok(());
        }
        self.buckets.append(&other.buckets)?;
        self.columns.iter_mut().zip(other.columns).for_each(|(column, more)| column.extend(more));
        Ok(())
    }

    fn slice(&self, rows: std::ops::Range<usize>) -> Batch {
        let columns = self.columns.iter().map(|column| column[rows.clone()].to_vec()).collect();
        Batch { buckets: self.buckets.slice(rows), columns }
    }
}

/// A batch on its way out, and how many of its rows have left.
#[derive(Debug, Default)]
pub(super) struct Queued {
    pub(super) batch: Batch,
    pub(super) taken: usize,
}

/// Candles folded and not yet handed on, and those of them in the range.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub(super) rows: usize,
    pub(super) in_range: usize,
}

/// Where the rows of an answer come from.
#[derive(Debug)]
enum Rows {
    Read(Box<Days>),
    /// They are handed in, by whoever reads for several answers, at a revision.
    Fed(u64),
}

/// The part of an answer that moves to the pool and back.
#[derive(Debug)]
struct Work {
    engine: Box<dyn Engine>,
    /// Candles folded and not yet handed on.
    folded: BucketFrame,
    queued: Queued,
    fill: Option<Fill>,
    key: InstrumentKey,
    /// Of the trading dates before splits and dividends; none where candles are answered as stored.
    factors: Factors,
}

/// Candles of a query, in batches of at most [`BATCH_ROWS`].
#[derive(Debug)]
pub(crate) struct Answer {
    rows: Rows,
    /// Absent only after a task was lost, which ends the answer.
    work: Option<Work>,
    pool: Arc<CpuPool>,
    engine: &'static str,
    range: TimeRange,
    specs: Arc<[Spec]>,
    columns: usize,
    chunk_rows: usize,
    max_values: usize,
    /// Candles the answer may have, and has so far.
    limit: Option<usize>,
    count: usize,
    is_read: bool,
}

impl Answer {
    pub(super) fn new(
        aggregator: &Aggregator,
        choice: rollout::Engine,
        grid: Grid,
        query: Query,
        days: Days,
        factors: Factors,
        limit: Option<usize>,
    ) -> Self {
        Self::over(aggregator, choice, grid, query, Rows::Read(Box::new(days)), factors, limit)
    }

    /// An answer whose rows are handed in, adjusted, by [`Answer::feed`].
    pub(super) fn fed(
        aggregator: &Aggregator,
        choice: rollout::Engine,
        grid: Grid,
        query: Query,
        revision: u64,
        limit: usize,
    ) -> Self {
        Self::over(aggregator, choice, grid, query, Rows::Fed(revision), Factors::default(), Some(limit))
    }

    fn over(
        aggregator: &Aggregator,
        choice: rollout::Engine,
        grid: Grid,
        query: Query,
        rows: Rows,
        factors: Factors,
        limit: Option<usize>,
    ) -> Self {
        let fill = query.gap_fill.then(|| Fill::new(grid.clone()));
        let work = Work {
            engine: engine(choice, grid),
            folded: BucketFrame::default(),
            queued: Queued::default(),
            fill,
            key: query.key.clone(),
            factors,
        };
        Self {
            rows,
            work: Some(work),
            pool: Arc::clone(&aggregator.pool),
            engine: choice.as_str(),
            range: query.range,
            columns: query.columns().len(),
            specs: query.indicators,
            chunk_rows: aggregator.config.chunk_rows.max(1),
            max_values: aggregator.config.max_history_values,
            limit,
            count: 0,
            is_read: false,
        }
    }

    pub(crate) fn revision(&self) -> u64 {
        match &self.rows {
            Rows::Read(days) => days.revision(),
            Rows::Fed(revision) => *revision,
        }
    }

    /// All that is left, in one piece.
    pub(super) async fn rest(&mut self) -> Result<Batch, Error> {
        // An empty answer still has its columns.
        let mut all = Batch { columns: vec![Vec::new(); self.columns], ..Batch::default() };
        while let Some(batch) = self.next().await? {
            all.append(batch).map_err(Error::Stored)?;
        }
        Ok(all)
    }

    /// Takes dates in their order, and says what is held so far, which is for whoever feeds several answers to limit.
    pub(super) async fn feed(&mut self, days: Arc<Vec<DayRows>>, is_last: bool) -> Result<Held, Error> {
        self.is_read = is_last;
        self.on_pool(move |work| work.fold(&days, is_last)).await?;
        self.held()
    }

    /// Makes an answer of what was fed, once the last was.
    pub(super) async fn finish(&mut self) -> Result<(), Error> {
        match self.specs.is_empty() {
            true => self.read_batch().await,
            false => self.read_history().await,
        }
    }

    /// The next candles; never an empty batch.
    pub(crate) async fn next(&mut self) -> Result<Option<Batch>, Error> {
        loop {
            if self.work()?.has_queued() {
                let batch = self.emit().await?;
                self.count += batch.len();
                self.check_limit(self.count)?;
                metrics::counter!(CANDLES, "engine" => self.engine).increment(batch.len() as u64);
                return Ok(Some(batch));
            }
            if self.is_read {
                return Ok(None);
            }
            self.finish().await?;
        }
    }

    /// Copying a batch is quick enough for an async thread, filling gaps is not.
    async fn emit(&mut self) -> Result<Batch, Error> {
        match self.work()?.fill {
            Some(_) => self.on_pool(|work| Ok(work.emit())).await,
            None => Ok(self.work()?.emit()),
        }
    }

    /// Folds until there is a batch of candles, or no more rows.
    async fn read_batch(&mut self) -> Result<(), Error> {
        while !self.is_read && self.work()?.folded.len() < BATCH_ROWS {
            self.fold_chunk().await?;
        }
        let range = self.range;
        let work = self.work()?;
        let folded = std::mem::take(&mut work.folded);
        let rows = folded.frame.rows_between(range.start(), range.end());
        let buckets = if rows.len() == folded.len() { folded } else { folded.slice(rows) };
        work.queued = Queued { batch: Batch { buckets, columns: Vec::new() }, taken: 0 };
        Ok(())
    }

    /// Folds everything, then computes the columns.
    async fn read_history(&mut self) -> Result<(), Error> {
        let range = self.range;
        while !self.is_read {
            self.fold_chunk().await?;
            let held = self.held()?;
            check_values(held.rows, &self.specs, self.max_values)?;
            self.check_limit(held.in_range)?;
        }
        let specs = Arc::clone(&self.specs);
        self.on_pool(move |work| {
            let all = std::mem::take(&mut work.folded);
            let columns = computed(work.engine.as_ref(), &specs, &all)?;
            let rows = all.frame.rows_between(range.start(), range.end());
            let columns = columns.into_iter().map(|column| column[rows.clone()].to_vec()).collect();
            work.queued = Queued { batch: Batch { buckets: all.slice(rows), columns }, taken: 0 };
            Ok(())
        })
        .await
    }

    fn held(&mut self) -> Result<Held, Error> {
        let range = self.range;
        let frame = &self.work()?.folded.frame;
        Ok(Held { rows: frame.len(), in_range: frame.rows_between(range.start(), range.end()).len() })
    }

    /// Reads a chunk of dates and folds it.
    async fn fold_chunk(&mut self) -> Result<(), Error> {
        let (mut days, mut rows): (Vec<DayRows>, usize) = (Vec::new(), 0);
        while rows < self.chunk_rows && days.len() < CHUNK_DATES {
            let next = match &mut self.rows {
                Rows::Read(source) => source.next().await?,
                Rows::Fed(_) => None,
            };
            let Some(day) = next else {
                self.is_read = true;
                break;
            };
            rows += day.rows.len();
            days.push(day);
        }
        metrics::counter!(SOURCE_ROWS, "engine" => self.engine).increment(rows as u64);
        let is_read = self.is_read;
        self.on_pool(move |work| {
            adjust(&mut days, &work.factors).map_err(|source| Error::Adjustment { key: work.key.clone(), source })?;
            work.fold(&days, is_read)
        })
        .await
    }

    fn check_limit(&self, candles: usize) -> Result<(), Error> {
        match self.limit {
            Some(limit) if candles > limit => Err(Error::TooManyCandles { limit }),
            _ => Ok(()),
        }
    }

    fn work(&mut self) -> Result<&mut Work, Error> {
        self.work.as_mut().ok_or(Error::Pool(mesh::PoolError::ShuttingDown))
    }

    async fn on_pool<T, F>(&mut self, task: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut Work) -> Result<T, Error> + Send + 'static,
    {
        let Some(mut work) = self.work.take() else { return Err(mesh::PoolError::ShuttingDown.into()) };
        let run = move || {
            let outcome = task(&mut work);
            (work, outcome)
        };
        let (work, outcome) = match self.limit {
            Some(_) => self.pool.run(run).await?,
            None => self.pool.run_within(POOL_PATIENCE, run).await?,
        };
        self.work = Some(work);
        outcome
    }
}

impl Work {
    fn fold(&mut self, days: &[DayRows], is_last: bool) -> Result<(), Error> {
        self.engine.fold(days, &mut self.folded).map_err(Error::Stored)?;
        if is_last {
            self.engine.finish(&mut self.folded).map_err(Error::Stored)?;
        }
        Ok(())
    }

    fn has_queued(&self) -> bool {
        self.queued.taken < self.queued.batch.len()
    }

    /// The next batch of what is queued.
    fn emit(&mut self) -> Batch {
        let queued = &mut self.queued;
        if let Some(fill) = &mut self.fill {
            return fill.next(queued, BATCH_ROWS);
        }
        let rows = queued.taken..queued.batch.len().min(queued.taken + BATCH_ROWS);
        if rows.len() == queued.batch.len() {
            return std::mem::take(queued).batch;
        }
        queued.taken = rows.end;
        // Arrays of their own: the Flight encoder splits slices of a large one into tiny messages.
        queued.batch.slice(rows)
    }
}

/// Refuses to hold more values for indicators than the limit; candles without indicators have a limit of their own.
pub(super) fn check_values(rows: usize, specs: &[Spec], limit: usize) -> Result<(), Error> {
    // One that costs as much as several columns counts as so many.
    let columns: usize = specs.iter().map(Spec::cost).sum();
    match columns > 0 && rows * (columns + BUCKET_VALUES) > limit {
        true => Err(Error::HistoryTooLong { rows, columns, limit }),
        false => Ok(()),
    }
}

fn computed(engine: &dyn Engine, specs: &[Spec], buckets: &BucketFrame) -> Result<Vec<Vec<f64>>, Error> {
    let days: Vec<i32> = buckets.trading_date.iter().map(|date| proto::arrow::date32(*date)).collect();
    let frame = &buckets.frame;
    let inputs = Inputs::new(frame.open(), frame.high(), frame.low(), frame.close(), frame.volume(), &days);
    let columns = inputs.and_then(|inputs| engine.indicators(specs, &inputs)).map_err(Error::Kernel)?;
    Ok(columns.into_iter().map(|column| column.values).collect())
}

//! An answer as it is read: fold, indicators, cut to the range, gap filling, batches.
//!
//! Without indicators only a chunk of stored rows and a batch are in memory at a time; with indicators the candles up to the end of
//! the range are, within a limit. Reading waits on the async threads, everything else runs on the CPU pool.

use std::sync::Arc;

use kernels::indicator::{Inputs, Spec};
use market::{BucketFrame, TimeRange};
use mesh::CpuPool;
use mesh::flight::BATCH_ROWS;

use super::days::{DayRows, Days};
use super::fill::Fill;
use super::grid::Grid;
use super::{Aggregator, Engine, Error, engine};
use crate::query::Query;

/// Stored candles folded, by engine.
const SOURCE_ROWS: &str = "candlemesh_aggregation_source_rows_total";
/// Candles answered, by engine.
const CANDLES: &str = "candlemesh_aggregation_candles_total";
/// Trading dates of one task: a date costs more than its rows where a candle is all it has.
const CHUNK_DATES: usize = 512;
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

/// The part of an answer that moves to the pool and back.
#[derive(Debug)]
struct Work {
    engine: Box<dyn Engine>,
    /// Candles folded and not yet handed on.
    folded: BucketFrame,
    queued: Queued,
    fill: Option<Fill>,
}

/// Candles of a query, in batches of at most [`BATCH_ROWS`].
#[derive(Debug)]
pub(crate) struct Answer {
    days: Days,
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
        limit: Option<usize>,
    ) -> Self {
        let fill = query.gap_fill.then(|| Fill::new(grid.clone()));
        let work =
            Work { engine: engine(choice, grid), folded: BucketFrame::default(), queued: Queued::default(), fill };
        Self {
            days,
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
        self.days.revision()
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
            match self.specs.is_empty() {
                true => self.read_batch().await?,
                false => self.read_history().await?,
            }
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
        let (range, columns, limit) = (self.range, self.columns, self.max_values);
        while !self.is_read {
            self.fold_chunk().await?;
            let frame = &self.work()?.folded.frame;
            let (rows, in_range) = (frame.len(), frame.rows_between(range.start(), range.end()).len());
            if rows * (columns + BUCKET_VALUES) > limit {
                return Err(Error::HistoryTooLong { rows, columns, limit });
            }
            self.check_limit(in_range)?;
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

    /// Reads a chunk of dates and folds it.
    async fn fold_chunk(&mut self) -> Result<(), Error> {
        let (mut days, mut rows): (Vec<DayRows>, usize) = (Vec::new(), 0);
        while rows < self.chunk_rows && days.len() < CHUNK_DATES {
            let Some(day) = self.days.next().await? else {
                self.is_read = true;
                break;
            };
            rows += day.rows.len();
            days.push(day);
        }
        metrics::counter!(SOURCE_ROWS, "engine" => self.engine).increment(rows as u64);
        let is_read = self.is_read;
        self.on_pool(move |work| {
            work.engine.fold(&days, &mut work.folded).map_err(Error::Stored)?;
            if is_read {
                work.engine.finish(&mut work.folded).map_err(Error::Stored)?;
            }
            Ok(())
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
        let (work, outcome) = self.pool.run(run).await?;
        self.work = Some(work);
        outcome
    }
}

impl Work {
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

fn computed(engine: &dyn Engine, specs: &[Spec], buckets: &BucketFrame) -> Result<Vec<Vec<f64>>, Error> {
    let days: Vec<i32> = buckets.trading_date.iter().map(|date| proto::arrow::date32(*date)).collect();
    let frame = &buckets.frame;
    let inputs = Inputs::new(frame.open(), frame.high(), frame.low(), frame.close(), frame.volume(), &days);
    let columns = inputs.and_then(|inputs| engine.indicators(specs, &inputs)).map_err(Error::Kernel)?;
    Ok(columns.into_iter().map(|column| column.values).collect())
}

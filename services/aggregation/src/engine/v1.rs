//! Engine V1, the reference: row by row, one map from bucket to accumulator.

use std::collections::BTreeMap;

use kernels::indicator::{Column, Inputs, Spec, compute_fold};
use market::{BucketFrame, Candle, Date, Millis, TimeRange};

use super::days::DayRows;
use super::grid::{self, Grid, Tally};

#[derive(Debug)]
pub(super) struct Rows {
    grid: Grid,
    /// By start of the bucket.
    buckets: BTreeMap<Millis, Accumulator>,
}

#[derive(Debug)]
struct Accumulator {
    candle: Candle,
    trading_date: Date,
    tally: Tally,
    /// Rows of the date being folded, and those of them that count towards completeness.
    rows: u32,
    counting: u32,
}

impl Rows {
    pub(super) fn new(grid: Grid) -> Self {
        Self { grid, buckets: BTreeMap::new() }
    }

    fn fold_day(&mut self, day: &DayRows, out: &mut BucketFrame) -> market::Result<()> {
        self.emit(day.day.start, out)?;
        let mut bucket: Option<(TimeRange, bool)> = None;
        for candle in day.rows.candles() {
            let (range, session_only) = match bucket {
                Some(bucket) if bucket.0.contains(candle.open_time) => bucket,
                _ => {
                    let range = self.grid.bucket(&day.day, candle.open_time);
                    (range, self.grid.counts_session_only(&day.day, day.source, range))
                }
            };
            bucket = Some((range, session_only));
            let counts = !session_only || grid::is_in_session(&day.day, day.source, candle.open_time);
            let accumulator = self
                .buckets
                .entry(range.start())
                .and_modify(|accumulator| accumulator.add(&candle))
                .or_insert_with(|| Accumulator::new(&self.grid, day, range, candle));
            accumulator.rows += 1;
            accumulator.counting += u32::from(counts);
        }
        for accumulator in self.buckets.values_mut().filter(|accumulator| accumulator.rows > 0) {
            let (rows, counting) = (accumulator.rows, accumulator.counting);
            self.grid.count(&mut accumulator.tally, &day.day, day.source, rows, counting);
            (accumulator.rows, accumulator.counting) = (0, 0);
        }
        Ok(())
    }

    /// Appends the buckets that end by `at`.
    fn emit(&mut self, at: Millis, out: &mut BucketFrame) -> market::Result<()> {
        while let Some(entry) = self.buckets.first_entry()
            && entry.get().tally.range.end() <= at
        {
            let done = entry.remove();
            grid::push(out, &done.candle, self.grid.settle(&done.tally), done.trading_date)?;
        }
        Ok(())
    }
}

impl Accumulator {
    fn new(grid: &Grid, day: &DayRows, range: TimeRange, first: Candle) -> Self {
        let stamp = grid.stamp(&day.day, first.open_time);
        Self {
            candle: Candle { open_time: stamp, ..first },
            trading_date: grid.trading_date(&day.day, stamp),
            tally: Tally::new(range),
            rows: 0,
            counting: 0,
        }
    }

    fn add(&mut self, row: &Candle) {
        self.candle.high = if row.high > self.candle.high { row.high } else { self.candle.high };
        self.candle.low = if row.low < self.candle.low { row.low } else { self.candle.low };
        self.candle.close = row.close;
        self.candle.volume += row.volume;
        self.candle.open_interest = row.open_interest.or(self.candle.open_interest);
    }
}

impl super::Engine for Rows {
    fn fold(&mut self, days: &[DayRows], out: &mut BucketFrame) -> market::Result<()> {
        days.iter().try_for_each(|day| self.fold_day(day, out))
    }

    fn finish(&mut self, out: &mut BucketFrame) -> market::Result<()> {
        self.emit(Millis::MAX, out)
    }

    fn indicators(&self, specs: &[Spec], inputs: &Inputs<'_>) -> Result<Vec<Column>, kernels::Error> {
        compute_fold(specs, inputs)
    }
}

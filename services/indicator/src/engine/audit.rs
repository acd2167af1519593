//! Whether columns use the future or depend on how much history was loaded, on the instrument's own candles.

use std::sync::Arc;

use kernels::indicator::{Inputs, Spec, Verdict, audit, compute_fold_until, compute_fused_until};
use market::{BucketFrame, Millis, TimeRange};
use mesh::{Cancel, Priority};
use rollout::Engine;

use super::{Error, Indicators, Pinned, cost, days, pinned_revision};
use crate::query::Query;

/// Candles audited at most: a quarter of a year of minutes, computed once per cut.
const MAX_ROWS: usize = 20_000;
/// Cuts at each end.
const CUTS: usize = 8;

/// What was found, with the open times of the candles audited.
#[derive(Debug)]
pub(crate) struct Audited {
    pub(crate) revision: u64,
    pub(crate) open_time: Vec<Millis>,
    pub(crate) verdicts: Vec<Verdict>,
}

impl Indicators {
    /// Audits the newest candles of the query's range.
    #[tracing::instrument(level = "debug", skip_all, fields(instrument = %query.key, timeframe = %query.timeframe))]
    pub(crate) async fn audit(&self, engine: Engine, query: &Query) -> Result<Audited, Error> {
        let current = async { Ok(self.revisions(std::slice::from_ref(&query.key)).await?[0]) };
        let (current, calendar) = tokio::try_join!(current, self.calendar(&query.key))?;
        let revision = pinned_revision(query, current)?;
        if revision == 0 {
            return Ok(Audited { revision, open_time: Vec::new(), verdicts: Vec::new() });
        }
        let pinned = Pinned { query, revision, calendar, store: Arc::default() };
        // What came before the range is left out like any earlier beginning.
        let history = self.v1.history.between(&pinned, query.range).await?;
        self.v1.history.check(history.frame.len().min(MAX_ROWS) * (1 + 2 * CUTS), cost(&query.specs))?;
        let (specs, range) = (Arc::clone(&query.specs), query.range);
        let task = move |cancel: &Cancel| {
            let stop = || cancel.is_cancelled();
            let (open_time, verdicts) = audit_newest(engine, &specs, &history, range, &stop)?;
            Ok(Audited { revision, open_time, verdicts })
        };
        self.v1.pool.run_at(Priority::current(), task).await?
    }
}

/// Audits the newest rows of a range, for as long as `stop` says no. Blocks, for seconds where much is asked: for the CPU pool.
pub(super) fn audit_newest(
    engine: Engine,
    specs: &[Spec],
    history: &BucketFrame,
    range: TimeRange,
    stop: &dyn Fn() -> bool,
) -> Result<(Vec<Millis>, Vec<Verdict>), kernels::Error> {
    let (frame, day) = (&history.frame, days(history));
    let rows = frame.rows_between(range.start(), range.end());
    let rows = rows.start.max(rows.end.saturating_sub(MAX_ROWS))..rows.end;
    let of = |column: &'_ [f64]| column[rows.clone()].to_vec();
    let [open, high, low, close, volume] =
        [frame.open(), frame.high(), frame.low(), frame.close(), frame.volume()].map(of);
    let inputs = Inputs::new(&open, &high, &low, &close, &volume, &day[rows.clone()])?;
    let compute = |inputs: &Inputs<'_>| match engine {
        Engine::V1 => compute_fold_until(specs, inputs, stop),
        Engine::V2 => compute_fused_until(specs, inputs, stop),
    };
    let (ends, begins) = cuts(rows.len());
    let verdicts = audit(compute, &inputs, &ends, &begins)?;
    Ok((frame.open_time()[rows].to_vec(), verdicts))
}

/// Where histories end and begin: spread evenly, and close to the edge, where a slip of one row shows. Beginnings lie in the first half,
/// so that long windows fill behind them.
fn cuts(rows: usize) -> (Vec<usize>, Vec<usize>) {
    let ends = (1..CUTS).map(|index| index * rows / CUTS).chain([rows.saturating_sub(1)]).collect();
    let begins = [1].into_iter().chain((1..CUTS).map(|index| index * rows / (2 * CUTS))).collect();
    (ends, begins)
}

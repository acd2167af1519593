//! One trial: a parameter set judged on every instrument.

use std::ops::Range;

use kernels::backtest::{self, Outcome, Strategy};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use store::TrialRecord;

use super::data::Series;
use super::run::Failure;
use super::spec::{Objective, Spec};

/// Raised when the same specification and candles would give other figures: a change of the backtest kernels or of what is made of them.
pub(crate) const RESULT_REVISION: u32 = 1;

/// What rows of a series are judged for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    Train,
    Test,
}

/// Row ranges of a series that a trial is run over: all of it, then train and test of each fold.
pub(crate) fn parts(rows: usize, folds: usize) -> Vec<(Part, Range<usize>)> {
    let mut parts = vec![(Part::Whole, 0..rows)];
    for fold in backtest::folds(rows, folds) {
        parts.push((Part::Train, fold.train));
        parts.push((Part::Test, fold.test));
    }
    parts
}

/// Runs strategies over rows of one series: the unit of work on the CPU pool.
pub(crate) fn run_part(strategies: &[Strategy], series: &Series, rows: Range<usize>) -> Result<Vec<Outcome>, Failure> {
    backtest::run_many(strategies, &series.close, rows, &series.costs)
        .map_err(|source| Failure::Refused { key: series.key.clone(), source })
}

/// Figures of one trial, summed while instruments come in.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sums {
    objective: f64,
    total_return: f64,
    sharpe: f64,
    max_drawdown: f64,
    win_rate: f64,
    trades: f64,
    in_sample: f64,
    out_of_sample: f64,
}

impl Sums {
    pub(crate) fn add(&mut self, part: Part, objective: Objective, outcome: &Outcome) {
        let scored = objective.of(outcome);
        match part {
            Part::Train => self.in_sample += scored,
            Part::Test => self.out_of_sample += scored,
            Part::Whole => {
                self.objective += scored;
                self.total_return += outcome.total_return;
                self.sharpe += outcome.sharpe;
                self.max_drawdown += outcome.max_drawdown;
                self.win_rate += outcome.win_rate;
                self.trades += f64::from(outcome.trades);
            }
        }
    }
}

/// A trial's figures beside its objective, as stored: means over instruments, the walk-forward ones over folds too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) total_return: f64,
    pub(crate) sharpe: f64,
    pub(crate) max_drawdown: f64,
    pub(crate) win_rate: f64,
    /// Rounded.
    pub(crate) trade_count: u32,
    #[serde(flatten)]
    pub(crate) walk: Option<Walk>,
}

/// Walk-forward figures: the objective over the folds' train and test rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Walk {
    pub(crate) in_sample: f64,
    pub(crate) out_of_sample: f64,
    pub(crate) overfit: f64,
}

/// A trial as it is stored.
///
/// Errors: [`Failure::NotFinite`] where prices are so wild that a figure overflows; it would have no rank.
pub(crate) fn record(
    spec: &Spec,
    digest: &Sha256,
    number: u32,
    index: u64,
    sums: &Sums,
) -> Result<TrialRecord, Failure> {
    let instruments = spec.keys.len() as f64;
    let walk = (spec.folds > 0).then(|| {
        let parts = instruments * spec.folds as f64;
        let (in_sample, out_of_sample) = (sums.in_sample / parts, sums.out_of_sample / parts);
        // Next to nothing in sample would divide to infinity.
        let overfit = backtest::overfit(in_sample, out_of_sample).min(f64::MAX);
        Walk { in_sample, out_of_sample, overfit }
    });
    let figures = Figures {
        total_return: sums.total_return / instruments,
        sharpe: sums.sharpe / instruments,
        max_drawdown: sums.max_drawdown / instruments,
        win_rate: sums.win_rate / instruments,
        trade_count: (sums.trades / instruments).round() as u32,
        walk,
    };
    let objective = sums.objective / instruments;
    let Figures { total_return, sharpe, max_drawdown, win_rate, .. } = figures;
    let walked = figures.walk.iter().flat_map(|walk| [walk.in_sample, walk.out_of_sample, walk.overfit]);
    if ![objective, total_return, sharpe, max_drawdown, win_rate].into_iter().chain(walked).all(f64::is_finite) {
        return Err(Failure::NotFinite { number });
    }
    let parameters_json = parameters(spec, index).to_string();
    let content_hash = hex(&digest.clone().chain_update(&parameters_json).finalize());
    let result_json = serde_json::to_string(&figures).map_err(|error| Failure::Unreadable(error.to_string()))?;
    Ok(TrialRecord { number: u64::from(number), parameters_json, content_hash, objective, result_json })
}

/// Everything but the parameters that decides a trial's result, begun once per study.
pub(crate) fn digest(spec: &Spec, revisions: &[u64], data: &[Series]) -> Sha256 {
    let mut digest = Sha256::new();
    let mut add = |text: String| {
        digest.update(text.as_bytes());
        digest.update(b"\n");
    };
    let (range, objective) = (spec.range, spec.objective.name());
    add(format!("{RESULT_REVISION} {} {objective} {}", spec.space.family().name(), spec.timeframe));
    add(format!("{} {} {} {}", range.start(), range.end(), spec.folds, spec.fee_bp));
    for (series, revision) in data.iter().zip(revisions) {
        add(format!("{} {revision} {} {}", series.key, series.close.len(), series.costs.candles_per_year));
    }
    digest
}

fn parameters(spec: &Spec, index: u64) -> Value {
    let named = spec.space.family().parameters().iter().zip(spec.space.values(index));
    Value::Object(
        named.map(|(parameter, value)| (parameter.name.to_owned(), Value::from(value))).collect::<Map<_, _>>(),
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

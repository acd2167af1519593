//! The filter pipeline over a universe: universe, basic, ema, rsi, strong move.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use kernels::indicator::{Machine, Row as CandleRow, Spec};
use kernels::screen::{Row, ScreenParams, Side, Stage, Verdict, screen, step};
use market::{Date, Instrument, InstrumentKey, Timeframe};
use mesh::{CpuPool, Fault};
use tonic::Code;

use crate::engine::Error;
use crate::history::{Histories, History};
use crate::query::ScreenQuery;
use crate::{Config, Ports};

/// The stage before the kernel's: is there an instrument with fresh candles at all.
pub(crate) const UNIVERSE: &str = "universe";
/// Rows of the best-of list.
const TOP_ROWS: usize = 10;
/// Instruments screened, labelled `outcome` (bullish, bearish, rejected).
const SCREENED_TOTAL: &str = "candlemesh_screen_instruments_total";

/// An instrument that passed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hit {
    pub(crate) key: InstrumentKey,
    pub(crate) side: Side,
    /// Complete: figures of stages that were not run are there too, where there are candles enough.
    pub(crate) row: Row,
    /// ATR(14) at the last candle; `None` before it is defined.
    pub(crate) atr: Option<f64>,
}

/// An instrument that did not, and why.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rejection {
    pub(crate) key: InstrumentKey,
    pub(crate) stage: &'static str,
    pub(crate) reason: String,
    pub(crate) value: f64,
}

/// What one stage did to the instruments that reached it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StageCount {
    pub(crate) stage: &'static str,
    pub(crate) processed: u32,
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    /// Of those that passed, with the side they had by then.
    pub(crate) bullish: u32,
    pub(crate) bearish: u32,
    /// Summed over instruments; the universe stage's is the wait for candles.
    pub(crate) duration: Duration,
}

/// Outcome of a screen; every instrument is in exactly one list.
#[derive(Debug, Clone)]
pub(crate) struct Screened {
    /// `None` when no instrument has any candle.
    pub(crate) date: Option<Date>,
    /// By strong-move count, strength, then key.
    pub(crate) bullish: Vec<Hit>,
    pub(crate) bearish: Vec<Hit>,
    /// By key.
    pub(crate) rejected: Vec<Rejection>,
    pub(crate) stages: Vec<StageCount>,
}

#[derive(Debug)]
pub(crate) struct Pipeline {
    histories: Histories,
    pool: Arc<CpuPool>,
    concurrency: usize,
    max_stale_days: u32,
}

/// One instrument on its way.
#[derive(Debug)]
enum Member {
    Key(InstrumentKey),
    Known(Instrument),
}

/// One instrument's passage.
#[derive(Debug)]
struct Passage {
    key: InstrumentKey,
    last_date: Option<Date>,
    waited: Duration,
    /// The stages it went through; empty when it did not get past the universe.
    steps: Vec<Step>,
    outcome: Result<Hit, Rejection>,
}

#[derive(Debug)]
struct Step {
    took: Duration,
    side: Option<Side>,
    is_passed: bool,
}

impl Pipeline {
    pub(crate) fn new(histories: Histories, config: &Config, ports: &Ports) -> Self {
        Self {
            histories,
            pool: Arc::clone(&ports.pool),
            concurrency: config.screen_concurrency.max(1),
            max_stale_days: config.max_stale_days,
        }
    }

    /// Screens the universe or the named instruments with what was known at the end of the date.
    ///
    /// A fault of one instrument is its rejection; a fault that passes, such as an upstream that is down, is the whole request's.
    #[tracing::instrument(level = "debug", skip_all, fields(instruments))]
    pub(crate) async fn run(&self, query: &ScreenQuery) -> Result<Screened, Error> {
        let members: Vec<Member> = match &query.keys {
            Some(keys) => keys.iter().cloned().map(Member::Key).collect(),
            None => self.histories.universe().await?.into_iter().map(Member::Known).collect(),
        };
        tracing::Span::current().record("instruments", members.len());
        let params = Arc::new(query.params.clone());
        let mut passages: Vec<Passage> = stream::iter(members)
            .map(|member| self.pass(member, query.date, Arc::clone(&params)))
            .buffer_unordered(self.concurrency)
            .try_collect()
            .await?;
        passages.sort_by(|a, b| a.key.cmp(&b.key));
        let date = query.date.or_else(|| passages.iter().filter_map(|passage| passage.last_date).max());
        if let Some(date) = date {
            passages.iter_mut().for_each(|passage| refuse_stale(passage, date, self.max_stale_days));
        }
        Ok(sort_out(date, &query.params, passages))
    }

    /// The best rows of a screen, bullish and bearish together.
    pub(crate) async fn top(&self, query: &ScreenQuery) -> Result<(Option<Date>, Vec<Hit>), Error> {
        let screened = self.run(query).await?;
        let mut hits = ranked(screened.bullish.into_iter().chain(screened.bearish));
        hits.truncate(TOP_ROWS);
        Ok((screened.date, hits))
    }

    async fn pass(&self, member: Member, date: Option<Date>, params: Arc<ScreenParams>) -> Result<Passage, Error> {
        let started = Instant::now();
        let key = match &member {
            Member::Key(key) => key.clone(),
            Member::Known(instrument) => instrument.key.clone(),
        };
        let history = self.history(member, date).await;
        let waited = started.elapsed();
        let refuse = |reason| {
            let outcome = Err(Rejection { key: key.clone(), stage: UNIVERSE, reason, value: 0.0 });
            Passage { key: key.clone(), last_date: None, waited, steps: Vec::new(), outcome }
        };
        let history = match history {
            Ok(history) => history,
            Err(error) if is_own_fault(&error) => return Ok(refuse(error.to_string())),
            Err(error) => return Err(error),
        };
        if history.len() == 0 {
            let until = date.map_or_else(String::new, |date| format!(" up to {}", market::format_date(date)));
            return Ok(refuse(format!("no daily candles{until}")));
        }
        let last_date = history.last_date();
        let (steps, outcome) = self.pool.run(move || judge(&history, &params)).await??;
        Ok(Passage { key, last_date, waited, steps, outcome })
    }

    async fn history(&self, member: Member, date: Option<Date>) -> Result<History, Error> {
        let instrument = match member {
            Member::Key(key) => self.histories.instrument(&key).await?,
            Member::Known(instrument) => instrument,
        };
        Ok(self.histories.at_date(&instrument, Timeframe::D1, date).await?.0)
    }
}

/// Whether a fault lies with the instrument or its data, so that others are not concerned and a retry is no help.
fn is_own_fault(error: &Error) -> bool {
    match error {
        Error::UnknownInstrument(_) | Error::Calendar { .. } | Error::Limit { .. } => true,
        Error::Upstream(remote) => matches!(
            remote.code(),
            Code::NotFound
                | Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::OutOfRange
                | Code::DataLoss
                | Code::Internal
        ),
        _ => false,
    }
}

/// Blocks: for the CPU pool.
fn judge(history: &History, params: &ScreenParams) -> Result<(Vec<Step>, Result<Hit, Rejection>), Error> {
    let (key, candles) = (history.key.clone(), history.candles());
    let (mut steps, mut row) = (Vec::new(), Row::default());
    for stage in params.ordered_stages() {
        let started = Instant::now();
        let outcome = step(stage, &candles, params, &mut row);
        steps.push(Step { took: started.elapsed(), side: row.side, is_passed: outcome.is_ok() });
        if let Err(rejected) = outcome {
            let (stage, reason, value) = (stage.name(), rejected.reason, rejected.value);
            return Ok((steps, Err(Rejection { key, stage, reason, value })));
        }
    }
    // Without a stage that gives one, the kernel decides the side at the very end.
    let side = match (row.side, screen(&candles, params)) {
        (Some(side), _) => side,
        (None, Verdict::Passed(passed)) => passed.side,
        (None, Verdict::Rejected(rejected)) => {
            let (stage, reason, value) = (rejected.stage.name(), rejected.reason, rejected.value);
            return Ok((steps, Err(Rejection { key, stage, reason, value })));
        }
    };
    if let Some(last) = steps.last_mut() {
        last.side = Some(side);
    }
    let row = completed(row, side, &candles, params);
    Ok((steps, Ok(Hit { key, side, row, atr: last_atr(history)? })))
}

/// Fills in the figures of the stages that were not run; their verdicts do not count.
fn completed(row: Row, side: Side, candles: &kernels::sequence::Candles<'_>, params: &ScreenParams) -> Row {
    let mut complete = Row { side: Some(side), ..row };
    for stage in Stage::ALL.into_iter().filter(|stage| !params.stages.contains(stage)) {
        let mut scratch = Row { side: Some(side), ..complete };
        let _verdict = step(stage, candles, params, &mut scratch);
        complete = Row { side: Some(side), ..scratch };
    }
    complete
}

fn last_atr(history: &History) -> Result<Option<f64>, Error> {
    let spec: Spec = "atr:14".parse()?;
    let (mut machine, mut value) = (Machine::new(&spec), [f64::NAN]);
    for candle in history.buckets.frame.candles() {
        let (open, high, low, close) = (candle.open, candle.high, candle.low, candle.close);
        machine.push(&CandleRow { open, high, low, close, volume: candle.volume, day: 0 }, &mut value);
    }
    Ok(Some(value[0]).filter(|atr| atr.is_finite()))
}

fn refuse_stale(passage: &mut Passage, date: Date, max_stale_days: u32) {
    let Some(last) = passage.last_date else { return };
    let days = proto::arrow::date32(date) - proto::arrow::date32(last);
    if days <= max_stale_days as i32 {
        return;
    }
    let last = market::format_date(last);
    let reason = format!(
        "last candle is of {last}, {days} days before {}, more than {max_stale_days}",
        market::format_date(date)
    );
    passage.outcome = Err(Rejection { key: passage.key.clone(), stage: UNIVERSE, reason, value: f64::from(days) });
    passage.steps.clear();
}

fn sort_out(date: Option<Date>, params: &ScreenParams, passages: Vec<Passage>) -> Screened {
    let mut stages = vec![StageCount::new(UNIVERSE)];
    stages.extend(params.ordered_stages().into_iter().map(|stage| StageCount::new(stage.name())));
    let (mut hits, mut rejected) = (Vec::new(), Vec::new());
    for passage in passages {
        stages[0].count(passage.waited, None, !passage.steps.is_empty());
        for (step, stage) in passage.steps.iter().zip(&mut stages[1..]) {
            stage.count(step.took, step.side, step.is_passed);
        }
        match passage.outcome {
            Ok(hit) => hits.push(hit),
            Err(rejection) => rejected.push(rejection),
        }
    }
    let (bullish, bearish): (Vec<Hit>, Vec<Hit>) =
        ranked(hits.into_iter()).into_iter().partition(|hit| hit.side == Side::Bullish);
    for (outcome, count) in [("bullish", bullish.len()), ("bearish", bearish.len()), ("rejected", rejected.len())] {
        metrics::counter!(SCREENED_TOTAL, "outcome" => outcome).increment(count as u64);
    }
    Screened { date, bullish, bearish, rejected, stages }
}

/// By strong-move count and strength, both descending, then key.
pub(crate) fn ranked(hits: impl Iterator<Item = Hit>) -> Vec<Hit> {
    let mut hits: Vec<Hit> = hits.collect();
    hits.sort_by(|a, b| {
        let by_count = b.row.strong_move_count.cmp(&a.row.strong_move_count);
        by_count.then(b.row.strength.total_cmp(&a.row.strength)).then_with(|| a.key.cmp(&b.key))
    });
    hits
}

impl StageCount {
    fn new(stage: &'static str) -> Self {
        Self { stage, processed: 0, passed: 0, failed: 0, bullish: 0, bearish: 0, duration: Duration::ZERO }
    }

    fn count(&mut self, took: Duration, side: Option<Side>, is_passed: bool) {
        self.processed += 1;
        self.duration += took;
        if !is_passed {
            self.failed += 1;
            return;
        }
        self.passed += 1;
        self.bullish += u32::from(side == Some(Side::Bullish));
        self.bearish += u32::from(side == Some(Side::Bearish));
    }
}

#[cfg(test)]
mod tests;

//! The tour itself: each step asks the gateway one thing and checks what comes back.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;
use proto::aggregation::{GetCandlesRequest, GetCandlesResponse};
use proto::convert;
use proto::indicator::{ComputeIndicatorsRequest, ComputeIndicatorsResponse};
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{GetCoverageRequest, ListInstrumentsRequest};
use proto::optimizer::{Objective, ParameterRange, Search, Strategy, StudySpec, StudyState};
use proto::sequence::sequence_service_client::SequenceServiceClient;
use proto::sequence::{AnalyzeSequencesRequest, RunFilterPipelineRequest, RunFilterPipelineResponse};
use tonic::Code;

use super::input::Source;
use super::report::{
    Bar, Candles, Coverage, Indicators, Load, Rejection, Report, Screen, ScreenRow, Sequences, Stage, Study,
    UnknownInstrument,
};
use crate::client::{Connection, load, query, study};

/// Candles shown of each timeframe.
const SHOWN_BARS: usize = 3;
/// Days in the chart.
const CHART_DAYS: usize = 64;
/// Dates of history an instrument needs before its last date is worth a screen.
const SCREEN_DATES: u64 = 60;
/// Weeks tried, from the latest, until a screen passes something: about twelve years.
const SCREEN_ATTEMPTS: usize = 620;
/// A key that is well formed and never loaded.
const UNKNOWN: &str = "NSE_EQ|INE000000000";
/// Equality of engines: DESIGN's bound for indicators.
const TOLERANCE: f64 = 1e-9;

pub(super) struct Tour<'a> {
    pub(super) connection: &'a Connection,
    pub(super) quiet: bool,
}

impl Tour<'_> {
    /// Runs every step. A step that fails is noted; only a failed load ends the tour.
    pub(super) async fn run(&self, source: &Source) -> Result<Report> {
        let mut report =
            Report { input: source.description.clone(), generated: source.is_generated, ..Default::default() };
        report.load = self.load(source, &mut report.failures).await.context("load")?;
        report.coverage = self.coverage().await.context("coverage")?;
        let subject =
            report.coverage.iter().find(|item| item.timeframe == "1m").map(|item| item.instrument_key.clone());
        let subject = subject.context("no minutes were loaded")?;
        // Daily questions are put to the instrument with the longest daily history.
        let daily = report.coverage.iter().max_by_key(|item| item.dates).map(|item| item.instrument_key.clone());
        let daily = daily.unwrap_or_else(|| subject.clone());

        let failures = &mut report.failures;
        report.candles = note(failures, "candles", self.candles(&subject).await);
        report.indicators = note(failures, "indicators", self.indicators(&subject).await);
        report.sequences = note(failures, "sequences", self.sequences(&daily).await);
        report.screen = note(failures, "screen", self.screen(&report.coverage).await);
        report.study = note(failures, "study", self.study(&daily).await);
        report.unknown_instrument = note(failures, "unknown instrument", self.unknown_instrument().await);
        Ok(report)
    }

    async fn load(&self, source: &Source, failures: &mut Vec<String>) -> Result<Load> {
        let started = Instant::now();
        let report = load::load(self.connection, &source.files, None, self.quiet).await?;
        let mut reasons = Vec::new();
        for file in &report.files {
            reasons.extend(file.reasons.iter().map(|row| format!("{}, line {}: {}", file.file, row.line, row.reason)));
            failures.extend(file.error.iter().map(|error| format!("load: {error}")));
        }
        ensure!(report.stored > 0, "nothing was stored");
        Ok(Load {
            files: report.files.len(),
            stored: report.stored,
            unchanged: report.unchanged,
            rejected: report.rejected,
            reasons,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Coverage of every instrument, most candles first.
    async fn coverage(&self) -> Result<Vec<Coverage>> {
        let mut client = IngestionServiceClient::new(self.connection.channel()?);
        let mut coverage = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListInstrumentsRequest { page_size: 1000, page_token, ..Default::default() };
            let page = client.list_instruments(request).await?.into_inner();
            for instrument in page.instruments {
                let instrument_key = instrument.instrument_key;
                let request = GetCoverageRequest { instrument_key: instrument_key.clone() };
                for item in client.get_coverage(request).await?.into_inner().coverage {
                    coverage.push(Coverage {
                        instrument_key: instrument_key.clone(),
                        first: instant(&item.first_open_time),
                        last: instant(&item.last_open_time),
                        candles: item.candle_count,
                        dates: item.date_count.max(if item.timeframe == "1d" { item.candle_count } else { 0 }),
                        timeframe: item.timeframe,
                    });
                }
            }
            if page.next_page_token.is_empty() {
                break;
            }
            page_token = page.next_page_token;
        }
        coverage.sort_by(|a, b| b.candles.cmp(&a.candles).then_with(|| a.instrument_key.cmp(&b.instrument_key)));
        Ok(coverage)
    }

    async fn ask_candles(&self, key: &str, timeframe: &str) -> Result<GetCandlesResponse> {
        let request =
            GetCandlesRequest { instrument_key: key.into(), timeframe: timeframe.into(), ..Default::default() };
        Ok(query::candles(self.connection, request).await?.1)
    }

    async fn candles(&self, key: &str) -> Result<Candles> {
        let five = self.ask_candles(key, "5m").await?;
        let daily = self.ask_candles(key, "1d").await?;
        ensure!(!five.candles.is_empty() && !daily.candles.is_empty(), "{key} has no candles");
        let last = |answer: &GetCandlesResponse| {
            let skipped = answer.candles.len().saturating_sub(SHOWN_BARS);
            answer.candles[skipped..].iter().map(bar).collect()
        };
        let chart = daily.candles.len().saturating_sub(CHART_DAYS);
        Ok(Candles {
            instrument_key: key.to_owned(),
            five_minute: last(&five),
            five_minute_count: five.candles.len(),
            daily: last(&daily),
            daily_count: daily.candles.len(),
            closes: daily.candles[chart..].iter().map(|candle| candle.close).collect(),
        })
    }

    async fn ask_indicators(&self, key: &str, engine: &str) -> Result<(f64, ComputeIndicatorsResponse)> {
        let request =
            ComputeIndicatorsRequest { instrument_key: key.into(), timeframe: "5m".into(), ..Default::default() };
        let started = Instant::now();
        let (answered, answer) = query::indicators(&self.connection.with_engine(engine), request).await?;
        ensure!(answered == engine, "engine {engine} was asked, {answered} answered");
        Ok((started.elapsed().as_secs_f64() * 1e3, answer))
    }

    async fn indicators(&self, key: &str) -> Result<Indicators> {
        let (v1_ms, v1) = self.ask_indicators(key, "v1").await?;
        let (v2_ms, v2) = self.ask_indicators(key, "v2").await?;
        let (second_call_ms, again) = self.ask_indicators(key, "v2").await?;
        let largest_difference = largest_difference(&v1, &v2)?;
        ensure!(largest_difference <= TOLERANCE, "engines differ by {largest_difference:e}");
        ensure!(again.cached, "the second call was not answered from the cache");
        let last = |column: &proto::wire::Column| {
            (column.name.clone(), convert::column_values(column).into_iter().rev().flatten().next())
        };
        Ok(Indicators {
            instrument_key: key.to_owned(),
            timeframe: "5m".to_owned(),
            rows: v2.open_time_ms.len(),
            last: v2.columns.iter().map(last).collect(),
            v1_ms,
            v2_ms,
            v1_compute_ms: v1.compute_ms,
            v2_compute_ms: v2.compute_ms,
            largest_difference,
            second_call_ms,
            second_call_cached: again.cached,
        })
    }

    async fn sequences(&self, key: &str) -> Result<Sequences> {
        let mut client = SequenceServiceClient::new(self.connection.channel()?);
        let request = AnalyzeSequencesRequest { instrument_key: key.into(), ..Default::default() };
        let answer = client.analyze_sequences(request).await.map_err(|status| self.connection.explain(status))?;
        let answer = answer.into_inner();
        let metrics = answer.metrics.unwrap_or_default();
        let pattern = |pattern: &proto::sequence::Pattern| {
            let kind = pattern.kind().as_str_name().trim_start_matches("SEQUENCE_KIND_").to_ascii_lowercase();
            let direction = pattern.direction().as_str_name().trim_start_matches("DIRECTION_").to_ascii_lowercase();
            format!(
                "{:>4} x {kind} {direction} of {}: strength {:.3}, success {:.0} % ({:.0}-{:.0})",
                pattern.frequency,
                pattern.length,
                pattern.mean_strength,
                pattern.success_rate * 100.0,
                pattern.success_lower * 100.0,
                pattern.success_upper * 100.0
            )
        };
        ensure!(answer.candle_count > 0, "no daily candles");
        Ok(Sequences {
            instrument_key: key.to_owned(),
            candles: answer.candle_count,
            sequences: metrics.sequence_count,
            quality: metrics.quality,
            continuity: metrics.continuity,
            momentum: metrics.momentum,
            patterns: answer.patterns.iter().take(4).map(pattern).collect(),
        })
    }

    /// Screens the universe at the latest date on which something passes, going back a week at a time.
    async fn screen(&self, coverage: &[Coverage]) -> Result<Screen> {
        let enough: Vec<&Coverage> = coverage.iter().filter(|item| item.dates >= SCREEN_DATES).collect();
        let latest = self.ask_screen("", Vec::new()).await?;
        if passes(&latest) || enough.is_empty() {
            return screen(latest);
        }
        let last = enough.iter().map(|item| item.last.as_str()).max().unwrap_or_default();
        let mut date = market::parse_date(last.get(..10).unwrap_or_default())?;
        for _ in 0..SCREEN_ATTEMPTS {
            let text = market::format_date(date);
            // Only those whose history reaches the date are asked while it is being looked for: the universe costs more.
            let alive = enough.iter().filter(|item| item.first <= text && item.last.get(..10) >= Some(text.as_str()));
            let mut keys: Vec<String> = alive.map(|item| item.instrument_key.clone()).collect();
            keys.dedup();
            if !keys.is_empty() && passes(&self.ask_screen(&text, keys).await?) {
                return screen(self.ask_screen(&text, Vec::new()).await?);
            }
            date = date.checked_sub(jiff::Span::new().days(7))?;
        }
        // Nothing passes anywhere: the latest screen is still an answer, with a reason for everyone.
        screen(latest)
    }

    async fn ask_screen(&self, date: &str, instrument_keys: Vec<String>) -> Result<RunFilterPipelineResponse> {
        let mut client =
            SequenceServiceClient::new(self.connection.channel()?).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
        let request = RunFilterPipelineRequest { date: date.to_owned(), instrument_keys, ..Default::default() };
        let answer = client.run_filter_pipeline(request).await.map_err(|status| self.connection.explain(status))?;
        Ok(answer.into_inner())
    }

    async fn study(&self, key: &str) -> Result<Study> {
        let range = |name: &str, start, stop, step| ParameterRange { name: name.into(), start, stop, step };
        let spec = StudySpec {
            strategy: Strategy::SmaCrossover.into(),
            parameters: vec![range("fast", 3.0, 12.0, 3.0), range("slow", 15.0, 30.0, 5.0)],
            search: Search::Grid.into(),
            objective: Objective::Sharpe.into(),
            instrument_keys: vec![key.to_owned()],
            timeframe: "1d".into(),
            folds: 2,
            seed: 7,
            fee_bp: 2.0,
            ..Default::default()
        };
        let progress = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let finished = study::run_to_end(self.connection, None, spec, &progress).await?;
        if finished.study.state() != StudyState::Completed {
            bail!("study ended {}: {}", finished.study.state().as_str_name(), finished.study.error);
        }
        ensure!(!finished.trials.is_empty(), "the study has no trials");
        Ok(Study {
            study_id: finished.study.study_id,
            instrument_key: key.to_owned(),
            trials: finished.study.trials_done,
            best: finished.trials.iter().take(3).map(study::trial_line).collect(),
        })
    }

    async fn unknown_instrument(&self) -> Result<UnknownInstrument> {
        let mut client =
            proto::aggregation::aggregation_service_client::AggregationServiceClient::new(self.connection.channel()?);
        let request =
            GetCandlesRequest { instrument_key: UNKNOWN.into(), timeframe: "1d".into(), ..Default::default() };
        match client.get_candles(request).await {
            Ok(_) => bail!("{UNKNOWN} was answered"),
            Err(status) => {
                ensure!(status.code() == Code::NotFound, "{:?} instead of NotFound", status.code());
                ensure!(status.message().contains(UNKNOWN), "the error does not name the instrument");
                let code = "NOT_FOUND".to_owned();
                Ok(UnknownInstrument { asked: UNKNOWN.into(), code, message: status.message().to_owned() })
            }
        }
    }
}

fn note<T>(failures: &mut Vec<String>, step: &str, outcome: Result<T>) -> Option<T> {
    outcome.map_err(|error| failures.push(format!("{step}: {error:#}"))).ok()
}

fn instant(stamp: &Option<prost_types::Timestamp>) -> String {
    stamp.as_ref().and_then(convert::millis).map(market::format_millis).unwrap_or_default()
}

fn bar(candle: &proto::wire::BucketCandle) -> Bar {
    Bar {
        open_time: instant(&candle.open_time),
        open: candle.open,
        high: candle.high,
        low: candle.low,
        close: candle.close,
        volume: candle.volume,
        source_count: candle.source_count,
        expected_count: candle.expected_count,
        complete: candle.complete,
    }
}

/// The largest difference relative to the value, or to 1 where that is larger; an error where one has a value the
/// other lacks.
fn largest_difference(v1: &ComputeIndicatorsResponse, v2: &ComputeIndicatorsResponse) -> Result<f64> {
    ensure!(v1.open_time_ms == v2.open_time_ms, "engines answer different rows");
    ensure!(v1.columns.len() == v2.columns.len(), "engines answer different columns");
    let mut largest = 0.0_f64;
    for (a, b) in v1.columns.iter().zip(&v2.columns) {
        ensure!(a.name == b.name && a.null_ranges == b.null_ranges, "engines differ in where {} is defined", a.name);
        for (a, b) in a.values.iter().zip(&b.values) {
            largest = largest.max((a - b).abs() / a.abs().max(1.0));
        }
    }
    Ok(largest)
}

fn passes(answer: &RunFilterPipelineResponse) -> bool {
    !answer.bullish.is_empty() || !answer.bearish.is_empty()
}

fn screen(answer: RunFilterPipelineResponse) -> Result<Screen> {
    let rows = |rows: &[proto::sequence::ScreenRow]| {
        let row = |row: &proto::sequence::ScreenRow| ScreenRow {
            instrument_key: row.instrument_key.clone(),
            last_close: row.last_close,
            ema_distance_percent: row.ema_distance_percent,
            rsi: row.rsi,
            strong_move_count: row.strong_move_count,
        };
        rows.iter().map(row).collect()
    };
    for rejection in &answer.rejected {
        ensure!(!rejection.reason.is_empty(), "{} was rejected without a reason", rejection.instrument_key);
    }
    let rejection = |rejection: &proto::sequence::ScreenRejection| Rejection {
        instrument_key: rejection.instrument_key.clone(),
        stage: rejection.stage.clone(),
        reason: rejection.reason.clone(),
    };
    let stage = |stage: &proto::sequence::StageMetrics| Stage {
        stage: stage.stage.clone(),
        processed: stage.processed,
        passed: stage.passed,
        failed: stage.failed,
    };
    Ok(Screen {
        bullish: rows(&answer.bullish),
        bearish: rows(&answer.bearish),
        rejected: answer.rejected.iter().map(rejection).collect(),
        stages: answer.metrics.iter().map(stage).collect(),
        date: answer.date,
    })
}

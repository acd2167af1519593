//! Daily candles of made-up instruments whose fate is known beforehand: the filter pipeline, its ten best, sequences, groups and
//! a study.

use anyhow::{Context, Result, bail, ensure};
use candlemesh::client::{Connection, study};
use candlemesh_tests::answers::{GroupExecution, Screen, ScreenRow, Stored, TopTen};
use candlemesh_tests::made_up;
use indicatif::ProgressBar;
use proto::optimizer::{Objective, ParameterRange, Search, Strategy, StudySpec, StudyState};
use serde_json::{Value, json};

use super::Scenario;

const DAYS: usize = 120;
/// Three strong days up, three weak days down: a climb of 9 % a week.
const CLIMB: [f64; 6] = [4.0, 4.0, 4.0, -1.0, -1.0, -1.0];
const FLAT: [f64; 2] = [0.2, -0.2];
/// Enough for the filter, which asks for a mean of 300 000.
const VOLUME: f64 = 500_000.0;
/// More climbers than the ten best have room for.
const CLIMBERS: usize = 12;

fn climber(index: usize) -> String {
    format!("NSE_EQ|CLIMB{index:02}")
}

/// Instruments that do not pass, with the stage that stops them.
const OUTSIDERS: [(&str, &str); 3] = [("NSE_EQ|FLAT", "ema"), ("NSE_EQ|THIN", "basic"), ("NSE_EQ|PENNY", "basic")];

impl Scenario {
    async fn put_daily(&self) -> Result<()> {
        let mut batches = Vec::new();
        let mut add = |key: &str, price: f64, percents: &[f64], volume: f64| -> Result<()> {
            let candles = made_up::json_rows(&made_up::daily(DAYS, price, percents, volume)?);
            batches.push(json!({ "instrument_key": key, "timeframe": "1d", "candles": candles }));
            Ok(())
        };
        for index in 0..CLIMBERS {
            // All still below the filter's 1500 after 120 days, in which a climber rises about sixfold.
            add(&climber(index), 100.0 + 10.0 * index as f64, &CLIMB, VOLUME)?;
        }
        add("NSE_EQ|FLAT", 400.0, &FLAT, VOLUME)?;
        add("NSE_EQ|THIN", 100.0, &CLIMB, 1_000.0)?;
        add("NSE_EQ|PENNY", 2.0, &CLIMB, VOLUME)?;
        let count = batches.len() * DAYS;
        let body = json!({ "batches": batches });
        let answer: Stored = self.rest.post("/api/v1/historical-data/batch-store", &body).await?.ok()?;
        ensure!(answer.stored == count as u64 && answer.rejected.is_empty(), "{answer:?}");
        Ok(())
    }

    pub(super) async fn screens(&self) -> Result<()> {
        self.put_daily().await?;
        let date = market::format_date(*made_up::dates(DAYS)?.last().context("no dates")?);
        let mut keys: Vec<String> = (0..CLIMBERS).map(climber).collect();
        keys.extend(OUTSIDERS.map(|(key, _)| key.to_owned()));
        let body = json!({ "instrument_keys": keys, "date": date });
        let mut seen: Option<Screen> = None;
        for engine in ["v1", "v2"] {
            let answer = self.rest.with_engine(engine).post("/api/v1/filter-pipeline/run", &body).await?;
            ensure!(answer.engine() == Some(engine), "answered by {:?}", answer.engine());
            let screen: Screen = answer.ok()?;
            ensure!(screen.date == date && screen.bearish.is_empty(), "{engine}: {screen:?}");
            let mut passed: Vec<&str> = screen.bullish.iter().map(|row| row.instrument_key.as_str()).collect();
            passed.sort_unstable();
            ensure!(passed == keys[..CLIMBERS], "{engine}: {passed:?}, rejected {:?}", screen.rejected);
            for (key, stage) in OUTSIDERS {
                let rejected = screen.rejected.iter().find(|row| row.instrument_key == key);
                let rejected = rejected.with_context(|| format!("{engine}: {key} is not among the rejected"))?;
                ensure!(rejected.stage == stage && !rejected.reason.is_empty(), "{engine}: {rejected:?}");
            }
            let basic = screen.metrics.iter().find(|stage| stage.stage == "basic").context("no basic stage")?;
            let counts = (basic.processed, basic.passed, basic.failed);
            ensure!(counts == (15, 13, 2), "{engine}: {counts:?}");
            if let Some(other) = seen.replace(screen) {
                let now = seen.as_ref().context("just set")?;
                ensure!(same_rows(&other.bullish, &now.bullish), "engines differ: {other:?} {now:?}");
                ensure!(other.rejected.len() == now.rejected.len(), "engines differ: {other:?} {now:?}");
            }
        }
        self.top_ten(&date, &seen.context("no screen")?.bullish).await
    }

    /// Ten means ten, the best by strong moves, then strength, then key.
    async fn top_ten(&self, date: &str, bullish: &[ScreenRow]) -> Result<()> {
        let universe: Screen = self.rest.post("/api/v1/filter-pipeline/run", &json!({ "date": date })).await?.ok()?;
        ensure!(universe.bullish.len() == bullish.len(), "the universe has other climbers: {:?}", universe.bullish);
        let answer: TopTen = self.rest.get(&format!("/api/v1/filter-pipeline/fetch/top-10?date={date}")).await?.ok()?;
        ensure!(answer.date == date && answer.rows.len() == 10, "{answer:?}");
        for pair in answer.rows.windows(2) {
            let rank = |row: &ScreenRow| (std::cmp::Reverse(row.strong_move_count), -row.strength);
            let (a, b) = (rank(&pair[0]), rank(&pair[1]));
            ensure!(a < b || (a == b && pair[0].instrument_key < pair[1].instrument_key), "out of order: {pair:?}");
        }
        ensure!(answer.rows.iter().all(|row| bullish.iter().any(|b| b.instrument_key == row.instrument_key)));
        Ok(())
    }

    pub(super) async fn sequences(&self) -> Result<()> {
        let body = json!({ "instrument_key": climber(0), "timeframe": "1d" });
        let method = "candlemesh.sequence.v1.SequenceService/AnalyzeSequences";
        let mut seen: Option<Value> = None;
        for engine in ["v1", "v2"] {
            let path = format!("/api/v1/rpc/{method}");
            let answer = self.rest.with_engine(engine).post(&path, &body).await?;
            ensure!(answer.engine() == Some(engine), "answered by {:?}", answer.engine());
            let answer: Value = answer.ok()?;
            ensure!(answer["candle_count"] == DAYS, "{}", answer["candle_count"]);
            let patterns = answer["patterns"].as_array().context("no patterns")?;
            let climb = patterns.iter().find(|pattern| {
                pattern["kind"] == "SEQUENCE_KIND_STRONG"
                    && pattern["direction"] == "DIRECTION_UP"
                    && pattern["length"] == 3
            });
            let climb = climb.with_context(|| format!("{engine}: no climb of three among {patterns:?}"))?;
            // Twenty weeks, less those before the trend is known. A climb earns over the next five days.
            let frequency = climb["frequency"].as_u64().unwrap_or_default();
            ensure!((8..=20).contains(&frequency), "{engine}: {climb}");
            ensure!(climb["success_rate"] == 1.0, "{engine}: {climb}");
            let shape = |pattern: &Value| {
                json!([pattern["kind"], pattern["direction"], pattern["length"], pattern["frequency"]])
            };
            let shapes: Value = patterns.iter().map(shape).collect();
            if let Some(other) = seen.replace(shapes) {
                ensure!(seen.as_ref() == Some(&other), "engines differ: {other} {seen:?}");
            }
        }
        Ok(())
    }

    pub(super) async fn group_execution(&self) -> Result<()> {
        let keys = [climber(0), climber(1), "NSE_EQ|FLAT".to_owned()];
        let group = json!({ "group": { "group_id": "climbers", "name": "Climbers", "instrument_keys": keys } });
        self.rpc("candlemesh.ingestion.v1.IngestionService/PutGroup", &group).await?.ok::<Value>()?;
        let date = market::format_date(*made_up::dates(DAYS)?.last().context("no dates")?);
        let body = json!({ "date": date, "dry_run": false, "idempotency_key": "once" });
        let path = "/api/v1/groups/climbers/execute";
        let first: GroupExecution = self.rest.post(path, &body).await?.ok()?;
        ensure!(first.group_id == "climbers", "{first:?}");
        ensure!(first.intents.len() + first.skipped.len() == keys.len(), "{first:?}");
        ensure!(
            first.skipped.iter().any(|item| item.instrument_key == "NSE_EQ|FLAT" && !item.reason.is_empty()),
            "{first:?}"
        );
        ensure!(first.intents.len() == 2, "{first:?}");
        for intent in &first.intents {
            let is_ordered = intent.stop < intent.entry && intent.entry < intent.target;
            ensure!(intent.side == "buy" && is_ordered && intent.quantity > 0.0, "{intent:?}");
        }
        let again: GroupExecution = self.rest.post(path, &body).await?.ok()?;
        ensure!(again.intents == first.intents, "the same idempotency key made other intents: {again:?}");
        let unknown = self.rest.post("/api/v1/groups/nobody/execute", &json!({ "dry_run": true })).await?;
        ensure!(unknown.refused(404)?.detail.contains("nobody"), "{unknown:?}");
        Ok(())
    }

    pub(super) async fn study(&self) -> Result<()> {
        let range = |name: &str, start, stop, step| ParameterRange { name: name.to_owned(), start, stop, step };
        let spec = StudySpec {
            strategy: Strategy::SmaCrossover.into(),
            parameters: vec![range("fast", 2.0, 4.0, 1.0), range("slow", 8.0, 12.0, 2.0)],
            search: Search::Grid.into(),
            objective: Objective::TotalReturn.into(),
            instrument_keys: vec![climber(0), climber(1)],
            timeframe: "1d".to_owned(),
            folds: 2,
            seed: 1,
            fee_bp: 1.0,
            ..Default::default()
        };
        let finished =
            study::run_to_end(&Connection::to(&self.gateway), Some("made-up"), spec, &ProgressBar::hidden()).await?;
        if finished.study.state() != StudyState::Completed {
            bail!("ended {:?}: {}", finished.study.state(), finished.study.error);
        }
        // Three values of fast by three of slow.
        ensure!((finished.study.trials_done, finished.trials.len()) == (9, 9), "{:?}", finished.study);
        let objectives: Vec<f64> = finished.trials.iter().map(|trial| trial.objective).collect();
        ensure!(objectives.is_sorted_by(|a, b| a >= b), "trials come best first: {objectives:?}");
        Ok(())
    }
}

fn same_rows(a: &[ScreenRow], b: &[ScreenRow]) -> bool {
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(1.0);
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            a.instrument_key == b.instrument_key
                && a.strong_move_count == b.strong_move_count
                && near(a.rsi, b.rsi)
                && near(a.ema_distance_percent, b.ema_distance_percent)
        })
}

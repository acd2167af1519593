//! The service over gRPC: each RPC once, what it refuses, and a screen of real instruments.

#![allow(clippy::unwrap_used, reason = "a step that fails is a fact that fails")]

mod candles;
mod real;

use std::sync::Arc;

use candles::{add, daily, key, strong};
use mesh::client::MeshChannel;
use mesh::config::ServerConfig;
use mesh::engine::Engines;
use mesh::source::{Group, MemorySource};
use mesh::{CpuPool, Drain, ENGINE_HEADER, RemoteError};
use proto::sequence::sequence_service_client::SequenceServiceClient;
use proto::sequence::*;
use store::Stores;
use tonic::{Code, Request, Status};

struct Running {
    client: SequenceServiceClient<MeshChannel>,
    drain: Drain,
    served: tokio::task::JoinHandle<Result<(), mesh::StartError>>,
}

async fn start(source: MemorySource, engines: Engines) -> Running {
    let source = Arc::new(source);
    let ports = sequence::Ports {
        candles: Arc::clone(&source) as _,
        master: source,
        screens: Stores::memory().screens,
        engines,
        pool: Arc::new(CpuPool::new(2, 256).unwrap()),
    };
    let app = sequence::App::build(&ServerConfig::default(), sequence::Config::default(), ports).await.unwrap();
    let address = format!("http://{}", app.address());
    let drain = Drain::new();
    let served = tokio::spawn(app.serve(drain.clone()));
    let client = SequenceServiceClient::new(mesh::client::connect(&address).unwrap());
    Running { client, drain, served }
}

impl Running {
    async fn stop(self) {
        drop(self.client);
        self.drain.start();
        self.served.await.unwrap().unwrap();
    }
}

fn source() -> MemorySource {
    let mut source = MemorySource::default();
    add(&mut source, "NSE_EQ|RISE", "NSE", daily(100.0, &strong(5.0), 4e5));
    add(&mut source, "NSE_EQ|FALL", "NSE", daily(100.0, &strong(-5.0), 4e5));
    add(&mut source, "NSE_EQ|NEW", "NSE", daily(100.0, &strong(5.0), 4e5).slice(70..75));
    let instrument_keys = ["NSE_EQ|RISE", "NSE_EQ|NEW"].map(key).to_vec();
    source.groups.insert("g".into(), Group { id: "g".into(), name: String::new(), instrument_keys });
    source
}

fn forced(engine: &str, request: AnalyzeSequencesRequest) -> Request<AnalyzeSequencesRequest> {
    let mut request = Request::new(request);
    request.metadata_mut().insert(ENGINE_HEADER, engine.parse().unwrap());
    request
}

/// Code, reason and first field of a refusal.
fn refusal(status: &Status) -> (Code, String, String) {
    let error = RemoteError::from_status(status);
    (error.code, error.reason, error.fields.first().map(|(field, _)| field.clone()).unwrap_or_default())
}

#[tokio::test]
async fn both_engines_answer_alike_and_are_named() {
    let mut running = start(source(), Engines::BOTH).await;
    let asked = || AnalyzeSequencesRequest {
        instrument_key: "NSE_EQ|RISE".into(),
        include_moves: true,
        store: true,
        ..Default::default()
    };
    let mut answers = Vec::new();
    for engine in ["v1", "v2"] {
        let response = running.client.analyze_sequences(forced(engine, asked())).await.unwrap();
        assert_eq!(response.metadata().get(ENGINE_HEADER).unwrap(), engine);
        answers.push(response.into_inner());
    }
    let [v1, v2] = &answers[..] else { panic!() };
    assert_eq!((v1.candle_count, v1.revision, v1.timeframe.as_str()), (75, candles::REVISION, "1d"));
    assert_eq!(v1.moves.len(), 75);
    assert_eq!(v1.moves.iter().filter(|each| each.strong).count(), 12);
    let strong = v1.sequences.iter().filter(|each| each.kind == SequenceKind::Strong as i32);
    assert_eq!(
        strong.map(|each| (each.length, each.gap)).collect::<Vec<_>>(),
        [(3, Some(2)), (3, Some(2)), (3, Some(2)), (3, None)]
    );
    assert_eq!((&v1.moves, &v1.sequences), (&v2.moves, &v2.sequences));
    let three = v1.patterns.iter().find(|each| each.kind == SequenceKind::Strong as i32).unwrap();
    assert_eq!((three.length, three.frequency), (3, 4));

    let listed = running
        .client
        .list_analyses(ListAnalysesRequest {
            instrument_key: "NSE_EQ|RISE".into(),
            min_frequency: 4,
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.analyses.len(), 2, "one of each engine");
    assert!(listed.analyses.iter().all(|each| each.create_time.is_some() && each.patterns.len() == 1));
    running.stop().await;
}

#[tokio::test]
async fn an_engine_that_is_not_held_or_does_not_exist_is_refused() {
    let mut running = start(source(), "v2".parse().unwrap()).await;
    let asked = || AnalyzeSequencesRequest { instrument_key: "NSE_EQ|RISE".into(), ..Default::default() };
    let response = running.client.analyze_sequences(asked()).await.unwrap();
    assert_eq!(response.metadata().get(ENGINE_HEADER).unwrap(), "v2");
    assert!(response.get_ref().moves.is_empty(), "moves were not asked for");
    let status = running.client.analyze_sequences(forced("v1", asked())).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let status = running.client.analyze_sequences(forced("v3", asked())).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    running.stop().await;
}

#[tokio::test]
async fn trend_volatility_and_width_answer_for_the_last_date() {
    let mut running = start(source(), Engines::BOTH).await;
    let instrument_key = || "NSE_EQ|RISE".to_owned();
    let trend = GetTrendRequest { instrument_key: instrument_key(), ..Default::default() };
    let trend = running.client.get_trend(trend).await.unwrap().into_inner();
    // Above from the first strong day on: 15 of 20.
    assert_eq!((trend.trend(), trend.share_above, trend.share_below), (Trend::Bullish, 0.75, 0.0));
    assert!(trend.date.starts_with("2024-04-"));
    let volatility = GetVolatilityRequest { instrument_key: instrument_key(), ..Default::default() };
    let volatility = running.client.get_volatility(volatility).await.unwrap().into_inner();
    assert!(volatility.annualised > 0.0 && volatility.atr_percent > 0.0 && volatility.date == trend.date);
    let width = GetBollingerWidthRequest { instrument_key: instrument_key(), ..Default::default() };
    let width = running.client.get_bollinger_width(width).await.unwrap().into_inner();
    assert!(width.width > 0.0 && (0.0..=100.0).contains(&width.percentile) && !width.squeeze);

    let young = GetTrendRequest { instrument_key: "NSE_EQ|NEW".into(), ..Default::default() };
    let status = running.client.get_trend(young).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::FailedPrecondition, "TOO_FEW_CANDLES".into(), String::new()));
    assert!(status.message().contains("needs 69") && status.message().contains("found 5"), "{}", status.message());
    running.stop().await;
}

#[tokio::test]
async fn the_universe_is_screened_and_a_group_executed_once() {
    let mut running = start(source(), Engines::BOTH).await;
    let screened = running.client.run_filter_pipeline(RunFilterPipelineRequest::default()).await.unwrap().into_inner();
    let keys = |rows: &[ScreenRow]| rows.iter().map(|row| row.instrument_key.clone()).collect::<Vec<_>>();
    assert_eq!(
        (keys(&screened.bullish), keys(&screened.bearish)),
        (vec!["NSE_EQ|RISE".into()], vec!["NSE_EQ|FALL".into()])
    );
    assert_eq!((screened.rejected[0].stage.as_str(), screened.rejected[0].value), ("basic", 5.0));
    assert_eq!(screened.metrics.len(), 5);
    let top = running.client.get_top_screened(GetTopScreenedRequest::default()).await.unwrap().into_inner();
    assert_eq!((top.date, keys(&top.rows)), (screened.date, vec!["NSE_EQ|FALL".into(), "NSE_EQ|RISE".into()]));

    let asked = || ExecuteGroupRequest { group_id: "g".into(), idempotency_key: "monday".into(), ..Default::default() };
    let dry = ExecuteGroupRequest { dry_run: true, idempotency_key: String::new(), ..asked() };
    let dry = running.client.execute_group(dry).await.unwrap().into_inner();
    assert_eq!((dry.intents[0].side(), dry.intents[0].intent_id.as_str()), (Side::Buy, ""));
    let first = running.client.execute_group(asked()).await.unwrap().into_inner();
    let again = running.client.execute_group(asked()).await.unwrap().into_inner();
    assert_eq!(first.intents, again.intents);
    assert_eq!(first.skipped[0].reason, "basic: 5 candles, fewer than 10");
    let listed = running.client.list_trade_intents(ListTradeIntentsRequest::default()).await.unwrap().into_inner();
    assert_eq!((listed.intents, listed.next_page_token), (first.intents, String::new()));
    running.stop().await;
}

#[tokio::test]
async fn bad_input_is_refused_by_name() {
    let mut running = start(source(), Engines::BOTH).await;
    let client = &mut running.client;
    let invalid = |field: &str| (Code::InvalidArgument, "INVALID_FIELD".to_owned(), field.to_owned());
    let instrument_key = || "NSE_EQ|RISE".to_owned();

    let status = client.analyze_sequences(AnalyzeSequencesRequest::default()).await.unwrap_err();
    assert_eq!(refusal(&status), invalid("instrument_key"));
    let request =
        AnalyzeSequencesRequest { instrument_key: instrument_key(), timeframe: "7m".into(), ..Default::default() };
    assert_eq!(refusal(&client.analyze_sequences(request).await.unwrap_err()), invalid("timeframe"));
    let parameters = Some(AnalysisParameters { up_move_percent: Some(f64::INFINITY), ..Default::default() });
    let request = AnalyzeSequencesRequest { instrument_key: instrument_key(), parameters, ..Default::default() };
    let status = client.analyze_sequences(request).await.unwrap_err();
    assert_eq!(refusal(&status), invalid("parameters.up_move_percent"));
    let request = AnalyzeSequencesRequest { instrument_key: "NSE_EQ|NOBODY".into(), ..Default::default() };
    let status = client.analyze_sequences(request).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::NotFound, "UNKNOWN_INSTRUMENT".into(), String::new()));
    assert!(status.message().contains("NSE_EQ|NOBODY"));

    let request = ListAnalysesRequest { instrument_key: instrument_key(), page_size: 1001, ..Default::default() };
    assert_eq!(refusal(&client.list_analyses(request).await.unwrap_err()), invalid("page_size"));
    let request = ListAnalysesRequest { instrument_key: instrument_key(), pattern_kind: 9, ..Default::default() };
    assert_eq!(refusal(&client.list_analyses(request).await.unwrap_err()), invalid("pattern_kind"));
    let request = GetTrendRequest { instrument_key: instrument_key(), date: "29.01.2026".into(), ..Default::default() };
    assert_eq!(refusal(&client.get_trend(request).await.unwrap_err()), invalid("date"));
    let request = GetVolatilityRequest { instrument_key: instrument_key(), window: Some(1), ..Default::default() };
    assert_eq!(refusal(&client.get_volatility(request).await.unwrap_err()), invalid("window"));
    let request = RunFilterPipelineRequest { stages: vec!["ema".into(), "magic".into()], ..Default::default() };
    let status = client.run_filter_pipeline(request).await.unwrap_err();
    assert_eq!(refusal(&status), invalid("stages[1]"));
    assert!(status.message().contains("magic") && status.message().contains("strong_move"), "{}", status.message());
    let request = RunFilterPipelineRequest { instrument_keys: vec!["RELIANCE".into()], ..Default::default() };
    assert_eq!(refusal(&client.run_filter_pipeline(request).await.unwrap_err()), invalid("instrument_keys[0]"));
    let instrument_keys = (0..10_001).map(|index| format!("NSE_EQ|{index}")).collect();
    let request = RunFilterPipelineRequest { instrument_keys, ..Default::default() };
    let status = client.run_filter_pipeline(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("10000"), "{}", status.message());
    let request = GetTopScreenedRequest { date: "today".into() };
    assert_eq!(refusal(&client.get_top_screened(request).await.unwrap_err()), invalid("date"));
    let request = ExecuteGroupRequest { group_id: "g".into(), ..Default::default() };
    assert_eq!(refusal(&client.execute_group(request).await.unwrap_err()), invalid("idempotency_key"));
    let request = ExecuteGroupRequest { group_id: "x".into(), idempotency_key: "k".into(), ..Default::default() };
    let status = client.execute_group(request).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::NotFound, "UNKNOWN_GROUP".into(), String::new()));
    let request = ListTradeIntentsRequest { page_size: -1, ..Default::default() };
    assert_eq!(refusal(&client.list_trade_intents(request).await.unwrap_err()), invalid("page_size"));
    running.stop().await;
}

#[tokio::test]
async fn a_budget_that_is_no_number_stops_the_start() {
    let source = Arc::new(source());
    let ports = sequence::Ports {
        candles: Arc::clone(&source) as _,
        master: source,
        screens: Stores::memory().screens,
        engines: Engines::BOTH,
        pool: Arc::new(CpuPool::new(1, 1).unwrap()),
    };
    for risk_budget in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let config = sequence::Config { risk_budget, ..Default::default() };
        let refused = sequence::App::build(&ServerConfig::default(), config, ports.clone()).await.unwrap_err();
        assert!(refused.to_string().contains("risk_budget"), "{refused}");
    }
}

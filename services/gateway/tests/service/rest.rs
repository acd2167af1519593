//! REST: the shapes others script against, and problems.

use bytes::Bytes;
use gateway::Config;
use http::Method;
use serde_json::json;

use super::world::World;

const CANDLES: &str = "/api/v1/candles/us%7CSPY/5minute?start=2016-08-16T09:15:00%2B05:30&end=2016-08-17T00:00:00Z";

#[tokio::test]
async fn candles_have_the_shape_of_the_contract() {
    let world = World::new().await;
    let answer = world.get(CANDLES).await;
    assert_eq!((answer.status.as_u16(), answer.header("candlemesh-engine")), (200, "v1"), "{answer:?}");
    let first = json!({
        "open_time": "2016-08-16T03:45:00Z", "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.25, "volume": 10.0,
        "open_interest": null, "closed": true, "complete": false, "source_count": 4, "expected_count": 5,
    });
    let body = answer.json();
    assert_eq!(body["candles"][0], first);
    assert_eq!(body["candles"][1]["open_time"], "2016-08-16T03:50:00Z");
    let mut rest = body;
    rest.as_object_mut().unwrap().remove("candles");
    assert_eq!(rest, json!({"instrument_key": "US|SPY", "timeframe": "5m", "engine": "v1", "revision": 7}));

    let daily =
        world.get("/api/v1/candles/US%7CBRK:B%20%26%20co/day?indicators=sma:9,bbands:20,2&as_of=3").await.json();
    assert_eq!((&daily["instrument_key"], &daily["timeframe"]), (&json!("US|BRK:B & co"), &json!("1d")));
    assert_eq!(daily["candles"][0]["trading_date"], "2016-08-16");
    assert_eq!(daily["columns"], json!({"sma:9": [null, 1.5], "bbands:20,2": [null, 1.5]}));
    assert_eq!(daily["revision"], 3);
    // As it is, and as browsers write it.
    for text in ["rsi:14@tradingview,sma:9", "rsi:14%40tradingview,sma:9"] {
        let answer = world.get(&format!("/api/v1/candles/US%7CSPY/1d?indicators={text}")).await.json();
        assert_eq!(answer["columns"], json!({"rsi:14@tradingview": [null, 1.5], "sma:9": [null, 1.5]}));
    }

    let forced = world.send(Method::GET, CANDLES, &[("candlemesh-engine", "v2")], Bytes::new()).await;
    assert_eq!((forced.header("candlemesh-engine"), &forced.json()["engine"]), ("v2", &json!("v2")));
    assert_eq!(world.v2.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn the_other_reading_endpoints_have_theirs() {
    let world = World::new().await;
    let body = r#"{"start":"2016-08-16T00:00:00Z","indicators":["sma:9","vwap"]}"#;
    let answer = world.post("/api/v1/indicators/US%7CSPY/1m", body).await;
    assert_eq!(answer.header("candlemesh-engine"), "v1");
    let want = json!({
        "instrument_key": "US|SPY", "timeframe": "1m", "engine": "v1", "revision": 7, "cached": true, "compute_ms": 0.0,
        "open_time": ["2016-08-16T03:45:00Z", "2016-08-16T03:46:00Z"],
        "columns": {"sma:9": [null, 1.5], "vwap": [null, 1.5]},
    });
    assert_eq!(answer.json(), want);

    let multi = world.post("/api/v1/candles/US%7CSPY/multi", r#"{"timeframes":["5m","1d"]}"#).await.json();
    let frames = multi["timeframes"].as_object().unwrap();
    assert_eq!(frames.keys().collect::<Vec<_>>(), ["5m", "1d"]);
    assert_eq!((&frames["1d"]["engine"], frames["1d"]["candles"].as_array().unwrap().len()), (&json!("v1"), 2));

    let body = r#"{"instrument_keys":["US|A","US|UNKNOWN","US|B"],"timeframe":"5m"}"#;
    let intraday = world.post("/api/v1/market/intraday-quotes", body).await.json();
    let keys: Vec<_> = intraday["quotes"].as_array().unwrap().iter().map(|quote| &quote["instrument_key"]).collect();
    assert_eq!(keys, ["US|A", "US|B"]);
    assert_eq!(
        intraday["errors"],
        json!([{"instrument_key": "US|UNKNOWN", "reason": "instrument 'US|UNKNOWN' is not known"}])
    );

    let body = r#"{"instrument_keys":["US|A","US|UNKNOWN"],"indicators":["rsi:14"]}"#;
    let quotes = world.post("/api/v1/market/quotes", body).await.json();
    let quote = &quotes["quotes"][0];
    assert_eq!((&quote["last_price"], &quote["previous_close"]), (&json!(1.25), &json!(null)));
    assert_eq!((&quote["time"], &quote["indicators"]), (&json!("2016-08-16T03:45:00Z"), &json!({"rsi:14": 1.5})));
    assert_eq!(quotes["errors"][0]["instrument_key"], "US|UNKNOWN");
}

#[tokio::test]
async fn screens_and_groups_have_theirs() {
    let world = World::new().await;
    let row = json!({
        "instrument_key": "US|A", "last_close": 10.0, "mean_volume": 1e6, "ema_distance_percent": 4.0, "rsi": 61.0,
        "strong_move_count": 8, "strength": 0.5,
    });
    let answer = world.post("/api/v1/filter-pipeline/run", r#"{"date":"2024-01-02","stages":["basic","ema"]}"#).await;
    let want = json!({
        "date": "2024-01-02",
        "bullish": [row],
        "bearish": [],
        "rejected": [{"instrument_key": "US|B", "stage": "basic", "reason": "basic,ema", "value": 1.0}],
        "metrics": [{"stage": "basic", "processed": 2, "passed": 1, "failed": 1, "bullish": 0, "bearish": 0,
                     "duration_ms": 1.5}],
    });
    assert_eq!((answer.header("candlemesh-engine"), answer.json()), ("v1", want));
    let top = world.get("/api/v1/filter-pipeline/fetch/top-10?date=2024-01-02").await.json();
    assert_eq!(top, json!({"date": "2024-01-02", "rows": [row]}));
    world.get("/api/v1/filter-pipeline/fetch/top-10?day=2024-01-02").await.problem(400);
    let body = r#"{"dry_run":true,"idempotency_key":"k1"}"#;
    let executed = world.post("/api/v1/groups/my-group/execute", body).await.json();
    let intent = json!({
        "instrument_key": "US|A", "side": "buy", "entry": 10.0, "stop": 9.0, "target": 12.0, "quantity": 5.0,
        "reason": "k1 true", "created_at": "2016-08-16T03:45:00Z",
    });
    let skipped = json!([{"instrument_key": "US|B", "reason": "basic"}]);
    assert_eq!(executed, json!({"group_id": "my-group", "intents": [intent], "skipped": skipped}));
}

#[tokio::test]
async fn rows_are_stored_from_json_and_csv_with_reasons_for_the_others() {
    let world = World::new().await;
    let path = "/api/v1/historical-data/batch-store";
    let candle = |time: &str, low: f64| json!({"open_time": time, "open": 1, "high": 2, "low": low, "close": 1.5, "volume": 3, "open_interest": null});
    let (good, bad) = (candle("2016-08-16T03:45:00Z", 0.5), candle("2016-08-16T03:46:00Z", -1.0));
    let body = json!({"instrument_key": "US|SPY", "timeframe": "1m", "candles": [candle("soon", 0.5), good, bad]});
    let answer = world.post(path, &body.to_string()).await.json();
    assert_eq!((&answer["stored"], &answer["unchanged"], &answer["revision"]), (&json!(1), &json!(0), &json!(9)));
    assert_eq!(answer["rejected"][0]["row"], 0);
    assert!(answer["rejected"][0]["reason"].as_str().unwrap().contains("soon"));
    assert_eq!(answer["rejected"][1], json!({"row": 2, "reason": "low: is negative"}));

    let batch = json!({"instrument_key": "US|SPY", "candles": [good, bad]});
    let answer = world.post(path, &json!({"batches": [batch, batch]}).to_string()).await.json();
    assert_eq!((&answer["stored"], &answer["rejected"][1]["batch"]), (&json!(2), &json!(1)));

    let csv =
        Bytes::from("timestamp,open,high,low,close,volume\n2016-08-16T03:45:00Z,1,2,0.5,1.5,3\nx,1,2,0.5,1.5,3\n");
    let headers = [("content-type", "text/csv; charset=utf-8")];
    let named = format!("{path}?instrument_key=US%7CSPY&timeframe=1m");
    let answer = world.send(Method::POST, &named, &headers, csv.clone()).await.json();
    assert_eq!((&answer["stored"], &answer["rejected"][0]["row"]), (&json!(1), &json!(1)));
    let problem = world.send(Method::POST, path, &headers, csv).await.problem(400);
    assert_eq!(problem["errors"][0]["field"], "instrument_key");
}

#[tokio::test]
async fn bad_input_is_a_problem_that_names_field_and_value() {
    let world = World::new().await;
    for (path, field, value) in [
        ("/api/v1/candles/SPY/5m", "instrument_key", "SPY"),
        ("/api/v1/candles/US%7CSPY/7m", "timeframe", "7m"),
        ("/api/v1/candles/US%7CSPY/5m?start=yesterday", "start", "yesterday"),
        ("/api/v1/candles/US%7CSPY/5m?from=1", "from", "start, end"),
        ("/api/v1/candles/US%7CSPY/5m?gap_fill=maybe", "gap_fill", "maybe"),
        ("/api/v1/candles/%FF/5m", "path", "UTF-8"),
    ] {
        let problem = world.get(path).await.problem(400);
        assert_eq!((&problem["code"], &problem["errors"][0]["field"]), (&json!("INVALID_ARGUMENT"), &json!(field)));
        assert!(problem["detail"].as_str().unwrap().contains(value), "{problem}");
    }
    for (path, body, field) in [
        ("/api/v1/indicators/US%7CSPY/1m", r#"{"indicator":["sma:9"]}"#, "indicator"),
        ("/api/v1/market/quotes", "{}", "instrument_keys"),
        ("/api/v1/market/quotes", "{", "body"),
        ("/api/v1/filter-pipeline/run", r#"{"preset":"default","stages":["ema"]}"#, "stages"),
        ("/api/v1/historical-data/batch-store", "{}", "instrument_key"),
    ] {
        let problem = world.post(path, body).await.problem(400);
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    let problem = world.get("/api/v1/candles/US%7CUNKNOWN/5m").await.problem(404);
    assert_eq!((&problem["code"], &problem["reason"]), (&json!("NOT_FOUND"), &json!("UNKNOWN_INSTRUMENT")));
    assert!(problem["detail"].as_str().unwrap().contains("US|UNKNOWN"));
    assert_eq!(world.get("/nowhere").await.problem(404)["reason"], "UNKNOWN_PATH");
    assert_eq!(world.post("/api/v1/candles/US%7CSPY/5m", "{}").await.problem(405)["reason"], "METHOD_NOT_ALLOWED");
    let page = [("sec-fetch-site", "cross-site")];
    assert_eq!(world.send(Method::GET, CANDLES, &page, Bytes::new()).await.problem(403)["reason"], "CROSS_SITE");
    let engine = [("candlemesh-engine", "v3")];
    let problem = world.send(Method::GET, CANDLES, &engine, Bytes::new()).await.problem(400);
    assert_eq!(problem["errors"][0]["field"], "candlemesh-engine");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_with_the_limit() {
    let world = World::with(Config { body_limit_bytes: 1000, ..Config::default() }).await;
    let problem = world.post("/api/v1/market/quotes", &" ".repeat(1001)).await.problem(413);
    assert_eq!(problem["code"], "RESOURCE_EXHAUSTED");
    assert!(problem["detail"].as_str().unwrap().contains("1000"));
}

#[tokio::test]
async fn every_rpc_is_an_endpoint() {
    let world = World::new().await;
    let path = "/api/v1/rpc/candlemesh.aggregation.v1.AggregationService";
    let answer = world.post(&format!("{path}/GetCandles"), r#"{"instrument_key":"US|SPY","timeframe":"5m"}"#).await;
    assert_eq!(answer.header("candlemesh-engine"), "v1");
    assert_eq!(answer.json()["candles"][0]["open_time"], "2016-08-16T03:45:00Z");
    assert_eq!(answer.json()["revision"], 7);
    let body = r#"{"instrumentKeys":["US|A","US|UNKNOWN"],"timeframe":"5m"}"#;
    let answer = world.post(&format!("{path}/BatchGetCandles"), body).await;
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&lines[0]["error"]["reason"], &lines[1]["instrument_key"]),
        (&json!("UNKNOWN_INSTRUMENT"), &json!("US|A"))
    );

    let problem = world.post(&format!("{path}/GetCandles"), r#"{"symbol":"SPY"}"#).await.problem(400);
    assert!(problem["detail"].as_str().unwrap().contains("symbol"), "{problem}");
    world.post(&format!("{path}/GetCandles"), r#"{"instrument_key":"US|UNKNOWN"}"#).await.problem(404);
    assert_eq!(world.post(&format!("{path}/Nope"), "{}").await.problem(404)["reason"], "UNKNOWN_METHOD");
    let stream = "/api/v1/rpc/candlemesh.ingestion.v1.IngestionService/StreamCandles";
    assert_eq!(world.post(stream, "{}").await.problem(501)["reason"], "NEEDS_GRPC");
    let away = "/api/v1/rpc/candlemesh.optimizer.v1.OptimizerService/ListStudies";
    let problem = world.post(away, "").await.problem(503);
    assert!(problem["detail"].as_str().unwrap().contains("upstreams.optimizer"), "{problem}");
    let rollouts = "/api/v1/rpc/candlemesh.gateway.v1.RolloutService/ListRollouts";
    assert_eq!(world.post(rollouts, "").await.json()["rollouts"][2]["service"], "sequence");
}

#[tokio::test]
async fn frames_come_as_an_arrow_stream_where_that_is_accepted() {
    let world = World::new().await;
    let accept = [("accept", "application/vnd.apache.arrow.stream"), ("candlemesh-engine", "v2")];
    let answer = world.send(Method::GET, CANDLES, &accept, Bytes::new()).await;
    assert_eq!(answer.header("content-type"), "application/vnd.apache.arrow.stream");
    assert_eq!(answer.header("candlemesh-engine"), "v2");
    let reader = arrow_ipc::reader::StreamReader::try_new(std::io::Cursor::new(answer.body), None).unwrap();
    assert_eq!(reader.schema().metadata["instrument_key"], "two");
    let rows: usize = reader.map(|batch| batch.unwrap().num_rows()).sum();
    assert_eq!(rows, 2);
}

#[tokio::test]
async fn the_document_names_every_endpoint_and_probes_name_what_is_away() {
    let world = World::new().await;
    let document = world.get("/openapi.json").await.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, method) in [
        ("/api/v1/candles/{instrument_key}/{timeframe}", "get"),
        ("/api/v1/candles/{instrument_key}/multi", "post"),
        ("/api/v1/filter-pipeline/run", "post"),
        ("/api/v1/filter-pipeline/fetch/top-10", "get"),
        ("/api/v1/groups/{id}/execute", "post"),
        ("/api/v1/market/quotes", "post"),
        ("/api/v1/market/intraday-quotes", "post"),
        ("/api/v1/historical-data/batch-store", "post"),
    ] {
        assert!(document["paths"][path][method].is_object(), "{method} {path}");
    }
    for service in proto::json::pool().services() {
        if service.package_name().starts_with("candlemesh.") {
            for method in service.methods() {
                let path = format!("/api/v1/rpc/{}/{}", service.full_name(), method.name());
                assert!(document["paths"][&path]["post"].is_object(), "{path}");
            }
        }
    }
    assert_eq!(world.get("/healthz").await.status.as_u16(), 200);
    let answer = world.get("/readyz").await;
    assert_eq!(answer.status.as_u16(), 503);
    let upstreams = &answer.json()["upstreams"];
    assert_eq!((&upstreams["aggregation_v2"], &upstreams["optimizer"]), (&json!("serving"), &json!("unreachable")));
}

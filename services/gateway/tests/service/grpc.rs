//! gRPC and Flight through the gateway; flags and rollouts; who may do what.

use std::time::Duration;

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightDescriptor, Ticket};
use futures::TryStreamExt;
use gateway::Config;
use prost::Message;
use proto::aggregation::aggregation_service_client::AggregationServiceClient;
use proto::aggregation::{BatchGetCandlesRequest, GetCandlesRequest};
use proto::gateway::flag_service_client::FlagServiceClient;
use proto::gateway::rollout_service_client::RolloutServiceClient;
use proto::gateway::*;
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{CandleBatch, StreamCandlesRequest};
use proto::optimizer::ListStudiesRequest;
use proto::optimizer::optimizer_service_client::OptimizerServiceClient;
use proto::wire::frame_ticket::Frame;
use proto::wire::{Candle, CandlesTicket, FrameTicket, IndicatorsTicket, StoredCandlesTicket};
use sha2::{Digest, Sha256};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request};

use super::world::World;

fn candles(key: &str) -> Request<GetCandlesRequest> {
    let (instrument_key, timeframe) = (key.to_owned(), "5m".to_owned());
    Request::new(GetCandlesRequest { instrument_key, timeframe, ..Default::default() })
}

fn text<'a>(metadata: &'a MetadataMap, name: &str) -> &'a str {
    metadata.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn unary_calls_pass_with_context_and_decisions_and_without_what_callers_may_not_say() {
    let world = World::new().await;
    let mut client = AggregationServiceClient::new(world.channel().await);
    let mut request = candles("US|SPY");
    request.set_timeout(Duration::from_secs(5));
    for (name, value) in [
        ("candlemesh-decisions", "aggregation=v2;pin,indicator=v2;pin,sequence=v2;pin"),
        ("x-request-id", "job-7"),
        ("authorization", "Bearer secret"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-mine", "kept"),
    ] {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    let response = client.get_candles(request).await.unwrap();
    assert_eq!(text(response.metadata(), "candlemesh-engine"), "v1");
    assert_eq!(text(response.metadata(), "x-request-id"), "job-7");
    assert_eq!(response.get_ref().candles.len(), 2);
    let seen = world.v1.last();
    assert_eq!(
        text(&seen, "candlemesh-decisions"),
        "aggregation=v1;fraction,indicator=v1;fraction,sequence=v1;fraction"
    );
    assert_eq!((text(&seen, "x-request-id"), text(&seen, "x-mine")), ("job-7", "kept"));
    assert!(text(&seen, "traceparent").contains("0af7651916cd43dd8448eb211c80319c"));
    assert!(seen.get("authorization").is_none());
    let timeout = text(&seen, "grpc-timeout");
    let micros: u64 = timeout.strip_suffix('u').map_or_else(
        || timeout.strip_suffix('m').expect(timeout).parse::<u64>().unwrap() * 1000,
        |digits| digits.parse().unwrap(),
    );
    assert!((3_000_000..5_000_000).contains(&micros), "{timeout}");
}

#[tokio::test]
async fn errors_pass_with_their_details_and_streams_item_by_item() {
    let world = World::new().await;
    let mut client = AggregationServiceClient::new(world.channel().await);
    let status = client.get_candles(candles("US|UNKNOWN")).await.unwrap_err();
    let error = mesh::RemoteError::from_status(&status);
    assert_eq!((error.code, error.reason.as_str()), (Code::NotFound, "UNKNOWN_INSTRUMENT"));
    assert!(error.message.contains("US|UNKNOWN"));
    let instrument_keys = vec!["US|A".to_owned(), "US|B".to_owned(), "US|UNKNOWN".to_owned()];
    let request = BatchGetCandlesRequest { instrument_keys, timeframe: "1d".into(), ..Default::default() };
    let items: Vec<_> = client.batch_get_candles(request).await.unwrap().into_inner().try_collect().await.unwrap();
    assert_eq!(items.len(), 3);
}

#[tokio::test]
async fn a_stream_in_both_directions_is_not_buffered() {
    let world = World::new().await;
    let mut client = IngestionServiceClient::new(world.channel().await);
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut answers = client.stream_candles(requests).await.unwrap().into_inner();
    for sequence in 1..=3 {
        let batch = CandleBatch { candles: vec![Candle::default()], ..Default::default() };
        sender.send(StreamCandlesRequest { sequence, batch: Some(batch) }).await.unwrap();
        // The next batch is sent only when this one is acknowledged.
        let answer = tokio::time::timeout(Duration::from_secs(10), answers.message()).await.unwrap().unwrap().unwrap();
        assert_eq!((answer.sequence, answer.outcome.unwrap().stored), (sequence, 1));
    }
    drop(sender);
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn an_upstream_that_dies_in_the_middle_of_a_stream_ends_it_with_a_status() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let world = World::over(&runtime).await;
    let mut client = IngestionServiceClient::new(world.channel().await);
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut answers = client.stream_candles(requests).await.unwrap().into_inner();
    sender.send(StreamCandlesRequest { sequence: 1, batch: None }).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().sequence, 1);
    runtime.shutdown_background();
    let status = tokio::time::timeout(Duration::from_secs(10), answers.message()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("ingestion broke off"));
}

#[tokio::test]
async fn an_upstream_that_is_away_is_named_with_what_to_do() {
    let world = World::new().await;
    let mut client = OptimizerServiceClient::new(world.channel().await);
    let status = client.list_studies(ListStudiesRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("optimizer is not reachable at http://127.0.0.1:9"), "{}", status.message());
    assert!(status.message().contains("upstreams.optimizer"));
}

#[tokio::test]
async fn unknown_methods_and_oversized_messages_are_refused() {
    let world = World::new().await;
    let channel = world.channel().await;
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<GetCandlesRequest, GetCandlesRequest>::default();
    let path = "/candlemesh.aggregation.v1.AggregationService/Nope".parse().unwrap();
    let status = client.unary(candles("US|SPY"), path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("Nope"));
    let mut client = AggregationServiceClient::new(channel);
    let mut request = candles("US|SPY");
    request.get_mut().indicators = vec!["x".repeat(mesh::MAX_MESSAGE_BYTES)];
    let status = client.get_candles(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("67108864"));
}

#[tokio::test]
async fn a_share_moves_keys_at_once_sticks_and_reaches_the_v2_process() {
    let world = World::new().await;
    let channel = world.channel().await;
    let mut rollouts = RolloutServiceClient::new(channel.clone());
    let set = SetRolloutShareRequest { flag_key: "aggregation".into(), v2_percent: 50.0 };
    let rollout = rollouts.set_rollout_share(set).await.unwrap().into_inner().rollout.unwrap();
    assert_eq!((rollout.v2_percent, rollout.generation, rollout.enabled), (50.0, 2, true));
    let mut client = AggregationServiceClient::new(channel);
    let mut on_v2 = 0;
    for index in 0..40 {
        let key = format!("NSE_EQ|INE{index:03}");
        let bucket = rollout::bucket("use_dataframe_aggregation", &key);
        let want = if bucket < 50_000 { "v2" } else { "v1" };
        for spelling in [key.clone(), key.to_lowercase().replace("ine", "INE")] {
            let response = client.get_candles(candles(&spelling)).await.unwrap();
            assert_eq!(text(response.metadata(), "candlemesh-engine"), want, "{spelling}");
        }
        on_v2 += usize::from(want == "v2");
        let explain = ExplainDecisionRequest { targeting_key: key };
        let decisions = rollouts.explain_decision(explain).await.unwrap().into_inner().decisions;
        assert_eq!((decisions[0].engine.as_str(), decisions[0].bucket), (want, bucket));
    }
    assert_eq!(world.v2.seen.lock().unwrap().len(), 2 * on_v2);
    assert!((1..40).contains(&on_v2));
    let bad = SetRolloutShareRequest { flag_key: "aggregation".into(), v2_percent: 101.0 };
    let status = rollouts.set_rollout_share(bad).await.unwrap_err();
    assert_eq!(mesh::RemoteError::from_status(&status).fields[0].0, "v2_percent");
}

#[tokio::test]
async fn flags_are_seeded_compared_and_followed_from_the_store() {
    let world = World::new().await;
    let channel = world.channel().await;
    let mut flags = FlagServiceClient::new(channel.clone());
    let listed = flags.list_flags(ListFlagsRequest {}).await.unwrap().into_inner().flags;
    assert_eq!(listed.len(), 5);
    let key = "use_dataframe_aggregation".to_owned();
    let all = r#"{"state":"ENABLED","variants":{"v1":"v1","v2":"v2"},"defaultVariant":"v2"}"#;
    let stale = PutFlagRequest { key: key.clone(), definition_json: all.into(), expected_generation: 9 };
    assert_eq!(flags.put_flag(stale).await.unwrap_err().code(), Code::Aborted);
    let broken = PutFlagRequest { key: key.clone(), definition_json: "{".into(), expected_generation: 1 };
    assert_eq!(flags.put_flag(broken).await.unwrap_err().code(), Code::InvalidArgument);
    // Another replica changes the flag: this one follows within a second.
    world.stores.flags.compare_and_set(&key, 1, all, "elsewhere", 0).await.unwrap();
    let mut client = AggregationServiceClient::new(channel);
    let started = std::time::Instant::now();
    loop {
        let response = client.get_candles(candles("US|SPY")).await.unwrap();
        if text(response.metadata(), "candlemesh-engine") == "v2" {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(1), "the change is not visible");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The kill switch is stronger than the header.
    let off = all.replace("ENABLED", "DISABLED");
    let put = PutFlagRequest { key, definition_json: off, expected_generation: 2 };
    flags.put_flag(put).await.unwrap();
    let mut request = candles("US|SPY");
    request.metadata_mut().insert("candlemesh-engine", "v2".parse().unwrap());
    let response = client.get_candles(request).await.unwrap();
    assert_eq!(text(response.metadata(), "candlemesh-engine"), "v1");
}

#[tokio::test]
async fn the_forcing_header_decides_every_service_and_must_name_an_engine() {
    let world = World::new().await;
    let mut client = AggregationServiceClient::new(world.channel().await);
    let mut request = candles("US|SPY");
    request.metadata_mut().insert("candlemesh-engine", "v2".parse().unwrap());
    let response = client.get_candles(request).await.unwrap();
    assert_eq!(text(response.metadata(), "candlemesh-engine"), "v2");
    let seen = world.v2.last();
    assert_eq!(text(&seen, "candlemesh-decisions"), "aggregation=v2;header,indicator=v2;header,sequence=v2;header");
    assert!(seen.get("candlemesh-engine").is_none());
    let mut request = candles("US|SPY");
    request.metadata_mut().insert("candlemesh-engine", "v3".parse().unwrap());
    let status = client.get_candles(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("v3"));
}

#[tokio::test]
async fn tickets_find_their_role_and_puts_go_to_ingestion() {
    let world = World::new().await;
    let channel = world.channel().await;
    RolloutServiceClient::new(channel.clone())
        .set_rollout_share(SetRolloutShareRequest { flag_key: "aggregation".into(), v2_percent: 100.0 })
        .await
        .unwrap();
    let mut client = FlightServiceClient::new(channel.clone());
    let key = || "US|SPY".to_owned();
    // Only aggregation has a V2 process, so "two" answering shows that the ticket was read.
    let cases = [
        (Frame::StoredCandles(StoredCandlesTicket { instrument_key: key(), ..Default::default() }), "one", ""),
        (Frame::Candles(CandlesTicket { instrument_key: key(), ..Default::default() }), "two", "v2"),
        (Frame::Indicators(IndicatorsTicket { instrument_key: key(), ..Default::default() }), "one", "v1"),
    ];
    for (frame, name, engine) in cases {
        let ticket = FrameTicket { frame: Some(frame) }.encode_to_vec();
        let response = client.do_get(Ticket { ticket: ticket.clone().into() }).await.unwrap();
        assert_eq!(
            (text(response.metadata(), "answered-by"), text(response.metadata(), "candlemesh-engine")),
            (name, engine)
        );
        let data: Vec<_> = response.into_inner().try_collect().await.unwrap();
        assert_eq!(data.len(), 2);
        let info = client.get_flight_info(FlightDescriptor::new_cmd(ticket)).await.unwrap().into_inner();
        assert_eq!(info.try_decode_schema().unwrap().metadata["instrument_key"], name);
    }
    let status = client.do_get(Ticket { ticket: "{\"nonsense\":1}".into() }).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("nonsense"), "{}", status.message());

    let mut client = arrow_flight::FlightClient::new(channel);
    let schema = proto::arrow::indicator_schema(&["x".to_owned()], Default::default());
    let batch = proto::arrow::indicator_batch(&schema, vec![0, 1, 2], vec![vec![1.0; 3]]).unwrap();
    let data = arrow_flight::encode::FlightDataEncoderBuilder::new()
        .with_flight_descriptor(Some(FlightDescriptor::new_cmd(b"{}".to_vec())))
        .build(futures::stream::iter([Ok(batch)]));
    let results: Vec<_> = client.do_put(data).await.unwrap().try_collect().await.unwrap();
    assert_eq!(results[0].app_metadata.as_ref(), b"one 3");
}

#[tokio::test]
async fn keys_decide_who_may_do_what() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let line = |role: &str, key: &str| {
        let hash: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{role} {hash} {key}-name\n")
    };
    let lines = format!("# keys\n{}{}{}", line("reader", "r"), line("writer", "w"), line("admin", "a"));
    std::fs::write(&path, lines).unwrap();
    let world = World::with(Config { api_keys_file: Some(path), ..Config::default() }).await;
    let channel = world.channel().await;
    let mut candle_client = AggregationServiceClient::new(channel.clone());
    let mut rollouts = RolloutServiceClient::new(channel.clone());
    let mut ingestion = IngestionServiceClient::new(channel);
    for (key, read, write, admin) in [
        (None, Code::Unauthenticated, Code::Unauthenticated, Code::Unauthenticated),
        (Some("wrong"), Code::Unauthenticated, Code::Unauthenticated, Code::Unauthenticated),
        (Some("r"), Code::Ok, Code::PermissionDenied, Code::PermissionDenied),
        (Some("w"), Code::Ok, Code::Ok, Code::PermissionDenied),
        (Some("a"), Code::Ok, Code::Ok, Code::Ok),
    ] {
        fn with<T>(message: T, key: Option<&str>) -> Request<T> {
            let mut request = Request::new(message);
            if let Some(key) = key {
                request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
            }
            request
        }
        let code = |outcome: Result<(), tonic::Status>| outcome.map_or_else(|status| status.code(), |()| Code::Ok);
        let got = candle_client.get_candles(with(candles("US|SPY").into_inner(), key)).await;
        assert_eq!(code(got.map(drop)), read, "{key:?}");
        let got = ingestion.put_candles(with(Default::default(), key)).await;
        assert_eq!(code(got.map(drop)), write, "{key:?}");
        let set = SetRolloutShareRequest { flag_key: "indicator".into(), v2_percent: 1.0 };
        assert_eq!(code(rollouts.set_rollout_share(with(set, key)).await.map(drop)), admin, "{key:?}");
        let mut forced = with(candles("US|SPY").into_inner(), key);
        forced.metadata_mut().insert("candlemesh-engine", "v2".parse().unwrap());
        assert_eq!(code(candle_client.get_candles(forced).await.map(drop)), admin, "{key:?}");
    }
    let problem = world.get("/api/v1/candles/US%7CSPY/5m").await;
    assert_eq!(problem.problem(401)["code"], "UNAUTHENTICATED");
    assert_eq!(problem.header("www-authenticate"), "Bearer");
    let body = bytes::Bytes::from_static(b"{}");
    let headers = [("x-api-key", "r")];
    let store = "/api/v1/historical-data/batch-store";
    let problem = world.send(http::Method::POST, store, &headers, body.clone()).await.problem(403);
    assert!(problem["detail"].as_str().unwrap().contains("writer"), "{problem}");
    // RPCs over REST ask for the same, the gateway's own included.
    let rpc = "/api/v1/rpc/candlemesh.gateway.v1.FlagService/ListFlags";
    world.send(http::Method::POST, rpc, &headers, body.clone()).await.problem(403);
    let answer = world.send(http::Method::POST, rpc, &[("x-api-key", "a")], body).await;
    assert_eq!(answer.json()["flags"].as_array().unwrap().len(), 5);
    let record = world.stores.flags.flag("use_gonum_indicators").await.unwrap().unwrap();
    assert_eq!(record.updated_by, "a-name");
}

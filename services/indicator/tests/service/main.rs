//! The service as its clients see it: gRPC and Flight on a free port, upstreams in memory.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is its message")]

mod batch;
mod live;
mod oracle;
mod running;

use std::sync::Arc;
use std::time::Duration;

use arrow_flight::FlightDescriptor;
use futures::TryStreamExt;
use kernels::indicator::D3_SET;
use market::{InstrumentKey, Timeframe};
use mesh::RemoteError;
use mesh::source::{Buckets, Candles, MemorySource};
use proto::convert::column_values;
use proto::indicator::batch_compute_indicators_response::Outcome;
use proto::indicator::{
    AuditIndicatorsRequest, BatchComputeIndicatorsRequest, ComputeIndicatorsRequest, GetCacheStatisticsRequest,
    ListIndicatorsRequest,
};
use proto::wire::{CandlesTicket, FrameTicket, IndicatorsTicket, TimeRange, frame_ticket::Frame};
use tonic::{Code, Request, Status};

use running::{KEY, ROWS, Running, forced, minute, source, ticket, wave};

fn request(indicators: &[&str]) -> ComputeIndicatorsRequest {
    ComputeIndicatorsRequest {
        instrument_key: KEY.into(),
        timeframe: "1m".into(),
        indicators: indicators.iter().map(|text| (*text).to_owned()).collect(),
        ..Default::default()
    }
}

fn refusal(status: Status) -> (Code, String, Vec<String>) {
    let error = RemoteError::from_status(&status);
    (error.code, error.reason, error.fields.into_iter().map(|(field, _)| field).collect())
}

#[tokio::test]
async fn both_engines_answer_the_same_and_say_who_they_are() {
    let service = Running::start().await;
    let range = TimeRange { start_time: Some(minute(10)), end_time: Some(minute(40)) };
    let asked = ComputeIndicatorsRequest { range: Some(range), ..request(&[]) };
    let mut answers = Vec::new();
    for (engine, cached) in [("v1", false), ("v1", false), ("v2", false), ("v2", true)] {
        let response = service.grpc().compute_indicators(forced(asked.clone(), engine)).await.unwrap();
        assert_eq!(response.metadata().get(mesh::ENGINE_HEADER).unwrap(), engine);
        let answer = response.into_inner();
        assert_eq!((answer.cached, answer.compute_ms > 0.0), (cached, !cached));
        assert_eq!((answer.revision, answer.open_time_ms.len(), answer.open_time_ms[0]), (5, 30, 600_000));
        let ema = answer.warm_ups.iter().find(|warm_up| warm_up.indicator == "ema:20").unwrap();
        assert_eq!((answer.warm_ups.len(), ema.candles_needed, ema.candles_used), (D3_SET.len(), 20, 40));
        answers.push(answer);
    }
    assert!(answers.windows(2).all(|pair| pair[0].columns == pair[1].columns));
    assert_eq!(answers[0].columns.len(), D3_SET.len() + 4, "the D3 set, of which bbands has five columns");
    let ema = answers[0].columns.iter().find(|column| column.name == "ema:20").unwrap();
    let values = column_values(ema);
    // Seeded with the mean of the first twenty closes, hence first defined at row 19, here the tenth row.
    let seed = (0..20).map(wave).sum::<f64>() / 20.0;
    assert_eq!(values[..9], [None; 9]);
    assert!((values[9].unwrap() - seed).abs() < 1e-12);
    let statistics = service.grpc().get_cache_statistics(GetCacheStatisticsRequest {}).await.unwrap().into_inner();
    assert_eq!((statistics.local_hits, statistics.misses, statistics.local_entries), (1, 1, 1));
}

#[tokio::test]
async fn bad_requests_are_refused_by_name() {
    let service = Running::start().await;
    let reversed = TimeRange { start_time: Some(minute(2)), end_time: Some(minute(1)) };
    let many: Vec<String> = (1..=65).map(|period| format!("sma:{period}")).collect();
    let invalid = |field: &str| (Code::InvalidArgument, "INVALID_FIELD".to_owned(), vec![field.to_owned()]);
    let good = request(&["sma:9"]);
    for (asked, want) in [
        (ComputeIndicatorsRequest { instrument_key: "oops".into(), ..good.clone() }, invalid("instrument_key")),
        (ComputeIndicatorsRequest { timeframe: "7m".into(), ..good.clone() }, invalid("timeframe")),
        (ComputeIndicatorsRequest { timeframe: String::new(), ..good.clone() }, invalid("timeframe")),
        (ComputeIndicatorsRequest { range: Some(reversed), ..good.clone() }, invalid("range")),
        (request(&["sma:9", "sma:0"]), invalid("indicators[1]")),
        (
            ComputeIndicatorsRequest { instrument_key: "US|NOPE".into(), ..good.clone() },
            (Code::NotFound, "UNKNOWN_INSTRUMENT".to_owned(), Vec::new()),
        ),
        (
            ComputeIndicatorsRequest { revision: Some(99), ..good.clone() },
            (Code::InvalidArgument, "UNKNOWN_REVISION".to_owned(), vec!["revision".to_owned()]),
        ),
        (
            ComputeIndicatorsRequest { indicators: many, ..good.clone() },
            (Code::ResourceExhausted, "LIMIT_EXCEEDED".to_owned(), Vec::new()),
        ),
    ] {
        let status = service.grpc().compute_indicators(asked.clone()).await.unwrap_err();
        assert_eq!(refusal(status), want, "{asked:?}");
    }
    let status = service.grpc().compute_indicators(forced(good, "v3")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_answer_over_the_limit_names_flight_which_carries_it() {
    let service = Running::start_with_rows(500_001).await;
    for engine in ["v1", "v2"] {
        let asked = forced(request(&["sma:2"]), engine);
        let status = service.grpc().compute_indicators(asked).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        let text = status.message();
        assert!(text.contains("500001") && text.contains("500000") && text.contains("Flight"), "{text}");
    }
    let wanted = IndicatorsTicket {
        instrument_key: KEY.into(),
        timeframe: "1m".into(),
        indicators: vec!["sma:2".into()],
        ..Default::default()
    };
    let (batches, _) = service.frames(forced(ticket(Frame::Indicators(wanted)), "v2")).await.unwrap();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 500_001);
}

#[tokio::test]
async fn a_batch_answers_each_instrument_with_its_own_outcome() {
    let service = Running::start().await;
    let asked = BatchComputeIndicatorsRequest {
        instrument_keys: vec![KEY.into(), "US|NOPE".into(), "US|EMPTY".into()],
        timeframe: "1m".into(),
        indicators: vec!["sma:9".into()],
        ..Default::default()
    };
    let response = service.grpc().batch_compute_indicators(forced(asked, "v2")).await.unwrap();
    assert_eq!(response.metadata().get(mesh::ENGINE_HEADER).unwrap(), "v2");
    let mut items: Vec<_> = response.into_inner().try_collect().await.unwrap();
    items.sort_by(|a, b| a.instrument_key.cmp(&b.instrument_key));
    let rows: Vec<_> = items
        .into_iter()
        .map(|item| match item.outcome.unwrap() {
            Outcome::Answer(answer) => Ok(answer.open_time_ms.len()),
            Outcome::Error(error) => Err((error.code, error.reason, error.message.contains("US|NOPE"))),
        })
        .collect();
    assert_eq!(rows, [Ok(0), Err((5, "UNKNOWN_INSTRUMENT".to_owned(), true)), Ok(ROWS)]);

    let none = BatchComputeIndicatorsRequest { timeframe: "1m".into(), ..Default::default() };
    let status = service.grpc().batch_compute_indicators(none).await.unwrap_err();
    assert_eq!(refusal(status).2, ["instrument_keys"]);
    let many = BatchComputeIndicatorsRequest {
        instrument_keys: (0..5001).map(|index| format!("US|S{index}")).collect(),
        timeframe: "1m".into(),
        ..Default::default()
    };
    let status = service.grpc().batch_compute_indicators(many).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_batch_cut_by_the_drain_says_so() {
    // Slow, or a busy machine is done with all before the drain starts.
    let service = Running::start_with(Arc::new(Slow { source: source(ROWS) }), Arc::new(source(ROWS))).await;
    let keys = (0..4000).map(|index| format!("US|MANY{index}"));
    let asked =
        BatchComputeIndicatorsRequest { instrument_keys: keys.collect(), timeframe: "1m".into(), ..Default::default() };
    let mut items = service.grpc().batch_compute_indicators(asked).await.unwrap().into_inner();
    items.message().await.unwrap().unwrap();
    service.drain.start();
    let mut count = 1;
    let end = loop {
        match items.message().await {
            Ok(Some(_)) => count += 1,
            Ok(None) => panic!("a batch cut short looked whole after {count} items"),
            Err(status) => break status,
        }
    };
    assert_eq!((end.code(), RemoteError::from_status(&end).reason.as_str()), (Code::Unavailable, "DRAINING"));
    assert!(count < 4000);
    service.ended().await;
}

/// Takes its time.
#[derive(Debug)]
struct Slow {
    source: MemorySource,
}

#[tonic::async_trait]
impl Candles for Slow {
    async fn candles(
        &self,
        key: &InstrumentKey,
        timeframe: Timeframe,
        range: market::TimeRange,
        revision: Option<u64>,
    ) -> Result<Buckets, RemoteError> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.source.candles(key, timeframe, range, revision).await
    }
}

#[tokio::test]
async fn the_catalogue_lists_what_a_request_may_ask() {
    let service = Running::start().await;
    let listed = service.grpc().list_indicators(ListIndicatorsRequest {}).await.unwrap().into_inner().indicators;
    for info in &listed {
        assert!(service.grpc().compute_indicators(request(&[&info.name])).await.is_ok(), "{}", info.name);
        let known = ["open", "high", "low", "close", "volume"];
        assert!(info.inputs.iter().all(|input| known.contains(&input.as_str())), "{info:?}");
        let [default, others @ ..] = &info.profiles[..] else { panic!("{info:?}") };
        assert_eq!((default.name.as_str(), default.same_as_default), ("talib", true));
        assert_eq!((default.lookback, &default.parameters), (info.lookback, &info.parameters));
        let there = format!("{}@tradingview", info.name);
        let answer = service.grpc().compute_indicators(request(&[&there, &info.name])).await;
        let Some(other) = others.first() else {
            assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument, "{there}");
            continue;
        };
        let columns = answer.unwrap().into_inner().columns;
        let (asked, default) = columns.split_at(columns.len() / 2);
        assert!(asked.iter().all(|column| column.name.starts_with(&there)), "{there}");
        let values = |columns: &[proto::wire::Column]| columns.iter().map(column_values).collect::<Vec<_>>();
        if other.same_as_default {
            assert_eq!((&other.summary, values(asked)), (&info.summary, values(default)), "{there}");
        } else {
            assert_ne!(other.summary, info.summary, "{there}");
        }
    }
    let find = |name: &str| listed.iter().find(|info| info.name == name).unwrap();
    assert_eq!(find("macd").outputs, ["macd", "signal", "histogram"]);
    assert!(find("sma").outputs.is_empty());
    assert_eq!((find("macd").lookback, find("sma").lookback, find("obv").lookback), (33, 19, 0));
    let there = |name: &str| find(name).profiles.iter().find(|profile| profile.name == "tradingview").unwrap();
    assert_eq!((there("ema").lookback, there("atr").lookback, there("macd").lookback), (19, 13, 25));
    let defaults: Vec<f64> = there("stochrsi").parameters.iter().map(|parameter| parameter.default_value).collect();
    assert_eq!(defaults, [14.0, 14.0, 3.0, 3.0]);
    assert_eq!((there("sar").inputs.len(), find("sar").inputs.len()), (3, 2));
    let decimals: Vec<bool> = find("bbands").parameters.iter().map(|parameter| parameter.integer).collect();
    assert_eq!(decimals, [true, false]);
    assert_eq!((find("rsi").parameters[0].default_value, find("rsi").parameters[0].min_value), (14.0, 2.0));
}

#[tokio::test]
async fn the_audit_tells_windows_from_recurrences_on_both_engines() {
    let service = Running::start().await;
    let asked = |indicators: &[&str]| AuditIndicatorsRequest {
        instrument_key: KEY.into(),
        timeframe: "1m".into(),
        indicators: indicators.iter().map(|text| (*text).to_owned()).collect(),
        ..Default::default()
    };
    let mut answers = Vec::new();
    for engine in ["v1", "v2"] {
        let response =
            service.grpc().audit_indicators(forced(asked(&["sma:9", "ema:3", "macd"]), engine)).await.unwrap();
        assert_eq!(response.metadata().get(mesh::ENGINE_HEADER).unwrap(), engine);
        answers.push(response.into_inner());
    }
    assert_eq!(answers[0], answers[1]);
    let answer = &answers[0];
    assert_eq!((answer.revision, answer.candle_count as usize, answer.columns.len()), (5, ROWS, 5));
    assert!(answer.columns.iter().all(|column| column.look_ahead.is_none()));
    let [sma, ema, ..] = &answer.columns[..] else { panic!("{answer:?}") };
    assert_eq!((sma.name.as_str(), &sma.recursive, sma.settled_after), ("sma:9", &None, Some(8)));
    let found = ema.recursive.as_ref().unwrap();
    assert_eq!((found.cut, found.open_time), (Some(minute(1)), Some(minute(3))));
    assert!(found.whole != found.part && ema.settled_after.is_some_and(|rows| (20..60).contains(&rows)), "{ema:?}");
    let part = TimeRange { start_time: Some(minute(100)), end_time: Some(minute(110)) };
    let part = AuditIndicatorsRequest { range: Some(part), ..asked(&["sma:9"]) };
    assert_eq!(service.grpc().audit_indicators(part).await.unwrap().into_inner().candle_count, 10);
    let status = service.grpc().audit_indicators(asked(&["sma:9", "sma:0"])).await.unwrap_err();
    assert_eq!(refusal(status).2, ["indicators[1]"]);
}

#[tokio::test]
async fn flight_serves_the_columns_with_nulls_and_the_schema_it_promised() {
    let service = Running::start().await;
    let wanted = IndicatorsTicket {
        instrument_key: KEY.into(),
        timeframe: "minute".into(),
        indicators: vec!["sma:9".into(), "stoch".into()],
        ..Default::default()
    };
    let ticket_bytes = ticket(Frame::Indicators(wanted)).ticket;
    let descriptor = FlightDescriptor::new_cmd(ticket_bytes.clone());
    let schema = service.flight().get_schema(descriptor.clone()).await.unwrap().into_inner();
    let schema = arrow_schema::Schema::try_from(&schema).unwrap();
    let info = service.flight().get_flight_info(descriptor).await.unwrap().into_inner();
    let named = info.endpoint[0].ticket.clone().unwrap();
    for engine in ["v1", "v2"] {
        let (batches, metadata) = service.frames(forced(named.clone(), engine)).await.unwrap();
        assert_eq!(metadata.get(mesh::ENGINE_HEADER).unwrap(), engine);
        assert_eq!(*batches[0].schema(), schema);
        assert_eq!(schema.metadata()["revision"], "5");
        assert_eq!(schema.metadata()["timeframe"], "1m");
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(names, ["open_time", "sma:9", "stoch.k", "stoch.d"]);
        assert_eq!(batches[0].num_rows(), ROWS);
        assert_eq!(batches[0].column(1).null_count(), 8);
        let sma = proto::arrow::float_column(&batches[0], "sma:9").unwrap();
        assert!((sma[8] - (0..9).map(wave).sum::<f64>() / 9.0).abs() < 1e-12);
    }
    let json = format!(r#"{{"indicators":{{"instrumentKey":"{KEY}","timeframe":"1m","indicators":["sma:9"]}}}}"#);
    let by_json = arrow_flight::Ticket { ticket: json.into() };
    assert_eq!(service.frames(Request::new(by_json)).await.unwrap().0[0].num_columns(), 2);
}

#[tokio::test]
async fn flight_refuses_tickets_that_are_not_its_own() {
    let service = Running::start().await;
    let foreign = ticket(Frame::Candles(CandlesTicket::default()));
    let empty = arrow_flight::Ticket { ticket: prost::Message::encode_to_vec(&FrameTicket::default()).into() };
    for (ticket, part) in [(foreign, "aggregation"), (empty, "")] {
        let status = service.frames(Request::new(ticket)).await.unwrap_err();
        assert!(status.code() == Code::InvalidArgument && status.message().contains(part), "{status:?}");
    }
    let unknown = IndicatorsTicket { instrument_key: "US|NOPE".into(), timeframe: "1m".into(), ..Default::default() };
    let descriptor = FlightDescriptor::new_cmd(ticket(Frame::Indicators(unknown.clone())).ticket);
    let status = service.flight().get_schema(descriptor).await.unwrap_err();
    assert_eq!(refusal(status).1, "UNKNOWN_INSTRUMENT");
    let status = service.frames(Request::new(ticket(Frame::Indicators(unknown)))).await.unwrap_err();
    assert_eq!(refusal(status).1, "UNKNOWN_INSTRUMENT");
}

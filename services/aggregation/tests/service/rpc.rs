//! The RPCs, and their refusals.

use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightDescriptor, Ticket};
use futures::{StreamExt, TryStreamExt};
use market::{Candle, Millis};
use mesh::RemoteError;
use prost::Message;
use proto::aggregation::aggregation_service_client::AggregationServiceClient;
use proto::aggregation::batch_get_candles_response::Outcome;
use proto::aggregation::{BatchGetCandlesRequest, GetCandlesRequest, GetMultiCandlesRequest};
use proto::convert;
use proto::wire::{CandlesTicket, FrameTicket, StoredCandlesTicket, frame_ticket};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use super::*;

type Client = AggregationServiceClient<Channel>;

/// 2024-01-01, midnight UTC.
const START: Millis = 1_704_067_200_000;

fn minutes(count: i64) -> Frame {
    let mut frame = Frame::default();
    for minute in 0..count {
        let close = 100.0 + (minute % 17) as f64;
        frame
            .push(&Candle {
                open_time: START + minute * 60_000,
                open: close,
                high: close + 1.0,
                low: close - 1.0,
                close,
                volume: 2.0,
                open_interest: None,
            })
            .unwrap();
    }
    frame
}

fn channel(served: &Served) -> Channel {
    Endpoint::from_shared(served.address.clone()).unwrap().connect_lazy()
}

async fn served(config: Config) -> (Served, Client) {
    let source = source([("CRYPTO|A", "24x7", minutes(40_000)), ("CRYPTO|B", "24x7", minutes(12))]);
    let served = serve(&Arc::new(source), "v1,v2", config).await;
    let client = Client::new(channel(&served)).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
    (served, client)
}

fn request(instrument_key: &str, timeframe: &str) -> GetCandlesRequest {
    GetCandlesRequest {
        instrument_key: instrument_key.into(),
        timeframe: timeframe.into(),
        indicators: vec!["sma:2".into()],
        ..Default::default()
    }
}

fn with_engine<T>(message: T, engine: &'static str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(mesh::ENGINE_HEADER, engine.parse().unwrap());
    request
}

#[tokio::test]
async fn candles_come_with_counts_columns_revision_and_the_engine_that_answered() {
    let (_served, mut client) = served(Config::default()).await;
    for engine in ["v1", "v2"] {
        let response = client.get_candles(with_engine(request("crypto|B", "5minute"), engine)).await.unwrap();
        assert_eq!(response.metadata().get(mesh::ENGINE_HEADER).unwrap(), engine);
        let answer = response.into_inner();
        assert_eq!((answer.instrument_key.as_str(), answer.timeframe.as_str()), ("CRYPTO|B", "5m"));
        assert_eq!((answer.revision, answer.candles.len()), (42, 3));
        let last = &answer.candles[2];
        assert_eq!(convert::millis(last.open_time.as_ref().unwrap()), Some(START + 600_000));
        assert_eq!((last.open, last.high, last.low, last.close, last.volume), (110.0, 112.0, 109.0, 111.0, 4.0));
        assert_eq!((last.source_count, last.expected_count, last.closed, last.complete), (2, 5, true, false));
        assert_eq!((last.trading_date.as_str(), last.open_interest), ("2024-01-01", None));
        assert_eq!(convert::column_values(&answer.columns[0]), [None, Some(106.5), Some(110.0)]);
    }
}

#[tokio::test]
async fn several_timeframes_share_a_revision_and_the_limit() {
    let (_served, mut client) = served(Config { max_candles: 400, ..Config::default() }).await;
    let multi = |timeframes: &[&str]| GetMultiCandlesRequest {
        instrument_key: "CRYPTO|A".into(),
        timeframes: timeframes.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let answers = client.get_multi_candles(multi(&["4h", "day", "1mo"])).await.unwrap().into_inner().answers;
    let sizes: Vec<(&str, usize)> = answers.iter().map(|a| (a.timeframe.as_str(), a.candles.len())).collect();
    assert_eq!(sizes, [("4h", 167), ("1d", 28), ("1mo", 1)]);
    let refused = client.get_multi_candles(multi(&["2h", "4h"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("400 candles"), "{}", refused.message());
    for bad in [&[][..], &["1d", "day"]] {
        assert_eq!(client.get_multi_candles(multi(bad)).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn each_instrument_of_a_batch_has_its_own_outcome() {
    let (served, mut client) = served(Config::default()).await;
    let batch = BatchGetCandlesRequest {
        instrument_keys: ["CRYPTO|A", "CRYPTO|NONE", "CRYPTO|B"].map(String::from).to_vec(),
        timeframe: "1h".into(),
        ..Default::default()
    };
    let stream = client.batch_get_candles(batch.clone()).await.unwrap().into_inner();
    let mut items: Vec<_> = stream.try_collect().await.unwrap();
    items.sort_by(|a, b| a.instrument_key.cmp(&b.instrument_key));
    assert!(matches!(&items[0].outcome, Some(Outcome::Answer(answer)) if answer.candles.len() == 667));
    assert!(matches!(&items[1].outcome, Some(Outcome::Answer(answer)) if answer.candles.len() == 1));
    let Some(Outcome::Error(error)) = &items[2].outcome else { panic!("an unknown instrument has no answer") };
    assert_eq!((error.code, error.reason.as_str()), (5, "UNKNOWN_INSTRUMENT"));
    assert!(error.message.contains("CRYPTO|NONE"));
    let many = BatchGetCandlesRequest { instrument_keys: vec!["CRYPTO|A".into(); 5001], ..batch };
    assert_eq!(client.batch_get_candles(many).await.unwrap_err().code(), Code::InvalidArgument);
    drop(served);
}

#[tokio::test]
async fn bad_input_names_the_field_and_the_value() {
    let (_served, mut client) = served(Config { max_candles: 1000, ..Config::default() }).await;
    let range = proto::wire::TimeRange {
        start_time: Some(convert::timestamp(START)),
        end_time: Some(convert::timestamp(START - 1000)),
    };
    for (message, field, text) in [
        (request("CRYPTO|B", "7m"), "timeframe", "7m"),
        (request("B", "5m"), "instrument_key", "'B'"),
        (
            GetCandlesRequest { indicators: vec!["magic:9".into()], ..request("CRYPTO|B", "5m") },
            "indicators[0]",
            "magic",
        ),
        (GetCandlesRequest { range: Some(range), ..request("CRYPTO|B", "5m") }, "range", "reversed"),
    ] {
        let fault = RemoteError::from_status(&client.get_candles(message).await.unwrap_err());
        assert_eq!((fault.code, fault.fields[0].0.as_str()), (Code::InvalidArgument, field));
        assert!(fault.message.contains(text), "{}", fault.message);
    }
    let unknown = RemoteError::from_status(&client.get_candles(request("CRYPTO|Z", "5m")).await.unwrap_err());
    assert_eq!((unknown.code, unknown.reason.as_str()), (Code::NotFound, "UNKNOWN_INSTRUMENT"));
    let long = RemoteError::from_status(&client.get_candles(request("CRYPTO|A", "1m")).await.unwrap_err());
    assert_eq!((long.code, long.reason.as_str()), (Code::ResourceExhausted, "CANDLE_LIMIT"));
    let engine = client.get_candles(with_engine(request("CRYPTO|B", "5m"), "v3")).await.unwrap_err();
    assert_eq!(engine.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn flight_streams_what_unary_refuses() {
    let (served, _) = served(Config { max_candles: 1000, ..Config::default() }).await;
    let mut client = FlightServiceClient::new(channel(&served));
    let ticket = |timeframe: &str| FrameTicket {
        frame: Some(frame_ticket::Frame::Candles(CandlesTicket {
            instrument_key: "CRYPTO|A".into(),
            timeframe: timeframe.into(),
            indicators: vec!["rsi".into(), "bbands".into()],
            ..Default::default()
        })),
    };
    let descriptor = FlightDescriptor::new_cmd(ticket("1m").encode_to_vec());
    let info = client.get_flight_info(descriptor).await.unwrap().into_inner();
    let schema = info.clone().try_decode_schema().unwrap();
    assert_eq!(schema.fields().len(), 12 + 6);
    assert_eq!(schema.metadata()["revision"], "42");

    let response = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    assert_eq!(response.metadata().get(mesh::ENGINE_HEADER).unwrap(), "v1");
    let data = response.into_inner().map_err(|status| FlightError::Tonic(Box::new(status)));
    let batches: Vec<_> = FlightRecordBatchStream::new_from_flight_data(data).try_collect().await.unwrap();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 40_000);
    assert!(batches.iter().all(|batch| batch.num_rows() <= mesh::flight::BATCH_ROWS));
    let column = |batch: usize, name: &str| batches[batch].column_by_name(name).unwrap().null_count();
    assert_eq!((column(0, "rsi"), column(0, "bbands.lower"), column(1, "rsi")), (14, 19, 0));
    let buckets = proto::arrow::bucket_frame(&batches[0]).unwrap();
    assert_eq!((buckets.source_count[7], buckets.complete[7]), (1, true));

    let mut refused = Vec::new();
    for frame in
        [ticket("7m"), FrameTicket { frame: Some(frame_ticket::Frame::StoredCandles(StoredCandlesTicket::default())) }]
    {
        let ticket = Ticket { ticket: frame.encode_to_vec().into() };
        refused.push(client.do_get(ticket).await.unwrap_err().code());
    }
    assert_eq!(refused, [Code::InvalidArgument; 2]);
}

#[tokio::test]
async fn a_drain_ends_a_batch_with_an_error_not_early() {
    // More than fits into any buffer on the way, so the stream waits for its reader.
    let names: Vec<String> = (0..40).map(|number| format!("CRYPTO|N{number}")).collect();
    let instruments = names.iter().map(|name| (name.as_str(), "24x7", minutes(5000)));
    let served = serve(&Arc::new(source(instruments)), "v2", Config::default()).await;
    let mut client = Client::new(channel(&served)).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
    let batch = BatchGetCandlesRequest { instrument_keys: names, timeframe: "1m".into(), ..Default::default() };
    let mut stream = client.batch_get_candles(batch).await.unwrap().into_inner();
    stream.next().await.unwrap().unwrap();
    served.drain.start();
    let (mut count, mut outcome) = (1, Ok(()));
    while let Some(item) = stream.next().await {
        outcome = item.map(|_| count += 1);
    }
    assert!(count < 40, "{count} answers arrived");
    assert_eq!(outcome.unwrap_err().code(), Code::Unavailable);
}

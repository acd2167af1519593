//! Bulk frames in and out.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Criteria, FlightDescriptor, Ticket};
use futures::{StreamExt, TryStreamExt};
use mesh::client::MeshChannel;
use prost::Message;
use proto::wire::{FrameTicket, StoredCandlesTicket, frame_ticket};
use tonic::{Code, Status};

use crate::{Running, batch, fault, flat, start};

/// 2021-01-01T00:00:00Z in minutes.
const START_MINUTE: i64 = 26_824_320;

fn client(mesh: &Running) -> FlightServiceClient<MeshChannel> {
    FlightServiceClient::new(mesh::client::connect(&mesh.address).unwrap())
        .max_decoding_message_size(mesh::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(mesh::MAX_MESSAGE_BYTES)
}

/// Minutes as a data frame library sends them: microseconds without a zone, float32 and int64 columns, no open interest.
fn minutes(first: i64, rows: i64) -> RecordBatch {
    let times = (first..first + rows).map(|minute| (START_MINUTE + minute) * 60_000_000);
    let prices: ArrayRef = Arc::new(Float32Array::from_iter_values((0..rows).map(|_| 1.5)));
    RecordBatch::try_from_iter([
        ("open_time", Arc::new(TimestampMicrosecondArray::from_iter_values(times)) as ArrayRef),
        ("open", Arc::clone(&prices)),
        ("high", Arc::clone(&prices)),
        ("low", Arc::clone(&prices)),
        ("close", prices),
        ("volume", Arc::new(Int64Array::from_iter_values(first..first + rows))),
    ])
    .unwrap()
}

/// Puts batches; the acknowledgements' JSON, and the status the stream ended with.
async fn put(
    mesh: &Running,
    descriptor: FlightDescriptor,
    batches: Vec<RecordBatch>,
) -> (Vec<serde_json::Value>, Option<Status>) {
    let data = FlightDataEncoderBuilder::new()
        .with_max_flight_data_size(32 * 1024 * 1024)
        .with_flight_descriptor(Some(descriptor))
        .build(futures::stream::iter(batches.into_iter().map(Ok)))
        .map(|data| data.unwrap());
    let mut acknowledgements = Vec::new();
    let mut answers = match client(mesh).do_put(data).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return (acknowledgements, Some(status)),
    };
    loop {
        match answers.message().await {
            Ok(Some(answer)) => acknowledgements.push(serde_json::from_slice(&answer.app_metadata).unwrap()),
            Ok(None) => return (acknowledgements, None),
            Err(status) => return (acknowledgements, Some(status)),
        }
    }
}

fn path(parts: &[&str]) -> FlightDescriptor {
    FlightDescriptor::new_path(parts.iter().map(ToString::to_string).collect())
}

fn ticket(key: &str, revision: Option<u64>) -> FrameTicket {
    let ticket = StoredCandlesTicket { instrument_key: key.into(), revision, ..Default::default() };
    FrameTicket { frame: Some(frame_ticket::Frame::StoredCandles(ticket)) }
}

async fn get(mesh: &Running, ticket: impl Into<Vec<u8>>) -> Result<Vec<RecordBatch>, Status> {
    let data = client(mesh).do_get(Ticket { ticket: ticket.into().into() }).await?.into_inner();
    let batches = FlightRecordBatchStream::new_from_flight_data(data.map_err(Into::into));
    batches.try_collect().await.map_err(mesh::flight::status_of)
}

#[tokio::test]
async fn frames_of_other_column_types_are_stored_and_read_in_batches_of_a_useful_size() {
    let mesh = start().await;
    // Larger than a batch may be: stored in parts, acknowledged as one.
    let (acknowledged, status) = put(&mesh, path(&["CRYPTO|X"]), vec![minutes(0, 150_000), minutes(150_000, 5)]).await;
    assert!(status.is_none(), "{status:?}");
    assert_eq!(acknowledged.len(), 2);
    assert_eq!(acknowledged[0]["stored"], 150_000);
    assert_eq!((&acknowledged[1]["stored"], &acknowledged[1]["rejected"]), (&5.into(), &serde_json::json!([])));

    let batches = get(&mesh, ticket("CRYPTO|X", None).encode_to_vec()).await.unwrap();
    let sizes: Vec<usize> = batches.iter().map(RecordBatch::num_rows).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 150_005);
    let (_, full) = sizes.split_last().unwrap();
    assert!(full.iter().all(|rows| (8 * 1024..=32 * 1024).contains(rows)), "{sizes:?}");
    let metadata = batches[0].schema_ref().metadata().clone();
    assert_eq!((metadata["instrument_key"].as_str(), metadata["timeframe"].as_str()), ("CRYPTO|X", "1m"));
    assert_eq!(metadata["revision"], acknowledged[1]["revision"].to_string());
    let first = proto::arrow::frame(&batches[0]).unwrap();
    assert_eq!(first.open_time()[..2], [START_MINUTE * 60_000, (START_MINUTE + 1) * 60_000]);
    assert_eq!((first.close()[1], first.volume()[1], first.candle(1).open_interest), (1.5, 1.0, None));
}

#[tokio::test]
async fn rejected_rows_are_counted_over_the_whole_stream() {
    let mesh = start().await;
    let json = br#"{"stored_candles":{"instrument_key":"crypto|X","timeframe":"5m"}}"#;
    let command = FlightDescriptor::new_cmd(json.to_vec());
    let (acknowledged, status) = put(&mesh, command, vec![minutes(0, 2), minutes(5, 3)]).await;
    assert!(status.is_none(), "{status:?}");
    let rows = |at: usize| -> Vec<u64> {
        let rejected = acknowledged[at]["rejected"].as_array().unwrap();
        rejected.iter().map(|rejected| rejected["row"].as_u64().unwrap()).collect()
    };
    assert_eq!((rows(0), rows(1)), (vec![1], vec![3, 4]));
    let reason = acknowledged[1]["rejected"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("2021-01-01T00:06:00Z") && reason.contains("5m"), "{reason}");
    assert_eq!(acknowledged[1]["rejected_count"], 2);
}

#[tokio::test]
async fn a_wrong_schema_names_the_column_also_without_rows() {
    let mesh = start().await;
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["1.5"; 2]));
    let mut columns: Vec<(String, ArrayRef)> = Vec::new();
    let good = minutes(0, 2);
    for (field, column) in good.schema_ref().fields().iter().zip(good.columns()) {
        let column = if field.name() == "close" { &texts } else { column };
        columns.push((field.name().clone(), Arc::clone(column)));
    }
    let wrong = RecordBatch::try_from_iter(columns).unwrap();
    let empty = RecordBatch::new_empty(wrong.schema());
    for wrong in [wrong, empty] {
        let (acknowledged, status) = put(&mesh, path(&["CRYPTO|X", "1m"]), vec![wrong]).await;
        let fault = fault(status.unwrap());
        assert!(acknowledged.is_empty());
        assert_eq!((fault.code, fault.fields[0].0.as_str()), (Code::InvalidArgument, "close"));
        assert!(fault.message.contains("Utf8") && fault.message.contains("expected"), "{}", fault.message);
    }
    let prices: ArrayRef = Arc::new(Float64Array::from(vec![1.0]));
    let no_time = RecordBatch::try_from_iter([("open", prices)]).unwrap();
    let (_, status) = put(&mesh, path(&["CRYPTO|X"]), vec![no_time]).await;
    assert_eq!(fault(status.unwrap()).fields[0].0, "open_time");
}

#[tokio::test]
async fn a_damaged_batch_ends_its_stream_and_nobody_elses_call() {
    let mesh = start().await;
    let mut client = client(&mesh);
    let encoder = FlightDataEncoderBuilder::new().with_flight_descriptor(Some(path(&["CRYPTO|X"])));
    let batches = encoder.build(futures::stream::iter([Ok(minutes(0, 100))]));
    let mut data: Vec<_> = batches.map(|data| data.unwrap()).collect().await;
    // The header still promises the columns that were cut off, on which the decoder panics.
    let batch = data.last_mut().unwrap();
    batch.data_body = batch.data_body.slice(..8);
    // Two calls on one connection: one that waits for the next batch, and the damaged one.
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    let good = FlightDataEncoderBuilder::new().with_flight_descriptor(Some(path(&["CRYPTO|Y"])));
    let good = good.build(tokio_stream::wrappers::ReceiverStream::new(receiver).map(Ok));
    sender.send(minutes(0, 1)).await.unwrap();
    let mut waiting = client.do_put(good.map(|data| data.unwrap())).await.unwrap().into_inner();
    waiting.message().await.unwrap().unwrap();

    let damaged = client.do_put(futures::stream::iter(data)).await.unwrap().into_inner().message().await;
    let damaged = fault(damaged.unwrap_err());
    assert_eq!((damaged.code, damaged.fields[0].0.as_str()), (Code::InvalidArgument, "batch"));
    sender.send(minutes(1, 1)).await.unwrap();
    assert!(waiting.message().await.unwrap().is_some());
}

#[tokio::test]
async fn a_stream_of_other_messages_is_refused_as_the_senders() {
    let mesh = start().await;
    let encoder = FlightDataEncoderBuilder::new().with_flight_descriptor(Some(path(&["CRYPTO|X"])));
    let batches = encoder.build(futures::stream::iter([Ok(minutes(0, 1))]));
    let mut data: Vec<_> = batches.map(|data| data.unwrap()).collect().await;
    // The rows come without the schema that explains them.
    let schema = data.remove(0);
    data[0].flight_descriptor = schema.flight_descriptor;
    let refused = client(&mesh).do_put(futures::stream::iter(data)).await.unwrap().into_inner().message().await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn descriptors_that_name_nothing_storable_are_refused() {
    let mesh = start().await;
    let aggregated = br#"{"candles":{"instrument_key":"CRYPTO|X","timeframe":"5m"}}"#;
    let pinned = br#"{"stored_candles":{"instrument_key":"CRYPTO|X","revision":4}}"#;
    let cases = [
        (path(&[]), "descriptor"),
        (path(&["X"]), "descriptor.instrument_key"),
        (path(&["CRYPTO|X", "7m"]), "descriptor.timeframe"),
        (path(&["CRYPTO|X", "1m", "more"]), "descriptor"),
        (path(&["stored", "X"]), "descriptor.instrument_key"),
        (path(&["candles", "CRYPTO|X", "5m"]), "ticket"),
        (FlightDescriptor::new_cmd(aggregated.to_vec()), "ticket"),
        (FlightDescriptor::new_cmd(pinned.to_vec()), "descriptor"),
    ];
    for (descriptor, field) in cases {
        let (_, status) = put(&mesh, descriptor, vec![minutes(0, 1)]).await;
        let fault = fault(status.unwrap());
        assert_eq!((fault.code, fault.fields[0].0.as_str()), (Code::InvalidArgument, field));
    }
}

#[tokio::test]
async fn a_read_is_pinned_to_its_revision() {
    let mesh = start().await;
    let key = "CRYPTO|X";
    mesh.put(batch(key, "1m", vec![flat("2021-01-01T00:00:00Z", 1.0)])).await.unwrap();
    mesh.put(batch(key, "1m", vec![flat("2021-01-01T00:00:00Z", 2.0)])).await.unwrap();
    let close = async |revision| {
        let batches = get(&mesh, ticket(key, revision).encode_to_vec()).await?;
        Ok::<_, Status>(proto::arrow::frame(&batches[0]).unwrap().close().to_vec())
    };
    assert_eq!(close(None).await.unwrap(), [2.0]);
    assert_eq!(close(Some(1)).await.unwrap(), [1.0]);
    let beyond = fault(close(Some(3)).await.unwrap_err());
    assert_eq!((beyond.code, beyond.fields[0].0.as_str()), (Code::InvalidArgument, "revision"));
}

#[tokio::test]
async fn unknown_instruments_are_not_found_and_empty_ones_are_empty() {
    let mesh = start().await;
    let unknown = fault(get(&mesh, ticket("CRYPTO|X", None).encode_to_vec()).await.unwrap_err());
    assert_eq!((unknown.code, unknown.reason.as_str()), (Code::NotFound, "UNKNOWN_INSTRUMENT"));
    mesh.put(batch("CRYPTO|X", "1m", vec![flat("2021-01-01T00:00:00Z", 1.0)])).await.unwrap();
    let daily = br#"{"stored_candles":{"instrument_key":"CRYPTO|X","timeframe":"1d"}}"#;
    assert!(get(&mesh, daily.to_vec()).await.unwrap().is_empty());
    let other = br#"{"indicators":{"instrument_key":"CRYPTO|X","timeframe":"1d"}}"#;
    assert_eq!(fault(get(&mesh, other.to_vec()).await.unwrap_err()).code, Code::InvalidArgument);
}

#[tokio::test]
async fn flights_are_listed_per_instrument_and_stored_timeframe() {
    let mesh = start().await;
    for (key, timeframe) in [("US|B", "1d"), ("CRYPTO|A", "5m"), ("US|B", "1m")] {
        mesh.put(batch(key, timeframe, vec![flat("2021-01-04T15:00:00Z", 1.0)])).await.unwrap();
    }
    let flights = client(&mesh).list_flights(Criteria::default()).await.unwrap().into_inner();
    let flights: Vec<_> = flights.map(Result::unwrap).collect().await;
    let named = flights.iter().map(|info| {
        let ticket = FrameTicket::decode(info.endpoint[0].ticket.as_ref().unwrap().ticket.clone()).unwrap();
        let Some(frame_ticket::Frame::StoredCandles(ticket)) = ticket.frame else { panic!("{ticket:?}") };
        (ticket.instrument_key, ticket.timeframe)
    });
    let expected = [("CRYPTO|A", "5m"), ("US|B", "1m"), ("US|B", "1d")];
    assert_eq!(named.collect::<Vec<_>>(), expected.map(|(key, timeframe)| (key.to_owned(), timeframe.to_owned())));

    assert!(flights.iter().all(|info| info.total_records == 1 && info.ordered && info.app_metadata.is_empty()));

    for descriptor in [FlightDescriptor::new_cmd(ticket("US|B", None).encode_to_vec()), path(&["stored", "US|B", "1m"])]
    {
        let info = client(&mesh).get_flight_info(descriptor).await.unwrap().into_inner();
        let schema = info.clone().try_decode_schema().unwrap();
        assert_eq!((schema.metadata["revision"].as_str(), schema.fields().len()), ("2", 7));
        assert_eq!((info.total_records, info.ordered, info.endpoint.len()), (1, true, 1));
    }
}

/// Follows the listing by what its last flight says, from the criteria given to the end.
async fn pages(mesh: &Running, criteria: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut expression = criteria.as_bytes().to_vec();
    loop {
        let listed = client(mesh).list_flights(Criteria { expression: expression.into() }).await.unwrap().into_inner();
        let listed: Vec<_> = listed.map(Result::unwrap).collect().await;
        let key = |command: &prost::bytes::Bytes| match FrameTicket::decode(command.clone()).unwrap().frame {
            Some(frame_ticket::Frame::StoredCandles(ticket)) => ticket.instrument_key,
            other => panic!("{other:?}"),
        };
        pages.push(listed.iter().map(|info| key(&info.flight_descriptor.as_ref().unwrap().cmd)).collect());
        expression = listed.last().map(|info| info.app_metadata.to_vec()).unwrap_or_default();
        if expression.is_empty() {
            return pages;
        }
    }
}

#[tokio::test]
async fn a_listing_goes_on_from_page_to_page_without_a_flight_lost_or_doubled() {
    let mesh = start().await;
    for key in ["CRYPTO|A", "CRYPTO|B", "CRYPTO|C", "US|A", "US|B"] {
        mesh.put(batch(key, "1m", vec![flat("2021-01-04T15:00:00Z", 1.0)])).await.unwrap();
    }
    mesh.put(batch("CRYPTO|B", "1d", vec![flat("2021-01-04T00:00:00Z", 1.0)])).await.unwrap();
    assert_eq!(
        pages(&mesh, r#"{"limit":2}"#).await,
        [vec!["CRYPTO|A", "CRYPTO|B", "CRYPTO|B"], vec!["CRYPTO|C", "US|A"], vec!["US|B"]]
    );
    assert_eq!(pages(&mesh, r#"{"segment":"US","limit":1}"#).await, [vec!["US|A"], vec!["US|B"]]);
    assert_eq!(pages(&mesh, r#"{"segment":"us","limit":1}"#).await, [vec!["US|A"], vec!["US|B"]]);
    assert_eq!(pages(&mesh, r#"{"after":"CRYPTO|B"}"#).await, [vec!["CRYPTO|C", "US|A", "US|B"]]);
    assert_eq!(pages(&mesh, r#"{"segment":"FX"}"#).await, [Vec::<String>::new()]);
    let refused =
        client(&mesh).list_flights(Criteria { expression: b"{\"limit\":5000}".to_vec().into() }).await.unwrap_err();
    assert_eq!(fault(refused).fields[0].0, "criteria.limit");
}

#[tokio::test]
async fn the_parts_of_a_large_frame_are_one_revision_and_together_the_frame() {
    let mesh = start().await;
    const ROWS: i64 = 1_100_000;
    let batches = (0..ROWS).step_by(100_000).map(|first| minutes(first, 100_000)).collect();
    let (_, status) = put(&mesh, path(&["stored", "CRYPTO|X"]), batches).await;
    assert!(status.is_none(), "{status:?}");
    let info = client(&mesh).get_flight_info(path(&["stored", "CRYPTO|X", "1m"])).await.unwrap().into_inner();
    assert_eq!((info.total_records, info.ordered, info.endpoint.len()), (ROWS, true, 2));
    // Written between the question and the reading: not part of the answer.
    let (_, status) = put(&mesh, path(&["CRYPTO|X"]), vec![minutes(ROWS, 5)]).await;
    assert!(status.is_none(), "{status:?}");
    let mut times: Vec<i64> = Vec::new();
    for endpoint in info.endpoint {
        let part = get(&mesh, endpoint.ticket.unwrap().ticket.to_vec()).await.unwrap();
        assert_eq!(part[0].schema_ref().metadata()["revision"], "11");
        assert!(part.iter().map(RecordBatch::num_rows).sum::<usize>() > ROWS as usize / 3);
        for batch in part {
            times.extend_from_slice(proto::arrow::frame(&batch).unwrap().open_time());
        }
    }
    assert_eq!(times.len() as i64, ROWS);
    assert!((START_MINUTE..).zip(&times).all(|(minute, time)| minute * 60_000 == *time));
}

//! Storing by gRPC: batches, streams, and what is refused.

use futures::StreamExt;
use mesh::source::{MasterData, RemoteIngestion, StoredCandles};
use proto::convert;
use proto::ingestion::{
    GetCoverageRequest, GetInstrumentRequest, GetRevisionsRequest, PutCandlesRequest, StreamCandlesRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::{batch, data, fault, flat, flat_at, start, start_over, start_with};

const RELIANCE: &str = "NSE_EQ|INE002A01018";

#[tokio::test]
async fn unsorted_minutes_of_a_real_stock_are_stored_once_and_come_back_sorted() {
    let Some(mut rows) = data::rows("1m/NSE_EQ_INE002A01018_RELIANCE.csv.gz") else { return };
    let mesh = start().await;
    let first = mesh.put(batch("nse_eq|INE002A01018", "", data::candles(&rows))).await.unwrap();
    assert_eq!((first.stored, first.unchanged, first.rejected.len(), first.revision), (7125, 0, 0, 1));
    let again = mesh.put(batch(RELIANCE, "1minute", data::candles(&rows))).await.unwrap();
    assert_eq!((again.stored, again.unchanged, again.revision), (0, 7125, 1));

    let request = GetCoverageRequest { instrument_key: RELIANCE.into() };
    let coverage = mesh.client.clone().get_coverage(request).await.unwrap().into_inner();
    let minutes = &coverage.coverage[0];
    assert_eq!((minutes.timeframe.as_str(), minutes.candle_count, coverage.revision), ("1m", 7125, 1));
    // 7125 minutes are 19 sessions of 375.
    assert_eq!(minutes.date_count, 19);
    let last = minutes.last_open_time.as_ref().and_then(convert::millis).unwrap();
    assert_eq!(market::format_millis(last), "2016-09-30T09:59:00Z");

    let remote = RemoteIngestion::connect(&mesh.address).unwrap();
    let (key, all) = (RELIANCE.parse().unwrap(), market::TimeRange::ALL);
    let stored = remote.stored(&key, market::Timeframe::M1, all, None).await.unwrap();
    assert_eq!(stored.revision, 1);
    let frames: Vec<_> = stored.frames.map(Result::unwrap).collect().await;
    let read: Vec<_> = frames.iter().flat_map(|frame| frame.candles()).collect();
    rows.sort_by_key(|row| row.candle.open_time);
    assert_eq!(read, rows.iter().map(|row| row.candle).collect::<Vec<_>>());
}

#[tokio::test]
async fn daily_rows_stamped_with_local_midnight_are_stored_at_the_session_open_of_their_date() {
    let Some(rows) = data::rows("1d/NSE_EQ_INE002A01018_RELIANCE.csv.gz") else { return };
    let mesh = start().await;
    let outcome = mesh.put(batch(RELIANCE, "day", data::candles(&rows))).await.unwrap();
    assert_eq!((outcome.stored as usize, outcome.rejected.len()), (rows.len(), 0));
    let remote = RemoteIngestion::connect(&mesh.address).unwrap();
    let (key, all) = (RELIANCE.parse().unwrap(), market::TimeRange::ALL);
    let stored = remote.stored(&key, market::Timeframe::D1, all, None).await.unwrap();
    let frames: Vec<_> = stored.frames.map(Result::unwrap).collect().await;
    let read: Vec<_> = frames.iter().flat_map(|frame| frame.candles()).collect();
    assert_eq!(read.len(), rows.len());
    let mut regular = 0;
    for (candle, row) in read.iter().zip(&rows) {
        // India is 5.5 hours ahead.
        let local = market::format_millis(candle.open_time + 19_800_000);
        assert_eq!(local[..10], row.trading_date);
        assert_eq!((candle.open, candle.close, candle.volume), (row.candle.open, row.candle.close, row.candle.volume));
        regular += usize::from(local.ends_with("T09:15:00Z"));
    }
    // All but a handful of evening and special sessions open at 09:15.
    assert!(regular + 10 > read.len(), "{regular} of {}", read.len());
}

#[tokio::test]
async fn bad_rows_are_named_and_the_good_ones_stored() {
    let mesh = start().await;
    let mut inverted = flat("2016-08-16T03:47:00Z", 1.0);
    inverted.low = 2.0;
    let mut undated = flat("2016-08-16T03:48:00Z", 1.0);
    undated.open_time = None;
    let mut infinite = flat("2016-08-16T03:49:00Z", 1.0);
    infinite.volume = f64::INFINITY;
    let rows = vec![
        flat("2016-08-16T03:46:00Z", 5.0),
        inverted,
        undated,
        infinite,
        flat("2016-08-16T03:45:00Z", 1.0),
        flat("2016-08-16T03:45:00Z", 2.0),
        flat("2016-08-16T03:46:00Z", 5.0),
    ];
    let given = rows.len() as u64;
    let outcome = mesh.put(batch(RELIANCE, "1m", rows)).await.unwrap();
    assert_eq!((outcome.stored, outcome.unchanged), (2, 1));
    assert_eq!(outcome.stored + outcome.unchanged + outcome.rejected.len() as u64, given);
    let expected = [(1, "low 2"), (2, "open_time"), (3, "volume is inf"), (4, "superseded by row 5")];
    for (rejected, (row, text)) in outcome.rejected.iter().zip(expected) {
        assert_eq!(rejected.row, row);
        assert!(rejected.reason.contains(text), "{}", rejected.reason);
    }
}

#[tokio::test]
async fn a_batch_without_a_good_row_creates_nothing() {
    let mesh = start().await;
    for rows in [vec![flat("2016-08-16T03:46:01Z", 5.0)], Vec::new()] {
        let outcome = mesh.put(batch(RELIANCE, "1m", rows)).await.unwrap();
        assert_eq!((outcome.stored, outcome.revision), (0, 0));
    }
    let request = GetInstrumentRequest { instrument_key: RELIANCE.into() };
    let fault = fault(mesh.client.clone().get_instrument(request).await.unwrap_err());
    assert_eq!((fault.code, fault.reason.as_str()), (Code::NotFound, "UNKNOWN_INSTRUMENT"));
    assert!(fault.message.contains(RELIANCE));
}

#[tokio::test]
async fn the_first_batch_decides_the_calendar_and_another_is_refused() {
    let mesh = start().await;
    let row = || vec![flat("2016-08-16T03:45:00Z", 1.0)];
    let unknown = fault(mesh.put(batch("MCX_FO|GOLD", "1m", row())).await.unwrap_err());
    assert_eq!((unknown.code, unknown.fields[0].0.as_str()), (Code::InvalidArgument, "calendar"));
    assert!(unknown.message.contains("NSE, NYSE, CME, FX, EUREX, 24x7"), "{}", unknown.message);

    let with = |calendar: &str| {
        let mut batch = batch("MCX_FO|GOLD", "1m", row());
        batch.calendar = calendar.into();
        batch
    };
    let misspelt = fault(mesh.put(with("LSE")).await.unwrap_err());
    assert_eq!((misspelt.code, misspelt.fields[0].0.as_str()), (Code::InvalidArgument, "batch.calendar"));
    mesh.put(with("crypto")).await.unwrap();
    mesh.put(with("")).await.unwrap();
    mesh.put(with("24x7")).await.unwrap();
    let other = fault(mesh.put(with("NSE")).await.unwrap_err());
    assert_eq!((other.code, other.reason.as_str()), (Code::FailedPrecondition, "CALENDAR_CONFLICT"));
    assert!(other.message.contains("24x7") && other.message.contains("NSE"), "{}", other.message);

    let request = GetInstrumentRequest { instrument_key: "MCX_FO|GOLD".into() };
    let created = mesh.client.clone().get_instrument(request).await.unwrap().into_inner().instrument.unwrap();
    assert_eq!((created.calendar.as_str(), created.exchange.as_str()), ("24x7", "MCX"));
}

#[tokio::test]
async fn bad_requests_name_the_field() {
    let mesh = start().await;
    let missing = mesh.client.clone().put_candles(PutCandlesRequest { batch: None }).await.unwrap_err();
    let cases = [
        (missing, Code::InvalidArgument, "batch"),
        (mesh.put(batch("RELIANCE", "1m", vec![])).await.unwrap_err(), Code::InvalidArgument, "batch.instrument_key"),
        (mesh.put(batch(RELIANCE, "7m", vec![])).await.unwrap_err(), Code::InvalidArgument, "batch.timeframe"),
    ];
    for (status, code, field) in cases {
        let fault = fault(status);
        assert_eq!((fault.code, fault.fields[0].0.as_str()), (code, field));
    }
    let rows = vec![flat("2016-08-16T03:45:00Z", 1.0); 100_001];
    let fault = fault(mesh.put(batch(RELIANCE, "1m", rows)).await.unwrap_err());
    assert_eq!(fault.code, Code::ResourceExhausted);
    assert!(fault.message.contains("100001") && fault.message.contains("100000"), "{}", fault.message);
}

#[tokio::test]
async fn the_largest_batch_is_stored_and_revisions_follow_the_request() {
    let mesh = start().await;
    let rows: Vec<_> = (0..100_000).rev().map(|minute| flat_at(minute * 60_000, 1.0)).collect();
    let outcome = mesh.put(batch("CRYPTO|X", "1m", rows)).await.unwrap();
    assert_eq!((outcome.stored, outcome.rejected.len()), (100_000, 0));
    let instrument_keys = ["CRYPTO|Y", "CRYPTO|X", "crypto|X"].map(String::from).to_vec();
    let answer = mesh.client.clone().get_revisions(GetRevisionsRequest { instrument_keys }).await.unwrap();
    assert_eq!(answer.into_inner().revisions, [0, 1, 1]);
}

fn request(sequence: u64, time: &str) -> StreamCandlesRequest {
    StreamCandlesRequest { sequence, batch: Some(batch(RELIANCE, "1m", vec![flat(time, 1.0)])) }
}

#[tokio::test]
async fn streamed_batches_are_acknowledged_in_order_until_one_fails() {
    let mesh = start().await;
    let requests = [
        request(3, "2016-08-16T03:45:00Z"),
        request(9, "2016-08-16T03:46:00Z"),
        request(9, "2016-08-16T03:47:00Z"),
        request(10, "2016-08-16T03:48:00Z"),
    ];
    let answers = mesh.client.clone().stream_candles(futures::stream::iter(requests)).await.unwrap();
    let answers: Vec<_> = answers.into_inner().collect().await;
    let sequences: Vec<_> = answers.iter().map(|answer| answer.as_ref().map(|answer| answer.sequence).ok()).collect();
    assert_eq!(sequences, [Some(3), Some(9), None]);
    let fault = fault(answers[2].clone().unwrap_err());
    assert_eq!((fault.code, fault.fields[0].0.as_str()), (Code::InvalidArgument, "sequence"));

    let request = GetCoverageRequest { instrument_key: RELIANCE.into() };
    let coverage = mesh.client.clone().get_coverage(request).await.unwrap().into_inner();
    assert_eq!((coverage.coverage[0].candle_count, coverage.revision), (2, 2));
}

#[tokio::test]
async fn a_failing_batch_ends_the_stream_with_its_own_status() {
    let mesh = start().await;
    let mut bad = request(2, "2016-08-16T03:46:00Z");
    bad.batch.as_mut().unwrap().timeframe = "7m".into();
    let requests = [request(1, "2016-08-16T03:45:00Z"), bad];
    let answers = mesh.client.clone().stream_candles(futures::stream::iter(requests)).await.unwrap();
    let answers: Vec<_> = answers.into_inner().collect().await;
    assert_eq!(answers[0].as_ref().unwrap().outcome.as_ref().unwrap().stored, 1);
    assert_eq!(fault(answers[1].clone().unwrap_err()).fields[0].0, "batch.timeframe");
}

#[tokio::test]
async fn each_acknowledgement_comes_before_the_next_batch_and_a_drain_ends_the_stream() {
    let mesh = start().await;
    let (sender, receiver) = mpsc::channel(1);
    let mut client = mesh.client.clone();
    sender.send(request(1, "2016-08-16T03:45:00Z")).await.unwrap();
    let mut answers = client.stream_candles(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().sequence, 1);
    sender.send(request(2, "2016-08-16T03:46:00Z")).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().sequence, 2);
    mesh.drain.start();
    let fault = fault(answers.message().await.unwrap_err());
    assert_eq!((fault.code, fault.reason.as_str()), (Code::Unavailable, "DRAINING"));
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("candles.db").display());
    let open = async || store::Stores::open(&url, &store::StoreOptions::default()).await.unwrap();
    let stores = open().await;
    let mesh = start_over(stores.clone()).await;
    let rows = || (0..3000).map(|minute| flat_at(minute * 60_000, 1.0)).collect::<Vec<_>>();
    assert_eq!(mesh.put(batch("CRYPTO|X", "1m", rows())).await.unwrap().stored, 3000);
    drop(mesh);
    stores.close().await;

    let mesh = start_over(open().await).await;
    let again = mesh.put(batch("CRYPTO|X", "1m", rows())).await.unwrap();
    assert_eq!((again.stored, again.unchanged, again.revision), (0, 3000, 1));
    let instrument_keys = ["CRYPTO|X", "CRYPTO|Y", "CRYPTO|X"].map(String::from).to_vec();
    let answer = mesh.client.clone().get_revisions(GetRevisionsRequest { instrument_keys }).await.unwrap();
    assert_eq!(answer.into_inner().revisions, [1, 0, 1]);
}

#[tokio::test]
async fn two_revisions_differ_from_the_earliest_changed_candle_on() {
    let mesh = start().await;
    let key: market::InstrumentKey = "CRYPTO|X".parse().unwrap();
    for (minute, price) in [(10, 1.0), (11, 1.0), (10, 2.0)] {
        mesh.put(batch(key.as_str(), "1m", vec![flat_at(minute * 60_000, price)])).await.unwrap();
    }
    let remote = RemoteIngestion::connect(&mesh.address).unwrap();
    for (after, revision, want) in [(0, 1, Some(10)), (1, 2, Some(11)), (1, 3, Some(10)), (3, 4, None)] {
        let first = remote.first_change(&key, after, revision).await.unwrap();
        assert_eq!(first, want.map(|minute| minute * 60_000), "{after}..{revision}");
    }
    let refused = remote.first_change(&key, 2, 2).await.unwrap_err();
    assert_eq!((refused.code, refused.fields[0].0.as_str()), (Code::InvalidArgument, "revision"));
}

#[tokio::test]
async fn superseded_candles_go_when_their_retention_has_passed() {
    let (stores, key, at) = (store::Stores::memory(), "CRYPTO|X", "2021-01-01T00:00:00Z");
    let mesh = start_over(stores.clone()).await;
    for price in [1.0, 2.0] {
        mesh.put(batch(key, "1m", vec![flat(at, price)])).await.unwrap();
    }
    let read = async |mesh: &crate::Running| {
        let source = RemoteIngestion::connect(&mesh.address).unwrap();
        let (key, all) = (key.parse().unwrap(), market::TimeRange::ALL);
        source.stored(&key, market::Timeframe::M1, all, Some(1)).await.map(|stored| stored.revision)
    };
    assert_eq!(read(&mesh).await.unwrap(), 1);
    // What was superseded in this very millisecond is not yet older than no time at all.
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let config = ingestion::Config { retention: std::time::Duration::ZERO, ..Default::default() };
    let mesh = start_with(config, stores).await;
    let mut answer = read(&mesh).await;
    for _ in 0..100 {
        if answer.is_err() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        answer = read(&mesh).await;
    }
    let error = answer.unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::FailedPrecondition, "REVISION_EXPIRED"));
}

//! A real day, replayed as a feed while somebody watches: what was told is what is answered.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use candlemesh::client::Connection;
use candlemesh::client::replay::{Speed, replay};
use candlemesh_tests::in_process::InProcess;
use candlemesh_tests::oracle;
use market::Millis;
use proto::aggregation::aggregation_service_client::AggregationServiceClient;
use proto::aggregation::live_service_client::LiveServiceClient;
use proto::aggregation::{CandleEvent, GetCandlesRequest, WatchCandlesRequest, WatchCandlesResponse};
use proto::convert;
use proto::wire::{BucketCandle, TimeRange};
use tonic::Streaming;

/// Longest wait for anything: a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);
const KEY: &str = "NSE_EQ|INE002A01018";
const TIMEFRAMES: [&str; 4] = ["1m", "5m", "1h", "1d"];
/// Minutes of the session of 2016-08-16.
const MINUTES: u64 = 375;

/// The last that was told of each candle, and how often it was closed.
#[derive(Default)]
struct Told {
    candles: BTreeMap<(String, Millis), (BucketCandle, u32)>,
    cursor: String,
}

impl Told {
    fn take(&mut self, message: WatchCandlesResponse) {
        for update in message.updates {
            let event = update.event();
            let candle = update.candle.unwrap_or_default();
            let at = candle.open_time.as_ref().and_then(convert::millis).unwrap_or_default();
            let (last, closes) = self.candles.entry((update.timeframe, at)).or_default();
            *last = candle;
            *closes += u32::from(event == CandleEvent::Close);
        }
        self.cursor = message.cursor;
    }

    fn minutes(&self) -> u64 {
        self.candles.keys().filter(|(timeframe, _)| timeframe == "1m").count() as u64
    }
}

async fn next(stream: &mut Streaming<WatchCandlesResponse>) -> Result<WatchCandlesResponse> {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await.context("nothing was told")??;
    message.context("the stream ended")
}

fn day() -> TimeRange {
    let at = |text| market::parse_millis(text).ok().map(convert::timestamp);
    TimeRange { start_time: at("2016-08-16T00:00:00Z"), end_time: at("2016-08-17T00:00:00Z") }
}

async fn follow(mesh: &InProcess, file: &Path) -> Result<()> {
    let channel = mesh::client::connect(&mesh.gateway())?;
    let mut live = LiveServiceClient::new(channel.clone()).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
    let mut request = WatchCandlesRequest {
        instrument_keys: vec![KEY.into()],
        timeframes: TIMEFRAMES.map(String::from).to_vec(),
        ..Default::default()
    };
    let mut stream = live.watch_candles(request.clone()).await?.into_inner();
    let mut told = Told::default();
    told.take(next(&mut stream).await?);

    let connection = Connection::to(&mesh.gateway());
    let args = candlemesh::client::replay::ReplayArgs {
        file: Some(file.to_owned()),
        instrument: Some(KEY.parse()?),
        range: candlemesh::client::RangeArgs { start: Some("2016-08-16".into()), end: Some("2016-08-17".into()) },
        calendar: String::new(),
        speed: Speed::Max,
        shift_to: None,
        instruments: 1,
        retry_for: 0,
        json: false,
    };
    let feeding = tokio::spawn(async move { replay(&connection, &args).await });
    // Lost halfway, and resumed.
    while told.minutes() < MINUTES / 2 {
        told.take(next(&mut stream).await?);
    }
    drop(stream);
    request.cursor.clone_from(&told.cursor);
    let mut stream = live.watch_candles(request).await?.into_inner();
    let report = feeding.await??;
    ensure!((report.stored, report.rejected) == (MINUTES, 0), "{report:?}");
    while told.minutes() < MINUTES {
        told.take(next(&mut stream).await?);
    }
    // The wider candles of the last minute come with it, or in the message after.
    let whole = |told: &Told| {
        told.candles
            .iter()
            .filter(|((frame, _), _)| frame == "1d")
            .all(|(_, (day, _))| u64::from(day.source_count) == MINUTES)
    };
    while !whole(&told) {
        told.take(next(&mut stream).await?);
    }

    let mut aggregation = AggregationServiceClient::new(channel);
    for timeframe in TIMEFRAMES {
        let request = GetCandlesRequest {
            instrument_key: KEY.into(),
            timeframe: timeframe.into(),
            range: Some(day()),
            ..Default::default()
        };
        let answer = aggregation.get_candles(request).await?.into_inner();
        let told = told.candles.iter().filter(|((frame, _), _)| frame == timeframe);
        let told: Vec<&(BucketCandle, u32)> = told.map(|(_, told)| told).collect();
        ensure!(
            told.len() == answer.candles.len(),
            "{timeframe}: {} told, {} answered",
            told.len(),
            answer.candles.len()
        );
        for ((last, closes), want) in told.into_iter().zip(&answer.candles) {
            ensure!(last == want, "{timeframe}: told {last:?}, answered {want:?}");
            ensure!(*closes == 1, "{timeframe}: closed {closes} times: {last:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_day_is_told_as_it_is_answered_across_a_lost_connection() -> Result<()> {
    let Some(folder) = oracle::data_folder()? else { return Ok(()) };
    let mesh = InProcess::start().await?;
    let outcome = follow(&mesh, &folder.join("1m/NSE_EQ_INE002A01018_RELIANCE.csv.gz")).await;
    mesh.stop().await?;
    outcome
}

//! The change log as its watchers see it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use market::{InstrumentKey, Millis, TimeRange, Timeframe};
use proto::ingestion::change_service_client::ChangeServiceClient;
use proto::ingestion::{Change, PutCandleBatchesRequest, WatchChangesRequest, WatchChangesResponse};
use store::{StoreOptions, Stores};
use tonic::{Code, Streaming};

use super::*;

/// Longest wait for anything: a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
const OPEN: Millis = 1_471_319_100_000;
const MINUTE: Millis = 60_000;
/// Ten watchers of 5000 changes in an unoptimised build on a loaded machine, all clients and the server on two cores.
const MARKET_LIMIT: Duration = Duration::from_secs(30);
const WRITERS: u64 = 8;
const PUTS: u64 = 25;

type Watch = Streaming<WatchChangesResponse>;

impl Running {
    async fn watch(&self, request: WatchChangesRequest) -> Result<Watch, Status> {
        let mut client = ChangeServiceClient::new(mesh::client::connect(&self.address).unwrap());
        Ok(client.watch_changes(request).await?.into_inner())
    }

    async fn watch_when_there_is_a_place(&self, request: WatchChangesRequest) -> Watch {
        let accepted = async {
            loop {
                match self.watch(request.clone()).await {
                    Ok(watch) => return watch,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, accepted).await.expect("the place of a watcher that left is free again")
    }

    async fn put_rows(&self, key: &str, rows: impl Iterator<Item = (i64, f64)>) -> BatchOutcome {
        let rows = rows.map(|(minute, price)| flat_at(OPEN + minute * MINUTE, price)).collect();
        self.put(batch(key, "1m", rows)).await.unwrap()
    }
}

fn after(sequence: u64) -> WatchChangesRequest {
    WatchChangesRequest { after_sequence: Some(sequence), include_candles: true, ..Default::default() }
}

async fn message(watch: &mut Watch) -> Result<WatchChangesResponse, Status> {
    let message = tokio::time::timeout(PATIENCE, watch.message()).await.expect("nothing came");
    message.map(|message| message.expect("a watch does not end without a status"))
}

/// Changes until everything up to `sequence` was sent.
async fn until(watch: &mut Watch, sequence: u64) -> Vec<Change> {
    let mut changes = Vec::new();
    loop {
        let message = message(watch).await.unwrap();
        changes.extend(message.changes);
        if message.sequence >= sequence {
            return changes;
        }
    }
}

fn sequences(changes: &[Change]) -> Vec<u64> {
    changes.iter().map(|change| change.sequence).collect()
}

async fn sqlite(folder: &std::path::Path) -> Stores {
    let url = format!("sqlite://{}", folder.join("candles.db").display());
    Stores::open(&url, &StoreOptions::default()).await.unwrap()
}

/// Eight writers, each on instruments of its own and on a shared one; returns how many changes they made.
async fn write_concurrently(running: &Running) -> u64 {
    let writers = (0..WRITERS).map(|writer| {
        let client = running.client.clone();
        async move {
            let mut changes = 0;
            for round in 0..PUTS {
                let minute = (round * WRITERS + writer) as i64;
                let row = flat_at(OPEN + minute * MINUTE, 1.0 + writer as f64);
                let batches =
                    vec![batch(&format!("NSE_EQ|W{writer}"), "1m", vec![row]), batch("NSE_EQ|SHARED", "1m", vec![row])];
                client.clone().put_candle_batches(PutCandleBatchesRequest { batches }).await.unwrap();
                changes += 2;
            }
            changes
        }
    });
    futures::future::join_all(writers.map(tokio::spawn)).await.into_iter().map(Result::unwrap).sum()
}

async fn every_change_comes_once_and_in_order(stores: Stores) {
    let config = ingestion::Config { change_ring: 64, ..Default::default() };
    let running = start_with(config, stores.clone()).await;
    let mut watches = Vec::new();
    for _ in 0..3 {
        watches.push(running.watch(after(0)).await.unwrap());
    }
    let collect = |mut watch: Watch| tokio::spawn(async move { until(&mut watch, WRITERS * PUTS * 2).await });
    let collecting: Vec<_> = watches.into_iter().map(collect).collect();
    assert_eq!(write_concurrently(&running).await, WRITERS * PUTS * 2);
    let logged = stores.candles.changes(0, 10_000).await.unwrap();
    let log: Vec<_> = logged.iter().map(|c| (c.sequence, c.key.to_string(), c.revision, c.last_open_time)).collect();
    assert_eq!(log.iter().map(|change| change.0).collect::<Vec<_>>(), (1..=WRITERS * PUTS * 2).collect::<Vec<_>>());
    for collected in collecting {
        let changes = collected.await.unwrap();
        let seen: Vec<_> = changes
            .iter()
            .map(|c| {
                let last = convert::millis(c.last_open_time.as_ref().unwrap()).unwrap();
                (c.sequence, c.instrument_key.clone(), c.revision, last)
            })
            .collect();
        assert_eq!(seen, log);
        for change in changes {
            let candles = convert::frame_of_columns(change.candles.unwrap()).unwrap();
            let writer = change.instrument_key.strip_prefix("NSE_EQ|W").map(|text| text.parse::<f64>().unwrap());
            assert_eq!(candles.len(), 1);
            assert!(writer.is_none_or(|writer| candles.close() == [1.0 + writer]), "{candles:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_memory_every_change_comes_once_and_in_order() {
    every_change_comes_once_and_in_order(Stores::memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_every_change_comes_once_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    every_change_comes_once_and_in_order(sqlite(folder.path()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_any_cursor_and_over_a_restart_nothing_is_lost_or_doubled() {
    let folder = tempfile::tempdir().unwrap();
    let stores = sqlite(folder.path()).await;
    // So small that most cursors lie behind it.
    let config = ingestion::Config { change_ring: 20, ..Default::default() };
    let running = start_with(config.clone(), stores.clone()).await;
    let last = write_concurrently(&running).await;
    // Numerical Recipes' quick generator: the cuts differ and repeat from run to run.
    let mut seed = 7_u32;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        u64::from(seed >> 8) % below
    };
    for _ in 0..20 {
        let (mut position, mut seen) = (0, Vec::new());
        while position < last {
            let mut watch = running.watch(after(position)).await.unwrap();
            for _ in 0..=random(3) {
                let message = message(&mut watch).await.unwrap();
                let ends = message.changes.last().map_or(position, |change| change.sequence);
                // Cut inside a message: what was not taken comes again.
                let taken = random(message.changes.len() as u64 + 1) as usize;
                let is_whole = taken == message.changes.len();
                seen.extend(sequences(&message.changes[..taken]));
                position = if is_whole { message.sequence.max(ends) } else { seen.last().copied().unwrap_or(position) };
                if !is_whole || position == last {
                    break;
                }
            }
        }
        assert_eq!(seen, (1..=last).collect::<Vec<_>>());
    }
    drop(running);
    stores.close().await;

    let stores = sqlite(folder.path()).await;
    let running = start_with(config, stores).await;
    let mut watch = running.watch(after(last - 30)).await.unwrap();
    assert_eq!(sequences(&until(&mut watch, last).await), (last - 29..=last).collect::<Vec<_>>());
    running.put_rows("NSE_EQ|NEW", [(0, 1.0)].into_iter()).await;
    assert_eq!(sequences(&until(&mut watch, last + 1).await), [last + 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_carries_what_is_stored_between_its_first_and_last_candle() {
    let running = start().await;
    running.put_rows("NSE_EQ|A", (0..10).map(|minute| (minute, 1.0))).await;
    let mut watch = running.watch(WatchChangesRequest { include_candles: true, ..Default::default() }).await.unwrap();
    // At once, so that a watcher that is cut off before anything changed knows where it stood.
    assert_eq!(message(&mut watch).await.unwrap(), WatchChangesResponse { changes: Vec::new(), sequence: 1 });
    let mut without = running.watch(WatchChangesRequest::default()).await.unwrap();
    message(&mut without).await.unwrap();
    running.put_rows("NSE_EQ|A", [(2, 7.0), (5, 1.0), (12, 7.0)].into_iter()).await;
    let changes = until(&mut watch, 2).await;
    assert_eq!(changes.len(), 1);
    let (change, bare) = (&changes[0], &until(&mut without, 2).await[0]);
    assert_eq!(*bare, Change { candles: None, ..change.clone() });
    let described =
        (change.sequence, &*change.instrument_key, &*change.timeframe, &*change.trading_date, change.revision);
    assert_eq!(described, (2, "NSE_EQ|A", "1m", "2016-08-16", 2));
    let candles = convert::frame_of_columns(change.candles.clone().unwrap()).unwrap();
    let minutes: Vec<_> = candles.open_time().iter().map(|at| (at - OPEN) / MINUTE).collect();
    assert_eq!(minutes, [2, 3, 4, 5, 6, 7, 8, 9, 12]);
    assert_eq!(candles.close(), [7.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 7.0]);
    assert_eq!(convert::millis(change.first_open_time.as_ref().unwrap()), Some(OPEN + 2 * MINUTE));
    assert_eq!(convert::millis(change.last_open_time.as_ref().unwrap()), Some(OPEN + 12 * MINUTE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_of_some_instruments_sees_those_and_moves_on_past_the_others() {
    let config = ingestion::Config { change_ring: 30, ..Default::default() };
    let running = start_with(config, Stores::memory()).await;
    let request = |after_sequence| WatchChangesRequest {
        instrument_keys: vec!["NSE_EQ|W3".into(), "NSE_EQ|NOBODY".into()],
        after_sequence: Some(after_sequence),
        include_candles: false,
    };
    let mut watch = running.watch(request(0)).await.unwrap();
    let last = write_concurrently(&running).await;
    let mut seen = Vec::new();
    while seen.len() < PUTS as usize {
        let message = message(&mut watch).await.unwrap();
        seen.extend(message.changes);
    }
    assert!(seen.iter().all(|change| change.instrument_key == "NSE_EQ|W3" && change.candles.is_none()));
    // The same from behind the ring, where nothing but the end of the log is of interest any more.
    let last_seen = seen.last().unwrap().sequence;
    let mut watch = running.watch(request(last_seen)).await.unwrap();
    assert_eq!(until(&mut watch, last_seen).await, []);
    let mut watch = running.watch(request(0)).await.unwrap();
    let mut again = Vec::new();
    while again.len() < PUTS as usize {
        again.extend(message(&mut watch).await.unwrap().changes);
    }
    assert_eq!(again, seen);
    // With candles a watcher holds fewer of them at a time than it finds in a page of the log.
    let mut watch = running.watch(WatchChangesRequest { include_candles: true, ..request(0) }).await.unwrap();
    let with_candles = until(&mut watch, last_seen).await;
    assert_eq!(sequences(&with_candles), sequences(&seen));
    assert!(with_candles.iter().all(|change| change.candles.is_some()));
    assert!(last_seen <= last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_does_not_read_is_cut_off_and_resumes_without_loss() {
    let config = ingestion::Config {
        slow_subscriber_after: Duration::from_millis(100),
        max_change_subscribers: 2,
        ..Default::default()
    };
    let running = start_with(config, Stores::memory()).await;
    // The smallest window there is: what lies unread in it is not the server's.
    let channel = tonic::transport::Endpoint::from_shared(running.address.clone()).unwrap();
    let channel = channel.initial_stream_window_size(65_535).connect_lazy();
    let mut slow = ChangeServiceClient::new(channel).watch_changes(after(0)).await.unwrap().into_inner();
    let mut quick = running.watch(after(0)).await.unwrap();
    // 375 rows of 56 bytes a change: 80 of them are many windows.
    for round in 1..=80_u64 {
        running.put_rows("NSE_EQ|A", (0..375).map(|minute| (minute, round as f64))).await;
        // Whoever reads is not held up by who does not.
        assert_eq!(sequences(&until(&mut quick, round).await), [round]);
    }
    // Its place is given to another only once it was cut off.
    drop(running.watch_when_there_is_a_place(after(80)).await);
    let (mut seen, mut last) = (Vec::new(), 0);
    let status = loop {
        match message(&mut slow).await {
            Ok(message) => {
                seen.extend(sequences(&message.changes));
                last = message.sequence;
            }
            Err(status) => break status,
        }
    };
    assert!((1..80).contains(&last), "{last}");
    let fault = fault(status);
    assert_eq!((fault.code, &*fault.reason), (Code::ResourceExhausted, "SLOW_SUBSCRIBER"));
    assert!(fault.message.ends_with(&format!("resume after sequence {last}")), "{}", fault.message);
    let mut resumed = running.watch_when_there_is_a_place(after(last)).await;
    seen.extend(sequences(&until(&mut resumed, 80).await));
    assert_eq!(seen, (1..=80).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_watcher_has_a_markets_minute_soon_after_it_was_acknowledged() {
    for watchers in [1, 10] {
        let running = start().await;
        let mut watching = tokio::task::JoinSet::new();
        for _ in 0..watchers {
            let mut watch = running.watch(after(0)).await.unwrap();
            watching.spawn(async move {
                let changes = until(&mut watch, 5000).await;
                (changes.len(), Instant::now())
            });
        }
        let batches =
            (0..5000).map(|index| batch(&format!("NSE_EQ|{index}"), "1m", vec![flat_at(OPEN, 1.0)])).collect();
        running.client.clone().put_candle_batches(PutCandleBatchesRequest { batches }).await.unwrap();
        let acknowledged = Instant::now();
        let mut last = acknowledged;
        while let Some(watched) = watching.join_next().await {
            let (changes, at) = watched.unwrap();
            assert_eq!(changes, 5000);
            last = last.max(at);
        }
        let took = last - acknowledged;
        println!("{watchers} watchers: the last of 5000 changes came {took:?} after the acknowledgement");
        assert!(took < MARKET_LIMIT, "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors_that_were_pruned_or_do_not_exist_yet_are_refused() {
    let stores = Stores::memory();
    let config = ingestion::Config { change_ring: 2, ..Default::default() };
    let running = start_with(config, stores.clone()).await;
    for round in 0..6 {
        running.put_rows("NSE_EQ|A", [(0, round as f64)].into_iter()).await;
    }
    let beyond = fault(running.watch(after(7)).await.unwrap_err());
    assert_eq!((beyond.code, &*beyond.fields[0].0), (Code::InvalidArgument, "after_sequence"));
    assert!(beyond.message.contains("7 given; the newest sequence is 6"), "{}", beyond.message);
    stores.candles.prune(mesh::clock::now() + 60_000, 0).await.unwrap();
    let expired = fault(running.watch(after(3)).await.unwrap_err());
    assert_eq!((expired.code, &*expired.reason), (Code::FailedPrecondition, "CURSOR_EXPIRED"));
    // The newest are still in memory.
    let mut watch = running.watch(after(4)).await.unwrap();
    assert_eq!(sequences(&until(&mut watch, 6).await), [5, 6]);
    let unreadable = WatchChangesRequest { instrument_keys: vec!["nonsense".into()], ..Default::default() };
    let refused = fault(running.watch(unreadable).await.unwrap_err());
    assert_eq!((refused.code, &*refused.fields[0].0), (Code::InvalidArgument, "instrument_keys[0]"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_are_limited_in_number_and_told_of_a_drain() {
    let config = ingestion::Config { max_change_subscribers: 2, ..Default::default() };
    let running = start_with(config, Stores::memory()).await;
    let first = running.watch(after(0)).await.unwrap();
    let mut second = running.watch(after(0)).await.unwrap();
    let refused = fault(running.watch(after(0)).await.unwrap_err());
    assert_eq!((refused.code, &*refused.reason), (Code::ResourceExhausted, "TOO_MANY_SUBSCRIBERS"));
    drop(first);
    running.watch_when_there_is_a_place(after(0)).await;
    message(&mut second).await.unwrap();
    running.drain.start();
    assert_eq!(message(&mut second).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_process_stored_is_found_in_the_log() {
    let stores = Stores::memory();
    let (here, there) = (start_over(stores.clone()).await, start_over(stores.clone()).await);
    let mut watch = here.watch(after(0)).await.unwrap();
    let mut want: BTreeMap<u64, String> = BTreeMap::new();
    for round in 0..30_u64 {
        let (at, key) = if round % 3 == 0 { (&here, "NSE_EQ|HERE") } else { (&there, "NSE_EQ|THERE") };
        at.put_rows(key, [(round as i64, 2.0)].into_iter()).await;
        want.insert(round + 1, key.to_owned());
    }
    let changes = until(&mut watch, 30).await;
    let seen: Vec<_> = changes.iter().map(|change| (change.sequence, change.instrument_key.clone())).collect();
    assert_eq!(seen, want.into_iter().collect::<Vec<_>>());
    for change in changes {
        let candles = convert::frame_of_columns(change.candles.unwrap()).unwrap();
        let key: InstrumentKey = change.instrument_key.parse().unwrap();
        let range = TimeRange::new(candles.open_time()[0], candles.open_time()[0] + 1).unwrap();
        let blocks: Vec<_> = stores.candles.read(&key, Timeframe::M1, range, None).try_collect().await.unwrap();
        assert_eq!(
            (blocks[0].frame.open_time(), blocks[0].frame.close()),
            (candles.open_time(), candles.close()),
            "{key}"
        );
    }
}

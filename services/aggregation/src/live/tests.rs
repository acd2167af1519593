//! The hub against a naive reading: whatever is put in whatever order, the last that was told of a candle is what GetCandles answers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use market::{Calendar, Candle, Instrument, InstrumentKey, Millis, Timeframe};
use mesh::clock::{Clock, ManualClock};
use mesh::source::{MasterData, MemoryLedger};
use mesh::{CpuPool, Drain, RemoteError};
use prost::Message as _;
use proto::aggregation::{CandleEvent, CandleUpdate, GetCandlesRequest, WatchCandlesRequest, WatchCandlesResponse};
use proto::convert;
use proto::wire::BucketCandle;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rollout::Engine;
use tonic::{Code, Status};

use super::*;
use crate::query::Query;

mod faults;
mod ready;
mod seam;

const MINUTE: Millis = 60_000;
const TIMEFRAMES: [&str; 6] = ["1m", "5m", "15m", "1h", "1d", "1w"];

struct World {
    ledger: Arc<MemoryLedger>,
    clock: Arc<ManualClock>,
    aggregator: Arc<Aggregator>,
    live: Live,
}

fn world(at: Millis, instruments: &[(&str, &str)], config: Config) -> World {
    world_of(at, instruments, config, |ledger| (Arc::clone(ledger) as _, Arc::clone(ledger) as _))
}

/// With a change log and master data between the ledger and what is tested.
fn world_of(
    at: Millis,
    instruments: &[(&str, &str)],
    config: Config,
    between: impl FnOnce(&Arc<MemoryLedger>) -> (Arc<dyn Changes>, Arc<dyn MasterData>),
) -> World {
    let ledger = Arc::new(MemoryLedger::default());
    for (key, calendar) in instruments {
        ledger.add(Instrument {
            key: key.parse().unwrap(),
            name: String::new(),
            exchange: String::new(),
            currency: String::new(),
            tick_size: 0.0,
            calendar: (*calendar).to_owned(),
        });
    }
    let clock = Arc::new(ManualClock::new(at));
    let (changes, master) = between(&ledger);
    let aggregator = Arc::new(Aggregator {
        stored: Arc::clone(&ledger) as _,
        master,
        pool: Arc::new(CpuPool::new(2, 1024).unwrap()),
        config: crate::Config::default(),
    });
    let live = Live::new(Arc::clone(&aggregator), Engine::V2, changes, Arc::clone(&clock) as _, config, Drain::new());
    World { ledger, clock, aggregator, live }
}

fn watching(keys: &[&str], timeframes: &[&str], cursor: &str) -> WatchCandlesRequest {
    WatchCandlesRequest {
        instrument_keys: keys.iter().map(ToString::to_string).collect(),
        timeframes: timeframes.iter().map(ToString::to_string).collect(),
        cursor: cursor.to_owned(),
        ..Default::default()
    }
}

/// What one subscriber heard.
struct Heard {
    stream: BoxStream<'static, Result<Bytes, Status>>,
    cursor: String,
    /// Since the stream began.
    is_caught_up: bool,
    /// By instrument, timeframe and open time, in order.
    events: BTreeMap<(String, String, Millis), Vec<(CandleEvent, BucketCandle)>>,
}

impl World {
    async fn watch(&self, request: WatchCandlesRequest) -> Result<Heard, LiveError> {
        let stream = self.live.watch(Subscription::try_from(request)?).await?;
        Ok(Heard { stream, cursor: String::new(), is_caught_up: false, events: BTreeMap::new() })
    }

    fn put(&self, key: &InstrumentKey, rows: Vec<Candle>) {
        self.ledger.put(&[(key.clone(), Timeframe::M1, rows)]);
    }

    async fn candles(&self, key: &InstrumentKey, timeframe: &str) -> Vec<BucketCandle> {
        let request =
            GetCandlesRequest { instrument_key: key.to_string(), timeframe: timeframe.into(), ..Default::default() };
        let query = Query::try_from(request).unwrap();
        let (_, batch) = self.aggregator.collect(Engine::V1, query, self.clock.now(), usize::MAX).await.unwrap();
        convert::wire_bucket_candles(&batch.buckets)
    }
}

impl Heard {
    fn goes_on_with(&mut self, other: Heard) {
        (self.stream, self.is_caught_up) = (other.stream, other.is_caught_up);
    }

    /// Takes what there is, after a resumption is complete. Returns the candles told.
    async fn listen(&mut self, until: Position, now: Millis) -> Vec<CandleUpdate> {
        let mut told = Vec::new();
        loop {
            let next = match self.position() {
                Some(place) if place.sequence >= until.sequence => match self.stream.next().now_or_never() {
                    Some(next) => next,
                    None => return told,
                },
                _ => tokio::time::timeout(Duration::from_secs(20), self.stream.next()).await.expect("told in time"),
            };
            told.extend(self.note(next.unwrap().unwrap(), now));
        }
    }

    /// Takes one message. Returns the candles told.
    async fn take(&mut self, now: Millis) -> Vec<CandleUpdate> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.stream.next()).await.expect("told in time");
        self.note(next.unwrap().unwrap(), now)
    }

    fn note(&mut self, message: Bytes, now: Millis) -> Vec<CandleUpdate> {
        let message = WatchCandlesResponse::decode(message).unwrap();
        self.cursor = message.cursor;
        assert!(!message.caught_up || (message.updates.is_empty() && !self.is_caught_up), "said once, of nothing else");
        self.is_caught_up |= message.caught_up;
        for update in &message.updates {
            let candle = update.candle.clone().unwrap();
            let at = convert::millis(candle.open_time.as_ref().unwrap()).unwrap();
            assert!(!candle.closed || at < now, "{update:?} is marked closed while it forms");
            let id = (update.instrument_key.clone(), update.timeframe.clone(), at);
            self.events.entry(id).or_default().push((update.event(), candle));
        }
        message.updates
    }

    /// Where the subscriber stands, unless it is being told what it missed.
    fn position(&self) -> Option<Position> {
        let cursor: Cursor = self.cursor.parse().ok()?;
        cursor.progress.is_none().then_some(cursor.position)
    }
}

fn random_candle(random: &mut StdRng, open_time: Millis) -> Candle {
    let (open, close) = (random.random_range(90.0..110.0), random.random_range(90.0..110.0));
    Candle {
        open_time,
        open,
        high: f64::max(open, close) + random.random_range(0.0..1.0),
        low: f64::min(open, close) - random.random_range(0.0..1.0),
        close,
        volume: random.random_range(0.0..1e5),
        open_interest: random.random_bool(0.3).then(|| random.random_range(0.0..1e6)),
    }
}

fn same(a: &BucketCandle, b: &BucketCandle) -> bool {
    let bits = |c: &BucketCandle| [c.open, c.high, c.low, c.close, c.volume].map(f64::to_bits);
    bits(a) == bits(b) && a.open_interest.map(f64::to_bits) == b.open_interest.map(f64::to_bits) && a == b
}

/// Checks a subscriber that has heard everything from an empty store on.
async fn check(world: &World, heard: &Heard, keys: &[InstrumentKey], grace: Millis, seed: u64) -> usize {
    let now = world.clock.now();
    let mut checked = 0;
    for key in keys {
        let calendar = Calendar::by_name(&world.ledger.instrument(key).await.unwrap().calendar).unwrap();
        for timeframe in TIMEFRAMES {
            for want in world.candles(key, timeframe).await {
                let at = convert::millis(want.open_time.as_ref().unwrap()).unwrap();
                let what = format!("seed {seed}: {key} {timeframe} {}", market::format_millis(at));
                let events = heard.events.get(&(key.to_string(), timeframe.to_owned(), at));
                let events = events.unwrap_or_else(|| panic!("{what} was never told"));
                let (last, got) = events.last().unwrap();
                let end = calendar.bucket(&calendar.day_at(at), timeframe.parse().unwrap(), at).end();
                let is_closed = want.complete || end + grace <= now;
                let closes = events.iter().filter(|(event, _)| *event == CandleEvent::Close).count();
                assert_eq!(closes, usize::from(is_closed), "{what}: {events:?}");
                let first_correction = events.iter().position(|(event, _)| *event == CandleEvent::Correction);
                let last_update = events.iter().rposition(|(event, _)| *event == CandleEvent::Update);
                let close = events.iter().position(|(event, _)| *event == CandleEvent::Close);
                assert!(first_correction.is_none() || close < first_correction, "{what}: {events:?}");
                assert!(close.is_none() || last_update < close, "{what}: {events:?}");
                // One that waits for its minutes may have been told before its end.
                let want = match last {
                    CandleEvent::Update => BucketCandle { closed: got.closed, complete: got.complete, ..want },
                    _ => want,
                };
                assert!(same(got, &want), "{what}: told {got:?}, answered {want:?}");
                checked += 1;
            }
        }
    }
    let told: usize = heard.events.len();
    assert_eq!(told, checked, "seed {seed}: candles were told that are not there");
    checked
}

/// Minutes around which each calendar is exercised: both clock changes of 2024, a half day, an evening session, a weekend.
const PLACES: [(&str, &str, &str); 7] = [
    ("NSE_EQ|A", "NSE", "2024-01-02T09:14:00+05:30"),
    ("US|B", "NYSE", "2024-03-08T15:40:00-05:00"),
    ("US|H", "NYSE", "2024-11-29T12:30:00-05:00"),
    ("CME|C", "CME", "2024-03-08T15:30:00-06:00"),
    ("FX|D", "FX", "2024-11-01T16:30:00-04:00"),
    ("CRYPTO|E", "24x7", "2024-06-30T23:30:00Z"),
    ("NSE_EQ|F", "NSE", "2023-11-10T15:20:00+05:30"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_put_the_last_told_of_each_candle_is_the_answer_and_each_closes_once() {
    let grace = Config::default().close_grace.as_millis() as Millis;
    let (mut checked, mut resumed, mut corrections) = (0, 0, 0);
    let seeds = 28;
    for seed in 0..seeds {
        let mut random = StdRng::seed_from_u64(seed);
        let (name, calendar, start) = PLACES[seed as usize % PLACES.len()];
        let start = market::parse_millis(start).unwrap();
        let other = format!("{}2", name);
        let instruments = [(name, calendar), (other.as_str(), calendar)];
        // Little room on some runs, so that state is lost and read again.
        let config = Config { max_accumulators: if seed % 3 == 0 { 4 } else { 1000 }, ..Config::default() };
        let world = world(start, &instruments, config);
        let keys: Vec<InstrumentKey> = instruments.iter().map(|(key, _)| key.parse().unwrap()).collect();
        let all: &[&str] = if seed % 2 == 0 { &[] } else { &[name, &other] };
        let mut steady = world.watch(watching(all, &TIMEFRAMES, "")).await.unwrap();
        let mut restless = world.watch(watching(all, &TIMEFRAMES, "")).await.unwrap();
        let mut here = world.live.locate().await;
        steady.listen(here, start).await;
        restless.listen(here, start).await;
        for _ in 0..90 {
            let now = world.clock.now();
            let step = match random.random_range(0..20) {
                0..8 => MINUTE,
                8..12 => random.random_range(1..3 * MINUTE),
                12..14 => random.random_range(1..4000),
                14 => random.random_range(0..40) * 30 * MINUTE,
                _ => 0,
            };
            world.clock.set(now + step);
            let now = world.clock.now();
            let this_minute = now - now.rem_euclid(MINUTE);
            let mut batches = Vec::new();
            for key in &keys {
                let rows: Vec<Candle> = match random.random_range(0..12) {
                    0..5 => vec![this_minute - MINUTE],
                    5 => vec![this_minute],
                    6 => (1..random.random_range(3..12)).map(|back| this_minute - back * MINUTE).rev().collect(),
                    7 => vec![this_minute - random.random_range(1..40) * MINUTE],
                    8 => (0..3).map(|_| this_minute - random.random_range(1..3000) * MINUTE).collect(),
                    9 => vec![this_minute + MINUTE],
                    _ => Vec::new(),
                }
                .into_iter()
                .map(|at| random_candle(&mut random, at))
                .collect();
                if !rows.is_empty() {
                    batches.push((key.clone(), Timeframe::M1, rows));
                }
            }
            world.ledger.put(&batches);
            if random.random_bool(0.1) {
                world.ledger.put(&batches);
            }
            if random.random_bool(0.7) {
                here = world.live.locate().await;
                steady.listen(here, now).await;
            }
            if random.random_bool(0.15) && !restless.cursor.is_empty() {
                restless.goes_on_with(world.watch(watching(all, &TIMEFRAMES, &restless.cursor)).await.unwrap());
                resumed += 1;
                let cursor = std::mem::take(&mut restless.cursor);
                here = world.live.locate().await;
                let told = restless.listen(here, now).await;
                assert!(restless.is_caught_up, "a resumption from {cursor} ends");
                let mut once = HashSet::new();
                for update in told.iter().filter(|update| update.event() == CandleEvent::Close) {
                    let id = (
                        update.instrument_key.clone(),
                        update.timeframe.clone(),
                        update.candle.as_ref().unwrap().open_time,
                    );
                    assert!(once.insert(id), "seed {seed}: {update:?} was told twice");
                }
            } else if random.random_bool(0.3) {
                here = world.live.locate().await;
                restless.listen(here, now).await;
            }
        }
        here = world.live.locate().await;
        steady.listen(here, world.clock.now()).await;
        restless.listen(here, world.clock.now()).await;
        checked += check(&world, &steady, &keys, grace, seed).await;
        checked += check(&world, &restless, &keys, grace, seed).await;
        let events = steady.events.values().flatten();
        corrections += events.filter(|(event, _)| *event == CandleEvent::Correction).count();
        let last = |heard: &Heard| -> HashMap<_, _> {
            heard.events.iter().map(|(id, events)| (id.clone(), events.last().unwrap().1.volume)).collect()
        };
        assert_eq!(last(&steady), last(&restless));
    }
    assert!(checked > 5000 && resumed > 100 && corrections > 500, "{checked} {resumed} {corrections}");
}

fn minute(at: Millis, volume: f64) -> Candle {
    Candle { open_time: at, open: 1.0, high: 2.0, low: 0.5, close: 1.5, volume, open_interest: None }
}

/// 2024-01-02 00:00 UTC, on a calendar without breaks.
const NOON: Millis = 1_704_153_600_000;

fn events(updates: &[CandleUpdate]) -> Vec<(CandleEvent, f64, bool, bool)> {
    let of = |update: &CandleUpdate| {
        let candle = update.candle.as_ref().unwrap();
        (update.event(), candle.volume, candle.closed, candle.complete)
    };
    updates.iter().map(of).collect()
}

#[tokio::test]
async fn a_candle_closes_when_it_is_whole_or_when_its_grace_is_over() {
    use CandleEvent::{Close, Correction, Update};
    let world = world(NOON, &[("CRYPTO|E", "24x7")], Config::default());
    let key: InstrumentKey = "CRYPTO|E".parse().unwrap();
    let mut heard = world.watch(watching(&["CRYPTO|E"], &["2m"], "")).await.unwrap();
    let mut told = async |at: Millis, row: Option<Candle>| {
        world.clock.set(NOON + at);
        world.put(&key, row.into_iter().collect());
        let here = world.live.locate().await;
        events(&heard.listen(here, NOON + at).await)
    };
    assert_eq!(told(60_500, Some(minute(NOON, 1.0))).await, [(Update, 1.0, false, false)]);
    // Its range is over, and its last minute is on the way.
    assert_eq!(told(120_000, None).await, []);
    assert_eq!(told(120_500, Some(minute(NOON + MINUTE, 2.0))).await, [(Close, 3.0, true, true)]);
    assert_eq!(told(180_000, Some(minute(NOON, 4.0))).await, [(Correction, 6.0, true, true)]);
    assert_eq!(told(181_000, Some(minute(NOON + 2 * MINUTE, 8.0))).await, [(Update, 8.0, false, false)]);
    assert_eq!(told(241_999, None).await, []);
    assert_eq!(told(242_000, None).await, [(Close, 8.0, true, false)]);
    assert_eq!(told(243_000, Some(minute(NOON + 3 * MINUTE, 8.0))).await, [(Correction, 16.0, true, true)]);
    assert_eq!(told(600_000, None).await, []);
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_is_cut_off_with_its_cursor_and_resumes() {
    let config = Config { backlog_bytes: 2_000, ..Config::default() };
    let world = world(NOON, &[("CRYPTO|E", "24x7")], config);
    let key: InstrumentKey = "CRYPTO|E".parse().unwrap();
    let mut slow = world.watch(watching(&[], &["1m"], "")).await.unwrap();
    let mut quick = world.watch(watching(&[], &["1m"], "")).await.unwrap();
    let first = world.live.locate().await;
    slow.listen(first, NOON).await;
    let mut expected = 0;
    for index in 0..40 {
        let now = NOON + (index + 1) * MINUTE;
        world.clock.set(now);
        world.put(&key, vec![minute(now - MINUTE, index as f64)]);
        let here = world.live.locate().await;
        expected += quick.listen(here, now).await.len();
    }
    assert_eq!(expected, 40);
    let status = slow.stream.next().await.unwrap().unwrap_err();
    let fault = RemoteError::from_status(&status);
    assert_eq!((fault.code, fault.reason.as_str()), (Code::ResourceExhausted, "SLOW_SUBSCRIBER"));
    assert!(fault.message.contains(&slow.cursor), "{} names {}", fault.message, slow.cursor);
    assert!(slow.stream.next().await.is_none());
    let mut again = world.watch(watching(&[], &["1m"], &slow.cursor)).await.unwrap();
    let here = world.live.locate().await;
    assert_eq!(again.listen(here, world.clock.now()).await.len(), 40);
}

#[tokio::test]
async fn refusals_name_the_field_and_pruned_cursors_have_expired() {
    let world = world(NOON, &[("CRYPTO|E", "24x7")], Config { max_subscribers: 2, ..Config::default() });
    let refused = |request: WatchCandlesRequest| Subscription::try_from(request).unwrap_err().field;
    assert_eq!(refused(watching(&[], &[], "")), "timeframes");
    assert_eq!(refused(watching(&[], &["1m", "7m"], "")), "timeframes[1]");
    assert_eq!(refused(watching(&["x"], &["1m"], "")), "instrument_keys[0]");
    assert_eq!(refused(watching(&[], &["1m"], "yesterday")), "cursor");
    assert_eq!(refused(WatchCandlesRequest { snapshot: true, ..watching(&[], &["1m"], "") }), "snapshot");

    let key: InstrumentKey = "CRYPTO|E".parse().unwrap();
    let mut heard = world.watch(watching(&[], &["1m"], "")).await.unwrap();
    let here = world.live.locate().await;
    heard.listen(here, NOON).await;
    world.put(&key, vec![minute(NOON, 1.0)]);
    let later = world.live.locate().await;
    world.ledger.prune(later.sequence);
    let mut resumed = world.watch(watching(&[], &["1m"], &heard.cursor)).await.unwrap();
    let expired = RemoteError::from_status(&resumed.stream.next().await.unwrap().unwrap_err());
    assert_eq!((expired.code, expired.reason.as_str()), (Code::FailedPrecondition, "CURSOR_EXPIRED"));

    let second = world.watch(watching(&[], &["1m"], "")).await.unwrap();
    let full = world.watch(watching(&[], &["1m"], "")).await.err().unwrap();
    assert_eq!((full.code(), full.reason()), (Code::ResourceExhausted, "TOO_MANY_SUBSCRIBERS"));
    drop(second);
    let ahead = Position { sequence: later.sequence + 1000, ..later }.to_string();
    let foreign = world.watch(watching(&[], &["1m"], &ahead)).await.err().unwrap();
    assert_eq!((foreign.code(), foreign.field().as_deref()), (Code::InvalidArgument, Some("cursor")));
}

#[tokio::test]
async fn a_snapshot_comes_first_and_closed_only_tells_no_forming_candle() {
    let world = world(NOON, &[("CRYPTO|E", "24x7"), ("NSE_EQ|A", "NSE")], Config::default());
    let key: InstrumentKey = "CRYPTO|E".parse().unwrap();
    world.put(&key, vec![minute(NOON - 2 * MINUTE, 1.0), minute(NOON - MINUTE, 2.0), minute(NOON, 4.0)]);
    let request = WatchCandlesRequest {
        snapshot: true,
        closed_only: true,
        ..watching(&["CRYPTO|E", "NSE_EQ|A", "US|UNKNOWN"], &["1m", "5m"], "")
    };
    let mut heard = world.watch(request).await.unwrap();
    let here = world.live.locate().await;
    let told = heard.listen(here, NOON + 1).await;
    assert_eq!(events(&told), [(CandleEvent::Snapshot, 4.0, false, false), (CandleEvent::Snapshot, 4.0, false, false)]);
    // Not told by any change since: it closes by the clock alone.
    world.clock.set(NOON + MINUTE);
    let here = world.live.locate().await;
    let closes = [(CandleEvent::Close, 4.0, true, true), (CandleEvent::Close, 3.0, true, false)];
    assert_eq!(events(&heard.listen(here, NOON + MINUTE).await), closes);
    world.put(&key, vec![minute(NOON + MINUTE, 8.0)]);
    let here = world.live.locate().await;
    assert_eq!(events(&heard.listen(here, NOON + MINUTE).await), []);
}

#[tokio::test]
async fn a_snapshot_has_the_newest_of_each_timeframe_however_old_its_source_is() {
    let world = world(NOON, &[("CRYPTO|E", "24x7")], Config::default());
    let key: InstrumentKey = "CRYPTO|E".parse().unwrap();
    world.put(&key, vec![minute(NOON - 5000 * MINUTE, 1.0)]);
    world.ledger.put(&[(key, Timeframe::M30, vec![minute(NOON - 60 * MINUTE, 2.0)])]);
    let request = WatchCandlesRequest { snapshot: true, ..watching(&["CRYPTO|E"], &["1m", "30m"], "") };
    let mut heard = world.watch(request).await.unwrap();
    let here = world.live.locate().await;
    let told = events(&heard.listen(here, NOON).await);
    assert_eq!(told, [(CandleEvent::Snapshot, 1.0, true, true), (CandleEvent::Snapshot, 2.0, true, true)]);
    // Of nothing, the first message comes at once all the same.
    let request = WatchCandlesRequest { snapshot: true, ..watching(&["CRYPTO|NONE"], &["1m"], "") };
    let mut nothing = world.watch(request).await.unwrap();
    let first = tokio::time::timeout(Duration::from_secs(5), nothing.take(NOON)).await.expect("before the heartbeat");
    assert!(first.is_empty() && nothing.position().is_some());
}

#[tokio::test]
async fn coarser_sources_count_until_minutes_take_their_place() {
    let world = world(NOON, &[("CRYPTO|E", "24x7")], Config::default());
    let key: InstrumentKey = "CRYPTO|E".parse().unwrap();
    let mut heard = world.watch(watching(&[], &["1h"], "")).await.unwrap();
    world.ledger.put(&[(key.clone(), Timeframe::M30, vec![minute(NOON - 60 * MINUTE, 3.0)])]);
    let here = world.live.locate().await;
    assert_eq!(events(&heard.listen(here, NOON).await), [(CandleEvent::Update, 3.0, true, false)]);
    world.put(&key, vec![minute(NOON - 60 * MINUTE, 1.0), minute(NOON - 59 * MINUTE, 1.0)]);
    let here = world.live.locate().await;
    assert_eq!(events(&heard.listen(here, NOON).await), [(CandleEvent::Update, 2.0, true, false)]);
    let want = world.candles(&key, "1h").await;
    let (_, told) = heard.events.values().flatten().last().unwrap();
    assert!(same(told, &want[0]));
}

//! What happens while the instruments of a subscription are made ready: closes fall due, minutes come, the clock goes on.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use market::{CorporateAction, Instrument, TimeRange};
use mesh::source::{Group, SourceCoverage};

use tokio::sync::Semaphore;

use super::seam::{GRACE, Id, WATCHED, check_once};
use super::*;
use crate::live::pin::revisions_at;

/// More than are made ready at once.
const INSTRUMENTS: usize = 150;

/// A ledger to which something happens whenever it is asked.
struct Eventful {
    ledger: Arc<MemoryLedger>,
    clock: OnceLock<Arc<ManualClock>>,
    keys: Vec<InstrumentKey>,
    /// Present while something happens.
    random: Mutex<Option<StdRng>>,
    happened: AtomicUsize,
    /// Questions about what is stored that are answered.
    answers: Semaphore,
}

impl std::fmt::Debug for Eventful {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Eventful")
    }
}

impl Eventful {
    fn happen(&self) {
        let mut random = self.random.lock().unwrap();
        let (Some(random), Some(clock)) = (random.as_mut(), self.clock.get()) else { return };
        self.happened.fetch_add(1, Ordering::SeqCst);
        if random.random_bool(0.5) {
            clock.set(clock.now() + random.random_range(0..20_000));
        }
        if random.random_bool(0.3) {
            let (this_minute, back) = (clock.now() - clock.now().rem_euclid(MINUTE), random.random_range(0..3));
            let key = self.keys[random.random_range(0..self.keys.len())].clone();
            let row = random_candle(random, this_minute - back * MINUTE);
            self.ledger.put(&[(key, Timeframe::M1, vec![row])]);
        }
    }
}

#[tonic::async_trait]
impl MasterData for Eventful {
    async fn instrument(&self, key: &InstrumentKey) -> Result<Instrument, RemoteError> {
        self.ledger.instrument(key).await
    }

    async fn instruments(&self) -> Result<Vec<Instrument>, RemoteError> {
        self.ledger.instruments().await
    }

    async fn revisions(&self, keys: &[InstrumentKey]) -> Result<Vec<u64>, RemoteError> {
        self.happen();
        self.ledger.revisions(keys).await
    }

    async fn coverage(&self, key: &InstrumentKey) -> Result<Vec<SourceCoverage>, RemoteError> {
        self.answers.acquire().await.unwrap().forget();
        self.happen();
        self.ledger.coverage(key).await
    }

    async fn corporate_actions(&self, key: &InstrumentKey) -> Result<Vec<CorporateAction>, RemoteError> {
        self.ledger.corporate_actions(key).await
    }

    async fn group(&self, id: &str) -> Result<Group, RemoteError> {
        self.ledger.group(id).await
    }
}

/// Candles whose close had been said at a place.
async fn closed_at(world: &World, keys: &[InstrumentKey], place: Position) -> BTreeSet<Id> {
    let ledger = world.ledger.as_ref();
    let revisions = revisions_at(ledger, ledger, keys, place.sequence).await.unwrap();
    let reader = Reader { aggregator: Arc::clone(&world.aggregator), engine: Engine::V1 };
    let (calendar, closing) = (Calendar::by_name("24x7").unwrap(), Closing { grace_ms: GRACE });
    let mut closed = BTreeSet::new();
    for key in keys {
        for timeframe in WATCHED {
            let read = reader.candles(&calendar, key, timeframe.parse().unwrap(), TimeRange::ALL, Some(revisions[key]));
            let (_, candles) = read.await.unwrap();
            let due = candles.iter().filter(|candle| closing.is_due(candle, place.watermark));
            closed.extend(due.map(|candle| (key.to_string(), timeframe.to_owned(), candle.candle.open_time)));
        }
    }
    closed
}

fn names() -> Vec<String> {
    (0..INSTRUMENTS).map(|index| format!("CRYPTO|K{index}")).collect()
}

fn eventful(names: &[&str], answers: usize) -> (World, Arc<Eventful>) {
    let instruments: Vec<(&str, &str)> = names.iter().map(|name| (*name, "24x7")).collect();
    let mut made = None;
    let world = world_of(NOON + 500, &instruments, Config::default(), |ledger| {
        let eventful = Arc::new(Eventful {
            ledger: Arc::clone(ledger),
            clock: OnceLock::new(),
            keys: names.iter().map(|name| name.parse().unwrap()).collect(),
            random: Mutex::default(),
            happened: AtomicUsize::new(0),
            answers: Semaphore::new(answers),
        });
        made = Some(Arc::clone(&eventful));
        (Arc::clone(ledger) as _, eventful as _)
    });
    let eventful = made.unwrap();
    eventful.clock.set(Arc::clone(&world.clock)).unwrap();
    (world, eventful)
}

#[tokio::test]
async fn a_small_subscription_does_not_wait_for_a_large_one_and_who_leaves_is_forgotten() {
    let names = names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (world, eventful) = eventful(&names[..], 10);
    let mut large = Box::pin(world.watch(watching(&names[..149], &["1m"], "")));
    let begun = async {
        while eventful.answers.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = &mut large => panic!("it has its seat without the answers"),
        begun = tokio::time::timeout(Duration::from_secs(20), begun) => begun.expect("it asks"),
    };
    let mut small = Box::pin(world.watch(watching(&names[149..], &["1m"], "")));
    assert!((&mut small).now_or_never().is_none());
    // Enough for two slices of the large one, and for the small one.
    eventful.answers.add_permits(2 * 64 + 1 - 10);
    let mut small = tokio::select! {
        _ = &mut large => panic!("it has its seat without the answers"),
        small = small => small.unwrap(),
    };
    assert_eq!(eventful.answers.available_permits(), 0);
    // It leaves, and nothing more is asked for it than what was on its way.
    drop(large);
    eventful.answers.add_permits(1000);
    world.put(&names[149].parse().unwrap(), vec![minute(NOON, 3.0)]);
    let here = world.live.locate().await;
    assert_eq!(events(&small.listen(here, NOON + 500).await), [(CandleEvent::Update, 3.0, false, false)]);
    assert!(eventful.answers.available_permits() >= 1000 - 64, "{:?}", eventful.answers);
    let again = world.watch(watching(&names[..149], &["1m"], "")).await.unwrap();
    drop(again);
}

#[tokio::test]
async fn what_falls_due_while_a_subscription_is_made_ready_is_told_once_or_was_before_its_place() {
    let names = names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let keys: Vec<InstrumentKey> = names.iter().map(|name| name.parse().unwrap()).collect();
    let mut closes = 0;
    for seed in 0..16 {
        let is_resumed = seed % 2 > 0;
        let named: &[&str] = if seed % 4 < 2 { &names } else { &[] };
        let (world, eventful) = eventful(&names, Semaphore::MAX_PERMITS);
        for key in &keys {
            world.put(key, (-2..=0).map(|at| minute(NOON + at * MINUTE, 1.0)).collect());
        }
        // Another replica, whose subscriber comes to this one.
        let clock = Arc::clone(&world.clock) as _;
        let (aggregator, changes) = (Arc::clone(&world.aggregator), Arc::clone(&world.ledger) as _);
        let other = Live::new(aggregator, Engine::V2, changes, clock, Config::default(), Drain::new());
        let other = World {
            ledger: Arc::clone(&world.ledger),
            clock: Arc::clone(&world.clock),
            aggregator: Arc::clone(&world.aggregator),
            live: other,
        };
        let mut heard = other.watch(watching(named, &WATCHED, "")).await.unwrap();
        let here = other.live.locate().await;
        heard.listen(here, NOON + 500).await;
        let mut at_start = closed_at(&world, &keys, here).await;
        drop(other);

        *eventful.random.lock().unwrap() = Some(StdRng::seed_from_u64(seed));
        let cursor = if is_resumed { heard.cursor.clone() } else { String::new() };
        let stream = world.watch(watching(named, &WATCHED, &cursor)).await.unwrap();
        let all_ready = async {
            while eventful.happened.load(Ordering::SeqCst) < INSTRUMENTS {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all_ready).await.expect("made ready in time");
        *eventful.random.lock().unwrap() = None;
        heard.goes_on_with(stream);
        let now = world.clock.now();
        if !is_resumed {
            heard.events.clear();
            assert!(heard.take(now).await.is_empty());
            at_start = closed_at(&world, &keys, heard.position().unwrap()).await;
        }
        let here = world.live.locate().await;
        heard.listen(here, now).await;
        world.put(&keys[3], vec![minute(NOON, 7.0)]);
        world.clock.set(now + 20 * MINUTE);
        let here = world.live.locate().await;
        heard.listen(here, now + 20 * MINUTE).await;
        check_once(&world, &heard, &keys, &at_start, &format!("seed {seed}")).await;
        closes += heard.events.values().flatten().filter(|(event, _)| *event == CandleEvent::Close).count();
    }
    assert!(closes > 1000, "{closes}");
}

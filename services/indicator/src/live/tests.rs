//! What is told against what is answered: whatever is put in whatever order, by whoever is behind or comes back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use market::{Candle, Instrument, Millis, TimeRange};
use mesh::CpuPool;
use mesh::engine::Engines;
use mesh::source::MemoryNewsroom;
use proto::indicator::{IndicatorEvent, IndicatorUpdate};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rollout::Engine;

use super::*;
use crate::query::Query;

mod bounds;
mod resume;

const MINUTE: Millis = 60_000;
/// 2024-01-02 00:00 UTC.
const START: Millis = 1_704_153_600_000;
/// For anything to arrive; only a hang takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
const SPECS: [&str; 6] = ["sma:3", "ema:4", "vwap", "bbands:5,2", "rsi:3", "obv"];

struct World {
    room: MemoryNewsroom,
    live: Live,
    indicators: Arc<Indicators>,
    /// By instrument and revision, as they do not change.
    answered: std::sync::Mutex<HashMap<(String, u64), Arc<Answers>>>,
}

type Answers = BTreeMap<Millis, Bits>;

fn world(keys: &[&str], config: Config) -> World {
    let room = MemoryNewsroom::default();
    for key in keys {
        room.add(Instrument {
            key: key.parse().unwrap(),
            name: String::new(),
            exchange: String::new(),
            currency: String::new(),
            tick_size: 0.0,
            calendar: "24x7".into(),
        });
    }
    over(room, config)
}

/// Another replica.
fn over(room: MemoryNewsroom, config: Config) -> World {
    let config = crate::Config { live: config, ..crate::Config::default() };
    let ports = crate::Ports {
        candles: Arc::new(room.clone()),
        live: Arc::new(room.clone()),
        master: Arc::new(room.clone()),
        engines: Engines::BOTH,
        pool: Arc::new(CpuPool::new(2, 1024).unwrap()),
        cache: config.local_cache(),
    };
    let indicators = Arc::new(Indicators::new(&config, &ports));
    World { room, live: Live::new(&config, &ports, Arc::clone(&indicators)), indicators, answered: Default::default() }
}

fn watching(keys: &[&str], include_forming: bool, cursor: &str) -> WatchIndicatorsRequest {
    WatchIndicatorsRequest {
        instrument_keys: keys.iter().map(ToString::to_string).collect(),
        timeframes: vec!["1m".into()],
        indicators: SPECS.map(str::to_owned).to_vec(),
        cursor: cursor.to_owned(),
        include_forming,
    }
}

/// Values by column, to the bit.
type Bits = Vec<Option<u64>>;

fn bits(update: &IndicatorUpdate) -> Bits {
    let value = |(index, value): (usize, &f64)| {
        assert!(value.is_finite());
        (!update.undefined.contains(&(index as u32))).then_some(value.to_bits())
    };
    update.values.iter().enumerate().map(value).collect()
}

fn at(update: &IndicatorUpdate) -> Millis {
    convert::millis(update.open_time.as_ref().unwrap()).unwrap()
}

/// What one subscriber heard.
struct Heard {
    stream: BoxStream<'static, Result<WatchIndicatorsResponse, Status>>,
    cursor: String,
    is_caught_up: bool,
    /// By instrument and open time, in order.
    events: BTreeMap<(String, Millis), Vec<IndicatorUpdate>>,
}

impl World {
    async fn watch(&self, request: WatchIndicatorsRequest) -> Result<Heard, LiveError> {
        let stream = self.live.watch(Subscription::try_from(request)?).await?;
        Ok(Heard { stream, cursor: String::new(), is_caught_up: false, events: BTreeMap::new() })
    }

    /// What the reference engine answers at a revision.
    async fn answers(&self, key: &str, revision: u64) -> Arc<Answers> {
        let id = (key.to_owned(), revision);
        if let Some(known) = self.answered.lock().unwrap().get(&id) {
            return Arc::clone(known);
        }
        let texts: Vec<String> = SPECS.map(str::to_owned).to_vec();
        let query = Query {
            key: key.parse().unwrap(),
            timeframe: Timeframe::M1,
            range: TimeRange::ALL,
            specs: query::specs(&texts).unwrap(),
            revision: Some(revision),
        };
        let table = self.indicators.compute(Engine::V1, &query).await.unwrap().table;
        let row = |row: usize| {
            let value = |value: f64| value.is_finite().then_some(value.to_bits());
            table.columns.iter().map(|column| value(column.values[row])).collect()
        };
        let answers: Answers = table.open_time.iter().enumerate().map(|(index, at)| (*at, row(index))).collect();
        let answers = Arc::new(answers);
        self.answered.lock().unwrap().insert(id, Arc::clone(&answers));
        answers
    }
}

impl Heard {
    /// Takes what there is up to now, after the beginning is complete. Returns what was told.
    async fn listen(&mut self, world: &World) -> Vec<IndicatorUpdate> {
        let goal = world.room.cursor();
        let mut told = Vec::new();
        let all = async {
            while !self.is_caught_up || !self.cursor.starts_with(&goal) {
                let message = self.stream.next().await.unwrap().unwrap();
                self.cursor = message.cursor;
                assert!(!message.caught_up || (message.updates.is_empty() && !self.is_caught_up));
                self.is_caught_up |= message.caught_up;
                for update in message.updates {
                    self.events.entry((update.instrument_key.clone(), at(&update))).or_default().push(update.clone());
                    told.push(update);
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("told in time");
        told
    }
}

fn random_candle(random: &mut StdRng, open_time: Millis) -> Candle {
    let (open, close) = (random.random_range(90.0..110.0), random.random_range(90.0..110.0));
    let high = f64::max(open, close) + random.random_range(0.0..1.0);
    let low = f64::min(open, close) - random.random_range(0.0..1.0);
    let volume = if random.random_bool(0.1) { 0.0 } else { random.random_range(0.0..1e5) };
    Candle { open_time, open, high, low, close, volume, open_interest: None }
}

fn flat(open_time: Millis, close: f64) -> Candle {
    Candle { open_time, open: close, high: close, low: close, close, volume: 1.0, open_interest: None }
}

/// One step of a feed: the next minute, late minutes near and far, history, the forming candle, and a close by the clock.
fn step(random: &mut StdRng, room: &MemoryNewsroom, key: &InstrumentKey, now: &mut Millis) {
    let rows: Vec<(Millis, bool)> = match random.random_range(0..16) {
        0..5 => {
            *now += MINUTE;
            vec![(*now - MINUTE, true)]
        }
        5..7 => vec![(*now, false)],
        7 => {
            room.close(key, Timeframe::M1, *now - MINUTE);
            Vec::new()
        }
        8 => vec![(*now - random.random_range(1..6) * MINUTE, true)],
        9 => vec![(*now - random.random_range(1..200) * MINUTE, true)],
        10 => {
            *now += 12 * MINUTE;
            (1..12).map(|back| (*now - back * MINUTE, true)).collect()
        }
        11 => (0..3).map(|_| (*now - random.random_range(1..300) * MINUTE, true)).collect(),
        12 => {
            *now += 3 * MINUTE;
            vec![(*now - MINUTE, false), (*now, false)]
        }
        _ => Vec::new(),
    };
    let mut seen = BTreeSet::new();
    let rows: Vec<_> = rows
        .into_iter()
        .filter(|(at, _)| seen.insert(*at))
        .map(|(at, closes)| (Timeframe::M1, random_candle(random, at), closes))
        .collect();
    if !rows.is_empty() {
        room.put(key, &rows);
    }
}

/// Checks every value told against the answer at its revision, and that each candle closes once.
async fn check(world: &World, heard: &Heard, key: &str, what: &str) -> usize {
    let mut checked = 0;
    for ((_, open_time), updates) in heard.events.iter().filter(|((of, _), _)| of == key) {
        for update in updates {
            let answers = world.answers(key, update.revision).await;
            assert_eq!(Some(&bits(update)), answers.get(open_time), "{what}: {update:?}");
            assert!(update.closed || matches!(update.event(), IndicatorEvent::Update | IndicatorEvent::Snapshot));
            checked += 1;
        }
        let closes = updates.iter().filter(|update| update.event() == IndicatorEvent::Close).count();
        assert!(closes <= 1, "{what}: closed {closes} times: {updates:?}");
        let close = updates.iter().position(|update| update.event() == IndicatorEvent::Close);
        let forming = updates.iter().rposition(|update| update.event() == IndicatorEvent::Update);
        assert!(close.is_none() || forming < close, "{what}: an update after the close: {updates:?}");
    }
    checked
}

/// Checks that the last that was told of the newest candles is what is answered now.
async fn check_newest(world: &World, heard: &Heard, key: &str, what: &str) {
    let revision = world.room.revisions(&[key.parse().unwrap()]).await.unwrap()[0];
    let now = world.answers(key, revision).await;
    let newest: BTreeSet<Millis> = now.keys().rev().take(super::tell::RETOLD).copied().collect();
    let told = heard.events.iter().filter(|((of, at), _)| of == key && newest.contains(at));
    for ((_, open_time), updates) in told {
        let last = updates.last().unwrap();
        assert_eq!(bits(last), now[open_time], "{what}: stale: {updates:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_put_what_is_told_is_what_is_answered_and_the_last_is_not_stale() {
    let names = ["CRYPTO|A", "CRYPTO|B"];
    let (mut checked, mut resumed, mut corrections, mut forming) = (0, 0, 0, 0);
    for seed in 0..12 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = world(&names, Config { linger: Duration::ZERO, ..Config::default() });
        let mut replica = over(world.room.clone(), Config::default());
        let keys: Vec<InstrumentKey> = names.iter().map(|key| key.parse().unwrap()).collect();
        let mut now = START;
        for _ in 0..random.random_range(0..40) {
            step(&mut random, &world.room, &keys[0], &mut now);
        }
        if seed % 3 == 0 {
            world.room.cut_messages_at(2);
            (world.live.ports.cut_news, replica.live.ports.cut_news) = (2, 2);
        }
        let mut steady = world.watch(watching(&names, true, "")).await.unwrap();
        let mut lazy = world.watch(watching(&names, true, "")).await.unwrap();
        let mut closed = world.watch(watching(&names, false, "")).await.unwrap();
        let mut restless = world.watch(watching(&names, true, "")).await.unwrap();
        restless.listen(&world).await;
        for round in 0..50 {
            let key = &keys[random.random_range(0..2)];
            step(&mut random, &world.room, key, &mut now);
            if random.random_bool(0.7) {
                steady.listen(&world).await;
            }
            // A part of what was missed is told again to who is cut off within.
            if seed % 3 != 0 && random.random_bool(0.05) {
                world.room.hang_up();
            }
            if random.random_bool(0.15) {
                let place = if round % 2 == 0 { &world } else { &replica };
                let cursor = restless.cursor.clone();
                restless.stream = place.watch(watching(&names, true, &cursor)).await.unwrap().stream;
                restless.is_caught_up = false;
                if random.random_bool(0.5) {
                    step(&mut random, &world.room, key, &mut now);
                }
                restless.listen(&world).await;
                resumed += 1;
            } else if random.random_bool(0.3) {
                restless.listen(&world).await;
            }
        }
        // Told to everybody, so that it moves everybody on.
        let last = |key: &InstrumentKey| (key.clone(), Timeframe::M1, flat(now + 30 * MINUTE, 100.0), true);
        world.room.put_all(&keys.iter().map(last).collect::<Vec<_>>());
        for heard in [&mut steady, &mut lazy, &mut closed, &mut restless] {
            heard.listen(&world).await;
        }
        for key in names {
            for (heard, who) in [(&steady, "steady"), (&lazy, "lazy"), (&closed, "closed"), (&restless, "restless")] {
                let what = format!("seed {seed}, {who}, {key}");
                checked += check(&world, heard, key, &what).await;
                check_newest(&world, heard, key, &what).await;
            }
        }
        let of = |event| steady.events.values().flatten().filter(|update| update.event() == event).count();
        corrections += of(IndicatorEvent::Correction);
        forming += of(IndicatorEvent::Update);
    }
    println!("{checked} values checked, {resumed} resumptions, {corrections} corrections, {forming} forming");
    assert!(
        checked > 3000 && resumed > 40 && corrections > 300 && forming > 100,
        "{checked} {resumed} {corrections} {forming}"
    );
}

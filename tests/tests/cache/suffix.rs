//! Answers that begin at a kept state or an earlier answer equal those computed from the first candle, to the bit, whatever is stored.

use candlemesh_tests::made_up::{Numbers, session_open};
use kernels::indicator::catalogue;
use market::{Calendar, Candle, Millis, TimeRange};

use super::world::{World, content};

const KEY: &str = "NSE_EQ|A";
const SESSIONS: usize = 14;
const ROUNDS: u64 = 60;
const MINUTE: Millis = 60_000;
const DAY: Millis = 86_400_000;
/// The first sessions are stored later, before what is there.
const LATER: usize = 3;

/// Every indicator in one of these.
fn sets() -> Vec<Vec<String>> {
    let names: Vec<String> = catalogue().iter().map(|info| info.name.to_owned()).collect();
    let mut sets: Vec<Vec<String>> = names.chunks(24).map(<[String]>::to_vec).collect();
    sets.push(["ema:9", "vwap", "vwap_anchored:2", "bbands"].map(str::to_owned).to_vec());
    sets
}

fn altered(candle: &Candle, numbers: &mut Numbers) -> Candle {
    let close = candle.low + (candle.high - candle.low) * numbers.unit();
    Candle { close, volume: 1.0 + numbers.below(9000) as f64, ..*candle }
}

/// Stores something that may come: new minutes, corrections near the end or far back, coarser candles, days out of order.
async fn store(
    world: &World,
    stored: &mut Vec<Candle>,
    waiting: &mut Vec<Candle>,
    early: &mut Vec<Candle>,
    numbers: &mut Numbers,
) {
    let count = stored.len() as u64;
    match numbers.below(10) {
        0..=3 if !waiting.is_empty() => {
            let many = if numbers.below(3) == 0 { 400 } else { 1 + numbers.below(5) as usize };
            let rest = waiting.split_off(many.min(waiting.len()));
            let new = std::mem::replace(waiting, rest);
            world.put(KEY, "1m", &new).await;
            stored.extend(new);
        }
        0..=5 => {
            let at = (count - 1 - numbers.below(count.min(300))) as usize;
            stored[at] = altered(&stored[at], numbers);
            world.put(KEY, "1m", &stored[at..=at]).await;
        }
        6 => {
            let at = numbers.below(count) as usize;
            stored[at] = altered(&stored[at], numbers);
            world.put(KEY, "1m", &stored[at..=at]).await;
        }
        7 if !early.is_empty() => {
            world.put(KEY, "1m", &std::mem::take(early)).await;
        }
        7 | 8 => {
            // Coarser candles of a date: they count where it has no minutes, and after them minutes take the date over.
            let last = stored[stored.len() - 1].open_time + DAY * (1 + numbers.below(3) as i64);
            let day = Calendar::by_name("NSE").unwrap().day_at(last);
            let open = day.sessions.first().map_or(day.anchor, |session| session.open);
            let candle = Candle { open_time: open + 5 * MINUTE * numbers.below(70) as i64, ..stored[0] };
            world.put(KEY, "5m", &[candle]).await;
        }
        _ => {
            let at = numbers.below(count) as usize;
            let day = Calendar::by_name("NSE").unwrap().day_at(stored[at].open_time);
            world.put(KEY, "1d", &[Candle { open_time: day.anchor, ..stored[at] }]).await;
        }
    }
}

fn ranges(stored: &[Candle], numbers: &mut Numbers) -> TimeRange {
    let (first, last) = (stored[0].open_time, stored[stored.len() - 1].open_time);
    let session = |index: usize| session_open(candlemesh_tests::made_up::dates(SESSIONS).unwrap()[index]).unwrap();
    let (start, end) = match numbers.below(5) {
        0 => return TimeRange::ALL,
        1 => (TimeRange::ALL.start(), last - DAY),
        2 => (session(SESSIONS / 2), TimeRange::ALL.end()),
        3 => (session(2), session(SESSIONS - 4)),
        _ => {
            let start = first + MINUTE * numbers.below(((last - first) / MINUTE) as u64) as i64;
            (start, start + MINUTE * (1 + numbers.below(6000) as i64))
        }
    };
    TimeRange::new(start, end).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_stored_an_answer_equals_the_reference_to_the_bit() {
    let seed = std::env::var("CANDLEMESH_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_241_121);
    println!("CANDLEMESH_TEST_SEED={seed}");
    let mut numbers = Numbers::from_seed(seed);
    let world = World::start().await;
    let replica = world.replica(None, |_| {}).await;
    let mut all = candlemesh_tests::made_up::minutes(seed, SESSIONS).unwrap();
    let dates = candlemesh_tests::made_up::dates(SESSIONS).unwrap();
    let from = session_open(dates[LATER]).unwrap();
    let until = session_open(dates[SESSIONS - 2]).unwrap();
    let mut early: Vec<Candle> = all.iter().filter(|candle| candle.open_time < from).copied().collect();
    all.retain(|candle| candle.open_time >= from);
    let mut waiting: Vec<Candle> = all.iter().filter(|candle| candle.open_time >= until).copied().collect();
    all.retain(|candle| candle.open_time < until);
    let mut stored = all;
    world.put(KEY, "1m", &stored).await;
    let sets = sets();
    for round in 0..ROUNDS {
        for _ in 0..numbers.below(3) {
            store(&world, &mut stored, &mut waiting, &mut early, &mut numbers).await;
        }
        for _ in 0..4 {
            let set = &sets[numbers.below(sets.len() as u64) as usize];
            let timeframe = ["1m", "1m", "5m", "1h", "1d", "1w", "1mo"][numbers.below(7) as usize];
            let range = ranges(&stored, &mut numbers);
            let want = content(replica.ask("v1", KEY, timeframe, range, set).await);
            let got = content(replica.ask("v2", KEY, timeframe, range, set).await);
            assert_eq!(got.open_time_ms, want.open_time_ms, "round {round}, {timeframe} {range:?}");
            for (got, want) in got.columns.iter().zip(&want.columns) {
                let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(got.null_ranges, want.null_ranges, "round {round}, {timeframe} {range:?} {}", want.name);
                assert_eq!(bits(&got.values), bits(&want.values), "round {round}, {timeframe} {range:?} {}", want.name);
            }
            assert_eq!(got, want, "round {round}, {timeframe} {range:?}");
        }
    }
    // Otherwise nothing was tested.
    let statistics = replica.statistics().await;
    println!("{statistics:?}");
    assert!(statistics.suffix_computations > ROUNDS / 2 && statistics.saved_rows > 10_000, "{statistics:?}");
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_minute_costs_its_trading_date_and_not_the_series() {
    let world = World::start().await;
    let replica = world.replica(None, |_| {}).await;
    let mut stored = world.put_sessions(KEY, 7, SESSIONS).await;
    let set = ["sma:9", "ema:50", "rsi", "vwap"].map(str::to_owned);
    let mut numbers = Numbers::from_seed(1);
    let ask = || replica.ask("v2", KEY, "1m", TimeRange::ALL, &set);
    let rows = ask().await.open_time_ms.len() as u64;
    let last_date =
        stored.partition_point(|candle| candle.open_time < stored[stored.len() - 1].open_time - DAY / 2) as u64;
    // The second computation leaves states, those after it begin at one.
    for (index, saved) in [0, last_date, last_date, last_date].into_iter().enumerate() {
        let at = stored.len() - 1 - 10 * index;
        stored[at] = altered(&stored[at], &mut numbers);
        world.put(KEY, "1m", &stored[at..=at]).await;
        let before = replica.statistics().await;
        let answer = ask().await;
        assert_eq!((answer.cached, answer.open_time_ms.len() as u64), (false, rows));
        let after = replica.statistics().await;
        assert_eq!(after.saved_rows - before.saved_rows, saved, "change {index}");
        assert_eq!(content(answer), content(replica.ask("v1", KEY, "1m", TimeRange::ALL, &set).await));
    }
    // A range before the change is the earlier answer as it is.
    let early = TimeRange::new(TimeRange::ALL.start(), stored[rows as usize / 2].open_time).unwrap();
    let ask = || replica.ask("v2", KEY, "1m", early, &set);
    let count = ask().await.open_time_ms.len() as u64;
    let at = stored.len() - 1;
    stored[at] = altered(&stored[at], &mut numbers);
    world.put(KEY, "1m", &stored[at..=at]).await;
    let before = replica.statistics().await;
    let answer = ask().await;
    assert_eq!(replica.statistics().await.saved_rows - before.saved_rows, count);
    assert_eq!(content(answer), content(replica.ask("v1", KEY, "1m", early, &set).await));
    replica.stop().await;
}

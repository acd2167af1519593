//! Both engines over the same sources: equal to the bit, independent of the range and of how the rows arrive.

use std::sync::Mutex;

use futures::StreamExt;
use market::{Candle, Date, Frame, Instrument};
use mesh::source::{MemorySource, StoredFrames};
use rollout::Engine::{V1, V2};

use super::*;

const MINUTE_MS: Millis = 60_000;
/// A Monday; weeks count from it.
const MONDAY: Date = Date::constant(2024, 1, 1);
const LATE: Millis = 4_000_000_000_000;

/// Hands frames out in pieces of odd sizes, and notes what was asked.
#[derive(Debug, Default)]
struct Pieces {
    source: MemorySource,
    asked: Mutex<Vec<(Timeframe, Option<u64>)>>,
}

#[tonic::async_trait]
impl StoredCandles for Pieces {
    async fn stored(
        &self,
        key: &InstrumentKey,
        source: Timeframe,
        range: TimeRange,
        revision: Option<u64>,
    ) -> Result<StoredFrames, RemoteError> {
        self.asked.lock().unwrap().push((source, revision));
        let mut stored = self.source.stored(key, source, range, revision).await?;
        let Some(Ok(frame)) = stored.frames.next().await else { return Ok(stored) };
        let (mut pieces, mut from, mut size) = (Vec::new(), 0, 1);
        while from < frame.len() {
            let to = frame.len().min(from + size);
            pieces.push(Ok(frame.slice(from..to)));
            (from, size) = (to, size % 211 * 3 % 211 + 1);
        }
        Ok(StoredFrames { revision: stored.revision, frames: futures::stream::iter(pieces).boxed() })
    }
}

fn key() -> InstrumentKey {
    "TEST|X".parse().unwrap()
}

fn at(text: &str) -> Millis {
    market::parse_millis(text).unwrap()
}

fn date(text: &str) -> Date {
    market::parse_date(text).unwrap()
}

fn candle(open_time: Millis, close: f64) -> Candle {
    Candle { open_time, open: close, high: close + 1.0, low: close - 1.0, close, volume: 10.0, open_interest: None }
}

fn frame(candles: &[Candle]) -> Frame {
    let mut frame = Frame::default();
    candles.iter().for_each(|candle| frame.push(candle).unwrap());
    frame
}

/// Minutes of every session between two dates, `skip` left out.
fn sessions(calendar: &str, first: &str, last: &str, skip: &[&str]) -> Vec<Candle> {
    let calendar = Calendar::by_name(calendar).unwrap();
    let skip: Vec<Millis> = skip.iter().map(|text| at(text)).collect();
    let days = calendar.trading_dates(date(first), date(last)).into_iter().map(|date| calendar.day(date));
    let minutes = days.flat_map(|day| day.sessions).flat_map(|session| {
        (0..(session.close - session.open) / MINUTE_MS).map(move |minute| session.open + minute * MINUTE_MS)
    });
    minutes.filter(|at| !skip.contains(at)).enumerate().map(|(row, at)| candle(at, 100.0 + row as f64)).collect()
}

fn aggregator(calendar: &str, stored: Vec<(Timeframe, Frame)>) -> (Arc<Pieces>, Aggregator) {
    let instrument = Instrument {
        key: key(),
        name: String::new(),
        exchange: String::new(),
        currency: String::new(),
        tick_size: 0.0,
        calendar: calendar.to_owned(),
    };
    let memory = || MemorySource {
        instruments: [(key(), instrument.clone())].into(),
        stored: stored.iter().map(|(source, frame)| ((key(), *source), frame.clone())).collect(),
        revision: 7,
        ..Default::default()
    };
    let pieces = Arc::new(Pieces { source: memory(), asked: Mutex::default() });
    let aggregator = Aggregator {
        stored: Arc::clone(&pieces) as Arc<dyn StoredCandles>,
        master: Arc::new(memory()),
        pool: Arc::new(CpuPool::new(1, 64).unwrap()),
        config: Config { chunk_rows: 100, ..Config::default() },
    };
    (pieces, aggregator)
}

fn query(timeframe: Timeframe, range: TimeRange) -> Query {
    Query::raw(key(), timeframe, range)
}

/// Asks both engines, which must agree to the bit, and returns the answer.
async fn ask(aggregator: &Aggregator, query: &Query, now: Millis) -> Batch {
    let (_, rows) = aggregator.collect(V1, query.clone(), now, usize::MAX).await.unwrap();
    let (_, columns) = aggregator.collect(V2, query.clone(), now, usize::MAX).await.unwrap();
    assert_eq!(bits(&rows), bits(&columns), "{query:?}");
    columns
}

/// Everything of an answer in a form that compares NaN too.
pub(super) fn bits(batch: &Batch) -> impl PartialEq + Debug + use<> {
    let BucketFrame { frame, closed, complete, source_count, expected_count, trading_date } = batch.buckets.clone();
    let columns = [frame.open(), frame.high(), frame.low(), frame.close(), frame.volume(), frame.open_interest()];
    let values = columns.into_iter().map(<[f64]>::to_vec).chain(batch.columns.iter().cloned());
    let bits: Vec<Vec<u64>> = values.map(|column| column.into_iter().map(f64::to_bits).collect()).collect();
    (frame.open_time().to_vec(), bits, closed, complete, source_count, expected_count, trading_date)
}

fn stamps(batch: &Batch) -> Vec<String> {
    batch.buckets.frame.open_time().iter().map(|at| market::format_millis(*at)).collect()
}

/// Random minutes over `dates` days: gaps, holes of hours, pre- and post-market, open interest now and then.
fn random(seed: u64, start: Millis, dates: i64) -> Frame {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as f64 / (1_u64 << 31) as f64
    };
    let (mut frame, mut time) = (Frame::default(), start);
    while time < start + dates * 24 * 60 * MINUTE_MS {
        let (open, close) = (100.0 + next(), 100.0 + next());
        frame
            .push(&Candle {
                open_time: time,
                open,
                high: open.max(close) + next(),
                low: open.min(close) - next(),
                close,
                volume: next() * 1e5 / 3.0,
                open_interest: (next() < 0.3).then(|| next() * 1e6),
            })
            .unwrap();
        let gap = if next() < 0.003 { next() * 2000.0 } else { next() * next() * 4.0 };
        time += MINUTE_MS * (1 + gap as i64);
    }
    frame
}

fn random_sources(seed: u64) -> Vec<(Timeframe, Frame)> {
    let start = at("2024-02-26T00:00:00Z");
    let calendar = Calendar::by_name("NYSE").unwrap();
    let mut sources = vec![(Timeframe::M1, random(seed, start, 26))];
    let wider = |seed, width: Millis, keep: usize| {
        let minutes = random(seed, start - 8 * 24 * 60 * MINUTE_MS, 40);
        let mut last = Millis::MIN;
        let rows = minutes.candles().enumerate().filter_map(|(row, candle)| {
            let open_time = candle.open_time.div_euclid(width) * width;
            let is_next = open_time > last && row % keep != 0;
            last = last.max(open_time);
            is_next.then_some(Candle { open_time, ..candle })
        });
        frame(&rows.collect::<Vec<_>>())
    };
    sources.push((Timeframe::M5, wider(seed + 100, 5 * MINUTE_MS, 7)));
    sources.push((Timeframe::M15, wider(seed + 200, 15 * MINUTE_MS, 3)));
    sources.push((Timeframe::D1, wider(seed + 300, 24 * 60 * MINUTE_MS, 5)));
    let week = calendar.day(date("2024-03-25"));
    sources.push((Timeframe::W1, frame(&[candle(week.start, 5.0)])));
    sources
}

#[tokio::test]
async fn both_engines_agree_to_the_bit_and_the_range_never_changes_a_value() {
    let specs: Vec<Spec> = ["sma:3", "vwap", "rsi:5", "bbands:4,2"].iter().map(|text| text.parse().unwrap()).collect();
    for (seed, calendar) in Calendar::NAMES.into_iter().enumerate() {
        let (_, aggregator) = aggregator(calendar, random_sources(seed as u64));
        let now = at("2024-03-20T15:02:00Z");
        for timeframe in Timeframe::ALL {
            let plain = query(timeframe, TimeRange::ALL);
            let with = Query { indicators: specs.clone().into(), ..plain.clone() };
            let (whole, full) = (ask(&aggregator, &plain, now).await, ask(&aggregator, &with, now).await);
            assert_eq!(bits(&whole), bits(&Batch { buckets: full.buckets.clone(), columns: Vec::new() }));
            assert!(whole.buckets.frame.open_time().is_sorted_by(|a, b| a < b));
            assert!(whole.buckets.closed.contains(&true) && whole.buckets.closed.contains(&false));
            for (start, end) in [
                ("2024-03-05T14:47:00Z", "2024-03-07T20:13:00Z"),
                ("2024-03-11T13:31:00Z", "2024-03-11T13:32:00Z"),
                ("2024-03-01T00:00:00Z", "2024-04-01T00:00:00Z"),
            ] {
                let range = TimeRange::new(at(start), at(end)).unwrap();
                let rows = full.buckets.frame.rows_between(range.start(), range.end());
                let expected = full.columns.iter().map(|column| column[rows.clone()].to_vec()).collect();
                let expected = Batch { buckets: full.buckets.slice(rows), columns: expected };
                let part = ask(&aggregator, &Query { range, ..with.clone() }, now).await;
                assert_eq!(bits(&part), bits(&expected), "{calendar} {timeframe} {start}");
                ask(&aggregator, &Query { range, gap_fill: true, ..plain.clone() }, now).await;
            }
        }
    }
}

/// Anchor of the first date with a session among the neighbours for which `group` says the same.
fn first_open(calendar: &Calendar, date: Date, group: impl Fn(Date) -> i32) -> Millis {
    let back = std::iter::successors(Some(date), |date| date.yesterday().ok());
    let first = back.take_while(|other| group(*other) == group(date)).last().unwrap();
    let days = std::iter::successors(Some(first), |date| date.tomorrow().ok()).map(|date| calendar.day(date));
    days.take(31).find(|day| !day.sessions.is_empty()).unwrap().anchor
}

/// The definition, written down once more without engines: group, then reduce.
#[tokio::test]
async fn buckets_are_those_of_the_naive_definition() {
    for (seed, name) in [(1, "NSE"), (2, "NYSE"), (3, "CME"), (4, "24x7")] {
        let minutes = random(seed, at("2024-02-26T00:00:00Z"), 40);
        let calendar = Calendar::by_name(name).unwrap();
        let (_, aggregator) = aggregator(name, vec![(Timeframe::M1, minutes.clone())]);
        for timeframe in [Timeframe::M5, Timeframe::H4, Timeframe::D1, Timeframe::W1, Timeframe::Mo1] {
            let mut groups: std::collections::BTreeMap<Millis, Vec<Candle>> = Default::default();
            for candle in minutes.candles() {
                let day = calendar.day_at(candle.open_time);
                let open_time = match timeframe {
                    Timeframe::D1 => day.anchor,
                    // The first date with a session among those of the same week or month.
                    Timeframe::W1 => first_open(&calendar, day.date, |date| (date - MONDAY).get_days().div_euclid(7)),
                    Timeframe::Mo1 => first_open(&calendar, day.date, |date| date.month().into()),
                    _ => {
                        let width = timeframe.width_ms().unwrap();
                        let start = day.anchor + (candle.open_time - day.anchor).div_euclid(width) * width;
                        start.max(day.start)
                    }
                };
                groups.entry(open_time).or_default().push(candle);
            }
            let answer = ask(&aggregator, &query(timeframe, TimeRange::ALL), LATE).await;
            let times: Vec<Millis> = groups.keys().copied().collect();
            assert_eq!(answer.buckets.frame.open_time(), times, "{name} {timeframe}");
            for (row, group) in groups.values().enumerate() {
                let found = answer.buckets.frame.candle(row);
                assert_eq!(found.open, group[0].open);
                assert_eq!(found.close, group[group.len() - 1].close);
                assert_eq!(found.high, group.iter().map(|candle| candle.high).fold(f64::MIN, f64::max));
                assert_eq!(found.low, group.iter().map(|candle| candle.low).fold(f64::MAX, f64::min));
                assert_eq!(found.volume, group[1..].iter().fold(group[0].volume, |sum, candle| sum + candle.volume));
                assert_eq!(found.open_interest, group.iter().rev().find_map(|candle| candle.open_interest));
                assert_eq!(answer.buckets.source_count[row] as usize, group.len());
                assert!(answer.buckets.closed[row]);
            }
        }
    }
}

#[tokio::test]
async fn counts_and_flags_follow_the_session() {
    // 2016-09-05 was an NSE holiday. One minute of the 7th is missing; the 8th has one minute before the open.
    let mut minutes = sessions("NSE", "2016-09-05", "2016-09-09", &["2016-09-07T04:00:00Z"]);
    minutes.push(candle(at("2016-09-08T03:37:00Z"), 1.0));
    minutes.sort_by_key(|candle| candle.open_time);
    let (_, aggregator) = aggregator("NSE", vec![(Timeframe::M1, frame(&minutes))]);
    let week = TimeRange::new(at("2016-09-05T00:00:00Z"), at("2016-09-10T00:00:00Z")).unwrap();

    let days = ask(&aggregator, &query(Timeframe::D1, week), LATE).await;
    assert_eq!(stamps(&days)[0], "2016-09-06T03:45:00Z");
    assert_eq!(days.buckets.trading_date[0], date("2016-09-06"));
    assert_eq!(days.buckets.source_count, [375, 374, 376, 375]);
    assert_eq!(days.buckets.expected_count, [375; 4]);
    assert_eq!(days.buckets.complete, [true, false, true, true]);

    let hours = ask(&aggregator, &query(Timeframe::H1, week), LATE).await;
    assert_eq!(hours.buckets.expected_count[..7], [60, 60, 60, 60, 60, 60, 15]);
    let early = hours.buckets.frame.open_time().binary_search(&at("2016-09-08T02:45:00Z")).unwrap();
    assert_eq!((hours.buckets.source_count[early], hours.buckets.expected_count[early]), (1, 60));
    assert!(!hours.buckets.complete[early] && hours.buckets.closed[early]);

    // Closed at midnight, complete only then.
    let evening = ask(&aggregator, &query(Timeframe::D1, week), at("2016-09-09T18:29:59Z")).await;
    assert_eq!(evening.buckets.closed, [true, true, true, false]);
    assert_eq!(evening.buckets.complete, [true, false, true, false]);

    let weeks = ask(&aggregator, &query(Timeframe::W1, week), LATE).await;
    assert_eq!(stamps(&weeks), ["2016-09-06T03:45:00Z"]);
    assert_eq!(weeks.buckets.trading_date, [date("2016-09-06")]);
    assert_eq!((weeks.buckets.source_count[0], weeks.buckets.expected_count[0]), (1500, 1500));
    assert!(!weeks.buckets.complete[0], "an early minute does not stand for a missing one");

    // 21 trading dates (5 and 13 September were holidays and weekends are off), of which four have candles.
    let months = ask(&aggregator, &query(Timeframe::Mo1, TimeRange::ALL), LATE).await;
    let dates = Calendar::by_name("NSE").unwrap().trading_dates(date("2016-09-01"), date("2016-09-30")).len() as u32;
    assert_eq!((stamps(&months), months.buckets.expected_count[0]), (vec!["2016-09-01T03:45:00Z".into()], dates * 375));
    assert!(!months.buckets.complete[0]);

    let minutes = ask(&aggregator, &query(Timeframe::M1, week), at("2016-09-06T03:46:30Z")).await;
    assert_eq!(minutes.buckets.closed[..3], [true, false, false]);
    assert_eq!((minutes.buckets.source_count[0], minutes.buckets.expected_count[0]), (1, 1));
}

#[tokio::test]
async fn a_date_without_minutes_takes_the_coarsest_source_that_divides() {
    let minutes = sessions("NSE", "2016-09-06", "2016-09-06", &[]);
    let fifteen: Vec<Candle> = sessions("NSE", "2016-09-06", "2016-09-07", &[])
        .into_iter()
        .step_by(15)
        .map(|c| candle(c.open_time, 15.0))
        .collect();
    let five: Vec<Candle> = sessions("NSE", "2016-09-07", "2016-09-08", &[])
        .into_iter()
        .step_by(5)
        .map(|c| candle(c.open_time, 5.0))
        .collect();
    // As vendors stamp days: local midnight, and for the 9th UTC midnight.
    let daily =
        ["2016-09-05T18:30:00Z", "2016-09-06T18:30:00Z", "2016-09-09T00:00:00Z"].map(|text| candle(at(text), 1.0));
    let stored = vec![
        (Timeframe::M1, frame(&minutes)),
        (Timeframe::M5, frame(&five)),
        (Timeframe::M15, frame(&fifteen)),
        (Timeframe::D1, frame(&daily)),
    ];
    let (pieces, aggregator) = aggregator("NSE", stored);

    let hours = ask(&aggregator, &query(Timeframe::H1, TimeRange::ALL), LATE).await;
    assert_eq!(hours.buckets.source_count[..7], [60, 60, 60, 60, 60, 60, 15]);
    assert_eq!(hours.buckets.source_count[7..14], [4, 4, 4, 4, 4, 4, 1], "the 7th has 15m and 5m");
    assert_eq!(hours.buckets.source_count[14..], [12, 12, 12, 12, 12, 12, 3], "the 8th has 5m only");
    assert_eq!(hours.buckets.source_count, hours.buckets.expected_count);
    assert!(hours.buckets.complete.iter().all(|complete| *complete));

    let tens = ask(&aggregator, &query(Timeframe::M10, TimeRange::ALL), LATE).await;
    assert_eq!(tens.buckets.trading_date.last(), Some(&date("2016-09-08")));
    assert_eq!(tens.buckets.frame.len(), 38 * 3, "15m does not divide 10m, 5m does");
    let ones = ask(&aggregator, &query(Timeframe::M1, TimeRange::ALL), LATE).await;
    assert_eq!(ones.len(), 375);

    let days = ask(&aggregator, &query(Timeframe::D1, TimeRange::ALL), LATE).await;
    assert_eq!(days.buckets.trading_date, ["2016-09-06", "2016-09-07", "2016-09-08", "2016-09-09"].map(date));
    assert_eq!(days.buckets.source_count, [375, 1, 75, 1]);
    assert_eq!(days.buckets.expected_count, [375, 1, 75, 1]);
    assert_eq!(stamps(&days)[3], "2016-09-09T03:45:00Z");
    assert!(days.buckets.complete.iter().all(|complete| *complete));

    // The source of a date is chosen by the whole date, not by what of it was asked for.
    let afternoon = TimeRange::new(at("2016-09-07T08:00:00Z"), at("2016-09-07T09:00:00Z")).unwrap();
    assert_eq!(ask(&aggregator, &query(Timeframe::M15, afternoon), LATE).await.buckets.source_count, [1; 4]);

    let weeks = ask(&aggregator, &query(Timeframe::W1, TimeRange::ALL), LATE).await;
    assert_eq!((weeks.buckets.source_count[0], weeks.buckets.expected_count[0]), (452, 452));
    assert!(weeks.buckets.complete[0]);

    let asked = pieces.asked.lock().unwrap();
    assert!(asked.iter().all(|(source, revision)| (*source == Timeframe::M1) == revision.is_none()));
    assert!(asked.iter().all(|(_, revision)| revision.is_none_or(|revision| revision == 7)));
}

#[tokio::test]
async fn a_stored_week_answers_only_a_week_without_minutes() {
    let minutes = sessions("NYSE", "2024-03-05", "2024-03-05", &[]);
    let daily = ["2024-03-12T00:00:00Z", "2024-03-13T00:00:00Z"].map(|text| candle(at(text), 2.0));
    let weekly = ["2024-03-04T05:00:00Z", "2024-03-11T04:00:00Z"].map(|text| candle(at(text), 9.0));
    let stored =
        vec![(Timeframe::M1, frame(&minutes)), (Timeframe::D1, frame(&daily)), (Timeframe::W1, frame(&weekly))];
    let (_, aggregator) = aggregator("NYSE", stored);
    let weeks = ask(&aggregator, &query(Timeframe::W1, TimeRange::ALL), LATE).await;
    assert_eq!(stamps(&weeks), ["2024-03-04T14:30:00Z", "2024-03-11T13:30:00Z"]);
    assert_eq!(weeks.buckets.source_count, [390, 1]);
    assert_eq!(weeks.buckets.expected_count, [1950, 1]);
    assert_eq!(weeks.buckets.complete, [false, true]);
    // A month is not made of weeks: the 5th by its minutes, the 12th and 13th by their days, the 18 others by days that are missing.
    let months = ask(&aggregator, &query(Timeframe::Mo1, TimeRange::ALL), LATE).await;
    assert_eq!((months.buckets.source_count[0], months.buckets.expected_count[0]), (392, 390 + 2 + 17));
    assert!(!months.buckets.complete[0]);
}

#[tokio::test]
async fn gaps_are_filled_inside_sessions_only() {
    let skip = ["2016-09-06T04:00:00Z", "2016-09-06T04:01:00Z", "2016-09-06T09:59:00Z", "2016-09-07T03:45:00Z"];
    let mut minutes = sessions("NSE", "2016-09-06", "2016-09-07", &skip);
    minutes.extend(sessions("NSE", "2016-09-09", "2016-09-09", &[]));
    let (_, aggregator) = aggregator("NSE", vec![(Timeframe::M1, frame(&minutes))]);
    let fill = |timeframe| Query {
        gap_fill: true,
        indicators: Arc::from(["sma:1".parse().unwrap()]),
        ..query(timeframe, TimeRange::ALL)
    };
    let ones = ask(&aggregator, &fill(Timeframe::M1), LATE).await;
    assert_eq!(ones.len(), 4 * 375, "the 8th had a session and no candle");
    let filled = ones.buckets.frame.candle(15);
    let before = ones.buckets.frame.candle(14);
    assert_eq!(market::format_millis(filled.open_time), "2016-09-06T04:00:00Z");
    assert_eq!([filled.open, filled.high, filled.low, filled.close], [before.close; 4]);
    assert_eq!((filled.volume, ones.buckets.source_count[15], ones.buckets.expected_count[15]), (0.0, 0, 1));
    assert!(ones.buckets.closed[15] && !ones.buckets.complete[15]);
    assert!(ones.columns[0][15].is_nan() && !ones.columns[0][17].is_nan());
    assert_eq!(ones.columns[0].iter().filter(|value| value.is_nan()).count(), 4 + 375);

    assert_eq!(ask(&aggregator, &fill(Timeframe::M5), LATE).await.len(), 4 * 75);
    let days = ask(&aggregator, &fill(Timeframe::D1), LATE).await;
    assert_eq!(days.buckets.trading_date, ["2016-09-06", "2016-09-07", "2016-09-08", "2016-09-09"].map(date));
    assert_eq!((days.buckets.source_count[2], days.buckets.expected_count[2]), (0, 375));
}

#[tokio::test]
async fn a_gap_of_years_is_filled_batch_by_batch() {
    let minutes = frame(&[candle(at("2010-01-01T00:00:00Z"), 1.0), candle(at("2030-01-01T00:00:00Z"), 2.0)]);
    let (_, aggregator) = aggregator("24x7", vec![(Timeframe::M1, minutes)]);
    let query = Query { gap_fill: true, ..query(Timeframe::M1, TimeRange::ALL) };
    let mut answer = aggregator.open(V2, query.clone(), LATE, None).await.unwrap();
    for _ in 0..3 {
        assert_eq!(answer.next().await.unwrap().unwrap().len(), mesh::flight::BATCH_ROWS);
    }
    let refused = aggregator.collect(V2, query, LATE, 50_000).await.unwrap_err();
    assert!(matches!(refused, Error::TooManyCandles { limit: 50_000 }));
}

#[tokio::test]
async fn limits_end_the_work_and_name_themselves() {
    let stored = vec![(Timeframe::M1, random(3, at("2024-01-01T00:00:00Z"), 20))];
    let (_, mut aggregator) = aggregator("24x7", stored);
    aggregator.config.max_history_values = 10_000;
    let plain = query(Timeframe::M1, TimeRange::ALL);
    let with = Query { indicators: Arc::from(["sma:3".parse().unwrap()]), ..plain.clone() };
    for choice in [V1, V2] {
        let refused = aggregator.collect(choice, plain.clone(), LATE, 100).await.unwrap_err();
        assert_eq!((refused.code(), refused.reason()), (Code::ResourceExhausted, "CANDLE_LIMIT"));
        assert!(refused.to_string().contains("100"));
        let refused = aggregator.collect(choice, with.clone(), LATE, 100).await.unwrap_err();
        assert_eq!(refused.reason(), "CANDLE_LIMIT");
        let refused = aggregator.collect(choice, with.clone(), LATE, usize::MAX).await.unwrap_err();
        assert_eq!((refused.code(), refused.reason()), (Code::ResourceExhausted, "HISTORY_LIMIT"));
    }
}

#[tokio::test]
async fn several_timeframes_read_the_minutes_once_unless_others_are_stored_and_equal_single_answers() {
    let minutes = vec![(Timeframe::M1, random(5, at("2024-02-26T00:00:00Z"), 30))];
    let range = TimeRange::new(at("2024-03-05T14:47:00Z"), at("2024-03-21T20:13:00Z")).unwrap();
    for (stored, reads) in [(minutes, Some(1)), (random_sources(9), None)] {
        let (pieces, mut aggregator) = aggregator("NYSE", stored);
        let now = at("2024-03-20T15:02:00Z");
        for specs in [vec![], vec!["sma:3".parse().unwrap(), "vwap".parse().unwrap()]] {
            let indicators: Arc<[Spec]> = Arc::from(specs);
            let of = |timeframe| Query { indicators: Arc::clone(&indicators), ..query(timeframe, range) };
            let queries = Timeframe::ALL.map(of);
            for choice in [V1, V2] {
                let before = pieces.asked.lock().unwrap().len();
                let all = aggregator.collect_all(choice, &queries, now, usize::MAX).await.unwrap();
                let asked = pieces.asked.lock().unwrap().len() - before;
                assert!(reads.is_none_or(|reads| asked == reads), "{asked} reads");
                assert_eq!(all.len(), queries.len());
                for (query, (revision, batch)) in queries.iter().zip(&all) {
                    let (_, one) = aggregator.collect(choice, query.clone(), now, usize::MAX).await.unwrap();
                    assert_eq!((*revision, bits(batch)), (7, bits(&one)), "{query:?}");
                }
                let candles: usize = all.iter().map(|(_, batch)| batch.len()).sum();
                assert!(aggregator.collect_all(choice, &queries, now, candles).await.is_ok());
                let refused = aggregator.collect_all(choice, &queries, now, candles - 1).await.unwrap_err();
                assert!(matches!(refused, Error::TooManyCandles { limit } if limit == candles - 1), "{refused}");
            }
        }
        aggregator.config.max_history_values = 10_000;
        let with = Query { indicators: Arc::from(["sma:3".parse().unwrap()]), ..query(Timeframe::M1, range) };
        let refused = aggregator.collect_all(V2, &[with], now, usize::MAX).await.unwrap_err();
        assert_eq!(refused.reason(), "HISTORY_LIMIT");
    }
}

#[tokio::test]
async fn several_timeframes_from_one_reading_share_the_limit_of_the_history() {
    let minutes = sessions("24x7", "2024-01-01", "2024-01-10", &[]);
    let (_, mut aggregator) = aggregator("24x7", vec![(Timeframe::M1, frame(&minutes))]);
    let range = TimeRange::new(at("2024-01-10T00:00:00Z"), at("2024-01-11T00:00:00Z")).unwrap();
    let of = |timeframe| Query { indicators: Arc::from(["sma:3".parse().unwrap()]), ..query(timeframe, range) };
    // Ten days of 5m and 10m, each with nine values of the bucket and one column.
    let (one, both) = (10 * 288 * 10, 10 * (288 + 144) * 10);
    let queries = [of(Timeframe::M5), of(Timeframe::M10)];
    for choice in [V1, V2] {
        aggregator.config.max_history_values = both;
        assert_eq!(aggregator.collect_all(choice, &queries, LATE, usize::MAX).await.unwrap()[1].1.len(), 144);
        aggregator.config.max_history_values = both - 1;
        assert!(both - 1 > one && aggregator.collect_all(choice, &queries[..1], LATE, usize::MAX).await.is_ok());
        let refused = aggregator.collect_all(choice, &queries, LATE, usize::MAX).await.unwrap_err();
        assert!(matches!(refused, Error::HistoryTooLong { rows: 4320, columns: 1, .. }), "{refused}");
    }
}

#[tokio::test]
async fn an_action_counts_from_its_ex_date_on() {
    let minutes = sessions("NYSE", "2024-03-07", "2024-03-07", &[]);
    let (pieces, mut aggregator) = aggregator("NYSE", vec![(Timeframe::M1, frame(&minutes))]);
    let terms = market::ActionTerms::Split { from: 1.0, to: 2.0 };
    let action = market::CorporateAction { ex_date: date("2024-03-12"), terms };
    let master = MemorySource {
        instruments: pieces.source.instruments.clone(),
        stored: pieces.source.stored.clone(),
        actions: [(key(), vec![action])].into(),
        revision: 7,
        ..Default::default()
    };
    aggregator.master = Arc::new(master);
    let of = |adjustment| Query { adjustment, ..query(Timeframe::D1, TimeRange::ALL) };
    let raw = ask(&aggregator, &of(market::Adjustment::Raw), LATE).await.buckets.frame.close()[0];
    // Dates begin at midnight in New York, four hours behind UTC since the tenth.
    for (now, ratio) in [("2024-03-12T03:59:59Z", 1.0), ("2024-03-12T04:00:00Z", 2.0)] {
        let query = of(market::Adjustment::Splits);
        let single = ask(&aggregator, &query, at(now)).await.buckets.frame.close()[0];
        assert_eq!(single, raw / ratio, "{now}");
        let multi = aggregator.collect_all(V2, &[query], at(now), usize::MAX).await.unwrap();
        assert_eq!(multi[0].1.buckets.frame.close()[0], raw / ratio, "{now}");
    }
}

#[tokio::test]
async fn unusable_instruments_and_sums_are_faults() {
    let huge = Candle { volume: f64::MAX, ..candle(at("2024-01-01T00:00:00Z"), 1.0) };
    let rows = [huge, Candle { open_time: huge.open_time + MINUTE_MS, ..huge }];
    let (_, infinite) = aggregator("24x7", vec![(Timeframe::M1, frame(&rows))]);
    for choice in [V1, V2] {
        let refused = infinite.collect(choice, query(Timeframe::M5, TimeRange::ALL), LATE, 10).await.unwrap_err();
        assert_eq!(refused.code(), Code::DataLoss);
    }
    let (_, nameless) = aggregator("LSE", Vec::new());
    let refused = nameless.collect(V2, query(Timeframe::M5, TimeRange::ALL), LATE, 10).await.unwrap_err();
    assert_eq!((refused.code(), refused.reason()), (Code::FailedPrecondition, "NO_CALENDAR"));
    let stranger = Query { key: "TEST|Y".parse().unwrap(), ..query(Timeframe::M5, TimeRange::ALL) };
    let refused = nameless.collect(V2, stranger, LATE, 10).await.unwrap_err();
    assert_eq!((refused.code(), refused.reason()), (Code::NotFound, "UNKNOWN_INSTRUMENT"));
    assert!(refused.to_string().contains("TEST|Y"));
}

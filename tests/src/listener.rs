//! What a subscriber to candles was told, and whether that is all that happened to them, each close once.
//!
//! It follows from before the first write on and comes back with its cursor after every failure. Then of each candle it hears at most
//! one close, which nothing but corrections follow, and no value twice in a row; and what it heard last is what is stored.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use market::Millis;
use proto::aggregation::{CandleEvent, CandleUpdate};
use proto::convert;
use proto::wire::BucketCandle;
use serde_json::Value;

/// Prices are multiples of a cent, or sums of whole numbers; text may cost a last bit.
const TOLERANCE: f64 = 1e-9;

/// Instrument, timeframe and open time.
pub type Id = (String, String, Millis);

/// What a candle says, apart from the clock.
#[derive(Debug, Clone, Copy)]
pub struct Values {
    numbers: [f64; 5],
    source_count: u64,
}

impl PartialEq for Values {
    fn eq(&self, other: &Values) -> bool {
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= TOLERANCE * a.abs().max(1.0);
        self.source_count == other.source_count && self.numbers.iter().zip(&other.numbers).all(close)
    }
}

/// One event.
#[derive(Debug, Clone)]
pub struct Told {
    pub event: CandleEvent,
    pub id: Id,
    pub values: Values,
    pub revision: u64,
}

/// A candle that is stored, with whether its range has passed.
#[derive(Debug, Clone)]
pub struct Held {
    pub id: Id,
    pub values: Values,
    pub is_closed: bool,
}

impl Told {
    pub fn of(update: &CandleUpdate) -> Result<Told> {
        let held = Held::of(&update.instrument_key, &update.timeframe, update.candle.as_ref().context("no candle")?)?;
        Ok(Told { event: update.event(), id: held.id, values: held.values, revision: update.revision })
    }

    /// Of a server-sent event, by its name and data.
    pub fn of_text(name: &str, data: &str) -> Result<Told> {
        let data: Value = serde_json::from_str(data).with_context(|| data.to_owned())?;
        let text = |field: &str| data[field].as_str().with_context(|| format!("no '{field}' in {data}"));
        let number = |field: &str| data[field].as_f64().with_context(|| format!("no '{field}' in {data}"));
        let whole = |field: &str| data[field].as_u64().with_context(|| format!("no '{field}' in {data}"));
        let open_time = market::parse_millis(text("open_time")?)?;
        let numbers = [number("open")?, number("high")?, number("low")?, number("close")?, number("volume")?];
        let event = match name {
            "update" => CandleEvent::Update,
            "close" => CandleEvent::Close,
            "correction" => CandleEvent::Correction,
            _ => CandleEvent::Unspecified,
        };
        Ok(Told {
            event,
            id: (text("instrument_key")?.to_owned(), text("timeframe")?.to_owned(), open_time),
            values: Values { numbers, source_count: whole("source_count")? },
            revision: whole("revision")?,
        })
    }
}

impl Held {
    pub fn of(key: &str, timeframe: &str, candle: &BucketCandle) -> Result<Held> {
        let open_time = candle.open_time.as_ref().and_then(convert::millis).context("a candle without a time")?;
        let numbers = [candle.open, candle.high, candle.low, candle.close, candle.volume];
        let values = Values { numbers, source_count: candle.source_count.into() };
        Ok(Held { id: (key.to_owned(), timeframe.to_owned(), open_time), values, is_closed: candle.closed })
    }
}

#[derive(Debug)]
struct Story {
    is_closed: bool,
    last: Values,
    events: Vec<(CandleEvent, u64)>,
}

#[derive(Debug, Default)]
struct Heard {
    has_begun: bool,
    messages: u64,
    caught_up: u64,
    stories: BTreeMap<Id, Story>,
    /// The last of each instrument.
    revisions: BTreeMap<String, u64>,
    counts: BTreeMap<&'static str, u64>,
}

/// One subscriber's memory.
#[derive(Debug)]
pub struct Listener(Mutex<Heard>);

impl Listener {
    /// With what is stored before it begins, all of it closed.
    pub fn new(held: Vec<Held>) -> Listener {
        let story = |held: Held| (held.id, Story { is_closed: true, last: held.values, events: Vec::new() });
        let stories = held.into_iter().map(story).collect();
        Listener(Mutex::new(Heard { stories, ..Heard::default() }))
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message was heard to its end, so it has a cursor: from now on it must hear everything.
    pub fn note(&self, is_caught_up: bool) {
        let mut heard = self.heard();
        heard.has_begun = true;
        heard.messages += 1;
        heard.caught_up += u64::from(is_caught_up);
    }

    /// Messages, and how often one said that nothing was missing any more.
    pub fn progress(&self) -> (u64, u64) {
        let heard = self.heard();
        (heard.messages, heard.caught_up)
    }

    pub fn has_begun(&self) -> bool {
        self.heard().has_begun
    }

    /// Events, by kind.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.heard().counts.clone()
    }

    /// Takes an event; says what is wrong with it, if something is.
    pub fn hear(&self, told: Told) -> Option<String> {
        let mut heard = self.heard();
        let Heard { stories, revisions, counts, .. } = &mut *heard;
        *counts.entry(told.event.as_str_name()).or_default() += 1;
        let last = revisions.entry(told.id.0.clone()).or_default();
        let before = std::mem::replace(last, told.revision);
        let story = stories.get(&told.id);
        let was_closed = story.is_some_and(|story| story.is_closed);
        let is_same = story.is_some_and(|story| story.last == told.values);
        let wrong = match told.event {
            CandleEvent::Update if was_closed => Some("updated after its close"),
            CandleEvent::Close if was_closed => Some("closed twice"),
            CandleEvent::Correction if !was_closed => Some("corrected before its close"),
            CandleEvent::Update | CandleEvent::Correction if is_same => Some("told twice"),
            CandleEvent::Unspecified | CandleEvent::Snapshot => Some("nothing that was asked for"),
            _ if told.revision < before => Some("told after a later revision"),
            _ => None,
        };
        let earlier = story.map(|story| format!("{:?}, last {:?}", story.events, story.last)).unwrap_or_default();
        let wrong = wrong.map(|wrong| format!("{wrong}: {told:?} after revision {before}; earlier {earlier}"));
        let is_closed = was_closed || told.event == CandleEvent::Close;
        let story = stories.entry(told.id).or_insert(Story { is_closed, last: told.values, events: Vec::new() });
        (story.is_closed, story.last) = (is_closed, told.values);
        story.events.push((told.event, told.revision));
        wrong
    }

    /// What is missing or wrong, compared with everything that is stored; nothing, if nothing is.
    pub fn judge(&self, stored: &[Held]) -> Option<String> {
        let heard = self.heard();
        for held in stored {
            let wrong = match heard.stories.get(&held.id) {
                None => "was never told".to_owned(),
                Some(story) if story.last != held.values => format!("was last told as {:?}", story.last),
                Some(story) if story.is_closed != held.is_closed => {
                    format!("is closed: {}, was told so: {}", held.is_closed, story.is_closed)
                }
                Some(_) => continue,
            };
            return Some(format!("{held:?} {wrong}"));
        }
        let unknown = heard.stories.keys().find(|id| stored.iter().all(|held| held.id != **id));
        let unknown = unknown.filter(|_| stored.len() != heard.stories.len());
        unknown.map(|id| format!("{id:?} was told and is not stored"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(event: CandleEvent, at: Millis, volume: f64, revision: u64) -> Told {
        let values = Values { numbers: [1.0, 2.0, 0.5, 1.0, volume], source_count: 1 };
        Told { event, id: ("A".to_owned(), "1m".to_owned(), at), values, revision }
    }

    fn held(told: Told) -> Held {
        Held { id: told.id, values: told.values, is_closed: true }
    }

    #[test]
    fn what_is_told_twice_or_late_or_not_at_all_is_noticed() {
        use CandleEvent::{Close, Correction, Snapshot, Update};
        let listener = Listener::new(vec![held(told(Close, 0, 1.0, 1))]);
        let hear = |event, at, volume, revision| listener.hear(told(event, at, volume, revision)).unwrap_or_default();
        assert_eq!(hear(Correction, 0, 2.0, 2), "");
        assert!(hear(Correction, 0, 2.0, 2).contains("told twice"));
        assert!(hear(Close, 0, 3.0, 3).contains("closed twice"));
        assert_eq!(hear(Update, 1, 1.0, 4), "");
        assert!(hear(Correction, 1, 2.0, 5).contains("before its close"));
        assert_eq!(hear(Close, 1, 2.0, 5), "");
        assert!(hear(Update, 1, 3.0, 6).contains("after its close"));
        assert!(hear(Correction, 1, 4.0, 5).contains("later revision"));
        assert!(hear(Snapshot, 1, 5.0, 7).contains("asked for"));
        let stored = |at, volume| held(told(Close, at, volume, 1));
        assert_eq!(listener.judge(&[stored(0, 3.0), stored(1, 5.0)]), None);
        assert!(listener.judge(&[stored(0, 3.0), stored(1, 6.0)]).unwrap().contains("last told"));
        assert!(listener.judge(&[stored(0, 3.0), stored(1, 5.0), stored(2, 1.0)]).unwrap().contains("never"));
        assert!(listener.judge(&[stored(0, 3.0)]).unwrap().contains("not stored"));
        let open = Held { is_closed: false, ..stored(1, 5.0) };
        assert!(listener.judge(&[stored(0, 3.0), open]).unwrap().contains("is closed: false"));
    }

    #[test]
    fn a_server_sent_event_says_what_the_message_does() {
        let data = r#"{"instrument_key":"A","timeframe":"1m","revision":7,"open_time":"1970-01-01T00:00:00.001Z","open":1,
            "high":2,"low":0.5,"close":1,"volume":3,"open_interest":null,"closed":true,"complete":true,"source_count":1}"#;
        let want = told(CandleEvent::Close, 1, 3.0, 7);
        let got = Told::of_text("close", data).unwrap();
        assert_eq!((got.event, got.id, got.values, got.revision), (want.event, want.id, want.values, want.revision));
    }
}

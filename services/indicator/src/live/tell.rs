//! What a subscriber is told of a series: the candles that something happened to, and those whose values changed with them.

use std::collections::BTreeMap;
use std::ops::Bound;

use market::{Millis, TimeRange};
use mesh::source::CandleNews;
use proto::aggregation::CandleEvent;
use proto::convert::timestamp;
use proto::indicator::{IndicatorEvent, IndicatorUpdate};

use super::series::State;
use super::shelf::Series;
use crate::engine::Table;

/// Newest candles of a series whose values are told again after a change further back.
pub(super) const RETOLD: usize = 100;

/// How far a subscriber has been told of a series.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    /// Of the series: what changed since is told.
    version: u64,
    /// Open time of the last candle told.
    heard: Millis,
    /// Open time of the last candle whose close was told.
    closed: Millis,
    /// Revision up to which that is a guess: one that comes back knows the series as it was at the cursor, not as it was found.
    assumed: u64,
}

impl Told {
    /// Of one who knows the series as it is.
    pub(super) fn all(state: &State) -> Told {
        let closed = state.recent.iter().rev().find(|recent| recent.is_closed);
        Told {
            version: state.version,
            heard: state.recent.back().map_or(Millis::MIN, |recent| recent.open_time),
            closed: closed.map_or(Millis::MIN, |recent| recent.open_time),
            assumed: 0,
        }
    }

    /// Of one that comes back and was told nothing of the series, as nothing happened to it up to where live news begin.
    pub(super) fn assumed(state: &State) -> Told {
        Told { assumed: state.revision.unwrap_or_default(), ..Told::all(state) }
    }

    /// Whether the guess is wrong, as the news say what happened between the cursor and when the series was found.
    pub(super) fn was_assumed(&self, news: &[CandleNews]) -> bool {
        news.iter().any(|one| one.revision <= self.assumed)
    }

    /// Of one who was told from another state than that of the series: all of that counts as changed.
    pub(super) fn of_another(self) -> Told {
        Told { version: 0, ..self }
    }
}

/// What happened to the candles of a series in one or several messages.
#[derive(Debug, Clone, Default)]
pub(super) struct Happened {
    events: BTreeMap<Millis, CandleEvent>,
    /// Those that have been told already.
    told: Vec<Millis>,
    pub(super) revision: u64,
}

impl Happened {
    pub(super) fn add(&mut self, news: &[CandleNews]) {
        for one in news {
            let event = self.events.entry(one.open_time()).or_insert(one.event);
            // A close is told once, with the values known by then.
            if *event != CandleEvent::Close || self.told.contains(&one.open_time()) {
                *event = one.event;
            }
            self.told.retain(|told| *told != one.open_time());
            self.revision = self.revision.max(one.revision);
        }
    }

    fn first(&self) -> Option<Millis> {
        self.events.keys().next().copied()
    }

    pub(super) fn is_told(&mut self) {
        self.told = self.events.keys().copied().collect();
    }
}

/// How a subscriber wants it.
#[derive(Debug, Clone)]
pub(super) struct Scribe {
    pub(super) include_forming: bool,
    /// Columns of the series, in the order asked.
    pub(super) order: Vec<usize>,
}

/// Updates of a series, and what is missing of them.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) updates: Vec<IndicatorUpdate>,
    pub(super) far: Option<Far>,
}

/// Candles further back than the series keeps; their updates come before the others.
#[derive(Debug)]
pub(super) struct Far {
    /// With the event; without: told only because of another.
    events: BTreeMap<Millis, CandleEvent>,
    /// Candles between these have changed with them.
    changed: Option<TimeRange>,
    first: Millis,
    /// Candles after the range.
    newer: usize,
    pub(super) range: TimeRange,
    pub(super) revision: u64,
}

impl Scribe {
    /// The newest closed candle, and those after it where they are wanted.
    pub(super) fn snapshot(&self, series: &Series, state: &State) -> Vec<IndicatorUpdate> {
        let newest = state.recent.iter().rposition(|recent| recent.is_closed);
        let rows = state.recent.iter().enumerate().filter(|(index, _)| match newest {
            Some(newest) => *index == newest || (*index > newest && self.include_forming),
            None => self.include_forming,
        });
        let revision = state.revision.unwrap_or_default();
        let update = |(_, recent): (usize, &super::series::Recent)| {
            let event = IndicatorEvent::Snapshot;
            let values = |column: usize| recent.values[column];
            let update = self.update(series, recent.open_time, event, revision, values);
            IndicatorUpdate { closed: recent.is_closed, ..update }
        };
        rows.map(update).collect()
    }

    /// What happened, as far as it has not been told. With `is_whole` also what changed with it, and how far the subscriber then is.
    pub(super) fn tell(
        &self,
        series: &Series,
        state: &State,
        told: &mut Option<Told>,
        happened: &Happened,
        is_whole: bool,
    ) -> Account {
        let Some(first) = happened.first() else { return Account::default() };
        let mut account = Account::default();
        let revision = state.revision.unwrap_or_default();
        for recent in &state.recent {
            let at = recent.open_time;
            let own = happened.events.get(&at).filter(|_| !happened.told.contains(&at));
            let event = match own {
                Some(event) => Some(event_of(*event)),
                None if happened.events.contains_key(&at) || !is_whole => None,
                None => changed(told.as_ref(), first, recent),
            };
            if let Some(event) = event.filter(|event| self.wants(*event)) {
                let update = self.update(series, at, event, revision, |column| recent.values[column]);
                let changed_from = (own.is_none() && first < at).then(|| timestamp(first));
                account.updates.push(IndicatorUpdate { changed_from, ..update });
            }
        }
        account.far = self.far(state, told.as_ref(), happened, is_whole);
        if is_whole {
            let before = told.unwrap_or_else(|| Told::all(state));
            let closes = happened.events.iter().rev().find(|(_, event)| **event != CandleEvent::Update);
            *told = Some(Told {
                version: state.version,
                heard: before.heard.max(happened.events.keys().next_back().copied().unwrap_or(Millis::MIN)),
                closed: before.closed.max(closes.map_or(Millis::MIN, |(at, _)| *at)),
                ..before
            });
        }
        account
    }

    fn far(&self, state: &State, told: Option<&Told>, happened: &Happened, is_whole: bool) -> Option<Far> {
        let (entered, first) = (state.entered?, happened.first()?);
        let events = happened.events.range((Bound::Unbounded, Bound::Included(entered)));
        let events = events.filter(|(at, event)| !happened.told.contains(at) && self.wants(event_of(**event)));
        let events: BTreeMap<Millis, CandleEvent> = events.map(|(at, event)| (*at, *event)).collect();
        let heard = told.map_or(Millis::MAX, |told| told.heard);
        let changed = match is_whole && first <= entered {
            true => TimeRange::new(first + 1, entered.min(heard).saturating_add(1)).ok(),
            false => None,
        };
        let start = events.keys().next().copied().or(changed.map(|range| range.start()))?;
        let range = TimeRange::new(start.min(first), entered + 1).ok()?;
        let (newer, revision) = (state.recent.len(), state.revision.unwrap_or_default());
        Some(Far { events, changed, first, newer, range, revision })
    }

    /// Updates of candles further back.
    pub(super) fn tell_far(
        &self,
        series: &Series,
        far: &Far,
        happened: &Happened,
        table: &Table,
    ) -> Vec<IndicatorUpdate> {
        let rows = table.open_time.len();
        let mut updates = Vec::new();
        for (row, at) in table.open_time.iter().copied().enumerate() {
            let own = far.events.get(&at).copied();
            let is_changed = far.changed.is_some_and(|range| range.contains(at)) && rows - row + far.newer <= RETOLD;
            let event = match own {
                Some(event) => event_of(event),
                None if is_changed && !happened.events.contains_key(&at) => IndicatorEvent::Correction,
                None => continue,
            };
            let update = self.update(series, at, event, far.revision, |column| table.columns[column].values[row]);
            let changed_from = (own.is_none() && far.first < at).then(|| timestamp(far.first));
            updates.push(IndicatorUpdate { changed_from, ..update });
        }
        updates
    }

    fn wants(&self, event: IndicatorEvent) -> bool {
        self.include_forming || event != IndicatorEvent::Update
    }

    fn update(
        &self,
        series: &Series,
        open_time: Millis,
        event: IndicatorEvent,
        revision: u64,
        value: impl Fn(usize) -> f64,
    ) -> IndicatorUpdate {
        let mut values = Vec::with_capacity(self.order.len());
        let mut undefined = Vec::new();
        for (index, column) in self.order.iter().enumerate() {
            let value = value(*column);
            if value.is_finite() {
                values.push(value);
            } else {
                undefined.push(index as u32);
                values.push(0.0);
            }
        }
        IndicatorUpdate {
            instrument_key: series.key.to_string(),
            timeframe: series.timeframe.to_string(),
            event: event.into(),
            open_time: Some(timestamp(open_time)),
            closed: event != IndicatorEvent::Update,
            revision,
            values,
            undefined,
            changed_from: None,
        }
    }
}

/// How a candle is told whose values changed with those of an earlier one, if it is.
fn changed(told: Option<&Told>, first: Millis, recent: &super::series::Recent) -> Option<IndicatorEvent> {
    let is_closed = match told {
        // One that comes back; before the first candle that changed, nothing did.
        None => (recent.open_time > first).then_some(recent.is_closed)?,
        // What is newer than was heard of comes with its own news.
        Some(told) => {
            let is_due = recent.version > told.version && recent.open_time <= told.heard;
            is_due.then_some(recent.open_time <= told.closed)?
        }
    };
    Some(if is_closed { IndicatorEvent::Correction } else { IndicatorEvent::Update })
}

fn event_of(event: CandleEvent) -> IndicatorEvent {
    match event {
        CandleEvent::Close => IndicatorEvent::Close,
        CandleEvent::Correction => IndicatorEvent::Correction,
        CandleEvent::Snapshot | CandleEvent::Update | CandleEvent::Unspecified => IndicatorEvent::Update,
    }
}

//! One instrument, timeframe and set of indicators: their states, kept up candle by candle.
//!
//! The machines stand before the newest few candles, which are kept with their values. What happens to one of these is a fold over them
//! on a copy of the machines, so that neither a forming candle nor one that is corrected soon after its close ever enters what is kept.
//! A candle enters for good only when enough newer ones have come. What happens to one before that is read again.

use std::collections::VecDeque;

use kernels::indicator::{Machines, Row, Spec};
use market::{BucketFrame, Millis};
use mesh::source::CandleNews;
use proto::aggregation::CandleEvent;

/// Candles behind the newest that are kept apart: late minutes change the candle before the newest, rarely one further back.
const KEPT: usize = 8;

/// The newest candles of a series and their values.
#[derive(Debug, Clone)]
pub(super) struct Recent {
    pub(super) open_time: Millis,
    row: Row,
    /// Its close has been said, or its range had passed when it was read.
    pub(super) is_closed: bool,
    /// By column of the set; NaN where undefined.
    pub(super) values: Box<[f64]>,
    /// Of the series when the values last changed.
    pub(super) version: u64,
}

/// What must be done before news can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Nothing.
    Done,
    /// The history as of a revision must be read: nothing is known yet, something was not heard, or it changed too far back.
    Behind { revision: u64 },
}

/// The state of a series at a revision.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Of the specs, after the candles up to `entered`.
    machines: Machines,
    /// Open time of the last candle that the machines have taken.
    pub(super) entered: Option<Millis>,
    pub(super) recent: VecDeque<Recent>,
    /// Everything up to here is known. Absent before the first reading.
    pub(super) revision: Option<u64>,
    /// What is up to here was read, and so is known whole; later revisions were heard of candle by candle.
    read_at: u64,
    /// Rises with every change of a value.
    pub(super) version: u64,
    /// More of the newest revision may be on its way in another message.
    is_cut: bool,
}

impl State {
    /// A history, computed. Blocks: for the CPU pool.
    pub(super) fn read(specs: &[Spec], history: &BucketFrame, revision: u64) -> State {
        let frame = &history.frame;
        let enter = frame.len().saturating_sub(KEPT);
        let mut state = State {
            machines: Machines::new(specs),
            entered: enter.checked_sub(1).map(|last| frame.open_time()[last]),
            revision: Some(revision),
            read_at: revision,
            ..State::default()
        };
        let mut scratch = vec![f64::NAN; state.machines.columns()];
        let row = |index: usize| row_of(&frame.candle(index), history.trading_date[index]);
        for index in 0..enter {
            state.machines.push(&row(index), &mut scratch);
        }
        state.recent.extend((enter..frame.len()).map(|index| Recent {
            open_time: frame.open_time()[index],
            row: row(index),
            is_closed: history.closed[index],
            values: Box::default(),
            version: 0,
        }));
        state.fold();
        state
    }

    /// Of an instrument of which nothing is stored.
    pub(super) fn empty(specs: &[Spec]) -> State {
        State::read(specs, &BucketFrame::default(), 0)
    }

    /// Bytes held, about.
    pub(super) fn size_bytes(&self) -> usize {
        let recent = size_of::<Recent>() + self.machines.columns() * size_of::<f64>();
        size_of::<State>() + self.machines.size_bytes() + (KEPT + 1) * recent
    }

    /// Whether everything up to a revision is known.
    pub(super) fn knows(&self, revision: u64) -> bool {
        self.revision.is_some_and(|known| known >= revision) && !self.is_cut
    }

    /// Takes news of the series in their order; with [`Taken::Behind`] nothing has been taken. `is_cut`: more of them may come in the
    /// next message.
    pub(super) fn take(&mut self, news: &[CandleNews], is_cut: bool) -> Taken {
        let newest = news.iter().map(|one| one.revision).max().unwrap_or_default();
        let Some(known) = self.revision else { return Taken::Behind { revision: newest } };
        let behind = Taken::Behind { revision: newest.max(known) };
        let mut revision = known;
        for one in news {
            if one.revision < revision || one.revision <= self.read_at {
                continue;
            }
            let follows = one.revision == revision || (one.revision == revision + 1 && !self.is_cut);
            if !follows || self.entered.is_some_and(|entered| one.open_time() <= entered) {
                return behind;
            }
            revision = one.revision;
        }
        let mut has_changed = false;
        for one in news {
            if one.revision >= known && one.revision > self.read_at {
                has_changed |= self.put(one);
            }
            if matches!(one.event, CandleEvent::Close | CandleEvent::Correction)
                && let Some(recent) = self.find_mut(one.open_time())
            {
                recent.is_closed = true;
            }
        }
        self.revision = Some(revision);
        if newest > self.read_at {
            self.is_cut = is_cut;
        }
        if has_changed {
            self.fold();
        }
        Taken::Done
    }

    /// Takes over what was read, unless more is known by now.
    pub(super) fn replace(&mut self, mut read: State) {
        if self.revision > read.revision {
            return;
        }
        read.version = self.version + 1;
        for recent in &mut read.recent {
            let known = self.find(recent.open_time);
            recent.version = match known.filter(|known| is_same(&known.values, &recent.values)) {
                Some(known) => known.version,
                None => read.version,
            };
            // A close that was said stays said.
            recent.is_closed |= known.is_some_and(|known| known.is_closed);
        }
        *self = read;
    }

    /// The next message came: the one before was whole.
    pub(super) fn end_cut(&mut self) {
        self.is_cut = false;
    }

    pub(super) fn find(&self, open_time: Millis) -> Option<&Recent> {
        let index = self.recent.binary_search_by_key(&open_time, |recent| recent.open_time).ok()?;
        self.recent.get(index)
    }

    fn find_mut(&mut self, open_time: Millis) -> Option<&mut Recent> {
        let index = self.recent.binary_search_by_key(&open_time, |recent| recent.open_time).ok()?;
        self.recent.get_mut(index)
    }

    /// Whether it changed anything.
    fn put(&mut self, news: &CandleNews) -> bool {
        let (open_time, row) = (news.open_time(), row_of(&news.candle, news.trading_date));
        match self.recent.binary_search_by_key(&open_time, |recent| recent.open_time) {
            Ok(index) => std::mem::replace(&mut self.recent[index].row, row) != row,
            Err(index) => {
                let recent = Recent { open_time, row, is_closed: false, values: Box::default(), version: 0 };
                self.recent.insert(index, recent);
                true
            }
        }
    }

    /// Computes the values of the newest candles.
    fn fold(&mut self) {
        let mut machines = self.machines.clone();
        let mut values = vec![f64::NAN; machines.columns()];
        let version = self.version + 1;
        for recent in &mut self.recent {
            machines.push(&recent.row, &mut values);
            if !is_same(&recent.values, &values) {
                recent.values = values.as_slice().into();
                recent.version = version;
                self.version = version;
            }
        }
    }

    /// Lets the machines take the candles that are no longer among the newest. Their values have been told by now.
    pub(super) fn settle(&mut self) {
        let mut scratch = vec![f64::NAN; self.machines.columns()];
        while self.recent.len() > KEPT
            && let Some(oldest) = self.recent.pop_front()
        {
            self.machines.push(&oldest.row, &mut scratch);
            self.entered = Some(oldest.open_time);
        }
    }
}

fn row_of(candle: &market::Candle, trading_date: market::Date) -> Row {
    let market::Candle { open, high, low, close, volume, .. } = *candle;
    Row { open, high, low, close, volume, day: proto::arrow::date32(trading_date) }
}

/// To the bit, so that an undefined value is the same as itself.
fn is_same(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

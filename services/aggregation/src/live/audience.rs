//! Who listens: subscribers by filter, each with a bounded backlog.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use market::InstrumentKey;
use proto::aggregation::CandleEvent;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::cursor::Position;
use super::encode::{Cuts, Encoded, Message};
use super::event::{Filter, Timeframes, Update};

/// Updates told, by event (UPDATE, CLOSE, CORRECTION), each counted once however many hear it.
const UPDATES: &str = "candlemesh_live_updates_total";
/// Subscribers that were cut off because they did not keep up.
const SLOW: &str = "candlemesh_live_slow_subscribers_total";

/// Why a subscription ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Slow,
    /// The change log no longer has what comes next.
    Expired,
    /// The hub is gone.
    Lost,
}

/// One subscriber's backlog.
#[derive(Debug)]
pub(super) struct Mailbox {
    state: Mutex<Backlog>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Backlog {
    /// With the instant each message was put in.
    messages: VecDeque<(Instant, Message)>,
    bytes: usize,
    ended: Option<Ended>,
    /// The reader is gone.
    is_left: bool,
}

/// Bounds of the backlogs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Of one subscriber.
    pub(super) backlog_bytes: usize,
    /// Of all; what a group shares counts once.
    pub(super) max_backlog_bytes: usize,
    pub(super) send_timeout: Duration,
}

impl Mailbox {
    pub(super) fn new() -> Arc<Mailbox> {
        Arc::new(Mailbox { state: Mutex::default(), news: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next message, once there is one.
    pub(super) async fn next(&self) -> Result<Message, Ended> {
        loop {
            let news = self.news.notified();
            if let Some(next) = self.try_next() {
                return next;
            }
            news.await;
        }
    }

    pub(super) fn try_next(&self) -> Option<Result<Message, Ended>> {
        let mut backlog = self.lock();
        if let Some((_, message)) = backlog.messages.pop_front() {
            backlog.bytes -= message.bytes.len();
            return Some(Ok(message));
        }
        backlog.ended.map(Err)
    }

    /// Says that nobody reads any more.
    pub(super) fn leave(&self) {
        let mut backlog = self.lock();
        *backlog = Backlog { is_left: true, ..Backlog::default() };
    }

    /// Whether the subscriber goes on.
    fn put(&self, messages: &[Message], limits: &Limits) -> bool {
        let mut backlog = self.lock();
        let now = Instant::now();
        let stalled = |(since, _): &(Instant, Message)| now.duration_since(*since) > limits.send_timeout;
        let added: usize = messages.iter().map(|message| message.bytes.len()).sum();
        let is_slow = backlog.messages.front().is_some_and(stalled)
            || (!backlog.messages.is_empty() && backlog.bytes + added > limits.backlog_bytes);
        if backlog.is_left {
            return false;
        }
        if is_slow {
            backlog.cut_off();
        } else {
            backlog.bytes += added;
            backlog.messages.extend(messages.iter().map(|message| (now, message.clone())));
        }
        drop(backlog);
        if is_slow || !messages.is_empty() {
            self.news.notify_one();
        }
        !is_slow
    }

    fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn cut_off(&self) {
        self.lock().cut_off();
        self.news.notify_one();
    }

    fn end(&self, ended: Ended) {
        self.lock().ended = Some(ended);
        self.news.notify_one();
    }
}

impl Backlog {
    /// Ends it as slow, and gives its memory back.
    fn cut_off(&mut self) {
        metrics::counter!(SLOW).increment(1);
        *self = Backlog { ended: Some(Ended::Slow), ..Backlog::default() };
    }
}

/// All subscribers of a process.
#[derive(Debug)]
pub(super) struct Audience {
    groups: HashMap<Filter, Vec<Arc<Mailbox>>>,
    /// Filters of those who are to have a seat.
    expected: Vec<Filter>,
    limits: Limits,
    /// Timeframes of those who watch everything, and by instrument of those who do not.
    everywhere: Timeframes,
    watched: HashMap<InstrumentKey, Timeframes>,
}

impl Audience {
    pub(super) fn new(limits: Limits) -> Audience {
        let (groups, expected) = (HashMap::new(), Vec::new());
        Audience { groups, expected, limits, everywhere: Timeframes::default(), watched: HashMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    pub(super) fn watched(&self, key: &InstrumentKey) -> Timeframes {
        self.everywhere.with(self.watched.get(key).copied().unwrap_or_default())
    }

    /// Watches what a filter names, before there is anybody to tell.
    pub(super) fn expect(&mut self, filter: &Filter) {
        self.expected.push(filter.clone());
        self.watch(filter);
    }

    /// Seats one who was expected, unless it has left meanwhile.
    pub(super) fn seat(&mut self, filter: &Filter, mailbox: Option<Arc<Mailbox>>) {
        if let Some(index) = self.expected.iter().position(|expected| expected == filter) {
            self.expected.swap_remove(index);
        }
        // Of one who has left, an empty group remains, which the next sweep takes away with all that only it watched.
        self.groups.entry(filter.clone()).or_default().extend(mailbox);
    }

    fn watch(&mut self, filter: &Filter) {
        match &filter.keys {
            None => self.everywhere = self.everywhere.with(filter.timeframes),
            Some(keys) => {
                for key in keys.iter() {
                    let watched = self.watched.entry(key.clone()).or_default();
                    *watched = watched.with(filter.timeframes);
                }
            }
        }
    }

    /// Hands the updates of a step to everybody they are for.
    pub(super) fn tell(&mut self, updates: &[Update], now: market::Millis, cuts: &Cuts<'_>) {
        if updates.is_empty() || self.groups.is_empty() {
            return;
        }
        let encoded = Encoded::of(updates, now);
        let mut wants = vec![true; updates.len()];
        for (filter, members) in &mut self.groups {
            for (wants, update) in wants.iter_mut().zip(updates) {
                *wants = filter.timeframes.holds(update.timeframe) && filter.wants_key(&update.key);
            }
            let messages = encoded.messages(updates, filter, &wants, cuts);
            members.retain(|mailbox| mailbox.put(&messages, &self.limits));
        }
        self.relieve();
        for event in [CandleEvent::Update, CandleEvent::Close, CandleEvent::Correction] {
            let count = updates.iter().filter(|update| update.event == event).count();
            let name = event.as_str_name().trim_start_matches("CANDLE_EVENT_");
            metrics::counter!(UPDATES, "event" => name).increment(count as u64);
        }
    }

    /// Cuts off those who have most unread while all together have too much. A group shares its messages, and each has the newest of
    /// them, so that a group holds what its furthest behind has unread.
    fn relieve(&mut self) {
        loop {
            let held = self.groups.values().map(|members| members.iter().map(|mailbox| mailbox.bytes()).max());
            if held.map(Option::unwrap_or_default).sum::<usize>() <= self.limits.max_backlog_bytes {
                return;
            }
            let unread = |members: &Vec<Arc<Mailbox>>| members.iter().map(|mailbox| mailbox.bytes()).max();
            let Some(members) = self.groups.values_mut().max_by_key(|members| unread(members)) else { return };
            let Some(largest) = (0..members.len()).max_by_key(|index| members[*index].bytes()) else { return };
            members.swap_remove(largest).cut_off();
        }
    }

    /// Drops who has left or lags; returns whether somebody was.
    pub(super) fn sweep(&mut self) -> bool {
        let count = |groups: &HashMap<Filter, Vec<Arc<Mailbox>>>| groups.values().map(Vec::len).sum::<usize>();
        let before = (self.groups.len(), count(&self.groups));
        for members in self.groups.values_mut() {
            members.retain(|mailbox| mailbox.put(&[], &self.limits));
        }
        self.groups.retain(|_, members| !members.is_empty());
        if self.groups.len() != before.0 {
            (self.everywhere, self.watched) = (Timeframes::default(), HashMap::new());
            let filters: Vec<Filter> = self.groups.keys().chain(&self.expected).cloned().collect();
            filters.iter().for_each(|filter| self.watch(filter));
        }
        before != (self.groups.len(), count(&self.groups))
    }

    /// Ends every subscription.
    pub(super) fn end(&mut self, ended: Ended) {
        for mailbox in self.groups.drain().flat_map(|(_, members)| members) {
            mailbox.end(ended);
        }
        (self.everywhere, self.watched) = (Timeframes::default(), HashMap::new());
    }
}

impl Drop for Audience {
    fn drop(&mut self) {
        self.end(Ended::Lost);
    }
}

/// A place in the stream of a subscriber that has left its mailbox behind when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) mailbox: Arc<Mailbox>,
    /// Where the hub stood when the subscriber joined.
    pub(super) position: Position,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.mailbox.leave();
    }
}

//! What became durable, for those who watch: from memory where it is recent, from the store's log where it is not.
//!
//! Every put hands its changes over with the candles they changed, so a watcher who keeps up costs the database nothing. What was
//! not handed over (of another replica, or of a put nobody waited for) is read from the log. A watcher holds only its position.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use market::InstrumentKey;
use mesh::bus::Bus;
use proto::convert::FieldError;
use store::{CandleStore, Change, Changed};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use super::ring::{self, Batch, MAX_BATCH_BYTES, MAX_BATCH_CHANGES, Ring, Wants};
use super::{Error, Result};

/// Changes read from the log at a time: for all watchers, and with them as many blocks, or for one watcher without their candles.
const LOG_PAGE: usize = 512;
/// Changes with candles that one watcher behind the ring holds: 0.9 MB at the most, where each changed a thousand rows. All watchers
/// may be behind at once.
const WATCHER_PAGE: usize = 16;
/// How long a put may take from its commit until it has handed over its changes, before they are read from the log.
const HAND_OVER_GRACE: Duration = Duration::from_millis(2);
/// How often the log is asked for what other replicas stored: the delay a watcher sees without a bus.
const POLL: Duration = Duration::from_millis(200);
/// The same while the bus tells; against what it may lose.
const POLL_BEHIND_BUS: Duration = Duration::from_secs(1);
/// A watcher hears something at least so often; the contract says 15 s.
const HEARTBEAT: Duration = Duration::from_secs(10);

const SUBSCRIBERS_METRIC: &str = "candlemesh_change_subscribers";
const RING_METRIC: &str = "candlemesh_change_ring_bytes";
/// Changes the process read back from the log, by why: another replica's (`log`) or a watcher behind the ring (`watcher`).
const READ_METRIC: &str = "candlemesh_changes_read_back_total";

/// The changes of the store, as they become durable.
#[derive(Debug)]
pub(crate) struct Feed {
    candles: Arc<dyn CandleStore>,
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
    gap: Notify,
    places: Arc<Semaphore>,
    max_subscribers: usize,
    bus: Bus,
}

/// What a watcher asked for.
#[derive(Debug)]
pub(crate) struct Interest {
    /// Empty: all.
    pub(crate) keys: HashSet<InstrumentKey>,
    /// The last sequence seen; absent: from now on.
    pub(crate) after: Option<u64>,
    pub(crate) with_candles: bool,
}

impl Wants for Interest {
    fn wants(&self, changed: &Changed) -> bool {
        self.keys.is_empty() || self.keys.contains(&changed.change.key)
    }

    fn size_of(&self, changed: &Changed) -> usize {
        if self.with_candles { ring::size_of(changed) } else { ring::size_of_record(&changed.change) }
    }
}

/// A watcher's place in the log.
#[derive(Debug)]
pub(crate) struct Subscription {
    feed: Arc<Feed>,
    interest: Interest,
    /// Everything up to here was given out or is of no interest.
    position: u64,
    /// Read from the log and not given out yet.
    backlog: std::vec::IntoIter<Arc<Changed>>,
    backlog_end: u64,
    newest: watch::Receiver<u64>,
    next_heartbeat: Instant,
    _place: Place,
}

/// A subscriber's place among the limited number, counted while it lasts.
#[derive(Debug)]
struct Place(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl Place {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        metrics::gauge!(SUBSCRIBERS_METRIC).increment(1.0);
        Self(permit)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!(SUBSCRIBERS_METRIC).decrement(1.0);
    }
}

impl Feed {
    /// Starts where the log ends.
    pub(crate) async fn open(
        candles: Arc<dyn CandleStore>,
        bus: Bus,
        ring_changes: usize,
        max_subscribers: usize,
    ) -> store::Result<Feed> {
        let newest = candles.last_sequence().await?;
        Ok(Feed {
            candles,
            ring: Mutex::new(Ring::new(newest, ring_changes)),
            newest: watch::Sender::new(newest),
            gap: Notify::new(),
            places: Arc::new(Semaphore::new(max_subscribers)),
            max_subscribers,
            bus,
        })
    }

    /// Takes the changes of a put that is durable, in their order.
    pub(super) fn hand_over(&self, changes: Vec<Changed>) {
        let Some(last) = changes.last().map(|changed| changed.change.sequence) else { return };
        let has_gap = {
            let mut ring = self.ring();
            ring.hand_over(changes);
            self.publish(&ring);
            ring.has_gap()
        };
        if has_gap {
            self.gap.notify_one();
        }
        self.bus.announce(last);
    }

    /// Subscribes. Errors: all places taken, a position that does not exist yet, or one that was pruned.
    pub(crate) async fn watch(self: &Arc<Self>, interest: Interest) -> Result<Subscription> {
        let permit = Arc::clone(&self.places).try_acquire_owned();
        let place = Place::new(permit.map_err(|_| Error::TooManySubscribers(self.max_subscribers))?);
        let position = match interest.after {
            Some(after) => self.checked_position(after).await?,
            None => self.candles.last_sequence().await?,
        };
        Ok(Subscription {
            feed: Arc::clone(self),
            interest,
            position,
            backlog: Vec::new().into_iter(),
            backlog_end: position,
            newest: self.newest.subscribe(),
            // At once, so that a watcher without a position has one to resume from.
            next_heartbeat: Instant::now(),
            _place: place,
        })
    }

    async fn checked_position(&self, after: u64) -> Result<u64> {
        if after > self.ring().newest() {
            let newest = self.candles.last_sequence().await?;
            if after > newest {
                let reason = format!("{after} given; the newest sequence is {newest}");
                return Err(FieldError::new("after_sequence", reason).into());
            }
        } else if self.ring().is_behind(after) {
            // Whether it is still kept is known before anything is answered.
            self.candles.changes(after, 1).await?;
        }
        Ok(after)
    }

    /// Keeps up with other replicas and fills gaps, for as long as it is polled.
    pub(crate) async fn run(&self) -> Infallible {
        let mut is_failing = false;
        loop {
            let poll = if self.bus.is_connected() { POLL_BEHIND_BUS } else { POLL };
            let caught_up = tokio::select! {
                () = self.gap.notified() => {
                    tokio::time::sleep(HAND_OVER_GRACE).await;
                    if self.ring().has_gap() { self.catch_up().await } else { Ok(()) }
                }
                told = self.bus.heard() => {
                    if told > self.ring().newest() { self.catch_up().await } else { Ok(()) }
                }
                () = tokio::time::sleep(poll) => self.poll().await,
            };
            if let Err(error) = &caught_up
                && !is_failing
            {
                tracing::warn!(error = mesh::fault::chain(error), "the change log cannot be read now");
            }
            is_failing = caught_up.is_err();
        }
    }

    async fn poll(&self) -> store::Result<()> {
        metrics::gauge!(RING_METRIC).set(self.ring().bytes() as f64);
        let newest = self.candles.last_sequence().await?;
        if newest > self.ring().newest() { self.catch_up().await } else { Ok(()) }
    }

    /// Reads from the log what is missing, up to its end.
    async fn catch_up(&self) -> store::Result<()> {
        loop {
            let newest = self.ring().newest();
            if self.places.available_permits() == self.max_subscribers {
                // Nobody would see it; who comes later reads the log.
                return self.skip().await;
            }
            let page = match self.candles.changes(newest, LOG_PAGE).await {
                Err(store::Error::Expired { .. }) => return self.skip().await,
                page => page?,
            };
            let is_last = page.len() < LOG_PAGE;
            let page = self.with_candles(page).await?;
            metrics::counter!(READ_METRIC, "for" => "log").increment(page.len() as u64);
            let mut ring = self.ring();
            ring.extend(page);
            self.publish(&ring);
            if is_last {
                return Ok(());
            }
        }
    }

    async fn skip(&self) -> store::Result<()> {
        let last = self.candles.last_sequence().await?;
        let mut ring = self.ring();
        ring.skip_to(last);
        self.publish(&ring);
        Ok(())
    }

    async fn with_candles(&self, changes: Vec<Change>) -> store::Result<Vec<Arc<Changed>>> {
        let candles = self.candles.changed_candles(&changes).await?;
        let changed = changes.into_iter().zip(candles).map(|(change, candles)| Arc::new(Changed { change, candles }));
        Ok(changed.collect())
    }

    /// Called with the ring locked, so that what is told only rises.
    fn publish(&self, ring: &Ring) {
        let newest = ring.newest();
        self.newest.send_if_modified(|told| std::mem::replace(told, newest) < newest);
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// The changes that come next, once there are any; none of them after [`HEARTBEAT`] without one.
    pub(crate) async fn next(&mut self) -> Result<Batch> {
        loop {
            // Before the ring is looked at: what comes after that wakes.
            self.newest.borrow_and_update();
            let batch = match self.next_in_backlog() {
                Some(batch) => batch,
                None => match self.next_in_ring() {
                    Some(batch) => batch,
                    None => {
                        self.read_log().await?;
                        continue;
                    }
                },
            };
            let has_advanced = batch.sequence > self.position;
            self.position = batch.sequence;
            if !batch.changes.is_empty() || Instant::now() >= self.next_heartbeat {
                self.next_heartbeat = Instant::now() + HEARTBEAT;
                return Ok(batch);
            }
            if has_advanced {
                continue;
            }
            tokio::select! {
                // The feed outlives its subscriptions.
                _ = self.newest.changed() => {}
                () = tokio::time::sleep_until(self.next_heartbeat) => {}
            }
        }
    }

    pub(crate) fn with_candles(&self) -> bool {
        self.interest.with_candles
    }

    fn next_in_ring(&self) -> Option<Batch> {
        self.feed.ring().after(self.position, &self.interest)
    }

    /// A message's worth of what was read from the log; `None` when all of it was given out.
    fn next_in_backlog(&mut self) -> Option<Batch> {
        if self.position >= self.backlog_end {
            return None;
        }
        let mut batch = Batch { changes: Vec::new(), sequence: self.backlog_end };
        let mut bytes = 0;
        while let Some(changed) = self.backlog.as_slice().first() {
            bytes += self.interest.size_of(changed);
            let is_full = batch.changes.len() == MAX_BATCH_CHANGES || bytes > MAX_BATCH_BYTES;
            if is_full && let Some(last) = batch.changes.last() {
                let last: &Arc<Changed> = last;
                batch.sequence = last.change.sequence;
                break;
            }
            batch.changes.extend(self.backlog.next());
        }
        Some(batch)
    }

    /// Reads the next page of the log.
    async fn read_log(&mut self) -> Result<()> {
        let in_ring = self.feed.ring().floor();
        // Records alone are small, and of a few instruments most are of no interest.
        let is_heavy = self.interest.with_candles && self.interest.keys.is_empty();
        let limit = if is_heavy { WATCHER_PAGE } else { LOG_PAGE };
        let mut page = self.feed.candles.changes(self.position, limit).await?;
        // Nothing is left of the log before the ring: numbers may be missing in it.
        self.backlog_end = page.last().map_or(in_ring, |change| change.sequence);
        page.retain(|change| self.interest.keys.is_empty() || self.interest.keys.contains(&change.key));
        if self.interest.with_candles && page.len() > WATCHER_PAGE {
            page.truncate(WATCHER_PAGE);
            self.backlog_end = page.last().map_or(self.backlog_end, |change| change.sequence);
        }
        metrics::counter!(READ_METRIC, "for" => "watcher").increment(page.len() as u64);
        let changed = if self.interest.with_candles {
            self.feed.with_candles(page).await?
        } else {
            page.into_iter().map(|change| Arc::new(Changed { change, candles: None })).collect()
        };
        self.backlog = changed.into_iter();
        Ok(())
    }
}

//! Studies of this process that wait or run: bounded, first come first served.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Studies being run.
const RUNNING: &str = "optimizer_running";
/// Studies waiting to be run.
const QUEUE_DEPTH: &str = "optimizer_queue_depth";

/// A study that waits or runs here.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) cancel: CancellationToken,
    /// Cancelled once it neither waits nor runs here any more.
    left: CancellationToken,
    changed: watch::Sender<()>,
}

impl Live {
    /// Tells watchers to look again.
    pub(crate) fn notify(&self) {
        self.changed.send_replace(());
    }

    /// Waits until the study is done with here, at most `limit`.
    pub(crate) async fn left(&self, limit: Duration) {
        // Past the limit the caller goes on with what is stored by then.
        let _ = tokio::time::timeout(limit, self.left.cancelled()).await;
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<String>,
    /// Places promised to studies that are being created.
    reserved: usize,
    running: usize,
    live: HashMap<String, Arc<Live>>,
}

#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    arrived: Notify,
    limit: usize,
}

/// A place in the queue, given back when dropped unused.
#[derive(Debug)]
pub(crate) struct Place(Arc<Queue>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().reserved -= 1;
    }
}

impl Queue {
    pub(crate) fn new(limit: usize) -> Arc<Queue> {
        Arc::new(Queue { state: Mutex::default(), arrived: Notify::new(), limit })
    }

    /// Promises a place, so that a study is stored only if it can wait here. `None` when all are taken.
    pub(crate) fn reserve(self: &Arc<Self>) -> Option<Place> {
        let mut state = self.lock();
        if state.waiting.len() + state.reserved >= self.limit {
            return None;
        }
        state.reserved += 1;
        Some(Place(Arc::clone(self)))
    }

    /// Puts a study at the end; one that is here already stays where it is.
    ///
    /// Not held to the limit: studies found at the start were within it when they were created.
    pub(crate) fn push(&self, id: &str) {
        let mut state = self.lock();
        if state.live.contains_key(id) {
            return;
        }
        state.live.insert(id.to_owned(), Arc::default());
        state.waiting.push_back(id.to_owned());
        state.publish();
        drop(state);
        self.arrived.notify_one();
    }

    /// Takes the study that has waited longest, waiting for one.
    pub(crate) async fn take(&self) -> (String, Arc<Live>) {
        loop {
            let arrived = self.arrived.notified();
            if let Some(taken) = self.try_take() {
                return taken;
            }
            arrived.await;
        }
    }

    fn try_take(&self) -> Option<(String, Arc<Live>)> {
        let mut state = self.lock();
        let id = state.waiting.pop_front()?;
        let live = Arc::clone(state.live.get(&id)?);
        state.running += 1;
        state.publish();
        let more = !state.waiting.is_empty();
        drop(state);
        // One permit may have stood for several arrivals.
        if more {
            self.arrived.notify_one();
        }
        Some((id, live))
    }

    /// Forgets a study that was taken.
    pub(crate) fn finish(&self, id: &str) {
        let mut state = self.lock();
        state.running -= 1;
        state.forget(id);
        state.publish();
    }

    /// Stops a study: a waiting one is removed, a running one is told.
    pub(crate) fn cancel(&self, id: &str) {
        let mut state = self.lock();
        let Some(live) = state.live.get(id).cloned() else {
            return;
        };
        if let Some(place) = state.waiting.iter().position(|waiting| waiting == id) {
            state.waiting.remove(place);
            state.forget(id);
            state.publish();
        }
        drop(state);
        live.cancel.cancel();
        live.notify();
    }

    pub(crate) fn live(&self, id: &str) -> Option<Arc<Live>> {
        self.lock().live.get(id).cloned()
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget(&mut self, id: &str) {
        if let Some(live) = self.live.remove(id) {
            live.left.cancel();
        }
    }

    fn publish(&self) {
        metrics::gauge!(RUNNING).set(self.running as f64);
        metrics::gauge!(QUEUE_DEPTH).set(self.waiting.len() as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn studies_wait_in_order_and_a_full_queue_promises_nothing() {
        let queue = Queue::new(2);
        let place = queue.reserve().unwrap();
        queue.push("a");
        assert!(queue.reserve().is_none(), "one waits, one is promised");
        drop(place);
        queue.push("b");
        queue.push("a");
        assert!(queue.reserve().is_none());
        assert_eq!(queue.take().await.0, "a");
        queue.push("a");
        assert!(queue.reserve().is_some(), "what runs does not wait");
        queue.cancel("b");
        queue.finish("a");
        queue.push("c");
        let (id, live) = queue.take().await;
        assert_eq!(id, "c");
        queue.cancel("c");
        assert!(live.cancel.is_cancelled());
    }

    #[tokio::test]
    async fn one_arrival_wakes_one_taker_and_none_is_forgotten() {
        let queue = Queue::new(10);
        let mut takers: Vec<_> = (0..3).map(|_| Box::pin(queue.take())).collect();
        for taker in &mut takers {
            assert!(futures::poll!(taker).is_pending());
        }
        ["a", "b", "c"].into_iter().for_each(|id| queue.push(id));
        let taken = futures::future::join_all(takers).await;
        assert_eq!(taken.into_iter().map(|(id, _)| id).collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}

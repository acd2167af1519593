//! The twin without a database, for tests and demonstrations: plain maps behind one lock, as simple as the contract allows.

mod actions;
mod backfills;
mod candles;
mod repositories;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// All tables. Nothing survives the value.
#[derive(Debug, Default)]
pub(crate) struct MemoryStore {
    candles: Arc<Mutex<candles::Candles>>,
    records: Mutex<repositories::Records>,
    actions: Mutex<actions::Actions>,
    backfills: Mutex<backfills::Backfills>,
    identity: Identity,
}

/// Another one for each store.
#[derive(Debug)]
struct Identity(String);

impl Default for Identity {
    fn default() -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        Self(format!("memory-{:x}-{:x}-{number:x}", since.as_nanos(), std::process::id()))
    }
}

/// Locks; every change is made after its last check, so a panic in between leaves no half of one behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The twin without a database, for tests and demonstrations: plain maps behind one lock, as simple as the contract allows.

mod actions;
mod backfills;
mod candles;
mod repositories;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All tables. Nothing survives the value.
#[derive(Debug, Default)]
pub(crate) struct MemoryStore {
    candles: Arc<Mutex<candles::Candles>>,
    records: Mutex<repositories::Records>,
    actions: Mutex<actions::Actions>,
    backfills: Mutex<backfills::Backfills>,
}

/// Locks; every change is made after its last check, so a panic in between leaves no half of one behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The candle store and the repositories of candlemesh, on SQLite, PostgreSQL or memory behind one set of traits.
//!
//! Only this crate knows SQL. Services hold the traits ([`CandleStore`], [`Catalog`], [`FlagStore`], [`StudyStore`],
//! [`ScreenStore`], [`BackfillStore`], [`ActionStore`]) from a [`Stores`] opened by URL; the same contract suite runs over all three implementations.
//! Candles lie in one compressed, lossless, checksummed block per instrument, source timeframe and trading date (see
//! [`candle_store`]). The crate reads no clock: every write takes `now`. It does not aggregate, fill gaps, or validate candles: a
//! [`Frame`](market::Frame) is valid by construction.
//!
//! Calls are safe to cancel: a dropped future rolls its transaction back, unless the commit had already been sent.

pub mod action_store;
pub mod backfill_store;
pub mod candle_store;
pub mod catalog;
pub mod flag_store;
pub mod screen_store;
pub mod study_store;

mod block;
mod check;
mod error;
mod memory;
mod open;
mod pool;
mod sql;

pub use action_store::{ActionStore, PutActions};
pub use backfill_store::{
    BackfillChange, BackfillCounts, BackfillFileRecord, BackfillLease, BackfillRecord, BackfillRelease,
    BackfillRequest, BackfillState, BackfillStore, ExpectedRequest, FailedFiles, NewBackfill,
};
pub use block::{decode_block, encode_block};
pub use candle_store::{Block, CandleStore, Change, Changed, Coverage, LastCandle, Pruned, Put, PutOutcome};
pub use catalog::{Catalog, Group};
pub use check::{CheckReport, Finding, MAX_FINDINGS};
pub use error::{Error, Result};
pub use flag_store::{FlagRecord, FlagStore};
pub use open::{StoreOptions, Stores};
pub use pool::{PoolPoint, PoolStatistics};
pub use screen_store::{AnalysisRecord, IntentRecord, ScreenStore};
pub use study_store::{StudyProgress, StudyRecord, StudyStore, TrialOrder, TrialRecord};

/// Most rows any listing returns in one page; larger limits are cut to it, so that no answer is unbounded.
pub const MAX_PAGE_ROWS: usize = 10_000;

//! What can go wrong in a store, as callers act on it.

use std::error::Error as StdError;

use market::{Date, InstrumentKey};

/// A `Result` whose error is this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why a store did not do what it was asked. The underlying cause is in `source`, never in the text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The named thing does not exist.
    #[error("{what} '{id}' does not exist")]
    NotFound { what: &'static str, id: String },
    /// A create met an id that is taken.
    #[error("{what} '{id}' exists already")]
    AlreadyExists { what: &'static str, id: String },
    /// A compare-and-set was lost: someone else changed the thing first. Read it again and decide anew.
    #[error("{what} '{id}' was changed by someone else: expected {expected}, found {found}")]
    Conflict { what: &'static str, id: String, expected: String, found: String },
    /// A stored block does not decode to what was written; nothing of it is returned.
    #[error("stored candles of {instrument} on {date} are corrupt: {reason}")]
    Corrupt { instrument: InstrumentKey, date: Date, reason: String },
    /// The revision or cursor asked for lies before what [`prune`](crate::CandleStore::prune) has left.
    #[error("{what} {requested} is no longer kept; the oldest is {oldest}")]
    Expired { what: &'static str, requested: u64, oldest: u64 },
    /// The database cannot be reached, is busy beyond its timeout, or shuts down. Worth a retry; the outcome of a write is unknown.
    #[error("database is unavailable")]
    Unavailable(#[source] Box<dyn StdError + Send + Sync>),
    /// No space is left where the database writes. Nothing of the call was stored.
    #[error("database has no space left: {0}")]
    Full(String),
    /// A value that the store refuses.
    #[error("{field} is refused: {reason}")]
    Invalid { field: &'static str, reason: String },
    /// A fault of the database or of this crate that no caller can mend.
    #[error("database answered with a fault")]
    Internal(#[source] Box<dyn StdError + Send + Sync>),
}

impl Error {
    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Error::Invalid { field, reason: reason.into() }
    }

    pub(crate) fn not_found(what: &'static str, id: impl Into<String>) -> Self {
        Error::NotFound { what, id: id.into() }
    }

    pub(crate) fn internal(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Error::Internal(cause.into())
    }
}

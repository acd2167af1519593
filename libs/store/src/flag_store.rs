//! Flag definitions, changed by compare-and-set.

use std::fmt::Debug;

use async_trait::async_trait;
use market::Millis;

use crate::{Error, Result};

/// A flag as stored; the definition is opaque here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlagRecord {
    pub key: String,
    pub definition_json: String,
    /// Rises by one with every change; the first is 1.
    pub generation: u64,
    pub updated_at: Millis,
    pub updated_by: String,
}

/// Flags and their rollouts.
#[async_trait]
pub trait FlagStore: Send + Sync + Debug {
    /// All flags, by key, at most [`MAX_PAGE_ROWS`](crate::MAX_PAGE_ROWS).
    async fn flags(&self) -> Result<Vec<FlagRecord>>;

    async fn flag(&self, key: &str) -> Result<Option<FlagRecord>>;

    /// Replaces the definition if the flag is still at `expected_generation` (0: if it does not exist), and returns the new generation.
    ///
    /// Errors: `Conflict` when it is not.
    async fn compare_and_set(
        &self,
        key: &str,
        expected_generation: u64,
        definition_json: &str,
        updated_by: &str,
        now: Millis,
    ) -> Result<u64>;
}

/// The error of a lost compare-and-set.
pub(crate) fn lost(key: &str, expected: u64, found: u64) -> Error {
    let generation = |number: u64| if number == 0 { "no flag".to_owned() } else { format!("generation {number}") };
    Error::Conflict { what: "flag", id: key.to_owned(), expected: generation(expected), found: generation(found) }
}

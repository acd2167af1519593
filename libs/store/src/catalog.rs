//! Instruments and groups of them.

use std::fmt::Debug;

use async_trait::async_trait;
use market::{Instrument, InstrumentKey};

use crate::Result;

/// A named list of instruments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub id: String,
    pub name: String,
    /// In the order given; need not be in the catalog.
    pub instrument_keys: Vec<InstrumentKey>,
}

/// Master data.
#[async_trait]
pub trait Catalog: Send + Sync + Debug {
    /// Inserts or replaces by key.
    async fn upsert_instrument(&self, instrument: &Instrument) -> Result<()>;

    /// Inserts those whose key is not there yet, and leaves the others alone; returns how many were inserted.
    async fn insert_instruments(&self, instruments: &[Instrument]) -> Result<u64>;

    async fn instrument(&self, key: &InstrumentKey) -> Result<Option<Instrument>>;

    /// Instruments by key, in order; `None` for an unknown one.
    async fn instruments(&self, keys: &[InstrumentKey]) -> Result<Vec<Option<Instrument>>>;

    /// Instruments after a key, in byte order of keys, of one segment or of all. Cost: an index range.
    async fn list_instruments(
        &self,
        after: Option<&InstrumentKey>,
        limit: usize,
        segment: Option<&str>,
    ) -> Result<Vec<Instrument>>;

    /// Inserts or replaces by id.
    async fn put_group(&self, group: &Group) -> Result<()>;

    async fn group(&self, id: &str) -> Result<Option<Group>>;

    /// Groups after an id, in byte order of ids.
    async fn list_groups(&self, after: Option<&str>, limit: usize) -> Result<Vec<Group>>;

    /// Whether there was one to delete.
    async fn delete_group(&self, id: &str) -> Result<bool>;

    /// What tells this store from every other, also from one made anew in its place. A copy restored from a backup keeps it.
    async fn store_id(&self) -> Result<String>;
}

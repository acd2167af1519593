//! Trade intents of screens, and analyses of instruments.

use std::collections::HashSet;
use std::fmt::Debug;

use async_trait::async_trait;
use market::{InstrumentKey, Millis, TimeRange, Timeframe};

use crate::{Error, MAX_PAGE_ROWS, Result};

/// A proposed trade. Prices in the instrument's currency; all numbers finite.
#[derive(Debug, Clone, PartialEq)]
pub struct IntentRecord {
    pub id: String,
    pub group_id: String,
    pub instrument_key: InstrumentKey,
    /// As the sequence service names it, for example `buy`.
    pub side: String,
    pub entry: f64,
    pub stop: f64,
    pub target: f64,
    pub quantity: f64,
    pub reason: String,
    pub created_at: Millis,
}

/// The answer of an analysis, kept for reading again. Identity: instrument, timeframe, start, end, engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnalysisRecord {
    pub instrument_key: InstrumentKey,
    pub timeframe: Timeframe,
    pub start: Millis,
    pub end: Millis,
    pub engine: String,
    /// Revision of the candles it was made from.
    pub revision: u64,
    pub metrics_json: String,
    pub patterns_json: String,
    pub created_at: Millis,
}

/// What the sequence service keeps.
#[async_trait]
pub trait ScreenStore: Send + Sync + Debug {
    /// Stores the intents of one request in one transaction and returns them; when the group has seen the idempotency key before,
    /// stores nothing and returns what was stored then, in its order.
    ///
    /// Errors: `Invalid` when an intent names another group or holds a number that is not finite, `AlreadyExists` when an id is taken.
    async fn put_intents(
        &self,
        group_id: &str,
        idempotency_key: &str,
        intents: &[IntentRecord],
    ) -> Result<Vec<IntentRecord>>;

    /// The intents stored under a group's idempotency key, in their order; `None` when the group has not seen the key.
    async fn intent_batch(&self, group_id: &str, idempotency_key: &str) -> Result<Option<Vec<IntentRecord>>>;

    /// Intents of one group or of all, by creation and then id, after an intent's id. An unknown id gives nothing.
    async fn intents(&self, group_id: Option<&str>, after: Option<&str>, limit: usize) -> Result<Vec<IntentRecord>>;

    /// Inserts or replaces by identity.
    async fn put_analysis(&self, analysis: &AnalysisRecord) -> Result<()>;

    /// Analyses of an instrument whose range meets `range`, by start, end, timeframe (by its name) and engine.
    async fn analyses(&self, key: &InstrumentKey, range: TimeRange, limit: usize) -> Result<Vec<AnalysisRecord>>;
}

/// Refuses intents of another group, with numbers that are not finite, with one id twice, or too many of them.
pub(crate) fn check_intents(group_id: &str, intents: &[IntentRecord]) -> Result<()> {
    if intents.len() > MAX_PAGE_ROWS {
        return Err(Error::invalid("intents", format!("{} in one call, more than {MAX_PAGE_ROWS}", intents.len())));
    }
    let mut seen = HashSet::new();
    for intent in intents {
        if intent.group_id != group_id {
            let reason = format!("intent {} belongs to group '{}', not '{group_id}'", intent.id, intent.group_id);
            return Err(Error::invalid("group_id", reason));
        }
        if !seen.insert(&intent.id) {
            return Err(Error::AlreadyExists { what: "intent", id: intent.id.clone() });
        }
        let numbers = [intent.entry, intent.stop, intent.target, intent.quantity];
        if let Some(number) = numbers.iter().find(|number| !number.is_finite()) {
            return Err(Error::invalid("intent", format!("{number} of intent {} is not finite", intent.id)));
        }
    }
    Ok(())
}

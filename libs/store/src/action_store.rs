//! Splits and dividends, by instrument, ex-date and kind.

use std::collections::BTreeMap;
use std::fmt::Debug;

use async_trait::async_trait;
use market::{ActionKind, CorporateAction, Date, InstrumentKey};

use crate::{Error, MAX_PAGE_ROWS, Result};

/// What a call did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutActions {
    /// Actions that were new or differed.
    pub stored: u64,
    pub unchanged: u64,
}

/// Corporate actions as they are known now; they have no revisions.
#[async_trait]
pub trait ActionStore: Send + Sync + Debug {
    /// Inserts or replaces by instrument, ex-date and kind, in one transaction. Of one identity given twice the last wins.
    ///
    /// Errors: `Invalid` for more than [`MAX_PAGE_ROWS`] actions or one that fails its check.
    async fn put_actions(&self, actions: &[(InstrumentKey, CorporateAction)]) -> Result<PutActions>;

    /// Actions of an instrument by ex-date, splits before dividends; at most [`MAX_PAGE_ROWS`], the newest of them.
    async fn actions(&self, key: &InstrumentKey) -> Result<Vec<CorporateAction>>;

    /// Deletes one, and says whether there was one.
    async fn delete_action(&self, key: &InstrumentKey, ex_date: Date, kind: ActionKind) -> Result<bool>;
}

/// Each identity once, in the order of identities, so that concurrent writers lock rows in one order.
pub(crate) fn distinct(
    actions: &[(InstrumentKey, CorporateAction)],
) -> Result<BTreeMap<(&InstrumentKey, Date, ActionKind), CorporateAction>> {
    if actions.len() > MAX_PAGE_ROWS {
        return Err(Error::invalid("actions", format!("{} in one call, more than {MAX_PAGE_ROWS}", actions.len())));
    }
    let mut distinct = BTreeMap::new();
    for (key, action) in actions {
        action.check().map_err(|error| Error::invalid("action", format!("{error} ({key})")))?;
        distinct.insert((key, action.ex_date, action.kind()), *action);
    }
    Ok(distinct)
}

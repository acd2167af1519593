//! Corporate actions: splits and dividends of known instruments. Stored candles are never altered by them.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt};
use market::{ActionKind, CorporateAction, Date, InstrumentKey};
use store::PutActions;

use super::{Engine, Error, LOOKUPS, Result};

/// Actions of one instrument: monthly dividends for four centuries, and little enough to be read with every adjusted answer.
const MAX_ACTIONS_PER_INSTRUMENT: usize = 5000;

impl Engine {
    /// Creates or replaces checked actions, in one transaction, each of a known instrument.
    pub(crate) async fn put_actions(&self, actions: &[(InstrumentKey, CorporateAction)]) -> Result<PutActions> {
        let mut given: BTreeMap<&InstrumentKey, BTreeSet<(Date, ActionKind)>> = BTreeMap::new();
        for (key, action) in actions {
            given.entry(key).or_default().insert((action.ex_date, action.kind()));
        }
        // Collected first: the borrow checker cannot follow a closure that borrows through a buffered stream.
        let checks: Vec<_> = given.into_iter().map(|(key, dates)| self.check_actions(key, dates)).collect();
        futures::stream::iter(checks).buffered(LOOKUPS).try_collect::<Vec<()>>().await?;
        Ok(self.stores.actions.put_actions(actions).await?)
    }

    /// That the instrument is known, and that its actions do not become too many.
    async fn check_actions(&self, key: &InstrumentKey, dates: BTreeSet<(Date, ActionKind)>) -> Result<()> {
        let stored = self.actions(key).await?;
        let given =
            dates.len() + stored.iter().filter(|action| !dates.contains(&(action.ex_date, action.kind()))).count();
        if given > MAX_ACTIONS_PER_INSTRUMENT {
            return Err(Error::Limit { field: "actions of one instrument", given, limit: MAX_ACTIONS_PER_INSTRUMENT });
        }
        Ok(())
    }

    /// All actions of a known instrument, by ex-date, splits before dividends.
    pub(crate) async fn actions(&self, key: &InstrumentKey) -> Result<Vec<CorporateAction>> {
        self.instrument(key).await?;
        Ok(self.stores.actions.actions(key).await?)
    }

    /// Whether there was one to delete is not an error either way.
    pub(crate) async fn delete_action(&self, key: &InstrumentKey, ex_date: Date, kind: ActionKind) -> Result<()> {
        let is_deleted = self.stores.actions.delete_action(key, ex_date, kind).await?;
        tracing::debug!(instrument = %key, is_deleted, "corporate action deleted");
        Ok(())
    }
}

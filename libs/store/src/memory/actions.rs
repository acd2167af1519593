//! Corporate actions in a map.

use std::collections::BTreeMap;

use async_trait::async_trait;
use market::{ActionKind, CorporateAction, Date, InstrumentKey};

use super::{MemoryStore, lock};
use crate::action_store::distinct;
use crate::{ActionStore, MAX_PAGE_ROWS, PutActions, Result};

pub(super) type Actions = BTreeMap<InstrumentKey, BTreeMap<(Date, ActionKind), CorporateAction>>;

#[async_trait]
impl ActionStore for MemoryStore {
    async fn put_actions(&self, actions: &[(InstrumentKey, CorporateAction)]) -> Result<PutActions> {
        let actions = distinct(actions)?;
        let mut stored = lock(&self.actions);
        let mut put = PutActions::default();
        for ((key, ex_date, kind), action) in actions {
            let before = stored.entry(key.clone()).or_default().insert((ex_date, kind), action);
            if before == Some(action) { put.unchanged += 1 } else { put.stored += 1 }
        }
        Ok(put)
    }

    async fn actions(&self, key: &InstrumentKey) -> Result<Vec<CorporateAction>> {
        let stored = lock(&self.actions);
        let mut newest: Vec<CorporateAction> =
            stored.get(key).into_iter().flat_map(BTreeMap::values).rev().take(MAX_PAGE_ROWS).copied().collect();
        newest.reverse();
        Ok(newest)
    }

    async fn delete_action(&self, key: &InstrumentKey, ex_date: Date, kind: ActionKind) -> Result<bool> {
        Ok(lock(&self.actions).get_mut(key).is_some_and(|actions| actions.remove(&(ex_date, kind)).is_some()))
    }
}

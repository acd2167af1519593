//! The revisions that instruments had at a place in the change log: what is read as of them is neither behind that place nor ahead.
//!
//! What is stored is always a little ahead of what was told: a change is read from the moment it is durable, and arrives a moment
//! later. Who reads on behalf of a place would otherwise say what is said again when it arrives.

use std::collections::{HashMap, HashSet};

use futures::TryStreamExt;
use market::InstrumentKey;
use mesh::RemoteError;
use mesh::source::{Changes, MasterData};

use super::MAX_KEYS;

/// Revisions of instruments at `sequence`; 0 of those that had none.
pub(super) async fn revisions_at(
    changes: &dyn Changes,
    master: &dyn MasterData,
    keys: &[InstrumentKey],
    sequence: u64,
) -> Result<HashMap<InstrumentKey, u64>, RemoteError> {
    let mut revisions = HashMap::with_capacity(keys.len());
    for keys in keys.chunks(MAX_KEYS) {
        revisions.extend(keys.iter().cloned().zip(master.revisions(keys).await?));
    }
    // Asked after the revisions: the log then holds whatever made them.
    let end = changes.watch(None).await?.try_next().await?.ok_or_else(ended)?.sequence;
    if end <= sequence {
        return Ok(revisions);
    }
    let mut log = changes.records(sequence).await?;
    let (mut reached, mut seen) = (sequence, HashSet::new());
    while reached < end {
        let batch = log.try_next().await?.ok_or_else(ended)?;
        reached = reached.max(batch.sequence);
        for change in batch.changes {
            // The first after the place made the one after that of the place.
            if let Some(revision) = revisions.get_mut(&change.key)
                && seen.insert(change.key)
            {
                *revision = change.revision.saturating_sub(1);
            }
        }
    }
    Ok(revisions)
}

pub(super) fn ended() -> RemoteError {
    RemoteError::from(tonic::Status::unavailable("the change log ended"))
}

//! The flags as this replica sees them: seeded at start, followed in the store, changed by compare-and-set.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use market::Millis;
use mesh::{Fault, StartError};
use rollout::{Flag, Flags, Subject, Weight};
use store::{FlagRecord, FlagStore};
use tonic::Code;

/// How often the store is asked for changes: with the time of the query, every replica knows within a second.
const POLL: Duration = Duration::from_millis(300);
/// Tries of a change of share against concurrent ones; each loss means that another succeeded.
const MAX_ATTEMPTS: usize = 8;
/// Who seeded a flag.
const SEEDER: &str = "default";

/// Reloads that failed or met a definition that does not parse; the last good one stays in force.
const STALE_METRIC: &str = "candlemesh_flag_stale_reloads_total";

/// Why a flag was not read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Definition(#[from] rollout::Error),
    #[error("v2_percent: {0}")]
    Percent(rollout::Error),
    #[error("flag_key: {0}")]
    Subject(rollout::Error),
    #[error("flag '{0}' does not exist")]
    NotFound(String),
    #[error("{0}")]
    Conflict(store::Error),
    #[error("flag '{0}' is being changed by too many at once; try again")]
    Contended(&'static str),
    #[error("flag store did not answer: {0}")]
    Unavailable(store::Error),
    #[error("flag store answered with a fault")]
    Store(#[source] store::Error),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Conflict { .. } => Error::Conflict(error),
            store::Error::Unavailable(_) => Error::Unavailable(error),
            other => Error::Store(other),
        }
    }
}

impl Fault for Error {
    fn code(&self) -> Code {
        match self {
            Error::Definition(_) | Error::Percent(_) | Error::Subject(_) => Code::InvalidArgument,
            Error::NotFound(_) => Code::NotFound,
            Error::Conflict(_) | Error::Contended(_) => Code::Aborted,
            Error::Unavailable(_) => Code::Unavailable,
            Error::Store(_) => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Error::Definition(_) => "INVALID_FLAG",
            Error::Percent(_) | Error::Subject(_) => "INVALID_FIELD",
            Error::NotFound(_) => "UNKNOWN_FLAG",
            Error::Conflict(_) | Error::Contended(_) => "FLAG_CHANGED",
            Error::Unavailable(_) => "FLAG_STORE_UNAVAILABLE",
            Error::Store(_) => "FLAG_STORE_FAULT",
        }
    }

    fn field(&self) -> Option<String> {
        match self {
            Error::Definition(rollout::Error::UnknownFlag { .. }) => Some("key".into()),
            Error::Definition(_) => Some("definition_json".into()),
            Error::Percent(_) => Some("v2_percent".into()),
            Error::Subject(_) => Some("flag_key".into()),
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        matches!(self, Error::Contended(_) | Error::Unavailable(_)).then_some(POLL)
    }
}

/// All flags at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) flags: Flags,
    generations: BTreeMap<String, u64>,
}

impl Snapshot {
    pub(crate) fn generation(&self, key: &str) -> u64 {
        self.generations.get(key).copied().unwrap_or_default()
    }

    /// The next snapshot; a definition that does not parse leaves its flag as it was.
    fn next(&self, records: &[FlagRecord]) -> Snapshot {
        let (mut flags, mut generations) = (self.flags.clone(), self.generations.clone());
        for record in records {
            // What was read before a change of our own must not undo it.
            if record.generation <= self.generation(&record.key) {
                continue;
            }
            generations.insert(record.key.clone(), record.generation);
            match Flag::parse(&record.key, &record.definition_json) {
                Ok(flag) => flags = flags.with(flag),
                Err(error) => {
                    metrics::counter!(STALE_METRIC).increment(1);
                    tracing::warn!(flag = record.key, %error, "stored flag does not parse; the last good one stays");
                }
            }
        }
        Snapshot { flags, generations }
    }
}

/// The flags, in the store and compiled.
#[derive(Debug)]
pub(crate) struct FlagBook {
    store: Arc<dyn FlagStore>,
    current: RwLock<Arc<Snapshot>>,
}

impl FlagBook {
    /// Makes sure that every flag exists, and compiles them.
    pub(crate) async fn open(store: Arc<dyn FlagStore>) -> Result<FlagBook, StartError> {
        let book = FlagBook { store, current: RwLock::default() };
        let refuse = |error: Error| StartError::Dependency { what: "the flag store", source: Box::new(error) };
        book.seed().await.map_err(refuse)?;
        book.refresh().await.map_err(refuse)?;
        Ok(book)
    }

    async fn seed(&self) -> Result<(), Error> {
        let now = crate::grpc::now();
        for flag in Flags::default_set().iter() {
            match self.store.compare_and_set(flag.key(), 0, &flag.to_json(), SEEDER, now).await {
                // Somebody, perhaps another replica, was first.
                Ok(_) | Err(store::Error::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub(crate) fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn refresh(&self) -> Result<(), Error> {
        let records = self.store.flags().await?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let changed = records.iter().any(|record| record.generation > current.generation(&record.key));
        if changed {
            *current = Arc::new(current.next(&records));
        }
        Ok(())
    }

    /// Follows the store for as long as it is polled.
    pub(crate) async fn follow(&self) -> Infallible {
        let mut stale = false;
        loop {
            tokio::time::sleep(POLL).await;
            match self.refresh().await {
                Ok(()) => stale = false,
                Err(error) => {
                    metrics::counter!(STALE_METRIC).increment(1);
                    if !std::mem::replace(&mut stale, true) {
                        tracing::warn!(error = %mesh::fault::chain(&error), "flags cannot be read; the last ones stay");
                    }
                }
            }
        }
    }

    pub(crate) async fn list(&self) -> Result<Vec<FlagRecord>, Error> {
        Ok(self.store.flags().await?)
    }

    pub(crate) async fn get(&self, key: &str) -> Result<FlagRecord, Error> {
        self.store.flag(key).await?.ok_or_else(|| Error::NotFound(key.chars().take(64).collect()))
    }

    /// Replaces a definition that is still at `expected`.
    pub(crate) async fn put(
        &self,
        key: &str,
        definition_json: &str,
        expected: u64,
        by: &str,
        now: Millis,
    ) -> Result<FlagRecord, Error> {
        let flag = Flag::parse(key, definition_json)?;
        let definition_json = flag.to_json();
        let generation = self.store.compare_and_set(key, expected, &definition_json, by, now).await?;
        self.refresh_soon().await;
        Ok(FlagRecord { key: key.to_owned(), definition_json, generation, updated_at: now, updated_by: by.to_owned() })
    }

    /// Takes up a change that is already durable; if that fails now, the poll does it within its period.
    async fn refresh_soon(&self) {
        if let Err(error) = self.refresh().await {
            tracing::warn!(%error, "a changed flag is not in force here yet");
        }
    }

    /// Sets V2's share; everything else of the flag stays.
    pub(crate) async fn set_share(
        &self,
        subject: Subject,
        share: Weight,
        by: &str,
        now: Millis,
    ) -> Result<(Flag, u64), Error> {
        let key = subject.flag_key();
        for _ in 0..MAX_ATTEMPTS {
            let record = self.get(key).await?;
            let flag = Flag::parse(key, &record.definition_json)?.with_share(share)?;
            let outcome = self.store.compare_and_set(key, record.generation, &flag.to_json(), by, now).await;
            match outcome {
                Ok(generation) => {
                    self.refresh_soon().await;
                    return Ok((flag, generation));
                }
                Err(store::Error::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Contended(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, definition_json: &str, generation: u64) -> FlagRecord {
        let (key, definition_json) = (key.to_owned(), definition_json.to_owned());
        FlagRecord { key, definition_json, generation, updated_at: 0, updated_by: String::new() }
    }

    #[test]
    fn a_broken_definition_leaves_the_last_good_one_in_force() {
        let key = Subject::Indicator.flag_key();
        let half = Flags::default_set().engine_flag(Subject::Indicator).clone();
        let half = half.with_share(Weight::from_percent(50.0).unwrap()).unwrap();
        let first = Snapshot::default().next(&[record(key, &half.to_json(), 2)]);
        let second = first.next(&[record(key, "{", 3), record("somebody_elses", "{}", 1)]);
        assert_eq!(second.flags.engine_flag(Subject::Indicator), &half);
        assert_eq!(second.generation(key), 3);
        let late = second.next(&[record(key, &Flags::default_set().engine_flag(Subject::Indicator).to_json(), 1)]);
        assert_eq!(late.flags, second.flags);
    }
}

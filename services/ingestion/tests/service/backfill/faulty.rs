//! A candle store that fails as it is told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use futures::stream::BoxStream;
use market::{Frame, InstrumentKey, Millis, TimeRange, Timeframe};
use store::{Block, CandleStore, Change, Coverage, Error, LastCandle, Pruned, Put, PutOutcome, Result, Stores};

/// What a put does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fate {
    Stored,
    /// Stored, but the answer is lost.
    Unanswered,
    Unavailable,
    Full,
}

/// Puts meet their fates in order; those after the last are stored.
#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn CandleStore>,
    fates: Mutex<VecDeque<Fate>>,
}

/// The stores, with a candle store of these fates.
pub(super) fn faulty(stores: &Stores, fates: impl IntoIterator<Item = Fate>) -> Stores {
    let mut stores = stores.clone();
    let fates = Mutex::new(fates.into_iter().collect());
    stores.candles = Arc::new(Faulty { inner: Arc::clone(&stores.candles), fates });
    stores
}

#[tonic::async_trait]
impl CandleStore for Faulty {
    async fn put_all(&self, puts: &[Put<'_>], now: Millis) -> Result<Vec<PutOutcome>> {
        let fate = self.fates.lock().unwrap().pop_front().unwrap_or(Fate::Stored);
        match fate {
            Fate::Stored => self.inner.put_all(puts, now).await,
            Fate::Unanswered => {
                self.inner.put_all(puts, now).await?;
                Err(Error::Unavailable("the answer is lost".into()))
            }
            Fate::Unavailable => Err(Error::Unavailable("nobody there".into())),
            Fate::Full => Err(Error::Full("disk full".to_owned())),
        }
    }

    fn read(
        &self,
        key: &InstrumentKey,
        source: Timeframe,
        range: TimeRange,
        as_of: Option<u64>,
    ) -> BoxStream<'static, Result<Block>> {
        self.inner.read(key, source, range, as_of)
    }

    async fn revisions(&self, keys: &[InstrumentKey]) -> Result<Vec<Option<u64>>> {
        self.inner.revisions(keys).await
    }

    async fn revision_at(&self, key: &InstrumentKey, at: Millis) -> Result<Option<u64>> {
        self.inner.revision_at(key, at).await
    }

    async fn coverage(&self, key: &InstrumentKey) -> Result<Vec<Coverage>> {
        self.inner.coverage(key).await
    }

    async fn calendar(&self, key: &InstrumentKey) -> Result<Option<String>> {
        self.inner.calendar(key).await
    }

    async fn changes(&self, after_sequence: u64, limit: usize) -> Result<Vec<Change>> {
        self.inner.changes(after_sequence, limit).await
    }

    async fn first_change(&self, key: &InstrumentKey, after_revision: u64, revision: u64) -> Result<Option<Millis>> {
        self.inner.first_change(key, after_revision, revision).await
    }

    async fn changed_candles(&self, changes: &[Change]) -> Result<Vec<Option<Frame>>> {
        self.inner.changed_candles(changes).await
    }

    async fn last_sequence(&self) -> Result<u64> {
        self.inner.last_sequence().await
    }

    async fn last_candles(&self, keys: &[InstrumentKey], source: Timeframe) -> Result<Vec<Option<LastCandle>>> {
        self.inner.last_candles(keys, source).await
    }

    async fn prune(&self, now: Millis, retention_ms: Millis) -> Result<Pruned> {
        self.inner.prune(now, retention_ms).await
    }
}

//! The ports' in-memory twin, for tests of a service alone.

use std::collections::BTreeMap;

use futures::StreamExt;
use market::{CorporateAction, Frame, Instrument, InstrumentKey, TimeRange, Timeframe};
use tonic::Status;

use super::{Buckets, Candles, Group, MasterData, SourceCoverage, StoredCandles, StoredFrames};
use crate::RemoteError;

/// Everything a service asks of others, held in maps.
#[derive(Debug, Default)]
pub struct MemorySource {
    pub instruments: BTreeMap<InstrumentKey, Instrument>,
    pub stored: BTreeMap<(InstrumentKey, Timeframe), Frame>,
    pub buckets: BTreeMap<(InstrumentKey, Timeframe), Buckets>,
    pub groups: BTreeMap<String, Group>,
    pub actions: BTreeMap<InstrumentKey, Vec<CorporateAction>>,
    pub revision: u64,
}

fn not_found(what: &str, name: &str) -> RemoteError {
    RemoteError::from_status(&Status::not_found(format!("{what} '{name}' is not known")))
}

#[tonic::async_trait]
impl StoredCandles for MemorySource {
    async fn stored(
        &self,
        key: &InstrumentKey,
        source: Timeframe,
        range: TimeRange,
        _revision: Option<u64>,
    ) -> Result<StoredFrames, RemoteError> {
        self.instrument(key).await?;
        let frames = match self.stored.get(&(key.clone(), source)) {
            Some(frame) => vec![Ok(frame.slice(frame.rows_between(range.start(), range.end())))],
            None => Vec::new(),
        };
        Ok(StoredFrames { revision: self.revision, frames: futures::stream::iter(frames).boxed() })
    }
}

#[tonic::async_trait]
impl MasterData for MemorySource {
    async fn instrument(&self, key: &InstrumentKey) -> Result<Instrument, RemoteError> {
        self.instruments.get(key).cloned().ok_or_else(|| not_found("instrument", key.as_str()))
    }

    async fn instruments(&self) -> Result<Vec<Instrument>, RemoteError> {
        Ok(self.instruments.values().cloned().collect())
    }

    async fn revisions(&self, keys: &[InstrumentKey]) -> Result<Vec<u64>, RemoteError> {
        let revision = |key| if self.instruments.contains_key(key) { self.revision } else { 0 };
        Ok(keys.iter().map(revision).collect())
    }

    async fn coverage(&self, key: &InstrumentKey) -> Result<Vec<SourceCoverage>, RemoteError> {
        self.instrument(key).await?;
        let of_key = self.stored.iter().filter(|((stored, _), frame)| stored == key && !frame.is_empty());
        Ok(of_key
            .map(|((_, timeframe), frame)| SourceCoverage {
                timeframe: *timeframe,
                first_open_time: frame.open_time()[0],
                last_open_time: frame.open_time()[frame.len() - 1],
                candle_count: frame.len() as u64,
            })
            .collect())
    }

    async fn corporate_actions(&self, key: &InstrumentKey) -> Result<Vec<CorporateAction>, RemoteError> {
        self.instrument(key).await?;
        Ok(self.actions.get(key).cloned().unwrap_or_default())
    }

    async fn group(&self, id: &str) -> Result<Group, RemoteError> {
        self.groups.get(id).cloned().ok_or_else(|| not_found("group", id))
    }
}

#[tonic::async_trait]
impl Candles for MemorySource {
    async fn candles(
        &self,
        key: &InstrumentKey,
        timeframe: Timeframe,
        range: TimeRange,
        _revision: Option<u64>,
    ) -> Result<Buckets, RemoteError> {
        self.instrument(key).await?;
        Ok(match self.buckets.get(&(key.clone(), timeframe)) {
            Some(all) => {
                let rows = all.frame.frame.rows_between(range.start(), range.end());
                Buckets { revision: all.revision, frame: all.frame.slice(rows) }
            }
            None => Buckets { revision: self.revision, frame: Default::default() },
        })
    }
}

//! Everything but candles in maps.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use async_trait::async_trait;
use market::{Instrument, InstrumentKey, Millis, TimeRange, Timeframe};

use super::{MemoryStore, lock};
use crate::screen_store::check_intents;
use crate::study_store::check_trials;
use crate::{
    AnalysisRecord, Catalog, Error, FlagRecord, FlagStore, Group, IntentRecord, MAX_PAGE_ROWS, Result, ScreenStore,
    StudyProgress, StudyRecord, StudyStore, TrialOrder, TrialRecord,
};

/// Instrument, timeframe, start, end, engine.
type AnalysisId = (InstrumentKey, Timeframe, Millis, Millis, String);

#[derive(Debug, Default)]
pub(super) struct Records {
    instruments: BTreeMap<InstrumentKey, Instrument>,
    groups: BTreeMap<String, Group>,
    flags: BTreeMap<String, FlagRecord>,
    studies: BTreeMap<String, StudyRecord>,
    trials: BTreeMap<String, BTreeMap<u64, TrialRecord>>,
    /// Ids of the intents stored under a group and idempotency key.
    intent_batches: BTreeMap<(String, String), Vec<String>>,
    intents: BTreeMap<String, IntentRecord>,
    analyses: BTreeMap<AnalysisId, AnalysisRecord>,
}

/// Everything after a key, or everything.
fn after<K>(key: Option<K>) -> (Bound<K>, Bound<K>) {
    (key.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

#[async_trait]
impl Catalog for MemoryStore {
    async fn store_id(&self) -> Result<String> {
        Ok(self.identity.0.clone())
    }

    async fn upsert_instrument(&self, instrument: &Instrument) -> Result<()> {
        lock(&self.records).instruments.insert(instrument.key.clone(), instrument.clone());
        Ok(())
    }

    async fn insert_instruments(&self, instruments: &[Instrument]) -> Result<u64> {
        let known = &mut lock(&self.records).instruments;
        let before = known.len();
        for instrument in instruments {
            known.entry(instrument.key.clone()).or_insert_with(|| instrument.clone());
        }
        Ok((known.len() - before) as u64)
    }

    async fn instrument(&self, key: &InstrumentKey) -> Result<Option<Instrument>> {
        Ok(lock(&self.records).instruments.get(key).cloned())
    }

    async fn instruments(&self, keys: &[InstrumentKey]) -> Result<Vec<Option<Instrument>>> {
        let known = &lock(&self.records).instruments;
        Ok(keys.iter().map(|key| known.get(key).cloned()).collect())
    }

    async fn list_instruments(
        &self,
        after_key: Option<&InstrumentKey>,
        limit: usize,
        segment: Option<&str>,
    ) -> Result<Vec<Instrument>> {
        let records = lock(&self.records);
        let listed = records.instruments.range(after(after_key.cloned())).map(|(_, instrument)| instrument);
        let of_segment = listed.filter(|instrument| segment.is_none_or(|segment| instrument.key.segment() == segment));
        Ok(of_segment.take(limit.min(MAX_PAGE_ROWS)).cloned().collect())
    }

    async fn put_group(&self, group: &Group) -> Result<()> {
        lock(&self.records).groups.insert(group.id.clone(), group.clone());
        Ok(())
    }

    async fn group(&self, id: &str) -> Result<Option<Group>> {
        Ok(lock(&self.records).groups.get(id).cloned())
    }

    async fn list_groups(&self, after_id: Option<&str>, limit: usize) -> Result<Vec<Group>> {
        let records = lock(&self.records);
        let listed = records.groups.range::<str, _>(after(after_id)).map(|(_, group)| group);
        Ok(listed.take(limit.min(MAX_PAGE_ROWS)).cloned().collect())
    }

    async fn delete_group(&self, id: &str) -> Result<bool> {
        Ok(lock(&self.records).groups.remove(id).is_some())
    }
}

#[async_trait]
impl FlagStore for MemoryStore {
    async fn flags(&self) -> Result<Vec<FlagRecord>> {
        Ok(lock(&self.records).flags.values().take(MAX_PAGE_ROWS).cloned().collect())
    }

    async fn flag(&self, key: &str) -> Result<Option<FlagRecord>> {
        Ok(lock(&self.records).flags.get(key).cloned())
    }

    async fn compare_and_set(
        &self,
        key: &str,
        expected_generation: u64,
        definition_json: &str,
        updated_by: &str,
        now: Millis,
    ) -> Result<u64> {
        let mut records = lock(&self.records);
        let found = records.flags.get(key).map_or(0, |flag| flag.generation);
        if found != expected_generation {
            return Err(crate::flag_store::lost(key, expected_generation, found));
        }
        let flag = FlagRecord {
            key: key.to_owned(),
            definition_json: definition_json.to_owned(),
            generation: found + 1,
            updated_at: now,
            updated_by: updated_by.to_owned(),
        };
        records.flags.insert(key.to_owned(), flag);
        Ok(found + 1)
    }
}

#[async_trait]
impl StudyStore for MemoryStore {
    async fn create_study(&self, study: &StudyRecord) -> Result<()> {
        let mut records = lock(&self.records);
        if records.studies.contains_key(&study.id) {
            return Err(Error::AlreadyExists { what: "study", id: study.id.clone() });
        }
        records.studies.insert(study.id.clone(), study.clone());
        Ok(())
    }

    async fn update_study_state(&self, id: &str, expected_state: Option<&str>, progress: &StudyProgress) -> Result<()> {
        let mut records = lock(&self.records);
        let study = records.studies.get_mut(id).ok_or_else(|| Error::not_found("study", id))?;
        if let Some(expected) = expected_state
            && study.state != expected
        {
            return Err(crate::study_store::lost(id, expected, &study.state));
        }
        study.state.clone_from(&progress.state);
        study.progress_done = progress.progress_done;
        study.progress_total = progress.progress_total;
        study.error.clone_from(&progress.error);
        study.updated_at = progress.updated_at;
        Ok(())
    }

    async fn study(&self, id: &str) -> Result<Option<StudyRecord>> {
        Ok(lock(&self.records).studies.get(id).cloned())
    }

    async fn list_studies(&self, after: Option<&str>, limit: usize) -> Result<Vec<StudyRecord>> {
        let records = lock(&self.records);
        let age = |study: &StudyRecord| (study.created_at, study.id.clone());
        let mut listed: Vec<StudyRecord> = match after {
            None => records.studies.values().cloned().collect(),
            Some(id) => {
                let Some(last) = records.studies.get(id) else {
                    return Ok(Vec::new());
                };
                records.studies.values().filter(|study| age(study) < age(last)).cloned().collect()
            }
        };
        listed.sort_by_key(|study| std::cmp::Reverse(age(study)));
        listed.truncate(limit.min(MAX_PAGE_ROWS));
        Ok(listed)
    }

    async fn unfinished_studies(&self, states: &[&str]) -> Result<Vec<StudyRecord>> {
        let records = lock(&self.records);
        let in_state = records.studies.values().filter(|study| states.contains(&study.state.as_str()));
        let mut listed: Vec<StudyRecord> = in_state.cloned().collect();
        listed.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        listed.truncate(MAX_PAGE_ROWS);
        Ok(listed)
    }

    async fn put_trials(&self, study_id: &str, trials: &[TrialRecord]) -> Result<()> {
        check_trials(trials)?;
        let mut records = lock(&self.records);
        if !records.studies.contains_key(study_id) {
            return Err(Error::not_found("study", study_id));
        }
        let stored = records.trials.entry(study_id.to_owned()).or_default();
        stored.extend(trials.iter().map(|trial| (trial.number, trial.clone())));
        Ok(())
    }

    async fn trials(&self, study_id: &str, order: TrialOrder, limit: usize) -> Result<Vec<TrialRecord>> {
        let records = lock(&self.records);
        let Some(trials) = records.trials.get(study_id) else {
            return Ok(Vec::new());
        };
        let limit = limit.min(MAX_PAGE_ROWS);
        Ok(match order {
            TrialOrder::Number { after: number } => {
                trials.range(after(number)).map(|(_, trial)| trial).take(limit).cloned().collect()
            }
            TrialOrder::BestFirst { offset } => {
                let mut best: Vec<&TrialRecord> = trials.values().collect();
                best.sort_by(|a, b| {
                    b.objective.partial_cmp(&a.objective).unwrap_or(Ordering::Equal).then(a.number.cmp(&b.number))
                });
                let offset = usize::try_from(offset).unwrap_or(usize::MAX);
                best.into_iter().skip(offset).take(limit).cloned().collect()
            }
        })
    }

    async fn trial_count(&self, study_id: &str) -> Result<u64> {
        Ok(lock(&self.records).trials.get(study_id).map_or(0, |trials| trials.len() as u64))
    }
}

#[async_trait]
impl ScreenStore for MemoryStore {
    async fn put_intents(
        &self,
        group_id: &str,
        idempotency_key: &str,
        intents: &[IntentRecord],
    ) -> Result<Vec<IntentRecord>> {
        check_intents(group_id, intents)?;
        let mut records = lock(&self.records);
        let batch = (group_id.to_owned(), idempotency_key.to_owned());
        if let Some(ids) = records.intent_batches.get(&batch) {
            return Ok(ids.iter().filter_map(|id| records.intents.get(id)).cloned().collect());
        }
        if let Some(taken) = intents.iter().find(|intent| records.intents.contains_key(&intent.id)) {
            return Err(Error::AlreadyExists { what: "intent", id: taken.id.clone() });
        }
        records.intent_batches.insert(batch, intents.iter().map(|intent| intent.id.clone()).collect());
        records.intents.extend(intents.iter().map(|intent| (intent.id.clone(), intent.clone())));
        Ok(intents.to_vec())
    }

    async fn intent_batch(&self, group_id: &str, idempotency_key: &str) -> Result<Option<Vec<IntentRecord>>> {
        let records = lock(&self.records);
        let ids = records.intent_batches.get(&(group_id.to_owned(), idempotency_key.to_owned()));
        Ok(ids.map(|ids| ids.iter().filter_map(|id| records.intents.get(id)).cloned().collect()))
    }

    async fn intents(&self, group_id: Option<&str>, after: Option<&str>, limit: usize) -> Result<Vec<IntentRecord>> {
        let records = lock(&self.records);
        let age = |intent: &IntentRecord| (intent.created_at, intent.id.clone());
        let last = match after {
            None => None,
            Some(id) => match records.intents.get(id) {
                Some(last) => Some(age(last)),
                None => return Ok(Vec::new()),
            },
        };
        let of_group = records.intents.values().filter(|intent| group_id.is_none_or(|id| intent.group_id == id));
        let mut listed: Vec<IntentRecord> =
            of_group.filter(|intent| last.as_ref().is_none_or(|last| age(intent) > *last)).cloned().collect();
        listed.sort_by_key(age);
        listed.truncate(limit.min(MAX_PAGE_ROWS));
        Ok(listed)
    }

    async fn put_analysis(&self, analysis: &AnalysisRecord) -> Result<()> {
        let a = analysis;
        let id = (a.instrument_key.clone(), a.timeframe, a.start, a.end, a.engine.clone());
        lock(&self.records).analyses.insert(id, analysis.clone());
        Ok(())
    }

    async fn analyses(&self, key: &InstrumentKey, range: TimeRange, limit: usize) -> Result<Vec<AnalysisRecord>> {
        let records = lock(&self.records);
        let meets = |a: &&AnalysisRecord| a.instrument_key == *key && a.start < range.end() && a.end > range.start();
        let mut listed: Vec<AnalysisRecord> = records.analyses.values().filter(meets).cloned().collect();
        let order = |a: &AnalysisRecord| (a.start, a.end, a.timeframe.as_str(), a.engine.clone());
        listed.sort_by_key(order);
        listed.truncate(limit.min(MAX_PAGE_ROWS));
        Ok(listed)
    }
}

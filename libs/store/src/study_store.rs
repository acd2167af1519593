//! Optimizer studies and their trials.

use std::fmt::Debug;

use async_trait::async_trait;
use market::Millis;

use crate::{Error, Result};

/// A study as stored; specification and state names belong to the optimizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StudyRecord {
    pub id: String,
    pub name: String,
    pub state: String,
    pub spec_json: String,
    pub created_at: Millis,
    pub updated_at: Millis,
    pub progress_done: u64,
    pub progress_total: u64,
    /// Why it failed, for people.
    pub error: Option<String>,
}

/// The part of a study that changes while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StudyProgress {
    pub state: String,
    pub progress_done: u64,
    pub progress_total: u64,
    pub error: Option<String>,
    pub updated_at: Millis,
}

/// One evaluated parameter set.
#[derive(Debug, Clone, PartialEq)]
pub struct TrialRecord {
    /// Position in the study's order of parameter sets; with the study the identity of the trial.
    pub number: u64,
    pub parameters_json: String,
    /// Hash of everything that decided the result, so that equal trials can be recognised.
    pub content_hash: String,
    /// Higher is better. Finite.
    pub objective: f64,
    pub result_json: String,
}

/// Order, and start, of a listing of trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialOrder {
    /// By number, after a number; `None` from the first.
    Number { after: Option<u64> },
    /// Highest objective first, equal ones by number, after skipping `offset`.
    BestFirst { offset: u64 },
}

/// Studies and trials.
#[async_trait]
pub trait StudyStore: Send + Sync + Debug {
    /// Errors: `AlreadyExists` when the id is taken.
    async fn create_study(&self, study: &StudyRecord) -> Result<()>;

    /// Replaces state and progress, if the study is in `expected_state` (where one is given).
    ///
    /// Errors: `NotFound`; `Conflict` when it is in another state.
    async fn update_study_state(&self, id: &str, expected_state: Option<&str>, progress: &StudyProgress) -> Result<()>;

    async fn study(&self, id: &str) -> Result<Option<StudyRecord>>;

    /// Studies newest first (by creation, then id descending), after a study's id. An unknown id gives nothing.
    async fn list_studies(&self, after: Option<&str>, limit: usize) -> Result<Vec<StudyRecord>>;

    /// Studies in one of the given states, oldest first: what a restarted optimizer takes up again.
    async fn unfinished_studies(&self, states: &[&str]) -> Result<Vec<StudyRecord>>;

    /// Stores trials in one transaction. One that exists by (study, number) is replaced, so a repeated batch changes nothing.
    ///
    /// Errors: `NotFound` for the study, `Invalid` for an objective that is not finite.
    async fn put_trials(&self, study_id: &str, trials: &[TrialRecord]) -> Result<()>;

    /// A page of a study's trials; empty for an unknown study.
    async fn trials(&self, study_id: &str, order: TrialOrder, limit: usize) -> Result<Vec<TrialRecord>>;

    /// How many trials of the study are stored.
    async fn trial_count(&self, study_id: &str) -> Result<u64>;
}

/// The error of a study found in another state.
pub(crate) fn lost(id: &str, expected: &str, found: &str) -> Error {
    Error::Conflict { what: "study", id: id.to_owned(), expected: expected.to_owned(), found: found.to_owned() }
}

/// Refuses what has no place in an order, and pages beyond the limit.
pub(crate) fn check_trials(trials: &[TrialRecord]) -> Result<()> {
    if trials.len() > crate::MAX_PAGE_ROWS {
        return Err(Error::invalid(
            "trials",
            format!("{} in one call, more than {}", trials.len(), crate::MAX_PAGE_ROWS),
        ));
    }
    match trials.iter().find(|trial| !trial.objective.is_finite()) {
        Some(trial) => {
            Err(Error::invalid("objective", format!("{} of trial {} is not finite", trial.objective, trial.number)))
        }
        None => Ok(()),
    }
}

//! How an analysis is kept: its metrics and patterns as JSON, with the names of the wire.

use kernels::sequence::{Direction, Kind, Metrics, Pattern};
use market::{InstrumentKey, Millis, TimeRange, Timeframe};
use rollout::Engine;
use serde::{Deserialize, Serialize};
use store::AnalysisRecord;

use crate::engine::{Analyzed, Error};

/// An analysis read back.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KeptAnalysis {
    pub(crate) key: InstrumentKey,
    pub(crate) timeframe: Timeframe,
    pub(crate) revision: u64,
    pub(crate) created_at: Millis,
    pub(crate) metrics: Metrics,
    pub(crate) patterns: Vec<Pattern>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Kind", rename_all = "lowercase")]
enum KindName {
    Strong,
    Weak,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Direction", rename_all = "lowercase")]
enum DirectionName {
    Up,
    Down,
    None,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Metrics")]
struct MetricsFields {
    quality: f64,
    length_score: f64,
    strength_score: f64,
    consistency_score: f64,
    continuity: f64,
    momentum: f64,
    volume_average: f64,
    volume_trend: f64,
    volume_consistency: f64,
    volume_strength: f64,
    sequence_count: u32,
    mean_length: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Pattern")]
struct PatternFields {
    #[serde(with = "KindName")]
    kind: Kind,
    #[serde(with = "DirectionName")]
    direction: Direction,
    length: u32,
    frequency: u32,
    mean_strength: f64,
    mean_return: f64,
    mean_gap: Option<f64>,
    success_rate: f64,
    success_count: u32,
    sample_count: u32,
    success_lower: f64,
    success_upper: f64,
}

#[derive(Serialize, Deserialize)]
struct MetricsJson(#[serde(with = "MetricsFields")] Metrics);

#[derive(Serialize, Deserialize)]
struct PatternJson(#[serde(with = "PatternFields")] Pattern);

/// The record of an analysis. One of the same instrument, timeframe, range and engine replaces it, whatever its parameters.
pub(crate) fn of(analyzed: &Analyzed, range: TimeRange, engine: Engine, now: Millis) -> Result<AnalysisRecord, Error> {
    let patterns: Vec<PatternJson> = analyzed.analysis.patterns.iter().copied().map(PatternJson).collect();
    let unreadable = |source| Error::Record { key: analyzed.key.clone(), source };
    Ok(AnalysisRecord {
        instrument_key: analyzed.key.clone(),
        timeframe: analyzed.timeframe,
        start: range.start(),
        end: range.end(),
        engine: engine.as_str().to_owned(),
        revision: analyzed.revision,
        metrics_json: serde_json::to_string(&MetricsJson(analyzed.analysis.metrics)).map_err(unreadable)?,
        patterns_json: serde_json::to_string(&patterns).map_err(unreadable)?,
        created_at: now,
    })
}

pub(crate) fn read(record: AnalysisRecord) -> Result<KeptAnalysis, Error> {
    let unreadable = |source| Error::Record { key: record.instrument_key.clone(), source };
    let MetricsJson(metrics) = serde_json::from_str(&record.metrics_json).map_err(unreadable)?;
    let patterns: Vec<PatternJson> = serde_json::from_str(&record.patterns_json).map_err(unreadable)?;
    Ok(KeptAnalysis {
        key: record.instrument_key,
        timeframe: record.timeframe,
        revision: record.revision,
        created_at: record.created_at,
        metrics,
        patterns: patterns.into_iter().map(|PatternJson(pattern)| pattern).collect(),
    })
}

//! Answers as messages. Every number that leaves is finite.

use kernels::sequence::{self, Kind};
use kernels::trend::{self, TrendState};
use kernels::width::Width;
use market::{Date, format_date};
use mesh::MAX_MESSAGE_BYTES;
use prost::Message;
use proto::convert::timestamp;
use proto::sequence::{
    AnalyzeSequencesResponse, Direction, ExecuteGroupResponse, GetBollingerWidthResponse, GetTopScreenedResponse,
    GetTrendResponse, GetVolatilityResponse, ListAnalysesResponse, ListTradeIntentsResponse, Move, Pattern,
    RunFilterPipelineResponse, ScreenRejection, ScreenRow, Sequence, SequenceKind, SequenceMetrics, Side,
    SkippedInstrument, StageMetrics, StoredAnalysis, TradeIntent, Trend,
};
use store::IntentRecord;

use crate::engine::{Analyzed, Error};
use crate::group::{BUY, Executed, IntentPage, SELL};
use crate::measure::{Dated, VolatilityFigure};
use crate::pipeline::{Hit, Screened, StageCount};
use crate::query::AnalysisQuery;
use crate::record::KeptAnalysis;

pub(crate) fn analyzed(query: &AnalysisQuery, answer: Analyzed) -> Result<AnalyzeSequencesResponse, Error> {
    let Analyzed { key, timeframe, revision, open_time, analysis } = answer;
    let mut moves = Vec::new();
    if query.has_moves {
        moves.extend(open_time.iter().zip(&analysis.moves).map(|(at, each)| Move {
            open_time: Some(timestamp(*at)),
            move_percent: each.move_percent,
            price_strength: each.price_strength,
            volume_strength: each.volume_strength,
            strength: each.strength,
            direction: direction(each.direction) as i32,
            strong: each.is_strong,
        }));
    }
    let sequences = analysis.sequences.iter().map(|each| Sequence {
        kind: kind(each.kind) as i32,
        direction: direction(each.direction) as i32,
        length: each.length,
        start_time: Some(timestamp(open_time[each.start_index])),
        end_time: Some(timestamp(open_time[each.end_index()])),
        strength: each.strength,
        gap: each.gap_to_next_strong,
    });
    fitting(
        AnalyzeSequencesResponse {
            instrument_key: key.to_string(),
            timeframe: timeframe.to_string(),
            revision,
            candle_count: open_time.len() as u32,
            sequences: sequences.collect(),
            moves,
            metrics: Some(metrics(&analysis.metrics)),
            patterns: analysis.patterns.iter().map(pattern).collect(),
        },
        "ask for a shorter range or without moves",
    )
}

pub(crate) fn kept(analyses: Vec<KeptAnalysis>) -> Result<ListAnalysesResponse, Error> {
    let analyses = analyses.into_iter().map(|kept| StoredAnalysis {
        instrument_key: kept.key.to_string(),
        timeframe: kept.timeframe.to_string(),
        revision: kept.revision,
        create_time: Some(timestamp(kept.created_at)),
        metrics: Some(metrics(&kept.metrics)),
        patterns: kept.patterns.iter().map(pattern).collect(),
    });
    fitting(ListAnalysesResponse { analyses: analyses.collect() }, "ask for a smaller page")
}

pub(crate) fn trend(answer: Dated<TrendState>) -> GetTrendResponse {
    let state = answer.figure;
    let trend = match state.trend {
        trend::Trend::Bullish => Trend::Bullish,
        trend::Trend::Bearish => Trend::Bearish,
        trend::Trend::Neutral => Trend::Neutral,
    };
    GetTrendResponse {
        trend: trend as i32,
        share_above: state.share_above,
        share_below: state.share_below,
        last_close: state.last_close,
        last_ema: state.last_ema,
        date: format_date(answer.date),
    }
}

pub(crate) fn volatility(answer: Dated<VolatilityFigure>) -> GetVolatilityResponse {
    let VolatilityFigure { annualised, atr_percent } = answer.figure;
    GetVolatilityResponse { annualised, atr_percent, date: format_date(answer.date) }
}

pub(crate) fn width(answer: Dated<Width>) -> GetBollingerWidthResponse {
    let width = answer.figure;
    GetBollingerWidthResponse {
        width: width.absolute,
        width_normalized: width.normalised,
        percentile: width.percentile,
        contracting_count: width.contracting_count,
        squeeze: width.is_squeeze,
        date: format_date(answer.date),
    }
}

pub(crate) fn screened(answer: Screened) -> Result<RunFilterPipelineResponse, Error> {
    let rejected = answer.rejected.into_iter().map(|rejection| ScreenRejection {
        instrument_key: rejection.key.to_string(),
        stage: rejection.stage.to_owned(),
        reason: rejection.reason,
        value: finite(rejection.value),
    });
    fitting(
        RunFilterPipelineResponse {
            date: date(answer.date),
            rejected: rejected.collect(),
            bullish: answer.bullish.iter().map(row).collect(),
            bearish: answer.bearish.iter().map(row).collect(),
            metrics: answer.stages.iter().map(stage).collect(),
        },
        "name fewer instruments",
    )
}

pub(crate) fn top((on, hits): (Option<Date>, Vec<Hit>)) -> GetTopScreenedResponse {
    GetTopScreenedResponse { date: date(on), rows: hits.iter().map(row).collect() }
}

pub(crate) fn executed(answer: Executed) -> ExecuteGroupResponse {
    let skipped = answer
        .skipped
        .into_iter()
        .map(|each| SkippedInstrument { instrument_key: each.key.to_string(), reason: each.reason });
    ExecuteGroupResponse {
        group_id: answer.group_id,
        skipped: skipped.collect(),
        intents: answer.intents.into_iter().map(intent).collect(),
    }
}

pub(crate) fn intents(page: IntentPage) -> ListTradeIntentsResponse {
    ListTradeIntentsResponse {
        intents: page.intents.into_iter().map(intent).collect(),
        next_page_token: page.next.unwrap_or_default(),
    }
}

/// Refuses what does not fit a message.
fn fitting<M: Message>(message: M, way: &'static str) -> Result<M, Error> {
    let found = message.encoded_len();
    if found > MAX_MESSAGE_BYTES {
        return Err(Error::Limit { what: "bytes of an answer", found, limit: MAX_MESSAGE_BYTES, way });
    }
    Ok(message)
}

fn metrics(from: &sequence::Metrics) -> SequenceMetrics {
    SequenceMetrics {
        quality: from.quality,
        length_score: from.length_score,
        strength_score: from.strength_score,
        consistency_score: from.consistency_score,
        continuity: from.continuity,
        momentum: from.momentum,
        volume_average: from.volume_average,
        volume_trend: from.volume_trend,
        volume_consistency: from.volume_consistency,
        volume_strength: from.volume_strength,
        sequence_count: from.sequence_count,
        mean_length: from.mean_length,
    }
}

fn pattern(from: &sequence::Pattern) -> Pattern {
    Pattern {
        kind: kind(from.kind) as i32,
        direction: direction(from.direction) as i32,
        length: from.length,
        frequency: from.frequency,
        mean_strength: from.mean_strength,
        mean_return: from.mean_return,
        mean_gap: from.mean_gap,
        sample_count: from.sample_count,
        success_count: from.success_count,
        success_rate: from.success_rate,
        success_lower: from.success_lower,
        success_upper: from.success_upper,
    }
}

/// Figures without candles enough are 0.
fn row(hit: &Hit) -> ScreenRow {
    ScreenRow {
        instrument_key: hit.key.to_string(),
        last_close: hit.row.last_close,
        mean_volume: hit.row.mean_volume,
        ema_distance_percent: hit.row.distance_percent.unwrap_or_default(),
        rsi: hit.row.rsi.unwrap_or_default(),
        strong_move_count: hit.row.strong_move_count,
        strength: hit.row.strength,
    }
}

fn stage(count: &StageCount) -> StageMetrics {
    let duration = prost_types::Duration {
        seconds: i64::try_from(count.duration.as_secs()).unwrap_or(i64::MAX),
        nanos: count.duration.subsec_nanos() as i32,
    };
    StageMetrics {
        stage: count.stage.to_owned(),
        processed: count.processed,
        passed: count.passed,
        failed: count.failed,
        bullish: count.bullish,
        bearish: count.bearish,
        duration: Some(duration),
    }
}

fn intent(from: IntentRecord) -> TradeIntent {
    let side = match from.side.as_str() {
        BUY => Side::Buy,
        SELL => Side::Sell,
        _ => Side::Unspecified,
    };
    TradeIntent {
        intent_id: from.id,
        group_id: from.group_id,
        instrument_key: from.instrument_key.to_string(),
        side: side as i32,
        entry: from.entry,
        stop: from.stop,
        target: from.target,
        quantity: from.quantity,
        reason: from.reason,
        create_time: Some(timestamp(from.created_at)),
    }
}

fn kind(from: Kind) -> SequenceKind {
    match from {
        Kind::Strong => SequenceKind::Strong,
        Kind::Weak => SequenceKind::Weak,
    }
}

fn direction(from: sequence::Direction) -> Direction {
    match from {
        sequence::Direction::Up => Direction::Up,
        sequence::Direction::Down => Direction::Down,
        sequence::Direction::None => Direction::None,
    }
}

fn date(date: Option<Date>) -> String {
    date.map_or_else(String::new, format_date)
}

fn finite(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

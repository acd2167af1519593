//! `candles`, `indicators`, `sequences`, `screen`, `quotes`: one question, one table or JSON.

use std::time::Duration;

use anyhow::Result;
use market::{Adjustment, InstrumentKey, Timeframe};
use prost::Message;
use proto::aggregation::aggregation_service_client::AggregationServiceClient;
use proto::aggregation::{GetCandlesRequest, GetCandlesResponse};
use proto::convert;
use proto::indicator::indicator_service_client::IndicatorServiceClient;
use proto::indicator::{ComputeIndicatorsRequest, ComputeIndicatorsResponse};
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{GetQuotesRequest, quote_outcome};
use proto::sequence::sequence_service_client::SequenceServiceClient;
use proto::sequence::{AnalyzeSequencesRequest, RunFilterPipelineRequest, ScreenRow};
use tonic::{Request, Response};

use super::{Connection, RangeArgs, catalogue, short, with_deadline};
use crate::output::{say, say_line};

/// Rows printed from the end of a long answer; `--json` has them all.
const PRINTED_ROWS: usize = 20;
/// Time given to one question.
const DEADLINE: Duration = Duration::from_secs(120);

/// `candles`' arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct CandlesArgs {
    /// For example "NSE_EQ|INE002A01018".
    pub instrument: InstrumentKey,
    /// 1m 2m 3m 5m 10m 15m 30m 1h 2h 4h 1d 1w 1mo.
    #[arg(default_value = "1d")]
    pub timeframe: Timeframe,
    #[command(flatten)]
    pub range: RangeArgs,
    /// Fill session gaps with the previous close and volume 0.
    #[arg(long)]
    pub gap_fill: bool,
    /// raw, splits or splits_and_dividends.
    #[arg(long, default_value = "raw")]
    pub adjust: Adjustment,
    #[arg(long)]
    pub json: bool,
}

/// `indicators`' arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct IndicatorsArgs {
    #[arg(required_unless_present = "list")]
    pub instrument: Option<InstrumentKey>,
    #[arg(default_value = "1d")]
    pub timeframe: Timeframe,
    /// For example sma:9, macd:12,26,9 or rsi:14@tradingview; repeat for several. Default: the standard set.
    #[arg(long = "indicator", short = 'i')]
    pub indicators: Vec<String>,
    /// List the indicators there are, with their parameters and profiles, whatever the range.
    #[arg(long, conflicts_with_all = ["instrument", "indicators"])]
    pub list: bool,
    #[command(flatten)]
    pub range: RangeArgs,
    #[arg(long)]
    pub json: bool,
}

/// `sequences`' arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct SequencesArgs {
    pub instrument: InstrumentKey,
    #[arg(default_value = "1d")]
    pub timeframe: Timeframe,
    #[command(flatten)]
    pub range: RangeArgs,
    #[arg(long)]
    pub json: bool,
}

/// `screen`'s arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct ScreenArgs {
    /// Instruments; none: the whole universe.
    pub instruments: Vec<InstrumentKey>,
    /// YYYY-MM-DD; default: the latest date with data.
    #[arg(long)]
    pub date: Option<String>,
    #[arg(long)]
    pub json: bool,
}

/// `quotes`' arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct QuotesArgs {
    #[arg(required = true)]
    pub instruments: Vec<InstrumentKey>,
    #[arg(long)]
    pub json: bool,
}

/// The engine that answered.
pub fn engine_of<T>(response: &Response<T>) -> String {
    let engine = response.metadata().get(mesh::ENGINE_HEADER).and_then(|value| value.to_str().ok());
    engine.unwrap_or("-").to_owned()
}

/// Asks for candles.
pub async fn candles(connection: &Connection, request: GetCandlesRequest) -> Result<(String, GetCandlesResponse)> {
    let mut client =
        AggregationServiceClient::new(connection.channel()?).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
    let mut call = Request::new(request);
    call.set_timeout(DEADLINE);
    let response = client.get_candles(call).await.map_err(|status| connection.explain(status))?;
    Ok((engine_of(&response), response.into_inner()))
}

/// Asks for indicators.
pub async fn indicators(
    connection: &Connection,
    request: ComputeIndicatorsRequest,
) -> Result<(String, ComputeIndicatorsResponse)> {
    let mut client =
        IndicatorServiceClient::new(connection.channel()?).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
    let mut call = Request::new(request);
    call.set_timeout(DEADLINE);
    let response = client.compute_indicators(call).await.map_err(|status| connection.explain(status))?;
    Ok((engine_of(&response), response.into_inner()))
}

/// Prints a message as protobuf JSON.
pub fn print_json<M: Message>(message: &M, name: &str) -> Result<()> {
    say_line!("{}", serde_json::to_string_pretty(&json_of(message, name)?)?);
    Ok(())
}

/// Prints a message as protobuf JSON, with the engine that answered.
fn print_answer<M: Message>(message: &M, name: &str, engine: &str) -> Result<()> {
    let mut json = json_of(message, name)?;
    json["engine"] = engine.into();
    say_line!("{json:#}");
    Ok(())
}

/// The shape of the REST answer: in the message's own, warm-up values are zeros beside a list of null ranges.
fn indicators_json(answer: &ComputeIndicatorsResponse, engine: &str) -> serde_json::Value {
    let times: Vec<String> = answer.open_time_ms.iter().map(|at| market::format_millis(*at)).collect();
    let columns = answer.columns.iter().map(|column| (column.name.clone(), convert::column_values(column).into()));
    serde_json::json!({
        "instrument_key": answer.instrument_key,
        "timeframe": answer.timeframe,
        "engine": engine,
        "revision": answer.revision,
        "cached": answer.cached,
        "compute_ms": answer.compute_ms,
        "open_time": times,
        "columns": serde_json::Map::from_iter(columns),
    })
}

/// A message as protobuf JSON; `name` is its full name.
pub fn json_of<M: Message>(message: &M, name: &str) -> Result<serde_json::Value> {
    let descriptor = proto::json::pool().get_message_by_name(name);
    let descriptor = descriptor.ok_or_else(|| anyhow::anyhow!("{name} is no message of this project"))?;
    Ok(proto::json::decode(descriptor, &message.encode_to_vec())?)
}

/// `candles`.
pub async fn run_candles(connection: &Connection, args: &CandlesArgs) -> Result<()> {
    let request = GetCandlesRequest {
        instrument_key: args.instrument.to_string(),
        timeframe: args.timeframe.to_string(),
        range: Some(convert::wire_range(args.range.range()?)),
        gap_fill: args.gap_fill,
        adjustment: convert::wire_adjustment(args.adjust).into(),
        ..Default::default()
    };
    let (engine, answer) = candles(connection, request).await?;
    if args.json {
        return print_answer(&answer, "candlemesh.aggregation.v1.GetCandlesResponse", &engine);
    }
    say_line!(
        "{} {}  {} candles, engine {engine}, revision {}",
        answer.instrument_key,
        answer.timeframe,
        answer.candles.len(),
        answer.revision
    );
    say_line!("{:<25} {:>12} {:>12} {:>12} {:>12} {:>14}  bars", "open time", "open", "high", "low", "close", "volume");
    let skipped = answer.candles.len().saturating_sub(PRINTED_ROWS);
    for candle in &answer.candles[skipped..] {
        let at = candle.open_time.as_ref().and_then(convert::millis).unwrap_or_default();
        let mark = if candle.complete { "" } else { " partial" };
        say_line!(
            "{:<25} {:>12} {:>12} {:>12} {:>12} {:>14}  {}/{}{mark}",
            market::format_millis(at),
            short(candle.open),
            short(candle.high),
            short(candle.low),
            short(candle.close),
            candle.volume,
            candle.source_count,
            candle.expected_count
        );
    }
    print_skipped(skipped);
    Ok(())
}

fn print_skipped(skipped: usize) {
    if skipped > 0 {
        say_line!("({skipped} earlier rows not shown; --json has them all)");
    }
}

/// `indicators`.
pub async fn run_indicators(connection: &Connection, args: &IndicatorsArgs) -> Result<()> {
    let Some(instrument) = &args.instrument else {
        return catalogue::list(connection, args.json).await;
    };
    let request = ComputeIndicatorsRequest {
        instrument_key: instrument.to_string(),
        timeframe: args.timeframe.to_string(),
        range: Some(convert::wire_range(args.range.range()?)),
        indicators: args.indicators.clone(),
        ..Default::default()
    };
    let (engine, answer) = indicators(connection, request).await?;
    if args.json {
        say_line!("{:#}", indicators_json(&answer, &engine));
        return Ok(());
    }
    say_line!(
        "{} {}  {} rows, engine {engine}, revision {}{}",
        answer.instrument_key,
        answer.timeframe,
        answer.open_time_ms.len(),
        answer.revision,
        if answer.cached { ", cached" } else { "" }
    );
    let columns: Vec<_> = answer.columns.iter().map(|column| (&column.name, convert::column_values(column))).collect();
    let width = |name: &str| name.len().max(12);
    say!("{:<25}", "open time");
    for (name, _) in &columns {
        say!(" {name:>width$}", width = width(name));
    }
    say_line!();
    let skipped = answer.open_time_ms.len().saturating_sub(PRINTED_ROWS);
    for row in skipped..answer.open_time_ms.len() {
        say!("{:<25}", market::format_millis(answer.open_time_ms[row]));
        for (name, values) in &columns {
            let text = values.get(row).copied().flatten().map_or("-".to_owned(), short);
            say!(" {text:>width$}", width = width(name));
        }
        say_line!();
    }
    print_skipped(skipped);
    Ok(())
}

/// `sequences`.
pub async fn run_sequences(connection: &Connection, args: &SequencesArgs) -> Result<()> {
    let mut client = SequenceServiceClient::new(connection.channel()?);
    let request = AnalyzeSequencesRequest {
        instrument_key: args.instrument.to_string(),
        timeframe: args.timeframe.to_string(),
        range: Some(convert::wire_range(args.range.range()?)),
        ..Default::default()
    };
    let response = with_deadline(DEADLINE, client.analyze_sequences(request)).await;
    let response = response.map_err(|status| connection.explain(status))?;
    let engine = engine_of(&response);
    let answer = response.into_inner();
    if args.json {
        return print_answer(&answer, "candlemesh.sequence.v1.AnalyzeSequencesResponse", &engine);
    }
    let metrics = answer.metrics.unwrap_or_default();
    say_line!(
        "{} {}  {} candles, {} sequences, engine {engine}",
        answer.instrument_key,
        answer.timeframe,
        answer.candle_count,
        metrics.sequence_count
    );
    say_line!(
        "quality {:.3}  continuity {:.3}  momentum {:.3}  mean length {:.2}",
        metrics.quality,
        metrics.continuity,
        metrics.momentum,
        metrics.mean_length
    );
    say_line!(
        "{:<8} {:<6} {:>6} {:>10} {:>9} {:>20}",
        "kind",
        "dir",
        "length",
        "frequency",
        "strength",
        "success (95 %)"
    );
    for pattern in answer.patterns.iter().take(PRINTED_ROWS) {
        let direction = pattern.direction().as_str_name().trim_start_matches("DIRECTION_").to_ascii_lowercase();
        let kind = pattern.kind().as_str_name().trim_start_matches("SEQUENCE_KIND_").to_ascii_lowercase();
        say_line!(
            "{kind:<8} {direction:<6} {:>6} {:>10} {:>9.3} {:>6.1} % ({:.0}-{:.0})",
            pattern.length,
            pattern.frequency,
            pattern.mean_strength,
            pattern.success_rate * 100.0,
            pattern.success_lower * 100.0,
            pattern.success_upper * 100.0
        );
    }
    Ok(())
}

/// `screen`.
pub async fn run_screen(connection: &Connection, args: &ScreenArgs) -> Result<()> {
    let mut client =
        SequenceServiceClient::new(connection.channel()?).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
    let request = RunFilterPipelineRequest {
        instrument_keys: args.instruments.iter().map(ToString::to_string).collect(),
        date: args.date.clone().unwrap_or_default(),
        ..Default::default()
    };
    let response = with_deadline(DEADLINE, client.run_filter_pipeline(request)).await;
    let answer = response.map_err(|status| connection.explain(status))?.into_inner();
    if args.json {
        return print_json(&answer, "candlemesh.sequence.v1.RunFilterPipelineResponse");
    }
    say_line!("screen of {}", answer.date);
    for stage in &answer.metrics {
        say_line!(
            "  {:<12} {:>5} in {:>5} passed {:>5} failed",
            stage.stage,
            stage.processed,
            stage.passed,
            stage.failed
        );
    }
    print_side("bullish", &answer.bullish);
    print_side("bearish", &answer.bearish);
    say_line!("rejected: {}", answer.rejected.len());
    for rejection in answer.rejected.iter().take(PRINTED_ROWS) {
        say_line!("  {:<28} {:<12} {}", rejection.instrument_key, rejection.stage, rejection.reason);
    }
    let more = answer.rejected.len().saturating_sub(PRINTED_ROWS);
    if more > 0 {
        say_line!("  ({more} more with --json)");
    }
    Ok(())
}

fn print_side(side: &str, rows: &[ScreenRow]) {
    say_line!("{side}: {}", rows.len());
    for row in rows {
        say_line!(
            "  {:<28} close {:>10}  from EMA {:>6.2} %  RSI {:>5.1}  strong moves {:>3}  strength {:.3}",
            row.instrument_key,
            short(row.last_close),
            row.ema_distance_percent,
            row.rsi,
            row.strong_move_count,
            row.strength
        );
    }
}

/// `quotes`.
pub async fn run_quotes(connection: &Connection, args: &QuotesArgs) -> Result<()> {
    let mut client = IngestionServiceClient::new(connection.channel()?);
    let request = GetQuotesRequest { instrument_keys: args.instruments.iter().map(ToString::to_string).collect() };
    let response = with_deadline(DEADLINE, client.get_quotes(request)).await;
    let answer = response.map_err(|status| connection.explain(status))?.into_inner();
    if args.json {
        return print_json(&answer, "candlemesh.ingestion.v1.GetQuotesResponse");
    }
    say_line!("{:<28} {:>12} {:>9} {:>14}  time", "instrument", "last", "change", "volume");
    for outcome in answer.outcomes {
        match outcome.outcome {
            Some(quote_outcome::Outcome::Quote(quote)) => {
                let at = quote.time.as_ref().and_then(convert::millis).unwrap_or_default();
                let change = quote.change_percent.map_or("-".to_owned(), |change| format!("{change:+.2} %"));
                say_line!(
                    "{:<28} {:>12} {:>9} {:>14}  {}",
                    outcome.instrument_key,
                    short(quote.last_price),
                    change,
                    quote.volume,
                    market::format_millis(at)
                );
            }
            Some(quote_outcome::Outcome::Error(error)) => say_line!("{:<28} {}", outcome.instrument_key, error.message),
            None => say_line!("{:<28} no answer", outcome.instrument_key),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::wire::{Column, RowRange};

    #[test]
    fn warm_up_is_null_in_the_json_of_indicators() {
        let column =
            Column { name: "sma:2".into(), values: vec![0.0, 1.5], null_ranges: vec![RowRange { start: 0, end: 1 }] };
        let answer = ComputeIndicatorsResponse {
            instrument_key: "US|SPY".into(),
            timeframe: "1m".into(),
            open_time_ms: vec![1_471_319_100_000, 1_471_319_160_000],
            columns: vec![column],
            ..Default::default()
        };
        let json = indicators_json(&answer, "v2");
        assert_eq!(json["open_time"][0], "2016-08-16T03:45:00Z");
        assert_eq!(json["columns"], serde_json::json!({ "sma:2": [null, 1.5] }));
        assert_eq!(json["engine"], "v2");
    }
}

//! `audit`: whether indicators use the future, or depend on how much history is loaded.

use anyhow::{Result, ensure};
use market::{InstrumentKey, Timeframe, format_millis};
use proto::convert;
use proto::indicator::indicator_service_client::IndicatorServiceClient;
use proto::indicator::{AuditDifference, AuditIndicatorsRequest, AuditedColumn};

use super::query::print_json;
use super::{Connection, RangeArgs};
use crate::output::say_line;

/// `audit`'s arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct AuditArgs {
    /// For example "NSE_EQ|INE002A01018".
    pub instrument: InstrumentKey,
    #[arg(long, default_value = "1m")]
    pub timeframe: Timeframe,
    /// For example rsi:14; several may follow each other. The D3 set unless given.
    #[arg(long = "indicator", short = 'i', num_args = 1..)]
    pub indicators: Vec<String>,
    #[command(flatten)]
    pub range: RangeArgs,
    #[arg(long)]
    pub json: bool,
}

/// Fails when a column uses the future.
pub async fn run(connection: &Connection, args: &AuditArgs) -> Result<()> {
    let request = AuditIndicatorsRequest {
        instrument_key: args.instrument.to_string(),
        timeframe: args.timeframe.to_string(),
        range: Some(convert::wire_range(args.range.range()?)),
        indicators: args.indicators.clone(),
        revision: None,
    };
    let mut client = IndicatorServiceClient::new(connection.channel()?);
    let answer = client.audit_indicators(request).await.map_err(|status| connection.explain(status))?.into_inner();
    if args.json {
        print_json(&answer, "candlemesh.indicator.v1.AuditIndicatorsResponse")?;
    } else {
        say_line!(
            "{} {}  {} candles at revision {}, computed again on parts of them",
            answer.instrument_key,
            answer.timeframe,
            answer.candle_count,
            answer.revision
        );
        answer.columns.iter().for_each(print);
    }
    let peeks = answer.columns.iter().filter(|column| column.look_ahead.is_some());
    let peeking: Vec<&str> = peeks.map(|column| column.name.as_str()).collect();
    ensure!(peeking.is_empty(), "these columns use the future: {}", peeking.join(", "));
    let tested = !answer.columns.is_empty() && answer.columns.iter().all(|column| column.compared_values > 0);
    ensure!(tested, "{} candles are too few to tell", answer.candle_count);
    Ok(())
}

fn print(column: &AuditedColumn) {
    let found = match (&column.look_ahead, &column.recursive, column.settled_after) {
        (Some(found), ..) => format!("USES THE FUTURE: {}", difference(found)),
        _ if column.compared_values == 0 => "not tested: too few candles for its look-back".to_owned(),
        (None, _, None) => "depends on all that came before: does not settle in these candles".to_owned(),
        (None, None, Some(rows)) => format!("a window: the same again {rows} candles after any beginning"),
        (None, Some(_), Some(rows)) => format!("a recurrence: the same to 1e-9 {rows} candles after any beginning"),
    };
    say_line!("  {:<28} {found}", column.name);
}

fn difference(found: &AuditDifference) -> String {
    let time = |stamp: &Option<prost_types::Timestamp>| {
        stamp.as_ref().and_then(convert::millis).map(format_millis).unwrap_or_default()
    };
    let value = |value: Option<f64>| value.map_or_else(|| "undefined".to_owned(), |value| value.to_string());
    format!(
        "at {} it is {}, and {} without the candles from {} on",
        time(&found.open_time),
        value(found.whole),
        value(found.part),
        time(&found.cut)
    )
}

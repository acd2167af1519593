//! `gaps`: which session minutes are missing.

use anyhow::Result;
use market::{InstrumentKey, format_millis};
use proto::aggregation::aggregation_service_client::AggregationServiceClient;
use proto::aggregation::{DateGaps, ListGapsRequest, ListGapsResponse};
use proto::convert;
use proto::wire::TimeRange;

use super::query::print_json;
use super::{Connection, RangeArgs};
use crate::output::say_line;

/// Gaps of one date printed; `--json` has them all.
const PRINTED_GAPS: usize = 5;

/// `gaps`' arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct GapsArgs {
    /// For example "NSE_EQ|INE002A01018".
    pub instrument: InstrumentKey,
    #[command(flatten)]
    pub range: RangeArgs,
    /// Leaves out gaps of fewer minutes; they are counted all the same.
    #[arg(long, default_value_t = 1)]
    pub min_minutes: u32,
    /// Most trading dates to list, 1 to 1000.
    #[arg(long, default_value_t = 100)]
    pub dates: i32,
    /// Continues a list that was cut, by what it printed.
    #[arg(long, default_value = "")]
    pub page_token: String,
    #[arg(long)]
    pub json: bool,
}

pub async fn run(connection: &Connection, args: &GapsArgs) -> Result<()> {
    let request = ListGapsRequest {
        instrument_key: args.instrument.to_string(),
        range: Some(convert::wire_range(args.range.range()?)),
        min_minutes: args.min_minutes,
        page_size: args.dates,
        page_token: args.page_token.clone(),
    };
    let mut client =
        AggregationServiceClient::new(connection.channel()?).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
    let answer = client.list_gaps(request).await.map_err(|status| connection.explain(status))?.into_inner();
    if args.json {
        return print_json(&answer, "candlemesh.aggregation.v1.ListGapsResponse");
    }
    print(args, &answer);
    Ok(())
}

fn print(args: &GapsArgs, answer: &ListGapsResponse) {
    say_line!(
        "{}  {} of {} trading dates complete, {} of {} session minutes present, {} outside sessions; calendar {}, revision {}",
        args.instrument,
        answer.complete_date_count,
        answer.date_count,
        answer.present_minutes,
        answer.expected_minutes,
        answer.outside_minutes,
        answer.calendar,
        answer.revision
    );
    if answer.unverified_date_count > 0 {
        say_line!(
            "{} of the dates lie in years whose holidays the calendar does not know: a holiday counts as missing there",
            answer.unverified_date_count
        );
    }
    answer.dates.iter().for_each(print_date);
    if !answer.next_page_token.is_empty() {
        say_line!("(more dates: --page-token {})", answer.next_page_token);
    }
}

fn print_date(date: &DateGaps) {
    let bound = |stamp: &Option<prost_types::Timestamp>| stamp.as_ref().and_then(convert::millis).unwrap_or_default();
    let gap = |range: &TimeRange| {
        let (start, end) = (bound(&range.start_time), bound(&range.end_time));
        format!("{} {} min", format_millis(start), (end - start) / 60_000)
    };
    let listed: Vec<String> = date.gaps.iter().take(PRINTED_GAPS).map(gap).collect();
    let more = match date.gaps.len().saturating_sub(PRINTED_GAPS) {
        _ if date.is_cut => ", and many more".to_owned(),
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    say_line!("{}  {}/{}  {}{more}", date.trading_date, date.present_minutes, date.expected_minutes, listed.join(", "));
}

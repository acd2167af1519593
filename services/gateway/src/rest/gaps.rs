//! What is missing of an instrument's session minutes.

use axum::extract::{Path, State};
use axum::response::Response;
use http::{HeaderMap, Uri};
use proto::aggregation::{DateGaps, ListGapsRequest, ListGapsResponse};
use serde::Serialize;
use utoipa::ToSchema;

use super::call::{self, Call};
use super::candles::{pairs, parse_value, unknown};
use super::problem::{self, Problem};
use super::{PathOf, Shared, time_range, time_text};
use crate::method::{Access, Role};

/// A page of trading dates with missing minutes, and the totals of the whole range.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GapsAnswer {
    instrument_key: String,
    /// Name of the calendar that says which minutes are expected.
    calendar: String,
    /// Data revision of the answer.
    revision: u64,
    /// Trading dates with a gap of min_minutes or more, ascending.
    dates: Vec<GapsOfDate>,
    /// Empty on the last page.
    next_page_token: String,
    /// Trading dates of the whole range.
    date_count: u32,
    /// Of them, those without a missing minute.
    complete_date_count: u32,
    /// Of them, those in years whose holidays the calendar does not know: there a holiday counts as missing.
    unverified_date_count: u32,
    expected_minutes: u64,
    present_minutes: u64,
    /// Minutes stored outside the sessions, among them pre- and post-market.
    outside_minutes: u64,
}

#[derive(Debug, Serialize, ToSchema)]
struct GapsOfDate {
    trading_date: String,
    expected_minutes: u32,
    present_minutes: u32,
    /// Half-open ranges of session minutes, ascending.
    gaps: Vec<Gap>,
    /// There are more gaps than are listed.
    is_cut: bool,
}

#[derive(Debug, Serialize, ToSchema)]
struct Gap {
    #[schema(format = DateTime)]
    start: String,
    #[schema(format = DateTime)]
    end: String,
}

/// `GET /api/v1/candles/{instrument_key}/gaps`
pub(super) async fn list(
    State(gateway): Shared,
    headers: HeaderMap,
    path: PathOf<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let Path(key) = path.map_err(|rejection| problem::path(&rejection))?;
    let call = Call::admit(gateway, &headers, Access::Reader, "reading candles", Some(&key))?;
    let instrument_key = call::key(&key)?.to_string();
    let request = ListGapsRequest { instrument_key: instrument_key.clone(), ..parse(&uri)? };
    let mut client = call.aggregation()?;
    let answer = call.run(Role::Aggregation, client.list_gaps(request)).await?.into_inner();
    let rows = answer.dates.len();
    call.render(None, rows, move || render(instrument_key, answer)).await
}

fn parse(uri: &Uri) -> Result<ListGapsRequest, Problem> {
    let mut request = ListGapsRequest::default();
    let (mut start, mut end) = (None, None);
    for (name, value) in pairs(uri)? {
        match name.as_str() {
            "start" => start = Some(value),
            "end" => end = Some(value),
            "min_minutes" => request.min_minutes = parse_value(&name, &value, "minutes from 0 on")?,
            "page_size" => request.page_size = parse_value(&name, &value, "1 to 1000")?,
            "page_token" => request.page_token = value,
            _ => return Err(unknown(&name, "start, end, min_minutes, page_size, page_token")),
        }
    }
    request.range = Some(time_range(start.as_deref(), end.as_deref())?);
    Ok(request)
}

fn render(instrument_key: String, answer: ListGapsResponse) -> GapsAnswer {
    GapsAnswer {
        instrument_key,
        calendar: answer.calendar,
        revision: answer.revision,
        dates: answer.dates.into_iter().map(of_date).collect(),
        next_page_token: answer.next_page_token,
        date_count: answer.date_count,
        complete_date_count: answer.complete_date_count,
        unverified_date_count: answer.unverified_date_count,
        expected_minutes: answer.expected_minutes,
        present_minutes: answer.present_minutes,
        outside_minutes: answer.outside_minutes,
    }
}

fn of_date(date: DateGaps) -> GapsOfDate {
    let gap = |range: &proto::wire::TimeRange| Gap {
        start: time_text(range.start_time.as_ref()),
        end: time_text(range.end_time.as_ref()),
    };
    GapsOfDate {
        trading_date: date.trading_date,
        expected_minutes: date.expected_minutes,
        present_minutes: date.present_minutes,
        gaps: date.gaps.iter().map(gap).collect(),
        is_cut: date.is_cut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_and_unknown_ones_refused() {
        let request = parse(&"/x?start=2016-08-16T00:00:00Z&min_minutes=5&page_size=2&page_token=t".parse().unwrap());
        let request = request.unwrap();
        assert_eq!((request.min_minutes, request.page_size, request.page_token.as_str()), (5, 2, "t"));
        assert_eq!(request.range.unwrap().start_time.unwrap().seconds, 1_471_305_600);
        for bad in ["/x?from=1", "/x?min_minutes=-1", "/x?page_size=many", "/x?end=tomorrow"] {
            assert!(parse(&bad.parse().unwrap()).is_err(), "{bad}");
        }
    }
}

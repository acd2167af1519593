//! Candles of one instrument, in one timeframe or several.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::{HeaderMap, Uri};
use market::Adjustment;
use proto::aggregation::{GetCandlesRequest, GetCandlesResponse, GetMultiCandlesRequest};
use proto::wire::{self, CandlesTicket, frame_ticket};
use rollout::Subject;

use super::body::{ByTimeframe, Candle, CandlesAnswer, Columns, MultiAnswer, MultiRequest};
use super::call::{self, Call};
use super::problem::{self, Problem};
use super::{PathOf, Shared, arrow, time_range};
use crate::method::{Access, Role};

/// `GET /api/v1/candles/{instrument_key}/{timeframe}`
pub(super) async fn one(
    State(gateway): Shared,
    headers: HeaderMap,
    path: PathOf<(String, String)>,
    uri: Uri,
) -> Result<Response, Problem> {
    let Path((key, timeframe)) = path.map_err(|rejection| problem::path(&rejection))?;
    let call = Call::admit(gateway, &headers, Access::Reader, "reading candles", Some(&key))?;
    let instrument_key = call::key(&key)?.to_string();
    let timeframe = proto::convert::timeframe("timeframe", &timeframe, None)?.to_string();
    let CandlesQuery { range, indicators, gap_fill, revision, adjustment } = CandlesQuery::parse(&uri)?;
    if arrow::is_asked_for(&headers) {
        let range = Some(range);
        let ticket = CandlesTicket { instrument_key, timeframe, range, indicators, gap_fill, revision, adjustment };
        return arrow::stream(call, Role::Aggregation, frame_ticket::Frame::Candles(ticket)).await;
    }
    let with_columns = !indicators.is_empty();
    let request =
        GetCandlesRequest { instrument_key, timeframe, range: Some(range), indicators, gap_fill, revision, adjustment };
    let mut client = call.aggregation()?;
    let response = call.run(Role::Aggregation, client.get_candles(request)).await?;
    let engine = call.answered(Subject::Aggregation, response.metadata());
    let answer = response.into_inner();
    let rows = answer.candles.len();
    call.render(Some(engine), rows, move || render(answer, engine.as_str(), with_columns)).await
}

/// `POST /api/v1/candles/{instrument_key}/multi`
pub(super) async fn multi(
    State(gateway): Shared,
    headers: HeaderMap,
    path: PathOf<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let Path(key) = path.map_err(|rejection| problem::path(&rejection))?;
    let call = Call::admit(Arc::clone(&gateway), &headers, Access::Reader, "reading candles", Some(&key))?;
    let instrument_key = call::key(&key)?.to_string();
    let MultiRequest { start, end, timeframes, indicators, adjustment } = call::json(&gateway, body)?;
    let range = Some(time_range(start.as_deref(), end.as_deref())?);
    let timeframes = distinct(&timeframes)?;
    let with_columns = !indicators.is_empty();
    let adjustment = adjustment_of(adjustment.as_deref())?;
    let request =
        GetMultiCandlesRequest { instrument_key: instrument_key.clone(), timeframes, range, indicators, adjustment };
    let mut client = call.aggregation()?;
    let response = call.run(Role::Aggregation, client.get_multi_candles(request)).await?;
    let engine = call.answered(Subject::Aggregation, response.metadata());
    let answers = response.into_inner().answers;
    let rows = answers.iter().map(|answer| answer.candles.len()).sum();
    let make = move || {
        let answers = answers.into_iter().map(|answer| render(answer, engine.as_str(), with_columns)).collect();
        MultiAnswer { instrument_key, timeframes: ByTimeframe(answers) }
    };
    call.render(Some(engine), rows, make).await
}

/// Each timeframe once, in the order asked: the answer is an object, and `day` and `1d` would be the same member twice.
fn distinct(asked: &[String]) -> Result<Vec<String>, Problem> {
    let mut distinct = Vec::new();
    for (index, text) in asked.iter().enumerate() {
        let timeframe = proto::convert::timeframe(&format!("timeframes[{index}]"), text, None)?.to_string();
        if !distinct.contains(&timeframe) {
            distinct.push(timeframe);
        }
    }
    Ok(distinct)
}

fn render(answer: GetCandlesResponse, engine: &'static str, with_columns: bool) -> CandlesAnswer {
    CandlesAnswer {
        instrument_key: answer.instrument_key,
        candles: Candle::list(answer.candles, &answer.timeframe),
        timeframe: answer.timeframe,
        engine,
        revision: answer.revision,
        columns: with_columns.then_some(Columns(answer.columns)),
    }
}

#[derive(Debug, Default, PartialEq)]
struct CandlesQuery {
    range: wire::TimeRange,
    indicators: Vec<String>,
    gap_fill: bool,
    revision: Option<u64>,
    adjustment: i32,
}

impl CandlesQuery {
    fn parse(uri: &Uri) -> Result<CandlesQuery, Problem> {
        let mut query = CandlesQuery::default();
        let (mut start, mut end) = (None, None);
        let mut seen: Vec<String> = Vec::new();
        for (name, value) in pairs(uri)? {
            if seen.contains(&name) && name != "indicators" {
                return Err(Problem::field(&name, "given more than once"));
            }
            seen.push(name.clone());
            match name.as_str() {
                "start" => start = Some(value),
                "end" => end = Some(value),
                "indicators" => query.indicators.extend(split_indicators(&value)),
                "gap_fill" => query.gap_fill = parse_value(&name, &value, "true, false")?,
                "as_of" => query.revision = Some(parse_value(&name, &value, "a data revision")?),
                "adjustment" => query.adjustment = adjustment_of(Some(&value))?,
                _ => return Err(unknown(&name, "start, end, indicators, gap_fill, as_of, adjustment")),
            }
        }
        query.range = time_range(start.as_deref(), end.as_deref())?;
        Ok(query)
    }
}

/// How candles are to be adjusted; absent: not at all.
pub(super) fn adjustment_of(text: Option<&str>) -> Result<i32, Problem> {
    let adjustment = text.map_or(Ok(Adjustment::Raw), str::parse);
    let adjustment = adjustment.map_err(|_| {
        let given = text.unwrap_or_default();
        Problem::field("adjustment", format!("'{given}' given; accepted: raw, splits, splits_and_dividends"))
    })?;
    Ok(proto::convert::wire_adjustment(adjustment).into())
}

/// The query's pairs, decoded.
pub(super) fn pairs(uri: &Uri) -> Result<Vec<(String, String)>, Problem> {
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri);
    pairs.map(|Query(pairs)| pairs).map_err(|rejection| Problem::field("query", rejection.body_text()))
}

pub(super) fn unknown(name: &str, accepted: &str) -> Problem {
    Problem::field(name, format!("unknown query parameter; accepted: {accepted}"))
}

pub(super) fn parse_value<T: std::str::FromStr>(name: &str, value: &str, accepted: &str) -> Result<T, Problem> {
    value.parse().map_err(|_| Problem::field(name, format!("'{value}' given; accepted: {accepted}")))
}

/// Splits `sma:9,bbands:20,2,vwap`: a part that starts with a digit is a parameter of the one before it.
pub(super) fn split_indicators(text: &str) -> Vec<String> {
    let mut specs: Vec<String> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match specs.last_mut() {
            Some(last) if part.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {
                last.push(',');
                last.push_str(part);
            }
            _ => specs.push(part.to_owned()),
        }
    }
    specs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_inside_a_spec_are_told_from_those_between() {
        assert_eq!(
            split_indicators("sma:9,bbands:20,2, vwap,macd:12,26,9"),
            ["sma:9", "bbands:20,2", "vwap", "macd:12,26,9"]
        );
        assert_eq!(
            split_indicators("rsi@tradingview,macd:12,26,9@tradingview,ema:9@talib"),
            ["rsi@tradingview", "macd:12,26,9@tradingview", "ema:9@talib"]
        );
        assert!(split_indicators(",,").is_empty());
    }

    #[test]
    fn a_timeframe_by_two_names_is_one_member_of_the_answer() {
        let asked = ["5m", "day", "1d", "5minute"].map(str::to_owned);
        assert_eq!(distinct(&asked).unwrap(), ["5m", "1d"]);
        assert!(distinct(&["1d".to_owned(), "9z".to_owned()]).is_err());
    }

    #[test]
    fn queries_refuse_what_they_do_not_know() {
        let parse = |text: &str| CandlesQuery::parse(&text.parse().unwrap());
        let query =
            parse("/x?start=2016-08-16T09:15:00%2B05:30&indicators=sma:9&indicators=vwap&gap_fill=true&as_of=7")
                .unwrap();
        assert_eq!(query.range.start_time.as_ref().unwrap().seconds, 1_471_319_100);
        assert_eq!(
            (query.indicators, query.gap_fill, query.revision),
            (vec!["sma:9".into(), "vwap".into()], true, Some(7))
        );
        assert_eq!(parse("/x?adjustment=splits").unwrap().adjustment, 1);
        assert_eq!(parse("/x?adjustment=raw").unwrap(), parse("/x").unwrap());
        for bad in [
            "/x?from=1",
            "/x?gap_fill=yes",
            "/x?as_of=-1",
            "/x?start=yesterday",
            "/x?as_of=1&as_of=2",
            "/x?adjustment=full",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}

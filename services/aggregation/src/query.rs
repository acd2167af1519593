//! What a caller asks for, checked.

use std::sync::Arc;

use kernels::indicator::Spec;
use market::{Adjustment, Date, InstrumentKey, TimeRange, Timeframe};
use proto::aggregation::{BatchGetCandlesRequest, GetCandlesRequest, GetMultiCandlesRequest, ListGapsRequest};
use proto::convert::{self, FieldError};
use proto::wire::CandlesTicket;

use crate::engine::GapsQuery;

/// Indicators of one request; their columns have a limit of their own.
const MAX_INDICATORS: usize = 64;
/// Instruments of one batch request.
const MAX_KEYS: usize = 5000;
/// Trading dates per page of gaps where the request does not say.
const DEFAULT_GAP_DATES: usize = 100;

/// Candles of one instrument and timeframe whose open time lies in a range.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) key: InstrumentKey,
    pub(crate) timeframe: Timeframe,
    pub(crate) range: TimeRange,
    /// Columns to append; names are unique.
    pub(crate) indicators: Arc<[Spec]>,
    pub(crate) gap_fill: bool,
    /// Revision to repeat; the current one if absent.
    pub(crate) revision: Option<u64>,
    /// By the actions known now, also with a revision.
    pub(crate) adjustment: Adjustment,
}

impl Query {
    /// Candles as they are stored, and nothing else.
    pub(crate) fn raw(key: InstrumentKey, timeframe: Timeframe, range: TimeRange) -> Query {
        Query {
            key,
            timeframe,
            range,
            indicators: Arc::from([]),
            gap_fill: false,
            revision: None,
            adjustment: Adjustment::Raw,
        }
    }

    /// Names of the indicator columns, in order.
    pub(crate) fn columns(&self) -> Vec<String> {
        self.indicators.iter().flat_map(Spec::columns).collect()
    }
}

impl TryFrom<GetCandlesRequest> for Query {
    type Error = FieldError;

    fn try_from(request: GetCandlesRequest) -> Result<Self, FieldError> {
        Ok(Query {
            key: convert::instrument_key("instrument_key", &request.instrument_key)?,
            timeframe: convert::timeframe("timeframe", &request.timeframe, None)?,
            range: convert::time_range(request.range.as_ref())?,
            indicators: indicators(&request.indicators)?,
            gap_fill: request.gap_fill,
            revision: request.revision,
            adjustment: convert::adjustment("adjustment", request.adjustment)?,
        })
    }
}

impl TryFrom<CandlesTicket> for Query {
    type Error = FieldError;

    fn try_from(ticket: CandlesTicket) -> Result<Self, FieldError> {
        Query::try_from(GetCandlesRequest {
            instrument_key: ticket.instrument_key,
            timeframe: ticket.timeframe,
            range: ticket.range,
            indicators: ticket.indicators,
            gap_fill: ticket.gap_fill,
            revision: ticket.revision,
            adjustment: ticket.adjustment,
        })
    }
}

/// One query per timeframe, in the order asked; each timeframe once.
pub(crate) fn per_timeframe(request: GetMultiCandlesRequest) -> Result<Vec<Query>, FieldError> {
    let (given, limit) = (request.timeframes.len(), Timeframe::ALL.len());
    if given == 0 || given > limit {
        return Err(FieldError::new("timeframes", format!("{given} given; accepted: 1 to {limit}")));
    }
    let mut query = Query {
        key: convert::instrument_key("instrument_key", &request.instrument_key)?,
        timeframe: Timeframe::M1,
        range: convert::time_range(request.range.as_ref())?,
        indicators: indicators(&request.indicators)?,
        gap_fill: false,
        revision: None,
        adjustment: convert::adjustment("adjustment", request.adjustment)?,
    };
    let mut queries: Vec<Query> = Vec::with_capacity(given);
    for (index, text) in request.timeframes.iter().enumerate() {
        let field = format!("timeframes[{index}]");
        query.timeframe = convert::timeframe(&field, text, None)?;
        if queries.iter().any(|other| other.timeframe == query.timeframe) {
            return Err(FieldError::new(field, format!("'{}' is asked for twice", query.timeframe)));
        }
        queries.push(query.clone());
    }
    Ok(queries)
}

/// One query per instrument.
pub(crate) fn per_instrument(request: BatchGetCandlesRequest) -> Result<Vec<Query>, FieldError> {
    let keys = convert::instrument_keys("instrument_keys", &request.instrument_keys, MAX_KEYS)?;
    let timeframe = convert::timeframe("timeframe", &request.timeframe, None)?;
    let range = convert::time_range(request.range.as_ref())?;
    let indicators = indicators(&request.indicators)?;
    let adjustment = convert::adjustment("adjustment", request.adjustment)?;
    let query = |key| Query { indicators: Arc::clone(&indicators), adjustment, ..Query::raw(key, timeframe, range) };
    Ok(keys.into_iter().map(query).collect())
}

impl TryFrom<ListGapsRequest> for GapsQuery {
    type Error = FieldError;

    fn try_from(request: ListGapsRequest) -> Result<Self, FieldError> {
        Ok(GapsQuery {
            key: convert::instrument_key("instrument_key", &request.instrument_key)?,
            range: convert::time_range(request.range.as_ref())?,
            min_minutes: request.min_minutes,
            page_size: convert::page_size(request.page_size, DEFAULT_GAP_DATES)?,
            after: gaps_page(&request.page_token)?,
        })
    }
}

/// Where the page before ended: its last date, and the revision of its answer.
fn gaps_page(token: &str) -> Result<Option<(Date, u64)>, FieldError> {
    if token.is_empty() {
        return Ok(None);
    }
    let parts = token
        .split_once('.')
        .and_then(|(date, revision)| Some((market::parse_date(date).ok()?, revision.parse::<u64>().ok()?)));
    parts.map(Some).ok_or_else(|| FieldError::new("page_token", "is none that was given out"))
}

/// What [`gaps_page`] reads.
pub(crate) fn gaps_page_token(last: Date, revision: u64) -> String {
    format!("{}.{revision}", market::format_date(last))
}

fn indicators(texts: &[String]) -> Result<Arc<[Spec]>, FieldError> {
    if texts.len() > MAX_INDICATORS {
        let reason = format!("{} given; accepted: at most {MAX_INDICATORS}", texts.len());
        return Err(FieldError::new("indicators", reason));
    }
    let mut specs: Vec<Spec> = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let refuse = |reason: String| FieldError::new(format!("indicators[{index}]"), reason);
        let spec: Spec = text.parse().map_err(|error: kernels::Error| refuse(error.to_string()))?;
        if specs.iter().any(|other| other.label() == spec.label()) {
            return Err(refuse(format!("'{}' is asked for twice", spec.label())));
        }
        specs.push(spec);
    }
    Ok(specs.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(indicators: &[&str]) -> GetCandlesRequest {
        GetCandlesRequest {
            instrument_key: "us|SPY".into(),
            timeframe: "5minute".into(),
            indicators: indicators.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
    }

    fn refused(request: GetCandlesRequest) -> FieldError {
        Query::try_from(request).unwrap_err()
    }

    #[test]
    fn a_request_becomes_a_query() {
        let query = Query::try_from(request(&["sma:9", "MACD"])).unwrap();
        assert_eq!((query.key.as_str(), query.timeframe), ("US|SPY", Timeframe::M5));
        assert_eq!(query.columns(), ["sma:9", "macd.macd", "macd.signal", "macd.histogram"]);
        assert_eq!(query.range, TimeRange::ALL);
    }

    #[test]
    fn a_page_of_gaps_is_asked_for_by_its_token_only() {
        let token = gaps_page_token(market::parse_date("2016-08-02").unwrap(), 42);
        let request = ListGapsRequest { instrument_key: "us|SPY".into(), page_token: token, ..Default::default() };
        let query = GapsQuery::try_from(request.clone()).unwrap();
        assert_eq!((query.after.unwrap().1, query.page_size), (42, DEFAULT_GAP_DATES));
        for bad in ["2016-08-02", "2016-08-02.", "x.1", "2016-08-02.-1"] {
            let refused = GapsQuery::try_from(ListGapsRequest { page_token: bad.into(), ..request.clone() });
            assert_eq!(refused.unwrap_err().field, "page_token");
        }
    }

    #[test]
    fn every_refusal_names_its_field() {
        assert_eq!(refused(GetCandlesRequest { adjustment: 7, ..request(&[]) }).field, "adjustment");
        assert_eq!(refused(GetCandlesRequest { timeframe: String::new(), ..request(&[]) }).field, "timeframe");
        assert_eq!(refused(GetCandlesRequest { instrument_key: "x".into(), ..request(&[]) }).field, "instrument_key");
        assert_eq!(refused(request(&["sma:9", "sma:0"])).field, "indicators[1]");
        assert_eq!(refused(request(&["sma:9", " SMA:9"])).field, "indicators[1]");
        let many: Vec<String> = (1..=65).map(|period| format!("sma:{period}")).collect();
        assert_eq!(refused(GetCandlesRequest { indicators: many, ..request(&[]) }).field, "indicators");
        let multi = GetMultiCandlesRequest { instrument_key: "US|SPY".into(), ..Default::default() };
        assert_eq!(per_timeframe(multi.clone()).unwrap_err().field, "timeframes");
        for (second, text) in [("7m", "7m"), ("1minute", "'1m' is asked for twice")] {
            let bad = GetMultiCandlesRequest { timeframes: vec!["1m".into(), second.into()], ..multi.clone() };
            let refused = per_timeframe(bad).unwrap_err();
            assert_eq!(refused.field, "timeframes[1]");
            assert!(refused.to_string().contains(text), "{refused}");
        }
        let batch = BatchGetCandlesRequest { timeframe: "1m".into(), ..Default::default() };
        assert_eq!(per_instrument(batch).unwrap_err().field, "instrument_keys");
    }
}

//! Requests as domain queries: the one place where RPCs and tickets are parsed.

use std::sync::Arc;
use std::time::Duration;

use kernels::indicator::{D3_SET, Spec};
use market::{InstrumentKey, TimeRange, Timeframe};
use proto::convert::{self, FieldError};
use proto::indicator::{AuditIndicatorsRequest, BatchComputeIndicatorsRequest, ComputeIndicatorsRequest};
use proto::wire::IndicatorsTicket;

use crate::engine::Error;

/// Indicators of one request: far above any screen's use, and it bounds the columns of an answer to 320.
const MAX_SPECS: usize = 64;
/// Instruments of one batch: a whole exchange.
const MAX_KEYS: usize = 5000;

/// Indicators of one instrument.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) key: InstrumentKey,
    pub(crate) timeframe: Timeframe,
    pub(crate) range: TimeRange,
    /// At least one; labels are distinct, two labels may mean the same.
    pub(crate) specs: Arc<[Spec]>,
    /// Data revision to repeat; `None` for the current one.
    pub(crate) revision: Option<u64>,
}

impl Query {
    /// Names of the answer's columns, in order.
    pub(crate) fn columns(&self) -> Vec<String> {
        self.specs.iter().flat_map(Spec::columns).collect()
    }
}

impl TryFrom<ComputeIndicatorsRequest> for Query {
    type Error = Error;

    fn try_from(request: ComputeIndicatorsRequest) -> Result<Self, Error> {
        Ok(Query {
            key: convert::instrument_key("instrument_key", &request.instrument_key)?,
            timeframe: convert::timeframe("timeframe", &request.timeframe, None)?,
            range: convert::time_range(request.range.as_ref())?,
            specs: specs(&request.indicators)?,
            revision: request.revision,
        })
    }
}

impl TryFrom<AuditIndicatorsRequest> for Query {
    type Error = Error;

    fn try_from(request: AuditIndicatorsRequest) -> Result<Self, Error> {
        let AuditIndicatorsRequest { instrument_key, timeframe, range, indicators, revision } = request;
        ComputeIndicatorsRequest { instrument_key, timeframe, range, indicators, revision }.try_into()
    }
}

impl TryFrom<IndicatorsTicket> for Query {
    type Error = Error;

    fn try_from(ticket: IndicatorsTicket) -> Result<Self, Error> {
        let IndicatorsTicket { instrument_key, timeframe, range, indicators, revision } = ticket;
        ComputeIndicatorsRequest { instrument_key, timeframe, range, indicators, revision }.try_into()
    }
}

/// Indicators of many instruments.
#[derive(Debug)]
pub(crate) struct Batch {
    /// One per instrument; one named twice is answered once.
    pub(crate) queries: Vec<Query>,
    /// As asked; the service has limits of its own.
    pub(crate) max_concurrency: Option<usize>,
    pub(crate) item_timeout: Option<Duration>,
}

/// Parses a batch.
pub(crate) fn batch(request: &BatchComputeIndicatorsRequest) -> Result<Batch, Error> {
    let found = request.instrument_keys.len();
    if found > MAX_KEYS {
        let way = "split the batch";
        return Err(Error::Limit { what: "instruments of a batch", found, limit: MAX_KEYS, way });
    }
    let timeframe = convert::timeframe("timeframe", &request.timeframe, None)?;
    let range = convert::time_range(request.range.as_ref())?;
    let specs = specs(&request.indicators)?;
    let keys = convert::instrument_keys("instrument_keys", &request.instrument_keys, MAX_KEYS)?;
    let query = |key| Query { key, timeframe, range, specs: Arc::clone(&specs), revision: None };
    let refused = || FieldError::new("item_timeout", "is not a duration above zero");
    let item_timeout = match request.item_timeout {
        Some(asked) => Some(Duration::try_from(asked).ok().filter(|asked| !asked.is_zero()).ok_or_else(refused)?),
        None => None,
    };
    Ok(Batch {
        queries: keys.into_iter().map(query).collect(),
        max_concurrency: (request.max_concurrency > 0).then_some(request.max_concurrency as usize),
        item_timeout,
    })
}

/// Parses indicator texts; none takes the D3 set, a label given twice is kept once.
pub(crate) fn specs(texts: &[String]) -> Result<Arc<[Spec]>, Error> {
    if texts.len() > MAX_SPECS {
        let way = "ask in several requests";
        return Err(Error::Limit { what: "indicators of a request", found: texts.len(), limit: MAX_SPECS, way });
    }
    let texts: Vec<&str> = match texts {
        [] => D3_SET.to_vec(),
        texts => texts.iter().map(String::as_str).collect(),
    };
    let mut specs: Vec<Spec> = Vec::with_capacity(texts.len());
    for (index, text) in texts.into_iter().enumerate() {
        let spec: Spec = text.parse().map_err(|error| FieldError::new(format!("indicators[{index}]"), error))?;
        if specs.iter().all(|known| known.label() != spec.label()) {
            specs.push(spec);
        }
    }
    Ok(specs.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(texts: &[&str]) -> Result<Vec<String>, String> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        let specs = specs(&texts).map_err(|error| error.to_string())?;
        Ok(specs.iter().map(|spec| spec.label().to_owned()).collect())
    }

    #[test]
    fn nothing_asked_is_the_d3_set_and_labels_are_kept_once() {
        assert_eq!(labels(&[]).unwrap(), D3_SET);
        assert_eq!(labels(&["RSI", "sma:9", "rsi", "rsi:14"]).unwrap(), ["rsi", "sma:9", "rsi:14"]);
    }

    #[test]
    fn a_bad_indicator_is_named_by_its_place() {
        let refused = labels(&["sma:9", "nope:3"]).unwrap_err();
        assert!(refused.starts_with("indicators[1]: ") && refused.contains("nope"), "{refused}");
        let many = labels(&["sma:9"; 65]).unwrap_err();
        assert!(many.contains("65") && many.contains("64"), "{many}");
    }

    #[test]
    fn a_batch_over_the_limit_and_an_empty_one_are_refused() {
        let of = |count: usize| BatchComputeIndicatorsRequest {
            instrument_keys: (0..count).map(|index| format!("US|S{index}")).collect(),
            timeframe: "1m".into(),
            ..Default::default()
        };
        assert!(matches!(batch(&of(5001)), Err(Error::Limit { found: 5001, limit: 5000, .. })));
        assert!(matches!(batch(&of(0)), Err(Error::Field(_))));
        assert_eq!(batch(&of(5000)).unwrap().queries.len(), 5000);
    }
}

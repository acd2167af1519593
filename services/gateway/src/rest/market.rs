//! Quotes, intraday candles of many instruments, and master data.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, Uri};
use mesh::MAX_MESSAGE_BYTES;
use prost::Message;
use proto::aggregation::{BatchGetCandlesRequest, GetCandlesResponse, batch_get_candles_response};
use proto::indicator::ComputeIndicatorsRequest;
use proto::ingestion::{GetQuotesRequest, ListInstrumentsRequest, QuoteOutcome, quote_outcome};
use proto::{ingestion, wire};
use rollout::{Engine, Subject};

use super::body::{
    Candle, Instrument, InstrumentsAnswer, IntradayAnswer, IntradayQuote, IntradayRequest, ItemReason, LastValues,
    Quote, QuotesAnswer, QuotesRequest,
};
use super::call::{self, Call};
use super::candles::{adjustment_of, pairs, parse_value, unknown};
use super::problem::Problem;
use super::{Shared, time_range, time_text};
use crate::method::{Access, Role};
use crate::proxy;

/// Indicator calls in flight for one request for quotes.
const CONCURRENT_INDICATORS: usize = 8;
/// How far before a quote the last daily candle is looked for: no session is longer, and no more needs to travel.
const LAST_CANDLE_SECONDS: i64 = 3 * 24 * 3600;

/// `POST /api/v1/market/quotes`
pub(super) async fn quotes(
    State(gateway): Shared,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    gateway.admit(&headers, Access::Reader, "reading quotes")?;
    let QuotesRequest { instrument_keys, indicators } = call::json(&gateway, body)?;
    let first = instrument_keys.first().map(String::as_str);
    let call = Call::admit(Arc::clone(&gateway), &headers, Access::Reader, "reading quotes", first)?;
    let mut client = call.ingestion()?;
    let response = call.run(Role::Ingestion, client.get_quotes(GetQuotesRequest { instrument_keys })).await?;
    let mut answer = QuotesAnswer { quotes: Vec::new(), errors: Vec::new() };
    let mut engine = None;
    let outcomes = response.into_inner().outcomes;
    let quoted = futures::stream::iter(outcomes).map(|outcome| quoted(&call, outcome, indicators.as_deref()));
    let mut quoted = std::pin::pin!(quoted.buffered(CONCURRENT_INDICATORS));
    while let Some((item, answered)) = quoted.try_next().await? {
        engine = engine.or(answered);
        match item {
            Ok(quote) => answer.quotes.push(quote),
            Err(error) => answer.errors.push(error),
        }
    }
    let rows = answer.quotes.len();
    call.render(engine, rows, move || answer).await
}

type Item<T> = Result<T, ItemReason>;

/// A quote with the indicators asked for; what fails for one instrument is that item's error, an upstream away is everyone's.
async fn quoted(
    call: &Call,
    outcome: QuoteOutcome,
    indicators: Option<&[String]>,
) -> Result<(Item<Quote>, Option<Engine>), Problem> {
    let QuoteOutcome { instrument_key, outcome } = outcome;
    let quote = match outcome {
        Some(quote_outcome::Outcome::Quote(quote)) => quote,
        Some(quote_outcome::Outcome::Error(error)) => return Ok((Err(reason(instrument_key, Some(error))), None)),
        None => return Ok((Err(reason(instrument_key, None)), None)),
    };
    let Some(indicators) = indicators else { return Ok((Ok(render(instrument_key, quote, None)), None)) };
    let at = quote.time.as_ref().map_or(0, |time| time.seconds);
    let start_time = Some(prost_types::Timestamp { seconds: at - LAST_CANDLE_SECONDS, nanos: 0 });
    let request = ComputeIndicatorsRequest {
        instrument_key: instrument_key.clone(),
        timeframe: "1d".to_owned(),
        range: Some(wire::TimeRange { start_time, end_time: None }),
        indicators: indicators.to_vec(),
        revision: None,
    };
    let mut client = call.indicator()?;
    // A bad spec is bad for every instrument: the request is refused, as everywhere else.
    let response = match call.run(Role::Indicator, client.compute_indicators(request)).await {
        Err(problem) if problem.is_not_found() => {
            return Ok((Err(ItemReason { instrument_key, reason: problem.detail().to_owned() }), None));
        }
        outcome => outcome?,
    };
    let engine = call.answered(Subject::Indicator, response.metadata());
    let columns = LastValues(response.into_inner().columns);
    Ok((Ok(render(instrument_key, quote, Some(columns))), Some(engine)))
}

fn reason(instrument_key: String, error: Option<wire::ItemError>) -> ItemReason {
    let reason = error.map_or_else(|| "no outcome".to_owned(), |error| error.message);
    ItemReason { instrument_key, reason }
}

fn render(instrument_key: String, quote: ingestion::Quote, indicators: Option<LastValues>) -> Quote {
    Quote {
        instrument_key,
        last_price: quote.last_price,
        open: quote.open,
        high: quote.high,
        low: quote.low,
        close: quote.close,
        volume: quote.volume,
        previous_close: quote.previous_close,
        change: quote.change,
        change_percent: quote.change_percent,
        time: time_text(quote.time.as_ref()),
        indicators,
    }
}

/// `POST /api/v1/market/intraday-quotes`
pub(super) async fn intraday(
    State(gateway): Shared,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    gateway.admit(&headers, Access::Reader, "reading candles")?;
    let IntradayRequest { instrument_keys, timeframe, start, end, adjustment } = call::json(&gateway, body)?;
    let range = Some(time_range(start.as_deref(), end.as_deref())?);
    let first = instrument_keys.first().map(String::as_str);
    let call = Call::admit(Arc::clone(&gateway), &headers, Access::Reader, "reading candles", first)?;
    let asked = instrument_keys.clone();
    let adjustment = adjustment_of(adjustment.as_deref())?;
    let request = BatchGetCandlesRequest { instrument_keys, timeframe, range, indicators: Vec::new(), adjustment };
    let mut client = call.aggregation()?;
    let response = call.run(Role::Aggregation, client.batch_get_candles(request)).await?;
    let engine = call.answered(Subject::Aggregation, response.metadata());
    let (found, errors) = collected(&call, response.into_inner()).await?;
    let rows = found.values().map(|answer| answer.candles.len()).sum();
    call.render(Some(engine), rows, move || in_order(&asked, found, errors)).await
}

type Found = HashMap<String, GetCandlesResponse>;

/// Gathers a batch, up to the size of one message: a REST answer is held in memory as a whole.
async fn collected(
    call: &Call,
    mut stream: tonic::Streaming<proto::aggregation::BatchGetCandlesResponse>,
) -> Result<(Found, Vec<ItemReason>), Problem> {
    let upstream = call.upstream(Role::Aggregation)?;
    let (mut found, mut errors, mut size_bytes) = (HashMap::new(), Vec::new(), 0);
    while let Some(item) = stream.message().await.map_err(|status| Problem::upstream(upstream, &status))? {
        size_bytes += item.encoded_len();
        if size_bytes > MAX_MESSAGE_BYTES {
            return Err(Problem::from(proxy::Error::AnswerTooLarge));
        }
        match item.outcome {
            Some(batch_get_candles_response::Outcome::Answer(answer)) => {
                found.insert(item.instrument_key, answer);
            }
            Some(batch_get_candles_response::Outcome::Error(error)) => {
                errors.push(reason(item.instrument_key, Some(error)));
            }
            None => errors.push(reason(item.instrument_key, None)),
        }
    }
    Ok((found, errors))
}

/// A batch comes back in the order of completion; the answer is in the order asked.
fn in_order(asked: &[String], mut found: Found, mut errors: Vec<ItemReason>) -> IntradayAnswer {
    let mut quotes = Vec::with_capacity(found.len());
    for key in asked {
        if let Some(answer) = found.remove(&crate::method::normalised(key)) {
            let candles = Candle::list(answer.candles, &answer.timeframe);
            quotes.push(IntradayQuote { instrument_key: answer.instrument_key, candles });
        }
    }
    errors.sort_by(|a, b| a.instrument_key.cmp(&b.instrument_key));
    IntradayAnswer { quotes, errors }
}

/// `GET /api/v1/instruments`
pub(super) async fn instruments(State(gateway): Shared, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    let call = Call::admit(gateway, &headers, Access::Reader, "reading master data", None)?;
    let mut request = ListInstrumentsRequest::default();
    for (name, value) in pairs(&uri)? {
        match name.as_str() {
            "page_size" => request.page_size = parse_value(&name, &value, "1 to 1000")?,
            "page_token" => request.page_token = value,
            "segment" => request.segment = value,
            _ => return Err(unknown(&name, "page_size, page_token, segment")),
        }
    }
    let mut client = call.ingestion()?;
    let answer = call.run(Role::Ingestion, client.list_instruments(request)).await?.into_inner();
    let rows = answer.instruments.len();
    let make = move || InstrumentsAnswer {
        instruments: answer.instruments.into_iter().map(instrument).collect(),
        next_page_token: answer.next_page_token,
    };
    call.render(None, rows, make).await
}

fn instrument(message: wire::Instrument) -> Instrument {
    Instrument {
        instrument_key: message.instrument_key,
        name: message.name,
        exchange: message.exchange,
        currency: message.currency,
        tick_size: message.tick_size,
        calendar: message.calendar,
    }
}

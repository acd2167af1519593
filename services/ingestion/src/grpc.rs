//! The gRPC surface: parse, one call into the engine, render. Candles come in by `grpc/put.rs` and `grpc/stream.rs`;
//! `grpc/changes.rs` streams what became durable.

mod actions;
mod backfill;
mod changes;
mod put;
mod stream;

pub(crate) use backfill::BackfillCalls;
pub(crate) use changes::Changes;

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use market::{Calendar, Instrument, InstrumentKey};
use mesh::{Drain, RemoteError, to_status};
use proto::convert::{self, FieldError};
use proto::ingestion as pb;
use proto::ingestion::ingestion_service_server::IngestionService;
use proto::ingestion::quote_outcome::Outcome as QuoteAnswer;
use proto::wire;
use tonic::{Request, Response, Status, Streaming};

use crate::engine::{Engine, Error, Quote, exchange_of};

/// Instruments per page where the request does not say.
const DEFAULT_PAGE_SIZE: usize = 100;
/// Keys of one GetRevisions.
const MAX_REVISION_KEYS: usize = 10_000;
/// Keys of one GetQuotes.
const MAX_QUOTE_KEYS: usize = 1000;
/// Keys of one group.
const MAX_GROUP_KEYS: usize = 10_000;
const MAX_GROUP_ID_BYTES: usize = 64;
/// Longest name, exchange or currency: far beyond any real one, small in a listing of thousands.
const MAX_TEXT_BYTES: usize = 256;

/// Implements `IngestionService`.
#[derive(Debug)]
pub(crate) struct Service {
    engine: Arc<Engine>,
    drain: Drain,
}

impl Service {
    pub(crate) fn new(engine: Arc<Engine>, drain: Drain) -> Self {
        Self { engine, drain }
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn refuse(error: impl Into<Error>) -> Status {
    to_status(&error.into())
}

#[tonic::async_trait]
impl IngestionService for Service {
    type StreamCandlesStream = BoxStream<'static, Result<pb::StreamCandlesResponse, Status>>;

    async fn put_candles(&self, request: Request<pb::PutCandlesRequest>) -> Answer<pb::PutCandlesResponse> {
        let outcome = put::put(&self.engine, request.into_inner().batch).await?;
        Ok(Response::new(pb::PutCandlesResponse { outcome: Some(outcome) }))
    }

    async fn stream_candles(
        &self,
        request: Request<Streaming<pb::StreamCandlesRequest>>,
    ) -> Answer<Self::StreamCandlesStream> {
        let acknowledged = stream::acknowledged(request.into_inner(), Arc::clone(&self.engine), self.drain.clone());
        Ok(Response::new(acknowledged.boxed()))
    }

    async fn put_candle_batches(
        &self,
        request: Request<pb::PutCandleBatchesRequest>,
    ) -> Answer<pb::PutCandleBatchesResponse> {
        Ok(Response::new(put::put_all(&self.engine, request.into_inner().batches).await?))
    }

    async fn put_corporate_actions(
        &self,
        request: Request<pb::PutCorporateActionsRequest>,
    ) -> Answer<pb::PutCorporateActionsResponse> {
        actions::put(&self.engine, request.into_inner()).await.map(Response::new).map_err(refuse)
    }

    async fn list_corporate_actions(
        &self,
        request: Request<pb::ListCorporateActionsRequest>,
    ) -> Answer<pb::ListCorporateActionsResponse> {
        actions::list(&self.engine, request.into_inner()).await.map(Response::new).map_err(refuse)
    }

    async fn delete_corporate_action(
        &self,
        request: Request<pb::DeleteCorporateActionRequest>,
    ) -> Answer<pb::DeleteCorporateActionResponse> {
        actions::delete(&self.engine, request.into_inner()).await.map(Response::new).map_err(refuse)
    }

    async fn put_instrument(&self, request: Request<pb::PutInstrumentRequest>) -> Answer<pb::PutInstrumentResponse> {
        let instrument = instrument(request.into_inner().instrument).map_err(refuse)?;
        let instrument = self.engine.put_instrument(instrument).await.map_err(refuse)?;
        Ok(Response::new(pb::PutInstrumentResponse { instrument: Some(convert::wire_instrument(&instrument)) }))
    }

    async fn get_instrument(&self, request: Request<pb::GetInstrumentRequest>) -> Answer<pb::GetInstrumentResponse> {
        let key = convert::instrument_key("instrument_key", &request.get_ref().instrument_key).map_err(refuse)?;
        let instrument = self.engine.instrument(&key).await.map_err(refuse)?;
        Ok(Response::new(pb::GetInstrumentResponse { instrument: Some(convert::wire_instrument(&instrument)) }))
    }

    async fn list_instruments(
        &self,
        request: Request<pb::ListInstrumentsRequest>,
    ) -> Answer<pb::ListInstrumentsResponse> {
        let request = request.into_inner();
        let page_size = convert::page_size(request.page_size, DEFAULT_PAGE_SIZE).map_err(refuse)?;
        let after = page_token(&request.page_token).map_err(refuse)?;
        let segment = request.segment.trim().to_ascii_uppercase();
        let segment = (!segment.is_empty()).then_some(segment.as_str());
        let (page, has_more) = self.engine.instruments(after.as_ref(), page_size, segment).await.map_err(refuse)?;
        let next = page.last().filter(|_| has_more);
        let next_page_token = next.map(|instrument| instrument.key.to_string()).unwrap_or_default();
        let instruments = page.iter().map(convert::wire_instrument).collect();
        Ok(Response::new(pb::ListInstrumentsResponse { instruments, next_page_token }))
    }

    async fn put_group(&self, request: Request<pb::PutGroupRequest>) -> Answer<pb::PutGroupResponse> {
        let group = group(request.into_inner().group).map_err(refuse)?;
        let group = self.engine.put_group(group).await.map_err(refuse)?;
        Ok(Response::new(pb::PutGroupResponse { group: Some(wire_group(group)) }))
    }

    async fn get_group(&self, request: Request<pb::GetGroupRequest>) -> Answer<pb::GetGroupResponse> {
        let id = group_id("group_id", request.into_inner().group_id).map_err(refuse)?;
        let group = self.engine.group(&id).await.map_err(refuse)?;
        Ok(Response::new(pb::GetGroupResponse { group: Some(wire_group(group)) }))
    }

    async fn list_groups(&self, _request: Request<pb::ListGroupsRequest>) -> Answer<pb::ListGroupsResponse> {
        let groups = self.engine.groups().await.map_err(refuse)?;
        Ok(Response::new(pb::ListGroupsResponse { groups: groups.into_iter().map(wire_group).collect() }))
    }

    async fn delete_group(&self, request: Request<pb::DeleteGroupRequest>) -> Answer<pb::DeleteGroupResponse> {
        let id = group_id("group_id", request.into_inner().group_id).map_err(refuse)?;
        self.engine.delete_group(&id).await.map_err(refuse)?;
        Ok(Response::new(pb::DeleteGroupResponse {}))
    }

    async fn get_coverage(&self, request: Request<pb::GetCoverageRequest>) -> Answer<pb::GetCoverageResponse> {
        let key = convert::instrument_key("instrument_key", &request.get_ref().instrument_key).map_err(refuse)?;
        let (coverage, revision) = self.engine.coverage(&key).await.map_err(refuse)?;
        Ok(Response::new(pb::GetCoverageResponse { coverage: coverage.iter().map(wire_coverage).collect(), revision }))
    }

    async fn get_first_change(
        &self,
        request: Request<pb::GetFirstChangeRequest>,
    ) -> Answer<pb::GetFirstChangeResponse> {
        let pb::GetFirstChangeRequest { instrument_key, after_revision, revision } = request.into_inner();
        let key = convert::instrument_key("instrument_key", &instrument_key).map_err(refuse)?;
        let first = self.engine.first_change(&key, after_revision, revision).await.map_err(refuse)?;
        Ok(Response::new(pb::GetFirstChangeResponse { first_open_time: first.map(convert::timestamp) }))
    }

    async fn get_revisions(&self, request: Request<pb::GetRevisionsRequest>) -> Answer<pb::GetRevisionsResponse> {
        let keys = aligned_keys(&request.get_ref().instrument_keys, MAX_REVISION_KEYS).map_err(refuse)?;
        let keys = keys.into_iter().collect::<Result<Vec<_>, _>>().map_err(refuse)?;
        let revisions = self.engine.revisions(&keys).await.map_err(refuse)?;
        let store_id = self.engine.store_id().await.map_err(refuse)?;
        Ok(Response::new(pb::GetRevisionsResponse { revisions, store_id }))
    }

    async fn get_quotes(&self, request: Request<pb::GetQuotesRequest>) -> Answer<pb::GetQuotesResponse> {
        let texts = request.into_inner().instrument_keys;
        let keys = aligned_keys(&texts, MAX_QUOTE_KEYS).map_err(refuse)?;
        let quotes = self.engine.quotes(keys).await.map_err(refuse)?;
        let outcomes = texts.into_iter().zip(quotes).map(|(key, quote)| wire_quote(key, quote)).collect();
        Ok(Response::new(pb::GetQuotesResponse { outcomes }))
    }
}

fn instrument(message: Option<wire::Instrument>) -> Result<Instrument, Error> {
    let message = message.ok_or_else(|| FieldError::new("instrument", "is missing"))?;
    let key = convert::instrument_key("instrument.instrument_key", &message.instrument_key)?;
    let calendar = match message.calendar.as_str() {
        "" => Calendar::for_key(&key),
        name => Calendar::by_name(name),
    };
    let calendar = calendar.map_err(|error| FieldError::new("instrument.calendar", error))?;
    if !(message.tick_size.is_finite() && message.tick_size >= 0.0) {
        let reason = format!("{} given; accepted: a finite number from 0 on", message.tick_size);
        return Err(FieldError::new("instrument.tick_size", reason).into());
    }
    let exchange = match text("instrument.exchange", message.exchange)? {
        exchange if exchange.is_empty() => exchange_of(&key).to_owned(),
        exchange => exchange,
    };
    Ok(Instrument {
        name: text("instrument.name", message.name)?,
        exchange,
        currency: text("instrument.currency", message.currency)?,
        tick_size: message.tick_size,
        calendar: calendar.name().to_owned(),
        key,
    })
}

fn text(field: &str, value: String) -> Result<String, FieldError> {
    if value.len() > MAX_TEXT_BYTES {
        return Err(FieldError::new(field, format!("{} bytes given; accepted: up to {MAX_TEXT_BYTES}", value.len())));
    }
    if value.chars().any(char::is_control) {
        return Err(FieldError::new(field, "holds a control character"));
    }
    Ok(value.trim().to_owned())
}

/// Where the page before ended.
fn page_token(token: &str) -> Result<Option<InstrumentKey>, FieldError> {
    match token {
        "" => Ok(None),
        token => token.parse().map(Some).map_err(|_| FieldError::new("page_token", "is none that was given out")),
    }
}

/// Keys in the order of the request, duplicates kept, each parsed on its own.
fn aligned_keys(texts: &[String], limit: usize) -> Result<Vec<Result<InstrumentKey, FieldError>>, Error> {
    if texts.len() > limit {
        return Err(Error::Limit { field: "instrument_keys", given: texts.len(), limit });
    }
    let keys = texts.iter().enumerate();
    Ok(keys.map(|(index, text)| convert::instrument_key(&format!("instrument_keys[{index}]"), text)).collect())
}

fn group_id(field: &str, id: String) -> Result<String, FieldError> {
    let fits = (1..=MAX_GROUP_ID_BYTES).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
    if fits {
        return Ok(id);
    }
    let shown: String = id.chars().take(MAX_GROUP_ID_BYTES).collect();
    Err(FieldError::new(field, format!("'{shown}' given; accepted: 1 to 64 characters of [a-z0-9_-]")))
}

fn group(message: Option<pb::Group>) -> Result<store::Group, Error> {
    let message = message.ok_or_else(|| FieldError::new("group", "is missing"))?;
    let given = message.instrument_keys.len();
    if given > MAX_GROUP_KEYS {
        return Err(Error::Limit { field: "group.instrument_keys", given, limit: MAX_GROUP_KEYS });
    }
    let instrument_keys = match given {
        0 => Vec::new(),
        _ => convert::instrument_keys("group.instrument_keys", &message.instrument_keys, MAX_GROUP_KEYS)?,
    };
    let id = group_id("group.group_id", message.group_id)?;
    Ok(store::Group { id, name: text("group.name", message.name)?, instrument_keys })
}

fn wire_group(group: store::Group) -> pb::Group {
    let instrument_keys = group.instrument_keys.iter().map(ToString::to_string).collect();
    pb::Group { group_id: group.id, name: group.name, instrument_keys }
}

fn wire_coverage(coverage: &store::Coverage) -> pb::Coverage {
    pb::Coverage {
        timeframe: coverage.timeframe.to_string(),
        first_open_time: Some(convert::timestamp(coverage.first_open_time)),
        last_open_time: Some(convert::timestamp(coverage.last_open_time)),
        candle_count: coverage.candle_count,
        date_count: coverage.date_count,
    }
}

fn wire_quote(instrument_key: String, quote: Result<Quote, Error>) -> pb::QuoteOutcome {
    let outcome = match quote {
        Ok(quote) => QuoteAnswer::Quote(pb::Quote {
            last_price: quote.last_price(),
            open: quote.day.open,
            high: quote.day.high,
            low: quote.day.low,
            close: quote.day.close,
            volume: quote.day.volume,
            previous_close: quote.previous_close,
            change: quote.change(),
            change_percent: quote.change_percent(),
            time: Some(convert::timestamp(quote.time)),
            trading_date: market::format_date(quote.trading_date),
        }),
        Err(error) => {
            // By way of the status, so that an internal fault shows no more here than it would alone.
            let error = RemoteError::from_status(&to_status(&error));
            let (code, reason, message) = (error.code as i32, error.reason, error.message);
            QuoteAnswer::Error(wire::ItemError { code, reason, message })
        }
    };
    pb::QuoteOutcome { instrument_key, outcome: Some(outcome) }
}

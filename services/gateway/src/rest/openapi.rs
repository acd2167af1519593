//! The OpenAPI 3.1 document: the named endpoints from the shapes of their bodies, the RPCs from their descriptors.

mod rpc;

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::{body, problem};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "candlemesh",
        description = "Candles, indicators, sequences, screens and studies. The same answers as over gRPC and Arrow Flight on the same address."
    ),
    components(schemas(
        problem::ProblemBody,
        body::CandlesAnswer,
        body::MultiRequest,
        body::MultiAnswer,
        super::gaps::GapsAnswer,
        body::IndicatorsRequest,
        body::IndicatorsAnswer,
        body::ScreenRequest,
        body::ScreenAnswer,
        body::TopAnswer,
        body::ExecuteRequest,
        body::ExecuteAnswer,
        body::QuotesRequest,
        body::QuotesAnswer,
        body::IntradayRequest,
        body::IntradayAnswer,
        body::StoreRequest,
        body::StoreAnswer,
        body::InstrumentsAnswer,
        super::stream::CandleEventData,
        super::stream::IndicatorEventData,
    ))
)]
struct Shapes;

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(build().to_string()));

/// `GET /openapi.json`
pub(super) async fn document() -> Response {
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], DOCUMENT.clone()).into_response()
}

fn build() -> Value {
    let mut document = serde_json::to_value(Shapes::openapi()).unwrap_or_default();
    document["servers"] = json!([{"url": "/"}]);
    document["security"] = json!([{}, {"key": []}]);
    document["components"]["securitySchemes"] = json!({"key": {
        "type": "http",
        "scheme": "bearer",
        "description": "API key; also accepted in x-api-key. Not needed where the gateway answers anonymous callers.",
    }});
    let mut paths = Map::new();
    for endpoint in ENDPOINTS {
        paths.entry(endpoint.path).or_insert_with(|| json!({}))[endpoint.method] = endpoint.operation();
    }
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        rpc::add(&mut paths, schemas);
    }
    document["paths"] = Value::Object(paths);
    document
}

/// An endpoint with a shape of its own.
struct Endpoint {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    query: &'static [(&'static str, &'static str)],
    request: Option<&'static str>,
    answer: Option<&'static str>,
    /// Media types beside JSON: of the request where there is one that takes them, else of the answer.
    also: &'static [&'static str],
}

const RANGE_START: (&str, &str) = ("start", "RFC 3339; absent: as far back as data exists");
const RANGE_END: (&str, &str) = ("end", "RFC 3339, exclusive; absent: as far as data exists");

const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        method: "get",
        path: "/api/v1/candles/{instrument_key}/{timeframe}",
        summary: "Candles of one timeframe",
        query: &[
            RANGE_START,
            RANGE_END,
            ("indicators", "Indicator columns to add; comma-separated or repeated, at most 64"),
            ("gap_fill", "true: fill gaps of the session with candles of source_count 0"),
            ("as_of", "Data revision to repeat; absent: the current one"),
            ("adjustment", "raw, splits or splits_and_dividends; absent: raw, as stored"),
        ],
        request: None,
        answer: Some("CandlesAnswer"),
        also: &[super::arrow::MEDIA_TYPE],
    },
    Endpoint {
        method: "post",
        path: "/api/v1/candles/{instrument_key}/multi",
        summary: "Candles of several timeframes at one data revision",
        query: &[],
        request: Some("MultiRequest"),
        answer: Some("MultiAnswer"),
        also: &[],
    },
    Endpoint {
        method: "get",
        path: "/api/v1/candles/{instrument_key}/gaps",
        summary: "Missing session minutes by trading date",
        query: &[
            ("start", "RFC 3339; absent: the first stored minute"),
            ("end", "RFC 3339, exclusive; absent: the last stored minute"),
            ("min_minutes", "Gaps of fewer minutes are counted and not listed; default 1"),
            ("page_size", "1 to 1000 trading dates, default 100"),
            ("page_token", "From the previous page"),
        ],
        request: None,
        answer: Some("GapsAnswer"),
        also: &[],
    },
    Endpoint {
        method: "get",
        path: "/api/v1/stream/candles",
        summary: "Candles as they form, close and are corrected, as server-sent events: snapshot, update, close, correction (data: \
                  CandleEventData), heartbeat, and at last error (data: Problem). An event's id is a cursor; Last-Event-ID resumes.",
        query: &[
            ("instrument_keys", "Comma-separated or repeated, at most 10000; absent: all instruments"),
            ("timeframes", "Comma-separated or repeated, 1 to 13 of them"),
            ("cursor", "Id of the last event received; absent: from now on"),
            ("closed_only", "true: only closes, and corrections of closed candles"),
            ("snapshot", "true: begin with the newest candle of each named instrument and timeframe"),
        ],
        request: None,
        answer: Some("CandleEventData"),
        also: &["text/event-stream"],
    },
    Endpoint {
        method: "get",
        path: "/api/v1/stream/indicators",
        summary: "Indicators as their candles form, close and are corrected, as server-sent events: snapshot, update, close, correction \
                  (data: IndicatorEventData), failure (a series that cannot be computed), heartbeat, and at last error (data: \
                  Problem). An event's id is a cursor; Last-Event-ID resumes.",
        query: &[
            ("instrument_keys", "Comma-separated or repeated, 1 to 10000 of them"),
            ("timeframes", "Comma-separated or repeated, 1 to 13 of them"),
            ("indicators", "Comma-separated or repeated, at most 64; absent: the default set"),
            ("cursor", "Id of the last event received; absent: from now on, beginning with a snapshot"),
            ("include_forming", "true: also values at candles whose close has not been said"),
        ],
        request: None,
        answer: Some("IndicatorEventData"),
        also: &["text/event-stream"],
    },
    Endpoint {
        method: "post",
        path: "/api/v1/indicators/{instrument_key}/{timeframe}",
        summary: "Indicator columns",
        query: &[],
        request: Some("IndicatorsRequest"),
        answer: Some("IndicatorsAnswer"),
        also: &[super::arrow::MEDIA_TYPE],
    },
    Endpoint {
        method: "post",
        path: "/api/v1/filter-pipeline/run",
        summary: "Run the filter pipeline as of a date",
        query: &[],
        request: Some("ScreenRequest"),
        answer: Some("ScreenAnswer"),
        also: &[],
    },
    Endpoint {
        method: "get",
        path: "/api/v1/filter-pipeline/fetch/top-10",
        summary: "The ten best rows of the filter pipeline",
        query: &[("date", "YYYY-MM-DD; absent: the latest date with data")],
        request: None,
        answer: Some("TopAnswer"),
        also: &[],
    },
    Endpoint {
        method: "post",
        path: "/api/v1/groups/{id}/execute",
        summary: "Screen a group and store trade intents; no broker is called",
        query: &[],
        request: Some("ExecuteRequest"),
        answer: Some("ExecuteAnswer"),
        also: &[],
    },
    Endpoint {
        method: "post",
        path: "/api/v1/market/quotes",
        summary: "Quotes, with last indicator values on request",
        query: &[],
        request: Some("QuotesRequest"),
        answer: Some("QuotesAnswer"),
        also: &[],
    },
    Endpoint {
        method: "post",
        path: "/api/v1/market/intraday-quotes",
        summary: "Candles of many instruments",
        query: &[],
        request: Some("IntradayRequest"),
        answer: Some("IntradayAnswer"),
        also: &[],
    },
    Endpoint {
        method: "post",
        path: "/api/v1/historical-data/batch-store",
        summary: "Store candles; upsert by open time, durable when answered",
        query: &[
            ("instrument_key", "Whose rows they are; with bodies other than JSON"),
            ("timeframe", "Their source timeframe, default 1m; with bodies other than JSON"),
            ("calendar", "Calendar of an instrument not seen before; with bodies other than JSON"),
        ],
        request: Some("StoreRequest"),
        answer: Some("StoreAnswer"),
        also: &["application/x-ndjson", "text/csv", super::arrow::MEDIA_TYPE, "application/vnd.apache.parquet"],
    },
    Endpoint {
        method: "get",
        path: "/api/v1/instruments",
        summary: "Master data, ordered by key",
        query: &[
            ("page_size", "1 to 1000, default 100"),
            ("page_token", "From the previous page"),
            ("segment", "Only keys of this segment, for example NSE_EQ"),
        ],
        request: None,
        answer: Some("InstrumentsAnswer"),
        also: &[],
    },
    Endpoint {
        method: "get",
        path: "/healthz",
        summary: "The process is alive",
        query: &[],
        request: None,
        answer: None,
        also: &[],
    },
    Endpoint {
        method: "get",
        path: "/readyz",
        summary: "Every upstream serves; 503 names those that do not",
        query: &[],
        request: None,
        answer: None,
        also: &[],
    },
];

impl Endpoint {
    fn operation(&self) -> Value {
        let mut parameters: Vec<Value> = path_parameters(self.path).map(path_parameter).collect();
        parameters.extend(self.query.iter().map(
            |(name, text)| json!({"name": name, "in": "query", "description": text, "schema": {"type": "string"}}),
        ));
        parameters.push(engine_parameter());
        let answer = self.answer.map_or(json!({"type": "object"}), reference);
        let bulk_request = self.path.ends_with("batch-store");
        let answer_kinds = if bulk_request { &[] } else { self.also };
        let mut operation = json!({
            "summary": self.summary,
            "parameters": parameters,
            "responses": responses(&content(answer, answer_kinds)),
        });
        if let Some(request) = self.request {
            let request_kinds = if bulk_request { self.also } else { &[] };
            operation["requestBody"] = json!({"required": true, "content": content(reference(request), request_kinds)});
        }
        operation
    }
}

fn path_parameters(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn path_parameter(name: &str) -> Value {
    let text = match name {
        "instrument_key" => "EXCHANGE_SEGMENT|CODE, percent-encoded: NSE_EQ%7CINE002A01018",
        "timeframe" => "1m 2m 3m 5m 10m 15m 30m 1h 2h 4h 1d 1w 1mo; 5minute and day are accepted spellings",
        _ => "Id",
    };
    json!({"name": name, "in": "path", "required": true, "description": text, "schema": {"type": "string"}})
}

fn engine_parameter() -> Value {
    json!({
        "name": mesh::ENGINE_HEADER,
        "in": "header",
        "description": "Forces an engine; admins only. The response header of this name says which one answered.",
        "schema": {"type": "string", "enum": ["v1", "v2"]},
    })
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn content(schema: Value, also: &[&str]) -> Value {
    let mut content = json!({"application/json": {"schema": schema}});
    for kind in also {
        content[*kind] = json!({"schema": {"type": "string"}});
    }
    content
}

fn responses(content: &Value) -> Value {
    json!({
        "200": {"description": "OK", "content": content},
        "default": {
            "description": "RFC 9457 problem",
            "content": {"application/problem+json": {"schema": reference("Problem")}},
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::method::Method;

    fn references(value: &Value, into: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| match (key.as_str(), value) {
                ("$ref", Value::String(target)) => drop(into.insert(target.clone())),
                _ => references(value, into),
            }),
            Value::Array(items) => items.iter().for_each(|item| references(item, into)),
            _ => {}
        }
    }

    #[test]
    fn every_rpc_is_described_and_every_reference_resolves() {
        let document = build();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
        for method in Method::all() {
            let operation = &document["paths"][format!("/api/v1/rpc{}", method.path())]["post"];
            assert!(
                operation["description"].as_str().is_some() || operation["summary"].as_str().is_some(),
                "{}",
                method.path()
            );
        }
        assert!(Method::all().len() > 30, "{}", Method::all().len());
        let mut targets = BTreeSet::new();
        references(&document, &mut targets);
        for target in targets {
            assert!(document.pointer(&target[1..]).is_some(), "{target}");
        }
        let candle = &document["components"]["schemas"]["candlemesh.market.v1.BucketCandle"];
        assert!(candle["properties"]["source_count"]["description"].as_str().unwrap().contains("Minutes"));
    }
}

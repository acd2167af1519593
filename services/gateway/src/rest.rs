//! REST: plain JSON over HTTP for what gRPC offers, one endpoint per RPC and the eight shapes that older clients know.

mod arrow;
mod body;
mod bulk;
mod call;
mod candles;
mod gaps;
mod indicators;
mod market;
mod openapi;
mod problem;
mod rpc;
mod screen;
mod status;
mod store;
mod stream;

use std::sync::Arc;

use ::market::Millis;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{StatusCode, header};
use proto::convert::FieldError;
use proto::wire;

use crate::gateway::Gateway;
use crate::proxy;
use problem::Problem;

type Shared = State<Arc<Gateway>>;
/// A path whose percent-encoding may be broken.
type PathOf<T> = Result<axum::extract::Path<T>, axum::extract::rejection::PathRejection>;

/// Every REST route, and behind them the proxy.
pub(crate) fn router(gateway: Arc<Gateway>) -> Router {
    let limit = DefaultBodyLimit::max(gateway.body_limit_bytes);
    let api = Router::new()
        .route("/api/v1/candles/{key}/{timeframe}", get(candles::one))
        .route("/api/v1/candles/{key}/multi", post(candles::multi))
        .route("/api/v1/candles/{key}/gaps", get(gaps::list))
        .route("/api/v1/stream/candles", get(stream::candles))
        .route("/api/v1/stream/indicators", get(stream::indicators))
        .route("/api/v1/indicators/{key}/{timeframe}", post(indicators::compute))
        .route("/api/v1/filter-pipeline/run", post(screen::run))
        .route("/api/v1/filter-pipeline/fetch/top-10", get(screen::top))
        .route("/api/v1/groups/{id}/execute", post(screen::execute))
        .route("/api/v1/market/quotes", post(market::quotes))
        .route("/api/v1/market/intraday-quotes", post(market::intraday))
        .route("/api/v1/historical-data/batch-store", post(store::batch_store))
        .route("/api/v1/instruments", get(market::instruments))
        .route("/api/v1/rpc/{service}/{method}", post(rpc::call))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&gateway), known_callers));
    api.route("/openapi.json", get(openapi::document))
        .route("/healthz", get(status::alive))
        .route("/readyz", get(status::ready))
        .method_not_allowed_fallback(wrong_method)
        .fallback(elsewhere)
        .layer(limit)
        .with_state(gateway)
}

/// Turns strangers away before their bodies are read, and web pages of other sites, which would act as whoever looks at
/// them.
async fn known_callers(State(gateway): Shared, request: Request, next: Next) -> Result<Response, Problem> {
    let site = request.headers().get("sec-fetch-site").map(|value| value.as_bytes());
    if matches!(site, Some(b"cross-site" | b"same-site")) {
        let detail = "pages of other sites may not call this API from a browser".to_owned();
        return Err(Problem::http(StatusCode::FORBIDDEN, "CROSS_SITE", detail));
    }
    gateway.auth.caller(request.headers())?;
    Ok(next.run(request).await)
}

async fn wrong_method(request: Request) -> Problem {
    let detail = format!("{} does not answer {}; see /openapi.json", request.uri().path(), request.method());
    Problem::http(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", detail)
}

async fn elsewhere(State(gateway): Shared, request: Request) -> Response {
    let kind = request.headers().get(header::CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return proxy::serve(&gateway, request).await;
    }
    let path: String = request.uri().path().chars().take(128).collect();
    let detail = format!("there is nothing at {path}; see /openapi.json for what there is");
    Problem::http(StatusCode::NOT_FOUND, "UNKNOWN_PATH", detail).into_response()
}

/// Reads `start` and `end`.
fn time_range(start: Option<&str>, end: Option<&str>) -> Result<wire::TimeRange, FieldError> {
    let stamp = |field: &str, text: Option<&str>| match text {
        None => Ok(None),
        Some(text) => ::market::parse_millis(text)
            .map(|at| Some(proto::convert::timestamp(at)))
            .map_err(|error| FieldError::new(field, error)),
    };
    Ok(wire::TimeRange { start_time: stamp("start", start)?, end_time: stamp("end", end)? })
}

/// RFC 3339; the epoch for a stamp that an upstream left out.
fn time_text(stamp: Option<&prost_types::Timestamp>) -> String {
    let at: Millis = stamp.and_then(proto::convert::millis).unwrap_or_default();
    ::market::format_millis(at)
}

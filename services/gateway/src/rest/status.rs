//! Liveness and readiness.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::future::join_all;
use http::StatusCode;
use serde_json::{Map, Value, json};
use tonic::transport::Channel;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::Shared;

/// A probe waits this long for each upstream, all at once; probes themselves commonly give up after a second or more.
const PROBE_TIMEOUT: Duration = Duration::from_millis(800);

/// `GET /healthz`: the process answers.
pub(super) async fn alive() -> Json<Value> {
    Json(json!({"status": "alive"}))
}

/// `GET /readyz`: every upstream says that it serves; 503 otherwise, naming those that do not.
pub(super) async fn ready(State(gateway): Shared) -> Response {
    let probes = gateway.upstreams.all().map(|upstream| async { (upstream.name, probe(&upstream.channel).await) });
    let found = join_all(probes).await;
    let ready = found.iter().all(|(_, state)| *state == "serving");
    let upstreams: Map<String, Value> =
        found.into_iter().map(|(name, state)| (name.to_owned(), state.into())).collect();
    let (code, status) = if ready { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") };
    (code, Json(json!({"status": status, "upstreams": upstreams}))).into_response()
}

async fn probe(channel: &Channel) -> &'static str {
    let mut client = HealthClient::new(channel.clone());
    let check = client.check(HealthCheckRequest { service: String::new() });
    match tokio::time::timeout(PROBE_TIMEOUT, check).await {
        Err(_) => "no answer",
        Ok(Err(_)) => "unreachable",
        Ok(Ok(answer)) if answer.get_ref().status == ServingStatus::Serving as i32 => "serving",
        Ok(Ok(_)) => "not serving",
    }
}

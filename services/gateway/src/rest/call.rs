//! A REST request's calls to the other roles: admitted, decided, carrying the context, answered as JSON.

use std::future::Future;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, header};
use market::InstrumentKey;
use mesh::client::MeshChannel;
use mesh::{ENGINE_HEADER, MAX_MESSAGE_BYTES};
use proto::aggregation::aggregation_service_client::AggregationServiceClient;
use proto::indicator::indicator_service_client::IndicatorServiceClient;
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::sequence::sequence_service_client::SequenceServiceClient;
use rollout::{Decisions, Engine, Subject};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::problem::{self, Problem};
use crate::gateway::{Gateway, carrying, count};
use crate::method::{Access, Role, normalised};
use crate::proxy;
use crate::upstream::Upstream;

/// Rows from which rendering takes longer than half a millisecond and leaves the async threads.
const INLINE_ROWS: usize = 200;

/// One admitted request with its engine decisions.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) gateway: Arc<Gateway>,
    pub(super) decisions: Decisions,
}

impl Call {
    /// Admits the caller and decides the engines by a key (normalised here), else by who calls.
    pub(super) fn admit(
        gateway: Arc<Gateway>,
        headers: &HeaderMap,
        needed: Access,
        what: &str,
        key: Option<&str>,
    ) -> Result<Call, Problem> {
        let admitted = gateway.admit(headers, needed, what)?;
        let key = key.map(normalised);
        let decisions = gateway.decide(&admitted, key.as_deref());
        Ok(Call { gateway, decisions })
    }

    pub(super) fn engine(&self, role: Role) -> Engine {
        role.subject().map_or(Engine::V1, |subject| self.decisions.of(subject).engine)
    }

    /// The upstream of a role for the engine decided.
    pub(super) fn upstream(&self, role: Role) -> Result<&Upstream, Problem> {
        let upstream = self.gateway.upstreams.of(role, self.engine(role));
        upstream.ok_or_else(|| Problem::from(proxy::Error::UnknownMethod(role.as_str().to_owned())))
    }

    /// Makes a call of a role; the future must not have been polled, so that it carries the decisions.
    pub(super) async fn run<T>(
        &self,
        role: Role,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<tonic::Response<T>, Problem> {
        let upstream = self.upstream(role)?;
        count(&self.decisions, role);
        carrying(&self.decisions, call).await.map_err(|status| Problem::upstream(upstream, &status))
    }

    fn channel(&self, role: Role) -> Result<MeshChannel, Problem> {
        Ok(self.upstream(role)?.forwarding())
    }

    pub(super) fn ingestion(&self) -> Result<IngestionServiceClient<MeshChannel>, Problem> {
        let client = IngestionServiceClient::new(self.channel(Role::Ingestion)?);
        Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    pub(super) fn aggregation(&self) -> Result<AggregationServiceClient<MeshChannel>, Problem> {
        let client = AggregationServiceClient::new(self.channel(Role::Aggregation)?);
        Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    pub(super) fn indicator(&self) -> Result<IndicatorServiceClient<MeshChannel>, Problem> {
        let client = IndicatorServiceClient::new(self.channel(Role::Indicator)?);
        Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    pub(super) fn sequence(&self) -> Result<SequenceServiceClient<MeshChannel>, Problem> {
        let client = SequenceServiceClient::new(self.channel(Role::Sequence)?);
        Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// The engine that answered: as the upstream says, else as decided.
    pub(super) fn answered(&self, subject: Subject, metadata: &MetadataMap) -> Engine {
        let said = metadata.get(ENGINE_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        said.unwrap_or(self.decisions.of(subject).engine)
    }

    /// Renders an answer of about `rows` rows, off the async threads when there are many.
    pub(super) async fn render<T, F>(&self, engine: Option<Engine>, rows: usize, make: F) -> Result<Response, Problem>
    where
        T: Serialize,
        F: FnOnce() -> T + Send + 'static,
    {
        let mut response = if rows <= INLINE_ROWS {
            Json(make()).into_response()
        } else {
            let text = self.gateway.pool.run(move || serde_json::to_vec(&make())).await?;
            let text = text.map_err(|error| Problem::status(&Status::internal(error.to_string())))?;
            ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
        };
        name_engine(&mut response, engine);
        Ok(response)
    }
}

/// Names the engine that answered in the response's header.
pub(super) fn name_engine(response: &mut Response, engine: Option<Engine>) {
    if let Some(engine) = engine {
        response.headers_mut().insert(ENGINE_HEADER, HeaderValue::from_static(engine.as_str()));
    }
}

/// The body's bytes, or 413.
pub(super) fn bytes(gateway: &Gateway, body: Result<Bytes, BytesRejection>) -> Result<Bytes, Problem> {
    body.map_err(|rejection| problem::bytes(&rejection, gateway.body_limit_bytes))
}

/// Parses a JSON body; no body is an empty object.
pub(super) fn json<T: DeserializeOwned>(gateway: &Gateway, body: Result<Bytes, BytesRejection>) -> Result<T, Problem> {
    parse(&bytes(gateway, body)?)
}

/// Parses JSON; the error names the field where serde does.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes).map_err(|error| {
        let text = error.to_string();
        // Only these two texts quote a field; of a wrong type, the quoted word is the value.
        let names_field = text.starts_with("unknown field") || text.starts_with("missing field");
        let field = if names_field { text.split('`').nth(1) } else { None };
        let field = field.unwrap_or("body").to_owned();
        Problem::field(&field, text)
    })
}

/// Parses an instrument key of the path.
pub(super) fn key(text: &str) -> Result<InstrumentKey, Problem> {
    Ok(proto::convert::instrument_key("instrument_key", text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_body_name_a_field_and_never_a_value() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Body {
            #[serde(rename = "start")]
            _start: String,
        }
        for (text, field) in [(r#"{"begin":"x"}"#, "begin"), ("{}", "start"), (r#"{"start":5}"#, "body"), ("{", "body")]
        {
            let problem = format!("{:?}", parse::<Body>(text.as_bytes()).unwrap_err());
            assert!(problem.contains(&format!("fields: [(\"{field}\", ")), "{text}: {problem}");
        }
    }
}

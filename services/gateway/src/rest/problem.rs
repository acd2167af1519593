//! Errors as RFC 9457 problem bodies.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use mesh::context::RequestContext;
use mesh::{Fault, RemoteError, to_status};
use serde::Serialize;
use tonic::{Code, Status};
use utoipa::ToSchema;

use crate::proxy;
use crate::upstream::Upstream;

/// An error on its way to a REST caller.
#[derive(Debug)]
pub(crate) struct Problem {
    http: StatusCode,
    code: Code,
    reason: String,
    detail: String,
    fields: Vec<(String, String)>,
    retry_after: Option<Duration>,
}

/// What a problem looks like on the wire.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody {
    /// Always `about:blank`: `reason` names the kind.
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// A sentence for people, naming the value refused and what is accepted.
    detail: String,
    /// The gRPC code's name, for example `NOT_FOUND`.
    code: &'static str,
    /// Stable name of the kind of error, for example `UNKNOWN_INSTRUMENT`.
    reason: String,
    /// Request fields at fault.
    errors: Vec<FieldProblem>,
    request_id: String,
}

/// A request field at fault.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FieldProblem {
    field: String,
    detail: String,
}

impl Problem {
    /// A problem of HTTP itself.
    pub(crate) fn http(http: StatusCode, reason: &str, detail: String) -> Problem {
        let code = match http {
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::FORBIDDEN => Code::PermissionDenied,
            StatusCode::PAYLOAD_TOO_LARGE => Code::ResourceExhausted,
            StatusCode::METHOD_NOT_ALLOWED => Code::Unimplemented,
            _ => Code::InvalidArgument,
        };
        Problem { http, code, reason: reason.to_owned(), detail, fields: Vec::new(), retry_after: None }
    }

    /// A refused part of a request.
    pub(crate) fn field(field: &str, detail: impl ToString) -> Problem {
        Problem::from(proto::convert::FieldError::new(field, detail))
    }

    /// A status from an upstream, or from the transport when it is away.
    pub(crate) fn upstream(upstream: &Upstream, status: &Status) -> Problem {
        let transport = std::error::Error::source(status).is_some();
        if transport && matches!(status.code(), Code::Unavailable | Code::Unknown) {
            return Problem::from(proxy::Error::unreachable(upstream));
        }
        Problem::status(status)
    }

    pub(crate) fn status(status: &Status) -> Problem {
        let RemoteError { code, reason, message, fields, retry_after } = RemoteError::from_status(status);
        let reason = if reason.is_empty() { name(code).to_owned() } else { reason };
        let http = match reason.as_str() {
            "MESSAGE_TOO_LARGE" => StatusCode::PAYLOAD_TOO_LARGE,
            _ => http_status(code),
        };
        Problem { http, code, reason, detail: message, fields, retry_after }
    }

    /// The same problem with more said.
    pub(crate) fn explained(mut self, more: &str) -> Problem {
        self.detail = format!("{}; {more}", self.detail);
        self
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    pub(crate) fn body(self) -> ProblemBody {
        let fields = self.fields.into_iter().map(|(field, detail)| FieldProblem { field, detail });
        ProblemBody {
            kind: "about:blank",
            title: self.http.canonical_reason().unwrap_or("Error"),
            status: self.http.as_u16(),
            detail: self.detail,
            code: name(self.code),
            reason: self.reason,
            errors: fields.collect(),
            request_id: RequestContext::current().map(|context| context.request_id.to_string()).unwrap_or_default(),
        }
    }
}

impl<F: Fault> From<F> for Problem {
    fn from(fault: F) -> Self {
        Problem::status(&to_status(&fault))
    }
}

/// A path that does not decode, as a field error.
pub(crate) fn path(rejection: &PathRejection) -> Problem {
    Problem::field("path", rejection.body_text())
}

/// A body that could not be read.
pub(crate) fn bytes(rejection: &BytesRejection, limit: usize) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let detail = format!("the body is larger than {limit} bytes, the limit; send several, or use Arrow Flight");
        return Problem::http(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", detail);
    }
    Problem::field("body", rejection.body_text())
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (http, retry_after) = (self.http, self.retry_after);
        let mut response = (http, Json(self.body())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if http == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(delay) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(delay.as_secs().max(1)));
        }
        response
    }
}

fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        // As nginx calls a request whose client went away; there is no standard one.
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Internal | Code::Unknown | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

//! Faults: what an engine's error means to a caller, and its one way to and from a gRPC status.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::context::RequestContext;

/// Longest text of a status. Texts quote what was refused, and a status travels in headers, text and details twice over: one that
/// does not fit is lost whole.
const MAX_TEXT_BYTES: usize = 1024;

/// Domain of every `google.rpc.ErrorInfo` of this project.
pub const ERROR_DOMAIN: &str = "candlemesh";

/// An error a caller can act on.
pub trait Fault: std::error::Error {
    fn code(&self) -> Code;

    /// Stable UPPER_SNAKE reason.
    fn reason(&self) -> &'static str;

    /// The request field at fault, when there is one.
    fn field(&self) -> Option<String> {
        None
    }

    /// When to try again, for faults that pass.
    fn retry_after(&self) -> Option<Duration> {
        None
    }

    /// A fault that came from another service and already is a status.
    fn remote(&self) -> Option<&RemoteError> {
        None
    }
}

/// A fault of another service, as its client sees it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    pub code: Code,
    /// Empty when the peer gave none.
    pub reason: String,
    pub message: String,
    /// Request fields the peer named.
    pub fields: Vec<(String, String)>,
    pub retry_after: Option<Duration>,
}

impl RemoteError {
    /// Reads a status and its google.rpc details.
    ///
    /// What our own transport says of a connection that was lost under a call is UNAVAILABLE, under whatever code it says it: the
    /// other side was killed or restarted, and the call may be tried again. Only such a status has a source.
    pub fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let fields = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
        let is_lost = std::error::Error::source(status).is_some();
        let code = match status.code() {
            Code::Unknown | Code::Internal if is_lost => Code::Unavailable,
            code => code,
        };
        Self {
            code,
            reason: details.error_info().map(|info| info.reason.clone()).unwrap_or_default(),
            message: status.message().to_owned(),
            fields: fields.into_iter().map(|violation| (violation.field, violation.description)).collect(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }
    }

    /// The same fault as a status of our own, details kept.
    pub fn to_status(&self) -> Status {
        let mut details = ErrorDetails::new();
        if !self.reason.is_empty() {
            details.set_error_info(&self.reason, ERROR_DOMAIN, std::collections::HashMap::new());
        }
        for (field, description) in &self.fields {
            details.add_bad_request_violation(field, description);
        }
        if self.retry_after.is_some() {
            details.set_retry_info(self.retry_after);
        }
        Status::with_error_details(self.code, &self.message, details)
    }
}

impl From<Status> for RemoteError {
    fn from(status: Status) -> Self {
        Self::from_status(&status)
    }
}

impl Fault for RemoteError {
    fn code(&self) -> Code {
        self.code
    }

    fn reason(&self) -> &'static str {
        "UPSTREAM"
    }

    fn remote(&self) -> Option<&RemoteError> {
        Some(self)
    }
}

impl Fault for market::Error {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }

    fn reason(&self) -> &'static str {
        "INVALID_FIELD"
    }

    fn field(&self) -> Option<String> {
        Some(market::Error::field(self).to_owned())
    }
}

impl Fault for proto::convert::FieldError {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }

    fn reason(&self) -> &'static str {
        "INVALID_FIELD"
    }

    fn field(&self) -> Option<String> {
        Some(self.field.clone())
    }
}

impl Fault for proto::json::JsonError {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }

    fn reason(&self) -> &'static str {
        "INVALID_MESSAGE"
    }
}

/// The one way out: client faults carry their text and details, internal ones a generic text and the request id, and
/// are logged here, once, with the full chain.
pub fn to_status<F: Fault + ?Sized>(fault: &F) -> Status {
    if let Some(remote) = fault.remote() {
        return remote.to_status();
    }
    let code = fault.code();
    let mut details = ErrorDetails::new();
    details.set_error_info(fault.reason(), ERROR_DOMAIN, std::collections::HashMap::new());
    if let Some(delay) = fault.retry_after() {
        details.set_retry_info(Some(delay));
    }
    if matches!(code, Code::Internal | Code::Unknown | Code::DataLoss) {
        let request_id = RequestContext::current().map(|context| context.request_id);
        tracing::error!(reason = fault.reason(), error = %chain(fault), "request failed inside");
        let text = match request_id {
            Some(id) => format!("internal error; request id {id}"),
            None => "internal error".to_owned(),
        };
        return Status::with_error_details(code, text, details);
    }
    let text = bounded(fault.to_string());
    if let Some(field) = fault.field() {
        details.add_bad_request_violation(bounded(field), &text);
    }
    Status::with_error_details(code, text, details)
}

fn bounded(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
        text.push_str("...");
    }
    text
}

/// An error with its causes, outermost first.
pub fn chain<E: std::error::Error + ?Sized>(error: &E) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_fault_comes_back_with_field_and_reason() {
        let fault = "7m".parse::<market::Timeframe>().unwrap_err();
        let back = RemoteError::from_status(&to_status(&fault));
        assert_eq!(back.code, Code::InvalidArgument);
        assert_eq!(back.reason, "INVALID_FIELD");
        assert_eq!(back.fields[0].0, "timeframe");
        assert!(back.message.contains("7m") && back.message.contains("15m"));
        let again = RemoteError::from_status(&to_status(&back));
        assert_eq!((again.code, again.fields), (back.code, back.fields));
    }

    #[test]
    fn a_huge_refused_value_is_cut_so_that_the_status_fits_its_headers() {
        let fault = "\u{fc}".repeat(1 << 20).parse::<market::Timeframe>().unwrap_err();
        let status = to_status(&fault);
        assert!(status.message().len() <= MAX_TEXT_BYTES + 3 && status.details().len() <= 3 * MAX_TEXT_BYTES);
        assert_eq!(RemoteError::from_status(&status).fields[0].0, "timeframe");
    }

    #[test]
    fn a_lost_connection_is_unavailable_and_an_unknown_answer_stays_unknown() {
        let lost = Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionReset)));
        assert_eq!(RemoteError::from_status(&lost).code, Code::Unavailable, "{lost:?}");
        assert_eq!(RemoteError::from_status(&Status::unknown("answered")).code, Code::Unknown);
    }

    #[test]
    fn an_internal_fault_hides_its_text() {
        #[derive(Debug, thiserror::Error)]
        #[error("secret path")]
        struct Broken;
        impl Fault for Broken {
            fn code(&self) -> Code {
                Code::Internal
            }
            fn reason(&self) -> &'static str {
                "BROKEN"
            }
        }
        let status = to_status(&Broken);
        assert!(!status.message().contains("secret"));
        assert_eq!(RemoteError::from_status(&status).reason, "BROKEN");
    }
}

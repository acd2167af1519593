//! What travels with a request: its id, deadline, trace, engine decisions and priority.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::Priority;

tokio::task_local! {
    static CURRENT: RequestContext;
}

/// Time kept back from a forwarded deadline, so that the caller still has some to answer with.
pub const DEADLINE_MARGIN: Duration = Duration::from_millis(20);

/// Carried inward by every client call made while serving the request.
#[derive(Debug, Clone)]
pub struct RequestContext {
    pub request_id: Arc<str>,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// W3C `traceparent` as received, when there was one.
    pub traceparent: Option<Arc<str>>,
    /// Encoded engine decisions, when a gateway made them.
    pub decisions: Option<Arc<str>>,
    /// How soon CPU work done for it is wanted, here and in the services it asks.
    pub priority: Priority,
}

impl RequestContext {
    /// The context of the request being served, if any.
    pub fn current() -> Option<RequestContext> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Time left to forward, less a margin; zero when it has passed.
    pub fn forwardable(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).saturating_sub(DEADLINE_MARGIN)
    }

    /// Runs a future with this context as the current one.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self, future).await
    }
}

/// Runs a future with a context taken earlier as the current one: a stream is polled after its handler has returned.
pub async fn resume<F: Future>(context: Option<RequestContext>, future: F) -> F::Output {
    match context {
        Some(context) => context.scope(future).await,
        None => future.await,
    }
}

/// Runs a future as work of a priority for the request being served, if any.
pub async fn at<F: Future>(priority: Priority, future: F) -> F::Output {
    resume(RequestContext::current().map(|context| RequestContext { priority, ..context }), future).await
}

/// Spawns a task that keeps the current request context and span.
pub fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    use tracing::Instrument;
    match RequestContext::current() {
        Some(context) => tokio::spawn(context.scope(future).in_current_span()),
        None => tokio::spawn(future.in_current_span()),
    }
}

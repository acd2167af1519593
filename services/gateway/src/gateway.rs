//! What every request meets: who calls, which engines answer, and the channels they go out on.

use std::future::Future;
use std::sync::Arc;

use http::HeaderMap;
use mesh::context::RequestContext;
use mesh::{CpuPool, StartError};
use rollout::{Decision, Decisions, Engine};

use crate::auth::{Auth, Caller, Refusal};
use crate::flags::FlagBook;
use crate::method::{Access, Role};
use crate::upstream::Channels;

/// Tasks waiting for a thread that turns large answers into JSON; more callers are told to come back.
const RENDER_QUEUE: usize = 64;

/// Requests by the engine decided for the service called. Labels: service, engine, reason (see rollout).
const DECISIONS_METRIC: &str = "candlemesh_gateway_decisions_total";

/// Shared by every request.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) auth: Auth,
    pub(crate) upstreams: Channels,
    pub(crate) flags: FlagBook,
    pub(crate) body_limit_bytes: usize,
    /// Parses and renders bodies that are too large for the async threads.
    pub(crate) pool: CpuPool,
}

/// A caller that may do what it asks.
#[derive(Debug, Clone)]
pub(crate) struct Admitted {
    pub(crate) caller: Caller,
    pub(crate) forced: Option<Engine>,
}

impl Gateway {
    pub(crate) fn new(
        auth: Auth,
        upstreams: Channels,
        flags: FlagBook,
        body_limit_bytes: usize,
    ) -> Result<Gateway, StartError> {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Gateway { auth, upstreams, flags, body_limit_bytes, pool: CpuPool::new(workers, RENDER_QUEUE)? })
    }

    pub(crate) fn admit(&self, headers: &HeaderMap, needed: Access, what: &str) -> Result<Admitted, Refusal> {
        let caller = self.auth.caller(headers)?;
        caller.require(needed, what)?;
        let forced = caller.forced(headers)?;
        Ok(Admitted { caller, forced })
    }

    /// The engines of a request: by the instrument it is about, else by who calls.
    pub(crate) fn decide(&self, admitted: &Admitted, targeting_key: Option<&str>) -> Decisions {
        let key = targeting_key.unwrap_or(&admitted.caller.name);
        self.flags.current().flags.decide_all(key, admitted.forced)
    }
}

/// Counts a call to a role with two engines, and returns the engine decided; V1 for the others.
pub(crate) fn count(decisions: &Decisions, role: Role) -> Engine {
    let Some(subject) = role.subject() else { return Engine::V1 };
    let Decision { engine, reason } = decisions.of(subject);
    let labels = [("service", subject.as_str()), ("engine", engine.as_str()), ("reason", reason.as_str())];
    metrics::counter!(DECISIONS_METRIC, &labels).increment(1);
    engine
}

/// Runs upstream calls so that they carry the decisions.
pub(crate) async fn carrying<F: Future>(decisions: &Decisions, calls: F) -> F::Output {
    match RequestContext::current() {
        Some(mut context) => {
            context.decisions = Some(Arc::from(decisions.encode()));
            context.scope(calls).await
        }
        None => calls.await,
    }
}

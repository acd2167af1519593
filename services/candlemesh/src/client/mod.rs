//! The client commands: they speak gRPC and Flight to a gateway, as any other client would.

pub mod actions;
pub mod audit;
pub mod backfill;
pub mod cache;
mod catalogue;
pub mod export;
pub mod fsck;
pub mod gaps;
pub mod health;
pub mod load;
pub mod query;
pub mod replay;
pub mod rollout;
pub mod study;
pub mod watch;

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use market::TimeRange;
use mesh::RemoteError;
use mesh::client::MeshChannel;
use mesh::context::RequestContext;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Request, Status};

/// Where a command finds the mesh, and as whom it comes.
#[derive(Debug, Clone, clap::Args)]
pub struct Connection {
    /// Address of the gateway.
    #[arg(long, env = "CANDLEMESH_GATEWAY_URL", default_value = "http://127.0.0.1:8080", global = true)]
    pub gateway: String,
    /// API key, where the gateway asks for one.
    #[arg(long, env = "CANDLEMESH_API_KEY", hide_env_values = true, global = true)]
    pub api_key: Option<String>,
    /// Engine to force: v1 or v2.
    #[arg(long, global = true)]
    pub engine: Option<String>,
}

/// A channel that carries the caller's key and engine.
pub type Channel = InterceptedService<MeshChannel, Credentials>;

/// Adds the command's headers to every call.
#[derive(Debug, Clone)]
pub struct Credentials {
    authorization: Option<MetadataValue<tonic::metadata::Ascii>>,
    engine: Option<MetadataValue<tonic::metadata::Ascii>>,
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.authorization {
            request.metadata_mut().insert("authorization", value.clone());
        }
        if let Some(value) = &self.engine {
            request.metadata_mut().insert(mesh::ENGINE_HEADER, value.clone());
        }
        Ok(request)
    }
}

impl Connection {
    /// A connection to `gateway` without a key.
    pub fn to(gateway: &str) -> Connection {
        Connection { gateway: gateway.to_owned(), api_key: None, engine: None }
    }

    /// The same connection, forcing an engine.
    pub fn with_engine(&self, engine: &str) -> Connection {
        Connection { engine: Some(engine.to_owned()), ..self.clone() }
    }

    pub fn channel(&self) -> Result<Channel> {
        let value =
            |text: &str, what: &str| MetadataValue::try_from(text).with_context(|| format!("{what} is not text"));
        let authorization = self.api_key.as_deref().map(|key| value(&format!("Bearer {key}"), "--api-key"));
        let engine = self.engine.as_deref().map(|engine| value(engine, "--engine"));
        let credentials = Credentials { authorization: authorization.transpose()?, engine: engine.transpose()? };
        Ok(InterceptedService::new(mesh::client::connect(http_address(&self.gateway)?)?, credentials))
    }

    /// Turns a status into an error that says what to do.
    pub fn explain(&self, status: Status) -> anyhow::Error {
        let remote = RemoteError::from_status(&status);
        match remote.code {
            Code::Unavailable if status.metadata().is_empty() && remote.reason.is_empty() => anyhow!(
                "no gateway answers at {}; start one with `candlemesh up`, or name another with --gateway ({})",
                self.gateway,
                remote.message
            ),
            Code::NotFound if remote.reason == "UNKNOWN_INSTRUMENT" => {
                anyhow!("{}; load it first: candlemesh load --instrument KEY FILE", remote.message)
            }
            Code::Unauthenticated => anyhow!("{}; pass a key with --api-key or CANDLEMESH_API_KEY", remote.message),
            _ => anyhow!("{}", remote.message),
        }
    }
}

/// Checks an address before it is dialled: without its scheme, the transport's errors do not say what is wrong.
fn http_address(address: &str) -> Result<&str> {
    match address.starts_with("http://") || address.starts_with("https://") {
        true => Ok(address),
        false => Err(anyhow!("the gateway '{address}' is not of the form http://HOST:PORT")),
    }
}

/// Runs a call with a deadline the servers see.
pub async fn with_deadline<F: Future>(deadline: Duration, call: F) -> F::Output {
    let context = RequestContext {
        request_id: format!("cli-{}", std::process::id()).into(),
        deadline: Instant::now() + deadline,
        traceparent: None,
        decisions: None,
        priority: Default::default(),
    };
    context.scope(call).await
}

/// Bounds given on the command line: RFC 3339 instants or dates, half-open.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RangeArgs {
    /// First instant, for example 2016-08-16T03:45:00Z or 2016-08-16.
    #[arg(long, alias = "from")]
    pub start: Option<String>,
    /// End, not included.
    #[arg(long, alias = "to")]
    pub end: Option<String>,
}

impl RangeArgs {
    pub fn range(&self) -> Result<TimeRange> {
        let instant = |text: &str| match text.len() {
            10 => market::parse_millis(&format!("{text}T00:00:00Z")),
            _ => market::parse_millis(text),
        };
        let start = self.start.as_deref().map(instant).transpose().context("--start")?;
        let end = self.end.as_deref().map(instant).transpose().context("--end")?;
        Ok(TimeRange::new(start.unwrap_or(TimeRange::ALL.start()), end.unwrap_or(TimeRange::ALL.end()))?)
    }
}

/// A price or value the way people read it: six significant digits, no trailing zeros.
pub fn short(value: f64) -> String {
    let digits = (5 - value.abs().max(1e-9).log10().floor() as i32).clamp(0, 10) as usize;
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

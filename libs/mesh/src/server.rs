//! The server every role runs: one listener for gRPC (h2c) and HTTP/1.1, with health, reflection and the chassis around.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::response::IntoResponse;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::Service;

use crate::Drain;
use crate::chassis::{self, Chassis};
use crate::config::{ConfigError, ServerConfig};

/// As on the client's side; see there.
const MAX_FRAME_BYTES: u32 = 1024 * 1024;
/// Bytes a stream may have unread: what bounds the memory of a slow reader.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// The protocol's maximum, so that only streams are throttled. With a smaller window, unread bulk streams use it up, and
/// a call whose answer they wait for, on the same connection, never gets through: a deadlock, seen with eight of them.
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;
/// Streams per connection: one well-behaved client needs far fewer, and a flood is cut early.
const MAX_CONCURRENT_STREAMS: u32 = 1024;

/// Why a process could not start or go on serving.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot listen on {address}")]
    Bind { address: String, source: std::io::Error },
    #[error("metrics recorder: {0}")]
    Telemetry(String),
    #[error("cannot start threads")]
    Threads(#[from] std::io::Error),
    #[error("{what} is not available")]
    Dependency { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("server ended")]
    Serve(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A bound listener and the services to run on it.
#[derive(Debug)]
pub struct Server {
    role: &'static str,
    listener: TcpListener,
    address: SocketAddr,
    config: ServerConfig,
    routes: Routes,
    health: HealthReporter,
    services: Vec<&'static str>,
}

impl Server {
    /// Binds the listener; nothing is served until [`Server::serve`].
    pub async fn bind(role: &'static str, config: &ServerConfig) -> Result<Server, StartError> {
        let refuse = |source| StartError::Bind { address: config.listen.to_string(), source };
        let listener = TcpListener::bind(config.listen).await.map_err(refuse)?;
        let address = listener.local_addr().map_err(refuse)?;
        let (health, health_service) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        let alpha = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        let broken = |error: tonic_reflection::server::Error| StartError::Serve(Box::new(error));
        let routes = Routes::new(health_service)
            .add_service(reflection.build_v1().map_err(broken)?)
            .add_service(alpha.build_v1alpha().map_err(broken)?);
        Ok(Server { role, listener, address, config: config.clone(), routes, health, services: Vec::new() })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds a gRPC service; its health is reported under its own name.
    pub fn add_grpc<S>(mut self, service: S) -> Self
    where
        S: Service<http::Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        self.services.push(S::NAME);
        self.routes = self.routes.add_service(service);
        self
    }

    /// Adds plain HTTP routes, among them a fallback if the router has one.
    pub fn add_http(mut self, router: axum::Router) -> Self {
        let merged = std::mem::take(self.routes.axum_router_mut()).reset_fallback().merge(router);
        self.routes = merged.into();
        self
    }

    /// Serves until drained: health goes NOT_SERVING, the listener closes, requests in flight finish, and what is left
    /// at the end of the grace is cut.
    pub async fn serve(self, drain: Drain) -> Result<(), StartError> {
        for name in &self.services {
            self.health.set_service_status(name, ServingStatus::Serving).await;
        }
        let chassis = Chassis::new(self.role, &self.config);
        let router =
            self.routes.into_axum_router().layer(axum::middleware::from_fn_with_state(chassis, chassis::around));
        let (health, services, stop) = (self.health, self.services, drain.clone());
        let signal = async move {
            stop.started().await;
            for name in services.into_iter().chain([""]) {
                health.set_service_status(name, ServingStatus::NotServing).await;
            }
        };
        // Latency of small messages matters more than the packets saved.
        let incoming = TcpListenerStream::new(self.listener);
        let incoming = tokio_stream::StreamExt::map(incoming, |stream| {
            stream.inspect(|stream| {
                let _ = stream.set_nodelay(true);
            })
        });
        let server = tonic::transport::Server::builder()
            .accept_http1(true)
            .max_frame_size(MAX_FRAME_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .add_routes(router.into())
            .serve_with_incoming_shutdown(incoming, signal);
        let cut = async {
            drain.started().await;
            tokio::time::sleep(self.config.grace).await;
        };
        tracing::debug!(role = self.role, address = %self.address, "serving");
        tokio::select! {
            outcome = server => outcome.map_err(|error| StartError::Serve(Box::new(error))),
            () = cut => {
                tracing::warn!(role = self.role, "grace is over; remaining requests are cut");
                Ok(())
            }
        }
    }
}

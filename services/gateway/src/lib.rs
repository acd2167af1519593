//! The front door: one address that serves gRPC, Arrow Flight and REST, chooses engines and keeps the feature flags.
//!
//! A gRPC or Flight call for another role passes through as bytes (`proxy`); a REST call becomes gRPC calls (`rest`).
//! For every request the gateway decides once which engine each service uses (`flags`) and sends the decisions inward.
//! Its own gRPC services are the administration of flags and rollouts (`grpc`).
//!
//! It holds no market data, computes nothing, and never decodes a message it only passes on, except for the field that
//! names the instrument.

mod auth;
mod flags;
mod gateway;
mod grpc;
mod method;
mod proxy;
mod rest;
mod upstream;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use mesh::config::{ConfigError, ServerConfig};
use mesh::{Drain, MAX_MESSAGE_BYTES, Server, StartError};
use proto::gateway::flag_service_server::FlagServiceServer;
use proto::gateway::rollout_service_server::RolloutServiceServer;
use serde::{Deserialize, Serialize};

use crate::flags::FlagBook;
use crate::gateway::Gateway;
pub use crate::upstream::Upstreams;

/// Largest REST body that may be configured; beyond it bulk belongs on Flight.
const MAX_BODY_LIMIT_BYTES: usize = 1024 * 1024 * 1024;

/// Tunables of the gateway.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Answer callers without a key. Without a key file they are then admins, with one they are readers. Not needed on a
    /// loopback address, where everybody who can connect owns the machine.
    pub allow_anonymous: bool,
    /// Lines of `role sha256hex name`; roles are reader, writer and admin. The hash is of the key, so that the file
    /// gives no access to who reads it.
    pub api_keys_file: Option<PathBuf>,
    /// Largest REST body, in bytes: about 200 000 candles as JSON. More is answered with 413; send several, or use Flight.
    pub body_limit_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { allow_anonymous: false, api_keys_file: None, body_limit_bytes: 32 * 1024 * 1024 }
    }
}

/// What the gateway needs from outside.
#[derive(Debug, Clone)]
pub struct Ports {
    pub flags: Arc<dyn store::FlagStore>,
    pub upstreams: Upstreams,
}

/// A bound gateway.
#[derive(Debug)]
pub struct App {
    server: Server,
    gateway: Arc<Gateway>,
}

impl App {
    /// Binds, reads the keys, and makes sure that the flags exist. Upstreams are connected to when first used.
    ///
    /// Errors: a configuration that would let strangers in, an unreadable key file, an unreachable flag store.
    pub async fn build(server: &ServerConfig, config: Config, ports: Ports) -> Result<App, StartError> {
        if !(1..=MAX_BODY_LIMIT_BYTES).contains(&config.body_limit_bytes) {
            let text =
                format!("body_limit_bytes: {} given; accepted: 1 to {MAX_BODY_LIMIT_BYTES}", config.body_limit_bytes);
            return Err(ConfigError::new(text).into());
        }
        let auth = auth::Auth::open(&config, server.listen)?;
        let upstreams = upstream::Channels::connect(&ports.upstreams)?;
        let flags = FlagBook::open(ports.flags).await?;
        let gateway = Arc::new(Gateway::new(auth, upstreams, flags, config.body_limit_bytes)?);
        let admin = grpc::Admin::new(Arc::clone(&gateway));
        let flag_service = FlagServiceServer::new(admin.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let rollout_service = RolloutServiceServer::new(admin).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let server = Server::bind("gateway", server)
            .await?
            .add_http(rest::router(Arc::clone(&gateway)))
            .add_grpc(flag_service)
            .add_grpc(rollout_service);
        Ok(App { server, gateway })
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Serves until drained; flags are followed as long.
    pub async fn serve(self, drain: Drain) -> Result<(), StartError> {
        tokio::select! {
            outcome = self.server.serve(drain) => outcome,
            never = self.gateway.flags.follow() => match never {},
        }
    }
}

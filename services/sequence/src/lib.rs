//! Sequences of strong moves, trend, volatility and Bollinger width, the filter pipeline, and group execution.
//!
//! Candles come from aggregation, instruments and groups from ingestion; the analyses and trade intents kept here are this service's own.
//! Two engines stand behind the analysis. Everything is point in time: an answer for a date knows nothing after it. No order is ever
//! placed: an intent is a stored proposal. Which engine answers is decided outside and comes with the request.
//!
//! - `grpc.rs`: the RPCs; `query.rs`: requests to queries; `render.rs`: answers to messages
//! - `engine.rs`: the analysis, and the errors of the service; `engine/v1.rs`, `engine/v2.rs`: the engines
//! - `history.rs`: candles up to a point in time; `measure.rs`: trend, volatility, width; `pipeline.rs`: the screen over a universe;
//!   `group.rs`: trade intents; `record.rs`: how an analysis is kept

mod engine;
mod group;
mod grpc;
mod history;
mod measure;
mod pipeline;
mod query;
mod record;
mod render;

#[cfg(test)]
#[path = "../tests/service/candles.rs"]
mod candles;

use std::net::SocketAddr;
use std::sync::Arc;

use mesh::config::{ConfigError, ServerConfig};
use mesh::engine::Engines;
use mesh::source::{Candles, MasterData};
use mesh::{CpuPool, Drain, MAX_MESSAGE_BYTES, Server, StartError};
use proto::sequence::sequence_service_server::SequenceServiceServer;
use serde::{Deserialize, Serialize};

/// Tunables of the service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Candles of one instrument beyond which a request is refused: ten years of an exchange's minutes, 60 MB.
    pub max_candles: usize,
    /// Instruments of one screen in work at once: keeps a few CPU threads busy while the next candles arrive.
    pub screen_concurrency: usize,
    /// Age of the last candle, in days before the screen's date, beyond which an instrument is not screened: longer than any usual run
    /// of holidays, shorter than a suspension.
    pub max_stale_days: u32,
    /// What an intent may lose at its stop, in units of the instrument's currency.
    pub risk_budget: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_candles: 1_000_000, screen_concurrency: 8, max_stale_days: 7, risk_budget: 10_000.0 }
    }
}

/// What the service needs from outside.
#[derive(Debug, Clone)]
pub struct Ports {
    pub candles: Arc<dyn Candles>,
    pub master: Arc<dyn MasterData>,
    pub screens: Arc<dyn store::ScreenStore>,
    /// Engines this process holds.
    pub engines: Engines,
    pub pool: Arc<CpuPool>,
}

/// The service, bound and ready to serve.
#[derive(Debug)]
pub struct App {
    server: Server,
    config: Config,
    ports: Ports,
}

impl App {
    /// Binds the listener; asks nothing of its upstreams yet.
    ///
    /// Errors: a risk budget that is not above 0; an address that cannot be bound.
    pub async fn build(server: &ServerConfig, config: Config, ports: Ports) -> Result<App, StartError> {
        if !(config.risk_budget > 0.0 && config.risk_budget.is_finite()) {
            let text = format!("sequence.risk_budget: {} is not a number above 0", config.risk_budget);
            return Err(ConfigError::new(text).into());
        }
        Ok(App { server: Server::bind("sequence", server).await?, config, ports })
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Serves until drained.
    pub async fn serve(self, drain: Drain) -> Result<(), StartError> {
        let service = SequenceServiceServer::new(grpc::Service::new(&self.config, &self.ports))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        self.server.add_grpc(service).serve(drain).await
    }
}

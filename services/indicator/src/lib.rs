//! Technical indicators over candles of any timeframe, by gRPC and Arrow Flight.
//!
//! Candles come from aggregation, master data and revisions from ingestion. Two engines stand behind one contract: V1 computes row by row,
//! one indicator at a time, V2 computes all together over columns and keeps answers in a cache whose key holds the data revision. The
//! crate stores nothing and decides no rollout: which engine answers comes with the request.
//!
//! - `grpc.rs`: the RPCs; `flight.rs`: bulk frames; `query.rs`: what both parse a request to
//! - `live`: values told as their candles form, close and are corrected
//! - `engine.rs`: revision, history and limits, the same for both engines; `engine/v1.rs`, `engine/v2.rs`: the engines

mod engine;
mod flight;
mod grpc;
mod live;
mod query;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh::cache::Cache;
use mesh::config::ServerConfig;
use mesh::engine::Engines;
use mesh::source::{Candles, LiveCandles, MasterData};
use mesh::{CpuPool, Drain, MAX_MESSAGE_BYTES, Server, StartError};
use proto::indicator::indicator_service_server::IndicatorServiceServer;
use proto::indicator::live_service_server::LiveServiceServer;
use serde::{Deserialize, Serialize};

use engine::Indicators;
pub use live::Config as LiveConfig;

/// Tunables of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether V2 keeps answers.
    pub caching: bool,
    /// How long an answer is kept. It cannot go stale; this only frees memory of answers nobody asks for any more.
    #[serde(with = "humantime_serde")]
    pub cache_time_to_live: Duration,
    /// Bytes of the cache of this process: some 2500 answers of a session of minutes with the D3 set.
    pub cache_capacity_bytes: u64,
    /// Values of one computation, history rows times columns, beyond which it is refused: 256 MB of results, ten years of minutes with
    /// thirty columns.
    pub max_values: usize,
    /// Instruments of one batch in work at once: keeps a few CPU threads busy while the next candles arrive.
    pub batch_concurrency: usize,
    pub live: live::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            caching: true,
            cache_time_to_live: Duration::from_secs(15 * 60),
            cache_capacity_bytes: 100 * 1024 * 1024,
            max_values: 32_000_000,
            batch_concurrency: 8,
            live: live::Config::default(),
        }
    }
}

impl Config {
    /// The cache of this process as configured; the caller puts Redis behind it where there is one.
    pub fn local_cache(&self) -> Cache {
        Cache::local(self.cache_capacity_bytes, self.cache_time_to_live)
    }
}

/// What the service needs from outside.
#[derive(Debug, Clone)]
pub struct Ports {
    pub candles: Arc<dyn Candles>,
    pub live: Arc<dyn LiveCandles>,
    pub master: Arc<dyn MasterData>,
    /// Engines this process holds.
    pub engines: Engines,
    pub pool: Arc<CpuPool>,
    pub cache: Cache,
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
    pub async fn build(server: &ServerConfig, config: Config, ports: Ports) -> Result<App, StartError> {
        Ok(App { server: Server::bind("indicator", server).await?, config, ports })
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Serves until drained.
    pub async fn serve(self, drain: Drain) -> Result<(), StartError> {
        let App { server, config, ports } = self;
        let indicators = Arc::new(Indicators::new(&config, &ports));
        let live = Arc::new(live::Live::new(&config, &ports, Arc::clone(&indicators)));
        let live = live::LiveServer { live, drain: drain.clone() };
        let live = LiveServiceServer::new(live).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let grpc = grpc::Service {
            indicators: Arc::clone(&indicators),
            engines: ports.engines,
            cache: ports.cache,
            batch_concurrency: config.batch_concurrency.max(1),
            drain: drain.clone(),
        };
        let grpc = IndicatorServiceServer::new(grpc)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let flight = mesh::flight::service(Arc::new(flight::Frames { indicators, engines: ports.engines }));
        server.add_grpc(grpc).add_grpc(live).add_grpc(flight).serve(drain).await
    }
}

//! Technical indicators over candles of any timeframe, by gRPC and Arrow Flight.
//!
//! Candles come from aggregation, master data and revisions from ingestion. Two engines stand behind one contract: V1 computes row by row,
//! one indicator at a time, V2 computes all together over columns and keeps answers in a cache whose key holds the data revision. The
//! crate stores nothing and decides no rollout: which engine answers comes with the request.
//!
//! - `grpc.rs`: the RPCs; `flight.rs`: bulk frames; `query.rs`: what both parse a request to
//! - `batch.rs`: many instruments in one stream, in bounded memory
//! - `engine.rs`: revision, history and limits, the same for both engines; `engine/v1.rs`, `engine/v2.rs`: the engines; `engine/series.rs`: what
//!   V2 keeps of a series beside its answers
//! - `live`: values told as their candles form, close and are corrected
//! - `warm.rs`: which queries are asked most, for replicas that start

mod batch;
mod engine;
mod flight;
mod grpc;
mod live;
mod query;
mod warm;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh::cache::{Cache, SharedSettings};
use mesh::config::ServerConfig;
use mesh::engine::Engines;
use mesh::source::{Candles, LiveCandles, MasterData};
use mesh::{CpuPool, Drain, MAX_MESSAGE_BYTES, Server, StartError};
use proto::indicator::indicator_service_server::IndicatorServiceServer;
use proto::indicator::live_service_server::LiveServiceServer;
use serde::{Deserialize, Serialize};

use batch::Batches;
use engine::Indicators;
pub use engine::entry_renamed;
pub use live::Config as LiveConfig;
use rollout::Engine;
use warm::Warm;

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
    /// How long an answer is kept in Redis, where one is configured: for other replicas, and for this one after a restart.
    #[serde(with = "humantime_serde")]
    pub cache_shared_time_to_live: Duration,
    /// How long Redis may take to give or take an answer. One that takes longer, or a quarter of it time after time, is left alone for a
    /// while and answers are computed.
    #[serde(with = "humantime_serde")]
    pub cache_shared_timeout: Duration,
    /// Largest answer shared through Redis: reading a larger one would take as long as computing it.
    pub cache_shared_max_value_bytes: usize,
    /// Whether answers are packed for Redis: some 30 % fewer bytes there and on the way, for the time it takes. For a slow network or a
    /// small Redis.
    pub cache_shared_packing: bool,
    /// Bytes of kernel states kept so that a changed minute costs the rows from its trading date on; some 2000 series of a year of minutes with
    /// the D3 set.
    pub cache_snapshot_bytes: u64,
    /// Most asked queries that a starting replica asks, as all replicas remember them in Redis; 0: none.
    pub warm_queries: usize,
    /// How long it may take for that.
    #[serde(with = "humantime_serde")]
    pub warm_time: Duration,
    /// Values of one computation, history rows times columns, beyond which it is refused: 256 MB of results, ten years of minutes with
    /// thirty columns.
    pub max_values: usize,
    /// Instruments of one batch in work at once: keeps a few CPU threads busy while the next candles arrive.
    pub batch_concurrency: usize,
    /// Bytes that the instruments in work of all batches may take together, answers not yet taken by clients included: room for two
    /// batches of a year of 5m with the D3 set at full concurrency. Items beyond wait.
    pub batch_memory_bytes: u64,
    /// Longest time for one instrument of a batch; then it fails, and the others go on.
    #[serde(with = "humantime_serde")]
    pub batch_item_timeout: Duration,
    /// How long a batch waits for its client to take an answer; then it ends, so that its memory goes to others.
    #[serde(with = "humantime_serde")]
    pub batch_read_timeout: Duration,
    pub live: live::Config,
}

impl Default for Config {
    fn default() -> Self {
        let shared = SharedSettings::default();
        Self {
            caching: true,
            cache_time_to_live: Duration::from_secs(15 * 60),
            cache_capacity_bytes: 100 * 1024 * 1024,
            cache_snapshot_bytes: 32 * 1024 * 1024,
            cache_shared_time_to_live: shared.time_to_live,
            cache_shared_timeout: shared.timeout,
            cache_shared_max_value_bytes: shared.max_value_bytes,
            cache_shared_packing: shared.packing,
            warm_queries: 256,
            warm_time: Duration::from_secs(30),
            max_values: 32_000_000,
            batch_concurrency: 8,
            batch_memory_bytes: 192 * 1024 * 1024,
            batch_item_timeout: Duration::from_secs(30),
            batch_read_timeout: Duration::from_secs(60),
            live: live::Config::default(),
        }
    }
}

impl Config {
    /// The cache of this process as configured; the caller puts Redis behind it where there is one.
    pub fn local_cache(&self) -> Cache {
        Cache::local(self.cache_capacity_bytes, self.cache_time_to_live)
    }

    /// How the cache uses Redis.
    pub fn shared_cache(&self) -> SharedSettings {
        SharedSettings {
            time_to_live: self.cache_shared_time_to_live,
            timeout: self.cache_shared_timeout,
            max_value_bytes: self.cache_shared_max_value_bytes,
            packing: self.cache_shared_packing,
        }
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
        let is_warmed = config.caching && ports.engines.holds(Engine::V2);
        let queries = if is_warmed { config.warm_queries } else { 0 };
        let warm = Arc::new(Warm::new(ports.cache.clone(), queries, config.warm_time));
        let live = Arc::new(live::Live::new(&config, &ports, Arc::clone(&indicators)));
        let live = live::LiveServer { live, drain: drain.clone() };
        let live = LiveServiceServer::new(live).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let grpc = grpc::Service {
            indicators: Arc::clone(&indicators),
            engines: ports.engines,
            cache: ports.cache,
            batches: Batches::new(Arc::clone(&indicators), &config),
            warm: Arc::clone(&warm),
            drain: drain.clone(),
        };
        let grpc = IndicatorServiceServer::new(grpc)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let frames = flight::Frames { indicators: Arc::clone(&indicators), engines: ports.engines };
        let flight = mesh::flight::service(Arc::new(frames));
        let warming = tokio::spawn(warm.run(indicators, drain.clone()));
        let served = server.add_grpc(grpc).add_grpc(live).add_grpc(flight).serve(drain).await;
        if served.is_err() {
            // Nothing has begun a drain, which would end it.
            warming.abort();
        }
        let _ = warming.await;
        served
    }
}

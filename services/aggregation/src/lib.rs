//! Aggregation: candles of any timeframe from candles as stored, session-anchored, with counts, flags and indicator columns.
//!
//! Place in the mesh: reads stored frames and master data of ingestion, answers indicator, sequence, optimizer and the gateway, over
//! gRPC and Arrow Flight on one address. It holds no candles between requests and never writes.
//!
//! Map: `query` says what was asked, `grpc` and `flight` speak the wire. `engine` opens an answer: `engine/days` reads the stored
//! frames trading date by trading date, `engine/v1` and `engine/v2` fold them into buckets, `engine/grid` says what a bucket
//! should hold, `engine/fill` fills gaps, `engine/adjust` puts splits and dividends on what is read, and `engine/answer` streams the
//! result in batches of bounded size. `engine/multi` answers several timeframes from one reading; `engine/gaps` says which
//! minutes are missing. `live` follows what is
//! stored and tells subscribers what becomes of their candles.

mod engine;
mod flight;
mod grpc;
mod live;
mod query;

use std::net::SocketAddr;
use std::sync::Arc;

use mesh::clock::Clock;
use mesh::config::ServerConfig;
use mesh::engine::Engines;
use mesh::source::{Changes, MasterData, StoredCandles};
use mesh::{CpuPool, Drain, Server, StartError};
use proto::aggregation::aggregation_service_server::AggregationServiceServer;
use rollout::Engine;
use serde::{Deserialize, Serialize};

use crate::engine::Aggregator;
use crate::flight::CandleFrames;
use crate::grpc::Handlers;
pub use crate::live::Config as LiveConfig;
use crate::live::{Live, LiveServer};

/// Limits of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Candles of one unary answer, of all timeframes together; the message of so many takes about 45 MB. Flight has no such limit.
    pub max_candles: usize,
    /// Values of 8 bytes held while indicators are computed over an instrument's history: 256 MiB, enough for the default set over 16
    /// years of one stock's minutes. A row counts 9 and one for each indicator column.
    pub max_history_values: usize,
    /// Stored candles folded in one task of the CPU pool: 1 MB of columns, which stay in cache, and worth the way to another thread.
    pub chunk_rows: usize,
    /// Instruments of one batch request in work, or answered and unread, at once; more would wait for the pool, and hold memory.
    pub batch_concurrency: usize,
    pub live: live::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_candles: 500_000,
            max_history_values: 32 * 1024 * 1024,
            chunk_rows: 16 * 1024,
            batch_concurrency: 8,
            live: live::Config::default(),
        }
    }
}

/// What aggregation needs from outside.
#[derive(Debug, Clone)]
pub struct Ports {
    pub stored: Arc<dyn StoredCandles>,
    pub master: Arc<dyn MasterData>,
    pub changes: Arc<dyn Changes>,
    /// Closes candles; what a request sees as closed goes by the machine's clock.
    pub clock: Arc<dyn Clock>,
    /// Engines this process holds.
    pub engines: Engines,
    pub pool: Arc<CpuPool>,
}

/// The bound service.
#[derive(Debug)]
pub struct App {
    server: Server,
    aggregator: Arc<Aggregator>,
    changes: Arc<dyn Changes>,
    clock: Arc<dyn Clock>,
    engines: Engines,
}

impl App {
    /// Binds the listener; nothing is served until [`App::serve`].
    pub async fn build(server: &ServerConfig, config: Config, ports: Ports) -> Result<App, StartError> {
        let server = Server::bind("aggregation", server).await?;
        let Ports { stored, master, changes, clock, engines, pool } = ports;
        let aggregator = Arc::new(Aggregator { stored, master, pool, config });
        Ok(App { server, aggregator, changes, clock, engines })
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Serves until drained.
    pub async fn serve(self, drain: Drain) -> Result<(), StartError> {
        let App { server, aggregator, changes, clock, engines } = self;
        // Whichever is held: both say the same to the bit.
        let engine = if engines.holds(Engine::V2) { Engine::V2 } else { Engine::V1 };
        let config = aggregator.config.live.clone();
        let live = Arc::new(Live::new(Arc::clone(&aggregator), engine, changes, clock, config, drain.clone()));
        let live = LiveServer { live, drain: drain.clone() };
        let frames = Arc::new(CandleFrames { aggregator: Arc::clone(&aggregator), engines });
        let handlers = Handlers { aggregator, engines, drain: drain.clone() };
        let service = AggregationServiceServer::new(handlers)
            .max_decoding_message_size(mesh::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(mesh::MAX_MESSAGE_BYTES);
        server.add_grpc(service).add_grpc(live).add_grpc(mesh::flight::service(frames)).serve(drain).await
    }
}

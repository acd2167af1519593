//! Candles in: stores them, keeps master data, answers quotes, and streams stored candles to the rest of the mesh.
//!
//! The only service that touches candle tables. It does not aggregate, fill gaps or compute: what was delivered is what is
//! stored, once per open time.
//!
//! Map: [`App`] here; `grpc.rs` and `flight.rs` the two surfaces; `engine.rs` storing and reading, with `engine/batch.rs` (which rows
//! of a batch are good), `engine/master.rs` (instruments and groups) and `engine/quote.rs`.

mod engine;
mod flight;
mod grpc;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use market::Millis;
use mesh::config::ServerConfig;
use mesh::{CpuPool, Drain, MAX_MESSAGE_BYTES, Server, StartError};
use proto::ingestion::ingestion_service_server::IngestionServiceServer;
use serde::{Deserialize, Serialize};

use crate::engine::Engine;

/// What an operator may tune. The limits of the API are not among it: they are part of the contract.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Threads that check and sort large batches. One keeps up with the store's single writer.
    pub batch_workers: usize,
    /// Large batches that may wait for such a thread; more are refused. At 100 000 rows each, 16 hold 120 MB.
    pub batch_queue: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { batch_workers: 1, batch_queue: 16 }
    }
}

/// What the service needs from outside.
#[derive(Debug, Clone)]
pub struct Ports {
    pub stores: store::Stores,
}

/// The service, bound and ready to serve.
#[derive(Debug)]
pub struct App {
    server: Server,
    engine: Arc<Engine>,
}

impl App {
    /// Binds the listener; nothing is answered until [`App::serve`].
    pub async fn build(server: &ServerConfig, config: Config, ports: Ports) -> Result<App, StartError> {
        let pool = CpuPool::new(config.batch_workers, config.batch_queue)?;
        let server = Server::bind("ingestion", server).await?;
        Ok(App { server, engine: Arc::new(Engine::new(ports.stores, pool)) })
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Serves until drained; open streams end once what they acknowledge next is durable.
    pub async fn serve(self, drain: Drain) -> Result<(), StartError> {
        let service = grpc::Service::new(Arc::clone(&self.engine), drain.clone());
        let service = IngestionServiceServer::new(service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let frames = flight::CandleFrames::new(self.engine, drain.clone());
        self.server.add_grpc(service).add_grpc(mesh::flight::service(Arc::new(frames))).serve(drain).await
    }
}

/// The wall clock, for the two surfaces.
fn now() -> Millis {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since_epoch.as_millis()).unwrap_or(Millis::MAX)
}

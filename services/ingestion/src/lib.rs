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

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh::clock::now;
use mesh::config::ServerConfig;
use mesh::{CpuPool, Drain, MAX_MESSAGE_BYTES, Server, StartError};
use proto::ingestion::ingestion_service_server::IngestionServiceServer;
use serde::{Deserialize, Serialize};

use crate::engine::Engine;

/// How often candles past their retention are deleted: a day of it more or less matters to nobody, and the work is small.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// What an operator may tune. The limits of the API are not among it: they are part of the contract.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Threads that check and sort large batches. One keeps up with the store's single writer.
    pub batch_workers: usize,
    /// Large batches that may wait for such a thread; more are refused. At 100 000 rows each, 16 hold 120 MB.
    pub batch_queue: usize,
    /// How long superseded candles and the record of changes are kept: so far back an answer can be repeated by its revision.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { batch_workers: 1, batch_queue: 16, retention: Duration::from_secs(7 * 24 * 3600) }
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
    retention: Duration,
}

impl App {
    /// Binds the listener; nothing is answered until [`App::serve`].
    pub async fn build(server: &ServerConfig, config: Config, ports: Ports) -> Result<App, StartError> {
        let pool = CpuPool::new(config.batch_workers, config.batch_queue)?;
        let server = Server::bind("ingestion", server).await?;
        Ok(App { server, engine: Arc::new(Engine::new(ports.stores, pool)), retention: config.retention })
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
        let frames = flight::CandleFrames::new(Arc::clone(&self.engine), drain.clone());
        let server = self.server.add_grpc(service).add_grpc(mesh::flight::service(Arc::new(frames)));
        tokio::select! {
            outcome = server.serve(drain) => outcome,
            never = keep_pruned(&self.engine, self.retention) => match never {},
        }
    }
}

/// Deletes what is past the retention, for as long as it is polled. Replicas may all do it.
async fn keep_pruned(engine: &Engine, retention: Duration) -> Infallible {
    loop {
        match engine.prune(retention, now()).await {
            Ok(pruned) => tracing::debug!(blocks = pruned.blocks, changes = pruned.changes, "retention kept"),
            Err(error) => {
                tracing::warn!(error = mesh::fault::chain(&error), "superseded candles cannot be deleted now")
            }
        }
        tokio::time::sleep(PRUNE_INTERVAL).await;
    }
}

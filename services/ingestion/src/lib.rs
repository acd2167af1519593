//! Candles in: stores them, keeps master data, answers quotes, and streams stored candles to the rest of the mesh.
//!
//! The only service that touches candle tables. It does not aggregate, fill gaps or compute: what was delivered is what is
//! stored, once per open time.
//!
//! Map: [`App`] here; `grpc.rs` and `flight.rs` the two surfaces; `engine.rs` storing and reading, with `engine/batch.rs` (which rows
//! of a batch are good), `engine/master.rs` (instruments and groups), `engine/actions.rs` (splits
//! and dividends) and `engine/quote.rs`; `backfill.rs` jobs over files of a folder.

mod backfill;
mod engine;
mod flight;
mod grpc;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh::bus::Bus;
use mesh::clock::now;
use mesh::config::ServerConfig;
use mesh::{CpuPool, Drain, MAX_MESSAGE_BYTES, Server, StartError};
use proto::ingestion::backfill_service_server::BackfillServiceServer;
use proto::ingestion::change_service_server::ChangeServiceServer;
use proto::ingestion::ingestion_service_server::IngestionServiceServer;
use serde::{Deserialize, Serialize};

use crate::backfill::Backfills;
use crate::engine::{Engine, Feed};

/// How often candles past their retention are deleted: a day of it more or less matters to nobody, and the work is small.
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// Shortest lease of a backfill job.
const MIN_LEASE: Duration = Duration::from_secs(1);
/// How long a chunk under way may take when everything else has ended: as long as the store waits for a lock.
const WORKER_GRACE: Duration = Duration::from_secs(10);

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
    /// Changes kept in memory for those who watch; who is further behind reads the database. They take 32 MB at the most.
    pub change_ring: usize,
    /// Watchers of changes served at once; more are refused. Each holds a task and up to a few messages of 1 MB;
    /// one that is behind the memory another 1 MB of the record.
    pub max_change_subscribers: usize,
    /// How long a watcher may leave a message unread before it is cut off.
    #[serde(with = "humantime_serde")]
    pub slow_subscriber_after: Duration,
    /// Folder whose files backfill jobs may load; replicas that share a database must see the same files in it. Absent: no jobs.
    pub backfill_folder: Option<PathBuf>,
    /// Jobs this process runs at once; each has one chunk under way at the most, so one leaves the store to live candles.
    pub backfill_workers: usize,
    /// How long a job stays with a worker that gives no sign of life. A third of it passes between two signs.
    #[serde(with = "humantime_serde")]
    pub backfill_lease: Duration,
    /// Failures in a row, of a database that is away, after which a file is given up: twelve take about half an hour.
    pub backfill_attempts: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            batch_workers: 1,
            batch_queue: 16,
            retention: Duration::from_secs(7 * 24 * 3600),
            // Ten minutes of five thousand instruments: longer than any reader takes to come back.
            change_ring: 50_000,
            max_change_subscribers: 256,
            slow_subscriber_after: Duration::from_secs(10),
            backfill_folder: None,
            backfill_workers: 1,
            backfill_lease: Duration::from_secs(15),
            backfill_attempts: 12,
        }
    }
}

/// What the service needs from outside.
#[derive(Debug, Clone)]
pub struct Ports {
    pub stores: store::Stores,
    /// By which replicas tell each other that something was stored.
    pub bus: Bus,
}

/// The service, bound and ready to serve.
#[derive(Debug)]
pub struct App {
    server: Server,
    engine: Arc<Engine>,
    retention: Duration,
    slow_subscriber_after: Duration,
    backfills: Arc<Backfills>,
}

impl App {
    /// Binds the listener; nothing is answered until [`App::serve`].
    pub async fn build(server: &ServerConfig, config: Config, ports: Ports) -> Result<App, StartError> {
        let pool = CpuPool::new(config.batch_workers, config.batch_queue)?;
        let server = Server::bind("ingestion", server).await?;
        let candles = Arc::clone(&ports.stores.candles);
        let jobs = Arc::clone(&ports.stores.backfills);
        let feed = Feed::open(candles, ports.bus, config.change_ring, config.max_change_subscribers).await;
        let feed = feed.map_err(|error| StartError::Dependency { what: "the change log", source: Box::new(error) })?;
        let engine = Arc::new(Engine::new(ports.stores, pool, Arc::new(feed)));
        let (retention, slow_subscriber_after) = (config.retention, config.slow_subscriber_after);
        let settings = backfill::Settings {
            folder: config.backfill_folder,
            workers: config.backfill_workers,
            // Shorter ones would change hands between two signs of life.
            lease: config.backfill_lease.max(MIN_LEASE),
            attempts: config.backfill_attempts,
        };
        let backfills = Arc::new(Backfills::new(Arc::clone(&engine), jobs, settings));
        Ok(App { server, engine, retention, slow_subscriber_after, backfills })
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
        let feed = Arc::clone(self.engine.feed());
        let changes = grpc::Changes::new(feed, self.slow_subscriber_after, drain.clone());
        let server = self.server.add_grpc(service).add_grpc(mesh::flight::service(Arc::new(frames)));
        let server = server.add_grpc(ChangeServiceServer::new(changes));
        let jobs = grpc::BackfillCalls::new(Arc::clone(&self.backfills), drain.clone());
        let server = server.add_grpc(BackfillServiceServer::new(jobs));
        // Both end with the drain, the workers soon after it, with the chunk under way stored and their jobs handed back.
        let working = async {
            tokio::select! {
                () = self.backfills.work(&drain) => {}
                () = async { drain.started().await; tokio::time::sleep(WORKER_GRACE).await } => {}
            }
        };
        let serving = async {
            let outcome = server.serve(drain.clone()).await;
            // After a server that failed, too.
            drain.start();
            outcome
        };
        tokio::select! {
            (outcome, ()) = futures::future::join(serving, working) => outcome,
            never = keep_pruned(&self.engine, self.retention) => match never {},
            never = self.engine.feed().run() => match never {},
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

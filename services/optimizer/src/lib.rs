//! Strategy studies: a strategy's parameter space searched over real candles.
//!
//! A study is stored before it is acknowledged, waits in a bounded queue, and runs in chunks on the CPU pool; each trial is stored once,
//! under its number. Candles come from aggregation at the revision the study was created with, so a study that is cut off and taken up
//! again ends with the same trials. The crate holds no candles between studies and trades nothing. Replicas share the database but not
//! the work: one that starts takes up every unfinished study, also those of a replica that is alive, which costs time and changes no
//! result.
//!
//! - `grpc.rs`: the RPCs
//! - `engine.rs`: studies as callers see them; `engine/watch.rs`: their updates
//! - `engine/spec.rs`, `engine/space.rs`: what a study is to try, and in which order
//! - `engine/queue.rs`, `engine/run.rs`: waiting and running; `engine/data.rs`: its candles; `engine/trial.rs`: its figures

mod engine;
mod grpc;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use market::Millis;
use mesh::clock::now;
use mesh::config::ServerConfig;
use mesh::source::{Candles, MasterData};
use mesh::{CpuPool, Drain, MAX_MESSAGE_BYTES, Server, StartError};
use proto::optimizer::optimizer_service_server::OptimizerServiceServer;
use serde::{Deserialize, Serialize};

use engine::Studies;

/// Tells the time; the engine reads no clock of its own.
pub(crate) type Clock = fn() -> Millis;

/// Tunables of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Studies run at once: while one waits for candles or the database, another computes.
    pub max_concurrent_studies: usize,
    /// Studies waiting; more are refused. A hundred small ones are minutes of work.
    pub max_queued: usize,
    /// Tasks of one study on the CPU pool at once: with two studies a pool of four threads is busy, and others find a short queue.
    pub tasks_per_study: usize,
    /// Aim for one task on the CPU pool: what others sharing the pool wait for it. A single pass over a million candles takes longer.
    #[serde(with = "humantime_serde")]
    pub task_time: Duration,
    /// How often finished trials are stored and progress is told: work lost by a crash, against transactions per second.
    #[serde(with = "humantime_serde")]
    pub store_interval: Duration,
    /// Candles of all instruments of a study: 160 MB of closes.
    pub max_candles: usize,
    /// Times the candles of an instrument are asked for before the study fails: with the pauses below, some 30 seconds.
    pub fetch_attempts: u32,
    /// Longest wait for the candles of one instrument: ten years of minutes take seconds.
    #[serde(with = "humantime_serde")]
    pub fetch_timeout: Duration,
    /// Pause before the second attempt; it doubles with each further one.
    #[serde(with = "humantime_serde")]
    pub retry_pause: Duration,
    /// Longest pause; also the one before a database that is away is asked again.
    #[serde(with = "humantime_serde")]
    pub max_retry_pause: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_concurrent_studies: 2,
            max_queued: 100,
            tasks_per_study: 2,
            task_time: Duration::from_millis(10),
            store_interval: Duration::from_millis(250),
            max_candles: 20_000_000,
            fetch_attempts: 8,
            fetch_timeout: Duration::from_secs(120),
            retry_pause: Duration::from_millis(250),
            max_retry_pause: Duration::from_secs(8),
        }
    }
}

/// What the service needs from outside.
#[derive(Debug, Clone)]
pub struct Ports {
    pub candles: Arc<dyn Candles>,
    pub master: Arc<dyn MasterData>,
    pub studies: Arc<dyn store::StudyStore>,
    pub pool: Arc<CpuPool>,
}

/// The service, bound and ready to serve.
#[derive(Debug)]
pub struct App {
    server: Server,
    grace: Duration,
    config: Config,
    ports: Ports,
}

impl App {
    /// Binds the listener; asks nothing of its upstreams and runs nothing yet.
    pub async fn build(server: &ServerConfig, config: Config, ports: Ports) -> Result<App, StartError> {
        Ok(App { server: Server::bind("optimizer", server).await?, grace: server.grace, config, ports })
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Takes up unfinished studies and serves until drained. Running studies then stop at their chunk, stay running in the store, and go on
    /// with the next start.
    pub async fn serve(self, drain: Drain) -> Result<(), StartError> {
        let App { server, grace, config, ports } = self;
        let studies = Studies::new(ports, config, now, drain.clone());
        let service = grpc::Service { studies: Arc::clone(&studies) };
        let service = OptimizerServiceServer::new(service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let cut = async {
            drain.started().await;
            tokio::time::sleep(grace).await;
        };
        let work = async {
            tokio::select! {
                () = studies.work() => {}
                () = cut => tracing::warn!("grace is over; trials not stored yet are dropped"),
            }
            Ok(())
        };
        tokio::try_join!(server.add_grpc(service).serve(drain.clone()), work)?;
        Ok(())
    }
}

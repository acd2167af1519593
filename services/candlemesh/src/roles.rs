//! Builds a role from its configuration and its ports, and runs it.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh::source::{Changes, LiveCandles, MasterData, RemoteAggregation, RemoteIngestion};
use mesh::topology::RedisAddress;
use mesh::{CpuPool, Drain, StartError};
use store::Stores;

use crate::config::{Config, required};

/// A service of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Role {
    Ingestion,
    Aggregation,
    Indicator,
    Sequence,
    Optimizer,
    Gateway,
}

impl Role {
    /// Start order: each role only needs those before it.
    pub const ALL: [Role; 6] =
        [Role::Ingestion, Role::Aggregation, Role::Indicator, Role::Sequence, Role::Optimizer, Role::Gateway];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Ingestion => "ingestion",
            Role::Aggregation => "aggregation",
            Role::Indicator => "indicator",
            Role::Sequence => "sequence",
            Role::Optimizer => "optimizer",
            Role::Gateway => "gateway",
        }
    }

    /// Port of the role where none is configured.
    pub fn default_port(self) -> u16 {
        match self {
            Role::Gateway => 8080,
            Role::Ingestion => 7101,
            Role::Aggregation => 7102,
            Role::Indicator => 7103,
            Role::Sequence => 7104,
            Role::Optimizer => 7105,
        }
    }

    /// Whether the role keeps tables of its own.
    pub fn needs_database(self) -> bool {
        matches!(self, Role::Ingestion | Role::Sequence | Role::Optimizer | Role::Gateway)
    }
}

/// A built role, bound and ready to serve.
#[derive(Debug)]
pub enum App {
    Ingestion(ingestion::App),
    Aggregation(aggregation::App),
    Indicator(Box<indicator::App>),
    Sequence(sequence::App),
    Optimizer(optimizer::App),
    Gateway(gateway::App),
}

impl App {
    pub fn address(&self) -> SocketAddr {
        match self {
            App::Ingestion(app) => app.address(),
            App::Aggregation(app) => app.address(),
            App::Indicator(app) => app.address(),
            App::Sequence(app) => app.address(),
            App::Optimizer(app) => app.address(),
            App::Gateway(app) => app.address(),
        }
    }

    pub async fn serve(self, drain: Drain) -> Result<(), StartError> {
        match self {
            App::Ingestion(app) => app.serve(drain).await,
            App::Aggregation(app) => app.serve(drain).await,
            App::Indicator(app) => app.serve(drain).await,
            App::Sequence(app) => app.serve(drain).await,
            App::Optimizer(app) => app.serve(drain).await,
            App::Gateway(app) => app.serve(drain).await,
        }
    }
}

/// Opens the configured database.
pub async fn open_stores(config: &Config) -> Result<Stores, StartError> {
    let url = config.database_url()?;
    let stores = Stores::open(url, &store::StoreOptions::default()).await;
    stores.map_err(|error| StartError::Dependency { what: "the database", source: Box::new(error) })
}

/// Starts the CPU pool of the process.
pub fn cpu_pool(config: &Config) -> Result<Arc<CpuPool>, StartError> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let workers = if config.cpu_workers == 0 { cores } else { config.cpu_workers };
    Ok(Arc::new(CpuPool::new(workers, config.cpu_queue)?))
}

/// Builds a role. `stores` must be there for a role that [needs a database](Role::needs_database).
pub async fn build(
    role: Role,
    config: &Config,
    stores: Option<&Stores>,
    pool: &Arc<CpuPool>,
) -> Result<App, StartError> {
    let server = config.server(role.default_port());
    let stores = || stores.cloned().ok_or_else(|| StartError::from(mesh::config::ConfigError::new("no database")));
    let master = || -> Result<Arc<RemoteIngestion>, StartError> {
        Ok(Arc::new(RemoteIngestion::connect(required(&config.upstreams.ingestion, "ingestion")?)?))
    };
    let candles = || -> Result<Arc<RemoteAggregation>, StartError> {
        Ok(Arc::new(RemoteAggregation::connect(required(&config.upstreams.aggregation, "aggregation")?)?))
    };
    let engines = config.engines()?;
    let pool = Arc::clone(pool);
    Ok(match role {
        Role::Ingestion => {
            let ports = ingestion::Ports { stores: stores()?, bus: change_bus(config)? };
            App::Ingestion(ingestion::App::build(&server, config.ingestion.clone(), ports).await?)
        }
        Role::Aggregation => {
            let stored = master()?;
            let master = Arc::clone(&stored) as Arc<dyn MasterData>;
            let changes = Arc::clone(&stored) as Arc<dyn Changes>;
            let clock = Arc::new(mesh::clock::SystemClock);
            let ports = aggregation::Ports { stored, master, changes, clock, engines, pool };
            App::Aggregation(aggregation::App::build(&server, config.aggregation.clone(), ports).await?)
        }
        Role::Indicator => {
            let cache = indicator_cache(config, &pool)?;
            let (candles, master) = (candles()?, master()?);
            let live = Arc::clone(&candles) as Arc<dyn LiveCandles>;
            let ports = indicator::Ports { candles, live, master, engines, pool, cache };
            App::Indicator(Box::new(indicator::App::build(&server, config.indicator.clone(), ports).await?))
        }
        Role::Sequence => {
            let screens = stores()?.screens;
            let ports = sequence::Ports { candles: candles()?, master: master()?, screens, engines, pool };
            App::Sequence(sequence::App::build(&server, config.sequence.clone(), ports).await?)
        }
        Role::Optimizer => {
            let ports = optimizer::Ports { candles: candles()?, master: master()?, studies: stores()?.studies, pool };
            App::Optimizer(optimizer::App::build(&server, config.optimizer.clone(), ports).await?)
        }
        Role::Gateway => {
            let ports = gateway::Ports { flags: stores()?.flags, upstreams: gateway_upstreams(config)? };
            App::Gateway(gateway::App::build(&server, config.gateway.clone(), ports).await?)
        }
    })
}

/// Without Redis, replicas find each other's changes by asking the database.
fn change_bus(config: &Config) -> Result<mesh::bus::Bus, StartError> {
    Ok(match &config.redis_url {
        Some(url) => mesh::bus::Bus::redis(RedisAddress::parse(url, &config.redis_tls)?),
        None => mesh::bus::Bus::in_process(),
    })
}

fn indicator_cache(config: &Config, pool: &Arc<CpuPool>) -> Result<mesh::cache::Cache, StartError> {
    let cache = config.indicator.local_cache();
    Ok(match &config.redis_url {
        Some(url) => {
            let address = RedisAddress::parse(url, &config.redis_tls)?;
            cache.with_shared(address, config.indicator.shared_cache(), Arc::clone(pool))
        }
        None => cache,
    })
}

fn gateway_upstreams(config: &Config) -> Result<gateway::Upstreams, StartError> {
    let upstreams = &config.upstreams;
    Ok(gateway::Upstreams {
        ingestion: required(&upstreams.ingestion, "ingestion")?.to_owned(),
        aggregation: required(&upstreams.aggregation, "aggregation")?.to_owned(),
        aggregation_v2: upstreams.aggregation_v2.clone(),
        indicator: required(&upstreams.indicator, "indicator")?.to_owned(),
        indicator_v2: upstreams.indicator_v2.clone(),
        sequence: required(&upstreams.sequence, "sequence")?.to_owned(),
        sequence_v2: upstreams.sequence_v2.clone(),
        optimizer: required(&upstreams.optimizer, "optimizer")?.to_owned(),
    })
}

/// Serves one role until drained; its address is written to `ready_file` once it serves.
pub async fn serve(
    role: Role,
    config: &Config,
    ready_file: Option<&std::path::Path>,
    drain: Drain,
) -> Result<(), StartError> {
    // A bad value stops the process before anything is opened.
    config.engines()?;
    let stores = match role.needs_database() {
        true => Some(open_stores(config).await?),
        false => None,
    };
    let pool = cpu_pool(config)?;
    let app = build(role, config, stores.as_ref(), &pool).await?;
    if let Some(listen) = config.metrics_listen {
        mesh::telemetry::serve_metrics(listen, drain.clone()).await?;
    }
    let address = app.address();
    let serving = app.serve(drain.clone());
    tracing::info!(role = role.as_str(), %address, "serving");
    let ready = async {
        let Some(path) = ready_file else { return Ok(()) };
        let target = format!("http://{address}");
        crate::client::health::wait(&target, crate::up::READY_TIMEOUT).await?;
        crate::up::write_ready_file(path, &[(role, address)])
    };
    let running = async {
        tokio::join!(serving, async {
            let outcome = ready.await;
            if outcome.is_err() {
                drain.start();
            }
            outcome
        })
    };
    let watching = async {
        match &stores {
            Some(stores) => stores.watch_pool().await,
            None => std::future::pending().await,
        }
    };
    let (served, ready) = tokio::select! {
        outcomes = running => outcomes,
        never = watching => match never {},
    };
    if let Some(stores) = stores {
        stores.close().await;
    }
    // Joining threads blocks. What is still in work has lost its caller when the grace was over, and ends early where it is long.
    let _ = tokio::task::spawn_blocking(move || pool.shutdown()).await;
    ready.and(served)
}

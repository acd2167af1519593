//! The whole mesh in one process: every role on a loopback listener of its own, SQLite under a data directory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh::{Drain, StartError};
use store::Stores;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::roles::{self, App, Role};

/// How long all roles may take until they answer their health check.
pub const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// A running mesh. Stop it with [`Mesh::stop`]; dropped, its tasks end with the runtime.
#[derive(Debug)]
pub struct Mesh {
    addresses: Vec<(Role, SocketAddr)>,
    drain: Drain,
    tasks: Vec<JoinHandle<Result<(), StartError>>>,
    stores: Stores,
    /// Keeps the CPU threads until the roles have ended.
    pool: std::sync::Arc<mesh::CpuPool>,
}

impl Mesh {
    /// Starts every role; returns once all of them serve.
    ///
    /// `config.listen` is the gateway's address; the other roles take free loopback ports. Without a
    /// `config.database_url`, `data_dir/candlemesh.db` is opened, and created when missing.
    pub async fn start(mut config: Config, data_dir: Option<&Path>, drain: Drain) -> Result<Mesh, StartError> {
        if config.database_url.is_none() {
            config.database_url = Some(database_in(data_dir)?);
        }
        let stores = roles::open_stores(&config).await?;
        let pool = roles::cpu_pool(&config)?;
        let gateway_listen = config.listen;
        let mut mesh = Mesh { addresses: Vec::new(), drain, tasks: Vec::new(), stores, pool };
        for role in Role::ALL {
            config.listen = match role {
                Role::Gateway => gateway_listen,
                _ => Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            };
            let app = roles::build(role, &config, Some(&mesh.stores), &mesh.pool).await?;
            mesh.run(role, app, &mut config);
        }
        for (role, address) in &mesh.addresses {
            tracing::debug!(role = role.as_str(), %address, "waiting for health");
            crate::client::health::wait(&format!("http://{}", reachable(*address)), READY_TIMEOUT).await?;
        }
        Ok(mesh)
    }

    fn run(&mut self, role: Role, app: App, config: &mut Config) {
        let address = app.address();
        let target = Some(format!("http://{}", reachable(address)));
        match role {
            Role::Ingestion => config.upstreams.ingestion = target,
            Role::Aggregation => config.upstreams.aggregation = target,
            Role::Indicator => config.upstreams.indicator = target,
            Role::Sequence => config.upstreams.sequence = target,
            Role::Optimizer => config.upstreams.optimizer = target,
            Role::Gateway => {}
        }
        self.addresses.push((role, address));
        self.tasks.push(tokio::spawn(app.serve(self.drain.clone())));
    }

    pub fn addresses(&self) -> &[(Role, SocketAddr)] {
        &self.addresses
    }

    /// `http://host:port` of the gateway.
    pub fn gateway(&self) -> String {
        let address = self.addresses.iter().find(|(role, _)| *role == Role::Gateway);
        let address = address.map(|(_, address)| *address).expect("start() adds every role, the gateway among them");
        format!("http://{}", reachable(address))
    }

    /// Runs until the drain starts or a role ends, then drains the others.
    pub async fn wait(self) -> Result<(), StartError> {
        let drain = self.drain.clone();
        let mut tasks: futures::stream::FuturesUnordered<_> = self.tasks.into_iter().collect();
        let mut outcome = Ok(());
        while let Some(ended) = futures::StreamExt::next(&mut tasks).await {
            drain.start();
            let ended = ended.unwrap_or_else(|error| Err(StartError::Serve(Box::new(error))));
            outcome = outcome.and(ended);
        }
        self.stores.close().await;
        let pool = self.pool;
        // Joining threads blocks; the pool has nothing left to do by now.
        let _ = tokio::task::spawn_blocking(move || pool.shutdown()).await;
        outcome
    }

    /// Drains and waits.
    pub async fn stop(self) -> Result<(), StartError> {
        self.drain.start();
        self.wait().await
    }
}

/// A listener on the unspecified address is reached over loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip().is_unspecified() {
        true => SocketAddr::from(([127, 0, 0, 1], address.port())),
        false => address,
    }
}

fn database_in(data_dir: Option<&Path>) -> Result<String, StartError> {
    let directory = data_dir.map_or_else(|| PathBuf::from("candlemesh-data"), Path::to_path_buf);
    let refuse = |source: std::io::Error| StartError::Dependency {
        what: "the data directory",
        source: format!("{}: {source}", directory.display()).into(),
    };
    std::fs::create_dir_all(&directory).map_err(refuse)?;
    let directory = directory.canonicalize().map_err(refuse)?;
    Ok(format!("sqlite://{}", directory.join("candlemesh.db").display()))
}

/// Writes the addresses as JSON, whole or not at all: `{"gateway": "http://...", "ingestion": "http://...", ...}`.
pub fn write_ready_file(path: &Path, addresses: &[(Role, SocketAddr)]) -> Result<(), StartError> {
    let mut json = serde_json::Map::new();
    let gateway_first = addresses.iter().filter(|(role, _)| *role == Role::Gateway);
    let rest = addresses.iter().filter(|(role, _)| *role != Role::Gateway);
    for (role, address) in gateway_first.chain(rest) {
        json.insert(role.as_str().to_owned(), format!("http://{}", reachable(*address)).into());
    }
    let part = path.with_extension("part");
    let written = std::fs::write(&part, format!("{}\n", serde_json::Value::Object(json)))
        .and_then(|()| std::fs::rename(&part, path));
    written.map_err(|source| StartError::Dependency {
        what: "the ready file",
        source: format!("{}: {source}", path.display()).into(),
    })
}

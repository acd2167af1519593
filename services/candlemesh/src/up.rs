//! The whole mesh in one process: every role on a loopback listener of its own, SQLite under a data directory.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
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
    /// Held while the mesh runs: two meshes on one database would each trust what they alone have cached and claimed.
    _data_lock: Option<File>,
}

impl Mesh {
    /// Starts every role; returns once all of them serve.
    ///
    /// `config.listen` is the gateway's address; the other roles take free loopback ports. Without a
    /// `config.database_url`, `data_dir/candlemesh.db` is opened, and created when missing.
    /// Without a `config.ingestion.backfill_folder` it is `data_dir/backfill`.
    ///
    /// Errors: among others, another mesh runs on `data_dir`.
    pub async fn start(mut config: Config, data_dir: Option<&Path>, drain: Drain) -> Result<Mesh, StartError> {
        // A bad value stops the process before anything is opened.
        config.engines()?;
        let mut data_lock = None;
        if config.database_url.is_none() {
            let (url, lock) = database_in(data_dir)?;
            config.database_url = Some(url);
            data_lock = Some(lock);
        }
        if config.ingestion.backfill_folder.is_none() {
            config.ingestion.backfill_folder = data_dir.map(backfill_folder_in).transpose()?;
        }
        let stores = roles::open_stores(&config).await?;
        let pool = roles::cpu_pool(&config)?;
        let gateway_listen = config.listen;
        let mut mesh = Mesh { addresses: Vec::new(), drain, tasks: Vec::new(), stores, pool, _data_lock: data_lock };
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
        let running = async {
            while let Some(ended) = futures::StreamExt::next(&mut tasks).await {
                drain.start();
                let ended = ended.unwrap_or_else(|error| Err(StartError::Serve(Box::new(error))));
                outcome = std::mem::replace(&mut outcome, Ok(())).and(ended);
            }
        };
        tokio::select! {
            () = running => {}
            never = self.stores.watch_pool() => match never {},
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

/// The folder whose files may be loaded where no other is configured, created when missing.
fn backfill_folder_in(data_dir: &Path) -> Result<PathBuf, StartError> {
    let folder = data_dir.join("backfill");
    let created = std::fs::create_dir_all(&folder);
    created.map(|()| folder.clone()).map_err(|source| StartError::Dependency {
        what: "the backfill folder",
        source: format!("{}: {source}", folder.display()).into(),
    })
}

/// The database's URL, and the lock that keeps other meshes away from it; the system frees it when a process dies.
pub(crate) fn database_in(data_dir: Option<&Path>) -> Result<(String, File), StartError> {
    let directory = data_dir.map_or_else(|| PathBuf::from("candlemesh-data"), Path::to_path_buf);
    let refuse = |reason: String| StartError::Dependency {
        what: "the data directory",
        source: format!("{}: {reason}", directory.display()).into(),
    };
    let failed = |source: std::io::Error| refuse(source.to_string());
    std::fs::create_dir_all(&directory).map_err(failed)?;
    let canonical = directory.canonicalize().map_err(failed)?;
    let lock = File::create(canonical.join("candlemesh.lock")).map_err(failed)?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => refuse("another candlemesh runs on it; stop that one, or name another".to_owned()),
        TryLockError::Error(source) => failed(source),
    })?;
    Ok((format!("sqlite://{}", canonical.join("candlemesh.db").display()), lock))
}

/// Removes what an earlier process has left, so that the file is there only once this one serves.
pub fn clear_ready_file(path: &Path) -> Result<(), StartError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(unavailable(path, &source)),
        _ => Ok(()),
    }
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
    written.map_err(|source| unavailable(path, &source))
}

fn unavailable(ready_file: &Path, source: &std::io::Error) -> StartError {
    StartError::Dependency { what: "the ready file", source: format!("{}: {source}", ready_file.display()).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_has_one_owner_until_it_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let (url, lock) = database_in(Some(folder.path())).unwrap();
        assert!(url.starts_with("sqlite://") && url.ends_with("/candlemesh.db"), "{url}");
        let refused = database_in(Some(folder.path())).unwrap_err();
        let StartError::Dependency { source, .. } = refused else { panic!("{refused:?}") };
        assert!(source.to_string().contains("another candlemesh runs on it"), "{source}");
        drop(lock);
        database_in(Some(folder.path())).unwrap();
    }

    #[test]
    fn a_ready_file_of_an_earlier_process_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ready.json");
        clear_ready_file(&path).unwrap();
        write_ready_file(&path, &[(Role::Gateway, SocketAddr::from(([0, 0, 0, 0], 8080)))]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"gateway\":\"http://127.0.0.1:8080\"}\n");
        clear_ready_file(&path).unwrap();
        assert!(!path.exists());
    }
}

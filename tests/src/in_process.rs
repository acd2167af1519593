//! The whole mesh in the test's own process, on loopback ports, with SQLite in a temporary folder.

use anyhow::Result;
use candlemesh::config::Config;
use candlemesh::up::Mesh;
use mesh::Drain;
use tempfile::TempDir;

/// A running mesh. Dropped without [`stop`](Self::stop), as after a failure, its tasks end with the test's runtime.
#[derive(Debug)]
pub struct InProcess {
    mesh: Mesh,
    folder: TempDir,
}

impl InProcess {
    /// Starts every role; returns once all of them serve.
    pub async fn start() -> Result<InProcess> {
        let folder = tempfile::Builder::new().prefix("candlemesh-up").tempdir()?;
        let config = Config { listen: Some(([127, 0, 0, 1], 0).into()), ..Config::default() };
        let mesh = Mesh::start(config, Some(&folder.path().join("data")), Drain::new()).await?;
        Ok(InProcess { mesh, folder })
    }

    /// `http://host:port` of the gateway.
    pub fn gateway(&self) -> String {
        self.mesh.gateway()
    }

    /// A folder of the test's own, deleted with the mesh.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Drains every role; an error if one did not end well.
    pub async fn stop(self) -> Result<()> {
        Ok(self.mesh.stop().await?)
    }
}

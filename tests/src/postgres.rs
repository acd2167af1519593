//! A PostgreSQL server for tests, in a temporary directory.

use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::server_process::{ServerProcess, find_program, free_port, missing};

/// Ports can be taken between choosing and binding them.
const ATTEMPTS: usize = 3;

/// A server of its own, with `fsync` on. Dropping it stops the server and deletes its data.
#[derive(Debug)]
pub struct Postgres {
    // Before the directory, so that it ends before its files do.
    process: Option<ServerProcess>,
    folder: TempDir,
    programs: PathBuf,
    /// User and group to run as, when the test runs as root, which the server refuses.
    user: Option<(u32, u32)>,
    port: u16,
}

impl Postgres {
    /// Starts a server. Errors when PostgreSQL is not installed or does not come up.
    pub fn start() -> Result<Self> {
        let programs =
            programs().context("initdb was not found: apt-get install -y --no-install-recommends postgresql-15")?;
        let folder = tempfile::Builder::new().prefix("candlemesh-pg").tempdir()?;
        // The directory just made tells who we are.
        let user = if std::fs::metadata(folder.path())?.uid() == 0 { Some(postgres_user()?) } else { None };
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid))?;
        }
        let mut server = Self { process: None, folder, programs, user, port: 0 };
        let data = server.data();
        let output = server
            .command("initdb")
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "-D"])
            .arg(&data)
            .output()?;
        ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        let mut outcome = Ok(());
        for _ in 0..ATTEMPTS {
            server.port = free_port()?;
            outcome = server.run();
            if outcome.is_ok() {
                break;
            }
        }
        outcome.map(|()| server)
    }

    /// [`start`](Self::start), or `None` with a printed line where PostgreSQL is not installed; `CANDLEMESH_REQUIRE_SERVERS=1` makes that an error.
    pub fn start_if_installed() -> Result<Option<Self>> {
        if programs().is_none() {
            missing("PostgreSQL", "postgresql-15")?;
            return Ok(None);
        }
        Self::start().map(Some)
    }

    /// URL of the database `postgres`.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Creates an empty database and returns its URL.
    pub fn create_database(&self, name: &str) -> Result<String> {
        self.client("createdb", &[name])?;
        Ok(self.url_of(name))
    }

    /// The same with its tables, but not the log of the server, in an empty folder, which becomes the server's.
    pub fn create_database_in(&self, name: &str, folder: &Path) -> Result<String> {
        if let Some((uid, gid)) = self.user {
            chown(folder, Some(uid), Some(gid))?;
        }
        let create = format!("create tablespace {name}_space location '{}'", folder.display());
        self.client("psql", &["--command", &create, "postgres"])?;
        self.client("createdb", &["--tablespace", &format!("{name}_space"), name])?;
        Ok(self.url_of(name))
    }

    fn client(&self, program: &str, args: &[&str]) -> Result<()> {
        let port = self.port.to_string();
        let mut command = self.command(program);
        command.args(["--host=127.0.0.1", "--username=postgres", "--no-password", "--port", &port]).args(args);
        let output = command.output()?;
        ensure!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Ends the server as a crash would, without a checkpoint. [`restart`](Self::restart) brings it back.
    pub fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.stop("QUIT"),
            None => Ok(()),
        }
    }

    /// Ends the server as a crash would, and starts it again on the same port and data.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.run()
    }

    fn run(&mut self) -> Result<()> {
        let port = self.port.to_string();
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &port, "-k"]).arg(self.folder.path());
        for setting in ["listen_addresses=127.0.0.1", "fsync=on", "shared_buffers=64MB", "max_connections=100"] {
            command.args(["-c", setting]);
        }
        let is_ready = || {
            let mut probe = self.command("pg_isready");
            probe.args(["--quiet", "--host=127.0.0.1", "--username=postgres", "--port", &port]);
            probe.status().is_ok_and(|status| status.success())
        };
        let process = ServerProcess::start(command, &self.folder.path().join("server.log"), is_ready)?;
        self.process = Some(process);
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(self.folder.path());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }
}

/// The folder of the newest installed version's programs.
fn programs() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    versions.sort();
    versions.reverse();
    let initdb = find_program("initdb", &versions)?;
    // A link on the search path leads to a folder that holds the server too.
    let initdb = initdb.canonicalize().ok()?;
    initdb.parent().map(Path::to_owned)
}

fn postgres_user() -> Result<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd")?;
    let line = users
        .lines()
        .find(|line| line.starts_with("postgres:"))
        .context("there is no user 'postgres' to run the server as")?;
    let mut ids = line.split(':').skip(2).map(str::parse::<u32>);
    match (ids.next(), ids.next()) {
        (Some(Ok(uid)), Some(Ok(gid))) => Ok((uid, gid)),
        _ => anyhow::bail!("/etc/passwd has no ids for 'postgres'"),
    }
}

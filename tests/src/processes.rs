//! The executable as processes: `up`, six `serve` on PostgreSQL and Redis, and commands that run to their end.
//!
//! A process is ended by its own handle only, also when the test fails; the end of its log is then printed.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

/// Longest wait for a process to serve or to end: a loaded machine with two cores takes a few seconds.
const WAIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Lines of the log printed after a failure.
const LOG_LINES: usize = 40;

/// Roles in start order: each needs only those before it.
pub const ROLES: [&str; 6] = ["ingestion", "aggregation", "indicator", "sequence", "optimizer", "gateway"];

/// A command of the executable that knows nothing of the test's own settings.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CANDLEMESH_") {
            command.env_remove(name);
        }
    }
    command.env("CANDLEMESH_TELEMETRY__LOG", "info").stdin(Stdio::null());
    command
}

/// Runs a command to its end, without blocking the runtime that may be serving it.
pub async fn run(mut command: Command) -> Result<Output> {
    let name = format!("{command:?}");
    let ended = tokio::task::spawn_blocking(move || command.output());
    let ended = tokio::time::timeout(WAIT * 2, ended).await.with_context(|| format!("{name} does not end"))?;
    ended?.with_context(|| format!("starting {name}"))
}

/// A process that wrote its ready file. Dropping it kills it, and prints the end of its log unless it had ended before.
#[derive(Debug)]
pub struct Process {
    child: Child,
    has_ended: bool,
    name: String,
    log: PathBuf,
    addresses: BTreeMap<String, String>,
}

impl Process {
    /// Starts a command, adding `--ready-file`, and waits until it serves.
    pub async fn start(name: &str, mut command: Command, folder: &Path) -> Result<Process> {
        let (ready, log) = (folder.join(format!("{name}.ready")), folder.join(format!("{name}.log")));
        match std::fs::remove_file(&ready) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let output = File::options().create(true).append(true).open(&log)?;
        command.arg("--ready-file").arg(&ready).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let mut process = Process { child, has_ended: false, name: name.to_owned(), log, addresses: BTreeMap::new() };
        let started = Instant::now();
        while !ready.exists() {
            let ended = process.child.try_wait()?;
            if ended.is_some() || started.elapsed() > WAIT {
                bail!("{name} did not come up ({ended:?})");
            }
            tokio::time::sleep(POLL).await;
        }
        process.addresses = serde_json::from_reader(File::open(&ready)?)?;
        Ok(process)
    }

    /// `http://host:port` of a role.
    pub fn address(&self, role: &str) -> Result<&str> {
        let address = self.addresses.get(role).map(String::as_str);
        address.with_context(|| format!("the ready file of {} has no '{role}'", self.name))
    }

    /// kill -9, and waits for the end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.has_ended = true;
        Ok(())
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) -> Result<()> {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        Ok(())
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let asked = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.has_ended = status.success();
                return Ok(status);
            }
            if asked.elapsed() > WAIT {
                bail!("{} does not end", self.name);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn last_lines(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing can be done about a process that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !self.has_ended {
            eprintln!("--- end of the log of {}:\n{}", self.name, self.last_lines());
        }
    }
}

const ANY_PORT: &str = "127.0.0.1:0";

/// `candlemesh up` on a data directory that outlives it.
#[derive(Debug)]
pub struct Up {
    program: PathBuf,
    folder: TempDir,
    settings: Vec<(String, String)>,
    process: Process,
}

impl Up {
    pub async fn start(program: &Path) -> Result<Up> {
        Up::start_with(program, &[]).await
    }

    /// With settings as environment variables, which it keeps when it is restarted.
    pub async fn start_with(program: &Path, settings: &[(&str, &str)]) -> Result<Up> {
        let folder = tempfile::Builder::new().prefix("candlemesh-up").tempdir()?;
        let settings: Vec<_> = settings.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let process = Up::run(program, folder.path(), &settings, ANY_PORT).await?;
        Ok(Up { program: program.to_owned(), folder, settings, process })
    }

    async fn run(program: &Path, folder: &Path, settings: &[(String, String)], listen: &str) -> Result<Process> {
        let mut command = command(program);
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        command.arg("up").arg("--data-dir").arg(folder.join("data")).args(["--listen", listen]);
        Process::start("up", command, folder).await
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn gateway(&self) -> Result<String> {
        Ok(self.process.address("gateway")?.to_owned())
    }

    /// Where its database lies.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Asks it to end; an error if it does not end with status 0.
    pub async fn stop(mut self) -> Result<()> {
        self.process.terminate()?;
        let status = self.process.ended().await?;
        ensure!(status.success(), "up ended with {status}");
        Ok(())
    }

    /// Starts it again on the same data, on another port.
    pub async fn restart(&mut self) -> Result<()> {
        self.process = Up::run(&self.program, self.folder.path(), &self.settings, ANY_PORT).await?;
        Ok(())
    }

    /// Starts it again on the same data and where it was, once it has ended.
    pub async fn restart_in_place(&mut self) -> Result<()> {
        let gateway = self.gateway()?;
        let listen = gateway.trim_start_matches("http://");
        self.process = Up::run(&self.program, self.folder.path(), &self.settings, listen).await?;
        Ok(())
    }
}

/// One `serve` process per role.
#[derive(Debug)]
pub struct Processes {
    program: PathBuf,
    database_url: String,
    redis_url: String,
    /// In start order.
    roles: Vec<(&'static str, Process)>,
    folder: TempDir,
}

impl Processes {
    /// Starts the six roles, each once those it needs serve.
    pub async fn start(program: &Path, database_url: &str, redis_url: &str) -> Result<Processes> {
        let mut processes = Processes {
            program: program.to_owned(),
            database_url: database_url.to_owned(),
            redis_url: redis_url.to_owned(),
            roles: Vec::new(),
            folder: tempfile::Builder::new().prefix("candlemesh-serve").tempdir()?,
        };
        for role in ROLES {
            let process = processes.run(role, "127.0.0.1:0").await?;
            processes.roles.push((role, process));
        }
        Ok(processes)
    }

    /// `http://host:port` of the gateway.
    pub fn gateway(&self) -> Result<String> {
        Ok(self.role("gateway")?.1.address("gateway")?.to_owned())
    }

    /// kill -9 of a role.
    pub fn kill(&mut self, role: &str) -> Result<()> {
        let (_, process) = self.roles.iter_mut().find(|(name, _)| *name == role).context("no such role")?;
        process.kill()
    }

    /// Starts a killed role again on its port, where the others look for it.
    pub async fn restart(&mut self, role: &str) -> Result<()> {
        let (role, process) = self.role(role)?;
        let listen = process.address(role)?.trim_start_matches("http://").to_owned();
        let role = *role;
        let process = self.run(role, &listen).await?;
        if let Some(slot) = self.roles.iter_mut().find(|(name, _)| *name == role) {
            slot.1 = process;
        }
        Ok(())
    }

    /// Asks every role to end, the gateway first; an error if one does not end with status 0.
    pub async fn stop(mut self) -> Result<()> {
        for (role, process) in self.roles.iter_mut().rev() {
            process.terminate()?;
            let status = process.ended().await?;
            ensure!(status.success(), "{role} ended with {status}");
        }
        Ok(())
    }

    async fn run(&self, role: &str, listen: &str) -> Result<Process> {
        let mut command = command(&self.program);
        command.args(["serve", role, "--listen", listen]);
        command.env("CANDLEMESH_DATABASE_URL", &self.database_url).env("CANDLEMESH_REDIS_URL", &self.redis_url);
        // Each role needs only those before it.
        for (upstream, process) in self.roles.iter().take_while(|(upstream, _)| *upstream != role) {
            let variable = format!("CANDLEMESH_UPSTREAMS__{}", upstream.to_ascii_uppercase());
            command.env(variable, process.address(upstream)?);
        }
        Process::start(role, command, self.folder.path()).await
    }

    fn role(&self, role: &str) -> Result<&(&'static str, Process)> {
        self.roles.iter().find(|(name, _)| *name == role).with_context(|| format!("no role '{role}'"))
    }
}

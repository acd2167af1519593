//! A server process that a test starts itself, on a port of its own, and stops by its own process id, also when the test fails.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Longest wait for a server to answer or to end: a loaded machine with two cores takes a few seconds.
const WAIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    log: PathBuf,
}

impl ServerProcess {
    /// Starts the command with its output in `log`, and waits until `is_ready`.
    pub fn start(mut command: Command, log: &Path, is_ready: impl Fn() -> bool) -> Result<Self> {
        let output = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let mut server = Self { child, log: log.to_owned() };
        let started = Instant::now();
        while !is_ready() {
            let ended = server.child.try_wait()?;
            if ended.is_some() || started.elapsed() > WAIT {
                bail!("{command:?} did not come up ({ended:?}):\n{}", server.output());
            }
            std::thread::sleep(POLL);
        }
        Ok(server)
    }

    /// Sends a signal by name and waits for the end; a server that ignores it is killed.
    pub fn stop(&mut self, signal: &str) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status()?;
        let asked = Instant::now();
        while self.child.try_wait()?.is_none() {
            if asked.elapsed() > WAIT {
                self.child.kill()?;
                self.child.wait()?;
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // The children of PostgreSQL end with it on INT; Redis ends on it too.
        if self.stop("INT").is_err() {
            let _ = self.child.kill();
        }
    }
}

/// A loopback port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The first existing one of some paths, or of a name on the search path.
pub fn find_program(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let candidates = folders.iter().cloned().chain(std::env::split_paths(&search));
    candidates.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// What to do about a missing server: skip with a printed line, or fail where the environment requires servers.
pub fn missing(what: &str, package: &str) -> Result<()> {
    let advice = format!("{what} is not installed: apt-get install -y --no-install-recommends {package}");
    if std::env::var("CANDLEMESH_REQUIRE_SERVERS").is_ok_and(|value| value == "1") {
        bail!("{advice} (CANDLEMESH_REQUIRE_SERVERS=1 forbids skipping)");
    }
    eprintln!("skipped: {advice}");
    Ok(())
}

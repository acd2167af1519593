//! A Redis server for tests, without persistence.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::server_process::{ServerProcess, find_program, free_port, missing};

/// Ports can be taken between choosing and binding them.
const ATTEMPTS: usize = 3;

/// A server of its own. Dropping it stops the server.
#[derive(Debug)]
pub struct Redis {
    process: Option<ServerProcess>,
    folder: TempDir,
    program: PathBuf,
    port: u16,
    arguments: Vec<String>,
}

impl Redis {
    /// Starts a server. Errors when Redis is not installed or does not come up.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// Starts a server with further arguments on its command line.
    pub fn start_with(arguments: &[&str]) -> Result<Self> {
        let program =
            program().context("redis-server was not found: apt-get install -y --no-install-recommends redis-server")?;
        let folder = tempfile::Builder::new().prefix("candlemesh-redis").tempdir()?;
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut server = Self { process: None, folder, program, port: 0, arguments };
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

    /// [`start`](Self::start), or `None` with a printed line where Redis is not installed; `CANDLEMESH_REQUIRE_SERVERS=1` makes that an error.
    pub fn start_if_installed() -> Result<Option<Self>> {
        if program().is_none() {
            missing("Redis", "redis-server")?;
            return Ok(None);
        }
        Self::start().map(Some)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends the server, and with it everything it holds. [`restart`](Self::restart) brings it back.
    pub fn stop(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.stop("TERM"),
            None => Ok(()),
        }
    }

    /// Starts it again, empty, on the same port.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.run()
    }

    fn run(&mut self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.current_dir(self.folder.path());
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--appendonly", "no"]);
        command.args(&self.arguments);
        let port = self.port;
        let process = ServerProcess::start(command, &self.folder.path().join("server.log"), || answers(port))?;
        self.process = Some(process);
        Ok(())
    }
}

/// Whether a PING comes back as a PONG.
fn answers(port: u16) -> bool {
    let ping = || -> std::io::Result<bool> {
        let timeout = Duration::from_millis(500);
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer)?;
        Ok(&answer == b"+PONG\r\n")
    };
    ping().unwrap_or(false)
}

fn program() -> Option<PathBuf> {
    find_program("redis-server", &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_server_answers_no_more_and_comes_back() {
        let Some(mut redis) = Redis::start_if_installed().unwrap() else { return };
        assert!(answers(redis.port));
        redis.stop().unwrap();
        assert!(!answers(redis.port));
        redis.restart().unwrap();
        assert!(answers(redis.port));
    }
}

//! Redis as more than one server: a Cluster, a master with Sentinels, and a server that speaks TLS alone.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::redis::Redis;
use crate::server_process::{ServerProcess, find_program, free_port};

const WAIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
const MASTERS: usize = 3;
/// Name of the service that the Sentinels watch.
pub const SERVICE: &str = "cache";

/// Three masters that share the slots.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
}

impl RedisCluster {
    pub fn start() -> Result<Self> {
        let start = |_| Redis::start_with(&["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]);
        let nodes = (0..MASTERS).map(start).collect::<Result<Vec<_>>>()?;
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]);
        create.args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port()))).arg("--cluster-yes");
        let made = create.output().context("redis-cli")?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        for node in &nodes {
            wait("the cluster is whole", || Ok(cli(node.port(), &["cluster", "info"])?.contains("cluster_state:ok")))?;
        }
        Ok(Self { nodes })
    }

    pub fn url(&self) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis+cluster://{}", nodes.join(","))
    }

    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }
}

/// A master, a replica, and a Sentinel that makes the one the other.
#[derive(Debug)]
pub struct RedisSentinel {
    pub master: Redis,
    pub replica: Redis,
    _sentinel: ServerProcess,
    port: u16,
    _folder: TempDir,
}

impl RedisSentinel {
    pub fn start() -> Result<Self> {
        let master = Redis::start()?;
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &master.port().to_string()])?;
        let folder = tempfile::Builder::new().prefix("candlemesh-sentinel").tempdir()?;
        let (port, config) = (free_port()?, folder.path().join("sentinel.conf"));
        let lines = format!(
            "bind 127.0.0.1\nport {port}\ndir {}\nsentinel monitor {SERVICE} 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds {SERVICE} 1000\nsentinel failover-timeout {SERVICE} 10000\n",
            folder.path().display(),
            master.port(),
        );
        std::fs::write(&config, lines)?;
        let program = find_program("redis-server", &[]).context("redis-server")?;
        let mut command = Command::new(program);
        command.arg(&config).arg("--sentinel");
        let ready = || cli(port, &["ping"]).is_ok_and(|answer| answer.starts_with("PONG"));
        let sentinel = ServerProcess::start(command, &folder.path().join("sentinel.log"), ready)?;
        wait("the replica follows", || Ok(cli(replica.port(), &["info", "replication"])?.contains("link_status:up")))?;
        wait("the sentinel knows the replica", || {
            Ok(cli(port, &["sentinel", "master", SERVICE])?.contains("num-slaves\n1"))
        })?;
        Ok(Self { master, replica, _sentinel: sentinel, port, _folder: folder })
    }

    pub fn url(&self) -> String {
        format!("redis+sentinel://127.0.0.1:{}/{SERVICE}", self.port)
    }
}

/// A server with a certificate of its own authority.
#[derive(Debug)]
pub struct RedisTlsServer {
    _server: Redis,
    port: u16,
    folder: TempDir,
}

impl RedisTlsServer {
    pub fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("candlemesh-tls").tempdir()?;
        let openssl = |line: &str| -> Result<()> {
            let made = Command::new("openssl").args(line.split(' ')).current_dir(folder.path()).output()?;
            ensure!(made.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&made.stderr));
            Ok(())
        };
        openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.pem -subj /CN=authority")?;
        openssl("req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=localhost")?;
        std::fs::write(folder.path().join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n")?;
        openssl(
            "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out cert.pem -extfile names",
        )?;
        let port = free_port()?;
        let path = |name: &str| folder.path().join(name).display().to_string();
        let server = Redis::start_with(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &path("cert.pem"),
            "--tls-key-file",
            &path("key.pem"),
            "--tls-ca-cert-file",
            &path("ca.pem"),
        ])?;
        Ok(Self { _server: server, port, folder })
    }

    pub fn url(&self) -> String {
        format!("rediss://localhost:{}", self.port)
    }

    /// A certificate of the folder: `ca.pem`, `cert.pem` or `key.pem`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn cli(port: u16, arguments: &[&str]) -> Result<String> {
    let answer = Command::new("redis-cli").args(["-p", &port.to_string()]).args(arguments).output()?;
    Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
}

fn wait(what: &str, holds: impl Fn() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !holds()? {
        ensure!(started.elapsed() < WAIT, "never: {what}");
        std::thread::sleep(POLL);
    }
    Ok(())
}

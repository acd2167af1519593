//! Configuration of a process: one flat file for every role, each with a section of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use mesh::config::{ConfigError, ServerConfig, TelemetryConfig};
use mesh::engine::Engines;
use mesh::topology::RedisTls;
use serde::{Deserialize, Serialize};

/// Variables below the prefix that belong to the tests, the client commands and docker-compose.yml, not to a server.
pub const FOREIGN_VARIABLES: [&str; 9] = [
    "gateway_url",
    "api_key",
    "test_data",
    "test_seed",
    "fault_seconds",
    "require_test_data",
    "require_servers",
    "python",
    "backfill_folder",
];

/// Everything a role can be told. Unknown keys are refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the role's listener; each role has its own default port.
    pub listen: Option<SocketAddr>,
    /// Address of `/metrics`; absent: none.
    pub metrics_listen: Option<SocketAddr>,
    /// `sqlite:///path` or `postgres://...`; ingestion, sequence, optimizer and gateway need it.
    pub database_url: Option<String>,
    /// Redis: indicator's shared cache, and the bell by which replicas of ingestion wake each other. Absent: each process has only its
    /// own cache, and replicas of ingestion ask the database for changes. `redis://` or `rediss://host:port`,
    /// `redis+sentinel://host,host/service`, `redis+cluster://host,host`.
    pub redis_url: Option<String>,
    /// Certificates of a `rediss` address.
    pub redis_tls: RedisTls,
    /// Engines this process holds: `v1`, `v2` or `v1,v2`.
    pub engines: String,
    /// Threads of the CPU pool; 0: one per core.
    pub cpu_workers: usize,
    /// Tasks of each priority (interactive, batch, background) that may wait for the CPU pool; more are refused.
    pub cpu_queue: usize,
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    pub max_in_flight: usize,
    #[serde(with = "humantime_serde")]
    pub default_deadline: Duration,
    #[serde(with = "humantime_serde")]
    pub max_deadline: Duration,
    pub telemetry: TelemetryConfig,
    pub upstreams: Upstreams,
    pub ingestion: ingestion::Config,
    pub aggregation: aggregation::Config,
    pub indicator: indicator::Config,
    pub sequence: sequence::Config,
    pub optimizer: optimizer::Config,
    pub gateway: gateway::Config,
}

impl Default for Config {
    fn default() -> Self {
        let server = ServerConfig::default();
        Self {
            listen: None,
            metrics_listen: None,
            database_url: None,
            redis_url: None,
            redis_tls: RedisTls::default(),
            engines: "v1,v2".into(),
            cpu_workers: 0,
            cpu_queue: 1024,
            grace: server.grace,
            max_in_flight: server.max_in_flight,
            default_deadline: server.default_deadline,
            max_deadline: server.max_deadline,
            telemetry: TelemetryConfig::default(),
            upstreams: Upstreams::default(),
            ingestion: Default::default(),
            aggregation: Default::default(),
            indicator: Default::default(),
            sequence: Default::default(),
            optimizer: Default::default(),
            gateway: Default::default(),
        }
    }
}

/// Where the other roles are: `http://host:port`. The `_v2` ones are set when V2 engines run apart.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upstreams {
    pub ingestion: Option<String>,
    pub aggregation: Option<String>,
    pub aggregation_v2: Option<String>,
    pub indicator: Option<String>,
    pub indicator_v2: Option<String>,
    pub sequence: Option<String>,
    pub sequence_v2: Option<String>,
    pub optimizer: Option<String>,
}

/// Flags of `serve` that override file and environment.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Overrides {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engines: Option<String>,
}

impl Config {
    /// Loads file, environment and flags.
    pub fn load(file: Option<&PathBuf>, overrides: &Overrides) -> Result<mesh::config::Loaded<Config>, ConfigError> {
        mesh::config::load(file.map(PathBuf::as_path), overrides, &FOREIGN_VARIABLES)
    }

    /// The listener settings of a role on `port` unless an address is configured.
    pub fn server(&self, port: u16) -> ServerConfig {
        ServerConfig {
            listen: self.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port))),
            grace: self.grace,
            max_in_flight: self.max_in_flight,
            default_deadline: self.default_deadline,
            max_deadline: self.max_deadline,
        }
    }

    pub fn engines(&self) -> Result<Engines, ConfigError> {
        self.engines.parse()
    }

    /// The database, or an error that says how to name one.
    pub fn database_url(&self) -> Result<&str, ConfigError> {
        self.database_url.as_deref().ok_or_else(|| {
            ConfigError::new("database_url is not set; set CANDLEMESH_DATABASE_URL to postgres://... or sqlite:///path")
        })
    }
}

/// A required upstream, or an error that says how to name one.
pub fn required<'a>(upstream: &'a Option<String>, name: &str) -> Result<&'a str, ConfigError> {
    upstream.as_deref().ok_or_else(|| {
        let variable = format!("CANDLEMESH_UPSTREAMS__{}", name.to_ascii_uppercase());
        ConfigError::new(format!("upstreams.{name} is not set; set {variable} to http://host:port"))
    })
}

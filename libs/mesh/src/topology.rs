//! Where Redis is and how it is reached: one server, a service that Sentinels watch over, or a Cluster; with or without TLS.
//!
//! The spellings of an address:
//!
//! | address | meaning |
//! |---|---|
//! | `redis://[user:password@]host[:6379][/db]` | one server |
//! | `redis+sentinel://[user:password@]host[:26379],host2/service[/db]` | the master of `service`; the credentials are the master's |
//! | `redis+cluster://[user:password@]host[:6379],host2` | a Cluster, found through any of these nodes |
//!
//! `rediss` for `redis` speaks TLS with every server named or found; `redis-sentinel` and `redis-cluster` are read as well.

use std::path::PathBuf;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterConfig};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline,
    RedisFuture, RedisResult, TlsCertificates, TlsMode, Value,
};
use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

const SENTINEL_PORT: u16 = 26379;
const REDIS_PORT: u16 = 6379;
/// Nodes of one address; any one of them is enough to find the others.
const MAX_NODES: usize = 64;
/// Attempts of a Cluster connection to follow a slot that moves; more would outlast what a look-up may take.
const CLUSTER_RETRIES: u32 = 2;

/// Certificates for `rediss` addresses, as PEM files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisTls {
    /// Authority that signed the servers' certificates; absent: those the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Certificate by which this process proves who it is, with its key; absent: none is shown.
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

/// Where Redis is; cheap to clone, holds no connection.
#[derive(Clone)]
pub struct RedisAddress {
    topology: Topology,
    certificates: Option<TlsCertificates>,
    /// Without credentials.
    shown: String,
}

#[derive(Clone)]
enum Topology {
    Node(Client),
    Sentinel { sentinels: Vec<ConnectionAddr>, service: String, master: ConnectionInfo },
    Cluster(Vec<ConnectionInfo>),
}

/// A connection to whatever the address leads to; clones share it.
#[derive(Clone)]
pub enum Connection {
    Node(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl std::fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisAddress").field(&self.shown).finish()
    }
}

impl std::fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Connection::Node(_) => "Node",
            Connection::Cluster(_) => "Cluster",
        })
    }
}

impl RedisAddress {
    /// Reads an address and the certificates it needs. Nothing is dialled.
    ///
    /// Errors: an address that does not parse, or a file that cannot be read.
    pub fn parse(url: &str, tls: &RedisTls) -> Result<RedisAddress, ConfigError> {
        let refused = |what: &str| ConfigError::new(format!("redis_url '{}': {what}", without_credentials(url)));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| refused("is not of the form redis://host:port"))?;
        let (base, kind) = match scheme.split_once(['+', '-']) {
            None => (scheme, ""),
            Some((base, kind)) => (base, kind),
        };
        let certificates = match base {
            "rediss" => certificates(tls)?,
            _ => None,
        };
        if !matches!(base, "redis" | "rediss") {
            return Err(refused("its scheme is none of redis, rediss, redis+sentinel, redis+cluster"));
        }
        let topology = match kind {
            "" => Topology::Node(client(url, certificates.clone()).map_err(|error| refused(&error.to_string()))?),
            "sentinel" | "cluster" => {
                let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
                let (credentials, hosts) = match authority.rsplit_once('@') {
                    Some((credentials, hosts)) => (format!("{credentials}@"), hosts),
                    None => (String::new(), authority),
                };
                let hosts: Vec<&str> = hosts.split(',').collect();
                if hosts.len() > MAX_NODES || hosts.iter().any(|host| host.is_empty()) {
                    return Err(refused("names no host, an empty one, or more than 64"));
                }
                let port = if kind == "sentinel" { SENTINEL_PORT } else { REDIS_PORT };
                let info = |host: &str, credentials: &str, db: &str| {
                    let url = format!("{base}://{credentials}{}/{db}", with_port(host, port));
                    url.into_connection_info().map_err(|error| refused(&error.to_string()))
                };
                if kind == "cluster" {
                    let nodes = hosts.iter().map(|host| info(host, &credentials, "")).collect::<Result<_, _>>()?;
                    Topology::Cluster(nodes)
                } else {
                    let (service, db) = path.split_once('/').unwrap_or((path, ""));
                    if service.is_empty() {
                        return Err(refused("names no service: redis+sentinel://host/SERVICE"));
                    }
                    let sentinels = hosts.iter().map(|host| info(host, "", "").map(|info| info.addr().clone()));
                    let sentinels = sentinels.collect::<Result<_, _>>()?;
                    let master = info(hosts[0], &credentials, db)?;
                    Topology::Sentinel { sentinels, service: service.to_owned(), master }
                }
            }
            _ => return Err(refused("its scheme is none of redis, rediss, redis+sentinel, redis+cluster")),
        };
        Ok(RedisAddress { topology, certificates, shown: without_credentials(url) })
    }

    /// Connects: through Sentinel to the server that is the master now, to a Cluster through the first node that answers.
    pub async fn connect(&self, connect_within: Duration, answer_within: Duration) -> RedisResult<Connection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(connect_within))
            .set_response_timeout(Some(answer_within));
        Ok(match &self.topology {
            Topology::Node(client) => {
                Connection::Node(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Topology::Sentinel { sentinels, service, master } => {
                let client = self.master_of(sentinels, service, master).await?;
                Connection::Node(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Topology::Cluster(nodes) => {
                let mut builder = ClusterClient::builder(nodes.clone()).retries(CLUSTER_RETRIES);
                if let Some(certificates) = &self.certificates {
                    builder = builder.certs(certificates.clone());
                }
                let config =
                    ClusterConfig::new().set_connection_timeout(connect_within).set_response_timeout(answer_within);
                Connection::Cluster(builder.build()?.get_async_connection_with_config(config).await?)
            }
        })
    }

    /// Connects to each server that holds a part of the keys: what walks over all keys must ask every one.
    pub async fn connect_parts(
        &self,
        connect_within: Duration,
        answer_within: Duration,
    ) -> RedisResult<Vec<Connection>> {
        let Topology::Cluster(nodes) = &self.topology else {
            return Ok(vec![self.connect(connect_within, answer_within).await?]);
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(connect_within))
            .set_response_timeout(Some(answer_within));
        let mut whole = self.connect(connect_within, answer_within).await?;
        let mut parts = Vec::new();
        for (host, port) in masters(&redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut whole).await?) {
            let known = &nodes[0];
            let address = match known.addr() {
                ConnectionAddr::TcpTls { insecure, .. } => {
                    ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: None }
                }
                _ => ConnectionAddr::Tcp(host, port),
            };
            let client = client(known.clone().set_addr(address), self.certificates.clone())?;
            parts.push(Connection::Node(client.get_multiplexed_async_connection_with_config(&config).await?));
        }
        Ok(parts)
    }

    async fn master_of(
        &self,
        sentinels: &[ConnectionAddr],
        service: &str,
        master: &ConnectionInfo,
    ) -> RedisResult<Client> {
        let settings = master.redis_settings();
        let mut builder = SentinelClientBuilder::new(sentinels.iter().cloned(), service, SentinelServerType::Master)?
            .set_client_to_redis_db(settings.db());
        if let Some(username) = settings.username() {
            builder = builder.set_client_to_redis_username(username);
        }
        if let Some(password) = settings.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        if let ConnectionAddr::TcpTls { insecure, .. } = master.addr() {
            let mode = if *insecure { TlsMode::Insecure } else { TlsMode::Secure };
            builder = builder.set_client_to_redis_tls_mode(mode).set_client_to_sentinel_tls_mode(mode);
            if let Some(certificates) = &self.certificates {
                builder = builder
                    .set_client_to_redis_certificates(certificates.clone())
                    .set_client_to_sentinel_certificates(certificates.clone());
            }
        }
        builder.build()?.async_get_client().await
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Connection::Node(node) => node.req_packed_command(cmd),
            Connection::Cluster(cluster) => cluster.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Connection::Node(node) => node.req_packed_commands(pipeline, offset, count),
            Connection::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Connection::Node(node) => node.get_db(),
            Connection::Cluster(cluster) => cluster.get_db(),
        }
    }
}

fn client(info: impl IntoConnectionInfo, certificates: Option<TlsCertificates>) -> RedisResult<Client> {
    match certificates {
        Some(certificates) => Client::build_with_tls(info, certificates),
        None => Client::open(info),
    }
}

fn certificates(tls: &RedisTls) -> Result<Option<TlsCertificates>, ConfigError> {
    let read = |key: &str, path: &PathBuf| {
        std::fs::read(path).map_err(|error| ConfigError::new(format!("redis_tls.{key} {}: {error}", path.display())))
    };
    let client_tls = match (&tls.certificate_file, &tls.key_file) {
        (Some(certificate), Some(key)) => Some(ClientTlsConfig {
            client_cert: read("certificate_file", certificate)?,
            client_key: read("key_file", key)?,
        }),
        (None, None) => None,
        _ => return Err(ConfigError::new("redis_tls: certificate_file and key_file are set together or not at all")),
    };
    let root_cert = tls.ca_file.as_ref().map(|path| read("ca_file", path)).transpose()?;
    Ok((client_tls.is_some() || root_cert.is_some()).then_some(TlsCertificates { client_tls, root_cert }))
}

fn with_port(host: &str, port: u16) -> String {
    let named = host.rsplit_once(':').is_some_and(|(before, port)| {
        port.bytes().all(|digit| digit.is_ascii_digit()) && (!before.contains(':') || before.ends_with(']'))
    });
    if named { host.to_owned() } else { format!("{host}:{port}") }
}

fn without_credentials(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://{}", &url[..scheme], &url[at + 1..]),
        _ => url.to_owned(),
    }
}

/// The first server of each range of slots, each once.
fn masters(slots: &Value) -> Vec<(String, u16)> {
    let Value::Array(ranges) = slots else { return Vec::new() };
    let mut found = Vec::new();
    for range in ranges {
        let Value::Array(range) = range else { continue };
        let Some(Value::Array(master)) = range.get(2) else { continue };
        let (Some(Value::BulkString(host)), Some(Value::Int(port))) = (master.first(), master.get(1)) else { continue };
        let node = (String::from_utf8_lossy(host).into_owned(), u16::try_from(*port).unwrap_or(REDIS_PORT));
        if !found.contains(&node) {
            found.push(node);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<RedisAddress, String> {
        RedisAddress::parse(url, &RedisTls::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn every_spelling_is_read_and_credentials_are_never_shown() {
        for url in ["redis://h", "redis://u:secret@h:7000/3", "rediss://:secret@h:1", "redis://[::1]:6379"] {
            let address = parse(url).unwrap();
            assert!(matches!(address.topology, Topology::Node(_)));
            assert!(!format!("{address:?} {address}").contains("secret"));
        }
        let address = parse("rediss+sentinel://u:secret@a,b:7,[::1]/main/2").unwrap();
        let Topology::Sentinel { sentinels, service, master } = &address.topology else { panic!("{address:?}") };
        let names: Vec<String> = sentinels.iter().map(ToString::to_string).collect();
        assert_eq!(
            (names.as_slice(), service.as_str()),
            (&["a:26379", "b:7", "::1:26379"].map(str::to_owned)[..], "main")
        );
        assert_eq!((master.redis_settings().db(), master.redis_settings().password()), (2, Some("secret")));
        assert_eq!(address.to_string(), "rediss+sentinel://a,b:7,[::1]/main/2");
        let address = parse("redis-cluster://a:1,b").unwrap();
        let Topology::Cluster(nodes) = &address.topology else { panic!("{address:?}") };
        assert_eq!(nodes.iter().map(|node| node.addr().to_string()).collect::<Vec<_>>(), ["a:1", "b:6379"]);
    }

    #[test]
    fn what_is_no_address_is_refused_by_what_is_wrong_with_it() {
        for (url, said) in [
            ("nonsense", "redis://host:port"),
            ("http://h", "its scheme is none of"),
            ("redis+ring://h", "its scheme is none of"),
            ("redis+sentinel://h", "names no service"),
            ("redis+cluster://a,,b", "an empty one"),
            ("redis://h:notaport", "redis_url"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains(said), "{url}: {error}");
        }
        let half = RedisTls { certificate_file: Some("/nowhere".into()), ..Default::default() };
        assert!(RedisAddress::parse("rediss://h", &half).unwrap_err().to_string().contains("together"));
        let missing = RedisTls { ca_file: Some("/nowhere".into()), ..Default::default() };
        assert!(RedisAddress::parse("rediss://h", &missing).unwrap_err().to_string().contains("redis_tls.ca_file"));
        // Not read where nothing is encrypted.
        RedisAddress::parse("redis://h", &missing).unwrap();
    }
}

//! Configuration: defaults, then one YAML file, then `CANDLEMESH_...` variables, then flags; the later wins.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Yaml};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Prefix of every environment variable; `__` separates levels.
pub const ENV_PREFIX: &str = "CANDLEMESH_";

/// A value that stops the process before a port is bound.
#[derive(Debug, thiserror::Error)]
#[error("configuration: {0}")]
pub struct ConfigError(String);

impl ConfigError {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// One effective value and where it came from.
#[derive(Debug, Clone)]
pub struct Origin {
    pub key: String,
    pub value: String,
    pub source: String,
}

/// A configuration with the origin of each of its values.
#[derive(Debug)]
pub struct Loaded<T> {
    pub config: T,
    pub origins: Vec<Origin>,
}

/// Loads `T`. `ignored` names variables below the prefix that belong to others (for example of the test harness).
///
/// Errors: unreadable file, unknown key, or a value that does not parse; the text names key, value and source.
pub fn load<T, F>(file: Option<&Path>, flags: &F, ignored: &[&str]) -> Result<Loaded<T>, ConfigError>
where
    T: Default + Serialize + DeserializeOwned,
    F: Serialize,
{
    let mut figment = Figment::from(Serialized::defaults(T::default()));
    if let Some(path) = file {
        if !path.is_file() {
            return Err(ConfigError(format!("file {} does not exist", path.display())));
        }
        figment = figment.merge(Yaml::file(path));
    }
    let env = Env::prefixed(ENV_PREFIX).ignore(ignored).split("__");
    let figment = figment.merge(env).merge(Serialized::defaults(flags));
    let config = figment.extract::<T>().map_err(|error| ConfigError(describe(&error)))?;
    let rendered = serde_json::to_value(&config).map_err(|error| ConfigError(error.to_string()))?;
    let mut origins = Vec::new();
    collect_origins(&figment, "", &rendered, &mut origins);
    Ok(Loaded { config, origins })
}

fn describe(error: &figment::Error) -> String {
    let mut text = error.kind.to_string();
    if !error.path.is_empty() {
        text = format!("{}: {text}", error.path.join("."));
    }
    if let Some(metadata) = &error.metadata {
        text = format!("{text} (from {})", metadata.name);
    }
    text
}

fn collect_origins(figment: &Figment, path: &str, value: &serde_json::Value, origins: &mut Vec<Origin>) {
    if let serde_json::Value::Object(map) = value {
        for (key, child) in map {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            collect_origins(figment, &path, child, origins);
        }
        return;
    }
    let source = match figment.find_metadata(path) {
        Some(metadata) if metadata.name.contains("environment") => "environment".to_owned(),
        Some(metadata) if metadata.name.contains("YAML") => {
            metadata.source.as_ref().map_or("file".to_owned(), ToString::to_string)
        }
        Some(metadata) if metadata.name.contains("Flags") => "flags".to_owned(),
        _ => "default".to_owned(),
    };
    let text = match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    origins.push(Origin { key: path.to_owned(), value: redact(path, text), source });
}

/// Hides what stands before the host of a URL, and everything called token, secret or password.
fn redact(path: &str, value: String) -> String {
    if ["token", "secret", "password"].iter().any(|word| path.contains(word)) && !value.is_empty() {
        return "***".to_owned();
    }
    match (value.find("://"), value.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://***{}", &value[..scheme], &value[at..]),
        _ => value,
    }
}

/// How a role serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Address of the gRPC listener; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Time for requests in flight once draining has begun; then they are cut.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// Requests in flight at once; more are refused with RESOURCE_EXHAUSTED, never queued.
    pub max_in_flight: usize,
    /// Deadline of a request that brings none.
    #[serde(with = "humantime_serde")]
    pub default_deadline: Duration,
    /// Longest deadline granted.
    #[serde(with = "humantime_serde")]
    pub max_deadline: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            grace: Duration::from_secs(25),
            // Enough for a few hundred concurrent callers on two cores; beyond that answers only get later.
            max_in_flight: 1024,
            default_deadline: Duration::from_secs(30),
            max_deadline: Duration::from_secs(600),
        }
    }
}

/// Logs and traces.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// Filter in tracing's syntax, for example `info,mesh=debug`.
    pub log: String,
    pub log_format: LogFormat,
    /// OTLP gRPC collector, for example `http://127.0.0.1:4317`; empty: no traces are exported.
    pub otlp_endpoint: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { log: "info".into(), log_format: LogFormat::Text, otlp_endpoint: String::new() }
    }
}

/// Shape of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

//! Logs, traces and metrics. The only place that knows OpenTelemetry.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::Drain;
use crate::config::{ConfigError, LogFormat, TelemetryConfig};
use crate::server::StartError;

/// Seconds; from a cache hit to a long export.
const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// The same in milliseconds, for the metrics whose names the optimizer's dashboards fix.
const DURATION_BUCKETS_MS: [f64; 14] =
    [0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 10_000.0, 60_000.0];
/// How long spans may take to leave at shutdown.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// How often recorded values are folded into their histograms. Until then each takes memory, and nobody may ever scrape.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

static PROMETHEUS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Keeps the exporters alive; [`Telemetry::shutdown`] flushes them.
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Installs the process-wide subscriber. Call once, from main, inside the runtime.
    ///
    /// Errors: a log filter or endpoint that does not parse.
    pub fn install(service: &'static str, config: &TelemetryConfig) -> Result<Telemetry, ConfigError> {
        let filter = EnvFilter::try_new(&config.log)
            .map_err(|error| ConfigError::new(format!("telemetry.log '{}': {error}", config.log)))?;
        let provider = match config.otlp_endpoint.as_str() {
            "" => None,
            endpoint => Some(tracer_provider(service, endpoint)?),
        };
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        let traces = provider.as_ref().map(|provider| {
            tracing_opentelemetry::layer().with_tracer(provider.tracer("candlemesh")).with_tracked_inactivity(false)
        });
        let format = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
        let lines = match config.log_format {
            LogFormat::Json => format.json().boxed(),
            LogFormat::Text => format.compact().boxed(),
        };
        tracing_subscriber::registry()
            .with(filter)
            .with(lines)
            .with(traces)
            .try_init()
            .map_err(|error| ConfigError::new(error.to_string()))?;
        Ok(Telemetry { provider })
    }

    /// Flushes spans, off the runtime and bounded in time.
    pub async fn shutdown(self) {
        let Some(provider) = self.provider else { return };
        let flush = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        if !matches!(tokio::time::timeout(FLUSH_TIMEOUT, flush).await, Ok(Ok(Ok(())))) {
            tracing::warn!("not all spans could be flushed");
        }
    }
}

fn tracer_provider(service: &'static str, endpoint: &str) -> Result<SdkTracerProvider, ConfigError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| ConfigError::new(format!("telemetry.otlp_endpoint '{endpoint}': {error}")))?;
    let resource = Resource::builder().with_service_name(format!("candlemesh-{service}")).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// The process's metrics recorder, installed and kept up from first use.
pub fn prometheus() -> Result<&'static PrometheusHandle, StartError> {
    if let Some(handle) = PROMETHEUS.get() {
        return Ok(handle);
    }
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &DURATION_BUCKETS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_ms".into()), &DURATION_BUCKETS_MS))
        .map_err(|error| StartError::Telemetry(error.to_string()))?;
    match builder.install_recorder() {
        Ok(handle) => {
            let handle = PROMETHEUS.get_or_init(|| handle);
            // A thread, not a task: the recorder outlives whatever runtime asks first.
            let upkeep = move || loop {
                std::thread::sleep(UPKEEP_INTERVAL);
                handle.run_upkeep();
            };
            std::thread::Builder::new().name("metrics-upkeep".to_owned()).spawn(upkeep)?;
            Ok(handle)
        }
        // Another thread was first; its handle is there or about to be.
        Err(error) => PROMETHEUS.get().ok_or_else(|| StartError::Telemetry(error.to_string())),
    }
}

/// Serves `/metrics` and `/healthz` on an address of their own until drained.
pub async fn serve_metrics(listen: SocketAddr, drain: Drain) -> Result<SocketAddr, StartError> {
    use axum::routing::get;
    let handle = prometheus()?;
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .map_err(|source| StartError::Bind { address: listen.to_string(), source })?;
    let address = listener.local_addr().map_err(|source| StartError::Bind { address: listen.to_string(), source })?;
    let routes = axum::Router::new()
        .route("/metrics", get(move || async move { handle.render() }))
        .route("/healthz", get(|| async { "ok" }));
    tokio::spawn(async move {
        let stop = async move { drain.started().await };
        if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(stop).await {
            tracing::error!(%error, "metrics listener ended");
        }
    });
    Ok(address)
}

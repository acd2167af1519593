//! Ingestion and aggregation as they run, and indicator replicas over them, in this process.

use std::time::Duration;

use candlemesh::config::{Config, Upstreams};
use candlemesh::roles::{self, App, Role};
use candlemesh_tests::made_up;
use market::{Candle, TimeRange};
use mesh::client::MeshChannel;
use mesh::{Drain, MAX_MESSAGE_BYTES, StartError};
use proto::convert;
use proto::indicator::indicator_service_client::IndicatorServiceClient;
use proto::indicator::{
    ComputeIndicatorsRequest, ComputeIndicatorsResponse, GetCacheStatisticsRequest, GetCacheStatisticsResponse,
};
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{CandleBatch, PutCandlesRequest};
use store::Stores;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::Request;

use super::eventually;

pub(crate) struct World {
    ingestion: Served,
    aggregation: Served,
    store: IngestionServiceClient<MeshChannel>,
    _stores: Stores,
    _folder: TempDir,
}

struct Served {
    address: String,
    drain: Drain,
    serving: JoinHandle<Result<(), StartError>>,
}

/// An indicator service with a cache of its own.
pub(crate) struct Replica {
    served: Served,
    client: IndicatorServiceClient<MeshChannel>,
}

fn config() -> Config {
    Config { listen: Some(([127, 0, 0, 1], 0).into()), ..Config::default() }
}

fn serve(app: App) -> Served {
    let (address, drain) = (format!("http://{}", app.address()), Drain::new());
    let serving = tokio::spawn(app.serve(drain.clone()));
    Served { address, drain, serving }
}

impl World {
    pub(crate) async fn start() -> World {
        let folder = tempfile::tempdir().unwrap();
        let database_url = format!("sqlite://{}", folder.path().join("test.db").display());
        let config = Config { database_url: Some(database_url), ..config() };
        let pool = roles::cpu_pool(&config).unwrap();
        let stores = roles::open_stores(&config).await.unwrap();
        let ingestion = serve(roles::build(Role::Ingestion, &config, Some(&stores), &pool).await.unwrap());
        let upstreams = Upstreams { ingestion: Some(ingestion.address.clone()), ..Upstreams::default() };
        let config = Config { upstreams, ..config };
        let aggregation = serve(roles::build(Role::Aggregation, &config, None, &pool).await.unwrap());
        let store = IngestionServiceClient::new(mesh::client::connect(&ingestion.address).unwrap());
        World { ingestion, aggregation, store, _stores: stores, _folder: folder }
    }

    /// Stores candles; answers with the instrument's revision.
    pub(crate) async fn put(&self, key: &str, timeframe: &str, candles: &[Candle]) -> u64 {
        let batch = CandleBatch {
            instrument_key: key.to_owned(),
            timeframe: timeframe.to_owned(),
            candles: candles.iter().map(convert::wire_candle).collect(),
            ..CandleBatch::default()
        };
        let answer = self.store.clone().put_candles(PutCandlesRequest { batch: Some(batch) }).await.unwrap();
        let outcome = answer.into_inner().outcome.unwrap();
        assert!(outcome.rejected.is_empty(), "{:?}", outcome.rejected);
        outcome.revision
    }

    /// Stores minutes of some sessions and answers with them.
    pub(crate) async fn put_sessions(&self, key: &str, seed: u64, sessions: usize) -> Vec<Candle> {
        let candles = made_up::minutes(seed, sessions).unwrap();
        self.put(key, "1m", &candles).await;
        candles
    }

    /// One more indicator service, connected to Redis where an address is given.
    pub(crate) async fn replica(&self, redis_url: Option<&str>, edit: impl FnOnce(&mut indicator::Config)) -> Replica {
        let mut config = Config {
            redis_url: redis_url.map(str::to_owned),
            upstreams: Upstreams {
                ingestion: Some(self.ingestion.address.clone()),
                aggregation: Some(self.aggregation.address.clone()),
                ..Upstreams::default()
            },
            ..config()
        };
        // A loaded machine must not look like a slow Redis.
        config.indicator.cache_shared_timeout = Duration::from_secs(5);
        edit(&mut config.indicator);
        let pool = roles::cpu_pool(&config).unwrap();
        let served = serve(roles::build(Role::Indicator, &config, None, &pool).await.unwrap());
        let channel = mesh::client::connect(&served.address).unwrap();
        let client = IndicatorServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let replica = Replica { served, client };
        if redis_url.is_some() {
            eventually("Redis is connected", async || replica.statistics().await.shared_connected).await;
        }
        replica
    }
}

impl Replica {
    pub(crate) fn address(&self) -> &str {
        &self.served.address
    }

    pub(crate) async fn ask(
        &self,
        engine: &'static str,
        key: &str,
        timeframe: &str,
        range: TimeRange,
        indicators: &[String],
    ) -> ComputeIndicatorsResponse {
        let mut request = Request::new(ComputeIndicatorsRequest {
            instrument_key: key.to_owned(),
            timeframe: timeframe.to_owned(),
            range: Some(convert::wire_range(range)),
            indicators: indicators.to_vec(),
            revision: None,
        });
        request.metadata_mut().insert(mesh::ENGINE_HEADER, engine.parse().unwrap());
        self.client.clone().compute_indicators(request).await.unwrap().into_inner()
    }

    pub(crate) async fn statistics(&self) -> GetCacheStatisticsResponse {
        self.client.clone().get_cache_statistics(GetCacheStatisticsRequest {}).await.unwrap().into_inner()
    }

    /// Drains it, as a deploy does.
    pub(crate) async fn stop(self) {
        drop(self.client);
        self.served.drain.start();
        self.served.serving.await.unwrap().unwrap();
    }
}

/// What an answer is, wherever it came from.
pub(crate) fn content(answer: ComputeIndicatorsResponse) -> ComputeIndicatorsResponse {
    ComputeIndicatorsResponse { cached: false, compute_ms: 0.0, ..answer }
}

//! The indicator cache: look-ups in both levels beside a plain GET of the same Redis, what a changed minute costs, and how often a workload
//! that repeats itself hits.
//!
//! Variants: `look_ups`, `packing`, `suffix`, `hits`. All start what they need themselves; `scale` multiplies how long they take.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use candlemesh::config::{Config, Upstreams};
use candlemesh::roles::{self, Role};
use candlemesh_tests::made_up::{self, Numbers};
use candlemesh_tests::redis::Redis;
use kernels::indicator::{D3_SET, Inputs, Spec, compute_fused};
use market::{Candle, Frame, TimeRange};
use mesh::cache::{Cache, SharedSettings, Source};
use mesh::client::MeshChannel;
use mesh::topology::{RedisAddress, RedisTls};
use mesh::{CpuPool, Drain, MAX_MESSAGE_BYTES};
use proto::convert;
use proto::indicator::indicator_service_client::IndicatorServiceClient;
use proto::indicator::{ComputeIndicatorsRequest, ComputeIndicatorsResponse, GetCacheStatisticsRequest};
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{CandleBatch, PutCandlesRequest};
use redis::AsyncCommands;
use serde_json::{Map, Value, json};
use store::Stores;
use tokio::runtime::Runtime;
use tonic::Request;

use crate::{Case, Measured, Parameters, put};

const SIZES: [usize; 5] = [4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20];
/// Look-ups of each size and level.
const LOOK_UPS: usize = 2000;
/// Bytes of all look-ups of a size, at the most.
const MOST_BYTES: usize = 1 << 30;
const KEYS: usize = 8;
/// A year of NSE.
const SESSIONS: usize = 250;
const CHANGES: usize = 40;
const ANSWER: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct CacheCase {
    runtime: Runtime,
    redis: Redis,
    variant: String,
    scale: usize,
}

impl CacheCase {
    pub(crate) fn prepare(parameters: &Parameters) -> Result<Self> {
        let (variant, scale) = (parameters.variant.clone(), parameters.scale.max(1));
        Ok(Self { runtime: put::runtime()?, redis: Redis::start()?, variant, scale })
    }
}

impl Case for CacheCase {
    fn run(&mut self) -> Result<Measured> {
        let started = Instant::now();
        let url = self.redis.url();
        let values = self.runtime.block_on(async {
            match self.variant.as_str() {
                "look_ups" => look_ups(&url, self.scale).await,
                "packing" => packing(&url).await,
                "suffix" => suffix(&url, self.scale).await,
                "hits" => hits(&url, self.scale).await,
                other => bail!("there is no variant '{other}'"),
            }
        })?;
        Ok(Measured::new(started.elapsed().as_secs_f64(), values))
    }
}

/// Microseconds at the middle and near the end.
fn quantiles(mut samples: Vec<Duration>) -> Value {
    samples.sort_unstable();
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize].as_nanos() as f64 / 1e3;
    json!({ "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "count": samples.len() })
}

fn address(url: &str) -> Result<RedisAddress> {
    Ok(RedisAddress::parse(url, &RedisTls::default())?)
}

fn cache(url: &str, capacity: u64, packing: bool) -> Result<Cache> {
    let settings = SharedSettings { timeout: ANSWER, packing, ..SharedSettings::default() };
    let pool = Arc::new(CpuPool::new(2, 4096)?);
    Ok(Cache::local(capacity, Duration::from_secs(3600)).with_shared(address(url)?, settings, pool))
}

/// The columns of the D3 set over made-up minutes, as an entry holds them, of about so many bytes.
fn columns(size: usize, seed: u64) -> Result<Bytes> {
    let specs = D3_SET.iter().map(|text| text.parse()).collect::<Result<Vec<Spec>, _>>()?;
    let width = specs.iter().map(|spec| spec.columns().len()).sum::<usize>() + 1;
    let rows = (size / 8 / width).max(1);
    let minutes = made_up::minutes(seed, rows / 350 + 2)?;
    let mut frame = Frame::default();
    minutes.iter().try_for_each(|candle| frame.push(candle))?;
    let day: Vec<i32> = frame.open_time().iter().map(|at| (at / 86_400_000) as i32).collect();
    let inputs = Inputs::new(frame.open(), frame.high(), frame.low(), frame.close(), frame.volume(), &day)?;
    let from = frame.len() - rows.min(frame.len());
    let mut bytes: Vec<u8> = frame.open_time()[from..].iter().flat_map(|at| at.to_le_bytes()).collect();
    for column in compute_fused(&specs, &inputs)? {
        bytes.extend(column.values[from..].iter().flat_map(|value| value.to_le_bytes()));
    }
    Ok(bytes.into())
}

async fn written(cache: &Cache, writes: u64) -> Result<()> {
    let started = Instant::now();
    while cache.statistics().await.shared_writes < writes {
        ensure!(started.elapsed() < ANSWER, "values are not written: {:?}", cache.statistics().await);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

async fn look_up(cache: &Cache, key: &str) -> Result<(Duration, Source)> {
    let started = Instant::now();
    let nothing = async { Ok::<_, Infallible>(Bytes::new()) };
    let (value, source) = cache.get_or_compute(key, nothing).await.map_err(|never| match *never {})?;
    let took = started.elapsed();
    ensure!(!value.is_empty(), "{key} was not there");
    Ok((took, source))
}

async fn look_ups(url: &str, scale: usize) -> Result<Value> {
    let mut all = Map::new();
    let mut plain = address(url)?.connect(ANSWER, ANSWER).await?;
    for size in SIZES {
        let writer = cache(url, 1 << 30, false)?;
        writer.connected().await;
        let mut real = 0;
        for index in 0..KEYS {
            let value = columns(size, index as u64)?;
            real = value.len();
            let compute = async { Ok::<_, Infallible>(value.clone()) };
            writer.get_or_compute(&format!("{size}/{index}"), compute).await.map_err(|never| match *never {})?;
            let _: () = plain.set(format!("plain/{size}/{index}"), value.as_ref()).await?;
        }
        written(&writer, KEYS as u64).await?;
        let statistics = writer.statistics().await;
        // Keeps nothing in process, so that each look-up goes to Redis.
        let reader = cache(url, 0, false)?;
        reader.connected().await;
        let count = (LOOK_UPS * scale).min(MOST_BYTES / real);
        let (mut local, mut shared, mut get) = (Vec::new(), Vec::new(), Vec::new());
        for turn in 0..count {
            let key = format!("{size}/{}", turn % KEYS);
            let (took, source) = look_up(&writer, &key).await?;
            ensure!(source == Source::Local, "{source:?}");
            local.push(took);
            let (took, source) = look_up(&reader, &key).await?;
            if source == Source::Shared {
                shared.push(took);
            }
            let started = Instant::now();
            let value: Bytes = plain.get(format!("plain/{key}")).await?;
            get.push(started.elapsed());
            ensure!(value.len() == real, "{key}");
        }
        let report = json!({
            "value_bytes": real,
            "stored_bytes": statistics.shared_written_bytes / KEYS as u64,
            "local": quantiles(local), "shared": quantiles(shared), "plain_get": quantiles(get),
        });
        all.insert(format!("{size}"), report);
    }
    Ok(Value::Object(all))
}

/// Sizes before and after, of values as they are.
async fn packing(url: &str) -> Result<Value> {
    let mut all = Map::new();
    for size in SIZES {
        let cache = cache(url, 1 << 30, true)?;
        cache.connected().await;
        let value = columns(size, 1)?;
        let compute = async { Ok::<_, Infallible>(value.clone()) };
        cache.get_or_compute(&format!("packed/{size}"), compute).await.map_err(|never| match *never {})?;
        written(&cache, 1).await?;
        let statistics = cache.statistics().await;
        all.insert(format!("{size}"), json!([statistics.shared_value_bytes, statistics.shared_written_bytes]));
    }
    Ok(Value::Object(all))
}

/// Ingestion, aggregation and one indicator service in this process.
struct World {
    store: IngestionServiceClient<MeshChannel>,
    indicators: IndicatorServiceClient<MeshChannel>,
    drain: Drain,
    _stores: Stores,
    _folder: tempfile::TempDir,
}

impl World {
    async fn start(redis_url: &str) -> Result<World> {
        let folder = tempfile::tempdir()?;
        let mut config = Config {
            listen: Some(([127, 0, 0, 1], 0).into()),
            database_url: Some(format!("sqlite://{}", folder.path().join("bench.db").display())),
            redis_url: Some(redis_url.to_owned()),
            ..Config::default()
        };
        config.indicator.cache_shared_timeout = ANSWER;
        let (pool, stores, drain) = (roles::cpu_pool(&config)?, roles::open_stores(&config).await?, Drain::new());
        let mut address = String::new();
        for role in [Role::Ingestion, Role::Aggregation, Role::Indicator] {
            let app = roles::build(role, &config, Some(&stores), &pool).await?;
            address = format!("http://{}", app.address());
            let upstream = Some(address.clone());
            match role {
                Role::Ingestion => config.upstreams = Upstreams { ingestion: upstream, ..Upstreams::default() },
                Role::Aggregation => config.upstreams.aggregation = upstream,
                _ => {}
            }
            tokio::spawn(app.serve(drain.clone()));
        }
        let ingestion = config.upstreams.ingestion.context("ingestion has an address")?;
        Ok(World {
            store: IngestionServiceClient::new(mesh::client::connect(&ingestion)?),
            indicators: IndicatorServiceClient::new(mesh::client::connect(&address)?)
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            drain,
            _stores: stores,
            _folder: folder,
        })
    }

    async fn put(&self, key: &str, candles: &[Candle]) -> Result<()> {
        for part in candles.chunks(50_000) {
            let candles = part.iter().map(convert::wire_candle).collect();
            let batch = CandleBatch { instrument_key: key.to_owned(), candles, ..CandleBatch::default() };
            self.store.clone().put_candles(PutCandlesRequest { batch: Some(batch) }).await?;
        }
        Ok(())
    }

    async fn ask(
        &self,
        engine: &'static str,
        key: &str,
        timeframe: &str,
        range: TimeRange,
    ) -> Result<(Duration, ComputeIndicatorsResponse)> {
        let mut request = Request::new(ComputeIndicatorsRequest {
            instrument_key: key.to_owned(),
            timeframe: timeframe.to_owned(),
            range: Some(convert::wire_range(range)),
            ..ComputeIndicatorsRequest::default()
        });
        request.metadata_mut().insert(mesh::ENGINE_HEADER, engine.parse()?);
        let started = Instant::now();
        let answer = self.indicators.clone().compute_indicators(request).await?.into_inner();
        Ok((started.elapsed(), answer))
    }
}

/// One minute changes, and the last session or the whole year is asked: with states kept, and by the reference from the first candle.
async fn suffix(url: &str, scale: usize) -> Result<Value> {
    let world = World::start(url).await?;
    let key = "NSE_EQ|YEAR";
    let mut candles = made_up::minutes(1, SESSIONS)?;
    world.put(key, &candles).await?;
    let last = candles.len() - 1;
    let session = TimeRange::new(candles[last].open_time - 6 * 3_600_000, TimeRange::ALL.end())?;
    let mut all = Map::new();
    for (name, range) in [("last_session", session), ("year", TimeRange::ALL)] {
        let (mut kept, mut whole) = (Vec::new(), Vec::new());
        let first = world.ask("v2", key, "1m", range).await?.0;
        for change in 0..CHANGES * scale {
            candles[last].volume += 1.0;
            world.put(key, &candles[last..]).await?;
            let (took, answer) = world.ask("v2", key, "1m", range).await?;
            ensure!(!answer.cached, "a stale answer");
            // The first leaves the states that the others begin at.
            if change > 0 {
                kept.push(took);
            }
            if change % 4 == 0 {
                let (took, want) = world.ask("v1", key, "1m", range).await?;
                ensure!(want.columns == answer.columns, "the engines differ");
                whole.push(took);
            }
        }
        let first = first.as_micros() as f64;
        all.insert(name.to_owned(), json!({ "first_us": first, "kept": quantiles(kept), "v1": quantiles(whole) }));
    }
    let statistics = world.indicators.clone().get_cache_statistics(GetCacheStatisticsRequest {}).await?.into_inner();
    all.insert("rows".into(), candles.len().into());
    all.insert("saved_rows".into(), statistics.saved_rows.into());
    all.insert("series_bytes".into(), statistics.series_bytes.into());
    world.drain.start();
    Ok(Value::Object(all))
}

/// Screens that are looked at again and again (Zipf over instruments and timeframes) while one instrument in ten gets a minute in between.
async fn hits(url: &str, scale: usize) -> Result<Value> {
    const INSTRUMENTS: usize = 20;
    const TIMEFRAMES: [&str; 4] = ["1m", "5m", "15m", "1h"];
    const REQUESTS: usize = 300;
    let world = World::start(url).await?;
    let key = |index: usize| format!("NSE_EQ|S{index}");
    let mut series = Vec::new();
    for index in 0..INSTRUMENTS {
        let candles = made_up::minutes(index as u64, 5)?;
        world.put(&key(index), &candles).await?;
        series.push(candles);
    }
    let mut numbers = Numbers::from_seed(1);
    let queries = INSTRUMENTS * TIMEFRAMES.len();
    let weights: Vec<f64> = (1..=queries).map(|rank| 1.0 / rank as f64).collect();
    let total: f64 = weights.iter().sum();
    let mut took = Vec::new();
    for _ in 0..10 * scale {
        for _ in 0..INSTRUMENTS / 10 {
            let index = numbers.below(INSTRUMENTS as u64) as usize;
            let last = series[index].len() - 1;
            series[index][last].volume += 1.0;
            world.put(&key(index), &series[index][last..]).await?;
        }
        for _ in 0..REQUESTS {
            let mut point = numbers.unit() * total;
            let rank = weights.iter().position(|weight| {
                point -= weight;
                point < 0.0
            });
            // Ranks are spread over instruments and timeframes.
            let query = rank.unwrap_or_default() * 7 % queries;
            let timeframe = TIMEFRAMES[query % TIMEFRAMES.len()];
            took.push(world.ask("v2", &key(query / TIMEFRAMES.len()), timeframe, TimeRange::ALL).await?.0);
        }
    }
    let statistics = world.indicators.clone().get_cache_statistics(GetCacheStatisticsRequest {}).await?.into_inner();
    world.drain.start();
    Ok(json!({
        "hit_rate": statistics.hit_rate, "hits": statistics.local_hits, "misses": statistics.misses,
        "suffix_computations": statistics.suffix_computations, "request": quantiles(took),
    }))
}

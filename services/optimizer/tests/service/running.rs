//! A running service over in-memory upstreams, and its client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use market::{BucketFrame, Date, Frame, Instrument, InstrumentKey, TimeRange, Timeframe};
use mesh::config::ServerConfig;
use mesh::source::{Buckets, Candles, MemorySource};
use mesh::{CpuPool, Drain, RemoteError};
use optimizer::{App, Config, Ports};
use proto::optimizer as pb;
use proto::optimizer::optimizer_service_client::OptimizerServiceClient;
use store::Stores;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A daily instrument on the NYSE, and one that trades every day.
pub(crate) const SHARE: &str = "US|SHARE";
pub(crate) const COIN: &str = "CRYPTO|COIN";
/// Minutes enough that its studies take a while.
pub(crate) const LONG: &str = "CRYPTO|LONG";
/// Few candles; one of which has no price.
pub(crate) const SHORT: &str = "US|SHORT";
pub(crate) const BROKEN: &str = "US|BROKEN";
/// Never answered.
pub(crate) const STALLED: &str = "US|STALLED";
/// Unavailable as often as told.
pub(crate) const FLAKY: &str = "US|FLAKY";

const REVISION: u64 = 5;
const LONG_ROWS: usize = 50_000;

#[derive(Debug)]
struct Upstream {
    source: MemorySource,
    failures: AtomicU32,
}

#[tonic::async_trait]
impl Candles for Upstream {
    async fn candles(
        &self,
        key: &InstrumentKey,
        timeframe: Timeframe,
        range: TimeRange,
        revision: Option<u64>,
    ) -> Result<Buckets, RemoteError> {
        if key.as_str() == STALLED {
            std::future::pending::<()>().await;
        }
        let fails = |left: u32| left.checked_sub(1);
        if key.as_str() == FLAKY && self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fails).is_ok() {
            return Err(RemoteError::from_status(&Status::unavailable("aggregation is away")));
        }
        self.source.candles(key, timeframe, range, revision).await
    }
}

/// What outlives a process.
pub(crate) struct World {
    upstream: Arc<Upstream>,
    pub(crate) stores: Stores,
    pub(crate) config: Config,
}

pub(crate) struct Running {
    pub(crate) drain: Drain,
    channel: Channel,
    server: tokio::task::JoinHandle<()>,
}

impl World {
    pub(crate) fn new(stores: Stores) -> World {
        let mut source = MemorySource { revision: REVISION, ..Default::default() };
        add(&mut source, SHARE, "NYSE", Timeframe::D1, share());
        add(&mut source, COIN, "24x7", Timeframe::D1, coin());
        add(&mut source, FLAKY, "NYSE", Timeframe::D1, share());
        add(&mut source, STALLED, "NYSE", Timeframe::D1, share());
        add(&mut source, SHORT, "NYSE", Timeframe::D1, share()[..20].to_vec());
        let mut broken = share();
        broken[7] = 0.0;
        add(&mut source, BROKEN, "NYSE", Timeframe::D1, broken);
        let long =
            (0..LONG_ROWS).map(|row| 100.0 + (row as f64 * 0.07).sin() * 5.0 + (row as f64 * 0.9).cos()).collect();
        add(&mut source, LONG, "24x7", Timeframe::M1, long);
        let config = Config {
            store_interval: Duration::from_millis(20),
            task_time: Duration::from_millis(2),
            retry_pause: Duration::from_millis(5),
            max_retry_pause: Duration::from_millis(20),
            ..Default::default()
        };
        World { upstream: Arc::new(Upstream { source, failures: AtomicU32::new(0) }), stores, config }
    }

    pub(crate) fn fail(&self, times: u32) {
        self.upstream.failures.store(times, Ordering::Relaxed);
    }

    pub(crate) async fn start(&self) -> Running {
        let ports = Ports {
            candles: Arc::clone(&self.upstream) as _,
            master: Arc::new(Master(Arc::clone(&self.upstream))),
            studies: Arc::clone(&self.stores.studies),
            pool: Arc::new(CpuPool::new(2, 64).unwrap()),
        };
        let app = App::build(&ServerConfig::default(), self.config.clone(), ports).await.unwrap();
        let address = format!("http://{}", app.address());
        let drain = Drain::new();
        let server = tokio::spawn({
            let drain = drain.clone();
            async move { app.serve(drain).await.unwrap() }
        });
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        Running { drain, channel, server }
    }
}

impl Running {
    pub(crate) fn grpc(&self) -> OptimizerServiceClient<Channel> {
        OptimizerServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn create(&self, id: &str, spec: &pb::StudySpec) -> Result<pb::Study, Status> {
        let request = pb::CreateStudyRequest { study_id: id.into(), spec: Some(spec.clone()) };
        Ok(self.grpc().create_study(request).await?.into_inner().study.unwrap())
    }

    pub(crate) async fn study(&self, id: &str) -> pb::Study {
        let request = pb::GetStudyRequest { study_id: id.into() };
        self.grpc().get_study(request).await.unwrap().into_inner().study.unwrap()
    }

    pub(crate) async fn cancel(&self, id: &str) -> pb::Study {
        let request = pb::CancelStudyRequest { study_id: id.into() };
        self.grpc().cancel_study(request).await.unwrap().into_inner().study.unwrap()
    }

    pub(crate) async fn watch(&self, id: &str) -> tonic::Streaming<pb::WatchStudyResponse> {
        self.grpc().watch_study(pb::WatchStudyRequest { study_id: id.into() }).await.unwrap().into_inner()
    }

    /// Watches a study to its end.
    pub(crate) async fn ended(&self, id: &str) -> pb::Study {
        let mut updates = self.watch(id).await;
        let mut last = None;
        while let Some(update) = updates.message().await.unwrap() {
            last = update.study;
        }
        last.unwrap()
    }

    /// Watches until some trials, but not all, are stored.
    pub(crate) async fn midway(&self, id: &str) {
        let mut updates = self.watch(id).await;
        while let Some(update) = updates.message().await.unwrap() {
            let study = update.study.unwrap();
            if study.trials_done > 0 {
                assert_eq!(study.state(), pb::StudyState::Running, "the study is too short for this test");
                assert!(update.best.is_some());
                return;
            }
        }
        panic!("the study ended");
    }

    pub(crate) async fn trials(&self, id: &str) -> Vec<pb::Trial> {
        let mut trials = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = pb::ListTrialsRequest { study_id: id.into(), page_size: 7, page_token };
            let page = self.grpc().list_trials(request).await.unwrap().into_inner();
            assert!(page.trials.len() <= 7);
            trials.extend(page.trials);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return trials;
            }
        }
    }

    /// Ends the process as a crash would.
    pub(crate) async fn kill(self) {
        self.server.abort();
        assert!(self.server.await.unwrap_err().is_cancelled());
    }

    /// Drains, and waits until the server has stopped.
    pub(crate) async fn stop(self) {
        self.drain.start();
        drop(self.channel);
        self.server.await.unwrap();
    }
}

/// Master data of the in-memory source.
#[derive(Debug)]
struct Master(Arc<Upstream>);

#[tonic::async_trait]
impl mesh::source::MasterData for Master {
    async fn instrument(&self, key: &InstrumentKey) -> Result<Instrument, RemoteError> {
        self.0.source.instrument(key).await
    }

    async fn instruments(&self) -> Result<Vec<Instrument>, RemoteError> {
        self.0.source.instruments().await
    }

    async fn revisions(&self, keys: &[InstrumentKey]) -> Result<Vec<u64>, RemoteError> {
        self.0.source.revisions(keys).await
    }

    async fn coverage(&self, key: &InstrumentKey) -> Result<Vec<mesh::source::SourceCoverage>, RemoteError> {
        self.0.source.coverage(key).await
    }

    async fn corporate_actions(&self, key: &InstrumentKey) -> Result<Vec<market::CorporateAction>, RemoteError> {
        self.0.source.corporate_actions(key).await
    }

    async fn group(&self, id: &str) -> Result<mesh::source::Group, RemoteError> {
        self.0.source.group(id).await
    }
}

pub(crate) fn share() -> Vec<f64> {
    (0..300).map(|row| 50.0 + (row as f64 * 0.13).sin() * 9.0 + (row as f64 * 1.1).cos() + row as f64 * 0.03).collect()
}

pub(crate) fn coin() -> Vec<f64> {
    (0..247).map(|row| 900.0 - (row as f64 * 0.21).cos() * 120.0 + (row as f64 * 2.3).sin() * 30.0).collect()
}

fn add(source: &mut MemorySource, key: &str, calendar: &str, timeframe: Timeframe, close: Vec<f64>) {
    let key: InstrumentKey = key.parse().unwrap();
    let instrument = Instrument {
        key: key.clone(),
        name: String::new(),
        exchange: key.segment().to_owned(),
        currency: String::new(),
        tick_size: 0.0,
        calendar: calendar.into(),
    };
    source.instruments.insert(key.clone(), instrument);
    let rows = close.len();
    let width = timeframe.width_ms().unwrap_or(86_400_000);
    let ohlcv = [close.clone(), close.clone(), close.clone(), close, vec![10.0; rows]];
    let frame = Frame::from_columns((0..rows as i64).map(|row| row * width).collect(), ohlcv, vec![f64::NAN; rows]);
    let frame = BucketFrame {
        frame: frame.unwrap(),
        closed: vec![true; rows],
        complete: vec![true; rows],
        source_count: vec![1; rows],
        expected_count: vec![1; rows],
        trading_date: vec![Date::constant(1970, 1, 1); rows],
    };
    source.buckets.insert((key, timeframe), Buckets { revision: REVISION, frame });
}

pub(crate) fn refusal(status: Status) -> (Code, String, Vec<String>) {
    let error = RemoteError::from_status(&status);
    (error.code, error.reason, error.fields.into_iter().map(|(field, _)| field).collect())
}

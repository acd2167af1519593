//! A running service over in-memory upstreams, and its clients.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_flight::Ticket;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use futures::TryStreamExt;
use indicator::{App, Config, Ports};
use market::{BucketFrame, Date, Frame, Instrument, InstrumentKey, Timeframe};
use mesh::config::ServerConfig;
use mesh::engine::Engines;
use mesh::source::{Buckets, Candles, LiveCandles, MasterData, MemoryNewsroom, MemorySource};
use mesh::{CpuPool, Drain, MAX_MESSAGE_BYTES};
use prost::Message;
use proto::indicator::indicator_service_client::IndicatorServiceClient;
use proto::indicator::live_service_client::LiveServiceClient;
use proto::wire::{FrameTicket, frame_ticket};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Status};

pub(crate) const KEY: &str = "US|TEST";
pub(crate) const ROWS: usize = 120;
const REVISION: u64 = 5;

pub(crate) struct Running {
    pub(crate) drain: Drain,
    channel: Channel,
    server: tokio::task::JoinHandle<()>,
}

impl Running {
    pub(crate) async fn start() -> Running {
        Running::start_with_rows(ROWS).await
    }

    pub(crate) async fn start_with_rows(rows: usize) -> Running {
        Running::start_over(source(rows)).await
    }

    pub(crate) async fn start_over(source: MemorySource) -> Running {
        let source = Arc::new(source);
        Running::start_with(Arc::clone(&source) as _, source).await
    }

    pub(crate) async fn start_with(candles: Arc<dyn Candles>, master: Arc<dyn MasterData>) -> Running {
        let pool = Arc::new(CpuPool::new(2, 64).unwrap());
        Running::start_configured(candles, master, Config::default(), pool).await
    }

    pub(crate) async fn start_configured(
        candles: Arc<dyn Candles>,
        master: Arc<dyn MasterData>,
        config: Config,
        pool: Arc<CpuPool>,
    ) -> Running {
        let live = Arc::new(MemoryNewsroom::default());
        let cache = config.local_cache();
        Running::start_on(Ports { candles, live, master, engines: Engines::BOTH, pool, cache }, config).await
    }

    pub(crate) async fn start_live(
        candles: Arc<dyn Candles>,
        master: Arc<dyn MasterData>,
        live: Arc<dyn LiveCandles>,
        config: Config,
    ) -> Running {
        let (pool, cache) = (Arc::new(CpuPool::new(2, 64).unwrap()), config.local_cache());
        Running::start_on(Ports { candles, live, master, engines: Engines::BOTH, pool, cache }, config).await
    }

    async fn start_on(ports: Ports, config: Config) -> Running {
        let app = App::build(&ServerConfig::default(), config, ports).await.unwrap();
        let address = format!("http://{}", app.address());
        let drain = Drain::new();
        let server = tokio::spawn({
            let drain = drain.clone();
            async move { app.serve(drain).await.unwrap() }
        });
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        Running { drain, channel, server }
    }

    pub(crate) fn grpc(&self) -> IndicatorServiceClient<Channel> {
        IndicatorServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn live(&self) -> LiveServiceClient<Channel> {
        LiveServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) fn flight(&self) -> FlightServiceClient<Channel> {
        FlightServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub(crate) async fn frames(&self, ticket: Request<Ticket>) -> Result<(Vec<RecordBatch>, MetadataMap), Status> {
        let response = self.flight().do_get(ticket).await?;
        let metadata = response.metadata().clone();
        let data = response.into_inner().map_err(|status| FlightError::Tonic(Box::new(status)));
        let batches = FlightRecordBatchStream::new_from_flight_data(data).try_collect().await;
        Ok((batches.map_err(mesh::flight::status_of)?, metadata))
    }

    /// Waits until the drained server has stopped.
    pub(crate) async fn ended(self) {
        drop(self.channel);
        self.server.await.unwrap();
    }
}

pub(crate) fn forced<T>(message: T, engine: &'static str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(mesh::ENGINE_HEADER, engine.parse().unwrap());
    request
}

pub(crate) fn ticket(frame: frame_ticket::Frame) -> Ticket {
    Ticket { ticket: FrameTicket { frame: Some(frame) }.encode_to_vec().into() }
}

pub(crate) fn minute(minute: i64) -> prost_types::Timestamp {
    proto::convert::timestamp(minute * 60_000)
}

/// Knows `US|TEST` with candles, `US|EMPTY` and `US|MANY0` .. `US|MANY3999` without.
pub(crate) fn source(rows: usize) -> MemorySource {
    let mut source = MemorySource { revision: REVISION, ..Default::default() };
    for index in 0..4000 {
        add_instrument(&mut source, &format!("US|MANY{index}"), "NYSE");
    }
    add_instrument(&mut source, "US|EMPTY", "NYSE");
    let key = add_instrument(&mut source, KEY, "NYSE");
    source.buckets.insert((key, Timeframe::M1), Buckets { revision: REVISION, frame: waves(rows) });
    source
}

pub(crate) fn add_instrument(source: &mut MemorySource, key: &str, calendar: &str) -> InstrumentKey {
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
    key
}

/// Close of the test instrument's row.
pub(crate) fn wave(row: usize) -> f64 {
    50.0 + (row as f64 * 0.3).sin() * 4.0
}

fn waves(rows: usize) -> BucketFrame {
    let close: Vec<f64> = (0..rows).map(wave).collect();
    let shifted = |by: f64| close.iter().map(|close| close + by).collect();
    let ohlcv = [shifted(-0.1), shifted(0.5), shifted(-0.5), close.clone(), vec![10.0; rows]];
    let open_time = (0..rows as i64).map(|row| row * 60_000).collect();
    let frame = Frame::from_columns(open_time, ohlcv, vec![f64::NAN; rows]).unwrap();
    buckets(frame, vec![Date::constant(1970, 1, 1); rows])
}

/// Whole minutes of a frame.
pub(crate) fn buckets(frame: Frame, trading_date: Vec<Date>) -> BucketFrame {
    let rows = frame.len();
    BucketFrame {
        frame,
        closed: vec![true; rows],
        complete: vec![true; rows],
        source_count: vec![1; rows],
        expected_count: vec![1; rows],
        trading_date,
    }
}

//! The service over its own wire: built on a free port, called with the generated clients.
#![allow(clippy::unwrap_used, reason = "the lint spares test functions, not what they share")]

mod actions;
mod backfill;
mod batches;
mod changes;
mod data;
mod flight;
mod master;
mod put;

use mesh::client::MeshChannel;
use mesh::config::ServerConfig;
use mesh::{Drain, MAX_MESSAGE_BYTES, RemoteError};
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{BatchOutcome, CandleBatch, PutCandlesRequest};
use proto::{convert, wire};
use tonic::Status;

type Client = IngestionServiceClient<MeshChannel>;

/// A running service over an empty store; it drains when dropped.
struct Running {
    client: Client,
    address: String,
    drain: Drain,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.drain.start();
    }
}

async fn start() -> Running {
    start_over(store::Stores::memory()).await
}

async fn start_over(stores: store::Stores) -> Running {
    start_with(ingestion::Config::default(), stores).await
}

async fn start_with(config: ingestion::Config, stores: store::Stores) -> Running {
    let ports = ingestion::Ports { stores, bus: mesh::bus::Bus::in_process() };
    let app = ingestion::App::build(&ServerConfig::default(), config, ports).await.unwrap();
    let (address, drain) = (format!("http://{}", app.address()), Drain::new());
    tokio::spawn(app.serve(drain.clone()));
    let client = IngestionServiceClient::new(mesh::client::connect(&address).unwrap())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Running { client, address, drain }
}

impl Running {
    async fn put(&self, batch: CandleBatch) -> Result<BatchOutcome, Status> {
        let answer = self.client.clone().put_candles(PutCandlesRequest { batch: Some(batch) }).await?;
        Ok(answer.into_inner().outcome.unwrap())
    }
}

fn batch(key: &str, timeframe: &str, candles: Vec<wire::Candle>) -> CandleBatch {
    CandleBatch { instrument_key: key.into(), timeframe: timeframe.into(), calendar: String::new(), candles }
}

/// A candle whose four prices are `price`.
fn flat(time: &str, price: f64) -> wire::Candle {
    flat_at(market::parse_millis(time).unwrap(), price)
}

fn flat_at(open_time: i64, price: f64) -> wire::Candle {
    let (open, high, low, close) = (price, price, price, price);
    convert::wire_candle(&market::Candle { open_time, open, high, low, close, volume: 1.0, open_interest: None })
}

/// The fault inside a status, as a client of the mesh sees it.
fn fault(status: Status) -> RemoteError {
    RemoteError::from_status(&status)
}

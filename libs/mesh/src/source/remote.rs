//! The ports over gRPC and Flight.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow_flight::Ticket;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use futures::{StreamExt, TryStreamExt};
use market::{BucketFrame, CorporateAction, Instrument, InstrumentKey, Millis, TimeRange, Timeframe};
use prost::Message;
use proto::aggregation::live_service_client::LiveServiceClient;
use proto::convert;
use proto::ingestion::change_service_client::ChangeServiceClient;
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{
    GetCoverageRequest, GetFirstChangeRequest, GetGroupRequest, GetInstrumentRequest, GetRevisionsRequest,
    ListCorporateActionsRequest, ListInstrumentsRequest,
};
use proto::wire::{self, CandlesTicket, FrameTicket, StoredCandlesTicket, frame_ticket};
use tonic::{Code, Status};

use super::{Buckets, Candles, Group, MasterData, SourceCoverage, StoredCandles, StoredFrames};
use crate::client::MeshChannel;
use crate::config::ConfigError;
use crate::{MAX_MESSAGE_BYTES, RemoteError};

/// Instruments per page when the universe is listed.
const PAGE_SIZE: i32 = 1000;
/// Candles of one history held in memory: sixteen years of an exchange's minutes thrice over, half a gigabyte. A longer one is
/// refused while it is read, not after.
const MAX_HISTORY_ROWS: usize = 5_000_000;
/// Instruments in a universe; a listing that goes on is cut with an error rather than held in memory.
const MAX_INSTRUMENTS: usize = 100_000;

fn flight_client(channel: MeshChannel) -> FlightServiceClient<MeshChannel> {
    FlightServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// An answer that breaks the contract; logged here, since a remote fault is passed on as it is.
pub(super) fn malformed(error: impl std::fmt::Display) -> RemoteError {
    RemoteError::from_status(&malformed_status(error))
}

fn malformed_status(error: impl std::fmt::Display) -> Status {
    tracing::error!(%error, "upstream answered a malformed message");
    Status::internal(format!("upstream answered a malformed message: {error}"))
}

/// The status of a Flight error in what an upstream answered: its own word to the caller, INTERNAL for what cannot be read.
/// What a caller sent is judged by [`status_of`](crate::flight::status_of).
pub fn status_of_answer(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        error => malformed_status(error),
    }
}

fn fault_of(error: FlightError) -> RemoteError {
    RemoteError::from_status(&status_of_answer(error))
}

async fn get(
    client: &FlightServiceClient<MeshChannel>,
    frame: frame_ticket::Frame,
) -> Result<(u64, FlightRecordBatchStream), RemoteError> {
    let ticket = Ticket { ticket: FrameTicket { frame: Some(frame) }.encode_to_vec().into() };
    let data = client.clone().do_get(ticket).await?.into_inner();
    let data = data.map_err(|status| FlightError::Tonic(Box::new(status)));
    // The decoder knows the schema only after the first message, so that is awaited here.
    let mut data = Box::pin(data.peekable());
    let first = data.as_mut().peek().await;
    let revision = match first {
        Some(Ok(message)) => {
            let schema = arrow_schema::Schema::try_from(message).map_err(malformed)?;
            schema.metadata.get("revision").and_then(|text| text.parse().ok()).unwrap_or_default()
        }
        Some(Err(FlightError::Tonic(status))) => {
            return Err(RemoteError::from_status(status.as_ref()));
        }
        Some(Err(error)) => return Err(malformed(error)),
        None => return Err(malformed("the stream is empty")),
    };
    Ok((revision, FlightRecordBatchStream::new_from_flight_data(data)))
}

/// Ingestion, from another service.
#[derive(Debug, Clone)]
pub struct RemoteIngestion {
    flight: FlightServiceClient<MeshChannel>,
    client: IngestionServiceClient<MeshChannel>,
    pub(super) changes: ChangeServiceClient<MeshChannel>,
    /// As of the last revisions that were answered.
    store_id: Arc<Mutex<Arc<str>>>,
}

impl RemoteIngestion {
    /// Connects lazily.
    pub fn connect(address: &str) -> Result<Self, ConfigError> {
        let channel = crate::client::connect(address)?;
        let client = IngestionServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let changes = ChangeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { flight: flight_client(channel), client, changes, store_id: Arc::default() })
    }

    fn known_store(&self) -> MutexGuard<'_, Arc<str>> {
        self.store_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl StoredCandles for RemoteIngestion {
    async fn stored(
        &self,
        key: &InstrumentKey,
        source: Timeframe,
        range: TimeRange,
        revision: Option<u64>,
    ) -> Result<StoredFrames, RemoteError> {
        let ticket = StoredCandlesTicket {
            instrument_key: key.to_string(),
            timeframe: source.to_string(),
            range: Some(convert::wire_range(range)),
            revision,
        };
        let (revision, batches) = get(&self.flight, frame_ticket::Frame::StoredCandles(ticket)).await?;
        let frames =
            batches.map_err(fault_of).and_then(|batch| async move { proto::arrow::frame(&batch).map_err(malformed) });
        Ok(StoredFrames { revision, frames: frames.boxed() })
    }
}

#[tonic::async_trait]
impl MasterData for RemoteIngestion {
    async fn instrument(&self, key: &InstrumentKey) -> Result<Instrument, RemoteError> {
        let request = GetInstrumentRequest { instrument_key: key.to_string() };
        let answer = self.client.clone().get_instrument(request).await?.into_inner();
        instrument(answer.instrument.unwrap_or_default())
    }

    async fn instruments(&self) -> Result<Vec<Instrument>, RemoteError> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListInstrumentsRequest { page_size: PAGE_SIZE, page_token, segment: String::new() };
            let page = self.client.clone().list_instruments(request).await?.into_inner();
            for message in page.instruments {
                all.push(instrument(message)?);
            }
            if all.len() > MAX_INSTRUMENTS {
                let text = format!("the universe holds more than {MAX_INSTRUMENTS} instruments; name a list instead");
                return Err(RemoteError::from_status(&Status::resource_exhausted(text)));
            }
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            page_token = page.next_page_token;
        }
    }

    async fn revisions(&self, keys: &[InstrumentKey]) -> Result<Vec<u64>, RemoteError> {
        let instrument_keys = keys.iter().map(ToString::to_string).collect();
        let answer = self.client.clone().get_revisions(GetRevisionsRequest { instrument_keys }).await?.into_inner();
        if answer.revisions.len() != keys.len() {
            return Err(malformed("revisions are not aligned with the request"));
        }
        let mut known = self.known_store();
        if **known != *answer.store_id {
            *known = answer.store_id.into();
        }
        Ok(answer.revisions)
    }

    async fn store_id(&self) -> Result<Arc<str>, RemoteError> {
        if self.known_store().is_empty() {
            self.revisions(&[]).await?;
        }
        Ok(Arc::clone(&self.known_store()))
    }

    async fn first_change(
        &self,
        key: &InstrumentKey,
        after_revision: u64,
        revision: u64,
    ) -> Result<Option<Millis>, RemoteError> {
        let request = GetFirstChangeRequest { instrument_key: key.to_string(), after_revision, revision };
        let answer = self.client.clone().get_first_change(request).await?.into_inner();
        let first = answer.first_open_time.as_ref();
        first.map(|stamp| convert::millis(stamp).ok_or_else(|| malformed("a change without a time"))).transpose()
    }

    async fn coverage(&self, key: &InstrumentKey) -> Result<Vec<SourceCoverage>, RemoteError> {
        let request = GetCoverageRequest { instrument_key: key.to_string() };
        let answer = self.client.clone().get_coverage(request).await?.into_inner();
        let mut coverage = Vec::with_capacity(answer.coverage.len());
        for item in &answer.coverage {
            let instant = |stamp: &Option<prost_types::Timestamp>| {
                stamp.as_ref().and_then(convert::millis).ok_or_else(|| malformed("coverage without a time"))
            };
            coverage.push(SourceCoverage {
                timeframe: item.timeframe.parse().map_err(malformed)?,
                first_open_time: instant(&item.first_open_time)?,
                last_open_time: instant(&item.last_open_time)?,
                candle_count: item.candle_count,
            });
        }
        coverage.sort_by_key(|item| item.timeframe);
        Ok(coverage)
    }

    async fn corporate_actions(&self, key: &InstrumentKey) -> Result<Vec<CorporateAction>, RemoteError> {
        let request = ListCorporateActionsRequest { instrument_key: key.to_string() };
        let answer = self.client.clone().list_corporate_actions(request).await?.into_inner();
        let actions = answer.actions.iter().map(|message| convert::corporate_action("action", message));
        actions.map(|action| action.map(|(_, action)| action).map_err(malformed)).collect()
    }

    async fn group(&self, id: &str) -> Result<Group, RemoteError> {
        let request = GetGroupRequest { group_id: id.to_owned() };
        let group = self.client.clone().get_group(request).await?.into_inner().group.unwrap_or_default();
        let keys = group.instrument_keys.iter().map(|key| key.parse().map_err(malformed));
        Ok(Group { id: group.group_id, name: group.name, instrument_keys: keys.collect::<Result<_, _>>()? })
    }
}

fn instrument(message: wire::Instrument) -> Result<Instrument, RemoteError> {
    Ok(Instrument {
        key: message.instrument_key.parse().map_err(malformed)?,
        name: message.name,
        exchange: message.exchange,
        currency: message.currency,
        tick_size: message.tick_size,
        calendar: message.calendar,
    })
}

/// Aggregation, from another service.
#[derive(Debug, Clone)]
pub struct RemoteAggregation {
    flight: FlightServiceClient<MeshChannel>,
    pub(super) live: LiveServiceClient<MeshChannel>,
}

impl RemoteAggregation {
    /// Connects lazily.
    pub fn connect(address: &str) -> Result<Self, ConfigError> {
        let channel = crate::client::connect(address)?;
        let live = LiveServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { flight: flight_client(channel), live })
    }
}

#[tonic::async_trait]
impl Candles for RemoteAggregation {
    async fn candles(
        &self,
        key: &InstrumentKey,
        timeframe: Timeframe,
        range: TimeRange,
        revision: Option<u64>,
    ) -> Result<Buckets, RemoteError> {
        let ticket = CandlesTicket {
            instrument_key: key.to_string(),
            timeframe: timeframe.to_string(),
            range: Some(convert::wire_range(range)),
            revision,
            ..Default::default()
        };
        let (revision, mut batches) = get(&self.flight, frame_ticket::Frame::Candles(ticket)).await?;
        let mut frame = BucketFrame::default();
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(fault_of)?;
            if frame.len() + batch.num_rows() > MAX_HISTORY_ROWS {
                let text = format!(
                    "'{key}' has more than {MAX_HISTORY_ROWS} candles of {timeframe} to read at once; ask for a wider timeframe"
                );
                return Err(RemoteError::from_status(&Status::resource_exhausted(text)));
            }
            let part = proto::arrow::bucket_frame(&batch).map_err(malformed)?;
            frame.append(&part).map_err(malformed)?;
        }
        Ok(Buckets { revision, frame })
    }
}

/// Whether a fault means that the instrument or group does not exist.
impl RemoteError {
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_not_the_callers_fault() {
        let damaged = [
            FlightError::DecodeError("cut off".to_owned()),
            FlightError::ProtocolError("no schema".to_owned()),
            FlightError::Arrow(arrow_schema::ArrowError::IpcError("no batch".to_owned())),
        ];
        for error in damaged {
            assert_eq!(status_of_answer(error).code(), Code::Internal);
        }
        let told = FlightError::Tonic(Box::new(Status::not_found("instrument 'US|X' is not known")));
        assert_eq!(status_of_answer(told).code(), Code::NotFound);
    }
}

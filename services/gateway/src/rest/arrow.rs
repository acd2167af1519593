//! Frames as an Arrow IPC stream, for callers that accept it: Flight's batches, written one after the other.

use arrow_array::RecordBatch;
use arrow_flight::Ticket;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::ArrowError;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderValue, header};
use mesh::MAX_MESSAGE_BYTES;
use mesh::source::status_of_answer;
use prost::Message;
use proto::wire::{FrameTicket, frame_ticket::Frame};
use tonic::Status;

use super::call::{Call, name_engine};
use super::problem::Problem;
use crate::method::Role;

pub(super) const MEDIA_TYPE: &str = "application/vnd.apache.arrow.stream";

pub(super) fn is_asked_for(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|kind| kind.split(';').next().unwrap_or_default().trim() == MEDIA_TYPE)
}

/// Answers a frame of a role that speaks Flight.
pub(super) async fn stream(call: Call, role: Role, frame: Frame) -> Result<Response, Problem> {
    let ticket = Ticket { ticket: FrameTicket { frame: Some(frame) }.encode_to_vec().into() };
    let upstream = call.upstream(role)?;
    let mut client = FlightServiceClient::new(upstream.forwarding()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let response = call.run(role, client.do_get(ticket)).await?;
    let engine = role.subject().map(|subject| call.answered(subject, response.metadata()));
    let data = response.into_inner().map_err(|status| FlightError::Tonic(Box::new(status)));
    let mut batches = FlightRecordBatchStream::new_from_flight_data(data);
    // The schema is known after the first batch, or after the end of a frame without any.
    let first =
        batches.next().await.transpose().map_err(|error| Problem::upstream(upstream, &status_of_answer(error)))?;
    let schema =
        batches.schema().cloned().ok_or_else(|| Problem::status(&Status::internal("frame without a schema")))?;
    let writer = StreamWriter::try_new(Vec::new(), &schema)
        .map_err(|error| Problem::status(&Status::internal(error.to_string())))?;
    let body = Body::from_stream(written(writer, first, batches));
    let mut response = ([(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))], body).into_response();
    name_engine(&mut response, engine);
    Ok(response)
}

/// The bytes of each batch, the schema before the first and the end mark after the last; an error cuts the body off.
fn written(
    writer: StreamWriter<Vec<u8>>,
    first: Option<RecordBatch>,
    batches: FlightRecordBatchStream,
) -> impl Stream<Item = Result<Bytes, FlightError>> {
    let batches = futures::stream::iter(first.map(Ok)).chain(batches);
    futures::stream::try_unfold(Some((writer, batches)), |state| async move {
        let Some((mut writer, mut batches)) = state else { return Ok(None) };
        match batches.try_next().await? {
            Some(batch) => {
                writer.write(&batch)?;
                let bytes = Bytes::from(std::mem::take(writer.get_mut()));
                Ok(Some((bytes, Some((writer, batches)))))
            }
            None => {
                writer.finish()?;
                let bytes = writer.into_inner().map_err(|error: ArrowError| FlightError::Arrow(error))?;
                Ok(Some((Bytes::from(bytes), None)))
            }
        }
    })
}

//! The response body of DoGet, written without a copy of the columns.
//!
//! The usual way copies every column twice: into the IPC message, and with it into the gRPC message, both in fresh memory. Here the
//! few bytes around the columns are written by hand and the columns follow as they lie in the batch, so that the kernel's copy into
//! the socket is the only one. A message is the protobuf message `FlightData` behind gRPC's five bytes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use arrow_array::{Array, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::writer::StreamEncoder;
use arrow_schema::{ArrowError, SchemaRef};
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use http::HeaderMap;
use http_body::{Body, Frame};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Status;

/// Bytes of columns a message holds at most: with what is around them less than gRPC's usual limit of 4 MB.
const MAX_BODY_BYTES: usize = 7 * 512 * 1024;
/// Pieces below this are copied together: a frame and a write of their own cost more than that.
const SMALL_BYTES: usize = 2048;
/// What gRPC puts before a message: whether it is compressed, and its length.
const GRPC_PREFIX_BYTES: usize = 5;
/// What IPC puts before metadata: a marker, and its length.
const IPC_PREFIX_BYTES: usize = 8;
/// Fields of `FlightData`.
const DATA_HEADER: u32 = 2;
const DATA_BODY: u32 = 1000;

type Batches = BoxStream<'static, Result<RecordBatch, Status>>;

/// Batches on their way through tonic's response, as one of its extensions, which must be cloneable.
#[derive(Clone)]
pub(super) struct Carried(Arc<Mutex<Option<(SchemaRef, Batches)>>>);

impl Carried {
    pub(super) fn new(schema: SchemaRef, batches: Batches) -> Self {
        Self(Arc::new(Mutex::new(Some((schema, batches)))))
    }

    /// The body that sends them; nothing if it was made before.
    pub(super) fn body(&self) -> Option<DataBody> {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.map(|(schema, batches)| DataBody::new(&schema, batches))
    }
}

/// Sends the schema, the batches, and the status they ended with.
pub(super) struct DataBody {
    batches: Batches,
    encoder: Result<StreamEncoder, ArrowError>,
    /// Written, and not yet asked for: less than the pieces of one batch.
    pieces: VecDeque<Bytes>,
    is_over: bool,
}

impl DataBody {
    fn new(schema: &SchemaRef, mut batches: Batches) -> Self {
        let mut pieces = VecDeque::new();
        let encoder = StreamEncoder::try_new(schema).and_then(|mut encoder| {
            // The encoder gives the schema with the first batch only; an empty one is made for it and left out.
            let buffers = encoder.encode(&RecordBatch::new_empty(Arc::clone(schema)))?;
            if let Some(message) = Messages::new(buffers).next() {
                message?.write(&mut pieces);
            }
            Ok(encoder)
        });
        if let Err(error) = &encoder {
            batches = futures::stream::iter([Err(Status::internal(error.to_string()))]).boxed();
        }
        Self { batches, encoder, pieces, is_over: false }
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let encoder = match &mut self.encoder {
            Ok(encoder) => encoder,
            Err(error) => return Err(ArrowError::IpcError(error.to_string())),
        };
        for part in parts(batch)? {
            for message in Messages::new(encoder.encode(&part)?) {
                message?.write(&mut self.pieces);
            }
        }
        Ok(())
    }

    fn trailers(&mut self, status: &Status) -> Option<Result<Frame<Bytes>, Status>> {
        self.is_over = true;
        let mut trailers = HeaderMap::new();
        Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers)))
    }
}

impl Body for DataBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            let ended = match ready!(self.batches.poll_next_unpin(context)) {
                Some(Ok(batch)) => match self.write(&batch) {
                    Ok(()) => continue,
                    Err(error) => Status::internal(error.to_string()),
                },
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            // What was read is let go of at once, not when the client has taken the trailers.
            self.batches = futures::stream::empty().boxed();
            return Poll::Ready(self.trailers(&ended));
        }
    }
}

/// A batch cut into runs of rows that each fit into a message.
fn parts(batch: &RecordBatch) -> Result<Vec<RecordBatch>, ArrowError> {
    let mut bytes = 0;
    for column in batch.columns() {
        bytes += column.to_data().get_slice_memory_size()?;
    }
    let count = bytes.div_ceil(MAX_BODY_BYTES).max(1);
    let rows = batch.num_rows().div_ceil(count).max(1);
    let starts = (0..batch.num_rows().max(1)).step_by(rows);
    Ok(starts.map(|from| batch.slice(from, rows.min(batch.num_rows() - from))).collect())
}

/// An IPC message: what is in it, and the columns.
struct Message {
    metadata: Bytes,
    body: Vec<Buffer>,
    body_bytes: usize,
}

/// The messages in the buffers of [`StreamEncoder`], which begin and end where buffers do.
struct Messages(std::vec::IntoIter<Buffer>);

impl Messages {
    fn new(buffers: Vec<Buffer>) -> Self {
        Self(buffers.into_iter())
    }

    /// The next buffers, of so many bytes together.
    fn take(&mut self, bytes: usize) -> Result<Vec<Buffer>, ArrowError> {
        let (mut taken, mut held) = (Vec::new(), 0);
        while held < bytes {
            let buffer = self.0.next().ok_or_else(|| ArrowError::IpcError("a message ends early".into()))?;
            held += buffer.len();
            taken.push(buffer);
        }
        match held == bytes {
            true => Ok(taken),
            false => Err(ArrowError::IpcError("a message ends inside a buffer".into())),
        }
    }
}

impl Iterator for Messages {
    type Item = Result<Message, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Buffers of absent columns are empty.
        let prefix = self.0.by_ref().find(|buffer| !buffer.is_empty())?;
        Some(self.message(&prefix))
    }
}

impl Messages {
    fn message(&mut self, prefix: &Buffer) -> Result<Message, ArrowError> {
        let length = prefix.get(4..IPC_PREFIX_BYTES).filter(|_| prefix.len() == IPC_PREFIX_BYTES);
        let length = length.and_then(|length| length.try_into().ok()).map(u32::from_le_bytes);
        let length = length.ok_or_else(|| ArrowError::IpcError("a message without its length".into()))?;
        let mut metadata = BytesMut::with_capacity(length as usize);
        self.take(length as usize)?.iter().for_each(|buffer| metadata.put_slice(buffer));
        let message = arrow_ipc::root_as_message(&metadata).map_err(|error| ArrowError::IpcError(error.to_string()))?;
        let body_bytes = usize::try_from(message.bodyLength()).unwrap_or_default();
        Ok(Message { body: self.take(body_bytes)?, body_bytes, metadata: metadata.freeze() })
    }
}

impl Message {
    fn write(self, pieces: &mut VecDeque<Bytes>) {
        let (header_bytes, body_bytes) = (self.metadata.len(), self.body_bytes);
        let field_bytes = |tag, bytes: usize| key_len(tag) + encoded_len_varint(bytes as u64) + bytes;
        let has_body = body_bytes > 0;
        let message_bytes =
            field_bytes(DATA_HEADER, header_bytes) + if has_body { field_bytes(DATA_BODY, body_bytes) } else { 0 };
        let mut small = BytesMut::with_capacity(GRPC_PREFIX_BYTES + message_bytes - body_bytes + SMALL_BYTES);
        small.put_u8(0);
        // Within bounds: a body is cut at MAX_BODY_BYTES, and a schema's metadata is not near it.
        small.put_u32(message_bytes as u32);
        encode_key(DATA_HEADER, WireType::LengthDelimited, &mut small);
        encode_varint(header_bytes as u64, &mut small);
        small.put_slice(&self.metadata);
        if has_body {
            encode_key(DATA_BODY, WireType::LengthDelimited, &mut small);
            encode_varint(body_bytes as u64, &mut small);
        }
        for buffer in self.body {
            if buffer.len() < SMALL_BYTES {
                small.put_slice(&buffer);
                continue;
            }
            if !small.is_empty() {
                pieces.push_back(small.split().freeze());
            }
            pieces.push_back(Bytes::from_owner(buffer));
        }
        if !small.is_empty() {
            pieces.push_back(small.freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{
        ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, TimestampMillisecondArray, UInt32Array,
    };
    use arrow_flight::FlightData;
    use arrow_flight::decode::FlightRecordBatchStream;
    use arrow_schema::{DataType, Field, Schema, TimeUnit};
    use futures::TryStreamExt;
    use http_body_util::BodyExt;
    use prost::Message as _;

    use super::*;

    fn schema() -> SchemaRef {
        let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
        let fields = vec![
            Field::new("time", time, false),
            Field::new("value", DataType::Float64, true),
            Field::new("none", DataType::Float64, true),
            Field::new("flag", DataType::Boolean, true),
            Field::new("count", DataType::UInt32, false),
            Field::new("text", DataType::Utf8, true),
        ];
        Arc::new(Schema::new(fields).with_metadata([("a".to_string(), "b".to_string())]))
    }

    fn batch(rows: usize) -> RecordBatch {
        let all = 0..rows as i64;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampMillisecondArray::from_iter_values(all.clone()).with_timezone("UTC")),
            Arc::new(all.clone().map(|at| (at % 3 > 0).then_some(at as f64 / 7.0)).collect::<Float64Array>()),
            Arc::new(all.clone().map(|_| None::<f64>).collect::<Float64Array>()),
            Arc::new(all.clone().map(|at| (at % 5 > 0).then_some(at % 2 == 0)).collect::<BooleanArray>()),
            Arc::new(UInt32Array::from_iter_values(0..rows as u32)),
            Arc::new(all.map(|at| (at % 2 > 0).then(|| format!("row {at}"))).collect::<StringArray>()),
        ];
        RecordBatch::try_new(schema(), columns).unwrap()
    }

    /// What a client reads: the sizes of the messages, the batches, and the trailers.
    async fn read(batches: Vec<Result<RecordBatch, Status>>) -> (Vec<usize>, SchemaRef, Vec<RecordBatch>, HeaderMap) {
        let body = DataBody::new(&schema(), futures::stream::iter(batches).boxed());
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().cloned().unwrap();
        let (mut bytes, mut messages) = (collected.to_bytes(), Vec::new());
        while !bytes.is_empty() {
            let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            assert_eq!(bytes[0], 0, "not compressed");
            messages.push(bytes.slice(5..5 + length));
            bytes = bytes.slice(5 + length..);
        }
        let sizes = messages.iter().map(Bytes::len).collect();
        let data = messages.into_iter().map(|message| Ok(FlightData::decode(message).unwrap()));
        let mut stream = FlightRecordBatchStream::new_from_flight_data(futures::stream::iter(data));
        let batches = stream.by_ref().try_collect().await.unwrap();
        (sizes, Arc::clone(stream.schema().unwrap()), batches, trailers)
    }

    #[tokio::test]
    async fn a_client_reads_the_batches_that_were_given() {
        let whole = batch(5000);
        // Slices whose bits begin inside a byte, one row, and none.
        let given = vec![whole.clone(), whole.slice(3, 4000), whole.slice(4999, 1), whole.slice(7, 0)];
        let (sizes, read_schema, read, trailers) = read(given.iter().cloned().map(Ok).collect()).await;
        assert_eq!((read_schema, read), (schema(), given));
        assert_eq!((sizes.len(), trailers.get("grpc-status").unwrap().to_str().unwrap()), (5, "0"));
    }

    #[tokio::test]
    async fn a_batch_too_large_for_a_message_is_cut() {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1_100_000));
        let whole = RecordBatch::try_from_iter([("only", column)]).unwrap();
        let given = parts(&whole).unwrap();
        assert_eq!(given.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [366_667, 366_667, 366_666]);
        let values =
            |part: &RecordBatch| part.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec();
        assert!(given.iter().flat_map(values).eq(0..1_100_000));
        let (sizes, _, read, _) = read(vec![Ok(batch(150_000))]).await;
        assert!(read.len() > 1 && sizes.iter().all(|size| *size < 4_000_000), "{sizes:?}");
        assert_eq!(read.iter().map(RecordBatch::num_rows).sum::<usize>(), 150_000);
    }

    #[tokio::test]
    async fn no_batch_is_a_schema_and_ok_and_an_error_follows_what_came_before_it() {
        let (sizes, read_schema, batches, trailers) = read(vec![]).await;
        assert_eq!((sizes.len(), read_schema, batches.len()), (1, schema(), 0));
        assert_eq!(trailers.get("grpc-status").unwrap(), "0");
        let broken = Err(Status::unavailable("the store is away"));
        let (_, _, batches, trailers) = read(vec![Ok(batch(2)), broken, Ok(batch(1))]).await;
        assert_eq!(batches, [batch(2)]);
        assert_eq!(trailers.get("grpc-status").unwrap(), "14");
        assert_eq!(trailers.get("grpc-message").unwrap(), "the%20store%20is%20away");
    }

    #[tokio::test]
    async fn columns_are_sent_from_where_they_lie() {
        let whole = batch(5000);
        let values = whole.column(1).as_any().downcast_ref::<Float64Array>().unwrap().values().inner().as_ptr();
        let mut body = DataBody::new(&schema(), futures::stream::iter([Ok(whole.clone())]).boxed());
        let mut sent = Vec::new();
        while let Some(frame) = body.frame().await {
            sent.extend(frame.unwrap().into_data().ok().map(|piece| piece.as_ptr()));
        }
        assert!(sent.contains(&values), "the column was copied");
    }
}

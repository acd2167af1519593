//! Arrow Flight: one adapter between the protocol's service trait and a role that serves frames.

mod body;
mod describe;
mod request;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow_array::RecordBatch;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, SchemaAsIpc, SchemaResult, Ticket,
};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_schema::SchemaRef;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use prost::Message;
use proto::wire::FrameTicket;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};
use tower::Service;

use self::body::Carried;
pub use self::describe::{Description, Listing, time_parts};
pub use self::request::{ListCriteria, MAX_LISTED_INSTRUMENTS, parse_ticket, ticket_of};
use crate::MAX_MESSAGE_BYTES;

/// Rows per record batch: large enough for full speed, small enough to stay in cache.
pub const BATCH_ROWS: usize = 16_384;

/// Batches of one schema.
pub struct Frames {
    pub schema: SchemaRef,
    pub batches: BoxStream<'static, Result<RecordBatch, Status>>,
    /// Response metadata, for example the engine that answered.
    pub metadata: MetadataMap,
}

impl std::fmt::Debug for Frames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frames").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// Batches a client puts, with the descriptor it sent first.
pub struct PutStream {
    pub descriptor: FlightDescriptor,
    pub batches: FlightRecordBatchStream,
}

impl std::fmt::Debug for PutStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PutStream").field("descriptor", &self.descriptor).finish_non_exhaustive()
    }
}

/// What a role must say to speak Flight.
#[tonic::async_trait]
pub trait FrameServer: Send + Sync + 'static {
    /// Answers a ticket of its own kind; another kind is INVALID_ARGUMENT.
    async fn get(&self, ticket: FrameTicket, metadata: &MetadataMap) -> Result<Frames, Status>;

    /// Schema of the frame a ticket names.
    async fn schema(&self, ticket: FrameTicket) -> Result<SchemaRef, Status>;

    /// What is known of the frame a ticket names, and the tickets of its parts; by default one part, the ticket itself.
    async fn describe(&self, ticket: FrameTicket) -> Result<Description, Status> {
        Ok(Description { schema: self.schema(ticket.clone()).await?, rows: None, parts: vec![ticket] })
    }

    /// A page of the frames there are.
    async fn list(&self, _criteria: ListCriteria) -> Result<Listing, Status> {
        Ok(Listing::default())
    }

    /// Stores what a client puts; each item acknowledges a batch as durable.
    async fn put(&self, _stream: PutStream) -> Result<BoxStream<'static, Result<PutResult, Status>>, Status> {
        Err(Status::unimplemented("this role takes no frames; put candles to ingestion"))
    }
}

/// The Flight service of a role.
pub fn service<T: FrameServer>(frames: Arc<T>) -> FlightServer<T> {
    let inner = FlightServiceServer::new(Adapter(frames))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    FlightServer(inner)
}

/// tonic's server of the protocol, but for the body of DoGet, whose columns it sends without copying them.
#[derive(Debug)]
pub struct FlightServer<T>(FlightServiceServer<Adapter<T>>);

impl<T> Clone for FlightServer<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> NamedService for FlightServer<T> {
    const NAME: &'static str = <FlightServiceServer<Adapter<T>> as NamedService>::NAME;
}

impl<T: FrameServer> Service<http::Request<Body>> for FlightServer<T> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.0, context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        async move {
            let mut response = answer.await?;
            let body = response.extensions_mut().remove::<Carried>().and_then(|carried| carried.body());
            Ok(match body {
                Some(body) => response.map(|_| Body::new(body)),
                None => response,
            })
        }
        .boxed()
    }
}

/// Implements the protocol's trait over a [`FrameServer`].
#[derive(Debug)]
pub struct Adapter<T>(Arc<T>);

#[tonic::async_trait]
impl<T: FrameServer> FlightService for Adapter<T> {
    type HandshakeStream = BoxStream<'static, Result<HandshakeResponse, Status>>;
    type ListFlightsStream = BoxStream<'static, Result<FlightInfo, Status>>;
    type DoGetStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoPutStream = BoxStream<'static, Result<PutResult, Status>>;
    type DoExchangeStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoActionStream = BoxStream<'static, Result<arrow_flight::Result, Status>>;
    type ListActionsStream = BoxStream<'static, Result<ActionType, Status>>;

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let ticket = parse_ticket(&request.get_ref().ticket)?;
        let frames = self.0.get(ticket, request.metadata()).await?;
        // The stream is never polled: the batches leave by the body that FlightServer puts in its place.
        let mut response = Response::new(futures::stream::empty().boxed());
        *response.metadata_mut() = frames.metadata;
        response.extensions_mut().insert(Carried::new(frames.schema, frames.batches));
        Ok(response)
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let descriptor = request.into_inner();
        let description = self.0.describe(ticket_of(&descriptor)?).await?;
        Ok(Response::new(description.info(descriptor)?))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let schema = self.0.schema(ticket_of(request.get_ref())?).await?;
        let options = IpcWriteOptions::default();
        let result = SchemaResult::try_from(SchemaAsIpc::new(&schema, &options))
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(result))
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        let Listing { flights, next } = self.0.list(ListCriteria::parse(&request.get_ref().expression)?).await?;
        let mut infos = Vec::with_capacity(flights.len());
        for (ticket, description) in flights {
            infos.push(description.info(FlightDescriptor::new_cmd(ticket.encode_to_vec()))?);
        }
        // The last flight of a page says how to ask for the next.
        if let (Some(next), Some(last)) = (next, infos.last_mut()) {
            last.app_metadata = next.to_json().into();
        }
        Ok(Response::new(futures::stream::iter(infos).map(Ok).boxed()))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        let mut stream = request.into_inner();
        let first = stream.message().await?.ok_or_else(|| Status::invalid_argument("the stream is empty"))?;
        let descriptor = first
            .flight_descriptor
            .clone()
            .ok_or_else(|| Status::invalid_argument("the first message carries no descriptor of what is put"))?;
        let data = futures::stream::once(async { Ok(first) }).chain(stream.map_err(FlightError::from));
        let batches = FlightRecordBatchStream::new_from_flight_data(data);
        Ok(Response::new(self.0.put(PutStream { descriptor, batches }).await?))
    }

    async fn handshake(
        &self,
        _request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(Status::unimplemented("no handshake: credentials go into the authorization header"))
    }

    async fn poll_flight_info(&self, _request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented("frames are ready at once; use GetFlightInfo"))
    }

    async fn do_exchange(
        &self,
        _request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Status::unimplemented("there is no DoExchange: read frames with DoGet, store candles with DoPut"))
    }

    async fn do_action(&self, _request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        Err(Status::unimplemented("there are no actions; see the gRPC services"))
    }

    async fn list_actions(&self, _request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Ok(Response::new(futures::stream::empty().boxed()))
    }
}

/// The status of a Flight error in what a client sent: the one inside, INVALID_ARGUMENT for what cannot be read, or INTERNAL.
pub fn status_of(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        FlightError::Arrow(error) => Status::invalid_argument(format!("record batch: {error}")),
        FlightError::DecodeError(text) => Status::invalid_argument(format!("record batch: {text}")),
        FlightError::ProtocolError(text) => Status::invalid_argument(format!("stream of record batches: {text}")),
        other => Status::internal(other.to_string()),
    }
}

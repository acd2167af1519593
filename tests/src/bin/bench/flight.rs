//! A Flight server of ours that serves candles from memory: what the transport gives without a store behind it.

use std::sync::Arc;

use anyhow::{Result, bail};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::StreamExt;
use market::Frame;
use mesh::config::ServerConfig;
use mesh::flight::{BATCH_ROWS, FrameServer, Frames, service};
use mesh::{Drain, Server as MeshServer};
use proto::wire::FrameTicket;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::{Case, Measured, Parameters, data, put};

/// A server that runs as long as the case is prepared.
#[derive(Debug)]
pub(crate) struct Server {
    address: String,
    rows: usize,
    drain: Drain,
    _runtime: Runtime,
}

#[derive(Debug)]
struct Memory {
    schema: SchemaRef,
    batches: Arc<Vec<RecordBatch>>,
}

#[tonic::async_trait]
impl FrameServer for Memory {
    async fn get(&self, _ticket: FrameTicket, _metadata: &MetadataMap) -> Result<Frames, Status> {
        let batches = Arc::clone(&self.batches);
        let each = (0..batches.len()).map(move |index| Ok(batches[index].clone()));
        let batches = futures::stream::iter(each).boxed();
        Ok(Frames { schema: Arc::clone(&self.schema), batches, metadata: MetadataMap::new() })
    }

    async fn schema(&self, _ticket: FrameTicket) -> Result<SchemaRef, Status> {
        Ok(Arc::clone(&self.schema))
    }
}

impl Server {
    pub(crate) fn prepare(parameters: &Parameters) -> Result<Self> {
        let schema = proto::arrow::candle_schema(proto::arrow::metadata("NSE_EQ|BENCH", "1m", 1));
        let mut batches = Vec::new();
        let mut rows = 0;
        for one in data::load(&parameters.data)? {
            rows += one.frame.len();
            batches.extend(cut(&schema, &one.frame)?);
        }
        let memory = Memory { schema, batches: Arc::new(batches) };
        let runtime = put::runtime()?;
        let drain = Drain::new();
        let server = runtime.block_on(MeshServer::bind("bench", &ServerConfig::default()))?;
        let address = server.address().to_string();
        runtime.spawn(server.add_grpc(service(Arc::new(memory))).serve(drain.clone()));
        Ok(Self { address, rows, drain, _runtime: runtime })
    }
}

fn cut(schema: &SchemaRef, frame: &Frame) -> Result<Vec<RecordBatch>> {
    let starts = (0..frame.len()).step_by(BATCH_ROWS);
    let rows = starts.map(|from| from..(from + BATCH_ROWS).min(frame.len()));
    Ok(rows.map(|rows| proto::arrow::candle_batch(schema, frame.slice(rows))).collect::<Result<_, _>>()?)
}

impl Case for Server {
    fn describe(&self) -> Value {
        json!({ "address": self.address, "rows": self.rows })
    }

    fn run(&mut self) -> Result<Measured> {
        bail!("the client of this case is another process")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.drain.start();
    }
}

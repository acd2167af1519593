//! Candles in streams: each batch acknowledged in its turn, those that wait for it together in one transaction.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::Fuse;
use futures::{FutureExt, Stream, StreamExt};
use mesh::clock::now;
use mesh::{Drain, Fault};
use proto::convert::FieldError;
use proto::ingestion as pb;
use tonic::{Code, Status, Streaming};

use super::put::{parse_required, wire_outcome};
use super::refuse;
use crate::engine::{Batch, Engine, Error};

/// Batches of one transaction: enough to share the price of a commit, few enough that the first is not late.
const MAX_GROUP_BATCHES: usize = 256;
/// Rows of one transaction of several batches, for the same reason. A larger batch is stored alone.
const MAX_GROUP_ROWS: usize = 10_000;

/// A batch with the sequence its client gave it.
type Sent = (u64, Batch);

/// What a stream of batches still has to do, in this order.
struct Batches<S> {
    /// Durable, to be acknowledged.
    stored: VecDeque<pb::StreamCandlesResponse>,
    /// Why nothing more is stored.
    failed: Option<Status>,
    /// Received, but of no use in the group before it.
    held: Option<Sent>,
    requests: Fuse<S>,
    engine: Arc<Engine>,
    drain: Drain,
    last_sequence: Option<u64>,
}

/// Stores batches in their order, when an acknowledgement is asked for: a client that does not read is not read from either. Ends
/// after its first error, with everything acknowledged before it delivered and nothing after it stored.
pub(super) fn acknowledged(
    requests: Streaming<pb::StreamCandlesRequest>,
    engine: Arc<Engine>,
    drain: Drain,
) -> impl Stream<Item = Result<pb::StreamCandlesResponse, Status>> {
    let (stored, requests) = (VecDeque::new(), requests.fuse());
    let batches = Batches { stored, failed: None, held: None, requests, engine, drain, last_sequence: None };
    futures::stream::try_unfold(batches, |mut batches| async move {
        loop {
            if let Some(acknowledgement) = batches.stored.pop_front() {
                return Ok(Some((acknowledgement, batches)));
            }
            if let Some(status) = batches.failed.take() {
                return Err(status);
            }
            let Some(first) = batches.next().await? else { return Ok(None) };
            let group = batches.group(first);
            batches.store(group).await;
        }
    })
}

impl<S> Batches<S>
where
    S: Stream<Item = Result<pb::StreamCandlesRequest, Status>> + Unpin,
{
    async fn next(&mut self) -> Result<Option<Sent>, Status> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let request = tokio::select! {
            biased;
            () = self.drain.started() => return Err(refuse(Error::Draining)),
            request = self.requests.next() => request,
        };
        match request {
            Some(request) => self.parse(request).map(Some),
            None => Ok(None),
        }
    }

    fn parse(&mut self, request: Result<pb::StreamCandlesRequest, Status>) -> Result<Sent, Status> {
        let request = request?;
        if let Some(last) = self.last_sequence.filter(|last| request.sequence <= *last) {
            let reason = format!("{} given after {last}; sequences must strictly increase", request.sequence);
            return Err(refuse(FieldError::new("sequence", reason)));
        }
        self.last_sequence = Some(request.sequence);
        Ok((request.sequence, parse_required(request.batch).map_err(refuse)?))
    }

    /// The batch with those that are there already and can be stored with it.
    fn group(&mut self, first: Sent) -> Vec<Sent> {
        let mut rows = first.1.rows.len();
        let mut group = vec![first];
        while group.len() < MAX_GROUP_BATCHES && rows < MAX_GROUP_ROWS {
            // The end of the stream is met again when the next group is asked for.
            let Some(Some(request)) = self.requests.next().now_or_never() else { break };
            let sent = match self.parse(request) {
                Ok(sent) => sent,
                Err(status) => {
                    self.failed = Some(status);
                    break;
                }
            };
            rows += sent.1.rows.len();
            let same = |(_, batch): &Sent| (&batch.key, batch.timeframe) == (&sent.1.key, sent.1.timeframe);
            if rows > MAX_GROUP_ROWS || group.iter().any(same) {
                self.held = Some(sent);
                break;
            }
            group.push(sent);
        }
        group
    }

    async fn store(&mut self, group: Vec<Sent>) {
        if group.len() > 1 {
            let batches = group.iter().map(|(_, batch)| batch.clone()).collect();
            match self.engine.put_all(batches, now()).await {
                Ok(outcomes) => {
                    let sequences = group.into_iter().map(|(sequence, _)| sequence);
                    self.stored.extend(sequences.zip(outcomes).map(|(sequence, outcome)| pb::StreamCandlesResponse {
                        sequence,
                        outcome: Some(wire_outcome(outcome)),
                    }));
                    return;
                }
                Err(error) if error.code() == Code::Unavailable => {
                    self.failed = Some(refuse(error));
                    return;
                }
                // One of them is at fault: those before it are to be stored, and it is to be named.
                Err(_) => {}
            }
        }
        for (sequence, batch) in group {
            match self.engine.put(batch, now()).await {
                Ok(outcome) => {
                    let outcome = Some(wire_outcome(outcome));
                    self.stored.push_back(pb::StreamCandlesResponse { sequence, outcome });
                }
                Err(error) => {
                    self.failed = Some(refuse(error));
                    return;
                }
            }
        }
    }
}

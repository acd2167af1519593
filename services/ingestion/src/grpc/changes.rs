//! The change log, streamed: a watcher that does not keep up is cut off, never buffered for.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use mesh::{Drain, to_status};
use proto::convert;
use proto::ingestion as pb;
use proto::ingestion::change_service_server::ChangeService;
use store::Changed;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};

use super::{Answer, refuse};
use crate::engine::{ChangeBatch, Error, Feed, Interest, Subscription};

/// Instruments one watcher may name.
const MAX_WATCHED_KEYS: usize = 10_000;
/// Messages between a watcher's task and its connection; what is sent and not read lies in the connection's window.
const SENT_AHEAD: usize = 1;

const SENT_METRIC: &str = "candlemesh_changes_sent_total";
const SLOW_METRIC: &str = "candlemesh_slow_subscribers_total";

/// Implements `ChangeService`.
#[derive(Debug)]
pub(crate) struct Changes {
    feed: Arc<Feed>,
    /// How long a message may wait for the connection.
    patience: Duration,
    drain: Drain,
}

impl Changes {
    pub(crate) fn new(feed: Arc<Feed>, patience: Duration, drain: Drain) -> Self {
        Self { feed, patience, drain }
    }
}

type Message = Result<pb::WatchChangesResponse, Status>;

#[tonic::async_trait]
impl ChangeService for Changes {
    type WatchChangesStream = BoxStream<'static, Message>;

    async fn watch_changes(&self, request: Request<pb::WatchChangesRequest>) -> Answer<Self::WatchChangesStream> {
        let interest = interest(request.into_inner()).map_err(refuse)?;
        let subscription = self.feed.watch(interest).await.map_err(refuse)?;
        let messages = self.drain.clone().cut(sent(subscription, self.patience));
        Ok(Response::new(messages.map(|message| message.and_then(std::convert::identity)).boxed()))
    }
}

fn interest(request: pb::WatchChangesRequest) -> Result<Interest, Error> {
    let given = request.instrument_keys.len();
    if given > MAX_WATCHED_KEYS {
        return Err(Error::Limit { field: "instrument_keys", given, limit: MAX_WATCHED_KEYS });
    }
    let keys = match given {
        0 => Vec::new(),
        _ => convert::instrument_keys("instrument_keys", &request.instrument_keys, MAX_WATCHED_KEYS)?,
    };
    Ok(Interest {
        keys: keys.into_iter().collect(),
        after: request.after_sequence,
        with_candles: request.include_candles,
    })
}

/// Sends from a task of its own: only there is time counted while the connection takes nothing. The task ends with its stream.
fn sent(subscription: Subscription, patience: Duration) -> BoxStream<'static, Message> {
    let (sender, receiver) = mpsc::channel(SENT_AHEAD);
    let (tell_why, why) = oneshot::channel();
    tokio::spawn(async move {
        let why = tokio::select! {
            ended = forward(subscription, &sender, patience) => match ended { Err(error) => refuse(error) },
            () = sender.closed() => return,
        };
        // Nobody is there to hear it when this fails.
        let _ = tell_why.send(why);
    });
    futures::stream::unfold(Some((receiver, why)), |state| async move {
        let (mut receiver, why) = state?;
        match receiver.recv().await {
            Some(message) => Some((Ok(message), Some((receiver, why)))),
            None => Some((Err(why.await.unwrap_or_else(|_| to_status(&Error::Draining))), None)),
        }
    })
    .boxed()
}

async fn forward(
    mut subscription: Subscription,
    sender: &mpsc::Sender<pb::WatchChangesResponse>,
    patience: Duration,
) -> Result<Infallible, Error> {
    let mut sequence = 0;
    loop {
        let batch = subscription.next().await?;
        let Ok(place) = tokio::time::timeout(patience, sender.reserve()).await else {
            metrics::counter!(SLOW_METRIC).increment(1);
            tracing::info!(sequence, "a change subscriber that does not keep up is cut off");
            return Err(Error::SlowSubscriber { sequence, waited: patience });
        };
        // The receiver is dropped only with the task's stream, which ends the task.
        let Ok(place) = place else { return Err(Error::Draining) };
        sequence = batch.sequence;
        metrics::counter!(SENT_METRIC).increment(batch.changes.len() as u64);
        place.send(wire_batch(&batch, subscription.with_candles()));
    }
}

fn wire_batch(batch: &ChangeBatch, with_candles: bool) -> pb::WatchChangesResponse {
    let changes = batch.changes.iter().map(|changed| wire_change(changed, with_candles)).collect();
    pb::WatchChangesResponse { changes, sequence: batch.sequence }
}

fn wire_change(changed: &Changed, with_candles: bool) -> pb::Change {
    let change = &changed.change;
    let candles = changed.candles.as_ref().filter(|_| with_candles);
    pb::Change {
        sequence: change.sequence,
        instrument_key: change.key.to_string(),
        timeframe: change.timeframe.to_string(),
        trading_date: market::format_date(change.trading_date),
        revision: change.revision,
        first_open_time: Some(convert::timestamp(change.first_open_time)),
        last_open_time: Some(convert::timestamp(change.last_open_time)),
        change_time: Some(convert::timestamp(change.changed_at)),
        candles: candles.map(convert::columns_of_frame),
    }
}

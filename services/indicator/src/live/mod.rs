//! Live indicators: values told as their candles form, close and are corrected, resumable from a cursor.
//!
//! Each subscriber has a task (`follow`) that watches its candles as a subscriber of aggregation does, on whose cursors, order and
//! resumptions it relies. What is computed is shared: a `series`, found on the `shelf`, is one instrument, timeframe and set of indicators
//! at a revision, brought forward by whichever subscriber hears of a change first and read again where something was not heard. `tell`
//! makes of it what one subscriber is told, who may be behind the series but never sees a candle of which it has not heard.
//!
//! Nothing is queued: a subscriber that does not read stops its task, and is cut off after a while; unread candles wait in aggregation,
//! within its limits. A subscriber holds at most four messages, a series its states and eight candles.
//!
//! Limits, beside those of live candles: a candle that disappears because minutes take the place of a coarser source is not told, and
//! counts until the series is read again. Two messages of one put that arrive while a third subscriber joins may leave it without what
//! the second said until the next change.

mod follow;
mod grpc;
mod series;
mod shelf;
mod tell;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use kernels::indicator::Spec;
use market::{InstrumentKey, Timeframe};
use mesh::source::{LiveCandles, MasterData};
use mesh::{Fault, RemoteError, to_status};
use proto::convert::{self, FieldError};
use proto::indicator::{WatchIndicatorsRequest, WatchIndicatorsResponse};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use self::follow::Follower;
use self::shelf::{Limits, Reader, Shelf};
use self::tell::Scribe;
use crate::engine::{self, Error, Indicators};
use crate::query;

pub(crate) use self::grpc::LiveServer;

/// Instruments of one subscription, as of live candles.
const MAX_KEYS: usize = 10_000;
/// Instruments times timeframes of one subscription.
const MAX_SERIES: usize = 20_000;
/// Candles in a message from aggregation from which on it may have been cut at its 1 MB, and go on in the next one.
const CUT_NEWS: usize = 1000;
/// Messages made ahead of their reader.
const LEAD: usize = 2;

/// Subscribers of this process.
const SUBSCRIBERS: &str = "candlemesh_live_indicator_subscribers";
/// Subscribers cut off because they did not keep up.
const SLOW: &str = "candlemesh_live_indicator_slow_subscribers_total";

/// Tunables of live indicators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Subscribers of one process; each is one of aggregation, too.
    pub max_subscribers: usize,
    /// Instruments times timeframes times sets of indicators kept up at once, however many subscribers share them.
    pub max_series: usize,
    /// Bytes of their states: the default set takes about 5 kB a series, one of long windows as much as the windows.
    pub max_state_bytes: usize,
    /// How long a message may wait for its subscriber's transport.
    #[serde(with = "humantime_serde")]
    pub send_timeout: Duration,
    /// Silence after which an empty message says that the stream is alive. Clients are promised one every 15 s.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// How long the series of a subscriber that left are kept, so that one that reconnects finds them.
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_subscribers: 100,
            max_series: 50_000,
            max_state_bytes: 512 * 1024 * 1024,
            send_timeout: Duration::from_secs(30),
            heartbeat: Duration::from_secs(10),
            linger: Duration::from_secs(60),
        }
    }
}

/// Why a subscription is refused or ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LiveError {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("{0} subscribers watch indicators of this process, which is the limit; try another replica, or later")]
    TooManySubscribers(usize),
    #[error("this process keeps up {0} series, which is the limit; try another replica, or watch fewer")]
    TooManySeries(usize),
    #[error("the series of this process hold {0} bytes, which is the limit; try another replica, or watch fewer")]
    StateFull(usize),
    #[error("the subscriber does not keep up; resume from cursor {0}")]
    Slow(String),
    /// A bug: resuming would meet it again.
    #[error("the stream came to an end that it should not")]
    Broken,
    #[error(transparent)]
    Engine(#[from] Error),
    #[error(transparent)]
    Candles(#[from] RemoteError),
}

impl Fault for LiveError {
    fn code(&self) -> Code {
        match self {
            LiveError::Field(fault) => fault.code(),
            LiveError::TooManySubscribers(_)
            | LiveError::TooManySeries(_)
            | LiveError::StateFull(_)
            | LiveError::Slow(_) => Code::ResourceExhausted,
            LiveError::Broken => Code::Internal,
            LiveError::Engine(fault) => fault.code(),
            LiveError::Candles(fault) => fault.code(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            LiveError::Field(fault) => fault.reason(),
            LiveError::TooManySubscribers(_) => "TOO_MANY_SUBSCRIBERS",
            LiveError::TooManySeries(_) => "TOO_MANY_SERIES",
            LiveError::StateFull(_) => "STATE_FULL",
            LiveError::Slow(_) => "SLOW_SUBSCRIBER",
            LiveError::Broken => "STREAM_BROKEN",
            LiveError::Engine(fault) => fault.reason(),
            LiveError::Candles(fault) => fault.reason(),
        }
    }

    fn field(&self) -> Option<String> {
        match self {
            LiveError::Field(fault) => fault.field(),
            LiveError::Engine(fault) => fault.field(),
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            LiveError::Engine(fault) => fault.retry_after(),
            _ => None,
        }
    }

    fn remote(&self) -> Option<&RemoteError> {
        match self {
            LiveError::Engine(fault) => fault.remote(),
            LiveError::Candles(fault) => Some(fault),
            _ => None,
        }
    }
}

/// Whether a service that answered so may answer otherwise when it is asked again.
fn may_pass(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted | Code::Unknown)
}

/// What a subscriber asks for, checked.
#[derive(Debug)]
pub(crate) struct Subscription {
    keys: Vec<InstrumentKey>,
    timeframes: Vec<Timeframe>,
    /// As asked.
    specs: Arc<[Spec]>,
    cursor: String,
    include_forming: bool,
}

impl TryFrom<WatchIndicatorsRequest> for Subscription {
    type Error = LiveError;

    fn try_from(request: WatchIndicatorsRequest) -> Result<Self, LiveError> {
        let mut keys = convert::instrument_keys("instrument_keys", &request.instrument_keys, MAX_KEYS)?;
        keys.sort_unstable();
        let given = request.timeframes.len();
        if given == 0 || given > Timeframe::ALL.len() {
            let reason = format!("{given} given; accepted: 1 to {}", Timeframe::ALL.len());
            return Err(FieldError::new("timeframes", reason).into());
        }
        let parse = |(index, text): (usize, &String)| convert::timeframe(&format!("timeframes[{index}]"), text, None);
        let mut timeframes: Vec<Timeframe> =
            request.timeframes.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        timeframes.sort_unstable();
        timeframes.dedup();
        let series = keys.len() * timeframes.len();
        if series > MAX_SERIES {
            let reason =
                format!("{} in {} timeframes given; accepted: {MAX_SERIES} together", keys.len(), timeframes.len());
            return Err(FieldError::new("instrument_keys", reason).into());
        }
        let specs = query::specs(&request.indicators)?;
        let (cursor, include_forming) = (request.cursor, request.include_forming);
        Ok(Subscription { keys, timeframes, specs, cursor, include_forming })
    }
}

/// What live indicators need.
#[derive(Debug, Clone)]
struct Ports {
    news: Arc<dyn LiveCandles>,
    master: Arc<dyn MasterData>,
    reader: Reader,
    /// [`CUT_NEWS`]; tests have smaller messages.
    cut_news: usize,
}

/// Live indicators of this process.
#[derive(Debug)]
pub(crate) struct Live {
    config: Config,
    ports: Ports,
    shelf: Arc<Shelf>,
    places: Arc<Semaphore>,
}

impl Live {
    pub(crate) fn new(config: &crate::Config, ports: &crate::Ports, indicators: Arc<Indicators>) -> Live {
        let live = config.live.clone();
        let shelf = Shelf::new(Limits { max_series: live.max_series, max_state_bytes: live.max_state_bytes });
        let engine = match ports.engines.holds(rollout::Engine::V2) {
            true => rollout::Engine::V2,
            false => rollout::Engine::V1,
        };
        let reader = Reader {
            candles: Arc::clone(&ports.candles),
            pool: Arc::clone(&ports.pool),
            indicators,
            engine,
            max_values: config.max_values,
            turns: Reader::turns(),
        };
        let (news, master) = (Arc::clone(&ports.live), Arc::clone(&ports.master));
        let places = Arc::new(Semaphore::new(live.max_subscribers));
        Live { config: live, ports: Ports { news, master, reader, cut_news: CUT_NEWS }, shelf, places }
    }

    /// Messages from the cursor on, or from now on with a snapshot before.
    pub(crate) async fn watch(
        &self,
        subscription: Subscription,
    ) -> Result<BoxStream<'static, Result<WatchIndicatorsResponse, Status>>, LiveError> {
        let permit = Arc::clone(&self.places).try_acquire_owned();
        let permit = permit.map_err(|_| LiveError::TooManySubscribers(self.config.max_subscribers))?;
        let Subscription { keys, timeframes, specs, cursor, include_forming } = subscription;
        let canonical = engine::canonical(&specs)?;
        let series = self.shelf.take(&keys, &timeframes, &canonical)?;
        let scribe = Scribe { include_forming, order: order(&specs, &canonical) };
        let columns = specs.iter().flat_map(Spec::columns).collect();
        let (sender, receiver) = mpsc::channel(LEAD);
        let follower =
            Follower::new(self.ports.clone(), &self.config, keys, timeframes, series, scribe, cursor, sender);
        // A task of its own has no request context: a stream outlives the deadline of the request.
        let task = tokio::spawn(follower.run(columns));
        let mut listening = Listening {
            messages: receiver,
            task,
            last: String::new(),
            heartbeat: self.config.heartbeat,
            _place: Place::new(permit),
        };
        // Until the first message a failure is a refusal.
        let first = listening.take().await?;
        let state = Some((Some(first), listening));
        let messages = futures::stream::unfold(state, |state| async move {
            let (first, mut listening) = state?;
            let next = match first {
                Some(first) => Ok(first),
                None => listening.next().await,
            };
            match next {
                Ok(message) => Some((Ok(message), Some((None, listening)))),
                Err(error) => Some((Err(to_status(&error)), None)),
            }
        });
        Ok(messages.boxed())
    }
}

/// The column of the series for each column asked.
fn order(asked: &[Spec], canonical: &[Spec]) -> Vec<usize> {
    let mut order = Vec::new();
    for spec in asked {
        let spelling = spec.to_string();
        let before = canonical.iter().take_while(|known| known.label() != spelling);
        let start = before.map(|known| known.outputs().len()).sum::<usize>();
        order.extend(start..start + spec.outputs().len());
    }
    order
}

/// Held as long as a subscriber listens.
#[derive(Debug)]
struct Place(#[allow(dead_code, reason = "it is held, not read")] OwnedSemaphorePermit);

impl Place {
    fn new(permit: OwnedSemaphorePermit) -> Place {
        metrics::gauge!(SUBSCRIBERS).increment(1.0);
        Place(permit)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!(SUBSCRIBERS).decrement(1.0);
    }
}

/// One subscriber's stream. Dropped, it ends its task.
#[derive(Debug)]
struct Listening {
    messages: mpsc::Receiver<WatchIndicatorsResponse>,
    task: JoinHandle<Result<(), LiveError>>,
    /// Where the reader stands.
    last: String,
    heartbeat: Duration,
    _place: Place,
}

impl Listening {
    async fn next(&mut self) -> Result<WatchIndicatorsResponse, LiveError> {
        match tokio::time::timeout(self.heartbeat, self.take()).await {
            Ok(next) => next,
            Err(_) => Ok(WatchIndicatorsResponse { cursor: self.last.clone(), ..Default::default() }),
        }
    }

    async fn take(&mut self) -> Result<WatchIndicatorsResponse, LiveError> {
        if let Some(message) = self.messages.recv().await {
            self.last.clone_from(&message.cursor);
            return Ok(message);
        }
        match (&mut self.task).await {
            Ok(Err(LiveError::Slow(_))) => {
                metrics::counter!(SLOW).increment(1);
                Err(LiveError::Slow(self.last.clone()))
            }
            Ok(Err(error)) => Err(error),
            // It ends by itself only when nobody listens.
            Ok(Ok(())) => Err(LiveError::Broken),
            Err(error) => {
                tracing::error!(%error, "the task of a live subscriber was lost");
                Err(LiveError::Broken)
            }
        }
    }
}

#[cfg(test)]
mod tests;

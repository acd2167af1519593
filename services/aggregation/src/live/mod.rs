//! Live candles: what happens to them, told to subscribers as it becomes durable, resumable from a cursor.
//!
//! One `hub` per process follows ingestion's change log from the first subscriber on. The `board` holds the newest candles of what is
//! watched (`bucket`); a minute after the last is added, everything else is read again (`read`) as of its revision and the one before,
//! by the code that answers GetCandles. Closes are due by the clock. What happened is told to the `audience` by filter, encoded once
//! (`encode`). A subscriber that comes back is first told what it missed (`resume`), from the log and the stored revisions alone, so
//! that any replica can do it. Both read as of a place in the log (`pin`), as what is stored is ahead of what was told.
//!
//! A candle closes when its range has passed and no session minute is missing, or a grace after its end. This is a function of what is
//! stored and of the watermark, and so is which event a change makes (`event`); a cursor is just these two (`cursor`), and within a
//! resumption of several messages also where that leads and how far it has come.
//!
//! Limits: an instrument's calendar is looked up once while it is watched. A candle that disappears, which happens only where minutes take
//! the place of a coarser source, is not told. A snapshot may be ahead of the events after it by what is just being stored. Where one
//! put's changes of many dates come in several batches, who comes back from between two of them may hear of one week or month again.

mod audience;
mod board;
mod bucket;
mod cursor;
mod encode;
mod event;
mod grpc;
mod hub;
mod pin;
mod read;
mod resume;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use market::{InstrumentKey, Millis};
use mesh::clock::Clock;
use mesh::source::Changes;
use mesh::{Drain, Fault, RemoteError, to_status};
use proto::aggregation::WatchCandlesRequest;
use proto::convert::{self, FieldError};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use self::audience::{Ended, Seat};
use self::cursor::{Cursor, Position};
use self::encode::Message;
use self::event::{Closing, Filter};
use self::hub::{Command, Hub};
use self::read::Reader;
use self::resume::{Catching, Gone};
use crate::engine::{Aggregator, Error};

pub(crate) use self::grpc::LiveServer;

/// Instruments of one subscription; more is better asked for as all.
const MAX_KEYS: usize = 10_000;
/// Commands waiting for the hub; each caller has one.
const COMMANDS: usize = 64;
/// How long a cursor may be ahead of this replica before it is taken for one of another mesh: replicas follow the same log by the same
/// clock, milliseconds apart.
const AHEAD: Duration = Duration::from_secs(5);
/// How often a subscription is tried when the hub ends at that very moment, or could not list the instruments.
const JOIN_ATTEMPTS: usize = 3;
/// How long an attempt waits for the hub, which may itself be waiting for ingestion. A step of it takes a fraction of this.
const JOIN_WAIT: Duration = Duration::from_secs(3);
/// How long it then waits for its seat: the newest candles of every instrument are read first. Below the deadline that a call without
/// one gets, so that the answer says what happened.
const SEAT_WAIT: Duration = Duration::from_secs(25);
/// How long the hub waits for the change log, whoever waits for the hub: an ingestion that is that slow is often so under load, and one
/// opening after the other would never come to its end.
const OPEN_WAIT: Duration = Duration::from_secs(20);
/// Resumptions at work at once in a process, each with all that was missed in memory and reads under way. Others wait their turn.
const RESUMPTIONS: usize = 4;
/// How far a cursor's watermark may be behind: closes since then are found by reading, not from the log, and must be few enough. Longer
/// than the log is kept by default.
const OLDEST_CURSOR: Duration = Duration::from_secs(31 * 24 * 60 * 60);
/// Messages of a resumption made ahead of their reader.
const LEAD: usize = 2;

/// Subscribers of this process.
const SUBSCRIBERS: &str = "candlemesh_live_subscribers";

/// Tunables of live candles.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Subscribers of one process. A minute of 5000 instruments is with 50 of them in half a second on two cores that have other work
    /// too (release build); ten times as many still get it before the next.
    pub max_subscribers: usize,
    /// Bytes one subscriber may have unread: four minutes of 5000 instruments in all 13 timeframes. Equal filters share the bytes.
    pub backlog_bytes: usize,
    /// Bytes all subscribers together may have unread, those that equal filters share counted once: two that are as far behind as one
    /// may be, of different filters. Beyond it whoever has most unread is cut off.
    pub max_backlog_bytes: usize,
    /// How long a message may wait for its subscriber's transport.
    #[serde(with = "humantime_serde")]
    pub send_timeout: Duration,
    /// How long a candle that lacks minutes waits for them after its end before it is called closed: feeds deliver a minute after it has
    /// passed. One that lacks nothing closes at once.
    #[serde(with = "humantime_serde")]
    pub close_grace: Duration,
    /// Silence after which an empty message says that the stream is alive. Clients are promised one every 15 s.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// Newest candles kept, of all instruments and timeframes: about 400 bytes each. Those that changed longest ago go first, and are
    /// read again when they change.
    pub max_accumulators: usize,
    /// How long the hub goes on without a subscriber, so that one that reconnects finds it warm.
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_subscribers: 500,
            backlog_bytes: 32 * 1024 * 1024,
            max_backlog_bytes: 64 * 1024 * 1024,
            send_timeout: Duration::from_secs(30),
            close_grace: Duration::from_secs(2),
            heartbeat: Duration::from_secs(10),
            max_accumulators: 200_000,
            linger: Duration::from_secs(60),
        }
    }
}

/// Why a subscription is refused or ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LiveError {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("{0} subscribers watch this process, which is the limit; try another replica, or later")]
    TooManySubscribers(usize),
    #[error("the subscriber does not keep up; resume from cursor {0}")]
    Slow(Cursor),
    #[error("what happened after the cursor is no longer kept; read the candles, then watch without a cursor")]
    CursorExpired,
    #[error("more than {0} changes were missed; read the candles, then watch without a cursor")]
    TooMuchMissed(usize),
    #[error("the stream broke off; resume from cursor {0}")]
    Lost(Cursor),
    /// A bug: resuming would meet it again.
    #[error("the resumption came to an end that it should not")]
    Broken(#[source] tokio::task::JoinError),
    #[error("the live hub takes no subscribers now, as it has ended or ingestion does not answer it; try again")]
    NotReady,
    #[error(transparent)]
    Engine(#[from] Error),
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

impl Fault for LiveError {
    fn code(&self) -> Code {
        match self {
            LiveError::Field(fault) => fault.code(),
            LiveError::TooManySubscribers(_) | LiveError::Slow(_) => Code::ResourceExhausted,
            LiveError::CursorExpired | LiveError::TooMuchMissed(_) => Code::FailedPrecondition,
            LiveError::Lost(_) | LiveError::NotReady => Code::Unavailable,
            LiveError::Broken(_) => Code::Internal,
            LiveError::Engine(fault) => fault.code(),
            LiveError::Remote(fault) => fault.code(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            LiveError::Field(fault) => fault.reason(),
            LiveError::TooManySubscribers(_) => "TOO_MANY_SUBSCRIBERS",
            LiveError::Slow(_) => "SLOW_SUBSCRIBER",
            LiveError::CursorExpired | LiveError::TooMuchMissed(_) => "CURSOR_EXPIRED",
            LiveError::Lost(_) => "HUB_ENDED",
            LiveError::NotReady => "HUB_NOT_READY",
            LiveError::Broken(_) => "RESUMPTION_BROKEN",
            LiveError::Engine(fault) => fault.reason(),
            LiveError::Remote(fault) => fault.reason(),
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
            LiveError::Remote(fault) => Some(fault),
            _ => None,
        }
    }
}

/// What a subscriber asks for, checked.
#[derive(Debug)]
pub(crate) struct Subscription {
    filter: Filter,
    cursor: Option<Cursor>,
    snapshot: bool,
}

impl TryFrom<WatchCandlesRequest> for Subscription {
    type Error = FieldError;

    fn try_from(request: WatchCandlesRequest) -> Result<Self, FieldError> {
        let given = request.timeframes.len();
        if given == 0 || given > market::Timeframe::ALL.len() {
            let reason = format!("{given} given; accepted: 1 to {}", market::Timeframe::ALL.len());
            return Err(FieldError::new("timeframes", reason));
        }
        let parse = |(index, text): (usize, &String)| convert::timeframe(&format!("timeframes[{index}]"), text, None);
        let timeframes = request.timeframes.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        let keys = match request.instrument_keys.is_empty() {
            true => None,
            false => {
                let mut keys = convert::instrument_keys("instrument_keys", &request.instrument_keys, MAX_KEYS)?;
                keys.sort_unstable();
                Some(Arc::<[InstrumentKey]>::from(keys))
            }
        };
        if request.snapshot && keys.is_none() {
            return Err(FieldError::new("snapshot", "true given without instrument_keys; name the instruments"));
        }
        let cursor = (!request.cursor.is_empty()).then(|| request.cursor.parse()).transpose()?;
        let filter = Filter { keys, timeframes, closed_only: request.closed_only };
        Ok(Subscription { filter, cursor, snapshot: request.snapshot })
    }
}

/// A running hub.
#[derive(Debug)]
struct Running {
    commands: mpsc::Sender<Command>,
    told: watch::Receiver<Position>,
}

/// Live candles of this process.
#[derive(Debug)]
pub(crate) struct Live {
    config: Config,
    ports: hub::Ports,
    /// Locked while it is opened.
    hub: Arc<Mutex<Option<Running>>>,
    places: Arc<Semaphore>,
    resumptions: Arc<Semaphore>,
}

impl Live {
    pub(crate) fn new(
        aggregator: Arc<Aggregator>,
        engine: rollout::Engine,
        changes: Arc<dyn Changes>,
        clock: Arc<dyn Clock>,
        config: Config,
        drain: Drain,
    ) -> Live {
        let ports = hub::Ports { reader: Reader { aggregator, engine }, changes, clock, drain };
        let places = Arc::new(Semaphore::new(config.max_subscribers));
        let resumptions = Arc::new(Semaphore::new(RESUMPTIONS));
        Live { config, ports, hub: Arc::default(), places, resumptions }
    }

    /// Messages from the cursor on, or from now on.
    pub(crate) async fn watch(
        &self,
        subscription: Subscription,
    ) -> Result<BoxStream<'static, Result<Bytes, Status>>, LiveError> {
        let Subscription { filter, cursor, snapshot } = subscription;
        let permit = Arc::clone(&self.places).try_acquire_owned();
        let permit = permit.map_err(|_| LiveError::TooManySubscribers(self.config.max_subscribers))?;
        let oldest = self.ports.clock.now().saturating_sub(millis(OLDEST_CURSOR));
        if cursor.as_ref().is_some_and(|cursor| cursor.position.watermark < oldest) {
            return Err(LiveError::CursorExpired);
        }
        let (seat, told) = self.join(&filter, cursor.as_ref()).await?;
        let start = cursor.clone().unwrap_or(seat.position.into());
        let lead = (cursor.is_some() || snapshot).then(|| {
            let (sender, receiver) = mpsc::channel(LEAD);
            let catching = Catching {
                reader: self.ports.reader.clone(),
                changes: Arc::clone(&self.ports.changes),
                clock: Arc::clone(&self.ports.clock),
                closing: self.closing(),
                filter,
                out: sender,
                send_timeout: self.config.send_timeout,
            };
            let task = tokio::spawn(catching.run(cursor, seat.position, snapshot, Arc::clone(&self.resumptions)));
            Lead { messages: receiver, task }
        });
        metrics::gauge!(SUBSCRIBERS).increment(1.0);
        let listening = Listening {
            seat,
            told,
            lead,
            last: start,
            heartbeat: self.config.heartbeat,
            is_beginning: true,
            _place: Place(permit),
        };
        let messages = futures::stream::unfold(Some(listening), |listening| async move {
            let mut listening = listening?;
            match listening.next().await {
                Ok(message) => Some((Ok(message.bytes), Some(listening))),
                Err(error) => Some((Err(to_status(&error)), None)),
            }
        });
        Ok(messages.boxed())
    }

    fn closing(&self) -> Closing {
        Closing { grace_ms: millis(self.config.close_grace) }
    }

    /// Takes a seat that is not behind the cursor.
    async fn join(
        &self,
        filter: &Filter,
        cursor: Option<&Cursor>,
    ) -> Result<(Seat, watch::Receiver<Position>), LiveError> {
        let mut given_up = None;
        let mut attempts = JOIN_ATTEMPTS;
        loop {
            let Some((seat, mut told)) = self.ask(filter).await? else {
                attempts -= 1;
                if attempts == 0 {
                    return Err(LiveError::NotReady);
                }
                continue;
            };
            let Some(cursor) = cursor else { return Ok((seat, told)) };
            let reached = cursor.reached();
            if reached.is_behind(&seat.position) {
                return Ok((seat, told));
            }
            drop(seat);
            let caught_up = async {
                // It ends early only with the hub, and then the next attempt says so.
                let _ = told.wait_for(|told| told.sequence >= reached.sequence).await;
                self.ports.clock.reach(reached.watermark).await;
            };
            let given_up = *given_up.get_or_insert_with(|| tokio::time::Instant::now() + AHEAD);
            if tokio::time::timeout_at(given_up, caught_up).await.is_err() {
                let reason = format!("'{cursor}' is ahead of the change log; it was not made by this mesh");
                return Err(FieldError::new("cursor", reason).into());
            }
        }
    }

    /// Asks the hub for a seat, which it does not give if it ends meanwhile, or cannot list the instruments.
    async fn ask(&self, filter: &Filter) -> Result<Option<(Seat, watch::Receiver<Position>)>, LiveError> {
        let asked = async {
            let (commands, told) = self.running().await?;
            let (sender, receiver) = oneshot::channel();
            Ok::<_, LiveError>(match commands.send(Command::Join(filter.clone(), sender)).await {
                Ok(()) => receiver.await.ok().map(|seat| (seat, told)),
                Err(_) => None,
            })
        };
        let asked = tokio::time::timeout(JOIN_WAIT, asked).await.map_err(|_| LiveError::NotReady)??;
        let Some((seat, told)) = asked else { return Ok(None) };
        let seat = tokio::time::timeout(SEAT_WAIT, seat).await.map_err(|_| LiveError::NotReady)?;
        Ok(seat.ok().map(|seat| (seat, told)))
    }

    /// The hub, started if there is none. That goes on when nobody waits for it any more, and is there for who comes next.
    async fn running(&self) -> Result<(mpsc::Sender<Command>, watch::Receiver<Position>), LiveError> {
        let mut hub = Arc::clone(&self.hub).lock_owned().await;
        if let Some(running) = hub.as_ref().filter(|running| !running.commands.is_closed()) {
            return Ok((running.commands.clone(), running.told.clone()));
        }
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (sender, told) = watch::channel(Position::default());
        let (ports, config) = (self.ports.clone(), self.config.clone());
        // A task of its own has no request context: the log, which all subscribers share, must not carry the deadline of the first.
        let opening = tokio::spawn(async move {
            let opened = tokio::time::timeout(OPEN_WAIT, Hub::open(ports, &config, receiver, sender)).await;
            tokio::spawn(opened.map_err(|_| LiveError::NotReady)??.run());
            *hub = Some(Running { commands: commands.clone(), told: told.clone() });
            Ok((commands, told))
        });
        opening.await.map_err(|_| LiveError::NotReady)?
    }

    /// Everything due has been told: where the hub then stands.
    #[cfg(test)]
    async fn locate(&self) -> Position {
        let (commands, _) = self.running().await.unwrap();
        let (sender, receiver) = oneshot::channel();
        commands.send(Command::Locate(sender)).await.unwrap();
        receiver.await.unwrap()
    }
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

/// Held as long as a subscriber listens.
#[derive(Debug)]
struct Place(#[allow(dead_code, reason = "it is held, not read")] OwnedSemaphorePermit);

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!(SUBSCRIBERS).decrement(1.0);
    }
}

/// What comes before the live messages, and the task that makes it.
#[derive(Debug)]
struct Lead {
    messages: mpsc::Receiver<Result<Message, LiveError>>,
    task: JoinHandle<Result<(), Gone>>,
}

/// One subscriber's stream.
#[derive(Debug)]
struct Listening {
    seat: Seat,
    told: watch::Receiver<Position>,
    /// What was missed, before what comes.
    lead: Option<Lead>,
    /// Where the reader stands.
    last: Cursor,
    heartbeat: Duration,
    /// What comes before the live messages has not been told to its end.
    is_beginning: bool,
    _place: Place,
}

impl Listening {
    async fn next(&mut self) -> Result<Message, LiveError> {
        while let Some(lead) = &mut self.lead {
            match tokio::time::timeout(self.heartbeat, lead.messages.recv()).await {
                Ok(Some(message)) => return self.took(message?),
                Ok(None) => match (&mut lead.task).await {
                    Ok(Ok(())) => self.lead = None,
                    // Only the seat's messages are left, and those before them are missing.
                    Ok(Err(Gone)) => return Err(LiveError::Lost(self.last.clone())),
                    Err(error) => return Err(LiveError::Broken(error)),
                },
                Err(_) => return Ok(Message::empty(self.last.clone())),
            }
        }
        // It is there at once where nothing of before is asked for, so that even who hears nothing has a cursor.
        if std::mem::take(&mut self.is_beginning) {
            return self.took(Message::caught_up(self.seat.position));
        }
        let next = match tokio::time::timeout(self.heartbeat, self.seat.mailbox.next()).await {
            Ok(next) => next,
            Err(_) => {
                // Read before the mailbox: what is told up to here is in it by now.
                let told = *self.told.borrow();
                match self.seat.mailbox.try_next() {
                    Some(next) => next,
                    None => return self.took(Message::empty(told)),
                }
            }
        };
        match next {
            Ok(message) => self.took(message),
            Err(Ended::Slow) => Err(LiveError::Slow(self.last.clone())),
            Err(Ended::Expired) => Err(LiveError::CursorExpired),
            Err(Ended::Lost) => Err(LiveError::Lost(self.last.clone())),
        }
    }

    fn took(&mut self, message: Message) -> Result<Message, LiveError> {
        self.last.clone_from(&message.cursor);
        Ok(message)
    }
}

#[cfg(test)]
mod tests;

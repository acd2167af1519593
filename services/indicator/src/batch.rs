//! Many instruments in one stream: each with its own outcome, as it is ready, in bounded memory.
//!
//! A batch is one task that keeps a few items in work and hands over an answer when the reader asks for one. Its end, or its reader's,
//! ends the items: those that wait never start, and those that compute stop at their next block of rows.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use market::InstrumentKey;
use mesh::context::{DEADLINE_MARGIN, RequestContext, resume};
use mesh::{Fault, Priority, RemoteError};
use prost::Message;
use proto::indicator::batch_compute_indicators_response::Outcome;
use proto::indicator::{BatchComputeIndicatorsResponse, ComputeIndicatorsResponse};
use rollout::Engine;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic::Code;
use tracing::Instrument;

use crate::Config;
use crate::engine::{Answer, Error, Indicators};
use crate::grpc::{item_error, render};
use crate::query::{self, Query};

/// Items answered, labelled `outcome` (answer, error, timeout, panic).
const ITEMS: &str = "candlemesh_indicator_batch_items_total";
/// Bytes set aside for items in work and answers not yet taken, of all batches.
const MEMORY: &str = "candlemesh_indicator_batch_memory_bytes";
/// Batches ended because nobody took their answers.
const SLOW_READERS: &str = "candlemesh_indicator_batch_slow_readers_total";

/// Bytes of one candle of a history: seven columns, counts, flags and dates, and the day's number beside them.
const HISTORY_ROW_BYTES: usize = 80;
/// Copies of an answer while it is made: its columns, and the same as a cache entry.
const ANSWER_COPIES: usize = 2;
/// What the smallest item is taken to need.
const LEAST_BYTES: usize = 256 * 1024;
/// Bytes per permit of the semaphore, whose count is 32 bits wide where it is asked.
const UNIT_BYTES: usize = 1024;

/// Why an instrument has no answer.
#[derive(Debug, thiserror::Error)]
enum Missed {
    #[error(transparent)]
    Engine(#[from] Error),
    #[error(
        "'{key}' was not answered within {limit:?}; ask for it alone, for fewer indicators or a longer item_timeout"
    )]
    Late { key: InstrumentKey, limit: Duration },
    #[error("the item of '{0}' panicked")]
    Panicked(InstrumentKey),
}

impl Missed {
    fn outcome(&self) -> &'static str {
        match self {
            Missed::Engine(_) => "error",
            Missed::Late { .. } => "timeout",
            Missed::Panicked(_) => "panic",
        }
    }
}

impl Fault for Missed {
    fn code(&self) -> Code {
        match self {
            Missed::Engine(error) => error.code(),
            Missed::Late { .. } => Code::DeadlineExceeded,
            Missed::Panicked(_) => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Missed::Engine(error) => error.reason(),
            Missed::Late { .. } => "ITEM_TIMEOUT",
            Missed::Panicked(_) => "PANICKED",
        }
    }

    fn remote(&self) -> Option<&RemoteError> {
        match self {
            Missed::Engine(error) => error.remote(),
            Missed::Late { .. } | Missed::Panicked(_) => None,
        }
    }
}

/// Why a batch ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cut {
    #[error("no answer was taken for {0:?}, so the rest of the batch was dropped; ask for what is missing")]
    SlowReader(Duration),
    /// A bug: items isolate their panics.
    #[error("the batch broke off with {0} instruments to answer")]
    BrokenOff(usize),
}

impl Fault for Cut {
    fn code(&self) -> Code {
        match self {
            Cut::SlowReader(_) => Code::ResourceExhausted,
            Cut::BrokenOff(_) => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Cut::SlowReader(_) => "SLOW_READER",
            Cut::BrokenOff(_) => "BROKEN_OFF",
        }
    }
}

/// All batches of the process: what they share is the memory.
#[derive(Debug)]
pub(crate) struct Batches {
    indicators: Arc<Indicators>,
    memory: Memory,
    concurrency: usize,
    item_timeout: Duration,
    read_timeout: Duration,
}

impl Batches {
    pub(crate) fn new(indicators: Arc<Indicators>, config: &Config) -> Self {
        Self {
            indicators,
            memory: Memory::new(config.batch_memory_bytes),
            concurrency: config.batch_concurrency.max(1),
            item_timeout: config.batch_item_timeout,
            read_timeout: config.batch_read_timeout,
        }
    }

    /// Answers each query of a batch; all work on it ends with the stream.
    ///
    /// Errors: the revisions cannot be had.
    pub(crate) async fn answer(
        &self,
        engine: Engine,
        batch: query::Batch,
    ) -> Result<BoxStream<'static, Result<BatchComputeIndicatorsResponse, Cut>>, Error> {
        let keys: Vec<_> = batch.queries.iter().map(|query| query.key.clone()).collect();
        let revisions = self.indicators.revisions(&keys).await?;
        let columns = batch.queries.first().map(|query| query.columns().len()).unwrap_or_default();
        let shared = Arc::new(Batch {
            indicators: Arc::clone(&self.indicators),
            engine,
            context: RequestContext::current(),
            item_timeout: batch.item_timeout.map_or(self.item_timeout, |asked| asked.min(self.item_timeout)),
            memory: self.memory.clone(),
            need: Need { columns, history_rows: AtomicUsize::new(0), answer_rows: AtomicUsize::new(0) },
        });
        let work = Work {
            shared,
            pending: batch.queries.into_iter().zip(revisions).collect::<Vec<_>>().into_iter(),
            concurrency: batch.max_concurrency.map_or(self.concurrency, |asked| asked.min(self.concurrency)),
            read_timeout: self.read_timeout,
        };
        Ok(work.start())
    }
}

/// The items of one batch that wait, and what they are worked with.
struct Work {
    shared: Arc<Batch>,
    pending: std::vec::IntoIter<(Query, u64)>,
    concurrency: usize,
    read_timeout: Duration,
}

/// The reader's wish for one more answer, and whether it came too late.
#[derive(Debug, Default)]
struct Reader {
    asks: Notify,
    is_slow: AtomicBool,
}

impl Work {
    fn start(self) -> BoxStream<'static, Result<BatchComputeIndicatorsResponse, Cut>> {
        let (sender, receiver) = mpsc::channel(1);
        let reader = Arc::new(Reader::default());
        let answers = answers(receiver, Arc::clone(&reader), self.read_timeout, self.pending.len());
        tokio::spawn(self.run(sender, reader).in_current_span());
        answers
    }

    /// Works until all are answered, the reader leaves, or it takes nothing for too long. Items are tasks of their own, so that candles
    /// are decoded and answers rendered on all async threads; leaving drops them.
    async fn run(mut self, sender: mpsc::Sender<BatchComputeIndicatorsResponse>, reader: Arc<Reader>) {
        let mut running = JoinSet::new();
        let mut answered = 0;
        // Of the answer handed over last: its bytes are in the transport's buffers until the reader asks again.
        let mut taken = None;
        loop {
            // One more at a time: what an item needs is known only from those before it.
            while running.len() < self.concurrency.min(answered + 1) {
                let Some((query, current)) = self.pending.next() else { break };
                running.spawn(Arc::clone(&self.shared).item(query, current).in_current_span());
            }
            tokio::select! {
                biased;
                () = sender.closed() => return,
                asked = timeout(self.read_timeout, reader.asks.notified()) => if asked.is_err() {
                    metrics::counter!(SLOW_READERS).increment(1);
                    reader.is_slow.store(true, Ordering::Relaxed);
                    return;
                },
            }
            drop(taken);
            let item = tokio::select! {
                biased;
                () = sender.closed() => return,
                item = running.join_next() => item,
            };
            // None: all are answered. An item isolates its panics and is aborted only by the end of this.
            let Some(Ok(Item { message, memory })) = item else { return };
            answered += 1;
            if sender.send(message).await.is_err() {
                return;
            }
            taken = memory;
        }
    }
}

/// Asks for one answer after another. The count tells an end from a break: a batch cut short must not look whole.
fn answers(
    receiver: mpsc::Receiver<BatchComputeIndicatorsResponse>,
    reader: Arc<Reader>,
    read_timeout: Duration,
    count: usize,
) -> BoxStream<'static, Result<BatchComputeIndicatorsResponse, Cut>> {
    let read = stream::unfold((receiver, reader, count), move |(mut receiver, reader, left)| async move {
        if left == 0 {
            return None;
        }
        reader.asks.notify_one();
        let (answer, left) = match receiver.recv().await {
            Some(message) => (Ok(message), left - 1),
            None if reader.is_slow.load(Ordering::Relaxed) => (Err(Cut::SlowReader(read_timeout)), 0),
            None => (Err(Cut::BrokenOff(left)), 0),
        };
        Some((answer, (receiver, reader, left)))
    });
    read.boxed()
}

/// What the items of one batch share.
#[derive(Debug)]
struct Batch {
    indicators: Arc<Indicators>,
    engine: Engine,
    context: Option<RequestContext>,
    item_timeout: Duration,
    memory: Memory,
    need: Need,
}

/// An outcome with the memory it takes.
struct Item {
    message: BatchComputeIndicatorsResponse,
    memory: Option<Reserved>,
}

impl Batch {
    async fn item(self: Arc<Self>, query: Query, current: u64) -> Item {
        // Not on the item's time: whoever holds memory gives it back within the limits of an item and a reader.
        let reserved = self.memory.reserve(self.need.bytes()).await;
        // A context of its own: the stream outlives its handler, and each item has its time.
        let deadline = Instant::now() + self.item_timeout;
        let context =
            self.context.clone().map(|context| RequestContext { deadline, priority: Priority::Batch, ..context });
        let work = AssertUnwindSafe(resume(context, self.answer(&query, current))).catch_unwind();
        let outcome = match timeout(self.item_timeout, work).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Err(_)) => Err(Missed::Panicked(query.key.clone())),
            // Whoever is asked has the item's time, less a margin, and may be the first to say that it is over.
            Ok(Ok(Err(error)))
                if error.code() != Code::DeadlineExceeded || Instant::now() + DEADLINE_MARGIN < deadline =>
            {
                Err(error.into())
            }
            Ok(Ok(Err(_))) | Err(_) => Err(Missed::Late { key: query.key.clone(), limit: self.item_timeout }),
        };
        let label = outcome.as_ref().map_or_else(Missed::outcome, |_| "answer");
        metrics::counter!(ITEMS, "outcome" => label).increment(1);
        let (outcome, memory) = match outcome {
            Ok(answer) => {
                let memory = reserved.shrink(answer.encoded_len());
                (Outcome::Answer(answer), Some(memory))
            }
            Err(error) => (Outcome::Error(item_error(&error)), None),
        };
        let message = BatchComputeIndicatorsResponse { instrument_key: query.key.to_string(), outcome: Some(outcome) };
        Item { message, memory }
    }

    /// One instrument, from its candles to its message. Several whose histories are there could be computed side by side here: the
    /// reservation, the place in the concurrency and the outcome are an item's, the call into the engine need not be.
    async fn answer(&self, query: &Query, current: u64) -> Result<ComputeIndicatorsResponse, Error> {
        let answer = self.indicators.compute_at(self.engine, query, current).await?;
        self.need.learn(&answer);
        render(query, answer)
    }
}

/// What an item is taken to need: as much as the largest before it.
#[derive(Debug)]
struct Need {
    columns: usize,
    history_rows: AtomicUsize,
    answer_rows: AtomicUsize,
}

impl Need {
    fn learn(&self, answer: &Answer) {
        let history = usize::try_from(answer.used).unwrap_or(usize::MAX);
        self.history_rows.fetch_max(history, Ordering::Relaxed);
        self.answer_rows.fetch_max(answer.table.open_time.len(), Ordering::Relaxed);
    }

    fn bytes(&self) -> usize {
        let values = size_of::<f64>() * (self.columns + 1);
        let history = self.history_rows.load(Ordering::Relaxed).saturating_mul(HISTORY_ROW_BYTES + values);
        let answer = self.answer_rows.load(Ordering::Relaxed).saturating_mul(ANSWER_COPIES * values);
        history.saturating_add(answer).max(LEAST_BYTES)
    }
}

/// A budget of bytes, handed out in the order it is asked for.
#[derive(Debug, Clone)]
struct Memory {
    free: Arc<Semaphore>,
    units: u32,
}

impl Memory {
    fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes / UNIT_BYTES as u64).unwrap_or(u32::MAX).max(1);
        // usize holds it, and so does the semaphore, on every target with 64 bits.
        let units = units.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Self { free: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Waits for room. What is larger than the whole budget waits for all of it, and so is alone.
    async fn reserve(&self, bytes: usize) -> Reserved {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(self.units);
        let permit = Arc::clone(&self.free).acquire_many_owned(units).await;
        Reserved::new(permit.expect("the semaphore is never closed"))
    }
}

/// Bytes set aside until dropped.
#[derive(Debug)]
struct Reserved(OwnedSemaphorePermit);

impl Reserved {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        metrics::gauge!(MEMORY).increment((permit.num_permits() * UNIT_BYTES) as f64);
        Self(permit)
    }

    /// Gives back all but `bytes`.
    fn shrink(mut self, bytes: usize) -> Self {
        let keep = bytes.div_ceil(UNIT_BYTES);
        if let Some(rest) = self.0.num_permits().checked_sub(keep).and_then(|rest| self.0.split(rest)) {
            metrics::gauge!(MEMORY).decrement((rest.num_permits() * UNIT_BYTES) as f64);
        }
        self
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        metrics::gauge!(MEMORY).decrement((self.0.num_permits() * UNIT_BYTES) as f64);
    }
}

#[cfg(test)]
mod tests {
    use market::Instrument;
    use mesh::CpuPool;
    use mesh::engine::Engines;
    use mesh::source::MemorySource;
    use proto::indicator::BatchComputeIndicatorsRequest;

    use super::*;
    use crate::Ports;

    const COUNT: usize = 10;

    fn batches(config: &Config) -> Batches {
        let mut source = MemorySource { revision: 1, ..Default::default() };
        for index in 0..COUNT {
            let key: InstrumentKey = format!("US|S{index}").parse().unwrap();
            let instrument = Instrument {
                key: key.clone(),
                name: String::new(),
                exchange: "US".into(),
                currency: String::new(),
                tick_size: 0.0,
                calendar: "NYSE".into(),
            };
            source.instruments.insert(key, instrument);
        }
        let source = Arc::new(source);
        let ports = Ports {
            live: Arc::new(mesh::source::MemoryNewsroom::default()),
            candles: Arc::clone(&source) as _,
            master: source,
            engines: Engines::BOTH,
            pool: Arc::new(CpuPool::new(1, 64).unwrap()),
            cache: config.local_cache(),
        };
        Batches::new(Arc::new(Indicators::new(config, &ports)), config)
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_told_and_its_batch_is_gone() {
        let batches = batches(&Config { batch_read_timeout: Duration::from_millis(20), ..Config::default() });
        let asked = BatchComputeIndicatorsRequest {
            instrument_keys: (0..COUNT).map(|index| format!("US|S{index}")).collect(),
            timeframe: "1m".into(),
            ..Default::default()
        };
        let mut items = batches.answer(Engine::V2, query::batch(&asked).unwrap()).await.unwrap();
        let mut read = vec![items.next().await.unwrap()];
        // All work of the batch shares the engine; this waits until none is left, which only the time limit brings about.
        let started = Instant::now();
        while Arc::strong_count(&batches.indicators) > 1 {
            assert!(started.elapsed() < Duration::from_secs(60), "the batch goes on");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(batches.memory.free.available_permits(), batches.memory.units as usize);
        read.extend(items.collect::<Vec<_>>().await);
        let end = read.pop().unwrap().unwrap_err();
        assert_eq!((end.code(), end.reason()), (Code::ResourceExhausted, "SLOW_READER"));
        assert!(read.len() < COUNT && read.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn a_batch_that_breaks_off_does_not_look_whole() {
        let (sender, receiver) = mpsc::channel(1);
        sender.send(BatchComputeIndicatorsResponse::default()).await.unwrap();
        drop(sender);
        let read: Vec<_> = answers(receiver, Arc::default(), Duration::from_secs(1), 3).collect().await;
        assert!(matches!(read[..], [Ok(_), Err(Cut::BrokenOff(2))]), "{read:?}");
    }

    #[tokio::test]
    async fn memory_is_handed_out_to_its_last_byte_and_what_is_too_large_is_alone() {
        let memory = Memory::new(10 * UNIT_BYTES as u64);
        let small = memory.reserve(1).await;
        let rest = memory.reserve(9 * UNIT_BYTES).await;
        let mut huge = Box::pin(memory.reserve(usize::MAX));
        assert!((&mut huge).now_or_never().is_none());
        drop(small);
        assert!((&mut huge).now_or_never().is_none(), "there is room, but not all of it");
        // What comes later does not overtake.
        assert!(memory.reserve(1).now_or_never().is_none());
        let kept = rest.shrink(UNIT_BYTES + 1);
        assert_eq!(kept.0.num_permits(), 2);
        drop(kept);
        assert_eq!(huge.await.0.num_permits(), 10);
        assert_eq!(memory.free.available_permits(), 10);
    }

    #[test]
    fn what_the_largest_item_took_is_set_aside_for_the_next() {
        let need = Need { columns: 13, history_rows: AtomicUsize::new(0), answer_rows: AtomicUsize::new(0) };
        assert_eq!(need.bytes(), LEAST_BYTES);
        need.history_rows.fetch_max(18_750, Ordering::Relaxed);
        need.answer_rows.fetch_max(18_750, Ordering::Relaxed);
        // 1.5 MB of candles, 2.1 MB of columns, and two copies of those.
        assert_eq!(need.bytes(), 18_750 * (80 + 3 * 14 * 8));
    }
}

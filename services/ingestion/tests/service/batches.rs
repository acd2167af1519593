//! Many instruments in one call.

use std::time::{Duration, Instant};

use futures::StreamExt;
use proto::ingestion::{
    GetInstrumentRequest, PutCandleBatchesRequest, PutInstrumentRequest, RejectedRow, StreamCandlesRequest,
};
use store::{StoreOptions, Stores};
use tonic::Code;

use super::*;

const TIME: &str = "2016-08-16T03:45:00Z";
/// A minute of 5000 instruments, durable, with all of the wire in an unoptimised build on a loaded machine. A commit for each would take
/// longer.
const MARKET_LIMIT: Duration = Duration::from_secs(10);

impl Running {
    async fn put_batches(&self, batches: Vec<CandleBatch>) -> Result<Vec<BatchOutcome>, Status> {
        let answer = self.client.clone().put_candle_batches(PutCandleBatchesRequest { batches }).await?;
        Ok(answer.into_inner().outcomes)
    }

    async fn instrument(&self, key: &str) -> Result<wire::Instrument, Status> {
        let request = GetInstrumentRequest { instrument_key: key.into() };
        Ok(self.client.clone().get_instrument(request).await?.into_inner().instrument.unwrap())
    }
}

#[tokio::test]
async fn outcomes_follow_the_batches_and_every_good_one_creates_its_instrument() {
    let running = start().await;
    running.put(batch("NSE_EQ|OLD", "1m", vec![flat(TIME, 1.0)])).await.unwrap();
    let mut with_calendar = batch("XX_ODD|NEW", "1m", vec![flat(TIME, 3.0)]);
    with_calendar.calendar = "24x7".into();
    let batches = vec![
        batch("NSE_EQ|OLD", "1m", vec![flat(TIME, 1.0), flat("2016-08-16T03:46:00Z", 2.0)]),
        batch("NSE_EQ|BAD", "1m", vec![flat(TIME, f64::NAN)]),
        with_calendar,
        batch("NSE_EQ|OLD", "5m", vec![flat("2016-08-16T03:46:00Z", 2.0), flat(TIME, 4.0)]),
        batch("NSE_EQ|NONE", "1m", Vec::new()),
    ];
    let outcomes = running.put_batches(batches).await.unwrap();
    let counts: Vec<_> = outcomes.iter().map(|o| (o.stored, o.unchanged, o.rejected.len(), o.revision)).collect();
    // One call raises an instrument's revision once.
    assert_eq!(counts, [(1, 1, 0, 2), (0, 0, 1, 0), (1, 0, 0, 1), (1, 0, 1, 2), (0, 0, 0, 0)]);
    let RejectedRow { row, reason } = &outcomes[1].rejected[0];
    assert!(*row == 0 && reason.contains("NaN"), "{reason}");
    assert_eq!(outcomes[3].rejected[0].row, 0);
    assert_eq!(running.instrument("XX_ODD|NEW").await.unwrap().calendar, "24x7");
    for unknown in ["NSE_EQ|BAD", "NSE_EQ|NONE"] {
        assert_eq!(running.instrument(unknown).await.unwrap_err().code(), Code::NotFound, "{unknown}");
    }
    assert_eq!(running.put_batches(Vec::new()).await.unwrap(), []);
}

#[tokio::test]
async fn a_refused_call_stores_nothing_and_names_the_batch() {
    let running = start().await;
    let good = || batch("NSE_EQ|GOOD", "1m", vec![flat(TIME, 1.0)]);
    let refused = async |batches: Vec<CandleBatch>| fault(running.put_batches(batches).await.unwrap_err());
    let fault = refused(vec![good(), batch("nonsense", "1m", Vec::new())]).await;
    assert_eq!((fault.code, &*fault.fields[0].0), (Code::InvalidArgument, "batches[1].instrument_key"));
    let fault = refused(vec![good(), batch("NSE_EQ|B", "7m", Vec::new())]).await;
    assert_eq!((fault.code, &*fault.fields[0].0), (Code::InvalidArgument, "batches[1].timeframe"));
    let fault = refused(vec![good(), batch("NSE_EQ|B", "1m", Vec::new()), good()]).await;
    assert_eq!((fault.code, &*fault.fields[0].0), (Code::InvalidArgument, "batches[2].instrument_key"));
    let mut other = batch("NSE_EQ|KNOWN", "1m", vec![flat(TIME, 1.0)]);
    running.put(other.clone()).await.unwrap();
    other.calendar = "24x7".into();
    let fault = refused(vec![good(), other]).await;
    assert_eq!((fault.code, &*fault.reason), (Code::FailedPrecondition, "CALENDAR_CONFLICT"));
    let many = (0..10_001).map(|index| batch(&format!("NSE_EQ|{index}"), "1m", Vec::new())).collect();
    let fault = refused(many).await;
    assert_eq!((fault.code, &*fault.reason), (Code::ResourceExhausted, "LIMIT_EXCEEDED"));
    let rows = |key: &str| batch(key, "1m", vec![flat(TIME, 1.0); 60_000]);
    let fault = refused(vec![rows("NSE_EQ|A"), rows("NSE_EQ|B")]).await;
    assert_eq!((fault.code, &*fault.reason), (Code::ResourceExhausted, "LIMIT_EXCEEDED"));
    assert_eq!(running.instrument("NSE_EQ|GOOD").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_sight_does_not_undo_a_put_instrument() {
    let stores = Stores::memory();
    // Two processes on one store, each with its own idea of who wrote last.
    let (here, there) = (start_over(stores.clone()).await, start_over(stores).await);
    let mut writes = tokio::task::JoinSet::new();
    for index in 0..40 {
        let (key, mut puts, mut masters) = (format!("NSE_EQ|{index}"), here.client.clone(), there.client.clone());
        let instrument = wire::Instrument { instrument_key: key.clone(), name: "named".into(), ..Default::default() };
        let request = PutInstrumentRequest { instrument: Some(instrument) };
        writes.spawn(async move { masters.put_instrument(request).await.map(drop) });
        let batches = vec![batch(&key, "1m", vec![flat(TIME, 1.0)])];
        writes.spawn(async move { puts.put_candle_batches(PutCandleBatchesRequest { batches }).await.map(drop) });
    }
    while let Some(written) = writes.join_next().await {
        written.unwrap().unwrap();
    }
    for index in 0..40 {
        assert_eq!(here.instrument(&format!("NSE_EQ|{index}")).await.unwrap().name, "named");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_are_sent_ahead_are_stored_together_and_up_to_the_one_that_fails() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("candles.db").display());
    let stores = Stores::open(&url, &StoreOptions::default()).await.unwrap();
    let running = start_over(stores.clone()).await;
    running.put(batch("NSE_EQ|7", "1m", vec![flat(TIME, 9.0)])).await.unwrap();
    let open = market::parse_millis(TIME).unwrap();
    // 30 instruments in turn, so that rounds are cut where an instrument comes again.
    let request = |index: u64| {
        let row = flat_at(open + (1 + index / 30) as i64 * 60_000, index as f64 + 1.0);
        let mut sent = batch(&format!("NSE_EQ|{}", index % 30), "1m", vec![row, flat_at(open + 1, 1.0)]);
        if index == 247 {
            sent.calendar = "24x7".into();
        }
        StreamCandlesRequest { sequence: index * 10, batch: Some(sent) }
    };
    let requests: Vec<_> = (0..300).map(request).collect();
    let answers = running.client.clone().stream_candles(futures::stream::iter(requests)).await.unwrap();
    let mut answers: Vec<_> = answers.into_inner().collect().await;
    let failure = fault(answers.pop().unwrap().unwrap_err());
    assert_eq!((failure.code, &*failure.reason), (Code::FailedPrecondition, "CALENDAR_CONFLICT"));
    assert!(failure.message.contains("NSE_EQ|7"), "{}", failure.message);
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().map(|answer| answer.sequence / 10).collect::<Vec<_>>(), (0..247).collect::<Vec<_>>());
    for (index, answer) in answers.iter().enumerate() {
        let outcome = answer.outcome.as_ref().unwrap();
        let before = u64::from(index % 30 == 7);
        let want = (1, 1, index as u64 / 30 + 1 + before);
        assert_eq!((outcome.stored, outcome.rejected.len(), outcome.revision), want, "{index}");
    }
    // One change for each, and none of what came after the failure.
    assert_eq!(stores.candles.last_sequence().await.unwrap(), 1 + 247);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_of_five_thousand_instruments_is_one_quick_call_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("candles.db").display());
    let running = start_over(Stores::open(&url, &StoreOptions::default()).await.unwrap()).await;
    let open = market::parse_millis(TIME).unwrap();
    let mut took = Vec::new();
    for minute in 0..6 {
        let price = 100.0 + minute as f64;
        let of =
            |index: usize| batch(&format!("NSE_EQ|M{index:04}"), "1m", vec![flat_at(open + minute * 60_000, price)]);
        let batches: Vec<_> = (0..5000).map(of).collect();
        let started = Instant::now();
        let outcomes = running.put_batches(batches).await.unwrap();
        took.push(started.elapsed());
        assert!(outcomes.iter().all(|outcome| (outcome.stored, outcome.revision) == (1, minute as u64 + 1)));
    }
    println!("first minute, with 5000 new instruments: {:?}; later ones: {:?}", took[0], &took[1..]);
    assert!(took[1..].iter().min().unwrap() < &MARKET_LIMIT, "{took:?}");
}

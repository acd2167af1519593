//! Splits and dividends: against Yahoo's published adjustment, against a definition written down once more, and refusals.

use arrow_flight::Ticket;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::flight_service_client::FlightServiceClient;
use futures::TryStreamExt;
use market::{ActionTerms, Adjustment, Candle, CorporateAction, Millis, TimeRange, parse_millis};
use mesh::RemoteError;
use prost::Message;
use proto::aggregation::aggregation_service_client::AggregationServiceClient;
use proto::aggregation::batch_get_candles_response::Outcome;
use proto::aggregation::{BatchGetCandlesRequest, GetCandlesRequest, GetCandlesResponse, GetMultiCandlesRequest};
use proto::convert;
use proto::wire::{BucketCandle, CandlesTicket, FrameTicket, frame_ticket};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use super::*;

const MINUTE_MS: Millis = 60_000;

/// Ex-date and dollars per share as declared, of the shares at the time: Apple Inc., investor.apple.com, Dividend History.
const APPLE_DIVIDENDS: [(&str, f64); 22] = [
    ("2012-08-09", 2.65),
    ("2012-11-07", 2.65),
    ("2013-02-07", 2.65),
    ("2013-05-09", 3.05),
    ("2013-08-08", 3.05),
    ("2013-11-06", 3.05),
    ("2014-02-06", 3.05),
    ("2014-05-08", 3.29),
    ("2014-08-07", 0.47),
    ("2014-11-06", 0.47),
    ("2015-02-05", 0.47),
    ("2015-05-07", 0.52),
    ("2015-08-06", 0.52),
    ("2015-11-05", 0.52),
    ("2016-02-04", 0.52),
    ("2016-05-05", 0.57),
    ("2016-08-04", 0.57),
    ("2016-11-03", 0.57),
    ("2017-02-09", 0.57),
    ("2017-05-11", 0.63),
    ("2017-08-10", 0.63),
    ("2017-11-10", 0.63),
];
/// Ex-date, old shares, new shares.
const APPLE_SPLITS: [(&str, f64, f64); 2] = [("2005-02-28", 1.0, 2.0), ("2014-06-09", 1.0, 7.0)];

/// Quarterly distributions of SPY as Yahoo lists them, to a tenth of a cent.
const SPY_DIVIDENDS: [(&str, f64); 40] = [
    ("2008-03-20", 0.642),
    ("2008-06-20", 0.669),
    ("2008-09-19", 0.691),
    ("2008-12-19", 0.719),
    ("2009-03-20", 0.561),
    ("2009-06-19", 0.518),
    ("2009-09-18", 0.508),
    ("2009-12-18", 0.59),
    ("2010-03-19", 0.48),
    ("2010-06-18", 0.531),
    ("2010-09-17", 0.602),
    ("2010-12-17", 0.653),
    ("2011-03-18", 0.553),
    ("2011-06-17", 0.628),
    ("2011-09-16", 0.625),
    ("2011-12-16", 0.77),
    ("2012-03-16", 0.614),
    ("2012-06-15", 0.688),
    ("2012-09-21", 0.779),
    ("2012-12-21", 1.022),
    ("2013-03-15", 0.694),
    ("2013-06-21", 0.839),
    ("2013-09-20", 0.838),
    ("2013-12-20", 0.98),
    ("2014-03-21", 0.825),
    ("2014-06-20", 0.937),
    ("2014-09-19", 0.939),
    ("2014-12-19", 1.135),
    ("2015-03-20", 0.931),
    ("2015-06-19", 1.03),
    ("2015-09-18", 1.033),
    ("2015-12-18", 1.212),
    ("2016-03-18", 1.05),
    ("2016-06-17", 1.078),
    ("2016-09-16", 1.082),
    ("2016-12-16", 1.329),
    ("2017-03-17", 1.033),
    ("2017-06-16", 1.183),
    ("2017-09-15", 1.235),
    ("2017-12-15", 1.351),
];

fn split(date: &str, from: f64, to: f64) -> CorporateAction {
    CorporateAction { ex_date: date.parse().unwrap(), terms: ActionTerms::Split { from, to } }
}

fn dividend(date: &str, amount: f64) -> CorporateAction {
    CorporateAction { ex_date: date.parse().unwrap(), terms: ActionTerms::Dividend { amount } }
}

fn at(text: &str) -> Millis {
    parse_millis(text).unwrap()
}

struct World {
    served: Served,
    client: AggregationServiceClient<Channel>,
}

impl World {
    async fn new(source: MemorySource) -> World {
        let served = serve(&Arc::new(source), "v1,v2", Config::default()).await;
        let channel = Endpoint::from_shared(served.address.clone()).unwrap().connect_lazy();
        World {
            served,
            client: AggregationServiceClient::new(channel).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES),
        }
    }

    /// An answer of both engines, which must be equal to the bit.
    async fn candles(&mut self, timeframe: &str, adjustment: Adjustment) -> GetCandlesResponse {
        self.ask(request(timeframe, adjustment)).await.unwrap()
    }

    async fn ask(&mut self, message: GetCandlesRequest) -> Result<GetCandlesResponse, RemoteError> {
        let mut answers = Vec::new();
        for engine in ["v1", "v2"] {
            let mut request = Request::new(message.clone());
            request.metadata_mut().insert(mesh::ENGINE_HEADER, engine.parse().unwrap());
            let answer = self.client.get_candles(request).await;
            answers.push(answer.map_err(|status| RemoteError::from_status(&status))?.into_inner());
        }
        assert_eq!(answers[0].encode_to_vec(), answers[1].encode_to_vec(), "{message:?}");
        Ok(answers.remove(0))
    }
}

fn request(timeframe: &str, adjustment: Adjustment) -> GetCandlesRequest {
    GetCandlesRequest {
        instrument_key: "US|X".into(),
        timeframe: timeframe.into(),
        adjustment: convert::wire_adjustment(adjustment).into(),
        ..Default::default()
    }
}

/// A date with its close and adjusted close.
type Published = (String, f64, f64);

/// Daily candles as they were traded, from Yahoo's, which are adjusted for splits; and Yahoo's close and adjusted close.
fn yahoo(file: &str, splits: &[(&str, f64, f64)]) -> Option<(Frame, Vec<Published>)> {
    let folder = data::folder()?;
    let (mut traded, mut published) = (Frame::default(), Vec::new());
    for record in data::records(&folder.join(format!("1d/{file}.csv.gz"))) {
        let number = |field: usize| record[field].parse::<f64>().unwrap();
        let later = splits.iter().filter(|(ex_date, _, _)| record[1] < **ex_date);
        let ratio: f64 = later.map(|(_, from, to)| to / from).product();
        let [open, high, low, close] = [2, 3, 4, 5].map(|field| number(field) * ratio);
        // The source's high and low are rounded apart from its open and close.
        let (high, low) = (high.max(open).max(close), low.min(open).min(close));
        let candle = Candle {
            open_time: at(&record[0]),
            open,
            high,
            low,
            close,
            volume: number(6) / ratio,
            open_interest: None,
        };
        traded.push(&candle).unwrap();
        published.push((record[1].to_owned(), number(5), number(7)));
    }
    Some((traded, published))
}

fn daily(calendar: &str, rows: Frame, actions: Vec<CorporateAction>) -> MemorySource {
    let mut source = source([("US|X", calendar, Frame::default())]);
    source.stored.insert((key("US|X"), Timeframe::D1), rows);
    source.actions.insert(key("US|X"), actions);
    source
}

/// The largest relative distance to what was published, and where.
fn distance(candles: &[BucketCandle], published: &[(String, f64, f64)], of: fn(&(String, f64, f64)) -> f64) -> f64 {
    assert_eq!(candles.len(), published.len());
    let of_row = |(candle, row): (&BucketCandle, &(String, f64, f64))| {
        assert_eq!(candle.trading_date, row.0);
        (candle.close / of(row) - 1.0).abs()
    };
    candles.iter().zip(published).map(of_row).fold(0.0, f64::max)
}

#[tokio::test]
async fn the_published_adjustment_of_apple_is_reproduced() {
    let Some((traded, published)) = yahoo("US_AAPL-D", &APPLE_SPLITS) else { return };
    let dividends = APPLE_DIVIDENDS.map(|(date, amount)| dividend(date, amount));
    let splits = APPLE_SPLITS.map(|(date, from, to)| split(date, from, to));
    let mut world = World::new(daily("NYSE", traded.clone(), [&dividends[..], &splits].concat())).await;

    let raw = world.candles("1d", Adjustment::Raw).await.candles;
    assert!(raw.iter().zip(traded.close()).all(|(candle, close)| candle.close == *close));
    assert!((raw.iter().find(|candle| candle.trading_date == "2014-06-06").unwrap().close - 645.57).abs() < 0.01);
    // What was multiplied by 7 or 14 to get here comes back to the last bit or two.
    let by_splits = world.candles("1d", Adjustment::Splits).await.candles;
    assert!(distance(&by_splits, &published, |row| row.1) < 1e-15);
    // Yahoo keeps prices to six digits: a millionth of the two dollars of 2004 is half of one.
    let by_all = world.candles("1d", Adjustment::SplitsAndDividends).await.candles;
    let largest = distance(&by_all, &published, |row| row.2);
    assert!(largest < 1e-6, "{largest}");
    println!("apple: {largest:e} from Yahoo's adjusted close over {} days", by_all.len());
}

#[tokio::test]
async fn the_published_adjustment_of_spy_is_reproduced() {
    let Some((traded, published)) = yahoo("US_SPY-D", &[]) else { return };
    let actions = SPY_DIVIDENDS.map(|(date, amount)| dividend(date, amount)).to_vec();
    let mut world = World::new(daily("NYSE", traded.clone(), actions)).await;
    let by_all = world.candles("1d", Adjustment::SplitsAndDividends).await.candles;
    let largest = distance(&by_all, &published, |row| row.2);
    assert!(largest < 1e-6, "{largest}");
    println!("spy: {largest:e} from Yahoo's adjusted close over {} days", by_all.len());
    // There is nothing to adjust by splits, and a part of the range has the values of the whole.
    let raw = world.candles("1d", Adjustment::Raw).await;
    assert_eq!(world.candles("1d", Adjustment::Splits).await.encode_to_vec(), raw.encode_to_vec());
    let range = TimeRange::new(at("2012-03-01T00:00:00Z"), at("2012-04-01T00:00:00Z")).unwrap();
    let part = GetCandlesRequest {
        range: Some(convert::wire_range(range)),
        indicators: vec!["sma:5".into()],
        ..request("1d", Adjustment::SplitsAndDividends)
    };
    let part = world.ask(part).await.unwrap();
    let whole = by_all.iter().position(|candle| candle.trading_date == "2012-03-01").unwrap();
    assert_eq!(part.candles, by_all[whole..whole + part.candles.len()]);
    // Indicators are those of the adjusted candles, the ones before the range included.
    let closes: Vec<f64> = by_all[whole - 4..=whole].iter().map(|candle| candle.close).collect();
    let mean = closes.iter().sum::<f64>() / 5.0;
    let first = convert::column_values(&part.columns[0])[0].unwrap();
    assert!((first / mean - 1.0).abs() < 1e-12, "{first} {mean}");
}

/// Two weeks of real minutes around an invented split of 3 for 2 in mid-week, and a dividend on the Friday after it.
fn minutes_with_actions() -> Option<(Frame, MemorySource)> {
    let path = data::folder()?.join("1m/NSE_EQ_INE002A01018_RELIANCE.csv.gz");
    let minutes = data::candles(&path, TimeRange::ALL);
    let mut source = source([("US|X", "NSE", minutes.clone())]);
    source.actions.insert(key("US|X"), vec![split("2016-08-31", 2.0, 3.0), dividend("2016-09-02", 11.5)]);
    Some((minutes, source))
}

/// The definition once more: prices over 1.5 before 2016-08-31, and less the dividend's share before 2016-09-02.
fn naive(date: &str, dividend_factor: f64) -> impl Fn(f64) -> f64 {
    let (before_split, before_dividend) = (date < "2016-08-31", date < "2016-09-02");
    move |price| {
        let price = if before_split { price / 1.5 } else { price };
        if before_dividend { price * dividend_factor } else { price }
    }
}

#[tokio::test]
async fn candles_inside_a_date_are_those_answered_raw_times_the_factor_of_the_date() {
    let Some((minutes, source)) = minutes_with_actions() else { return };
    let mut world = World::new(source).await;
    let before = minutes.open_time().partition_point(|open_time| *open_time < at("2016-09-01T18:30:00Z"));
    let close_before = minutes.close()[before - 1];
    let dividend_factor = 1.0 - 11.5 / close_before;
    for timeframe in ["1m", "5m", "15m", "1h", "4h", "1d"] {
        let raw = world.candles(timeframe, Adjustment::Raw).await.candles;
        for (adjustment, dividend_factor) in
            [(Adjustment::Splits, 1.0), (Adjustment::SplitsAndDividends, dividend_factor)]
        {
            let adjusted = world.candles(timeframe, adjustment).await.candles;
            assert_eq!(adjusted.len(), raw.len());
            for (adjusted, raw) in adjusted.iter().zip(&raw) {
                let price = naive(&raw.trading_date, dividend_factor);
                // Open, high, low and close to the bit: a factor keeps the order of prices.
                let expected = BucketCandle {
                    open: price(raw.open),
                    high: price(raw.high),
                    low: price(raw.low),
                    close: price(raw.close),
                    volume: adjusted.volume,
                    ..raw.clone()
                };
                assert_eq!(*adjusted, expected);
                // Volumes here are whole numbers, so halves add up exactly: the order of summing and scaling does not show.
                let ratio = if raw.trading_date.as_str() < "2016-08-31" { 1.5 } else { 1.0 };
                assert_eq!(adjusted.volume, raw.volume * ratio);
            }
        }
    }
}

#[tokio::test]
async fn a_week_with_an_ex_date_is_made_of_adjusted_dates() {
    let Some((_, source)) = minutes_with_actions() else { return };
    let mut world = World::new(source).await;
    for adjustment in [Adjustment::Splits, Adjustment::SplitsAndDividends] {
        let days = world.candles("1d", adjustment).await.candles;
        let weeks = world.candles("1w", adjustment).await.candles;
        // Monday 2016-08-29 to Friday 2016-09-02 holds both ex-dates.
        let in_week: Vec<&BucketCandle> =
            days.iter().filter(|day| ("2016-08-29"..="2016-09-02").contains(&day.trading_date.as_str())).collect();
        let week = weeks.iter().find(|week| week.trading_date == "2016-08-29").unwrap();
        assert_eq!(in_week.len(), 5);
        assert_eq!((week.open, week.close), (in_week[0].open, in_week[4].close));
        assert_eq!(week.high, in_week.iter().map(|day| day.high).fold(f64::MIN, f64::max));
        assert_eq!(week.low, in_week.iter().map(|day| day.low).fold(f64::MAX, f64::min));
        assert_eq!(week.volume, in_week.iter().map(|day| day.volume).sum::<f64>());
        let raw = world.candles("1w", Adjustment::Raw).await.candles;
        let raw = raw.iter().find(|week| week.trading_date == "2016-08-29").unwrap();
        // One factor for the whole week would be wrong for a part of it.
        assert!(week.open < raw.open / 1.4 && week.close == raw.close);
    }
}

#[tokio::test]
async fn every_surface_answers_the_same_adjusted_candles() {
    let Some((_, source)) = minutes_with_actions() else { return };
    let mut world = World::new(source).await;
    let adjustment = Adjustment::SplitsAndDividends;
    let wire = i32::from(convert::wire_adjustment(adjustment));
    let one = world.candles("1h", adjustment).await;

    let multi = GetMultiCandlesRequest {
        instrument_key: "US|X".into(),
        timeframes: vec!["1d".into(), "1h".into()],
        adjustment: wire,
        ..Default::default()
    };
    let multi = world.client.get_multi_candles(multi).await.unwrap().into_inner();
    assert_eq!(multi.answers[1], one);

    let batch = BatchGetCandlesRequest {
        instrument_keys: vec!["US|X".into()],
        timeframe: "1h".into(),
        adjustment: wire,
        ..Default::default()
    };
    let items: Vec<_> = world.client.batch_get_candles(batch).await.unwrap().into_inner().try_collect().await.unwrap();
    assert!(matches!(&items[0].outcome, Some(Outcome::Answer(answer)) if *answer == one));

    let ticket =
        CandlesTicket { instrument_key: "US|X".into(), timeframe: "1h".into(), adjustment: wire, ..Default::default() };
    let ticket = FrameTicket { frame: Some(frame_ticket::Frame::Candles(ticket)) };
    let channel = Endpoint::from_shared(world.served.address.clone()).unwrap().connect_lazy();
    let stream =
        FlightServiceClient::new(channel).do_get(Ticket { ticket: ticket.encode_to_vec().into() }).await.unwrap();
    let stream = stream.into_inner().map_err(|status| arrow_flight::error::FlightError::Tonic(Box::new(status)));
    let mut batches = FlightRecordBatchStream::new_from_flight_data(stream);
    let mut candles = Vec::new();
    while let Some(batch) = batches.try_next().await.unwrap() {
        candles.extend(convert::wire_bucket_candles(&proto::arrow::bucket_frame(&batch).unwrap()));
    }
    assert_eq!(candles, one.candles);

    // Gaps are filled with the adjusted close before them.
    let filled = GetCandlesRequest { gap_fill: true, ..request("1d", adjustment) };
    let filled = world.ask(filled).await.unwrap().candles;
    let days = world.candles("1d", adjustment).await.candles;
    assert!(filled.len() > days.len());
    for pair in filled.windows(2).filter(|pair| pair[1].source_count == 0) {
        assert_eq!(pair[1].close, pair[0].close);
    }
}

#[tokio::test]
async fn closes_before_an_ex_date_are_of_the_session_and_of_shares_before_the_split() {
    // Two dates of NYSE, each with a regular minute and one after the close at another price.
    let mut rows = Frame::default();
    for (open_time, close) in [
        ("2024-03-07T20:59:00Z", 100.0),
        ("2024-03-07T23:00:00Z", 90.0),
        ("2024-03-08T20:59:00Z", 40.0),
        ("2024-03-08T23:00:00Z", 30.0),
    ] {
        let candle = Candle {
            open_time: at(open_time),
            open: close,
            high: close,
            low: close,
            close,
            volume: 8.0,
            open_interest: None,
        };
        rows.push(&candle).unwrap();
    }
    let mut source = source([("US|X", "NYSE", rows)]);
    // The dividend is of the shares after the split of its date: 1 of 50, not 1 of 100.
    // What is announced for a date that has not come changes nothing.
    let announced = [split("2190-01-04", 1.0, 10.0), dividend("2190-01-05", 1.0)];
    let known = [split("2024-03-08", 1.0, 2.0), dividend("2024-03-08", 1.0)];
    source.actions.insert(key("US|X"), [known, announced].concat());
    let mut world = World::new(source).await;
    let minutes = world.candles("1m", Adjustment::SplitsAndDividends).await.candles;
    let closes: Vec<f64> = minutes.iter().map(|candle| candle.close).collect();
    assert_eq!(closes, [50.0 * 0.98, 45.0 * 0.98, 40.0, 30.0]);
    let volumes: Vec<f64> = minutes.iter().map(|candle| candle.volume).collect();
    assert_eq!(volumes, [16.0, 16.0, 8.0, 8.0]);
}

#[tokio::test]
async fn actions_that_cannot_be_applied_are_refused_with_what_to_do() {
    let mut rows = Frame::default();
    let start = at("2020-01-02T14:30:00Z");
    for day in [0, 200] {
        let open_time = start + day * 24 * 60 * MINUTE_MS;
        rows.push(&Candle {
            open_time,
            open: 9.0,
            high: 9.0,
            low: 9.0,
            close: 9.0,
            volume: 1e300,
            open_interest: None,
        })
        .unwrap();
    }
    for (actions, reason, text) in [
        (vec![dividend("2020-01-03", 9.0)], "BAD_CORPORATE_ACTION", "2020-01-03"),
        (vec![dividend("2020-06-01", 1.0)], "NO_CLOSE_BEFORE_EX_DATE", "2020-06-01"),
        (vec![split("2020-06-01", 1.0, 1e6), split("2020-06-02", 1.0, 1e6)], "BAD_CORPORATE_ACTION", "not finite"),
    ] {
        let mut source = source([("US|X", "NYSE", rows.clone())]);
        source.actions.insert(key("US|X"), actions);
        let mut world = World::new(source).await;
        let refused = world.ask(request("1d", Adjustment::SplitsAndDividends)).await.unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, reason));
        assert!(refused.message.contains(text) && refused.message.contains("US|X"), "{}", refused.message);
        assert_eq!(world.candles("1d", Adjustment::Raw).await.candles.len(), 2);
    }
    // A dividend before all that is stored has nothing to adjust.
    let mut source = source([("US|X", "NYSE", rows)]);
    source.actions.insert(key("US|X"), vec![dividend("2019-12-02", 5.0)]);
    let mut world = World::new(source).await;
    assert_eq!(world.candles("1d", Adjustment::SplitsAndDividends).await.candles[0].close, 9.0);
    let unknown = GetCandlesRequest { adjustment: 9, ..request("1d", Adjustment::Raw) };
    assert_eq!(world.ask(unknown).await.unwrap_err().fields[0].0, "adjustment");
}

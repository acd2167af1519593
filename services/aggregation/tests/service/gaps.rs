//! The report of missing minutes: the defects that the data's README names, and a count written down once more.

use std::collections::BTreeSet;

use market::{Millis, TimeRange, parse_millis};
use mesh::RemoteError;
use proto::aggregation::aggregation_service_client::AggregationServiceClient;
use proto::aggregation::{ListGapsRequest, ListGapsResponse};
use proto::convert;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::*;

type Client = AggregationServiceClient<Channel>;

const MINUTE_MS: Millis = 60_000;
const DAY_MS: Millis = 24 * 60 * MINUTE_MS;

fn at(text: &str) -> Millis {
    parse_millis(text).unwrap()
}

/// Serves the minutes of files: key, calendar, file.
async fn serve_files(files: &[(&str, &str, &str)]) -> Option<(Served, Client, Vec<Frame>)> {
    let folder = data::folder()?;
    let minutes: Vec<Frame> = files
        .iter()
        .map(|(_, _, file)| data::candles(&folder.join(format!("1m/{file}.csv.gz")), TimeRange::ALL))
        .collect();
    let instruments = files.iter().zip(&minutes).map(|((key, calendar, _), frame)| (*key, *calendar, frame.clone()));
    let served = serve(&Arc::new(source(instruments)), "v1,v2", Config::default()).await;
    let client = Client::new(Endpoint::from_shared(served.address.clone()).unwrap().connect_lazy());
    Some((served, client.max_decoding_message_size(mesh::MAX_MESSAGE_BYTES), minutes))
}

/// All pages as one answer.
async fn all(client: &mut Client, request: ListGapsRequest) -> ListGapsResponse {
    let mut whole: Option<ListGapsResponse> = None;
    let mut page_token = String::new();
    loop {
        let request = ListGapsRequest { page_token, ..request.clone() };
        let page = client.list_gaps(request).await.unwrap().into_inner();
        page_token = page.next_page_token.clone();
        match &mut whole {
            None => whole = Some(page),
            Some(whole) => {
                let totals = |answer: &ListGapsResponse| ListGapsResponse {
                    dates: Vec::new(),
                    next_page_token: String::new(),
                    ..answer.clone()
                };
                assert_eq!(totals(whole), totals(&page), "totals are those of the whole range on every page");
                whole.dates.extend(page.dates);
            }
        }
        if page_token.is_empty() {
            return whole.unwrap();
        }
    }
}

fn request(instrument_key: &str, start: &str, end: &str) -> ListGapsRequest {
    let range = TimeRange::new(at(start), at(end)).unwrap();
    ListGapsRequest {
        instrument_key: instrument_key.into(),
        range: Some(convert::wire_range(range)),
        ..Default::default()
    }
}

fn minutes_of(date: &proto::aggregation::DateGaps) -> Millis {
    let bound = |stamp: &Option<_>| convert::millis(stamp.as_ref().unwrap()).unwrap();
    date.gaps.iter().map(|gap| (bound(&gap.end_time) - bound(&gap.start_time)) / MINUTE_MS).sum()
}

#[tokio::test]
async fn short_days_of_the_index_are_found_and_the_totals_are_those_of_a_plain_count() {
    let nifty = ("NSE_INDEX|Nifty 50", "NSE", "NSE_INDEX_Nifty_50_NIFTY");
    let Some((_served, mut client, minutes)) = serve_files(&[nifty]).await else { return };
    let answer = all(&mut client, ListGapsRequest { page_size: 7, ..of(nifty.0) }).await;
    assert_eq!((answer.calendar.as_str(), answer.revision, answer.unverified_date_count), ("NSE", 42, 0));
    let of_date = |text: &str| {
        let date = answer.dates.iter().find(|date| date.trading_date == text);
        date.map(|date| (date.expected_minutes, date.present_minutes, minutes_of(date)))
    };
    for (date, rows) in
        [("2013-01-11", 373), ("2013-04-12", 365), ("2013-07-29", 370), ("2013-10-14", 302), ("2014-11-05", 356)]
    {
        assert_eq!(of_date(date), Some((375, rows, 375 - Millis::from(rows))), "{date}");
    }
    // A Muhurat evening of 61 minutes out of 75, and a Muhurat that the source has no file for.
    assert_eq!(of_date("2014-10-23"), Some((75, 61, 14)));
    assert_eq!(of_date("2013-11-03"), Some((75, 0, 75)));

    // The plain count, for the dates with regular hours: a minute of 09:15 to 15:30 in a zone of +05:30.
    let ist = |open_time: &Millis| open_time + 330 * MINUTE_MS;
    let number = |date: &str| at(&format!("{date}T00:00:00Z")) / DAY_MS;
    let special = ["2013-05-11", "2013-11-03", "2014-03-22", "2014-10-23"].map(number);
    let date_of = |open_time: &Millis| ist(open_time).div_euclid(DAY_MS);
    let regular = minutes[0].open_time().iter().filter(|at| !special.contains(&date_of(at)));
    let (mut dates, mut inside) = (BTreeSet::new(), 0_u64);
    for open_time in regular {
        let minute = ist(open_time).rem_euclid(DAY_MS) / MINUTE_MS;
        dates.insert(date_of(open_time));
        inside += u64::from((555..930).contains(&minute));
    }
    let special_present: u64 = answer
        .dates
        .iter()
        .filter(|date| special.contains(&number(&date.trading_date)))
        .map(|date| u64::from(date.present_minutes))
        .sum();
    let complete_special: u64 =
        90 * u64::from(of_date("2013-05-11").is_none()) + 90 * u64::from(of_date("2014-03-22").is_none());
    assert_eq!(answer.date_count as usize, dates.len() + special.len());
    assert_eq!(answer.expected_minutes, dates.len() as u64 * 375 + 2 * 75 + 2 * 90);
    assert_eq!(answer.present_minutes, inside + special_present + complete_special);
    assert_eq!(answer.present_minutes + answer.outside_minutes, minutes[0].len() as u64);
    assert_eq!(answer.date_count - answer.complete_date_count, answer.dates.len() as u32);
    let missing: Millis = answer.dates.iter().map(minutes_of).sum();
    assert_eq!(missing as u64, answer.expected_minutes - answer.present_minutes);
}

fn of(instrument_key: &str) -> ListGapsRequest {
    ListGapsRequest { instrument_key: instrument_key.into(), ..Default::default() }
}

#[tokio::test]
async fn outages_and_missing_months_are_found() {
    let bitfinex = ("CRYPTO|BITFINEX:BTCUSD", "24x7", "CRYPTO_BITFINEX_BTCUSD");
    let near = ("CRYPTO|BINANCE-UM:NEARUSDT", "24x7", "CRYPTO_BINANCE-UM_NEARUSDT");
    let Some((_served, mut client, _)) = serve_files(&[bitfinex, near]).await else { return };

    // April and May of 2016 are missing but for their first minute: each of their days is one gap.
    let spring = request(bitfinex.0, "2016-04-01T00:00:00Z", "2016-06-01T00:00:00Z");
    let spring = all(&mut client, ListGapsRequest { page_size: 40, ..spring }).await;
    assert_eq!((spring.date_count, spring.complete_date_count, spring.dates.len()), (61, 0, 61));
    assert_eq!((spring.expected_minutes, spring.present_minutes), (61 * 1440, 1));
    assert!(spring.dates.iter().all(|date| date.gaps.len() == 1));
    assert!(spring.dates.iter().skip(1).all(|date| minutes_of(date) == 1440));

    // The exchange was closed from the evening of 2016-08-02 to 2016-08-10.
    let outage = request(bitfinex.0, "2016-08-01T00:00:00Z", "2016-08-12T00:00:00Z");
    let outage = all(&mut client, ListGapsRequest { min_minutes: 300, ..outage }).await;
    let dates: Vec<_> = outage.dates.iter().map(|date| (date.trading_date.as_str(), date.present_minutes)).collect();
    let expected = [
        ("2016-08-02", 1053),
        ("2016-08-03", 0),
        ("2016-08-04", 0),
        ("2016-08-05", 0),
        ("2016-08-06", 0),
        ("2016-08-07", 0),
        ("2016-08-08", 0),
        ("2016-08-09", 0),
        ("2016-08-10", 471),
    ];
    assert_eq!(dates, expected);
    assert_eq!((outage.date_count, outage.present_minutes), (11, 1335 + 1053 + 471 + 1100));

    // Gap-free but for one month.
    let near = all(&mut client, of(near.0)).await;
    let dates: Vec<&str> = near.dates.iter().map(|date| date.trading_date.as_str()).collect();
    let march: Vec<String> = (1..=31).map(|day| format!("2023-03-{day:02}")).collect();
    assert_eq!(dates, march);
    assert_eq!(near.expected_minutes - near.present_minutes, 31 * 1440);
    assert_eq!(near.outside_minutes, 0);
}

fn plain(count: i64) -> Frame {
    let start = at("2024-01-02T14:30:00Z");
    let mut frame = Frame::default();
    for minute in 0..count {
        let candle = market::Candle {
            open_time: start + minute * MINUTE_MS,
            open: 1.0,
            high: 1.0,
            low: 1.0,
            close: 1.0,
            volume: 1.0,
            open_interest: None,
        };
        frame.push(&candle).unwrap();
    }
    frame
}

#[tokio::test]
async fn half_days_ranges_and_unknown_years_are_counted_as_asked() {
    let source = Arc::new(source([("US|X", "NYSE", plain(200)), ("US|EMPTY", "NYSE", Frame::default())]));
    let served = serve(&source, "v1,v2", Config::default()).await;
    let mut client = Client::new(Endpoint::from_shared(served.address.clone()).unwrap().connect_lazy());
    // Open bounds are the stored ones: nothing is missing.
    let stored = all(&mut client, of("US|X")).await;
    assert_eq!((stored.date_count, stored.complete_date_count, stored.expected_minutes), (1, 1, 200));
    let nothing = all(&mut client, of("US|EMPTY")).await;
    assert_eq!((nothing.date_count, nothing.revision, nothing.calendar.as_str()), (0, 42, "NYSE"));

    // 2024-07-03 is a half day and the 4th a holiday; bounds inside a minute and a session count whole minutes by open time.
    let july = all(&mut client, request("US|X", "2024-07-02T19:58:30Z", "2024-07-05T13:31:00.001Z")).await;
    let dates: Vec<_> = july.dates.iter().map(|date| (date.trading_date.as_str(), date.expected_minutes)).collect();
    assert_eq!(dates, [("2024-07-02", 1), ("2024-07-03", 210), ("2024-07-05", 2)]);

    // The calendar knows no half day before 1993, and what has not passed is not missing.
    let early = all(&mut client, request("US|X", "1992-12-28T00:00:00Z", "1993-01-05T00:00:00Z")).await;
    assert_eq!((early.date_count, early.unverified_date_count), (5, 4));
    let ahead = all(&mut client, request("US|X", "2190-01-01T00:00:00Z", "2191-01-01T00:00:00Z")).await;
    assert_eq!((ahead.date_count, ahead.dates.len()), (0, 0));
    drop(served);
}

#[tokio::test]
async fn bad_requests_name_their_field() {
    let served = serve(&Arc::new(source([("US|X", "NYSE", plain(2))])), "v1", Config::default()).await;
    let mut client = Client::new(Endpoint::from_shared(served.address.clone()).unwrap().connect_lazy());
    for (bad, code, field) in [
        (of("X"), Code::InvalidArgument, "instrument_key"),
        (of("US|NONE"), Code::NotFound, "instrument_key"),
        (ListGapsRequest { page_size: 1001, ..of("US|X") }, Code::InvalidArgument, "page_size"),
        (ListGapsRequest { page_token: "7".into(), ..of("US|X") }, Code::InvalidArgument, "page_token"),
    ] {
        let fault = RemoteError::from_status(&client.list_gaps(bad).await.unwrap_err());
        assert_eq!((fault.code, fault.fields[0].0.as_str()), (code, field));
    }
}

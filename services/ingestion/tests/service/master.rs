//! Instruments, groups, and quotes.

use market::{Calendar, Candle, Frame, Timeframe};
use proto::ingestion::quote_outcome::Outcome;
use proto::ingestion::{
    DeleteGroupRequest, GetGroupRequest, GetInstrumentRequest, GetQuotesRequest, Group, ListGroupsRequest,
    ListInstrumentsRequest, PutGroupRequest, PutInstrumentRequest, Quote,
};
use proto::wire::{Instrument, ItemError};
use store::Stores;
use tonic::{Code, Status};

use crate::{Running, batch, data, fault, flat, start, start_over};

const RELIANCE: &str = "NSE_EQ|INE002A01018";

async fn put_instrument(mesh: &Running, instrument: Instrument) -> Result<Instrument, Status> {
    let request = PutInstrumentRequest { instrument: Some(instrument) };
    Ok(mesh.client.clone().put_instrument(request).await?.into_inner().instrument.unwrap())
}

fn named(key: &str) -> Instrument {
    Instrument { instrument_key: key.into(), name: "a name".into(), ..Default::default() }
}

#[tokio::test]
async fn instruments_are_normalised_and_listed_in_pages_by_key() {
    let mesh = start().await;
    for key in ["NSE_EQ|B", "us|A", "NSE_EQ|A", "NSE_INDEX|Nifty 50", "NSE_EQ|C"] {
        put_instrument(&mesh, named(key)).await.unwrap();
    }
    let list = async |page_size: i32, page_token: &str, segment: &str| {
        let request = ListInstrumentsRequest { page_size, page_token: page_token.into(), segment: segment.into() };
        let page = mesh.client.clone().list_instruments(request).await?.into_inner();
        let keys: Vec<String> = page.instruments.into_iter().map(|instrument| instrument.instrument_key).collect();
        Ok::<_, Status>((keys, page.next_page_token))
    };
    let (first, token) = list(2, "", "").await.unwrap();
    assert_eq!(first, ["NSE_EQ|A", "NSE_EQ|B"]);
    let (second, token) = list(2, &token, "").await.unwrap();
    assert_eq!(second, ["NSE_EQ|C", "NSE_INDEX|Nifty 50"]);
    assert_eq!(list(2, &token, "").await.unwrap(), (vec!["US|A".to_owned()], String::new()));
    let (of_segment, token) = list(3, "", "nse_eq").await.unwrap();
    assert_eq!((of_segment.len(), token.as_str()), (3, ""));
    assert_eq!(fault(list(1001, "", "").await.unwrap_err()).fields[0].0, "page_size");
    assert_eq!(fault(list(0, "oops", "").await.unwrap_err()).fields[0].0, "page_token");
}

#[tokio::test]
async fn an_instrument_takes_defaults_from_its_segment_and_bad_values_are_named() {
    let mesh = start().await;
    let put = put_instrument(&mesh, named("nse_eq|INE002A01018")).await.unwrap();
    let got = (put.instrument_key.as_str(), put.exchange.as_str(), put.calendar.as_str(), put.name.as_str());
    assert_eq!(got, (RELIANCE, "NSE", "NSE", "a name"));
    let bad = [
        (Instrument { tick_size: f64::NAN, ..named(RELIANCE) }, "instrument.tick_size"),
        (Instrument { calendar: "LSE".into(), ..named(RELIANCE) }, "instrument.calendar"),
        (named("MCX_FO|GOLD"), "instrument.calendar"),
        (named("RELIANCE"), "instrument.instrument_key"),
        (Instrument { name: "x".repeat(300), ..named(RELIANCE) }, "instrument.name"),
    ];
    for (instrument, field) in bad {
        let fault = fault(put_instrument(&mesh, instrument).await.unwrap_err());
        assert_eq!((fault.code, fault.fields[0].0.as_str()), (Code::InvalidArgument, field));
    }
}

#[tokio::test]
async fn a_calendar_changes_only_while_nothing_is_stored_by_it() {
    let mesh = start().await;
    let around_the_clock = || Instrument { calendar: "24x7".into(), ..named(RELIANCE) };
    put_instrument(&mesh, named(RELIANCE)).await.unwrap();
    put_instrument(&mesh, around_the_clock()).await.unwrap();
    mesh.put(batch(RELIANCE, "1m", vec![flat("2016-08-16T03:45:00Z", 1.0)])).await.unwrap();
    let fault = fault(put_instrument(&mesh, named(RELIANCE)).await.unwrap_err());
    assert_eq!((fault.code, fault.reason.as_str()), (Code::FailedPrecondition, "CALENDAR_CONFLICT"));
    let renamed = put_instrument(&mesh, Instrument { name: "other".into(), ..around_the_clock() }).await.unwrap();
    assert_eq!(renamed.name, "other");
}

/// What a process leaves behind that ends between storing the first candles and telling the catalog.
async fn candles_without_an_instrument(calendar: &str) -> (Stores, Running) {
    let stores = Stores::memory();
    let mut rows = Frame::default();
    let (price, open_time) = (1.0, market::parse_millis("2016-08-16T14:00:00Z").unwrap());
    let (open, high, low, close) = (price, price, price, price);
    rows.push(&Candle { open_time, open, high, low, close, volume: 1.0, open_interest: None }).unwrap();
    let (key, calendar) = (RELIANCE.parse().unwrap(), Calendar::by_name(calendar).unwrap());
    stores.candles.put(&key, Timeframe::M1, &calendar, &rows, 0).await.unwrap();
    let mesh = start_over(stores.clone()).await;
    (stores, mesh)
}

#[tokio::test]
async fn an_instrument_takes_no_other_calendar_than_that_of_its_candles() {
    let (stores, mesh) = candles_without_an_instrument("NYSE").await;
    let with = |calendar: &str| Instrument { calendar: calendar.into(), ..named(RELIANCE) };
    let row = |time: &str| batch(RELIANCE, "1m", vec![flat(time, 2.0)]);
    let refused = fault(put_instrument(&mesh, with("NSE")).await.unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, "CALENDAR_CONFLICT"));
    assert!(refused.message.contains("NYSE"), "{}", refused.message);
    put_instrument(&mesh, with("NYSE")).await.unwrap();
    assert_eq!(mesh.put(row("2016-08-16T14:01:00Z")).await.unwrap().stored, 1);
    // A catalog that says otherwise, by a call at the same time as the first candles, is mended by the true calendar.
    let key = RELIANCE.parse().unwrap();
    let known = stores.catalog.instrument(&key).await.unwrap().unwrap();
    stores.catalog.upsert_instrument(&market::Instrument { calendar: "NSE".into(), ..known }).await.unwrap();
    let stuck = fault(mesh.put(row("2016-08-16T14:02:00Z")).await.unwrap_err());
    assert_eq!(stuck.code, Code::FailedPrecondition);
    put_instrument(&mesh, with("NYSE")).await.unwrap();
    assert_eq!(mesh.put(row("2016-08-16T14:02:00Z")).await.unwrap().stored, 1);
}

#[tokio::test]
async fn candles_without_an_instrument_go_on_by_their_calendar() {
    let (stores, mesh) = candles_without_an_instrument("NYSE").await;
    // Who hears of the candles before the catalog does finds what it will say.
    let request = GetInstrumentRequest { instrument_key: RELIANCE.into() };
    let found = mesh.client.clone().get_instrument(request).await.unwrap().into_inner().instrument.unwrap();
    assert_eq!((found.calendar.as_str(), found.exchange.as_str()), ("NYSE", "NSE"));
    let mut row = batch(RELIANCE, "1m", vec![flat("2016-08-16T14:01:00Z", 2.0)]);
    row.calendar = "NSE".into();
    let refused = fault(mesh.put(row.clone()).await.unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, "CALENDAR_CONFLICT"));
    row.calendar = String::new();
    assert_eq!(mesh.put(row).await.unwrap().stored, 1);
    let known = stores.catalog.instrument(&RELIANCE.parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(known.calendar, "NYSE");
}

#[tokio::test]
async fn groups_come_and_go() {
    let mesh = start().await;
    let put = async |id: &str, keys: &[&str]| {
        let instrument_keys = keys.iter().map(ToString::to_string).collect();
        let group = Some(Group { group_id: id.into(), name: "Banks".into(), instrument_keys });
        mesh.client.clone().put_group(PutGroupRequest { group }).await.map(|answer| answer.into_inner().group.unwrap())
    };
    put("z-last", &[]).await.unwrap();
    let banks = put("banks", &["nse_eq|B", "NSE_EQ|A", "NSE_EQ|B"]).await.unwrap();
    assert_eq!(banks.instrument_keys, ["NSE_EQ|B", "NSE_EQ|A"]);
    let listed = mesh.client.clone().list_groups(ListGroupsRequest {}).await.unwrap().into_inner().groups;
    assert_eq!(listed.iter().map(|group| group.group_id.as_str()).collect::<Vec<_>>(), ["banks", "z-last"]);
    assert_eq!(fault(put("Banks", &[]).await.unwrap_err()).fields[0].0, "group.group_id");
    assert_eq!(fault(put("x", &["oops"]).await.unwrap_err()).fields[0].0, "group.instrument_keys[0]");

    let id = || "banks".to_owned();
    let get = async || mesh.client.clone().get_group(GetGroupRequest { group_id: id() }).await;
    assert_eq!(get().await.unwrap().into_inner().group.unwrap(), banks);
    mesh.client.clone().delete_group(DeleteGroupRequest { group_id: id() }).await.unwrap();
    let gone = fault(get().await.unwrap_err());
    assert_eq!((gone.code, gone.reason.as_str()), (Code::NotFound, "UNKNOWN_GROUP"));
}

async fn quotes(mesh: &Running, keys: &[&str]) -> Vec<Outcome> {
    let request = GetQuotesRequest { instrument_keys: keys.iter().map(ToString::to_string).collect() };
    let outcomes = mesh.client.clone().get_quotes(request).await.unwrap().into_inner().outcomes;
    assert!(outcomes.iter().map(|outcome| outcome.instrument_key.as_str()).eq(keys.iter().copied()));
    outcomes.into_iter().map(|outcome| outcome.outcome.unwrap()).collect()
}

async fn quote(mesh: &Running, key: &str) -> Quote {
    match quotes(mesh, &[key]).await.pop() {
        Some(Outcome::Quote(quote)) => quote,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_quote_is_the_last_date_of_the_minutes_and_the_close_before_it() {
    let Some(mut rows) = data::rows("1m/NSE_EQ_INE002A01018_RELIANCE.csv.gz") else { return };
    let mesh = start().await;
    mesh.put(batch(RELIANCE, "1m", data::candles(&rows))).await.unwrap();
    // An NSE session lies inside one UTC date; the data's last one is 30 September 2016.
    rows.sort_by_key(|row| row.candle.open_time);
    let midnight = market::parse_millis("2016-09-30T00:00:00Z").unwrap();
    let (before, day) = rows.split_at(rows.partition_point(|row| row.candle.open_time < midnight));
    let high = day.iter().map(|row| row.candle.high).fold(f64::MIN, f64::max);
    let low = day.iter().map(|row| row.candle.low).fold(f64::MAX, f64::min);
    let volume: f64 = day.iter().map(|row| row.candle.volume).sum();
    let (close, previous) = (day[day.len() - 1].candle.close, before[before.len() - 1].candle.close);
    let expected = Quote {
        last_price: close,
        open: day[0].candle.open,
        high,
        low,
        close,
        volume,
        previous_close: Some(previous),
        change: Some(close - previous),
        change_percent: Some((close - previous) / previous * 100.0),
        time: Some(proto::convert::timestamp(market::parse_millis("2016-09-30T09:59:00Z").unwrap())),
        trading_date: "2016-09-30".into(),
    };
    assert_eq!(quote(&mesh, RELIANCE).await, expected);
}

#[tokio::test]
async fn days_are_quoted_across_the_turn_of_the_year() {
    let mesh = start().await;
    let rows = vec![flat("2024-12-31T00:00:00Z", 10.0), flat("2025-01-01T00:00:00Z", 11.0)];
    mesh.put(batch(RELIANCE, "1d", rows)).await.unwrap();
    let quote = quote(&mesh, RELIANCE).await;
    assert_eq!((quote.last_price, quote.previous_close), (11.0, Some(10.0)));
    assert_eq!((quote.trading_date.as_str(), quote.change_percent), ("2025-01-01", Some(10.0)));
}

#[tokio::test]
async fn minutes_of_today_are_compared_with_the_day_before_that_only_days_have() {
    let mesh = start().await;
    // Minutes of Friday 5 and Tuesday 16 August; days of Thursday 11 and Friday 12.
    let minutes = vec![flat("2016-08-05T03:45:00Z", 1.0), flat("2016-08-16T03:45:00Z", 7.0)];
    let days = vec![flat("2016-08-11T00:00:00Z", 4.0), flat("2016-08-12T00:00:00Z", 5.0)];
    mesh.put(batch(RELIANCE, "1d", days)).await.unwrap();
    assert_eq!(quote(&mesh, RELIANCE).await.previous_close, Some(4.0));
    mesh.put(batch(RELIANCE, "1m", minutes)).await.unwrap();
    let today = quote(&mesh, RELIANCE).await;
    assert_eq!((today.last_price, today.previous_close), (7.0, Some(5.0)));
    // The date's minutes win over its day.
    mesh.put(batch(RELIANCE, "1d", vec![flat("2016-08-16T00:00:00Z", 8.0)])).await.unwrap();
    let today = quote(&mesh, RELIANCE).await;
    assert_eq!((today.last_price, today.previous_close), (7.0, Some(5.0)));
}

#[tokio::test]
async fn one_bad_key_harms_no_other_quote() {
    let mesh = start().await;
    mesh.put(batch(RELIANCE, "1m", vec![flat("2016-08-16T03:45:00Z", 0.0)])).await.unwrap();
    put_instrument(&mesh, named("US|EMPTY")).await.unwrap();
    let answers = quotes(&mesh, &["US|NOBODY", RELIANCE, "oops", "US|EMPTY", RELIANCE]).await;
    let error = |at: usize| match &answers[at] {
        Outcome::Error(ItemError { code, reason, .. }) => (*code, reason.as_str()),
        other => panic!("{other:?}"),
    };
    assert_eq!(error(0), (Code::NotFound as i32, "UNKNOWN_INSTRUMENT"));
    assert_eq!(error(2), (Code::InvalidArgument as i32, "INVALID_FIELD"));
    assert_eq!(error(3), (Code::NotFound as i32, "NO_CANDLES"));
    let Outcome::Quote(first) = &answers[1] else { panic!("{:?}", answers[1]) };
    assert_eq!((first.last_price, first.previous_close, first.change_percent), (0.0, None, None));
    assert_eq!(answers[1], answers[4]);

    let request = GetQuotesRequest { instrument_keys: vec![RELIANCE.to_owned(); 1001] };
    let fault = fault(mesh.client.clone().get_quotes(request).await.unwrap_err());
    assert_eq!(fault.code, Code::ResourceExhausted);
    assert!(fault.message.contains("1000"), "{}", fault.message);
}

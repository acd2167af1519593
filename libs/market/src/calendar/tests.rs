use super::*;
use crate::parse_millis;

fn calendar(name: &str) -> Arc<Calendar> {
    Calendar::by_name(name).unwrap()
}

fn date(text: &str) -> Date {
    text.parse().unwrap()
}

fn millis(text: &str) -> Millis {
    parse_millis(text).unwrap()
}

/// Sessions of a date as instants.
fn sessions(name: &str, day: &str) -> Vec<(Millis, Millis)> {
    calendar(name).day(date(day)).sessions.iter().map(|session| (session.open, session.close)).collect()
}

fn span(open: &str, close: &str) -> (Millis, Millis) {
    (millis(open), millis(close))
}

#[test]
fn names_and_segments_find_their_calendar() {
    for name in Calendar::NAMES {
        assert_eq!(calendar(name).name(), name);
    }
    for (alias, name) in [("nasdaq", "NYSE"), ("BSE", "NSE"), ("24X7", "24x7"), ("crypto", "24x7"), ("eurex", "EUREX")]
    {
        assert_eq!(calendar(alias).name(), name);
    }
    assert!(matches!(Calendar::by_name("LSE"), Err(Error::Calendar { name, .. }) if name == "LSE"));
    for (key, name) in [
        ("NSE_EQ|INE002A01018", "NSE"),
        ("NSE_INDEX|Nifty 50", "NSE"),
        ("US|SPY", "NYSE"),
        ("CME|ESH22", "CME"),
        ("FX|EURUSD", "FX"),
        ("EUREX|FESX", "EUREX"),
        ("CRYPTO|BITFINEX:BTCUSD", "24x7"),
    ] {
        assert_eq!(Calendar::for_key(&key.parse().unwrap()).unwrap().name(), name, "{key}");
    }
    // Commodities and currencies trade into the evening: share hours would be wrong for them.
    for key in ["MCX_FO|CRUDE", "NSE_COM|GOLD", "NCD_FO|USDINR", "LSE|VOD"] {
        assert!(matches!(Calendar::for_key(&key.parse().unwrap()), Err(Error::NoCalendar { .. })), "{key}");
    }
}

#[test]
fn known_years_are_named() {
    for (name, first) in [("NSE", 2013), ("NYSE", 1993), ("CME", 2013), ("EUREX", 2007), ("FX", 1900), ("24x7", 1900)] {
        let years = calendar(name).known_years();
        assert_eq!(*years.start(), first, "{name}");
        assert!(years.contains(&2026));
    }
    assert!(!calendar("NSE").known_years().contains(&2027));
}

#[test]
fn index_futures_paused_in_the_afternoon_until_2021_and_closed_later_until_2015() {
    let evening = span("2013-10-06T17:00:00-05:00", "2013-10-07T15:15:00-05:00");
    assert_eq!(
        sessions("CME", "2013-10-07"),
        [evening, span("2013-10-07T15:30:00-05:00", "2013-10-07T16:15:00-05:00")]
    );
    for (date, sessions_of_date, closes) in [
        ("2015-09-18", 2, "2015-09-18T16:15:00-05:00"),
        ("2015-09-21", 2, "2015-09-21T16:00:00-05:00"),
        ("2021-06-25", 2, "2021-06-25T16:00:00-05:00"),
        ("2021-06-28", 1, "2021-06-28T16:00:00-05:00"),
    ] {
        let sessions = sessions("CME", date);
        assert_eq!((sessions.len(), sessions.last().unwrap().1), (sessions_of_date, millis(closes)), "{date}");
    }
    // A bucket over the pause holds the minutes on both sides of it.
    let cme = calendar("CME");
    let day = cme.day(date("2013-10-07"));
    let bucket = cme.bucket(&day, Timeframe::H1, millis("2013-10-07T15:40:00-05:00"));
    assert_eq!(cme.expected_count(&day, Timeframe::H1, bucket), 45);
}

#[test]
fn us_open_follows_the_clock_change_of_2025_11_02() {
    let nyse = calendar("NYSE");
    assert_eq!(nyse.day(date("2025-10-31")).anchor, millis("2025-10-31T13:30:00Z"));
    assert_eq!(nyse.day(date("2025-11-03")).anchor, millis("2025-11-03T14:30:00Z"));
    let sunday = nyse.day(date("2025-11-02"));
    assert_eq!((sunday.end - sunday.start) / MINUTE_MS, 25 * 60);
    assert!(sunday.sessions.is_empty());
}

#[test]
fn us_evening_minutes_keep_their_local_date() {
    // 20:59 of 2025-11-07 in New York is already the 8th in UTC.
    let day = calendar("NYSE").day_at(millis("2025-11-08T00:59:00Z"));
    assert_eq!((day.date, day.anchor), (date("2025-11-07"), millis("2025-11-07T14:30:00Z")));
}

#[test]
fn muhurat_buckets_count_from_its_own_open() {
    let nse = calendar("NSE");
    let day = nse.day(date("2014-10-23"));
    assert_eq!(sessions("NSE", "2014-10-23"), [span("2014-10-23T18:15:00+05:30", "2014-10-23T19:30:00+05:30")]);
    assert_eq!(day.anchor, millis("2014-10-23T18:15:00+05:30"));
    let bucket = nse.bucket(&day, Timeframe::H1, millis("2014-10-23T19:20:00+05:30"));
    assert_eq!(bucket.start(), millis("2014-10-23T19:15:00+05:30"));
    assert_eq!(nse.expected_count(&day, Timeframe::H1, bucket), 15);
}

#[test]
fn the_day_after_thanksgiving_ends_at_one() {
    assert_eq!(sessions("NYSE", "2024-11-29"), [span("2024-11-29T14:30:00Z", "2024-11-29T18:00:00Z")]);
    assert!(sessions("NYSE", "2024-11-28").is_empty());
    // On Globex: 12:15 in Chicago, after a noon halt on the holiday itself.
    assert_eq!(sessions("CME", "2024-11-29"), [span("2024-11-28T23:00:00Z", "2024-11-29T18:15:00Z")]);
    assert_eq!(sessions("CME", "2024-11-28"), [span("2024-11-27T23:00:00Z", "2024-11-28T18:00:00Z")]);
}

#[test]
fn good_friday_closes_all_but_currencies() {
    for name in ["NSE", "NYSE", "CME", "EUREX"] {
        assert!(sessions(name, "2024-03-29").is_empty(), "{name}");
    }
    assert_eq!(sessions("FX", "2024-03-29").len(), 1);
    // With the employment report on Good Friday, Globex trades until 08:15.
    assert_eq!(sessions("CME", "2023-04-07"), [span("2023-04-06T22:00:00Z", "2023-04-07T13:15:00Z")]);
}

#[test]
fn currencies_roll_at_five_in_new_york() {
    let fx = calendar("FX");
    let (before, after) = (fx.day_at(millis("2024-07-10T20:59:59.999Z")), fx.day_at(millis("2024-07-10T21:00:00Z")));
    assert_eq!((before.date, after.date), (date("2024-07-10"), date("2024-07-11")));
    assert_eq!(after.anchor, after.start);
    // Sunday evening opens Monday, in winter an hour later by UTC; Friday evening is a Saturday without sessions.
    assert_eq!(fx.day_at(millis("2024-01-07T22:00:00Z")).date, date("2024-01-08"));
    let saturday = fx.day_at(millis("2024-01-06T12:00:00Z"));
    assert_eq!((saturday.date, saturday.sessions.len()), (date("2024-01-06"), 0));
    assert_eq!(saturday.anchor, millis("2024-01-05T22:00:00Z"));
}

#[test]
fn globex_pauses_from_four_to_five() {
    assert_eq!(sessions("CME", "2022-02-07"), [span("2022-02-06T23:00:00Z", "2022-02-07T22:00:00Z")]);
    assert_eq!(calendar("CME").day_at(millis("2022-02-07T22:30:00Z")).date, date("2022-02-07"));
    assert_eq!(calendar("CME").day_at(millis("2022-02-07T23:00:00Z")).date, date("2022-02-08"));
}

#[test]
fn saturday_trials_have_two_sessions_and_one_anchor() {
    let nse = calendar("NSE");
    let day = nse.day(date("2024-03-02"));
    assert_eq!(day.sessions.len(), 2);
    assert_eq!(day.anchor, millis("2024-03-02T09:15:00+05:30"));
    let whole = nse.bucket(&day, Timeframe::D1, day.anchor);
    assert_eq!(nse.expected_count(&day, Timeframe::D1, whole), 45 + 60);
}

#[test]
fn premarket_buckets_count_backwards_and_are_clipped() {
    let nyse = calendar("NYSE");
    let day = nyse.day(date("2025-11-03"));
    let premarket = nyse.bucket(&day, Timeframe::H1, millis("2025-11-03T04:10:00-05:00"));
    assert_eq!((premarket.start(), premarket.end()), span("2025-11-03T03:30:00-05:00", "2025-11-03T04:30:00-05:00"));
    assert_eq!(nyse.expected_count(&day, Timeframe::H1, premarket), 60);
    let first = nyse.bucket(&day, Timeframe::H1, day.start);
    assert_eq!((first.start(), first.end()), span("2025-11-03T00:00:00-05:00", "2025-11-03T00:30:00-05:00"));
    // The last session bucket of NSE is short of session minutes, not of width.
    let nse = calendar("NSE");
    let day = nse.day(date("2016-08-16"));
    let last = nse.bucket(&day, Timeframe::H1, millis("2016-08-16T15:29:00+05:30"));
    assert_eq!((last.start(), last.end()), span("2016-08-16T15:15:00+05:30", "2016-08-16T16:15:00+05:30"));
    assert_eq!(nse.expected_count(&day, Timeframe::H1, last), 15);
}

#[test]
fn weeks_and_months_are_stamped_with_their_first_session() {
    let nyse = calendar("NYSE");
    // Monday 2024-01-01 is a holiday: the week and the month open on Tuesday.
    let day = nyse.day(date("2024-01-05"));
    let week = nyse.bucket(&day, Timeframe::W1, day.anchor);
    assert_eq!((week.start(), week.end()), span("2024-01-01T05:00:00Z", "2024-01-08T05:00:00Z"));
    assert_eq!(nyse.stamp(&day, Timeframe::W1, day.anchor), millis("2024-01-02T14:30:00Z"));
    assert_eq!(nyse.expected_count(&day, Timeframe::W1, week), 4 * 390);
    let month = nyse.bucket(&day, Timeframe::Mo1, day.anchor);
    assert_eq!((month.start(), month.end()), span("2024-01-01T05:00:00Z", "2024-02-01T05:00:00Z"));
    assert_eq!(nyse.stamp(&day, Timeframe::Mo1, day.anchor), millis("2024-01-02T14:30:00Z"));
    assert_eq!(nyse.expected_count(&day, Timeframe::Mo1, month), 21 * 390);
    // A week of currencies begins on Sunday evening.
    let fx = calendar("FX");
    let day = fx.day(date("2024-07-10"));
    let week = fx.bucket(&day, Timeframe::W1, day.anchor);
    assert_eq!((week.start(), week.end()), span("2024-07-07T21:00:00Z", "2024-07-14T21:00:00Z"));
    assert_eq!(fx.stamp(&day, Timeframe::W1, day.anchor), millis("2024-07-07T21:00:00Z"));
}

#[test]
fn closed_days_expect_nothing_as_a_day_and_their_width_inside() {
    let nse = calendar("NSE");
    let day = nse.day(date("2024-01-26"));
    assert_eq!(day.anchor, millis("2024-01-26T09:15:00+05:30"));
    assert_eq!(nse.stamp(&day, Timeframe::D1, day.start), day.anchor);
    let (whole, five) = (nse.bucket(&day, Timeframe::D1, day.anchor), nse.bucket(&day, Timeframe::M5, day.anchor));
    assert_eq!(nse.expected_count(&day, Timeframe::D1, whole), 0);
    assert_eq!(nse.expected_count(&day, Timeframe::M5, five), 5);
}

#[test]
fn daily_stamps_of_vendors_name_their_date() {
    for (name, stamp, want) in [
        ("NSE", "2022-01-02T18:30:00Z", "2022-01-03"),  // Upstox: local midnight
        ("NYSE", "2018-01-19T05:00:00Z", "2018-01-19"), // Yahoo: local midnight, winter
        ("NYSE", "2004-08-19T04:00:00Z", "2004-08-19"), // and summer
        ("NYSE", "2018-01-19T00:00:00Z", "2018-01-19"), // midnight UTC is the evening before in New York
        ("NYSE", "2018-01-19T14:30:00Z", "2018-01-19"), // the open
        ("CME", "2024-01-09T06:00:00Z", "2024-01-09"),
        ("CME", "2024-01-08T23:00:00Z", "2024-01-09"), // the open, the evening before
        ("FX", "2024-01-09T00:00:00Z", "2024-01-09"),
        ("24x7", "2024-01-09T00:00:00Z", "2024-01-09"),
    ] {
        assert_eq!(calendar(name).date_of_daily_stamp(millis(stamp)), date(want), "{name} {stamp}");
    }
}

#[test]
fn days_tile_the_time_line() {
    for name in Calendar::NAMES {
        let calendar = calendar(name);
        let mut day = calendar.day(date("1900-01-02"));
        while day.date < LAST_DATE {
            assert!(day.start <= day.anchor && day.anchor < day.end, "{name} {}", day.date);
            assert!(day.sessions.is_sorted_by(|a, b| a.close <= b.open), "{name} {}", day.date);
            let inside = |session: &Session| {
                day.start <= session.open && session.open < session.close && session.close <= day.end
            };
            assert!(day.sessions.iter().all(inside), "{name} {}", day.date);
            for at in [day.start, day.end - 1] {
                assert_eq!(calendar.day_at(at), day, "{name} {at}");
            }
            let next = calendar.day(following(day.date));
            assert_eq!(day.end, next.start, "{name} {}", day.date);
            day = next;
        }
    }
}

#[test]
fn buckets_tile_their_day_and_hold_their_instants() {
    // Special sessions, clock changes both ways, holidays and plain days.
    let dates = [
        "2014-10-23",
        "2024-03-02",
        "2024-03-10",
        "2024-03-31",
        "2024-10-27",
        "2024-11-03",
        "2024-12-25",
        "2025-03-09",
    ];
    for name in Calendar::NAMES {
        let calendar = calendar(name);
        for day in dates.map(|text| calendar.day(date(text))) {
            for timeframe in Timeframe::ALL.into_iter().filter(|timeframe| timeframe.width_ms().is_some()) {
                let mut at = day.start;
                let mut expected = 0;
                while at < day.end {
                    let bucket = calendar.bucket(&day, timeframe, at);
                    assert_eq!(bucket.start(), at, "{name} {} {timeframe}", day.date);
                    assert_eq!(calendar.bucket(&day, timeframe, bucket.end() - 1), bucket);
                    assert_eq!(calendar.stamp(&day, timeframe, bucket.end() - 1), at);
                    assert!(bucket.end() - at <= timeframe.width_ms().unwrap());
                    if !overlapping(&day, bucket).is_empty() {
                        expected += calendar.expected_count(&day, timeframe, bucket);
                    }
                    at = bucket.end();
                }
                assert_eq!(at, day.end);
                let whole = calendar.bucket(&day, Timeframe::D1, day.start);
                assert_eq!(
                    expected,
                    calendar.expected_count(&day, Timeframe::D1, whole),
                    "{name} {} {timeframe}",
                    day.date
                );
            }
        }
    }
}

fn overlapping(day: &TradingDay, bucket: TimeRange) -> Vec<Session> {
    day.sessions
        .iter()
        .copied()
        .filter(|session| session.open < bucket.end() && bucket.start() < session.close)
        .collect()
}

#[test]
fn weeks_and_months_hold_whole_days_and_their_stamp() {
    for name in Calendar::NAMES {
        let calendar = calendar(name);
        for day in dates(date("2023-11-01"), date("2025-02-28")).map(|date| calendar.day(date)) {
            for timeframe in [Timeframe::W1, Timeframe::Mo1] {
                let bucket = calendar.bucket(&day, timeframe, day.start);
                assert!(bucket.start() <= day.start && day.end <= bucket.end());
                assert!(bucket.contains(calendar.stamp(&day, timeframe, day.start)));
                let (before, after) = (calendar.day_at(bucket.start() - 1), calendar.day_at(bucket.end()));
                assert_eq!(before.end, bucket.start());
                assert_eq!(after.start, bucket.end());
                assert_eq!(calendar.bucket(&after, timeframe, after.start).start(), bucket.end());
            }
        }
    }
}

#[test]
fn instants_and_dates_beyond_the_ends_give_the_end() {
    for name in Calendar::NAMES {
        let calendar = calendar(name);
        for (at, want) in [(Millis::MIN, FIRST_DATE), (Millis::MAX, LAST_DATE)] {
            let day = calendar.day_at(at);
            assert_eq!(day.date, want);
            for timeframe in Timeframe::ALL {
                let bucket = calendar.bucket(&day, timeframe, at);
                calendar.stamp(&day, timeframe, at);
                calendar.expected_count(&day, timeframe, bucket);
            }
            calendar.date_of_daily_stamp(at);
        }
        assert_eq!(calendar.day(Date::MIN).date, FIRST_DATE);
        assert_eq!(calendar.day(Date::MAX).date, LAST_DATE);
        assert!(calendar.trading_dates(Date::MAX, Date::MAX).is_empty());
        assert!(calendar.trading_dates(Date::MIN, Date::MIN).is_empty());
        assert!(calendar.trading_dates(date("2024-01-05"), date("2024-01-04")).is_empty());
    }
}

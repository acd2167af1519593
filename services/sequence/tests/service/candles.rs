//! Daily candles made by hand, for the tests of this crate inside and over gRPC.

use market::{BucketFrame, Calendar, Candle, Date, Frame, Instrument, InstrumentKey, Timeframe};
use mesh::source::{Buckets, MemorySource};

/// Data revision of every instrument made here.
pub(crate) const REVISION: u64 = 7;

pub(crate) fn key(text: &str) -> InstrumentKey {
    text.parse().unwrap()
}

/// Open, high, low, close and volume on trading dates.
pub(crate) fn on_dates(calendar: &str, rows: &[(Date, [f64; 5])]) -> BucketFrame {
    let calendar = Calendar::by_name(calendar).unwrap();
    let mut buckets = BucketFrame::default();
    let mut frame = Frame::default();
    for (date, [open, high, low, close, volume]) in rows.iter().copied() {
        let open_time = calendar.day(date).anchor;
        frame.push(&Candle { open_time, open, high, low, close, volume, open_interest: None }).unwrap();
        buckets.closed.push(true);
        buckets.complete.push(true);
        buckets.source_count.push(375);
        buckets.expected_count.push(375);
        buckets.trading_date.push(date);
    }
    buckets.frame = frame;
    buckets
}

/// Changes in percent on NSE dates from 2024-01-01, from a first open of `start`; highs and lows are the bodies' ends.
pub(crate) fn daily(start: f64, changes: &[f64], volume: f64) -> BucketFrame {
    let calendar = Calendar::by_name("NSE").unwrap();
    let dates = calendar.trading_dates(Date::constant(2024, 1, 1), Date::constant(2027, 12, 31));
    let mut last = start;
    let rows: Vec<_> = dates
        .into_iter()
        .zip(changes)
        .map(|(date, change)| {
            let (open, close) = (last, last * (1.0 + change / 100.0));
            last = close;
            (date, [open, open.max(close), open.min(close), close, volume])
        })
        .collect();
    assert_eq!(rows.len(), changes.len());
    on_dates("NSE", &rows)
}

/// 60 quiet days, then in turns of four days three strong ones and a small step back: 75 days, 12 of them strong, in 4 runs.
pub(crate) fn strong(percent: f64) -> Vec<f64> {
    let mut changes = vec![0.0; 60];
    changes.extend((0..15).map(|day| if day % 4 == 3 { -percent / 4.0 } else { percent }));
    changes
}

/// Adds an instrument with daily candles.
pub(crate) fn add(source: &mut MemorySource, name: &str, calendar: &str, frame: BucketFrame) {
    let instrument = Instrument {
        key: key(name),
        name: String::new(),
        exchange: String::new(),
        currency: "INR".into(),
        tick_size: 0.05,
        calendar: calendar.into(),
    };
    source.revision = REVISION;
    source.instruments.insert(key(name), instrument);
    source.buckets.insert((key(name), Timeframe::D1), Buckets { revision: REVISION, frame });
}

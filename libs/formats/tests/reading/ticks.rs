//! Minute candles of trades, against candles built by others of the same trades.

use formats::{FileSpec, Format};
use market::{Timeframe, format_millis};

use crate::data::{read, read_whole, reference, root};

/// Prices exactly, volume to 1e-9 of itself: sums of the same numbers in another order.
#[test]
fn minutes_of_trades_equal_the_oracle() {
    for (file, oracle) in [
        ("ticks/US_IBM_ticks_20131007.csv.gz", "oracle/bars_from_ticks_1m_IBM_20131007.csv.gz"),
        ("ticks/BINANCE_XRPETH_trades.csv.gz", "oracle/bars_from_ticks_1m_XRPETH.csv.gz"),
    ] {
        let Some(root) = root() else { return };
        let spec = FileSpec { instrument: Some("X|Y".parse().unwrap()), ..FileSpec::new(root.join(file)) };
        let (read, detected) = read_whole(&spec);
        assert_eq!((detected.format, detected.timeframe), (Format::Ticks, Some(Timeframe::M1)));
        assert_eq!(read.bad, []);
        let expected = reference(oracle).unwrap();
        let rows = read.by_time("X|Y");
        assert_eq!(rows.len(), expected.len());
        for row in rows.values() {
            let [open, high, low, close, volume] = expected[&format_millis(row.open_time)].map(f64::from_bits);
            assert_eq!((row.open, row.high, row.low, row.close), (open, high, low, close));
            assert!((row.volume - volume).abs() <= 1e-9 * volume, "{} {volume}", row.volume);
        }
    }
}

#[test]
fn trades_written_as_candles_need_their_zone() {
    let Some(root) = root() else { return };
    let path = root.join("vendor/backtrader_ticksample.csv");
    let spec = FileSpec { instrument: Some("EUREX|FESX".parse().unwrap()), ..FileSpec::new(path) };
    let (_, refused) = read(&spec);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("--zone") && refused.contains("--format backtrader"), "{refused}");
    let spec = FileSpec { zone: Some("Europe/Berlin".parse().unwrap()), ..spec };
    let (read, detected) = read_whole(&spec);
    assert_eq!((detected.format, detected.timeframe), (Format::Backtrader, Some(Timeframe::M1)));
    let rows = read.rows();
    // By hand: five trades in the minute of 20:57 local, which is 18:57 in summer.
    assert_eq!(format_millis(rows[0].open_time), "2015-09-23T18:57:00Z");
    assert_eq!((rows[0].open, rows[0].high, rows[0].low, rows[0].close), (3067.0, 3067.0, 3066.0, 3066.0));
    assert_eq!(rows[0].volume, 180.0 + 2.0 + 1.0 + 2.0 + 1.0);
    assert_eq!(rows.len(), 4);
}

#[test]
fn a_trade_out_of_its_minute_is_refused_by_line() {
    let text = "timestamp,price,amount\n2020-01-01T00:00:01Z,1,1\n2020-01-01T00:01:01Z,2,1\n2020-01-01T00:00:59Z,3,1\n\
                2020-01-01T00:01:02Z,NaN,1\n2020-01-01T00:01:03Z,2,-1\n2020-01-01T00:01:59Z,2.5,0.5\n";
    let spec = FileSpec { instrument: Some("X|Y".parse().unwrap()), ..FileSpec::new("trades.csv") };
    let mut collected = crate::data::Collected::default();
    formats::read_bytes(text.as_bytes(), &spec, &mut collected).unwrap();
    let lines: Vec<u64> = collected.bad.iter().map(|bad| bad.line).collect();
    assert_eq!(lines, [4, 5, 6]);
    assert!(collected.bad[0].reason.contains("sort trades by time"));
    let last = collected.rows()[1];
    assert_eq!((last.open, last.high, last.low, last.close, last.volume), (2.0, 2.5, 2.0, 2.5, 1.5));
    let spec = FileSpec { timeframe: Some(Timeframe::M5), ..spec };
    let refused = formats::read_bytes(text.as_bytes(), &spec, &mut collected).unwrap_err().to_string();
    assert!(refused.contains("--timeframe 1m"), "{refused}");
}

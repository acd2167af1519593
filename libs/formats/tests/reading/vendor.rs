//! Every file as its vendor ships it.

use std::collections::BTreeMap;

use formats::{FileSpec, Format, Stamps};
use market::{Candle, Timeframe, format_millis};

use crate::data::{Collected, bits, read, read_whole, reference, root};

fn spec(file: &str, key: &str, format: Format) -> Option<FileSpec> {
    let path = root()?.join("vendor").join(file);
    Some(FileSpec { instrument: Some(key.parse().unwrap()), format, ..FileSpec::new(path) })
}

/// Reads a file that must hold `count` good rows of `timeframe`.
fn whole(spec: &FileSpec, format: Format, timeframe: Timeframe, count: usize) -> Collected {
    let (collected, detected) = read_whole(spec);
    assert_eq!((detected.format, detected.timeframe), (format, Some(timeframe)), "{detected:?}");
    assert_eq!(collected.rows().len(), count, "{:?} {:?}", detected.notes, collected.bad);
    collected
}

/// How many rows have the stamp of a row of the reference; those must equal it bit for bit.
fn equal_rows(rows: &BTreeMap<i64, Candle>, reference: &BTreeMap<String, [u64; 5]>) -> usize {
    let both = rows.values().filter_map(|row| Some((row, reference.get(&format_millis(row.open_time))?)));
    both.inspect(|(row, expected)| assert_eq!(bits(row), **expected, "{row:?}")).count()
}

fn assert_refused(spec: &FileSpec, says: &[&str]) {
    let (collected, outcome) = read(spec);
    let error = outcome.unwrap_err().to_string();
    assert!(says.iter().all(|part| error.contains(part)), "{error}");
    assert!(collected.chunks.is_empty(), "{error}");
}

#[test]
fn binance_dumps_with_and_without_a_header() {
    let Some(spot) = spec("binance_spot_ADABTC-1m-2021-11-27.csv", "CRYPTO|BINANCE:ADABTC", Format::Auto) else {
        return;
    };
    let rows = whole(&spot, Format::Binance, Timeframe::M1, 10).rows();
    assert_eq!(format_millis(rows[0].open_time), "2021-11-27T00:00:00Z");
    assert_eq!(
        (rows[0].open, rows[0].high, rows[0].low, rows[0].close, rows[0].volume),
        (0.00002853, 0.00002854, 0.00002851, 0.00002854, 36304.2)
    );
    let Some(futures) = spec("binance_um_ALGOUSDT-1m-2023-02.csv.gz", "CRYPTO|BINANCE-UM:ALGOUSDT", Format::Auto)
    else {
        return;
    };
    // February has 28 days of 1440 minutes.
    let read = whole(&futures, Format::Binance, Timeframe::M1, 40_320);
    let rows = read.rows();
    assert_eq!(format_millis(rows[0].open_time), "2023-02-01T00:00:00Z");
    assert_eq!(format_millis(rows[40_319].open_time), "2023-02-28T23:59:00Z");
    assert_eq!((rows[40_319].close, rows[40_319].volume), (0.2442, 30747.6));
    assert!(rows.windows(2).all(|pair| pair[1].open_time - pair[0].open_time == 60_000));
}

#[test]
fn kite_and_upstox_json() {
    let Some(kite) = spec("kite_historical_minute.json", "NSE_EQ|X", Format::Auto) else { return };
    let (read, detected) = read_whole(&kite);
    assert_eq!((detected.format, detected.timeframe), (Format::Kite, Some(Timeframe::M1)));
    let first = read.rows()[0];
    assert_eq!(format_millis(first.open_time), "2017-12-15T03:45:00Z");
    assert_eq!((first.open, first.close, first.volume, first.open_interest), (1704.5, 1702.8, 2499.0, None));
    let Some(interest) = spec("kite_historical_oi.json", "NSE_FO|X", Format::Kite) else { return };
    let first = read_whole(&interest).0.rows()[0];
    assert_eq!(format_millis(first.open_time), "2019-12-04T03:45:00Z");
    assert_eq!(first.open_interest, Some(13_667_775.0));

    let key = "NSE_EQ|INE002A01018";
    let Some(upstox) = spec("upstox_shape_RELIANCE_1minute_2016-09-30.json", key, Format::Auto) else { return };
    let read = whole(&upstox, Format::Upstox, Timeframe::M1, 375);
    let minutes = reference("1m/NSE_EQ_INE002A01018_RELIANCE.csv.gz").unwrap();
    assert_eq!(equal_rows(&read.by_time(key), &minutes), 375);
    let (_, detected) = read_whole(&upstox);
    assert!(detected.profiles[0].newest_first);
}

#[test]
fn kite_csv_is_in_indian_time_and_out_of_order() {
    let key = "NSE_EQ|INE002A01018";
    let Some(file) = spec("kite_csv_minute_RELIANCE_2016-09-30.csv", key, Format::KiteCsv) else { return };
    let read = whole(&file, Format::KiteCsv, Timeframe::M1, 375);
    let minutes = reference("1m/NSE_EQ_INE002A01018_RELIANCE.csv.gz").unwrap();
    assert_eq!(equal_rows(&read.by_time(key), &minutes), 375);
    let (_, detected) = read_whole(&file);
    assert!(detected.profiles[0].steps_backwards > 0);
    // What the file does not say must be named.
    assert_refused(&FileSpec { format: Format::Auto, ..file }, &["--format kite-csv", "alphavantage", "--zone"]);
}

#[test]
fn upstox_parquet_of_days_quarters_and_months() {
    let key = "NSE_EQ|INE002A01018";
    for (file, timeframe, reference_file) in [
        ("upstox_RELIANCE_day.parquet", Timeframe::D1, "1d/NSE_EQ_INE002A01018_RELIANCE.csv.gz"),
        ("upstox_RELIANCE_15minute.parquet", Timeframe::M15, "15m/NSE_EQ_INE002A01018_RELIANCE.csv.gz"),
        ("upstox_RELIANCE_MONTH_folder_named_1m.parquet", Timeframe::Mo1, "1mo/NSE_EQ_INE002A01018_RELIANCE.csv.gz"),
    ] {
        // The file names its instrument itself.
        let Some(root) = root() else { return };
        let file = FileSpec::new(root.join("vendor").join(file));
        let expected = reference(reference_file).unwrap();
        let read = whole(&file, Format::Upstox, timeframe, expected.len());
        let local_midnight = |row: &Candle| match timeframe {
            // The reference names days by their local midnight, candles here by their date.
            Timeframe::M15 => row.open_time,
            _ => row.open_time - 330 * 60_000,
        };
        let rows = read.by_time(key);
        let moved = rows.values().map(|row| (local_midnight(row), Candle { open_time: local_midnight(row), ..*row }));
        assert_eq!(equal_rows(&moved.collect(), &expected), expected.len());
        if timeframe == Timeframe::Mo1 {
            let claimed = FileSpec { timeframe: Some(Timeframe::M1), ..file };
            assert_refused(&claimed, &["its rows are 1mo candles", "--timeframe 1mo"]);
        }
    }
}

#[test]
fn nifty_lines_of_seven_and_eight_fields_are_stamped_at_their_end() {
    let key = "NSE_INDEX|Nifty 50";
    let minutes = reference("1m/NSE_INDEX_Nifty_50_NIFTY.csv.gz");
    for (file, count) in
        [("nifty_2013_JAN_NIFTY.txt", 8623), ("nifty_2014_MUHURAT_NIFTY.txt", 61), ("nifty_2015_JUN_NIFTY.txt", 8250)]
    {
        let Some(file) = spec(file, key, Format::Auto) else { return };
        let read = whole(&file, Format::Nifty, Timeframe::M1, count);
        assert_eq!(equal_rows(&read.by_time(key), minutes.as_ref().unwrap()), count);
    }
    let Some(file) = spec("nifty_2013_JAN_NIFTY.txt", key, Format::Nifty) else { return };
    let opens = FileSpec { stamps: Some(Stamps::Open), ..file };
    assert_eq!(format_millis(read_whole(&opens).0.rows()[0].open_time), "2013-01-01T03:46:00Z");
}

#[test]
fn barchart_has_two_headers_and_a_trailer_and_central_time() {
    let Some(file) = spec("barchart_ESH22_2days.csv", "CME|ESH22", Format::Auto) else { return };
    let (read, detected) = read_whole(&file);
    assert_eq!((detected.format, detected.timeframe), (Format::Barchart, Some(Timeframe::M1)));
    assert_eq!(read.bad, []);
    // Two header lines and the trailer are no rows; the trailer has no line end.
    assert_eq!(read.rows().len(), 1923 - 3);
    assert!(read.rows().iter().all(|row| row.open_interest.is_none()));
    let minutes = reference("1m/CME_ESH22.csv.gz").unwrap();
    let mut rows = read.by_time("CME|ESH22");
    // The last minute was under way when the export was made: the longer export has more volume in it.
    let (_, last) = rows.pop_last().unwrap();
    assert_ne!(bits(&last), minutes[&format_millis(last.open_time)]);
    assert!(detected.notes.iter().any(|note| note.contains("02-10-2022 05:23pm CST")), "{:?}", detected.notes);
    assert_eq!(equal_rows(&rows, &minutes), 1919);
}

#[test]
fn yfinance_refuses_the_minute_still_forming() {
    let Some(file) = spec("yfinance_multiheader_SPY_1min.csv", "US|SPY", Format::Auto) else { return };
    let (read, detected) = read_whole(&file);
    assert_eq!((detected.format, detected.timeframe), (Format::Yfinance, Some(Timeframe::M1)));
    assert_eq!(read.rows().len(), 181);
    assert_eq!(read.bad.len(), 1);
    assert_eq!(read.bad[0].line, 185);
    assert!(read.bad[0].reason.contains("still forming"), "{:?}", read.bad);
    let first = read.rows()[0];
    assert_eq!(format_millis(first.open_time), "2025-07-23T13:30:00Z");
    // Close comes first in the file.
    assert_eq!((first.open, first.close), (630.9949951171875, 630.97998046875));
    assert_eq!((first.high, first.low, first.volume), (631.0449829101562, 630.9299926757812, 2_014_982.0));
}

#[test]
fn lean_zips_of_equities_and_of_three_contracts() {
    let Some(ibm) = spec("lean_IBM_20131007_trade_minute.zip", "US|IBM", Format::LeanEquity) else { return };
    assert_refused(&ibm, &["since local midnight", "--zone"]);
    let ibm = FileSpec { zone: Some("America/New_York".parse().unwrap()), ..ibm };
    let (read, detected) = read_whole(&ibm);
    assert_eq!((detected.format, detected.timeframe), (Format::LeanEquity, Some(Timeframe::M1)));
    let rows = read.rows();
    assert_eq!(format_millis(rows[0].open_time), "2013-10-07T08:00:00Z");
    assert_eq!(
        (rows[0].open, rows[0].high, rows[0].low, rows[0].close, rows[0].volume),
        (181.52, 181.8, 181.52, 181.8, 1283.0)
    );
    // The same day's trades: volumes agree but for few special conditions.
    let trades = reference("oracle/bars_from_ticks_1m_IBM_20131007.csv.gz").unwrap();
    let agree = rows.iter().filter(|row| {
        trades.get(&format_millis(row.open_time)).is_some_and(|expected| expected[4] == row.volume.to_bits())
    });
    assert!(agree.count() * 100 > rows.len() * 95);
    assert_refused(&FileSpec { format: Format::Auto, ..ibm }, &["--format lean-equity", "--zone"]);

    let Some(yes) = spec("lean_YESBANK_20190709_trade_minute.zip", "NSE_EQ|INE528G01035", Format::LeanEquity) else {
        return;
    };
    let yes = FileSpec { zone: Some("Asia/Kolkata".parse().unwrap()), ..yes };
    let rows = read_whole(&yes).0.rows();
    assert_eq!(format_millis(rows[0].open_time), "2019-07-09T03:45:00Z");
    assert_eq!((rows[0].open, rows[0].low, rows[0].close, rows[0].volume), (95.0, 93.9, 94.85, 1_730_100.0));

    let Some(es) = spec("lean_ES_20131007_trade_minute.zip", "CME|ES", Format::Auto) else { return };
    let (read, detected) = read_whole(&es);
    assert_eq!((detected.format, detected.timeframe), (Format::Lean, Some(Timeframe::M1)));
    let count = |key| read.by_time(key).len();
    assert_eq!(["CME|ESZ13", "CME|ESH14", "CME|ESM14"].map(count), [1344, 325, 2]);
    let minutes = reference("1m/CME_ESZ3_ES201312.csv.gz").unwrap();
    assert_eq!(equal_rows(&read.by_time("CME|ESZ13"), &minutes), 1344);
}

#[test]
fn alphavantage_is_newest_first_and_stamped_at_its_end() {
    let Some(file) = spec("alphavantage_QQQ_1min_2019-02.csv", "US|QQQ-2019", Format::AlphaVantage) else { return };
    let minutes = reference("1m/US_QQQ-2019.csv.gz").unwrap();
    let read = whole(&file, Format::AlphaVantage, Timeframe::M1, minutes.len());
    assert_eq!(equal_rows(&read.by_time("US|QQQ-2019"), &minutes), minutes.len());
    // The same said by parameters instead of the name.
    let spelled = FileSpec {
        format: Format::Candles,
        zone: Some("America/New_York".parse().unwrap()),
        stamps: Some(Stamps::End),
        ..file.clone()
    };
    assert_eq!(read_whole(&spelled).0.rows(), read.rows());
    assert_refused(&FileSpec { format: Format::Auto, ..file }, &["--format kite-csv", "--format alphavantage"]);
}

#[test]
fn bitfinex_has_the_close_before_the_high() {
    let key = "CRYPTO|BITFINEX:LTCUSD";
    let minutes = reference("1m/CRYPTO_BITFINEX_LTCUSD.csv.gz");
    for format in [Format::Auto, Format::Bitfinex] {
        let Some(file) = spec("bitfinex_LTCUSD_2016_merged.csv.gz", key, format) else { return };
        let minutes = minutes.as_ref().unwrap();
        let read = whole(&file, Format::Bitfinex, Timeframe::M1, minutes.len());
        assert_eq!(equal_rows(&read.by_time(key), minutes), minutes.len());
    }
}

#[test]
fn mplfinance_has_months_first_and_the_close_second() {
    let Some(file) = spec("mplfinance_SP500_NOV2019_IDay.csv", "US_INDEX|SP500", Format::Mplfinance) else { return };
    let read = whole(&file, Format::Mplfinance, Timeframe::M1, 1563);
    let rows = read.rows();
    assert_eq!(format_millis(rows[0].open_time), "2019-11-05T14:30:00Z");
    assert_eq!((rows[0].open, rows[0].close, rows[0].high, rows[0].low), (3080.8, 3080.49, 3081.47, 3080.3));
    assert_eq!(format_millis(rows[1562].open_time), "2019-11-08T20:59:00Z");
    assert_refused(&FileSpec { format: Format::Auto, ..file }, &["month or day first", "--format mplfinance"]);
}

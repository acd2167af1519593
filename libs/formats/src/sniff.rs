//! Decides a text's layout from its first lines, or says what to name where they do not decide it.

use crate::layout::Layout;
use crate::lines::fields;
use crate::stamp::needs_zone;
use crate::{FileSpec, Format, InputError};

/// Lines looked at.
const MAX_LINES: usize = 200;

/// The start of a text that is not candles, described; nothing for a text that may be.
pub(crate) fn foreign(head: &[u8]) -> Option<&'static str> {
    let starts = |magic: &[u8]| head.starts_with(magic);
    let text = head.trim_ascii_start();
    match () {
        () if starts(b"\x89PNG") => Some("a PNG picture"),
        () if starts(b"\xff\xd8\xff") => Some("a JPEG picture"),
        () if starts(b"%PDF") => Some("a PDF document"),
        () if starts(b"\x28\xb5\x2f\xfd") => Some("zstd data: decompress it first"),
        () if starts(b"BZh") => Some("bzip2 data: decompress it first"),
        () if starts(b"\xfd7zXZ") => Some("xz data: decompress it first"),
        () if starts(b"7z\xbc\xaf") => Some("a 7-zip archive: unpack it first"),
        () if starts(b"\xd0\xcf\x11\xe0") => Some("an Excel workbook: save the sheet as CSV"),
        () if starts(b"ARROW1") => Some("an Arrow or Feather file: write it as Parquet"),
        () if starts(b"SQLite format") => Some("an SQLite database: export the table as CSV"),
        () if text.starts_with(b"<") => Some("a web page or XML, perhaps the error page of a download"),
        () if starts(b"\xff\xfe") || starts(b"\xfe\xff") => Some("UTF-16 text: save it as UTF-8"),
        () if head.contains(&0) => Some("binary data"),
        () => None,
    }
}

/// The layout of a text by its head.
///
/// Errors: the head does not decide it, or lacks what the named format has.
pub(crate) fn layout(spec: &FileSpec, file: &str, head: &str) -> Result<Layout, InputError> {
    let unmarked = head.lines().map(|line| line.trim_start_matches('\u{feff}'));
    let lines: Vec<&str> = unmarked.filter(|line| !line.trim().is_empty()).take(MAX_LINES).collect();
    let unreadable = |reason: String| InputError::Unreadable { file: file.to_owned(), reason };
    let Some(first) = lines.first() else {
        return Err(unreadable("is empty; was the download cut off?".to_owned()));
    };
    let separator = separator(first);
    let rows: Vec<Vec<&str>> = lines.iter().map(|line| fields(line, separator)).collect();
    let format = match spec.format {
        // A header nobody else has is that of candles.
        Format::Auto if !spec.columns.is_empty() => Format::Candles,
        Format::Auto => detect(spec, &rows).map_err(unreadable)?,
        named => named,
    };
    let of_header = |header: usize| match rows.get(header) {
        Some(fields) => Layout::of_header(format, fields, separator, header as u64 + 1, &spec.columns, file),
        None => Err(unreadable(format!("has no header line {}, which {format} files have", header + 1))),
    };
    let layout = match format {
        Format::Binance if is_header(&rows[0]) => of_header(0)?,
        Format::Binance => Layout { separator, ..Layout::binance() },
        Format::Bitfinex if !is_header(&rows[0]) => Layout { separator, ..Layout::bitfinex() },
        Format::Nifty => Layout { separator, ..Layout::nifty() },
        Format::Barchart => of_header(usize::from(!is_header(&rows[0])))?,
        Format::Yfinance => yfinance(&rows, of_header).map_err(|error| error.unwrap_or_else(unreadable))?,
        Format::Kite | Format::Upstox => {
            return Err(unreadable(format!("is not JSON, which {format} files are; pass --format auto or kite-csv")));
        }
        Format::Lean | Format::LeanEquity => {
            return Err(unreadable(format!(
                "is not a zip, which {format} files are: the day comes from the names inside"
            )));
        }
        _ => of_header(0)?,
    };
    first_stamp_has_zone(spec, &layout, &rows).map_err(unreadable)?;
    Ok(layout)
}

/// Fails before the first row rather than once for each.
fn first_stamp_has_zone(spec: &FileSpec, layout: &Layout, rows: &[Vec<&str>]) -> Result<(), String> {
    if spec.zone.is_some() || layout.zone.is_some() {
        return Ok(());
    }
    let row = rows.get(layout.header_lines as usize);
    match row.and_then(|row| row.get(layout.time)) {
        Some(stamp) if needs_zone(stamp) && begins_like_a_date(stamp) => Err(no_offset(stamp)),
        _ => Ok(()),
    }
}

fn no_offset(stamp: &str) -> String {
    format!("timestamps like '{stamp}' have no offset from UTC: pass --zone, for example --zone America/New_York")
}

fn begins_like_a_date(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_digit())
}

fn separator(line: &str) -> u8 {
    let count = |separator: u8| line.bytes().filter(|byte| *byte == separator).count();
    let [comma, semicolon, tab] = [b',', b';', b'\t'].map(count);
    match () {
        () if semicolon > comma && semicolon >= tab => b';',
        () if tab > comma => b'\t',
        () => b',',
    }
}

fn named(row: &[&str], name: &str) -> bool {
    row.iter().any(|field| field.eq_ignore_ascii_case(name))
}

fn is_header(row: &[&str]) -> bool {
    (named(row, "open") && named(row, "close")) || named(row, "price")
}

/// yfinance writes one header line, or three when columns are named by ticker too.
fn yfinance(
    rows: &[Vec<&str>],
    of_header: impl Fn(usize) -> Result<Layout, InputError>,
) -> Result<Layout, Result<InputError, String>> {
    let three = rows.len() > 2 && rows[0].first() == Some(&"Price");
    if !three {
        return of_header(0).map_err(Ok);
    }
    if rows[0].iter().filter(|name| name.eq_ignore_ascii_case("close")).count() > 1 {
        return Err(Err("holds several tickers side by side: download one ticker per file".to_owned()));
    }
    // The first column is named on the third line only.
    let position = |name: &str| rows[0].iter().position(|column| column.eq_ignore_ascii_case(name));
    let [Some(open), Some(high), Some(low), Some(close), Some(volume)] =
        ["open", "high", "low", "close", "volume"].map(position)
    else {
        return Err(Err("lacks one of the columns Open, High, Low, Close, Volume under Price".to_owned()));
    };
    Ok(Layout {
        format: Format::Yfinance,
        header_lines: 3,
        ohlc: [open, high, low, close],
        volume: Some(volume),
        close_time: None,
        most_fields: rows[0].len(),
        least_fields: 0,
        ..Layout::binance()
    })
}

fn detect(spec: &FileSpec, rows: &[Vec<&str>]) -> Result<Format, String> {
    let first = &rows[0];
    if rows.get(1).is_some_and(|second| named(second, "Date Time") && first[0].starts_with("Symbol:")) {
        return Ok(Format::Barchart);
    }
    if first[0] == "Price" && rows.get(1).is_some_and(|second| second[0] == "Ticker") {
        return Ok(Format::Yfinance);
    }
    if named(first, "open_time") && named(first, "close_time") && named(first, "taker_buy_volume") {
        return Ok(Format::Binance);
    }
    if named(first, "price") && !named(first, "open") {
        return Ok(Format::Ticks);
    }
    match is_header(first) {
        true => under_header(spec, rows),
        false => without_header(rows),
    }
}

/// Columns have names; what their stamps mean is the question.
fn under_header(spec: &FileSpec, rows: &[Vec<&str>]) -> Result<Format, String> {
    let header = &rows[0];
    let time = header.iter().position(|name| {
        ["timestamp", "open_time", "time", "datetime", "date"].iter().any(|time| name.eq_ignore_ascii_case(time))
    });
    let Some(stamps) = time.map(|time| rows[1..].iter().filter_map(|row| row.get(time).copied()).collect::<Vec<_>>())
    else {
        // The missing column is named by whoever looks for it.
        return Ok(Format::Candles);
    };
    if trades_as_candles(header, &rows[1..], &stamps) {
        return match spec.zone.is_some() || stamps.first().is_none_or(|stamp| !needs_zone(stamp)) {
            true => Ok(Format::Backtrader),
            false => {
                Err(format!("looks like trades written as candles; {}, with --format backtrader", no_offset(stamps[0])))
            }
        };
    }
    let Some(stamp) = stamps.first() else { return Ok(Format::Candles) };
    if stamp.contains('/') {
        return Err(format!(
            "timestamps like '{stamp}' may be month or day first: pass --format mplfinance for M/D/YYYY H:MM (New York, or \
             --zone), or write them as YYYY-MM-DD HH:MM"
        ));
    }
    if !needs_zone(stamp) || spec.zone.is_some() || !begins_like_a_date(stamp) {
        return Ok(Format::Candles);
    }
    Err(format!(
        "timestamps like '{stamp}' have no offset from UTC: pass --format kite-csv (Asia/Kolkata, candle opens), --format \
         alphavantage (America/New_York, candle ends), or --zone (and --stamps end where stamps name candle ends)"
    ))
}

/// backtrader writes each trade as a candle of one price, at any millisecond.
fn trades_as_candles(header: &[&str], rows: &[Vec<&str>], stamps: &[&str]) -> bool {
    let column = |name: &str| header.iter().position(|field| field.eq_ignore_ascii_case(name));
    let [Some(open), Some(high), Some(low), Some(close)] = ["open", "high", "low", "close"].map(column) else {
        return false;
    };
    let one_price = |row: &Vec<&str>| {
        let value = |column: usize| row.get(column).copied();
        value(open) == value(high) && value(open) == value(low) && value(open) == value(close)
    };
    let fraction = |stamp: &&str| stamp.get(19..20) == Some(".");
    rows.len() > 2 && rows.iter().all(one_price) && stamps.iter().any(fraction)
}

fn without_header(rows: &[Vec<&str>]) -> Result<Format, String> {
    let first = &rows[0];
    let digits = |text: &str, least: usize| text.len() >= least && text.bytes().all(|byte| byte.is_ascii_digit());
    if first.len() == 12 && digits(first[0], 13) && digits(first[6], 13) && first[6] > first[0] {
        return Ok(Format::Binance);
    }
    if first.len() == 6 && digits(first[0], 13) {
        let fits = |ohlc: [usize; 4]| rows.iter().all(|row| row.len() == 6 && consistent(row, ohlc));
        // Both orders may fit where prices did not move; then nobody can say.
        return match (fits([1, 3, 4, 2]), fits([1, 2, 3, 4])) {
            (true, false) => Ok(Format::Bitfinex),
            _ => Err("has six columns without names: pass --format bitfinex if they are ms, open, close, high, low, \
                      volume; else put a line timestamp,open,high,low,close,volume (in their order) on top"
                .to_owned()),
        };
    }
    if (7..=9).contains(&first.len()) && digits(first[1], 8) && first[2].contains(':') {
        return match first[0].starts_with("NIFTY") || first[0].starts_with("BANKNIFTY") {
            true => Ok(Format::Nifty),
            false => Err(format!(
                "has lines of {},{},{} without a header: pass --format nifty (Asia/Kolkata, candle ends), with --zone or \
                 --stamps where those differ",
                first[0], first[1], first[2]
            )),
        };
    }
    let shown: String = first.join(",").chars().take(60).collect();
    Err(format!(
        "is no format known here, its first line is '{shown}': put a header of {} on top, or pass --format (--format help lists them)",
        crate::CANDLE_HEADER
    ))
}

fn consistent(row: &[&str], [open, high, low, close]: [usize; 4]) -> bool {
    let value = |column: usize| row.get(column).and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN);
    let (open, high, low, close) = (value(open), value(high), value(low), value(close));
    low <= open.min(close) && open.max(close) <= high
}

//! Which column of a text is what, for every format that has lines.

use jiff::civil::Date;

use crate::stamp::Stamp;
use crate::{CANDLE_HEADER, Columns, Format, InputError, Stamps, Zone};

/// Accepted names of the time column.
pub(crate) const TIME: [&str; 6] = ["timestamp", "open_time", "time", "datetime", "date time", "date"];
pub(crate) const OHLC: [&str; 4] = ["open", "high", "low", "close"];
pub(crate) const OPEN_INTEREST: [&str; 4] = ["open_interest", "open interest", "openinterest", "oi"];
pub(crate) const KEY: [&str; 2] = ["key", "instrument_key"];
/// Accepted names of a trade's size.
const AMOUNT: [&str; 5] = ["amount", "size", "quantity", "qty", "volume"];
const TICK_HEADER: &str = "timestamp,price,amount";
/// Lean writes prices of equities as whole numbers.
const LEAN_EQUITY_SCALE: f64 = 10_000.0;

/// Columns named in an error, and characters of each.
const MAX_LISTED: usize = 30;
const MAX_LISTED_CHARS: usize = 40;

/// The columns of a file, for an error.
pub(crate) fn listed(header: &[&str]) -> String {
    let shown = header.iter().take(MAX_LISTED).map(|name| name.trim().chars().take(MAX_LISTED_CHARS).collect());
    let shown: Vec<String> = shown.collect();
    let more = header.len().saturating_sub(MAX_LISTED);
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Rows as candles, or as trades to build candles of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    Candles,
    Trades,
}

/// Where each value stands on a line, and what the stamps mean.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) format: Format,
    pub(crate) rows: Rows,
    pub(crate) separator: u8,
    pub(crate) header_lines: u64,
    pub(crate) least_fields: usize,
    pub(crate) most_fields: usize,
    pub(crate) stamp: Stamp,
    pub(crate) time: usize,
    /// Where the date and the time of day are two columns.
    pub(crate) time_of_day: Option<usize>,
    /// Open, high, low, close; the price four times for trades.
    pub(crate) ohlc: [usize; 4],
    pub(crate) volume: Option<usize>,
    pub(crate) open_interest: Option<usize>,
    pub(crate) trading_date: Option<usize>,
    pub(crate) key: Option<usize>,
    /// A column that must not change within the file.
    pub(crate) symbol: Option<usize>,
    /// Last instant of a candle: tells its width.
    pub(crate) close_time: Option<usize>,
    pub(crate) scale: f64,
    pub(crate) zone: Option<Zone>,
    pub(crate) stamps: Stamps,
    /// Stamps are milliseconds since this day's midnight.
    pub(crate) day: Option<Date>,
}

impl Layout {
    fn new(format: Format, most_fields: usize) -> Layout {
        Layout {
            format,
            rows: Rows::Candles,
            separator: b',',
            header_lines: 0,
            least_fields: 0,
            most_fields,
            stamp: Stamp::Text,
            time: 0,
            time_of_day: None,
            ohlc: [1, 2, 3, 4],
            volume: Some(5),
            open_interest: None,
            trading_date: None,
            key: None,
            symbol: None,
            close_time: None,
            scale: 1.0,
            zone: None,
            stamps: Stamps::Open,
            day: None,
        }
    }

    pub(crate) fn binance() -> Layout {
        Layout { close_time: Some(6), least_fields: 6, ..Layout::new(Format::Binance, 12) }
    }

    pub(crate) fn bitfinex() -> Layout {
        Layout { ohlc: [1, 3, 4, 2], least_fields: 6, ..Layout::new(Format::Bitfinex, 6) }
    }

    pub(crate) fn nifty() -> Layout {
        Layout {
            stamp: Stamp::Compact,
            time: 1,
            time_of_day: Some(2),
            ohlc: [3, 4, 5, 6],
            volume: Some(7),
            open_interest: Some(8),
            symbol: Some(0),
            least_fields: 7,
            zone: Some(Zone::named("Asia/Kolkata")),
            stamps: Stamps::End,
            ..Layout::new(Format::Nifty, 9)
        }
    }

    /// The members of Lean's zips; `day` comes from their names.
    pub(crate) fn lean(format: Format, day: Date) -> Layout {
        let (scale, zone) = match format {
            Format::LeanEquity => (LEAN_EQUITY_SCALE, None),
            _ => (1.0, Some(Zone::named("UTC"))),
        };
        Layout { day: Some(day), least_fields: 6, scale, zone, ..Layout::new(format, 6) }
    }

    /// Finds the columns by the names of a header.
    ///
    /// Errors: a column that every file of the format has is missing.
    pub(crate) fn of_header(
        format: Format,
        header: &[&str],
        separator: u8,
        header_lines: u64,
        columns: &Columns,
        file: &str,
    ) -> Result<Layout, InputError> {
        let find = |field: &str, usual: &[&str]| columns.position(header, field, usual);
        let trades = format == Format::Ticks;
        let expected = if trades { TICK_HEADER } else { CANDLE_HEADER };
        let missing = |column| {
            let found = listed(header);
            InputError::Column { file: file.to_owned(), column, expected, found }
        };
        let mut layout = Layout::new(format, header.len());
        layout.separator = separator;
        layout.header_lines = header_lines;
        layout.time = find("timestamp", &TIME).ok_or_else(|| missing("timestamp"))?;
        if trades {
            layout.rows = Rows::Trades;
            layout.ohlc = [find("price", &["price"]).ok_or_else(|| missing("price"))?; 4];
            layout.volume = Some(find("amount", &AMOUNT).ok_or_else(|| missing("amount"))?);
        } else {
            for (position, name) in layout.ohlc.iter_mut().zip(OHLC) {
                *position = find(name, &[name]).ok_or_else(|| missing(name))?;
            }
            layout.volume = Some(find("volume", &["volume"]).ok_or_else(|| missing("volume"))?);
            layout.open_interest = find("open_interest", &OPEN_INTEREST);
            layout.trading_date = find("trading_date", &["trading_date"]);
        }
        layout.key = find("key", &KEY);
        match format {
            Format::Binance => layout.close_time = find("close_time", &["close_time"]),
            Format::KiteCsv => layout.zone = Some(Zone::named("Asia/Kolkata")),
            Format::Barchart => layout.zone = Some(Zone::named("America/Chicago")),
            Format::AlphaVantage => {
                layout.zone = Some(Zone::named("America/New_York"));
                layout.stamps = Stamps::End;
            }
            Format::Mplfinance => {
                layout.zone = Some(Zone::named("America/New_York"));
                layout.stamp = Stamp::MonthFirst;
            }
            Format::Backtrader => layout.rows = Rows::Trades,
            _ => {}
        }
        Ok(layout)
    }
}

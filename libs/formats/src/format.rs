//! The formats a file may be read as, by name.

use std::fmt;
use std::str::FromStr;

/// Layout of a file: which column is what, and what its stamps mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// Decided from the content; refused where the content does not decide it.
    #[default]
    Auto,
    Candles,
    Binance,
    Bitfinex,
    Kite,
    KiteCsv,
    Upstox,
    Nifty,
    Barchart,
    Yfinance,
    AlphaVantage,
    Mplfinance,
    Lean,
    LeanEquity,
    Ticks,
    Backtrader,
}

impl Format {
    pub const ALL: [Format; 16] = [
        Format::Auto,
        Format::Candles,
        Format::Binance,
        Format::Bitfinex,
        Format::Kite,
        Format::KiteCsv,
        Format::Upstox,
        Format::Nifty,
        Format::Barchart,
        Format::Yfinance,
        Format::AlphaVantage,
        Format::Mplfinance,
        Format::Lean,
        Format::LeanEquity,
        Format::Ticks,
        Format::Backtrader,
    ];

    /// The name as written on a command line.
    pub fn as_str(&self) -> &'static str {
        match self {
            Format::Auto => "auto",
            Format::Candles => "candles",
            Format::Binance => "binance",
            Format::Bitfinex => "bitfinex",
            Format::Kite => "kite",
            Format::KiteCsv => "kite-csv",
            Format::Upstox => "upstox",
            Format::Nifty => "nifty",
            Format::Barchart => "barchart",
            Format::Yfinance => "yfinance",
            Format::AlphaVantage => "alphavantage",
            Format::Mplfinance => "mplfinance",
            Format::Lean => "lean",
            Format::LeanEquity => "lean-equity",
            Format::Ticks => "ticks",
            Format::Backtrader => "backtrader",
        }
    }

    /// One line for people choosing a format: layout, clock, what must be given beside it.
    pub fn description(&self) -> &'static str {
        match self {
            Format::Auto => "decided from the content; says which to name where the content does not decide it",
            Format::Candles => {
                "CSV or Parquet with columns timestamp, open, high, low, close, volume [, open_interest] [, key]; --zone for stamps without an offset"
            }
            Format::Binance => "Binance kline dumps, spot or futures, with or without a header; UTC",
            Format::Bitfinex => "no header: ms, open, close, high, low, volume; UTC",
            Format::Kite => "Kite Connect historical JSON, open interest optional; stamps carry their offset",
            Format::KiteCsv => "Date,Open,High,Low,Close,Volume; local stamps of bar opens, Asia/Kolkata",
            Format::Upstox => "Upstox historical candles, JSON or Parquet; stamps carry their offset",
            Format::Nifty => "no header: symbol, yyyymmdd, hh:mm, prices [, volume [, oi]]; bar ends, Asia/Kolkata",
            Format::Barchart => "Barchart export: two header lines, trailer line; bar opens, America/Chicago",
            Format::Yfinance => "yfinance download, one header line or three (Price, Ticker, Datetime)",
            Format::AlphaVantage => "newest first; bar ends, America/New_York",
            Format::Mplfinance => "Date as M/D/YYYY H:MM under a header; bar opens, America/New_York",
            Format::Lean => "Lean minute zip of futures, crypto or FX: ms since midnight UTC, prices as they are",
            Format::LeanEquity => "Lean minute zip of equities: ms since local midnight (--zone), prices x 10000",
            Format::Ticks => "trades: timestamp, price, amount|size|quantity|volume; built into minute candles",
            Format::Backtrader => {
                "trades written as candles of one price, ms stamps (--zone); built into minute candles"
            }
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no format's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("format '{name}' is unknown; accepted: {accepted}")]
pub struct UnknownFormat {
    name: String,
    accepted: String,
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Format, UnknownFormat> {
        let found = Format::ALL.into_iter().find(|format| format.as_str().eq_ignore_ascii_case(text.trim()));
        found.ok_or_else(|| UnknownFormat {
            name: text.chars().take(40).collect(),
            accepted: Format::ALL.map(|format| format.as_str()).join(" "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back_and_an_unknown_one_lists_them() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse::<Format>(), Ok(format));
        }
        let refused = "excel".parse::<Format>().unwrap_err().to_string();
        assert!(refused.contains("'excel'") && refused.contains("kite-csv"), "{refused}");
    }
}

//! Every dialect of lines.
#![no_main]

use formats::Format;

libfuzzer_sys::fuzz_target!(|data: &[u8]| candlemesh_fuzz::read(data, &[Format::Auto, Format::Candles, Format::Binance, Format::Bitfinex, Format::KiteCsv, Format::Nifty, Format::Barchart, Format::Yfinance, Format::AlphaVantage, Format::Mplfinance]));

//! Trades, and trades written as candles.
#![no_main]

use formats::Format;

libfuzzer_sys::fuzz_target!(|data: &[u8]| candlemesh_fuzz::read(data, &[Format::Ticks, Format::Backtrader]));

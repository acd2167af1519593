//! Archives and what is in them.
#![no_main]

use formats::Format;

libfuzzer_sys::fuzz_target!(|data: &[u8]| candlemesh_fuzz::read(data, &[Format::Auto, Format::Lean, Format::LeanEquity, Format::Binance]));

//! Parquet files.
#![no_main]

use formats::Format;

libfuzzer_sys::fuzz_target!(|data: &[u8]| candlemesh_fuzz::read(data, &[Format::Auto, Format::Candles, Format::Upstox]));

//! Files of vendors, real and broken, against facts from outside.
#![allow(clippy::unwrap_used, reason = "the lint spares test functions, not what they share")]

mod bad_input;
mod data;
mod parquet;
mod profile;
mod ticks;
mod vendor;

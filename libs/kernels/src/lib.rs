//! Numerics on slices: indicators, resampling, sequences, screens, trend, width and backtest.
//!
//! The services call these from their engines with columns they already hold. Everything here is a pure function of its
//! arguments: no I/O, no clock, no threads, no dependency on the wire or the store. Prices are `f64`, times are milliseconds since
//! the epoch, undefined values are NaN, which the caller turns into null before they leave the process.

mod error;

pub mod backtest;
pub mod indicator;
pub mod resample;
pub mod screen;
pub mod sequence;
pub mod trend;
pub mod width;

pub use error::Error;

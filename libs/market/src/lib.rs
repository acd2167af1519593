//! Domain types of candlemesh: instruments, timeframes, time ranges, candles, frames,
//! exchange calendars and corporate actions.
//!
//! Every service and library speaks in these types once a message has been parsed. The crate does no I/O, knows no
//! transport and reads no clock: time is always an argument.

mod action;
mod calendar;
mod candle;
mod error;
mod frame;
mod instrument;
mod time;
mod timeframe;

pub use action::{ActionKind, ActionTerms, Adjustment, CorporateAction, Factor, Factors};
pub use calendar::{Calendar, Session, TradingDay};
pub use candle::{Candle, RowFault};
pub use error::Error;
pub use frame::{BucketFrame, Frame};
pub use instrument::{Instrument, InstrumentKey};
pub use jiff::civil::Date;
pub use time::{Millis, TimeRange, format_date, format_millis, parse_date, parse_millis};
pub use timeframe::Timeframe;

/// A `Result` whose error is this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

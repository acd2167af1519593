//! The one error of the crate: a value that cannot be what the caller says it is.

/// A value refused at the edge; each variant names the value and says what is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("instrument key '{0}' is not of the form EXCHANGE_SEGMENT|CODE (for example NSE_EQ|INE002A01018)")]
    InstrumentKey(String),
    #[error("timeframe '{0}' is unknown; accepted: 1m 2m 3m 5m 10m 15m 30m 1h 2h 4h 1d 1w 1mo (also 5minute, day)")]
    Timeframe(String),
    #[error("time '{0}' is not an RFC 3339 instant (for example 2016-08-16T03:45:00Z)")]
    Time(String),
    #[error("date '{0}' is not of the form YYYY-MM-DD")]
    Date(String),
    #[error("time range is empty or reversed: start {start} is not before end {end}")]
    TimeRange { start: String, end: String },
    #[error("calendar '{name}' is unknown; accepted: {accepted}")]
    Calendar { name: String, accepted: String },
    #[error("no calendar is known for instrument key '{key}'; name one of: {accepted}")]
    NoCalendar { key: String, accepted: String },
    #[error("frame is malformed: {0}")]
    Frame(String),
    #[error("{field} is out of range: {value}")]
    OutOfRange { field: &'static str, value: String },
}

impl Error {
    /// Name of the request field the value stands for, in the vocabulary of the API.
    pub fn field(&self) -> &'static str {
        match self {
            Error::InstrumentKey(_) => "instrument_key",
            Error::Timeframe(_) => "timeframe",
            Error::Time(_) => "time",
            Error::Date(_) => "date",
            Error::TimeRange { .. } => "range",
            Error::Calendar { .. } | Error::NoCalendar { .. } => "calendar",
            Error::Frame(_) => "frame",
            Error::OutOfRange { field, .. } => field,
        }
    }
}

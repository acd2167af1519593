use thiserror::Error as ThisError;

/// What a kernel refuses: a request it cannot honour or columns that do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum Error {
    /// No indicator has this name.
    #[error("unknown indicator {name:?}, known are {known}")]
    UnknownIndicator { name: String, known: String },

    /// A parameter is unreadable, out of its range, or in conflict with another.
    #[error("{field} is {value:?}, accepted is {accepted}")]
    Parameter { field: String, value: String, accepted: String },

    /// More parameters than the indicator has.
    #[error("{request:?} has {found} parameters, {accepted}")]
    ParameterCount { request: String, found: usize, accepted: String },

    /// Bytes that are not the saved state of this indicator.
    #[error("saved state of {spec:?} cannot be read")]
    State { spec: String },

    /// Columns of one input differ in length.
    #[error("column {column} has {found} rows, expected {expected}")]
    UnequalLengths { column: &'static str, found: usize, expected: usize },

    /// Output buffers do not match the outputs asked for.
    #[error("{found} output buffers given, {expected} needed")]
    BufferCount { found: usize, expected: usize },

    /// The caller's `stop` said so; what was computed is lost.
    #[error("stopped before the end")]
    Stopped,
}

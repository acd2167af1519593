//! What a check of everything stored answers with.

use market::{Date, InstrumentKey};

/// Most findings kept of one check, whatever the caller asks for: each is a line for a person to read.
pub const MAX_FINDINGS: usize = 10_000;

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Absent where the finding is about no one instrument, as with the change log.
    pub instrument: Option<InstrumentKey>,
    /// As stored, which may be no timeframe at all.
    pub timeframe: Option<String>,
    pub block_date: Option<Date>,
    pub what: String,
}

/// What [`Stores::check`](crate::Stores::check) has seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckReport {
    pub instruments: u64,
    /// Current blocks.
    pub blocks: u64,
    pub superseded_blocks: u64,
    /// Of the current blocks, as far as they decode.
    pub candles: u64,
    /// The first ones, up to the limit.
    pub findings: Vec<Finding>,
    pub findings_total: u64,
}

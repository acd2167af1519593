//! What the demo found, as data; JSON is this, text is rendered from it.

use serde::Serialize;

/// The whole report.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) input: String,
    pub(super) generated: bool,
    pub(super) load: Load,
    pub(super) coverage: Vec<Coverage>,
    pub(super) candles: Option<Candles>,
    pub(super) indicators: Option<Indicators>,
    pub(super) sequences: Option<Sequences>,
    pub(super) screen: Option<Screen>,
    pub(super) study: Option<Study>,
    pub(super) unknown_instrument: Option<UnknownInstrument>,
    /// Parts that did not work, with their reasons; empty is success.
    pub(super) failures: Vec<String>,
    pub(super) seconds: f64,
    pub(super) peak_memory_mib: Option<f64>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Load {
    pub(super) files: usize,
    pub(super) stored: u64,
    pub(super) unchanged: u64,
    pub(super) rejected: u64,
    /// The first rejected rows: file, line, reason.
    pub(super) reasons: Vec<String>,
    pub(super) seconds: f64,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Coverage {
    pub(super) instrument_key: String,
    pub(super) timeframe: String,
    pub(super) first: String,
    pub(super) last: String,
    pub(super) candles: u64,
    pub(super) dates: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Candles {
    pub(super) instrument_key: String,
    pub(super) five_minute: Vec<Bar>,
    pub(super) five_minute_count: usize,
    pub(super) daily: Vec<Bar>,
    pub(super) daily_count: usize,
    /// Closes of the last days, for the chart.
    pub(super) closes: Vec<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Bar {
    pub(super) open_time: String,
    pub(super) open: f64,
    pub(super) high: f64,
    pub(super) low: f64,
    pub(super) close: f64,
    pub(super) volume: f64,
    pub(super) source_count: u32,
    pub(super) expected_count: u32,
    pub(super) complete: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Indicators {
    pub(super) instrument_key: String,
    pub(super) timeframe: String,
    pub(super) rows: usize,
    /// Last defined value of each column.
    pub(super) last: Vec<(String, Option<f64>)>,
    /// From the call to the answer, fetching candles included.
    pub(super) v1_ms: f64,
    pub(super) v2_ms: f64,
    /// Computing alone, as the service reports it.
    pub(super) v1_compute_ms: f64,
    pub(super) v2_compute_ms: f64,
    /// Largest |v1 - v2| / max(1, |v1|) over all values.
    pub(super) largest_difference: f64,
    pub(super) second_call_ms: f64,
    pub(super) second_call_cached: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Sequences {
    pub(super) instrument_key: String,
    pub(super) candles: u32,
    pub(super) sequences: u32,
    pub(super) quality: f64,
    pub(super) continuity: f64,
    pub(super) momentum: f64,
    pub(super) patterns: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Screen {
    pub(super) date: String,
    pub(super) bullish: Vec<ScreenRow>,
    pub(super) bearish: Vec<ScreenRow>,
    pub(super) rejected: Vec<Rejection>,
    pub(super) stages: Vec<Stage>,
}

#[derive(Debug, Serialize)]
pub(super) struct ScreenRow {
    pub(super) instrument_key: String,
    pub(super) last_close: f64,
    pub(super) ema_distance_percent: f64,
    pub(super) rsi: f64,
    pub(super) strong_move_count: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct Rejection {
    pub(super) instrument_key: String,
    pub(super) stage: String,
    pub(super) reason: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Stage {
    pub(super) stage: String,
    pub(super) processed: u32,
    pub(super) passed: u32,
    pub(super) failed: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct Study {
    pub(super) study_id: String,
    pub(super) instrument_key: String,
    pub(super) trials: u32,
    pub(super) best: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct UnknownInstrument {
    pub(super) asked: String,
    pub(super) code: String,
    pub(super) message: String,
}

//! Bodies of REST answers, as far as the contract promises them: a missing field fails the test that reads it.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Candle {
    pub open_time: String,
    pub open: f64,
    pub high: f64,
    pub low: f64,
    pub close: f64,
    pub volume: f64,
    #[serde(deserialize_with = "required")]
    pub open_interest: Option<f64>,
    pub closed: bool,
    pub complete: bool,
    pub source_count: u32,
    pub expected_count: u32,
    pub trading_date: Option<String>,
}

/// A field that may be null but not absent.
fn required<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Option::deserialize(deserializer)
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Candles {
    pub instrument_key: String,
    pub timeframe: String,
    pub engine: String,
    pub revision: u64,
    pub candles: Vec<Candle>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct MultiCandles {
    pub instrument_key: String,
    pub timeframes: BTreeMap<String, Candles>,
}

/// A column; null where undefined.
pub type Column = Vec<Option<f64>>;

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Indicators {
    pub instrument_key: String,
    pub timeframe: String,
    pub engine: String,
    pub open_time: Vec<String>,
    pub columns: BTreeMap<String, Column>,
    pub cached: bool,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Stored {
    pub stored: u64,
    pub unchanged: u64,
    pub rejected: Vec<RejectedRow>,
    pub revision: u64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RejectedRow {
    pub row: u64,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Quotes {
    pub quotes: Vec<Quote>,
    pub errors: Vec<ItemReason>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Quote {
    pub instrument_key: String,
    pub last_price: f64,
    pub open: f64,
    pub high: f64,
    pub low: f64,
    pub close: f64,
    pub volume: f64,
    pub previous_close: Option<f64>,
    pub change: Option<f64>,
    pub change_percent: Option<f64>,
    pub time: String,
    pub indicators: Option<BTreeMap<String, Option<f64>>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ItemReason {
    pub instrument_key: String,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct IntradayQuotes {
    pub quotes: Vec<IntradayQuote>,
    pub errors: Vec<ItemReason>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct IntradayQuote {
    pub instrument_key: String,
    pub candles: Vec<Candle>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Screen {
    pub date: String,
    pub bullish: Vec<ScreenRow>,
    pub bearish: Vec<ScreenRow>,
    pub rejected: Vec<ScreenRejection>,
    pub metrics: Vec<StageMetrics>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ScreenRow {
    pub instrument_key: String,
    pub last_close: f64,
    pub ema_distance_percent: f64,
    pub rsi: f64,
    pub strong_move_count: u32,
    pub strength: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ScreenRejection {
    pub instrument_key: String,
    pub stage: String,
    pub reason: String,
    pub value: f64,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct StageMetrics {
    pub stage: String,
    pub processed: u32,
    pub passed: u32,
    pub failed: u32,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TopTen {
    pub date: String,
    pub rows: Vec<ScreenRow>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct GroupExecution {
    pub group_id: String,
    pub intents: Vec<Intent>,
    pub skipped: Vec<ItemReason>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Intent {
    pub instrument_key: String,
    pub side: String,
    pub entry: f64,
    pub stop: f64,
    pub target: f64,
    pub quantity: f64,
    pub reason: String,
    pub created_at: String,
}

/// An RFC 9457 problem.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Problem {
    pub status: u16,
    pub detail: String,
    pub code: String,
    pub reason: String,
    pub errors: Vec<FieldProblem>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct FieldProblem {
    pub field: String,
    pub detail: String,
}

//! The shapes of REST bodies. What a field means is said here once, and read from here by the OpenAPI document.

use proto::convert::column_values;
use proto::wire;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use super::time_text;

/// A candle as answered.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Candle {
    /// Bucket start, RFC 3339 in UTC; for 1d, 1w and 1mo the session open of the first trading date.
    #[schema(format = DateTime)]
    open_time: String,
    open: f64,
    high: f64,
    low: f64,
    close: f64,
    volume: f64,
    /// Null when the source has none.
    open_interest: Option<f64>,
    /// The bucket's range had passed when the answer was made.
    closed: bool,
    /// Closed, and no session minute is missing.
    complete: bool,
    /// Minutes that exist in the bucket.
    source_count: u32,
    /// Session minutes in the bucket.
    expected_count: u32,
    /// The (first) trading date, on candles of 1d and wider.
    #[serde(skip_serializing_if = "Option::is_none")]
    trading_date: Option<String>,
}

impl Candle {
    pub(super) fn new(candle: wire::BucketCandle, daily: bool) -> Candle {
        Candle {
            open_time: time_text(candle.open_time.as_ref()),
            open: candle.open,
            high: candle.high,
            low: candle.low,
            close: candle.close,
            volume: candle.volume,
            open_interest: candle.open_interest,
            closed: candle.closed,
            complete: candle.complete,
            source_count: candle.source_count,
            expected_count: candle.expected_count,
            trading_date: daily.then_some(candle.trading_date),
        }
    }

    pub(super) fn list(candles: Vec<wire::BucketCandle>, timeframe: &str) -> Vec<Candle> {
        let daily = matches!(timeframe, "1d" | "1w" | "1mo");
        candles.into_iter().map(|candle| Candle::new(candle, daily)).collect()
    }
}

/// Columns by name, in order; null where a value is undefined (warm-up, VWAP before any volume).
#[derive(Debug)]
pub(super) struct Columns(pub(super) Vec<wire::Column>);

impl Serialize for Columns {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for column in &self.0 {
            map.serialize_entry(&column.name, &column_values(column))?;
        }
        map.end()
    }
}

/// Candles of one timeframe.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CandlesAnswer {
    pub(super) instrument_key: String,
    /// Canonical spelling.
    pub(super) timeframe: String,
    /// The engine that answered: v1 or v2.
    pub(super) engine: &'static str,
    /// Data revision of the answer; give it as `as_of` to repeat the answer.
    pub(super) revision: u64,
    pub(super) candles: Vec<Candle>,
    /// Indicator columns aligned with the candles, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<std::collections::BTreeMap<String, Vec<Option<f64>>>>)]
    pub(super) columns: Option<Columns>,
}

/// Several timeframes of one instrument, at one data revision.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MultiRequest {
    /// RFC 3339; absent: as far back as data exists.
    #[schema(format = DateTime)]
    pub(super) start: Option<String>,
    /// RFC 3339, exclusive; absent: as far as data exists.
    #[schema(format = DateTime)]
    pub(super) end: Option<String>,
    /// At most 13, for example `["5m", "1d"]`.
    pub(super) timeframes: Vec<String>,
    /// At most 64, for example `["sma:9"]` or `["rsi:14@tradingview"]`.
    #[serde(default)]
    pub(super) indicators: Vec<String>,
    /// raw, splits or splits_and_dividends; absent: raw, as stored.
    #[serde(default)]
    pub(super) adjustment: Option<String>,
}

/// Answers by timeframe, in the order asked.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MultiAnswer {
    pub(super) instrument_key: String,
    #[schema(value_type = std::collections::BTreeMap<String, CandlesAnswer>)]
    pub(super) timeframes: ByTimeframe,
}

/// A map that keeps the order asked.
#[derive(Debug)]
pub(super) struct ByTimeframe(pub(super) Vec<CandlesAnswer>);

impl Serialize for ByTimeframe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|answer| (&answer.timeframe, answer)))
    }
}

/// Indicators over a range.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct IndicatorsRequest {
    /// RFC 3339; absent: as far back as data exists.
    #[schema(format = DateTime)]
    pub(super) start: Option<String>,
    /// RFC 3339, exclusive; absent: as far as data exists.
    #[schema(format = DateTime)]
    pub(super) end: Option<String>,
    /// For example `["sma:9", "bbands:20,2", "rsi:14@tradingview"]`; absent: the D3 set. At most 64.
    #[serde(default)]
    pub(super) indicators: Vec<String>,
    /// Data revision to repeat; absent: the current one.
    pub(super) as_of: Option<u64>,
}

/// Indicator columns. Earlier history is used as far as it exists, so the range never changes a value.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct IndicatorsAnswer {
    pub(super) instrument_key: String,
    pub(super) timeframe: String,
    /// The engine that answered: v1 or v2.
    pub(super) engine: &'static str,
    pub(super) revision: u64,
    /// The answer came from a cache.
    pub(super) cached: bool,
    /// Time spent computing; 0 when cached.
    pub(super) compute_ms: f64,
    /// RFC 3339.
    pub(super) open_time: Vec<String>,
    /// One column per output: `sma:9`, or `bbands:20,2.upper` where there are several; null during warm-up.
    #[schema(value_type = std::collections::BTreeMap<String, Vec<Option<f64>>>)]
    pub(super) columns: Columns,
}

/// A screening run.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ScreenRequest {
    /// Absent: the whole universe.
    #[serde(default)]
    pub(super) instrument_keys: Vec<String>,
    /// YYYY-MM-DD; absent: the latest date with data.
    #[serde(default)]
    pub(super) date: String,
    /// `default`.
    #[serde(default)]
    pub(super) preset: String,
    /// Instead of a preset: stages in the order basic, ema, rsi, strong_move.
    #[serde(default)]
    pub(super) stages: Vec<String>,
}

/// What a screening run let through, and why it let the others not.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ScreenAnswer {
    pub(super) date: String,
    pub(super) bullish: Vec<ScreenRow>,
    pub(super) bearish: Vec<ScreenRow>,
    pub(super) rejected: Vec<ScreenRejection>,
    pub(super) metrics: Vec<StageMetrics>,
}

/// An instrument that passed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ScreenRow {
    pub(super) instrument_key: String,
    pub(super) last_close: f64,
    pub(super) mean_volume: f64,
    /// Distance of the close from EMA(50), in percent.
    pub(super) ema_distance_percent: f64,
    pub(super) rsi: f64,
    pub(super) strong_move_count: u32,
    /// 0 to 1.
    pub(super) strength: f64,
}

/// An instrument that did not pass.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ScreenRejection {
    pub(super) instrument_key: String,
    pub(super) stage: String,
    /// Names the rule, the value and the threshold.
    pub(super) reason: String,
    pub(super) value: f64,
}

/// Counts and time of a stage.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StageMetrics {
    pub(super) stage: String,
    pub(super) processed: u32,
    pub(super) passed: u32,
    pub(super) failed: u32,
    pub(super) bullish: u32,
    pub(super) bearish: u32,
    pub(super) duration_ms: f64,
}

/// The ten best rows, by strong-move count, then strength, then key.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TopAnswer {
    pub(super) date: String,
    pub(super) rows: Vec<ScreenRow>,
}

/// Execution of a group.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExecuteRequest {
    /// YYYY-MM-DD; absent: the latest date with data.
    #[serde(default)]
    pub(super) date: String,
    /// Compute, but store nothing.
    #[serde(default)]
    pub(super) dry_run: bool,
    /// The same key again returns what was stored the first time. Required unless `dry_run`.
    #[serde(default)]
    pub(super) idempotency_key: String,
}

/// Trade intents of a group. No broker is called.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ExecuteAnswer {
    pub(super) group_id: String,
    pub(super) intents: Vec<Intent>,
    pub(super) skipped: Vec<ItemReason>,
}

/// A trade intent.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Intent {
    pub(super) instrument_key: String,
    /// buy or sell.
    pub(super) side: &'static str,
    pub(super) entry: f64,
    pub(super) stop: f64,
    pub(super) target: f64,
    pub(super) quantity: f64,
    pub(super) reason: String,
    #[schema(format = DateTime)]
    pub(super) created_at: String,
}

/// Why one item has no answer; the others are not affected.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ItemReason {
    pub(super) instrument_key: String,
    /// A sentence, naming the value.
    pub(super) reason: String,
}

/// Quotes, with last indicator values on request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct QuotesRequest {
    /// At most 1000.
    pub(super) instrument_keys: Vec<String>,
    /// Indicators of daily candles to add, for example `["rsi:14"]`; an empty list: the D3 set; absent: none.
    pub(super) indicators: Option<Vec<String>>,
}

/// Quotes in the order asked.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct QuotesAnswer {
    pub(super) quotes: Vec<Quote>,
    pub(super) errors: Vec<ItemReason>,
}

/// Last known state of an instrument's latest trading date.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Quote {
    pub(super) instrument_key: String,
    pub(super) last_price: f64,
    pub(super) open: f64,
    pub(super) high: f64,
    pub(super) low: f64,
    pub(super) close: f64,
    pub(super) volume: f64,
    /// Null on the first trading date.
    pub(super) previous_close: Option<f64>,
    pub(super) change: Option<f64>,
    pub(super) change_percent: Option<f64>,
    /// Open time of the last candle.
    #[schema(format = DateTime)]
    pub(super) time: String,
    /// Last values of daily candles by column name; null where undefined. Present when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<std::collections::BTreeMap<String, Option<f64>>>)]
    pub(super) indicators: Option<LastValues>,
}

/// The last value of each column.
#[derive(Debug)]
pub(super) struct LastValues(pub(super) Vec<wire::Column>);

impl Serialize for LastValues {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|column| {
            let last = column_values(column).last().copied().flatten();
            (&column.name, last)
        }))
    }
}

/// Candles of many instruments.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct IntradayRequest {
    /// At most 5000.
    pub(super) instrument_keys: Vec<String>,
    pub(super) timeframe: String,
    /// RFC 3339; absent: as far back as data exists.
    #[schema(format = DateTime)]
    pub(super) start: Option<String>,
    /// RFC 3339, exclusive; absent: as far as data exists.
    #[schema(format = DateTime)]
    pub(super) end: Option<String>,
    /// raw, splits or splits_and_dividends; absent: raw, as stored.
    #[serde(default)]
    pub(super) adjustment: Option<String>,
}

/// Candles of many instruments, in the order asked.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct IntradayAnswer {
    pub(super) quotes: Vec<IntradayQuote>,
    pub(super) errors: Vec<ItemReason>,
}

/// Candles of one instrument.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct IntradayQuote {
    pub(super) instrument_key: String,
    pub(super) candles: Vec<Candle>,
}

/// Candles to store: one batch, or several under `batches`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StoreRequest {
    pub(super) instrument_key: Option<String>,
    /// Source timeframe; absent: 1m.
    pub(super) timeframe: Option<String>,
    /// Calendar of an instrument not seen before; absent: by the key's segment.
    pub(super) calendar: Option<String>,
    #[serde(default)]
    pub(super) candles: Vec<StoreCandle>,
    #[serde(default)]
    pub(super) batches: Vec<StoreBatch>,
}

/// Candles of one instrument and source timeframe, in any order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StoreBatch {
    pub(super) instrument_key: String,
    /// Absent: 1m.
    #[serde(default)]
    pub(super) timeframe: String,
    #[serde(default)]
    pub(super) calendar: String,
    pub(super) candles: Vec<StoreCandle>,
}

/// A candle to store.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StoreCandle {
    /// RFC 3339.
    #[schema(format = DateTime)]
    pub(super) open_time: String,
    pub(super) open: f64,
    pub(super) high: f64,
    pub(super) low: f64,
    pub(super) close: f64,
    pub(super) volume: f64,
    /// Null or absent when the source has none.
    #[serde(default)]
    pub(super) open_interest: Option<f64>,
}

/// What became of the rows.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct StoreAnswer {
    /// Rows new or changed.
    pub(super) stored: u64,
    /// Rows already there with the same values.
    pub(super) unchanged: u64,
    pub(super) rejected: Vec<RejectedRow>,
    /// Data revision of the instrument afterwards; of several, the highest. Null when no row could be read.
    pub(super) revision: Option<u64>,
}

/// A row that was not stored.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RejectedRow {
    /// Index of the batch, from 0, where several were sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) batch: Option<usize>,
    /// Index in the batch, from 0.
    pub(super) row: u64,
    /// Names the field, the value and the rule.
    pub(super) reason: String,
}

/// Master data, a page of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct InstrumentsAnswer {
    pub(super) instruments: Vec<Instrument>,
    /// Give it as `page_token` for the next page; empty on the last one.
    pub(super) next_page_token: String,
}

/// Master data of an instrument.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Instrument {
    pub(super) instrument_key: String,
    pub(super) name: String,
    pub(super) exchange: String,
    pub(super) currency: String,
    /// Smallest price step; 0 when unknown.
    pub(super) tick_size: f64,
    pub(super) calendar: String,
}

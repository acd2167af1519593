//! Candles as they form, close and are corrected: the port, and its adapter over gRPC.

use std::fmt::Debug;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use market::{Candle, Date, InstrumentKey, Millis, Timeframe};
use proto::aggregation::{CandleEvent, CandleUpdate, WatchCandlesRequest, WatchCandlesResponse};
use proto::convert;

use super::RemoteAggregation;
use super::remote::malformed;
use crate::RemoteError;

/// One candle, and what happened to it.
#[derive(Debug, Clone)]
pub struct CandleNews {
    pub key: InstrumentKey,
    pub timeframe: Timeframe,
    pub event: CandleEvent,
    pub candle: Candle,
    pub trading_date: Date,
    /// Data revision of the candle.
    pub revision: u64,
}

impl CandleNews {
    pub fn open_time(&self) -> Millis {
        self.candle.open_time
    }
}

/// What happened, in order; may be empty, as a sign of life.
#[derive(Debug, Clone, Default)]
pub struct NewsBatch {
    pub news: Vec<CandleNews>,
    /// Resume with it; opaque.
    pub cursor: String,
    /// What had been missed was told before it, and what follows happens now; once in a stream.
    pub is_caught_up: bool,
}

/// Candles as they change; aggregation's.
#[tonic::async_trait]
pub trait LiveCandles: Send + Sync + Debug {
    /// What happens to the candles of some instruments and timeframes after a cursor, or from now on where it is empty: what was missed
    /// first, to the batch that says so. Ends with FAILED_PRECONDITION when the cursor has expired, RESOURCE_EXHAUSTED when the reader
    /// does not keep up.
    async fn watch(
        &self,
        keys: &[InstrumentKey],
        timeframes: &[Timeframe],
        cursor: &str,
    ) -> Result<BoxStream<'static, Result<NewsBatch, RemoteError>>, RemoteError>;
}

#[tonic::async_trait]
impl LiveCandles for RemoteAggregation {
    async fn watch(
        &self,
        keys: &[InstrumentKey],
        timeframes: &[Timeframe],
        cursor: &str,
    ) -> Result<BoxStream<'static, Result<NewsBatch, RemoteError>>, RemoteError> {
        let request = WatchCandlesRequest {
            instrument_keys: keys.iter().map(ToString::to_string).collect(),
            timeframes: timeframes.iter().map(ToString::to_string).collect(),
            cursor: cursor.to_owned(),
            ..Default::default()
        };
        let answers = self.live.clone().watch_candles(request).await?.into_inner();
        Ok(answers.map_err(RemoteError::from).and_then(|answer| async move { batch(answer) }).boxed())
    }
}

fn batch(answer: WatchCandlesResponse) -> Result<NewsBatch, RemoteError> {
    let news = answer.updates.into_iter().map(news).collect::<Result<_, _>>()?;
    Ok(NewsBatch { news, cursor: answer.cursor, is_caught_up: answer.caught_up })
}

fn news(update: CandleUpdate) -> Result<CandleNews, RemoteError> {
    let event = update.event();
    let row = update.candle.ok_or_else(|| malformed("an update without a candle"))?;
    let open_time = row.open_time.as_ref().and_then(convert::millis);
    let candle = Candle {
        open_time: open_time.ok_or_else(|| malformed("a candle without a time"))?,
        open: row.open,
        high: row.high,
        low: row.low,
        close: row.close,
        volume: row.volume,
        open_interest: row.open_interest,
    };
    candle.check().map_err(malformed)?;
    Ok(CandleNews {
        key: update.instrument_key.parse().map_err(malformed)?,
        timeframe: update.timeframe.parse().map_err(malformed)?,
        event,
        candle,
        trading_date: market::parse_date(&row.trading_date).map_err(malformed)?,
        revision: update.revision,
    })
}

//! Quotes: the latest trading date of an instrument, beside the close before it.
//!
//! A quote is read from the end of what is stored, never from the whole: for all instruments of the request together one look-up of
//! their master data and one per source timeframe; and a few blocks more of an instrument that is stored in several timeframes or
//! in days.

use futures::{StreamExt, TryStreamExt};
use market::{Calendar, Candle, Date, Instrument, InstrumentKey, Millis, TimeRange, Timeframe};
use proto::convert::FieldError;
use store::LastCandle;

use super::{Engine, Error, LOOKUPS, Result};

const DAY_MS: Millis = 24 * 60 * 60 * 1000;
/// How far before the latest trading date the one before it is looked for.
const MAX_GAP_DAYS: Millis = 400;

/// Last known state of an instrument's latest trading date.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Quote {
    pub(crate) trading_date: Date,
    /// The date so far as one candle.
    pub(crate) day: Candle,
    /// Open time of the last candle.
    pub(crate) time: Millis,
    pub(crate) previous_close: Option<f64>,
}

impl Quote {
    pub(crate) fn last_price(&self) -> f64 {
        self.day.close
    }

    pub(crate) fn change(&self) -> Option<f64> {
        self.previous_close.map(|previous| self.last_price() - previous).filter(|change| change.is_finite())
    }

    /// Percent of the previous close; absent where that is 0.
    pub(crate) fn change_percent(&self) -> Option<f64> {
        let percent = self.change()? / self.previous_close? * 100.0;
        percent.is_finite().then_some(percent)
    }
}

/// The end of what is stored in one source timeframe.
#[derive(Debug)]
struct Tail {
    source: Timeframe,
    trading_date: Date,
    last: LastCandle,
}

impl Tail {
    fn new(source: Timeframe, calendar: &Calendar, last: LastCandle) -> Tail {
        // The block of days is a year, so its date is not that of the candle.
        let trading_date = match source {
            Timeframe::D1 => calendar.day_at(last.candle.open_time).date,
            _ => last.trading_date,
        };
        Tail { source, trading_date, last }
    }

    fn day(&self) -> Candle {
        if self.source == Timeframe::D1 { self.last.candle } else { self.last.block }
    }
}

impl Engine {
    /// A quote for each key, in order; what is wrong with one of them harms no other. A trading date is told from its narrowest source.
    pub(crate) async fn quotes(
        &self,
        keys: Vec<std::result::Result<InstrumentKey, FieldError>>,
    ) -> Result<Vec<Result<Quote>>> {
        let mut wanted: Vec<InstrumentKey> = keys.iter().filter_map(|key| key.as_ref().ok().cloned()).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let wanted = &wanted;
        let instruments = self.stores.catalog.instruments(wanted).await?;
        // Candles wider than a day cannot tell a trading date. Narrow to wide, whatever order they are answered in.
        let sources = Timeframe::ALL.into_iter().filter(|source| *source <= Timeframe::D1);
        let lookups: Vec<_> =
            sources
                .map(|source| async move {
                    Ok::<_, Error>((source, self.stores.candles.last_candles(wanted, source).await?))
                })
                .collect();
        let lasts: Vec<_> = futures::stream::iter(lookups).buffered(LOOKUPS).try_collect().await?;
        let lasts_of = |key: &InstrumentKey| -> Vec<(Timeframe, LastCandle)> {
            let Ok(at) = wanted.binary_search(key) else { return Vec::new() };
            lasts.iter().filter_map(|(source, lasts)| Some((*source, lasts.get(at)?.clone()?))).collect()
        };
        let instrument_of = |key: &InstrumentKey| instruments.get(wanted.binary_search(key).ok()?)?.clone();
        let quotes = keys.into_iter().map(|key| {
            let lasts = key.as_ref().map(lasts_of).unwrap_or_default();
            let instrument = key.as_ref().ok().and_then(instrument_of);
            async move { self.quote(&key?, instrument, lasts).await }
        });
        // Collected first: the borrow checker cannot follow a closure that borrows through a buffered stream.
        let quotes: Vec<_> = quotes.collect();
        Ok(futures::stream::iter(quotes).buffered(LOOKUPS).collect().await)
    }

    async fn quote(
        &self,
        key: &InstrumentKey,
        instrument: Option<Instrument>,
        lasts: Vec<(Timeframe, LastCandle)>,
    ) -> Result<Quote> {
        let instrument = instrument.ok_or_else(|| Error::UnknownInstrument(key.clone()))?;
        let calendar = Calendar::by_name(&instrument.calendar)?;
        let tails: Vec<Tail> = lasts.into_iter().map(|(source, last)| Tail::new(source, &calendar, last)).collect();
        // Of several that reach the same date the first, that is the narrowest, stays.
        let newest = tails.iter().reduce(|best, tail| if tail.trading_date > best.trading_date { tail } else { best });
        let newest = newest.ok_or_else(|| Error::NoCandles(key.clone()))?;
        let previous_close = match tails.as_slice() {
            [only] if only.source != Timeframe::D1 => only.last.previous_close,
            _ => self.previous_close(key, &calendar, newest.trading_date, &tails).await?,
        };
        let (trading_date, time) = (newest.trading_date, newest.last.candle.open_time);
        Ok(Quote { trading_date, day: newest.day(), time, previous_close })
    }

    /// Close of the last trading date before `date` that any source has; of several sources the narrowest's.
    async fn previous_close(
        &self,
        key: &InstrumentKey,
        calendar: &Calendar,
        date: Date,
        tails: &[Tail],
    ) -> Result<Option<f64>> {
        let before = calendar.day(date).start;
        let mut best: Option<(Date, f64)> = None;
        for tail in tails {
            let found = if tail.trading_date < date {
                Some((tail.trading_date, tail.last.candle.close))
            } else {
                let last = self.last_before(key, tail.source, before).await?;
                last.map(|candle| (calendar.day_at(candle.open_time).date, candle.close))
            };
            if let Some(found) = found.filter(|found| best.is_none_or(|best| found.0 > best.0)) {
                best = Some(found);
            }
        }
        Ok(best.map(|(_, close)| close))
    }

    /// The last candle before an instant, sought in windows that double, so that a usual gap reads one block or two.
    async fn last_before(&self, key: &InstrumentKey, source: Timeframe, before: Millis) -> Result<Option<Candle>> {
        let (mut end, mut days) = (before, 1);
        while before - end < MAX_GAP_DAYS * DAY_MS {
            let Ok(window) = TimeRange::new(end - days * DAY_MS, end) else { break };
            let mut blocks = self.stores.candles.read(key, source, window, None);
            let mut last = None;
            while let Some(block) = blocks.try_next().await? {
                last = block.frame.len().checked_sub(1).map(|row| block.frame.candle(row));
            }
            if last.is_some() {
                return Ok(last);
            }
            (end, days) = (window.start(), days * 2);
        }
        Ok(None)
    }
}

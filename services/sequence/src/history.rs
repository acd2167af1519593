//! Candles of one instrument, from its first one up to a point in time.

use std::sync::Arc;

use market::{BucketFrame, Calendar, Date, Instrument, InstrumentKey, TimeRange, Timeframe};
use mesh::source::{Candles, MasterData};

use crate::engine::Error;
use crate::{Config, Ports};

/// Reads histories.
#[derive(Debug, Clone)]
pub(crate) struct Histories {
    candles: Arc<dyn Candles>,
    master: Arc<dyn MasterData>,
    max_candles: usize,
}

/// All candles of an instrument that a point in time knows of.
#[derive(Debug, Clone)]
pub(crate) struct History {
    pub(crate) key: InstrumentKey,
    pub(crate) timeframe: Timeframe,
    pub(crate) revision: u64,
    pub(crate) buckets: BucketFrame,
}

impl Histories {
    pub(crate) fn new(config: &Config, ports: &Ports) -> Self {
        Self { candles: Arc::clone(&ports.candles), master: Arc::clone(&ports.master), max_candles: config.max_candles }
    }

    pub(crate) async fn instrument(&self, key: &InstrumentKey) -> Result<Instrument, Error> {
        match self.master.instrument(key).await {
            Err(error) if error.is_not_found() => Err(Error::UnknownInstrument(key.clone())),
            outcome => Ok(outcome?),
        }
    }

    pub(crate) async fn universe(&self) -> Result<Vec<Instrument>, Error> {
        Ok(self.master.instruments().await?)
    }

    /// Candles that open before the end of a range.
    pub(crate) async fn before(
        &self,
        key: &InstrumentKey,
        timeframe: Timeframe,
        range: TimeRange,
    ) -> Result<History, Error> {
        // The range is not empty, so neither is what reaches back from its end.
        let until = TimeRange::new(TimeRange::ALL.start(), range.end()).unwrap_or(range);
        let answer = match self.candles.candles(key, timeframe, until, None).await {
            Err(error) if error.is_not_found() => return Err(Error::UnknownInstrument(key.clone())),
            answer => answer?,
        };
        let (found, limit) = (answer.frame.len(), self.max_candles);
        if found > limit {
            let way = "ask for a wider timeframe";
            return Err(Error::Limit { what: "candles of one instrument", found, limit, way });
        }
        Ok(History { key: key.clone(), timeframe, revision: answer.revision, buckets: answer.frame })
    }

    /// Candles known at the end of a trading date, or all there are.
    ///
    /// Weeks and months that go on after the date are left out: their later part was not known.
    pub(crate) async fn at_date(
        &self,
        instrument: &Instrument,
        timeframe: Timeframe,
        date: Option<Date>,
    ) -> Result<(History, Arc<Calendar>), Error> {
        let key = &instrument.key;
        let calendar =
            Calendar::by_name(&instrument.calendar).map_err(|source| Error::Calendar { key: key.clone(), source })?;
        let Some(date) = date else {
            return Ok((self.before(key, timeframe, TimeRange::ALL).await?, calendar));
        };
        let end = calendar.day(date).end;
        let until = TimeRange::new(TimeRange::ALL.start(), end).unwrap_or(TimeRange::ALL);
        let mut history = self.before(key, timeframe, until).await?;
        if let Some(last) = history.buckets.len().checked_sub(1)
            && matches!(timeframe, Timeframe::W1 | Timeframe::Mo1)
        {
            let day = calendar.day(history.buckets.trading_date[last]);
            if calendar.bucket(&day, timeframe, day.anchor).end() > end {
                history.buckets = history.buckets.slice(0..last);
            }
        }
        Ok((history, calendar))
    }
}

impl History {
    pub(crate) fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Trading date of the last candle.
    pub(crate) fn last_date(&self) -> Option<Date> {
        self.buckets.trading_date.last().copied()
    }

    pub(crate) fn candles(&self) -> kernels::sequence::Candles<'_> {
        let frame = &self.buckets.frame;
        kernels::sequence::Candles {
            open: frame.open(),
            high: frame.high(),
            low: frame.low(),
            close: frame.close(),
            volume: frame.volume(),
        }
    }
}

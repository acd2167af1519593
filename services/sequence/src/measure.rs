//! Trend, volatility and Bollinger width of one instrument at the end of a date.

use std::sync::Arc;

use kernels::trend::{self, TrendState, VolatilityParams, volatility};
use kernels::width::{self, Width, WidthParams};
use market::{Calendar, Date, Timeframe};
use mesh::CpuPool;

use crate::Ports;
use crate::engine::Error;
use crate::history::{Histories, History};
use crate::query::{Moment, TrendQuery, VolatilityQuery};

const MINUTE_MS: i64 = 60_000;
/// Trading days of a year by convention, and where there is no weekend.
const DAYS_PER_YEAR: f64 = 252.0;
const DAYS_PER_YEAR_24X7: f64 = 365.0;
/// Days whose 5m, or other intraday, widths a width is ranked in; wider timeframes take the kernel's 126 candles.
const WIDTH_DAYS: usize = 20;

/// A figure, and the trading date of the last candle it rests on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Dated<T> {
    pub(crate) date: Date,
    pub(crate) figure: T,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct VolatilityFigure {
    pub(crate) annualised: f64,
    pub(crate) atr_percent: f64,
}

#[derive(Debug)]
pub(crate) struct Measures {
    histories: Histories,
    pool: Arc<CpuPool>,
}

impl Measures {
    pub(crate) fn new(histories: Histories, ports: &Ports) -> Self {
        Self { histories, pool: Arc::clone(&ports.pool) }
    }

    #[tracing::instrument(level = "debug", skip_all, fields(instrument = %query.moment.key))]
    pub(crate) async fn trend(&self, query: &TrendQuery) -> Result<Dated<TrendState>, Error> {
        let params = query.params;
        let needed = (params.period + params.window) as usize - 1;
        let (history, _, date) = self.history(&query.moment, "trend", needed).await?;
        let (key, timeframe, found) = (history.key.clone(), history.timeframe, history.len());
        let state = self.pool.run(move || trend::at_end(history.candles().close, &params)).await?;
        let missing = Error::TooFewCandles { what: "trend", key, timeframe, needed, found, date: query.moment.date };
        let figure = state.ok_or(missing)?;
        Ok(Dated { date, figure })
    }

    #[tracing::instrument(level = "debug", skip_all, fields(instrument = %query.moment.key))]
    pub(crate) async fn volatility(&self, query: &VolatilityQuery) -> Result<Dated<VolatilityFigure>, Error> {
        let default = VolatilityParams::default();
        let needed = query.window.max(default.atr_period) as usize + 1;
        let (history, calendar, date) = self.history(&query.moment, "volatility", needed).await?;
        let candles_per_year = candles_per_year(&calendar, history.timeframe, date);
        let params = VolatilityParams { window: query.window, candles_per_year, ..default };
        let key = history.key.clone();
        let found = self.pool.run(move || volatility(&history.candles(), &params)).await?;
        match (found.annualised, found.atr_percent) {
            (Some(annualised), Some(atr_percent)) => {
                Ok(Dated { date, figure: VolatilityFigure { annualised, atr_percent } })
            }
            _ => Err(Error::NotPositive { what: "volatility", key }),
        }
    }

    #[tracing::instrument(level = "debug", skip_all, fields(instrument = %moment.key))]
    pub(crate) async fn width(&self, moment: &Moment) -> Result<Dated<Width>, Error> {
        let mut params = WidthParams::default();
        let (history, calendar, date) = self.history(moment, "bollinger width", params.period as usize).await?;
        if history.timeframe.width_ms().is_some() {
            params.history = (WIDTH_DAYS * candles_per_day(&calendar, history.timeframe, date)) as u32;
        }
        let key = history.key.clone();
        let found = self.pool.run(move || width::at_end(history.candles().close, &params)).await?;
        let figure = found.ok_or(Error::NotPositive { what: "bollinger width", key })?;
        Ok(Dated { date, figure })
    }

    async fn history(
        &self,
        moment: &Moment,
        what: &'static str,
        needed: usize,
    ) -> Result<(History, Arc<Calendar>, Date), Error> {
        let Moment { key, timeframe, date } = moment.clone();
        let instrument = self.histories.instrument(&key).await?;
        let (history, calendar) = self.histories.at_date(&instrument, timeframe, date).await?;
        match history.last_date() {
            Some(last) if history.len() >= needed => {
                history.candles().check()?;
                Ok((history, calendar, last))
            }
            _ => Err(Error::TooFewCandles { what, key, timeframe, needed, found: history.len(), date }),
        }
    }
}

/// Scale of a year for annualising: by convention 252 days, 365 where there is no weekend; inside a day, times its session's candles.
fn candles_per_year(calendar: &Calendar, timeframe: Timeframe, date: Date) -> f64 {
    let days = if calendar.name() == "24x7" { DAYS_PER_YEAR_24X7 } else { DAYS_PER_YEAR };
    match timeframe {
        Timeframe::W1 => 52.0,
        Timeframe::Mo1 => 12.0,
        _ => days * candles_per_day(calendar, timeframe, date) as f64,
    }
}

/// Candles of the fullest session of the week up to a date, at least 1: the date itself may be a half day.
fn candles_per_day(calendar: &Calendar, timeframe: Timeframe, date: Date) -> usize {
    let Some(width_ms) = timeframe.width_ms() else { return 1 };
    let mut day = calendar.day(date);
    let mut fullest_ms = 0;
    for _ in 0..7 {
        let session_ms = day.sessions.iter().map(|session| session.close - session.open).sum::<i64>();
        fullest_ms = fullest_ms.max(session_ms);
        day = calendar.day_at(day.start - MINUTE_MS);
    }
    usize::try_from((fullest_ms + width_ms - 1) / width_ms).unwrap_or(0).max(1)
}

#[cfg(test)]
mod tests;

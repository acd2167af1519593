//! The candles a study runs over, and what a year of them is.

use std::sync::Arc;

use kernels::backtest::Costs;
use market::{BucketFrame, Calendar, Date, InstrumentKey, Millis, Timeframe};
use mesh::RemoteError;
use tonic::Code;

use super::run::{Failure, Stop};
use super::spec::Spec;
use crate::{Config, Ports};

/// Trading days of a year: what the industry scales daily figures by, and every day for markets that never close.
const TRADING_DAYS: f64 = 252.0;
const ALL_DAYS: f64 = 365.0;
/// A Wednesday on which every shipped calendar has its regular hours.
const REGULAR_DATE: Date = Date::constant(2024, 3, 13);

/// Closes of one instrument, oldest first, and what trading it costs.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) key: InstrumentKey,
    pub(crate) close: Vec<f64>,
    pub(crate) costs: Costs,
}

/// Fetches every instrument's closes at its pinned revision, one after another; upstream faults that pass are tried again.
pub(crate) async fn fetch(
    ports: &Ports,
    config: &Config,
    spec: &Spec,
    revisions: &[u64],
    created_at: Millis,
    stop: &Stop,
) -> Result<Arc<[Series]>, Failure> {
    let needed = needed_candles(spec);
    let mut all = Vec::with_capacity(spec.keys.len());
    let mut candles = 0;
    for (key, revision) in spec.keys.iter().zip(revisions) {
        let series = fetch_patiently(ports, config, spec, key, *revision, created_at, stop).await?;
        let found = series.close.len();
        if found < needed {
            return Err(Failure::TooFewCandles { key: key.clone(), found, needed });
        }
        candles += found;
        if candles > config.max_candles {
            return Err(Failure::TooManyCandles { limit: config.max_candles });
        }
        all.push(series);
    }
    Ok(all.into())
}

/// Enough for the longest indicator to act once, and for a return in every fold.
fn needed_candles(spec: &Spec) -> usize {
    let folds = if spec.folds > 0 { 2 * (spec.folds + 1) } else { 0 };
    folds.max(spec.space.largest_period() + 2)
}

async fn fetch_patiently(
    ports: &Ports,
    config: &Config,
    spec: &Spec,
    key: &InstrumentKey,
    revision: u64,
    created_at: Millis,
    stop: &Stop,
) -> Result<Series, Failure> {
    let mut pause = config.retry_pause;
    let mut attempt = 1;
    loop {
        let fetched = tokio::select! {
            biased;
            () = stop.asked() => return Err(Failure::Stopped),
            fetched = tokio::time::timeout(config.fetch_timeout, fetch_once(ports, spec, key, revision, created_at)) => fetched,
        };
        match fetched {
            Ok(Err(Failure::Upstream { source, .. })) if passes(&source) && attempt < config.fetch_attempts => {
                tracing::warn!(instrument = %key, attempt, error = %source, "candles of a study are not available");
            }
            Err(_) if attempt < config.fetch_attempts => {
                tracing::warn!(instrument = %key, attempt, "candles of a study take too long");
            }
            Ok(fetched) => return fetched,
            Err(_) => return Err(Failure::Slow { key: key.clone(), seconds: config.fetch_timeout.as_secs() }),
        }
        stop.sleep(pause).await?;
        pause = (pause * 2).min(config.max_retry_pause);
        attempt += 1;
    }
}

/// Whether the same call may be answered later.
fn passes(error: &RemoteError) -> bool {
    matches!(error.code, Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted)
}

async fn fetch_once(
    ports: &Ports,
    spec: &Spec,
    key: &InstrumentKey,
    revision: u64,
    created_at: Millis,
) -> Result<Series, Failure> {
    let upstream = |source| Failure::Upstream { key: key.clone(), source };
    let instrument = ports.master.instrument(key).await.map_err(upstream)?;
    let calendar =
        Calendar::by_name(&instrument.calendar).map_err(|source| Failure::Calendar { key: key.clone(), source })?;
    let buckets = ports.candles.candles(key, spec.timeframe, spec.range, Some(revision)).await.map_err(upstream)?;
    if buckets.revision != revision {
        return Err(Failure::WrongRevision { key: key.clone(), asked: revision, found: buckets.revision });
    }
    let rows = closed_rows(&buckets.frame, &calendar, spec.timeframe, created_at);
    let close = buckets.frame.frame.close()[..rows].to_vec();
    let costs = Costs { fee_bp: spec.fee_bp, candles_per_year: candles_per_year(&calendar, spec.timeframe) };
    Ok(Series { key: key.clone(), close, costs })
}

/// Rows whose bucket had ended when the study was created. A candle still forming then may be marked closed when the study is resumed,
/// with the same data in it.
fn closed_rows(frame: &BucketFrame, calendar: &Calendar, timeframe: Timeframe, created_at: Millis) -> usize {
    let ended = |open_time: Millis| {
        let day = calendar.day_at(open_time);
        calendar.bucket(&day, timeframe, open_time).end() <= created_at
    };
    // Buckets end in the order they open.
    frame.frame.open_time().partition_point(|open_time| ended(*open_time))
}

/// Candles of a year of regular sessions, the scale of the Sharpe ratio.
fn candles_per_year(calendar: &Calendar, timeframe: Timeframe) -> f64 {
    let days = if calendar.name() == "24x7" { ALL_DAYS } else { TRADING_DAYS };
    match (timeframe, timeframe.width_ms()) {
        (Timeframe::W1, _) => 52.0,
        (Timeframe::Mo1, _) => 12.0,
        (_, Some(width)) => {
            let sessions = calendar.day(REGULAR_DATE).sessions;
            let open_ms: Millis = sessions.iter().map(|session| session.close - session.open).sum();
            days * (open_ms as f64 / width as f64).ceil().max(1.0)
        }
        (_, None) => days,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candle_that_was_forming_at_creation_never_counts() {
        let calendar = Calendar::by_name("24x7").unwrap();
        let day = 86_400_000;
        let column = || vec![1.0; 3];
        let ohlcv = [column(), column(), column(), column(), column()];
        let frame = market::Frame::from_columns(vec![0, day, 2 * day], ohlcv, column()).unwrap();
        // What the answer calls closed depends on when it is asked, and is not looked at.
        let frame = BucketFrame { frame, ..Default::default() };
        for (created_at, rows) in [(3 * day, 3), (3 * day - 1, 2), (2 * day, 2), (day - 1, 0)] {
            assert_eq!(closed_rows(&frame, &calendar, Timeframe::D1, created_at), rows);
        }
    }

    #[test]
    fn a_year_is_counted_in_the_sessions_of_the_exchange() {
        // Regular hours: NSE 6 h 15 min, NYSE 6 h 30 min, 24x7 all day.
        for (calendar, timeframe, want) in [
            ("NSE", Timeframe::D1, 252.0),
            ("NSE", Timeframe::M1, 252.0 * 375.0),
            ("NSE", Timeframe::H1, 252.0 * 7.0),
            ("NYSE", Timeframe::M5, 252.0 * 78.0),
            ("NYSE", Timeframe::H4, 252.0 * 2.0),
            ("24x7", Timeframe::D1, 365.0),
            ("24x7", Timeframe::H1, 365.0 * 24.0),
            ("CME", Timeframe::D1, 252.0),
            ("FX", Timeframe::W1, 52.0),
            ("EUREX", Timeframe::Mo1, 12.0),
        ] {
            assert_eq!(
                candles_per_year(&Calendar::by_name(calendar).unwrap(), timeframe),
                want,
                "{calendar} {timeframe}"
            );
        }
        for name in Calendar::NAMES {
            let calendar = Calendar::by_name(name).unwrap();
            for timeframe in Timeframe::ALL {
                let costs = Costs { fee_bp: 0.0, candles_per_year: candles_per_year(&calendar, timeframe) };
                costs.check().unwrap();
            }
        }
    }
}

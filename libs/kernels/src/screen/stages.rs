use crate::screen::{Rejected, Row, ScreenParams, Side, Stage};
use crate::sequence::{Candles, TrendInput, moves, ratio};
use crate::trend::{Figure, Trend};

/// Runs one stage: fills in what it learns, or says why the instrument is out.
///
/// Stages are to be run in the order of [`Stage::ALL`], on the same row.
pub fn step(stage: Stage, candles: &Candles, params: &ScreenParams, row: &mut Row) -> Result<(), Rejected> {
    let outcome = check(candles).and_then(|()| {
        row.last_close = candles.close[candles.len() - 1];
        row.mean_volume = ratio(candles.volume.iter().sum(), candles.volume.len() as f64);
        match stage {
            Stage::Basic => basic(candles, params, row),
            Stage::Ema => ema(candles, params, row),
            Stage::Rsi => rsi(candles, params, row),
            Stage::StrongMove => strong_move(candles, params, row),
        }
    });
    outcome.map_err(|Failure { value, reason }| Rejected { stage, reason, value, side: row.side })
}

struct Failure {
    value: f64,
    reason: String,
}

impl Failure {
    fn new(value: f64, reason: String) -> Failure {
        Failure { value, reason }
    }
}

fn check(candles: &Candles) -> Result<(), Failure> {
    // The value is a count: the one at fault may be the value that is not a number.
    candles.check().map_err(|error| Failure::new(candles.len() as f64, error.to_string()))?;
    if candles.is_empty() {
        return Err(Failure::new(0.0, "no candles".to_owned()));
    }
    Ok(())
}

fn basic(candles: &Candles, params: &ScreenParams, row: &Row) -> Result<(), Failure> {
    let count = candles.len();
    let (price, volume) = (row.last_close, row.mean_volume);
    if count < params.min_candles as usize {
        return Err(Failure::new(count as f64, format!("{count} candles, fewer than {}", params.min_candles)));
    }
    if price < params.min_price {
        return Err(Failure::new(price, format!("last close {price:.2} is below {:.2}", params.min_price)));
    }
    if price > params.max_price {
        return Err(Failure::new(price, format!("last close {price:.2} is above {:.2}", params.max_price)));
    }
    if volume < params.min_volume {
        return Err(Failure::new(volume, format!("mean volume {volume:.0} is below {:.0}", params.min_volume)));
    }
    Ok(())
}

fn ema(candles: &Candles, params: &ScreenParams, row: &mut Row) -> Result<(), Failure> {
    let Some(average) = Figure::new("ema", params.ema_period).last(candles.close) else {
        return Err(too_few(candles, "ema", params.ema_period));
    };
    if average <= 0.0 {
        return Err(Failure::new(average, format!("ema {average} is not positive, so it has no distance in percent")));
    }
    let distance = ratio(row.last_close - average, average) * 100.0;
    row.distance_percent = Some(distance);
    let limit = params.ema_distance_percent;
    row.side = if distance > limit {
        Some(Side::Bullish)
    } else if distance < -limit {
        Some(Side::Bearish)
    } else {
        return Err(Failure::new(
            distance,
            format!("close is {distance:.3} % from ema {average:.2}, within {limit} % either way"),
        ));
    };
    Ok(())
}

fn rsi(candles: &Candles, params: &ScreenParams, row: &mut Row) -> Result<(), Failure> {
    let Some(rsi) = Figure::new("rsi", params.rsi_period).last(candles.close) else {
        return Err(too_few(candles, "rsi", params.rsi_period.saturating_add(1)));
    };
    row.rsi = Some(rsi);
    let (bullish_min, bearish_max) = (params.rsi_bullish_min, params.rsi_bearish_max);
    let side = if rsi >= bullish_min {
        Some(Side::Bullish)
    } else if rsi <= bearish_max {
        Some(Side::Bearish)
    } else {
        None
    };
    // The thresholds may meet; then the side the instrument has decides.
    let keeps = match row.side {
        Some(Side::Bullish) => rsi >= bullish_min,
        Some(Side::Bearish) => rsi <= bearish_max,
        None => side.is_some(),
    };
    if keeps {
        row.side = row.side.or(side);
        return Ok(());
    }
    Err(Failure::new(
        rsi,
        match row.side {
            Some(Side::Bullish) => format!("rsi {rsi:.2} of a bullish instrument is below {bullish_min}"),
            Some(Side::Bearish) => format!("rsi {rsi:.2} of a bearish instrument is above {bearish_max}"),
            None => format!("rsi {rsi:.2} is between {bearish_max} and {bullish_min}"),
        },
    ))
}

/// Strong days are those in the direction of the side; runs are of strong days and of all others, whatever their direction.
fn strong_move(candles: &Candles, params: &ScreenParams, row: &mut Row) -> Result<(), Failure> {
    let side = row.side.unwrap_or_else(|| side_by_mean(candles, params));
    row.side = Some(side);
    let trend = match side {
        Side::Bullish => Trend::Bullish,
        Side::Bearish => Trend::Bearish,
    };
    // Moves before the lookback are judged too, but only to be dropped: they carry the average volume.
    let needed = params.lookback as usize + params.moves.volume_window as usize;
    let recent = candles.last(needed);
    let moves = moves(&recent, &params.moves, TrendInput::All(trend));
    let looked_at = &moves[moves.len().saturating_sub(params.lookback as usize)..];

    let strong = looked_at.iter().filter(|each| each.is_strong);
    row.strong_move_count = strong.clone().count() as u32;
    row.strength = ratio(strong.map(|each| each.strength).sum(), f64::from(row.strong_move_count));

    let share = ratio(f64::from(row.strong_move_count), looked_at.len() as f64);
    if share < params.min_strong_ratio {
        return Err(Failure::new(
            share,
            format!(
                "{} of {} days are strong, a share of {share:.4}, below {}",
                row.strong_move_count,
                looked_at.len(),
                params.min_strong_ratio
            ),
        ));
    }
    let (mut strong_runs, mut longest, mut long_weak_runs) = (0, 0, 0);
    for run in looked_at.chunk_by(|a, b| a.is_strong == b.is_strong) {
        if run[0].is_strong {
            strong_runs += 1;
            longest = longest.max(run.len());
        } else if run.len() > params.long_weak_run as usize {
            long_weak_runs += 1;
        }
    }
    if longest < params.min_length as usize {
        return Err(Failure::new(
            longest as f64,
            format!("longest strong run is {longest} days, shorter than {}", params.min_length),
        ));
    }
    if long_weak_runs > strong_runs / 3 {
        return Err(Failure::new(
            f64::from(long_weak_runs),
            format!(
                "{long_weak_runs} runs of more than {} days without a strong move, more than {}, a third of {strong_runs} strong runs",
                params.long_weak_run,
                strong_runs / 3
            ),
        ));
    }
    Ok(())
}

/// Side of an instrument that no earlier stage gave one.
pub(crate) fn side_by_mean(candles: &Candles, params: &ScreenParams) -> Side {
    let close = candles.last(params.lookback as usize).close;
    let mean = ratio(close.iter().sum(), close.len() as f64);
    if close.last().is_some_and(|last| *last < mean) { Side::Bearish } else { Side::Bullish }
}

fn too_few(candles: &Candles, indicator: &str, needed: u32) -> Failure {
    let count = candles.len();
    Failure::new(count as f64, format!("{count} candles, {indicator} needs {needed}"))
}

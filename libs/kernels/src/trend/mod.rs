//! Trend by closes against their exponential average, and volatility.

mod fold;
mod volatility;

pub use volatility::{Volatility, VolatilityParams, volatility};

pub(crate) use fold::Figure;

use crate::Error;
use crate::sequence::require;

/// Closes closer to their average than this share of it lie on it: rounding is no side.
const TIE: f64 = 1e-12;

/// Which side of their average closes keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trend {
    Bullish,
    Bearish,
    Neutral,
}

/// How trend is judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrendParams {
    /// Period of the exponential average of closes, 2..=1000.
    pub period: u32,
    /// Last candles judged, 1..=1000.
    pub window: u32,
    /// Share of the window that must lie on one side, above 0.5 and up to 1: at a half both sides could claim it.
    pub min_share: f64,
}

impl Default for TrendParams {
    fn default() -> Self {
        TrendParams { period: 50, window: 20, min_share: 0.6 }
    }
}

/// Trend at the end of a series, and what it rests on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrendState {
    pub trend: Trend,
    /// Share of the window whose close is above its average, 0..=1; closes on the average are on neither side.
    pub share_above: f64,
    pub share_below: f64,
    pub last_close: f64,
    pub last_ema: f64,
}

impl TrendParams {
    /// Refuses values outside their ranges, naming the field.
    pub fn check(&self) -> Result<(), Error> {
        require((2..=1000).contains(&self.period), "period", self.period, "2..=1000")?;
        require((1..=1000).contains(&self.window), "window", self.window, "1..=1000")?;
        require(self.min_share > 0.5 && self.min_share <= 1.0, "min_share", self.min_share, "above 0.5, up to 1")
    }

    /// Candles before the first trend: the average's, then the window's.
    fn lookback(&self) -> usize {
        (self.period as usize + self.window as usize).saturating_sub(2)
    }
}

/// Judges the last `window` candles, each against its own average.
///
/// `None` with fewer than `period + window - 1` closes. Seed of the average: mean of the first `period` closes; smoothing 2 / (period + 1).
/// Domain: finite closes, checked parameters.
pub fn at_end(close: &[f64], params: &TrendParams) -> Option<TrendState> {
    let last_close = *close.last()?;
    let mut state = None;
    walk(close, params, |ema, above, below| state = Some((ema, above, below)));
    let (last_ema, above, below) = state?;
    if close.len() <= params.lookback() {
        return None;
    }
    let window = f64::from(params.window.max(1));
    Some(TrendState {
        trend: judge(above, below, params),
        share_above: f64::from(above) / window,
        share_below: f64::from(below) / window,
        last_close,
        last_ema,
    })
}

/// The trend as it stood at the end of each candle.
///
/// Shape: one value per close, `None` for the first `period + window - 2`. Causality: value i depends on closes 0..=i.
/// Cost: one pass.
pub fn series(close: &[f64], params: &TrendParams) -> Vec<Option<Trend>> {
    let lookback = params.lookback();
    let mut trends = vec![None; close.len()];
    let mut row = (params.period as usize).saturating_sub(1);
    walk(close, params, |_, above, below| {
        if row >= lookback {
            trends[row] = Some(judge(above, below, params));
        }
        row += 1;
    });
    trends
}

/// Calls `each` with the average and the window's counts above and below, for every candle that has an average.
fn walk(close: &[f64], params: &TrendParams, mut each: impl FnMut(f64, u32, u32)) {
    let window = params.window.max(1) as usize;
    // +1 above, -1 below, in a ring: counts stay exact, so nothing drifts.
    let mut sides: Vec<i8> = Vec::with_capacity(window);
    let (mut next, mut above, mut below) = (0, 0, 0);
    let mut ema = Figure::new("ema", params.period);
    for &close in close {
        let Some(ema) = ema.push(close) else { continue };
        let margin = TIE * ema.abs();
        let side = i8::from(close - ema > margin) - i8::from(ema - close > margin);
        if sides.len() < window {
            sides.push(side);
        } else {
            above -= u32::from(sides[next] > 0);
            below -= u32::from(sides[next] < 0);
            sides[next] = side;
        }
        next = if next + 1 == window { 0 } else { next + 1 };
        above += u32::from(side > 0);
        below += u32::from(side < 0);
        each(ema, above, below);
    }
}

fn judge(above: u32, below: u32, params: &TrendParams) -> Trend {
    let window = f64::from(params.window.max(1));
    if f64::from(above) / window >= params.min_share {
        Trend::Bullish
    } else if f64::from(below) / window >= params.min_share {
        Trend::Bearish
    } else {
        Trend::Neutral
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: TrendParams = TrendParams { period: 3, window: 5, min_share: 0.6 };

    /// Averages and counts recomputed from nothing for every candle.
    fn naive(close: &[f64], params: &TrendParams) -> Vec<Option<Trend>> {
        let (period, window) = (params.period as usize, params.window as usize);
        let alpha = 2.0 / (period as f64 + 1.0);
        (0..close.len())
            .map(|end| {
                if end + 2 < period + window {
                    return None;
                }
                let ema = |row: usize| {
                    let mut ema = close[..period].iter().sum::<f64>() / period as f64;
                    for x in &close[period..=row] {
                        ema = alpha * x + (1.0 - alpha) * ema;
                    }
                    ema
                };
                let rows = end + 1 - window..=end;
                let above = rows.clone().filter(|row| close[*row] > ema(*row) + 1e-9).count();
                let below = rows.filter(|row| close[*row] < ema(*row) - 1e-9).count();
                Some(if above * 10 >= window * 6 {
                    Trend::Bullish
                } else if below * 10 >= window * 6 {
                    Trend::Bearish
                } else {
                    Trend::Neutral
                })
            })
            .collect()
    }

    fn wave(n: usize) -> Vec<f64> {
        (0..n).map(|i| 100.0 + 20.0 * (i as f64 * 0.11).sin() + 3.0 * (i as f64 * 1.7).cos()).collect()
    }

    #[test]
    fn series_equals_the_definition_and_knows_all_three_trends() {
        let close = wave(300);
        assert_eq!(series(&close, &SMALL), naive(&close, &SMALL));
        let even = TrendParams { window: 6, ..SMALL };
        let found = series(&close, &even);
        assert_eq!(found, naive(&close, &even));
        for trend in [Trend::Bullish, Trend::Bearish, Trend::Neutral] {
            assert!(found.contains(&Some(trend)), "{trend:?}");
        }
    }

    #[test]
    fn series_ends_as_at_end_says_for_every_prefix() {
        let close = wave(120);
        let whole = series(&close, &SMALL);
        for n in 0..=close.len() {
            let state = at_end(&close[..n], &SMALL);
            assert_eq!(series(&close[..n], &SMALL), whole[..n]);
            assert_eq!(state.map(|each| each.trend), n.checked_sub(1).and_then(|last| whole[last]));
        }
    }

    #[test]
    fn exactly_sixty_percent_is_enough() {
        // Mean of 3 seeds the average at 10; then above, above, above, on nothing.
        let state = at_end(&[10.0, 10.0, 10.0, 11.0, 12.0, 13.0, 1.0], &SMALL).unwrap();
        assert_eq!((state.share_above, state.share_below, state.trend), (0.6, 0.2, Trend::Bullish));
    }

    #[test]
    fn flat_closes_are_neutral_and_short_ones_unknown() {
        for price in [5.0, 0.1, 1.0 / 3.0, 15_123.45] {
            let flat = at_end(&[price; 69], &TrendParams::default()).unwrap();
            assert_eq!((flat.trend, flat.share_above, flat.share_below), (Trend::Neutral, 0.0, 0.0));
        }
        assert_eq!(at_end(&[5.0; 68], &TrendParams::default()), None);
        assert_eq!(at_end(&[], &TrendParams::default()), None);
        assert!(series(&[], &TrendParams::default()).is_empty());
    }

    #[test]
    fn a_share_both_sides_could_reach_is_refused() {
        let text = TrendParams { min_share: 0.5, ..SMALL }.check().unwrap_err().to_string();
        assert!(text.contains("min_share") && text.contains("0.5"), "{text}");
        assert!(TrendParams { min_share: f64::NAN, ..SMALL }.check().is_err());
        // Unchecked, they answer nothing, and do not panic.
        for params in [TrendParams { period: 0, ..SMALL }, TrendParams { period: 0, window: 0, min_share: f64::NAN }] {
            assert!(params.check().is_err());
            assert!(series(&wave(20), &params).iter().all(Option::is_none) && at_end(&wave(20), &params).is_none());
        }
    }
}

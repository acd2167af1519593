//! Width of the Bollinger bands: squeeze, contraction, and the alerts they raise.
//!
//! Everything compared over time is the normalised width, (upper - lower) / middle, because prices drift.

mod alert;

pub use alert::{Alert, AlertBudget, AlertParams, Watch};

use crate::Error;
use crate::sequence::require;

/// Rank, in percent, up to which a width is a squeeze: the lowest decile.
const SQUEEZE_PERCENT: f64 = 10.0;

/// How width is measured and judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WidthParams {
    /// Period of the bands, 2..=1000.
    pub period: u32,
    /// Population standard deviations from the middle to either band, above 0 up to 100.
    pub deviations: f64,
    /// Widths of the instrument's own history a width is ranked in, itself included, 2..=100 000: 126 days, or 20 days of 5m.
    pub history: u32,
    /// Distance from the lowest earlier width that still counts as in range, percent, 0..=100.
    pub in_range_percent: f64,
    /// Rank up to which the state is a squeeze, percent, above 0 up to 100.
    pub squeeze_percent: f64,
    /// Narrowing candles from which the state is contracting, 1..=1000.
    pub contracting_count: u32,
    /// Narrowing over those candles that it takes, percent, -100..=0.
    pub contracting_change_percent: f64,
}

impl Default for WidthParams {
    fn default() -> Self {
        WidthParams {
            period: 20,
            deviations: 2.0,
            history: 126,
            in_range_percent: 0.1,
            squeeze_percent: 5.0,
            contracting_count: 5,
            contracting_change_percent: -10.0,
        }
    }
}

/// What to say about a width. The most particular one wins, in the order listed, so that each can occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Within `in_range_percent`, on either side, of the lowest width of the history before this candle.
    InRange,
    /// Rank at most `squeeze_percent`.
    Squeeze,
    /// Narrowing for `contracting_count` candles or more, by at least `contracting_change_percent`.
    Contracting,
    Normal,
}

/// Width of the bands at one candle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Width {
    /// upper - lower, in the price's unit.
    pub absolute: f64,
    /// absolute / middle.
    pub normalised: f64,
    /// normalised in percent.
    pub percent: f64,
    /// Share of the history that is not wider, this width included, in percent, above 0 up to 100. The narrowest of k ranks 100 / k, so
    /// fewer than ten widths never are a squeeze.
    pub percentile: f64,
    /// Widths it was ranked in.
    pub history_count: u32,
    /// Trailing candles of strictly decreasing width.
    pub contracting_count: u32,
    /// Change over those candles, in percent; 0 when there are none.
    pub contracting_change_percent: f64,
    /// Rank in the lowest decile.
    pub is_squeeze: bool,
    pub state: State,
}

impl WidthParams {
    /// Refuses values outside their ranges, naming the field.
    pub fn check(&self) -> Result<(), Error> {
        let change = self.contracting_change_percent;
        require((2..=1000).contains(&self.period), "period", self.period, "2..=1000")?;
        require(
            self.deviations > 0.0 && self.deviations <= 100.0,
            "deviations",
            self.deviations,
            "above 0, up to 100",
        )?;
        require((2..=100_000).contains(&self.history), "history", self.history, "2..=100000")?;
        require((0.0..=100.0).contains(&self.in_range_percent), "in_range_percent", self.in_range_percent, "0..=100")?;
        require(
            self.squeeze_percent > 0.0 && self.squeeze_percent <= 100.0,
            "squeeze_percent",
            self.squeeze_percent,
            "above 0, up to 100",
        )?;
        require((1..=1000).contains(&self.contracting_count), "contracting_count", self.contracting_count, "1..=1000")?;
        require((-100.0..=0.0).contains(&change), "contracting_change_percent", change, "-100..=0")
    }
}

/// Measures the bands at the last candle against the instrument's own history.
///
/// `None` with fewer closes than `period`, or where the middle is not positive, so that the width has no scale. Earlier candles without
/// a positive middle are left out of the history.
/// Domain: finite closes, checked parameters. Causality: only the last `period + history - 1` closes matter, except that a contraction
/// may be counted further back, up to `history` candles.
pub fn at_end(close: &[f64], params: &WidthParams) -> Option<Width> {
    let period = params.period.max(1) as usize;
    let count = (close.len() + 1).checked_sub(period).filter(|count| *count > 0)?;
    let (absolute, middle) = bands(&close[close.len() - period..], params.deviations);
    if middle <= 0.0 {
        return None;
    }
    let first = count.saturating_sub(params.history.max(1) as usize);
    let history: Vec<f64> = (first..count)
        .map(|start| bands(&close[start..start + period], params.deviations))
        .filter(|(_, middle)| *middle > 0.0)
        .map(|(absolute, middle)| absolute / middle)
        .collect();
    Some(judge(absolute, &history, params)).filter(|width| width.normalised.is_finite())
}

/// The width and its history up to and including it.
fn judge(absolute: f64, history: &[f64], params: &WidthParams) -> Width {
    let (normalised, earlier) = history.split_last().map_or((0.0, history), |(last, earlier)| (*last, earlier));
    let not_wider = history.iter().filter(|each| **each <= normalised).count();
    let percentile = not_wider as f64 / history.len() as f64 * 100.0;

    let contracting = history.windows(2).rev().take_while(|pair| pair[1] < pair[0]).count();
    let widest = history[history.len() - 1 - contracting];
    let contracting_change_percent = if widest > 0.0 { (normalised - widest) / widest * 100.0 } else { 0.0 };

    let lowest = earlier.iter().copied().reduce(f64::min);
    let is_in_range =
        lowest.is_some_and(|lowest| (normalised - lowest).abs() <= lowest * params.in_range_percent / 100.0);
    let is_contracting = contracting >= params.contracting_count as usize
        && contracting_change_percent <= params.contracting_change_percent;
    let state = if is_in_range {
        State::InRange
    } else if percentile <= params.squeeze_percent {
        State::Squeeze
    } else if is_contracting {
        State::Contracting
    } else {
        State::Normal
    };
    Width {
        absolute,
        normalised,
        percent: normalised * 100.0,
        percentile,
        history_count: history.len() as u32,
        contracting_count: contracting as u32,
        contracting_change_percent,
        is_squeeze: percentile <= SQUEEZE_PERCENT,
        state,
    }
}

/// Distance between the bands, and the middle. Values are taken from the window's first, so a flat window is exactly 0 wide.
fn bands(window: &[f64], deviations: f64) -> (f64, f64) {
    let (n, first) = (window.len() as f64, window[0]);
    let shift = window.iter().map(|each| each - first).sum::<f64>() / n;
    let squares: f64 = window.iter().map(|each| (each - first - shift).powi(2)).sum();
    (2.0 * deviations * (squares / n).sqrt(), first + shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two closes make a window: middle m, population deviation d for m - d, m + d; the width is 4 d.
    const PAIRS: WidthParams = WidthParams {
        period: 2,
        deviations: 2.0,
        history: 126,
        in_range_percent: 0.1,
        squeeze_percent: 5.0,
        contracting_count: 5,
        contracting_change_percent: -10.0,
    };

    /// `judge` on widths themselves.
    fn on(history: &[f64]) -> Width {
        judge(history[history.len() - 1], history, &PAIRS)
    }

    #[test]
    fn width_is_four_population_deviations() {
        let width = at_end(&[50.0, 9.0, 11.0], &PAIRS).unwrap();
        assert_eq!((width.absolute, width.normalised, width.history_count), (4.0, 0.4, 2));
        assert_eq!(width.percent, 40.0);
        // Bands of 1..=20: variance (n^2 - 1) / 12 = 33.25.
        let close: Vec<f64> = (1..=20).map(f64::from).collect();
        let width = at_end(&close, &WidthParams::default()).unwrap();
        assert!((width.absolute - 4.0 * 33.25_f64.sqrt()).abs() < 1e-12);
        assert!((width.normalised - width.absolute / 10.5).abs() < 1e-12);
    }

    #[test]
    fn width_is_that_of_the_bands_indicator() {
        let close: Vec<f64> =
            (0..200).map(|i| 15_000.0 + 40.0 * (f64::from(i) * 0.37).sin() + f64::from(i % 11)).collect();
        let mut bands = crate::indicator::Machine::new(&"bbands:20,2".parse().unwrap());
        let mut out = [0.0; 5];
        for (row, &close_now) in close.iter().enumerate() {
            let candle =
                crate::indicator::Row { open: 1.0, high: 1.0, low: 1.0, close: close_now, volume: 1.0, day: 0 };
            bands.push(&candle, &mut out);
            let Some(width) = at_end(&close[..=row], &WidthParams::default()) else { continue };
            assert!((width.absolute - out[3]).abs() <= 1e-9 * out[3], "{row}");
            assert!((width.normalised - out[4]).abs() <= 1e-9 * out[4], "{row}");
        }
    }

    #[test]
    fn the_rank_counts_only_the_own_last_n() {
        let mut history: Vec<f64> = (1..=20).map(|each| f64::from(each) + 10.0).collect();
        history.push(11.5);
        let width = on(&history);
        assert!((width.percentile - 2.0 / 21.0 * 100.0).abs() < 1e-12);
        assert!(width.is_squeeze && width.state != State::Squeeze, "ninth percentile: lowest decile, no alert");

        // Closes whose first, narrow windows lie outside a history of 3.
        let close = [10.0, 10.0, 10.0, 10.0, 14.0, 10.0, 14.0, 10.0, 13.0];
        let short = at_end(&close, &WidthParams { history: 3, ..PAIRS }).unwrap();
        let long = at_end(&close, &PAIRS).unwrap();
        assert_eq!((short.history_count, long.history_count), (3, 8));
        assert!((short.percentile - 100.0 / 3.0).abs() < 1e-12);
        assert_eq!(long.percentile, 50.0);
    }

    #[test]
    fn each_state_can_be_reached() {
        let wide: Vec<f64> = (0..40).map(|each| 20.0 + f64::from(each % 7)).collect();
        let with = |tail: &[f64]| [&wide[..], tail].concat();
        assert_eq!(on(&with(&[20.01])).state, State::InRange);
        assert_eq!(on(&with(&[19.99])).state, State::InRange);
        assert_eq!(on(&with(&[15.0])).state, State::Squeeze);
        assert_eq!(on(&with(&[40.0, 39.0, 37.0, 35.0, 33.0, 31.0])).state, State::Contracting);
        assert_eq!(on(&with(&[40.0, 39.9, 39.8, 39.7, 39.6, 39.5])).state, State::Normal, "narrowing too slowly");
        assert_eq!(on(&with(&[40.0, 38.0, 36.0, 34.0, 32.0])).state, State::Normal, "only four");
        assert_eq!(on(&with(&[30.0])).state, State::Normal);
    }

    #[test]
    fn contraction_is_strict_and_trailing() {
        assert_eq!(on(&[5.0, 4.0, 4.0, 3.0, 2.0]).contracting_count, 2);
        assert_eq!(on(&[5.0, 4.0, 4.0, 3.0, 2.0]).contracting_change_percent, -50.0);
        assert_eq!(on(&[3.0, 2.0, 4.0]).contracting_count, 0);
    }

    #[test]
    fn flat_short_and_negative_prices() {
        let flat = at_end(&[0.1 + 0.2; 200], &WidthParams::default()).unwrap();
        assert_eq!((flat.absolute, flat.normalised, flat.percentile), (0.0, 0.0, 100.0));
        assert!(!flat.is_squeeze, "a series that never moved is not narrower than usual");
        assert_eq!((flat.contracting_count, flat.contracting_change_percent), (0, 0.0));
        assert_eq!(at_end(&[], &WidthParams::default()), None);
        assert_eq!(at_end(&[1.0; 19], &WidthParams::default()), None);
        assert_eq!(at_end(&[-1.0; 30], &WidthParams::default()), None);
        let first = at_end(&[1.0; 20], &WidthParams::default()).unwrap();
        assert_eq!((first.history_count, first.state), (1, State::Normal));
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let text = WidthParams { history: 1, ..PAIRS }.check().unwrap_err().to_string();
        assert!(text.contains("history"), "{text}");
        assert!(WidthParams { deviations: f64::NAN, ..PAIRS }.check().is_err());
        let _unchecked = at_end(&[1.0, 2.0], &WidthParams { period: 0, history: 0, ..PAIRS });
        assert!(WidthParams::default().check().is_ok());
    }
}

use crate::Error;
use crate::sequence::{Candles, require};
use crate::trend::Figure;

/// How volatility is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VolatilityParams {
    /// Candles, 2..=1000: this many returns, this many high-low ranges.
    pub window: u32,
    /// Period of the average true range, 1..=1000.
    pub atr_period: u32,
    /// Scale of a year, above 0: 252 daily candles.
    pub candles_per_year: f64,
}

impl Default for VolatilityParams {
    fn default() -> Self {
        VolatilityParams { window: 20, atr_period: 14, candles_per_year: 252.0 }
    }
}

/// Volatility at the end of a series; `None` where candles are too few or prices not positive.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Volatility {
    /// Standard deviation (n-1) of the window's log returns times the root of candles per year, as a fraction.
    pub annualised: Option<f64>,
    /// Average true range in percent of the last close.
    pub atr_percent: Option<f64>,
    /// From the window's highs and lows, annualised, as a fraction: sqrt(mean(ln(high / low)^2) / (4 ln 2)).
    pub parkinson: Option<f64>,
}

impl VolatilityParams {
    /// Refuses values outside their ranges, naming the field.
    pub fn check(&self) -> Result<(), Error> {
        require((2..=1000).contains(&self.window), "window", self.window, "2..=1000")?;
        require((1..=1000).contains(&self.atr_period), "atr_period", self.atr_period, "1..=1000")?;
        let per_year = self.candles_per_year;
        require(per_year > 0.0 && per_year <= 1e6, "candles_per_year", per_year, "above 0, up to 1 000 000")
    }
}

/// Measures volatility at the last candle.
///
/// A window of n returns needs n + 1 candles, an average true range of period n too; Parkinson's measure needs n.
/// Source of the latter: M. Parkinson, Journal of Business 53, 1980, 61-65.
pub fn volatility(candles: &Candles, params: &VolatilityParams) -> Volatility {
    let n = candles.len();
    let window = params.window as usize;
    let year = params.candles_per_year.sqrt();
    let tail = |column: &[f64], count: usize| n.checked_sub(count).map(|start| column[start..n].to_vec());

    let annualised =
        tail(candles.close, window + 1).filter(|close| close.iter().all(|each| *each > 0.0)).map(|close| {
            let returns: Vec<f64> = close.windows(2).map(|pair| pair[1].ln() - pair[0].ln()).collect();
            let mean = returns.iter().sum::<f64>() / window as f64;
            let squares: f64 = returns.iter().map(|each| (each - mean).powi(2)).sum();
            (squares / (window as f64 - 1.0)).sqrt() * year
        });

    let mut atr = Figure::new("atr", params.atr_period);
    let mut last_atr = None;
    for row in 0..n {
        last_atr = atr.push_candle(candles.high[row], candles.low[row], candles.close[row]);
    }
    let atr_percent = last_atr.filter(|_| candles.close[n - 1] > 0.0).map(|atr| atr / candles.close[n - 1] * 100.0);

    let parkinson = tail(candles.low, window)
        .zip(tail(candles.high, window))
        .filter(|(low, high)| low.iter().chain(high).all(|each| *each > 0.0))
        .map(|(low, high)| {
            let squares: f64 = low.iter().zip(&high).map(|(low, high)| (high.ln() - low.ln()).powi(2)).sum();
            (squares / window as f64 / (4.0 * std::f64::consts::LN_2)).sqrt() * year
        });
    let finite = |value: Option<f64>| value.filter(|each| each.is_finite());
    Volatility { annualised: finite(annualised), atr_percent: finite(atr_percent), parkinson: finite(parkinson) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close_only(close: &[f64]) -> Candles<'_> {
        Candles { open: close, high: close, low: close, close, volume: close }
    }

    #[test]
    fn deviation_divides_by_n_minus_1() {
        // Returns ln 2, -ln 2: mean 0, sum of squares 2 ln^2 2, divided by 1.
        let params = VolatilityParams { window: 2, candles_per_year: 4.0, ..VolatilityParams::default() };
        let found = volatility(&close_only(&[9.0, 1.0, 2.0, 1.0]), &params).annualised.unwrap();
        assert!((found - 2.0 * (2.0_f64).sqrt() * std::f64::consts::LN_2).abs() < 1e-12, "{found}");
    }

    #[test]
    fn atr_is_wilders_in_percent_of_the_last_close() {
        // True ranges 3 (gap up), 4, 2: mean of the first two 3.5, then (3.5 + 2) / 2.
        let (high, low, close) = ([10.0, 13.0, 12.0, 11.0], [9.0, 11.0, 8.0, 9.0], [10.0, 12.0, 9.0, 10.0]);
        let candles = Candles { open: &close, high: &high, low: &low, close: &close, volume: &close };
        let params = VolatilityParams { atr_period: 2, ..VolatilityParams::default() };
        assert!((volatility(&candles, &params).atr_percent.unwrap() - 27.5).abs() < 1e-12);
    }

    #[test]
    fn parkinson_of_a_constant_range() {
        let (high, low) = ([2.0; 20], [1.0; 20]);
        let candles = Candles { open: &low, high: &high, low: &low, close: &low, volume: &low };
        let found = volatility(&candles, &VolatilityParams { candles_per_year: 1.0, ..VolatilityParams::default() });
        let expected = (std::f64::consts::LN_2 / 4.0).sqrt();
        assert!((found.parkinson.unwrap() - expected).abs() < 1e-12);
        assert_eq!(found.annualised, None, "20 candles hold 19 returns");
    }

    #[test]
    fn flat_is_zero_and_too_short_or_not_positive_is_none() {
        let flat = volatility(&close_only(&[7.0; 30]), &VolatilityParams::default());
        assert_eq!(flat, Volatility { annualised: Some(0.0), atr_percent: Some(0.0), parkinson: Some(0.0) });
        for close in [&[][..], &[7.0], &[-1.0; 30], &[0.0; 30]] {
            assert_eq!(volatility(&close_only(close), &VolatilityParams::default()), Volatility::default());
        }
    }
}

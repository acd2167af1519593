//! Arithmetic on one row, shared by the fold and the columnar form so that both round alike.

/// Below this a divisor counts as zero: TA-Lib's own threshold, part of its profile.
pub(super) const NEGLIGIBLE: f64 = 1e-14;

/// Wilder's true range: the candle's range extended to the close before it.
#[inline(always)]
pub(super) fn true_range(high: f64, low: f64, previous_close: f64) -> f64 {
    let range = high - low;
    let above = (previous_close - high).abs();
    let below = (previous_close - low).abs();
    larger(larger(range, above), below)
}

#[inline(always)]
pub(super) fn larger(a: f64, b: f64) -> f64 {
    if a > b { a } else { b }
}

#[inline(always)]
pub(super) fn smaller(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

#[inline(always)]
pub(super) fn gain(close: f64, previous_close: f64) -> f64 {
    larger(close - previous_close, 0.0)
}

#[inline(always)]
pub(super) fn loss(close: f64, previous_close: f64) -> f64 {
    larger(previous_close - close, 0.0)
}

/// Wilder's directional movement up: the rise of the high when it exceeds the fall of the low.
#[inline(always)]
pub(super) fn plus_movement(up: f64, down: f64) -> f64 {
    if up > down { larger(up, 0.0) } else { 0.0 }
}

/// Wilder's directional movement down: [`plus_movement`] with the sides exchanged.
#[inline(always)]
pub(super) fn minus_movement(up: f64, down: f64) -> f64 {
    plus_movement(down, up)
}

/// Relative strength index from the average gain and loss; 0 when neither is there.
#[inline(always)]
pub(super) fn relative_strength(gain: f64, loss: f64) -> f64 {
    let total = gain + loss;
    let ratio = 100.0 * (gain / total);
    if total == 0.0 { 0.0 } else { ratio }
}

/// [`relative_strength`], 100 when there is no loss, not even a gain; undefined values stay so.
#[inline(always)]
pub(super) fn relative_strength_or_full(gain: f64, loss: f64) -> f64 {
    let index = relative_strength(gain, loss);
    if loss == 0.0 { 100.0 } else { index }
}

/// Directional indicator; 0 when there was no range.
#[inline(always)]
pub(super) fn directional(movement: f64, range: f64) -> f64 {
    let ratio = 100.0 * (movement / range);
    if range == 0.0 { 0.0 } else { ratio }
}

/// Directional index; NaN when there is no direction, which leaves the average of it as it was.
#[inline(always)]
pub(super) fn directional_index(plus: f64, minus: f64, range: f64) -> f64 {
    let plus_di = 100.0 * (plus / range);
    let minus_di = 100.0 * (minus / range);
    let total = plus_di + minus_di;
    let index = 100.0 * ((minus_di - plus_di).abs() / total);
    if range == 0.0 || total == 0.0 { f64::NAN } else { index }
}

/// (high + low + close) / 3 times the volume.
#[inline(always)]
pub(super) fn turnover(high: f64, low: f64, close: f64, volume: f64) -> f64 {
    (high + low + close) / 3.0 * volume
}

/// Quotient of turnover and volume; NaN until volume trades.
#[inline(always)]
pub(super) fn weighted_price(turnover: f64, volume: f64) -> f64 {
    let price = turnover / volume;
    if volume > 0.0 { price } else { f64::NAN }
}

/// Volume with the sign of the close's change.
#[inline(always)]
pub(super) fn signed_volume(close: f64, previous_close: f64, volume: f64) -> f64 {
    let falling = if close < previous_close { -volume } else { 0.0 };
    if close > previous_close { volume } else { falling }
}

/// Place of the close in the range, 0 to 100; 0 in a flat one.
#[inline(always)]
pub(super) fn place_in_range(close: f64, highest: f64, lowest: f64) -> f64 {
    let hundredth = (highest - lowest) / 100.0;
    let place = (close - lowest) / hundredth;
    if hundredth == 0.0 { 0.0 } else { place }
}

/// One row of Bollinger bands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bands {
    pub(super) upper: f64,
    pub(super) middle: f64,
    pub(super) lower: f64,
    pub(super) width: f64,
    pub(super) width_normalized: f64,
}

/// Bands from the mean and the population variance; the normalised width is undefined around a mean of 0.
#[inline(always)]
pub(super) fn bands(mean: f64, variance: f64, multiplier: f64) -> Bands {
    let reach = multiplier * variance.sqrt();
    let (upper, lower) = (mean + reach, mean - reach);
    let width = upper - lower;
    let ratio = width / mean;
    let width_normalized = if mean == 0.0 { f64::NAN } else { ratio };
    Bands { upper, middle: mean, lower, width, width_normalized }
}

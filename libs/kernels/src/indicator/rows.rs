//! Row-by-row arithmetic over whole columns, for the widest vector registers of the machine at hand.
//!
//! Each function is compiled for several kinds of processor and chosen when first called; the arithmetic is that of [`super::formula`] on
//! all of them, and nothing is fused or reordered, so the bits are the same everywhere. Columns are of equal length.

use multiversion::multiversion;

use super::formula;

#[inline(always)]
fn one(out: &mut [f64], a: &[f64], of: impl Fn(f64) -> f64) {
    for (out, a) in out.iter_mut().zip(a) {
        *out = of(*a);
    }
}

#[inline(always)]
fn two(out: &mut [f64], a: &[f64], b: &[f64], of: impl Fn(f64, f64) -> f64) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = of(*a, *b);
    }
}

#[inline(always)]
fn three(out: &mut [f64], [a, b, c]: [&[f64]; 3], of: impl Fn(f64, f64, f64) -> f64) {
    for (((out, a), b), c) in out.iter_mut().zip(a).zip(b).zip(c) {
        *out = of(*a, *b, *c);
    }
}

#[multiversion(targets = "simd")]
pub(super) fn scale(out: &mut [f64], x: &[f64], factor: f64) {
    one(out, x, |x| factor * x);
}

#[multiversion(targets = "simd")]
pub(super) fn multiply(out: &mut [f64], by: &[f64], factor: f64) {
    for (out, by) in out.iter_mut().zip(by) {
        *out = factor * (*out * by);
    }
}

#[multiversion(targets = "simd")]
pub(super) fn difference(out: &mut [f64], a: &[f64], b: &[f64]) {
    two(out, a, b, |a, b| a - b);
}

#[multiversion(targets = "simd")]
pub(super) fn gain(out: &mut [f64], close: &[f64], before: &[f64], factor: f64) {
    two(out, close, before, |close, before| factor * formula::gain(close, before));
}

#[multiversion(targets = "simd")]
pub(super) fn loss(out: &mut [f64], close: &[f64], before: &[f64], factor: f64) {
    two(out, close, before, |close, before| factor * formula::loss(close, before));
}

/// 1 on a rise, -1 on a fall.
#[multiversion(targets = "simd")]
pub(super) fn sign_of_change(out: &mut [f64], close: &[f64], before: &[f64]) {
    two(out, close, before, |close, before| formula::signed_volume(close, before, 1.0));
}

#[multiversion(targets = "simd")]
pub(super) fn true_range(out: &mut [f64], high: &[f64], low: &[f64], close_before: &[f64], factor: f64) {
    three(out, [high, low, close_before], |high, low, before| factor * formula::true_range(high, low, before));
}

/// From each row's high and low, and those of the row before.
#[multiversion(targets = "simd")]
pub(super) fn plus_movement(out: &mut [f64], high: [&[f64]; 2], low: [&[f64]; 2], factor: f64) {
    let rises = high[0].iter().zip(high[1]);
    let falls = low[0].iter().zip(low[1]);
    for ((out, (high, high_before)), (low, low_before)) in out.iter_mut().zip(rises).zip(falls) {
        *out = factor * formula::plus_movement(high - high_before, low_before - low);
    }
}

#[multiversion(targets = "simd")]
pub(super) fn minus_movement(out: &mut [f64], high: [&[f64]; 2], low: [&[f64]; 2], factor: f64) {
    let rises = high[0].iter().zip(high[1]);
    let falls = low[0].iter().zip(low[1]);
    for ((out, (high, high_before)), (low, low_before)) in out.iter_mut().zip(rises).zip(falls) {
        *out = factor * formula::minus_movement(high - high_before, low_before - low);
    }
}

#[multiversion(targets = "simd")]
pub(super) fn turnover(out: &mut [f64], [high, low, close]: [&[f64]; 3], volume: &[f64], factor: f64) {
    for ((((out, high), low), close), volume) in out.iter_mut().zip(high).zip(low).zip(close).zip(volume) {
        *out = factor * formula::turnover(*high, *low, *close, *volume);
    }
}

#[multiversion(targets = "simd")]
pub(super) fn relative_strength(out: &mut [f64], gain: &[f64], loss: &[f64]) {
    two(out, gain, loss, formula::relative_strength);
}

#[multiversion(targets = "simd")]
pub(super) fn relative_strength_or_full(out: &mut [f64], gain: &[f64], loss: &[f64]) {
    two(out, gain, loss, formula::relative_strength_or_full);
}

#[multiversion(targets = "simd")]
pub(super) fn weighted_price(out: &mut [f64], turnover: &[f64], volume: &[f64]) {
    two(out, turnover, volume, formula::weighted_price);
}

#[multiversion(targets = "simd")]
pub(super) fn directional(out: &mut [f64], movement: &[f64], range: &[f64]) {
    two(out, movement, range, formula::directional);
}

#[multiversion(targets = "simd")]
pub(super) fn directional_index(out: &mut [f64], plus: &[f64], minus: &[f64], range: &[f64]) {
    three(out, [plus, minus, range], formula::directional_index);
}

/// Replaces the highest value of each window by the close's place in it.
#[multiversion(targets = "simd")]
pub(super) fn place_in_range(highest: &mut [f64], lowest: &[f64], close: &[f64]) {
    for ((place, lowest), close) in highest.iter_mut().zip(lowest).zip(close) {
        *place = formula::place_in_range(*close, *place, *lowest);
    }
}

/// Returns how many rows from the first on are of its day.
#[multiversion(targets = "simd")]
pub(super) fn same_day(day: &[i32]) -> usize {
    const ROWS: usize = 32;
    let Some(&first) = day.first() else { return 0 };
    let (chunks, _) = day.as_chunks::<ROWS>();
    let whole = chunks.iter().take_while(|chunk| chunk.iter().fold(true, |same, day| same & (*day == first))).count();
    let rest = &day[whole * ROWS..];
    whole * ROWS + rest.iter().take_while(|day| **day == first).count()
}

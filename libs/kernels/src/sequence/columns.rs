//! The analysis over whole columns. Every sum that reaches a threshold is taken in the order the row form takes it, so that the
//! two forms classify alike to the last bit.

use std::ops::Range;

use crate::Error;
use crate::sequence::metrics::{MOMENTUM_SEQUENCES, Means, PatternSums, momentum, sort_patterns};
use crate::sequence::moves::{direction, move_percent, price_strength, volume_strength};
use crate::sequence::{
    Analysis, AnalysisParams, Candles, Direction, Kind, Metrics, Move, MoveParams, Pattern, Sequence, SequenceParams,
    TrendInput, ratio,
};
use crate::trend;

/// Rows judged at a time: their averages stay in the first cache.
const BLOCK: usize = 512;

/// Whole numbers up to here are exact in f64, and so are their sums.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// Analyses column by column: the fast form (engine V2), equal to [`analyze_rows`](crate::sequence::analyze_rows).
///
/// Cost: n where volumes are whole numbers, else n times `volume_window` in a vectorised loop.
pub fn analyze_columns(candles: &Candles, params: &AnalysisParams) -> Result<Analysis, Error> {
    candles.check()?;
    params.check()?;
    let trend = trend::series(candles.close, &params.trend);
    let moves = move_columns(candles, &params.moves, TrendInput::Each(&trend));
    let sequences = sequence_runs(&moves, params.sequences.min_sequence_length);
    let metrics = measure(&sequences, candles.volume, &params.sequences);
    let patterns = group(&sequences, candles.close, params.sequences.forward_candles);
    Ok(Analysis { moves, sequences, metrics, patterns })
}

fn move_columns(candles: &Candles, params: &MoveParams, trend: TrendInput) -> Vec<Move> {
    let window = params.volume_window as usize;
    let n = candles.volume.len();
    let mut totals = TrailingTotals::new(candles.volume, window);
    let mut block = [0.0; BLOCK];
    let mut moves = Vec::with_capacity(n);
    for start in (0..n).step_by(BLOCK) {
        let rows = start..(start + BLOCK).min(n);
        let averages = &mut block[..rows.len()];
        totals.before_into(rows.clone(), averages);
        for (average, row) in averages.iter_mut().zip(rows.clone()) {
            *average = ratio(*average, row.min(window) as f64);
        }
        let bodies = candles.open[rows.clone()].iter().zip(&candles.close[rows.clone()]);
        let volumes = candles.volume[rows.clone()].iter().zip(averages);
        moves.extend(bodies.zip(volumes).zip(rows).map(|(((&open, &close), (&volume, average)), row)| {
            let move_percent = move_percent(open, close);
            let price_strength = price_strength(move_percent);
            let volume_strength = volume_strength(volume, *average);
            let strength = params.strength(price_strength, volume_strength);
            let direction = direction(open, close);
            let threshold = if direction == Direction::Up { params.up_move_percent } else { params.down_move_percent };
            let is_large = (direction != Direction::None) & (move_percent > threshold);
            // Few moves are large: the trend is looked up for those only.
            let is_strong = is_large & (strength >= params.strength_threshold) && trend.agrees(row, direction);
            Move { move_percent, price_strength, volume_strength, strength, direction, is_strong }
        }));
    }
    moves
}

/// Sums over the rows before each row, for consecutive blocks of rows.
#[derive(Debug)]
struct TrailingTotals<'a> {
    values: &'a [f64],
    window: usize,
    /// The running sum before the next row, where it is exact.
    running: Option<f64>,
}

impl<'a> TrailingTotals<'a> {
    fn new(values: &'a [f64], window: usize) -> TrailingTotals<'a> {
        let largest = values.iter().copied().fold(0.0, f64::max);
        let is_exact = largest * window as f64 <= MAX_EXACT && values.iter().all(|value| value.trunc() == *value);
        TrailingTotals { values, window, running: is_exact.then_some(0.0) }
    }

    fn before_into(&mut self, rows: Range<usize>, totals: &mut [f64]) {
        if let Some(running) = &mut self.running {
            for (total, row) in totals.iter_mut().zip(rows) {
                *total = *running;
                let oldest = if row >= self.window { self.values[row - self.window] } else { 0.0 };
                *running += self.values[row] - oldest;
            }
            return;
        }
        totals.fill(0.0);
        // One shifted addition per lag, oldest lag first: each row's sum grows oldest to newest, as in the row form.
        for lag in (1..=self.window.min(rows.end - 1)).rev() {
            let first = rows.start.max(lag);
            if first < rows.end {
                let shifted = &self.values[first - lag..rows.end - lag];
                totals[first - rows.start..].iter_mut().zip(shifted).for_each(|(total, value)| *total += value);
            }
        }
    }
}

fn sequence_runs(moves: &[Move], min_sequence_length: u32) -> Vec<Sequence> {
    let mut sequences = Vec::new();
    let mut next_index = 0;
    for run in moves.chunk_by(|a, b| a.is_strong == b.is_strong && a.direction == b.direction) {
        let start_index = next_index;
        next_index += run.len();
        if run.len() < min_sequence_length as usize {
            continue;
        }
        let total: f64 = run.iter().map(|each| each.strength).sum();
        sequences.push(Sequence {
            kind: run[0].kind(),
            direction: run[0].direction,
            start_index,
            length: run.len() as u32,
            strength: total / run.len() as f64,
            gap_to_next_strong: None,
        });
    }
    let mut waiting = 0;
    for at in 0..sequences.len() {
        let Sequence { kind: Kind::Strong, start_index, .. } = sequences[at] else { continue };
        for earlier in &mut sequences[waiting..at] {
            earlier.gap_to_next_strong = Some((start_index - earlier.end_index()) as u32);
        }
        waiting = at;
    }
    sequences
}

/// One pass over the sequences and two over the volumes.
fn measure(sequences: &[Sequence], volume: &[f64], params: &SequenceParams) -> Metrics {
    let (mut length, mut length_squares, mut strength, mut gap, mut gap_count) = (0_u64, 0_u64, 0.0, 0_u64, 0_u64);
    let (mut strong_volume, mut strong_count) = (0.0, 0_u64);
    for sequence in sequences {
        length += u64::from(sequence.length);
        length_squares += u64::from(sequence.length).pow(2);
        strength += sequence.strength;
        if let Some(each) = sequence.gap_to_next_strong.filter(|each| *each <= params.max_gap_length) {
            gap += u64::from(each);
            gap_count += 1;
        }
        if sequence.kind == Kind::Strong {
            strong_volume += volume[sequence.start_index..=sequence.end_index()].iter().sum::<f64>();
            strong_count += u64::from(sequence.length);
        }
    }
    let count = sequences.len() as u64;
    let last: Vec<f64> = sequences.iter().rev().take(MOMENTUM_SEQUENCES).rev().map(|each| each.strength).collect();
    let (volume_mean, volume_deviation, volume_slope) = volume_profile(volume);
    let means = Means {
        sequence_count: sequences.len() as u32,
        length: ratio(length as f64, count as f64),
        // Whole numbers until the root, so nothing cancels.
        length_deviation: ratio(
            (u128::from(count) * u128::from(length_squares) - u128::from(length).pow(2)) as f64,
            (count as f64).powi(2),
        )
        .sqrt(),
        strength: ratio(strength, count as f64),
        gap: (gap_count > 0).then(|| gap as f64 / gap_count as f64),
        momentum: momentum(&last),
        volume: volume_mean,
        volume_deviation,
        volume_slope,
        strong_volume: ratio(strong_volume, strong_count as f64),
    };
    means.into_metrics(params.max_gap_length)
}

/// Mean, standard deviation (n) and least-squares slope per row.
fn volume_profile(volume: &[f64]) -> (f64, f64, f64) {
    let n = volume.len() as f64;
    let mean = ratio(volume.iter().sum(), n);
    let (mut squares, mut cross) = (0.0, 0.0);
    for (row, value) in volume.iter().enumerate() {
        let from_mean = value - mean;
        squares += from_mean * from_mean;
        cross += (row as f64 - (n - 1.0) / 2.0) * from_mean;
    }
    (mean, ratio(squares, n).sqrt(), ratio(cross, n * (n * n - 1.0) / 12.0))
}

/// Keeps the few patterns there are in one sorted column.
fn group(sequences: &[Sequence], close: &[f64], forward_candles: u32) -> Vec<Pattern> {
    let mut groups: Vec<((Kind, Direction, u32), PatternSums)> = Vec::new();
    for sequence in sequences {
        let key = (sequence.kind, sequence.direction, sequence.length);
        let place = groups.binary_search_by_key(&key, |group| group.0).unwrap_or_else(|place| {
            groups.insert(place, (key, PatternSums::default()));
            place
        });
        groups[place].1.add(sequence, close, forward_candles);
    }
    let mut patterns: Vec<Pattern> = groups
        .into_iter()
        .map(|((kind, direction, length), sums)| sums.into_pattern(kind, direction, length))
        .collect();
    sort_patterns(&mut patterns);
    patterns
}

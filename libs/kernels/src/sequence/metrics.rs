use std::collections::BTreeMap;

use crate::sequence::{Candles, Direction, Kind, Sequence, SequenceParams, ratio};

/// Mean length that scores 1.
const FULL_LENGTH: f64 = 5.0;
/// Sequences momentum looks at.
pub(crate) const MOMENTUM_SEQUENCES: usize = 5;
/// Two-sided 95 % quantile of the standard normal distribution.
const Z_95: f64 = 1.959_963_984_540_054;

/// How good an instrument's sequences are, and how its volume behaves. All standard deviations divide by n.
///
/// Everything but the volume figures is over all sequences, strong and weak, and 0 when there are none.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Metrics {
    /// 0.3 length + 0.4 strength + 0.3 consistency, each 0..=1.
    pub quality: f64,
    /// min(mean length / 5, 1).
    pub length_score: f64,
    /// Mean strength.
    pub strength_score: f64,
    /// max(0, 1 - min(cv / 2, 1)), cv the coefficient of variation of the lengths; one sequence alone scores 1.
    pub consistency_score: f64,
    /// max(0, 1 - mean gap / max gap) over the gaps up to the maximum; 0 when there is no such gap.
    pub continuity: f64,
    /// 0.7 linearly weighted mean (latest heaviest) + 0.3 mean of the strengths of the last five sequences.
    pub momentum: f64,
    /// Mean volume of the candles.
    pub volume_average: f64,
    /// tanh(least-squares slope of volume per candle / mean volume), -1..=1.
    pub volume_trend: f64,
    /// max(0, 1 - standard deviation / mean).
    pub volume_consistency: f64,
    /// Mean volume of the candles inside strong sequences / mean volume of all: 1 is ordinary, 0 without strong sequences.
    pub volume_strength: f64,
    pub sequence_count: u32,
    pub mean_length: f64,
}

/// Sequences of one kind, direction and length, and what came after them.
///
/// The forward return runs from the close of a sequence's last candle to the close `forward_candles` later, in the pattern's
/// direction (a fall after a down sequence is positive). Sequences whose forward candles lie beyond the data, or that have no
/// direction, are no samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pattern {
    pub kind: Kind,
    pub direction: Direction,
    pub length: u32,
    /// Sequences of this pattern.
    pub frequency: u32,
    pub mean_strength: f64,
    /// Mean forward return over the samples, as a fraction; 0 without samples.
    pub mean_return: f64,
    /// Mean gap to the next strong sequence, over the sequences that have one.
    pub mean_gap: Option<f64>,
    /// success_count / sample_count; 0 without samples.
    pub success_rate: f64,
    /// Samples whose forward return is above 0.
    pub success_count: u32,
    pub sample_count: u32,
    /// Wilson 95 % interval of the success rate; 0 to 1 without samples.
    pub success_lower: f64,
    pub success_upper: f64,
}

/// Means that [`Metrics`] is made of; both forms of the analysis fill one in, each its own way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Means {
    pub(crate) sequence_count: u32,
    pub(crate) length: f64,
    pub(crate) length_deviation: f64,
    pub(crate) strength: f64,
    /// Over the gaps up to the maximum.
    pub(crate) gap: Option<f64>,
    pub(crate) momentum: f64,
    pub(crate) volume: f64,
    pub(crate) volume_deviation: f64,
    pub(crate) volume_slope: f64,
    /// Over the candles inside strong sequences.
    pub(crate) strong_volume: f64,
}

/// Sums over the sequences of one pattern.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PatternSums {
    frequency: u32,
    strength: f64,
    gap: f64,
    gap_count: u32,
    forward_return: f64,
    sample_count: u32,
    success_count: u32,
}

impl Means {
    pub(crate) fn into_metrics(self, max_gap_length: u32) -> Metrics {
        let volume_metrics = Metrics {
            volume_average: self.volume,
            volume_trend: ratio(self.volume_slope, self.volume).tanh(),
            volume_consistency: if self.volume > 0.0 {
                (1.0 - ratio(self.volume_deviation, self.volume)).max(0.0)
            } else {
                0.0
            },
            volume_strength: ratio(self.strong_volume, self.volume),
            ..Metrics::default()
        };
        if self.sequence_count == 0 {
            return volume_metrics;
        }
        let length_score = (self.length / FULL_LENGTH).min(1.0);
        let consistency_score = 1.0 - (ratio(self.length_deviation, self.length) / 2.0).min(1.0);
        Metrics {
            quality: 0.3 * length_score + 0.4 * self.strength + 0.3 * consistency_score,
            length_score,
            strength_score: self.strength,
            consistency_score,
            continuity: self.gap.map_or(0.0, |gap| (1.0 - gap / f64::from(max_gap_length)).max(0.0)),
            momentum: self.momentum,
            sequence_count: self.sequence_count,
            mean_length: self.length,
            ..volume_metrics
        }
    }
}

impl PatternSums {
    pub(crate) fn add(&mut self, sequence: &Sequence, close: &[f64], forward_candles: u32) {
        self.frequency += 1;
        self.strength += sequence.strength;
        if let Some(gap) = sequence.gap_to_next_strong {
            self.gap += f64::from(gap);
            self.gap_count += 1;
        }
        if let Some(forward_return) = forward_return(sequence, close, forward_candles) {
            self.forward_return += forward_return;
            self.sample_count += 1;
            self.success_count += u32::from(forward_return > 0.0);
        }
    }

    pub(crate) fn into_pattern(self, kind: Kind, direction: Direction, length: u32) -> Pattern {
        let samples = f64::from(self.sample_count);
        let (success_lower, success_upper) = wilson(self.success_count, self.sample_count);
        Pattern {
            kind,
            direction,
            length,
            frequency: self.frequency,
            mean_strength: ratio(self.strength, f64::from(self.frequency)),
            mean_return: ratio(self.forward_return, samples),
            mean_gap: (self.gap_count > 0).then(|| self.gap / f64::from(self.gap_count)),
            success_rate: ratio(f64::from(self.success_count), samples),
            success_count: self.success_count,
            sample_count: self.sample_count,
            success_lower,
            success_upper,
        }
    }
}

/// Measures sequences and the volume of the candles they came from.
pub fn metrics(sequences: &[Sequence], candles: &Candles, params: &SequenceParams) -> Metrics {
    let lengths: Vec<f64> = sequences.iter().map(|each| f64::from(each.length)).collect();
    let strengths: Vec<f64> = sequences.iter().map(|each| each.strength).collect();
    let gaps: Vec<f64> = sequences
        .iter()
        .filter_map(|each| each.gap_to_next_strong)
        .filter(|gap| *gap <= params.max_gap_length)
        .map(f64::from)
        .collect();
    let volume = &candles.volume[..candles.len()];
    let strong_volume: Vec<f64> = sequences
        .iter()
        .filter(|each| each.kind == Kind::Strong)
        .flat_map(|each| &volume[each.start_index..=each.end_index()])
        .copied()
        .collect();
    let means = Means {
        sequence_count: sequences.len() as u32,
        length: mean(&lengths),
        length_deviation: deviation(&lengths),
        strength: mean(&strengths),
        gap: (!gaps.is_empty()).then(|| mean(&gaps)),
        momentum: momentum(&strengths),
        volume: mean(volume),
        volume_deviation: deviation(volume),
        volume_slope: slope(volume),
        strong_volume: mean(&strong_volume),
    };
    means.into_metrics(params.max_gap_length)
}

/// Groups sequences by kind, direction and length.
///
/// Order: frequency, then mean strength, highest first; then kind, direction and length.
pub fn patterns(sequences: &[Sequence], candles: &Candles, forward_candles: u32) -> Vec<Pattern> {
    let close = &candles.close[..candles.len()];
    let mut groups: BTreeMap<(Kind, Direction, u32), PatternSums> = BTreeMap::new();
    for sequence in sequences {
        let key = (sequence.kind, sequence.direction, sequence.length);
        groups.entry(key).or_default().add(sequence, close, forward_candles);
    }
    let mut patterns: Vec<Pattern> = groups
        .into_iter()
        .map(|((kind, direction, length), sums)| sums.into_pattern(kind, direction, length))
        .collect();
    sort_patterns(&mut patterns);
    patterns
}

pub(crate) fn sort_patterns(patterns: &mut [Pattern]) {
    patterns.sort_by(|a, b| {
        let key = |each: &Pattern| (each.kind, each.direction, each.length);
        b.frequency
            .cmp(&a.frequency)
            .then(b.mean_strength.total_cmp(&a.mean_strength))
            .then_with(|| key(a).cmp(&key(b)))
    });
}

pub(crate) fn momentum(strengths: &[f64]) -> f64 {
    let last = &strengths[strengths.len().saturating_sub(MOMENTUM_SEQUENCES)..];
    let (mut weighted, mut weights) = (0.0, 0.0);
    for (at, strength) in last.iter().enumerate() {
        let weight = (at + 1) as f64;
        weighted += weight * strength;
        weights += weight;
    }
    0.7 * ratio(weighted, weights) + 0.3 * mean(last)
}

fn forward_return(sequence: &Sequence, close: &[f64], forward_candles: u32) -> Option<f64> {
    let sign = match sequence.direction {
        Direction::Up => 1.0,
        Direction::Down => -1.0,
        Direction::None => return None,
    };
    let entry = *close.get(sequence.end_index())?;
    let exit = *close.get(sequence.end_index() + forward_candles as usize)?;
    (entry > 0.0).then(|| sign * ratio(exit - entry, entry))
}

/// Bounds of the share `successes / samples`. Source: E. B. Wilson, JASA 22, 1927, 209-212.
fn wilson(successes: u32, samples: u32) -> (f64, f64) {
    if samples == 0 {
        return (0.0, 1.0);
    }
    let n = f64::from(samples);
    let share = f64::from(successes) / n;
    let z2 = Z_95 * Z_95;
    let center = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_95 * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt() / (1.0 + z2 / n);
    ((center - half).max(0.0), (center + half).min(1.0))
}

fn mean(values: &[f64]) -> f64 {
    ratio(values.iter().sum(), values.len() as f64)
}

fn deviation(values: &[f64]) -> f64 {
    let center = mean(values);
    let squares: f64 = values.iter().map(|value| (value - center).powi(2)).sum();
    ratio(squares, values.len() as f64).sqrt()
}

/// Least-squares slope over the row number.
fn slope(values: &[f64]) -> f64 {
    let (row_mean, value_mean) = (values.len().saturating_sub(1) as f64 / 2.0, mean(values));
    let (mut cross, mut squares) = (0.0, 0.0);
    for (row, value) in values.iter().enumerate() {
        let from_mean = row as f64 - row_mean;
        cross += from_mean * (value - value_mean);
        squares += from_mean * from_mean;
    }
    ratio(cross, squares)
}

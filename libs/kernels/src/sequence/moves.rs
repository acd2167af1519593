use crate::Error;
use crate::sequence::{Candles, ratio, require};
use crate::trend::Trend;

/// Move, in percent, from which price strength is 1.
const FULL_STRENGTH_PERCENT: f64 = 10.0;

/// When a candle's body counts as a strong move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoveParams {
    /// Share of volume in a move's strength, 0..=1.
    pub volume_weight: f64,
    /// Strength from which a move is strong, 0..=1.
    pub strength_threshold: f64,
    /// A strong move up is larger than this, percent, 0..=100.
    pub up_move_percent: f64,
    /// A strong move down is larger than this, percent, 0..=100.
    pub down_move_percent: f64,
    /// Candles before the move that make its average volume, 1..=1000.
    pub volume_window: u32,
}

impl Default for MoveParams {
    fn default() -> Self {
        MoveParams {
            volume_weight: 0.3,
            strength_threshold: 0.2,
            up_move_percent: 3.0,
            down_move_percent: 3.0,
            volume_window: 20,
        }
    }
}

/// Where a candle closed, seen from its open. `None`: it closed where it opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Up,
    Down,
    None,
}

/// Class of the moves of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Strong,
    Weak,
}

/// Trend the direction of each move is held against.
#[derive(Debug, Clone, Copy)]
pub enum TrendInput<'a> {
    /// One trend for all candles.
    All(Trend),
    /// The trend as it stood at the end of each candle; `None` and missing rows agree with either direction, as neutral does.
    Each(&'a [Option<Trend>]),
}

/// One candle's body, judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Move {
    /// |close - open| / min(open, close) * 100; 0 where that base is not positive.
    pub move_percent: f64,
    /// min(move_percent / 10, 1).
    pub price_strength: f64,
    /// clamp(volume / average - 1, 0, 1); 0 where there is no average or it is 0.
    pub volume_strength: f64,
    /// The two strengths, weighted.
    pub strength: f64,
    pub direction: Direction,
    pub is_strong: bool,
}

/// Maximal run of moves of one kind and direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sequence {
    pub kind: Kind,
    pub direction: Direction,
    /// Row of its first candle.
    pub start_index: usize,
    /// Candles.
    pub length: u32,
    /// Mean strength of its moves.
    pub strength: f64,
    /// Trading days (candles) from its last candle to the first of the next strong sequence: 1 when that follows at once. `None` when
    /// no strong sequence follows.
    pub gap_to_next_strong: Option<u32>,
}

impl MoveParams {
    /// Refuses values outside their ranges, naming the field.
    pub fn check(&self) -> Result<(), Error> {
        require((0.0..=1.0).contains(&self.volume_weight), "volume_weight", self.volume_weight, "0..=1")?;
        require(
            (0.0..=1.0).contains(&self.strength_threshold),
            "strength_threshold",
            self.strength_threshold,
            "0..=1",
        )?;
        require((0.0..=100.0).contains(&self.up_move_percent), "up_move_percent", self.up_move_percent, "0..=100")?;
        require(
            (0.0..=100.0).contains(&self.down_move_percent),
            "down_move_percent",
            self.down_move_percent,
            "0..=100",
        )?;
        require((1..=1000).contains(&self.volume_window), "volume_window", self.volume_window, "1..=1000")
    }

    pub(crate) fn strength(&self, price_strength: f64, volume_strength: f64) -> f64 {
        price_strength * (1.0 - self.volume_weight) + volume_strength * self.volume_weight
    }
}

impl Sequence {
    /// Row of its last candle.
    pub fn end_index(&self) -> usize {
        self.start_index + self.length as usize - 1
    }
}

impl Move {
    pub(crate) fn kind(&self) -> Kind {
        if self.is_strong { Kind::Strong } else { Kind::Weak }
    }
}

impl TrendInput<'_> {
    pub(crate) fn agrees(self, row: usize, direction: Direction) -> bool {
        let trend = match self {
            TrendInput::All(trend) => Some(trend),
            TrendInput::Each(trends) => trends.get(row).copied().flatten(),
        };
        match trend {
            None | Some(Trend::Neutral) => true,
            Some(Trend::Bullish) => direction == Direction::Up,
            Some(Trend::Bearish) => direction == Direction::Down,
        }
    }
}

/// Judges every candle's body.
///
/// Shape: one move per candle. The average volume is the mean over up to `volume_window` candles *before* the move's own; the first
/// candle has none. Strong: strength at least the threshold, direction agreeing with the trend, and the move larger than its
/// direction's threshold. A neutral or unknown trend agrees with either direction; a candle without direction is never strong.
/// Causality: move i depends on candles 0..=i and trend i only.
/// Cost: n times `volume_window`.
pub fn moves(candles: &Candles, params: &MoveParams, trend: TrendInput) -> Vec<Move> {
    let window = params.volume_window as usize;
    let mut moves = Vec::with_capacity(candles.len());
    for row in 0..candles.len() {
        let (open, close) = (candles.open[row], candles.close[row]);
        let before = &candles.volume[row.saturating_sub(window)..row];
        let average = ratio(before.iter().sum(), before.len() as f64);

        let move_percent = move_percent(open, close);
        let price_strength = price_strength(move_percent);
        let volume_strength = volume_strength(candles.volume[row], average);
        let strength = params.strength(price_strength, volume_strength);
        let direction = direction(open, close);
        let is_large = match direction {
            Direction::Up => move_percent > params.up_move_percent,
            Direction::Down => move_percent > params.down_move_percent,
            Direction::None => false,
        };
        let is_strong = is_large && strength >= params.strength_threshold && trend.agrees(row, direction);
        moves.push(Move { move_percent, price_strength, volume_strength, strength, direction, is_strong });
    }
    moves
}

/// Groups moves into maximal runs of one kind and direction, and drops runs shorter than `min_sequence_length`.
///
/// Order: by start. Runs on both sides of a dropped one are not joined. Gaps are measured between the sequences that remain.
pub fn sequences(moves: &[Move], min_sequence_length: u32) -> Vec<Sequence> {
    let mut sequences: Vec<Sequence> = Vec::new();
    let mut start = 0;
    while start < moves.len() {
        let class = (moves[start].kind(), moves[start].direction);
        let length = moves[start..].iter().take_while(|each| (each.kind(), each.direction) == class).count();
        if length >= min_sequence_length as usize {
            let total: f64 = moves[start..start + length].iter().map(|each| each.strength).sum();
            sequences.push(Sequence {
                kind: class.0,
                direction: class.1,
                start_index: start,
                length: length as u32,
                strength: total / length as f64,
                gap_to_next_strong: None,
            });
        }
        start += length;
    }
    let mut next_strong = None;
    for sequence in sequences.iter_mut().rev() {
        sequence.gap_to_next_strong = next_strong.map(|start: usize| (start - sequence.end_index()) as u32);
        if sequence.kind == Kind::Strong {
            next_strong = Some(sequence.start_index);
        }
    }
    sequences
}

pub(crate) fn move_percent(open: f64, close: f64) -> f64 {
    let base = open.min(close);
    if base > 0.0 { (ratio((close - open).abs(), base) * 100.0).min(f64::MAX) } else { 0.0 }
}

pub(crate) fn price_strength(move_percent: f64) -> f64 {
    (move_percent / FULL_STRENGTH_PERCENT).min(1.0)
}

pub(crate) fn volume_strength(volume: f64, average: f64) -> f64 {
    if average > 0.0 { (volume / average - 1.0).clamp(0.0, 1.0) } else { 0.0 }
}

pub(crate) fn direction(open: f64, close: f64) -> Direction {
    if close > open {
        Direction::Up
    } else if close < open {
        Direction::Down
    } else {
        Direction::None
    }
}

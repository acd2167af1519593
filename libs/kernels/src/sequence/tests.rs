use super::*;

/// Columns a test owns.
#[derive(Debug, Clone, Default)]
struct Table {
    open: Vec<f64>,
    close: Vec<f64>,
    high: Vec<f64>,
    low: Vec<f64>,
    volume: Vec<f64>,
}

impl Table {
    fn push(&mut self, open: f64, close: f64, volume: f64) {
        self.open.push(open);
        self.close.push(close);
        self.high.push(open.max(close));
        self.low.push(open.min(close));
        self.volume.push(volume);
    }

    fn candles(&self) -> Candles<'_> {
        Candles { open: &self.open, high: &self.high, low: &self.low, close: &self.close, volume: &self.volume }
    }

    /// A random walk with gaps, flat candles and days without volume; `is_whole` makes volumes whole numbers.
    fn walk(n: usize, seed: u64, is_whole: bool) -> Table {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        let mut table = Table::default();
        let mut price = 100.0;
        for _ in 0..n {
            let open = price * (1.0 + 0.02 * (random() - 0.5));
            let close = if random() < 0.05 { open } else { open * (1.0 + 0.16 * (random() - 0.5)) };
            let volume = if random() < 0.05 { 0.0 } else { 1e6 * random() };
            table.push(open, close, if is_whole { volume.floor() } else { volume });
            price = close;
        }
        table
    }
}

/// Moves by class alone: 'U', 'D' strong, 'u', 'd', '-' weak, with strengths by row.
fn classes(text: &str) -> Vec<Move> {
    let class = |(row, letter): (usize, char)| Move {
        move_percent: 1.0,
        price_strength: 0.1,
        volume_strength: 0.0,
        strength: (row + 1) as f64 / 100.0,
        direction: match letter.to_ascii_lowercase() {
            'u' => Direction::Up,
            'd' => Direction::Down,
            _ => Direction::None,
        },
        is_strong: letter.is_ascii_uppercase(),
    };
    text.chars().enumerate().map(class).collect()
}

fn close_to(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

#[test]
fn a_move_worked_by_hand() {
    let mut table = Table::default();
    table.push(100.0, 100.0, 100.0);
    table.push(100.0, 100.0, 300.0);
    // Base 100, 5 %: price 0.5. Average before it 200, volume 300: 0.5. 0.5 * 0.7 + 0.5 * 0.3.
    table.push(100.0, 105.0, 300.0);
    // Down: the base is the close. 110 to 100 is 10 %: price 1. Volume 100 is below its average: 0.
    table.push(110.0, 100.0, 100.0);
    let moves = moves(&table.candles(), &MoveParams::default(), TrendInput::All(Trend::Neutral));
    assert_eq!((moves[0].direction, moves[0].strength, moves[0].is_strong), (Direction::None, 0.0, false));
    assert_eq!(moves[1].volume_strength, 1.0, "300 against 100");
    assert!(!moves[1].is_strong, "strength 0.3 without direction is not strong");
    assert!(close_to(moves[2].move_percent, 5.0) && close_to(moves[2].strength, 0.5) && moves[2].is_strong);
    let last = moves[3];
    assert!(close_to(last.move_percent, 10.0) && last.volume_strength == 0.0 && close_to(last.strength, 0.7));
    assert!(last.direction == Direction::Down && last.is_strong);
}

#[test]
fn every_parameter_alters_the_moves() {
    let table = Table::walk(300, 3, true);
    let default = MoveParams::default();
    let of = |params: &MoveParams| moves(&table.candles(), params, TrendInput::All(Trend::Neutral));
    for changed in [
        MoveParams { volume_weight: 0.5, ..default },
        MoveParams { strength_threshold: 0.6, ..default },
        MoveParams { up_move_percent: 5.0, ..default },
        MoveParams { down_move_percent: 5.0, ..default },
        MoveParams { volume_window: 5, ..default },
    ] {
        assert_ne!(of(&changed), of(&default), "{changed:?}");
    }
}

#[test]
fn strength_alone_decides_at_its_threshold_and_size_beyond_its() {
    let mut table = Table::default();
    table.push(1000.0, 1030.0, 0.0);
    table.push(1000.0, 1030.1, 0.0);
    let params = MoveParams { strength_threshold: 0.0, ..MoveParams::default() };
    let found = moves(&table.candles(), &params, TrendInput::All(Trend::Bullish));
    assert_eq!(found[0].move_percent, 3.0);
    assert_eq!(found.iter().map(|each| each.is_strong).collect::<Vec<_>>(), [false, true], "3.0 % is not above 3.0");
    let exact = MoveParams { strength_threshold: found[1].strength, ..params };
    assert!(moves(&table.candles(), &exact, TrendInput::All(Trend::Bullish))[1].is_strong, "at least");
}

#[test]
fn a_move_against_the_trend_of_its_day_is_weak() {
    let mut table = Table::default();
    for _ in 0..5 {
        table.push(100.0, 110.0, 1.0);
    }
    let trend = [None, Some(Trend::Bullish), Some(Trend::Bearish), Some(Trend::Neutral)];
    let found = moves(&table.candles(), &MoveParams::default(), TrendInput::Each(&trend));
    assert_eq!(found.iter().map(|each| each.is_strong).collect::<Vec<_>>(), [true, true, false, true, true]);
    assert!(
        moves(&table.candles(), &MoveParams::default(), TrendInput::All(Trend::Bearish)).iter().all(|m| !m.is_strong)
    );
}

#[test]
fn moves_equal_the_definition() {
    let table = Table::walk(400, 11, false);
    let params = MoveParams { volume_window: 7, ..MoveParams::default() };
    let found = moves(&table.candles(), &params, TrendInput::All(Trend::Bullish));
    for (row, each) in found.iter().enumerate() {
        let (open, close) = (table.open[row], table.close[row]);
        let percent = (close - open).abs() / open.min(close) * 100.0;
        let price = f64::min(percent / 10.0, 1.0);
        let before = &table.volume[row.saturating_sub(7)..row];
        let average = before.iter().sum::<f64>() / before.len().max(1) as f64;
        let volume = if average == 0.0 { 0.0 } else { (table.volume[row] / average - 1.0).clamp(0.0, 1.0) };
        let strength = price * 0.7 + volume * 0.3;
        assert!(close_to(each.move_percent, percent) && close_to(each.strength, strength), "{row}");
        assert_eq!(each.is_strong, close > open && percent > 3.0 && strength >= 0.2, "{row}");
    }
    assert!(found.iter().any(|each| each.is_strong));
}

#[test]
fn later_candles_change_no_move() {
    let table = Table::walk(200, 5, false);
    let params = AnalysisParams::default();
    let whole = analyze_rows(&table.candles(), &params).unwrap().moves;
    for n in [0, 1, 2, 68, 69, 70, 133, 199] {
        let first = table.candles().first(n);
        assert_eq!(analyze_rows(&first, &params).unwrap().moves, whole[..n]);
        assert_eq!(analyze_columns(&first, &params).unwrap().moves, whole[..n]);
    }
}

#[test]
fn sequences_are_maximal_runs_and_gaps_skip_what_was_dropped() {
    // Rows:            0123456789
    let moves = classes("UUuDuuUUDD");
    let found = sequences(&moves, 2);
    let brief: Vec<_> = found
        .iter()
        .map(|each| (each.kind, each.direction, each.start_index, each.length, each.gap_to_next_strong))
        .collect();
    assert_eq!(
        brief,
        [
            // From row 1 to row 6: the single D at row 3 was dropped before gaps were measured.
            (Kind::Strong, Direction::Up, 0, 2, Some(5)),
            (Kind::Weak, Direction::Up, 4, 2, Some(1)),
            (Kind::Strong, Direction::Up, 6, 2, Some(1)),
            (Kind::Strong, Direction::Down, 8, 2, None),
        ]
    );
    assert!(close_to(found[1].strength, 0.055), "mean of 0.05 and 0.06");
    assert_eq!(found[2].end_index(), 7);
    assert_eq!(sequences(&moves, 1).len(), 6);
    assert_eq!(sequences(&moves, 1)[1].gap_to_next_strong, Some(1));
    assert!(sequences(&moves, 3).is_empty());
}

fn sequence(kind: Kind, start_index: usize, length: u32, strength: f64, gap: Option<u32>) -> Sequence {
    Sequence { kind, direction: Direction::Up, start_index, length, strength, gap_to_next_strong: gap }
}

#[test]
fn metrics_worked_by_hand() {
    let mut table = Table::default();
    for volume in [1.0, 2.0, 3.0, 4.0, 5.0, 6.0] {
        table.push(1.0, 1.0, volume);
    }
    // Lengths 2 and 4: mean 3, deviation 1. Gaps 2 and (too long) 9.
    let found = [sequence(Kind::Strong, 0, 2, 0.2, Some(2)), sequence(Kind::Weak, 2, 4, 0.6, Some(9))];
    let metrics = metrics(&found, &table.candles(), &SequenceParams::default());
    let consistency = 1.0 - (1.0 / 3.0) / 2.0;
    let volume_deviation = (17.5_f64 / 6.0).sqrt();
    for (name, value, expected) in [
        ("length", metrics.length_score, 0.6),
        ("strength", metrics.strength_score, 0.4),
        ("consistency", metrics.consistency_score, consistency),
        ("quality", metrics.quality, 0.3 * 0.6 + 0.4 * 0.4 + 0.3 * consistency),
        ("continuity", metrics.continuity, 1.0 - 2.0 / 5.0),
        ("momentum", metrics.momentum, 0.7 * (0.2 + 2.0 * 0.6) / 3.0 + 0.3 * 0.4),
        ("volume average", metrics.volume_average, 3.5),
        ("volume trend", metrics.volume_trend, (1.0_f64 / 3.5).tanh()),
        ("volume consistency", metrics.volume_consistency, 1.0 - volume_deviation / 3.5),
        ("volume strength", metrics.volume_strength, 1.5 / 3.5),
        ("mean length", metrics.mean_length, 3.0),
    ] {
        assert!(close_to(value, expected), "{name}: {value} against {expected}");
    }
    assert_eq!(metrics.sequence_count, 2);
}

#[test]
fn momentum_sees_the_last_five_only() {
    let table = Table::default();
    let mut found: Vec<Sequence> = (0..5).map(|at| sequence(Kind::Weak, at, 1, 0.5, None)).collect();
    found.insert(0, sequence(Kind::Weak, 0, 1, 1.0, None));
    let momentum = metrics(&found, &table.candles(), &SequenceParams::default()).momentum;
    assert!(close_to(momentum, 0.5), "{momentum}");
}

#[test]
fn success_is_the_forward_return_in_the_patterns_direction() {
    let close = [10.0, 10.0, 12.0, 9.0, 6.0, 6.0, 6.0];
    let mut table = Table::default();
    close.iter().for_each(|close| table.push(10.0, *close, 1.0));
    let up =
        |start_index, gap| Sequence { start_index, gap_to_next_strong: gap, ..sequence(Kind::Strong, 0, 1, 0.4, None) };
    let down = Sequence { direction: Direction::Down, ..up(3, Some(2)) };
    let none = Sequence { direction: Direction::None, kind: Kind::Weak, ..up(0, None) };
    // Two candles on: row 0 gains 20 %, row 2 loses half, row 5 has no forward candle. The fall after row 3 is a success.
    let found = patterns(&[none, up(0, Some(2)), up(2, Some(3)), down, up(5, None)], &table.candles(), 2);
    assert_eq!(found.len(), 3);
    let first = found[0];
    assert_eq!((first.kind, first.direction, first.length, first.frequency), (Kind::Strong, Direction::Up, 1, 3));
    assert_eq!((first.success_count, first.sample_count, first.success_rate), (1, 2, 0.5));
    assert!(close_to(first.mean_return, (0.2 - 0.5) / 2.0) && close_to(first.mean_gap.unwrap(), 2.5));
    let second = found[1];
    assert_eq!((second.direction, second.success_count, second.sample_count), (Direction::Down, 1, 1));
    assert!(close_to(second.mean_return, 1.0 / 3.0));
    let third = found[2];
    assert_eq!((third.sample_count, third.mean_gap, third.success_rate), (0, None, 0.0), "no direction, no samples");
    assert_eq!((third.success_lower, third.success_upper), (0.0, 1.0));
}

/// Values of Wilson's 95 % interval from the formula in R's `prop.test(x, n, correct = FALSE)`.
#[test]
fn wilson_interval_is_the_published_one() {
    let mut table = Table::default();
    (0..12).for_each(|row| table.push(10.0, if row == 11 { 9.0 } else { 10.0 + f64::from(row) }, 1.0));
    let found: Vec<Sequence> = (0..10).map(|row| sequence(Kind::Strong, row + 1, 1, 0.4, None)).collect();
    let pattern = patterns(&found, &table.candles(), 1)[0];
    assert_eq!((pattern.success_count, pattern.sample_count), (9, 10));
    assert!((pattern.success_lower - 0.595_850).abs() < 1e-6, "{}", pattern.success_lower);
    assert!((pattern.success_upper - 0.982_124).abs() < 1e-6, "{}", pattern.success_upper);
}

#[test]
fn patterns_are_sorted_by_frequency_strength_and_key() {
    let table = Table::default();
    let of = |kind, length, strength| sequence(kind, 0, length, strength, None);
    let found = patterns(
        &[
            of(Kind::Weak, 2, 0.5),
            of(Kind::Strong, 3, 0.5),
            of(Kind::Strong, 2, 0.5),
            of(Kind::Strong, 4, 0.9),
            of(Kind::Weak, 5, 0.1),
            of(Kind::Weak, 5, 0.1),
        ],
        &table.candles(),
        5,
    );
    let order: Vec<_> = found.iter().map(|each| (each.kind, each.length)).collect();
    let expected = [(Kind::Weak, 5), (Kind::Strong, 4), (Kind::Strong, 2), (Kind::Strong, 3), (Kind::Weak, 2)];
    assert_eq!(order, expected);
}

fn assert_equal(rows: &Analysis, columns: &Analysis) {
    assert_eq!(rows.moves, columns.moves);
    assert_eq!(rows.sequences, columns.sequences);
    assert_eq!(rows.patterns, columns.patterns);
    let figures = |m: &Metrics| {
        [
            m.quality,
            m.length_score,
            m.strength_score,
            m.consistency_score,
            m.continuity,
            m.momentum,
            m.volume_average,
            m.volume_trend,
            m.volume_consistency,
            m.volume_strength,
            m.mean_length,
        ]
    };
    for (a, b) in figures(&rows.metrics).into_iter().zip(figures(&columns.metrics)) {
        assert!(a.is_finite() && close_to(a, b), "{:?} against {:?}", rows.metrics, columns.metrics);
    }
    assert_eq!(rows.metrics.sequence_count, columns.metrics.sequence_count);
}

#[test]
fn rows_and_columns_agree() {
    for seed in 0..40 {
        let table = Table::walk(17 * seed as usize, seed, seed % 2 == 0);
        for min_sequence_length in [1, 2, 3] {
            let mut params = AnalysisParams::default();
            params.moves.volume_window = 1 + seed as u32;
            params.sequences = SequenceParams { min_sequence_length, forward_candles: 3, ..SequenceParams::default() };
            params.trend = TrendParams { period: 5, window: 6, ..TrendParams::default() };
            let rows = analyze_rows(&table.candles(), &params).unwrap();
            assert_equal(&rows, &analyze_columns(&table.candles(), &params).unwrap());
            assert!(
                table.open.len() < 100
                    || rows.sequences.iter().any(|each| each.kind == Kind::Strong)
                    || min_sequence_length == 3
            );
        }
    }
}

#[test]
fn degenerate_candles_give_finite_zeros() {
    let mut tables = vec![Table::default()];
    // One candle, flat, no volume, negative prices, a price of 0, and extremes.
    for (open, close, volume, n) in [
        (5.0, 6.0, 1.0, 1),
        (5.0, 5.0, 0.0, 100),
        (-5.0, -6.0, 1.0, 100),
        (0.0, 6.0, 1.0, 100),
        (1e-300, 1e100, 1e100, 100),
        (-0.0, 0.0, -0.0, 3),
    ] {
        let mut table = Table::default();
        (0..n).for_each(|_| table.push(open, close, volume));
        tables.push(table);
    }
    for table in tables {
        let rows = analyze_rows(&table.candles(), &AnalysisParams::default()).unwrap();
        assert_equal(&rows, &analyze_columns(&table.candles(), &AnalysisParams::default()).unwrap());
        for each in &rows.moves {
            assert!(
                [each.move_percent, each.price_strength, each.volume_strength, each.strength]
                    .iter()
                    .all(|x| x.is_finite())
            );
            assert!(!(each.direction == Direction::None && each.is_strong));
        }
        for each in &rows.patterns {
            assert!([each.mean_strength, each.mean_return, each.success_rate].iter().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn bad_columns_and_parameters_are_named() {
    let mut table = Table::walk(10, 1, true);
    let params = AnalysisParams::default();
    for (changed, field) in [
        (AnalysisParams { moves: MoveParams { volume_weight: 1.5, ..params.moves }, ..params }, "volume_weight"),
        (AnalysisParams { moves: MoveParams { volume_window: 0, ..params.moves }, ..params }, "volume_window"),
        (AnalysisParams { trend: TrendParams { period: 0, ..params.trend }, ..params }, "period"),
        (
            AnalysisParams { sequences: SequenceParams { forward_candles: 0, ..params.sequences }, ..params },
            "forward_candles",
        ),
    ] {
        for result in [analyze_rows(&table.candles(), &changed), analyze_columns(&table.candles(), &changed)] {
            assert!(result.unwrap_err().to_string().contains(field));
        }
    }
    table.close[3] = f64::NAN;
    assert!(analyze_rows(&table.candles(), &params).unwrap_err().to_string().contains("close[3]"));
    table.close.pop();
    assert!(analyze_columns(&table.candles(), &params).unwrap_err().to_string().contains("close"));
    table.volume[0] = -1.0;
    table.close = table.open.clone();
    assert!(analyze_columns(&table.candles(), &params).unwrap_err().to_string().contains("volume[0]"));
}

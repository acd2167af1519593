use super::*;

const FREE: Costs = Costs { fee_bp: 0.0, candles_per_year: 252.0 };
const SMA: Strategy = Strategy::SmaCrossover { fast: 1, slow: 2 };

fn wave(n: usize) -> Vec<f64> {
    (0..n).map(|i| 100.0 + 20.0 * (i as f64 * 0.11).sin() + 6.0 * (i as f64 * 1.7).cos() + 0.02 * i as f64).collect()
}

fn sma(close: &[f64], row: usize, period: u32) -> Option<f64> {
    let period = period as usize;
    (row + 1 >= period).then(|| close[row + 1 - period..=row].iter().sum::<f64>() / period as f64)
}

fn ema(close: &[f64], row: usize, period: u32) -> Option<f64> {
    let mut ema = sma(close, period as usize - 1, period)?;
    close[period as usize..=row.max(period as usize - 1)]
        .iter()
        .for_each(|x| ema += (x - ema) * 2.0 / (f64::from(period) + 1.0));
    (row + 1 >= period as usize).then_some(ema)
}

fn rsi(close: &[f64], row: usize, period: u32) -> Option<f64> {
    let (p, n) = (period as usize, f64::from(period));
    if row < p {
        return None;
    }
    let change = |row: usize| close[row] - close[row - 1];
    let mut gain = (1..=p).map(|row| change(row).max(0.0)).sum::<f64>() / n;
    let mut loss = (1..=p).map(|row| (-change(row)).max(0.0)).sum::<f64>() / n;
    for row in p + 1..=row {
        gain = (gain * (n - 1.0) + change(row).max(0.0)) / n;
        loss = (loss * (n - 1.0) + (-change(row)).max(0.0)) / n;
    }
    Some(100.0 * gain / (gain + loss))
}

/// Straight from the definitions, with figures recomputed for every close.
fn naive(strategy: &Strategy, close: &[f64], range: Range<usize>, costs: &Costs) -> Outcome {
    let fee = costs.fee_bp / 1e4;
    let (mut equity, mut is_long, mut entry) = (1.0_f64, false, 0.0);
    let (mut returns, mut curve) = (vec![], vec![1.0]);
    let (mut trades, mut wins, mut held) = (0, 0, 0);
    for row in range.start + 1..range.end {
        let before = equity;
        if is_long {
            equity *= close[row] / close[row - 1];
            held += 1;
        }
        let above =
            |pair: (Option<f64>, Option<f64>)| matches!(pair, (Some(fast), Some(slow)) if fast > slow * (1.0 + 1e-12));
        let mut wanted = match *strategy {
            Strategy::SmaCrossover { fast, slow } => above((sma(close, row, fast), sma(close, row, slow))),
            Strategy::EmaCrossover { fast, slow } => above((ema(close, row, fast), ema(close, row, slow))),
            Strategy::RsiReversion { period, lower, upper } => match rsi(close, row, period) {
                Some(rsi) if rsi < lower => true,
                Some(rsi) if rsi > upper => false,
                _ => is_long,
            },
        };
        wanted &= row + 1 < range.end;
        if wanted && !is_long {
            entry = equity;
            equity *= 1.0 - fee;
        } else if is_long && !wanted {
            equity *= 1.0 - fee;
            trades += 1;
            wins += u32::from(equity > entry);
        }
        is_long = wanted;
        returns.push(equity / before - 1.0);
        curve.push(equity);
    }
    let n = returns.len() as f64;
    let mean = returns.iter().sum::<f64>() / n;
    let deviation = (returns.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    let drawdown = (0..curve.len())
        .map(|at| 1.0 - curve[at] / curve[..=at].iter().copied().fold(0.0, f64::max))
        .fold(0.0, f64::max);
    Outcome {
        total_return: equity - 1.0,
        sharpe: if deviation > 0.0 { mean / deviation * costs.candles_per_year.sqrt() } else { 0.0 },
        max_drawdown: drawdown,
        trades,
        win_rate: if trades > 0 { f64::from(wins) / f64::from(trades) } else { 0.0 },
        exposure: f64::from(held) / n,
        final_equity: equity,
    }
}

fn figures(outcome: &Outcome) -> [f64; 7] {
    [
        outcome.total_return,
        outcome.sharpe,
        outcome.max_drawdown,
        f64::from(outcome.trades),
        outcome.win_rate,
        outcome.exposure,
        outcome.final_equity,
    ]
}

fn assert_close(found: &Outcome, expected: &Outcome, what: &str) {
    for (a, b) in figures(found).into_iter().zip(figures(expected)) {
        assert!((a - b).abs() <= 1e-9 * b.abs().max(1.0), "{what}: {found:?} against {expected:?}");
    }
}

fn many() -> Vec<Strategy> {
    let mut strategies = Vec::new();
    for fast in [1, 3, 5, 8] {
        for slow in [9, 13, 20] {
            strategies.push(Strategy::SmaCrossover { fast, slow });
            strategies.push(Strategy::EmaCrossover { fast, slow });
            let (lower, upper) = (30.0 + f64::from(slow), 70.0 - f64::from(fast));
            strategies.push(Strategy::RsiReversion { period: fast + 1, lower, upper });
        }
    }
    strategies
}

#[test]
fn a_crossover_worked_by_hand() {
    // SMA1 above SMA2 means the close rose. Signals: rows 1 (up), 2 (down), 3 (up), 4 (up), 5 is the last.
    let close = [10.0, 11.0, 10.0, 12.0, 15.0, 18.0];
    let found = run(&SMA, &close, &FREE).unwrap();
    // Long from row 1 to 2: 10 / 11. Long from row 3 to 5: 18 / 12. The rise to row 1 and the one to row 3 are not earned.
    assert!((found.final_equity - 10.0 / 11.0 * 1.5).abs() < 1e-12);
    assert_eq!((found.trades, found.win_rate, found.exposure), (2, 0.5, 0.6));
    assert!((found.max_drawdown - 1.0 / 11.0).abs() < 1e-12);

    let paid = run(&SMA, &close, &Costs { fee_bp: 100.0, ..FREE }).unwrap();
    assert!((paid.final_equity - 10.0 / 11.0 * 1.5 * 0.99_f64.powi(4)).abs() < 1e-12, "four sides of one percent");
    assert!((paid.total_return - (paid.final_equity - 1.0)).abs() < 1e-15);
}

#[test]
fn many_equal_the_definition_each() {
    let close = wave(400);
    let strategies = many();
    assert!(strategies.len() > 32, "several groups, the last one not full");
    for (range, fee_bp) in [(0..400, 0.0), (0..400, 7.5), (100..250, 3.0), (399..400, 1.0), (0..2, 1.0)] {
        let costs = Costs { fee_bp, ..FREE };
        let found = run_many(&strategies, &close, range.clone(), &costs).unwrap();
        for (strategy, found) in strategies.iter().zip(&found) {
            let what = format!("{strategy:?} on {range:?}");
            if range.len() > 2 {
                assert_close(found, &naive(strategy, &close, range.clone(), &costs), &what);
                assert!(found.trades > 0, "{what}");
            } else {
                assert_eq!(figures(found), figures(&Outcome { final_equity: 1.0, ..Outcome::default() }), "{what}");
            }
        }
    }
}

#[test]
fn one_is_the_same_as_among_many() {
    let close = wave(300);
    let together = run_many(&many(), &close, 0..300, &FREE).unwrap();
    for (strategy, outcome) in many().iter().zip(together) {
        assert_eq!(run(strategy, &close, &FREE).unwrap(), outcome);
    }
}

#[test]
fn closes_after_the_range_change_nothing() {
    let close = wave(300);
    let mut other = close.clone();
    other[200..].iter_mut().for_each(|close| *close *= 3.0);
    let costs = Costs { fee_bp: 5.0, ..FREE };
    let cut = run_many(&many(), &close[..200], 50..200, &costs).unwrap();
    assert_eq!(run_many(&many(), &close, 50..200, &costs).unwrap(), cut);
    assert_eq!(run_many(&many(), &other, 50..200, &costs).unwrap(), cut);
}

#[test]
fn the_close_that_signals_earns_nothing_itself() {
    // One jump: whoever earns it decided before it.
    let mut close = vec![100.0; 40];
    close[20..].iter_mut().for_each(|close| *close = 200.0);
    let found = run(&Strategy::SmaCrossover { fast: 2, slow: 5 }, &close, &FREE).unwrap();
    assert_eq!((found.trades, found.total_return), (1, 0.0));
}

#[test]
fn flat_and_short_series_do_nothing() {
    for close in [&[][..], &[5.0], &[5.0, 6.0], &[0.1 + 0.2; 200]] {
        for strategy in [Strategy::SmaCrossover { fast: 3, slow: 7 }, Strategy::EmaCrossover { fast: 3, slow: 7 }] {
            let found = run(&strategy, close, &Costs { fee_bp: 10.0, ..FREE }).unwrap();
            assert_eq!(found, Outcome { final_equity: 1.0, ..Outcome::default() }, "{strategy:?} on {}", close.len());
        }
    }
    assert_eq!(run_many(&[], &[1.0], 0..1, &FREE), Ok(vec![]));
}

#[test]
fn a_constant_return_has_no_sharpe_and_extremes_stay_finite() {
    let steady: Vec<f64> = (0..50).map(|row| 1.01_f64.powi(row)).collect();
    // Flat for two candles, then 1 % each: it varies. Seen from inside the trend it does not, but for the entry.
    assert!(run(&SMA, &steady, &FREE).unwrap().sharpe > 0.0);
    let wild: Vec<f64> = (0..3000).map(|row| if row % 3 == 0 { 1e-100 } else { 1e50 * f64::from(row) }).collect();
    for strategy in many() {
        let found = run(&strategy, &wild, &Costs { fee_bp: 1000.0, ..FREE }).unwrap();
        assert!(figures(&found).iter().all(|figure| figure.is_finite()), "{found:?}");
    }
}

#[test]
fn bad_input_is_named() {
    let close = wave(50);
    let refused = |strategy: Strategy, costs: Costs| run(&strategy, &close, &costs).unwrap_err().to_string();
    assert!(refused(Strategy::SmaCrossover { fast: 5, slow: 5 }, FREE).contains("fast"));
    assert!(refused(Strategy::EmaCrossover { fast: 5, slow: 20_000 }, FREE).contains("slow"));
    assert!(refused(Strategy::RsiReversion { period: 14, lower: 70.0, upper: 30.0 }, FREE).contains("upper"));
    assert!(refused(Strategy::RsiReversion { period: 14, lower: f64::NAN, upper: 30.0 }, FREE).contains("lower"));
    assert!(refused(SMA, Costs { fee_bp: -1.0, ..FREE }).contains("fee_bp"));
    assert!(refused(SMA, Costs { candles_per_year: 0.0, ..FREE }).contains("candles_per_year"));
    assert!(run(&SMA, &[1.0, 0.0], &FREE).unwrap_err().to_string().contains("close[1]"));
    assert!(run(&SMA, &[f64::NAN], &FREE).unwrap_err().to_string().contains("close[0]"));
    for range in [0..51, Range { start: 3, end: 2 }] {
        assert!(run_many(&[SMA], &close, range, &FREE).unwrap_err().to_string().contains("range"));
    }
}

#[test]
fn folds_train_on_all_before_their_test() {
    let expected = [
        Fold { train: 0..25, test: 25..50 },
        Fold { train: 0..50, test: 50..75 },
        Fold { train: 0..75, test: 75..100 },
    ];
    assert_eq!(folds(103, 3), expected);
    assert_eq!(folds(3, 3), []);
    assert_eq!(folds(0, 0), []);
    assert_eq!(folds(100, 0), []);
    assert_eq!(folds(100, usize::MAX), []);
}

#[test]
fn overfit_is_the_share_lost() {
    assert_eq!(overfit(2.0, 1.0), 0.5);
    assert_eq!(overfit(2.0, 3.0), 0.0);
    assert_eq!(overfit(2.0, -2.0), 2.0);
    assert_eq!(overfit(0.0, 5.0), 1.0);
    assert_eq!(overfit(-1.0, 5.0), 1.0);
}

//! A moving-average crossover straight from its definition, for one parameter set at a time.

use std::ops::Range;

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) total_return: f64,
    pub(crate) sharpe: f64,
    pub(crate) max_drawdown: f64,
    pub(crate) win_rate: f64,
    pub(crate) trades: f64,
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Long while the mean of the last `fast` closes is above that of the last `slow`, from the close that says so to the next; sold at the
/// last close.
pub(crate) fn crossover(
    close: &[f64],
    rows: Range<usize>,
    fast: usize,
    slow: usize,
    fee: f64,
    per_year: f64,
) -> Figures {
    let signal = |row: usize| {
        let average = |period: usize| mean(&close[row + 1 - period..=row]);
        row > rows.start && row + 1 < rows.end && row + 1 >= slow && average(fast) > average(slow)
    };
    let (mut equity, mut peak, mut bought) = (1.0_f64, 1.0_f64, 0.0);
    let (mut trades, mut wins) = (0, 0);
    let mut figures = Figures::default();
    let mut returns = Vec::new();
    for row in rows.start + 1..rows.end {
        let before = equity;
        let was_long = signal(row - 1);
        if was_long {
            equity *= close[row] / close[row - 1];
        }
        match (was_long, signal(row)) {
            (false, true) => {
                bought = equity;
                equity *= 1.0 - fee;
            }
            (true, false) => {
                equity *= 1.0 - fee;
                trades += 1;
                wins += u32::from(equity > bought);
            }
            _ => {}
        }
        peak = peak.max(equity);
        figures.max_drawdown = figures.max_drawdown.max(1.0 - equity / peak);
        returns.push(equity / before - 1.0);
    }
    let middle = mean(&returns);
    let squares: f64 = returns.iter().map(|each| (each - middle).powi(2)).sum();
    let deviation = (squares / (returns.len() as f64 - 1.0)).sqrt();
    figures.sharpe = if deviation > 0.0 { middle / deviation * per_year.sqrt() } else { 0.0 };
    figures.total_return = equity - 1.0;
    figures.trades = f64::from(trades);
    figures.win_rate = if trades > 0 { f64::from(wins) / f64::from(trades) } else { 0.0 };
    figures
}

//! What is made of averages, each of which begins on its own: after a period of values that are defined, at their mean.

use serde::{Deserialize, Serialize};

use crate::indicator::catalogue::{Info, single, tradingview_entry};
use crate::indicator::families::momentum::{AVERAGE, Average, FAST, LINES, Ppo, SIGNAL, SLOW, fast_below_slow};
use crate::indicator::fold::Row;
use crate::indicator::smooth::{Shape, Smooth};
use crate::indicator::state::{State, Values, write};

pub(super) const ENTRIES: [Info; 4] = [
    tradingview_entry::<Macd>(
        "macd",
        "difference of two exponential averages, each seeded with its own first period, its exponential average and what remains, each \
         shown as soon as it is defined (ta.macd)",
        &[FAST, SLOW, SIGNAL],
        |values| values.period(1) - 1,
    )
    .gives(LINES)
    .checks(|values| fast_below_slow("macd", values)),
    tradingview_entry::<MacdExt>(
        "macdext",
        "macd whose three averages are simple (0) or exponential (1), each shown as soon as it is defined (built-in script MACD)",
        &[FAST, SLOW, SIGNAL, AVERAGE],
        |values| values.period(1) - 1,
    )
    .gives(LINES)
    .checks(|values| fast_below_slow("macdext", values)),
    tradingview_entry::<Ppo>(
        "ppo",
        "difference of two exponential averages in percent of the slow one, undefined where that is 0 (built-in script Price \
         Oscillator, exponential)",
        &[FAST, SLOW],
        |values| values.period(1) - 1,
    )
    .checks(|values| fast_below_slow("ppo", values)),
    tradingview_entry::<Trix>(
        "trix",
        "change from candle to candle of the logarithm of the close, times 10000, smoothed three times by exponential averages \
         (built-in script TRIX); undefined at a close that is not above 0",
        &single(30, 1),
        |values| 3 * (values.period(0) - 1) + 1,
    ),
];

/// Three averages; what is made of them shows as soon as it can.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Convergence([Average; 3]);

impl Convergence {
    fn push(&mut self, close: f64, out: &mut [f64]) {
        let [fast, slow, signal] = &mut self.0;
        let Some((fast, slow)) = fast.push(close).zip(slow.push(close)) else { return };
        let line = fast - slow;
        let signal = signal.push(line).unwrap_or(f64::NAN);
        write(out, Some([line, signal, line - signal]));
    }
}

/// Source: Pine Script v6 reference, `ta.macd`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Macd(Convergence);

impl State for Macd {
    fn new(values: &Values) -> Self {
        Self(Convergence([0, 1, 2].map(|index| Average::exponential(values.period(index)))))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        self.0.push(row.close, out);
    }
}

/// Source: TradingView's built-in script MACD, with one choice of average for the oscillator and its signal line.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct MacdExt(Convergence);

impl State for MacdExt {
    fn new(values: &Values) -> Self {
        Self(Convergence([0, 1, 2].map(|index| Average::chosen(values, index))))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        self.0.push(row.close, out);
    }
}

/// Source: TradingView's built-in script TRIX. A close without a logarithm is left out.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Trix {
    averages: [Smooth; 3],
    before: Option<f64>,
}

impl State for Trix {
    fn new(values: &Values) -> Self {
        let shape = Shape::exponential(values.period(0));
        Self { averages: std::array::from_fn(|_| Smooth::new(shape)), before: None }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        if row.close <= 0.0 {
            return;
        }
        let mut smoothed = row.close.ln();
        for average in &mut self.averages {
            let Some(value) = average.push(smoothed) else { return };
            smoothed = value;
        }
        write(out, self.before.replace(smoothed).map(|before| [10_000.0 * (smoothed - before)]));
    }
}

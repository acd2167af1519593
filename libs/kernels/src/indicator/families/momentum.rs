//! Momentum: how far the price has come, from candles before or between averages.

use std::fmt;
use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::indicator::catalogue::{Info, Parameter, entry, period, single};
use crate::indicator::fold::Row;
use crate::indicator::formula;
use crate::indicator::recent::Delay;
use crate::indicator::smooth::{Shape, Smooth};
use crate::indicator::state::{State, Values, write};
use crate::indicator::window::Mean;

pub(super) const FAST: Parameter = period("fast", 12, 2);
pub(super) const SLOW: Parameter = period("slow", 26, 3);
pub(super) const SIGNAL: Parameter = period("signal", 9, 1);
/// Which average: 0 simple, 1 exponential; TA-Lib's numbers.
pub(super) const AVERAGE: Parameter = Parameter { name: "average", default: 0.0, min: 0.0, max: 1.0, is_integer: true };

pub(super) const LINES: &[&str] = &["macd", "signal", "histogram"];

pub(super) const ENTRIES: [Info; 11] = [
    entry::<Macd>(
        "macd",
        "difference of two exponential averages of the close, its exponential average and what remains (TA-Lib's seeds)",
        &[FAST, SLOW, SIGNAL],
        |values| values.period(1) + values.period(2) - 2,
    )
    .gives(LINES)
    .checks(|values| fast_below_slow("macd", values)),
    entry::<MacdExt>(
        "macdext",
        "macd whose three averages are simple (0) or exponential (1)",
        &[FAST, SLOW, SIGNAL, AVERAGE],
        |values| values.period(1) + values.period(2) - 2,
    )
    .gives(LINES)
    .checks(|values| fast_below_slow("macdext", values)),
    entry::<MacdFix>(
        "macdfix",
        "macd of 12 and 26 candles with the smoothing constants 0.15 and 0.075",
        &[SIGNAL],
        |values| MacdFix::SLOW + values.period(0) - 2,
    )
    .gives(LINES),
    entry::<Apo>(
        "apo",
        "absolute price oscillator: difference of two exponential averages of the close",
        &[FAST, SLOW],
        |values| values.period(1) - 1,
    )
    .checks(|values| fast_below_slow("apo", values)),
    entry::<Ppo>(
        "ppo",
        "percentage price oscillator: difference of two exponential averages of the close in percent of the slow one",
        &[FAST, SLOW],
        |values| values.period(1) - 1,
    )
    .checks(|values| fast_below_slow("ppo", values)),
    entry::<Trix>(
        "trix",
        "change from candle to candle, in percent, of the close smoothed three times by exponential averages",
        &single(30, 1),
        |values| 3 * (values.period(0) - 1) + 1,
    ),
    entry::<Since<Momentum>>("mom", "close minus the close period candles ago", &single(10, 1), |values| {
        values.period(0)
    }),
    entry::<Since<Percent>>(
        "roc",
        "rate of change: percent by which the close exceeds that of period candles ago",
        &single(10, 1),
        |values| values.period(0),
    ),
    entry::<Since<Fraction>>(
        "rocp",
        "rate of change as a fraction: close over that of period candles ago, minus 1",
        &single(10, 1),
        |values| values.period(0),
    ),
    entry::<Since<Ratio>>(
        "rocr",
        "rate of change as a ratio: close over that of period candles ago",
        &single(10, 1),
        |values| values.period(0),
    ),
    entry::<Since<Ratio100>>(
        "rocr100",
        "rate of change as a ratio on a scale of 100: close over that of period candles ago, times 100",
        &single(10, 1),
        |values| values.period(0),
    ),
];

/// The first two parameters are a fast and a slow period.
pub(super) fn fast_below_slow(name: &str, values: &Values) -> Result<(), Error> {
    let (fast, slow) = (values.period(0), values.period(1));
    if fast < slow {
        return Ok(());
    }
    let accepted = format!("less than the slow period, {slow}");
    Err(Error::Parameter { field: format!("{name} fast"), value: fast.to_string(), accepted })
}

/// An average of the kind that was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Average {
    Simple(Mean),
    Exponential(Smooth),
}

impl Average {
    pub(super) fn exponential(period: usize) -> Self {
        Self::Exponential(Smooth::new(Shape::exponential(period)))
    }

    /// Of the kind that MACDEXT's fourth parameter says.
    pub(super) fn chosen(values: &Values, index: usize) -> Self {
        match values.period(3) {
            0 => Self::Simple(Mean::new(values.period(index))),
            _ => Self::exponential(values.period(index)),
        }
    }

    pub(super) fn push(&mut self, x: f64) -> Option<f64> {
        match self {
            Self::Simple(mean) => mean.push(x),
            Self::Exponential(smooth) => smooth.push(x),
        }
    }
}

/// Moving average convergence and divergence in TA-Lib's profile.
///
/// Seed: the fast average is seeded late, so that both start on candle `slow - 1`; nothing shows before the signal does.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Convergence {
    /// Candles the fast average still has to skip.
    skip: usize,
    fast: Average,
    slow: Average,
    signal: Average,
}

impl Convergence {
    /// Line, signal and histogram.
    fn push(&mut self, close: f64) -> Option<[f64; 3]> {
        let slow = self.slow.push(close);
        let fast = if self.skip == 0 { self.fast.push(close) } else { None };
        self.skip = self.skip.saturating_sub(1);
        let line = fast? - slow?;
        self.signal.push(line).map(|signal| [line, signal, line - signal])
    }
}

/// Source: G. Appel, The Moving Average Convergence-Divergence Method, 1979.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Macd(Convergence);

impl State for Macd {
    fn new(values: &Values) -> Self {
        let [fast, slow, signal] = [0, 1, 2].map(|index| Average::exponential(values.period(index)));
        Self(Convergence { skip: values.period(1) - values.period(0), fast, slow, signal })
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close));
    }
}

/// TA-Lib's MACDEXT with one kind of average for all three. Exponential, it is [`Macd`].
#[derive(Debug, Clone, Serialize, Deserialize)]
struct MacdExt(Convergence);

impl State for MacdExt {
    fn new(values: &Values) -> Self {
        let [fast, slow, signal] = [0, 1, 2].map(|index| Average::chosen(values, index));
        Self(Convergence { skip: values.period(1) - values.period(0), fast, slow, signal })
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close));
    }
}

/// TA-Lib's MACDFIX: Appel's rounded constants, which are near 2/13 and 2/27, and his lengths for the seeds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct MacdFix(Convergence);

impl MacdFix {
    const FAST: usize = 12;
    const SLOW: usize = 26;
}

impl State for MacdFix {
    fn new(values: &Values) -> Self {
        let average = |period: usize, gain: f64| {
            let shape = Shape { count: period, divisor: period as f64, carry: 1.0 - gain, gain };
            Average::Exponential(Smooth::new(shape))
        };
        Self(Convergence {
            skip: Self::SLOW - Self::FAST,
            fast: average(Self::FAST, 0.15),
            slow: average(Self::SLOW, 0.075),
            signal: Average::exponential(values.period(0)),
        })
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close));
    }
}

/// A fast and a slow exponential average of the close. Seed: each with the mean of its own first period (as TA-Lib's APO and PPO with
/// average type 1; its MACD seeds the fast one late, and its default there is simple averages).
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pair {
    fast: Smooth,
    slow: Smooth,
}

impl Pair {
    fn new(values: &Values) -> Self {
        let [fast, slow] = [0, 1].map(|index| Smooth::new(Shape::exponential(values.period(index))));
        Self { fast, slow }
    }

    /// Fast and slow average.
    fn push(&mut self, close: f64) -> Option<(f64, f64)> {
        let (fast, slow) = (self.fast.push(close), self.slow.push(close));
        fast.zip(slow)
    }
}

/// Absolute price oscillator.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Apo(Pair);

impl State for Apo {
    fn new(values: &Values) -> Self {
        Self(Pair::new(values))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close).map(|(fast, slow)| [fast - slow]));
    }
}

/// Percentage price oscillator. Slow average negligible: 0, in TradingView's profile undefined.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Ppo {
    averages: Pair,
    flat: f64,
}

impl State for Ppo {
    fn new(values: &Values) -> Self {
        Self { averages: Pair::new(values), flat: values.flat(0.0) }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some((fast, slow)) = self.averages.push(row.close) else { return };
        let percent = (fast - slow) / slow * 100.0;
        write(out, Some([if slow.abs() < formula::NEGLIGIBLE { self.flat } else { percent }]));
    }
}

/// Seed of each of the three averages: mean of the first `period` values of the one before it.
///
/// Source: J. K. Hutson, Good TRIX, Technical Analysis of Stocks and Commodities 1:5, 1983.
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
        let mut smoothed = row.close;
        for average in &mut self.averages {
            let Some(value) = average.push(smoothed) else { return };
            smoothed = value;
        }
        write(out, self.before.replace(smoothed).map(|before| [Percent::of(smoothed, before)]));
    }
}

/// What is said of a price and one before it.
trait Comparison: fmt::Debug + Clone + Send + Sync + 'static {
    fn of(now: f64, before: f64) -> f64;
}

/// The close compared with that of `period` candles ago.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(bound = "")]
struct Since<C> {
    closes: Delay,
    comparison: PhantomData<C>,
}

impl<C: Comparison> State for Since<C> {
    fn new(values: &Values) -> Self {
        Self { closes: Delay::new(values.period(0)), comparison: PhantomData }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.closes.push(row.close).map(|before| [C::of(row.close, before)]));
    }
}

#[derive(Debug, Clone)]
struct Momentum;

impl Comparison for Momentum {
    fn of(now: f64, before: f64) -> f64 {
        now - before
    }
}

#[derive(Debug, Clone)]
struct Percent;

impl Comparison for Percent {
    fn of(now: f64, before: f64) -> f64 {
        or_zero(before, (now / before - 1.0) * 100.0)
    }
}

#[derive(Debug, Clone)]
struct Fraction;

impl Comparison for Fraction {
    fn of(now: f64, before: f64) -> f64 {
        or_zero(before, (now - before) / before)
    }
}

#[derive(Debug, Clone)]
struct Ratio;

impl Comparison for Ratio {
    fn of(now: f64, before: f64) -> f64 {
        or_zero(before, now / before)
    }
}

#[derive(Debug, Clone)]
struct Ratio100;

impl Comparison for Ratio100 {
    fn of(now: f64, before: f64) -> f64 {
        or_zero(before, now / before * 100.0)
    }
}

/// The quotient, or 0 where the divisor is 0 (as TA-Lib).
fn or_zero(divisor: f64, quotient: f64) -> f64 {
    if divisor == 0.0 { 0.0 } else { quotient }
}

#[cfg(test)]
mod tests {
    use crate::indicator::Spec;
    use crate::indicator::families::probe::{flat, run, scales, undefined, walk};

    #[test]
    fn unmoving_prices_have_named_answers() {
        for (text, wanted) in [("mom", 0.0), ("roc", 0.0), ("rocp", 0.0), ("rocr", 1.0), ("rocr100", 100.0)] {
            assert_eq!(run(text, &flat(700, 123.45)).last().unwrap(), &[wanted], "{text}");
        }
        for text in ["macdext", "macdext:12,26,9,1", "macdfix", "apo", "ppo", "trix"] {
            let last = run(text, &flat(700, 123.45)).pop().unwrap();
            assert!(last.iter().all(|value| value.abs() < 1e-11), "{text} {last:?}");
        }
    }

    #[test]
    fn a_price_of_zero_before_gives_zero() {
        for text in ["roc:1", "rocp:1", "rocr:1", "rocr100:1", "ppo:2,3", "trix:1"] {
            assert_eq!(run(text, &flat(10, 0.0)).last().unwrap(), &[0.0], "{text}");
        }
        let rows = [flat(1, 0.0), flat(1, 5.0)].concat();
        for text in ["roc:1", "rocp:1", "rocr:1", "rocr100:1", "trix:1"] {
            assert_eq!(run(text, &rows).last().unwrap(), &[0.0], "{text}");
        }
        assert_eq!(run("mom:1", &rows).last().unwrap(), &[5.0]);
    }

    #[test]
    fn other_parameters_have_the_lookback_they_name() {
        let check = |texts: &[&str], rows: &[_]| {
            for text in texts {
                assert_eq!(undefined(text, rows), text.parse::<Spec>().unwrap().lookback(), "{text}");
            }
        };
        check(&["macdext:2,3,1,1", "macdext:5,34,5,0", "macdfix:1", "apo:3,10", "ppo:3,10"], &walk(400));
        check(&["trix:1", "trix:18", "mom:1", "roc:63"], &walk(400));
        let longest = ["macdext:9999,10000,10000", "macdfix:10000", "ppo:9999,10000", "trix:10000", "rocr:10000"];
        check(&longest, &walk(30_100));
    }

    #[test]
    fn macdext_of_exponential_averages_is_macd() {
        let bits = |text: &str| -> Vec<u64> { run(text, &walk(300)).concat().into_iter().map(f64::to_bits).collect() };
        assert_eq!(bits("macdext:5,9,4,1"), bits("macd:5,9,4"));
        assert_ne!(bits("macdext:5,9,4,0"), bits("macd:5,9,4"));
    }

    #[test]
    fn macdext_of_simple_averages_is_their_difference() {
        let rows = walk(60);
        let mean = |end: usize, n: usize| rows[end + 1 - n..=end].iter().map(|row| row.close).sum::<f64>() / n as f64;
        let line = |end: usize| mean(end, 3) - mean(end, 7);
        for (index, got) in run("macdext:3,7,4,0", &rows).into_iter().enumerate().skip(9) {
            let signal = (0..4).map(|age| line(index - age)).sum::<f64>() / 4.0;
            let wanted = [line(index), signal, line(index) - signal];
            assert!(got.iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() < 1e-10), "{index}");
        }
    }

    #[test]
    fn apo_and_ppo_seed_each_average_with_its_own_first_period() {
        let rows: Vec<_> = [1.0, 2.0, 6.0, 8.0].iter().flat_map(|close| flat(1, *close)).collect();
        // Fast, alpha 2/3: seed 1.5, then 4.5, then 6.8333. Slow, alpha 1/2: seed 3, then 5.5.
        let fast = 4.5 / 3.0 + 16.0 / 3.0;
        let near = |text: &str, wanted: [f64; 2]| {
            let got = run(text, &rows);
            assert!(got[1][0].is_nan());
            assert!(got[2..].iter().zip(wanted).all(|(got, wanted)| (got[0] - wanted).abs() < 1e-12), "{got:?}");
        };
        near("apo:2,3", [1.5, fast - 5.5]);
        near("ppo:2,3", [50.0, (fast - 5.5) / 5.5 * 100.0]);
    }

    #[test]
    fn scaled_prices_scale_differences_and_leave_quotients() {
        for text in ["macdext", "macdext:12,26,9,1", "macdfix", "apo", "mom"] {
            assert!(scales(text, 4.0), "{text}");
        }
        for text in ["ppo", "trix", "roc", "rocp", "rocr", "rocr100"] {
            assert!(scales(text, 1.0), "{text}");
        }
    }

    #[test]
    fn fast_is_refused_unless_below_slow() {
        for name in ["macd", "macdext", "apo", "ppo"] {
            let error = format!("{name}:9,9").parse::<Spec>().unwrap_err().to_string();
            assert!(
                error.contains(&format!("{name} fast is \"9\", accepted is less than the slow period, 9")),
                "{error}"
            );
        }
    }
}

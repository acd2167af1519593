//! Oscillators: how fast, and how far in its range, the price moves.

use serde::{Deserialize, Serialize};

use crate::indicator::catalogue::{HIGH_LOW, HIGH_LOW_CLOSE, Info, entry, period, single};
use crate::indicator::deviation::Deviation;
use crate::indicator::fold::Row;
use crate::indicator::formula;
use crate::indicator::profile::Profile;
use crate::indicator::recent::Peak;
use crate::indicator::smooth::{Shape, Smooth};
use crate::indicator::state::{State, Values, write};
use crate::indicator::window::{Extremes, Mean, Range};

/// Computed values that differ by less than this part of them count as equal, as in TA-Lib.
pub(super) const ROUNDING: f64 = 1e-14;

pub(super) const ENTRIES: [Info; 11] = [
    entry::<Rsi>(
        "rsi",
        "relative strength index by Wilder's smoothing, 0 to 100, 0 when nothing moved",
        &single(14, 2),
        |values| values.period(0),
    ),
    entry::<Stochastic>(
        "stoch",
        "slow stochastic: place of the close in the range of the window, smoothed twice by simple averages; 0 in a flat window",
        &[period("window", 14, 1), period("k_smoothing", 3, 1), period("d_smoothing", 3, 1)],
        |values| values.period(0) + values.period(1) + values.period(2) - 3,
    )
    .reads(HIGH_LOW_CLOSE)
    .gives(&["k", "d"]),
    entry::<FastStochastic>(
        "stochf",
        "fast stochastic: place of the close in the range of the window and its simple average; 0 in a flat window",
        &[period("window", 5, 1), period("d_smoothing", 3, 1)],
        |values| values.period(0) + values.period(1) - 2,
    )
    .reads(HIGH_LOW_CLOSE)
    .gives(&["k", "d"]),
    entry::<StochasticRsi>(
        "stochrsi",
        "fast stochastic of the relative strength index; 0 in a window where it does not move",
        &[period("period", 14, 2), period("window", 5, 1), period("d_smoothing", 3, 1)],
        |values| values.period(0) + values.period(1) + values.period(2) - 2,
    )
    .gives(&["k", "d"]),
    entry::<Cmo>(
        "cmo",
        "Chande momentum oscillator by Wilder's smoothing (as TA-Lib), -100 to 100, 0 when nothing moved",
        &single(14, 2),
        |values| values.period(0),
    ),
    entry::<Cci>(
        "cci",
        "commodity channel index: distance of the typical price to its mean in mean deviations of 0.015; 0 in a flat window",
        &single(14, 2),
        |values| values.period(0) - 1,
    )
    .reads(HIGH_LOW_CLOSE)
    // Some 0.33 ns for each row of the window.
    .costs(|values| 1 + values.period(0) / 16),
    entry::<WilliamsR>(
        "willr",
        "Williams %R: place of the close in the range of the window, -100 to 0; 0 in a flat window",
        &single(14, 2),
        |values| values.period(0) - 1,
    )
    .reads(HIGH_LOW_CLOSE),
    entry::<Aroon>(
        "aroon",
        "Aroon: how recent the lowest low and the highest high are, 100 for this candle, 0 for period candles ago",
        &single(14, 2),
        |values| values.period(0),
    )
    .reads(HIGH_LOW)
    .gives(&["down", "up"]),
    entry::<AroonOscillator>("aroonosc", "Aroon oscillator: Aroon up minus Aroon down", &single(14, 2), |values| {
        values.period(0)
    })
    .reads(HIGH_LOW),
    entry::<Ultimate>(
        "ultosc",
        "ultimate oscillator: buying pressure over true range in three windows, the shorter the heavier, 0 to 100",
        &[period("short", 7, 1), period("middle", 14, 1), period("long", 28, 1)],
        Ultimate::lookback,
    )
    .reads(HIGH_LOW_CLOSE),
    entry::<Balance>("bop", "balance of power: body over range, -1 to 1; 0 where there is no range", &[], |_| 0)
        .reads(&["open", "high", "low", "close"]),
];

/// Wilder's average gain and loss of the close. Seed: their means over the first `period` changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Changes {
    previous_close: Option<f64>,
    gain: Smooth,
    loss: Smooth,
}

impl Changes {
    pub(super) fn new(period: usize) -> Self {
        let shape = Shape::wilder_mean(period);
        Self { previous_close: None, gain: Smooth::new(shape), loss: Smooth::new(shape) }
    }

    /// Average gain and loss.
    pub(super) fn push(&mut self, close: f64) -> Option<(f64, f64)> {
        let previous = self.previous_close.replace(close)?;
        let gain = self.gain.push(formula::gain(close, previous));
        let loss = self.loss.push(formula::loss(close, previous));
        gain.zip(loss)
    }
}

/// Relative strength index. Neither gain nor loss: 0.
///
/// Source: J. W. Wilder, New Concepts in Technical Trading Systems, 1978, section VI.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Rsi(Changes);

impl State for Rsi {
    fn new(values: &Values) -> Self {
        Self(Changes::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close).map(|(gain, loss)| [formula::relative_strength(gain, loss)]));
    }
}

/// Slow stochastic: both lines start together, when the second smoothing is full.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stochastic {
    range: Range,
    k: Mean,
    d: Mean,
}

impl State for Stochastic {
    fn new(values: &Values) -> Self {
        Self { range: Range::new(values.period(0)), k: Mean::new(values.period(1)), d: Mean::new(values.period(2)) }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some(range) = self.range.push(row.high, row.low) else { return };
        let place = formula::place_in_range(row.close, range.highest, range.lowest);
        let Some(k) = self.k.push(place) else { return };
        write(out, self.d.push(k).map(|d| [k, d]));
    }
}

/// Fast stochastic: both lines start together, when the smoothing is full.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct FastStochastic {
    range: Range,
    d: Mean,
}

impl State for FastStochastic {
    fn new(values: &Values) -> Self {
        Self { range: Range::new(values.period(0)), d: Mean::new(values.period(1)) }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some(range) = self.range.push(row.high, row.low) else { return };
        let k = formula::place_in_range(row.close, range.highest, range.lowest);
        write(out, self.d.push(k).map(|d| [k, d]));
    }
}

/// Fast stochastic of the relative strength index; 0 in a window where the index moves by no more than rounding.
///
/// Source: T. Chande and S. Kroll, The New Technical Trader, 1994.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct StochasticRsi {
    changes: Changes,
    range: Range,
    d: Mean,
}

impl State for StochasticRsi {
    fn new(values: &Values) -> Self {
        Self {
            changes: Changes::new(values.period(0)),
            range: Range::new(values.period(1)),
            d: Mean::new(values.period(2)),
        }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some((gain, loss)) = self.changes.push(row.close) else { return };
        let index = formula::relative_strength(gain, loss);
        let Some(Extremes { highest, lowest }) = self.range.push(index, index) else { return };
        let place = formula::place_in_range(index, highest, lowest);
        let k = if highest - lowest <= ROUNDING * (highest + lowest) { 0.0 } else { place };
        write(out, self.d.push(k).map(|d| [k, d]));
    }
}

/// Chande momentum oscillator over Wilder's averages, where its author took plain sums. Neither gain nor loss: 0.
///
/// Source: T. Chande and S. Kroll, The New Technical Trader, 1994; the smoothing is TA-Lib's.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Cmo(Changes);

impl State for Cmo {
    fn new(values: &Values) -> Self {
        Self(Changes::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row.close).map(|(gain, loss)| [share_or(100.0 * (gain - loss), gain + loss, 0.0)]));
    }
}

/// Commodity channel index; 0, in TradingView's profile undefined, where typical prices differ by no more than the rounding of their sums.
///
/// Cost: `period` rows are scanned per row, see [`Deviation`].
///
/// Source: D. Lambert, Commodity Channel Index, Commodities (Futures) 9:10, 1980.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Cci {
    window: Deviation,
    flat: f64,
}

impl State for Cci {
    fn new(values: &Values) -> Self {
        Self { window: Deviation::new(values.period(0)), flat: values.flat(0.0) }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let typical = (row.high + row.low + row.close) / 3.0;
        let Some(distances) = self.window.push(typical) else { return };
        let index = distances.last / (0.015 * distances.mean);
        write(out, Some([if distances.mean <= ROUNDING * typical.abs() { self.flat } else { index }]));
    }
}

/// Williams %R. A flat window: 0, in TradingView's profile undefined.
///
/// Source: L. Williams, How I Made One Million Dollars Last Year Trading Commodities, 1973.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct WilliamsR {
    range: Range,
    flat: f64,
}

impl State for WilliamsR {
    fn new(values: &Values) -> Self {
        Self { range: Range::new(values.period(0)), flat: values.flat(0.0) }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some(range) = self.range.push(row.high, row.low) else { return };
        let hundredth = (range.highest - range.lowest) / 100.0;
        let place = (row.close - range.highest) / hundredth;
        write(out, Some([if hundredth == 0.0 { self.flat } else { place }]));
    }
}

/// Candles since the lowest low and the highest high, out of `period` and this one; of equal ones the latest counts.
///
/// Source: T. Chande, A Time Price Oscillator, Technical Analysis of Stocks and Commodities 13:9, 1995.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ages {
    period: usize,
    low: Peak,
    high: Peak,
}

impl Ages {
    fn new(period: usize) -> Self {
        Self { period, low: Peak::new(period + 1), high: Peak::new(period + 1) }
    }

    /// Aroon down and up.
    fn push(&mut self, row: &Row) -> Option<(f64, f64)> {
        let (low, high) = (self.low.push(-row.low), self.high.push(row.high));
        let recency = |age: usize| 100.0 * (self.period - age) as f64 / self.period as f64;
        low.zip(high).map(|(low, high)| (recency(low), recency(high)))
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Aroon(Ages);

impl State for Aroon {
    fn new(values: &Values) -> Self {
        Self(Ages::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row).map(|(down, up)| [down, up]));
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct AroonOscillator(Ages);

impl State for AroonOscillator {
    fn new(values: &Values) -> Self {
        Self(Ages::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, self.0.push(row).map(|(down, up)| [up - down]));
    }
}

/// Buying pressure and true range, averaged over one window.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pressure {
    buying: Mean,
    range: Mean,
}

/// Ultimate oscillator. The periods count in rising order, however they were given, and a window without range counts 0 (as TA-Lib); in
/// TradingView's profile as they were given, and such a window leaves it undefined.
///
/// Source: L. Williams, The Ultimate Oscillator, Technical Analysis of Stocks and Commodities 3:4, 1985.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Ultimate {
    previous_close: Option<f64>,
    flat: f64,
    /// The one that counts most first.
    windows: [Pressure; 3],
}

impl Ultimate {
    fn periods(values: &Values) -> [usize; 3] {
        let mut periods = [0, 1, 2].map(|index| values.period(index));
        if values.profile() == Profile::TaLib {
            periods.sort_unstable();
        }
        periods
    }

    /// The longest window and the close before it.
    pub(super) fn lookback(values: &Values) -> usize {
        Self::periods(values).into_iter().max().unwrap_or_default()
    }
}

impl State for Ultimate {
    fn new(values: &Values) -> Self {
        let windows = Self::periods(values).map(|n| Pressure { buying: Mean::new(n), range: Mean::new(n) });
        Self { previous_close: None, flat: values.flat(0.0), windows }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let Some(previous) = self.previous_close.replace(row.close) else { return };
        let buying = row.close - formula::smaller(row.low, previous);
        let range = formula::true_range(row.high, row.low, previous);
        let shares = self.windows.each_mut().map(|window| {
            let (buying, range) = (window.buying.push(buying), window.range.push(range));
            buying.zip(range).map(|(buying, range)| share_or(buying, range, self.flat))
        });
        if let [Some(short), Some(middle), Some(long)] = shares {
            write(out, Some([100.0 * ((4.0 * short + 2.0 * middle + long) / 7.0)]));
        }
    }
}

/// Balance of power: nothing to remember. A candle without range: 0, in TradingView's profile undefined.
///
/// Source: I. Livshin, Balance of Market Power, Technical Analysis of Stocks and Commodities 19:8, 2001.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Balance {
    flat: f64,
}

impl State for Balance {
    fn new(values: &Values) -> Self {
        Self { flat: values.flat(0.0) }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, Some([share_or(row.close - row.open, row.high - row.low, self.flat)]));
    }
}

/// The quotient, or what is said of nothing.
pub(super) fn share_or(part: f64, whole: f64, of_nothing: f64) -> f64 {
    let quotient = part / whole;
    if whole == 0.0 { of_nothing } else { quotient }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::indicator::Spec;
    use crate::indicator::families::probe::{flat, run, scales, undefined, walk};

    #[test]
    fn unmoving_prices_have_named_answers() {
        let nothing = [
            ("rsi", 1),
            ("stoch", 2),
            ("stochf", 2),
            ("stochrsi", 2),
            ("cmo", 1),
            ("cci", 1),
            ("willr", 1),
            ("aroonosc", 1),
            ("ultosc", 1),
            ("bop", 1),
        ];
        // From the start, and after a market that moved: nothing of it is left in a window that it has left.
        for rows in [flat(700, 123.45), [walk(600), flat(100, 123.45)].concat()] {
            let is_new = rows[0].open == 123.45;
            for (text, outputs) in nothing {
                let is_window = !["rsi", "cmo"].contains(&text);
                if is_new || is_window {
                    assert_eq!(run(text, &rows).last().unwrap(), &vec![0.0; outputs], "{text}");
                }
            }
            assert_eq!(run("aroon", &rows).last().unwrap(), &[100.0, 100.0]);
        }
    }

    #[test]
    fn other_parameters_have_the_lookback_they_name() {
        let check = |texts: &[&str], rows: &[Row]| {
            for text in texts {
                assert_eq!(undefined(text, rows), text.parse::<Spec>().unwrap().lookback(), "{text}");
            }
        };
        check(&["stochf:1,1", "stochf:21,5", "stochrsi:2,1,1", "stochrsi:21,14,4", "cmo:2"], &walk(400));
        check(&["cci:2", "cci:63", "willr:2", "willr:64", "aroon:2", "aroon:99", "aroonosc:2"], &walk(400));
        check(&["ultosc:1,1,1", "ultosc:30,20,10"], &walk(400));
        check(&["stochf:10000,10000", "stochrsi:10000,10000,10000", "cmo:10000", "cci:10000"], &walk(30_100));
        check(&["willr:10000", "aroon:10000", "ultosc:10000,9999,1"], &walk(30_100));
    }

    #[test]
    fn fast_stochastic_is_the_slow_one_without_its_first_smoothing() {
        let rows = walk(200);
        assert_eq!(format!("{:?}", run("stochf:9,4", &rows)), format!("{:?}", run("stoch:9,1,4", &rows)));
    }

    #[test]
    fn rest_is_told_from_small_steps() {
        // The averages of a flat market shrink by one factor, so the index stands still but for rounding.
        let still = [walk(100), flat(300, 14_000.0)].concat();
        assert!(run("stochrsi:14,5,3", &still)[110..].iter().all(|out| out == &[0.0, 0.0]));
        // Nothing is lost of the index however long the rest.
        let (moved, rested) = (run("rsi:2", &still).swap_remove(101), run("rsi:2", &still).pop().unwrap());
        assert!((moved[0] - rested[0]).abs() < 1e-9, "{moved:?} {rested:?}");
        // Within 1e-8 of 100, and still rising.
        let close = |index: usize| if index == 0 { 200.0 } else { 100.0 + index as f64 };
        let rising: Vec<Row> = (0..30).flat_map(|index| flat(1, close(index))).collect();
        let last = run("stochrsi:2,5,1", &rising).pop().unwrap();
        assert!((last[0] - 100.0).abs() < 1e-9, "{last:?}");
    }

    #[test]
    fn typical_prices_that_differ_by_rounding_are_flat() {
        let (mut rows, other) = (flat(1, 250.1), [250.15, 250.05]);
        rows.push(Row { high: other[0], low: other[1], ..rows[0] });
        let typical = |row: &Row| (row.high + row.low + row.close) / 3.0;
        assert_ne!(typical(&rows[0]), typical(&rows[1]), "the example");
        assert_eq!(run("cci:2", &rows)[1], [0.0]);
    }

    #[test]
    fn equal_extremes_count_from_the_latest() {
        let mut rows = flat(5, 10.0);
        rows.extend([Row { high: 12.0, low: 9.0, ..rows[0] }, Row { high: 12.0, low: 9.0, ..rows[0] }]);
        rows.extend(flat(2, 10.0));
        assert_eq!(run("aroon:4", &rows).last().unwrap(), &[50.0, 50.0]);
        assert_eq!(run("aroonosc:4", &rows).last().unwrap(), &[0.0]);
    }

    #[test]
    fn values_stay_within_their_bounds() {
        let rows = walk(3000);
        for (text, low, high) in [
            ("stochf", 0.0, 100.0),
            ("stochrsi", 0.0, 100.0),
            ("cmo:3", -100.0, 100.0),
            ("willr:3", -100.0, 0.0),
            ("aroon", 0.0, 100.0),
            ("aroonosc", -100.0, 100.0),
            ("ultosc", 0.0, 100.0),
            ("bop", -1.0, 1.0),
        ] {
            let values: Vec<f64> = run(text, &rows).concat().into_iter().filter(|value| !value.is_nan()).collect();
            // Quotients of rounded differences may end past the bound by rounding.
            let bounds = low - 1e-9..=high + 1e-9;
            assert!(values.len() > 2900 && values.iter().all(|value| bounds.contains(value)), "{text}");
        }
    }

    #[test]
    fn scaled_prices_leave_the_oscillators() {
        for text in ["stochf", "stochrsi", "cmo", "cci", "willr", "aroon", "aroonosc", "ultosc", "bop"] {
            assert!(scales(text, 1.0), "{text}");
        }
    }

    #[test]
    fn order_of_the_ultimate_periods_does_not_matter() {
        let rows = walk(100);
        assert_eq!(format!("{:?}", run("ultosc:28,7,14", &rows)), format!("{:?}", run("ultosc:7,14,28", &rows)));
    }
}

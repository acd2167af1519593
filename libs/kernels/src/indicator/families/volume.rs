//! What traded: volume, and prices weighted by it.

use serde::{Deserialize, Serialize};

use super::momentum::fast_below_slow;
use crate::indicator::catalogue::{HIGH_LOW_CLOSE_VOLUME, Info, entry, period, single};
use crate::indicator::fold::Row;
use crate::indicator::formula;
use crate::indicator::profile::Profile;
use crate::indicator::smooth::Shape;
use crate::indicator::state::{State, Values, write};
use crate::indicator::window::Mean;

const SESSION: &[&str] = &["high", "low", "close", "volume", "day"];

pub(super) const ENTRIES: [Info; 6] = [
    entry::<Vwap>(
        "vwap",
        "volume-weighted average of the typical price since the trading day began, undefined until volume trades",
        &[],
        |_| 0,
    )
    .reads(SESSION),
    entry::<Obv>(
        "obv",
        "on-balance volume: volume added when the close rises, subtracted when it falls, starting at the first volume",
        &[],
        |_| 0,
    )
    .reads(&["close", "volume"]),
    entry::<VwapAnchored>(
        "vwap_anchored",
        "volume-weighted average of the typical price, begun again every so many trading days, which are counted from the \
         first candle; undefined until volume trades; 1 day is vwap",
        &[period("days", 5, 1)],
        |_| 0,
    )
    .reads(SESSION),
    entry::<Ad>(
        "ad",
        "accumulation and distribution line: running sum of volume times the place of the close in its candle, -1 to 1",
        &[],
        |_| 0,
    )
    .reads(HIGH_LOW_CLOSE_VOLUME),
    entry::<Adosc>(
        "adosc",
        "Chaikin oscillator: difference of two exponential averages of the accumulation and distribution line, both seeded \
         with its first value",
        &[period("fast", 3, 2), period("slow", 10, 3)],
        |values| values.period(1) - 1,
    )
    .reads(HIGH_LOW_CLOSE_VOLUME)
    .checks(|values| fast_below_slow("adosc", values)),
    entry::<Mfi>(
        "mfi",
        "money flow index: turnover on rising typical prices in percent of all turnover that moved, 0 when none did",
        &single(14, 2),
        |values| values.period(0),
    )
    .reads(HIGH_LOW_CLOSE_VOLUME),
];

/// Volume-weighted average of the typical price over a number of trading days. No volume yet: undefined.
///
/// Sums of positive terms, so their rounding stays below 1.2e-16 of the price per candle since the anchor.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Anchored {
    days: usize,
    day: Option<i32>,
    /// Trading days since the anchor, today included.
    begun: usize,
    turnover: f64,
    volume: f64,
}

impl Anchored {
    fn new(days: usize) -> Self {
        Self { days, day: None, begun: 0, turnover: 0.0, volume: 0.0 }
    }

    fn push(&mut self, row: &Row) -> f64 {
        if self.day.replace(row.day) != Some(row.day) {
            if self.begun == self.days {
                *self = Self { day: self.day, ..Self::new(self.days) };
            }
            self.begun += 1;
        }
        self.turnover += formula::turnover(row.high, row.low, row.close, row.volume);
        self.volume += row.volume;
        formula::weighted_price(self.turnover, self.volume)
    }
}

/// Average price from the first candle of the trading day.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Vwap(Anchored);

impl State for Vwap {
    fn new(_: &Values) -> Self {
        Self(Anchored::new(1))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, Some([self.0.push(row)]));
    }
}

/// Average price from an anchor that moves on every so many trading days. Days are counted from the first candle, so another
/// beginning of the history can move the anchors.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct VwapAnchored(Anchored);

impl State for VwapAnchored {
    fn new(values: &Values) -> Self {
        Self(Anchored::new(values.period(0)))
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        write(out, Some([self.0.push(row)]));
    }
}

/// On-balance volume from the first candle's volume on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Obv {
    previous_close: Option<f64>,
    total: f64,
}

impl State for Obv {
    fn new(_: &Values) -> Self {
        Self::default()
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        self.total += match self.previous_close.replace(row.close) {
            Some(previous) => formula::signed_volume(row.close, previous, row.volume),
            None => row.volume,
        };
        write(out, Some([self.total]));
    }
}

/// Volume times the place of the close in its candle, from -1 on the low to 1 on the high. A candle without range: 0.
fn accumulated(row: &Row) -> f64 {
    let range = row.high - row.low;
    let flow = ((row.close - row.low) - (row.high - row.close)) / range * row.volume;
    if range > 0.0 { flow } else { 0.0 }
}

/// Accumulation and distribution line, from 0 before the first candle. It never forgets: each candle adds a rounding of up to 1.2e-16
/// of the line, as in TA-Lib.
///
/// Source: M. Chaikin; S. B. Achelis, Technical Analysis from A to Z, 1995.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Ad {
    line: f64,
}

impl State for Ad {
    fn new(_: &Values) -> Self {
        Self::default()
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        self.line += accumulated(row);
        write(out, Some([self.line]));
    }
}

/// Chaikin oscillator. Seed: both averages start at the line's first value (as TA-Lib and MetaStock), in TradingView's profile each at
/// the mean of its own first period of it; it shows from the slow period on.
///
/// Each average is kept as its distance from the line, `d = carry * (d - flow)`, also while it still is a mean of k values, with a carry
/// of `(k - 1) / k`. The line itself, however far it has come, is not in it, so nothing large cancels and rounding does not grow with the
/// history.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Adosc {
    /// Candles until it shows.
    wanted: usize,
    /// Candles taken, up to those.
    seen: usize,
    fast: Distance,
    slow: Distance,
}

/// An exponential average less the line it is of.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Distance {
    /// Values of the line in the seed.
    count: usize,
    /// Values taken, up to those.
    seen: usize,
    carry: f64,
    value: f64,
}

impl Distance {
    fn new(period: usize, profile: Profile) -> Self {
        let count = match profile {
            Profile::TaLib => 1,
            Profile::TradingView => period,
        };
        Self { count, seen: 0, carry: Shape::exponential(period).carry, value: 0.0 }
    }

    fn push(&mut self, flow: f64) -> f64 {
        let mut carry = self.carry;
        if self.seen < self.count {
            carry = self.seen as f64 / (self.seen + 1) as f64;
            self.seen += 1;
        }
        self.value = carry * (self.value - flow);
        self.value
    }
}

impl State for Adosc {
    fn new(values: &Values) -> Self {
        let [fast, slow] = [0, 1].map(|index| Distance::new(values.period(index), values.profile()));
        Self { wanted: values.period(1), seen: 0, fast, slow }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let flow = accumulated(row);
        let difference = self.fast.push(flow) - self.slow.push(flow);
        self.seen = (self.seen + 1).min(self.wanted);
        write(out, (self.seen == self.wanted).then_some([difference]));
    }
}

/// Money flow index. Nothing moved, or no volume did: 0. Typical prices that differ by rounding alone count as equal (as TA-Lib).
///
/// In TradingView's profile (Pine Script v6 reference, `ta.mfi`) nothing is undefined, and the first candle, whose change is, counts on
/// both sides: so there is a value one candle earlier.
///
/// Source: G. Quong and A. Soudack, Technical Analysis of Stocks & Commodities, March 1989.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Mfi {
    profile: Profile,
    previous: Option<f64>,
    rising: Mean,
    falling: Mean,
    flat: f64,
}

/// Share of two typical prices below which their difference is rounding: TA-Lib's threshold.
const ROUNDING: f64 = 1e-14;

impl State for Mfi {
    fn new(values: &Values) -> Self {
        let window = Mean::new(values.period(0));
        let (profile, flat) = (values.profile(), values.flat(0.0));
        Self { profile, previous: None, rising: window.clone(), falling: window, flat }
    }

    fn push(&mut self, row: &Row, out: &mut [f64]) {
        let typical = (row.high + row.low + row.close) / 3.0;
        let flow = typical * row.volume;
        let (rising, falling) = match (self.previous.replace(typical), self.profile) {
            (Some(previous), _) => sides(flow, typical, previous),
            (None, Profile::TradingView) => (flow, flow),
            (None, Profile::TaLib) => return,
        };
        let means = self.rising.push(rising).zip(self.falling.push(falling));
        write(out, means.map(|(rising, falling)| [percent_or(rising, falling, self.flat)]));
    }
}

/// Turnover as that of a rise and that of a fall.
fn sides(flow: f64, typical: f64, previous: f64) -> (f64, f64) {
    let step = typical - previous;
    let is_still = step.abs() <= ROUNDING * (typical.abs() + previous.abs());
    let flow = if is_still { 0.0 } else { flow };
    if step < 0.0 { (0.0, flow) } else { (flow, 0.0) }
}

/// Percent of the first in both, or what is said of neither.
fn percent_or(part: f64, rest: f64, of_neither: f64) -> f64 {
    let total = part + rest;
    let percent = 100.0 * (part / total);
    if total > 0.0 { percent } else { of_neither }
}

#[cfg(test)]
mod tests {
    use crate::indicator::{Machine, Row, Spec};

    fn all(text: &str, rows: &[Row]) -> Vec<f64> {
        let spec: Spec = text.parse().unwrap();
        let (mut machine, mut out) = (Machine::new(&spec), [f64::NAN]);
        let push = |row| {
            machine.push(row, &mut out);
            out[0]
        };
        rows.iter().map(push).collect()
    }

    fn last(text: &str, rows: &[Row]) -> f64 {
        all(text, rows)[rows.len() - 1]
    }

    /// Prices between 100 and 106, ten candles a day.
    fn rows(count: i32) -> Vec<Row> {
        let row = |i: i32| {
            let low = 100.0 + f64::from(i * 7919 % 101) * 0.05;
            let close = low + f64::from(i * 31 % 11) * 0.1;
            Row { open: low, high: low + 1.0, low, close, volume: f64::from(i * 97 % 53), day: i / 10 }
        };
        (0..count).map(row).collect()
    }

    #[test]
    fn unmoving_prices_have_named_answers() {
        let flat = [Row { open: 123.45, high: 123.45, low: 123.45, close: 123.45, volume: 10.0, day: 3 }; 700];
        assert_eq!(["ad", "adosc", "mfi"].map(|text| last(text, &flat)), [0.0; 3]);
        assert!((last("vwap_anchored", &flat) / 123.45 - 1.0).abs() < 1e-13);
    }

    #[test]
    fn without_volume_the_anchored_price_is_undefined_and_the_others_are_0() {
        let mut rows = rows(60);
        rows.iter_mut().for_each(|row| row.volume = 0.0);
        assert_eq!(["ad", "adosc", "mfi"].map(|text| last(text, &rows)), [0.0; 3]);
        assert!(all("vwap_anchored:2", &rows).iter().all(|price| price.is_nan()));
    }

    #[test]
    fn an_anchor_of_one_day_is_the_session_and_of_three_begins_again_on_the_fourth() {
        let rows = rows(75);
        let bits = |text: &str, rows: &[Row]| all(text, rows).iter().map(|price| price.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits("vwap_anchored:1", &rows), bits("vwap", &rows));
        let three = bits("vwap_anchored:3", &rows);
        assert_eq!(three[30..60], bits("vwap_anchored:100", &rows[30..60]));
        assert_ne!(three[10..30], bits("vwap", &rows)[10..30]);
    }

    #[test]
    fn the_chaikin_oscillator_is_the_same_at_any_level_of_the_line() {
        let mut rows = rows(60);
        let low = all("adosc", &rows);
        rows[0].volume = 1e18;
        assert_eq!(all("adosc", &rows)[9..], low[9..]);
        assert!(low[9..].iter().any(|value| value.abs() > 1.0));
    }

    #[test]
    fn money_flow_is_that_of_its_window_alone() {
        let mut rows = rows(80);
        let quiet = all("mfi", &rows);
        rows[20].volume = 1e18;
        let loud = all("mfi", &rows);
        assert_eq!(loud[34..], quiet[34..]);
        assert_ne!(loud[33], quiet[33]);
    }

    #[test]
    fn fast_below_slow_is_asked_for() {
        let message = "adosc:10,10".parse::<Spec>().unwrap_err().to_string();
        assert!(message.contains("adosc fast is \"10\", accepted is less than the slow period, 10"), "{message}");
    }
}

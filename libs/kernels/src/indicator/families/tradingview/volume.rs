//! What traded, counted from another candle.

use serde::{Deserialize, Serialize};

use crate::indicator::catalogue::{HIGH_LOW_CLOSE_VOLUME, Info, period, single, tradingview_entry};
use crate::indicator::families::momentum::fast_below_slow;
use crate::indicator::families::volume::{Adosc, Mfi};
use crate::indicator::fold::Row;
use crate::indicator::formula;
use crate::indicator::state::{State, Values, write};

pub(super) const ENTRIES: [Info; 3] = [
    tradingview_entry::<Obv>(
        "obv",
        "on-balance volume: volume added when the close rises, subtracted when it falls, starting at 0 (ta.obv)",
        &[],
        |_| 0,
    )
    .reads(&["close", "volume"]),
    tradingview_entry::<Adosc>(
        "adosc",
        "Chaikin oscillator: difference of two exponential averages of the accumulation and distribution line, each seeded with the \
         mean of its own first period (built-in script Chaikin Oscillator)",
        &[period("fast", 3, 2), period("slow", 10, 3)],
        |values| values.period(1) - 1,
    )
    .reads(HIGH_LOW_CLOSE_VOLUME)
    .checks(|values| fast_below_slow("adosc", values)),
    tradingview_entry::<Mfi>(
        "mfi",
        "money flow index: turnover on rising typical prices in percent of all turnover that moved, undefined when none did; the first \
         candle counts as both a rise and a fall (ta.mfi)",
        &single(14, 2),
        |values| values.period(0) - 1,
    )
    .reads(HIGH_LOW_CLOSE_VOLUME),
];

/// Source: Pine Script v6 reference, `ta.obv`: a sum of changes, of which the first candle has none.
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
        if let Some(previous) = self.previous_close.replace(row.close) {
            self.total += formula::signed_volume(row.close, previous, row.volume);
        }
        write(out, Some([self.total]));
    }
}

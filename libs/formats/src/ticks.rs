//! Minute candles of trades.

use std::collections::HashSet;

use market::{Candle, InstrumentKey, Millis};

use crate::chunker::{Chunker, Flow, Row};

const MINUTE_MS: Millis = 60_000;

/// Builds one minute after the other; a trade of a minute already built is refused.
///
/// First trade: open; last in file order: close; volume is summed with compensation, so that its order does not show.
#[derive(Debug, Default)]
pub(crate) struct MinuteBuilder {
    minute: Option<Minute>,
    /// Instruments whose trades have ended.
    ended: HashSet<InstrumentKey>,
}

#[derive(Debug)]
struct Minute {
    key: InstrumentKey,
    /// Line of the first trade.
    line: u64,
    candle: Candle,
    /// What rounding took from the sum of volumes.
    lost: f64,
}

impl MinuteBuilder {
    /// Adds a trade. A row of prices (trades already merged) counts with its high and low.
    pub(crate) fn trade(&mut self, key: &InstrumentKey, line: u64, row: Row, chunker: &mut Chunker<'_>) -> Flow {
        let trade = Candle { open_time: row.candle.open_time.div_euclid(MINUTE_MS) * MINUTE_MS, ..row.candle };
        if let Err(fault) = trade.check() {
            return chunker.bad_row(line, fault.to_string());
        }
        match &mut self.minute {
            Some(minute) if minute.key == *key && minute.candle.open_time == trade.open_time => {
                minute.add(&trade);
                Ok(())
            }
            Some(minute) if minute.key == *key && minute.candle.open_time > trade.open_time => {
                let reason = format!(
                    "a trade of {} after one of a later minute: sort trades by time",
                    market::format_millis(row.candle.open_time)
                );
                chunker.bad_row(line, reason)
            }
            Some(minute) if minute.key != *key && self.ended.contains(key) => chunker
                .bad_row(line, format!("a trade of {key} after those of {}: sort trades by instrument", minute.key)),
            before => {
                if let Some(minute) = before.as_ref().filter(|minute| minute.key != *key) {
                    self.ended.insert(minute.key.clone());
                }
                self.finish(chunker)?;
                self.minute = Some(Minute { key: key.clone(), line, candle: trade, lost: 0.0 });
                Ok(())
            }
        }
    }

    /// Hands over the last minute.
    pub(crate) fn finish(&mut self, chunker: &mut Chunker<'_>) -> Flow {
        let Some(Minute { key, line, mut candle, lost }) = self.minute.take() else { return Ok(()) };
        candle.volume += lost;
        chunker.push(&key, line, Row { candle, date: None })
    }
}

impl Minute {
    fn add(&mut self, trade: &Candle) {
        let candle = &mut self.candle;
        candle.high = candle.high.max(trade.high);
        candle.low = candle.low.min(trade.low);
        candle.close = trade.close;
        candle.open_interest = trade.open_interest.or(candle.open_interest);
        // Neumaier's sum.
        let sum = candle.volume + trade.volume;
        self.lost += match candle.volume.abs() >= trade.volume.abs() {
            true => (candle.volume - sum) + trade.volume,
            false => (trade.volume - sum) + candle.volume,
        };
        candle.volume = sum;
    }
}

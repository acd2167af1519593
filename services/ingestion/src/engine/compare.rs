//! What a put would do, without doing it.

use futures::TryStreamExt;
use market::{Frame, TimeRange};

use super::batch::{Prepared, same_bits};
use super::put::calendar_of;
use super::{Batch, Engine, Outcome, Result};

impl Engine {
    /// The outcome a put of the batch would have had at a revision of the instrument; 0 is before its first candle.
    ///
    /// Errors: those of reading at a revision, among them that it is no longer kept.
    pub(crate) async fn compare(&self, batch: Batch, at_revision: u64) -> Result<Outcome> {
        let (key, timeframe) = (batch.key.clone(), batch.timeframe);
        let known = self.stores.catalog.instrument(&key).await?;
        let stored_by = if known.is_none() { self.stores.candles.calendar(&key).await? } else { None };
        let calendar = calendar_of(&batch, known.as_ref(), stored_by.as_deref())?;
        let Prepared { frame, rejected, repeated } = self.prepare(batch, calendar).await?;
        let mut outcome = Outcome { unchanged: repeated, rejected, revision: at_revision, ..Outcome::default() };
        let equal = match (at_revision, frame.open_time()) {
            (1.., [first, .., last]) | (1.., [first @ last]) => {
                let range = TimeRange::new(*first, *last + 1)?;
                let mut blocks = self.stores.candles.read(&key, timeframe, range, Some(at_revision));
                let mut equal = 0;
                while let Some(block) = blocks.try_next().await? {
                    equal += equal_rows(&frame, &block.frame);
                }
                equal
            }
            _ => 0,
        };
        outcome.stored = frame.len() as u64 - equal;
        outcome.unchanged += equal;
        Ok(outcome)
    }
}

/// Rows of `stored` that `rows` has too, to the bit.
fn equal_rows(rows: &Frame, stored: &Frame) -> u64 {
    let Some(first) = stored.open_time().first() else { return 0 };
    let mut at = rows.open_time().partition_point(|time| time < first);
    let mut equal = 0;
    for index in 0..stored.len() {
        let time = stored.open_time()[index];
        while rows.open_time().get(at).is_some_and(|row| *row < time) {
            at += 1;
        }
        if rows.open_time().get(at) == Some(&time) && same_bits(&rows.candle(at), &stored.candle(index)) {
            equal += 1;
        }
    }
    equal
}

//! Storing batches: all of a call in one transaction.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use market::{Calendar, Instrument, InstrumentKey, Millis};
use proto::convert::FieldError;
use store::Put;

use super::batch::{Prepared, prepare};
use super::{Batch, Engine, Error, Outcome, Result};

/// Rows of one call: 270 sessions of NSE minutes, about 6 MB of message.
pub(crate) const MAX_BATCH_ROWS: usize = 100_000;
/// Batches of one call: every instrument of the largest exchange at once.
pub(crate) const MAX_BATCHES: usize = 10_000;
/// Rows up to which a call is checked where it arrived; more take longer than half a millisecond.
const MAX_INLINE_ROWS: usize = 2000;

/// Rows of candles by outcome: `stored`, `unchanged` or `rejected`.
const ROWS_METRIC: &str = "candlemesh_ingested_rows_total";
/// Time the store took for a call, until it was durable.
const PUT_METRIC: &str = "candlemesh_store_put_seconds";

impl Engine {
    /// [`put_all`](Self::put_all) of one.
    pub(crate) async fn put(&self, batch: Batch, now: Millis) -> Result<Outcome> {
        let outcomes = self.put_all(vec![batch], now).await?;
        Ok(outcomes.into_iter().next().unwrap_or_default())
    }

    /// Stores the good rows of batches in one transaction, and the instruments that are new. The outcomes follow the batches.
    ///
    /// An instrument is created after its first candles: of two first batches that disagree on the calendar the candle store
    /// accepts one, and only that one reaches the catalog. A batch without a good row creates nothing.
    #[tracing::instrument(level = "debug", skip_all, fields(batches = batches.len()))]
    pub(crate) async fn put_all(&self, batches: Vec<Batch>, now: Millis) -> Result<Vec<Outcome>> {
        check(&batches)?;
        let keys: Vec<InstrumentKey> = batches.iter().map(|batch| batch.key.clone()).collect();
        let known = self.stores.catalog.instruments(&keys).await?;
        let stored_by = self.stored_by(&keys, &known).await?;
        let mut calendars = Vec::with_capacity(batches.len());
        for (batch, known) in batches.iter().zip(&known) {
            let stored_by = stored_by.get(&batch.key).map(String::as_str);
            calendars.push(calendar_of(batch, known.as_ref(), stored_by)?);
        }
        let sources: Vec<_> = batches.iter().map(|batch| batch.timeframe).collect();
        let prepared = self.prepare_all(batches, calendars.clone()).await?;
        let mut outcomes = Vec::with_capacity(prepared.len());
        // Aligned with the batches; a batch without a good row has none.
        let mut frames = Vec::with_capacity(prepared.len());
        for Prepared { frame, rejected, repeated } in prepared {
            outcomes.push(Outcome { unchanged: repeated, rejected, ..Outcome::default() });
            frames.push(frame);
        }
        let with_rows: Vec<usize> = (0..frames.len()).filter(|index| !frames[*index].is_empty()).collect();
        let put = |index: &usize| Put {
            key: &keys[*index],
            source: sources[*index],
            calendar: &calendars[*index],
            rows: &frames[*index],
        };
        let puts: Vec<Put<'_>> = with_rows.iter().map(put).collect();
        let mut changes = Vec::new();
        if !puts.is_empty() {
            let started = Instant::now();
            let stored = self.stores.candles.put_all(&puts, now).await?;
            metrics::histogram!(PUT_METRIC).record(started.elapsed().as_secs_f64());
            for (index, put) in with_rows.iter().zip(stored) {
                let outcome = &mut outcomes[*index];
                outcome.stored = put.stored;
                outcome.unchanged += put.unchanged;
                outcome.revision = put.revision;
                changes.extend(put.changes);
            }
            let unknown = with_rows.iter().filter(|index| known[**index].is_none());
            self.create_instruments(unknown.map(|index| (&keys[*index], &*calendars[*index]))).await?;
        }
        // Others may read of them in the log before this, and before the catalog has the instrument.
        self.feed.hand_over(changes);
        self.fill_revisions(&keys, &frames, &mut outcomes).await?;
        count(&outcomes);
        Ok(outcomes)
    }

    /// Calendars of the stored candles of instruments that the catalog does not know: a process ended between the two.
    async fn stored_by(
        &self,
        keys: &[InstrumentKey],
        known: &[Option<Instrument>],
    ) -> Result<HashMap<InstrumentKey, String>> {
        let mut unknown: Vec<InstrumentKey> =
            keys.iter().zip(known).filter(|(_, known)| known.is_none()).map(|(key, _)| key.clone()).collect();
        unknown.sort_unstable();
        unknown.dedup();
        let mut stored_by = HashMap::new();
        if unknown.is_empty() {
            return Ok(stored_by);
        }
        // Almost all of them are new, which one question tells.
        let revisions = self.revisions(&unknown).await?;
        for (key, _) in unknown.into_iter().zip(revisions).filter(|(_, revision)| *revision > 0) {
            if let Some(calendar) = self.stores.candles.calendar(&key).await? {
                stored_by.insert(key, calendar);
            }
        }
        Ok(stored_by)
    }

    /// Sorts the rows of a batch into good and bad, storing nothing.
    pub(super) async fn prepare(&self, batch: Batch, calendar: Arc<Calendar>) -> Result<Prepared> {
        let prepared = self.prepare_all(vec![batch], vec![calendar]).await?;
        Ok(prepared.into_iter().next().unwrap_or_default())
    }

    async fn prepare_all(&self, batches: Vec<Batch>, calendars: Vec<Arc<Calendar>>) -> Result<Vec<Prepared>> {
        let is_short = rows_of(&batches) <= MAX_INLINE_ROWS;
        let work = move || {
            let batches = batches.iter().zip(&calendars);
            batches.map(|(batch, calendar)| prepare(&batch.rows, batch.first_row, batch.timeframe, calendar)).collect()
        };
        if is_short { Ok(work()) } else { Ok(self.pool.run(work).await?) }
    }

    /// Revisions of the batches of which nothing was to be stored.
    async fn fill_revisions(
        &self,
        keys: &[InstrumentKey],
        frames: &[market::Frame],
        outcomes: &mut [Outcome],
    ) -> Result<()> {
        let empty: Vec<usize> = (0..frames.len()).filter(|index| frames[*index].is_empty()).collect();
        if empty.is_empty() {
            return Ok(());
        }
        let keys: Vec<InstrumentKey> = empty.iter().map(|index| keys[*index].clone()).collect();
        for (index, revision) in empty.iter().zip(self.revisions(&keys).await?) {
            outcomes[*index].revision = revision;
        }
        Ok(())
    }
}

fn rows_of(batches: &[Batch]) -> usize {
    batches.iter().map(|batch| batch.rows.len()).sum()
}

/// Refuses a call that is too large or ambiguous.
fn check(batches: &[Batch]) -> Result<()> {
    let given = rows_of(batches);
    if given > MAX_BATCH_ROWS {
        return Err(Error::Limit { field: "candles", given, limit: MAX_BATCH_ROWS });
    }
    if batches.len() > MAX_BATCHES {
        return Err(Error::Limit { field: "batches", given: batches.len(), limit: MAX_BATCHES });
    }
    let mut seen = HashSet::with_capacity(batches.len());
    for (index, batch) in batches.iter().enumerate() {
        if !seen.insert((&batch.key, batch.timeframe)) {
            let reason = format!("{} {} is named by an earlier batch; send it once", batch.key, batch.timeframe);
            return Err(FieldError::new(format!("batches[{index}].instrument_key"), reason).into());
        }
    }
    Ok(())
}

/// The calendar a batch is placed by: the instrument's, for one that is not in the catalog that of its stored candles, or for a new
/// one the batch's or the segment's.
pub(super) fn calendar_of(batch: &Batch, known: Option<&Instrument>, stored_by: Option<&str>) -> Result<Arc<Calendar>> {
    if let (None, Some(stored_by)) = (known, stored_by) {
        return match &batch.calendar {
            Some(given) if given.name() != stored_by => Err(Error::CalendarInUse {
                key: batch.key.clone(),
                known: stored_by.to_owned(),
                given: given.name().to_owned(),
            }),
            _ => Ok(Calendar::by_name(stored_by)?),
        };
    }
    match (known, &batch.calendar) {
        (Some(known), Some(given)) if known.calendar != given.name() => {
            Err(Error::OtherCalendar { key: batch.key.clone(), known: known.calendar.clone(), given: given.name() })
        }
        (Some(known), _) => Ok(Calendar::by_name(&known.calendar)?),
        (None, Some(given)) => Ok(Arc::clone(given)),
        (None, None) => Ok(Calendar::for_key(&batch.key)?),
    }
}

fn count(outcomes: &[Outcome]) {
    let sum = |rows: fn(&Outcome) -> u64| outcomes.iter().map(rows).sum::<u64>();
    metrics::counter!(ROWS_METRIC, "outcome" => "stored").increment(sum(|outcome| outcome.stored));
    metrics::counter!(ROWS_METRIC, "outcome" => "unchanged").increment(sum(|outcome| outcome.unchanged));
    metrics::counter!(ROWS_METRIC, "outcome" => "rejected").increment(sum(|outcome| outcome.rejected.len() as u64));
}

//! Candles in: batches alone and many at once.

use market::{Calendar, Timeframe};
use mesh::clock::now;
use proto::convert::{self, FieldError};
use proto::ingestion as pb;
use tonic::Status;

use super::refuse;
use crate::engine::{Batch, Engine, Error, MAX_BATCH_ROWS, MAX_BATCHES, Outcome};

pub(super) async fn put(engine: &Engine, batch: Option<pb::CandleBatch>) -> Result<pb::BatchOutcome, Status> {
    let batch = parse_required(batch).map_err(refuse)?;
    let outcome = engine.put(batch, now()).await.map_err(refuse)?;
    Ok(wire_outcome(outcome))
}

/// Stores batches of different instruments in one transaction.
pub(super) async fn put_all(
    engine: &Engine,
    batches: Vec<pb::CandleBatch>,
) -> Result<pb::PutCandleBatchesResponse, Status> {
    let batches = parse_batches(batches).map_err(refuse)?;
    let outcomes = engine.put_all(batches, now()).await.map_err(refuse)?;
    Ok(pb::PutCandleBatchesResponse { outcomes: outcomes.into_iter().map(wire_outcome).collect() })
}

pub(super) fn parse_required(batch: Option<pb::CandleBatch>) -> Result<Batch, Error> {
    parse_batch("batch", batch.ok_or_else(|| FieldError::new("batch", "is missing"))?)
}

/// Parses a batch; `field` is what the request calls it.
fn parse_batch(field: &str, batch: pb::CandleBatch) -> Result<Batch, Error> {
    let given = batch.candles.len();
    if given > MAX_BATCH_ROWS {
        return Err(Error::Limit { field: "batch.candles", given, limit: MAX_BATCH_ROWS });
    }
    let within = |name: &str| format!("{field}.{name}");
    let calendar = match batch.calendar.as_str() {
        "" => None,
        name => Some(Calendar::by_name(name).map_err(|error| FieldError::new(within("calendar"), error))?),
    };
    Ok(Batch {
        key: convert::instrument_key(&within("instrument_key"), &batch.instrument_key)?,
        timeframe: convert::timeframe(&within("timeframe"), &batch.timeframe, Some(Timeframe::M1))?,
        calendar,
        rows: batch.candles.iter().map(convert::candle).collect(),
        first_row: 0,
    })
}

fn parse_batches(batches: Vec<pb::CandleBatch>) -> Result<Vec<Batch>, Error> {
    // Before anything is made of them.
    let given = batches.len();
    if given > MAX_BATCHES {
        return Err(Error::Limit { field: "batches", given, limit: MAX_BATCHES });
    }
    let batches = batches.into_iter().enumerate();
    batches.map(|(index, batch)| parse_batch(&format!("batches[{index}]"), batch)).collect()
}

pub(super) fn wire_outcome(outcome: Outcome) -> pb::BatchOutcome {
    let rejected = outcome.rejected.into_iter().map(|row| pb::RejectedRow { row: row.row, reason: row.reason });
    pb::BatchOutcome {
        stored: outcome.stored,
        unchanged: outcome.unchanged,
        rejected: rejected.collect(),
        revision: outcome.revision,
    }
}

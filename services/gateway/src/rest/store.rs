//! Storing candles in bulk.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use http::{HeaderMap, Uri};
use proto::ingestion::{BatchOutcome, CandleBatch, PutCandlesRequest};

use super::Shared;
use super::body::{RejectedRow, StoreAnswer, StoreBatch, StoreRequest};
use super::bulk::{Format, Row, row, rows};
use super::call::{self, Call};
use super::candles::{pairs, unknown};
use super::problem::Problem;
use crate::method::{Access, Role};

/// Rows sent to ingestion at once: half of what it accepts, a few megabytes.
const CHUNK_ROWS: usize = 50_000;
/// Batches of one body.
const MAX_BATCHES: usize = 1000;

/// Rows of one instrument and timeframe.
#[derive(Debug)]
struct Batch {
    instrument_key: String,
    timeframe: String,
    calendar: String,
    rows: Vec<Row>,
}

/// `POST /api/v1/historical-data/batch-store`
pub(super) async fn batch_store(
    State(gateway): Shared,
    headers: HeaderMap,
    uri: Uri,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let call = Call::admit(Arc::clone(&gateway), &headers, Access::Writer, "storing candles", None)?;
    let body = call::bytes(&gateway, body)?;
    let format = Format::of(&headers);
    let batches = gateway.pool.run(move || parse(format, &uri, body)).await??;
    let several = batches.len() > 1;
    let mut answer = StoreAnswer::default();
    for (index, batch) in batches.into_iter().enumerate() {
        store(&call, batch, several.then_some(index), &mut answer).await?;
    }
    let rows = answer.rejected.len();
    call.render(None, rows, move || answer).await
}

fn parse(format: Format, uri: &Uri, body: Bytes) -> Result<Vec<Batch>, Problem> {
    let batches = match format {
        Format::Json => from_json(uri, &body)?,
        _ => vec![Batch { rows: rows(format, body)?, ..named_in_query(uri)? }],
    };
    if let Some(empty) = batches.iter().find(|batch| batch.rows.is_empty()) {
        return Err(Problem::field("candles", format!("none are given for '{}'", empty.instrument_key)));
    }
    Ok(batches)
}

/// Bodies that are only rows say in the query whose they are.
fn named_in_query(uri: &Uri) -> Result<Batch, Problem> {
    let mut batch =
        Batch { instrument_key: String::new(), timeframe: String::new(), calendar: String::new(), rows: Vec::new() };
    for (name, value) in pairs(uri)? {
        match name.as_str() {
            "instrument_key" => batch.instrument_key = value,
            "timeframe" => batch.timeframe = value,
            "calendar" => batch.calendar = value,
            _ => return Err(unknown(&name, "instrument_key, timeframe, calendar")),
        }
    }
    if batch.instrument_key.is_empty() {
        return Err(Problem::field("instrument_key", "is needed in the query: the rows of this format do not name it"));
    }
    Ok(batch)
}

fn from_json(uri: &Uri, body: &[u8]) -> Result<Vec<Batch>, Problem> {
    if let Some((name, _)) = pairs(uri)?.first() {
        return Err(unknown(name, "none with a JSON body, which names instrument and timeframe itself"));
    }
    let StoreRequest { instrument_key, timeframe, calendar, candles, mut batches } = call::parse(body)?;
    match instrument_key {
        Some(_) if !batches.is_empty() => {
            return Err(Problem::field("batches", "either one batch or 'batches' are accepted, not both"));
        }
        Some(instrument_key) => {
            let (timeframe, calendar) = (timeframe.unwrap_or_default(), calendar.unwrap_or_default());
            batches = vec![StoreBatch { instrument_key, timeframe, calendar, candles }];
        }
        None if timeframe.is_some() || calendar.is_some() || !candles.is_empty() || batches.is_empty() => {
            return Err(Problem::field("instrument_key", "is missing"));
        }
        None => {}
    }
    if batches.len() > MAX_BATCHES {
        return Err(Problem::field("batches", format!("{} given; accepted: at most {MAX_BATCHES}", batches.len())));
    }
    let batch = |batch: StoreBatch| Batch {
        instrument_key: batch.instrument_key,
        timeframe: batch.timeframe,
        calendar: batch.calendar,
        rows: batch.candles.into_iter().map(row).collect(),
    };
    Ok(batches.into_iter().map(batch).collect())
}

/// Stores a batch in chunks. Each chunk is durable when the next is sent, so a failure says how far it came.
async fn store(call: &Call, batch: Batch, index: Option<usize>, answer: &mut StoreAnswer) -> Result<(), Problem> {
    let Batch { instrument_key, timeframe, calendar, rows } = batch;
    let mut rows = rows.into_iter().enumerate().peekable();
    while rows.peek().is_some() {
        let (mut numbers, mut candles) = (Vec::new(), Vec::new());
        for (number, row) in rows.by_ref().take(CHUNK_ROWS) {
            match row {
                Ok(candle) => {
                    numbers.push(number as u64);
                    candles.push(candle);
                }
                Err(reason) => answer.rejected.push(RejectedRow { batch: index, row: number as u64, reason }),
            }
        }
        if candles.is_empty() {
            continue;
        }
        let batch = CandleBatch {
            instrument_key: instrument_key.clone(),
            timeframe: timeframe.clone(),
            calendar: calendar.clone(),
            candles,
        };
        let mut client = call.ingestion()?;
        let put = client.put_candles(PutCandlesRequest { batch: Some(batch) });
        let done = answer.stored + answer.unchanged;
        let response = call.run(Role::Ingestion, put).await.map_err(|problem| match done {
            0 => problem,
            _ => problem.explained(&format!("{done} rows before are stored; sending all again is safe")),
        })?;
        add(answer, response.into_inner().outcome.unwrap_or_default(), index, &numbers);
    }
    answer.rejected.sort_by_key(|rejected| (rejected.batch, rejected.row));
    Ok(())
}

fn add(answer: &mut StoreAnswer, outcome: BatchOutcome, batch: Option<usize>, numbers: &[u64]) {
    answer.stored += outcome.stored;
    answer.unchanged += outcome.unchanged;
    answer.revision = answer.revision.max(Some(outcome.revision));
    for rejected in outcome.rejected {
        let row = numbers.get(rejected.row as usize).copied().unwrap_or(rejected.row);
        answer.rejected.push(RejectedRow { batch, row, reason: rejected.reason });
    }
}

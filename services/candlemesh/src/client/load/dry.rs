//! `load --dry-run`: what a load would do, by comparing files with what is stored.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::Result;
use arrow_flight::Ticket;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use formats::{Chunk, FileSpec};
use futures::TryStreamExt;
use indicatif::ProgressBar;
use market::{Calendar, Candle, InstrumentKey, Millis, TimeRange, Timeframe, format_millis};
use mesh::source::status_of_answer;
use prost::Message;
use proto::wire::{FrameTicket, StoredCandlesTicket, frame_ticket};
use tonic::Code;

use super::master::Masters;
use super::reading::{Event, reading};
use super::report::FileReport;
use super::sessions::Sessions;
use crate::client::{Channel, Connection};

/// Compares files with what is stored; stores nothing.
pub(super) struct DryRun<'a> {
    pub(super) connection: Connection,
    pub(super) channel: Channel,
    pub(super) masters: Masters<'a>,
    /// Instruments met so far.
    pub(super) known: HashMap<InstrumentKey, Known>,
}

/// What is known of an instrument.
#[derive(Debug, Clone)]
pub(super) struct Known {
    calendar: Arc<Calendar>,
    is_stored: bool,
}

impl DryRun<'_> {
    /// Compares one file, as far as it is good.
    pub(super) async fn file(
        &mut self,
        spec: &FileSpec,
        report: &mut FileReport,
        progress: &ProgressBar,
    ) -> Result<()> {
        let mut events = reading(spec.clone());
        let mut sessions = Sessions::default();
        while let Some(event) = events.recv().await {
            match event {
                Event::BadRow(row) => report.reject(row.line, row.reason),
                Event::End(outcome) => report.ended(outcome),
                Event::Chunk(chunk) => {
                    progress.inc(chunk.rows.len() as u64);
                    let known = self.known(&chunk.instrument).await?;
                    sessions.count(&chunk, &known.calendar);
                    self.chunk(chunk, &known, report).await?;
                }
            }
        }
        report.notes.extend(sessions.notes());
        Ok(())
    }

    async fn chunk(&self, chunk: Chunk, known: &Known, report: &mut FileReport) -> Result<()> {
        let mut rows: BTreeMap<Millis, (u64, Candle)> = BTreeMap::new();
        for (line, row) in chunk.lines.iter().zip(&chunk.rows) {
            match placed(row, chunk.timeframe, &known.calendar) {
                Err(reason) => report.reject(*line, reason),
                Ok(row) => match rows.insert(row.open_time, (*line, row)) {
                    None => {}
                    Some((_, earlier)) if bits(&earlier) == bits(&row) => report.unchanged += 1,
                    Some((earlier, _)) => {
                        report.reject(earlier, format!("superseded by line {line} with the same open_time"))
                    }
                },
            }
        }
        let stored = match known.is_stored {
            true => self.stored(&chunk, &rows).await?,
            false => HashMap::new(),
        };
        for (open_time, (_, row)) in &rows {
            match stored.get(open_time) {
                None => report.stored += 1,
                Some(before) if *before == bits(row) => report.unchanged += 1,
                Some(_) => {
                    report.stored += 1;
                    report.replaced += 1;
                }
            }
        }
        Ok(())
    }

    async fn known(&mut self, instrument: &InstrumentKey) -> Result<Known> {
        if let Some(known) = self.known.get(instrument) {
            return Ok(known.clone());
        }
        let (calendar, stored) = self.masters.calendar(instrument).await?;
        let known = Known { calendar, is_stored: stored.is_some() };
        self.known.insert(instrument.clone(), known.clone());
        Ok(known)
    }

    /// What is stored between the first and the last of `rows`, of those stamps only.
    async fn stored(
        &self,
        chunk: &Chunk,
        rows: &BTreeMap<Millis, (u64, Candle)>,
    ) -> Result<HashMap<Millis, CandleBits>> {
        let (Some((first, _)), Some((last, _))) = (rows.first_key_value(), rows.last_key_value()) else {
            return Ok(HashMap::new());
        };
        let range = TimeRange::new(*first, last + 1)?;
        let ticket = StoredCandlesTicket {
            instrument_key: chunk.instrument.to_string(),
            timeframe: chunk.timeframe.to_string(),
            range: Some(proto::convert::wire_range(range)),
            ..Default::default()
        };
        let ticket = FrameTicket { frame: Some(frame_ticket::Frame::StoredCandles(ticket)) };
        let mut client = FlightServiceClient::new(self.channel.clone());
        let answer = match client.do_get(Ticket::new(ticket.encode_to_vec())).await {
            Ok(answer) => answer.into_inner(),
            // Of this timeframe nothing is stored.
            Err(status) if status.code() == Code::NotFound => return Ok(HashMap::new()),
            Err(status) => return Err(self.connection.explain(status)),
        };
        let data = answer.map_err(|status| FlightError::Tonic(Box::new(status)));
        let mut batches = FlightRecordBatchStream::new_from_flight_data(data);
        let mut stored = HashMap::new();
        while let Some(batch) =
            batches.try_next().await.map_err(|error| self.connection.explain(status_of_answer(error)))?
        {
            for row in proto::arrow::frame(&batch)?.candles() {
                if rows.contains_key(&row.open_time) {
                    stored.insert(row.open_time, bits(&row));
                }
            }
        }
        Ok(stored)
    }
}

/// The candle where ingestion would put it, or why it would not: the rules of a put, which are told the caller only then.
fn placed(row: &Candle, timeframe: Timeframe, calendar: &Calendar) -> Result<Candle, String> {
    let at = row.open_time;
    if timeframe.width_ms().is_none() {
        let day = calendar.day(calendar.date_of_daily_stamp(at));
        return Ok(Candle { open_time: calendar.stamp(&day, timeframe, day.anchor), ..*row });
    }
    let start = match timeframe {
        Timeframe::M1 => at,
        _ => calendar.bucket(&calendar.day_at(at), timeframe, at).start(),
    };
    match start == at {
        true => Ok(*row),
        false => {
            Err(format!("open_time {} does not start a {timeframe} bucket of {}", format_millis(at), calendar.name()))
        }
    }
}

type CandleBits = ([u64; 5], Option<u64>);

fn bits(row: &Candle) -> CandleBits {
    let values = [row.open, row.high, row.low, row.close, row.volume];
    (values.map(f64::to_bits), row.open_interest.map(f64::to_bits))
}

//! Sends what was read to ingestion, by Flight DoPut.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow_array::{Float64Array, RecordBatch, TimestampMillisecondArray};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightData, FlightDescriptor};
use formats::{Chunk, FileSpec};
use futures::StreamExt;
use indicatif::ProgressBar;
use market::{Calendar, InstrumentKey, Timeframe};
use prost::Message;
use proto::wire::{FrameTicket, StoredCandlesTicket, frame_ticket};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::master::Masters;
use super::reading::{Event, reading};
use super::report::FileReport;
use super::sessions::Sessions;
use crate::client::{Channel, Connection};

/// What ingestion says of a batch, in a PutResult's metadata.
#[derive(Debug, Deserialize)]
struct Acknowledgement {
    stored: u64,
    unchanged: u64,
    #[serde(default)]
    rejected: Vec<RejectedRow>,
}

#[derive(Debug, Deserialize)]
struct RejectedRow {
    /// Index over the whole stream.
    row: u64,
    reason: String,
}

/// Sends files to ingestion.
pub(super) struct Loader<'a> {
    pub(super) connection: Connection,
    pub(super) channel: Channel,
    pub(super) masters: Masters<'a>,
}

/// One DoPut in progress: an instrument's rows on their way.
struct Put {
    instrument: InstrumentKey,
    timeframe: Timeframe,
    calendar: Arc<Calendar>,
    batches: mpsc::Sender<RecordBatch>,
    answers: tonic::Streaming<arrow_flight::PutResult>,
    in_flight: InFlight,
}

/// Which lines the rows of the batches are from that are not acknowledged yet.
#[derive(Debug, Default)]
struct InFlight {
    /// Index over the whole stream of the oldest batch's first row.
    first_row: u64,
    batches: VecDeque<Vec<u64>>,
}

impl InFlight {
    fn sent(&mut self, lines: Vec<u64>) {
        self.batches.push_back(lines);
    }

    /// The oldest batch's, which is acknowledged first.
    fn acknowledged(&mut self) -> Lines {
        let lines = self.batches.pop_front().unwrap_or_default();
        let first_row = self.first_row;
        self.first_row += lines.len() as u64;
        Lines { first_row, lines }
    }
}

/// Lines of one batch.
#[derive(Debug)]
struct Lines {
    first_row: u64,
    lines: Vec<u64>,
}

impl Lines {
    /// The line of a row, counted over the whole stream; of a row of another batch 0.
    fn of(&self, row: u64) -> u64 {
        let index = row.checked_sub(self.first_row).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.lines.get(index)).copied().unwrap_or_default()
    }
}

impl Loader<'_> {
    /// Sends one file, as far as it is good.
    pub(super) async fn file(&self, spec: &FileSpec, report: &mut FileReport, progress: &ProgressBar) -> Result<()> {
        let mut events = reading(spec.clone());
        let mut put: Option<Put> = None;
        let mut sessions = Sessions::default();
        while let Some(event) = events.recv().await {
            match event {
                Event::BadRow(row) => report.reject(row.line, row.reason),
                Event::End(outcome) => report.ended(outcome),
                Event::Chunk(chunk) => {
                    let current = match put.take() {
                        Some(current)
                            if current.instrument == chunk.instrument && current.timeframe == chunk.timeframe =>
                        {
                            current
                        }
                        other => {
                            if let Some(done) = other {
                                self.finish(done, report).await?;
                            }
                            self.begin(&chunk.instrument, chunk.timeframe).await?
                        }
                    };
                    progress.inc(chunk.rows.len() as u64);
                    sessions.count(&chunk, &current.calendar);
                    put = Some(self.send(current, chunk, report).await?);
                }
            }
        }
        if let Some(done) = put {
            self.finish(done, report).await?;
        }
        report.notes.extend(sessions.notes());
        for profile in &report.profiles {
            self.masters.complete(&profile.instrument).await?;
        }
        Ok(())
    }

    async fn begin(&self, instrument: &InstrumentKey, timeframe: Timeframe) -> Result<Put> {
        let calendar = self.masters.introduce(instrument).await?;
        let ticket = StoredCandlesTicket {
            instrument_key: instrument.to_string(),
            timeframe: timeframe.to_string(),
            ..Default::default()
        };
        let ticket = FrameTicket { frame: Some(frame_ticket::Frame::StoredCandles(ticket)) };
        let descriptor = FlightDescriptor::new_cmd(ticket.encode_to_vec());
        let (batches, receiver) = mpsc::channel(1);
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver).map(Ok);
        let schema = proto::arrow::candle_schema(Default::default());
        let data = FlightDataEncoderBuilder::new()
            .with_schema(schema)
            .with_flight_descriptor(Some(descriptor))
            .build(stream)
            // Encoding in-memory columns of a fixed schema does not fail; if it did, the stream would end short and be noticed.
            .filter_map(|data: Result<FlightData, _>| async move { data.ok() });
        let mut client = FlightServiceClient::new(self.channel.clone());
        let answers = client.do_put(data).await.map_err(|status| self.connection.explain(status))?.into_inner();
        let in_flight = InFlight::default();
        Ok(Put { instrument: instrument.clone(), timeframe, calendar, batches, answers, in_flight })
    }

    async fn send(&self, mut put: Put, chunk: Chunk, report: &mut FileReport) -> Result<Put> {
        let batch = batch(&chunk)?;
        put.in_flight.sent(chunk.lines);
        if put.batches.send(batch).await.is_err() {
            // The server has ended the call; its status says why.
            self.acknowledge(&mut put, report).await?;
            bail!("ingestion ended the stream early");
        }
        while put.in_flight.batches.len() > 1 {
            self.acknowledge(&mut put, report).await?;
        }
        Ok(put)
    }

    async fn finish(&self, mut put: Put, report: &mut FileReport) -> Result<()> {
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut put.batches, closed));
        while !put.in_flight.batches.is_empty() {
            self.acknowledge(&mut put, report).await?;
        }
        Ok(())
    }

    async fn acknowledge(&self, put: &mut Put, report: &mut FileReport) -> Result<()> {
        let answer = put.answers.message().await.map_err(|status| self.connection.explain(status))?;
        let answer = answer.context("ingestion ended the stream before acknowledging every batch")?;
        let answer: Acknowledgement = serde_json::from_slice(&answer.app_metadata).context("acknowledgement")?;
        let lines = put.in_flight.acknowledged();
        report.stored += answer.stored;
        report.unchanged += answer.unchanged;
        for row in answer.rejected {
            report.reject(lines.of(row.row), formats::reason_by_line(&row.reason, |row| lines.of(row)));
        }
        Ok(())
    }
}

/// Rows as they are, in file order: judging them is ingestion's business.
fn batch(chunk: &Chunk) -> Result<RecordBatch> {
    let column = |value: fn(&market::Candle) -> f64| -> arrow_array::ArrayRef {
        Arc::new(Float64Array::from_iter_values(chunk.rows.iter().map(value)))
    };
    let times = TimestampMillisecondArray::from_iter_values(chunk.rows.iter().map(|row| row.open_time));
    let interest = Float64Array::from_iter(chunk.rows.iter().map(|row| row.open_interest));
    let columns: Vec<arrow_array::ArrayRef> = vec![
        Arc::new(times.with_timezone("UTC")),
        column(|row| row.open),
        column(|row| row.high),
        column(|row| row.low),
        column(|row| row.close),
        column(|row| row.volume),
        Arc::new(interest),
    ];
    Ok(RecordBatch::try_new(proto::arrow::candle_schema(Default::default()), columns)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_whole_stream_find_their_lines_and_acknowledged_ones_are_not_kept() {
        let mut in_flight = InFlight::default();
        // Rows 0 and 1, row 2, rows 3 to 5.
        for lines in [vec![2, 4], vec![5], vec![9, 10, 12]] {
            in_flight.sent(lines);
        }
        let first = in_flight.acknowledged();
        assert_eq!([0, 1, 2, u64::MAX].map(|row| first.of(row)), [2, 4, 0, 0]);
        assert_eq!(in_flight.acknowledged().of(2), 5);
        let last = in_flight.acknowledged();
        assert_eq!([2, 3, 5, 6].map(|row| last.of(row)), [0, 9, 12, 0]);
        assert!(in_flight.batches.is_empty());
        assert_eq!(in_flight.acknowledged().of(6), 0);
    }
}

//! Rows on their way to the sink: checked, moved to their open time, profiled and collected into chunks.

use std::collections::HashMap;

use market::{Candle, InstrumentKey, Millis, RowFault, TimeRange, Timeframe};

use crate::profile::Profiler;
use crate::{BadRow, CHUNK_ROWS, Chunk, Detected, FileSpec, Format, InputError, Sink, Stamps, display, width};

/// Rows held back over all instruments of a file whose instruments alternate.
const MAX_BUFFERED: usize = 4 * CHUNK_ROWS;

/// Instruments in one file. Every exchange of a country lists fewer; more is a wrong key column.
const MAX_INSTRUMENTS: usize = 20_000;

/// Why a reader stops before the end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The sink wants no more.
    Asked,
    Failed(InputError),
}

impl From<InputError> for Stop {
    fn from(error: InputError) -> Stop {
        Stop::Failed(error)
    }
}

pub(crate) type Flow = Result<(), Stop>;

/// A row as the file has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    /// Its open time is the stamp, whichever end of the candle that is.
    pub(crate) candle: Candle,
    /// Midnight UTC of the trading date, where the stamp tells it: candles of a day and wider are named by it.
    pub(crate) date: Option<Millis>,
}

pub(crate) struct Chunker<'a> {
    sink: &'a mut dyn Sink,
    file: String,
    stated: Option<Timeframe>,
    /// What the format itself says of one row, for files too short to tell.
    pub(crate) hint: Option<Timeframe>,
    pub(crate) stamps: Stamps,
    timeframe: Option<Timeframe>,
    buffers: Vec<(InstrumentKey, Vec<(u64, Row)>)>,
    index: HashMap<InstrumentKey, usize>,
    current: usize,
    buffered: usize,
    last: HashMap<InstrumentKey, Millis>,
    profiler: Profiler,
    pub(crate) notes: Vec<String>,
    /// The file of an archive that lines are of, where there are several.
    pub(crate) member: Option<String>,
    bad_rows: u64,
}

impl<'a> Chunker<'a> {
    pub(crate) fn new(spec: &FileSpec, sink: &'a mut dyn Sink) -> Self {
        Self {
            sink,
            file: display(&spec.path),
            stated: spec.timeframe,
            hint: None,
            stamps: spec.stamps.unwrap_or(Stamps::Open),
            timeframe: None,
            buffers: Vec::new(),
            index: HashMap::new(),
            current: 0,
            buffered: 0,
            last: HashMap::new(),
            profiler: Profiler::default(),
            notes: Vec::new(),
            member: None,
            bad_rows: 0,
        }
    }

    pub(crate) fn push(&mut self, instrument: &InstrumentKey, line: u64, row: Row) -> Flow {
        // Parquet holds any stamp; one centuries away would say nothing of the file's timeframe, and steps to it overflow.
        let stamp = row.candle.open_time;
        if !TimeRange::ALL.contains(stamp) {
            return self.bad_row(line, RowFault::OutOfRange(stamp).to_string());
        }
        if self.buffers.get(self.current).is_none_or(|(key, _)| key != instrument) {
            self.current = match self.index.get(instrument) {
                Some(index) => *index,
                None if self.buffers.len() == MAX_INSTRUMENTS => {
                    let reason = format!("more than {MAX_INSTRUMENTS} instruments in one file: is the key column one?");
                    return Err(self.fail(InputError::Broken { file: self.file.clone(), line, reason }));
                }
                None => {
                    self.buffers.push((instrument.clone(), Vec::new()));
                    self.index.insert(instrument.clone(), self.buffers.len() - 1);
                    self.buffers.len() - 1
                }
            };
        }
        let buffer = &mut self.buffers[self.current].1;
        buffer.push((line, row));
        self.buffered += 1;
        if buffer.len() == CHUNK_ROWS {
            return self.emit(self.current);
        }
        if self.buffered >= MAX_BUFFERED {
            return self.flush();
        }
        Ok(())
    }

    pub(crate) fn bad_row(&mut self, line: u64, reason: impl Into<String>) -> Flow {
        self.bad_rows += 1;
        let reason = match &self.member {
            Some(member) => format!("{member}: {}", reason.into()),
            None => reason.into(),
        };
        self.sink.bad_row(BadRow { line, reason }).then_some(()).ok_or(Stop::Asked)
    }

    /// Hands over everything collected.
    pub(crate) fn flush(&mut self) -> Flow {
        (0..self.buffers.len()).try_for_each(|index| self.emit(index))
    }

    /// Hands over the good rows before an error, then the error.
    pub(crate) fn fail(&mut self, error: InputError) -> Stop {
        match self.flush() {
            Err(Stop::Asked) => Stop::Asked,
            _ => Stop::Failed(error),
        }
    }

    pub(crate) fn finish(mut self, format: Format) -> Result<Detected, Stop> {
        self.flush()?;
        if self.timeframe.is_none() {
            self.notes.push(match self.bad_rows {
                0 => "no rows: only a header, or nothing at all; was the download cut off?".to_owned(),
                count => format!("no row could be used, {count} were refused"),
            });
        }
        let profiles = self.profiler.finish();
        let rows: u64 = profiles.iter().map(|profile| profile.not_positive).sum();
        if rows > 0 {
            self.notes.push(format!("{rows} rows have a price of zero or below; they are kept as they are"));
        }
        let rows: u64 = profiles.iter().map(|profile| profile.not_compared).sum();
        if rows > 0 {
            self.notes
                .push(format!("{rows} rows are too far out of order to be compared with earlier ones of their stamp"));
        }
        Ok(Detected { format, timeframe: self.timeframe, notes: self.notes, profiles })
    }

    fn emit(&mut self, index: usize) -> Flow {
        if self.buffers[index].1.is_empty() {
            return Ok(());
        }
        let timeframe = self.decide(index)?;
        let (instrument, rows) = &mut self.buffers[index];
        let (instrument, rows) = (instrument.clone(), std::mem::take(rows));
        self.buffered -= rows.len();
        let mut chunk = Chunk { instrument, timeframe, rows: Vec::new(), lines: Vec::new() };
        chunk.rows.reserve(rows.len());
        chunk.lines.reserve(rows.len());
        for (line, row) in rows {
            let candle = Candle { open_time: self.open_time(&row, timeframe), ..row.candle };
            match candle.check() {
                Ok(()) => {}
                Err(fault) => {
                    if matches!(fault, RowFault::OffTheMinute(_)) {
                        self.profiler.off_minute(&chunk.instrument, timeframe, candle.open_time);
                    }
                    self.bad_row(line, fault.to_string())?;
                    continue;
                }
            }
            if let Err(error) = self.step(&chunk.instrument, candle.open_time, timeframe, line) {
                self.hand_over(chunk)?;
                return Err(error.into());
            }
            self.profiler.row(&chunk.instrument, timeframe, &candle, line);
            chunk.rows.push(candle);
            chunk.lines.push(line);
        }
        self.hand_over(chunk)
    }

    fn hand_over(&mut self, chunk: Chunk) -> Flow {
        match chunk.rows.is_empty() {
            true => Ok(()),
            false => self.sink.chunk(chunk).then_some(()).ok_or(Stop::Asked),
        }
    }

    /// Once per file, from the rows collected so far.
    fn decide(&mut self, index: usize) -> Result<Timeframe, InputError> {
        if let Some(timeframe) = self.timeframe {
            return Ok(timeframe);
        }
        let mut steps = width::Steps::default();
        for (_, rows) in &self.buffers {
            steps.take(
                rows.iter()
                    .map(|(_, row)| row)
                    .filter(|row| row.candle.open_time.rem_euclid(60_000) == 0)
                    .map(stamp_of),
            );
        }
        let line = self.buffers[index].1.first().map_or(1, |(line, _)| *line);
        let decided = width::decide(self.stated, self.hint, &steps).map_err(|reason| InputError::Broken {
            file: self.file.clone(),
            line,
            reason,
        })?;
        if self.stamps == Stamps::End && decided.width_ms().is_none() {
            self.notes.push(format!("stamps of {decided} candles are taken as their dates, not as their ends"));
        }
        self.timeframe = Some(decided);
        Ok(decided)
    }

    fn open_time(&self, row: &Row, timeframe: Timeframe) -> Millis {
        match (timeframe.width_ms(), row.date, self.stamps) {
            (None, Some(date), _) => date,
            (Some(width), _, Stamps::End) => row.candle.open_time.saturating_sub(width),
            _ => row.candle.open_time,
        }
    }

    /// Refuses a row closer to the one before than the timeframe allows: the file is of another one.
    fn step(
        &mut self,
        instrument: &InstrumentKey,
        at: Millis,
        timeframe: Timeframe,
        line: u64,
    ) -> Result<(), InputError> {
        // The last stamp of an instrument; the key is cloned once per instrument.
        let last = match self.last.get_mut(instrument) {
            Some(last) => std::mem::replace(last, at),
            None => {
                self.last.insert(instrument.clone(), at);
                return Ok(());
            }
        };
        let step = (at - last).abs();
        if step == 0 || step >= width::least_step(timeframe) {
            return Ok(());
        }
        let reason = width::too_close(timeframe, step);
        Err(InputError::Broken { file: self.file.clone(), line, reason })
    }
}

fn stamp_of(row: &Row) -> Millis {
    row.candle.open_time
}

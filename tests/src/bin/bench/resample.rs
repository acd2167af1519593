//! Five-minute candles of every instrument's minutes, with counts and flags, on one thread, in time of its core.

use std::hint::black_box;
use std::path::Path;

use anyhow::{Result, bail};
use kernels::resample::{Bars, Day, Flags, Hours, flag_day_into, resample_day_into, resample_rows};
use market::{Calendar, Frame, Millis, TradingDay};
use serde_json::json;

use crate::data::{self, Series};
use crate::{Case, Measured, Parameters, processor_seconds};

const WIDTH_MS: Millis = 5 * 60_000;
const SOURCE_MS: Millis = 60_000;
/// After all of the data.
const NOW: Millis = 1_900_000_000_000;

#[derive(Debug, Clone, Copy)]
enum Engine {
    V1,
    V2,
}

/// A date, and the rows of it: the same in all instruments.
#[derive(Debug)]
struct DayRows {
    day: TradingDay,
    sessions: Vec<(Millis, Millis)>,
    rows: std::ops::Range<usize>,
}

#[derive(Debug)]
pub(crate) struct Resample {
    engine: Engine,
    series: Vec<Series>,
    scale: usize,
    days: Vec<DayRows>,
    bars: Bars,
    flags: Flags,
}

impl Resample {
    pub(crate) fn prepare(parameters: &Parameters) -> Result<Self> {
        let engine = match parameters.variant.as_str() {
            "v1" => Engine::V1,
            "v2" => Engine::V2,
            other => bail!("there is no engine '{other}'"),
        };
        let series = data::load(&parameters.data)?;
        let calendar = Calendar::by_name("NSE")?;
        let mut days = Vec::new();
        if let Some(first) = series.first() {
            let times = first.frame.open_time();
            let mut row = 0;
            while row < times.len() {
                let day = calendar.day_at(times[row]);
                let end = times.partition_point(|at| *at < day.end);
                let sessions = day.sessions.iter().map(|session| (session.open, session.close)).collect();
                days.push(DayRows { day, sessions, rows: row..end });
                row = end;
            }
        }
        let scale = parameters.scale.max(1);
        Ok(Self { engine, series, scale, days, bars: Bars::default(), flags: Flags::default() })
    }

    /// One instrument into the reused buffers.
    fn fold(&mut self, index: usize) {
        self.bars.clear();
        self.flags.clear();
        let frame = &self.series[index].frame;
        for DayRows { day, sessions, rows } in &self.days {
            let columns = columns(frame, rows.clone());
            let from = self.bars.len();
            match self.engine {
                Engine::V1 => resample_rows(columns, day.anchor, WIDTH_MS, day.start, &mut self.bars),
                Engine::V2 => resample_day_into(columns, day.anchor, WIDTH_MS, day.start, &mut self.bars),
            }
            let hours = Hours {
                start: day.start,
                end: day.end,
                anchor: day.anchor,
                width_ms: WIDTH_MS,
                source_ms: SOURCE_MS,
                sessions,
                now: NOW,
            };
            flag_day_into(columns.open_time, &self.bars, from, &hours, &mut self.flags);
        }
    }
}

impl Case for Resample {
    fn run(&mut self) -> Result<Measured> {
        let started = processor_seconds()?;
        let (mut rows, mut bars) = (0, 0);
        let instruments = self.series.len();
        for index in (0..self.scale * instruments).map(|turn| turn % instruments) {
            self.fold(index);
            rows += self.series[index].frame.len();
            bars += black_box(&self.bars).len();
            black_box(&self.flags);
        }
        let seconds = processor_seconds()? - started;
        Ok(Measured::new(seconds, json!({ "rows": rows, "bars": bars })))
    }

    fn write(&mut self, folder: &Path) -> Result<()> {
        let (mut all, mut flags) = (Bars::default(), Flags::default());
        for index in 0..self.series.len() {
            self.fold(index);
            all.open_time.extend(&self.bars.open_time);
            all.source_count.extend(&self.bars.source_count);
            all.open.extend(&self.bars.open);
            all.high.extend(&self.bars.high);
            all.low.extend(&self.bars.low);
            all.close.extend(&self.bars.close);
            all.volume.extend(&self.bars.volume);
            flags.closed.extend(&self.flags.closed);
            flags.complete.extend(&self.flags.complete);
            flags.expected_count.extend(&self.flags.expected_count);
        }
        data::write_column(folder, "open_time.i64", all.open_time.iter().map(|at| at.to_le_bytes()))?;
        let floats = [
            ("open", &all.open),
            ("high", &all.high),
            ("low", &all.low),
            ("close", &all.close),
            ("volume", &all.volume),
        ];
        for (name, values) in floats {
            data::write_column(folder, &format!("{name}.f64"), values.iter().map(|value| value.to_le_bytes()))?;
        }
        for (name, values) in [("source_count", &all.source_count), ("expected_count", &flags.expected_count)] {
            data::write_column(folder, &format!("{name}.u32"), values.iter().map(|value| value.to_le_bytes()))?;
        }
        for (name, values) in [("closed", &flags.closed), ("complete", &flags.complete)] {
            data::write_column(folder, &format!("{name}.u8"), values.iter().map(|value| [u8::from(*value)]))?;
        }
        Ok(())
    }
}

fn columns(frame: &Frame, rows: std::ops::Range<usize>) -> Day<'_> {
    Day {
        open_time: &frame.open_time()[rows.clone()],
        open: &frame.open()[rows.clone()],
        high: &frame.high()[rows.clone()],
        low: &frame.low()[rows.clone()],
        close: &frame.close()[rows.clone()],
        volume: &frame.volume()[rows.clone()],
        open_interest: &frame.open_interest()[rows],
    }
}

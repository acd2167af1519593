//! The D3 set over every instrument's minutes, on one thread, in time of its core.

mod kand_set;
mod stream;

use std::hint::black_box;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kernels::indicator::{Fused, Inputs, Spec, compute_fold};
use serde_json::json;

use self::kand_set::KandSet;
use crate::data::{self, Series};
use crate::{Case, Measured, Parameters, processor_seconds};

pub(crate) use self::stream::Stream;

/// What is asked, as (spec, its columns by the names all sides use). The normalised width is computed besides.
const SET: [(&str, &[&str]); 8] = [
    ("sma:9", &["sma9"]),
    ("ema:5", &["ema5"]),
    ("ema:9", &["ema9"]),
    ("ema:50", &["ema50"]),
    ("rsi:14", &["rsi14"]),
    ("atr:14", &["atr14"]),
    ("bbands:20,2", &["upper", "middle", "lower", "width", ""]),
    ("vwap", &["vwap"]),
];

pub(crate) fn specs() -> Result<Vec<Spec>> {
    SET.iter().map(|(text, _)| Ok(text.parse()?)).collect()
}

/// Names of the columns, empty where the others have none.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    SET.iter().flat_map(|(_, names)| names.iter().copied())
}

/// The columns of one instrument, with its trading days numbered.
#[derive(Debug)]
pub(crate) struct Minutes {
    series: Series,
    day: Vec<i32>,
}

impl Minutes {
    /// The first instruments, `0` for all.
    pub(crate) fn load(folder: &Path, instruments: usize) -> Result<Vec<Self>> {
        let mut series = data::load(folder)?;
        if instruments > 0 {
            series.truncate(instruments);
        }
        Ok(series.into_iter().map(Self::of).collect())
    }

    fn of(series: Series) -> Self {
        const DAY_MS: i64 = 86_400_000;
        let day = series.frame.open_time().iter().map(|at| (at / DAY_MS) as i32).collect();
        Self { series, day }
    }

    pub(crate) fn inputs(&self) -> Result<Inputs<'_>> {
        let frame = &self.series.frame;
        Ok(Inputs::new(frame.open(), frame.high(), frame.low(), frame.close(), frame.volume(), &self.day)?)
    }
}

#[derive(Debug)]
enum Engine {
    /// A fresh result of every instrument, as engine V1 makes it.
    V1,
    /// Into buffers that are reused.
    V2 {
        fused: Fused,
        out: Vec<Vec<f64>>,
    },
    /// In pieces that are handed out and reused.
    Pieces(Fused),
    Kand(Box<KandSet>),
}

#[derive(Debug)]
pub(crate) struct Indicators {
    engine: Engine,
    specs: Vec<Spec>,
    minutes: Vec<Minutes>,
    /// Rows taken of all instruments together, as if they were one, instead of one instrument after the other.
    joined: Option<Box<Joined>>,
    passes: usize,
    compared: usize,
}

/// A long series, of all instruments one after the other.
#[derive(Debug, Default)]
struct Joined {
    columns: [Vec<f64>; 5],
    day: Vec<i32>,
}

impl Indicators {
    pub(crate) fn prepare(parameters: &Parameters) -> Result<Self> {
        let specs = specs()?;
        let columns = names().count();
        let mut minutes = Minutes::load(&parameters.data, parameters.instruments)?;
        let mut joined = None;
        if parameters.rows > 0 {
            joined = Some(Box::new(Joined::of(&minutes, parameters.rows)?));
            minutes.clear();
        }
        let rows = match &joined {
            Some(joined) => joined.day.len(),
            None => minutes.first().context("there is no instrument")?.day.len(),
        };
        let engine = match parameters.variant.as_str() {
            "v1" => Engine::V1,
            "v2" => Engine::V2 { fused: Fused::new(&specs), out: vec![Vec::new(); columns] },
            "v2-pieces" => Engine::Pieces(Fused::new(&specs)),
            "kand" => Engine::Kand(Box::new(KandSet::new(rows))),
            other => bail!("there is no engine '{other}'"),
        };
        let passes = parameters.scale.max(1);
        let compared = if parameters.compared > 0 { parameters.compared } else { minutes.len() };
        Ok(Self { engine, specs, minutes, joined, passes, compared })
    }

    fn once(&mut self) -> Result<usize> {
        let Self { engine, specs, minutes, joined, .. } = self;
        match joined {
            Some(joined) => compute(engine, specs, &joined.inputs()?),
            None => minutes.iter().map(|minutes| compute(engine, specs, &minutes.inputs()?)).sum(),
        }
    }
}

fn compute(engine: &mut Engine, specs: &[Spec], inputs: &Inputs<'_>) -> Result<usize> {
    match engine {
        Engine::V1 => {
            black_box(compute_fold(specs, inputs)?);
        }
        Engine::V2 { fused, out } => {
            fused.compute_into(inputs, out)?;
            black_box(out);
        }
        Engine::Pieces(fused) => fused.for_each_piece(inputs, |_, columns| {
            black_box(columns);
        })?,
        Engine::Kand(set) => {
            set.compute(inputs)?;
            black_box(set);
        }
    }
    Ok(inputs.len())
}

impl Joined {
    fn of(minutes: &[Minutes], rows: usize) -> Result<Self> {
        let mut joined = Self::default();
        // Again from the first one where all of them are too few.
        for minutes in minutes.iter().cycle() {
            let left = rows - joined.day.len();
            let Inputs { open, high, low, close, volume, day } = minutes.inputs()?;
            for (column, values) in joined.columns.iter_mut().zip([open, high, low, close, volume]) {
                column.extend(values.iter().take(left));
            }
            joined.day.extend(day.iter().take(left));
            if joined.day.len() == rows {
                break;
            }
        }
        Ok(joined)
    }

    fn inputs(&self) -> Result<Inputs<'_>> {
        let [open, high, low, close, volume] = &self.columns;
        Ok(Inputs::new(open, high, low, close, volume, &self.day)?)
    }
}

impl Case for Indicators {
    fn run(&mut self) -> Result<Measured> {
        let started = processor_seconds()?;
        let mut rows = 0;
        for _ in 0..self.passes {
            rows += self.once()?;
        }
        let seconds = processor_seconds()? - started;
        Ok(Measured::new(seconds, json!({ "rows": rows })))
    }

    fn write(&mut self, folder: &Path) -> Result<()> {
        let mut all: Vec<Vec<f64>> = vec![Vec::new(); names().count()];
        for minutes in self.minutes.iter().take(self.compared) {
            let inputs = minutes.inputs()?;
            match &mut self.engine {
                Engine::V1 => {
                    let columns = compute_fold(&self.specs, &inputs)?;
                    all.iter_mut().zip(columns).for_each(|(all, column)| all.extend(column.values));
                }
                Engine::V2 { fused, out } => {
                    fused.compute_into(&inputs, out)?;
                    all.iter_mut().zip(out).for_each(|(all, column)| all.extend_from_slice(column));
                }
                Engine::Pieces(fused) => fused.for_each_piece(&inputs, |_, columns| {
                    all.iter_mut().zip(columns).for_each(|(all, column)| all.extend(column));
                })?,
                Engine::Kand(set) => {
                    set.compute(&inputs)?;
                    all.iter_mut().zip(set.columns()).for_each(|(all, column)| all.extend(column));
                }
            }
        }
        write_columns(folder, &all)
    }
}

/// Writes the columns that all sides have.
pub(crate) fn write_columns(folder: &Path, columns: &[Vec<f64>]) -> Result<()> {
    for (name, column) in names().zip(columns).filter(|(name, _)| !name.is_empty()) {
        data::write_column(folder, &format!("{name}.f64"), column.iter().map(|value| value.to_le_bytes()))?;
    }
    Ok(())
}

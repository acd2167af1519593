//! One new candle, whole set: the candles of one instrument in turn, each answered before the next is taken.

use std::hint::black_box;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kernels::indicator::{Machines, Spec};
use serde_json::json;

use super::kand_set::KandState;
use super::{Minutes, names, specs, write_columns};
use crate::{Case, Measured, Parameters, processor_seconds};

/// Candles before the first one measured: all seeds are complete.
const WARM: usize = 64;
const COLUMNS: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Engine {
    Machines,
    Kand,
}

#[derive(Debug)]
pub(crate) struct Stream {
    engine: Engine,
    specs: Vec<Spec>,
    minutes: Minutes,
}

impl Stream {
    pub(crate) fn prepare(parameters: &Parameters) -> Result<Self> {
        let engine = match parameters.variant.as_str() {
            "machines" => Engine::Machines,
            "kand" => Engine::Kand,
            other => bail!("there is no engine '{other}'"),
        };
        let minutes = Minutes::load(&parameters.data, 1)?.pop().context("there is no instrument")?;
        Ok(Self { engine, specs: specs()?, minutes })
    }

    /// Takes the candles in turn and hands each one's values out; returns the seconds after the warm-up.
    fn each(&self, mut take: impl FnMut(&[f64; COLUMNS])) -> Result<f64> {
        let inputs = self.minutes.inputs()?;
        let mut out = [f64::NAN; COLUMNS];
        match self.engine {
            Engine::Machines => {
                let mut machines = Machines::new(&self.specs);
                let mut push = |row, out: &mut [f64; COLUMNS]| machines.push(&inputs.row(row), out);
                (0..WARM).for_each(|row| push(row, &mut out));
                let started = processor_seconds()?;
                for row in WARM..inputs.len() {
                    push(row, &mut out);
                    take(&out);
                }
                Ok(processor_seconds()? - started)
            }
            Engine::Kand => {
                let mut state = KandState::before(WARM, &inputs)?;
                let started = processor_seconds()?;
                for row in WARM..inputs.len() {
                    state.push(row, &inputs, &mut out)?;
                    take(&out);
                }
                Ok(processor_seconds()? - started)
            }
        }
    }
}

impl Case for Stream {
    fn run(&mut self) -> Result<Measured> {
        let mut rows = 0;
        let seconds = self.each(|out| {
            black_box(out);
            rows += 1;
        })?;
        Ok(Measured::new(seconds, json!({ "rows": rows })))
    }

    fn write(&mut self, folder: &Path) -> Result<()> {
        let mut all: Vec<Vec<f64>> = vec![Vec::new(); names().count()];
        self.each(|out| all.iter_mut().zip(out).for_each(|(column, value)| column.push(*value)))?;
        write_columns(folder, &all)
    }
}

//! Technical indicators over candles.
//!
//! A request is a [`Spec`]. Two engines compute it: [`compute_fold`] row by row, one state machine per spec, and [`compute_fused`] over
//! columns, all specs at once; [`Machines`] takes candles that come one by one, all specs at once. All agree to the bit. Conventions are
//! TA-Lib's unless a request names another [`Profile`]: each indicator names its seed, smoothing and degenerate answers in [`catalogue`]
//! and at its state in the fold.
//!
//! Shape: columns are as long as the inputs, aligned with them, NaN while undefined. Value i depends on rows 0..=i only, and not on how
//! many rows follow. Days matter to VWAP alone; everything else runs on through the night.

mod audit;
mod blocks;
mod catalogue;
mod columns;
mod deviation;
mod families;
mod fold;
mod formula;
mod fused;
mod lanes;
mod machines;
mod plan;
mod profile;
mod recent;
mod rows;
mod smooth;
mod source;
mod spec;
mod state;
mod window;

pub use audit::{Difference, Verdict, audit};
pub use catalogue::{Info, MAX_PERIOD, Parameter, catalogue};
pub use fold::{Machine, Row};
pub use fused::Fused;
pub use machines::Machines;
pub use profile::Profile;
pub use spec::{MAX_TEXT, Spec};

use crate::Error;

/// The analytics set that is asked for by default and in one call.
pub const D3_SET: [&str; 9] =
    ["sma:9", "bbands:20,2", "vwap", "ema:5", "ema:9", "ema:20", "ema:50", "atr:14", "rsi:14"];

/// Part of cache keys: raised with every change that alters a value.
pub const REVISION: u32 = 2;

/// Columns of candles, oldest first, of equal length.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    pub open: &'a [f64],
    pub high: &'a [f64],
    pub low: &'a [f64],
    pub close: &'a [f64],
    pub volume: &'a [f64],
    /// Trading day of each row: any number that changes when the trading date changes. Session VWAP starts again there.
    pub day: &'a [i32],
}

impl<'a> Inputs<'a> {
    /// Takes the columns.
    ///
    /// Errors: unequal lengths.
    pub fn new(
        open: &'a [f64],
        high: &'a [f64],
        low: &'a [f64],
        close: &'a [f64],
        volume: &'a [f64],
        day: &'a [i32],
    ) -> Result<Self, Error> {
        let inputs = Self { open, high, low, close, volume, day };
        inputs.check()?;
        Ok(inputs)
    }

    /// Returns the number of candles.
    pub fn len(&self) -> usize {
        self.close.len()
    }

    /// Says whether there is no candle.
    pub fn is_empty(&self) -> bool {
        self.close.is_empty()
    }

    fn check(&self) -> Result<(), Error> {
        let expected = self.close.len();
        let lengths = [
            ("open", self.open.len()),
            ("high", self.high.len()),
            ("low", self.low.len()),
            ("volume", self.volume.len()),
            ("day", self.day.len()),
        ];
        match lengths.into_iter().find(|&(_, found)| found != expected) {
            Some((column, found)) => Err(Error::UnequalLengths { column, found, expected }),
            None => Ok(()),
        }
    }

    /// Rows `begin..end`, which must be there.
    fn slice(&self, begin: usize, end: usize) -> Inputs<'a> {
        Inputs {
            open: &self.open[begin..end],
            high: &self.high[begin..end],
            low: &self.low[begin..end],
            close: &self.close[begin..end],
            volume: &self.volume[begin..end],
            day: &self.day[begin..end],
        }
    }

    /// Returns one candle, which must be there.
    pub fn row(&self, index: usize) -> Row {
        Row {
            open: self.open[index],
            high: self.high[index],
            low: self.low[index],
            close: self.close[index],
            volume: self.volume[index],
            day: self.day[index],
        }
    }

    fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        (0..self.len()).map(|index| self.row(index))
    }
}

/// One output of one indicator.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    pub name: String,
    /// NaN where undefined.
    pub values: Vec<f64>,
}

/// Computes the columns of all specs in their order, row by row, one state machine per spec. The reference.
///
/// Errors: inputs of unequal length. Cost: one pass per spec; moving windows cost log(period) per row.
pub fn compute_fold(specs: &[Spec], inputs: &Inputs<'_>) -> Result<Vec<Column>, Error> {
    compute_fold_until(specs, inputs, &|| false)
}

/// [`compute_fold`] for as long as `stop`, asked for every block of some hundred rows of a spec, says no.
///
/// Errors: those of [`compute_fold`]; stopped.
pub fn compute_fold_until(specs: &[Spec], inputs: &Inputs<'_>, stop: &dyn Fn() -> bool) -> Result<Vec<Column>, Error> {
    inputs.check()?;
    let mut columns = Vec::new();
    for spec in specs {
        let mut machine = Machine::new(spec);
        let mut values = vec![Vec::with_capacity(inputs.len()); spec.outputs().len()];
        let mut now = vec![f64::NAN; values.len()];
        for (index, row) in inputs.rows().enumerate() {
            if index % lanes::BLOCK == 0 && stop() {
                return Err(Error::Stopped);
            }
            machine.push(&row, &mut now);
            values.iter_mut().zip(&now).for_each(|(column, value)| column.push(*value));
        }
        columns.extend(spec.columns().into_iter().zip(values).map(|(name, values)| Column { name, values }));
    }
    Ok(columns)
}

/// Computes the columns of all specs in their order, together, over cache-sized blocks. Equals [`compute_fold`] to the bit.
///
/// Errors: inputs of unequal length.
///
/// ```
/// use kernels::indicator::{Inputs, Spec, compute_fused};
/// let close = [1.0, 2.0, 6.0, 5.0];
/// let inputs = Inputs::new(&close, &close, &close, &close, &[1.0; 4], &[0; 4])?;
/// let columns = compute_fused(&["sma:3".parse::<Spec>()?], &inputs)?;
/// assert_eq!(columns[0].name, "sma:3");
/// assert!(columns[0].values[1].is_nan());
/// assert_eq!(columns[0].values[2], 3.0);
/// # Ok::<(), kernels::Error>(())
/// ```
pub fn compute_fused(specs: &[Spec], inputs: &Inputs<'_>) -> Result<Vec<Column>, Error> {
    compute_fused_until(specs, inputs, &|| false)
}

/// [`compute_fused`] for as long as `stop`, asked for every block of some hundred rows, says no.
///
/// Errors: those of [`compute_fused`]; stopped.
pub fn compute_fused_until(specs: &[Spec], inputs: &Inputs<'_>, stop: &dyn Fn() -> bool) -> Result<Vec<Column>, Error> {
    let names: Vec<String> = specs.iter().flat_map(Spec::columns).collect();
    let mut values = vec![Vec::new(); names.len()];
    Fused::new(specs).compute_into_until(inputs, &mut values, stop)?;
    Ok(names.into_iter().zip(values).map(|(name, values)| Column { name, values }).collect())
}

/// Does [`compute_fused`]'s work into the caller's buffers, one per column, whose content is replaced and whose capacity is reused.
///
/// Errors: inputs of unequal length; another number of buffers than columns.
pub fn compute_fused_into(specs: &[Spec], inputs: &Inputs<'_>, out: &mut [Vec<f64>]) -> Result<(), Error> {
    Fused::new(specs).compute_into(inputs, out)
}

#[cfg(test)]
mod tests;

//! The set by kand, a crate that has a form for columns and one for the next candle: a peer, run here since it has no other home.

use anyhow::Result;
use kand::ohlcv::{atr, bbands, ema, rsi, sma, vwap};
use kernels::indicator::Inputs;

/// Buffers for the columns and for what kand keeps beside them.
#[derive(Debug)]
pub(crate) struct KandSet {
    columns: [Vec<f64>; 12],
    rsi: [Vec<f64>; 2],
    bands: [Vec<f64>; 4],
    vwap: [Vec<f64>; 2],
}

impl KandSet {
    pub(crate) fn new(rows: usize) -> Self {
        let column = |_| vec![f64::NAN; rows];
        Self {
            columns: std::array::from_fn(column),
            rsi: std::array::from_fn(column),
            bands: std::array::from_fn(column),
            vwap: std::array::from_fn(column),
        }
    }

    /// The columns, in the order of the set.
    pub(crate) fn columns(&self) -> &[Vec<f64>] {
        &self.columns
    }

    /// kand has no width and no session: the width is subtracted, and each day is a call of its own.
    pub(crate) fn compute(&mut self, inputs: &Inputs<'_>) -> Result<()> {
        let Inputs { high, low, close, volume, day, .. } = *inputs;
        let [sma9, ema5, ema9, ema50, rsi14, atr14, upper, middle, lower, width, _, vwap_column] = &mut self.columns;
        sma::sma(close, 9, sma9)?;
        for (period, column) in [(5, ema5), (9, ema9), (50, ema50)] {
            ema::ema(close, period, None, column)?;
        }
        let [gain, loss] = &mut self.rsi;
        rsi::rsi(close, 14, rsi14, gain, loss)?;
        atr::atr(high, low, close, 14, atr14)?;
        let [mean, variance, sum, squares] = &mut self.bands;
        bbands::bbands(close, 20, 2.0, 2.0, upper, middle, lower, mean, variance, sum, squares)?;
        for ((width, upper), lower) in width.iter_mut().zip(&*upper).zip(&*lower) {
            *width = upper - lower;
        }
        let [turnover, traded] = &mut self.vwap;
        let mut first = 0;
        for rows in day.chunk_by(|a, b| a == b) {
            let of = first..first + rows.len();
            first = of.end;
            let out = (&mut vwap_column[of.clone()], &mut turnover[of.clone()], &mut traded[of.clone()]);
            vwap::vwap(&high[of.clone()], &low[of.clone()], &close[of.clone()], &volume[of], out.0, out.1, out.2)?;
        }
        Ok(())
    }
}

/// What kand's next-candle functions need of the candle before.
#[derive(Debug)]
pub(crate) struct KandState {
    sma: f64,
    emas: [f64; 3],
    gain: f64,
    loss: f64,
    atr: f64,
    mean: f64,
    sum: f64,
    squares: f64,
    turnover: f64,
    traded: f64,
}

impl KandState {
    /// Takes the rows before `row`, which must be enough for every seed, with the functions for columns.
    pub(crate) fn before(row: usize, inputs: &Inputs<'_>) -> Result<Self> {
        let Inputs { open, high, low, close, volume, day } = *inputs;
        let head = Inputs::new(&open[..row], &high[..row], &low[..row], &close[..row], &volume[..row], &day[..row])?;
        let mut set = KandSet::new(row);
        set.compute(&head)?;
        let last = |column: &[f64]| column[row - 1];
        Ok(Self {
            sma: last(&set.columns[0]),
            emas: [last(&set.columns[1]), last(&set.columns[2]), last(&set.columns[3])],
            gain: last(&set.rsi[0]),
            loss: last(&set.rsi[1]),
            atr: last(&set.columns[5]),
            mean: last(&set.bands[0]),
            sum: last(&set.bands[2]),
            squares: last(&set.bands[3]),
            turnover: last(&set.vwap[0]),
            traded: last(&set.vwap[1]),
        })
    }

    /// Takes the candle at `row` and writes the set.
    pub(crate) fn push(&mut self, row: usize, inputs: &Inputs<'_>, out: &mut [f64; 12]) -> Result<()> {
        let (high, low, close, volume) = (inputs.high[row], inputs.low[row], inputs.close[row], inputs.volume[row]);
        let before = inputs.close[row - 1];
        self.sma = sma::sma_inc(self.sma, close, inputs.close[row - 9], 9)?;
        for (value, period) in self.emas.iter_mut().zip([5, 9, 50]) {
            *value = ema::ema_inc(close, *value, period, None)?;
        }
        let strength;
        (strength, self.gain, self.loss) = rsi::rsi_inc(close, before, self.gain, self.loss, 14)?;
        self.atr = atr::atr_inc(high, low, before, self.atr, 14)?;
        let (upper, middle, lower, mean, sum, squares) =
            bbands::bbands_inc(close, self.mean, self.sum, self.squares, inputs.close[row - 20], 20, 2.0, 2.0)?;
        (self.mean, self.sum, self.squares) = (mean, sum, squares);
        if inputs.day[row] != inputs.day[row - 1] {
            (self.turnover, self.traded) = (0.0, 0.0);
        }
        let price;
        (self.turnover, self.traded, price) = vwap::vwap_inc(high, low, close, volume, self.turnover, self.traded)?;
        let [ema5, ema9, ema50] = self.emas;
        let width = upper - lower;
        *out = [self.sma, ema5, ema9, ema50, strength, self.atr, upper, middle, lower, width, f64::NAN, price];
        Ok(())
    }
}

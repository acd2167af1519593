use crate::indicator::{Machine, Row};

/// One figure of [`crate::indicator`] with one parameter, its period, followed candle by candle.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    /// Absent for a period outside the indicator's range: such a figure is never defined.
    machine: Option<Machine>,
}

impl Figure {
    /// Starts before the first candle; `name` is the catalogue's.
    pub(crate) fn new(name: &str, period: u32) -> Figure {
        Figure { machine: format!("{name}:{period}").parse().ok().map(|spec| Machine::new(&spec)) }
    }

    /// Takes the next close, for figures that look at nothing else.
    pub(crate) fn push(&mut self, close: f64) -> Option<f64> {
        self.push_candle(close, close, close)
    }

    pub(crate) fn push_candle(&mut self, high: f64, low: f64, close: f64) -> Option<f64> {
        let mut value = [f64::NAN];
        self.machine.as_mut()?.push(&Row { open: close, high, low, close, volume: 0.0, day: 0 }, &mut value);
        Some(value[0]).filter(|value| !value.is_nan())
    }

    /// The figure at the last of these closes.
    pub(crate) fn last(mut self, close: &[f64]) -> Option<f64> {
        close.iter().map(|close| self.push(*close)).last().flatten()
    }
}

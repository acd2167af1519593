//! Candles for the families' tests, and what an indicator says of them.

use crate::indicator::{Machine, Row, Spec};

/// Candles of one price.
pub(super) fn flat(rows: usize, price: f64) -> Vec<Row> {
    vec![Row { open: price, high: price, low: price, close: price, volume: 1.0, day: 0 }; rows]
}

/// Candles that wander, every fourth one without a move.
pub(super) fn walk(rows: usize) -> Vec<Row> {
    let mut close = 15_000.0;
    let mut candles = Vec::new();
    for index in 0..rows {
        let (open, reach) = (close, if index % 4 == 3 { 0.0 } else { ((index * 31) % 17) as f64 * 0.05 });
        close += if index % 4 == 3 { 0.0 } else { ((index * 7919) % 201) as f64 * 0.05 - 5.0 };
        let (high, low) = (open.max(close) + reach, open.min(close) - reach);
        candles.push(Row { open, high, low, close, volume: 1.0, day: 0 });
    }
    candles
}

/// One list of outputs per candle.
pub(super) fn run(text: &str, rows: &[Row]) -> Vec<Vec<f64>> {
    let spec: Spec = text.parse().unwrap();
    let mut machine = Machine::new(&spec);
    let mut values = Vec::new();
    for row in rows {
        let mut out = vec![0.0; spec.outputs().len()];
        machine.push(row, &mut out);
        values.push(out);
    }
    values
}

/// Rows undefined at the start, and that none is later.
pub(super) fn undefined(text: &str, rows: &[Row]) -> usize {
    let values = run(text, rows);
    let undefined = values.iter().take_while(|out| out.iter().all(|value| value.is_nan())).count();
    assert!(values[undefined..].iter().flatten().all(|value| value.is_finite()), "{text}");
    undefined
}

/// Whether prices four times as high give values `factor` times as high. A power of two scales without rounding: exactly so.
pub(super) fn scales(text: &str, factor: f64) -> bool {
    let rows = walk(400);
    let fourfold: Vec<Row> = (rows.iter())
        .map(|row| Row {
            open: 4.0 * row.open,
            high: 4.0 * row.high,
            low: 4.0 * row.low,
            close: 4.0 * row.close,
            ..*row
        })
        .collect();
    let (one, four) = (run(text, &rows).concat(), run(text, &fourfold).concat());
    one.iter().zip(&four).all(|(one, four)| one.is_nan() && four.is_nan() || one * factor == *four)
}

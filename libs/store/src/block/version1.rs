//! Version 1 of the block layout, which is read and no longer written.
//!
//! Body: the row count, then the columns, integers zig-zag base-128:
//!
//! - open time: unit byte (1: minutes, 0: milliseconds), the first one, then the steps less one;
//! - prices: mode byte. An exponent `e` of 0 to 8 says that all four columns are integers over 10^e: open less the close before, close
//!   less open, high less the body's upper end, the body's lower end less low, each column on its own. `ff`: four raw columns;
//! - volume: mode byte, then integers, or raw;
//! - open interest: `00` all absent, `01` all present, `02` a bit per row says which; where any is present, mode byte and steps, or raw.

use market::TimeRange;

use super::column::{
    ALL_ABSENT, ALL_PRESENT, MINUTE_MS, Malformed, RAW, Reader, SOME_PRESENT, UNIT_MILLISECONDS, UNIT_MINUTES, power,
};
use super::{Columns, MAX_BLOCK_ROWS};

/// Largest magnitude of a scaled value.
const MAX_SCALED: i64 = 1 << 53;

/// Appends the rows of a body.
pub(super) fn decode_body(body: &[u8], columns: &mut Columns) -> Result<(), String> {
    let mut reader = Reader::new(body);
    let rows = usize::try_from(reader.unsigned()?).unwrap_or(usize::MAX);
    // Every row takes a byte at least, so a false count is refused before anything is allocated for it.
    if rows == 0 || rows > MAX_BLOCK_ROWS || rows > body.len() {
        return Err(format!("row count {rows} is out of range"));
    }
    let open_time = take_times(&mut reader, rows)?;
    let [open, high, low, close] = take_prices(&mut reader, rows)?;
    let volume = take_volume(&mut reader, rows)?;
    let open_interest = take_open_interest(&mut reader, rows)?;
    if !reader.is_empty() {
        return Err("bytes are left over".into());
    }
    columns.open_time.extend(open_time);
    columns.ohlcv.iter_mut().zip([open, high, low, close, volume]).for_each(|(column, values)| column.extend(values));
    columns.open_interest.extend(open_interest);
    Ok(())
}

fn take_times(reader: &mut Reader<'_>, rows: usize) -> Result<Vec<i64>, Malformed> {
    let width = match reader.byte()? {
        UNIT_MINUTES => MINUTE_MS,
        UNIT_MILLISECONDS => 1,
        _ => return Err("unit of open time is unknown"),
    };
    let mut times = Vec::with_capacity(rows);
    let mut at = reader.signed()?;
    for row in 0..rows {
        if row > 0 {
            let delta = i64::try_from(reader.unsigned()?).map_err(|_| "step of open time is too long")?;
            at = at.checked_add(delta).and_then(|at| at.checked_add(1)).ok_or("open time is out of range")?;
        }
        let open_time = at.checked_mul(width).filter(|at| TimeRange::ALL.contains(*at));
        times.push(open_time.ok_or("open time is out of range")?);
    }
    Ok(times)
}

fn take_prices(reader: &mut Reader<'_>, rows: usize) -> Result<[Vec<f64>; 4], Malformed> {
    let mode = reader.byte()?;
    if mode == RAW {
        return Ok([reader.raw(rows)?, reader.raw(rows)?, reader.raw(rows)?, reader.raw(rows)?]);
    }
    let power = power(mode)?;
    // Open is a step from the close before, which comes later: keep the steps until the closes are known.
    let mut open = (0..rows).map(|_| reader.signed()).collect::<Result<Vec<i64>, Malformed>>()?;
    let mut close = Vec::with_capacity(rows);
    let mut before = 0;
    for value in &mut open {
        *value = step(before, *value)?;
        before = step(*value, reader.signed()?)?;
        close.push(before);
    }
    let mut high = Vec::with_capacity(rows);
    for row in 0..rows {
        high.push(step(open[row].max(close[row]), reader.signed()?)?);
    }
    let mut low = Vec::with_capacity(rows);
    for row in 0..rows {
        let below = reader.signed()?.checked_neg().ok_or("scaled value is out of range")?;
        low.push(step(open[row].min(close[row]), below)?);
    }
    Ok([open, high, low, close].map(|column| column.into_iter().map(|value| value as f64 / power).collect()))
}

fn take_volume(reader: &mut Reader<'_>, rows: usize) -> Result<Vec<f64>, Malformed> {
    let mode = reader.byte()?;
    if mode == RAW {
        return reader.raw(rows);
    }
    let power = power(mode)?;
    (0..rows).map(|_| Ok(step(0, reader.signed()?)? as f64 / power)).collect()
}

fn take_open_interest(reader: &mut Reader<'_>, rows: usize) -> Result<Vec<f64>, Malformed> {
    let bits = match reader.byte()? {
        ALL_ABSENT => return Ok(vec![f64::NAN; rows]),
        ALL_PRESENT => None,
        SOME_PRESENT => Some(reader.take(rows.div_ceil(8))?),
        _ => return Err("mode of open interest is unknown"),
    };
    let is_present = |row: usize| bits.is_none_or(|bits| bits[row / 8] >> (row % 8) & 1 == 1);
    let count = (0..rows).filter(|row| is_present(*row)).count();
    let mode = reader.byte()?;
    let present = if mode == RAW {
        reader.raw(count)?
    } else {
        let power = power(mode)?;
        let mut value = 0;
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            value = step(value, reader.signed()?)?;
            values.push(value as f64 / power);
        }
        values
    };
    let mut present = present.into_iter();
    Ok((0..rows).map(|row| if is_present(row) { present.next().unwrap_or(f64::NAN) } else { f64::NAN }).collect())
}

/// Adds a delta to a scaled value, refusing what no encoder produced.
fn step(value: i64, delta: i64) -> Result<i64, Malformed> {
    match value.checked_add(delta) {
        Some(sum) if (-MAX_SCALED..=MAX_SCALED).contains(&sum) => Ok(sum),
        _ => Err("scaled value is out of range"),
    }
}

#[cfg(test)]
mod tests {
    use market::Frame;

    use crate::block::decode;

    fn bytes(hex: &str) -> Vec<u8> {
        let digit = |index: usize| u8::from_str_radix(&hex[index..index + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(digit).collect()
    }

    fn frame(rows: usize, cell: impl Fn(usize, usize) -> f64, open_interest: impl Fn(usize) -> f64) -> Frame {
        let times = (0..rows).map(|row| 1_599_999_960_000 + row as i64 * 60_000).collect();
        let columns = std::array::from_fn(|column| (0..rows).map(|row| cell(column, row)).collect());
        Frame::from_columns(times, columns, (0..rows).map(open_interest).collect()).unwrap()
    }

    /// The bytes are those that the encoder of version 1 made.
    #[test]
    fn blocks_stored_by_version_1_are_read() {
        let session = frame(
            375,
            |column, row| {
                let open = 20_000.0 + ((row * 7919) % 101) as f64 * 5.0;
                match column {
                    0 => open / 100.0,
                    1 => (open + 35.0) / 100.0,
                    2 => (open - 40.0) / 100.0,
                    3 => (open + 5.0 * (row % 7) as f64) / 100.0,
                    _ => (row % 30) as f64 * 5.0,
                }
            },
            |_| f64::NAN,
        );
        let mixed = |row: usize| if row.is_multiple_of(3) { f64::NAN } else { row as f64 };
        let plain = frame(12, |column, row| (column + row) as f64 / 4.0, mixed);
        let raw = frame(3, |column, row| (column + row) as f64 / 3.0, |row| row as f64 / 7.0);
        let times = vec![-86_400_001, -1, 0, 59_999, 7_000_000_000_000];
        let times = Frame::from_columns(times, std::array::from_fn(|_| vec![1.0; 5]), vec![f64::NAN; 5]).unwrap();
        for (frame, hex) in [(session, SESSION), (plain, PLAIN), (raw, RAW_COLUMNS), (times, TIMES)] {
            // Debug output tells NaN and the sign of zero, and every other float by its shortest digits.
            assert_eq!(format!("{:?}", decode(&bytes(hex)).unwrap()), format!("{frame:?}"));
        }
    }

    const SESSION: &str = "0101991628b52ffd60190acd05005406f70201d49ab7190002c0b8029a039003eb04fc02ff04e802de02d704f20289058603\
        f5049a03e104e8029305000a141e28323c463c32281e140a500046505a646e7882018c019601a001aa01b401be01c801d201\
        dc01e601f001fa0184028e029802a2020077a8a12bad64afcdb08324cd0112e015f093a8428a9afffff1982077ab12239169\
        0e676a0b876ad3210cfd6d98684377df8070c08a8965d45f1b5006acb09146feba81413001df1e4cfd1ef00557e5b4ec0f";
    const PLAIN: &str = "01017328b52ffd207305020034030c01d49ab719000200639601636302c801fa01ac02de029003c203f403a604d8048a05bc\
        05ee0502b60d000202040204020402040040c13985c11e1b3002";
    const RAW_COLUMNS: &str = "01019c0128b52ffd209c8d020052440f1ac0251de62afc7facb1b1f61a3699fe3f68af14ee827dd01891014fe43887c61021\
        b6223cd962fbd952445994ff52d75f5d62fbbcd4b2918131240508060058b6b073de74dcd73917d071119704";
    const TIMES: &str = "0100050081f0b252ffb7992900ded403a08b8a84ddcb01000200000000000000000000000000000000000000000202020202\
        00";
}

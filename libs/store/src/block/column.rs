//! Columns as bytes: variable-length integers, the decimal grid that prices lie on, and the raw escape.

/// Finest decimal grid that is tried: prices and volumes of crypto pairs have eight places.
const MAX_EXPONENT: u8 = 8;
const POWERS: [f64; MAX_EXPONENT as usize + 1] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8];
/// Mode byte of a column that lies on no decimal grid.
pub(super) const RAW: u8 = 0xff;
/// Longest variable-length integer: 64 bits in groups of seven.
const MAX_VARINT_BYTES: usize = 10;
/// Adding it to a float of magnitude up to [`MAX_SCALED`] rounds to an integer, which the low bits of the sum then hold. Unlike
/// `round` and a cast, that is arithmetic every vector unit has.
const ROUNDER: f64 = 6_755_399_441_055_744.0;
const MAX_SCALED: f64 = 2_251_799_813_685_248.0;
/// Values checked before looking whether one has failed.
const CHECK_ROWS: usize = 64;

pub(super) const MINUTE_MS: i64 = 60_000;
pub(super) const UNIT_MILLISECONDS: u8 = 0;
pub(super) const UNIT_MINUTES: u8 = 1;
pub(super) const ALL_ABSENT: u8 = 0;
pub(super) const ALL_PRESENT: u8 = 1;
pub(super) const SOME_PRESENT: u8 = 2;

/// The bytes are not what an encoder writes.
pub(super) type Malformed = &'static str;

pub(super) fn push_unsigned(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Small magnitudes of either sign become short.
pub(super) fn push_signed(out: &mut Vec<u8>, value: i64) {
    push_unsigned(out, zigzag(value));
}

pub(super) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Bytes by significance, all lowest first: close values share their high bytes, and equal bytes in a row compress.
pub(super) fn push_raw(out: &mut Vec<u8>, values: &[f64]) {
    for byte in 0..8 {
        out.extend(values.iter().map(|value| value.to_bits().to_le_bytes()[byte]));
    }
}

/// Integers `n` and the smallest exponent `e` with `n / 10^e` equal, to the bit, to every value; `None` where there is no such `e`.
///
/// `scaled` holds the integers of all `columns` afterwards, column by column.
pub(super) fn scale(columns: &[&[f64]], scaled: &mut Vec<i64>) -> Option<u8> {
    (0..=MAX_EXPONENT).find(|exponent| {
        scaled.clear();
        columns.iter().all(|column| scale_column(column, POWERS[usize::from(*exponent)], scaled))
    })
}

fn scale_column(column: &[f64], power: f64, scaled: &mut Vec<i64>) -> bool {
    for values in column.chunks(CHECK_ROWS) {
        let mut differs = 0;
        scaled.extend(values.iter().map(|&value| {
            let exact = value * power;
            let rounded = exact + ROUNDER;
            // The bits also tell -0.0, whose sign an integer would lose.
            let back = (rounded - ROUNDER) / power;
            differs |= (back.to_bits() ^ value.to_bits()) | u64::from(exact.abs() > MAX_SCALED);
            (rounded.to_bits() as i64).wrapping_sub(ROUNDER.to_bits() as i64)
        }));
        if differs != 0 {
            return false;
        }
    }
    true
}

/// Divides scaled values by the largest integer that divides them all, the tick, and returns it.
pub(super) fn take_tick_out(scaled: &mut [i64]) -> i64 {
    let mut tick = 0;
    for values in scaled.chunks(CHECK_ROWS) {
        if tick == 1 {
            break;
        }
        if tick == 0 || values.iter().fold(false, |differs, value| differs | (quotient(*value, tick) * tick != *value))
        {
            tick = values.iter().fold(tick, |tick, value| greatest_divisor(tick, *value));
        }
    }
    let tick = tick.max(1);
    if tick > 1 {
        scaled.iter_mut().for_each(|value| *value = quotient(*value, tick));
    }
    tick
}

/// The integer nearest to a quotient of at most half of [`MAX_SCALED`]; much faster than an integer division.
fn quotient(value: i64, divisor: i64) -> i64 {
    let rounded = value as f64 * (1.0 / divisor as f64) + ROUNDER;
    (rounded.to_bits() as i64).wrapping_sub(ROUNDER.to_bits() as i64)
}

fn greatest_divisor(a: i64, b: i64) -> i64 {
    let (mut a, mut b) = (a.abs(), b.abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Floats of integers on a grid: `n * tick / power`, the product exact, the division correctly rounded.
///
/// An integer beyond what [`scale`] gives becomes some other float, or none that a frame accepts.
pub(super) fn unscale(integers: impl Iterator<Item = i64>, tick: f64, power: f64, out: &mut Vec<f64>) {
    let value = |integer: i64| {
        let rounded = f64::from_bits((ROUNDER.to_bits() as i64).wrapping_add(integer) as u64);
        (rounded - ROUNDER) * tick
    };
    if power == 1.0 {
        out.extend(integers.map(value));
    } else {
        out.extend(integers.map(|integer| value(integer) / power));
    }
}

/// Takes values off the front of untrusted bytes.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.bytes
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.bytes.split_at_checked(count).ok_or("bytes end early")?;
        self.bytes = tail;
        Ok(head)
    }

    /// [`take`](Self::take), with `margin` further bytes that are not taken where there are so many; says whether.
    pub(super) fn take_with_margin(&mut self, count: usize, margin: usize) -> Result<(&'a [u8], bool), Malformed> {
        let bytes = self.bytes;
        let head = self.take(count)?;
        Ok(bytes.get(..count + margin).map_or((head, false), |wide| (wide, true)))
    }

    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, tail) = self.bytes.split_first().ok_or("bytes end early")?;
        self.bytes = tail;
        Ok(*first)
    }

    pub(super) fn unsigned(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for (index, byte) in self.bytes.iter().take(MAX_VARINT_BYTES).enumerate() {
            // The tenth group has room for one bit.
            if index == MAX_VARINT_BYTES - 1 && *byte > 1 {
                return Err("integer is too long");
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.bytes = &self.bytes[index + 1..];
                return Ok(value);
            }
        }
        Err("integer does not end")
    }

    pub(super) fn signed(&mut self) -> Result<i64, Malformed> {
        Ok(unzigzag(self.unsigned()?))
    }

    pub(super) fn raw(&mut self, count: usize) -> Result<Vec<f64>, Malformed> {
        let mut values = Vec::new();
        self.raw_into(count, &mut values)?;
        Ok(values)
    }

    /// Appends values that [`push_raw`] wrote.
    pub(super) fn raw_into(&mut self, count: usize, out: &mut Vec<f64>) -> Result<(), Malformed> {
        let bytes = self.take(count.checked_mul(8).ok_or("count is too large")?)?;
        let value = |row| {
            f64::from_bits((0..8).fold(0, |bits, byte| bits | u64::from(bytes[byte * count + row]) << (8 * byte)))
        };
        out.extend((0..count).map(value));
        Ok(())
    }
}

/// The divisor of a mode byte other than [`RAW`].
pub(super) fn power(exponent: u8) -> Result<f64, Malformed> {
    POWERS.get(usize::from(exponent)).copied().ok_or("column mode is unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_any_size_and_sign_come_back() {
        let values = [0, 1, -1, 63, 64, -64, -65, 1 << 40, i64::MAX, i64::MIN];
        let mut bytes = Vec::new();
        values.iter().for_each(|value| push_signed(&mut bytes, *value));
        let mut reader = Reader::new(&bytes);
        for value in values {
            assert_eq!(reader.signed(), Ok(value));
        }
        assert!(reader.is_empty() && reader.byte().is_err());
        assert!(Reader::new(&[0xff; 10]).unsigned().is_err());
        assert!(Reader::new(&[0x80; 4]).unsigned().is_err());
    }

    #[test]
    fn the_smallest_exact_exponent_is_chosen() {
        let mut scaled = Vec::new();
        for (values, want) in [
            (vec![1.0, -7.0, MAX_SCALED, -MAX_SCALED], Some(0)),
            (vec![MAX_SCALED + 1.0], None),
            (vec![1152921504606846976.0], None),
            (vec![2451.35, 0.1], Some(2)),
            (vec![0.00000001], Some(8)),
            (vec![0.1 + 0.2], None),
            (vec![-0.0], None),
            (vec![1e-300], None),
            (vec![1e300], None),
            (vec![f64::INFINITY], None),
        ] {
            assert_eq!(scale(&[&values], &mut scaled), want, "{values:?}");
        }
        assert_eq!((scale(&[&[1.5, 2.25]], &mut scaled), scaled), (Some(2), vec![150, 225]));
    }

    #[test]
    fn the_tick_is_the_greatest_common_divisor() {
        let half = MAX_SCALED as i64 / 2;
        for (mut values, tick, want) in [
            (vec![10, -15, 0, 40], 5, vec![2, -3, 0, 8]),
            (vec![0, 0], 1, vec![0, 0]),
            (vec![7], 7, vec![1]),
            (vec![2 * half, 2 * half - 2], 2, vec![half, half - 1]),
            (vec![i64::from(i32::MAX), 2], 1, vec![i64::from(i32::MAX), 2]),
        ] {
            assert_eq!((take_tick_out(&mut values), values), (tick, want));
        }
        // One value far behind the others breaks their tick.
        let mut values = vec![30; 300];
        values[299] = 12;
        assert_eq!((take_tick_out(&mut values), values[0], values[299]), (6, 5, 2));
    }
}

//! Columns as bytes: variable-length integers, decimal scaling and the raw escape.

/// Largest magnitude at which every integer is a float of its own.
const MAX_EXACT: i64 = 1 << 53;
/// Finest decimal grid that is tried: prices and volumes of crypto pairs have eight places.
const MAX_EXPONENT: u8 = 8;
const POWERS: [f64; MAX_EXPONENT as usize + 1] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8];
/// Mode byte of a column that lies on no decimal grid.
pub(super) const RAW: u8 = 0xff;
/// Longest variable-length integer: 64 bits in groups of seven.
const MAX_VARINT_BYTES: usize = 10;

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
    push_unsigned(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Bytes by significance, all lowest first: close values share their high bytes, and equal bytes in a row compress.
pub(super) fn push_raw(out: &mut Vec<u8>, values: &[f64]) {
    for byte in 0..8 {
        out.extend(values.iter().map(|value| value.to_bits().to_le_bytes()[byte]));
    }
}

/// Integers `n` and the smallest exponent `e` with `n / 10^e` equal, to the bit, to every value; `None` where there is no such `e`.
///
/// The integers of all `columns` are appended to `scaled`, column by column.
pub(super) fn scale(columns: &[&[f64]], scaled: &mut Vec<i64>) -> Option<u8> {
    'exponents: for exponent in 0..=MAX_EXPONENT {
        scaled.clear();
        let power = POWERS[exponent as usize];
        for column in columns {
            for &value in *column {
                let integer = (value * power).round();
                // Also refuses -0.0, whose sign an integer would lose, and anything not finite.
                if integer.abs() > MAX_EXACT as f64 || (integer as i64 as f64 / power).to_bits() != value.to_bits() {
                    continue 'exponents;
                }
                scaled.push(integer as i64);
            }
        }
        return Some(exponent);
    }
    None
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

    pub(super) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.bytes.split_at_checked(count).ok_or("bytes end early")?;
        self.bytes = tail;
        Ok(head)
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
        let value = self.unsigned()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    pub(super) fn raw(&mut self, count: usize) -> Result<Vec<f64>, Malformed> {
        let bytes = self.take(count.checked_mul(8).ok_or("count is too large")?)?;
        let value = |row| {
            f64::from_bits((0..8).fold(0, |bits, byte| bits | u64::from(bytes[byte * count + row]) << (8 * byte)))
        };
        Ok((0..count).map(value).collect())
    }
}

/// Adds a delta to a scaled value, refusing what no encoder produces.
pub(super) fn step(value: i64, delta: i64) -> Result<i64, Malformed> {
    match value.checked_add(delta) {
        Some(sum) if (-MAX_EXACT..=MAX_EXACT).contains(&sum) => Ok(sum),
        _ => Err("scaled value is out of range"),
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
            (vec![1.0, -7.0, 9_007_199_254_740_992.0], Some(0)),
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
}

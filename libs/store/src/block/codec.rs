//! A frame as bytes, and back, to the bit.
//!
//! Version 1: `01`, flags (bit 0: the body is a zstd frame, preceded by its plain length), body. The body is the row count, then the columns:
//!
//! - open time: unit byte (1: minutes, 0: milliseconds), the first one, then the steps less one;
//! - prices: mode byte. An exponent `e` of 0 to 8 says that all four columns are integers over 10^e: open less the close before, close
//!   less open, high less the body's upper end, the body's lower end less low, each column on its own. `ff`: four raw columns;
//! - volume: mode byte, then integers, or raw;
//! - open interest: `00` all absent, `01` all present, `02` a bit per row says which; where any is present, mode byte and steps, or raw.
//!
//! Integers are zig-zag base-128. Equal frames give equal bytes.

use std::io;

use market::{Frame, TimeRange};
use zstd::bulk::{Compressor, Decompressor};

use super::MAX_BLOCK_ROWS;
use super::column::{Malformed, RAW, Reader, power, push_raw, push_signed, push_unsigned, scale, step};

const VERSION: u8 = 1;
const FLAG_ZSTD: u8 = 1;
/// Fast and nearly as small as 3 on columns that are deltas already.
const ZSTD_LEVEL: i32 = 1;
/// Longest plain body: six raw columns, open times at their longest, the bit map, and the few bytes around them.
const MAX_BODY_BYTES: usize = MAX_BLOCK_ROWS * (6 * 8 + 10 + 1) + 64;
const MINUTE_MS: i64 = 60_000;

const UNIT_MILLISECONDS: u8 = 0;
const UNIT_MINUTES: u8 = 1;
const ALL_ABSENT: u8 = 0;
const ALL_PRESENT: u8 = 1;
const SOME_PRESENT: u8 = 2;

/// Encodes frames one after the other, reusing its buffers.
pub(crate) struct Encoder {
    compressor: Compressor<'static>,
    body: Vec<u8>,
    scaled: Vec<i64>,
}

impl Encoder {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { compressor: Compressor::new(ZSTD_LEVEL)?, body: Vec::new(), scaled: Vec::new() })
    }

    /// Encodes 1 to [`MAX_BLOCK_ROWS`] rows.
    pub(crate) fn encode(&mut self, frame: &Frame) -> io::Result<Vec<u8>> {
        debug_assert!((1..=MAX_BLOCK_ROWS).contains(&frame.len()));
        self.body.clear();
        push_unsigned(&mut self.body, frame.len() as u64);
        push_times(&mut self.body, frame.open_time());
        self.push_prices(frame);
        self.push_volume(frame.volume());
        self.push_open_interest(frame.open_interest());

        let packed = self.compressor.compress(&self.body)?;
        let mut payload = Vec::with_capacity(self.body.len().min(packed.len()) + 8);
        payload.push(VERSION);
        if packed.len() + 4 < self.body.len() {
            payload.push(FLAG_ZSTD);
            push_unsigned(&mut payload, self.body.len() as u64);
            payload.extend_from_slice(&packed);
        } else {
            payload.push(0);
            payload.extend_from_slice(&self.body);
        }
        Ok(payload)
    }

    fn push_prices(&mut self, frame: &Frame) {
        let columns = [frame.open(), frame.high(), frame.low(), frame.close()];
        let Some(exponent) = scale(&columns, &mut self.scaled) else {
            self.body.push(RAW);
            columns.iter().for_each(|column| push_raw(&mut self.body, column));
            return;
        };
        self.body.push(exponent);
        let rows = frame.len();
        let (open, rest) = self.scaled.split_at(rows);
        let (high, rest) = rest.split_at(rows);
        let (low, close) = rest.split_at(rows);
        push_signed(&mut self.body, open[0]);
        (1..rows).for_each(|row| push_signed(&mut self.body, open[row] - close[row - 1]));
        (0..rows).for_each(|row| push_signed(&mut self.body, close[row] - open[row]));
        (0..rows).for_each(|row| push_signed(&mut self.body, high[row] - open[row].max(close[row])));
        (0..rows).for_each(|row| push_signed(&mut self.body, open[row].min(close[row]) - low[row]));
    }

    fn push_volume(&mut self, volume: &[f64]) {
        match scale(&[volume], &mut self.scaled) {
            None => {
                self.body.push(RAW);
                push_raw(&mut self.body, volume);
            }
            Some(exponent) => {
                self.body.push(exponent);
                self.scaled.iter().for_each(|value| push_signed(&mut self.body, *value));
            }
        }
    }

    fn push_open_interest(&mut self, open_interest: &[f64]) {
        let present: Vec<f64> = open_interest.iter().copied().filter(|value| !value.is_nan()).collect();
        if present.is_empty() {
            self.body.push(ALL_ABSENT);
            return;
        }
        if present.len() == open_interest.len() {
            self.body.push(ALL_PRESENT);
        } else {
            self.body.push(SOME_PRESENT);
            for rows in open_interest.chunks(8) {
                let bits =
                    rows.iter().enumerate().fold(0, |bits, (bit, value)| bits | u8::from(!value.is_nan()) << bit);
                self.body.push(bits);
            }
        }
        match scale(&[&present], &mut self.scaled) {
            None => {
                self.body.push(RAW);
                push_raw(&mut self.body, &present);
            }
            Some(exponent) => {
                self.body.push(exponent);
                let mut before = 0;
                for value in &self.scaled {
                    push_signed(&mut self.body, value - before);
                    before = *value;
                }
            }
        }
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

fn push_times(body: &mut Vec<u8>, times: &[i64]) {
    let on_the_minute = times.iter().all(|at| at.rem_euclid(MINUTE_MS) == 0);
    let (unit, width) = if on_the_minute { (UNIT_MINUTES, MINUTE_MS) } else { (UNIT_MILLISECONDS, 1) };
    body.push(unit);
    push_signed(body, times[0].div_euclid(width));
    times.windows(2).for_each(|pair| push_unsigned(body, ((pair[1] - pair[0]) / width - 1) as u64));
}

/// Decodes what [`Encoder::encode`] wrote. Any other bytes give an error that says what is wrong, at bounded cost.
pub(crate) fn decode(payload: &[u8]) -> Result<Frame, String> {
    let mut reader = Reader::new(payload);
    let version = reader.byte()?;
    if version != VERSION {
        return Err(format!("block version {version} is unknown"));
    }
    match reader.byte()? {
        0 => decode_body(reader.rest()),
        FLAG_ZSTD => {
            let length = usize::try_from(reader.unsigned()?).unwrap_or(usize::MAX);
            if length > MAX_BODY_BYTES {
                return Err(format!("body of {length} bytes is too long"));
            }
            let mut decompressor = Decompressor::new().map_err(|cause| cause.to_string())?;
            let body = decompressor.decompress(reader.rest(), length).map_err(|cause| cause.to_string())?;
            if body.len() != length {
                return Err("body does not have the length it should".into());
            }
            decode_body(&body)
        }
        flags => Err(format!("block flags {flags} are unknown")),
    }
}

fn decode_body(body: &[u8]) -> Result<Frame, String> {
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
    Frame::from_columns(open_time, [open, high, low, close, volume], open_interest).map_err(|cause| cause.to_string())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Deterministic noise (Steele et al., SplitMix64), so that a failure repeats.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        }
    }

    fn encode(frame: &Frame) -> Vec<u8> {
        Encoder::new().unwrap().encode(frame).unwrap()
    }

    /// Columns as bits, because NaN differs from itself.
    fn bits(frame: &Frame) -> Vec<Vec<u64>> {
        let columns = [frame.open(), frame.high(), frame.low(), frame.close(), frame.volume(), frame.open_interest()];
        let mut all: Vec<Vec<u64>> =
            columns.iter().map(|column| column.iter().map(|v| v.to_bits()).collect()).collect();
        all.push(frame.open_time().iter().map(|at| *at as u64).collect());
        all
    }

    fn frame(rows: usize, cell: impl Fn(usize, usize) -> f64, open_interest: impl Fn(usize) -> f64) -> Frame {
        let times = (0..rows).map(|row| 1_600_000_000_000 / 60_000 * 60_000 + row as i64 * 60_000).collect();
        let columns = std::array::from_fn(|column| (0..rows).map(|row| cell(column, row)).collect());
        Frame::from_columns(times, columns, (0..rows).map(open_interest).collect()).unwrap()
    }

    #[test]
    fn awkward_floats_come_back_to_the_bit() {
        let awkward = [
            -0.0,
            0.0,
            1e-300,
            0.1 + 0.2,
            f64::MIN_POSITIVE / 2.0,
            f64::MAX,
            -f64::MAX,
            9_007_199_254_740_993.0,
            2451.35,
        ];
        for rows in [1, 2, 7, 8, 9, 375] {
            for shift in 0..awkward.len() {
                let frame = frame(
                    rows,
                    |column, row| awkward[(column * 3 + row + shift) % awkward.len()],
                    |row| if row % 3 == 0 { f64::NAN } else { awkward[row % awkward.len()] },
                );
                assert_eq!(bits(&decode(&encode(&frame)).unwrap()), bits(&frame));
            }
        }
    }

    #[test]
    fn absent_open_interest_is_not_zero() {
        for pattern in [|_| f64::NAN, |_| 0.0, |row| if row == 1 { 0.0 } else { f64::NAN }] {
            let frame = frame(3, |_, _| 1.0, pattern);
            assert_eq!(bits(&decode(&encode(&frame)).unwrap()), bits(&frame));
        }
    }

    #[test]
    fn open_times_off_the_minute_come_back() {
        let times = vec![-86_400_001, -1, 0, 59_999, 7_000_000_000_000];
        let frame = Frame::from_columns(times, std::array::from_fn(|_| vec![1.0; 5]), vec![f64::NAN; 5]).unwrap();
        assert_eq!(bits(&decode(&encode(&frame)).unwrap()), bits(&frame));
    }

    #[test]
    fn a_session_of_prices_on_a_grid_takes_few_bytes() {
        let mut noise = Noise(7);
        let walk: Vec<f64> = (0..375)
            .scan(245_135_i64, |price, _| {
                *price += (noise.next() % 41) as i64 - 20;
                Some(*price as f64 / 100.0)
            })
            .collect();
        let frame =
            frame(375, |column, row| if column == 4 { (row * 37 % 5000) as f64 } else { walk[row] }, |_| f64::NAN);
        let bytes = encode(&frame);
        assert!(bytes.len() < 375 * 6, "{} bytes", bytes.len());
        assert_eq!(bits(&decode(&bytes).unwrap()), bits(&frame));
    }

    #[test]
    fn hostile_bytes_give_an_error_or_a_frame_and_never_a_panic() {
        let mixed = |row: usize| if row.is_multiple_of(2) { f64::NAN } else { row as f64 };
        let plain = frame(40, |column, row| (column + row) as f64 / 4.0, mixed);
        let raw = frame(40, |column, row| (column + row) as f64 / 3.0, mixed);
        let mut noise = Noise(1);
        for good in [encode(&plain), encode(&raw), encode(&frame(1, |_, _| 1.0, |_| 1.0))] {
            for length in 0..good.len() {
                assert!(decode(&good[..length]).is_err(), "{length} of {} bytes", good.len());
            }
            for _ in 0..20_000 {
                let mut bytes = good.clone();
                for _ in 0..=noise.next() % 3 {
                    let index = noise.next() as usize % bytes.len();
                    bytes[index] = noise.next() as u8;
                }
                let _ = decode(&bytes);
            }
        }
        for _ in 0..50_000 {
            let length = noise.next() as usize % 200;
            let mut bytes: Vec<u8> = (0..length).map(|_| noise.next() as u8).collect();
            // Most noise would fail at the version; let it get further.
            if length > 2 {
                bytes[0] = VERSION;
                bytes[1] = (noise.next() % 2) as u8;
            }
            let _ = decode(&bytes);
        }
        // A bomb: a small body that claims, or unpacks to, far more than a block may hold.
        let mut bomb = vec![VERSION, FLAG_ZSTD];
        push_unsigned(&mut bomb, u64::MAX);
        assert!(decode(&bomb).is_err());
        let mut bomb = vec![VERSION, FLAG_ZSTD];
        push_unsigned(&mut bomb, MAX_BODY_BYTES as u64);
        bomb.extend(zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap());
        assert!(decode(&bomb).is_err());
    }
}

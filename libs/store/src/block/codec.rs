//! A frame as bytes, and back, to the bit.
//!
//! Version 2: `02`, flags (bit 0: the body is a zstd frame, preceded by its plain length), body. The body is the row count, then the columns:
//!
//! - open time: unit byte (1: minutes, 0: milliseconds), the first one, then `01` and the one step less one, or `00` and the packed steps less one;
//! - prices: mode byte. An exponent `e` of 0 to 8 says that all four columns are integers times a tick over 10^e: the tick, the first open, then
//!   packed open less the close before, packed close less open (both zig-zag), and as offsets high less the body's upper end, the body's
//!   lower end less low. `ff`: four raw columns;
//! - volume: mode byte, tick and offsets, or raw;
//! - open interest: `00` all absent, `01` all present, `02` a bit per row says which; where any is present, mode byte, tick, the first one and packed
//!   zig-zag steps, or raw.
//!
//! Single integers are base-128, signed ones zig-zag. Packed columns are those of `packing.rs`; offsets are the least value, then the packed distances from
//! it. Raw columns are transposed bytes, and only a body that has one is tried with zstd. Equal frames give equal bytes.
//! Version 1 (`version1.rs`) is still read.
//!
//! Why not a general format: bytes per candle, and nanoseconds per candle to decode on one core (least of several runs on a busy machine: only
//! their order means something), a block per instrument and UTC date, real minutes:
//!
//! | | NSE shares | NSE indices | US | crypto | futures, FX |
//! |---|---|---|---|---|---|
//! | version 2 | 4.14 B, 13 ns | 3.25, 9 | 10.90, 64 | 6.31, 16 | 2.78, 11 |
//! | version 1 (varints, zstd) | 5.01 B, 191 ns | 4.28, 134 | 11.25, 168 | 6.64, 95 | 3.19, 67 |
//! | pco 1.1, floats | 6.25 B, 129 ns | 5.44, 110 | 10.36, 82 | 8.23, 80 | 4.10, 42 |
//! | Arrow IPC, zstd | 16.2 B, 236 ns | 16.8, 264 | 19.9, 213 | 20.1, 166 | 14.3, 104 |
//! | Arrow IPC, lz4 | 26.9 B, 68 ns | 26.2, 128 | 31.5, 55 | 29.0, 55 | 23.7, 37 |
//!
//! The US files hold prices with the noise of 32-bit floats, most of them raw. On the same integers in ticks, pco takes 4.19 bytes of an NSE share,
//! varints with zstd 4.44, groups of 128 without exceptions 4.78, with them 3.89, groups of 64 3.93, all without what stands around the columns.

use std::io;

use market::{Frame, TimeRange};
use zstd::bulk::{Compressor, Decompressor};

use super::column::{
    ALL_ABSENT, ALL_PRESENT, MINUTE_MS, Malformed, RAW, Reader, SOME_PRESENT, UNIT_MILLISECONDS, UNIT_MINUTES, power,
    push_raw, push_signed, push_unsigned, scale, take_tick_out, unscale, unzigzag, zigzag,
};
use super::packing::{push_packed, take_packed};
use super::{Columns, MAX_BLOCK_ROWS, version1};

const VERSION: u8 = 2;
const VERSION_1: u8 = 1;
const FLAG_ZSTD: u8 = 1;
/// Fast; raw columns gain little from more.
const ZSTD_LEVEL: i32 = 1;
/// Longest plain body: six raw columns, open times at their longest, the bit map, and the few bytes around them.
const MAX_BODY_BYTES: usize = MAX_BLOCK_ROWS * (6 * 8 + 10 + 1) + 64;
const STEPS_DIFFER: u8 = 0;
const STEPS_EQUAL: u8 = 1;

/// Encodes frames one after the other, reusing its buffers.
pub(crate) struct Encoder {
    compressor: Compressor<'static>,
    body: Vec<u8>,
    scaled: Vec<i64>,
    packing: Vec<u64>,
    has_raw: bool,
}

impl Encoder {
    pub(crate) fn new() -> io::Result<Self> {
        let compressor = Compressor::new(ZSTD_LEVEL)?;
        Ok(Self { compressor, body: Vec::new(), scaled: Vec::new(), packing: Vec::new(), has_raw: false })
    }

    /// Encodes 1 to [`MAX_BLOCK_ROWS`] rows.
    pub(crate) fn encode(&mut self, frame: &Frame) -> io::Result<Vec<u8>> {
        debug_assert!((1..=MAX_BLOCK_ROWS).contains(&frame.len()));
        self.body.clear();
        self.has_raw = false;
        push_unsigned(&mut self.body, frame.len() as u64);
        self.push_times(frame.open_time());
        self.push_prices(frame);
        self.push_volume(frame.volume());
        self.push_open_interest(frame.open_interest());

        let packed = if self.has_raw { Some(self.compressor.compress(&self.body)?) } else { None };
        let mut payload = Vec::with_capacity(packed.as_ref().map_or(self.body.len(), Vec::len) + 8);
        payload.push(VERSION);
        match packed {
            Some(packed) if packed.len() + 4 < self.body.len() => {
                payload.push(FLAG_ZSTD);
                push_unsigned(&mut payload, self.body.len() as u64);
                payload.extend_from_slice(&packed);
            }
            _ => {
                payload.push(0);
                payload.extend_from_slice(&self.body);
            }
        }
        Ok(payload)
    }

    fn push_times(&mut self, times: &[i64]) {
        let on_the_minute = times.iter().all(|at| at % MINUTE_MS == 0);
        let (unit, width) = if on_the_minute { (UNIT_MINUTES, MINUTE_MS) } else { (UNIT_MILLISECONDS, 1) };
        self.body.push(unit);
        push_signed(&mut self.body, times[0] / width);
        let first_step = times.get(1).map_or(width, |second| second - times[0]);
        if times.windows(2).all(|pair| pair[1] - pair[0] == first_step) {
            self.body.push(STEPS_EQUAL);
            push_unsigned(&mut self.body, (first_step / width - 1) as u64);
            return;
        }
        self.body.push(STEPS_DIFFER);
        self.packing.clear();
        self.packing.extend(times.windows(2).map(|pair| ((pair[1] - pair[0]) / width - 1) as u64));
        push_packed(&mut self.body, &self.packing);
    }

    fn push_prices(&mut self, frame: &Frame) {
        let columns = [frame.open(), frame.high(), frame.low(), frame.close()];
        let Some(exponent) = scale(&columns, &mut self.scaled) else {
            self.push_raw(&columns);
            return;
        };
        self.body.push(exponent);
        push_unsigned(&mut self.body, take_tick_out(&mut self.scaled) as u64);
        let rows = frame.len();
        let (open, rest) = self.scaled.split_at(rows);
        let (high, rest) = rest.split_at(rows);
        let (low, close) = rest.split_at(rows);
        push_signed(&mut self.body, open[0]);
        // The first open stands alone: its step is from itself.
        let before = std::iter::once(&open[0]).chain(close);
        self.packing.clear();
        self.packing.extend(open.iter().zip(before).map(|(open, before)| zigzag(open - before)));
        push_packed(&mut self.body, &self.packing);
        self.packing.clear();
        self.packing.extend(open.iter().zip(close).map(|(open, close)| zigzag(close - open)));
        push_packed(&mut self.body, &self.packing);
        let above = high.iter().zip(open).zip(close).map(|((high, open), close)| high - open.max(close));
        push_offsets(&mut self.body, &mut self.packing, above);
        let below = low.iter().zip(open).zip(close).map(|((low, open), close)| open.min(close) - low);
        push_offsets(&mut self.body, &mut self.packing, below);
    }

    fn push_volume(&mut self, volume: &[f64]) {
        let Some(exponent) = scale(&[volume], &mut self.scaled) else {
            self.push_raw(&[volume]);
            return;
        };
        self.body.push(exponent);
        push_unsigned(&mut self.body, take_tick_out(&mut self.scaled) as u64);
        push_offsets(&mut self.body, &mut self.packing, self.scaled.iter().copied());
    }

    fn push_open_interest(&mut self, open_interest: &[f64]) {
        if open_interest.iter().all(|value| value.is_nan()) {
            self.body.push(ALL_ABSENT);
            return;
        }
        let present: Vec<f64> = open_interest.iter().copied().filter(|value| !value.is_nan()).collect();
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
        let Some(exponent) = scale(&[&present], &mut self.scaled) else {
            self.push_raw(&[&present]);
            return;
        };
        self.body.push(exponent);
        push_unsigned(&mut self.body, take_tick_out(&mut self.scaled) as u64);
        push_signed(&mut self.body, self.scaled[0]);
        self.packing.clear();
        self.packing.extend(self.scaled.windows(2).map(|pair| zigzag(pair[1] - pair[0])));
        push_packed(&mut self.body, &self.packing);
    }

    fn push_raw(&mut self, columns: &[&[f64]]) {
        self.has_raw = true;
        self.body.push(RAW);
        columns.iter().for_each(|column| push_raw(&mut self.body, column));
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

fn push_offsets(body: &mut Vec<u8>, packing: &mut Vec<u64>, values: impl Iterator<Item = i64> + Clone) {
    let least = values.clone().min().unwrap_or(0);
    push_signed(body, least);
    packing.clear();
    packing.extend(values.map(|value| (value - least) as u64));
    push_packed(body, packing);
}

/// Decodes blocks one after the other, reusing its buffers.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    packed: [Vec<u64>; 4],
}

impl Decoder {
    /// Appends the rows that [`Encoder::encode`] wrote, of this version or an earlier one. Any other bytes give an error that says what is wrong, at bounded
    /// cost, and leave `columns` as they were; columns of any bytes may still be refused as a frame.
    pub(crate) fn decode(&mut self, payload: &[u8], columns: &mut Columns) -> Result<(), String> {
        let rows = columns.open_time.len();
        let outcome = self.decode_payload(payload, columns);
        if outcome.is_err() {
            columns.truncate(rows);
        }
        outcome
    }

    fn decode_payload(&mut self, payload: &[u8], columns: &mut Columns) -> Result<(), String> {
        let mut reader = Reader::new(payload);
        let version = reader.byte()?;
        if version != VERSION && version != VERSION_1 {
            return Err(format!("block version {version} is unknown"));
        }
        match reader.byte()? {
            0 => self.decode_body(version, reader.rest(), columns),
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
                self.decode_body(version, &body, columns)
            }
            flags => Err(format!("block flags {flags} are unknown")),
        }
    }

    fn decode_body(&mut self, version: u8, body: &[u8], columns: &mut Columns) -> Result<(), String> {
        if version == VERSION_1 {
            return version1::decode_body(body, columns);
        }
        let mut reader = Reader::new(body);
        let rows = usize::try_from(reader.unsigned()?).unwrap_or(usize::MAX);
        // What is allocated for a false count is no more than a true one could ask for.
        if rows == 0 || rows > MAX_BLOCK_ROWS {
            return Err(format!("row count {rows} is out of range"));
        }
        self.packed.iter_mut().for_each(|column| column.resize(rows, 0));
        self.take_times(&mut reader, &mut columns.open_time)?;
        let [open, high, low, close, volume] = &mut columns.ohlcv;
        self.take_prices(&mut reader, [open, high, low, close])?;
        self.take_volume(&mut reader, volume)?;
        self.take_open_interest(&mut reader, &mut columns.open_interest)?;
        if !reader.is_empty() {
            return Err("bytes are left over".into());
        }
        Ok(())
    }

    fn take_times(&mut self, reader: &mut Reader<'_>, times: &mut Vec<i64>) -> Result<(), Malformed> {
        let width = match reader.byte()? {
            UNIT_MINUTES => MINUTE_MS,
            UNIT_MILLISECONDS => 1,
            _ => return Err("unit of open time is unknown"),
        };
        let rows = self.packed[0].len();
        let first = reader.signed()?.checked_mul(width).filter(|at| TimeRange::ALL.contains(*at));
        let first = first.ok_or("open time is out of range")?;
        // A step longer than all time would overflow; shorter ones, summed over the rows of a block, cannot.
        let step_of = |less_one: u64| {
            let step = i64::try_from(less_one).ok()?.checked_add(1)?.checked_mul(width)?;
            (step <= TimeRange::ALL.end() - TimeRange::ALL.start()).then_some(step)
        };
        match reader.byte()? {
            STEPS_EQUAL => {
                let step = step_of(reader.unsigned()?).ok_or("step of open time is too long")?;
                times.extend((0..rows as i64).map(|row| first + row * step));
            }
            STEPS_DIFFER => {
                let steps = &mut self.packed[0][1..];
                take_packed(reader, steps)?;
                let mut at = first;
                times.push(at);
                for less_one in steps {
                    at += step_of(*less_one).ok_or("step of open time is too long")?;
                    times.push(at);
                }
            }
            _ => return Err("mode of open time is unknown"),
        }
        match times.last() {
            Some(last) if TimeRange::ALL.contains(*last) => Ok(()),
            _ => Err("open time is out of range"),
        }
    }

    fn take_prices(&mut self, reader: &mut Reader<'_>, columns: [&mut Vec<f64>; 4]) -> Result<(), Malformed> {
        let rows = self.packed[0].len();
        let mode = reader.byte()?;
        if mode == RAW {
            return columns.into_iter().try_for_each(|column| reader.raw_into(rows, column));
        }
        let (power, tick) = (power(mode)?, take_tick(reader)?);
        let first = reader.signed()?;
        let [open, close, above, below] = &mut self.packed;
        take_packed(reader, open)?;
        take_packed(reader, close)?;
        let mut before = first;
        for (open, close) in open.iter_mut().zip(close.iter_mut()) {
            let opened = before.wrapping_add(unzigzag(*open));
            before = opened.wrapping_add(unzigzag(*close));
            (*open, *close) = (opened as u64, before as u64);
        }
        let least_above = reader.signed()?;
        take_packed(reader, above)?;
        let least_below = reader.signed()?;
        take_packed(reader, below)?;
        for ((above, open), close) in above.iter_mut().zip(open.iter()).zip(close.iter()) {
            let top = (*open as i64).max(*close as i64);
            *above = (top.wrapping_add(least_above) as u64).wrapping_add(*above);
        }
        for ((below, open), close) in below.iter_mut().zip(open.iter()).zip(close.iter()) {
            let bottom = (*open as i64).min(*close as i64);
            *below = (bottom.wrapping_sub(least_below) as u64).wrapping_sub(*below);
        }
        for (column, values) in columns.into_iter().zip([open, above, below, close]) {
            unscale(values.iter().map(|value| *value as i64), tick, power, column);
        }
        Ok(())
    }

    fn take_volume(&mut self, reader: &mut Reader<'_>, volume: &mut Vec<f64>) -> Result<(), Malformed> {
        let mode = reader.byte()?;
        if mode == RAW {
            return reader.raw_into(self.packed[0].len(), volume);
        }
        let (power, tick) = (power(mode)?, take_tick(reader)?);
        let least = reader.signed()?;
        let distances = &mut self.packed[0];
        take_packed(reader, distances)?;
        unscale(distances.iter().map(|distance| least.wrapping_add(*distance as i64)), tick, power, volume);
        Ok(())
    }

    fn take_open_interest(&mut self, reader: &mut Reader<'_>, column: &mut Vec<f64>) -> Result<(), Malformed> {
        let rows = self.packed[0].len();
        let bits = match reader.byte()? {
            ALL_ABSENT => {
                column.resize(column.len() + rows, f64::NAN);
                return Ok(());
            }
            ALL_PRESENT => None,
            SOME_PRESENT => Some(reader.take(rows.div_ceil(8))?),
            _ => return Err("mode of open interest is unknown"),
        };
        let is_present = |row: usize| bits.is_none_or(|bits| bits[row / 8] >> (row % 8) & 1 == 1);
        let count = (0..rows).filter(|row| is_present(*row)).count();
        let mode = reader.byte()?;
        let mut present = Vec::with_capacity(count);
        if mode == RAW {
            reader.raw_into(count, &mut present)?;
        } else {
            let (power, tick) = (power(mode)?, take_tick(reader)?);
            let first = reader.signed()?;
            let steps = &mut self.packed[0][..count.saturating_sub(1)];
            take_packed(reader, steps)?;
            let mut value = first;
            let sums = steps.iter().map(|step| {
                value = value.wrapping_add(unzigzag(*step));
                value
            });
            unscale(std::iter::once(first).chain(sums).take(count), tick, power, &mut present);
        }
        let mut present = present.into_iter();
        column.extend((0..rows).map(|row| match is_present(row) {
            true => present.next().unwrap_or(f64::NAN),
            false => f64::NAN,
        }));
        Ok(())
    }
}

fn take_tick(reader: &mut Reader<'_>) -> Result<f64, Malformed> {
    match reader.unsigned()? {
        0 => Err("tick is zero"),
        tick => Ok(tick as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::decode;

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
                bytes[0] = [VERSION_1, VERSION][length % 2];
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

    #[test]
    fn blocks_are_appended_and_a_bad_one_leaves_nothing() {
        let good = frame(300, |column, row| (column + row) as f64 / 4.0, |row| row as f64);
        let bytes = encode(&good);
        let (mut decoder, mut columns) = (Decoder::default(), Columns::default());
        decoder.decode(&bytes, &mut columns).unwrap();
        for length in 0..bytes.len() {
            assert!(decoder.decode(&bytes[..length], &mut columns).is_err());
            assert_eq!((columns.open_time.len(), columns.open_interest.len()), (300, 300));
            assert!(columns.ohlcv.iter().all(|column| column.len() == 300));
        }
        decoder.decode(&bytes, &mut columns).unwrap();
        assert_eq!(columns.ohlcv[3][300..], *good.close());
        // The same rows twice are no frame.
        assert!(columns.into_frame().is_err());
    }
}

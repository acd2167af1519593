//! The store's blocks: any bytes decode or are refused, any candles come back to the bit, and a damaged block does no harm.
#![no_main]

#[allow(dead_code, unused_imports, unreachable_pub)]
#[path = "../../../libs/store/src/block/mod.rs"]
mod block;
#[allow(dead_code)]
#[path = "../../../libs/store/src/error.rs"]
mod error;

use error::{Error, Result};
use market::Frame;

/// A frame out of bytes: three to choose its shape, then what there is of each column.
fn frame(data: &[u8]) -> Option<Frame> {
    let [shape, scale, interest, bytes @ ..] = data else { return None };
    let values: Vec<u32> =
        bytes.chunks_exact(4).map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect();
    let rows = (values.len() / 6).min(2000);
    let column = |index: usize| values[index * rows..(index + 1) * rows].iter();
    let mut at = 1_500_000_000_000;
    let times = column(0).map(|step| {
        at += if shape & 1 == 0 { 60_000 } else { 1 + i64::from(*step) };
        at
    });
    let times = times.collect();
    let price = |value: &u32| match scale % 4 {
        0 => f64::from(*value % 100_000) / 20.0,
        1 => f64::from(f32::from_bits(*value)),
        2 => f64::from_bits(u64::from(*value) << 32 | u64::from(*value)),
        _ => f64::from(*value as i32) / 1e4,
    };
    let price = |value: &u32| Some(price(value)).filter(|price| price.is_finite()).unwrap_or(-0.0);
    let prices = |index| column(index).map(price).collect();
    let open_interest = column(5).map(|value| match interest % 3 {
        0 => f64::NAN,
        1 if value % 3 == 0 => f64::NAN,
        _ => f64::from(*value),
    });
    let open_interest = open_interest.collect();
    Frame::from_columns(times, [prices(1), prices(2), prices(3), prices(4), prices(0)], open_interest).ok()
}

fn bits(frame: &Frame) -> Vec<u64> {
    let columns = [frame.open(), frame.high(), frame.low(), frame.close(), frame.volume()];
    let mut bits: Vec<u64> = columns.iter().flat_map(|column| column.iter().map(|value| value.to_bits())).collect();
    // Absent is absent, whatever the bits of its NaN.
    bits.extend(frame.open_interest().iter().map(|value| if value.is_nan() { u64::MAX } else { value.to_bits() }));
    bits.extend(frame.open_time().iter().map(|at| *at as u64));
    bits
}

fn encoded_and_back(frame: &Frame) -> Option<Vec<u8>> {
    let payload = block::encode_block(frame).ok()?;
    let back = block::decode_block(&payload).expect("what was encoded decodes");
    assert_eq!(bits(frame), bits(&back));
    Some(payload)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    match mode % 3 {
        0 => {
            if let Ok(frame) = block::decode_block(data) {
                encoded_and_back(&frame);
            }
        }
        1 => {
            frame(data).and_then(|frame| encoded_and_back(&frame));
        }
        _ => {
            let Some((damage, data)) = data.split_at_checked(6) else { return };
            let Some(mut payload) = frame(data).and_then(|frame| encoded_and_back(&frame)) else { return };
            for pair in damage.chunks_exact(3) {
                let at = usize::from(u16::from_le_bytes([pair[0], pair[1]])) % payload.len();
                payload[at] ^= pair[2];
            }
            if let Ok(frame) = block::decode_block(&payload) {
                encoded_and_back(&frame);
            }
        }
    }
});

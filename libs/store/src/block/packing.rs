//! Unsigned integers in groups, each packed to its own width, with the few that do not fit set apart.
//!
//! A group of up to [`GROUP`] values is: width byte `w`, exception count byte `k`, the low `w` bits of every value one after the
//! other (least significant bit first), and where `k` is not 0: a width byte `x`, `k` index bytes, and the next `x` bits of those
//! values, packed alike. A column is its groups, one after the other, without gaps.

use super::column::{Malformed, Reader};

/// Values of a group: enough that two bytes in front of it are nothing, few enough that its width suits a time of day.
pub(super) const GROUP: usize = 128;
/// Widest packed value: one eight-byte read at any bit of a byte holds it. Twice the largest scaled difference is narrower.
pub(super) const MAX_WIDTH: u32 = 57;
/// Bytes of the longest packed run, and those an eight-byte read may reach beyond it.
const RUN_BYTES: usize = GROUP * MAX_WIDTH as usize / 8 + 8;

/// Appends a column. Every value has at most [`MAX_WIDTH`] bits.
pub(super) fn push_packed(out: &mut Vec<u8>, values: &[u64]) {
    values.chunks(GROUP).for_each(|group| push_group(out, group));
}

fn push_group(out: &mut Vec<u8>, group: &[u64]) {
    let (width, widest, exceptions) = choose_width(group);
    out.push(width as u8);
    out.push(exceptions as u8);
    push_bits(out, group.iter().copied(), width);
    if exceptions == 0 {
        return;
    }
    out.push((widest - width) as u8);
    let is_exception = |value: &u64| value >> width != 0;
    out.extend(group.iter().enumerate().filter(|(_, value)| is_exception(value)).map(|(index, _)| index as u8));
    push_bits(out, group.iter().filter(|value| is_exception(value)).map(|value| value >> width), widest - width);
}

/// The cheapest width, the width of the widest value, and how many are wider than the first.
fn choose_width(group: &[u64]) -> (u32, u32, usize) {
    let mut of_width = [0_usize; 65];
    for value in group {
        of_width[(64 - value.leading_zeros()) as usize] += 1;
    }
    let widest = (0..=64).rev().find(|width| of_width[*width as usize] > 0).unwrap_or(0);
    let mut best = (widest, 0);
    let mut best_bits = widest as usize * group.len();
    let mut exceptions = 0;
    for width in (0..widest).rev() {
        exceptions += of_width[width as usize + 1];
        let bits = width as usize * group.len() + 8 + exceptions * (8 + (widest - width) as usize);
        if bits < best_bits {
            (best, best_bits) = ((width, exceptions), bits);
        }
    }
    (best.0, widest, best.1)
}

/// Appends the low `width` bits of each value, and zero bits to the end of the last byte.
fn push_bits(out: &mut Vec<u8>, values: impl Iterator<Item = u64>, width: u32) {
    if width == 0 {
        return;
    }
    let mask = u64::MAX >> (64 - width);
    let (mut waiting, mut count) = (0_u64, 0_u32);
    for value in values {
        let value = value & mask;
        waiting |= value << count;
        count += width;
        if count >= 64 {
            out.extend_from_slice(&waiting.to_le_bytes());
            count -= 64;
            // What did not fit; nothing where the word ended with the value.
            waiting = value.checked_shr(width - count).unwrap_or(0);
        }
    }
    out.extend_from_slice(&waiting.to_le_bytes()[..count.div_ceil(8) as usize]);
}

/// Takes a column of `values.len()` values.
pub(super) fn take_packed(reader: &mut Reader<'_>, values: &mut [u64]) -> Result<(), Malformed> {
    values.chunks_mut(GROUP).try_for_each(|group| take_group(reader, group))
}

fn take_group(reader: &mut Reader<'_>, group: &mut [u64]) -> Result<(), Malformed> {
    let (width, exceptions) = (u32::from(reader.byte()?), usize::from(reader.byte()?));
    take_bits(reader, group, width)?;
    if exceptions == 0 {
        return Ok(());
    }
    let extra = u32::from(reader.byte()?);
    if width + extra > MAX_WIDTH || exceptions > group.len() {
        return Err("exceptions of a packed group are out of range");
    }
    let indexes = reader.take(exceptions)?;
    let mut high = [0; GROUP];
    take_bits(reader, &mut high[..exceptions], extra)?;
    for (index, high) in indexes.iter().zip(high) {
        *group.get_mut(usize::from(*index)).ok_or("index of an exception is out of range")? |= high << width;
    }
    Ok(())
}

fn take_bits(reader: &mut Reader<'_>, values: &mut [u64], width: u32) -> Result<(), Malformed> {
    if width > MAX_WIDTH {
        return Err("width of a packed group is out of range");
    }
    if width == 0 {
        values.fill(0);
        return Ok(());
    }
    let length = (values.len() * width as usize).div_ceil(8);
    let mask = u64::MAX >> (64 - width);
    // Mostly the bytes go on for eight more; at the end of the payload they are copied to where they do.
    let mut tail = [0; RUN_BYTES];
    let run = match reader.take_with_margin(length, 8)? {
        (run, true) => run,
        (run, false) => {
            tail[..length].copy_from_slice(run);
            &tail[..length + 8]
        }
    };
    unpack(run, width, mask, values);
    Ok(())
}

/// `run` goes on for eight bytes after the last value.
fn unpack(run: &[u8], width: u32, mask: u64, values: &mut [u64]) {
    let mut bit = 0;
    for value in values {
        let word = run.get(bit / 8..).and_then(|bytes| bytes.first_chunk::<8>());
        *value = word.map_or(0, |word| u64::from_le_bytes(*word) >> (bit % 8) & mask);
        bit += width as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(values: &[u64]) -> usize {
        let mut bytes = Vec::new();
        push_packed(&mut bytes, values);
        let mut reader = Reader::new(&bytes);
        let mut back = vec![1; values.len()];
        take_packed(&mut reader, &mut back).unwrap();
        assert_eq!((back.as_slice(), reader.is_empty()), (values, true));
        bytes.len()
    }

    #[test]
    fn values_of_every_width_come_back_from_groups_of_every_length() {
        for width in 0..=MAX_WIDTH {
            let widest = u64::MAX.checked_shr(64 - width).unwrap_or(0);
            for length in [1, 7, 8, 9, GROUP - 1, GROUP, GROUP + 1, 375] {
                let spread = |row: u64| (row.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 3) & widest;
                round_trip(&(0..length as u64).map(spread).collect::<Vec<u64>>());
                round_trip(&vec![widest; length]);
            }
        }
    }

    #[test]
    fn a_few_wide_values_do_not_widen_the_others() {
        let mut values = vec![5; GROUP];
        assert_eq!(round_trip(&values), 2 + GROUP * 3 / 8);
        (values[0], values[77], values[127]) = (1 << 40, (1 << 41) - 1, 1 << 20);
        assert_eq!(round_trip(&values), 2 + GROUP * 3 / 8 + 1 + 3 + (3 * (41 - 3_usize)).div_ceil(8));
    }

    #[test]
    fn nothing_takes_no_bits() {
        assert_eq!(round_trip(&[0; 300]), 6);
    }
}

//! How a value lies in Redis: version, checksum, and the value as it is or compressed.
//!
//! Columns of floating-point numbers are mostly noise: zstd leaves four fifths of them. With the bytes of equal significance brought together
//! (as Parquet's BYTE_STREAM_SPLIT and Blosc's shuffle do) the high ones shrink to almost nothing, and 70 % remain.

use bytes::Bytes;

/// Values below this stay as they are: they fit into a few packets, and reading them back at once is worth more than the bytes.
const COMPRESS_FROM: usize = 16 * 1024;
/// Compressed only where that saves at least one byte in so many.
const WORTHWHILE: usize = 8;
/// The fastest that still packs: higher levels take several times as long for a few hundredths.
const LEVEL: i32 = 1;
/// Width of the numbers that values are made of.
const WIDTH: usize = 8;

const AS_IT_IS: u8 = 1;
const SHUFFLED_ZSTD: u8 = 2;
/// Version, checksum of what follows and of the version, size of the value.
const HEADER_BYTES: usize = 1 + 4 + 4;

/// The value as it is stored, [`HEADER_BYTES`] longer.
pub(super) fn seal(value: &[u8]) -> Vec<u8> {
    framed(AS_IT_IS, value.len(), value)
}

/// The value as it is stored, packed where that is worthwhile.
pub(super) fn seal_packed(value: &[u8]) -> Vec<u8> {
    if value.len() >= COMPRESS_FROM
        && let Ok(packed) = zstd::bulk::compress(&shuffle(value), LEVEL)
        && packed.len() + value.len() / WORTHWHILE <= value.len()
    {
        return framed(SHUFFLED_ZSTD, value.len(), &packed);
    }
    seal(value)
}

/// The value, or `None` for bytes that are damaged, of another version, or said to be longer than `limit`.
pub(super) fn unseal(mut stored: Bytes, limit: usize) -> Option<Bytes> {
    if !is_sound(&stored) {
        return None;
    }
    let [version, _, _, _, _, s0, s1, s2, s3] = *stored.first_chunk::<HEADER_BYTES>()?;
    let size = u32::from_le_bytes([s0, s1, s2, s3]) as usize;
    let body = stored.split_off(HEADER_BYTES);
    match version {
        AS_IT_IS if body.len() == size => Some(body),
        SHUFFLED_ZSTD if size <= limit => {
            let shuffled = zstd::bulk::decompress(&body, size).ok()?;
            (shuffled.len() == size).then(|| Bytes::from(unshuffle(&shuffled)))
        }
        _ => None,
    }
}

/// Whether the bytes must be decompressed.
pub(super) fn is_packed(stored: &[u8]) -> bool {
    stored.first() != Some(&AS_IT_IS)
}

/// Whether the bytes are whole and of a version that is known here; looks at their checksum alone.
pub(super) fn is_sound(stored: &[u8]) -> bool {
    let Some([version, check @ .., _, _, _, _]) = stored.first_chunk::<HEADER_BYTES>().copied() else { return false };
    matches!(version, AS_IT_IS | SHUFFLED_ZSTD) && u32::from_le_bytes(check) == checksum(version, &stored[5..])
}

/// The value of an entry as releases before this layout wrote it: its checksum, then the value.
pub(super) fn unseal_checksum_and_value(stored: &[u8]) -> Option<&[u8]> {
    let (check, value) = stored.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*check) == crc32fast::hash(value)).then_some(value)
}

fn framed(version: u8, size: usize, body: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(HEADER_BYTES + body.len());
    stored.push(version);
    stored.extend_from_slice(&[0; 4]);
    // Values are bounded far below 4 GiB by what may be shared.
    stored.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
    stored.extend_from_slice(body);
    let check = checksum(version, &stored[5..]);
    stored[1..5].copy_from_slice(&check.to_le_bytes());
    stored
}

fn checksum(version: u8, rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(u32::from(version));
    hasher.update(rest);
    hasher.finalize()
}

/// First the first byte of every eight, then the second, ...; what is over stays at the end.
fn shuffle(value: &[u8]) -> Vec<u8> {
    let (words, rest) = value.as_chunks::<WIDTH>();
    let mut out = vec![0; value.len()];
    for (plane, out) in out.chunks_exact_mut(words.len().max(1)).take(WIDTH).enumerate() {
        out.iter_mut().zip(words).for_each(|(byte, word)| *byte = word[plane]);
    }
    out[words.len() * WIDTH..].copy_from_slice(rest);
    out
}

fn unshuffle(shuffled: &[u8]) -> Vec<u8> {
    let count = shuffled.len() / WIDTH;
    let mut out = vec![0; shuffled.len()];
    let (words, rest) = out.as_chunks_mut::<WIDTH>();
    for (plane, bytes) in shuffled.chunks_exact(count.max(1)).take(WIDTH).enumerate() {
        words.iter_mut().zip(bytes).for_each(|(word, byte)| word[plane] = *byte);
    }
    rest.copy_from_slice(&shuffled[count * WIDTH..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 20;

    fn prices(count: usize) -> Vec<u8> {
        (0..count).flat_map(|row| (100.0 + (row as f64 * 0.01).sin()).to_le_bytes()).collect()
    }

    #[test]
    fn values_of_every_length_return_and_long_ones_are_smaller() {
        for length in [0, 1, 7, 8, 9, 63, COMPRESS_FROM - 1, COMPRESS_FROM, COMPRESS_FROM + 5] {
            let value = &prices(COMPRESS_FROM)[..length];
            let sealed = seal_packed(value);
            assert!(is_sound(&sealed));
            assert_eq!(sealed.len() < value.len(), length >= COMPRESS_FROM, "{length}");
            assert_eq!(unseal(sealed.into(), LIMIT).unwrap(), value, "{length}");
        }
        // Nothing to be saved: stored as it is.
        let mut state = 1_u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        });
        let noise: Vec<u8> = noise.take(2 * COMPRESS_FROM).collect();
        assert_eq!(seal_packed(&noise).len(), noise.len() + HEADER_BYTES);
    }

    #[test]
    fn any_changed_or_missing_byte_is_noticed() {
        for value in [b"payload".to_vec(), prices(COMPRESS_FROM / WIDTH)] {
            let sealed = seal_packed(&value);
            for at in (0..sealed.len()).step_by(sealed.len() / 100 + 1).chain(0..HEADER_BYTES) {
                let mut damaged = sealed.clone();
                damaged[at] ^= 1;
                assert!(!is_sound(&damaged), "{at}");
                assert_eq!(unseal(damaged.into(), LIMIT), None, "{at}");
                assert_eq!(unseal(sealed[..at].to_vec().into(), LIMIT), None, "{at}");
            }
        }
    }

    #[test]
    fn a_value_said_to_be_longer_than_the_limit_is_not_unpacked() {
        let value = prices(COMPRESS_FROM);
        let sealed = Bytes::from(seal_packed(&value));
        assert!(unseal(sealed.clone(), value.len()).is_some());
        assert_eq!(unseal(sealed, value.len() - 1), None);
        // An honest checksum over a size that is not.
        let lying = framed(SHUFFLED_ZSTD, value.len() - 8, &zstd::bulk::compress(&shuffle(&value), LEVEL).unwrap());
        assert_eq!(unseal(lying.into(), LIMIT), None);
    }
}

//! The bucket of a targeting key: `murmur3_x86_32(CBOR [flag key, targeting key])`, scaled to 100 000 buckets without bias.
//!
//! This is flagd's rule for `fractional` without a bucketing expression since its CBOR revision, so flagd agrees on every key.
//! Source: flagd ADR "fractional-non-string-rand-units" and ADR "high-precision-fractional-bucketing".

use crate::Weight;

/// The bucket of a targeting key under a flag, 0..100 000.
///
/// Depends on the two keys only, so a key's engine changes only when the share moves across its bucket. Cost: no allocation.
pub fn bucket(flag_key: &str, targeting_key: &str) -> u32 {
    scale(hash_pair(flag_key, targeting_key), Weight::TOTAL)
}

fn scale(hash: u32, total: u32) -> u32 {
    // Below `total`, which fits: a 32-bit hash times total, divided by 2^32.
    ((u64::from(hash) * u64::from(total)) >> 32) as u32
}

fn hash_pair(first: &str, second: &str) -> u32 {
    let mut hasher = Murmur3::default();
    hasher.write(&[0x82]); // array of two
    hasher.write_text(first);
    hasher.write_text(second);
    hasher.finish()
}

/// MurmurHash3 x86 32-bit with seed 0, fed piecewise. Source: A. Appleby, SMHasher, MurmurHash3.cpp.
#[derive(Default)]
struct Murmur3 {
    hash: u32,
    /// The last 0 to 3 bytes, little-endian, not yet mixed in.
    block: u32,
    length: u32,
}

impl Murmur3 {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.block |= u32::from(byte) << (8 * (self.length % 4));
            self.length = self.length.wrapping_add(1);
            if self.length.is_multiple_of(4) {
                self.hash = (self.hash ^ mix(self.block)).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
                self.block = 0;
            }
        }
    }

    /// Writes a CBOR text string in its shortest form (RFC 8949, sections 3 and 4.2.1).
    fn write_text(&mut self, text: &str) {
        const TEXT: u8 = 3 << 5;
        let length = text.len() as u64;
        let be = length.to_be_bytes();
        match length {
            0..24 => self.write(&[TEXT | be[7]]),
            24..0x100 => self.write(&[TEXT | 24, be[7]]),
            0x100..0x1_0000 => self.write(&[TEXT | 25, be[6], be[7]]),
            0x1_0000..0x1_0000_0000 => self.write(&[TEXT | 26, be[4], be[5], be[6], be[7]]),
            _ => {
                self.write(&[TEXT | 27]);
                self.write(&be);
            }
        }
        self.write(text.as_bytes());
    }

    fn finish(self) -> u32 {
        // An empty tail mixes to 0 and changes nothing.
        let mut hash = self.hash ^ mix(self.block) ^ self.length;
        hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
        hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
        hash ^ (hash >> 16)
    }
}

fn mix(block: u32) -> u32 {
    block.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn murmur3(bytes: &[u8]) -> u32 {
        let mut hasher = Murmur3::default();
        hasher.write(bytes);
        hasher.finish()
    }

    #[test]
    fn murmur3_matches_published_vectors() {
        // Wikipedia, "MurmurHash"; and the boundary keys of flagd-testbed's fractional.feature, whose hashes sit at the ends and the middle.
        assert_eq!(murmur3(b""), 0);
        assert_eq!(murmur3(b"test"), 0xba6b_d213);
        assert_eq!(murmur3(b"Hello, world!"), 0xc036_3e43);
        assert_eq!(murmur3(b"The quick brown fox jumps over the lazy dog"), 0x2e4f_f723);
        let edges =
            [("ejOoVL", 0), ("bY9fO-", 1), ("SI7p-", 0x7fff_ffff), ("6LvT0", 0x8000_0000), ("ceQdGm", u32::MAX)];
        for (key, hash) in edges {
            assert_eq!(murmur3(key.as_bytes()), hash, "{key}");
        }
        assert_eq!((scale(0, Weight::TOTAL), scale(u32::MAX, Weight::TOTAL)), (0, 99_999));
    }

    #[test]
    fn pieces_hash_like_the_whole() {
        let bytes = b"The quick brown fox jumps over the lazy dog";
        for cut in 0..bytes.len() {
            let mut hasher = Murmur3::default();
            hasher.write(&bytes[..cut]);
            hasher.write(&bytes[cut..]);
            assert_eq!(hasher.finish(), 0x2e4f_f723, "cut at {cut}");
        }
    }

    #[test]
    fn text_heads_are_shortest_form() {
        // Heads by RFC 8949, section 3: lengths at both sides of each width.
        let heads: [(usize, &[u8]); 6] = [
            (0, &[0x60]),
            (23, &[0x77]),
            (24, &[0x78, 24]),
            (255, &[0x78, 255]),
            (256, &[0x79, 1, 0]),
            (65_536, &[0x7a, 0, 1, 0, 0]),
        ];
        for (length, head) in heads {
            let text = "x".repeat(length);
            let encoded = [&[0x82], head, text.as_bytes(), &[0x62, 0xc3, 0xbc]].concat(); // "ü" is RFC 8949 appendix A's 0x62c3bc
            assert_eq!(hash_pair(&text, "ü"), murmur3(&encoded), "length {length}");
        }
    }

    #[test]
    fn flagd_agrees_on_the_quarter_of_a_text() {
        // flagd-testbed, fractional.feature, tag @fractional-v3: a `cat` expression is hashed as one text; clubs, diamonds, hearts, spades at 25.
        let expected = [
            ("fractional-flagjack", 1),
            ("fractional-flagqueen", 1),
            ("fractional-flagten", 0),
            ("fractional-flagnine", 0),
            ("fractional-flag3", 3),
            ("shared-seedseven", 2),
            ("shared-seedeight", 2),
            ("shared-seednine", 1),
            ("shared-seedtwo", 1),
        ];
        for (text, quarter) in expected {
            let mut hasher = Murmur3::default();
            hasher.write_text(text);
            assert_eq!(scale(hasher.finish(), 4), quarter, "{text}");
        }
    }

    #[test]
    fn flagd_agrees_on_the_side_of_an_even_split() {
        // flagd-testbed, fractional.feature, tag @fractional-v3 (jon, jane), and the C++ provider's tests (user-1 to 3): heads 1, tails 1.
        let expected = [("jon@company.com", 1), ("jane@company.com", 1), ("user-1", 0), ("user-2", 1), ("user-3", 0)];
        for (key, side) in expected {
            assert_eq!(scale(hash_pair("fractional-flag-shorthand", key), 2), side, "{key}");
        }
    }
}

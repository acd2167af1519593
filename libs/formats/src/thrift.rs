//! A look over the Thrift of a Parquet file before the parquet crate reads it.
//!
//! That crate passes over fields it does not know by the counts they declare. Some elements take no bytes there: booleans, and at the
//! end of a file numbers of a fixed width. So few bytes of damage can claim two billion elements and keep it busy for minutes. Here
//! every element takes its bytes, and booleans in a collection are refused, which no structure of Parquet has in a footer or in the
//! header of a page. Fields that the crate reads by their number must have the type that the format gives them, so that both see the
//! same fields in the same bytes. Cost: linear in the bytes.
//!
//! Source: parquet.thrift of apache/parquet-format 2.11, and the compact protocol of apache/thrift, doc/specs.

/// Structures within structures. Parquet's own go eight deep.
const MAX_DEPTH: u32 = 64;
/// Bytes of a number of 64 bits, seven bits in each.
const MAX_VARINT_BYTES: u32 = 10;
/// Largest page: writers make them of a megabyte or so, and a reader makes room for what the header claims before it has seen a byte.
const MAX_PAGE_BYTES: u64 = 256 * 1024 * 1024;

/// Fields of a structure by number: those that the crate reads without a look at their type.
type Fields = &'static [(i16, Shape)];

#[derive(Debug, Clone, Copy)]
enum Shape {
    Int,
    /// A number of bytes, compressed or not.
    PageBytes,
    Byte,
    Double,
    Bytes,
    Struct(Fields),
    List(Fields),
}

use Shape::{Byte, Bytes, Double, Int, List, PageBytes, Struct};

const EMPTY: Fields = &[];
const KEY_VALUE: Fields = &[(1, Bytes), (2, Bytes)];
const TIME_UNIT: Fields = &[(1, Struct(EMPTY)), (2, Struct(EMPTY)), (3, Struct(EMPTY))];
const TIME: Fields = &[(2, Struct(TIME_UNIT))];
const LOGICAL_TYPE: Fields = &[
    (1, Struct(EMPTY)),
    (2, Struct(EMPTY)),
    (3, Struct(EMPTY)),
    (4, Struct(EMPTY)),
    (5, Struct(&[(1, Int), (2, Int)])),
    (6, Struct(EMPTY)),
    (7, Struct(TIME)),
    (8, Struct(TIME)),
    (10, Struct(&[(1, Byte)])),
    (11, Struct(EMPTY)),
    (12, Struct(EMPTY)),
    (13, Struct(EMPTY)),
    (14, Struct(EMPTY)),
    (15, Struct(EMPTY)),
    (16, Struct(&[(1, Byte)])),
    (17, Struct(&[(1, Bytes)])),
    (18, Struct(&[(1, Bytes), (2, Int)])),
    (19, Struct(EMPTY)),
];
const SCHEMA_ELEMENT: Fields = &[
    (1, Int),
    (2, Int),
    (3, Int),
    (4, Bytes),
    (5, Int),
    (6, Int),
    (7, Int),
    (8, Int),
    (9, Int),
    (10, Struct(LOGICAL_TYPE)),
];
const STATISTICS: Fields = &[(1, Bytes), (2, Bytes), (3, Int), (4, Int), (5, Bytes), (6, Bytes), (9, Int)];
const ENCODING_STATS: Fields = &[(1, Int), (2, Int), (3, Int)];
const SIZE_STATISTICS: Fields = &[(1, Int), (2, List(EMPTY)), (3, List(EMPTY))];
const BOUNDING_BOX: Fields =
    &[(1, Double), (2, Double), (3, Double), (4, Double), (5, Double), (6, Double), (7, Double), (8, Double)];
const GEOSPATIAL_STATISTICS: Fields = &[(1, Struct(BOUNDING_BOX)), (2, List(EMPTY))];
const COLUMN_META_DATA: Fields = &[
    (1, Int),
    (2, List(EMPTY)),
    (4, Int),
    (5, Int),
    (6, Int),
    (7, Int),
    (9, Int),
    (10, Int),
    (11, Int),
    (12, Struct(STATISTICS)),
    (13, List(ENCODING_STATS)),
    (14, Int),
    (15, Int),
    (16, Struct(SIZE_STATISTICS)),
    (17, Struct(GEOSPATIAL_STATISTICS)),
];
const COLUMN_CHUNK: Fields =
    &[(1, Bytes), (2, Int), (3, Struct(COLUMN_META_DATA)), (4, Int), (5, Int), (6, Int), (7, Int)];
const SORTING_COLUMN: Fields = &[(1, Int)];
const ROW_GROUP: Fields = &[(1, List(COLUMN_CHUNK)), (2, Int), (3, Int), (4, List(SORTING_COLUMN)), (5, Int), (7, Int)];
const COLUMN_ORDER: Fields = &[(1, Struct(EMPTY)), (2, Struct(EMPTY)), (3, Struct(EMPTY))];
const FILE_META_DATA: Fields = &[
    (1, Int),
    (2, List(SCHEMA_ELEMENT)),
    (3, Int),
    (4, List(ROW_GROUP)),
    (5, List(KEY_VALUE)),
    (6, Bytes),
    (7, List(COLUMN_ORDER)),
];
const PAGE_HEADER: Fields = &[
    (1, Int),
    (2, PageBytes),
    (3, PageBytes),
    (4, Int),
    (5, Struct(&[(1, Int), (2, Int), (3, Int), (4, Int)])),
    (6, Struct(EMPTY)),
    (7, Struct(&[(1, Int), (2, Int)])),
    (8, Struct(&[(1, Int), (2, Int), (3, Int), (4, Int), (5, Int), (6, Int)])),
];

/// Why bytes are no structure of Parquet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the metadata ends within a field")]
    Ended,
    #[error("{0}")]
    Refused(String),
}

type Walked = Result<(), Malformed>;

/// Checks what a footer says of its file.
pub(crate) fn check_footer(bytes: &[u8]) -> Walked {
    Walk { bytes }.structure(FILE_META_DATA, MAX_DEPTH)
}

/// Checks the header of a page; what follows it is not looked at.
pub(crate) fn check_page_header(bytes: &[u8]) -> Walked {
    Walk { bytes }.structure(PAGE_HEADER, MAX_DEPTH)
}

/// The types that the protocol writes with a field or with the elements of a collection.
mod wire {
    pub(super) const TRUE: u8 = 1;
    pub(super) const FALSE: u8 = 2;
    pub(super) const BYTE: u8 = 3;
    pub(super) const I16: u8 = 4;
    pub(super) const I64: u8 = 6;
    pub(super) const DOUBLE: u8 = 7;
    pub(super) const BINARY: u8 = 8;
    pub(super) const LIST: u8 = 9;
    pub(super) const SET: u8 = 10;
    pub(super) const MAP: u8 = 11;
    pub(super) const STRUCT: u8 = 12;
    pub(super) const UUID: u8 = 13;
}

impl Shape {
    /// The fields of what is written as `kind`; nothing if this is of another kind.
    fn fields(self, kind: u8) -> Option<Fields> {
        match (self, kind) {
            (Int | PageBytes, wire::I16..=wire::I64)
            | (Byte, wire::BYTE)
            | (Double, wire::DOUBLE)
            | (Bytes, wire::BINARY) => Some(EMPTY),
            (Struct(fields), wire::STRUCT) | (List(fields), wire::LIST | wire::SET) => Some(fields),
            _ => None,
        }
    }
}

struct Walk<'a> {
    bytes: &'a [u8],
}

impl Walk<'_> {
    fn structure(&mut self, fields: Fields, depth: u32) -> Walked {
        let mut last: i16 = 0;
        loop {
            let header = self.byte()?;
            let (delta, kind) = (header >> 4, header & 0xf);
            if kind == 0 {
                return Ok(());
            }
            let id = match delta {
                0 => signed(self.varint()?) as i16,
                delta => last.checked_add(i16::from(delta)).ok_or_else(|| refused("a field has no number"))?,
            };
            let known = fields.iter().find(|(known, _)| *known == id);
            let within = match known {
                Some((_, shape)) => shape.fields(kind).ok_or_else(|| {
                    Malformed::Refused(format!("field {id} of the metadata is not of the type it has in Parquet"))
                })?,
                None => EMPTY,
            };
            match known {
                Some((_, PageBytes)) => self.page_bytes()?,
                _ => self.value(kind, within, depth)?,
            }
            last = id;
        }
    }

    fn value(&mut self, kind: u8, within: Fields, depth: u32) -> Walked {
        let depth = depth.checked_sub(1).ok_or_else(|| refused("the metadata is nested too deep"))?;
        match kind {
            // The value is in the field's type.
            wire::TRUE | wire::FALSE => Ok(()),
            wire::BYTE => self.byte().map(drop),
            wire::I16..=wire::I64 => self.varint().map(drop),
            wire::DOUBLE => self.pass(8),
            wire::BINARY => {
                let length = self.varint()?;
                self.pass(length)
            }
            wire::LIST | wire::SET => {
                let header = self.byte()?;
                let count = match header >> 4 {
                    0xf => self.varint()?,
                    short => u64::from(short),
                };
                self.elements(count, &[header & 0xf], within, depth)
            }
            wire::MAP => match self.varint()? {
                0 => Ok(()),
                count => {
                    let kinds = self.byte()?;
                    self.elements(count, &[kinds >> 4, kinds & 0xf], EMPTY, depth)
                }
            },
            wire::STRUCT => self.structure(within, depth),
            wire::UUID => self.pass(16),
            _ => Err(refused("a field of the metadata has no type")),
        }
    }

    fn page_bytes(&mut self) -> Walked {
        let claimed = signed(self.varint()?);
        match u64::try_from(claimed).is_ok_and(|claimed| claimed <= MAX_PAGE_BYTES) {
            true => Ok(()),
            false => Err(Malformed::Refused(format!("a page claims {claimed} bytes, the limit is {MAX_PAGE_BYTES}"))),
        }
    }

    /// Elements of a list, or keys and values of a map. Each takes a byte at least, so that a count too large ends with the bytes.
    fn elements(&mut self, count: u64, kinds: &[u8], within: Fields, depth: u32) -> Walked {
        if count > 0 && kinds.iter().any(|kind| matches!(*kind, wire::TRUE | wire::FALSE)) {
            return Err(refused("the metadata has a collection of booleans, which Parquet has not"));
        }
        for _ in 0..count {
            for kind in kinds {
                self.value(*kind, within, depth)?;
            }
        }
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.bytes.split_first().ok_or(Malformed::Ended)?;
        self.bytes = rest;
        Ok(*first)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for index in 0..MAX_VARINT_BYTES {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(refused("a number of the metadata has more than 64 bits"))
    }

    fn pass(&mut self, count: u64) -> Walked {
        let count = usize::try_from(count).map_err(|_| Malformed::Ended)?;
        self.bytes = self.bytes.get(count..).ok_or(Malformed::Ended)?;
        Ok(())
    }
}

/// The number that a zigzag code stands for.
fn signed(code: u64) -> i64 {
    (code >> 1) as i64 ^ -((code & 1) as i64)
}

fn refused(reason: &str) -> Malformed {
    Malformed::Refused(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Field 14 of a footer, which nobody knows: a collection that claims two billion elements.
    #[test]
    fn counts_without_bytes_for_them_are_refused() {
        let billions = [0xff, 0xff, 0xff, 0xff, 0x07];
        for (start, ended) in [
            (&[0xe9, 0xf1][..], false),
            (&[0xe9, 0xf2], false),
            (&[0xea, 0xf2], false),
            (&[0xe9, 0x19, 0xf2], false),
            (&[0xe9, 0xf7], true),
            (&[0xe9, 0xfd], true),
            (&[0xe9, 0xfc], true),
            (&[0xe8], true),
        ] {
            let bytes = [start, &billions, &[0; 40]].concat();
            let outcome = check_footer(&bytes);
            assert_eq!(outcome == Err(Malformed::Ended), ended, "{start:?} {outcome:?}");
            assert_eq!(matches!(outcome, Err(Malformed::Refused(_))), !ended, "{start:?} {outcome:?}");
            assert_eq!(check_page_header(&bytes), outcome);
        }
        for kinds in [0x11, 0x28, 0x52] {
            let bytes = [&[0xeb][..], &billions, &[kinds], &[0; 40]].concat();
            assert!(matches!(check_footer(&bytes), Err(Malformed::Refused(_))), "{kinds:x}");
        }
    }

    #[test]
    fn known_fields_have_their_type_and_unknown_ones_any() {
        // The version as a list; then as a number, an empty list of no type as some writers leave, and a boolean in field 3.
        assert!(matches!(check_footer(&[0x19, 0x00, 0]), Err(Malformed::Refused(_))));
        assert_eq!(check_footer(&[0x15, 0x02, 0x19, 0x00, 0]), Ok(()));
        assert!(matches!(check_footer(&[0x15, 0x02, 0x21, 0]), Err(Malformed::Refused(_))));
        // Field 32767 in the long form, as extensions of the format have it; a double; a map of a number to bytes.
        assert_eq!(check_footer(&[0x08, 0xfe, 0xff, 0x03, 0x02, 1, 2, 0]), Ok(()));
        assert_eq!(check_footer(&[0xe7, 0, 0, 0, 0, 0, 0, 0, 0, 0x1b, 1, 0x58, 4, 1, 9, 0]), Ok(()));
    }

    #[test]
    fn a_page_has_no_more_bytes_than_the_limit() {
        // Fields 2 and 3, each by its code: the limit, one more, minus one.
        let limit = [0x80, 0x80, 0x80, 0x80, 0x02];
        let header = |first: &[u8], second: &[u8]| [&[0x25], first, &[0x15], second, &[0]].concat();
        assert_eq!(check_page_header(&header(&limit, &limit)), Ok(()));
        for claimed in [&[0x82, 0x80, 0x80, 0x80, 0x02][..], &[0x01]] {
            for bytes in [header(claimed, &limit), header(&limit, claimed)] {
                assert!(matches!(check_page_header(&bytes), Err(Malformed::Refused(_))), "{bytes:?}");
            }
        }
    }

    #[test]
    fn depth_and_numbers_are_bounded() {
        let deep = [0xec; 100];
        assert!(matches!(check_footer(&deep), Err(Malformed::Refused(_))));
        let long = [&[0x15][..], &[0xff; 11]].concat();
        assert!(matches!(check_footer(&long), Err(Malformed::Refused(_))));
        assert_eq!(check_footer(&[]), Err(Malformed::Ended));
    }
}

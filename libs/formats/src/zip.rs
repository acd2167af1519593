//! Members of a zip archive: stored or deflated, found by the directory at its end.
//!
//! Left out, and refused by name: encryption, other methods and archives of several volumes.

use std::io::{self, Read, Seek, SeekFrom};

use flate2::read::DeflateDecoder;

/// Most members listed. A year of days is 365; more is no archive of candles.
const MAX_MEMBERS: u64 = 10_000;
/// The directory's end is 22 bytes and a comment of at most 65 535.
const END_BYTES: u64 = 22 + 65_535;
/// Largest directory read: the members' limit times a long name each.
const MAX_DIRECTORY_BYTES: u64 = 4 * 1024 * 1024;
/// Longest name kept: those of vendors are under a hundred characters.
const MAX_NAME_CHARS: usize = 255;
const END_MAGIC: [u8; 4] = *b"PK\x05\x06";
const ENTRY_MAGIC: [u8; 4] = *b"PK\x01\x02";
const WIDE_LOCATOR_MAGIC: [u8; 4] = *b"PK\x06\x07";
const WIDE_END_MAGIC: [u8; 4] = *b"PK\x06\x06";
const LOCAL_MAGIC: [u8; 4] = *b"PK\x03\x04";
/// Stands for a value that is in the extra field of this number.
const ZIP64: u32 = u32::MAX;
const ZIP64_FIELD: u16 = 1;
const SEVERAL_VOLUMES: &str = "is the last of several volumes of a zip: unpack them, and load the files";

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    method: u16,
    encrypted: bool,
    crc: u32,
    compressed: u64,
    size: u64,
    offset: u64,
}

/// Lists the files of an archive in its order; folders are left out.
///
/// Errors: why it cannot be read, in words.
pub(crate) fn members(archive: &mut (impl Read + Seek)) -> Result<Vec<Member>, String> {
    let broken = |error: io::Error| format!("the zip is truncated or damaged ({error}): fetch it again");
    let length = archive.seek(SeekFrom::End(0)).map_err(broken)?;
    let from = length.saturating_sub(END_BYTES);
    archive.seek(SeekFrom::Start(from)).map_err(broken)?;
    let mut tail = Vec::new();
    archive.by_ref().take(END_BYTES).read_to_end(&mut tail).map_err(broken)?;
    let end = tail.windows(4).rposition(|window| window == END_MAGIC);
    let end = end
        .and_then(|at| tail.get(at..at + 22))
        .ok_or("the zip is truncated: its directory is missing; fetch it again")?;
    if [u16_at(end, 4), u16_at(end, 6)].iter().any(|volume| ![0, u16::MAX].contains(volume)) {
        return Err(SEVERAL_VOLUMES.to_owned());
    }
    let (mut count, mut bytes, mut start) =
        (u64::from(u16_at(end, 10)), u64::from(u32_at(end, 12)), u64::from(u32_at(end, 16)));
    if count == u64::from(u16::MAX) || bytes == u64::from(ZIP64) || start == u64::from(ZIP64) {
        let wide = wide_end(archive, &tail).map_err(broken)?;
        let volumes;
        ([count, bytes, start], volumes) = wide.ok_or("the zip's directory is damaged: fetch it again")?;
        if volumes != [0, 0] {
            return Err(SEVERAL_VOLUMES.to_owned());
        }
    }
    if count > MAX_MEMBERS || bytes > MAX_DIRECTORY_BYTES {
        return Err(format!("holds {count} files, at most {MAX_MEMBERS} are read: split it"));
    }
    archive.seek(SeekFrom::Start(start)).map_err(broken)?;
    let mut directory = Vec::new();
    archive.by_ref().take(bytes).read_to_end(&mut directory).map_err(broken)?;
    let mut members = Vec::new();
    let mut rest = &directory[..];
    for _ in 0..count {
        let damaged = "the zip's directory is damaged: fetch it again";
        let head = rest.get(..46).filter(|head| head.starts_with(&ENTRY_MAGIC)).ok_or(damaged)?;
        let lengths = [u16_at(head, 28), u16_at(head, 30), u16_at(head, 32)].map(usize::from);
        let name = rest.get(46..46 + lengths[0]).ok_or(damaged)?;
        let extra = rest.get(46 + lengths[0]..46 + lengths[0] + lengths[1]).ok_or(damaged)?;
        let wide = wide_values([24, 20, 42].map(|at| u32_at(head, at)), extra);
        let member = Member {
            name: String::from_utf8_lossy(name).chars().take(MAX_NAME_CHARS).collect(),
            method: u16_at(head, 10),
            encrypted: u16_at(head, 8) & 1 == 1,
            crc: u32_at(head, 16),
            compressed: wide[1],
            size: wide[0],
            offset: wide[2],
        };
        rest = rest.get(46 + lengths.iter().sum::<usize>()..).ok_or(damaged)?;
        if !member.name.ends_with('/') {
            members.push(member);
        }
    }
    Ok(members)
}

/// Opens a member for reading; no more is read than the directory says it has, and at its end its checksum is compared.
pub(crate) fn open<'a, R: Read + Seek>(archive: &'a mut R, member: &Member) -> Result<impl Read + use<'a, R>, String> {
    let broken = |error: io::Error| format!("{} in the zip cannot be read ({error}): fetch it again", member.name);
    if member.encrypted {
        return Err(format!("{} in the zip is encrypted: unpack it", member.name));
    }
    archive.seek(SeekFrom::Start(member.offset)).map_err(broken)?;
    let mut head = [0; 30];
    archive.read_exact(&mut head).map_err(broken)?;
    if !head.starts_with(&LOCAL_MAGIC) {
        return Err(format!("{} is not where the zip's directory says: fetch it again", member.name));
    }
    let skipped = i64::from(u16_at(&head, 26)) + i64::from(u16_at(&head, 28));
    archive.seek(SeekFrom::Current(skipped)).map_err(broken)?;
    let packed = archive.take(member.compressed);
    let unpacked = match member.method {
        0 => Unpacked::Stored(packed),
        8 => Unpacked::Deflated(DeflateDecoder::new(packed)),
        other => {
            return Err(format!(
                "{} in the zip is packed by method {other}, only deflate is read: unpack it",
                member.name
            ));
        }
    };
    Ok(Checked { unpacked, crc: crc32fast::Hasher::new(), read: 0, member_crc: member.crc, member_size: member.size })
}

enum Unpacked<R: Read> {
    Stored(R),
    Deflated(DeflateDecoder<R>),
}

struct Checked<R: Read> {
    unpacked: Unpacked<R>,
    crc: crc32fast::Hasher,
    read: u64,
    member_crc: u32,
    member_size: u64,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.unpacked {
            Unpacked::Stored(reader) => reader.read(into)?,
            Unpacked::Deflated(reader) => reader.read(into)?,
        };
        self.crc.update(&into[..count]);
        self.read += count as u64;
        // A few bytes can be packed that unpack to gigabytes: their end is not waited for.
        if self.read > self.member_size {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than the zip's directory says"));
        }
        let at_end = count == 0 && !into.is_empty();
        if at_end && self.read < self.member_size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match at_end && self.crc.clone().finalize() != self.member_crc {
            true => Err(io::Error::new(io::ErrorKind::InvalidData, "its checksum differs")),
            false => Ok(count),
        }
    }
}

/// Count, size and start of the directory of an archive written with 64 bits, by the locator before its end; and its volumes.
fn wide_end(archive: &mut (impl Read + Seek), tail: &[u8]) -> io::Result<Option<([u64; 3], [u32; 2])>> {
    let locator = tail.windows(4).rposition(|window| window == WIDE_LOCATOR_MAGIC);
    let Some(locator) = locator.and_then(|at| tail.get(at..at + 20)) else { return Ok(None) };
    archive.seek(SeekFrom::Start(u64_at(locator, 8)))?;
    let mut end = [0; 56];
    archive.read_exact(&mut end)?;
    let values = || ([32, 40, 48].map(|at| u64_at(&end, at)), [16, 20].map(|at| u32_at(&end, at)));
    Ok(end.starts_with(&WIDE_END_MAGIC).then(values))
}

/// Size, packed size and offset: some writers put them into an extra field of 64 bits, small as they may be.
fn wide_values(values: [u32; 3], extra: &[u8]) -> [u64; 3] {
    let mut wide = values.map(u64::from);
    let mut rest = extra;
    while rest.len() >= 4 {
        let (id, length) = (u16_at(rest, 0), usize::from(u16_at(rest, 2)));
        let field = rest.get(4..4 + length).unwrap_or_default();
        if id == ZIP64_FIELD {
            let mut given = field.chunks_exact(8).map(|bytes| u64_at(bytes, 0));
            for value in wide.iter_mut().filter(|value| **value == u64::from(ZIP64)) {
                *value = given.next().unwrap_or(*value);
            }
        }
        rest = rest.get(4 + length..).unwrap_or_default();
    }
    wide
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use super::*;

    /// An archive of one deflated file, said to be of `size` bytes.
    fn archive(content: &[u8], size: u32) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(content).unwrap();
        let packed = encoder.finish().unwrap();
        let mut crc = crc32fast::Hasher::new();
        crc.update(content);
        // Version, flags, method, time and date; checksum and sizes; lengths of the name and the extra field.
        let mut described = [20_u16, 0, 8, 0, 0].map(u16::to_le_bytes).concat();
        described.extend([crc.finalize(), packed.len() as u32, size].map(u32::to_le_bytes).concat());
        described.extend([5_u16, 0].map(u16::to_le_bytes).concat());
        let mut zip = [&LOCAL_MAGIC[..], &described, b"a.csv", &packed].concat();
        let directory = zip.len() as u32;
        zip.extend([&ENTRY_MAGIC[..], &[20, 0], &described, &[0; 14], b"a.csv"].concat());
        let bytes = zip.len() as u32 - directory;
        zip.extend([&END_MAGIC[..], &[0, 0, 0, 0, 1, 0, 1, 0]].concat());
        zip.extend([bytes, directory].map(u32::to_le_bytes).concat());
        zip.extend([0, 0]);
        zip
    }

    #[test]
    fn a_file_in_an_archive_is_read_whole_and_compared() {
        let mut zip = Cursor::new(archive(b"some text", 9));
        let members = members(&mut zip).unwrap();
        assert_eq!((members.len(), members[0].name.as_str()), (1, "a.csv"));
        let mut read = String::new();
        open(&mut zip, &members[0]).unwrap().read_to_string(&mut read).unwrap();
        assert_eq!(read, "some text");
        let other = Member { crc: 1, ..members[0].clone() };
        let refused = open(&mut zip, &other).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
        assert!(refused.to_string().contains("checksum"), "{refused}");
        let longer = Member { size: 10, ..members[0].clone() };
        let refused = open(&mut zip, &longer).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_longer_than_said_is_not_unpacked_to_its_end() {
        let mut zip = Cursor::new(archive(&vec![0; 1 << 24], 100));
        let members = members(&mut zip).unwrap();
        let mut opened = open(&mut zip, &members[0]).unwrap();
        let mut into = [0; 64];
        assert_eq!(opened.read(&mut into).unwrap(), 64);
        let refused = opened.read(&mut into).unwrap_err();
        assert!(refused.to_string().contains("longer than"), "{refused}");
    }

    #[test]
    fn an_archive_of_several_volumes_is_refused_by_name() {
        let whole = archive(b"some text", 9);
        let end = whole.len() - 22;
        let with = |at: usize, volume: u16| {
            let mut zip = whole.clone();
            zip[end + at..end + at + 2].copy_from_slice(&volume.to_le_bytes());
            members(&mut Cursor::new(zip))
        };
        for at in [4, 6] {
            assert!(with(at, 1).unwrap_err().contains("several volumes"));
            // Stands for a value written with 64 bits.
            assert_eq!(with(at, u16::MAX).unwrap().len(), 1);
        }
    }
}

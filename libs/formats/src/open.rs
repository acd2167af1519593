//! Opens a file by its content: gzip, zip, Parquet, JSON or text.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use market::{InstrumentKey, Timeframe};

use crate::chunker::{Chunker, Stop};
use crate::layout::Layout;
use crate::lines::Headed;
use crate::position::{Position, Watched};
use crate::text::reason_of;
use crate::{Detected, FileSpec, Format, InputError, Sink, display, json, lean, parquet_file, sniff, text, zip};

const GZIP_MAGIC: &[u8] = b"\x1f\x8b";
const ZIP_MAGIC: &[u8] = b"PK";
const PARQUET_MAGIC: &[u8] = b"PAR1";

pub(crate) fn read(spec: &FileSpec, position: &Position, sink: &mut dyn Sink) -> Result<Detected, InputError> {
    let file = display(&spec.path);
    if spec.path.is_dir() {
        return Err(InputError::Folder { file });
    }
    let opened = File::open(&spec.path).map_err(|source| InputError::Open { file: file.clone(), source })?;
    let mut start = BufReader::new(Watched::new(opened, position));
    let magic = start.fill_buf().map_err(|source| InputError::Open { file, source })?;
    let magic: Vec<u8> = magic.iter().take(8).copied().collect();
    run(spec, sink, |chunker| match () {
        () if magic.starts_with(PARQUET_MAGIC) => parquet_file::read(spec, start.into_inner(), chunker),
        () if magic.starts_with(ZIP_MAGIC) => archive(spec, &mut start, chunker),
        () => plain(spec, start, magic.starts_with(GZIP_MAGIC), chunker),
    })
}

pub(crate) fn read_bytes(bytes: &[u8], spec: &FileSpec, sink: &mut dyn Sink) -> Result<Detected, InputError> {
    run(spec, sink, |chunker| match () {
        () if bytes.starts_with(PARQUET_MAGIC) => parquet_file::read(spec, Bytes::copy_from_slice(bytes), chunker),
        () if bytes.starts_with(ZIP_MAGIC) => archive(spec, &mut Cursor::new(bytes), chunker),
        () => plain(spec, bytes, bytes.starts_with(GZIP_MAGIC), chunker),
    })
}

fn run(
    spec: &FileSpec,
    sink: &mut dyn Sink,
    reader: impl FnOnce(&mut Chunker<'_>) -> Result<Format, Stop>,
) -> Result<Detected, InputError> {
    let mut chunker = Chunker::new(spec, sink);
    let detected = match reader(&mut chunker) {
        Ok(format) => chunker.finish(format),
        Err(stop) => Err(stop),
    };
    match detected {
        Ok(detected) => Ok(detected),
        // Who asked to stop knows why.
        Err(Stop::Asked) => Ok(Detected { format: spec.format, ..Detected::default() }),
        Err(Stop::Failed(error)) => Err(error),
    }
}

fn plain(spec: &FileSpec, reader: impl Read, gzipped: bool, chunker: &mut Chunker<'_>) -> Result<Format, Stop> {
    let instrument = spec.instrument.as_ref();
    match gzipped {
        true => stream(spec, instrument, Headed::new(MultiGzDecoder::new(BufReader::new(reader))), chunker),
        false => stream(spec, instrument, Headed::new(reader), chunker),
    }
}

/// JSON or lines.
fn stream<R: Read>(
    spec: &FileSpec,
    instrument: Option<&InstrumentKey>,
    text: Headed<R>,
    chunker: &mut Chunker<'_>,
) -> Result<Format, Stop> {
    let file = display(&spec.path);
    if let Some(found) = sniff::foreign(text.head()) {
        return Err(InputError::Kind { file, found: found.to_owned() }.into());
    }
    if let (true, Some(error)) = (text.head().is_empty(), text.broken()) {
        return Err(InputError::Unreadable { file, reason: reason_of(error) }.into());
    }
    match text.head().trim_ascii_start().first() {
        Some(b'{' | b'[') => return json::read(spec, instrument, text, chunker),
        Some(_) => {}
        None => {
            let reason = "is empty; was the download cut off?".to_owned();
            return Err(InputError::Unreadable { file, reason }.into());
        }
    }
    let layout = {
        let head = String::from_utf8_lossy(whole_lines(text.head()));
        sniff::layout(spec, &file, &head)?
    };
    text::read(spec, instrument, &layout, text, chunker)?;
    Ok(layout.format)
}

/// The head without a line cut in two, unless that is all there is.
fn whole_lines(head: &[u8]) -> &[u8] {
    match head.iter().rposition(|byte| *byte == b'\n') {
        Some(end) if head.len() >= crate::lines::HEAD_BYTES => &head[..=end],
        _ => head,
    }
}

/// Every member of a zip, in the archive's order.
fn archive<A: Read + Seek>(spec: &FileSpec, archive: &mut A, chunker: &mut Chunker<'_>) -> Result<Format, Stop> {
    let file = display(&spec.path);
    let unreadable = |reason: String| InputError::Unreadable { file: file.clone(), reason };
    let members = zip::members(archive).map_err(unreadable)?;
    if members.iter().any(|member| member.name == "[Content_Types].xml") {
        let found = "an Excel workbook: save the sheet as CSV".to_owned();
        return Err(InputError::Kind { file, found }.into());
    }
    if members.is_empty() {
        return Err(unreadable("is a zip without files in it".to_owned()).into());
    }
    let mut format = spec.format;
    for member in &members {
        let mut within = spec.clone();
        within.path = spec.path.join(&member.name);
        let opened = zip::open(archive, member).map_err(unreadable)?;
        let headed = Headed::new(opened);
        chunker.member = (members.len() > 1).then(|| member.name.clone());
        format = match lean::parse(&member.name) {
            Some(name) => lean_member(&within, &name, headed, chunker)?,
            None => stream(&within, spec.instrument.as_ref(), headed, chunker)?,
        };
        // Before lines count from 1 again.
        chunker.flush()?;
    }
    Ok(format)
}

fn lean_member<R: Read>(
    spec: &FileSpec,
    name: &lean::MemberName,
    text: Headed<R>,
    chunker: &mut Chunker<'_>,
) -> Result<Format, Stop> {
    let file = display(&spec.path);
    let unreadable = |reason: String| InputError::Unreadable { file: file.clone(), reason };
    name.check().map_err(unreadable)?;
    let format = match (spec.format, name.contract) {
        (Format::Lean | Format::LeanEquity, _) => spec.format,
        (Format::Auto, Some(_)) => Format::Lean,
        (Format::Auto, None) => {
            return Err(unreadable(
                "is Lean data of an equity, or of a currency: pass --format lean-equity with --zone of the exchange (prices \
                 are divided by 10000), or --format lean (UTC, prices as they are)"
                    .to_owned(),
            )
            .into());
        }
        (named, _) => {
            return Err(unreadable(format!("is Lean data, not {named}: pass --format lean or lean-equity")).into());
        }
    };
    // The name says minute.
    chunker.hint = Some(Timeframe::M1);
    let given = spec.instrument.as_ref().ok_or_else(|| InputError::NoInstrument { file: file.clone() })?;
    let instrument = name.instrument(given).map_err(unreadable)?;
    text::read(spec, Some(&instrument), &Layout::lean(format, name.day), text, chunker)?;
    Ok(format)
}

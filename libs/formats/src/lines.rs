//! Lines of a text of any size, one at a time, each of bounded length.

use std::io::{self, BufRead, BufReader, Read};

/// Longest accepted line. A kline with every field is under 300 bytes; more than this is another kind of file.
pub(crate) const MAX_LINE_BYTES: usize = 64 * 1024;
/// Bytes looked at to decide a format.
pub(crate) const HEAD_BYTES: usize = 64 * 1024;

/// The start of a stream, read ahead, and the rest of it behind.
pub(crate) struct Headed<R> {
    head: Vec<u8>,
    /// Bytes of the head given out again.
    given: usize,
    /// Met while reading ahead; it comes where it would have come.
    broken: Option<io::Error>,
    rest: R,
}

impl<R: Read> Headed<R> {
    pub(crate) fn new(mut rest: R) -> Headed<R> {
        let mut head = Vec::new();
        let broken = rest.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head).err();
        Headed { head, given: 0, broken, rest }
    }

    pub(crate) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Why the head is shorter than the file, where it could not be read.
    pub(crate) fn broken(&self) -> Option<&io::Error> {
        self.broken.as_ref()
    }
}

impl<R: Read> Read for Headed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.given < self.head.len() {
            let count = (&self.head[self.given..]).read(into)?;
            self.given += count;
            return Ok(count);
        }
        match self.broken.take() {
            Some(error) => Err(error),
            None => self.rest.read(into),
        }
    }
}

/// What stands on a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    Text(&'a str),
    NotText,
    TooLong,
}

/// Reads line by line; a line that is too long is passed over without being kept.
pub(crate) struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    number: u64,
}

impl<R: Read> Lines<R> {
    pub(crate) fn new(reader: R) -> Lines<R> {
        Lines { reader: BufReader::with_capacity(HEAD_BYTES, reader), line: Vec::new(), number: 0 }
    }

    /// The line read last, from 1.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The next line without its end and its number from 1, nothing after the last.
    pub(crate) fn next(&mut self) -> io::Result<Option<(u64, Line<'_>)>> {
        self.line.clear();
        let limit = MAX_LINE_BYTES as u64 + 1;
        let count = self.reader.by_ref().take(limit).read_until(b'\n', &mut self.line)?;
        if count == 0 {
            return Ok(None);
        }
        self.number += 1;
        let ended = self.line.ends_with(b"\n");
        if !ended && count as u64 == limit {
            self.pass_over()?;
            return Ok(Some((self.number, Line::TooLong)));
        }
        let end = self.line.len() - usize::from(ended);
        let text = std::str::from_utf8(&self.line[..end]).map(|text| text.trim_end_matches('\r'));
        // Spreadsheets begin UTF-8 files with a byte order mark.
        let line = text.map_or(Line::NotText, |text| Line::Text(text.trim_start_matches('\u{feff}')));
        Ok(Some((self.number, line)))
    }

    fn pass_over(&mut self) -> io::Result<()> {
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            let found = buffer.iter().position(|byte| *byte == b'\n');
            let length = found.map_or(buffer.len(), |at| at + 1);
            self.reader.consume(length);
            if found.is_some() {
                return Ok(());
            }
        }
    }
}

/// Splits a line at its separator: fields are trimmed, quotes around one are taken off, a separator within them is text.
pub(crate) fn split(line: &str, separator: u8, fields: &mut Vec<(usize, usize)>) {
    fields.clear();
    let bytes = line.as_bytes();
    let (mut start, mut quoted) = (0, false);
    for at in 0..=bytes.len() {
        let ends = at == bytes.len() || (bytes[at] == separator && !quoted);
        if ends {
            fields.push(trimmed(line, start, at));
            start = at + 1;
        } else if bytes[at] == b'"' {
            quoted = !quoted;
        }
    }
}

/// Bounds of a field without blanks and quotes around it.
fn trimmed(line: &str, start: usize, end: usize) -> (usize, usize) {
    let field = &line[start..end];
    let from = start + (field.len() - field.trim_start().len());
    let to = from + field.trim().len();
    let inner = &line[from..to];
    match inner.len() >= 2 && inner.starts_with('"') && inner.ends_with('"') {
        true => (from + 1, to - 1),
        false => (from, to),
    }
}

/// The fields of a line, as texts.
pub(crate) fn fields(line: &str, separator: u8) -> Vec<&str> {
    let mut bounds = Vec::new();
    split(line, separator, &mut bounds);
    bounds.into_iter().map(|(from, to)| &line[from..to]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_trimmed_and_quotes_taken_off() {
        assert_eq!(fields(r#" a , "b, c" ,,"Date Time""#, b','), ["a", "b, c", "", "Date Time"]);
        assert_eq!(fields("\"", b','), ["\""]);
        assert_eq!(fields("", b','), [""]);
    }

    #[test]
    fn a_line_too_long_is_passed_over_and_the_next_read() {
        let mut text = b"\xef\xbb\xbfone\r\n".to_vec();
        text.extend(vec![b'x'; 3 * MAX_LINE_BYTES]);
        text.extend(b"\n\xff\xfe\nlast");
        let mut lines = Lines::new(&text[..]);
        assert_eq!(lines.next().unwrap(), Some((1, Line::Text("one"))));
        assert_eq!(lines.next().unwrap(), Some((2, Line::TooLong)));
        assert_eq!(lines.next().unwrap(), Some((3, Line::NotText)));
        assert_eq!(lines.next().unwrap(), Some((4, Line::Text("last"))));
        assert_eq!(lines.number(), 4);
        assert_eq!(lines.next().unwrap(), None);
    }

    #[test]
    fn an_exact_limit_is_a_line() {
        let text = [vec![b'x'; MAX_LINE_BYTES], b"\n".to_vec()].concat();
        let mut lines = Lines::new(&text[..]);
        assert!(matches!(lines.next().unwrap(), Some((1, Line::Text(text))) if text.len() == MAX_LINE_BYTES));
        assert_eq!(lines.next().unwrap(), None);
    }
}

//! What is told of a file: its first rejected rows and its instruments, kept small.

use market::InstrumentKey;
use serde::{Deserialize, Serialize};

/// Rejected rows kept per file, those of the lowest lines; all are counted.
pub(crate) const MAX_REASONS: usize = 20;
/// Longest reason kept.
const MAX_REASON_CHARS: usize = 300;
/// Instruments kept per file; a file of a whole market has thousands, and the record is rewritten with every chunk.
const MAX_INSTRUMENTS: usize = 100;

/// Why a row was not stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reason {
    pub(crate) line: u64,
    pub(crate) reason: String,
}

impl Reason {
    pub(crate) fn new(line: u64, reason: String) -> Reason {
        let reason = match reason.char_indices().nth(MAX_REASON_CHARS) {
            Some((end, _)) => format!("{}...", &reason[..end]),
            None => reason,
        };
        Reason { line, reason }
    }
}

/// The details of a file; stored as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    pub(crate) rejected: Vec<Reason>,
    /// In the order of their appearance.
    pub(crate) instruments: Vec<String>,
}

impl Report {
    /// Reads a record; one that is not understood is as good as none, since it is for people only.
    pub(crate) fn of_json(text: &str) -> Report {
        serde_json::from_str(text).unwrap_or_default()
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned())
    }

    /// Keeps the lowest lines, in whatever order they come: rows that a reader refuses come before the chunk around them.
    pub(crate) fn add_reasons(&mut self, reasons: Vec<Reason>) {
        self.rejected.extend(reasons);
        self.rejected.sort_by_key(|reason| reason.line);
        self.rejected.truncate(MAX_REASONS);
    }

    pub(crate) fn add_instrument(&mut self, key: &InstrumentKey) {
        let is_known = self.instruments.iter().any(|known| known == key.as_str());
        if !is_known && self.instruments.len() < MAX_INSTRUMENTS {
            self.instruments.push(key.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_lines_are_kept_however_they_come() {
        let of = |lines: Vec<u64>| lines.into_iter().map(|line| Reason::new(line, "x".repeat(line as usize))).collect();
        let (mut whole, mut parts) = (Report::default(), Report::default());
        whole.add_reasons(of((1..1000).rev().collect()));
        parts.add_reasons(of((500..1000).collect()));
        parts.add_reasons(of((1..500).collect()));
        assert_eq!(whole, parts);
        assert_eq!(whole.rejected.iter().map(|reason| reason.line).collect::<Vec<_>>(), (1..=20).collect::<Vec<u64>>());
        assert_eq!(Report::of_json(&whole.to_json()), whole);
        assert_eq!(Reason::new(1, "é".repeat(400)).reason.chars().count(), 303);
    }
}

//! Where a subscriber stands: everything up to a change, and every close up to an instant; or on the way from one such place to
//! another, while it is told in several messages what it had missed.

use std::fmt;
use std::str::FromStr;

use market::{InstrumentKey, Millis, TimeRange, Timeframe};
use proto::convert::FieldError;

/// Rises when the text's meaning changes; an older text is then refused instead of misread.
const VERSION: &str = "1";

/// A place in the change log and in time. Means the same in every replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Position {
    /// Changes up to here have been told.
    pub(crate) sequence: u64,
    /// Candles that were due by here have been closed.
    pub(crate) watermark: Millis,
}

impl Position {
    /// Whether everything told up to here has been told there too.
    pub(crate) fn is_behind(&self, other: &Position) -> bool {
        self.sequence <= other.sequence && self.watermark <= other.watermark
    }
}

/// A candle, in the order in which a resumption tells them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) key: InstrumentKey,
    pub(crate) timeframe: Timeframe,
    pub(crate) open_time: Millis,
}

/// How far a resumption has come. What it tells is a function of where it leads from and to, so that any replica can go on with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Where it leads.
    pub(crate) to: Position,
    /// Of the filter it is for; for another one it begins again, as candles are missing before the last.
    pub(crate) filter: u64,
    /// The last candle told.
    pub(crate) last: Place,
}

/// What a subscriber comes back with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Where a resumption leads from, if one is under way.
    pub(crate) position: Position,
    pub(crate) progress: Option<Progress>,
}

impl Cursor {
    /// The place that a replica must have reached to go on from here.
    pub(crate) fn reached(&self) -> Position {
        self.progress.as_ref().map_or(self.position, |progress| progress.to)
    }
}

impl From<Position> for Cursor {
    fn from(position: Position) -> Self {
        Cursor { position, progress: None }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}.{:x}.{:x}", self.sequence, self.watermark)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.position)?;
        let Some(Progress { to, filter, last }) = &self.progress else { return Ok(()) };
        write!(f, ".{:x}.{:x}.{filter:x}.{}.{:x}.", to.sequence, to.watermark, last.timeframe, last.open_time)?;
        // A key may hold what no header may.
        last.key.as_str().bytes().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Cursor {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let parts: Vec<&str> = text.split('.').collect();
        // One spelling for each place: no signs, no leading zeros.
        read(&parts).filter(|cursor| cursor.to_string() == text).ok_or_else(|| {
            let shown: String = text.chars().take(64).collect();
            let reason = format!("'{shown}' is no cursor of this service; pass one as it was received, or none");
            FieldError::new("cursor", reason)
        })
    }
}

fn read(parts: &[&str]) -> Option<Cursor> {
    match parts {
        [VERSION, sequence, watermark] => Some(position(sequence, watermark)?.into()),
        [VERSION, sequence, watermark, to_sequence, to_watermark, filter, timeframe, open_time, key] => {
            let (from, to) = (position(sequence, watermark)?, position(to_sequence, to_watermark)?);
            let last = Place {
                key: unhex(key)?.parse().ok()?,
                timeframe: timeframe.parse().ok()?,
                // Before 1970 it is negative.
                open_time: u64::from_str_radix(open_time, 16).ok()?.cast_signed(),
            };
            let progress = Progress { to, filter: u64::from_str_radix(filter, 16).ok()?, last };
            from.is_behind(&to).then_some(Cursor { position: from, progress: Some(progress) })
        }
        _ => None,
    }
}

fn position(sequence: &str, watermark: &str) -> Option<Position> {
    let sequence = u64::from_str_radix(sequence, 16).ok()?;
    let watermark = Millis::from_str_radix(watermark, 16).ok()?;
    TimeRange::ALL.contains(watermark).then_some(Position { sequence, watermark })
}

fn unhex(text: &str) -> Option<String> {
    let bytes = text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    String::from_utf8(bytes.collect::<Option<_>>()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_anything_else_is_refused_by_name() {
        let position = Position { sequence: 0x1234_5678_9abc, watermark: 1_704_067_200_123 };
        assert_eq!(position.to_string().parse::<Cursor>().unwrap(), Cursor::from(position));
        for open_time in [-60_000, 1_704_067_140_000] {
            let last = Place { key: "US|Ä.B 1".parse().unwrap(), timeframe: Timeframe::M5, open_time };
            let to = Position { sequence: position.sequence + 9, ..position };
            let cursor = Cursor { position, progress: Some(Progress { to, filter: u64::MAX, last }) };
            let text = cursor.to_string();
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.'), "{text}");
            assert_eq!(text.parse::<Cursor>().unwrap(), cursor);
            assert_eq!(cursor.reached(), to);
            let back = Cursor { position: to, progress: cursor.progress.map(|p| Progress { to: position, ..p }) };
            assert_eq!(back.to_string().parse::<Cursor>().unwrap_err().field, "cursor");
        }
        for bad in
            ["", "1", "1.5", "2.5.18c", "1.+5.18c", "1.05.18c", "1.5.18c.", "1.x.1", "1.5.7fffffffffffffff", "\u{fc}"]
        {
            assert_eq!(bad.parse::<Cursor>().unwrap_err().field, "cursor", "{bad}");
        }
        for bad in ["1.5.1.6.2.0.5m.0.5", "1.5.1.6.2.0.5m.0.5\u{fc}", "1.5.1.6.2.0.7m.0.557c41", "1.5.1.6.2.0.5m.0.55"]
        {
            assert_eq!(bad.parse::<Cursor>().unwrap_err().field, "cursor", "{bad}");
        }
    }
}

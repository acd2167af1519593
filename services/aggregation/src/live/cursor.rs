//! Where a subscriber stands: everything up to a change, and every close up to an instant.

use std::fmt;
use std::str::FromStr;

use market::{Millis, TimeRange};
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

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}.{:x}.{:x}", self.sequence, self.watermark)
    }
}

impl FromStr for Position {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let refuse = || {
            let shown: String = text.chars().take(64).collect();
            FieldError::new(
                "cursor",
                format!("'{shown}' is no cursor of this service; pass one as it was received, or none"),
            )
        };
        let mut parts = text.split('.');
        let (Some(VERSION), Some(sequence), Some(watermark), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(refuse());
        };
        let sequence = u64::from_str_radix(sequence, 16).map_err(|_| refuse())?;
        let watermark = Millis::from_str_radix(watermark, 16).map_err(|_| refuse())?;
        let position = Position { sequence, watermark };
        // One spelling for each place: no signs, no leading zeros.
        if !TimeRange::ALL.contains(watermark) || position.to_string() != text {
            return Err(refuse());
        }
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_anything_else_is_refused_by_name() {
        let position = Position { sequence: 0x1234_5678_9abc, watermark: 1_704_067_200_123 };
        assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        for bad in
            ["", "1", "1.5", "2.5.18c", "1.+5.18c", "1.05.18c", "1.5.18c.", "1.x.1", "1.5.7fffffffffffffff", "\u{fc}"]
        {
            assert_eq!(bad.parse::<Position>().unwrap_err().field, "cursor", "{bad}");
        }
    }
}

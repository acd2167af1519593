//! What is traded, and how it is named.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::{Error, Result};

/// Longest accepted key, in bytes: no exchange comes near it, and keys are stored in every block's row.
const MAX_KEY_BYTES: usize = 96;

/// Name of an instrument: `EXCHANGE_SEGMENT|CODE`, normalised. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstrumentKey(Arc<str>);

impl InstrumentKey {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the bar, for example `NSE_EQ`.
    pub fn segment(&self) -> &str {
        self.0.split_once('|').map_or("", |(segment, _)| segment)
    }

    /// The part after the bar, for example `INE002A01018`.
    pub fn code(&self) -> &str {
        self.0.split_once('|').map_or("", |(_, code)| code)
    }
}

impl FromStr for InstrumentKey {
    type Err = Error;

    /// Normalises: outer blanks are dropped, the segment is upper-cased, the code is kept as it is.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = || Error::InstrumentKey(text.chars().take(MAX_KEY_BYTES).collect());
        let (segment, code) = text.split_once('|').ok_or_else(refuse)?;
        let (segment, code) = (segment.trim(), code.trim());
        let segment_fits =
            !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let code_fits = !code.is_empty() && !code.contains('|') && code.chars().all(|c| !c.is_control());
        if !segment_fits || !code_fits || text.len() > MAX_KEY_BYTES {
            return Err(refuse());
        }
        Ok(Self(format!("{}|{code}", segment.to_ascii_uppercase()).into()))
    }
}

impl fmt::Display for InstrumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Master data of an instrument.
#[derive(Debug, Clone, PartialEq)]
pub struct Instrument {
    pub key: InstrumentKey,
    /// Human name or trading symbol; empty when unknown.
    pub name: String,
    /// Exchange code, for example `NSE`.
    pub exchange: String,
    /// ISO 4217 currency, or the quote asset of a crypto pair; empty when unknown.
    pub currency: String,
    /// Smallest price step, in price units; 0 when unknown.
    pub tick_size: f64,
    /// Name of the calendar, as accepted by [`Calendar::by_name`](crate::Calendar::by_name).
    pub calendar: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_normalised_once() {
        let key: InstrumentKey = " nse_index | Nifty 50 ".parse().unwrap();
        assert_eq!(key.as_str(), "NSE_INDEX|Nifty 50");
        assert_eq!((key.segment(), key.code()), ("NSE_INDEX", "Nifty 50"));
        assert!("CRYPTO|BITFINEX:BTCUSD".parse::<InstrumentKey>().is_ok());
    }

    #[test]
    fn malformed_keys_are_refused() {
        for text in ["", "RELIANCE", "|X", "NSE_EQ|", "A|B|C", "N$E|X", "NSE|a\nb"] {
            assert!(matches!(text.parse::<InstrumentKey>(), Err(Error::InstrumentKey(_))), "{text:?}");
        }
    }
}

//! Names of the members of Lean's zips: `20131007_es_minute_trade_201312.csv`.

use jiff::civil::Date;
use market::InstrumentKey;

/// Letters of the delivery months, January first, as exchanges write them.
const MONTH_CODES: &[u8; 12] = b"FGHJKMNQUVXZ";

/// What a member's name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemberName {
    pub(crate) day: Date,
    pub(crate) symbol: String,
    resolution: String,
    kind: String,
    /// Year and month of a future's delivery.
    pub(crate) contract: Option<(i16, i8)>,
}

/// Reads a name; nothing where it is not one of Lean's.
pub(crate) fn parse(name: &str) -> Option<MemberName> {
    let name = name.rsplit('/').next()?.strip_suffix(".csv")?;
    let parts: Vec<&str> = name.split('_').collect();
    let (day, symbol, resolution, kind, contract) = match parts[..] {
        [day, symbol, resolution, kind] => (day, symbol, resolution, kind, None),
        [day, symbol, resolution, kind, contract] => (day, symbol, resolution, kind, Some(contract)),
        _ => return None,
    };
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(day, 8) || symbol.is_empty() {
        return None;
    }
    let day = Date::new(day[..4].parse().ok()?, day[4..6].parse().ok()?, day[6..].parse().ok()?).ok()?;
    let contract = match contract {
        None => None,
        // A future's contract may be followed by its day.
        Some(text) if digits(text, 6) || digits(text, 8) => {
            let (year, month) = (text[..4].parse().ok()?, text[4..6].parse().ok()?);
            Some((year, month)).filter(|_| (1..=12).contains(&month))
        }
        Some(_) => return None,
    };
    Some(MemberName {
        day,
        symbol: symbol.to_owned(),
        resolution: resolution.to_owned(),
        kind: kind.to_owned(),
        contract,
    })
}

impl MemberName {
    /// Refuses what holds no minutes of trades.
    pub(crate) fn check(&self) -> Result<(), String> {
        match (self.resolution.as_str(), self.kind.as_str()) {
            ("minute", "trade") => Ok(()),
            (resolution, kind) => Err(format!("holds Lean {resolution} {kind} data; only minute trade data is read")),
        }
    }

    /// The instrument of this member: the given one, or that contract of the given family.
    ///
    /// A contract's code is the family's, the month's letter and two digits of the year: one digit would name a contract of
    /// every decade.
    pub(crate) fn instrument(&self, given: &InstrumentKey) -> Result<InstrumentKey, String> {
        let Some((year, month)) = self.contract else { return Ok(given.clone()) };
        let letter = char::from(MONTH_CODES[usize::from(month.unsigned_abs()) - 1]);
        let code = format!("{}{letter}{:02}", self.symbol.to_ascii_uppercase(), year.rem_euclid(100));
        if !given.code().eq_ignore_ascii_case(&self.symbol) && !given.code().eq_ignore_ascii_case(&code) {
            return Err(format!(
                "holds contracts of {}: pass --instrument '{}|{}'; each contract is named like {}|{code}",
                self.symbol,
                given.segment(),
                self.symbol.to_ascii_uppercase(),
                given.segment()
            ));
        }
        format!("{}|{code}", given.segment()).parse().map_err(|error: market::Error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contract_is_named_by_its_month_and_year() {
        let name = parse("20131007_es_minute_trade_201312.csv").unwrap();
        assert_eq!(name.day, Date::constant(2013, 10, 7));
        assert_eq!(name.check(), Ok(()));
        assert_eq!(name.instrument(&"CME|ES".parse().unwrap()).unwrap().as_str(), "CME|ESZ13");
        assert!(name.instrument(&"CME|NQ".parse().unwrap()).unwrap_err().contains("'CME|ES'"));
        let equity = parse("20131007_ibm_minute_trade.csv").unwrap();
        assert_eq!(equity.instrument(&"US|IBM".parse().unwrap()).unwrap().as_str(), "US|IBM");
    }

    #[test]
    fn other_names_and_kinds_are_told_apart() {
        for name in [
            "a.csv",
            "2013100_es_minute_trade.csv",
            "20131007_es_minute_trade_201313.csv",
            "20131307_e_minute_trade.csv",
        ] {
            assert!(parse(name).is_none() || parse(name).unwrap().contract.is_none(), "{name}");
        }
        assert!(parse("20131007_es_minute_quote_201312.csv").unwrap().check().unwrap_err().contains("minute quote"));
    }
}

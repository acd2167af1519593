//! Names of columns that a file has for itself.

use std::fmt;
use std::str::FromStr;

/// What columns hold, as the names given may say.
const FIELDS: [&str; 11] =
    ["timestamp", "open", "high", "low", "close", "volume", "open_interest", "trading_date", "key", "price", "amount"];

/// Columns named by whoever has the file: `open=o,high=h`. The others are known by the names they usually have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns(Vec<(&'static str, String)>);

/// What is no name of a column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("columns '{0}' are not of the form open=o,high=h; left of each = stands one of: {accepted}", accepted = FIELDS.join(", "))]
pub struct UnknownColumns(String);

impl FromStr for Columns {
    type Err = UnknownColumns;

    fn from_str(text: &str) -> Result<Columns, UnknownColumns> {
        let unknown = || UnknownColumns(text.chars().take(100).collect());
        let mut columns: Vec<(&'static str, String)> = Vec::new();
        for part in text.split(',') {
            let (field, name) = part.split_once('=').ok_or_else(unknown)?;
            let field = FIELDS.iter().find(|known| known.eq_ignore_ascii_case(field.trim())).ok_or_else(unknown)?;
            if name.trim().is_empty() || columns.iter().any(|(named, _)| named == field) {
                return Err(unknown());
            }
            columns.push((field, name.trim().to_owned()));
        }
        Ok(Columns(columns))
    }
}

impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(field, name)| format!("{field}={name}")).collect();
        f.write_str(&parts.join(","))
    }
}

impl Columns {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where the column of a field is: under the name given for it, else under one of those it usually has, in their order. Upper
    /// and lower case are one.
    pub(crate) fn position(&self, header: &[&str], field: &str, usual: &[&str]) -> Option<usize> {
        let find = |name: &str| header.iter().position(|column| column.trim().eq_ignore_ascii_case(name));
        match self.0.iter().find(|(named, _)| *named == field) {
            Some((_, name)) => find(name),
            None => usual.iter().find_map(|name| find(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_given_wins_over_the_usual_ones_and_a_wrong_one_is_refused() {
        let columns: Columns = "Open = o, close=Last Price".parse().unwrap();
        assert_eq!(columns.to_string(), "open=o,close=Last Price");
        let header = ["time", "open", "O", "last price"];
        let at = |field: &str, usual: &[&str]| columns.position(&header, field, usual);
        assert_eq!((at("open", &["open"]), at("close", &["close"])), (Some(2), Some(3)));
        assert_eq!((at("timestamp", &["timestamp", "time"]), at("high", &["high"])), (Some(0), None));
        for bad in ["", "open", "open=", "opening=o", "open=a,open=b"] {
            assert!(bad.parse::<Columns>().unwrap_err().to_string().contains("open=o,high=h"), "{bad}");
        }
    }
}

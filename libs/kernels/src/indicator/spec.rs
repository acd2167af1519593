//! The text form of an indicator request.

use std::fmt;
use std::str::FromStr;

use super::catalogue::{Info, Parameter, catalogue, find};
use super::profile::Profile;
use super::state::{AnyState, Values};
use crate::Error;

/// Longest request text accepted, in bytes: three five-digit parameters, the longest name and a profile stay below fifty-two.
pub const MAX_TEXT: usize = 64;

pub(super) const MULTIPLIER_SCALE: u32 = 10_000;

/// The indicators that engine V2 computes over columns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Sma { period: usize },
    Ema { period: usize },
    Rsi { period: usize, profile: Profile },
    Atr { period: usize, profile: Profile },
    Bands { period: usize, multiplier: f64 },
    Vwap,
    Macd { fast: usize, slow: usize, signal: usize, profile: Profile },
    Adx { period: usize },
    PlusDi { period: usize },
    MinusDi { period: usize },
    Stochastic { window: usize, k_smoothing: usize, d_smoothing: usize },
    Obv,
    TrueRange,
}

/// A parsed indicator request such as `sma:9`, `bbands:20,2`, `vwap` or `rsi:14@tradingview`.
///
/// The name is read without regard to case; omitted parameters take their defaults, and so does the [`Profile`] after `@`.
/// [`Spec::label`] keeps the text as requested and names the columns; `Display` is the canonical spelling with every parameter, made for
/// cache keys. That names a profile only where the indicator is another thing in it than by default.
///
/// ```
/// use kernels::indicator::Spec;
/// let spec: Spec = " RSI ".parse()?;
/// assert_eq!((spec.label(), spec.to_string().as_str()), ("rsi", "rsi:14"));
/// assert!("sma:0".parse::<Spec>().is_err());
/// assert_eq!("rsi@tradingview".parse::<Spec>()?.to_string(), "rsi:14@tradingview");
/// assert_eq!("sma:9@tradingview".parse::<Spec>()?.to_string(), "sma:9");
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Spec {
    info: &'static Info,
    values: Values,
    label: String,
}

impl PartialEq for Spec {
    fn eq(&self, other: &Self) -> bool {
        (self.info.name, self.values, &self.label) == (other.info.name, other.values, &other.label)
    }
}

impl Eq for Spec {}

impl Spec {
    /// Returns the request text, trimmed and lower-cased.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Names the columns: the label alone for one output, `<label>.<output>` for several.
    pub fn columns(&self) -> Vec<String> {
        match self.outputs() {
            [_] => vec![self.label.clone()],
            several => several.iter().map(|output| format!("{}.{output}", self.label)).collect(),
        }
    }

    /// Returns how many leading rows have no output that is defined. VWAP can stay undefined for longer, until volume trades; so can, in
    /// TradingView's profile, what has several outputs in some of them, and in a flat market what divides by a movement.
    pub fn lookback(&self) -> usize {
        (self.info.lookback)(&self.values)
    }

    /// Returns the work per candle, in that of a usual column: a limit on columns alone would not bound it.
    pub fn cost(&self) -> usize {
        self.outputs().len() + (self.info.cost)(&self.values) - 1
    }

    /// Returns the catalogue's output names, in column order.
    pub fn outputs(&self) -> &'static [&'static str] {
        self.info.outputs
    }

    /// Returns the catalogue entry of the indicator.
    pub fn info(&self) -> &'static Info {
        self.info
    }

    pub(super) fn start(&self) -> Box<dyn AnyState> {
        (self.info.start)(&self.values)
    }

    pub(super) fn restore(&self, bytes: &[u8]) -> Option<Box<dyn AnyState>> {
        (self.info.restore)(bytes)
    }

    /// How engine V2 computes it over columns; `None` where it takes the state machine, row by row.
    pub(super) fn kind(&self) -> Option<Kind> {
        let (at, profile) = (|index| self.values.period(index), self.info.profile);
        Some(match self.info.name {
            "rsi" => Kind::Rsi { period: at(0), profile },
            "atr" => Kind::Atr { period: at(0), profile },
            "macd" => Kind::Macd { fast: at(0), slow: at(1), signal: at(2), profile },
            _ if profile != Profile::TaLib => return None,
            "sma" => Kind::Sma { period: at(0) },
            "ema" => Kind::Ema { period: at(0) },
            "bbands" => Kind::Bands { period: at(0), multiplier: self.values.decimal(1) },
            "vwap" => Kind::Vwap,
            "adx" => Kind::Adx { period: at(0) },
            "plus_di" => Kind::PlusDi { period: at(0) },
            "minus_di" => Kind::MinusDi { period: at(0) },
            "stoch" => Kind::Stochastic { window: at(0), k_smoothing: at(1), d_smoothing: at(2) },
            "obv" => Kind::Obv,
            "tr" => Kind::TrueRange,
            _ => return None,
        })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info.name)?;
        for (index, parameter) in self.info.parameters.iter().enumerate() {
            f.write_str(if index == 0 { ":" } else { "," })?;
            match parameter.is_integer {
                true => write!(f, "{}", self.values.period(index))?,
                false => write!(f, "{}", self.values.decimal(index))?,
            }
        }
        match self.info.profile {
            Profile::TaLib => Ok(()),
            other => write!(f, "@{}", other.name()),
        }
    }
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if text.len() > MAX_TEXT {
            let shown: String = text.chars().take(MAX_TEXT).collect();
            let accepted = format!("at most {MAX_TEXT} bytes");
            return Err(Error::Parameter { field: "indicator".to_owned(), value: format!("{shown}..."), accepted });
        }
        let label = text.to_lowercase();
        let (indicator, profile) = match label.rsplit_once('@') {
            Some((indicator, profile)) => (indicator, profile_of(profile.trim())?),
            None => (label.as_str(), Profile::default()),
        };
        let (name, written) = match indicator.split_once(':') {
            Some((name, written)) => (name.trim(), Some(written)),
            None => (indicator.trim(), None),
        };
        let Some(info) = find(name) else {
            let known: Vec<&str> = catalogue().iter().map(|info| info.name).collect();
            return Err(Error::UnknownIndicator { name: name.to_owned(), known: known.join(", ") });
        };
        let Some(info) = info.in_profile(profile) else {
            let accepted = format!("{}: there is no other definition of {name}", Profile::default().name());
            return Err(Error::Parameter {
                field: format!("{name} profile"),
                value: profile.name().to_owned(),
                accepted,
            });
        };
        let values = Values::new(&parameters(info, &label, written)?, info.profile);
        (info.check)(&values)?;
        Ok(Self { info, values, label })
    }
}

fn profile_of(name: &str) -> Result<Profile, Error> {
    Profile::named(name).ok_or_else(|| Error::Parameter {
        field: "profile".to_owned(),
        value: name.to_owned(),
        accepted: Profile::ALL.map(Profile::name).join(" or "),
    })
}

/// Reads the parameters in order, as ten-thousandths where decimals are allowed, with defaults for those left out.
fn parameters(info: &Info, label: &str, written: Option<&str>) -> Result<Vec<u32>, Error> {
    let written: Vec<&str> = written.map_or_else(Vec::new, |list| list.split(',').map(str::trim).collect());
    if written.len() > info.parameters.len() {
        let names: Vec<&str> = info.parameters.iter().map(|parameter| parameter.name).collect();
        let accepted = match names.as_slice() {
            [] => format!("{} has none", info.name),
            names => format!("{} has {}: {}", info.name, names.len(), names.join(", ")),
        };
        return Err(Error::ParameterCount { request: label.to_owned(), found: written.len(), accepted });
    }
    let mut values = Vec::with_capacity(info.parameters.len());
    for (index, parameter) in info.parameters.iter().enumerate() {
        let scale = if parameter.is_integer { 1 } else { MULTIPLIER_SCALE };
        values.push(match written.get(index) {
            Some(text) => read(info, parameter, scale, text)?,
            None => (parameter.default * f64::from(scale)).round() as u32,
        });
    }
    Ok(values)
}

fn read(info: &Info, parameter: &Parameter, scale: u32, text: &str) -> Result<u32, Error> {
    let refused = || {
        let sort = if parameter.is_integer { "a whole number" } else { "a number with at most four decimals" };
        Error::Parameter {
            field: format!("{} {}", info.name, parameter.name),
            value: text.to_owned(),
            accepted: format!("{sort} from {} to {}", parameter.min, parameter.max),
        }
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_number = !whole.is_empty() && whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit());
    let is_complete = !text.ends_with('.') && (parameter.is_integer == (scale == 1)) && fraction.len() <= 4;
    if !is_number || !is_complete || (parameter.is_integer && text.contains('.')) {
        return Err(refused());
    }
    let value: f64 = text.parse().map_err(|_| refused())?;
    if value < parameter.min || value > parameter.max {
        return Err(refused());
    }
    // Exact: at most some hundreds in ten-thousandths, or a whole number of at most five digits.
    Ok((value * f64::from(scale)).round() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Spec {
        text.parse().unwrap()
    }

    #[test]
    fn every_catalogue_entry_parses_to_itself_with_its_defaults() {
        for (info, profile) in catalogue().iter().flat_map(|info| Profile::ALL.map(|profile| (info, profile))) {
            let Some(defined) = info.in_profile(profile) else { continue };
            let spec = parse(&format!("{}@{}", info.name, profile.name()));
            assert_eq!((spec.info().name, spec.info().profile), (info.name, defined.profile));
            assert!(defined.parameters.len() <= Values::MOST, "{spec}");
            assert_eq!(parse(&spec.to_string()).values, spec.values, "{spec}");
            assert_eq!((parse(&spec.to_string()).to_string(), defined.outputs), (spec.to_string(), info.outputs));
        }
    }

    #[test]
    fn label_is_as_requested_and_display_is_canonical() {
        for (text, label, canonical) in [
            ("RSI", "rsi", "rsi:14"),
            (" Sma:009 ", "sma:009", "sma:9"),
            ("bbands", "bbands", "bbands:20,2"),
            ("bbands:20, 2.50", "bbands:20, 2.50", "bbands:20,2.5"),
            ("macd:5", "macd:5", "macd:5,26,9"),
            ("stoch", "stoch", "stoch:14,3,3"),
            ("vwap", "vwap", "vwap"),
            ("RSI:9@TradingView", "rsi:9@tradingview", "rsi:9@tradingview"),
            ("rsi@talib", "rsi@talib", "rsi:14"),
            ("macd:5 @ tradingview", "macd:5 @ tradingview", "macd:5,26,9@tradingview"),
            // One definition in both profiles, so one cache entry.
            ("bbands@tradingview", "bbands@tradingview", "bbands:20,2"),
            ("vwap@tradingview", "vwap@tradingview", "vwap"),
            ("ema:9@tradingview", "ema:9@tradingview", "ema:9"),
            // A profile has its own parameters and defaults.
            ("stochrsi@tradingview", "stochrsi@tradingview", "stochrsi:14,14,3,3@tradingview"),
            ("keltner:10@tradingview", "keltner:10@tradingview", "keltner:10,20,2@tradingview"),
        ] {
            let spec = parse(text);
            assert_eq!((spec.label(), spec.to_string().as_str()), (label, canonical));
        }
    }

    #[test]
    fn columns_carry_the_output_only_when_there_are_several() {
        assert_eq!(parse("adx").columns(), ["adx"]);
        assert_eq!(parse("stoch:5,1,3").columns(), ["stoch:5,1,3.k", "stoch:5,1,3.d"]);
        assert_eq!(parse("bbands").columns()[4], "bbands.width_normalized");
        assert_eq!(parse("stoch@tradingview").columns(), ["stoch@tradingview.k", "stoch@tradingview.d"]);
    }

    #[test]
    fn refusals_name_the_value_and_what_is_accepted() {
        for (text, part) in [
            ("nope:3", "unknown indicator \"nope\", known are sma, ema"),
            ("", "unknown indicator \"\""),
            ("sma:0", "sma period is \"0\", accepted is a whole number from 1 to 10000"),
            ("sma:10001", "\"10001\""),
            ("sma:9.0", "sma period is \"9.0\""),
            ("sma:-3", "\"-3\""),
            ("sma:+3", "\"+3\""),
            ("sma:", "sma period is \"\""),
            ("sma:1e3", "\"1e3\""),
            ("rsi:1", "from 2 to 10000"),
            ("bbands:20,0", "bbands multiplier is \"0\""),
            ("bbands:20,1.23456", "at most four decimals"),
            ("bbands:20,2.", "\"2.\""),
            ("bbands:20,nan", "\"nan\""),
            ("sma:3,4", "\"sma:3,4\" has 2 parameters, sma has 1: period"),
            ("vwap:3", "vwap has none"),
            ("rsi:14@tv", "profile is \"tv\", accepted is talib or tradingview"),
            ("rsi:14@", "profile is \"\""),
            ("ema@tradingview:9", "profile is \"tradingview:9\""),
            ("rsi@talib@tradingview", "unknown indicator \"rsi@talib\""),
            (
                "kama@tradingview",
                "kama profile is \"tradingview\", accepted is talib: there is no other definition of kama",
            ),
            ("rsi:1@tradingview", "rsi period is \"1\""),
            ("stochrsi:14,14,3,3", "\"stochrsi:14,14,3,3\" has 4 parameters, stochrsi has 3"),
            ("macd:26,12@tradingview", "macd fast is \"26\""),
            ("macd:26,12", "macd fast is \"26\", accepted is less than the slow period, 12"),
        ] {
            let message = text.parse::<Spec>().unwrap_err().to_string();
            assert!(message.contains(part), "{text:?} gave {message:?}");
        }
        assert!("sma:".repeat(40).parse::<Spec>().unwrap_err().to_string().contains("at most 64 bytes"));
    }
}

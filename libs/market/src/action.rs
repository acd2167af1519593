//! Corporate actions, and the factors they put on earlier candles.
//!
//! Stored candles are never altered: a reader that asks for adjusted ones multiplies by the factors of the actions whose ex-date is
//! later than the candle's trading date. Splits are kept apart from dividends, since volume follows only the former.

use std::fmt;
use std::str::FromStr;

use crate::{Candle, Date, Error, Result};

/// Largest ratio of a split, either way: beyond any real one, and small enough that the product of many stays finite.
const MAX_SPLIT_RATIO: f64 = 1e6;

/// What happens on an ex-date.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ActionTerms {
    /// `to` shares for `from` shares.
    Split { from: f64, to: f64 },
    /// Cash per share, in the instrument's currency, for the shares there are on the ex-date.
    Dividend { amount: f64 },
}

/// Splits come before dividends of the same date: the dividend is paid on the shares after the split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActionKind {
    Split,
    Dividend,
}

/// One split or dividend of an instrument. An instrument has at most one of a kind per date.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CorporateAction {
    /// First trading date without the right; candles of earlier dates are adjusted.
    pub ex_date: Date,
    pub terms: ActionTerms,
}

/// How candles before a split or a dividend are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Adjustment {
    /// As stored.
    #[default]
    Raw,
    Splits,
    SplitsAndDividends,
}

/// What the candles of a trading date are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factor {
    /// Product of `to / from` of the later splits; prices are divided by it.
    split_ratio: f64,
    /// Product of `1 - amount / close before` of the later dividends; at most 1.
    dividend: f64,
}

/// The factors of an instrument's actions, by trading date.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Factors {
    /// By ex-date, ascending: the factor of every date before it and not before the one before.
    steps: Vec<(Date, Factor)>,
}

impl CorporateAction {
    pub fn kind(&self) -> ActionKind {
        match self.terms {
            ActionTerms::Split { .. } => ActionKind::Split,
            ActionTerms::Dividend { .. } => ActionKind::Dividend,
        }
    }

    /// Checks that the numbers are positive and finite, and that a split's ratio is one a split can have.
    ///
    /// Errors: [`Error::OutOfRange`] naming `split.from`, `split.to` or `dividend.amount`.
    pub fn check(&self) -> Result<()> {
        let is_positive = |value: f64| value.is_finite() && value > 0.0;
        let refuse = |field, value: f64, accepted: &str| Error::OutOfRange {
            field,
            value: format!("{value} given; accepted: {accepted}"),
        };
        match self.terms {
            ActionTerms::Split { from, .. } if !is_positive(from) => {
                Err(refuse("split.from", from, "a finite number above 0"))
            }
            ActionTerms::Split { to, .. } if !is_positive(to) => Err(refuse("split.to", to, "a finite number above 0")),
            ActionTerms::Split { from, to } if !(1.0 / MAX_SPLIT_RATIO..=MAX_SPLIT_RATIO).contains(&(to / from)) => {
                Err(refuse("split.to", to, &format!("from {from} to at most a millionfold, or the reverse")))
            }
            ActionTerms::Dividend { amount } if !is_positive(amount) => {
                Err(refuse("dividend.amount", amount, "a finite number above 0"))
            }
            _ => Ok(()),
        }
    }
}

impl Factor {
    /// Price, adjusted. Rounded once for the splits and once for the dividends; an order between prices survives, so low <= open,
    /// close <= high still hold.
    pub fn price(&self, price: f64) -> f64 {
        price / self.split_ratio * self.dividend
    }

    pub fn volume(&self, volume: f64) -> f64 {
        volume * self.split_ratio
    }

    /// A candle with its prices and its volume adjusted; open interest is left as stored.
    pub fn candle(&self, candle: &Candle) -> Candle {
        Candle {
            open: self.price(candle.open),
            high: self.price(candle.high),
            low: self.price(candle.low),
            close: self.price(candle.close),
            volume: self.volume(candle.volume),
            ..*candle
        }
    }
}

impl Factors {
    /// Factors of checked actions, given in any order. `close_before` answers the raw close of the trading date before an ex-date; it is
    /// asked for the dividends only, and only where they count. Where it knows none there is no candle to adjust, and the
    /// dividend is left out.
    ///
    /// Errors: [`Error::OutOfRange`] naming `dividend.amount` where a dividend is not smaller than that close.
    pub fn new(
        actions: &[CorporateAction],
        adjustment: Adjustment,
        mut close_before: impl FnMut(Date) -> Option<f64>,
    ) -> Result<Factors> {
        let mut actions: Vec<&CorporateAction> = actions.iter().filter(|action| adjustment.counts(action)).collect();
        actions.sort_by_key(|action| (action.ex_date, action.kind()));
        let mut steps: Vec<(Date, Factor)> = Vec::with_capacity(actions.len());
        let mut factor = Factor { split_ratio: 1.0, dividend: 1.0 };
        // From the newest back: a candle is touched by all that came after it. Of one date the dividend comes first here.
        for (index, action) in actions.iter().enumerate().rev() {
            match action.terms {
                ActionTerms::Split { from, to } => factor.split_ratio *= to / from,
                ActionTerms::Dividend { amount } => {
                    let Some(close) = close_before(action.ex_date) else { continue };
                    let split = index.checked_sub(1).map(|before| actions[before]);
                    let split = split.filter(|split| split.ex_date == action.ex_date).map(|split| split.terms);
                    // The close before a split is of larger shares than those the dividend is paid on.
                    let ratio = if let Some(ActionTerms::Split { from, to }) = split { to / from } else { 1.0 };
                    let share = amount * ratio / close;
                    if !(0.0..1.0).contains(&share) {
                        return Err(Error::OutOfRange {
                            field: "dividend.amount",
                            value: format!(
                                "{amount} on ex-date {} is not below {close}, the close of the trading date before",
                                action.ex_date
                            ),
                        });
                    }
                    factor.dividend *= 1.0 - share;
                }
            }
            match steps.last_mut() {
                Some((date, step)) if *date == action.ex_date => *step = factor,
                _ => steps.push((action.ex_date, factor)),
            }
        }
        steps.reverse();
        Ok(Factors { steps })
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The factor of a trading date; `None` where its candles are shown as stored.
    pub fn at(&self, date: Date) -> Option<Factor> {
        let next = self.steps.partition_point(|(ex_date, _)| *ex_date <= date);
        self.steps.get(next).map(|(_, factor)| *factor)
    }
}

impl Adjustment {
    /// Whether an action counts.
    pub fn counts(&self, action: &CorporateAction) -> bool {
        match self {
            Adjustment::Raw => false,
            Adjustment::Splits => action.kind() == ActionKind::Split,
            Adjustment::SplitsAndDividends => true,
        }
    }

    pub fn as_str(&self) -> &'static str {
        match self {
            Adjustment::Raw => "raw",
            Adjustment::Splits => "splits",
            Adjustment::SplitsAndDividends => "splits_and_dividends",
        }
    }
}

impl fmt::Display for Adjustment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Adjustment {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Adjustment::Raw, Adjustment::Splits, Adjustment::SplitsAndDividends];
        all.into_iter().find(|adjustment| adjustment.as_str() == text).ok_or_else(|| Error::OutOfRange {
            field: "adjustment",
            value: format!("'{text}' given; accepted: raw, splits, splits_and_dividends"),
        })
    }
}

impl ActionKind {
    pub fn as_str(&self) -> &'static str {
        match self {
            ActionKind::Split => "split",
            ActionKind::Dividend => "dividend",
        }
    }
}

impl FromStr for ActionKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "split" => Ok(ActionKind::Split),
            "dividend" => Ok(ActionKind::Dividend),
            _ => Err(Error::OutOfRange { field: "kind", value: format!("'{text}' given; accepted: split, dividend") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(date: &str, from: f64, to: f64) -> CorporateAction {
        CorporateAction { ex_date: date.parse().unwrap(), terms: ActionTerms::Split { from, to } }
    }

    fn dividend(date: &str, amount: f64) -> CorporateAction {
        CorporateAction { ex_date: date.parse().unwrap(), terms: ActionTerms::Dividend { amount } }
    }

    fn price(factors: &Factors, date: &str, price: f64) -> f64 {
        factors.at(date.parse().unwrap()).map_or(price, |factor| factor.price(price))
    }

    #[test]
    fn an_action_touches_the_dates_before_its_ex_date_only() {
        let factors = Factors::new(&[split("2014-06-09", 1.0, 7.0)], Adjustment::Splits, |_| None).unwrap();
        // Apple closed at 645.57 on the Friday before its split of 7 for 1.
        assert_eq!(price(&factors, "2014-06-06", 645.57), 645.57 / 7.0);
        assert_eq!(price(&factors, "2014-06-09", 93.7), 93.7);
        let factor = factors.at("2014-06-06".parse().unwrap()).unwrap();
        assert_eq!(factor.volume(12_497_800.0), 12_497_800.0 * 7.0);
    }

    #[test]
    fn later_splits_multiply_and_each_mode_counts_its_own() {
        let actions = [dividend("2020-05-04", 10.0), split("2020-03-02", 1.0, 2.0), split("2020-08-03", 2.0, 3.0)];
        let close = |_| Some(100.0);
        let splits = Factors::new(&actions, Adjustment::Splits, close).unwrap();
        let prices = ["2020-01-01", "2020-03-02", "2020-05-04", "2020-08-03"].map(|date| price(&splits, date, 300.0));
        assert_eq!(prices, [100.0, 200.0, 200.0, 300.0]);
        let all = Factors::new(&actions, Adjustment::SplitsAndDividends, close).unwrap();
        let prices = ["2020-01-01", "2020-03-02", "2020-05-04", "2020-08-03"].map(|date| price(&all, date, 300.0));
        assert_eq!(prices, [90.0, 180.0, 200.0, 300.0]);
        assert!(Factors::new(&actions, Adjustment::Raw, close).unwrap().is_empty());
    }

    #[test]
    fn a_dividend_on_the_date_of_a_split_is_paid_on_the_new_shares() {
        let actions = [dividend("2020-08-03", 1.0), split("2020-08-03", 1.0, 4.0)];
        let factors = Factors::new(&actions, Adjustment::SplitsAndDividends, |_| Some(400.0)).unwrap();
        // 400 is 100 after the split, of which 1 is paid.
        assert_eq!(price(&factors, "2020-07-31", 400.0), 99.0);
    }

    #[test]
    fn a_dividend_without_a_close_before_it_has_nothing_to_adjust_and_a_larger_one_is_refused() {
        let actions = [dividend("2020-08-03", 1.0)];
        assert!(Factors::new(&actions, Adjustment::SplitsAndDividends, |_| None).unwrap().is_empty());
        let refused = Factors::new(&actions, Adjustment::SplitsAndDividends, |_| Some(1.0)).unwrap_err();
        assert_eq!(refused.field(), "dividend.amount");
        assert!(refused.to_string().contains("2020-08-03"));
    }

    #[test]
    fn numbers_that_no_action_has_are_refused_by_field() {
        for (action, field) in [
            (split("2020-01-01", 0.0, 2.0), "split.from"),
            (split("2020-01-01", 1.0, f64::NAN), "split.to"),
            (split("2020-01-01", 1.0, 1e7), "split.to"),
            (split("2020-01-01", 1e7, 1.0), "split.to"),
            (dividend("2020-01-01", -0.5), "dividend.amount"),
            (dividend("2020-01-01", f64::INFINITY), "dividend.amount"),
        ] {
            assert_eq!(action.check().unwrap_err().field(), field);
        }
        assert_eq!(split("2020-01-01", 10.0, 1.0).check(), Ok(()));
        assert_eq!("both".parse::<Adjustment>().unwrap_err().field(), "adjustment");
    }

    #[test]
    fn an_adjusted_candle_is_still_a_candle() {
        let candle = Candle {
            open_time: 0,
            open: 10.03,
            high: 10.07,
            low: 10.01,
            close: 10.03,
            volume: 7.0,
            open_interest: None,
        };
        for to in 1..200 {
            let actions = [split("2020-01-01", 3.0, f64::from(to)), dividend("2020-01-02", 0.37)];
            let factors = Factors::new(&actions, Adjustment::SplitsAndDividends, |_| Some(11.11)).unwrap();
            let adjusted = factors.at("2019-01-01".parse().unwrap()).unwrap().candle(&candle);
            assert_eq!(adjusted.check(), Ok(()), "{to} for 3");
        }
    }
}

//! Which timeframe rows are of, by the steps between their stamps.

use market::{Millis, Timeframe};

const MINUTE_MS: Millis = 60_000;
const DAY_MS: Millis = 1440 * MINUTE_MS;
/// Rows that must all fit a wider timeframe before a file is refused as one: of a thin market's minutes, this many on even minutes only is a chance of one in a thousand million.
const CERTAIN_ROWS: u64 = 30;
/// The same for steps of a day and more, which minutes of a traded market do not take twice in a row.
const CERTAIN_DAYS: u64 = 2;

/// Steps between neighbouring rows of one instrument, in either direction.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    count: u64,
    smallest: Option<Millis>,
    /// Greatest common divisor of all steps.
    divisor: Millis,
}

impl Steps {
    /// Takes stamps within [`market::TimeRange::ALL`], in file order.
    pub(crate) fn take(&mut self, stamps: impl Iterator<Item = Millis>) {
        let mut last: Option<Millis> = None;
        for at in stamps {
            let step = last.map_or(0, |last| (at - last).abs());
            last = Some(at);
            if step > 0 {
                self.count += 1;
                self.smallest = Some(self.smallest.map_or(step, |smallest| smallest.min(step)));
                self.divisor = common_divisor(self.divisor, step);
            }
        }
    }

    /// The widest timeframe every step fits.
    fn timeframe(&self) -> Option<Timeframe> {
        let smallest = self.smallest?;
        Timeframe::ALL.into_iter().rev().find(|timeframe| match timeframe.width_ms() {
            Some(width) => self.divisor % width == 0,
            None => smallest >= least_step(*timeframe),
        })
    }
}

fn common_divisor(a: Millis, b: Millis) -> Millis {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// Two rows of a timeframe are at least this far apart. Days that are stamped by the open of their session shrink by an hour when
/// clocks change, and to 15 hours after an evening session (NSE at Diwali); weeks and months may begin on their first trading date.
pub(crate) fn least_step(timeframe: Timeframe) -> Millis {
    match timeframe {
        Timeframe::D1 => 12 * 60 * MINUTE_MS,
        Timeframe::W1 => 5 * DAY_MS,
        Timeframe::Mo1 => 25 * DAY_MS,
        inside_a_day => inside_a_day.width_ms().unwrap_or(MINUTE_MS),
    }
}

pub(crate) fn too_close(timeframe: Timeframe, step: Millis) -> String {
    let minutes = step / MINUTE_MS;
    format!(
        "rows are {minutes} minutes apart, closer than the timeframe {timeframe}: pass the --timeframe the file is of"
    )
}

/// The timeframe of a file: the stated one where the rows allow it, else what the rows say, else what the format says.
///
/// Errors: the rows contradict the stated timeframe, or there are too few to tell.
pub(crate) fn decide(stated: Option<Timeframe>, hint: Option<Timeframe>, steps: &Steps) -> Result<Timeframe, String> {
    let Some(stated) = stated.or(hint) else {
        return steps.timeframe().ok_or_else(|| {
            "one row does not tell its timeframe: pass --timeframe, for example --timeframe 1m".to_owned()
        });
    };
    let Some(smallest) = steps.smallest else { return Ok(stated) };
    if smallest < least_step(stated) {
        return Err(too_close(stated, smallest));
    }
    let Some(found) = steps.timeframe() else { return Ok(stated) };
    let wider = least_step(found) > least_step(stated);
    let certain = match found.width_ms() {
        Some(_) => steps.count >= CERTAIN_ROWS,
        None => steps.count >= CERTAIN_DAYS,
    };
    match wider && certain {
        true => {
            Err(format!("the file is said to be of {stated}, its rows are {found} candles: pass --timeframe {found}"))
        }
        false => Ok(stated),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(minutes: &[i64]) -> Steps {
        let mut steps = Steps::default();
        steps.take(minutes.iter().map(|minute| minute * MINUTE_MS));
        steps
    }

    #[test]
    fn rows_say_their_timeframe_over_gaps_and_swaps() {
        assert_eq!(decide(None, None, &steps(&[0, 1, 3, 2, 900])), Ok(Timeframe::M1));
        assert_eq!(decide(None, None, &steps(&[0, 15, 30, 1440])), Ok(Timeframe::M15));
        // A day of 23 hours, a weekend.
        assert_eq!(decide(None, None, &steps(&[0, 1440, 2820, 4260, 8580])), Ok(Timeframe::D1));
        assert_eq!(decide(None, None, &steps(&[0, 31 * 1440, 59 * 1440])), Ok(Timeframe::Mo1));
        assert!(decide(None, None, &steps(&[5])).unwrap_err().contains("--timeframe"));
        assert_eq!(decide(None, Some(Timeframe::M1), &steps(&[5])), Ok(Timeframe::M1));
    }

    #[test]
    fn a_stated_timeframe_the_rows_contradict_is_refused() {
        let refused = decide(Some(Timeframe::D1), None, &steps(&[0, 1, 2])).unwrap_err();
        assert!(refused.contains("1 minutes apart, closer than the timeframe 1d"), "{refused}");
        let refused = decide(Some(Timeframe::M1), None, &steps(&[0, 31 * 1440, 59 * 1440])).unwrap_err();
        assert!(refused.contains("its rows are 1mo candles: pass --timeframe 1mo"), "{refused}");
        let quarters: Vec<i64> = (0..40).map(|row| row * 15).collect();
        assert!(decide(Some(Timeframe::M1), None, &steps(&quarters)).is_err());
        // A thin market: three trades, hours apart.
        assert_eq!(decide(Some(Timeframe::M1), None, &steps(&[0, 120, 360])), Ok(Timeframe::M1));
    }
}

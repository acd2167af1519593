use std::collections::VecDeque;

use crate::Error;
use crate::sequence::require;
use crate::width::{State, Width};

const HOUR_MS: i64 = 3_600_000;

/// When a state is worth an alert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AlertParams {
    /// Shortest time between two alerts of one instrument, 0..=86 400 000.
    pub cooldown_ms: i64,
    /// Alerts of all instruments in any hour, 1..=10 000.
    pub max_per_hour: u32,
    /// A narrow state is left only once the rank exceeds this percentage, so that a width on the edge does not flap, 0..=100.
    pub release_percent: f64,
}

impl Default for AlertParams {
    fn default() -> Self {
        AlertParams { cooldown_ms: 180_000, max_per_hour: 100, release_percent: 10.0 }
    }
}

/// One alert: the instrument of the watch came into this state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alert {
    pub state: State,
    pub at_ms: i64,
    pub width: Width,
}

/// What one instrument was last alerted for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Watch {
    held: Option<State>,
    last_alert_ms: Option<i64>,
}

/// The hourly limit that all watches share. Holds at most `max_per_hour` times.
#[derive(Debug, Clone, Default)]
pub struct AlertBudget {
    sent_ms: VecDeque<i64>,
    dropped: u64,
}

impl AlertParams {
    /// Refuses values outside their ranges, naming the field.
    pub fn check(&self) -> Result<(), Error> {
        require((0..=24 * HOUR_MS).contains(&self.cooldown_ms), "cooldown_ms", self.cooldown_ms, "0..=86400000")?;
        require((1..=10_000).contains(&self.max_per_hour), "max_per_hour", self.max_per_hour, "1..=10000")?;
        require((0.0..=100.0).contains(&self.release_percent), "release_percent", self.release_percent, "0..=100")
    }
}

impl Watch {
    /// Takes in a width and says whether it raises an alert.
    ///
    /// Entering a state alerts once. A squeeze or in-range state is held until the rank rises above `release_percent`, and moving between
    /// the two is no new alert; contracting is held while the width narrows. An alert that falls into the cooldown or over the budget is
    /// not sent later: the state stays held. `now_ms` must not run backwards.
    pub fn observe(
        &mut self,
        width: &Width,
        now_ms: i64,
        params: &AlertParams,
        budget: &mut AlertBudget,
    ) -> Option<Alert> {
        let is_held = match self.held {
            Some(State::InRange | State::Squeeze) => {
                matches!(width.state, State::InRange | State::Squeeze) || width.percentile <= params.release_percent
            }
            Some(State::Contracting) => width.state == State::Contracting,
            Some(State::Normal) | None => false,
        };
        if is_held {
            return None;
        }
        self.held = Some(width.state);
        if width.state == State::Normal {
            return None;
        }
        let is_cooling = self.last_alert_ms.is_some_and(|last| now_ms - last < params.cooldown_ms);
        if is_cooling || !budget.take(now_ms, params.max_per_hour) {
            return None;
        }
        self.last_alert_ms = Some(now_ms);
        Some(Alert { state: width.state, at_ms: now_ms, width: *width })
    }
}

impl AlertBudget {
    /// Alerts that were over the limit since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn take(&mut self, now_ms: i64, max_per_hour: u32) -> bool {
        while self.sent_ms.front().is_some_and(|sent| now_ms - sent >= HOUR_MS) {
            self.sent_ms.pop_front();
        }
        if self.sent_ms.len() >= max_per_hour as usize {
            self.dropped += 1;
            return false;
        }
        self.sent_ms.push_back(now_ms);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn width(state: State, percentile: f64) -> Width {
        Width {
            absolute: 1.0,
            normalised: 0.1,
            percent: 10.0,
            percentile,
            history_count: 126,
            contracting_count: 0,
            contracting_change_percent: 0.0,
            is_squeeze: percentile <= 10.0,
            state,
        }
    }

    #[test]
    fn a_squeeze_alerts_once_until_it_is_released() {
        let (mut watch, mut budget, params) = (Watch::default(), AlertBudget::default(), AlertParams::default());
        let mut at = 0;
        let mut observe = |state, percentile| {
            at += 300_000;
            watch.observe(&width(state, percentile), at, &params, &mut budget).map(|alert| alert.state)
        };
        assert_eq!(observe(State::Normal, 50.0), None);
        assert_eq!(observe(State::Squeeze, 4.0), Some(State::Squeeze));
        assert_eq!(observe(State::Normal, 7.0), None, "still narrow");
        assert_eq!(observe(State::Squeeze, 4.0), None, "never left");
        assert_eq!(observe(State::InRange, 1.0), None);
        assert_eq!(observe(State::Normal, 11.0), None, "released");
        assert_eq!(observe(State::InRange, 1.0), Some(State::InRange));
        assert_eq!(observe(State::Contracting, 60.0), Some(State::Contracting), "released into another state");
    }

    #[test]
    fn the_cooldown_is_180_seconds_per_instrument() {
        let (mut budget, params) = (AlertBudget::default(), AlertParams::default());
        let mut sent_after = |pause_ms: i64| {
            let mut watch = Watch::default();
            assert!(watch.observe(&width(State::Squeeze, 1.0), 0, &params, &mut budget).is_some());
            assert!(watch.observe(&width(State::Normal, 90.0), 1, &params, &mut budget).is_none());
            watch.observe(&width(State::Squeeze, 1.0), pause_ms, &params, &mut budget).is_some()
        };
        assert!(!sent_after(179_999));
        assert!(sent_after(180_000));
    }

    #[test]
    fn the_budget_is_100_in_any_hour() {
        let (mut budget, params) = (AlertBudget::default(), AlertParams::default());
        let mut send = |at| Watch::default().observe(&width(State::Squeeze, 1.0), at, &params, &mut budget).is_some();
        assert_eq!((0..150).filter(|at| send(*at)).count(), 100);
        assert!(!send(HOUR_MS - 1));
        assert!(send(HOUR_MS), "the first has left the hour");
        assert!(!send(HOUR_MS), "the second has not");
        assert_eq!(budget.dropped(), 52);
    }
}

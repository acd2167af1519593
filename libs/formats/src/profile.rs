//! What a file's rows look like: order, repetition, gaps and silence, counted while they pass.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use market::{Candle, InstrumentKey, Millis, Timeframe};
use serde::Serialize;

/// Rows compared with later ones of the same stamp. A year of minutes of a market that never closes is 525 600; memory is bounded by this.
const REMEMBERED_ROWS: usize = 900_000;
/// Conflicts kept with both lines; all are counted.
const MAX_CONFLICTS: usize = 1000;

/// Two rows of one stamp that differ; the later one is the one that counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conflict {
    pub open_time: Millis,
    pub earlier_line: u64,
    pub line: u64,
}

/// The rows of one instrument of a file, in file order. Rows that could not be used are not among them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    #[serde(serialize_with = "as_text")]
    pub instrument: InstrumentKey,
    #[serde(serialize_with = "as_text")]
    pub timeframe: Timeframe,
    pub rows: u64,
    /// Open times of the first and last row, in file order.
    pub first: Millis,
    pub last: Millis,
    pub earliest: Millis,
    pub latest: Millis,
    /// Rows equal to the row before of their stamp.
    pub repeated: u64,
    /// Rows that differ from the row before of their stamp.
    pub conflicting: u64,
    /// The first conflicts, with their lines.
    pub conflicts: Vec<Conflict>,
    /// Rows older than the row before them; all but the first in a file that is newest first.
    pub steps_backwards: u64,
    /// Every step goes backwards: gaps are those of the reversed file.
    pub newest_first: bool,
    /// Steps longer than the timeframe, nights and weekends included; not counted for 1d and wider.
    pub gaps: u64,
    /// The longest step, in minutes.
    pub longest_gap_min: u64,
    pub zero_volume: u64,
    /// Rows with a price of zero or below, which spreads and some futures have and shares do not.
    pub not_positive: u64,
    /// Rows refused because their stamp is not on a minute.
    pub off_minute: u64,
    /// Rows too far from where they belong to be compared with what came before.
    pub not_compared: u64,
}

fn as_text<T: std::fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Steps of one direction.
#[derive(Debug, Default)]
struct Steps {
    count: u64,
    gaps: u64,
    longest: Millis,
}

impl Steps {
    fn take(&mut self, step: Millis, width: Option<Millis>) {
        self.count += 1;
        self.longest = self.longest.max(step);
        self.gaps += u64::from(width.is_some_and(|width| step > width));
    }
}

#[derive(Debug)]
struct Running {
    profile: Profile,
    forwards: Steps,
    backwards: Steps,
    /// The latest stamp that is no longer remembered.
    forgotten: Option<Millis>,
}

/// Profiles of every instrument of a file.
#[derive(Debug, Default)]
pub(crate) struct Profiler {
    running: Vec<Running>,
    index: HashMap<InstrumentKey, usize>,
    seen: HashMap<(usize, Millis), (u64, u64)>,
    order: VecDeque<(usize, Millis)>,
}

impl Profiler {
    pub(crate) fn row(&mut self, instrument: &InstrumentKey, timeframe: Timeframe, candle: &Candle, line: u64) {
        let at = candle.open_time;
        let index = self.of(instrument, timeframe, at);
        let running = &mut self.running[index];
        let profile = &mut running.profile;
        if profile.rows > 0 {
            let step = at - profile.last;
            match step {
                0 => {}
                1.. => running.forwards.take(step, timeframe.width_ms()),
                _ => running.backwards.take(-step, timeframe.width_ms()),
            }
        } else {
            (profile.first, profile.earliest, profile.latest) = (at, at, at);
        }
        profile.rows += 1;
        profile.last = at;
        profile.earliest = profile.earliest.min(at);
        profile.latest = profile.latest.max(at);
        profile.zero_volume += u64::from(candle.volume == 0.0);
        // The low is the least of them: rows are checked.
        profile.not_positive += u64::from(candle.low <= 0.0);
        self.compare(index, candle, line);
    }

    pub(crate) fn off_minute(&mut self, instrument: &InstrumentKey, timeframe: Timeframe, at: Millis) {
        let index = self.of(instrument, timeframe, at);
        self.running[index].profile.off_minute += 1;
    }

    fn compare(&mut self, index: usize, candle: &Candle, line: u64) {
        let at = candle.open_time;
        let running = &mut self.running[index];
        let print = fingerprint(candle);
        match self.seen.insert((index, at), (print, line)) {
            Some((earlier, earlier_line)) => {
                if earlier == print {
                    running.profile.repeated += 1;
                } else {
                    running.profile.conflicting += 1;
                    if running.profile.conflicts.len() < MAX_CONFLICTS {
                        running.profile.conflicts.push(Conflict { open_time: at, earlier_line, line });
                    }
                }
            }
            None => {
                if running.forgotten.is_some_and(|forgotten| at <= forgotten) {
                    running.profile.not_compared += 1;
                }
                self.order.push_back((index, at));
                if self.order.len() > REMEMBERED_ROWS
                    && let Some((index, at)) = self.order.pop_front()
                {
                    self.seen.remove(&(index, at));
                    let forgotten = &mut self.running[index].forgotten;
                    *forgotten = Some(forgotten.map_or(at, |before| before.max(at)));
                }
            }
        }
    }

    fn of(&mut self, instrument: &InstrumentKey, timeframe: Timeframe, at: Millis) -> usize {
        if let Some(index) = self.index.get(instrument) {
            return *index;
        }
        let profile = Profile {
            instrument: instrument.clone(),
            timeframe,
            rows: 0,
            first: at,
            last: at,
            earliest: at,
            latest: at,
            repeated: 0,
            conflicting: 0,
            conflicts: Vec::new(),
            steps_backwards: 0,
            newest_first: false,
            gaps: 0,
            longest_gap_min: 0,
            zero_volume: 0,
            not_positive: 0,
            off_minute: 0,
            not_compared: 0,
        };
        let (forwards, backwards) = Default::default();
        self.running.push(Running { profile, forwards, backwards, forgotten: None });
        self.index.insert(instrument.clone(), self.running.len() - 1);
        self.running.len() - 1
    }

    /// The profiles, in order of first appearance.
    pub(crate) fn finish(self) -> Vec<Profile> {
        let finished = |running: Running| {
            let Running { mut profile, forwards, backwards, .. } = running;
            profile.steps_backwards = backwards.count;
            profile.newest_first = forwards.count == 0 && backwards.count > 0;
            let steps = if profile.newest_first { backwards } else { forwards };
            profile.gaps = steps.gaps;
            profile.longest_gap_min = (steps.longest / 60_000).unsigned_abs();
            profile
        };
        self.running.into_iter().map(finished).collect()
    }
}

fn fingerprint(candle: &Candle) -> u64 {
    let mut hasher = DefaultHasher::new();
    let interest = candle.open_interest.map(f64::to_bits);
    (candle.open.to_bits(), candle.high.to_bits(), candle.low.to_bits()).hash(&mut hasher);
    (candle.close.to_bits(), candle.volume.to_bits(), interest).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(rows: &[(i64, f64)]) -> Profile {
        let key: InstrumentKey = "US|SPY".parse().unwrap();
        let mut profiler = Profiler::default();
        for (line, (minute, price)) in rows.iter().enumerate() {
            let candle = Candle {
                open_time: minute * 60_000,
                open: *price,
                high: *price,
                low: *price,
                close: *price,
                volume: 0.0,
                open_interest: None,
            };
            profiler.row(&key, Timeframe::M1, &candle, line as u64 + 2);
        }
        profiler.finish().remove(0)
    }

    #[test]
    fn equal_and_conflicting_repetitions_are_told_apart() {
        let profile = profile(&[(1, 5.0), (2, 5.0), (2, 5.0), (1, 6.0), (4, 5.0), (10, 5.0)]);
        assert_eq!((profile.rows, profile.repeated, profile.conflicting), (6, 1, 1));
        assert_eq!(profile.conflicts, [Conflict { open_time: 60_000, earlier_line: 2, line: 5 }]);
        assert_eq!((profile.steps_backwards, profile.gaps, profile.longest_gap_min), (1, 2, 6));
        assert_eq!((profile.zero_volume, profile.newest_first), (6, false));
    }

    #[test]
    fn a_file_that_is_newest_first_has_the_gaps_of_its_reverse() {
        let profile = profile(&[(10, 1.0), (4, 1.0), (3, 1.0)]);
        assert!(profile.newest_first);
        assert_eq!((profile.steps_backwards, profile.gaps, profile.longest_gap_min), (2, 1, 6));
        assert_eq!((profile.first, profile.earliest), (600_000, 180_000));
    }
}

//! Whether the buckets of one trading day have closed, and hold the rows they should.

use super::{Bars, bucket};

/// What a trading day's buckets are measured by. Units: milliseconds since the epoch, and milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Hours<'a> {
    /// The day's bounds: no bucket reaches beyond them.
    pub start: i64,
    pub end: i64,
    /// Buckets start at `anchor` plus a multiple of `width_ms`.
    pub anchor: i64,
    pub width_ms: i64,
    /// Width of a row; divides `width_ms`.
    pub source_ms: i64,
    /// Opens and closes of the regular sessions, in order, disjoint.
    pub sessions: &'a [(i64, i64)],
    /// Buckets that end by now are closed.
    pub now: i64,
}

/// Columns beside those of [`Bars`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    pub closed: Vec<bool>,
    /// Closed, and no row that a session should give is missing.
    pub complete: Vec<bool>,
    /// Rows that the sessions make in the bucket; outside the sessions, rows that fit into it.
    pub expected_count: Vec<u32>,
}

impl Flags {
    /// Empties the columns and keeps their capacity.
    pub fn clear(&mut self) {
        self.closed.clear();
        self.complete.clear();
        self.expected_count.clear();
    }

    /// Appends buckets that lie in a session from end to end, and are not clipped.
    fn extend_inside(&mut self, starts: &[i64], counts: &[u32], hours: &Hours<'_>) {
        let expected = count(hours.width_ms / hours.source_ms.max(1));
        let has_closed = |start: &i64| start.saturating_add(hours.width_ms) <= hours.now;
        self.closed.extend(starts.iter().map(has_closed));
        let complete = starts.iter().zip(counts).map(|(start, &count)| has_closed(start) & (count >= expected));
        self.complete.extend(complete);
        self.expected_count.resize(self.expected_count.len() + starts.len(), expected);
    }

    fn push(&mut self, (start, end): (i64, i64), rows: &[i64], hours: &Hours<'_>) {
        let (expected, counting) = match hours.expected_in_sessions(start, end) {
            0 => (hours.expected_outside(start, end), rows.len()),
            expected => (count(expected), hours.rows_in_sessions(rows)),
        };
        let closed = end <= hours.now;
        self.closed.push(closed);
        self.complete.push(closed && counting >= expected as usize);
        self.expected_count.push(expected);
    }
}

impl Hours<'_> {
    /// Rows, counted from the anchor, that touch a session inside `[start, end)`.
    fn expected_in_sessions(&self, start: i64, end: i64) -> i64 {
        let source = self.source_ms.max(1);
        let (mut expected, mut next) = (0, i64::MIN);
        for &(open, close) in self.sessions {
            let (open, close) = (open.max(start), close.min(end));
            if open < close {
                let first = (open - self.anchor).div_euclid(source).max(next);
                let last = (close - 1 - self.anchor).div_euclid(source);
                expected += (last - first + 1).max(0);
                next = last + 1;
            }
        }
        expected
    }

    fn expected_outside(&self, start: i64, end: i64) -> u32 {
        let source = self.source_ms.max(1);
        count((end - start + source - 1) / source)
    }

    fn rows_in_sessions(&self, rows: &[i64]) -> usize {
        let touches = |at: i64| self.sessions.iter().any(|&(open, close)| at < close && at + self.source_ms > open);
        rows.iter().filter(|at| touches(**at)).count()
    }
}

/// Appends the flags of buckets that [`resample_day_into`](super::resample_day_into) made of the rows at `times`: those of `bars` from
/// index `from` on.
///
/// Cost: where a session holds the buckets from end to end, two comparisons a bucket; no allocation once `out` has grown.
pub fn flag_day_into(times: &[i64], bars: &Bars, from: usize, hours: &Hours<'_>, out: &mut Flags) {
    let width = hours.width_ms.max(1);
    let (starts, counts) = (&bars.open_time[from..], &bars.source_count[from..]);
    let (mut index, mut row) = (0, 0);
    while index < starts.len() {
        let start = starts[index];
        let session = hours.sessions.iter().find(|(open, close)| *open <= start && start + width <= *close);
        // Only the first bucket of a day may be clipped at its start, so it takes the long way unless the session rules it out.
        if let Some(&(open, close)) = session
            && (index > 0 || bucket(start, hours.anchor, width) == start)
            && open >= hours.start
            && close <= hours.end
        {
            let inside = starts[index..].partition_point(|start| start + width <= close);
            let counts = &counts[index..index + inside];
            out.extend_inside(&starts[index..index + inside], counts, hours);
            row += counts.iter().map(|count| *count as usize).sum::<usize>();
            index += inside;
            continue;
        }
        let end = bucket(start, hours.anchor, width).saturating_add(width).min(hours.end);
        let rows = row + counts[index] as usize;
        out.push((start, end), times.get(row..rows).unwrap_or_default(), hours);
        row = rows;
        index += 1;
    }
}

fn count(rows: i64) -> u32 {
    u32::try_from(rows).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::{Day, resample_day_into};
    use super::*;

    const MINUTE: i64 = 60_000;

    /// Flags by their definition, minute by minute.
    fn naive(times: &[i64], start: i64, hours: &Hours<'_>) -> (bool, bool, u32) {
        let aligned = (start - hours.anchor).div_euclid(hours.width_ms) * hours.width_ms + hours.anchor;
        let end = (aligned + hours.width_ms).min(hours.end);
        let is_session = |at: i64| hours.sessions.iter().any(|&(open, close)| (open..close).contains(&at));
        let minutes = || (start..end).step_by(MINUTE as usize);
        let (session, all) = (minutes().filter(|at| is_session(*at)).count(), minutes().count());
        let rows = times.iter().filter(|at| (start..end).contains(*at));
        let counting = rows.filter(|at| session == 0 || is_session(**at)).count();
        let expected = if session == 0 { all } else { session };
        (end <= hours.now, end <= hours.now && counting >= expected, expected as u32)
    }

    #[test]
    fn flags_are_what_counting_minutes_gives() {
        // A day from 04:00 to 20:00 around two sessions, one of which is no multiple of the widths; minutes missing here and there.
        let hours = |width: i64, now: i64, sessions| Hours {
            start: 241 * MINUTE,
            end: 1200 * MINUTE,
            anchor: 570 * MINUTE,
            width_ms: width * MINUTE,
            source_ms: MINUTE,
            sessions,
            now: now * MINUTE,
        };
        let split = [(570, 667), (732, 960)].map(|(open, close)| (open * MINUTE, close * MINUTE));
        let one = [(570 * MINUTE, 945 * MINUTE)];
        let sparse =
            |every: i64| (241..1200).filter(|minute| minute % every != 3).map(|m| m * MINUTE).collect::<Vec<_>>();
        let only_session: Vec<i64> = (570..945).map(|minute| minute * MINUTE).collect();
        for times in [sparse(7), sparse(101), sparse(5000), only_session] {
            let values = vec![1.0; times.len()];
            let day = Day::new(&times, &values, &values, &values, &values, &values, &values).unwrap();
            for width in [1, 2, 3, 5, 15, 60, 240] {
                for (now, sessions) in
                    [(5000, &split[..]), (700, &split[..]), (5000, &one[..]), (600, &one[..]), (5000, &[])]
                {
                    let hours = hours(width, now, sessions);
                    let (mut bars, mut flags) = (Bars::default(), Flags::default());
                    resample_day_into(day, hours.anchor, hours.width_ms, hours.start, &mut bars);
                    flag_day_into(&times, &bars, 0, &hours, &mut flags);
                    for (index, start) in bars.open_time.iter().enumerate() {
                        let found = (flags.closed[index], flags.complete[index], flags.expected_count[index]);
                        assert_eq!(found, naive(&times, *start, &hours), "width {width}, bucket {}", start / MINUTE);
                    }
                    assert_eq!(flags.complete.len(), bars.len());
                }
            }
        }
    }
}

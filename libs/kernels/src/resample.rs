//! Candles of a wider timeframe from candles of a narrower one.
//!
//! Open is the first, high the highest, low the lowest, close the last, volume the sum from left to right in time order, open interest
//! the last that is known. Buckets without rows do not appear. Where a trading day begins, where its buckets are anchored and what a
//! complete bucket holds are the caller's knowledge: these kernels see one trading day at a time.
//!
//! Two forms: [`resample_rows`] keeps an accumulator per bucket and takes row after row; [`resample_day_into`] cuts the columns into runs
//! of rows. They add in the same order and agree to the bit.

mod flags;

use std::collections::BTreeMap;

pub use self::flags::{Flags, Hours, flag_day_into};
use crate::Error;

/// Columns of source candles, oldest first, of equal length: one trading day, or whatever goes into one bucket.
///
/// Units: `open_time` in milliseconds since the epoch, strictly increasing. An absent open interest is NaN. Should a column be shorter
/// than the others, which [`Day::new`] refuses, the rows it lacks are left out.
#[derive(Debug, Clone, Copy)]
pub struct Day<'a> {
    pub open_time: &'a [i64],
    pub open: &'a [f64],
    pub high: &'a [f64],
    pub low: &'a [f64],
    pub close: &'a [f64],
    pub volume: &'a [f64],
    pub open_interest: &'a [f64],
}

impl<'a> Day<'a> {
    /// Takes the columns.
    ///
    /// Errors: unequal lengths.
    pub fn new(
        open_time: &'a [i64],
        open: &'a [f64],
        high: &'a [f64],
        low: &'a [f64],
        close: &'a [f64],
        volume: &'a [f64],
        open_interest: &'a [f64],
    ) -> Result<Self, Error> {
        let day = Self { open_time, open, high, low, close, volume, open_interest };
        let expected = open_time.len();
        match day.lengths().into_iter().find(|&(_, found)| found != expected) {
            Some((column, found)) => Err(Error::UnequalLengths { column, found, expected }),
            None => Ok(day),
        }
    }

    fn lengths(&self) -> [(&'static str, usize); 7] {
        [
            ("open_time", self.open_time.len()),
            ("open", self.open.len()),
            ("high", self.high.len()),
            ("low", self.low.len()),
            ("close", self.close.len()),
            ("volume", self.volume.len()),
            ("open_interest", self.open_interest.len()),
        ]
    }

    fn len(&self) -> usize {
        self.lengths().into_iter().map(|(_, length)| length).min().unwrap_or(0)
    }
}

/// Columns of resampled candles, oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bars {
    /// Start of the bucket, milliseconds since the epoch.
    pub open_time: Vec<i64>,
    pub open: Vec<f64>,
    pub high: Vec<f64>,
    pub low: Vec<f64>,
    pub close: Vec<f64>,
    pub volume: Vec<f64>,
    /// NaN where no row of the bucket has one.
    pub open_interest: Vec<f64>,
    /// Rows that went into the bucket.
    pub source_count: Vec<u32>,
}

impl Bars {
    /// Empties the columns and keeps their capacity.
    pub fn clear(&mut self) {
        self.open_time.clear();
        self.source_count.clear();
        for column in
            [&mut self.open, &mut self.high, &mut self.low, &mut self.close, &mut self.volume, &mut self.open_interest]
        {
            column.clear();
        }
    }

    /// Returns the number of candles.
    pub fn len(&self) -> usize {
        self.open_time.len()
    }

    /// Says whether there is no candle.
    pub fn is_empty(&self) -> bool {
        self.open_time.is_empty()
    }

    /// Appends buckets of equally many rows, the first of which begins at row `begin`.
    fn extend_whole(&mut self, rows: &Day<'_>, begin: usize, whole: Whole) {
        // Where the length is known to the compiler, the loop over a bucket's rows disappears.
        match whole.rows {
            1 => self.extend_chunks::<1>(rows, begin, whole),
            2 => self.extend_chunks::<2>(rows, begin, whole),
            3 => self.extend_chunks::<3>(rows, begin, whole),
            5 => self.extend_chunks::<5>(rows, begin, whole),
            10 => self.extend_chunks::<10>(rows, begin, whole),
            15 => self.extend_chunks::<15>(rows, begin, whole),
            _ => (0..whole.count).map(|index| begin + index * whole.rows).for_each(|begin| {
                self.push(rows.open_time[begin], Bar::from_run(rows, begin, begin + whole.rows));
            }),
        }
    }

    fn extend_chunks<const ROWS: usize>(&mut self, rows: &Day<'_>, begin: usize, whole: Whole) {
        let range = begin..begin + whole.count * ROWS;
        let [open, high, low, close, volume, open_interest] =
            [rows.open, rows.high, rows.low, rows.close, rows.volume, rows.open_interest]
                .map(|column| column[range.clone()].as_chunks::<ROWS>().0);
        let times = rows.open_time[range].as_chunks::<ROWS>().0;
        let larger = |a: f64, &b: &f64| if b > a { b } else { a };
        let smaller = |a: f64, &b: &f64| if b < a { b } else { a };
        let last_known = |a: f64, &b: &f64| if b.is_nan() { a } else { b };
        self.open_time.extend(times.iter().map(|times| times[0]));
        self.open.extend(open.iter().map(|open| open[0]));
        self.high.extend(high.iter().map(|high| high[1..].iter().fold(high[0], larger)));
        self.low.extend(low.iter().map(|low| low[1..].iter().fold(low[0], smaller)));
        self.close.extend(close.iter().map(|close| close[ROWS - 1]));
        self.volume.extend(volume.iter().map(|volume| volume[1..].iter().fold(volume[0], |sum, volume| sum + volume)));
        self.open_interest.extend(open_interest.iter().map(|known| known.iter().fold(f64::NAN, last_known)));
        let count = u32::try_from(ROWS).unwrap_or(u32::MAX);
        self.source_count.resize(self.source_count.len() + whole.count, count);
    }

    fn push(&mut self, open_time: i64, bar: Bar) {
        self.open_time.push(open_time);
        self.open.push(bar.open);
        self.high.push(bar.high);
        self.low.push(bar.low);
        self.close.push(bar.close);
        self.volume.push(bar.volume);
        self.open_interest.push(bar.open_interest);
        self.source_count.push(bar.source_count);
    }
}

/// One bucket while it fills.
#[derive(Debug, Clone, Copy)]
struct Bar {
    open: f64,
    high: f64,
    low: f64,
    close: f64,
    volume: f64,
    open_interest: f64,
    source_count: u32,
}

impl Bar {
    fn from_row(rows: &Day<'_>, row: usize) -> Self {
        Self {
            open: rows.open[row],
            high: rows.high[row],
            low: rows.low[row],
            close: rows.close[row],
            volume: rows.volume[row],
            open_interest: rows.open_interest[row],
            source_count: 1,
        }
    }

    fn add(&mut self, row: Bar) {
        self.high = if row.high > self.high { row.high } else { self.high };
        self.low = if row.low < self.low { row.low } else { self.low };
        self.close = row.close;
        self.volume += row.volume;
        self.open_interest = if row.open_interest.is_nan() { self.open_interest } else { row.open_interest };
        self.source_count += 1;
    }

    /// Puts the rows `begin..end`, at least one, into one bucket, column by column.
    fn from_run(rows: &Day<'_>, begin: usize, end: usize) -> Self {
        let mut bar = Self::from_row(rows, begin);
        let rest = begin + 1..end;
        for &high in &rows.high[rest.clone()] {
            bar.high = if high > bar.high { high } else { bar.high };
        }
        for &low in &rows.low[rest.clone()] {
            bar.low = if low < bar.low { low } else { bar.low };
        }
        for &volume in &rows.volume[rest.clone()] {
            bar.volume += volume;
        }
        bar.close = rows.close[end - 1];
        let known = rows.open_interest[begin..end].iter().rev().find(|value| !value.is_nan());
        bar.open_interest = known.copied().unwrap_or(f64::NAN);
        bar.source_count = u32::try_from(end - begin).unwrap_or(u32::MAX);
        bar
    }
}

/// Start of the bucket that `time` falls into, before clipping. Times before the anchor fall into buckets counted backwards from it.
fn bucket(time: i64, anchor: i64, width_ms: i64) -> i64 {
    time.saturating_sub(anchor).div_euclid(width_ms).saturating_mul(width_ms).saturating_add(anchor)
}

/// Appends the buckets of one trading day, row by row with a map of buckets. The reference.
///
/// A bucket starts at `anchor` plus a multiple of `width_ms`, but not before `clip_start`, where the trading day begins.
/// Domain: `width_ms` at least 1 (less counts as 1).
pub fn resample_rows(rows: Day<'_>, anchor: i64, width_ms: i64, clip_start: i64, out: &mut Bars) {
    let width_ms = width_ms.max(1);
    let mut buckets: BTreeMap<i64, Bar> = BTreeMap::new();
    for row in 0..rows.len() {
        let start = bucket(rows.open_time[row], anchor, width_ms).max(clip_start);
        let one = Bar::from_row(&rows, row);
        buckets.entry(start).and_modify(|bar| bar.add(one)).or_insert(one);
    }
    buckets.into_iter().for_each(|(start, bar)| out.push(start, bar));
}

/// Appends the buckets of one trading day, run by run. Equals [`resample_rows`] to the bit.
///
/// Shape: rows strictly increasing in time. Cost: one pass per column; where no row is missing, rows are not searched for the ends of
/// buckets. No allocation once `out` has grown.
pub fn resample_day_into(rows: Day<'_>, anchor: i64, width_ms: i64, clip_start: i64, out: &mut Bars) {
    let width_ms = width_ms.max(1);
    let length = rows.len();
    let times = &rows.open_time[..length];
    // Everything up to the end of the bucket that holds clip_start belongs to the first one.
    let clipped = bucket(clip_start, anchor, width_ms);
    let mut begin = 0;
    // End of the whole buckets before, where the next usually begins: the division that would tell is saved.
    let mut expected = None;
    while begin < length {
        let start = match expected.take() {
            Some(expected) if expected == times[begin] => expected,
            _ => bucket(times[begin], anchor, width_ms),
        };
        if start == times[begin] && start >= clip_start {
            let whole = whole_buckets(&times[begin..], width_ms);
            if whole.count > 0 {
                out.extend_whole(&rows, begin, whole);
                begin += whole.count * whole.rows;
                expected = Some(start.saturating_add(width_ms.saturating_mul(whole.count as i64)));
                continue;
            }
        }
        let end_time = start.max(clipped).saturating_add(width_ms);
        let mut end = begin + 1;
        while end < length && times[end] < end_time {
            end += 1;
        }
        out.push(start.max(clip_start), Bar::from_run(&rows, begin, end));
        begin = end;
    }
}

/// Buckets in a row that hold the same number of rows.
#[derive(Debug, Clone, Copy)]
struct Whole {
    count: usize,
    rows: usize,
}

/// Rows looked at together, about: all columns advance side by side through memory, which its prefetchers follow, and what was read
/// to compare times is in the cache when it is folded.
const PIECE_ROWS: usize = 48;

/// The next few buckets of evenly spaced rows that begin with the first of `times`, which opens a bucket. None where the spacing does
/// not divide the width.
fn whole_buckets(times: &[i64], width_ms: i64) -> Whole {
    let none = Whole { count: 0, rows: 0 };
    let [first, second, ..] = *times else { return none };
    let step = second.saturating_sub(first);
    let rows = match step {
        // The one division that matters, by a number the compiler knows.
        60_000 if width_ms % 60_000 == 0 => width_ms / 60_000,
        1.. if step <= width_ms && width_ms % step == 0 => width_ms / step,
        _ => return none,
    };
    let Ok(rows) = usize::try_from(rows) else { return none };
    let most = (PIECE_ROWS / rows).max(1);
    // With the row after them.
    let times = &times[..times.len().min(rows.saturating_mul(most).saturating_add(1))];
    let count = (evenly_spaced(times, step) / rows).min(most);
    // An odd row may follow inside the last of them.
    let is_crowded =
        count > 0 && times.get(count * rows).is_some_and(|next| next - times[(count - 1) * rows] < width_ms);
    Whole { count: count - usize::from(is_crowded), rows }
}

/// Length of the beginning of `times` whose neighbours lie `step` apart; looked at in pieces, so that the comparisons vectorise.
fn evenly_spaced(times: &[i64], step: i64) -> usize {
    const PIECE: usize = 8;
    let mut length = 1;
    while let (Some(a), Some(b)) = (times.get(length - 1..length - 1 + PIECE), times.get(length..length + PIECE)) {
        if a.iter().zip(b).fold(0, |uneven, (a, b)| uneven | (b.wrapping_sub(*a) ^ step)) != 0 {
            break;
        }
        length += PIECE;
    }
    let rest = times[length - 1..].windows(2).take_while(|pair| pair[1].wrapping_sub(pair[0]) == step);
    length + rest.count()
}

/// Appends one bucket of all rows, stamped `stamp`: a day, or the contiguous rows of a week or a month. No rows: nothing.
pub fn resample_whole_into(rows: Day<'_>, stamp: i64, out: &mut Bars) {
    if rows.len() > 0 {
        out.push(stamp, Bar::from_run(&rows, 0, rows.len()));
    }
}

/// Does what [`resample_whole_into`] does, row by row. The reference.
pub fn resample_whole_rows(rows: Day<'_>, stamp: i64, out: &mut Bars) {
    let mut total: Option<Bar> = None;
    for row in 0..rows.len() {
        let one = Bar::from_row(&rows, row);
        match &mut total {
            Some(bar) => bar.add(one),
            None => total = Some(one),
        }
    }
    total.into_iter().for_each(|bar| out.push(stamp, bar));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_MS: i64 = 60_000;

    struct Table {
        open_time: Vec<i64>,
        columns: [Vec<f64>; 6],
    }

    impl Table {
        fn day(&self) -> Day<'_> {
            let [open, high, low, close, volume, open_interest] = &self.columns;
            Day::new(&self.open_time, open, high, low, close, volume, open_interest).unwrap()
        }
    }

    /// Rows at random minutes, with gaps, some before the anchor at 0.
    fn random(seed: u64, rows: usize) -> Table {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as f64 / (1_u64 << 31) as f64
        };
        let mut table = Table { open_time: Vec::new(), columns: std::array::from_fn(|_| Vec::new()) };
        let mut time = -40 * MINUTE_MS;
        for _ in 0..rows {
            time += MINUTE_MS * (1 + (next() * next() * 9.0) as i64);
            table.open_time.push(time);
            let (open, close) = (100.0 + next(), 100.0 + next());
            let interest = if next() < 0.6 { f64::NAN } else { next() * 1e6 };
            let row = [open, open.max(close) + next(), open.min(close) - next(), close, next() * 1e5, interest];
            table.columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
        }
        table
    }

    fn bits(bars: &Bars) -> Vec<Vec<u64>> {
        let columns = [&bars.open, &bars.high, &bars.low, &bars.close, &bars.volume, &bars.open_interest];
        columns.iter().map(|column| column.iter().map(|value| value.to_bits()).collect()).collect()
    }

    #[test]
    fn both_forms_agree_to_the_bit() {
        for seed in 0..40 {
            let table = random(seed, 300);
            for (width, clip) in [(1, i64::MIN), (5, -33), (15, -40), (60, 0), (7, 11), (1440, -60), (0, 5)] {
                let (mut rows, mut runs) = (Bars::default(), Bars::default());
                let clip = if clip == i64::MIN { clip } else { clip * MINUTE_MS };
                resample_rows(table.day(), 0, width * MINUTE_MS, clip, &mut rows);
                resample_day_into(table.day(), 0, width * MINUTE_MS, clip, &mut runs);
                assert_eq!((&rows.open_time, &rows.source_count), (&runs.open_time, &runs.source_count));
                assert_eq!(bits(&rows), bits(&runs));
                assert!(runs.open_time.is_sorted_by(|a, b| a < b));
                assert_eq!(runs.source_count.iter().sum::<u32>(), 300);
            }
            let (mut rows, mut runs) = (Bars::default(), Bars::default());
            resample_whole_rows(table.day(), 7, &mut rows);
            resample_whole_into(table.day(), 7, &mut runs);
            assert_eq!((bits(&rows), rows.source_count), (bits(&runs), runs.source_count));
        }
    }

    /// Whole stretches of minutes between holes, with an odd row off the minute here and there.
    #[test]
    fn evenly_spaced_rows_make_the_same_buckets() {
        for seed in 0..40 {
            let mut table = random(seed, 800);
            let mut numbers = random(seed ^ 0x5555, 800).columns[4].clone().into_iter();
            let mut next = move |bound: f64| (numbers.next().unwrap_or(0.0) / 1e5 * bound) as i64;
            let mut time = (next(9.0) - 20) * MINUTE_MS;
            for row in 0..800 {
                table.open_time[row] = time;
                time += match next(120.0) {
                    0 => MINUTE_MS / 2,
                    hole @ 1..3 => MINUTE_MS * hole * 7,
                    _ => MINUTE_MS,
                };
            }
            for (width, clip) in [(1, -40), (2, -20), (3, -18), (5, -33), (10, 0), (15, 3), (30, -20), (240, -60)] {
                let (mut rows, mut runs) = (Bars::default(), Bars::default());
                resample_rows(table.day(), 0, width * MINUTE_MS, clip * MINUTE_MS, &mut rows);
                resample_day_into(table.day(), 0, width * MINUTE_MS, clip * MINUTE_MS, &mut runs);
                assert_eq!((&rows.open_time, &rows.source_count), (&runs.open_time, &runs.source_count));
                assert_eq!(bits(&rows), bits(&runs), "width {width}");
            }
        }
    }

    #[test]
    fn a_bucket_is_first_highest_lowest_last_and_sum() {
        let nan = f64::NAN;
        let table = Table {
            open_time: [0, 1, 4, 5, 11].map(|minute| minute * MINUTE_MS).to_vec(),
            columns: [
                vec![10.0, 11.0, 9.0, 8.0, 20.0],
                vec![12.0, 15.0, 10.0, 8.5, 21.0],
                vec![9.0, 10.0, 7.0, 7.5, 19.0],
                vec![11.0, 12.0, 8.0, 8.2, 20.5],
                vec![1.0, 2.0, 4.0, 8.0, 16.0],
                vec![5.0, 6.0, nan, nan, 7.0],
            ],
        };
        let mut bars = Bars::default();
        resample_day_into(table.day(), 0, 5 * MINUTE_MS, 0, &mut bars);
        assert_eq!(bars.open_time, [0, 5 * MINUTE_MS, 10 * MINUTE_MS]);
        assert_eq!((&bars.open[..], &bars.high[..]), (&[10.0, 8.0, 20.0][..], &[15.0, 8.5, 21.0][..]));
        assert_eq!((&bars.low[..], &bars.close[..]), (&[7.0, 7.5, 19.0][..], &[8.0, 8.2, 20.5][..]));
        assert_eq!((&bars.volume[..], &bars.source_count[..]), (&[7.0, 8.0, 16.0][..], &[3, 1, 1][..]));
        assert_eq!(bars.open_interest[0], 6.0);
        assert!(bars.open_interest[1].is_nan());
        bars.clear();
        assert!(bars.is_empty());
        resample_whole_into(table.day(), -3, &mut bars);
        assert_eq!((bars.open_time[0], bars.close[0], bars.volume[0], bars.source_count[0]), (-3, 20.5, 31.0, 5));
    }

    #[test]
    fn rows_before_the_anchor_count_backwards_and_the_first_bucket_is_clipped() {
        let minutes = [-12, -11, -6, -1, 0];
        let table = Table {
            open_time: minutes.map(|minute| minute * MINUTE_MS).to_vec(),
            columns: std::array::from_fn(|_| vec![1.0; 5]),
        };
        let mut bars = Bars::default();
        resample_day_into(table.day(), 0, 5 * MINUTE_MS, -12 * MINUTE_MS, &mut bars);
        assert_eq!(bars.open_time, [-12, -10, -5, 0].map(|minute: i64| minute * MINUTE_MS));
        assert_eq!(bars.source_count, [2, 1, 1, 1]);
    }

    #[test]
    fn no_rows_make_no_bars_and_unequal_columns_are_refused() {
        let empty: [f64; 0] = [];
        let mut bars = Bars::default();
        let day = Day::new(&[], &empty, &empty, &empty, &empty, &empty, &empty).unwrap();
        resample_rows(day, 0, 1, 0, &mut bars);
        resample_day_into(day, 0, 1, 0, &mut bars);
        resample_whole_into(day, 0, &mut bars);
        assert!(bars.is_empty());
        let unequal = Day::new(&[1], &[1.0], &[1.0], &[1.0], &[1.0], &empty, &[1.0]);
        assert_eq!(unequal.unwrap_err(), Error::UnequalLengths { column: "volume", found: 0, expected: 1 });
    }
}

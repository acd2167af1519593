//! Which block a row belongs to, and what a block becomes when rows arrive.

use std::cmp::Ordering;

use jiff::SignedDuration;
use market::{Calendar, Date, Frame, Millis, TimeRange, Timeframe};

use super::MAX_BLOCK_ROWS;
use crate::{Error, Result};

/// Furthest a trading date may lie from the UTC date of its rows. Reads by time rely on it to look at few blocks.
pub(crate) const MAX_DATE_SHIFT_DAYS: i64 = 7;
const DAY_MS: Millis = 86_400_000;

/// Rows for one block.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) block_date: Date,
    /// At least one row.
    pub(crate) rows: Frame,
    /// Trading date of each row where the block holds more than one date.
    row_dates: Option<Vec<Date>>,
}

/// What rows do to a block.
#[derive(Debug)]
pub(crate) struct Merged {
    /// The block's new rows.
    pub(crate) frame: Frame,
    pub(crate) stored: u64,
    pub(crate) unchanged: u64,
    pub(crate) first_changed: Millis,
    pub(crate) last_changed: Millis,
    /// Trading dates of the changed rows, ascending.
    pub(crate) changed_dates: Vec<Date>,
    /// The old rows are the first rows of the new ones, untouched.
    pub(crate) is_append: bool,
}

/// Cuts rows into blocks, in time order.
pub(crate) fn split(source: Timeframe, calendar: &Calendar, rows: &Frame) -> Result<Vec<Chunk>> {
    let times = rows.open_time();
    let outside = times.first().into_iter().chain(times.last()).find(|at| !TimeRange::ALL.contains(**at));
    if let Some(at) = outside {
        return Err(Error::invalid("open_time", format!("{} is outside 1900..2200", market::format_millis(*at))));
    }
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut from = 0;
    while from < times.len() {
        let (block_date, to, row_dates) = match source.width_ms() {
            Some(_) => {
                let day = calendar.day_at(times[from]);
                (day.date, from + times[from..].partition_point(|at| *at < day.end), None)
            }
            None => {
                let first = calendar.date_of_daily_stamp(times[from]);
                let mut dates = vec![first];
                dates.extend(
                    times[from + 1..]
                        .iter()
                        .map(|at| calendar.date_of_daily_stamp(*at))
                        .take_while(|date| date.year() == first.year()),
                );
                (first.first_of_year(), from + dates.len(), Some(dates))
            }
        };
        let dates = row_dates.as_deref().unwrap_or(std::slice::from_ref(&block_date));
        let is_near = |date: Date| (epoch_day(date) - times[from].div_euclid(DAY_MS)).abs() <= MAX_DATE_SHIFT_DAYS;
        let advances = chunks.last().is_none_or(|chunk| chunk.block_date < block_date);
        if to <= from || !advances || !is_near(dates[0]) {
            let at = market::format_millis(times[from]);
            return Err(Error::invalid(
                "calendar",
                format!("{} does not give {at} a usable trading date", calendar.name()),
            ));
        }
        if to - from > MAX_BLOCK_ROWS {
            return Err(Error::invalid(
                "rows",
                format!("{block_date} has {} rows, more than {MAX_BLOCK_ROWS}", to - from),
            ));
        }
        chunks.push(Chunk { block_date, rows: rows.slice(from..to), row_dates });
        from = to;
    }
    Ok(chunks)
}

/// First and last block date that can hold rows of a time range.
pub(crate) fn block_dates(source: Timeframe, range: TimeRange) -> (Date, Date) {
    let day = |at: Millis, shift: i64| date_of_epoch_day(at.div_euclid(DAY_MS) + shift);
    let (first, last) = (day(range.start(), -MAX_DATE_SHIFT_DAYS), day(range.end(), MAX_DATE_SHIFT_DAYS));
    match source.width_ms() {
        Some(_) => (first, last),
        None => (first.first_of_year(), last),
    }
}

fn epoch_day(date: Date) -> i64 {
    Date::constant(1970, 1, 1).duration_until(date).as_hours() / 24
}

fn date_of_epoch_day(day: i64) -> Date {
    Date::constant(1970, 1, 1).saturating_add(SignedDuration::from_hours(day * 24))
}

/// Puts rows into a block; `None` when the block already holds them all.
pub(crate) fn merge(existing: Option<&Frame>, chunk: Chunk) -> Result<Option<Merged>> {
    let Some(old) = existing else {
        return Ok(Some(whole(chunk)));
    };
    let new = &chunk.rows;
    let mut picks = Vec::with_capacity(old.len() + new.len());
    let mut changed = Vec::new();
    let mut is_append = true;
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        let order = match (old.open_time().get(i), new.open_time().get(j)) {
            (Some(old_time), Some(new_time)) => old_time.cmp(new_time),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        match order {
            Ordering::Less => {
                picks.push(Pick::Old(i));
                i += 1;
            }
            Ordering::Equal if is_same(old, i, new, j) => {
                picks.push(Pick::Old(i));
                i += 1;
                j += 1;
            }
            Ordering::Equal => {
                is_append = false;
                picks.push(Pick::New(j));
                changed.push(j);
                i += 1;
                j += 1;
            }
            Ordering::Greater => {
                is_append &= i == old.len();
                picks.push(Pick::New(j));
                changed.push(j);
                j += 1;
            }
        }
    }
    let (Some(first), Some(last)) = (changed.first(), changed.last()) else {
        return Ok(None);
    };
    if picks.len() > MAX_BLOCK_ROWS {
        let reason = format!("{} would have {} rows, more than {MAX_BLOCK_ROWS}", chunk.block_date, picks.len());
        return Err(Error::invalid("rows", reason));
    }
    let mut changed_dates = match &chunk.row_dates {
        None => vec![chunk.block_date],
        Some(dates) => changed.iter().map(|row| dates[*row]).collect(),
    };
    changed_dates.dedup();
    Ok(Some(Merged {
        frame: gather(old, new, &picks)?,
        stored: changed.len() as u64,
        unchanged: (new.len() - changed.len()) as u64,
        first_changed: new.open_time()[*first],
        last_changed: new.open_time()[*last],
        changed_dates,
        is_append,
    }))
}

/// A block that was not there before.
fn whole(chunk: Chunk) -> Merged {
    let times = chunk.rows.open_time();
    let (first_changed, last_changed) = (times[0], times[times.len() - 1]);
    let mut changed_dates = chunk.row_dates.unwrap_or_else(|| vec![chunk.block_date]);
    changed_dates.dedup();
    Merged {
        stored: times.len() as u64,
        unchanged: 0,
        first_changed,
        last_changed,
        changed_dates,
        is_append: true,
        frame: chunk.rows,
    }
}

/// Where a merged row comes from.
#[derive(Debug, Clone, Copy)]
enum Pick {
    Old(usize),
    New(usize),
}

fn gather(old: &Frame, new: &Frame, picks: &[Pick]) -> Result<Frame> {
    fn column<T: Copy>(old: &[T], new: &[T], picks: &[Pick]) -> Vec<T> {
        let cell = |pick: &Pick| match *pick {
            Pick::Old(row) => old[row],
            Pick::New(row) => new[row],
        };
        picks.iter().map(cell).collect()
    }
    Frame::from_columns(
        column(old.open_time(), new.open_time(), picks),
        [
            column(old.open(), new.open(), picks),
            column(old.high(), new.high(), picks),
            column(old.low(), new.low(), picks),
            column(old.close(), new.close(), picks),
            column(old.volume(), new.volume(), picks),
        ],
        column(old.open_interest(), new.open_interest(), picks),
    )
    .map_err(Error::internal)
}

/// Equal to the bit; absent open interest equals itself.
fn is_same(a: &Frame, i: usize, b: &Frame, j: usize) -> bool {
    let same = |x: &[f64], y: &[f64]| x[i].to_bits() == y[j].to_bits();
    same(a.open(), b.open())
        && same(a.high(), b.high())
        && same(a.low(), b.low())
        && same(a.close(), b.close())
        && same(a.volume(), b.volume())
        && (same(a.open_interest(), b.open_interest())
            || a.open_interest()[i].is_nan() && b.open_interest()[j].is_nan())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(rows: &[(i64, f64)]) -> Frame {
        let prices = || rows.iter().map(|row| row.1).collect::<Vec<f64>>();
        let times = rows.iter().map(|row| row.0 * 60_000).collect();
        Frame::from_columns(times, std::array::from_fn(|_| prices()), vec![f64::NAN; rows.len()]).unwrap()
    }

    fn chunk(rows: &[(i64, f64)]) -> Chunk {
        Chunk { block_date: Date::constant(1970, 1, 1), rows: frame(rows), row_dates: None }
    }

    fn rows(frame: &Frame) -> Vec<(i64, f64)> {
        frame.candles().map(|candle| (candle.open_time / 60_000, candle.close)).collect()
    }

    #[test]
    fn later_rows_win_and_equal_ones_are_counted() {
        let merged = merge(Some(&frame(&[(1, 1.0), (3, 3.0), (5, 5.0)])), chunk(&[(2, 2.0), (3, 3.0), (5, 6.0)]));
        let merged = merged.unwrap().unwrap();
        assert_eq!(rows(&merged.frame), [(1, 1.0), (2, 2.0), (3, 3.0), (5, 6.0)]);
        assert_eq!((merged.stored, merged.unchanged, merged.is_append), (2, 1, false));
        assert_eq!((merged.first_changed, merged.last_changed), (120_000, 300_000));
    }

    #[test]
    fn rows_that_are_there_change_nothing_even_minus_zero_counts() {
        let old = frame(&[(1, 0.0), (2, 2.0)]);
        assert!(merge(Some(&old), chunk(&[(1, 0.0)])).unwrap().is_none());
        assert!(merge(Some(&old), chunk(&[(1, -0.0)])).unwrap().is_some());
    }

    #[test]
    fn only_rows_behind_the_last_make_an_append() {
        let old = frame(&[(1, 1.0), (3, 3.0)]);
        assert!(merge(Some(&old), chunk(&[(3, 3.0), (4, 4.0)])).unwrap().unwrap().is_append);
        assert!(!merge(Some(&old), chunk(&[(2, 3.0)])).unwrap().unwrap().is_append);
        assert!(merge(None, chunk(&[(2, 3.0)])).unwrap().unwrap().is_append);
    }

    #[test]
    fn block_dates_reach_a_week_around_the_range() {
        let range = TimeRange::new(0, DAY_MS).unwrap();
        let dates = block_dates(Timeframe::M1, range);
        assert_eq!(dates, (Date::constant(1969, 12, 25), Date::constant(1970, 1, 9)));
        assert_eq!(block_dates(Timeframe::D1, range).0, Date::constant(1969, 1, 1));
    }
}

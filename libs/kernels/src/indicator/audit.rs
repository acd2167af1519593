//! Whether values use the future, and how far they depend on how much history was loaded.
//!
//! Both are found by computing again: on history that ends earlier, where every value must stay as it was to the bit, and on history
//! that begins later, where a value of a moving window comes back at once and one of a recurrence after a while.

use super::{Column, Inputs};
use crate::Error;

/// Values that differ less, relative to the column's largest, are one value of another history.
const TOLERANCE: f64 = 1e-9;

/// A value that is not what it was with the whole history.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Row of the whole history.
    pub row: usize,
    /// The first row that was left out, or the first that was kept.
    pub cut: usize,
    /// Value with the whole history; NaN where undefined.
    pub whole: f64,
    /// Value with a part of it.
    pub part: f64,
}

/// What was found of one column.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub column: String,
    /// The first value that changes when rows after it are left out: it used the future.
    pub look_ahead: Option<Difference>,
    /// The first value that, defined both ways, changes when the history begins later: it depends on how much was loaded.
    pub recursive: Option<Difference>,
    /// Rows after a later beginning until every value is defined as before and within 1e-9 of what it was, relative to the column's
    /// largest; `None` where that was not reached in the rows at hand, or nothing was compared.
    pub settled_after: Option<usize>,
    /// Values compared on histories that begin later: defined both ways. None of them says that there is too little history to tell.
    pub compared: usize,
}

/// Computes `inputs` whole, up to each of `ends` and from each of `begins` on, and compares.
///
/// Shape: cuts outside `1..rows` are left out. Cost: one computation per cut.
///
/// Errors: those of `compute`; and another number of columns or rows than it gave for the whole.
///
/// ```
/// use kernels::indicator::{Column, Inputs, audit};
/// let close = [1.0, 5.0, 2.0, 8.0];
/// let inputs = Inputs::new(&close, &close, &close, &close, &[1.0; 4], &[0; 4])?;
/// // The mean of a row and the one after it.
/// let peeks = |inputs: &Inputs<'_>| {
///     let next = |row: usize| inputs.close.get(row + 1).unwrap_or(&inputs.close[row]);
///     let values = (0..inputs.len()).map(|row| (inputs.close[row] + next(row)) / 2.0).collect();
///     Ok(vec![Column { name: "peeks".to_owned(), values }])
/// };
/// let found = audit(peeks, &inputs, &[2], &[])?[0].look_ahead.unwrap();
/// assert_eq!((found.row, found.cut, found.whole, found.part), (1, 2, 3.5, 5.0));
/// # Ok::<(), kernels::Error>(())
/// ```
pub fn audit(
    mut compute: impl FnMut(&Inputs<'_>) -> Result<Vec<Column>, Error>,
    inputs: &Inputs<'_>,
    ends: &[usize],
    begins: &[usize],
) -> Result<Vec<Verdict>, Error> {
    let rows = inputs.len();
    let whole = compute(inputs)?;
    let mut verdicts: Vec<Verdict> = whole
        .iter()
        .map(|column| Verdict {
            column: column.name.clone(),
            look_ahead: None,
            recursive: None,
            settled_after: None,
            compared: 0,
        })
        .collect();
    let inside = |cuts: &[usize]| cuts.iter().copied().filter(|cut| (1..rows).contains(cut)).collect::<Vec<_>>();
    for cut in inside(ends) {
        let part = compute(&inputs.slice(0, cut))?;
        check(&whole, &part, cut)?;
        for ((verdict, whole), part) in verdicts.iter_mut().zip(&whole).zip(&part) {
            let differs = |row: &usize| !same(whole.values[*row], part.values[*row]);
            let first = (0..cut).find(differs);
            let found = first.map(|row| Difference { row, cut, whole: whole.values[row], part: part.values[row] });
            keep_first(&mut verdict.look_ahead, found);
        }
    }
    for cut in inside(begins) {
        let part = compute(&inputs.slice(cut, rows))?;
        check(&whole, &part, rows - cut)?;
        for ((verdict, whole), part) in verdicts.iter_mut().zip(&whole).zip(&part) {
            let at = |row: usize| (whole.values[cut + row], part.values[row]);
            let is_compared = |row: &usize| !at(*row).0.is_nan() && !at(*row).1.is_nan();
            let compared = (0..rows - cut).filter(is_compared).count();
            if compared == 0 {
                // Too short for the look-back: nothing follows from it.
                continue;
            }
            let largest = whole.values.iter().filter(|value| value.is_finite()).fold(0.0, |a: f64, b| a.max(b.abs()));
            let close = |a: f64, b: f64| a == b || (a - b).abs() <= TOLERANCE * largest;
            let first = (0..rows - cut).find(|row| is_compared(row) && !close(at(*row).0, at(*row).1));
            let found = first.map(|row| Difference { row: cut + row, cut, whole: at(row).0, part: at(row).1 });
            keep_first(&mut verdict.recursive, found);
            let differing = |row: &usize| {
                let (whole, part) = at(*row);
                !(close(whole, part) || whole.is_nan() && part.is_nan())
            };
            let settled = (0..rows - cut).rev().find(differing).map_or(0, |last| last + 1);
            let settled = (settled < rows - cut).then_some(settled);
            verdict.settled_after = match verdict.compared {
                0 => settled,
                _ => verdict.settled_after.zip(settled).map(|(a, b)| a.max(b)),
            };
            verdict.compared += compared;
        }
    }
    Ok(verdicts)
}

fn same(a: f64, b: f64) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

fn keep_first(kept: &mut Option<Difference>, found: Option<Difference>) {
    if let Some(found) = found
        && kept.is_none_or(|kept| found.row < kept.row)
    {
        *kept = Some(found);
    }
}

fn check(whole: &[Column], part: &[Column], rows: usize) -> Result<(), Error> {
    if whole.len() != part.len() {
        return Err(Error::BufferCount { found: part.len(), expected: whole.len() });
    }
    match part.iter().find(|column| column.values.len() != rows) {
        Some(column) => Err(Error::UnequalLengths { column: "computed", found: column.values.len(), expected: rows }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Profile, Spec, catalogue, compute_fused};
    use super::*;

    fn walk(rows: usize) -> [Vec<f64>; 5] {
        let mut state = 7_u64;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as f64 / (1_u64 << 31) as f64
        };
        let mut columns: [Vec<f64>; 5] = std::array::from_fn(|_| Vec::new());
        let mut price = 100.0;
        for _ in 0..rows {
            let open = price;
            price += next() - 0.5;
            let row = [open, open.max(price) + next(), open.min(price) - next(), price, 1.0 + next() * 100.0];
            columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
        }
        columns
    }

    fn audited(compute: impl FnMut(&Inputs<'_>) -> Result<Vec<Column>, Error>) -> Vec<Verdict> {
        let [open, high, low, close, volume] = walk(900);
        let day: Vec<i32> = (0..900).map(|row| row / 300).collect();
        let inputs = Inputs::new(&open, &high, &low, &close, &volume, &day).unwrap();
        audit(compute, &inputs, &[1, 450, 899, 5000], &[0, 100, 333]).unwrap()
    }

    #[test]
    fn no_shipped_indicator_uses_the_future() {
        for (info, profile) in catalogue().iter().flat_map(|info| Profile::ALL.map(|profile| (info, profile))) {
            let Some(info) = info.in_profile(profile) else { continue };
            let spec: Spec = format!("{}@{}", info.name, profile.name()).parse().unwrap();
            for verdict in audited(|inputs| compute_fused(std::slice::from_ref(&spec), inputs)) {
                assert_eq!(verdict.look_ahead, None, "{}", verdict.column);
            }
        }
    }

    #[test]
    fn planted_peeks_are_found_where_they_are() {
        // The close of the next row, on one row only: as a slip in an index would give.
        let peek = |inputs: &Inputs<'_>| {
            let mut values = inputs.close.to_vec();
            if let Some(next) = inputs.close.get(450) {
                values[449] = *next;
            }
            Ok(vec![Column { name: "peek".into(), values }])
        };
        let found = audited(peek)[0].look_ahead.unwrap();
        assert_eq!((found.row, found.cut), (449, 450));
        // Divided by the whole history's highest: the first row already.
        let scaled = |inputs: &Inputs<'_>| {
            let highest = inputs.close.iter().copied().fold(f64::MIN, f64::max);
            Ok(vec![Column { name: "scaled".into(), values: inputs.close.iter().map(|x| x / highest).collect() }])
        };
        let verdict = &audited(scaled)[0];
        assert_eq!(verdict.look_ahead.unwrap().row, 0);
        assert!(verdict.recursive.is_some());
    }

    #[test]
    fn windows_come_back_at_once_and_recurrences_after_a_while() {
        let verdict = |text: &str| {
            let spec: Spec = text.parse().unwrap();
            audited(|inputs| compute_fused(std::slice::from_ref(&spec), inputs)).remove(0)
        };
        let sma = verdict("sma:20");
        assert_eq!((sma.recursive, sma.settled_after), (None, Some(19)));
        let ema = verdict("ema:20");
        assert_eq!(ema.recursive.map(|found| found.cut), Some(100));
        // The seed's weight falls by 19/21 a row: to 1e-11 of a price of 100 after some 230.
        assert!(ema.settled_after.is_some_and(|rows| (150..350).contains(&rows)), "{ema:?}");
        // A total of all volume never comes back.
        assert_eq!(verdict("obv").settled_after, None);
        // Longer than the history behind the last beginning: told by the others. Longer than all of it: not told.
        let long = verdict("sma:700");
        assert_eq!((long.recursive, long.settled_after, long.compared), (None, Some(699), 101));
        let untold = verdict("sma:901");
        assert_eq!((untold.settled_after, untold.compared), (None, 0));
        // Until the next day begins.
        assert_eq!(verdict("vwap").settled_after, Some(267));
    }
}

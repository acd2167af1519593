//! Every indicator against values from outside: TA-Lib and other libraries, and for TradingView's profile its definitions in Python, over a
//! made-up market; the scripts are beside the files in `golden/`, and name versions.

#![allow(clippy::unwrap_used, reason = "functions of a test: a malformed file is a failure")]

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use kernels::indicator::{Column, Inputs, Profile, Spec, catalogue, compute_fold, compute_fused};

/// Columns by name; NaN where a cell is empty.
struct Table {
    names: Vec<String>,
    columns: Vec<Vec<f64>>,
}

impl Table {
    fn read(path: &Path) -> Table {
        let mut text = String::new();
        GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
        let mut lines = text.lines();
        let names: Vec<String> = lines.next().unwrap().split(';').map(str::to_owned).collect();
        let mut columns = vec![Vec::new(); names.len()];
        for line in lines {
            let cells: Vec<&str> = line.split(';').collect();
            assert_eq!(cells.len(), names.len());
            for (column, cell) in columns.iter_mut().zip(cells) {
                column.push(if cell.is_empty() { f64::NAN } else { cell.parse().unwrap() });
            }
        }
        Table { names, columns }
    }

    fn column(&self, name: &str) -> &[f64] {
        &self.columns[self.names.iter().position(|known| known == name).unwrap()]
    }
}

/// Files and their tables.
fn tables() -> Vec<(String, Table)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(".csv.gz"));
    paths.sort();
    paths.iter().map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), Table::read(path))).collect()
}

/// The request of a column: without the output it ends with.
fn spec(column: &str) -> Spec {
    column.parse().unwrap_or_else(|_| column.rsplit_once('.').unwrap().0.parse().unwrap())
}

/// 1e-9 relative; where a value is a difference that passes through 0, or ought to be 0, 1e-9 of a price or a percentage is as good.
fn agree(a: f64, b: f64) -> bool {
    (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

#[test]
fn every_column_is_as_in_the_other_library() {
    let mut seen = BTreeSet::new();
    for (file, table) in tables() {
        let day: Vec<i32> = table.column("day").iter().map(|day| *day as i32).collect();
        let [open, high, low, close, volume] =
            ["open", "high", "low", "close", "volume"].map(|name| table.column(name));
        let inputs = Inputs::new(open, high, low, close, volume, &day).unwrap();
        for name in table.names.iter().skip(6) {
            let spec = spec(name);
            seen.insert((spec.info().name, spec.info().profile));
            let wanted = table.column(name);
            assert!(wanted.iter().any(|value| !value.is_nan()), "{file} {name} is empty");
            let one = std::slice::from_ref(&spec);
            for columns in [compute_fold(one, &inputs), compute_fused(one, &inputs)] {
                let columns: Vec<Column> = columns.unwrap();
                let found = columns.iter().find(|column| column.name == *name).unwrap_or_else(|| panic!("{name}"));
                for (row, (ours, theirs)) in found.values.iter().zip(wanted).enumerate() {
                    assert!(agree(*ours, *theirs), "{file} {name} row {row}: {ours} here, {theirs} there");
                }
            }
        }
    }
    let definitions =
        catalogue().iter().flat_map(|info| Profile::ALL.map(|profile| info.in_profile(profile))).flatten();
    let missing: Vec<_> =
        definitions.map(|info| (info.name, info.profile)).filter(|definition| !seen.contains(definition)).collect();
    assert!(missing.is_empty(), "no golden values for {missing:?}");
}

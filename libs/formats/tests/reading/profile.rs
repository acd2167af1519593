//! The profile of every one-minute file against the counts its collectors made.

use formats::{Format, Manifest};
use market::{Timeframe, format_millis};

use crate::data::{read_whole, root};

#[test]
fn profiles_equal_the_published_counts_of_all_83_files() {
    let Some(root) = root() else { return };
    let path = root.join("instruments_1m.csv");
    let manifest = Manifest::read(&path).unwrap();
    let mut reader = csv::Reader::from_path(&path).unwrap();
    let headers = reader.headers().unwrap().clone();
    let column = |name: &str| headers.iter().position(|header| header == name).unwrap();
    let mut files = 0;
    for record in reader.records() {
        let record = record.unwrap();
        let count = |name: &str| record[column(name)].parse::<f64>().unwrap() as u64;
        let file = root.join(&record[column("file")]);
        let entry = manifest.find(&file).unwrap();
        assert_eq!((entry.symbol.as_str(), entry.format), (&record[column("symbol")], Format::Auto));
        let (collected, detected) = read_whole(&entry.spec(&file));
        assert_eq!(collected.bad, [], "{}", file.display());
        assert_eq!((detected.format, detected.timeframe), (Format::Candles, Some(Timeframe::M1)));
        let [profile] = &detected.profiles[..] else { panic!("{detected:?}") };
        assert_eq!(profile.instrument, entry.instrument);
        let found = [
            profile.rows,
            profile.repeated,
            profile.steps_backwards,
            profile.gaps,
            profile.longest_gap_min,
            profile.zero_volume,
        ];
        let names = ["rows", "duplicate_stamps", "out_of_order", "gaps", "longest_gap_min", "zero_volume"];
        assert_eq!(found, names.map(count), "{}: {names:?}", file.display());
        let ends = [profile.first, profile.last, profile.earliest, profile.latest].map(format_millis);
        assert_eq!(ends, ["first", "last", "min", "max"].map(|name| record[column(name)].to_owned()));
        assert_eq!((profile.conflicting, profile.off_minute, profile.not_compared), (0, 0, 0));
        files += 1;
    }
    assert_eq!(files, 83);
}

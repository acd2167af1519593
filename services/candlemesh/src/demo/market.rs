//! A market made up from a seed: random walks with a daily mood, rounded to ticks, on real NSE sessions.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;
use market::{Calendar, InstrumentKey, Timeframe};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use formats::FileSpec;

pub(super) const DESCRIPTION: &str =
    "generated market (seed 7): 20 instruments x 60 NSE sessions of minutes, not real prices";
const SEED: u64 = 7;
const INSTRUMENTS: usize = 20;
const SESSIONS: usize = 60;
/// Price step of every generated instrument.
const TICK: f64 = 0.05;
const MINUTE_MS: i64 = 60_000;

/// Writes one csv.gz per instrument.
pub(super) fn write(folder: &Path) -> Result<Vec<FileSpec>> {
    std::fs::create_dir_all(folder)?;
    let calendar = Calendar::by_name("NSE")?;
    let dates = calendar.trading_dates(market::Date::constant(2025, 7, 1), market::Date::constant(2025, 12, 31));
    let mut files = Vec::new();
    for index in 0..INSTRUMENTS {
        let instrument: InstrumentKey = format!("NSE_EQ|DEMO{:02}", index + 1).parse()?;
        let path = folder.join(format!("{}.csv.gz", instrument.code()));
        let mut out = BufWriter::new(GzEncoder::new(File::create(&path)?, Compression::fast()));
        writeln!(out, "timestamp,open,high,low,close,volume")?;
        let mut random = StdRng::seed_from_u64(SEED + index as u64);
        let mut price: f64 = random.random_range(80.0..900.0);
        // Every instrument drifts its own way, so that a screen has something to choose.
        let drift = (index as f64 - INSTRUMENTS as f64 / 2.0) * 0.000_001_5;
        for date in dates.iter().take(SESSIONS) {
            let mood = (random.random::<f64>() - 0.5) * 0.000_25 + drift;
            for session in &calendar.day(*date).sessions {
                for at in (session.open..session.close).step_by(MINUTE_MS as usize) {
                    write_minute(&mut out, at, &mut price, mood, &mut random)?;
                }
            }
        }
        out.into_inner().map_err(|error| error.into_error())?.finish()?;
        files.push(FileSpec { instrument: Some(instrument), timeframe: Some(Timeframe::M1), ..FileSpec::new(path) });
    }
    Ok(files)
}

fn write_minute(out: &mut impl Write, at: i64, price: &mut f64, mood: f64, random: &mut StdRng) -> Result<()> {
    let round = |value: f64| (value / TICK).round() * TICK;
    let noise = |random: &mut StdRng| random.random::<f64>() + random.random::<f64>() - 1.0;
    let open = round(*price);
    *price *= 1.0 + mood + noise(random) * 0.000_9;
    let close = round(*price);
    let high = round(open.max(close) * (1.0 + random.random::<f64>() * 0.000_5));
    let low = round(open.min(close) * (1.0 - random.random::<f64>() * 0.000_5));
    let volume = (2_000.0 * (1.0 + random.random::<f64>() * 3.0)).round();
    writeln!(out, "{},{open:.2},{high:.2},{low:.2},{close:.2},{volume}", market::format_millis(at))?;
    Ok(())
}

//! Candles made from a seed, on real NSE sessions, small and the same on every machine.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;
use market::{Calendar, Candle, Date, Millis};
use serde_json::{Value, json};

const MINUTE_MS: Millis = 60_000;
/// Price step.
const TICK: f64 = 0.05;

/// Numbers from a seed (splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    pub fn from_seed(seed: u64) -> Numbers {
        Numbers(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in [0, bound).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

/// The first NSE trading dates of 2024.
pub fn dates(count: usize) -> Result<Vec<Date>> {
    let calendar = Calendar::by_name("NSE")?;
    let dates = calendar.trading_dates(Date::constant(2024, 1, 1), Date::constant(2025, 6, 30));
    Ok(dates.into_iter().take(count).collect())
}

/// Open of a date's session.
pub fn session_open(date: Date) -> Result<Millis> {
    let day = Calendar::by_name("NSE")?.day(date);
    let open = day.sessions.first().map(|session| session.open);
    open.ok_or_else(|| anyhow::anyhow!("{date} has no session"))
}

/// Minutes of the first `sessions` sessions of 2024; about one in a hundred is missing, as in real data.
pub fn minutes(seed: u64, sessions: usize) -> Result<Vec<Candle>> {
    let calendar = Calendar::by_name("NSE")?;
    let mut numbers = Numbers::from_seed(seed);
    let mut price = 100.0 + numbers.unit() * 400.0;
    let mut candles = Vec::new();
    for date in dates(sessions)? {
        for session in &calendar.day(date).sessions {
            let mut at = session.open;
            while at < session.close {
                let candle = minute(at, &mut price, &mut numbers);
                if at == session.open || numbers.below(100) > 0 {
                    candles.push(candle);
                }
                at += MINUTE_MS;
            }
        }
    }
    Ok(candles)
}

fn minute(open_time: Millis, price: &mut f64, numbers: &mut Numbers) -> Candle {
    let open = tick(*price);
    *price *= 1.0 + (numbers.unit() - 0.5) * 0.002;
    let close = tick(*price);
    let high = tick(open.max(close) * (1.0 + numbers.unit() * 0.001));
    let low = tick(open.min(close) * (1.0 - numbers.unit() * 0.001));
    let volume = (1.0 + numbers.below(5_000) as f64).round();
    let (high, low) = (high.max(open).max(close), low.min(open).min(close));
    Candle { open_time, open, high, low, close, volume, open_interest: None }
}

/// To the tick, as the double nearest to the decimal.
fn tick(value: f64) -> f64 {
    ((value / TICK).round() * TICK * 100.0).round() / 100.0
}

/// Daily candles that open where the last one closed and move by the given percentages, over and over.
pub fn daily(count: usize, first_price: f64, percents: &[f64], volume: f64) -> Result<Vec<Candle>> {
    let mut price = first_price;
    let moves = percents.iter().cycle();
    let candle = |(date, percent): (Date, &f64)| {
        let open = price;
        price = tick(open * (1.0 + percent / 100.0));
        let (high, low) = (open.max(price), open.min(price));
        let open_time = session_open(date)?;
        Ok(Candle { open_time, open, high, low, close: price, volume, open_interest: None })
    };
    dates(count)?.into_iter().zip(moves).map(candle).collect()
}

/// Rows for `batch-store`.
pub fn json_rows(candles: &[Candle]) -> Value {
    let row = |candle: &Candle| {
        json!({
            "open_time": market::format_millis(candle.open_time),
            "open": candle.open, "high": candle.high, "low": candle.low, "close": candle.close,
            "volume": candle.volume, "open_interest": candle.open_interest,
        })
    };
    candles.iter().map(row).collect()
}

/// Writes rows as the csv.gz that `load` reads.
pub fn write_csv_gz(path: &Path, candles: &[Candle]) -> Result<()> {
    let mut out = BufWriter::new(GzEncoder::new(File::create(path)?, Compression::fast()));
    writeln!(out, "timestamp,open,high,low,close,volume")?;
    for candle in candles {
        let at = market::format_millis(candle.open_time);
        let Candle { open, high, low, close, volume, .. } = candle;
        writeln!(out, "{at},{open},{high},{low},{close},{volume}")?;
    }
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.finish()?;
    Ok(())
}

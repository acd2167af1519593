//! Measures storing and reading back: `throughput [sqlite|postgres] [instruments] [sessions]`, 100 instruments of 250 NSE sessions unless told.
//!
//! Prices walk on a 0.05 tick, volumes vary by a factor of a thousand, from a fixed seed. Prints rows per second (the best of
//! three reads) and bytes per candle. PostgreSQL is started in a temporary directory.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use market::{Calendar, Date, Frame, InstrumentKey, Millis, TimeRange, Timeframe};
use store::{Put, StoreOptions, Stores};

#[allow(dead_code, unreachable_pub)]
#[path = "../../../tests/src/postgres.rs"]
mod postgres;
#[allow(dead_code, unreachable_pub)]
#[path = "../../../tests/src/server_process.rs"]
mod server_process;

const MINUTE_MS: Millis = 60_000;
const SESSION_MINUTES: i64 = 375;
/// Rows of one put, as a bulk load would choose them.
const PUT_ROWS: usize = 800_000;
/// Puts prepared at the same time: one encodes while the other writes.
const PUTS_AT_ONCE: usize = 2;
/// Instruments read at the same time, for two cores.
const READS_AT_ONCE: usize = 2;
const READS: usize = 3;
/// Sessions are the newest ones between these dates.
const FIRST_DATE: Date = Date::constant(2010, 1, 1);
const LAST_DATE: Date = Date::constant(2025, 6, 30);
/// Repetitions of what takes a millisecond or so; the best is printed.
const SHORT_CALLS: i64 = 20;

/// Numbers from a seed (splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Ticks with a short tail: the smaller of two draws.
    fn ticks(&mut self, bound: u64) -> i64 {
        (self.next() % bound).min(self.next() % bound) as i64
    }
}

fn candles(seed: u64, opens: &[Millis]) -> Result<Frame> {
    let mut numbers = Numbers(seed);
    let mut close = 2_000 + (numbers.next() % 40_000) as i64;
    let busy = 6 + close as u64 / 1_500;
    let mut times = Vec::new();
    let mut columns: [Vec<f64>; 5] = Default::default();
    for at in opens.iter().flat_map(|open| (0..SESSION_MINUTES).map(move |minute| open + minute * MINUTE_MS)) {
        let open = close + if numbers.next().is_multiple_of(3) { numbers.ticks(5) - 2 } else { 0 };
        close = (open + numbers.ticks(2 * busy) - numbers.ticks(2 * busy)).max(500);
        let high = open.max(close) + numbers.ticks(busy);
        let low = open.min(close) - numbers.ticks(busy);
        let volume = numbers.next() % (1 << (7 + numbers.next() % 11));
        times.push(at);
        let ticks = [open, high, low, close].map(|ticks| (ticks * 5) as f64 / 100.0);
        columns.iter_mut().zip(ticks.into_iter().chain([volume as f64])).for_each(|(column, value)| column.push(value));
    }
    let rows = times.len();
    Ok(Frame::from_columns(times, columns, vec![f64::NAN; rows])?)
}

/// Stores everything and reads it back; returns the number of rows.
async fn measure(url: &str, instruments: usize, sessions: usize) -> Result<usize> {
    let calendar = Calendar::by_name("NSE")?;
    let dates = calendar.trading_dates(FIRST_DATE, LAST_DATE);
    ensure!(sessions <= dates.len(), "at most {} sessions", dates.len());
    // One session in the year is in the evening and short; a plain grid from the open fits every other.
    let opens: Vec<Millis> = dates
        .iter()
        .filter_map(|date| calendar.day(*date).sessions.first().copied())
        .filter(|session| session.close - session.open == SESSION_MINUTES * MINUTE_MS)
        .map(|session| session.open)
        .collect();
    let opens = &opens[opens.len().saturating_sub(sessions)..];
    let mut series = Vec::with_capacity(instruments);
    for index in 0..instruments {
        let key: InstrumentKey = format!("NSE_EQ|BENCH{index:05}").parse()?;
        series.push((key, candles(index as u64, opens)?));
    }
    let rows: usize = series.iter().map(|(_, frame)| frame.len()).sum();
    let stores = Stores::open(url, &StoreOptions::default()).await?;

    let each = series.first().context("no instruments")?.1.len();
    let started = (Instant::now(), cpu_seconds());
    stream::iter(series.chunks((PUT_ROWS / each).max(1)))
        .map(|part| {
            let (stores, calendar) = (&stores, &calendar);
            async move {
                let put = |(key, rows)| Put { key, source: Timeframe::M1, calendar, rows };
                let puts: Vec<Put<'_>> = part.iter().map(|(key, rows)| put((key, rows))).collect();
                stores.candles.put_all(&puts, 1).await
            }
        })
        .buffered(PUTS_AT_ONCE)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    print("in ", rows, started);

    for _ in 0..READS {
        let started = (Instant::now(), cpu_seconds());
        let counts: Vec<usize> = stream::iter(series.iter().map(|(key, _)| key.clone()))
            .map(|key| {
                let candles = std::sync::Arc::clone(&stores.candles);
                async move {
                    // On a task of its own, so that two cores share the work.
                    let reading = tokio::spawn(async move {
                        candles
                            .read(&key, Timeframe::M1, TimeRange::ALL, None)
                            .try_fold(0, |rows, block| async move { Ok(rows + block.frame.len()) })
                            .await
                    });
                    anyhow::Ok(reading.await??)
                }
            })
            .buffer_unordered(READS_AT_ONCE)
            .try_collect()
            .await?;
        ensure!(counts.iter().sum::<usize>() == rows, "rows are missing");
        print("out", rows, started);
    }
    let (key, frame) = &series[instruments / 2];
    let month = TimeRange::new(opens[sessions / 3], opens[(sessions / 3 + 22).min(sessions - 1)])?;
    let mut best = f64::MAX;
    for _ in 0..SHORT_CALLS {
        let started = Instant::now();
        let blocks: Vec<store::Block> = stores.candles.read(key, Timeframe::M1, month, None).try_collect().await?;
        best = best.min(started.elapsed().as_secs_f64());
        ensure!(
            blocks.iter().map(|block| block.frame.len()).sum::<usize>()
                == frame.rows_between(month.start(), month.end()).len()
        );
    }
    println!("one instrument-month: {:.3} ms", best * 1e3);
    let keys: Vec<InstrumentKey> = series.iter().map(|(key, _)| key.clone()).collect();
    let mut best = [f64::MAX; 2];
    for minute in 0..SHORT_CALLS {
        // A minute after the last session, of all instruments at once.
        let at = opens[opens.len() - 1] + (SESSION_MINUTES + minute) * MINUTE_MS;
        let row = series[0].1.slice(0..1);
        let price = || row.close().to_vec();
        let prices = [price(), price(), price(), price(), row.volume().to_vec()];
        let close = Frame::from_columns(vec![at], prices, vec![f64::NAN])?;
        let put = |key| Put { key, source: Timeframe::M1, calendar: &calendar, rows: &close };
        let puts: Vec<Put<'_>> = keys.iter().map(put).collect();
        let started = Instant::now();
        stores.candles.put_all(&puts, 2 + minute).await?;
        best[0] = best[0].min(started.elapsed().as_secs_f64());
        let started = Instant::now();
        let last = stores.candles.last_candles(&keys, Timeframe::M1).await?;
        best[1] = best[1].min(started.elapsed().as_secs_f64());
        ensure!(last.iter().flatten().filter(|last| last.candle.open_time == at).count() == instruments);
    }
    println!("close of a minute: {:.3} ms, last candles: {:.3} ms", best[0] * 1e3, best[1] * 1e3);
    stores.close().await;
    Ok(rows)
}

fn print(what: &str, rows: usize, (started, cpu): (Instant, f64)) {
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let rate = rows as f64 / seconds / 1e6;
    println!("{what} {rows} rows in {seconds:.3} s ({cpu:.2} s of this process's processor time): {rate:.2} M rows/s");
}

/// Processor time of this process so far, to the hundredth; 0 where the system does not tell. On a busy machine it says more than the clock.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = text.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn folder_bytes(folder: &std::path::Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let (instruments, sessions) = (number(1, 100)?, number(2, 250)?);
    match arguments.first().map_or("sqlite", String::as_str) {
        "sqlite" => {
            let folder = tempfile::tempdir()?;
            let url = format!("sqlite://{}", folder.path().join("candles.db").display());
            let rows = measure(&url, instruments, sessions).await?;
            println!("{:.2} bytes per candle on disk", folder_bytes(folder.path())? as f64 / rows as f64);
        }
        "postgres" => {
            let server = postgres::Postgres::start()?;
            let rows = measure(&server.url(), instruments, sessions).await?;
            let pool = sqlx::PgPool::connect(&server.url()).await?;
            let sizes = "select sum(pg_total_relation_size(oid))::bigint from pg_class where relname like 'candle%' and relkind = 'r'";
            let bytes: i64 = sqlx::query_scalar(sizes).fetch_one(&pool).await?;
            println!("{:.2} bytes per candle on disk", bytes as f64 / rows as f64);
            pool.close().await;
        }
        other => anyhow::bail!("'{other}' is neither sqlite nor postgres"),
    }
    Ok(())
}

//! All of the shared data, by the command line as a user would: in, out again equal to the bit, its defects told, the store clean.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candlemesh_tests::oracle::data_folder;
use candlemesh_tests::processes::{Up, command, run};
use flate2::read::MultiGzDecoder;
use formats::{BadRow, Chunk, FileSpec, Sink};
use market::{Candle, Millis};
use serde_json::Value;

use crate::export::{Bits, read_parquet};
use crate::program;

const DAY_MS: Millis = 86_400_000;

/// Candles by open time, by instrument and timeframe.
type Candles = BTreeMap<(String, String), BTreeMap<Millis, Bits>>;

/// A file of `vendor`: what must be said to load it, and what its rows are known to be.
struct Vendor {
    file: &'static str,
    instrument: &'static str,
    format: &'static str,
    zone: &'static str,
    /// Good rows, backward steps, gaps and rows without volume, as a plain count over the file has them.
    counts: [u64; 4],
    /// A file of the cleaned data with the same rows, and how many are equal to the bit.
    cleaned: Option<(&'static str, usize)>,
}

const fn vendor(file: &'static str, instrument: &'static str, counts: [u64; 4]) -> Vendor {
    Vendor { file, instrument, format: "auto", zone: "", counts, cleaned: None }
}

impl Vendor {
    const fn format(self, format: &'static str) -> Vendor {
        Vendor { format, ..self }
    }

    const fn zone(self, zone: &'static str) -> Vendor {
        Vendor { zone, ..self }
    }

    const fn cleaned(self, file: &'static str, equal: usize) -> Vendor {
        Vendor { cleaned: Some((file, equal)), ..self }
    }

    fn spec(&self, folder: &Path) -> Result<FileSpec> {
        let zone = Some(self.zone).filter(|zone| !zone.is_empty());
        Ok(FileSpec {
            instrument: Some(self.instrument.parse()?),
            format: self.format.parse()?,
            zone: zone.map(str::parse).transpose()?,
            ..FileSpec::new(folder.join(self.file))
        })
    }
}

const RELIANCE: &str = "NSE_EQ|INE002A01018";
const NIFTY: &str = "NSE_INDEX|Nifty 50";
const RELIANCE_MINUTES: &str = "1m/NSE_EQ_INE002A01018_RELIANCE.csv.gz";
const NIFTY_MINUTES: &str = "1m/NSE_INDEX_Nifty_50_NIFTY.csv.gz";

/// Every file of `vendor/INDEX.csv`.
const VENDORS: [Vendor; 21] = [
    vendor("binance_spot_ADABTC-1m-2021-11-27.csv", "CRYPTO|BINANCE:ADABTC", [10, 0, 0, 0]),
    vendor("binance_um_ALGOUSDT-1m-2023-02.csv.gz", "CRYPTO|BINANCE-UM:ALGOUSDT", [40_320, 0, 0, 13]),
    vendor("kite_historical_minute.json", "NSE_EQ|KITE", [6, 0, 0, 0]),
    vendor("kite_historical_oi.json", "NSE_FO|KITE", [6, 0, 0, 0]),
    vendor("upstox_RELIANCE_day.parquet", RELIANCE, [1011, 0, 0, 0])
        .cleaned("1d/NSE_EQ_INE002A01018_RELIANCE.csv.gz", 1011),
    vendor("upstox_RELIANCE_15minute.parquet", RELIANCE, [25, 0, 0, 0])
        .cleaned("15m/NSE_EQ_INE002A01018_RELIANCE.csv.gz", 25),
    vendor("upstox_RELIANCE_MONTH_folder_named_1m.parquet", RELIANCE, [49, 0, 0, 0])
        .cleaned("1mo/NSE_EQ_INE002A01018_RELIANCE.csv.gz", 49),
    vendor("upstox_shape_RELIANCE_1minute_2016-09-30.json", RELIANCE, [375, 374, 0, 0]),
    vendor("mplfinance_SP500_NOV2019_IDay.csv", "US_INDEX|SP500", [1563, 0, 3, 1563]).format("mplfinance"),
    vendor("nifty_2013_JAN_NIFTY.txt", NIFTY, [8623, 0, 23, 8623]),
    vendor("nifty_2014_MUHURAT_NIFTY.txt", NIFTY, [61, 0, 1, 61]),
    vendor("nifty_2015_JUN_NIFTY.txt", NIFTY, [8250, 0, 21, 8250]).cleaned(NIFTY_MINUTES, 8623 + 61 + 8250),
    // The same day again, without the open interest of 0 that the answer in Upstox's form has.
    vendor("kite_csv_minute_RELIANCE_2016-09-30.csv", RELIANCE, [375, 2, 4, 0])
        .format("kite-csv")
        .cleaned(RELIANCE_MINUTES, 375),
    // Its last minute was under way when it was exported.
    vendor("barchart_ESH22_2days.csv", "CME|ESH22", [1920, 0, 2, 0]).cleaned("1m/CME_ESH22.csv.gz", 1919),
    // And one minute still forming, which is refused.
    vendor("yfinance_multiheader_SPY_1min.csv", "US|SPY", [181, 0, 3, 1]),
    vendor("lean_IBM_20131007_trade_minute.zip", "US|IBM", [453, 0, 37, 0])
        .format("lean-equity")
        .zone("America/New_York"),
    vendor("lean_YESBANK_20190709_trade_minute.zip", "NSE_EQ|INE528G01035", [377, 0, 1, 0])
        .format("lean-equity")
        .zone("Asia/Kolkata"),
    vendor("lean_ES_20131007_trade_minute.zip", "CME|ES", [1344 + 325 + 2, 0, 33 + 166 + 1, 5]),
    vendor("alphavantage_QQQ_1min_2019-02.csv", "US|QQQ-2019", [1948, 1947, 6, 1])
        .format("alphavantage")
        .cleaned("1m/US_QQQ-2019.csv.gz", 1948),
    vendor("bitfinex_LTCUSD_2016_merged.csv.gz", "CRYPTO|BITFINEX:LTCUSD", [41_250, 0, 24_004, 0])
        .cleaned("1m/CRYPTO_BITFINEX_LTCUSD.csv.gz", 41_250),
    vendor("backtrader_ticksample.csv", "EUREX|FESX", [4, 0, 0, 0]).zone("Europe/Berlin"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_the_data_comes_out_as_it_went_in_and_its_defects_are_told() -> Result<()> {
    let Some(data) = data_folder()? else { return Ok(()) };
    // Reports name the files of a manifest without symbolic links.
    let data = data.canonicalize()?;
    let mut up = Up::start(program()).await?;
    let gateway = up.gateway()?;
    let mut expected = Candles::new();
    vendors(&gateway, &data.join("vendor"), &mut expected).await?;
    let out = tempfile::tempdir()?;
    let exported = export(&gateway, &out.path().join("vendor"), "csv").await?;
    same(&exported, &expected)?;
    for vendor in VENDORS.iter() {
        let Some((file, equal)) = vendor.cleaned else { continue };
        let timeframe = file.split_once('/').context("no folder")?.0;
        let held = &exported[&(vendor.instrument.to_owned(), timeframe.to_owned())];
        let cleaned = read_csv(&data.join(file))?.candles;
        let found = held.iter().filter(|(at, bits)| cleaned.get(at) == Some(bits)).count();
        ensure!(found >= equal, "{}: {found} rows are as in {file}, not {equal}", vendor.file);
    }
    for manifest in ["instruments_other.csv", "instruments_1m.csv"] {
        listed(&gateway, &data, manifest, &mut expected).await?;
    }
    same(&export(&gateway, &out.path().join("all"), "parquet").await?, &expected)?;
    let rows: usize = expected.values().map(BTreeMap::len).sum();

    up.process().terminate()?;
    up.process().ended().await?;
    let fsck = json(["fsck".as_ref(), "--json".as_ref(), "--data-dir".as_ref(), up.data_dir().as_os_str()]).await?;
    ensure!(fsck["findings_total"] == 0 && fsck["candles"] == rows, "{fsck}");
    println!("{rows} candles of {} frames equal to the bit", expected.len());
    Ok(())
}

/// Loads every vendor's file; what its reader delivers is what is expected to be there.
async fn vendors(gateway: &str, folder: &Path, expected: &mut Candles) -> Result<()> {
    let mut index = csv::Reader::from_path(folder.join("INDEX.csv"))?;
    let files: Vec<String> = index.records().map(|row| Ok(row?[0].to_owned())).collect::<Result<_>>()?;
    let known = VENDORS.iter().map(|vendor| format!("vendor/{}", vendor.file));
    ensure!(known.collect::<std::collections::BTreeSet<_>>() == files.into_iter().collect(), "other files are listed");
    for vendor in &VENDORS {
        let spec = vendor.spec(folder)?;
        let mut delivered = Delivered::default();
        let detected = formats::read(&spec, &mut delivered)?;
        let mut arguments = vec!["--instrument", vendor.instrument, "--format", vendor.format];
        if !vendor.zone.is_empty() {
            arguments.extend(["--zone", vendor.zone]);
        }
        arguments.push(spec.path.to_str().context("path")?);
        let dry = load(gateway, &[&arguments[..], &["--dry-run"]].concat()).await?;
        let report = load(gateway, &arguments).await?;
        let outcome = delivered.merge(expected);
        ensure!(dry["dry_run"] == true && dry["files"][0]["profiles"] == report["files"][0]["profiles"], "{dry:#}");
        told(vendor.file, &dry, outcome)?;
        told(vendor.file, &report, outcome)?;

        let file = &report["files"][0];
        ensure!(file["format"] == detected.format.as_str() && file["error"].is_null(), "{}: {file}", vendor.file);
        let bad: Vec<(u64, &str)> = delivered.bad.iter().map(|row| (row.line, row.reason.as_str())).collect();
        let reasons = file["reasons"].as_array().context("reasons")?;
        let reasons = reasons.iter().map(|row| Some((row["line"].as_u64()?, row["reason"].as_str()?)));
        ensure!(reasons.collect::<Option<Vec<_>>>() == Some(bad), "{}: {file}", vendor.file);
        let told = ["rows", "steps_backwards", "gaps", "zero_volume"].map(|count| {
            let profiles = file["profiles"].as_array().into_iter().flatten();
            profiles.filter_map(|profile| profile[count].as_u64()).sum::<u64>()
        });
        ensure!(told == vendor.counts, "{}: {told:?}, not {:?}", vendor.file, vendor.counts);
    }
    Ok(())
}

/// Loads what a manifest lists, and holds the report against the manifest's counts.
async fn listed(gateway: &str, data: &Path, manifest: &str, expected: &mut Candles) -> Result<()> {
    let manifest = data.join(manifest);
    let report = load(gateway, &["--manifest", manifest.to_str().context("path")?]).await?;
    let mut by_file: BTreeMap<&str, &Value> = BTreeMap::new();
    for file in report["files"].as_array().context("files")? {
        by_file.insert(file["file"].as_str().context("file")?, file);
    }
    let mut total = Outcome::default();
    for row in csv::Reader::from_path(&manifest)?.deserialize() {
        let row: BTreeMap<String, String> = row?;
        let path = data.join(&row["file"]);
        let file =
            by_file.remove(path.to_str().context("path")?).with_context(|| format!("{} is missing", row["file"]))?;
        let [profile] = file["profiles"].as_array().context("profiles")?.as_slice() else { bail!("{file}") };
        ensure!(profile["instrument"] == row["key"] && file["error"].is_null(), "{file}");
        let count = |name: &str| row[name].parse::<f64>().unwrap_or(0.0) as u64;
        if row["interval"] == "tick" {
            // Trades become minutes; several trades in one millisecond are no defect.
            let mut delivered = Delivered::default();
            let spec = FileSpec { instrument: Some(row["key"].parse()?), ..FileSpec::new(&path) };
            formats::read(&spec, &mut delivered)?;
            ensure!(delivered.bad.is_empty() && file["format"] == "ticks", "{file}");
            minutes_of_trades(data, &row["file"], &delivered)?;
            total.add(delivered.merge(expected));
            continue;
        }
        let read = read_csv(&path)?;
        let violations = count("ohlc_violations");
        ensure!(read.violations.len() as u64 == violations && file["rejected"] == violations, "{file}");
        for (line, reason) in read.violations.iter().zip(file["reasons"].as_array().context("reasons")?) {
            let says = reason["reason"].as_str().unwrap_or_default();
            ensure!(reason["line"] == *line && says.contains("above the body's lower end"), "{file}");
        }
        let mut names = vec![
            ("repeated", "duplicate_stamps"),
            ("steps_backwards", "out_of_order"),
            ("zero_volume", "zero_volume"),
            ("longest_gap_min", "longest_gap_min"),
        ];
        // Of days and months the manifest counts none.
        names.extend((!row["gaps"].is_empty()).then_some(("gaps", "gaps")));
        for (told, counted) in names {
            ensure!(profile[told] == count(counted), "{}: {told} is {}", row["file"], profile[told]);
        }
        ensure!(profile["rows"] == count("rows") - violations && profile["conflicting"] == 0, "{file}");
        total.rejected += violations;
        total.add(merge(expected, &row["key"], &row["interval"], read.candles));
    }
    ensure!(by_file.is_empty(), "{} files more than the manifest has", by_file.len());
    told(&manifest.display().to_string(), &report, total)
}

/// What a load must say it did.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Outcome {
    new: u64,
    replaced: u64,
    unchanged: u64,
    rejected: u64,
}

impl Outcome {
    fn add(&mut self, other: Outcome) {
        self.new += other.new;
        self.replaced += other.replaced;
        self.unchanged += other.unchanged;
        self.rejected += other.rejected;
    }
}

/// Adds rows over those that are there.
fn merge(expected: &mut Candles, key: &str, timeframe: &str, rows: BTreeMap<Millis, Bits>) -> Outcome {
    let held = expected.entry((key.to_owned(), timeframe.to_owned())).or_default();
    let mut outcome = Outcome::default();
    for (at, bits) in rows {
        match held.insert(at, bits) {
            None => outcome.new += 1,
            Some(before) if before == bits => outcome.unchanged += 1,
            Some(_) => outcome.replaced += 1,
        }
    }
    outcome
}

/// Holds what a load says it did, or would do, against what it must do.
fn told(file: &str, report: &Value, outcome: Outcome) -> Result<()> {
    let Outcome { new, replaced, unchanged, rejected } = outcome;
    let expected = match report["dry_run"] == true {
        true => [new + replaced, replaced, unchanged, rejected],
        false => [new + replaced, 0, unchanged, rejected],
    };
    let counts = ["stored", "replaced", "unchanged", "rejected"].map(|name| report[name].as_u64());
    ensure!(counts == expected.map(Some), "{file}: {counts:?}, not {expected:?}");
    Ok(())
}

/// What a reader handed over.
#[derive(Debug, Default)]
struct Delivered {
    candles: Candles,
    bad: Vec<BadRow>,
}

impl Delivered {
    fn merge(&self, expected: &mut Candles) -> Outcome {
        let mut total = Outcome { rejected: self.bad.len() as u64, ..Outcome::default() };
        for ((key, timeframe), rows) in &self.candles {
            total.add(merge(expected, key, timeframe, rows.clone()));
        }
        total
    }
}

impl Sink for Delivered {
    fn chunk(&mut self, chunk: Chunk) -> bool {
        let frame = (chunk.instrument.to_string(), chunk.timeframe.to_string());
        self.candles.entry(frame).or_default().extend(chunk.rows.iter().map(|row| (row.open_time, bits(row))));
        true
    }

    fn bad_row(&mut self, row: BadRow) -> bool {
        self.bad.push(row);
        true
    }
}

fn bits(row: &Candle) -> Bits {
    let interest = row.open_interest.map(f64::to_bits);
    let [open, high, low, close, volume] =
        [row.open, row.high, row.low, row.close, row.volume].map(|value| Some(value.to_bits()));
    [open, high, low, close, volume, interest]
}

/// Prices exactly, volumes to 1e-9 of themselves: the same trades are summed in another order.
fn minutes_of_trades(data: &Path, ticks: &str, delivered: &Delivered) -> Result<()> {
    let oracle = match ticks.contains("IBM") {
        true => "oracle/bars_from_ticks_1m_IBM_20131007.csv.gz",
        false => "oracle/bars_from_ticks_1m_XRPETH.csv.gz",
    };
    let oracle = read_csv(&data.join(oracle))?.candles;
    let rows: Vec<_> = delivered.candles.values().flatten().collect();
    ensure!(rows.len() == oracle.len(), "{ticks}: {} minutes, not {}", rows.len(), oracle.len());
    for (at, bits) in rows {
        let minute = oracle.get(at).with_context(|| format!("{ticks}: {at}"))?;
        let volume = |bits: &Bits| bits[4].map(f64::from_bits).unwrap_or(f64::NAN);
        let near = (volume(bits) - volume(minute)).abs() <= 1e-9 * volume(minute);
        ensure!(near && bits[..4] == minute[..4], "{ticks}: {at}: {bits:?}, not {minute:?}");
    }
    Ok(())
}

/// Rows of a CSV file by the plainest means; days and months by their date, the last row of a stamp counts.
#[derive(Debug, Default)]
struct PlainCsv {
    candles: BTreeMap<Millis, Bits>,
    /// Lines of rows whose prices cannot be, which are not among the candles.
    violations: Vec<u64>,
}

fn read_csv(path: &Path) -> Result<PlainCsv> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let packed = path.extension() == Some(OsStr::new("gz"));
    let text: Box<dyn std::io::Read> = if packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut reader = csv::Reader::from_reader(text);
    let header = reader.headers()?.clone();
    let place = |name: &str| header.iter().position(|column| column == name);
    let columns = ["open", "high", "low", "close", "volume", "open_interest"].map(place);
    let date = place("trading_date");
    let mut read = PlainCsv::default();
    for (index, record) in reader.records().enumerate() {
        let record = record?;
        let at = match date {
            Some(date) => market::parse_millis(&format!("{}T00:00:00Z", &record[date]))?,
            None => market::parse_millis(&record[0])?,
        };
        let value = |place: Option<usize>| place.map(|place| &record[place]).filter(|text| !text.is_empty());
        let mut values = [None; 6];
        for (value, text) in values.iter_mut().zip(columns.map(value)) {
            *value = text.map(str::parse::<f64>).transpose()?;
        }
        let [Some(open), Some(high), Some(low), Some(close), ..] = values else { bail!("{record:?}") };
        match low > open.min(close) || high < open.max(close) {
            true => read.violations.push(index as u64 + 2),
            false => drop(read.candles.insert(at, values.map(|value| value.map(f64::to_bits)))),
        }
    }
    Ok(read)
}

/// Exports everything, and reads it by the manifest of the export.
async fn export(gateway: &str, folder: &Path, format: &str) -> Result<Candles> {
    let out = folder.to_str().context("path")?;
    let report = json(["export", "--gateway", gateway, "--out", out, "--format", format, "--json"]).await?;
    let mut exported = Candles::new();
    for row in csv::Reader::from_path(folder.join("manifest.csv"))?.deserialize() {
        let row: BTreeMap<String, String> = row?;
        let path = folder.join(&row["file"]);
        let mut held = BTreeMap::new();
        match format {
            "csv" => held = read_csv(&path)?.candles,
            _ => {
                read_parquet(&path, Some(&row["key"]), |_, at, bits| {
                    held.insert(at, bits);
                })?;
            }
        }
        ensure!(held.len().to_string() == row["rows"], "{row:?}");
        let mut candles = BTreeMap::new();
        for (at, bits) in held {
            ensure!(candles.insert(named(&row["interval"], at)?, bits).is_none(), "two rows of {at}: {row:?}");
        }
        exported.insert((row["key"].clone(), row["interval"].clone()), candles);
    }
    ensure!(report["rows"] == exported.values().map(BTreeMap::len).sum::<usize>(), "{}", report["rows"]);
    Ok(exported)
}

/// Stored days are named by the open of their session, which is of the same date in UTC for exchanges of India and of America, and
/// months by that of their first day; files name them by their date.
fn named(timeframe: &str, at: Millis) -> Result<Millis> {
    Ok(match timeframe {
        "1d" => at.div_euclid(DAY_MS) * DAY_MS,
        "1mo" => market::parse_millis(&format!("{}-01T00:00:00Z", &market::format_millis(at)[..7]))?,
        _ => at,
    })
}

fn same(exported: &Candles, expected: &Candles) -> Result<()> {
    ensure!(exported.keys().eq(expected.keys()), "{:?}, not {:?}", exported.keys(), expected.keys());
    for (frame, rows) in exported {
        let other = rows.iter().zip(&expected[frame]).find(|(row, other)| row != other);
        ensure!(other.is_none() && rows.len() == expected[frame].len(), "{frame:?}: {other:?}");
    }
    Ok(())
}

async fn load(gateway: &str, arguments: &[&str]) -> Result<Value> {
    json(["load", "--gateway", gateway, "--json"].into_iter().chain(arguments.iter().copied())).await
}

/// Runs a command that must succeed, and reads its report.
async fn json(arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Result<Value> {
    let mut command = command(program());
    command.args(arguments);
    let ended = run(command).await?;
    ensure!(ended.status.success(), "{ended:?}");
    Ok(serde_json::from_slice(&ended.stdout)?)
}

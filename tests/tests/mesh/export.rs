//! What is exported is what was stored, to the bit, and loads back as such; and a store says when it is damaged.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, TimestampMillisecondType};
use candlemesh::client::export::{ExportArgs, Format, Report, export};
use candlemesh::client::{Connection, load};
use candlemesh_tests::in_process::InProcess;
use candlemesh_tests::made_up;
use candlemesh_tests::oracle::data_folder;
use candlemesh_tests::processes::{Up, command, run};
use candlemesh_tests::python;
use formats::{FileSpec, Manifest};
use market::Timeframe;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::program;

/// Bits of a candle's open, high, low, close, volume and open interest; `None` for an absent open interest.
pub(crate) type Bits = [Option<u64>; 6];
/// Candles by instrument and open time.
type Rows = BTreeMap<(String, i64), Bits>;

/// Adds the rows of a Parquet file, later ones over earlier ones. Returns how many there are.
fn add_parquet(path: &Path, key: Option<&str>, rows: &mut Rows) -> Result<u64> {
    read_parquet(path, key, |key, open_time, bits| {
        rows.insert((key.to_owned(), open_time), bits);
    })
}

/// Hands over key, open time and values of each row of a Parquet file. Returns how many there are.
pub(crate) fn read_parquet(path: &Path, key: Option<&str>, mut row: impl FnMut(&str, i64, Bits)) -> Result<u64> {
    let mut count = 0;
    for batch in ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?.build()? {
        let batch = batch?;
        count += batch.num_rows() as u64;
        let column = |name: &str| batch.column_by_name(name).with_context(|| format!("no column '{name}'"));
        let keys = column("key").ok().map(texts);
        let times = column("timestamp")?.as_primitive::<TimestampMillisecondType>();
        let names = ["open", "high", "low", "close", "volume", "open_interest"];
        let values = names.map(|name| column(name).map(|column| column.as_primitive::<Float64Type>()));
        let values: Vec<_> = values.into_iter().collect::<Result<_>>()?;
        for index in 0..batch.num_rows() {
            let key = keys.as_ref().map_or(key, |keys| Some(&keys[index])).context("no key")?;
            let bits = std::array::from_fn(|at| values[at].is_valid(index).then(|| values[at].value(index).to_bits()));
            row(key, times.value(index), bits);
        }
    }
    Ok(count)
}

fn texts(column: &arrow_array::ArrayRef) -> Vec<String> {
    match column.as_string_opt::<i32>() {
        Some(texts) => texts.iter().map(|text| text.unwrap_or_default().to_owned()).collect(),
        None => column.as_string::<i64>().iter().map(|text| text.unwrap_or_default().to_owned()).collect(),
    }
}

async fn load_all(connection: &Connection, specs: &[FileSpec]) -> Result<load::Report> {
    let report = load::load(connection, specs, None, true).await?;
    match report.files.iter().find_map(|file| file.error.as_ref()) {
        Some(error) => bail!("{error}"),
        None => Ok(report),
    }
}

/// Files of a manifest whose path has a part of these names, as the manifest describes them.
fn listed(manifest: &Path, folders: &[&str]) -> Result<Vec<FileSpec>> {
    let manifest = Manifest::read(manifest)?;
    let wanted = |path: &Path| path.iter().any(|part| folders.iter().any(|folder| part == *folder));
    let files = manifest.files().into_iter().filter(|path| folders.is_empty() || wanted(path));
    Ok(files.filter_map(|path| manifest.find(&path).map(|entry| entry.spec(&path))).collect())
}

async fn exported(connection: &Connection, out: &Path, change: impl FnOnce(&mut ExportArgs)) -> Result<Report> {
    let mut args = ExportArgs { out: out.to_path_buf(), json: true, ..ExportArgs::default() };
    change(&mut args);
    export(connection, &args).await
}

/// The whole of the minutes: exported as they are in the source, and loaded again without a change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_minute_of_real_data_comes_out_as_it_went_in() -> Result<()> {
    let Some(data) = data_folder()? else { return Ok(()) };
    let mesh = InProcess::start().await?;
    let connection = Connection::to(&mesh.gateway());
    let source = data.join("all_1m.parquet");
    let spec = FileSpec { timeframe: Some(Timeframe::M1), ..FileSpec::new(&source) };
    let loaded = load_all(&connection, &[spec]).await?;
    let mut sent = Rows::new();
    add_parquet(&source, None, &mut sent)?;

    let out = mesh.folder().join("out");
    let report = exported(&connection, &out, |_| {}).await?;
    let mut held = Rows::new();
    for file in &report.files {
        let count = add_parquet(&file.file, Some(&file.key), &mut held)?;
        ensure!(count == file.rows, "{count} rows in {file:?}");
    }
    ensure!(held.len() as u64 == loaded.stored, "{} candles exported of {}", held.len(), loaded.stored);
    ensure!(held.len() as u64 == report.rows, "{} candles exported, {} different", report.rows, held.len());
    let rejected = sent.iter().filter(|(place, bits)| held.get(place) != Some(bits)).count() as u64;
    ensure!(rejected <= loaded.rejected, "{rejected} rows changed or missing, {} were rejected", loaded.rejected);
    ensure!(held.iter().all(|(place, bits)| sent.get(place) == Some(bits)), "a candle is not as it was sent");
    println!("{} candles of {} files equal to the bit, {} rejected", held.len(), report.files.len(), loaded.rejected);

    let again = load_all(&connection, &listed(&out.join("manifest.csv"), &[])?).await?;
    let (stored, unchanged, rejected) = (again.stored, again.unchanged, again.rejected);
    ensure!((stored, unchanged, rejected) == (0, report.rows, 0), "{stored} {unchanged} {rejected} of {}", report.rows);
    mesh.stop().await
}

/// The other intervals, and some minutes: exported in each format, loaded into a mesh that has nothing, and exported again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_loaded_elsewhere_and_exported_again_is_the_same() -> Result<()> {
    let Some(data) = data_folder()? else { return Ok(()) };
    let mesh = InProcess::start().await?;
    let connection = Connection::to(&mesh.gateway());
    let mut specs = listed(&data.join("instruments_other.csv"), &["1d", "5m", "15m", "1h", "1mo"])?;
    let minutes = listed(&data.join("instruments_1m.csv"), &[])?;
    specs.extend(minutes.into_iter().filter(|spec| {
        ["US_SPY.csv.gz", "US_SPY-EXT.csv.gz", "CME_ESH22.csv.gz"].iter().any(|name| spec.path.ends_with(name))
    }));
    ensure!(specs.len() > 50, "{} files", specs.len());
    load_all(&connection, &specs).await?;
    for (format, of) in [(Format::Parquet, None), (Format::CsvGz, None), (Format::Csv, Some("US"))] {
        let folder = mesh.folder().join(format.as_str());
        let set = |args: &mut ExportArgs| {
            args.format = Some(format);
            args.segment = of.map(str::to_owned);
        };
        let first = exported(&connection, &folder.join("first"), set).await?;
        let other = InProcess::start().await?;
        let elsewhere = Connection::to(&other.gateway());
        let loaded = load_all(&elsewhere, &listed(&folder.join("first/manifest.csv"), &[])?).await?;
        ensure!((loaded.stored, loaded.rejected) == (first.rows, 0), "{} of {} stored", loaded.stored, first.rows);
        let second = exported(&elsewhere, &folder.join("second"), set).await?;
        ensure!(first.files.len() == second.files.len() && first.rows == second.rows, "{format:?}");
        for (a, b) in first.files.iter().zip(&second.files) {
            ensure!(contents(&a.file, format)? == contents(&b.file, format)?, "{} differs", a.file.display());
        }
        println!("{format:?}: {} files, {} candles", first.files.len(), first.rows);
        other.stop().await?;
    }
    mesh.stop().await
}

/// What a file says, whatever revision it is of.
fn contents(path: &Path, format: Format) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    match format {
        Format::Parquet => {
            let mut rows = Rows::new();
            add_parquet(path, Some(""), &mut rows)?;
            text = format!("{rows:?}").into_bytes();
        }
        Format::CsvGz => {
            std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(File::open(path)?), &mut text)?;
        }
        Format::Csv => text = std::fs::read(path)?,
    }
    Ok(text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_export_keeps_what_is_complete_and_current() -> Result<()> {
    let mesh = InProcess::start().await?;
    let connection = Connection::to(&mesh.gateway());
    let put = async |key: &str, seed: u64| -> Result<()> {
        let path = tempfile::Builder::new().suffix(".csv.gz").tempfile()?.into_temp_path();
        made_up::write_csv_gz(&path, &made_up::minutes(seed, 2)?)?;
        let spec = FileSpec {
            instrument: Some(key.parse()?),
            timeframe: Some(Timeframe::M1),
            ..FileSpec::new(path.to_path_buf())
        };
        load_all(&connection, &[spec]).await.map(|_| ())
    };
    let keys = ["NSE_EQ|A", "NSE_EQ|B", "NSE_EQ|C C"];
    for (seed, key) in keys.iter().enumerate() {
        put(key, seed as u64).await?;
    }
    let out = mesh.folder().join("out");
    let first = exported(&connection, &out, |_| {}).await?;
    ensure!((first.files.len(), first.kept) == (3, 0), "{first:?}");
    let mixed = exported(&connection, &out, |_| {}).await.unwrap_err();
    ensure!(mixed.to_string().contains("--resume"), "{mixed:#}");

    std::fs::remove_file(&first.files[0].file)?;
    put(keys[1], 9).await?;
    // A line that a crash has cut off.
    let manifest = out.join("manifest.csv");
    let whole = std::fs::read_to_string(&manifest)?;
    std::fs::write(&manifest, format!("{whole}NSE_EQ@X_1m.par"))?;
    let resumed = exported(&connection, &out, |args| args.resume = true).await?;
    let again: Vec<&str> = resumed.files.iter().map(|file| file.key.as_str()).collect();
    ensure!(again == [keys[0], keys[1]] && resumed.kept == 1, "{resumed:?}");
    let loaded = load_all(&connection, &listed(&manifest, &[])?).await?;
    ensure!(loaded.files.len() == 3 && loaded.stored == 0 && loaded.rejected == 0, "{loaded:?}");
    let left: Vec<_> =
        std::fs::read_dir(&out)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>()?;
    ensure!(left.len() == 4, "{left:?}");

    let one = mesh.folder().join("five.csv");
    let five = exported(&connection, &one, |args| {
        args.instrument = vec!["NSE_EQ|A".parse().expect("a key")];
        args.timeframe = Some(Timeframe::M5);
        args.range.start = Some("2024-01-02".to_owned());
    });
    let five = five.await?;
    let text = std::fs::read_to_string(&one)?;
    ensure!(five.rows > 70 && text.lines().count() as u64 == five.rows + 1, "{five:?}");
    let several = exported(&connection, &mesh.folder().join("all.csv"), |_| {}).await.unwrap_err();
    ensure!(several.to_string().contains("name a folder"), "{several:#}");
    mesh.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fsck_finds_a_damaged_block_and_names_its_instrument() -> Result<()> {
    let Some(python) = python::interpreter()? else { return Ok(()) };
    let mut up = Up::start(program()).await?;
    let path = tempfile::Builder::new().suffix(".csv.gz").tempfile()?.into_temp_path();
    made_up::write_csv_gz(&path, &made_up::minutes(3, 3)?)?;
    let connection = Connection::to(&up.gateway()?);
    for key in ["NSE_EQ|GOOD", "NSE_EQ|BAD"] {
        let spec = FileSpec {
            instrument: Some(key.parse()?),
            timeframe: Some(Timeframe::M1),
            ..FileSpec::new(path.to_path_buf())
        };
        load_all(&connection, &[spec]).await?;
    }
    let folder = up.data_dir();
    let fsck = || {
        let mut command = command(program());
        command.arg("fsck").arg("--data-dir").arg(&folder);
        run(command)
    };
    let running = fsck().await?;
    let said = String::from_utf8_lossy(&running.stderr).into_owned();
    ensure!(running.status.code() == Some(1) && said.contains("another candlemesh runs on it"), "{said}");
    up.process().terminate()?;
    up.process().ended().await?;
    let clean = fsck().await?;
    ensure!(clean.status.success(), "{clean:?}");

    let damage = "import sqlite3, sys\n\
        db = sqlite3.connect(sys.argv[1])\n\
        at = \"series_id = (select series_id from candle_series where instrument_key = 'NSE_EQ|BAD')\"\n\
        (date, payload) = db.execute('select max(block_date), payload from candle_block where ' + at).fetchone()\n\
        middle = len(payload) // 2\n\
        payload = payload[:middle] + bytes([payload[middle] ^ 1]) + payload[middle + 1:]\n\
        changed = db.execute('update candle_block set payload = ? where block_date = ? and ' + at, (payload, date))\n\
        assert changed.rowcount == 1, changed.rowcount\n\
        db.commit()\n";
    let damaged = Command::new(python).args(["-c", damage]).arg(folder.join("candlemesh.db")).output()?;
    ensure!(damaged.status.success(), "{damaged:?}");
    let found = fsck().await?;
    let said = String::from_utf8_lossy(&found.stdout).into_owned();
    ensure!(found.status.code() == Some(1), "{found:?}");
    ensure!(said.contains("NSE_EQ|BAD") && !said.contains("NSE_EQ|GOOD"), "{said}");
    Ok(())
}

//! The oracle of `../shared/data/oracle`: bars and indicators that pandas and TA-Lib computed from the files of `1m`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, TimestampMicrosecondType};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use formats::Manifest;
use market::InstrumentKey;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Deserialize;

use crate::answers::Column;

/// Folder of real data: `CANDLEMESH_TEST_DATA`, else `../shared/data` beside the workspace. `None` with a printed line where it
/// is missing; `CANDLEMESH_REQUIRE_TEST_DATA=1` makes that an error.
pub fn data_folder() -> Result<Option<PathBuf>> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = std::env::var_os("CANDLEMESH_TEST_DATA").map_or_else(beside, PathBuf::from);
    if folder.is_dir() {
        return Ok(Some(folder));
    }
    let advice = format!("there is no data at {}; CANDLEMESH_TEST_DATA names another folder", folder.display());
    if std::env::var("CANDLEMESH_REQUIRE_TEST_DATA").is_ok_and(|value| value == "1") {
        bail!("{advice} (CANDLEMESH_REQUIRE_TEST_DATA=1 forbids skipping)");
    }
    eprintln!("skipped: {advice}");
    Ok(None)
}

/// An instrument of the oracle.
#[derive(Debug, Clone)]
pub struct Case {
    pub name: String,
    pub instrument: InstrumentKey,
    pub has_indicators: bool,
    file: PathBuf,
    /// Window the oracle used, as text that sorts like the file's stamps.
    from: String,
    to: String,
    oracle: PathBuf,
}

/// A resampled bar.
#[derive(Debug, Clone, Deserialize)]
pub struct Bar {
    pub interval: String,
    align: String,
    /// Open instant; the trading date for 1d.
    pub bucket: String,
    pub open: f64,
    pub high: f64,
    pub low: f64,
    pub close: f64,
    pub volume: f64,
    pub bars: u32,
}

/// Indicator columns, one row per minute.
#[derive(Debug, Default)]
pub struct IndicatorTable {
    pub open_time: Vec<String>,
    pub columns: BTreeMap<String, Column>,
}

#[derive(Deserialize)]
struct ConfigFile {
    instruments: Vec<ConfigEntry>,
}

#[derive(Deserialize)]
struct ConfigEntry {
    name: String,
    file: PathBuf,
    from: Option<String>,
    to: Option<String>,
    indicators: Option<bool>,
}

/// Every instrument of the oracle.
pub fn cases(data: &Path) -> Result<Vec<Case>> {
    let manifest = Manifest::read(&data.join("instruments_1m.csv"))?;
    let config: ConfigFile = serde_json::from_reader(File::open(data.join("oracle/oracle_config.json"))?)?;
    let case = |entry: ConfigEntry| {
        let file = data.join(&entry.file);
        let known = manifest.find(&file).with_context(|| format!("{} has no key", file.display()))?;
        Ok(Case {
            name: entry.name,
            instrument: known.instrument.clone(),
            has_indicators: entry.indicators.unwrap_or(true),
            file,
            from: entry.from.unwrap_or_default(),
            to: entry.to.unwrap_or_else(|| "9999".to_owned()),
            oracle: data.join("oracle"),
        })
    };
    config.instruments.into_iter().map(case).collect()
}

impl Case {
    /// Writes the rows of the oracle's window to a file that `load` reads. Returns its path and the number of rows.
    pub fn write_window(&self, folder: &Path) -> Result<(PathBuf, usize)> {
        let path = folder.join(format!("{}.csv.gz", self.name));
        let mut out = BufWriter::new(GzEncoder::new(File::create(&path)?, Compression::fast()));
        let mut rows = 0;
        for (number, line) in BufReader::new(MultiGzDecoder::new(File::open(&self.file)?)).lines().enumerate() {
            let line = line?;
            let is_header = number == 0;
            let inside = line.as_str() >= self.from.as_str() && line.as_str() < self.to.as_str();
            if is_header || inside {
                writeln!(out, "{line}")?;
                rows += usize::from(!is_header);
            }
        }
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?.finish()?;
        Ok((path, rows))
    }

    /// Session-anchored bars, of every interval, in order.
    pub fn bars(&self) -> Result<Vec<Bar>> {
        let path = self.oracle.join(format!("bars_{}.csv.gz", self.name));
        let mut reader = csv::Reader::from_reader(MultiGzDecoder::new(File::open(path)?));
        let bars: Vec<Bar> = reader.deserialize().collect::<Result<_, _>>()?;
        Ok(bars.into_iter().filter(|bar| bar.align == "session").collect())
    }

    /// Every numeric column of every row.
    pub fn indicators(&self) -> Result<IndicatorTable> {
        let path = self.oracle.join(format!("indicators_{}.parquet", self.name));
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?;
        let names: Vec<String> = builder.schema().fields().iter().map(|field| field.name().clone()).collect();
        let numeric = names.iter().enumerate().filter(|(_, name)| *name != "trading_day").map(|(index, _)| index);
        let mask = ProjectionMask::roots(builder.parquet_schema(), numeric);
        let mut table = IndicatorTable::default();
        for batch in builder.with_projection(mask).build()? {
            let batch = batch?;
            for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
                if let Some(stamps) = array.as_primitive_opt::<TimestampMicrosecondType>() {
                    let text = |stamp: &i64| market::format_millis(stamp / 1000);
                    table.open_time.extend(stamps.values().iter().map(text));
                    continue;
                }
                let values = array.as_primitive_opt::<Float64Type>();
                let values = values.with_context(|| format!("{} is {}", field.name(), array.data_type()))?;
                let column = table.columns.entry(field.name().clone()).or_default();
                column.extend(values.iter().map(|value| value.filter(|value| !value.is_nan())));
            }
        }
        Ok(table)
    }
}

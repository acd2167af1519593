//! Rows to store, from the formats a body may come in. A row that does not read is kept with its reason.

use axum::body::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proto::convert::{FieldError, timestamp, wire_candle};
use proto::wire;

use super::arrow;
use super::body::StoreCandle;
use super::call;
use super::problem::Problem;

/// Rows of one body: compressed formats hold far more rows than their size says.
const MAX_ROWS: usize = 2_000_000;

/// A candle, or why the row is none.
pub(super) type Row = Result<wire::Candle, String>;

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    NdJson,
    Csv,
    Arrow,
    Parquet,
}

impl Format {
    /// Reads `content-type`; what is not one of the others is taken for JSON, as most clients leave it at a default.
    pub(super) fn of(headers: &HeaderMap) -> Format {
        let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match kind.split(';').next().unwrap_or_default().trim() {
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Format::NdJson,
            "text/csv" => Format::Csv,
            arrow::MEDIA_TYPE => Format::Arrow,
            "application/vnd.apache.parquet" | "application/x-parquet" => Format::Parquet,
            _ => Format::Json,
        }
    }
}

pub(super) fn row(candle: StoreCandle) -> Row {
    let at =
        market::parse_millis(&candle.open_time).map_err(|error| FieldError::new("open_time", error).to_string())?;
    Ok(wire::Candle {
        open_time: Some(timestamp(at)),
        open: candle.open,
        high: candle.high,
        low: candle.low,
        close: candle.close,
        volume: candle.volume,
        open_interest: candle.open_interest,
    })
}

/// Reads the rows of a body that is not JSON.
///
/// Errors: a body that is not of its format at all. Of a text format, bad lines are rows with a reason.
pub(super) fn rows(format: Format, body: Bytes) -> Result<Vec<Row>, Problem> {
    let rows = match format {
        Format::Json => call::parse::<Vec<StoreCandle>>(&body)?.into_iter().map(row).collect(),
        Format::NdJson => ndjson(&body),
        Format::Csv => csv_rows(&body)?,
        Format::Arrow => arrow_rows(body)?,
        Format::Parquet => parquet_rows(body)?,
    };
    Ok(rows)
}

fn ndjson(body: &[u8]) -> Vec<Row> {
    let lines = body.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
    let read = |(number, line): (usize, &[u8])| {
        let candle: Result<StoreCandle, _> = serde_json::from_slice(line);
        candle.map_err(|error| error.to_string()).and_then(row).map_err(|text| format!("line {}: {text}", number + 1))
    };
    lines.map(read).collect()
}

const CSV_COLUMNS: [&str; 6] = ["open_time", "open", "high", "low", "close", "volume"];

fn csv_rows(body: &[u8]) -> Result<Vec<Row>, Problem> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(body);
    let headers = reader.headers().map_err(|error| Problem::field("body", format!("CSV: {error}")))?.clone();
    let position = |name: &str| headers.iter().position(|header| header == name);
    let mut columns = [0; CSV_COLUMNS.len()];
    for (column, name) in columns.iter_mut().zip(CSV_COLUMNS) {
        let found = position(name).or_else(|| if name == "open_time" { position("timestamp") } else { None });
        *column = found.ok_or_else(|| {
            let accepted = CSV_COLUMNS.join(",");
            Problem::field(
                "body",
                format!("CSV without the column '{name}'; a first line {accepted}[,open_interest] is expected"),
            )
        })?;
    }
    let interest = position("open_interest");
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                rows.push(Err(format!("CSV: {error}")));
                continue;
            }
        };
        let line = record.position().map_or(0, csv::Position::line);
        rows.push(csv_row(&record, &columns, interest).map_err(|text| format!("line {line}: {text}")));
    }
    Ok(rows)
}

fn csv_row(record: &csv::StringRecord, columns: &[usize; 6], interest: Option<usize>) -> Row {
    let text = |column: usize| record.get(column).unwrap_or_default();
    let number = |name: &str, column: usize| {
        text(column).parse::<f64>().map_err(|_| format!("{name}: '{}' is not a number", text(column)))
    };
    let open_interest = match interest {
        Some(column) if !text(column).is_empty() => Some(number("open_interest", column)?),
        _ => None,
    };
    row(StoreCandle {
        open_time: text(columns[0]).to_owned(),
        open: number("open", columns[1])?,
        high: number("high", columns[2])?,
        low: number("low", columns[3])?,
        close: number("close", columns[4])?,
        volume: number("volume", columns[5])?,
        open_interest,
    })
}

fn too_many(rows: usize) -> Problem {
    let detail = format!("the body holds {rows} rows or more; accepted: {MAX_ROWS}. Send several, or use Arrow Flight");
    Problem::http(http::StatusCode::PAYLOAD_TOO_LARGE, "TOO_MANY_ROWS", detail)
}

fn arrow_rows(body: Bytes) -> Result<Vec<Row>, Problem> {
    let refuse = |error: &dyn std::fmt::Display| Problem::field("body", format!("Arrow stream: {error}"));
    let reader = arrow_ipc::reader::StreamReader::try_new(std::io::Cursor::new(body), None).map_err(|e| refuse(&e))?;
    batches(reader.map(|batch| batch.map_err(|error| refuse(&error))))
}

fn parquet_rows(body: Bytes) -> Result<Vec<Row>, Problem> {
    let refuse = |error: &dyn std::fmt::Display| Problem::field("body", format!("Parquet: {error}"));
    let builder = ParquetRecordBatchReaderBuilder::try_new(body).map_err(|error| refuse(&error))?;
    let reader = builder.build().map_err(|error| refuse(&error))?;
    batches(reader.map(|batch| batch.map_err(|error| refuse(&error))))
}

fn batches(batches: impl Iterator<Item = Result<arrow_array::RecordBatch, Problem>>) -> Result<Vec<Row>, Problem> {
    let mut rows: Vec<Row> = Vec::new();
    for batch in batches {
        let batch = batch?;
        if rows.len() + batch.num_rows() > MAX_ROWS {
            return Err(too_many(rows.len() + batch.num_rows()));
        }
        if batch.column_by_name("key").is_some() {
            let detail =
                "the column would be ignored: one body holds the rows of one instrument; send one body for each";
            return Err(Problem::field("key", detail));
        }
        let candles = proto::arrow::delivered_candles(&batch)?.into_iter();
        let row =
            |candle: Option<market::Candle>| candle.as_ref().map(wire_candle).ok_or("open_time: is null".to_owned());
        rows.extend(candles.map(row));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn reasons(rows: &[Row]) -> Vec<Option<&str>> {
        rows.iter().map(|row| row.as_ref().err().map(String::as_str)).collect()
    }

    #[test]
    fn csv_rows_that_do_not_read_are_kept_with_line_and_reason() {
        let text = "timestamp,open,high,low,close,volume,open_interest\n\
                    2024-01-01T23:00:00Z,1,2,0.5,1.5,10,\n\
                    yesterday,1,2,0.5,1.5,10,\n\
                    2024-01-01T23:02:00Z,x,2,0.5,1.5,10,0\n\
                    2024-01-01T23:03:00Z,1,2\n";
        let rows = rows(Format::Csv, Bytes::from(text)).unwrap();
        assert_eq!(rows[0].as_ref().unwrap().open_interest, None);
        let reasons = reasons(&rows);
        assert!(reasons[1].unwrap().starts_with("line 3: open_time"), "{reasons:?}");
        assert_eq!(reasons[2], Some("line 4: open: 'x' is not a number"));
        assert!(reasons[3].unwrap().contains("line: 5"), "{reasons:?}");
        assert!(super::rows(Format::Csv, Bytes::from("a,b\n1,2\n")).is_err());
    }

    #[test]
    fn ndjson_rows_refuse_unknown_fields_one_by_one() {
        let good = r#"{"open_time":"2024-01-01T23:00:00Z","open":1,"high":2,"low":0.5,"close":1.5,"volume":10,"open_interest":null}"#;
        let bad = good.replace("volume", "vol");
        let rows = rows(Format::NdJson, Bytes::from(format!("{good}\n\n{bad}\n{{\n"))).unwrap();
        let reasons = reasons(&rows);
        assert_eq!((rows.len(), reasons[0]), (3, None));
        assert!(reasons[1].unwrap().starts_with("line 3: unknown field `vol`"), "{reasons:?}");
    }

    #[test]
    fn arrow_streams_read_like_flight_and_garbage_is_refused() {
        let schema = proto::arrow::candle_schema(Default::default());
        let mut frame = market::Frame::default();
        let candle = market::Candle {
            open_time: 60_000,
            open: 1.0,
            high: 2.0,
            low: 0.5,
            close: 1.5,
            volume: 3.0,
            open_interest: None,
        };
        frame.push(&candle).unwrap();
        let batch = proto::arrow::candle_batch(&schema, frame).unwrap();
        let mut writer = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), &schema).unwrap();
        writer.write(&batch).unwrap();
        let bytes = Bytes::from(writer.into_inner().unwrap());
        assert_eq!(rows(Format::Arrow, bytes).unwrap(), vec![Ok(wire_candle(&candle))]);
        let mut parquet = Vec::new();
        let mut writer = parquet::arrow::ArrowWriter::try_new(&mut parquet, Arc::clone(&schema), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        assert_eq!(rows(Format::Parquet, Bytes::from(parquet)).unwrap(), vec![Ok(wire_candle(&candle))]);
        for format in [Format::Arrow, Format::Parquet] {
            assert!(rows(format, Bytes::from_static(b"garbage that is no frame")).is_err());
        }
    }
}

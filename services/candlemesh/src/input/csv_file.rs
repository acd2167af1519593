//! Comma-separated candles, plain or gzipped, columns found by their header.

use std::fs::File;
use std::io::{BufReader, Read};

use csv::{ReaderBuilder, StringRecord};
use flate2::read::MultiGzDecoder;
use market::{Candle, Millis, Timeframe};

use super::{CANDLE_HEADER, Chunker, FileSpec, InputError, Sink, display};

/// Positions of the columns.
struct Columns {
    time: usize,
    ohlcv: [usize; 5],
    open_interest: Option<usize>,
    trading_date: Option<usize>,
}

const OHLCV: [&str; 5] = ["open", "high", "low", "close", "volume"];
/// Accepted names of the time column.
const TIME: [&str; 4] = ["timestamp", "open_time", "time", "datetime"];

pub(super) fn read(spec: &FileSpec, sink: &mut dyn Sink) -> Result<(), InputError> {
    let file = display(&spec.path);
    let opened = File::open(&spec.path).map_err(|source| InputError::Open { file: file.clone(), source })?;
    let opened = BufReader::new(opened);
    let gzipped = spec.path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz"));
    let text: Box<dyn Read> = if gzipped { Box::new(MultiGzDecoder::new(opened)) } else { Box::new(opened) };
    let mut reader = ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(text);
    let broken = |line, error: csv::Error| InputError::Broken { file: file.clone(), line, reason: reason_of(&error) };

    let headers = reader.headers().map_err(|error| broken(1, error))?.clone();
    let columns = columns(&headers, &file)?;
    let instrument = spec.instrument.as_ref().ok_or_else(|| InputError::NoInstrument { file: file.clone() })?;
    let mut chunker = Chunker::new(sink);
    let mut record = StringRecord::new();
    let mut line = 1;
    loop {
        match reader.read_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                // The rows before are good and must not be lost with the ones after.
                chunker.flush();
                return Err(broken(line + 1, error));
            }
        }
        line = record.position().map_or(line + 1, csv::Position::line);
        let go_on = match candle(&record, &columns, spec.timeframe) {
            // Which of the fields is one too many, nobody can say.
            _ if record.len() > headers.len() => {
                chunker.bad_row(line, format!("{} fields under a header of {}", record.len(), headers.len()))
            }
            Ok(candle) => chunker.push(instrument, line, candle),
            Err(reason) => chunker.bad_row(line, reason),
        };
        if !go_on {
            return Ok(());
        }
    }
    chunker.flush();
    Ok(())
}

fn reason_of(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Io(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => "the file is truncated".to_owned(),
        _ => error.to_string(),
    }
}

fn columns(headers: &StringRecord, file: &str) -> Result<Columns, InputError> {
    let find = |name: &str| headers.iter().position(|header| header.eq_ignore_ascii_case(name));
    let missing = |column| InputError::Column { file: file.to_owned(), column, expected: CANDLE_HEADER };
    let time = TIME.iter().find_map(|name| find(name));
    let time = time.ok_or_else(|| missing("timestamp"))?;
    let mut ohlcv = [0; 5];
    for (position, name) in ohlcv.iter_mut().zip(OHLCV) {
        *position = find(name).ok_or_else(|| missing(name))?;
    }
    Ok(Columns { time, ohlcv, open_interest: find("open_interest"), trading_date: find("trading_date") })
}

fn candle(record: &StringRecord, columns: &Columns, timeframe: Timeframe) -> Result<Candle, String> {
    let field = |index: usize, name: &str| {
        record.get(index).filter(|text| !text.is_empty()).ok_or_else(|| format!("{name} is missing"))
    };
    let number = |index: usize, name: &str| {
        let text = field(index, name)?;
        text.parse::<f64>().map_err(|_| format!("{name} '{text}' is not a number"))
    };
    let trading_date = columns.trading_date.and_then(|index| record.get(index)).filter(|text| !text.is_empty());
    let open_time = match trading_date {
        // Of a day, only the date counts; the server stamps it with the session's open.
        Some(date) if timeframe >= Timeframe::D1 => midnight_utc(date)?,
        _ => market::parse_millis(field(columns.time, "timestamp")?).map_err(|error| error.to_string())?,
    };
    let [open, high, low, close, volume] = columns.ohlcv;
    let open_interest = match columns.open_interest.and_then(|index| record.get(index)).filter(|text| !text.is_empty())
    {
        Some(text) => Some(text.parse().map_err(|_| format!("open_interest '{text}' is not a number"))?),
        None => None,
    };
    Ok(Candle {
        open_time,
        open: number(open, "open")?,
        high: number(high, "high")?,
        low: number(low, "low")?,
        close: number(close, "close")?,
        volume: number(volume, "volume")?,
        open_interest,
    })
}

fn midnight_utc(date: &str) -> Result<Millis, String> {
    market::parse_date(date).map_err(|error| error.to_string())?;
    market::parse_millis(&format!("{date}T00:00:00Z")).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{BadRow, Chunk};
    use std::io::Write;

    #[derive(Default)]
    struct Collected {
        chunks: Vec<Chunk>,
        bad: Vec<BadRow>,
    }

    impl Sink for Collected {
        fn chunk(&mut self, chunk: Chunk) -> bool {
            self.chunks.push(chunk);
            true
        }
        fn bad_row(&mut self, row: BadRow) -> bool {
            self.bad.push(row);
            true
        }
    }

    fn read_text(name: &str, bytes: &[u8], timeframe: Timeframe) -> (Collected, Result<(), InputError>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let spec = FileSpec { path, instrument: Some("US|SPY".parse().unwrap()), timeframe };
        let mut collected = Collected::default();
        let outcome = read(&spec, &mut collected);
        (collected, outcome)
    }

    const HEADER: &str = "timestamp,open,high,low,close,volume,open_interest\n";

    #[test]
    fn bad_rows_are_named_by_line_and_the_others_read() {
        let text = format!(
            "{HEADER}2020-01-02T14:30:00Z,1,2,0.5,1.5,10,\n2020-01-02T14:31:00Z,1,x,0.5,1.5,10,\nnever,1,2,0.5,1.5,10,\n2020-01-02T14:33:00Z,1,2,0.5,1.5,10,7\n"
        );
        let (collected, outcome) = read_text("a.csv", text.as_bytes(), Timeframe::M1);
        outcome.unwrap();
        assert_eq!(collected.chunks[0].lines, [2, 5]);
        assert_eq!(collected.chunks[0].rows[0].open_interest, None);
        assert_eq!(collected.chunks[0].rows[1].open_interest, Some(7.0));
        assert_eq!(collected.bad[0], BadRow { line: 3, reason: "high 'x' is not a number".into() });
        assert!(collected.bad[1].reason.contains("'never'"));
    }

    #[test]
    fn a_row_longer_than_its_header_is_refused() {
        let text = "timestamp,open,high,low,close,volume\n2020-01-02T14:30:00Z,1,2,0.5,1.5,10,99\n";
        let (collected, outcome) = read_text("a.csv", text.as_bytes(), Timeframe::M1);
        outcome.unwrap();
        assert!(collected.chunks.is_empty());
        assert_eq!(collected.bad, [BadRow { line: 2, reason: "7 fields under a header of 6".into() }]);
    }

    #[test]
    fn a_truncated_gzip_hands_over_what_was_readable_and_names_the_line() {
        let mut text = HEADER.to_owned();
        for minute in 0..20_000 {
            let at = market::format_millis(1_577_923_200_000 + minute * 60_000);
            text.push_str(&format!("{at},1.{minute},2.5,0.5,1.5,{minute},\n"));
        }
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        let whole = encoder.finish().unwrap();
        let (collected, outcome) = read_text("a.csv.gz", &whole[..whole.len() / 2], Timeframe::M1);
        let rows: usize = collected.chunks.iter().map(|chunk| chunk.rows.len()).sum();
        assert!(rows > 1000, "{rows}");
        let Err(InputError::Broken { line, reason, .. }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(line, rows as u64 + 2);
        assert!(reason.contains("truncated"), "{reason}");
    }

    #[test]
    fn a_daily_row_is_dated_by_its_trading_date() {
        let text =
            "timestamp,trading_date,open,high,low,close,volume\n2022-01-02T18:30:00Z,2022-01-03,1,2,0.5,1.5,10\n";
        let (collected, _) = read_text("d.csv", text.as_bytes(), Timeframe::D1);
        assert_eq!(market::format_millis(collected.chunks[0].rows[0].open_time), "2022-01-03T00:00:00Z");
    }

    #[test]
    fn a_file_without_a_needed_column_says_which() {
        let (_, outcome) = read_text("a.csv", b"date,price\n1,2\n", Timeframe::M1);
        assert!(outcome.unwrap_err().to_string().contains("'timestamp' is missing"));
    }
}

//! What every reader of files must hold, whatever the bytes.

use formats::{BadRow, CHUNK_ROWS, Chunk, FileSpec, Format, Sink, Stamps};
use market::Timeframe;

/// Checks what readers hand over.
#[derive(Debug, Default)]
pub struct Checked {
    rows: u64,
}

impl Sink for Checked {
    fn chunk(&mut self, chunk: Chunk) -> bool {
        assert!(!chunk.rows.is_empty() && chunk.rows.len() <= CHUNK_ROWS);
        assert_eq!(chunk.rows.len(), chunk.lines.len());
        for row in &chunk.rows {
            assert_eq!(row.check(), Ok(()), "{row:?}");
        }
        self.rows += chunk.rows.len() as u64;
        true
    }

    fn bad_row(&mut self, row: BadRow) -> bool {
        assert!(row.line > 0 && !row.reason.is_empty());
        assert!(row.reason.len() < 1024, "{}", row.reason);
        true
    }
}

/// Reads bytes as a file; the first two say what is known of it.
pub fn read(data: &[u8], formats: &[Format]) {
    let [choice, flags, bytes @ ..] = data else { return };
    let stamps = [None, Some(Stamps::Open), Some(Stamps::End)][usize::from(*flags) % 3];
    let zone = [None, Some("America/New_York"), Some("UTC")][usize::from(*flags / 4) % 3];
    let timeframe = [None, Some(Timeframe::M1), Some(Timeframe::D1)][usize::from(*flags / 16) % 3];
    let spec = FileSpec {
        instrument: "CME|ES".parse().ok().filter(|_| flags & 0x80 == 0),
        timeframe,
        format: formats[usize::from(*choice) % formats.len()],
        zone: zone.and_then(|zone| zone.parse().ok()),
        stamps,
        ..FileSpec::new("fuzz")
    };
    let mut sink = Checked::default();
    let outcome = formats::read_bytes(bytes, &spec, &mut sink);
    match outcome {
        Ok(detected) => {
            let rows: u64 = detected.profiles.iter().map(|profile| profile.rows).sum();
            assert_eq!(rows, sink.rows);
        }
        Err(error) => assert!(error.to_string().len() < 4096, "{error}"),
    }
}

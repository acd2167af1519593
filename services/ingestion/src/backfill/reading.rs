//! Reads a file on a thread of its own, a bounded number of chunks ahead, passing over what is accounted for already.

use formats::{BadRow, CHUNK_ROWS, Chunk, Detected, FileSpec, Position, Sink};
use tokio::sync::mpsc;

use super::report::{MAX_REASONS, Reason};

/// Chunks read ahead of the store: enough that neither waits for the other, a few megabytes.
const READ_AHEAD: usize = 2;

/// A part of a file, the unit of progress.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub(crate) chunk: Option<Chunk>,
    /// Rows that could not be read since the piece before.
    pub(crate) unreadable: u64,
    /// The first of them.
    pub(crate) reasons: Vec<Reason>,
    /// About how many bytes of the file have been read by now.
    pub(crate) bytes_read: u64,
}

/// What comes from the reading thread.
#[derive(Debug)]
pub(crate) enum Event {
    Piece(Piece),
    /// The last one, with rows that could not be read at the file's end.
    End(Piece, Result<Detected, String>),
}

/// How much of a file is accounted for: it is read again, and passed over.
///
/// The order of candles and that of unreadable rows each depend on the file alone, not on how they are cut into chunks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) candles: u64,
    pub(crate) unreadable: u64,
}

/// Starts reading; ends early once nobody receives any more.
pub(crate) fn start(spec: FileSpec, taken: Taken) -> mpsc::Receiver<Event> {
    let (sender, events) = mpsc::channel(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        let position = Position::default();
        let mut feed = Feed { sender, taken, position: position.clone(), piece: Piece::default() };
        let outcome = formats::read_watched(&spec, &position, &mut feed).map_err(|error| reason(&spec, &error));
        feed.piece.bytes_read = position.bytes();
        let _ = feed.sender.blocking_send(Event::End(feed.piece, outcome));
    });
    events
}

/// The error without the server's own path to the file: the job's record names the file already.
fn reason(spec: &FileSpec, error: &formats::InputError) -> String {
    let text = error.to_string();
    let path = spec.path.display().to_string();
    match text.strip_prefix(&path) {
        Some(rest) => rest.trim_start_matches([':', ',', ' ', '/']).to_owned(),
        None => text.replace(&path, "the file"),
    }
}

struct Feed {
    sender: mpsc::Sender<Event>,
    taken: Taken,
    position: Position,
    piece: Piece,
}

impl Feed {
    fn send(&mut self) -> bool {
        self.piece.bytes_read = self.position.bytes();
        self.sender.blocking_send(Event::Piece(std::mem::take(&mut self.piece))).is_ok()
    }
}

impl Sink for Feed {
    fn chunk(&mut self, mut chunk: Chunk) -> bool {
        let passed = self.taken.candles.min(chunk.rows.len() as u64);
        self.taken.candles -= passed;
        if passed as usize == chunk.rows.len() {
            return !self.sender.is_closed();
        }
        chunk.rows.drain(..passed as usize);
        chunk.lines.drain(..passed as usize);
        self.piece.chunk = Some(chunk);
        self.send()
    }

    fn bad_row(&mut self, row: BadRow) -> bool {
        if self.taken.unreadable > 0 {
            self.taken.unreadable -= 1;
            return true;
        }
        self.piece.unreadable += 1;
        if self.piece.reasons.len() < MAX_REASONS {
            self.piece.reasons.push(Reason::new(row.line, row.reason));
        }
        // A file of another kind may have nothing but such rows.
        match self.piece.unreadable >= CHUNK_ROWS as u64 {
            true => self.send(),
            false => true,
        }
    }
}

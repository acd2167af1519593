//! Reads a file on a thread of its own, a few chunks ahead of the network.

use formats::{BadRow, Chunk, Detected, FileSpec, Sink};
use tokio::sync::mpsc;

/// Chunks read ahead of the network.
const READ_AHEAD: usize = 4;

/// What the reading thread sends.
pub(super) enum Event {
    Chunk(Chunk),
    BadRow(BadRow),
    /// The last event; without it, the thread died.
    End(Result<Detected, String>),
}

struct Feed(mpsc::Sender<Event>);

impl Sink for Feed {
    fn chunk(&mut self, chunk: Chunk) -> bool {
        self.0.blocking_send(Event::Chunk(chunk)).is_ok()
    }

    fn bad_row(&mut self, row: BadRow) -> bool {
        self.0.blocking_send(Event::BadRow(row)).is_ok()
    }
}

/// Starts reading; dropping the receiver stops it.
pub(super) fn reading(spec: FileSpec) -> mpsc::Receiver<Event> {
    let (sender, events) = mpsc::channel(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut feed = Feed(sender);
        let outcome = formats::read(&spec, &mut feed).map_err(|error| error.to_string());
        // Nobody may be listening any more.
        let _ = feed.0.blocking_send(Event::End(outcome));
    });
    events
}

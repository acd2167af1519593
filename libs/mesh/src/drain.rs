//! The signal to stop: heard by every server and stream, given once.

use futures::stream::{self, BoxStream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::{Fault, to_status};

/// Why a stream ended before its end.
#[derive(Debug, thiserror::Error)]
#[error("the service is draining; ask another replica for what is missing")]
struct Draining;

impl Fault for Draining {
    fn code(&self) -> Code {
        Code::Unavailable
    }

    fn reason(&self) -> &'static str {
        "DRAINING"
    }
}

/// Cheap to clone; all clones hear the same signal.
#[derive(Debug, Clone, Default)]
pub struct Drain(CancellationToken);

impl Drain {
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everything that listens to finish what it has and stop.
    pub fn start(&self) {
        self.0.cancel();
    }

    pub fn is_started(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Resolves once the drain has started.
    pub async fn started(&self) {
        self.0.cancelled().await;
    }

    /// Passes items on until the drain starts. A stream cut short ends with UNAVAILABLE, so that it is not taken for a whole one.
    pub fn cut<T: Send + 'static>(self, items: BoxStream<'static, T>) -> BoxStream<'static, Result<T, Status>> {
        let passed = stream::unfold(Some((items, self)), |state| async move {
            let (mut items, drain) = state?;
            tokio::select! {
                biased;
                () = drain.started() => Some((Err(to_status(&Draining)), None)),
                item = items.next() => item.map(|item| (Ok(item), Some((items, drain)))),
            }
        });
        passed.boxed()
    }

    /// Starts draining at SIGINT or SIGTERM; a second signal ends the process at once with status 130.
    pub fn on_signal() -> std::io::Result<Drain> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let drain = Drain::new();
        let starter = drain.clone();
        tokio::spawn(async move {
            for first in [true, false] {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                if first {
                    tracing::info!("draining");
                    starter.start();
                }
            }
            std::process::exit(130);
        });
        Ok(drain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_cut_by_the_drain_does_not_end_as_a_whole_one() {
        let drain = Drain::new();
        let mut whole = drain.clone().cut(stream::iter([1, 2]).boxed());
        assert_eq!((whole.next().await.unwrap().unwrap(), whole.next().await.unwrap().unwrap()), (1, 2));
        assert!(whole.next().await.is_none());
        let mut endless = drain.clone().cut(stream::repeat(1).boxed());
        assert_eq!(endless.next().await.unwrap().unwrap(), 1);
        drain.start();
        assert_eq!(endless.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
        assert!(endless.next().await.is_none());
    }
}

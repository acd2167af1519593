//! The signal to stop: heard by every server and stream, given once.

use tokio_util::sync::CancellationToken;

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

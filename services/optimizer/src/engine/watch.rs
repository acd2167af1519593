//! Watching a study: what it is now, then each change.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use store::{StudyRecord, TrialRecord};

use super::{CANCEL_WAIT, Error, Studies, state};

/// How often the store is asked about a study that another replica runs.
const POLL: Duration = Duration::from_millis(500);

/// A study and its best trial so far.
pub(crate) type Update = (StudyRecord, Option<TrialRecord>);

impl Studies {
    /// The study as it is, then each change of its state or progress until it ends. When the drain starts the stream ends with
    /// [`Error::Draining`], so that it is not taken for the study's end.
    pub(crate) async fn watch(
        self: &Arc<Self>,
        id: String,
    ) -> Result<BoxStream<'static, Result<Update, Error>>, Error> {
        self.study(&id).await?;
        let watch = Watch { studies: Arc::clone(self), id, seen: None };
        let updates = stream::unfold(Some(watch), |watch| async move {
            let mut watch = watch?;
            match watch.next().await {
                Ok(update) => {
                    let ended = state::is_ended(&update.0.state);
                    Some((Ok(update), (!ended).then_some(watch)))
                }
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(updates.boxed())
    }
}

struct Watch {
    studies: Arc<Studies>,
    id: String,
    /// State and progress of the last update.
    seen: Option<(String, u64)>,
}

impl Watch {
    async fn next(&mut self) -> Result<Update, Error> {
        loop {
            // Listening begins before reading, so that no change falls between.
            let live = self.studies.queue.live(&self.id);
            let changes = live.as_ref().map(|live| live.changes());
            let mut study = self.studies.study(&self.id).await?;
            if let Some(live) = live.filter(|_| state::is_ended(&study.state)) {
                // A cancelled study's last chunk is being stored.
                live.left(CANCEL_WAIT).await;
                study = self.studies.study(&self.id).await?;
            }
            let now = (study.state.clone(), study.progress_done);
            if self.seen.as_ref() != Some(&now) {
                self.seen = Some(now);
                let best = self.studies.best(&self.id).await?;
                return Ok((study, best));
            }
            let changed = async {
                let told = match changes {
                    Some(mut changes) => changes.changed().await.is_ok(),
                    None => false,
                };
                if !told {
                    // It runs elsewhere, or has just ended here.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                biased;
                () = self.studies.drain.started() => return Err(Error::Draining),
                () = changed => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }
}

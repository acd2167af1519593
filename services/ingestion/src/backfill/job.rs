//! What a job is told to do, and how its state may change from outside.

use market::{InstrumentKey, Timeframe};
use serde::{Deserialize, Serialize};
use store::{BackfillChange, BackfillRequest, BackfillState, FailedFiles};

/// The part of a job that never changes; stored as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Spec {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) instrument_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) timeframe: Option<String>,
    /// Relative to the backfill folder.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) manifest: Option<String>,
}

impl Spec {
    pub(crate) fn instrument(&self) -> Result<Option<InstrumentKey>, market::Error> {
        self.instrument_key.as_deref().map(str::parse).transpose()
    }

    pub(crate) fn timeframe(&self) -> Result<Option<Timeframe>, market::Error> {
        self.timeframe.as_deref().map(str::parse).transpose()
    }
}

/// What a caller may ask of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Pause,
    Resume,
    Cancel,
}

impl Wish {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Wish::Pause => "paused",
            Wish::Resume => "resumed",
            Wish::Cancel => "cancelled",
        }
    }
}

/// What a wish comes to for a job as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Change(BackfillChange),
    /// It is so already, or will be.
    Nothing,
    Refused,
}

/// Decides on a wish. A job that nobody runs changes at once; a running one is asked, and its worker answers after the chunk
/// under way.
pub(crate) fn decide(state: BackfillState, requested: Option<BackfillRequest>, wish: Wish) -> Decision {
    use BackfillState::{Cancelled, Done, Failed, Paused, Queued, Running};
    let to = |state, requested| (state, requested, FailedFiles::Keep);
    let (to_state, to_requested, failed_files) = match (wish, state, requested) {
        // Cancelling is for good.
        (Wish::Pause | Wish::Resume, _, Some(BackfillRequest::Cancel)) => return Decision::Refused,
        (Wish::Pause, Queued, _) => to(Paused, None),
        (Wish::Pause, Running, None) => to(Running, Some(BackfillRequest::Pause)),
        (Wish::Pause, Running, Some(BackfillRequest::Pause)) | (Wish::Pause, Paused, _) => return Decision::Nothing,
        (Wish::Pause, Done | Failed | Cancelled, _) => return Decision::Refused,
        (Wish::Resume, Paused, _) => to(Queued, None),
        (Wish::Resume, Failed, _) => (Queued, None, FailedFiles::Requeue),
        (Wish::Resume, Queued | Running, Some(BackfillRequest::Pause)) => to(state, None),
        (Wish::Resume, Queued | Running, None) => return Decision::Nothing,
        (Wish::Resume, Done | Cancelled, _) => return Decision::Refused,
        (Wish::Cancel, Queued | Paused | Failed, _) => to(Cancelled, None),
        (Wish::Cancel, Running, None | Some(BackfillRequest::Pause)) => to(Running, Some(BackfillRequest::Cancel)),
        (Wish::Cancel, Running, Some(BackfillRequest::Cancel)) | (Wish::Cancel, Cancelled, _) => {
            return Decision::Nothing;
        }
        (Wish::Cancel, Done, _) => return Decision::Refused,
    };
    Decision::Change(BackfillChange { from: (state, requested), to: (to_state, to_requested), failed_files })
}

#[cfg(test)]
mod tests {
    use super::*;
    use BackfillRequest as Request;
    use BackfillState::{Cancelled, Done, Failed, Paused, Queued, Running};

    /// The table of the documentation: state, request, wish, and what becomes of them; `None` is refused.
    #[test]
    fn every_wish_in_every_state_is_decided() {
        let nothing = |state, requested| Some((state, requested, FailedFiles::Keep));
        let to = nothing;
        let table = [
            (Queued, None, Wish::Pause, to(Paused, None)),
            (Queued, None, Wish::Resume, nothing(Queued, None)),
            (Queued, None, Wish::Cancel, to(Cancelled, None)),
            // Handed back by a worker that stopped before it saw the request.
            (Queued, Some(Request::Pause), Wish::Pause, to(Paused, None)),
            (Queued, Some(Request::Pause), Wish::Resume, to(Queued, None)),
            (Queued, Some(Request::Pause), Wish::Cancel, to(Cancelled, None)),
            (Queued, Some(Request::Cancel), Wish::Pause, None),
            (Queued, Some(Request::Cancel), Wish::Resume, None),
            (Queued, Some(Request::Cancel), Wish::Cancel, to(Cancelled, None)),
            (Running, None, Wish::Pause, to(Running, Some(Request::Pause))),
            (Running, None, Wish::Resume, nothing(Running, None)),
            (Running, None, Wish::Cancel, to(Running, Some(Request::Cancel))),
            (Running, Some(Request::Pause), Wish::Pause, nothing(Running, Some(Request::Pause))),
            (Running, Some(Request::Pause), Wish::Resume, to(Running, None)),
            (Running, Some(Request::Pause), Wish::Cancel, to(Running, Some(Request::Cancel))),
            (Running, Some(Request::Cancel), Wish::Pause, None),
            (Running, Some(Request::Cancel), Wish::Resume, None),
            (Running, Some(Request::Cancel), Wish::Cancel, nothing(Running, Some(Request::Cancel))),
            (Paused, None, Wish::Pause, nothing(Paused, None)),
            (Paused, None, Wish::Resume, to(Queued, None)),
            (Paused, None, Wish::Cancel, to(Cancelled, None)),
            (Done, None, Wish::Pause, None),
            (Done, None, Wish::Resume, None),
            (Done, None, Wish::Cancel, None),
            (Failed, None, Wish::Pause, None),
            (Failed, None, Wish::Resume, Some((Queued, None, FailedFiles::Requeue))),
            (Failed, None, Wish::Cancel, to(Cancelled, None)),
            (Cancelled, None, Wish::Pause, None),
            (Cancelled, None, Wish::Resume, None),
            (Cancelled, None, Wish::Cancel, nothing(Cancelled, None)),
        ];
        for (state, requested, wish, want) in table {
            let found = match decide(state, requested, wish) {
                Decision::Refused => None,
                Decision::Nothing => nothing(state, requested),
                Decision::Change(change) => {
                    assert_eq!(change.from, (state, requested));
                    assert_ne!(change.from, change.to, "a change changes something");
                    Some((change.to.0, change.to.1, change.failed_files))
                }
            };
            assert_eq!(found, want, "{state:?} {requested:?} {wish:?}");
        }
    }
}

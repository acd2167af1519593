//! Who goes first, and who has stopped waiting.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::context::RequestContext;

/// How soon a task is wanted. Each priority has a queue of its own, so that none can fill another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// Somebody waits for this one answer: unary calls, and whatever says nothing else.
    #[default]
    Interactive,
    /// One of many: items of a batch, chunks of a study.
    Batch,
    /// Nobody is in a hurry, and a task may last for seconds: audits, warming.
    Background,
}

impl Priority {
    pub const ALL: [Priority; 3] = [Priority::Interactive, Priority::Batch, Priority::Background];

    pub fn as_str(self) -> &'static str {
        match self {
            Priority::Interactive => "interactive",
            Priority::Batch => "batch",
            Priority::Background => "background",
        }
    }

    /// The priority of the request being served.
    pub fn current() -> Priority {
        RequestContext::current().map(|context| context.priority).unwrap_or_default()
    }

    pub(super) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Priority {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Priority::ALL.into_iter().find(|priority| priority.as_str() == text).ok_or(())
    }
}

/// Tells a task whether anybody still waits for it. Deadlines need no sign of their own: what sets one drops the waiting future.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Whether the caller has left. A load: cheap enough to ask for every block of rows.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

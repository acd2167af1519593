//! The wall clock. Read where a request comes in, and nowhere below.

use std::time::{SystemTime, UNIX_EPOCH};

use market::Millis;

/// The instant, by the machine's clock.
pub fn now() -> Millis {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since_epoch.as_millis()).unwrap_or(Millis::MAX)
}

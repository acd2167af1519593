//! Candles read again, by the code that answers GetCandles.

use std::sync::Arc;

use market::{Calendar, InstrumentKey, Millis, TimeRange, Timeframe};
use mesh::Fault;
use mesh::source::SourceCoverage;
use proto::aggregation::GetCandlesRequest;
use proto::convert;
use tonic::Code;

use super::bucket::Candled;
use crate::engine::{Aggregator, Error};
use crate::query::Query;

/// Candles of one read: four trading years of minutes of a stock, nine months around the clock. A change, which is of one date, makes far
/// fewer; a resumption cuts what is longer.
pub(super) const MAX_READ_CANDLES: usize = 400_000;

/// What is stored of an instrument, as far as closing its candles needs it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    /// Open time of the newest minute; the earliest instant where there is none.
    pub(super) last_minute: Millis,
    /// Open time of the newest candle of any source.
    pub(super) last_open_time: Millis,
    /// Whether nothing but minutes is stored, so that a change touches its own buckets only.
    pub(super) minutes_only: bool,
}

/// Reads on behalf of the hub and of subscribers that come back.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    pub(super) aggregator: Arc<Aggregator>,
    pub(super) engine: rollout::Engine,
}

impl Reader {
    pub(super) async fn calendar(&self, key: &InstrumentKey) -> Result<Arc<Calendar>, Error> {
        self.aggregator.calendar(key).await
    }

    pub(super) async fn stored(&self, key: &InstrumentKey) -> Result<Stored, Error> {
        let mut stored = Stored { last_minute: Millis::MIN, last_open_time: Millis::MIN, minutes_only: true };
        for source in self.coverage(key).await? {
            stored.last_open_time = stored.last_open_time.max(source.last_open_time);
            match source.timeframe {
                Timeframe::M1 => stored.last_minute = source.last_open_time,
                _ => stored.minutes_only = false,
            }
        }
        Ok(stored)
    }

    /// What is stored of an instrument, by source timeframe.
    pub(super) async fn coverage(&self, key: &InstrumentKey) -> Result<Vec<SourceCoverage>, Error> {
        Ok(self.aggregator.master.coverage(key).await?)
    }

    /// Candles with an open time in the range, as of a revision; of revision 0 there are none. What of a superseded revision is no
    /// longer kept reads as nothing.
    pub(super) async fn candles(
        &self,
        calendar: &Calendar,
        key: &InstrumentKey,
        timeframe: Timeframe,
        range: TimeRange,
        revision: Option<u64>,
    ) -> Result<(u64, Vec<Candled>), Error> {
        if revision == Some(0) {
            return Ok((0, Vec::new()));
        }
        let query = Query::try_from(GetCandlesRequest {
            instrument_key: key.to_string(),
            timeframe: timeframe.to_string(),
            range: Some(convert::wire_range(range)),
            revision,
            ..Default::default()
        })?;
        // As if every range had passed: what the clock says is decided when an update is made.
        let collected = self.aggregator.collect(self.engine, query, Millis::MAX, MAX_READ_CANDLES).await;
        match collected {
            Ok((revision, batch)) => Ok((revision, Candled::rows(calendar, timeframe, &batch.buckets))),
            Err(Error::UnknownInstrument(_)) => Ok((0, Vec::new())),
            Err(error) if revision.is_some() && is_expired(&error) => Ok((0, Vec::new())),
            Err(error) => Err(error),
        }
    }
}

fn is_expired(error: &Error) -> bool {
    matches!(error, Error::Remote(remote) if remote.code == Code::FailedPrecondition)
}

/// Whether trying again may help: what is broken about one instrument stays so, a service that is away comes back.
pub(super) fn may_pass(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::Unavailable
            | Code::ResourceExhausted
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Aborted
            | Code::Unknown
    ) && !matches!(error, Error::TooManyCandles { .. })
}

//! Partitions of `candle_block`, one per year, added by whoever first writes a block of it. None is ever dropped.
//!
//! In a transaction of its own that ends before the put's begins: adding a year waits for the transactions that write `candle_series`, and a put that did
//! it halfway could wait for one that waits for the put. It leaves an empty table where the put then fails, which the next put uses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::Postgres;

use crate::Result;
use crate::sql::fault;
use crate::sql::limited::LimitedPool;

/// How long a year is taken to be there: a server that failed over, or was restored, may lack one that was.
const TRUSTED: Duration = Duration::from_secs(60);

/// The years known to have a partition, and since when. At most those of [`TimeRange::ALL`](market::TimeRange::ALL), three hundred.
#[derive(Debug, Clone, Default)]
pub(super) struct Years {
    known: Arc<Mutex<BTreeMap<i16, Instant>>>,
}

impl Years {
    /// Adds the partitions that are missing. Costs nothing where all years were seen before.
    pub(super) async fn add(&self, pool: &LimitedPool<Postgres>, years: &BTreeSet<i16>) -> Result<()> {
        let unknown: Vec<i64> = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let is_known = |year: &i16| known.get(year).is_some_and(|since| since.elapsed() < TRUSTED);
            years.iter().copied().filter(|year| !is_known(year)).map(i64::from).collect()
        };
        if unknown.is_empty() {
            return Ok(());
        }
        sqlx::query("select candle_block_add_year(y.year) from unnest($1::bigint[]) y (year)")
            .bind(&unknown)
            .execute(pool)
            .await
            .map_err(fault)?;
        let now = Instant::now();
        let seen = unknown.iter().filter_map(|year| Some((i16::try_from(*year).ok()?, now)));
        self.known.lock().unwrap_or_else(PoisonError::into_inner).extend(seen);
        Ok(())
    }
}

//! Partitions of `candle_block`, one per year, added by whoever first writes a block of it. None is ever dropped.
//!
//! In a transaction of its own that ends before the put's begins: adding a year waits for the transactions that write `candle_series`, and a put that did
//! it halfway could wait for one that waits for the put. It leaves an empty table where the put then fails, which the next put uses.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::Postgres;

use crate::Result;
use crate::sql::fault;
use crate::sql::limited::LimitedPool;

/// The years known to have a partition. At most those of [`TimeRange::ALL`](market::TimeRange::ALL), three hundred.
#[derive(Debug, Clone, Default)]
pub(super) struct Years {
    known: Arc<Mutex<BTreeSet<i16>>>,
}

impl Years {
    /// Adds the partitions that are missing. Costs nothing where all years were seen before.
    pub(super) async fn add(&self, pool: &LimitedPool<Postgres>, years: &BTreeSet<i16>) -> Result<()> {
        let unknown: Vec<i64> = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            years.difference(&known).map(|year| i64::from(*year)).collect()
        };
        if unknown.is_empty() {
            return Ok(());
        }
        sqlx::query("select candle_block_add_year(y.year) from unnest($1::bigint[]) y (year)")
            .bind(&unknown)
            .execute(pool)
            .await
            .map_err(fault)?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).extend(years);
        Ok(())
    }
}

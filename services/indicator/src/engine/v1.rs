//! The reference engine: row by row, one indicator at a time, nothing kept.

use std::sync::Arc;

use kernels::indicator::{Inputs, compute_fold_until};
use mesh::cache::Source;
use mesh::{Cancel, CpuPool, Priority};
use rollout::Engine;

use super::{Answer, Compute, Error, History, Pinned, compute_table, cost};

#[derive(Debug)]
pub(super) struct V1 {
    pub(super) history: History,
    pub(super) pool: Arc<CpuPool>,
}

#[tonic::async_trait]
impl Compute for V1 {
    async fn compute(&self, pinned: &Pinned<'_>) -> Result<Answer, Error> {
        let history = self.history.take(pinned, cost(&pinned.query.specs)).await?;
        let (specs, range) = (Arc::clone(&pinned.query.specs), pinned.query.range);
        let task = move |cancel: &Cancel| {
            let stop = || cancel.is_cancelled();
            let kernel = |inputs: &Inputs<'_>| compute_fold_until(&specs, inputs, &stop);
            compute_table(Engine::V1, &specs, &history, range, kernel)
        };
        let (table, took) = self.pool.run_at(Priority::current(), task).await??;
        Ok(pinned.answer(table, Source::Computed, took))
    }
}

//! The reference engine: row by row, one indicator at a time, nothing kept.

use std::sync::Arc;

use kernels::indicator::compute_fold;
use mesh::CpuPool;
use mesh::cache::Source;
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
        let task = move || {
            compute_table(Engine::V1, &specs, &history, range, |inputs| {
                let mut columns = Vec::new();
                for spec in specs.iter() {
                    columns.extend(compute_fold(std::slice::from_ref(spec), inputs)?);
                }
                Ok(columns)
            })
        };
        let (table, took) = self.pool.run(task).await??;
        Ok(pinned.answer(table, Source::Computed, took))
    }
}

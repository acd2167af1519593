//! Which engine answers: by share, sticky by instrument, and as explained.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use candlemesh_tests::rest::indicators_path;
use serde_json::{Value, json};

use super::{MINUTES, OTHER, Scenario};

const ROLLOUTS: &str = "candlemesh.gateway.v1.RolloutService";
/// Instruments asked about; they need not exist to be decided for.
const KEYS: usize = 60;

impl Scenario {
    pub(super) async fn rollout(&self) -> Result<()> {
        let at_zero = self.share(0.0).await?;
        ensure!(at_zero.values().all(|engine| engine == "v1"), "at 0 %: {at_zero:?}");
        let at_half = self.share(50.0).await?;
        ensure!(at_half == self.decisions().await?, "the same keys were decided differently a moment later");
        let on_v2 = at_half.values().filter(|engine| *engine == "v2").count();
        // Of 60 keys at one half, fewer than 12 or more than 48 come once in a million (binomial).
        ensure!((12..=48).contains(&on_v2), "{on_v2} of {KEYS} on v2 at 50 %");
        let at_most = self.share(80.0).await?;
        let moved_back: Vec<_> =
            at_half.iter().filter(|(key, engine)| *engine == "v2" && at_most[*key] == "v1").collect();
        ensure!(moved_back.is_empty(), "a larger share moved back {moved_back:?}");
        self.answers_follow_decisions().await?;
        let at_full = self.share(100.0).await?;
        ensure!(at_full.values().all(|engine| engine == "v2"), "at 100 %: {at_full:?}");
        Ok(())
    }

    async fn share(&self, percent: f64) -> Result<BTreeMap<String, String>> {
        let body = json!({ "flag_key": "indicator", "v2_percent": percent });
        let answer: Value = self.rpc(&format!("{ROLLOUTS}/SetRolloutShare"), &body).await?.ok()?;
        ensure!(answer["rollout"]["service"] == "indicator", "{answer}");
        self.decisions().await
    }

    async fn decisions(&self) -> Result<BTreeMap<String, String>> {
        let mut decisions = BTreeMap::new();
        for index in 0..KEYS {
            let key = format!("NSE_EQ|KEY{index}");
            let engine = self.decided(&key).await?;
            decisions.insert(key, engine);
        }
        Ok(decisions)
    }

    async fn decided(&self, key: &str) -> Result<String> {
        let answer = self.rpc(&format!("{ROLLOUTS}/ExplainDecision"), &json!({ "targeting_key": key })).await?;
        let answer: Value = answer.ok()?;
        let decisions = answer["decisions"].as_array().context("no decisions")?;
        let decision = decisions.iter().find(|decision| decision["service"] == "indicator");
        let engine = decision.and_then(|decision| decision["engine"].as_str());
        Ok(engine.with_context(|| format!("no decision for indicator in {answer}"))?.to_owned())
    }

    /// Without a forcing header, an answer comes from the engine that was decided.
    async fn answers_follow_decisions(&self) -> Result<()> {
        for key in [MINUTES, OTHER, "NSE_EQ|CLIMB00", "NSE_EQ|CLIMB01", "NSE_EQ|CLIMB02", "NSE_EQ|CLIMB03"] {
            let decided = self.decided(key).await?;
            let answer = self.rest.post(&indicators_path(key, "1d"), &json!({ "indicators": ["sma:2"] })).await?;
            answer.ok::<Value>()?;
            ensure!(answer.engine() == Some(&decided), "{key}: {decided} decided, {:?} answered", answer.engine());
        }
        Ok(())
    }
}

//! Group execution: a screen of a group's instruments turned into trade intents. Nothing is sent to a broker.

use std::sync::Arc;

use kernels::screen::{ScreenParams, Side};
use market::{Date, InstrumentKey, Millis};
use mesh::source::{Group, MasterData};
use sha2::{Digest, Sha256};
use store::{IntentRecord, ScreenStore};

use crate::engine::Error;
use crate::pipeline::{Hit, Pipeline, ranked};
use crate::query::{GroupQuery, IntentPageQuery, MAX_KEYS, ScreenQuery};
use crate::{Config, Ports};

/// Distance of the stop and of the target from the entry, in ATR(14): the reward asked is one and a half times the risk.
const STOP_ATR: f64 = 2.0;
const TARGET_ATR: f64 = 3.0;
/// Sides as they are stored.
pub(crate) const BUY: &str = "buy";
pub(crate) const SELL: &str = "sell";
/// Intents stored, labelled `side` (buy, sell).
const INTENTS_TOTAL: &str = "candlemesh_trade_intents_total";

/// An instrument of the group without an intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub(crate) key: InstrumentKey,
    pub(crate) reason: String,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Executed {
    pub(crate) group_id: String,
    pub(crate) intents: Vec<IntentRecord>,
    /// Empty for a repeated request: only its intents were kept.
    pub(crate) skipped: Vec<Skipped>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct IntentPage {
    pub(crate) intents: Vec<IntentRecord>,
    /// Id of the page's last intent, when more follow.
    pub(crate) next: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Groups {
    pipeline: Arc<Pipeline>,
    master: Arc<dyn MasterData>,
    store: Arc<dyn ScreenStore>,
    risk_budget: f64,
}

impl Groups {
    pub(crate) fn new(pipeline: Arc<Pipeline>, config: &Config, ports: &Ports) -> Self {
        Self {
            pipeline,
            master: Arc::clone(&ports.master),
            store: Arc::clone(&ports.screens),
            risk_budget: config.risk_budget,
        }
    }

    /// Screens the group and stores an intent for every instrument that passes.
    ///
    /// A group that has seen the idempotency key gets what was stored then, whatever date is asked now and even if the group is gone.
    #[tracing::instrument(level = "debug", skip_all, fields(group = %query.group_id, intents))]
    pub(crate) async fn execute(&self, query: &GroupQuery, now: Millis) -> Result<Executed, Error> {
        let group_id = query.group_id.clone();
        if let Some(key) = &query.idempotency_key
            && let Some(intents) = self.store.intent_batch(&group_id, key).await?
        {
            return Ok(Executed { group_id, intents, skipped: Vec::new() });
        }
        let group = self.group(&group_id).await?;
        let (mut intents, skipped) = self.propose(group.instrument_keys, query, now).await?;
        if let Some(key) = &query.idempotency_key {
            // Of two such requests at once, the store keeps and answers one.
            intents = self.store.put_intents(&group_id, key, &intents).await?;
            for intent in &intents {
                let side = if intent.side == BUY { BUY } else { SELL };
                metrics::counter!(INTENTS_TOTAL, "side" => side).increment(1);
            }
        }
        tracing::Span::current().record("intents", intents.len());
        Ok(Executed { group_id, intents, skipped })
    }

    /// Stored intents, oldest first. A token of no intent gives an empty page.
    pub(crate) async fn list(&self, query: &IntentPageQuery) -> Result<IntentPage, Error> {
        let (group, after) = (query.group_id.as_deref(), query.after.as_deref());
        let mut intents = self.store.intents(group, after, query.limit + 1).await?;
        let next = match intents.len() > query.limit {
            true => {
                intents.truncate(query.limit);
                intents.last().map(|intent| intent.id.clone())
            }
            false => None,
        };
        Ok(IntentPage { intents, next })
    }

    async fn group(&self, id: &str) -> Result<Group, Error> {
        let group = match self.master.group(id).await {
            Err(error) if error.is_not_found() => return Err(Error::UnknownGroup(id.to_owned())),
            group => group?,
        };
        let found = group.instrument_keys.len();
        if found > MAX_KEYS {
            return Err(Error::Limit {
                what: "instruments of a group",
                found,
                limit: MAX_KEYS,
                way: "split the group",
            });
        }
        Ok(group)
    }

    async fn propose(
        &self,
        mut keys: Vec<InstrumentKey>,
        query: &GroupQuery,
        now: Millis,
    ) -> Result<(Vec<IntentRecord>, Vec<Skipped>), Error> {
        keys.sort();
        keys.dedup();
        let screen = ScreenQuery { keys: Some(keys), date: query.date, params: ScreenParams::default() };
        let screened = self.pipeline.run(&screen).await?;
        let rejected = screened.rejected.into_iter();
        let mut skipped: Vec<Skipped> = rejected
            .map(|rejection| Skipped {
                key: rejection.key,
                reason: format!("{}: {}", rejection.stage, rejection.reason),
            })
            .collect();
        let mut intents = Vec::new();
        for hit in ranked(screened.bullish.into_iter().chain(screened.bearish)) {
            match levels(&hit, self.risk_budget) {
                Ok(levels) => intents.push(intent(query, &hit, levels, screened.date, now)),
                Err(reason) => skipped.push(Skipped { key: hit.key, reason }),
            }
        }
        skipped.sort_by(|a, b| a.key.cmp(&b.key));
        Ok((intents, skipped))
    }
}

/// Prices and size of an intent.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Levels {
    entry: f64,
    stop: f64,
    target: f64,
    quantity: f64,
}

/// Entry at the last close, stop and target by ATR(14), and as many units as the budget may lose at the stop.
fn levels(hit: &Hit, risk_budget: f64) -> Result<Levels, String> {
    let entry = hit.row.last_close;
    let Some(atr) = hit.atr else {
        return Err("intent: ATR(14) is not defined yet; it needs 15 candles".to_owned());
    };
    let sign = match hit.side {
        Side::Bullish => 1.0,
        Side::Bearish => -1.0,
    };
    let (stop, target) = (entry - sign * STOP_ATR * atr, entry + sign * TARGET_ATR * atr);
    for (name, price) in [("stop", stop), ("target", target)] {
        if price <= 0.0 {
            return Err(format!("intent: {name} {price:.2} is not above 0 (entry {entry:.2}, ATR {atr:.2})"));
        }
    }
    let risk = (entry - stop).abs();
    if risk <= 0.0 {
        return Err(format!("intent: ATR {atr} leaves no distance between entry {entry:.2} and stop"));
    }
    let quantity = (risk_budget / risk).floor();
    if quantity < 1.0 {
        return Err(format!("intent: one unit risks {risk:.2}, more than the budget of {risk_budget:.2}"));
    }
    if !quantity.is_finite() {
        return Err(format!("intent: a risk of {risk:e} a unit gives no quantity"));
    }
    Ok(Levels { entry, stop, target, quantity })
}

fn intent(query: &GroupQuery, hit: &Hit, levels: Levels, date: Option<Date>, now: Millis) -> IntentRecord {
    let (side, word) = match hit.side {
        Side::Bullish => (BUY, "bullish"),
        Side::Bearish => (SELL, "bearish"),
    };
    let Levels { entry, stop, target, quantity } = levels;
    let id = query.idempotency_key.as_deref().map_or_else(String::new, |key| intent_id(&query.group_id, key, &hit.key));
    let reason = format!(
        "{word} on {}: {:+.2} % from ema, rsi {:.1}, {} strong days of mean strength {:.3}, atr {:.4}",
        date.map_or_else(String::new, market::format_date),
        hit.row.distance_percent.unwrap_or_default(),
        hit.row.rsi.unwrap_or_default(),
        hit.row.strong_move_count,
        hit.row.strength,
        hit.atr.unwrap_or_default(),
    );
    IntentRecord {
        id,
        group_id: query.group_id.clone(),
        instrument_key: hit.key.clone(),
        side: side.to_owned(),
        entry,
        stop,
        target,
        quantity,
        reason,
        created_at: now,
    }
}

/// The same request makes the same ids: a digest of group, idempotency key and instrument, each with its length before it.
fn intent_id(group_id: &str, idempotency_key: &str, instrument: &InstrumentKey) -> String {
    let mut digest = Sha256::new();
    for part in [group_id, idempotency_key, instrument.as_str()] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;

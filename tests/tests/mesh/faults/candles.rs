//! Subscribers to live candles through the faults: they hear everything, each close once, and end where the store is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use candlemesh_tests::listener::{Held, Listener};
use candlemesh_tests::made_up::Numbers;
use candlemesh_tests::traffic::{Traffic, key};
use candlemesh_tests::watching::TIMEFRAMES;
use tokio::task::JoinSet;

use super::{INSTRUMENTS, POLL, RECOVERY};

/// Subscribers, and what they heard.
pub(super) struct Listeners {
    listeners: [Arc<Listener>; 2],
    tasks: JoinSet<Result<()>>,
}

impl Listeners {
    /// One over gRPC and one over HTTP, that hear everything from now on.
    pub(super) async fn start(traffic: &Traffic, numbers: &mut Numbers) -> Result<Listeners> {
        let keys: Vec<String> = (0..INSTRUMENTS).map(key).collect();
        let held = stored(traffic).await?;
        let listeners = [Arc::new(Listener::new(held.clone())), Arc::new(Listener::new(held))];
        let mut tasks = JoinSet::new();
        let (by_grpc, by_http) = (Arc::clone(&listeners[0]), Arc::clone(&listeners[1]));
        tasks.spawn(traffic.clone().watch_candles(numbers.next_u64(), keys.clone(), by_grpc));
        tasks.spawn(traffic.clone().watch_events(numbers.next_u64(), keys, by_http));
        let asked = Instant::now();
        while !listeners.iter().all(|listener| listener.has_begun()) {
            ensure!(asked.elapsed() < RECOVERY, "a healthy mesh does not answer who watches candles");
            tokio::time::sleep(POLL).await;
        }
        Ok(Listeners { listeners, tasks })
    }

    /// Waits until everything stored has been told.
    pub(super) async fn settle(&self, traffic: &Traffic) -> Result<()> {
        let (asked, before) = (Instant::now(), self.progress());
        loop {
            let stored = stored(traffic).await?;
            let wrong = self.listeners.iter().find_map(|listener| listener.judge(&stored));
            let Some(wrong) = wrong else {
                println!("{} candles are stored as they were told", stored.len());
                return Ok(());
            };
            ensure!(
                asked.elapsed() < RECOVERY,
                "told and stored differ: {wrong}; messages and times caught up were {before:?}, are {:?}",
                self.progress()
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn progress(&self) -> [(u64, u64); 2] {
        [self.listeners[0].progress(), self.listeners[1].progress()]
    }

    /// Waits for their ends, once they were told to stop.
    pub(super) async fn end(mut self) -> Result<()> {
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        for (name, listener) in ["gRPC", "HTTP"].iter().zip(&self.listeners) {
            println!("  candles heard over {name}: {:?}", listener.counts());
        }
        Ok(())
    }
}

/// Every candle of the written instruments.
async fn stored(traffic: &Traffic) -> Result<Vec<Held>> {
    let mut all = Vec::new();
    for instrument in 0..INSTRUMENTS {
        for timeframe in TIMEFRAMES {
            let asked = Instant::now();
            let candles = loop {
                if let Some(candles) = traffic.candles(&key(instrument), timeframe, "v1").await? {
                    break candles;
                }
                ensure!(asked.elapsed() < RECOVERY, "{timeframe} of instrument {instrument} is not answered");
            };
            for candle in &candles {
                all.push(Held::of(&key(instrument), timeframe, candle)?);
            }
        }
    }
    Ok(all)
}

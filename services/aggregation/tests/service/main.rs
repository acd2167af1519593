//! The service from outside: real sockets, generated clients, an in-memory source.
#![allow(clippy::unwrap_used, reason = "every function here runs in a test")]

mod adjust;
mod data;
mod gaps;
mod live;
mod oracle;
mod rpc;

use std::sync::Arc;

use aggregation::{App, Config, Ports};
use market::{Frame, Instrument, InstrumentKey, Timeframe};
use mesh::clock::{Clock, SystemClock};
use mesh::config::ServerConfig;
use mesh::source::{Changes, MasterData, MemoryLedger, MemorySource, StoredCandles};
use mesh::{CpuPool, Drain};

/// A served App, drained when dropped.
struct Served {
    address: String,
    drain: Drain,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.drain.start();
    }
}

fn key(text: &str) -> InstrumentKey {
    text.parse().unwrap()
}

/// Instruments with their calendar and minutes.
fn source<'a>(instruments: impl IntoIterator<Item = (&'a str, &'a str, Frame)>) -> MemorySource {
    let mut source = MemorySource { revision: 42, ..Default::default() };
    for (name, calendar, minutes) in instruments {
        let instrument = Instrument {
            key: key(name),
            name: String::new(),
            exchange: String::new(),
            currency: String::new(),
            tick_size: 0.0,
            calendar: calendar.to_owned(),
        };
        source.instruments.insert(key(name), instrument);
        source.stored.insert((key(name), Timeframe::M1), minutes);
    }
    source
}

async fn serve(source: &Arc<MemorySource>, engines: &str, config: Config) -> Served {
    let changes = Arc::new(MemoryLedger::default());
    serve_from(Arc::clone(source) as _, Arc::clone(source) as _, changes, Arc::new(SystemClock), engines, config).await
}

async fn serve_from(
    stored: Arc<dyn StoredCandles>,
    master: Arc<dyn MasterData>,
    changes: Arc<dyn Changes>,
    clock: Arc<dyn Clock>,
    engines: &str,
    config: Config,
) -> Served {
    let pool = Arc::new(CpuPool::new(2, 256).unwrap());
    let ports = Ports { stored, master, changes, clock, engines: engines.parse().unwrap(), pool };
    let app = App::build(&ServerConfig::default(), config, ports).await.unwrap();
    let served = Served { address: format!("http://{}", app.address()), drain: Drain::new() };
    tokio::spawn(app.serve(served.drain.clone()));
    served
}

//! End-to-end tests: a whole mesh, asked through its gateway as any client would.
//!
//! `oracle` holds answers against values computed elsewhere; `scenario` walks through everything a mesh does, once in one process
//! and once in six; `roundtrip`, `export` and `restore` hold what comes out against what went in, `loading` what is said of it;
//! `crash`, `backfill` and `drain` end processes at bad moments, `faults` for as long as it is told; `changes` are followed from
//! replica to replica; `cli` is the command line, `readme` its commands there, `clients` other languages.

mod adjustments;
mod backfill;
mod changes;
mod cli;
mod clients;
mod crash;
mod drain;
mod export;
mod faults;
mod live;
mod live_indicators;
mod loading;
mod oracle;
mod readme;
mod restore;
mod roundtrip;
mod scenario;

use std::path::Path;

/// The executable of this build.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_candlemesh-under-test"))
}

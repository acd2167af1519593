//! The chassis every service runs on: server, clients, telemetry, configuration, drain, CPU pool, cache and bulk frames.
//!
//! Services hold what is their own; everything a request passes on its way in or out is here, once. The crate knows no
//! business rule: it moves frames and faults, it does not compute them.

pub mod bus;
pub mod cache;
mod chassis;
pub mod client;
pub mod clock;
pub mod config;
pub mod context;
mod drain;
pub mod engine;
pub mod fault;
pub mod flight;
mod pool;
mod server;
pub mod source;
pub mod telemetry;
pub mod topology;

pub use drain::Drain;
pub use fault::{Fault, RemoteError, to_status};
pub use pool::{Cancel, CpuPool, PoolError, PoolStatistics, Priority};
pub use server::{Server, StartError};

/// Largest gRPC message accepted or sent, in bytes: 500 000 candles of an answer take about 45 MB.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Metadata key that forces an engine on the way in, and names the one that answered on the way out.
pub const ENGINE_HEADER: &str = "candlemesh-engine";
/// Metadata key by which the gateway's decisions for all services travel inward.
pub const DECISIONS_HEADER: &str = "candlemesh-decisions";
/// Metadata key by which a request's [`Priority`] travels inward; absent: interactive.
pub const PRIORITY_HEADER: &str = "candlemesh-priority";
/// Metadata key of the request id, taken from the caller or made by the first server.
pub const REQUEST_ID_HEADER: &str = "x-request-id";

//! The gateway over real sockets, between callers and stand-ins for the other roles.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod grpc;
mod ingestion;
mod rest;
mod sequence;
mod stream;
mod upstream;
mod world;

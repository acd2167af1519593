//! The executable: every role of the mesh, the whole mesh in one process, and the client commands.
//!
//! `up` and `serve` wire services together; they compute nothing. Client commands speak gRPC to a gateway, like any
//! other client, and never reach into a service.

pub mod cli;
pub mod client;
pub mod config;
pub mod demo;
mod output;
pub mod roles;
pub mod up;

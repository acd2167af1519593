//! Entry point: parses the command line, starts the runtime, turns errors into one line and an exit status.

use std::process::ExitCode;

use candlemesh::cli::Cli;
use clap::Parser;

/// Fresh memory is the first cost of column work; mimalloc hands freed pages out again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("candlemesh: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(candlemesh::cli::run(cli))
}

//! Clients in another language, with nothing of ours but the address: Python with reflection, and with pyarrow.

use std::process::Command;

use anyhow::{Result, ensure};
use candlemesh_tests::in_process::InProcess;
use candlemesh_tests::{processes, python};

async fn serves(script: &str) -> Result<()> {
    let Some(python) = python::interpreter()? else { return Ok(()) };
    let mesh = InProcess::start().await?;
    let mut command = Command::new(python);
    command.arg(python::client(script)).arg(mesh.gateway().trim_start_matches("http://"));
    let output = processes::run(command).await?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{script}: {}\n{stdout}{stderr}", output.status);
    mesh.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_with_grpc_reflection_puts_candles_and_gets_candles_and_indicators() -> Result<()> {
    serves("reflection.py").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_with_pyarrow_flight_puts_candles_and_gets_candles_and_indicators() -> Result<()> {
    serves("flight.py").await
}

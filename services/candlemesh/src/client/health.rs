//! Health of a server, as a probe and as a wait.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use mesh::StartError;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Pause between attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Time for one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks once.
pub async fn check(target: &str) -> anyhow::Result<()> {
    let channel = mesh::client::connect(target)?;
    let request = HealthCheckRequest { service: String::new() };
    let mut client = HealthClient::new(channel);
    let answer = tokio::time::timeout(ATTEMPT_TIMEOUT, client.check(request))
        .await
        .with_context(|| format!("{target} did not answer within {ATTEMPT_TIMEOUT:?}"))?
        .map_err(|status| anyhow!("{target} is not reachable: {}", status.message()))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other => bail!("{target} is {}", other.as_str_name()),
    }
}

/// Asks until the answer is SERVING or the time is over.
pub async fn wait(target: &str, timeout: Duration) -> Result<(), StartError> {
    let attempts = async {
        loop {
            match check(target).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(target, %error, "not healthy yet"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    };
    tokio::time::timeout(timeout, attempts).await.map_err(|_| StartError::Dependency {
        what: "a role that was started",
        source: format!("{target} was not healthy within {timeout:?}").into(),
    })
}

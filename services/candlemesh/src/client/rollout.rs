//! `rollout`: which engine answers what share.

use anyhow::Result;
use proto::gateway::rollout_service_client::RolloutServiceClient;
use proto::gateway::{ExplainDecisionRequest, ListRolloutsRequest, Rollout, SetRolloutShareRequest};

use super::Connection;
use super::query::print_json;
use crate::output::say_line;

/// `rollout`'s subcommands.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum RolloutCommand {
    /// Shows every engine flag with V2's share.
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Sets V2's share of a service: aggregation, indicator or sequence (or the flag's key).
    Set {
        service: String,
        /// 0 to 100.
        percent: f64,
        #[arg(long)]
        json: bool,
    },
    /// Shows what the gateway decides for an instrument, and why.
    Decide {
        instrument: String,
        #[arg(long)]
        json: bool,
    },
}

pub async fn run(connection: &Connection, command: &RolloutCommand) -> Result<()> {
    let mut client = RolloutServiceClient::new(connection.channel()?);
    let explain = |status| connection.explain(status);
    match command {
        RolloutCommand::Status { json } => {
            let answer = client.list_rollouts(ListRolloutsRequest {}).await.map_err(explain)?.into_inner();
            if *json {
                return print_json(&answer, "candlemesh.gateway.v1.ListRolloutsResponse");
            }
            answer.rollouts.iter().for_each(print);
        }
        RolloutCommand::Set { service, percent, json } => {
            let request = SetRolloutShareRequest { flag_key: service.clone(), v2_percent: *percent };
            let answer = client.set_rollout_share(request).await.map_err(explain)?.into_inner();
            if *json {
                return print_json(&answer, "candlemesh.gateway.v1.SetRolloutShareResponse");
            }
            answer.rollout.iter().for_each(|rollout| say_line!("{}", set(rollout)));
        }
        RolloutCommand::Decide { instrument, json } => {
            let request = ExplainDecisionRequest { targeting_key: instrument.clone() };
            let answer = client.explain_decision(request).await.map_err(explain)?.into_inner();
            if *json {
                return print_json(&answer, "candlemesh.gateway.v1.ExplainDecisionResponse");
            }
            for decision in &answer.decisions {
                say_line!(
                    "{:<12} {}  by {}, bucket {}",
                    decision.service,
                    decision.engine,
                    decision.reason,
                    decision.bucket
                );
            }
        }
    }
    Ok(())
}

/// What was set, of which service, and the flag that says so.
fn set(rollout: &Rollout) -> String {
    let Rollout { service, v2_percent, flag_key, generation, .. } = rollout;
    let state = if rollout.enabled { "" } else { "; the kill switch is on, so V1 answers all of them" };
    format!("{service}: V2 answers {v2_percent} % of the instruments (flag {flag_key}, generation {generation}){state}")
}

fn print(rollout: &Rollout) {
    let state = if rollout.enabled { "" } else { "  (kill switch on)" };
    say_line!(
        "{:<12} v2 {:>7.3} %  {}, generation {}{state}",
        rollout.service,
        rollout.v2_percent,
        rollout.flag_key,
        rollout.generation
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_that_was_set_is_told_with_its_service_and_flag() {
        let rollout = Rollout {
            service: "indicator".into(),
            flag_key: "use_gonum_indicators".into(),
            v2_percent: 10.0,
            enabled: true,
            generation: 3,
        };
        assert_eq!(
            set(&rollout),
            "indicator: V2 answers 10 % of the instruments (flag use_gonum_indicators, generation 3)"
        );
    }
}

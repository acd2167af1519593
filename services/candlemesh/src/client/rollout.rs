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
            answer.rollout.iter().for_each(print);
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

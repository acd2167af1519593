//! The gateway's own gRPC services: flags and rollouts.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use market::Millis;
use mesh::to_status;
use proto::convert::{FieldError, timestamp};
use proto::gateway::flag_service_server::FlagService;
use proto::gateway::rollout_service_server::RolloutService;
use proto::gateway::{
    Decision, ExplainDecisionRequest, ExplainDecisionResponse, Flag, GetFlagRequest, GetFlagResponse, ListFlagsRequest,
    ListFlagsResponse, ListRolloutsRequest, ListRolloutsResponse, PutFlagRequest, PutFlagResponse, Rollout,
    SetRolloutShareRequest, SetRolloutShareResponse,
};
use rollout::{State, Subject, Weight};
use store::FlagRecord;
use tonic::{Request, Response, Status};

use crate::auth::Caller;
use crate::flags::Error;
use crate::gateway::Gateway;
use crate::method::{Access, normalised};

/// Longest targeting key explained.
const MAX_KEY_BYTES: usize = 256;

/// The wall clock.
pub(crate) fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as Millis)
}

/// Serves both services.
#[derive(Debug, Clone)]
pub(crate) struct Admin(Arc<Gateway>);

impl Admin {
    pub(crate) fn new(gateway: Arc<Gateway>) -> Self {
        Self(gateway)
    }

    fn admit<T>(&self, request: &Request<T>, needed: Access, what: &str) -> Result<Caller, Status> {
        let headers = request.metadata().as_ref();
        Ok(self.0.admit(headers, needed, what).map_err(|refusal| to_status(&refusal))?.caller)
    }
}

fn flag(record: FlagRecord) -> Flag {
    Flag {
        key: record.key,
        definition_json: record.definition_json,
        generation: record.generation,
        update_time: Some(timestamp(record.updated_at)),
        updated_by: record.updated_by,
    }
}

fn rollout(subject: Subject, flag: &rollout::Flag, generation: u64) -> Rollout {
    Rollout {
        flag_key: subject.flag_key().to_owned(),
        service: subject.as_str().to_owned(),
        v2_percent: flag.share().map_or(0.0, Weight::percent),
        enabled: flag.state() == State::Enabled,
        generation,
    }
}

#[tonic::async_trait]
impl FlagService for Admin {
    async fn list_flags(&self, request: Request<ListFlagsRequest>) -> Result<Response<ListFlagsResponse>, Status> {
        self.admit(&request, Access::Admin, "listing flags")?;
        let records = self.0.flags.list().await.map_err(|error| to_status(&error))?;
        Ok(Response::new(ListFlagsResponse { flags: records.into_iter().map(flag).collect() }))
    }

    async fn get_flag(&self, request: Request<GetFlagRequest>) -> Result<Response<GetFlagResponse>, Status> {
        self.admit(&request, Access::Admin, "reading a flag")?;
        let record = self.0.flags.get(&request.get_ref().key).await.map_err(|error| to_status(&error))?;
        Ok(Response::new(GetFlagResponse { flag: Some(flag(record)) }))
    }

    async fn put_flag(&self, request: Request<PutFlagRequest>) -> Result<Response<PutFlagResponse>, Status> {
        let caller = self.admit(&request, Access::Admin, "changing a flag")?;
        let PutFlagRequest { key, definition_json, expected_generation } = request.into_inner();
        let change = self.0.flags.put(&key, &definition_json, expected_generation, &caller.name, now());
        let record = change.await.map_err(|error| to_status(&error))?;
        tracing::info!(flag = record.key, generation = record.generation, by = &*caller.name, "flag changed");
        Ok(Response::new(PutFlagResponse { flag: Some(flag(record)) }))
    }
}

#[tonic::async_trait]
impl RolloutService for Admin {
    async fn list_rollouts(
        &self,
        request: Request<ListRolloutsRequest>,
    ) -> Result<Response<ListRolloutsResponse>, Status> {
        self.admit(&request, Access::Reader, "listing rollouts")?;
        let current = self.0.flags.current();
        let of = |subject: Subject| {
            rollout(subject, current.flags.engine_flag(subject), current.generation(subject.flag_key()))
        };
        Ok(Response::new(ListRolloutsResponse { rollouts: Subject::ALL.map(of).to_vec() }))
    }

    async fn set_rollout_share(
        &self,
        request: Request<SetRolloutShareRequest>,
    ) -> Result<Response<SetRolloutShareResponse>, Status> {
        let caller = self.admit(&request, Access::Admin, "changing a rollout")?;
        let SetRolloutShareRequest { flag_key, v2_percent } = request.into_inner();
        let subject: Subject = flag_key.parse().map_err(|error| to_status(&Error::Subject(error)))?;
        let share = Weight::from_percent(v2_percent).map_err(|error| to_status(&Error::Percent(error)))?;
        let change = self.0.flags.set_share(subject, share, &caller.name, now());
        let (flag, generation) = change.await.map_err(|error| to_status(&error))?;
        tracing::info!(%subject, v2_percent, generation, by = &*caller.name, "rollout share set");
        Ok(Response::new(SetRolloutShareResponse { rollout: Some(rollout(subject, &flag, generation)) }))
    }

    async fn explain_decision(
        &self,
        request: Request<ExplainDecisionRequest>,
    ) -> Result<Response<ExplainDecisionResponse>, Status> {
        let headers = request.metadata().as_ref();
        let admitted = self.0.admit(headers, Access::Reader, "explaining a decision").map_err(|e| to_status(&e))?;
        let key = &request.get_ref().targeting_key;
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            let error = FieldError::new("targeting_key", format!("must be of 1 to {MAX_KEY_BYTES} bytes"));
            return Err(to_status(&error));
        }
        let key = normalised(key);
        let decisions = self.0.decide(&admitted, Some(&key));
        let decision = |subject: Subject| Decision {
            service: subject.as_str().to_owned(),
            engine: decisions.of(subject).engine.as_str().to_owned(),
            reason: decisions.of(subject).reason.as_str().to_owned(),
            bucket: rollout::bucket(subject.flag_key(), &key),
        };
        Ok(Response::new(ExplainDecisionResponse { decisions: Subject::ALL.map(decision).to_vec() }))
    }
}

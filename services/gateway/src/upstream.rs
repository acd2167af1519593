//! The channels to the other roles.

use mesh::client::{ForwardContext, MeshChannel, raw_channel};
use mesh::config::ConfigError;
use rollout::Engine;
use serde::{Deserialize, Serialize};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::method::Role;

/// Addresses of the other roles, as `http://host:port`. Where a V2 address is given, requests decided for V2 go there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upstreams {
    pub ingestion: String,
    pub aggregation: String,
    pub aggregation_v2: Option<String>,
    pub indicator: String,
    pub indicator_v2: Option<String>,
    pub sequence: String,
    pub sequence_v2: Option<String>,
    pub optimizer: String,
}

/// One upstream: a role's only process group, or its V1 or V2 one.
#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    /// `aggregation` or `aggregation_v2`: the name in the configuration.
    pub(crate) name: &'static str,
    pub(crate) address: String,
    pub(crate) channel: Channel,
}

impl Upstream {
    fn connect(name: &'static str, address: &str) -> Result<Upstream, ConfigError> {
        if address.is_empty() {
            return Err(ConfigError::new(format!(
                "upstreams.{name}: an address such as http://127.0.0.1:9001 is needed"
            )));
        }
        let channel = raw_channel(address)?;
        Ok(Upstream { name, address: address.to_owned(), channel })
    }

    /// The channel that carries the request's context along.
    pub(crate) fn forwarding(&self) -> MeshChannel {
        InterceptedService::new(self.channel.clone(), ForwardContext)
    }
}

#[derive(Debug)]
struct Pair {
    v1: Upstream,
    v2: Option<Upstream>,
}

impl Pair {
    fn connect(names: [&'static str; 2], v1: &str, v2: Option<&str>) -> Result<Pair, ConfigError> {
        let v2 = v2.map(|address| Upstream::connect(names[1], address)).transpose()?;
        Ok(Pair { v1: Upstream::connect(names[0], v1)?, v2 })
    }

    fn of(&self, engine: Engine) -> &Upstream {
        match (engine, &self.v2) {
            (Engine::V2, Some(v2)) => v2,
            _ => &self.v1,
        }
    }
}

/// Every upstream, connecting lazily.
#[derive(Debug)]
pub(crate) struct Channels {
    ingestion: Upstream,
    aggregation: Pair,
    indicator: Pair,
    sequence: Pair,
    optimizer: Upstream,
}

impl Channels {
    pub(crate) fn connect(upstreams: &Upstreams) -> Result<Channels, ConfigError> {
        let Upstreams { aggregation, aggregation_v2, indicator, indicator_v2, sequence, sequence_v2, .. } = upstreams;
        Ok(Channels {
            ingestion: Upstream::connect("ingestion", &upstreams.ingestion)?,
            aggregation: Pair::connect(["aggregation", "aggregation_v2"], aggregation, aggregation_v2.as_deref())?,
            indicator: Pair::connect(["indicator", "indicator_v2"], indicator, indicator_v2.as_deref())?,
            sequence: Pair::connect(["sequence", "sequence_v2"], sequence, sequence_v2.as_deref())?,
            optimizer: Upstream::connect("optimizer", &upstreams.optimizer)?,
        })
    }

    /// The upstream that answers for a role and engine; `None` for the gateway itself.
    pub(crate) fn of(&self, role: Role, engine: Engine) -> Option<&Upstream> {
        match role {
            Role::Ingestion => Some(&self.ingestion),
            Role::Aggregation => Some(self.aggregation.of(engine)),
            Role::Indicator => Some(self.indicator.of(engine)),
            Role::Sequence => Some(self.sequence.of(engine)),
            Role::Optimizer => Some(&self.optimizer),
            Role::Gateway => None,
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Upstream> {
        let pairs = [&self.aggregation, &self.indicator, &self.sequence];
        let paired = pairs.into_iter().flat_map(|pair| [Some(&pair.v1), pair.v2.as_ref()].into_iter().flatten());
        [&self.ingestion, &self.optimizer].into_iter().chain(paired)
    }
}

//! Which engine answers a request inside a service.

use std::str::FromStr;

use rollout::{Decisions, Engine, Subject};
use tonic::Status;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::{DECISIONS_HEADER, ENGINE_HEADER};

/// The engines a process holds: both, or one, so that a bad V2 cannot take V1 down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Engines {
    v1: bool,
    v2: bool,
}

impl Engines {
    pub const BOTH: Engines = Engines { v1: true, v2: true };

    pub fn holds(&self, engine: Engine) -> bool {
        match engine {
            Engine::V1 => self.v1,
            Engine::V2 => self.v2,
        }
    }

    /// The engine for a request: its header, else the gateway's decision, else V1 where it is held. A decision for an
    /// engine not held here gives way to the one that is: decisions travel to every service, and inner calls may reach
    /// a process with one engine. The answer names the engine that gave it.
    ///
    /// Errors: INVALID_ARGUMENT for a header that is neither v1 nor v2; FAILED_PRECONDITION for an engine not held here.
    pub fn choose(&self, subject: Subject, metadata: &MetadataMap) -> Result<Engine, Status> {
        let fallback = if self.v1 { Engine::V1 } else { Engine::V2 };
        let engine = match metadata.get(ENGINE_HEADER) {
            Some(value) => {
                let text = value.to_str().unwrap_or_default();
                text.parse::<Engine>().map_err(|_| {
                    Status::invalid_argument(format!("{ENGINE_HEADER}: '{text}' is no engine; accepted: v1, v2"))
                })?
            }
            None => decided(subject, metadata).filter(|engine| self.holds(*engine)).unwrap_or(fallback),
        };
        if !self.holds(engine) {
            return Err(Status::failed_precondition(format!("engine {engine} is not held by this process")));
        }
        Ok(engine)
    }
}

impl FromStr for Engines {
    type Err = crate::config::ConfigError;

    /// Parses `v1`, `v2` or `v1,v2`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut engines = Engines { v1: false, v2: false };
        for part in text.split(',') {
            match part.trim() {
                "v1" => engines.v1 = true,
                "v2" => engines.v2 = true,
                other => {
                    let text = format!("engines: '{other}' is no engine; accepted: v1, v2, or v1,v2");
                    return Err(crate::config::ConfigError::new(text));
                }
            }
        }
        Ok(engines)
    }
}

fn decided(subject: Subject, metadata: &MetadataMap) -> Option<Engine> {
    let decisions = metadata.get(DECISIONS_HEADER)?.to_str().ok()?;
    Some(Decisions::parse(decisions).ok()?.of(subject).engine)
}

/// Names the engine that answered in the response's metadata.
pub fn answered_by(metadata: &mut MetadataMap, engine: Engine) {
    let value = match engine {
        Engine::V1 => MetadataValue::from_static("v1"),
        Engine::V2 => MetadataValue::from_static("v2"),
    };
    metadata.insert(ENGINE_HEADER, value);
}

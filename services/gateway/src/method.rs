//! What a method needs before it may pass: the role that answers it, the access it asks for, and the key it is about.

use std::sync::LazyLock;

use market::InstrumentKey;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_reflect::{MessageDescriptor, MethodDescriptor};
use proto::sequence::AnalyzeSequencesRequest;
use rollout::Subject;

/// A service of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Ingestion,
    Aggregation,
    Indicator,
    Sequence,
    Optimizer,
    Gateway,
}

impl Role {
    pub(crate) const UPSTREAM: [Role; 5] =
        [Role::Ingestion, Role::Aggregation, Role::Indicator, Role::Sequence, Role::Optimizer];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Role::Ingestion => "ingestion",
            Role::Aggregation => "aggregation",
            Role::Indicator => "indicator",
            Role::Sequence => "sequence",
            Role::Optimizer => "optimizer",
            Role::Gateway => "gateway",
        }
    }

    /// The rollout subject of a role with two engines.
    pub(crate) fn subject(self) -> Option<Subject> {
        match self {
            Role::Aggregation => Some(Subject::Aggregation),
            Role::Indicator => Some(Subject::Indicator),
            Role::Sequence => Some(Subject::Sequence),
            Role::Ingestion | Role::Optimizer | Role::Gateway => None,
        }
    }

    fn of_package(package: &str) -> Option<Role> {
        let name = package.strip_prefix("candlemesh.")?.strip_suffix(".v1")?;
        Role::UPSTREAM.into_iter().chain([Role::Gateway]).find(|role| role.as_str() == name)
    }
}

/// What a caller may do; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    Reader,
    Writer,
    Admin,
}

impl Access {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Access::Reader => "reader",
            Access::Writer => "writer",
            Access::Admin => "admin",
        }
    }
}

/// A method of the project's services.
#[derive(Debug, Clone)]
pub(crate) struct Method {
    pub(crate) role: Role,
    pub(crate) access: Access,
    pub(crate) descriptor: MethodDescriptor,
}

impl Method {
    /// Finds `/package.Service/Method`.
    pub(crate) fn find(path: &str) -> Option<Method> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        let service = proto::json::pool().get_service_by_name(service)?;
        let descriptor = service.methods().find(|known| known.name() == method)?;
        Some(Method::of(descriptor))
    }

    /// Every method, ordered by service and declaration.
    pub(crate) fn all() -> &'static [Method] {
        static ALL: LazyLock<Vec<Method>> = LazyLock::new(|| {
            let services = proto::json::pool().services().filter(|service| role_of(service.package_name()).is_some());
            services.flat_map(|service| service.methods().map(Method::of).collect::<Vec<_>>()).collect()
        });
        &ALL
    }

    fn of(descriptor: MethodDescriptor) -> Method {
        let service = descriptor.parent_service();
        let role = role_of(service.package_name()).unwrap_or(Role::Gateway);
        Method { role, access: access(service.full_name(), descriptor.name()), descriptor }
    }

    /// The access that this very request asks for: an analysis to be kept is a write.
    pub(crate) fn access_of(&self, message: &[u8]) -> Access {
        let stores = self.descriptor.name() == "AnalyzeSequences"
            && AnalyzeSequencesRequest::decode(message).is_ok_and(|request| request.store);
        if stores { self.access.max(Access::Writer) } else { self.access }
    }

    /// The instrument (or group) a request is about, normalised; of several, the first.
    pub(crate) fn targeting_key(&self, message: &[u8]) -> Option<String> {
        targeting_key(&self.descriptor.input(), message)
    }

    /// `/package.Service/Method`.
    pub(crate) fn path(&self) -> String {
        format!("/{}/{}", self.descriptor.parent_service().full_name(), self.descriptor.name())
    }
}

fn role_of(package: &str) -> Option<Role> {
    Role::of_package(package)
}

/// Reading verbs are listed, so that a verb nobody thought of asks for more, not for less.
fn access(service: &str, method: &str) -> Access {
    const READS: [&str; 9] = ["Get", "List", "Batch", "Compute", "Audit", "Analyze", "Run", "Watch", "Explain"];
    let reads = READS.iter().any(|verb| method.starts_with(verb));
    match service {
        "candlemesh.gateway.v1.FlagService" => Access::Admin,
        "candlemesh.gateway.v1.RolloutService" if !reads => Access::Admin,
        _ if reads => Access::Reader,
        _ => Access::Writer,
    }
}

fn targeting_key(input: &MessageDescriptor, message: &[u8]) -> Option<String> {
    let field = input.get_field(1)?;
    if !matches!(field.name(), "instrument_key" | "instrument_keys" | "group_id") {
        return None;
    }
    let text = first_field(message)?;
    Some(normalised(text))
}

/// A key in the spelling that all spellings of it share; text that is no key stays as it is, for its service to refuse.
pub(crate) fn normalised(text: &str) -> String {
    match text.parse::<InstrumentKey>() {
        Ok(key) => key.to_string(),
        Err(_) => text.to_owned(),
    }
}

/// The first text in field 1 of an encoded message.
fn first_field(mut message: &[u8]) -> Option<&str> {
    while !message.is_empty() {
        let (tag, wire) = decode_key(&mut message).ok()?;
        if tag == 1 && wire == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
            return std::str::from_utf8(message.get(..length)?).ok().filter(|text| !text.is_empty());
        }
        skip_field(wire, tag, &mut message, DecodeContext::default()).ok()?;
    }
    None
}

/// The message inside a single uncompressed gRPC frame.
pub(crate) fn framed(body: &[u8]) -> Option<&[u8]> {
    let (head, message) = body.split_at_checked(5)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] == 0 { message.get(..length) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_found_wherever_it_stands_and_is_normalised() {
        let method = Method::find("/candlemesh.aggregation.v1.AggregationService/GetCandles").unwrap();
        let request = proto::aggregation::GetCandlesRequest {
            instrument_key: "us|SPY".into(),
            timeframe: "5m".into(),
            ..Default::default()
        };
        assert_eq!(method.targeting_key(&request.encode_to_vec()).as_deref(), Some("US|SPY"));
        // Field 2 ahead of field 1 is legal protobuf.
        let swapped = b"\x12\x025m\x0a\x06us|SPY";
        assert_eq!(method.targeting_key(swapped).as_deref(), Some("US|SPY"));
        for hostile in [&b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"[..], b"\x0a\x7f", b"\xff", b""] {
            assert_eq!(method.targeting_key(hostile), None);
        }
        let batch = Method::find("/candlemesh.indicator.v1.IndicatorService/BatchComputeIndicators").unwrap();
        let request = proto::indicator::BatchComputeIndicatorsRequest {
            instrument_keys: vec!["NSE_EQ|A".into(), "NSE_EQ|B".into()],
            ..Default::default()
        };
        assert_eq!(batch.targeting_key(&request.encode_to_vec()).as_deref(), Some("NSE_EQ|A"));
        // Field 1 is a date here: no key.
        let top = Method::find("/candlemesh.sequence.v1.SequenceService/GetTopScreened").unwrap();
        assert_eq!(top.targeting_key(b"\x0a\x0a2024-01-02"), None);
    }

    #[test]
    fn changing_anything_takes_more_than_reading() {
        let access = |path: &str| Method::find(path).unwrap().access;
        assert_eq!(access("/candlemesh.ingestion.v1.IngestionService/GetQuotes"), Access::Reader);
        for method in ["PutCandles", "StreamCandles", "PutInstrument", "PutGroup", "DeleteGroup"] {
            assert_eq!(access(&format!("/candlemesh.ingestion.v1.IngestionService/{method}")), Access::Writer);
        }
        assert_eq!(access("/candlemesh.sequence.v1.SequenceService/ExecuteGroup"), Access::Writer);
        assert_eq!(access("/candlemesh.optimizer.v1.OptimizerService/CancelStudy"), Access::Writer);
        assert_eq!(access("/candlemesh.gateway.v1.FlagService/ListFlags"), Access::Admin);
        assert_eq!(access("/candlemesh.gateway.v1.RolloutService/ListRollouts"), Access::Reader);
        assert_eq!(access("/candlemesh.gateway.v1.RolloutService/SetRolloutShare"), Access::Admin);
        let analyze = Method::find("/candlemesh.sequence.v1.SequenceService/AnalyzeSequences").unwrap();
        let request = |store| AnalyzeSequencesRequest { store, ..Default::default() }.encode_to_vec();
        assert_eq!(analyze.access_of(&request(false)), Access::Reader);
        assert_eq!(analyze.access_of(&request(true)), Access::Writer);
        assert!(Method::find("/candlemesh.gateway.v1.RolloutService/Nope").is_none());
        assert!(Method::find("/candlemesh.market.v1.Candle/x").is_none());
    }

    #[test]
    fn frames_that_are_cut_or_compressed_are_not_read() {
        assert_eq!(framed(b"\0\0\0\0\x02ab"), Some(&b"ab"[..]));
        assert_eq!(framed(b"\0\0\0\0\x03ab"), None);
        assert_eq!(framed(b"\x01\0\0\0\x02ab"), None);
        assert_eq!(framed(b"\0\0"), None);
    }
}

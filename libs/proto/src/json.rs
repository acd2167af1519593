//! Protobuf JSON by descriptor, for tickets and for the REST surface.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};

/// A JSON text that is not the message it should be.
#[derive(Debug, thiserror::Error)]
#[error("JSON is not a valid {message}: {reason}")]
pub struct JsonError {
    pub message: String,
    pub reason: String,
}

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(crate::FILE_DESCRIPTOR_SET).expect("the descriptor set was produced by our own build script")
});

/// Every message and service of the project, with comments.
pub fn pool() -> &'static DescriptorPool {
    &POOL
}

/// Encodes protobuf JSON (proto field names or camelCase; unknown fields refused) to the message's bytes.
pub fn encode(descriptor: MessageDescriptor, json: &[u8]) -> Result<Vec<u8>, JsonError> {
    let name = descriptor.name().to_owned();
    let refuse = |reason: String| JsonError { message: name.clone(), reason };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let message = DynamicMessage::deserialize(descriptor, &mut deserializer).map_err(|e| refuse(e.to_string()))?;
    deserializer.end().map_err(|e| refuse(e.to_string()))?;
    Ok(message.encode_to_vec())
}

/// Decodes message bytes to protobuf JSON with proto field names; default values are written out, 64-bit integers are numbers.
pub fn decode(descriptor: MessageDescriptor, bytes: &[u8]) -> Result<serde_json::Value, JsonError> {
    let name = descriptor.name().to_owned();
    let refuse = |reason: String| JsonError { message: name.clone(), reason };
    let message = DynamicMessage::decode(descriptor, bytes).map_err(|e| refuse(e.to_string()))?;
    let options =
        SerializeOptions::new().use_proto_field_name(true).skip_default_fields(false).stringify_64_bit_integers(false);
    message.serialize_with_options(serde_json::value::Serializer, &options).map_err(|e| refuse(e.to_string()))
}

/// Parses the content of a Flight ticket or descriptor command: a `FrameTicket` as protobuf or as JSON (starts with `{`).
pub fn parse_ticket(bytes: &[u8]) -> Result<crate::wire::FrameTicket, JsonError> {
    let refuse = |reason: String| JsonError { message: "FrameTicket".into(), reason };
    let encoded = if bytes.first() == Some(&b'{') {
        let descriptor = pool()
            .get_message_by_name("candlemesh.market.v1.FrameTicket")
            .expect("FrameTicket is part of the descriptor set");
        encode(descriptor, bytes)?
    } else {
        bytes.to_vec()
    };
    let ticket = crate::wire::FrameTicket::decode(encoded.as_slice()).map_err(|e| refuse(e.to_string()))?;
    if ticket.frame.is_none() {
        return Err(refuse("one of stored_candles, candles, indicators must be set".into()));
    }
    Ok(ticket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{CandlesTicket, FrameTicket, TimeRange, frame_ticket::Frame};

    #[test]
    fn a_ticket_reads_the_same_from_json_and_from_bytes() {
        let json = br#"{"candles":{"instrument_key":"US|SPY","timeframe":"5m","range":{"start_time":"2020-01-01T00:00:00Z"}}}"#;
        let ticket = parse_ticket(json).unwrap();
        let start_time = Some(prost_types::Timestamp { seconds: 1_577_836_800, nanos: 0 });
        let want = FrameTicket {
            frame: Some(Frame::Candles(CandlesTicket {
                instrument_key: "US|SPY".into(),
                timeframe: "5m".into(),
                range: Some(TimeRange { start_time, end_time: None }),
                ..Default::default()
            })),
        };
        assert_eq!(ticket, want);
        assert_eq!(parse_ticket(&want.encode_to_vec()).unwrap(), want);
    }

    #[test]
    fn unknown_fields_and_empty_tickets_are_refused() {
        assert!(parse_ticket(br#"{"candles":{"symbol":"SPY"}}"#).unwrap_err().to_string().contains("symbol"));
        assert!(parse_ticket(b"").unwrap_err().to_string().contains("must be set"));
        assert!(parse_ticket(b"\xff\xff").is_err());
    }
}

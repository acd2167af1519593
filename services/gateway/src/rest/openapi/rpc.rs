//! RPCs and their messages as OpenAPI, with the comments of the proto files.

use std::collections::{BTreeSet, VecDeque};

use prost_reflect::{Cardinality, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::{content, engine_parameter, reference, responses};
use crate::method::Method;

/// Adds one path per RPC and one schema per message they use.
pub(super) fn add(paths: &mut Map<String, Value>, schemas: &mut Map<String, Value>) {
    let mut seen = BTreeSet::new();
    let mut pending = VecDeque::new();
    for method in Method::all() {
        let descriptor = &method.descriptor;
        for message in [descriptor.input(), descriptor.output()] {
            pending.push_back(message);
        }
        paths.insert(format!("/api/v1/rpc{}", method.path()), json!({"post": operation(method)}));
    }
    while let Some(message) = pending.pop_front() {
        if well_known(message.full_name()).is_some() || !seen.insert(message.full_name().to_owned()) {
            continue;
        }
        for field in message.fields() {
            if let Kind::Message(inner) = field.kind() {
                pending.push_back(inner);
            }
        }
        schemas.insert(message.full_name().to_owned(), schema(&message));
    }
}

fn operation(method: &Method) -> Value {
    let descriptor = &method.descriptor;
    let mut notes = vec![comment(&descriptor.parent_service().parent_file(), descriptor.path())];
    let answer = reference(descriptor.output().full_name());
    let mut answer = content(answer, &[]);
    if descriptor.is_client_streaming() {
        notes.push("Takes a stream: answered with 501 here, call it with gRPC.".to_owned());
    } else if descriptor.is_server_streaming() {
        notes.push("One JSON object per line; a failure midway is a last line {\"error\": problem}.".to_owned());
        answer = json!({"application/x-ndjson": {"schema": reference(descriptor.output().full_name())}});
    }
    notes.retain(|note| !note.is_empty());
    json!({
        "summary": format!("{}.{}", descriptor.parent_service().name(), descriptor.name()),
        "description": notes.join(" "),
        "tags": [method.role.as_str()],
        "x-required-role": method.access.as_str(),
        "parameters": [engine_parameter()],
        "requestBody": {"required": true, "content": content(reference(descriptor.input().full_name()), &[])},
        "responses": responses(&answer),
    })
}

/// Schemas of types whose JSON form is not an object of their fields.
fn well_known(name: &str) -> Option<Value> {
    match name {
        "google.protobuf.Timestamp" => Some(json!({"type": "string", "format": "date-time"})),
        "google.protobuf.Duration" => Some(json!({"type": "string", "examples": ["1.5s"]})),
        _ => None,
    }
}

fn schema(message: &MessageDescriptor) -> Value {
    let mut properties = Map::new();
    for field in message.fields() {
        let mut property = match field.cardinality() {
            Cardinality::Repeated => json!({"type": "array", "items": kind(&field)}),
            _ => kind(&field),
        };
        let text = comment(&message.parent_file(), field.path());
        if !text.is_empty() {
            property["description"] = text.into();
        }
        properties.insert(field.name().to_owned(), property);
    }
    let mut schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
    let text = comment(&message.parent_file(), message.path());
    if !text.is_empty() {
        schema["description"] = text.into();
    }
    schema
}

fn kind(field: &FieldDescriptor) -> Value {
    match field.kind() {
        Kind::Double | Kind::Float => json!({"type": "number", "format": "double"}),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!({"type": "integer", "format": "int32"}),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => json!({"type": "integer", "format": "int64"}),
        Kind::Uint32 | Kind::Fixed32 => json!({"type": "integer", "format": "int64", "minimum": 0}),
        Kind::Uint64 | Kind::Fixed64 => json!({"type": "integer", "minimum": 0}),
        Kind::Bool => json!({"type": "boolean"}),
        Kind::String => json!({"type": "string"}),
        Kind::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
        Kind::Enum(values) => {
            let names: Vec<String> = values.values().map(|value| value.name().to_owned()).collect();
            json!({"type": "string", "enum": names})
        }
        Kind::Message(message) => well_known(message.full_name()).unwrap_or_else(|| reference(message.full_name())),
    }
}

/// The comment above an element of a proto file, as one line.
fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref();
    let location = info.and_then(|info| info.location.iter().find(|location| location.path == path));
    let text = location.and_then(|location| location.leading_comments.as_deref()).unwrap_or_default();
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
}

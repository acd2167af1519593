//! What Flight requests name: frames by ticket, command or path, and pages of the listing by criteria. All of it can be written by
//! hand, so that a client needs no generated code.

use arrow_flight::FlightDescriptor;
use arrow_flight::flight_descriptor::DescriptorType;
use market::InstrumentKey;
use proto::convert::{self, FieldError};
use proto::wire::{CandlesTicket, FrameTicket, IndicatorsTicket, StoredCandlesTicket, frame_ticket::Frame};
use serde::{Deserialize, Serialize};
use tonic::Status;

use crate::to_status;

/// Instruments of one page of ListFlights: one schema each is two megabytes.
pub const MAX_LISTED_INSTRUMENTS: usize = 1000;

const PATH_FORMS: &str = "accepted: a command holding a FrameTicket as JSON or protobuf, for example \
     {\"candles\": {\"instrument_key\": \"US|SPY\", \"timeframe\": \"5m\"}}, or a path [\"stored\", KEY], [\"stored\", KEY, TIMEFRAME], \
     [\"candles\", KEY, TIMEFRAME, INDICATOR...] or [\"indicators\", KEY, TIMEFRAME, INDICATOR...]";

fn refuse(reason: impl std::fmt::Display) -> Status {
    to_status(&FieldError::new("descriptor", format!("{reason}; {PATH_FORMS}")))
}

/// The frame a descriptor names.
///
/// Errors: INVALID_ARGUMENT that lists the forms there are.
pub fn ticket_of(descriptor: &FlightDescriptor) -> Result<FrameTicket, Status> {
    match (descriptor.r#type(), descriptor.path.is_empty()) {
        (DescriptorType::Path, _) | (DescriptorType::Unknown, false) => of_path(&descriptor.path),
        _ if descriptor.cmd.is_empty() => Err(refuse("is empty")),
        _ => parse_ticket(&descriptor.cmd),
    }
}

/// The frame a ticket or command names.
pub fn parse_ticket(bytes: &[u8]) -> Result<FrameTicket, Status> {
    proto::json::parse_ticket(bytes).map_err(|error| to_status(&error))
}

fn of_path(path: &[String]) -> Result<FrameTicket, Status> {
    let Some((kind, rest)) = path.split_first() else { return Err(refuse("the path is empty")) };
    let frame = match (kind.as_str(), rest) {
        ("stored", [key, rest @ ..]) if rest.len() <= 1 => Frame::StoredCandles(StoredCandlesTicket {
            instrument_key: key.clone(),
            timeframe: rest.first().cloned().unwrap_or_default(),
            ..Default::default()
        }),
        ("candles", [key, timeframe, indicators @ ..]) => Frame::Candles(CandlesTicket {
            instrument_key: key.clone(),
            timeframe: timeframe.clone(),
            indicators: indicators.to_vec(),
            ..Default::default()
        }),
        ("indicators", [key, timeframe, indicators @ ..]) => Frame::Indicators(IndicatorsTicket {
            instrument_key: key.clone(),
            timeframe: timeframe.clone(),
            indicators: indicators.to_vec(),
            ..Default::default()
        }),
        _ => return Err(refuse(format!("the path {path:?} names no frame"))),
    };
    Ok(FrameTicket { frame: Some(frame) })
}

/// Which page of the listing is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListCriteria {
    /// Instruments of this segment only.
    pub segment: Option<String>,
    /// The page starts after this instrument.
    pub after: Option<InstrumentKey>,
    /// Most instruments of the page; each comes with all its stored timeframes.
    pub limit: usize,
}

/// The criteria's JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    segment: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
}

impl ListCriteria {
    /// Reads the expression of a request: nothing, or JSON with any of `segment`, `after` and `limit`.
    pub fn parse(expression: &[u8]) -> Result<ListCriteria, Status> {
        let refuse = |field: &str, reason: String| to_status(&FieldError::new(field, reason));
        let written: Written = match expression.is_empty() {
            true => Written::default(),
            false => serde_json::from_slice(expression).map_err(|error| {
                let expected =
                    r#"expected JSON like {"segment": "NSE_EQ", "after": "NSE_EQ|INE002A01018", "limit": 100}"#;
                refuse("criteria", format!("{error}; {expected}"))
            })?,
        };
        let limit = written.limit.unwrap_or(MAX_LISTED_INSTRUMENTS);
        if limit == 0 || limit > MAX_LISTED_INSTRUMENTS {
            return Err(refuse("criteria.limit", format!("{limit} given; accepted: 1 to {MAX_LISTED_INSTRUMENTS}")));
        }
        let after = written.after.map(|key| convert::instrument_key("criteria.after", &key)).transpose();
        let after = after.map_err(|error| to_status(&error))?;
        Ok(ListCriteria { segment: written.segment.filter(|segment| !segment.is_empty()), after, limit })
    }

    /// As the expression of a request.
    pub fn to_json(&self) -> Vec<u8> {
        let after = self.after.as_ref().map(ToString::to_string);
        let written = Written { segment: self.segment.clone(), after, limit: Some(self.limit) };
        serde_json::to_vec(&written).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(parts: &[&str]) -> Result<FrameTicket, Status> {
        ticket_of(&FlightDescriptor::new_path(parts.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn a_path_names_the_frame_its_json_names() {
        let command = |json: &str| ticket_of(&FlightDescriptor::new_cmd(json.as_bytes().to_vec())).unwrap();
        let cases = [
            (&["stored", "US|SPY"][..], r#"{"stored_candles":{"instrument_key":"US|SPY"}}"#),
            (&["stored", "US|SPY", "1d"], r#"{"stored_candles":{"instrument_key":"US|SPY","timeframe":"1d"}}"#),
            (&["candles", "US|SPY", "5m"], r#"{"candles":{"instrument_key":"US|SPY","timeframe":"5m"}}"#),
            (
                &["indicators", "US|SPY", "5m", "sma:9"],
                r#"{"indicators":{"instrument_key":"US|SPY","timeframe":"5m","indicators":["sma:9"]}}"#,
            ),
        ];
        for (parts, json) in cases {
            assert_eq!(path(parts).unwrap(), command(json), "{parts:?}");
        }
    }

    #[test]
    fn other_descriptors_are_refused_with_the_forms_there_are() {
        let empty = ticket_of(&FlightDescriptor::new_cmd(Vec::new()));
        for refused in
            [empty, path(&[]), path(&["US|SPY", "5m"]), path(&["candles", "US|SPY"]), path(&["stored", "a", "b", "c"])]
        {
            let status = refused.unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains(r#"["candles", KEY, TIMEFRAME"#), "{status}");
        }
    }

    #[test]
    fn criteria_survive_their_json_and_bad_ones_name_the_field() {
        let criteria = ListCriteria::parse(br#"{"segment":"NSE_EQ","after":"NSE_EQ|INE002A01018","limit":7}"#).unwrap();
        assert_eq!(ListCriteria::parse(&criteria.to_json()).unwrap(), criteria);
        let all = ListCriteria::parse(b"").unwrap();
        assert_eq!(all, ListCriteria { segment: None, after: None, limit: MAX_LISTED_INSTRUMENTS });
        for (json, field) in [
            ("{\"limit\":0}", "criteria.limit"),
            ("{\"after\":\"x\"}", "criteria.after"),
            ("{\"size\":1}", "size"),
            ("7", "criteria"),
        ] {
            let status = ListCriteria::parse(json.as_bytes()).unwrap_err();
            assert!(status.message().contains(field), "{json}: {status}");
        }
    }
}

//! Live indicators as server-sent events.

use std::fmt::Write;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, Uri};
use proto::indicator::live_service_client::LiveServiceClient;
use proto::indicator::{
    IndicatorEvent, IndicatorFailure, IndicatorUpdate, WatchIndicatorsRequest, WatchIndicatorsResponse,
};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::super::candles::{pairs, parse_value, split_indicators, unknown};
use super::super::problem::Problem;
use super::super::{Shared, time_text};
use super::{Stream, last_event_id, list, watch};
use crate::method::Role;

/// Values of indicators at one candle: the data of the events `snapshot`, `update`, `close` and `correction`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct IndicatorEventData {
    instrument_key: String,
    timeframe: String,
    /// Data revision of the values.
    revision: u64,
    open_time: String,
    /// False while the candle forms, or waits for its minutes.
    closed: bool,
    /// Open time of the earliest candle whose change made this one's values, where that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_from: Option<String>,
    /// By column; null where undefined.
    #[schema(value_type = BTreeMap<String, Option<f64>>)]
    values: Values,
}

/// Values in the order asked.
#[derive(Debug)]
struct Values {
    columns: Arc<[String]>,
    values: Vec<f64>,
    undefined: Vec<u32>,
}

impl Serialize for Values {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut undefined = self.undefined.iter().copied().peekable();
        let mut map = serializer.serialize_map(Some(self.columns.len()))?;
        for (index, (column, value)) in self.columns.iter().zip(&self.values).enumerate() {
            let is_defined = undefined.next_if_eq(&(index as u32)).is_none();
            map.serialize_entry(column, &is_defined.then_some(value))?;
        }
        map.end()
    }
}

/// `GET /api/v1/stream/indicators`
pub(crate) async fn indicators(State(gateway): Shared, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    let mut request = parse(&uri)?;
    if let Some(last) = last_event_id(&headers)? {
        request.cursor = last;
    }
    let stream = Stream { gateway, headers, role: Role::Indicator, what: "watching indicators" };
    let key = request.instrument_keys.first().cloned();
    watch(stream, key, |channel| async move {
        let mut client = LiveServiceClient::new(channel).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
        client.watch_indicators(request).await
    })
    .await
}

impl super::Message for WatchIndicatorsResponse {
    /// Columns of every message, which the first one names.
    type Head = Arc<[String]>;

    fn head(&self) -> Arc<[String]> {
        self.columns.as_slice().into()
    }

    fn size(&self) -> usize {
        self.updates.len() * self.updates.first().map_or(1, |update| 1 + update.values.len() / 16)
    }

    fn text(self, columns: &Arc<[String]>) -> String {
        let WatchIndicatorsResponse { updates, cursor, failures, caught_up, .. } = self;
        let mut text = String::with_capacity(updates.len() * (200 + 30 * columns.len()) + 64);
        for failure in failures {
            let _ = writeln!(text, "event: failure\ndata: {}\n", failed(failure));
        }
        let events = updates.into_iter().map(|update| (name(update.event()), data(update, columns)));
        super::write(&mut text, events, &cursor, caught_up);
        text
    }
}

fn name(event: IndicatorEvent) -> &'static str {
    match event {
        IndicatorEvent::Snapshot => "snapshot",
        IndicatorEvent::Update => "update",
        IndicatorEvent::Close => "close",
        IndicatorEvent::Correction => "correction",
        IndicatorEvent::Unspecified => "message",
    }
}

fn data(update: IndicatorUpdate, columns: &Arc<[String]>) -> String {
    let data = IndicatorEventData {
        open_time: time_text(update.open_time.as_ref()),
        changed_from: update.changed_from.as_ref().map(|at| time_text(Some(at))),
        instrument_key: update.instrument_key,
        timeframe: update.timeframe,
        revision: update.revision,
        closed: update.closed,
        values: Values { columns: Arc::clone(columns), values: update.values, undefined: update.undefined },
    };
    serde_json::to_string(&data).unwrap_or_default()
}

fn failed(failure: IndicatorFailure) -> String {
    let error = failure.error.unwrap_or_default();
    let data = serde_json::json!({
        "instrument_key": failure.instrument_key,
        "timeframe": failure.timeframe,
        "code": error.code,
        "reason": error.reason,
        "message": error.message,
    });
    data.to_string()
}

fn parse(uri: &Uri) -> Result<WatchIndicatorsRequest, Problem> {
    let mut request = WatchIndicatorsRequest::default();
    let mut seen: Vec<String> = Vec::new();
    for (name, value) in pairs(uri)? {
        let is_list = matches!(name.as_str(), "instrument_keys" | "timeframes" | "indicators");
        if !is_list && seen.contains(&name) {
            return Err(Problem::field(&name, "given more than once"));
        }
        match name.as_str() {
            "instrument_keys" => request.instrument_keys.extend(list(&value)),
            "timeframes" => request.timeframes.extend(list(&value)),
            "indicators" => request.indicators.extend(split_indicators(&value)),
            "cursor" => request.cursor = value,
            "include_forming" => request.include_forming = parse_value(&name, &value, "true, false")?,
            _ => return Err(unknown(&name, "instrument_keys, timeframes, indicators, cursor, include_forming")),
        }
        seen.push(name);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::super::Message;
    use super::*;

    #[test]
    fn values_are_named_in_the_order_asked_and_undefined_ones_are_null() {
        let update = IndicatorUpdate {
            instrument_key: "US|A".into(),
            timeframe: "1m".into(),
            event: IndicatorEvent::Close as i32,
            values: vec![1.5, 0.0, -0.0],
            undefined: vec![1],
            closed: true,
            revision: 3,
            ..Default::default()
        };
        let columns: Arc<[String]> = ["vwap", "sma:9", "obv"].map(str::to_owned).to_vec().into();
        let message = WatchIndicatorsResponse { updates: vec![update], cursor: "c".into(), ..Default::default() };
        let want = r#"{"instrument_key":"US|A","timeframe":"1m","revision":3,"open_time":"1970-01-01T00:00:00Z","closed":true,"values":{"vwap":1.5,"sma:9":null,"obv":-0.0}}"#;
        assert_eq!(message.text(&columns), format!("event: close\nid: c\ndata: {want}\n\n"));
    }

    #[test]
    fn commas_in_an_indicator_do_not_part_it_and_what_is_not_known_is_refused() {
        let parse = |text: &str| parse(&text.parse().unwrap());
        let request =
            parse("/x?instrument_keys=US%7CA&timeframes=1m,5m&indicators=bbands:20,2,vwap&include_forming=true")
                .unwrap();
        assert_eq!(request.indicators, ["bbands:20,2", "vwap"]);
        assert!(request.include_forming && request.timeframes.len() == 2);
        for bad in ["/x?closed_only=true", "/x?include_forming=yes", "/x?cursor=1&cursor=2"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}

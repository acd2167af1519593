//! Indicators as their candles form, close and are corrected.

use anyhow::Result;
use proto::convert;
use proto::indicator::live_service_client::LiveServiceClient;
use proto::indicator::{IndicatorEvent, IndicatorUpdate, WatchIndicatorsRequest, WatchIndicatorsResponse};
use tonic::{Status, Streaming};

use super::super::{Channel, Connection, short};
use super::{Feed, WatchArgs};
use crate::output::say_line;

pub(super) struct Indicators {
    client: LiveServiceClient<Channel>,
    request: WatchIndicatorsRequest,
    /// Named by the first message of a stream.
    columns: Vec<String>,
}

impl Indicators {
    pub(super) fn new(connection: &Connection, args: &WatchArgs) -> Result<Indicators> {
        let request = WatchIndicatorsRequest {
            instrument_keys: args.instruments.iter().map(ToString::to_string).collect(),
            timeframes: args.timeframes.iter().map(ToString::to_string).collect(),
            indicators: args.indicators.clone(),
            cursor: args.cursor.clone(),
            include_forming: !args.closed_only,
        };
        let client = LiveServiceClient::new(connection.channel()?).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
        Ok(Indicators { client, request, columns: Vec::new() })
    }
}

impl Feed for Indicators {
    type Message = WatchIndicatorsResponse;

    async fn open(&mut self) -> Result<Streaming<WatchIndicatorsResponse>, Status> {
        Ok(self.client.watch_indicators(self.request.clone()).await?.into_inner())
    }

    fn print(&mut self, message: &WatchIndicatorsResponse, json: bool, left: &mut Option<u64>) -> bool {
        if !message.columns.is_empty() {
            self.columns.clone_from(&message.columns);
        }
        for failure in &message.failures {
            let text = failure.error.as_ref().map_or("", |error| error.message.as_str());
            eprintln!("candlemesh: {} {} is left out: {text}", failure.instrument_key, failure.timeframe);
        }
        for (index, update) in message.updates.iter().enumerate() {
            if *left == Some(0) {
                return false;
            }
            let cursor = (index + 1 == message.updates.len()).then_some(message.cursor.as_str());
            match json {
                true => say_line!("{}", json_of(update, &self.columns, cursor)),
                false => say_line!("{}", line_of(update, &self.columns)),
            }
            if let Some(left) = left {
                *left -= 1;
            }
        }
        *left != Some(0)
    }

    fn pass(&mut self, message: WatchIndicatorsResponse) {
        self.request.cursor = message.cursor;
    }

    fn cursor(&self) -> &str {
        &self.request.cursor
    }
}

fn name(event: IndicatorEvent) -> &'static str {
    match event {
        IndicatorEvent::Snapshot => "snapshot",
        IndicatorEvent::Update => "update",
        IndicatorEvent::Close => "close",
        IndicatorEvent::Correction => "correction",
        IndicatorEvent::Unspecified => "unknown",
    }
}

/// Values by column; absent where undefined.
fn values<'a>(update: &'a IndicatorUpdate, columns: &'a [String]) -> impl Iterator<Item = (&'a str, Option<f64>)> {
    let value = |(index, value): (usize, &f64)| (!update.undefined.contains(&(index as u32))).then_some(*value);
    columns.iter().map(String::as_str).zip(update.values.iter().enumerate().map(value))
}

fn time(stamp: Option<&prost_types::Timestamp>) -> String {
    market::format_millis(stamp.and_then(convert::millis).unwrap_or_default())
}

fn json_of(update: &IndicatorUpdate, columns: &[String], cursor: Option<&str>) -> serde_json::Value {
    let values: serde_json::Map<String, serde_json::Value> =
        values(update, columns).map(|(column, value)| (column.to_owned(), value.into())).collect();
    let mut json = serde_json::json!({
        "event": name(update.event()),
        "instrument_key": update.instrument_key,
        "timeframe": update.timeframe,
        "revision": update.revision,
        "open_time": time(update.open_time.as_ref()),
        "closed": update.closed,
        "values": values,
    });
    if let Some(from) = &update.changed_from {
        json["changed_from"] = time(Some(from)).into();
    }
    if let Some(cursor) = cursor {
        json["cursor"] = cursor.into();
    }
    json
}

fn line_of(update: &IndicatorUpdate, columns: &[String]) -> String {
    let values = values(update, columns);
    let values: Vec<String> =
        values.map(|(column, value)| format!("{column}={}", value.map_or_else(|| "-".to_owned(), short))).collect();
    format!(
        "{:<10} {:<28} {:<4} {:<20} {}",
        name(update.event()),
        update.instrument_key,
        update.timeframe,
        time(update.open_time.as_ref()),
        values.join("  ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undefined_values_are_dashes_and_nulls_and_columns_keep_their_names() {
        let update = IndicatorUpdate {
            event: IndicatorEvent::Correction as i32,
            instrument_key: "US|A".into(),
            timeframe: "1m".into(),
            values: vec![1.5, 0.0],
            undefined: vec![1],
            changed_from: Some(convert::timestamp(60_000)),
            ..Default::default()
        };
        let columns = ["sma:9".to_owned(), "vwap".to_owned()];
        let json = json_of(&update, &columns, Some("c"));
        assert_eq!(json["values"], serde_json::json!({"sma:9": 1.5, "vwap": null}));
        assert_eq!((&json["cursor"], &json["changed_from"]), (&"c".into(), &"1970-01-01T00:01:00Z".into()));
        assert!(line_of(&update, &columns).ends_with("sma:9=1.5  vwap=-"), "{}", line_of(&update, &columns));
    }
}

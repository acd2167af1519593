//! `indicators --list`: the indicators there are, and whose definitions of them.

use anyhow::Result;
use proto::indicator::indicator_service_client::IndicatorServiceClient;
use proto::indicator::{IndicatorInfo, ListIndicatorsRequest, ParameterInfo};

use super::Connection;
use super::query::print_json;
use crate::output::say_line;

/// Prints the catalogue.
pub(super) async fn list(connection: &Connection, json: bool) -> Result<()> {
    let mut client = IndicatorServiceClient::new(connection.channel()?);
    let answer = client
        .list_indicators(ListIndicatorsRequest {})
        .await
        .map_err(|status| connection.explain(status))?
        .into_inner();
    if json {
        return print_json(&answer, "candlemesh.indicator.v1.ListIndicatorsResponse");
    }
    for line in answer.indicators.iter().flat_map(lines) {
        say_line!("{line}");
    }
    Ok(())
}

/// What the indicator is by default, and what it is in the other profiles that define it.
fn lines(info: &IndicatorInfo) -> Vec<String> {
    let mut lines =
        vec![format!("{}{}", info.name, defined(&info.parameters, info.lookback)), format!("    {}", info.summary)];
    for profile in info.profiles.iter().skip(1) {
        lines.push(match profile.same_as_default {
            true => format!("    @{}: the same", profile.name),
            false => {
                format!("    @{}{}: {}", profile.name, defined(&profile.parameters, profile.lookback), profile.summary)
            }
        });
    }
    lines
}

/// Parameters with their defaults, and the candles before the first value.
fn defined(parameters: &[ParameterInfo], lookback: u32) -> String {
    let parameter = |parameter: &ParameterInfo| format!(" {}={}", parameter.name, parameter.default_value);
    let parameters: String = parameters.iter().map(parameter).collect();
    format!("{parameters}, lookback {lookback}")
}

#[cfg(test)]
mod tests {
    use proto::indicator::ProfileInfo;

    use super::*;

    #[test]
    fn another_definition_is_told_from_the_same_and_from_none() {
        let parameters = vec![ParameterInfo { name: "period".into(), default_value: 14.0, ..Default::default() }];
        let profile = |name: &str, same_as_default: bool, lookback: u32| ProfileInfo {
            name: name.into(),
            same_as_default,
            summary: "other words".into(),
            parameters: parameters.clone(),
            lookback,
            ..Default::default()
        };
        let info = |others: Vec<ProfileInfo>| IndicatorInfo {
            name: "atr".into(),
            summary: "words".into(),
            parameters: parameters.clone(),
            lookback: 14,
            profiles: [vec![profile("talib", true, 14)], others].concat(),
            ..Default::default()
        };
        let first = ["atr period=14, lookback 14", "    words"];
        assert_eq!(lines(&info(vec![])), first);
        let other = "    @tradingview period=14, lookback 13: other words";
        assert_eq!(lines(&info(vec![profile("tradingview", false, 13)])), [first[0], first[1], other]);
        assert_eq!(lines(&info(vec![profile("tradingview", true, 14)]))[2], "    @tradingview: the same");
    }
}

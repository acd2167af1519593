//! One flag: a flagd definition, checked and compiled.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{Engine, Error, Subject, Weight};

pub const CACHING_FLAG: &str = "enable_indicator_caching";
pub const CACHE_TTL_FLAG: &str = "cache_ttl_minutes";

/// The flags there are, in listing order; the first three follow [`Subject::ALL`].
pub(crate) const KEYS: [&str; 5] = [
    Subject::Aggregation.flag_key(),
    Subject::Indicator.flag_key(),
    Subject::Sequence.flag_key(),
    CACHING_FLAG,
    CACHE_TTL_FLAG,
];

/// Longest definition read; pins for every instrument of an exchange fit.
const MAX_DEFINITION_BYTES: usize = 1 << 20;
/// Longest cache lifetime: a week.
const MAX_TTL_MINUTES: u64 = 7 * 24 * 60;
/// Lifetime while the TTL flag is disabled; the shipped definition says the same.
const DEFAULT_TTL_MINUTES: u64 = 15;
/// flagd's limit for the sum of fractional weights.
const MAX_WEIGHT_SUM: u64 = i32::MAX as u64;
const EXCERPT_CHARS: usize = 120;

/// A parsed and compiled flag.
///
/// Engine flags have the variants `v1` and `v2`, optional `metadata.pins` (targeting key to engine) and optional targeting of the form
/// `{"fractional": [["v2", 10], ["v1", 90]]}`. V2 comes first, so a growing share only ever adds keys. Weights are relative as in flagd, but must
/// scale to parts per 100 000 without a remainder. An expression that names the targeting key (alone, or after the flag key in a `cat`) may
/// precede the weights; it means the same as none, and is dropped by [`Flag::to_json`], because flagd hashes a written-out expression differently.
/// The caching flag has boolean variants, the TTL flag whole minutes; neither takes targeting.
#[derive(Debug, Clone, PartialEq)]
pub struct Flag {
    key: &'static str,
    definition: Definition,
    rule: Rule,
}

/// flagd's state; a disabled engine flag is the kill switch, a disabled caching flag switches caching off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    Enabled,
    Disabled,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Definition {
    state: State,
    variants: Map<String, Value>,
    default_variant: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    targeting: Option<Value>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    metadata: Map<String, Value>,
}

/// What a definition compiles to, by the kind of its flag.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Rule {
    Engine(EngineRule),
    Caching(bool),
    CacheTtl(Duration),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EngineRule {
    pub(crate) state: State,
    pub(crate) pins: BTreeMap<String, Engine>,
    /// Absent without targeting: the default variant answers.
    pub(crate) share: Option<Weight>,
    pub(crate) default: Engine,
}

impl Flag {
    /// Parses a flagd definition (the object under the flag's key). Errors name the flag and the field or operator refused.
    pub fn parse(key: &str, json: &str) -> Result<Flag, Error> {
        let key = *KEYS.iter().find(|known| **known == key).ok_or_else(|| Error::UnknownFlag { key: excerpt(key) })?;
        if json.len() > MAX_DEFINITION_BYTES {
            let reason = format!("definition of {} bytes is above {MAX_DEFINITION_BYTES}", json.len());
            return Err(Error::Definition { flag: key, reason });
        }
        let mut definition: Definition = serde_json::from_str(json)
            .map_err(|error| Error::Definition { flag: key, reason: excerpt(&error.to_string()) })?;
        let rule = match key {
            CACHING_FLAG => Rule::Caching(caching(&definition)?),
            CACHE_TTL_FLAG => Rule::CacheTtl(cache_ttl(&definition)?),
            _ => Rule::Engine(engine_rule(key, &definition)?),
        };
        definition.targeting = match &rule {
            Rule::Engine(EngineRule { share: Some(weight), .. }) => Some(fractional(*weight)),
            _ => None,
        };
        Ok(Flag { key, definition, rule })
    }

    /// The definition in flagd's format, weights in parts per 100 000. Parses back to an equal flag.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.definition).expect("maps keyed by strings always serialise")
    }

    pub fn key(&self) -> &'static str {
        self.key
    }

    pub fn state(&self) -> State {
        self.definition.state
    }

    /// V2's share while the flag is enabled (pins aside); `None` for flags that choose no engine.
    pub fn share(&self) -> Option<Weight> {
        match &self.rule {
            Rule::Engine(EngineRule { share: Some(weight), .. }) => Some(*weight),
            Rule::Engine(EngineRule { default: Engine::V1, .. }) => Some(Weight(0)),
            Rule::Engine(EngineRule { default: Engine::V2, .. }) => Some(Weight(Weight::TOTAL)),
            Rule::Caching(_) | Rule::CacheTtl(_) => None,
        }
    }

    /// The same flag with another share of V2; pins and state stay. Errors: the flag chooses no engine.
    pub fn with_share(mut self, weight: Weight) -> Result<Flag, Error> {
        let Rule::Engine(rule) = &mut self.rule else {
            return Err(Error::Subject { value: self.key.to_owned() });
        };
        rule.share = Some(weight);
        self.definition.targeting = Some(fractional(weight));
        Ok(self)
    }

    pub(crate) fn rule(&self) -> &Rule {
        &self.rule
    }
}

fn fractional(weight: Weight) -> Value {
    json!({"fractional": [["v2", weight.parts()], ["v1", Weight::TOTAL - weight.parts()]]})
}

fn caching(definition: &Definition) -> Result<bool, Error> {
    let value = plain_variant(CACHING_FLAG, definition, "is not a boolean", Value::as_bool)?;
    Ok(value && definition.state == State::Enabled)
}

fn cache_ttl(definition: &Definition) -> Result<Duration, Error> {
    let rule = format!("is not a whole number of minutes within 1..={MAX_TTL_MINUTES}");
    let minutes = plain_variant(CACHE_TTL_FLAG, definition, &rule, |value| {
        value.as_u64().filter(|minutes| (1..=MAX_TTL_MINUTES).contains(minutes))
    })?;
    let minutes = if definition.state == State::Enabled { minutes } else { DEFAULT_TTL_MINUTES };
    Ok(Duration::from_secs(minutes * 60))
}

/// The default variant's value in a flag without targeting; every variant must pass `read`, or is refused with `rule`.
fn plain_variant<T>(
    flag: &'static str,
    definition: &Definition,
    rule: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<T, Error> {
    if targeting_entry(flag, definition)?.is_some() {
        return Err(field(flag, "targeting", "is supported in engine flags only"));
    }
    metadata_pins(flag, definition)?
        .map_or(Ok(()), |_| Err(field(flag, "metadata.pins", "is for engine flags only")))?;
    let mut chosen = None;
    for (name, value) in &definition.variants {
        let value = read(value).ok_or_else(|| field(flag, &format!("variants.{name}"), &shown(value, rule)))?;
        if *name == definition.default_variant {
            chosen = Some(value);
        }
    }
    chosen.ok_or_else(|| unknown_default(flag, definition))
}

fn engine_rule(flag: &'static str, definition: &Definition) -> Result<EngineRule, Error> {
    if definition.variants.len() != 2 {
        return Err(field(flag, "variants", "must be {\"v1\": \"v1\", \"v2\": \"v2\"}"));
    }
    for engine in [Engine::V1, Engine::V2] {
        if definition.variants.get(engine.as_str()).and_then(Value::as_str) != Some(engine.as_str()) {
            return Err(field(flag, &format!("variants.{engine}"), &format!("must be {:?}", engine.as_str())));
        }
    }
    let mut pins = BTreeMap::new();
    for (key, value) in metadata_pins(flag, definition)?.into_iter().flatten() {
        let engine = value.as_str().and_then(|text| text.parse().ok());
        let engine = engine
            .ok_or_else(|| field(flag, &format!("metadata.pins.{key}"), &shown(value, "is neither v1 nor v2")))?;
        pins.insert(key.clone(), engine);
    }
    Ok(EngineRule {
        state: definition.state,
        pins,
        share: targeting_entry(flag, definition)?.map(|weights| parse_fractional(flag, weights)).transpose()?,
        default: definition.default_variant.parse().map_err(|_| unknown_default(flag, definition))?,
    })
}

/// The operand of `fractional`, the one operator supported; `None` without targeting (absent, null or `{}`, as in flagd).
fn targeting_entry<'a>(flag: &'static str, definition: &'a Definition) -> Result<Option<&'a Value>, Error> {
    let Some(targeting) = &definition.targeting else { return Ok(None) };
    let operators =
        targeting.as_object().ok_or_else(|| field(flag, "targeting", &shown(targeting, "is not an object")))?;
    match operators.keys().find(|operator| *operator != "fractional") {
        Some(operator) => Err(Error::Operator { flag, operator: excerpt(operator) }),
        None => Ok(operators.get("fractional")),
    }
}

/// Checks metadata by flagd's schema (scalars only), except for `pins`, which is ours.
fn metadata_pins<'a>(flag: &'static str, definition: &'a Definition) -> Result<Option<&'a Map<String, Value>>, Error> {
    for (name, value) in &definition.metadata {
        if name != "pins" && !(value.is_string() || value.is_number() || value.is_boolean()) {
            return Err(field(flag, &format!("metadata.{name}"), &shown(value, "is not a string, number or boolean")));
        }
    }
    let Some(pins) = definition.metadata.get("pins") else { return Ok(None) };
    pins.as_object().map(Some).ok_or_else(|| field(flag, "metadata.pins", &shown(pins, "is not an object")))
}

fn parse_fractional(flag: &'static str, operand: &Value) -> Result<Weight, Error> {
    const FIELD: &str = "targeting.fractional";
    let mut entries =
        operand.as_array().ok_or_else(|| field(flag, FIELD, &shown(operand, "is not an array")))?.as_slice();
    if let [Value::Object(expression), rest @ ..] = entries {
        check_bucketing_expression(flag, expression)?;
        entries = rest;
    }
    let [v2, v1] = entries else {
        return Err(field(flag, FIELD, "must hold the weights of v2 and v1, in this order"));
    };
    let v2 = parse_weight(flag, Engine::V2, v2)?;
    let total = v2.saturating_add(parse_weight(flag, Engine::V1, v1)?);
    if total == 0 || total > MAX_WEIGHT_SUM {
        return Err(field(flag, FIELD, &format!("has weights that sum to {total}, outside 1..={MAX_WEIGHT_SUM}")));
    }
    let scaled = v2 * u64::from(Weight::TOTAL);
    if !scaled.is_multiple_of(total) {
        let reason = format!("gives v2 {v2} of {total}, which is not a whole count of parts per {}", Weight::TOTAL);
        return Err(field(flag, FIELD, &reason));
    }
    // At most TOTAL, because v2 is at most total.
    Ok(Weight((scaled / total) as u32))
}

fn check_bucketing_expression(flag: &'static str, expression: &Map<String, Value>) -> Result<(), Error> {
    let expression = Value::Object(expression.clone());
    let alone = json!({"var": "targetingKey"});
    if expression == alone || expression == json!({"cat": [{"var": "$flagd.flagKey"}, alone]}) {
        return Ok(());
    }
    match expression.as_object().and_then(|map| map.keys().find(|name| *name != "var" && *name != "cat")) {
        Some(operator) => Err(Error::Operator { flag, operator: excerpt(operator) }),
        None => Err(field(flag, "targeting.fractional[0]", &shown(&expression, "does not name the targeting key"))),
    }
}

/// One `[variant, weight]`; the weight is 1 where absent, as in flagd.
fn parse_weight(flag: &'static str, engine: Engine, entry: &Value) -> Result<u64, Error> {
    let name = format!("targeting.fractional.{engine}");
    let (variant, weight) = match entry.as_array().map(Vec::as_slice) {
        Some([variant]) => (variant, None),
        Some([variant, weight]) => (variant, Some(weight)),
        _ => return Err(field(flag, &name, &shown(entry, "is not [variant, weight]"))),
    };
    if variant.as_str() != Some(engine.as_str()) {
        let rule = format!("stands where {engine} must; v2 comes first, so that a growing share moves no one back");
        return Err(field(flag, &name, &shown(variant, &rule)));
    }
    let Some(weight) = weight else { return Ok(1) };
    if let Some(operator) = weight.as_object().and_then(|map| map.keys().next()) {
        return Err(Error::Operator { flag, operator: excerpt(operator) });
    }
    weight.as_u64().ok_or_else(|| field(flag, &name, &shown(weight, "is not a whole weight, 0 or above")))
}

fn unknown_default(flag: &'static str, definition: &Definition) -> Error {
    field(flag, "defaultVariant", &format!("{:?} is not one of the variants", excerpt(&definition.default_variant)))
}

fn field(flag: &'static str, field: &str, reason: &str) -> Error {
    Error::Field { flag, field: excerpt(field), reason: reason.to_owned() }
}

fn shown(value: &Value, rule: &str) -> String {
    format!("{} {rule}", excerpt(&value.to_string()))
}

/// Text from outside, cut to a length fit for an error.
pub(crate) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine_flag(extra: &str) -> Result<Flag, Error> {
        let text = format!(r#"{{"state":"ENABLED","variants":{{"v1":"v1","v2":"v2"}},"defaultVariant":"v1"{extra}}}"#);
        Flag::parse("use_gonum_indicators", &text)
    }

    fn targeting(text: &str) -> Result<Flag, Error> {
        engine_flag(&format!(r#","targeting":{text}"#))
    }

    #[test]
    fn weights_are_relative_and_written_back_per_100_000() {
        let cases = [
            (r#"{"fractional":[["v2",10],["v1",90]]}"#, 10_000),
            (r#"{"fractional":[["v2"],["v1",3]]}"#, 25_000),
            (r#"{"fractional":[["v2",1],["v1",99999]]}"#, 1),
            (r#"{"fractional":[["v2",0],["v1",1]]}"#, 0),
            (r#"{"fractional":[{"var":"targetingKey"},["v2",1],["v1",1]]}"#, 50_000),
            (
                r#"{"fractional":[{"cat":[{"var":"$flagd.flagKey"},{"var":"targetingKey"}]},["v2",1],["v1",0]]}"#,
                100_000,
            ),
            ("{}", 0),
            ("null", 0),
        ];
        for (text, parts) in cases {
            let flag = targeting(text).unwrap();
            assert_eq!(flag.share(), Some(Weight(parts)), "{text}");
            assert_eq!(Flag::parse(flag.key(), &flag.to_json()), Ok(flag), "{text}");
        }
        let json = targeting(cases[0].0).unwrap().to_json();
        assert!(json.contains(r#""targeting":{"fractional":[["v2",10000],["v1",90000]]}"#), "{json}");
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let cases = [
            (r#","targeting":{"if":[true,"v2","v1"]}"#, r#"operator "if" is not supported"#),
            (r#","targeting":{"fractional":[{"sem_ver":[]},["v2",1],["v1",1]]}"#, r#"operator "sem_ver""#),
            (r#","targeting":{"fractional":[["v2",{"var":"w"}],["v1",1]]}"#, r#"operator "var""#),
            (r#","targeting":{"fractional":[{"var":"email"},["v2",1],["v1",1]]}"#, r#"{"var":"email"} does not name"#),
            (r#","targeting":{"fractional":[["v1",90],["v2",10]]}"#, r#"fractional.v2 "v1" stands where v2 must"#),
            (r#","targeting":{"fractional":[["v2",10]]}"#, "weights of v2 and v1"),
            (r#","targeting":{"fractional":[["v2",-1],["v1",1]]}"#, "fractional.v2 -1 is not a whole weight"),
            (r#","targeting":{"fractional":[["v2",1],["v1",0.5]]}"#, "fractional.v1 0.5 is not a whole weight"),
            (r#","targeting":{"fractional":[["v2",0],["v1",0]]}"#, "sum to 0"),
            (r#","targeting":{"fractional":[["v2",1],["v1",2147483647]]}"#, "sum to 2147483648"),
            (r#","targeting":{"fractional":[["v2",1],["v1",18446744073709551615]]}"#, "sum to 18446744073709551615"),
            (r#","targeting":{"fractional":[["v2",1],["v1",2]]}"#, "1 of 3, which is not a whole count"),
            (r#","targeting":[]"#, "targeting [] is not an object"),
            (r#","metadata":{"pins":{"NSE_EQ|1":"v9"}}"#, r#"pins.NSE_EQ|1 "v9" is neither v1 nor v2"#),
            (r#","metadata":{"owner":[]}"#, "metadata.owner [] is not a string"),
            (r#","colour":1"#, "unknown field `colour`"),
        ];
        for (extra, expected) in cases {
            let text = engine_flag(extra).unwrap_err().to_string();
            assert!(text.starts_with("flag use_gonum_indicators: ") && text.contains(expected), "{extra}: {text}");
        }
        let cases = [
            ("use_gonum_indicators", r#"{"state":"ON"}"#, "unknown variant `ON`"),
            ("use_gonum_indicators", "{", "EOF"),
            (
                "use_gonum_indicators",
                r#"{"state":"ENABLED","variants":{"v1":"v1","v2":"v1"},"defaultVariant":"v1"}"#,
                "variants.v2",
            ),
            (
                "use_gonum_indicators",
                r#"{"state":"ENABLED","variants":{"v1":"v1","v2":"v2"},"defaultVariant":"v3"}"#,
                "defaultVariant",
            ),
            (
                CACHING_FLAG,
                r#"{"state":"ENABLED","variants":{"on":1},"defaultVariant":"on"}"#,
                "variants.on 1 is not a boolean",
            ),
            (CACHING_FLAG, r#"{"state":"ENABLED","variants":{"on":true},"defaultVariant":"off"}"#, "defaultVariant"),
            (
                CACHE_TTL_FLAG,
                r#"{"state":"ENABLED","variants":{"a":0},"defaultVariant":"a"}"#,
                "variants.a 0 is not a whole number",
            ),
            (
                CACHE_TTL_FLAG,
                r#"{"state":"ENABLED","variants":{"a":1},"defaultVariant":"a","metadata":{"pins":{}}}"#,
                "metadata.pins",
            ),
            ("use_gonum", "{}", "flag \"use_gonum\" is not one of use_dataframe_aggregation, "),
        ];
        for (key, json, expected) in cases {
            let text = Flag::parse(key, json).unwrap_err().to_string();
            assert!(text.contains(expected), "{json}: {text}");
        }
    }

    #[test]
    fn new_share_keeps_state_pins_and_metadata() {
        let flag = engine_flag(r#","metadata":{"owner":"desk","pins":{"NSE_EQ|1":"v2"}}"#).unwrap();
        let grown = flag.with_share(Weight(500)).unwrap();
        assert_eq!(grown.share(), Some(Weight(500)));
        assert!(grown.to_json().contains(r#""owner":"desk","pins":{"NSE_EQ|1":"v2"}"#), "{}", grown.to_json());
        assert_eq!(Flag::parse(grown.key(), &grown.to_json()), Ok(grown));
    }
}

//! The decision: which engine answers a targeting key, and why.

use std::fmt;
use std::time::Duration;

use crate::flag::{CACHE_TTL_FLAG, CACHING_FLAG, EngineRule, Flag, KEYS, Rule, State};
use crate::{Engine, Error, Subject, Weight, bucket};

/// Where a decision came from, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The flag is disabled: V1, whatever the header says.
    KillSwitch,
    /// The authorised header `candlemesh-engine`.
    Header,
    Pin,
    /// A targeting rule. No definition accepted today yields it.
    Rule,
    Fraction,
    /// No targeting: the default variant.
    Default,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    pub engine: Engine,
    pub reason: Reason,
}

/// The engines of one request, decided once at the gateway and sent inward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decisions {
    pub aggregation: Decision,
    pub indicator: Decision,
    pub sequence: Decision,
}

/// An immutable snapshot of all flags, compiled. Share it behind an atomic pointer; deciding takes no lock and no allocation.
#[derive(Debug, Clone, PartialEq)]
pub struct Flags {
    /// In the order of `KEYS`.
    flags: [Flag; KEYS.len()],
    aggregation: EngineRule,
    indicator: EngineRule,
    sequence: EngineRule,
    caching: bool,
    cache_ttl: Duration,
}

impl Reason {
    const ALL: [Reason; 6] =
        [Reason::KillSwitch, Reason::Header, Reason::Pin, Reason::Rule, Reason::Fraction, Reason::Default];

    pub fn as_str(self) -> &'static str {
        match self {
            Reason::KillSwitch => "kill_switch",
            Reason::Header => "header",
            Reason::Pin => "pin",
            Reason::Rule => "rule",
            Reason::Fraction => "fraction",
            Reason::Default => "default",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Decisions {
    pub fn of(&self, subject: Subject) -> Decision {
        match subject {
            Subject::Aggregation => self.aggregation,
            Subject::Indicator => self.indicator,
            Subject::Sequence => self.sequence,
        }
    }

    /// Header text: `aggregation=v2;fraction,indicator=v1;header,sequence=v1;default`.
    pub fn encode(&self) -> String {
        let part = |subject| {
            let Decision { engine, reason } = self.of(subject);
            format!("{subject}={engine};{reason}")
        };
        Subject::ALL.map(part).join(",")
    }

    /// Parses [`Decisions::encode`]'s text; each subject must appear once, in that order.
    pub fn parse(text: &str) -> Result<Decisions, Error> {
        let mut parts = text.split(',');
        let mut next = |subject| parse_decision(subject, parts.next().unwrap_or_default());
        let decisions = Decisions {
            aggregation: next(Subject::Aggregation)?,
            indicator: next(Subject::Indicator)?,
            sequence: next(Subject::Sequence)?,
        };
        match parts.next() {
            Some(rest) => Err(Error::Header { reason: format!("has {:?} after sequence", crate::flag::excerpt(rest)) }),
            None => Ok(decisions),
        }
    }
}

impl Flags {
    /// The shipped set: every engine flag enabled with V2 at 0 %, caching on, lifetime 15 minutes.
    pub fn default_set() -> Flags {
        let engine = r#"{"state":"ENABLED","variants":{"v1":"v1","v2":"v2"},"defaultVariant":"v1","targeting":{"fractional":[["v2",0],["v1",100000]]}}"#;
        let flags = KEYS.map(|key| {
            let json = match key {
                CACHING_FLAG => r#"{"state":"ENABLED","variants":{"on":true,"off":false},"defaultVariant":"on"}"#,
                CACHE_TTL_FLAG => r#"{"state":"ENABLED","variants":{"default":15},"defaultVariant":"default"}"#,
                _ => engine,
            };
            Flag::parse(key, json).expect("shipped definitions parse")
        });
        Flags::compile(flags)
    }

    /// The shipped set with the given `(key, flagd definition)` pairs in place of its own. Errors: unknown key, key twice, bad definition.
    pub fn from_definitions<K: AsRef<str>, J: AsRef<str>>(
        definitions: impl IntoIterator<Item = (K, J)>,
    ) -> Result<Flags, Error> {
        let mut flags = Flags::default_set().flags;
        let mut seen = [false; KEYS.len()];
        for (key, json) in definitions {
            let flag = Flag::parse(key.as_ref(), json.as_ref())?;
            let index = position(&flag);
            if std::mem::replace(&mut seen[index], true) {
                return Err(Error::DuplicateFlag { key: flag.key().to_owned() });
            }
            flags[index] = flag;
        }
        Ok(Flags::compile(flags))
    }

    /// A snapshot with one flag replaced.
    pub fn with(&self, flag: Flag) -> Flags {
        let mut flags = self.flags.clone();
        let index = position(&flag);
        flags[index] = flag;
        Flags::compile(flags)
    }

    /// All flags, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = &Flag> {
        self.flags.iter()
    }

    pub fn get(&self, key: &str) -> Option<&Flag> {
        self.flags.iter().find(|flag| flag.key() == key)
    }

    /// The flag that chooses a service's engine.
    pub fn engine_flag(&self, subject: Subject) -> &Flag {
        &self.flags[subject as usize]
    }

    /// Decides the engine of a service for a targeting key: the instrument, else the caller's identity, else the tenant.
    ///
    /// Order: kill switch, `forced` (the authorised header), pin, fraction, default variant.
    pub fn decide(&self, subject: Subject, targeting_key: &str, forced: Option<Engine>) -> Decision {
        let rule = match subject {
            Subject::Aggregation => &self.aggregation,
            Subject::Indicator => &self.indicator,
            Subject::Sequence => &self.sequence,
        };
        let (engine, reason) = if rule.state == State::Disabled {
            (Engine::V1, Reason::KillSwitch)
        } else if let Some(engine) = forced {
            (engine, Reason::Header)
        } else if let Some(engine) = rule.pins.get(targeting_key) {
            (*engine, Reason::Pin)
        } else if let Some(share) = rule.share {
            (side(share, bucket(subject.flag_key(), targeting_key)), Reason::Fraction)
        } else {
            (rule.default, Reason::Default)
        };
        Decision { engine, reason }
    }

    pub fn decide_all(&self, targeting_key: &str, forced: Option<Engine>) -> Decisions {
        Decisions {
            aggregation: self.decide(Subject::Aggregation, targeting_key, forced),
            indicator: self.decide(Subject::Indicator, targeting_key, forced),
            sequence: self.decide(Subject::Sequence, targeting_key, forced),
        }
    }

    pub fn is_caching_enabled(&self) -> bool {
        self.caching
    }

    pub fn cache_ttl(&self) -> Duration {
        self.cache_ttl
    }

    fn compile(flags: [Flag; KEYS.len()]) -> Flags {
        let [aggregation, indicator, sequence, caching, cache_ttl] = flags.each_ref().map(Flag::rule);
        match (aggregation, indicator, sequence, caching, cache_ttl) {
            (
                Rule::Engine(aggregation),
                Rule::Engine(indicator),
                Rule::Engine(sequence),
                Rule::Caching(caching),
                Rule::CacheTtl(ttl),
            ) => Flags {
                aggregation: aggregation.clone(),
                indicator: indicator.clone(),
                sequence: sequence.clone(),
                caching: *caching,
                cache_ttl: *ttl,
                flags,
            },
            _ => {
                unreachable!("Flag::parse derives the kind of rule from the key, and flags stand in the order of KEYS")
            }
        }
    }
}

impl Default for Flags {
    fn default() -> Flags {
        Flags::default_set()
    }
}

/// V2 owns the buckets below its share, so a growing share only adds keys and a shrinking one takes the last added first.
fn side(share: Weight, bucket: u32) -> Engine {
    if bucket < share.parts() { Engine::V2 } else { Engine::V1 }
}

fn position(flag: &Flag) -> usize {
    KEYS.iter().position(|key| *key == flag.key()).expect("Flag::parse takes keys from KEYS")
}

fn parse_decision(subject: Subject, part: &str) -> Result<Decision, Error> {
    let refused =
        || Error::Header { reason: format!("{:?} is not {subject}=<engine>;<reason>", crate::flag::excerpt(part)) };
    let value = part.strip_prefix(subject.as_str()).and_then(|rest| rest.strip_prefix('=')).ok_or_else(refused)?;
    let (engine, reason) = value.split_once(';').ok_or_else(refused)?;
    let reason = Reason::ALL.into_iter().find(|known| known.as_str() == reason).ok_or_else(refused)?;
    Ok(Decision { engine: engine.parse()?, reason })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SUBJECT: Subject = Subject::Indicator;

    fn keys(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("NSE_EQ|INE{i:06}")).collect()
    }

    fn at_share(subject: Subject, parts: u32) -> Flags {
        let flags = Flags::default_set();
        let flag = flags.engine_flag(subject).clone().with_share(Weight::from_parts(parts).unwrap()).unwrap();
        flags.with(flag)
    }

    fn on_v2<'a>(flags: &Flags, keys: &'a [String]) -> BTreeSet<&'a str> {
        let chosen = keys.iter().filter(|key| flags.decide(SUBJECT, key, None).engine == Engine::V2);
        chosen.map(String::as_str).collect()
    }

    fn engine_json(state: &str, rest: &str) -> String {
        format!(r#"{{"state":"{state}","variants":{{"v1":"v1","v2":"v2"}},"defaultVariant":"v2"{rest}}}"#)
    }

    #[test]
    fn growth_moves_no_one_back_and_shrinking_is_last_in_first_out() {
        let edges = [(0, 0, Engine::V1), (1, 0, Engine::V2), (1, 1, Engine::V1), (100_000, 99_999, Engine::V2)];
        for (parts, bucket, engine) in edges {
            assert_eq!(side(Weight::from_parts(parts).unwrap(), bucket), engine, "bucket {bucket} at {parts}");
        }
        let keys = keys(2000);
        let weights = [0, 1, 50, 1_000, 1_001, 5_000, 10_000, 33_333, 50_000, 75_000, 99_999, 100_000];
        let mut admitted: Vec<BTreeSet<&str>> = Vec::new();
        for parts in weights {
            let now = on_v2(&at_share(SUBJECT, parts), &keys);
            assert!(admitted.last().is_none_or(|before| before.is_subset(&now)), "{parts}");
            admitted.push(now);
        }
        assert_eq!((admitted[0].len(), admitted[weights.len() - 1].len()), (0, 2000));
        // On the way down the same sets come back, in reverse: who came last leaves first.
        let mut flags = at_share(SUBJECT, 100_000);
        for (parts, before) in weights.into_iter().zip(&admitted).rev() {
            let flag = flags.engine_flag(SUBJECT).clone().with_share(Weight::from_parts(parts).unwrap()).unwrap();
            flags = flags.with(flag);
            assert_eq!(on_v2(&flags, &keys), *before, "{parts}");
        }
    }

    #[test]
    fn shares_are_met_and_flags_are_independent() {
        // Critical values of chi-square at p = 0.001: 10.828 for 1 degree of freedom, 148.23 for 99.
        const COUNT: usize = 20_000;
        let keys = keys(COUNT);
        let chi = |observed: usize, expected: f64| (observed as f64 - expected).powi(2) / expected;
        for parts in [1_000, 10_000, 50_000] {
            let v2 = on_v2(&at_share(SUBJECT, parts), &keys).len();
            let expected = COUNT as f64 * f64::from(parts) / 100_000.0;
            let statistic = chi(v2, expected) + chi(COUNT - v2, COUNT as f64 - expected);
            assert!(statistic < 10.828, "{v2} of {COUNT} at {parts}: {statistic}");
        }
        for subject in Subject::ALL {
            let mut cells = [0; 100];
            keys.iter().for_each(|key| cells[bucket(subject.flag_key(), key) as usize / 1000] += 1);
            let statistic: f64 = cells.iter().map(|n| chi(*n, COUNT as f64 / 100.0)).sum();
            assert!(statistic < 148.23, "{subject}: {statistic}");
        }
        // Both flags at 50 %: the four combinations are equally likely, 3 degrees of freedom, critical value 16.266.
        let mut cells = [0; 4];
        for key in &keys {
            let upper = |subject: Subject| usize::from(bucket(subject.flag_key(), key) >= 50_000);
            cells[2 * upper(Subject::Aggregation) + upper(Subject::Sequence)] += 1;
        }
        let statistic: f64 = cells.iter().map(|n| chi(*n, COUNT as f64 / 4.0)).sum();
        assert!(statistic < 16.266, "{cells:?}: {statistic}");
    }

    #[test]
    fn order_is_kill_switch_header_pin_fraction_default() {
        let rest = r#","targeting":{"fractional":[["v2",1],["v1",0]]},"metadata":{"pins":{"NSE_EQ|1":"v1"}}"#;
        let decide = |state, rest, key, forced| {
            let flags = Flags::from_definitions([(SUBJECT.flag_key(), engine_json(state, rest))]).unwrap();
            let Decision { engine, reason } = flags.decide(SUBJECT, key, forced);
            (engine, reason)
        };
        assert_eq!(decide("DISABLED", rest, "NSE_EQ|2", Some(Engine::V2)), (Engine::V1, Reason::KillSwitch));
        assert_eq!(decide("ENABLED", rest, "NSE_EQ|1", Some(Engine::V2)), (Engine::V2, Reason::Header));
        assert_eq!(decide("ENABLED", rest, "NSE_EQ|2", Some(Engine::V1)), (Engine::V1, Reason::Header));
        assert_eq!(decide("ENABLED", rest, "NSE_EQ|1", None), (Engine::V1, Reason::Pin));
        assert_eq!(decide("ENABLED", rest, "NSE_EQ|2", None), (Engine::V2, Reason::Fraction));
        assert_eq!(decide("ENABLED", "", "NSE_EQ|2", None), (Engine::V2, Reason::Default));
    }

    #[test]
    fn default_set_serves_v1_and_caches() {
        let flags = Flags::default_set();
        let all = flags.decide_all("NSE_EQ|1", None);
        for (subject, flag) in Subject::ALL.into_iter().zip(flags.iter()) {
            assert_eq!(flag.key(), subject.flag_key());
            assert_eq!(all.of(subject), Decision { engine: Engine::V1, reason: Reason::Fraction });
        }
        assert!(flags.is_caching_enabled());
        assert_eq!(flags.cache_ttl(), Duration::from_secs(900));
        let round = flags.iter().map(|flag| (flag.key(), flag.to_json()));
        assert_eq!(Flags::from_definitions(round), Ok(flags.clone()));
    }

    #[test]
    fn definitions_replace_their_flag_only() {
        let ttl = r#"{"state":"ENABLED","variants":{"short":2,"long":60},"defaultVariant":"short"}"#;
        let off = r#"{"state":"DISABLED","variants":{"on":true},"defaultVariant":"on"}"#;
        let flags = Flags::from_definitions([(CACHE_TTL_FLAG, ttl), (CACHING_FLAG, off)]).unwrap();
        assert_eq!((flags.is_caching_enabled(), flags.cache_ttl()), (false, Duration::from_secs(120)));
        assert_eq!(flags.engine_flag(SUBJECT), Flags::default_set().engine_flag(SUBJECT));
        let twice = Flags::from_definitions([(CACHE_TTL_FLAG, ttl), (CACHE_TTL_FLAG, ttl)]);
        assert_eq!(twice, Err(Error::DuplicateFlag { key: CACHE_TTL_FLAG.to_owned() }));
    }

    #[test]
    fn header_round_trips_and_refuses_by_name() {
        let text = "aggregation=v2;fraction,indicator=v1;header,sequence=v1;default";
        assert_eq!(Decisions::parse(text).unwrap().encode(), text);
        for engine in [Engine::V1, Engine::V2] {
            for reason in Reason::ALL {
                let one = Decision { engine, reason };
                let other = Decision { engine: Engine::V1, reason: Reason::Pin };
                let decisions = Decisions { aggregation: other, indicator: one, sequence: other };
                assert_eq!(Decisions::parse(&decisions.encode()), Ok(decisions));
            }
        }
        let cases = [
            ("", r#""" is not aggregation="#),
            ("aggregation=v2;fraction", r#""" is not indicator="#),
            (
                "indicator=v2;fraction,aggregation=v1;pin,sequence=v1;pin",
                r#""indicator=v2;fraction" is not aggregation="#,
            ),
            ("aggregation=v3;fraction", r#"engine "v3""#),
            ("aggregation=v2;luck", r#""aggregation=v2;luck" is not"#),
            (&format!("{text},x=v1;pin"), r#"has "x=v1;pin" after sequence"#),
        ];
        for (text, expected) in cases {
            let error = Decisions::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}

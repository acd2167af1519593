//! A study's specification: checked, in one spelling, and as it is stored.

use kernels::backtest::Outcome;
use market::{InstrumentKey, TimeRange, Timeframe};
use prost::Message;
use proto::convert::{self, FieldError};
use proto::json;
use proto::optimizer as pb;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::space::{Axis, Family, MAX_TRIALS, MAX_VALUES, MIN_STEP, Parameter, Search, Space};

const MAX_INSTRUMENTS: usize = 100;
const MAX_FOLDS: u32 = 20;
const MAX_FEE_BP: f64 = 1000.0;
/// Share of a step by which a range may miss its last value, which adding decimals can lose.
const STOP_SLACK: f64 = 1e-6;
/// A drawdown counts as at least a basis point, so that return over drawdown is finite.
const MIN_DRAWDOWN: f64 = 1e-4;

const MESSAGE: &str = "candlemesh.optimizer.v1.StudySpec";

/// What trials are ranked by; higher is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Objective {
    Sharpe,
    TotalReturn,
    Calmar,
}

impl Objective {
    /// Finite where the outcome is. Calmar: total return over maximum drawdown, the latter taken as 1 bp where it is less.
    pub(crate) fn of(self, outcome: &Outcome) -> f64 {
        match self {
            Objective::Sharpe => outcome.sharpe,
            Objective::TotalReturn => outcome.total_return,
            Objective::Calmar => outcome.total_return / outcome.max_drawdown.max(MIN_DRAWDOWN),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Objective::Sharpe => "sharpe",
            Objective::TotalReturn => "total_return",
            Objective::Calmar => "calmar",
        }
    }
}

/// A specification that can be run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spec {
    pub(crate) space: Space,
    pub(crate) search: Search,
    pub(crate) objective: Objective,
    /// Distinct, in the order given.
    pub(crate) keys: Vec<InstrumentKey>,
    pub(crate) timeframe: Timeframe,
    pub(crate) range: TimeRange,
    pub(crate) folds: usize,
    pub(crate) fee_bp: f64,
    /// The same in its one spelling: parameters in the strategy's order, steps filled in, keys and timeframe normalised.
    pub(crate) message: pb::StudySpec,
}

/// A specification and the data it is pinned to, as the store keeps them.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    spec: Value,
    /// Data revision of each instrument when the study was created: a study sees the same candles however often it is resumed.
    revisions: Vec<u64>,
}

impl Spec {
    /// Checks a specification; a refusal names the field, seen from the request.
    pub(crate) fn parse(message: &pb::StudySpec) -> Result<Spec, FieldError> {
        let family = family(message.strategy)?;
        let space = Space::new(family, axes(family, &message.parameters)?);
        if space.len() == 0 {
            let names = family.parameters();
            let [smaller, larger] = [names[names.len() - 2].name, names[names.len() - 1].name];
            return Err(refuse("parameters", format!("no combination has {smaller} below {larger}")));
        }
        let search = search(message, &space)?;
        let objective = objective(message.objective)?;
        let in_spec = |error: FieldError| FieldError { field: format!("spec.{}", error.field), ..error };
        let keys = convert::instrument_keys("instrument_keys", &message.instrument_keys, MAX_INSTRUMENTS);
        let keys = keys.map_err(in_spec)?;
        let timeframe = convert::timeframe("timeframe", &message.timeframe, None).map_err(in_spec)?;
        let range = convert::time_range(message.range.as_ref()).map_err(in_spec)?;
        if message.folds > MAX_FOLDS {
            return Err(refuse("folds", format!("{} given; accepted: 0 to {MAX_FOLDS}", message.folds)));
        }
        if !(0.0..=MAX_FEE_BP).contains(&message.fee_bp) {
            return Err(refuse("fee_bp", format!("{} given; accepted: 0 to {MAX_FEE_BP}", message.fee_bp)));
        }
        let normal = pb::StudySpec {
            parameters: normal_parameters(family, &space),
            instrument_keys: keys.iter().map(ToString::to_string).collect(),
            timeframe: timeframe.to_string(),
            range: Some(convert::wire_range(range)),
            ..message.clone()
        };
        let (folds, fee_bp) = (message.folds as usize, message.fee_bp);
        Ok(Spec { space, search, objective, keys, timeframe, range, folds, fee_bp, message: normal })
    }

    /// The stored form, with the revisions of the instruments in their order.
    pub(crate) fn store(&self, revisions: Vec<u64>) -> Result<String, String> {
        let descriptor = json::pool().get_message_by_name(MESSAGE).ok_or_else(unknown_message)?;
        let spec = json::decode(descriptor, &self.message.encode_to_vec()).map_err(|error| error.to_string())?;
        serde_json::to_string(&Stored { spec, revisions }).map_err(|error| error.to_string())
    }

    /// Reads the stored form back: specification and revisions.
    pub(crate) fn load(stored: &str) -> Result<(Spec, Vec<u64>), String> {
        let (message, revisions) = message(stored)?;
        let spec = Spec::parse(&message).map_err(|error| error.to_string())?;
        if revisions.len() != spec.keys.len() {
            return Err(format!("{} revisions for {} instruments", revisions.len(), spec.keys.len()));
        }
        Ok((spec, revisions))
    }

    /// Whether a stored study has this specification. Both go through the stored form, which may round a last digit.
    pub(crate) fn is_stored_as(&self, stored: &str) -> Result<bool, String> {
        let read = |text: &str| serde_json::from_str::<Stored>(text).map_err(|error| error.to_string());
        Ok(read(stored)?.spec == read(&self.store(Vec::new())?)?.spec)
    }
}

/// The message of a stored specification and its revisions, without checking it again.
pub(crate) fn message(stored: &str) -> Result<(pb::StudySpec, Vec<u64>), String> {
    let stored: Stored = serde_json::from_str(stored).map_err(|error| error.to_string())?;
    let descriptor = json::pool().get_message_by_name(MESSAGE).ok_or_else(unknown_message)?;
    let bytes = json::encode(descriptor, stored.spec.to_string().as_bytes()).map_err(|error| error.to_string())?;
    let message = pb::StudySpec::decode(bytes.as_slice()).map_err(|error| error.to_string())?;
    Ok((message, stored.revisions))
}

fn unknown_message() -> String {
    format!("{MESSAGE} is not part of the descriptor set")
}

fn refuse(field: &str, reason: impl ToString) -> FieldError {
    FieldError::new(format!("spec.{field}"), reason)
}

fn family(value: i32) -> Result<Family, FieldError> {
    match pb::Strategy::try_from(value) {
        Ok(pb::Strategy::SmaCrossover) => Ok(Family::SmaCrossover),
        Ok(pb::Strategy::EmaCrossover) => Ok(Family::EmaCrossover),
        Ok(pb::Strategy::RsiReversion) => Ok(Family::RsiReversion),
        Ok(pb::Strategy::Unspecified) => Err(refuse("strategy", "must be set")),
        Err(_) => Err(refuse("strategy", format!("{value} is not a strategy"))),
    }
}

fn objective(value: i32) -> Result<Objective, FieldError> {
    match pb::Objective::try_from(value) {
        Ok(pb::Objective::Sharpe) => Ok(Objective::Sharpe),
        Ok(pb::Objective::TotalReturn) => Ok(Objective::TotalReturn),
        Ok(pb::Objective::Calmar) => Ok(Objective::Calmar),
        Ok(pb::Objective::Unspecified) => Err(refuse("objective", "must be set")),
        Err(_) => Err(refuse("objective", format!("{value} is not an objective"))),
    }
}

fn search(message: &pb::StudySpec, space: &Space) -> Result<Search, FieldError> {
    match pb::Search::try_from(message.search) {
        Ok(pb::Search::Grid) if space.len() > MAX_TRIALS => {
            let reason = format!("{} combinations; a grid has at most {MAX_TRIALS}", space.len());
            Err(refuse("parameters", reason))
        }
        Ok(pb::Search::Grid) => Ok(Search::Grid),
        Ok(pb::Search::Random) if !(1..=MAX_TRIALS).contains(&u64::from(message.budget)) => {
            Err(refuse("budget", format!("{} given; accepted: 1 to {MAX_TRIALS}", message.budget)))
        }
        Ok(pb::Search::Random) => Ok(Search::Random { budget: message.budget, seed: message.seed }),
        Ok(pb::Search::Unspecified) => Err(refuse("search", "must be set")),
        Err(_) => Err(refuse("search", format!("{} is not a search", message.search))),
    }
}

/// One axis per parameter of the family, in its order.
fn axes(family: Family, ranges: &[pb::ParameterRange]) -> Result<Vec<Axis>, FieldError> {
    let parameters = family.parameters();
    for (index, range) in ranges.iter().enumerate() {
        let field = format!("parameters[{index}].name");
        if !parameters.iter().any(|parameter| parameter.name == range.name) {
            let accepted: Vec<_> = parameters.iter().map(|parameter| parameter.name).collect();
            let given: String = range.name.chars().take(64).collect();
            return Err(refuse(&field, format!("'{given}' given; {} has {}", family.name(), accepted.join(", "))));
        }
        if ranges[..index].iter().any(|earlier| earlier.name == range.name) {
            return Err(refuse(&field, format!("'{}' is given twice", range.name)));
        }
    }
    let axis_of = |parameter: &Parameter| match ranges.iter().position(|range| range.name == parameter.name) {
        Some(index) => axis(&format!("parameters[{index}]"), parameter, &ranges[index]),
        None => Err(refuse("parameters", format!("'{}' of {} is missing", parameter.name, family.name()))),
    };
    parameters.iter().map(axis_of).collect()
}

fn axis(field: &str, parameter: &Parameter, range: &pb::ParameterRange) -> Result<Axis, FieldError> {
    let Parameter { min, max, whole, .. } = *parameter;
    let step = if range.step == 0.0 { 1.0 } else { range.step };
    let refuse_part = |part: &str, value: f64, accepted: String| {
        Err(refuse(&format!("{field}.{part}"), format!("{value} given for {}; accepted: {accepted}", parameter.name)))
    };
    for (part, value) in [("start", range.start), ("stop", range.stop)] {
        if !(min..=max).contains(&value) {
            return refuse_part(part, value, format!("{min} to {max}"));
        }
    }
    if range.stop < range.start {
        return refuse_part("stop", range.stop, format!("start ({}) or more", range.start));
    }
    if !(step.is_finite() && step >= MIN_STEP) {
        return refuse_part("step", step, format!("{MIN_STEP} or more"));
    }
    for (part, value) in [("start", range.start), ("step", step)] {
        if whole && value.fract() != 0.0 {
            return refuse_part(part, value, "whole numbers".to_owned());
        }
    }
    let count = ((range.stop - range.start) / step + STOP_SLACK).floor() as u64 + 1;
    if count > MAX_VALUES {
        return refuse_part("step", step, format!("steps that give at most {MAX_VALUES} values, not {count}"));
    }
    Ok(Axis { start: range.start, stop: range.stop, step, count })
}

fn normal_parameters(family: Family, space: &Space) -> Vec<pb::ParameterRange> {
    let named = family.parameters().iter().zip(space.axes());
    let range = |(parameter, axis): (&Parameter, &Axis)| pb::ParameterRange {
        name: parameter.name.to_owned(),
        start: axis.start,
        stop: axis.stop,
        step: axis.step,
    };
    named.map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(name: &str, start: f64, stop: f64, step: f64) -> pb::ParameterRange {
        pb::ParameterRange { name: name.into(), start, stop, step }
    }

    fn good() -> pb::StudySpec {
        pb::StudySpec {
            strategy: pb::Strategy::SmaCrossover.into(),
            parameters: vec![range("slow", 20.0, 50.0, 10.0), range("fast", 5.0, 15.0, 0.0)],
            search: pb::Search::Grid.into(),
            objective: pb::Objective::Sharpe.into(),
            instrument_keys: vec!["us|SPY".into(), "US|SPY".into(), "NSE_EQ|X".into()],
            timeframe: "day".into(),
            seed: u64::MAX,
            fee_bp: 0.1 + 0.2,
            ..Default::default()
        }
    }

    #[test]
    fn a_specification_has_one_spelling_and_survives_the_store() {
        let spec = Spec::parse(&good()).unwrap();
        assert_eq!(spec.message.instrument_keys, ["US|SPY", "NSE_EQ|X"]);
        assert_eq!((spec.message.timeframe.as_str(), spec.space.len()), ("1d", 11 * 4));
        assert_eq!(spec.message.parameters, [range("fast", 5.0, 15.0, 1.0), range("slow", 20.0, 50.0, 10.0)]);
        let stored = spec.store(vec![3, u64::MAX]).unwrap();
        let (again, revisions) = Spec::load(&stored).unwrap();
        assert_eq!((again.message, revisions), (spec.message.clone(), vec![3, u64::MAX]));
        assert!(spec.is_stored_as(&stored).unwrap());
        let other = Spec::parse(&pb::StudySpec { seed: 1, ..good() }).unwrap();
        assert!(!other.is_stored_as(&stored).unwrap());
        assert!(Spec::load("{}").is_err() && Spec::load(&spec.store(vec![]).unwrap()).is_err());
    }

    #[test]
    fn every_refusal_names_its_field() {
        let with = |parameters: &[pb::ParameterRange]| pb::StudySpec { parameters: parameters.to_vec(), ..good() };
        let fast = range("fast", 5.0, 15.0, 1.0);
        let slow = |start, stop, step| range("slow", start, stop, step);
        let reversion = pb::StudySpec {
            strategy: pb::Strategy::RsiReversion.into(),
            parameters: vec![
                range("period", 2.0, 50.0, 1.0),
                range("lower", 1.0, 50.0, 1.0),
                range("upper", 51.0, 99.0, 1.0),
            ],
            ..good()
        };
        for (message, field) in [
            (pb::StudySpec { strategy: 0, ..good() }, "strategy"),
            (pb::StudySpec { strategy: 9, ..good() }, "strategy"),
            (pb::StudySpec { search: 0, ..good() }, "search"),
            (pb::StudySpec { search: -1, ..good() }, "search"),
            (pb::StudySpec { objective: 0, ..good() }, "objective"),
            (pb::StudySpec { objective: 7, ..good() }, "objective"),
            (with(std::slice::from_ref(&fast)), "parameters"),
            (with(&[fast.clone(), fast.clone()]), "parameters[1].name"),
            (with(&[fast.clone(), slow(20.0, 50.0, 1.0), range("period", 1.0, 2.0, 1.0)]), "parameters[2].name"),
            (with(&[fast.clone(), slow(20.0, 50.0, -1.0)]), "parameters[1].step"),
            (with(&[fast.clone(), slow(20.0, 50.0, f64::NAN)]), "parameters[1].step"),
            (with(&[fast.clone(), slow(20.0, 50.0, 0.5)]), "parameters[1].step"),
            (with(&[fast.clone(), slow(20.5, 50.0, 1.0)]), "parameters[1].start"),
            (with(&[fast.clone(), slow(1.0, 50.0, 1.0)]), "parameters[1].start"),
            (with(&[fast.clone(), slow(20.0, 10_001.0, 1.0)]), "parameters[1].stop"),
            (with(&[fast.clone(), slow(20.0, 19.0, 1.0)]), "parameters[1].stop"),
            (with(&[range("fast", 60.0, 70.0, 1.0), slow(20.0, 60.0, 1.0)]), "parameters"),
            (reversion.clone(), "parameters"),
            (pb::StudySpec { search: pb::Search::Random.into(), ..reversion.clone() }, "budget"),
            (pb::StudySpec { search: pb::Search::Random.into(), budget: 100_001, ..reversion }, "budget"),
            (pb::StudySpec { instrument_keys: vec![], ..good() }, "instrument_keys"),
            (pb::StudySpec { instrument_keys: vec!["US|A".into(), "oops".into()], ..good() }, "instrument_keys[1]"),
            (
                pb::StudySpec { instrument_keys: (0..101).map(|n| format!("US|{n}")).collect(), ..good() },
                "instrument_keys",
            ),
            (pb::StudySpec { timeframe: "7m".into(), ..good() }, "timeframe"),
            (pb::StudySpec { timeframe: String::new(), ..good() }, "timeframe"),
            (pb::StudySpec { folds: 21, ..good() }, "folds"),
            (pb::StudySpec { fee_bp: -0.1, ..good() }, "fee_bp"),
            (pb::StudySpec { fee_bp: f64::NAN, ..good() }, "fee_bp"),
        ] {
            assert_eq!(Spec::parse(&message).unwrap_err().field, format!("spec.{field}"), "{message:?}");
        }
    }

    #[test]
    fn fractional_steps_reach_the_stop_and_never_pass_it() {
        let parameters = vec![
            range("period", 14.0, 14.0, 1.0),
            range("lower", 0.0, 0.3, 0.1),
            range("upper", 0.0, 100.0, 33.333_333_4),
        ];
        let message = pb::StudySpec { strategy: pb::Strategy::RsiReversion.into(), parameters, ..good() };
        let space = Spec::parse(&message).unwrap().space;
        assert_eq!((space.axes()[1].count, space.axes()[1].last()), (4, 0.3));
        assert!((0..space.len()).all(|index| space.strategy(index).check().is_ok()));
    }

    #[test]
    fn return_over_no_drawdown_is_finite() {
        let outcome = |total_return, max_drawdown| Outcome { total_return, max_drawdown, ..Default::default() };
        assert_eq!(Objective::Calmar.of(&outcome(0.5, 0.25)), 2.0);
        assert_eq!(Objective::Calmar.of(&outcome(0.5, 0.0)), 5000.0);
        assert_eq!(Objective::Calmar.of(&outcome(0.0, 0.0)), 0.0);
    }
}

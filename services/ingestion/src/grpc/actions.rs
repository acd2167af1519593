//! Corporate actions on the wire.

use std::collections::HashSet;

use market::{ActionKind, CorporateAction, InstrumentKey};
use proto::convert::{self, FieldError};
use proto::ingestion as pb;

use crate::engine::{Engine, Error, Result};

/// Actions of one PutCorporateActions.
const MAX_ACTIONS: usize = 10_000;

pub(super) async fn put(
    engine: &Engine,
    request: pb::PutCorporateActionsRequest,
) -> Result<pb::PutCorporateActionsResponse> {
    let put = engine.put_actions(&parse(&request.actions)?).await?;
    let count = |actions: u64| u32::try_from(actions).unwrap_or(u32::MAX);
    Ok(pb::PutCorporateActionsResponse { stored: count(put.stored), unchanged: count(put.unchanged) })
}

pub(super) async fn list(
    engine: &Engine,
    request: pb::ListCorporateActionsRequest,
) -> Result<pb::ListCorporateActionsResponse> {
    let key = convert::instrument_key("instrument_key", &request.instrument_key)?;
    let actions = engine.actions(&key).await?;
    Ok(pb::ListCorporateActionsResponse {
        actions: actions.iter().map(|action| convert::wire_action(&key, action)).collect(),
    })
}

pub(super) async fn delete(
    engine: &Engine,
    request: pb::DeleteCorporateActionRequest,
) -> Result<pb::DeleteCorporateActionResponse> {
    let key = convert::instrument_key("instrument_key", &request.instrument_key)?;
    let ex_date = market::parse_date(&request.ex_date).map_err(|error| FieldError::new("ex_date", error))?;
    let kind = match pb::ActionKind::try_from(request.kind) {
        Ok(pb::ActionKind::Split) => ActionKind::Split,
        Ok(pb::ActionKind::Dividend) => ActionKind::Dividend,
        Ok(pb::ActionKind::Unspecified) | Err(_) => {
            let reason = format!("{} given; accepted: ACTION_KIND_SPLIT, ACTION_KIND_DIVIDEND", request.kind);
            return Err(FieldError::new("kind", reason).into());
        }
    };
    engine.delete_action(&key, ex_date, kind).await?;
    Ok(pb::DeleteCorporateActionResponse {})
}

fn parse(messages: &[pb::CorporateAction]) -> Result<Vec<(InstrumentKey, CorporateAction)>> {
    let given = messages.len();
    if given == 0 {
        return Err(FieldError::new("actions", format!("0 given; accepted: 1 to {MAX_ACTIONS}")).into());
    }
    if given > MAX_ACTIONS {
        return Err(Error::Limit { field: "actions", given, limit: MAX_ACTIONS });
    }
    let mut seen = HashSet::with_capacity(given);
    let mut actions = Vec::with_capacity(given);
    for (index, message) in messages.iter().enumerate() {
        let field = format!("actions[{index}]");
        let (key, action) = convert::corporate_action(&field, message)?;
        if !seen.insert((key.clone(), action.ex_date, action.kind())) {
            let what = format!("a {} of {key} on {}", action.kind().as_str(), action.ex_date);
            let hint = "an instrument has one of a kind per date, so add amounts of one date up";
            return Err(FieldError::new(field, format!("{what} was given already; {hint}")).into());
        }
        actions.push((key, action));
    }
    Ok(actions)
}

#[cfg(test)]
mod tests {
    use market::ActionTerms;
    use proto::ingestion::corporate_action::Action;

    use super::*;

    fn message(ex_date: &str, action: Option<Action>) -> pb::CorporateAction {
        pb::CorporateAction { instrument_key: "us|AAPL".into(), ex_date: ex_date.into(), action }
    }

    fn dividend(amount: f64) -> Option<Action> {
        Some(Action::Dividend(pb::Dividend { amount }))
    }

    #[test]
    fn actions_are_read_and_written_alike() {
        let split = Some(Action::Split(pb::Split { from: 1.0, to: 7.0 }));
        let parsed = parse(&[message("2014-06-09", split), message("2014-06-09", dividend(0.47))]).unwrap();
        assert_eq!(parsed[0].0.as_str(), "US|AAPL");
        assert_eq!(parsed[0].1.terms, ActionTerms::Split { from: 1.0, to: 7.0 });
        let again = convert::wire_action(&parsed[1].0, &parsed[1].1);
        assert_eq!(
            again,
            pb::CorporateAction { instrument_key: "US|AAPL".into(), ..message("2014-06-09", dividend(0.47)) }
        );
    }

    #[test]
    fn every_refusal_names_its_field() {
        let good = message("2014-06-09", dividend(0.47));
        for (bad, field) in [
            (pb::CorporateAction { instrument_key: "AAPL".into(), ..good.clone() }, "actions[1].instrument_key"),
            (message("2014-06-31", dividend(1.0)), "actions[1].ex_date"),
            (message("", dividend(1.0)), "actions[1].ex_date"),
            (message("2014-06-09", None), "actions[1].action"),
            (message("2014-06-10", dividend(0.0)), "actions[1].dividend.amount"),
            (message("2014-06-10", dividend(f64::NAN)), "actions[1].dividend.amount"),
            (message("2014-06-10", Some(Action::Split(pb::Split { from: 0.0, to: 7.0 }))), "actions[1].split.from"),
            (message("2014-06-10", Some(Action::Split(pb::Split { from: 1.0, to: -7.0 }))), "actions[1].split.to"),
            (good.clone(), "actions[1]"),
        ] {
            let Err(Error::Field(error)) = parse(&[good.clone(), bad.clone()]) else { panic!("{bad:?} is accepted") };
            assert_eq!(error.field, field);
        }
        assert!(matches!(parse(&[]), Err(Error::Field(_))));
        assert!(matches!(parse(&vec![good; 10_001]), Err(Error::Limit { limit: 10_000, .. })));
    }
}

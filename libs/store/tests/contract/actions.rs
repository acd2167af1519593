//! Corporate actions.

use market::{ActionKind, ActionTerms, CorporateAction, InstrumentKey};
use store::{Error, PutActions, Stores};

fn key(text: &str) -> InstrumentKey {
    text.parse().unwrap()
}

fn split(date: &str, from: f64, to: f64) -> CorporateAction {
    CorporateAction { ex_date: date.parse().unwrap(), terms: ActionTerms::Split { from, to } }
}

fn dividend(date: &str, amount: f64) -> CorporateAction {
    CorporateAction { ex_date: date.parse().unwrap(), terms: ActionTerms::Dividend { amount } }
}

pub(crate) async fn actions_are_replaced_by_identity_and_listed_by_date(stores: &Stores) {
    let (a, b) = (key("US|A"), key("US|B"));
    let later = dividend("2014-08-07", 0.47);
    // 0.1 + 0.2 has no short decimal form: values come back to the bit.
    let odd = dividend("2014-06-09", 0.1 + 0.2);
    let seven = split("2014-06-09", 1.0, 7.0);
    let given = [(a.clone(), later), (b.clone(), split("2020-01-02", 2.0, 3.0)), (a.clone(), odd), (a.clone(), seven)];
    let put = stores.actions.put_actions(&given).await.unwrap();
    assert_eq!(put, PutActions { stored: 4, unchanged: 0 });
    assert_eq!(stores.actions.actions(&a).await.unwrap(), [seven, odd, later]);

    let changed = dividend("2014-08-07", 0.48);
    let put = stores.actions.put_actions(&[(a.clone(), changed), (a.clone(), seven)]).await.unwrap();
    assert_eq!(put, PutActions { stored: 1, unchanged: 1 });
    assert_eq!(stores.actions.actions(&a).await.unwrap(), [seven, odd, changed]);

    assert!(stores.actions.delete_action(&a, odd.ex_date, ActionKind::Split).await.unwrap());
    assert!(!stores.actions.delete_action(&a, odd.ex_date, ActionKind::Split).await.unwrap());
    assert_eq!(stores.actions.actions(&a).await.unwrap(), [odd, changed]);
    assert_eq!(stores.actions.actions(&b).await.unwrap(), [split("2020-01-02", 2.0, 3.0)]);
    assert!(stores.actions.actions(&key("US|NONE")).await.unwrap().is_empty());
}

pub(crate) async fn a_bad_action_stores_nothing(stores: &Stores) {
    let given = [(key("US|A"), split("2014-06-09", 1.0, 7.0)), (key("US|A"), dividend("2014-06-10", f64::NAN))];
    assert!(matches!(stores.actions.put_actions(&given).await, Err(Error::Invalid { .. })));
    assert!(stores.actions.actions(&key("US|A")).await.unwrap().is_empty());
    let start = market::parse_date("1990-01-01").unwrap();
    let many = std::iter::successors(Some(start), |date| date.tomorrow().ok());
    let many = many.map(|ex_date| CorporateAction { ex_date, terms: ActionTerms::Dividend { amount: 1.0 } });
    let mut many: Vec<_> = many.take(10_001).map(|action| (key("US|MANY"), action)).collect();
    assert!(matches!(stores.actions.put_actions(&many).await, Err(Error::Invalid { field: "actions", .. })));
    many.pop();
    assert_eq!(stores.actions.put_actions(&many).await.unwrap().stored, 10_000);
    assert_eq!(stores.actions.put_actions(&many).await.unwrap().unchanged, 10_000);
    assert_eq!(stores.actions.actions(&key("US|MANY")).await.unwrap().len(), 10_000);
}

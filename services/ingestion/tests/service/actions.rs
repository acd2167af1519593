//! Corporate actions over the wire.

use proto::ingestion::corporate_action::Action;
use proto::ingestion::{
    ActionKind, CorporateAction, DeleteCorporateActionRequest, Dividend, ListCorporateActionsRequest,
    PutCorporateActionsRequest, PutInstrumentRequest, Split,
};
use proto::wire::Instrument;
use tonic::{Code, Status};

use crate::{Running, fault, start};

const APPLE: &str = "US|AAPL";

fn split(ex_date: &str, from: f64, to: f64) -> CorporateAction {
    let action = Some(Action::Split(Split { from, to }));
    CorporateAction { instrument_key: APPLE.into(), ex_date: ex_date.into(), action }
}

fn dividend(ex_date: &str, amount: f64) -> CorporateAction {
    let action = Some(Action::Dividend(Dividend { amount }));
    CorporateAction { instrument_key: APPLE.into(), ex_date: ex_date.into(), action }
}

async fn put(mesh: &Running, actions: Vec<CorporateAction>) -> Result<(u32, u32), Status> {
    let answer = mesh.client.clone().put_corporate_actions(PutCorporateActionsRequest { actions }).await?.into_inner();
    Ok((answer.stored, answer.unchanged))
}

async fn list(mesh: &Running, key: &str) -> Result<Vec<CorporateAction>, Status> {
    let request = ListCorporateActionsRequest { instrument_key: key.into() };
    Ok(mesh.client.clone().list_corporate_actions(request).await?.into_inner().actions)
}

async fn known() -> Running {
    let mesh = start().await;
    let instrument = Instrument { instrument_key: APPLE.into(), ..Default::default() };
    mesh.client.clone().put_instrument(PutInstrumentRequest { instrument: Some(instrument) }).await.unwrap();
    mesh
}

#[tokio::test]
async fn actions_are_put_listed_and_deleted_and_all_of_it_may_be_repeated() {
    let mesh = known().await;
    let (seven, later, same_day) =
        (split("2014-06-09", 1.0, 7.0), dividend("2014-08-07", 0.47), dividend("2014-06-09", 0.1));
    assert_eq!(put(&mesh, vec![later.clone(), same_day.clone(), seven.clone()]).await.unwrap(), (3, 0));
    assert_eq!(put(&mesh, vec![dividend("2014-08-07", 0.48), seven.clone()]).await.unwrap(), (1, 1));
    let listed = list(&mesh, "us|AAPL").await.unwrap();
    assert_eq!(listed, [seven.clone(), same_day, dividend("2014-08-07", 0.48)]);
    let delete = |kind: ActionKind| DeleteCorporateActionRequest {
        instrument_key: APPLE.into(),
        ex_date: "2014-06-09".into(),
        kind: kind.into(),
    };
    for _ in 0..2 {
        mesh.client.clone().delete_corporate_action(delete(ActionKind::Dividend)).await.unwrap();
        assert_eq!(list(&mesh, APPLE).await.unwrap(), [seven.clone(), dividend("2014-08-07", 0.48)]);
    }
    let refused = mesh.client.clone().delete_corporate_action(delete(ActionKind::Unspecified)).await.unwrap_err();
    assert_eq!(fault(refused).fields[0].0, "kind");
}

#[tokio::test]
async fn a_refused_call_stores_nothing_and_unknown_instruments_are_not_found() {
    let mesh = known().await;
    let refused =
        fault(put(&mesh, vec![split("2014-06-09", 1.0, 7.0), dividend("2014-08-07", -1.0)]).await.unwrap_err());
    assert_eq!((refused.code, refused.fields[0].0.as_str()), (Code::InvalidArgument, "actions[1].dividend.amount"));
    assert!(refused.message.contains("-1"), "{}", refused.message);
    let stranger = CorporateAction { instrument_key: "US|NONE".into(), ..dividend("2014-08-07", 1.0) };
    let refused = put(&mesh, vec![dividend("2014-08-07", 1.0), stranger]).await.unwrap_err();
    assert_eq!((refused.code(), fault(refused).reason), (Code::NotFound, "UNKNOWN_INSTRUMENT".to_owned()));
    assert!(list(&mesh, APPLE).await.unwrap().is_empty());
    assert_eq!(list(&mesh, "US|NONE").await.unwrap_err().code(), Code::NotFound);
    // More than an instrument may have; what is replaced does not count twice.
    let days: Vec<CorporateAction> = (0..5000_i32)
        .map(|day| dividend(&format!("{}-{:02}-{:02}", 1950 + day / 300, 1 + day / 25 % 12, 1 + day % 25), 1.0))
        .collect();
    assert_eq!(put(&mesh, days.clone()).await.unwrap(), (5000, 0));
    assert_eq!(put(&mesh, days).await.unwrap(), (0, 5000));
    let refused = put(&mesh, vec![dividend("2014-08-07", 1.0)]).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
}

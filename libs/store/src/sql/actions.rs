//! Corporate actions. Compiled once for each database: `super` defines `Db` and the store.

use async_trait::async_trait;
use market::{ActionKind, ActionTerms, CorporateAction, Date, InstrumentKey};
use sqlx::{QueryBuilder, Row};

use super::{Db, Store};
use crate::action_store::distinct;
use crate::sql::{date_number, date_of_number, fault, page_rows};
use crate::{ActionStore, Error, MAX_PAGE_ROWS, PutActions, Result};

/// Actions per statement: six values each.
const ACTIONS_PER_STATEMENT: usize = 500;

type DbRow = <Db as sqlx::Database>::Row;

/// Splits come before dividends by it.
fn kind_number(kind: ActionKind) -> i64 {
    match kind {
        ActionKind::Split => 1,
        ActionKind::Dividend => 2,
    }
}

fn action_of(row: &DbRow) -> Result<CorporateAction> {
    let number = |column| -> Result<f64> {
        let value: Option<f64> = row.try_get(column).map_err(fault)?;
        value.ok_or_else(|| Error::internal(format!("a corporate action has no {column}")))
    };
    let terms = match row.try_get::<i64, _>("kind").map_err(fault)? {
        1 => ActionTerms::Split { from: number("split_from")?, to: number("split_to")? },
        2 => ActionTerms::Dividend { amount: number("amount")? },
        other => return Err(Error::internal(format!("a corporate action is of kind {other}"))),
    };
    Ok(CorporateAction { ex_date: date_of_number(row.try_get("ex_date").map_err(fault)?)?, terms })
}

#[async_trait]
impl ActionStore for Store {
    async fn put_actions(&self, actions: &[(InstrumentKey, CorporateAction)]) -> Result<PutActions> {
        let actions: Vec<_> = distinct(actions)?.into_iter().collect();
        let mut put = PutActions::default();
        let mut tx = self.begin().await?;
        for actions in actions.chunks(ACTIONS_PER_STATEMENT) {
            let mut statement = QueryBuilder::<Db>::new(
                "insert into corporate_action (instrument_key, ex_date, kind, split_from, split_to, amount) ",
            );
            statement.push_values(actions, |mut row, ((key, ex_date, kind), action)| {
                let (from, to, amount) = match action.terms {
                    ActionTerms::Split { from, to } => (Some(from), Some(to), None),
                    ActionTerms::Dividend { amount } => (None, None, Some(amount)),
                };
                row.push_bind(key.as_str())
                    .push_bind(date_number(*ex_date))
                    .push_bind(kind_number(*kind))
                    .push_bind(from)
                    .push_bind(to)
                    .push_bind(amount);
            });
            statement.push(
                " on conflict (instrument_key, ex_date, kind) do update set split_from = excluded.split_from, \
                 split_to = excluded.split_to, amount = excluded.amount \
                 where corporate_action.split_from is distinct from excluded.split_from \
                 or corporate_action.split_to is distinct from excluded.split_to \
                 or corporate_action.amount is distinct from excluded.amount",
            );
            let stored = statement.build().execute(&mut *tx).await.map_err(fault)?.rows_affected();
            put.stored += stored;
            put.unchanged += (actions.len() as u64).saturating_sub(stored);
        }
        tx.commit().await.map_err(fault)?;
        Ok(put)
    }

    async fn actions(&self, key: &InstrumentKey) -> Result<Vec<CorporateAction>> {
        let rows = sqlx::query(
            "select ex_date, kind, split_from, split_to, amount from corporate_action where instrument_key = $1 \
             order by ex_date desc, kind desc limit $2",
        )
        .bind(key.as_str())
        .bind(page_rows(MAX_PAGE_ROWS))
        .fetch_all(self.reader())
        .await
        .map_err(fault)?;
        rows.iter().rev().map(action_of).collect()
    }

    async fn delete_action(&self, key: &InstrumentKey, ex_date: Date, kind: ActionKind) -> Result<bool> {
        let deleted =
            sqlx::query("delete from corporate_action where instrument_key = $1 and ex_date = $2 and kind = $3")
                .bind(key.as_str())
                .bind(date_number(ex_date))
                .bind(kind_number(kind))
                .execute(self.writer())
                .await
                .map_err(fault)?;
        Ok(deleted.rows_affected() > 0)
    }
}

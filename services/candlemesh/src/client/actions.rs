//! `actions`: splits and dividends, which count when candles are read with `--adjust`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use market::{ActionKind, ActionTerms, CorporateAction, Date, InstrumentKey};
use proto::convert;
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{DeleteCorporateActionRequest, ListCorporateActionsRequest, PutCorporateActionsRequest};

use super::Connection;
use super::query::print_json;
use crate::output::say_line;

/// Actions of one call; the server takes no more.
const MAX_ACTIONS: usize = 10_000;

/// `actions`' subcommands.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum ActionsCommand {
    /// Stores one split or dividend, or a file of them.
    Put(PutArgs),
    /// Lists the actions of an instrument.
    List {
        instrument: InstrumentKey,
        #[arg(long)]
        json: bool,
    },
    /// Deletes one action.
    Delete {
        instrument: InstrumentKey,
        /// YYYY-MM-DD.
        ex_date: Date,
        /// split or dividend.
        kind: ActionKind,
    },
}

/// `actions put`'s arguments.
#[derive(Debug, Clone, clap::Args)]
pub struct PutArgs {
    /// CSV with the columns instrument_key, ex_date, kind (split or dividend), from, to, amount; those a kind does not have are empty.
    #[arg(long, conflicts_with_all = ["instrument", "ex_date", "split", "dividend"])]
    pub file: Option<PathBuf>,
    #[arg(required_unless_present = "file")]
    pub instrument: Option<InstrumentKey>,
    /// YYYY-MM-DD: the first trading date without the right.
    #[arg(required_unless_present = "file")]
    pub ex_date: Option<Date>,
    /// FROM:TO, for example 1:7 for seven shares for one.
    #[arg(long, conflicts_with = "dividend", value_parser = split_ratio)]
    pub split: Option<(f64, f64)>,
    /// Cash per share.
    #[arg(long)]
    pub dividend: Option<f64>,
    #[arg(long)]
    pub json: bool,
}

fn split_ratio(text: &str) -> Result<(f64, f64), String> {
    let ratio = text.split_once(':').and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    ratio.ok_or_else(|| format!("'{text}' is not of the form FROM:TO, for example 1:7"))
}

pub async fn run(connection: &Connection, command: &ActionsCommand) -> Result<()> {
    let mut client =
        IngestionServiceClient::new(connection.channel()?).max_decoding_message_size(mesh::MAX_MESSAGE_BYTES);
    let explain = |status| connection.explain(status);
    match command {
        ActionsCommand::Put(args) => {
            let actions = args.actions()?;
            let actions = actions.iter().map(|(key, action)| convert::wire_action(key, action)).collect();
            let request = PutCorporateActionsRequest { actions };
            let answer = client.put_corporate_actions(request).await.map_err(explain)?.into_inner();
            if args.json {
                return print_json(&answer, "candlemesh.ingestion.v1.PutCorporateActionsResponse");
            }
            say_line!("{} stored, {} unchanged", answer.stored, answer.unchanged);
        }
        ActionsCommand::List { instrument, json } => {
            let request = ListCorporateActionsRequest { instrument_key: instrument.to_string() };
            let answer = client.list_corporate_actions(request).await.map_err(explain)?.into_inner();
            if *json {
                return print_json(&answer, "candlemesh.ingestion.v1.ListCorporateActionsResponse");
            }
            for message in &answer.actions {
                let (_, action) = convert::corporate_action("action", message)?;
                say_line!("{}  {}", action.ex_date, words(&action));
            }
        }
        ActionsCommand::Delete { instrument, ex_date, kind } => {
            let kind = match kind {
                ActionKind::Split => proto::ingestion::ActionKind::Split,
                ActionKind::Dividend => proto::ingestion::ActionKind::Dividend,
            };
            let request = DeleteCorporateActionRequest {
                instrument_key: instrument.to_string(),
                ex_date: ex_date.to_string(),
                kind: kind.into(),
            };
            client.delete_corporate_action(request).await.map_err(explain)?;
        }
    }
    Ok(())
}

fn words(action: &CorporateAction) -> String {
    match action.terms {
        ActionTerms::Split { from, to } => format!("split     {to} for {from}"),
        ActionTerms::Dividend { amount } => format!("dividend  {amount}"),
    }
}

impl PutArgs {
    fn actions(&self) -> Result<Vec<(InstrumentKey, CorporateAction)>> {
        if let Some(path) = &self.file {
            return read(path).with_context(|| path.display().to_string());
        }
        let terms = match (self.split, self.dividend) {
            (Some((from, to)), None) => ActionTerms::Split { from, to },
            (None, Some(amount)) => ActionTerms::Dividend { amount },
            _ => anyhow::bail!("say what happens: --split FROM:TO or --dividend AMOUNT"),
        };
        let instrument = self.instrument.clone().context("name the instrument")?;
        let ex_date = self.ex_date.context("name the ex-date")?;
        Ok(vec![(instrument, CorporateAction { ex_date, terms })])
    }
}

fn read(path: &Path) -> Result<Vec<(InstrumentKey, CorporateAction)>> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path)?;
    let header = reader.headers()?.clone();
    let mut actions = Vec::new();
    for (index, record) in reader.records().enumerate() {
        ensure!(index < MAX_ACTIONS, "more than {MAX_ACTIONS} actions; split the file");
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        actions.push(action(&header, &record).with_context(|| format!("line {line}"))?);
    }
    ensure!(!actions.is_empty(), "holds no actions");
    Ok(actions)
}

fn action(header: &csv::StringRecord, record: &csv::StringRecord) -> Result<(InstrumentKey, CorporateAction)> {
    let text = |name: &str| {
        let at = header.iter().position(|column| column.eq_ignore_ascii_case(name));
        at.and_then(|at| record.get(at)).with_context(|| format!("there is no column {name}"))
    };
    let number = |name: &str| {
        let text = text(name)?;
        text.parse::<f64>().with_context(|| format!("{name}: '{text}' is not a number"))
    };
    let terms = match text("kind")?.to_ascii_lowercase().parse()? {
        ActionKind::Split => ActionTerms::Split { from: number("from")?, to: number("to")? },
        ActionKind::Dividend => ActionTerms::Dividend { amount: number("amount")? },
    };
    let action = CorporateAction { ex_date: market::parse_date(text("ex_date")?)?, terms };
    action.check()?;
    Ok((text("instrument_key")?.parse()?, action))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<(InstrumentKey, CorporateAction)>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("actions.csv");
        std::fs::write(&path, text)?;
        read(&path)
    }

    #[test]
    fn files_are_read_by_column_and_refused_by_line() {
        let head = "instrument_key,ex_date,kind,from,to,amount\n";
        let rows = "US|AAPL, 2014-06-09, split, 1, 7,\nUS|AAPL,2014-08-07,Dividend,,,0.47\n";
        let actions = parse(&format!("{head}{rows}")).unwrap();
        assert_eq!(actions[0].1.terms, ActionTerms::Split { from: 1.0, to: 7.0 });
        assert_eq!(actions[1].1.terms, ActionTerms::Dividend { amount: 0.47 });
        let refused = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert!(refused(&format!("{head}{rows}US|AAPL,2014-08-07,bonus,,,1\n")).starts_with("line 4: kind"));
        assert!(refused(&format!("{head}US|AAPL,2014-08-07,dividend,,,x\n")).contains("'x' is not a number"));
        assert!(refused("instrument_key,kind\nUS|AAPL,split\n").contains("no column"));
        assert!(refused(head).contains("no actions"));
        assert_eq!(split_ratio("1:7"), Ok((1.0, 7.0)));
        assert!(split_ratio("7").is_err());
    }
}

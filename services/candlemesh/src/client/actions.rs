//! `actions`: splits and dividends, which count when candles are read with `--adjust`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use market::{ActionKind, ActionTerms, CorporateAction, Date, InstrumentKey};
use proto::convert;
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{
    DeleteCorporateActionRequest, ListCorporateActionsRequest, PutCorporateActionsRequest, PutCorporateActionsResponse,
};

use super::Connection;
use super::query::print_json;
use crate::output::say_line;

/// Actions of one call; the server takes no more.
const MAX_ACTIONS: usize = 10_000;
/// Actions of a file: half a century of dividends of five thousand shares.
const MAX_FILE_ACTIONS: usize = 1_000_000;
/// Columns of a file of actions.
const COLUMNS: [&str; 6] = ["instrument_key", "ex_date", "kind", "from", "to", "amount"];

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
            let (stored, unchanged) = put(connection, &args.actions()?).await?;
            if args.json {
                let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
                let answer = PutCorporateActionsResponse { stored: count(stored), unchanged: count(unchanged) };
                return print_json(&answer, "candlemesh.ingestion.v1.PutCorporateActionsResponse");
            }
            say_line!("{stored} stored, {unchanged} unchanged");
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

/// Puts actions, in as many calls as it takes. Returns how many were new or differed, and how many were there.
pub(super) async fn put(connection: &Connection, actions: &[(InstrumentKey, CorporateAction)]) -> Result<(u64, u64)> {
    let mut client = IngestionServiceClient::new(connection.channel()?);
    let (mut stored, mut unchanged) = (0, 0);
    for part in actions.chunks(MAX_ACTIONS) {
        let actions = part.iter().map(|(key, action)| convert::wire_action(key, action)).collect();
        let answer = client.put_corporate_actions(PutCorporateActionsRequest { actions }).await;
        let answer = answer.map_err(|status| connection.explain(status))?.into_inner();
        stored += u64::from(answer.stored);
        unchanged += u64::from(answer.unchanged);
    }
    Ok((stored, unchanged))
}

/// Writes a file of actions, as [`read`] reads it.
pub(super) fn write(path: &Path, actions: &[(InstrumentKey, CorporateAction)]) -> Result<()> {
    let mut writer = csv::Writer::from_path(path)?;
    writer.write_record(COLUMNS)?;
    for (key, action) in actions {
        // The shortest decimals that read back to the same numbers.
        let [kind, from, to, amount] = match action.terms {
            ActionTerms::Split { from, to } => ["split".to_owned(), from.to_string(), to.to_string(), String::new()],
            ActionTerms::Dividend { amount } => {
                ["dividend".to_owned(), String::new(), String::new(), amount.to_string()]
            }
        };
        writer.write_record([key.as_str(), &action.ex_date.to_string(), &kind, &from, &to, &amount])?;
    }
    writer.flush()?;
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
            let actions = read(path).with_context(|| path.display().to_string())?;
            ensure!(!actions.is_empty(), "{}: holds no actions", path.display());
            return Ok(actions);
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

/// Reads a file of actions.
pub(super) fn read(path: &Path) -> Result<Vec<(InstrumentKey, CorporateAction)>> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path)?;
    let header = reader.headers()?.clone();
    let mut actions = Vec::new();
    for (index, record) in reader.records().enumerate() {
        ensure!(index < MAX_FILE_ACTIONS, "more than {MAX_FILE_ACTIONS} actions; split the file");
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        actions.push(action(&header, &record).with_context(|| format!("line {line}"))?);
    }
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
        assert_eq!(parse(head).unwrap(), []);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("again.csv");
        write(&path, &actions).unwrap();
        assert_eq!(read(&path).unwrap(), actions);
        assert_eq!(split_ratio("1:7"), Ok((1.0, 7.0)));
        assert!(split_ratio("7").is_err());
    }
}

//! `study`: strategy studies, started, watched, listed and cancelled.

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use market::{InstrumentKey, Timeframe};
use proto::convert;
use proto::optimizer::optimizer_service_client::OptimizerServiceClient;
use proto::optimizer::{
    CancelStudyRequest, CreateStudyRequest, GetStudyRequest, ListStudiesRequest, ListTrialsRequest, Objective,
    ParameterRange, Search, Strategy, Study, StudySpec, StudyState, Trial, WatchStudyRequest,
};

use super::query::{json_of, print_json};
use super::{Channel, Connection, RangeArgs};
use crate::output::say_line;

/// Trials printed at the end of a study.
const PRINTED_TRIALS: i32 = 10;

/// `study`'s subcommands.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum StudyCommand {
    /// Creates a study and watches it to its end.
    Run(RunArgs),
    /// Shows a study and its best trials.
    Show {
        study: String,
        #[arg(long)]
        json: bool,
    },
    /// Lists studies, newest first.
    List {
        #[arg(long)]
        json: bool,
    },
    /// Cancels a study; the trials finished so far are kept.
    Cancel { study: String },
}

/// Arguments of `study run`.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// Instruments to test on.
    #[arg(required = true)]
    pub instruments: Vec<InstrumentKey>,
    #[arg(long, value_enum, default_value = "sma-crossover")]
    pub strategy: StrategyArg,
    #[arg(long, default_value = "1d")]
    pub timeframe: Timeframe,
    /// `name=start:stop[:step]`, for example `fast=5:50:5`; repeat per parameter.
    #[arg(long = "parameter", short = 'p', value_parser = parse_parameter)]
    pub parameters: Vec<Parameter>,
    /// Draw this many trials at random instead of the whole grid.
    #[arg(long)]
    pub random: Option<u32>,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    #[arg(long, value_enum, default_value = "sharpe")]
    pub objective: ObjectiveArg,
    /// Walk-forward folds.
    #[arg(long, default_value_t = 3)]
    pub folds: u32,
    /// Cost per side in basis points.
    #[arg(long, default_value_t = 2.0)]
    pub fee_bp: f64,
    /// Id of the study; default: one is made.
    #[arg(long)]
    pub id: Option<String>,
    #[command(flatten)]
    pub range: RangeArgs,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum StrategyArg {
    SmaCrossover,
    EmaCrossover,
    RsiReversion,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum ObjectiveArg {
    Sharpe,
    TotalReturn,
    Calmar,
}

/// A parameter's range.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    pub name: String,
    pub start: f64,
    pub stop: f64,
    pub step: f64,
}

fn parse_parameter(text: &str) -> Result<Parameter, String> {
    let refuse = || format!("'{text}' is not of the form name=start:stop[:step], for example fast=5:50:5");
    let (name, range) = text.split_once('=').ok_or_else(refuse)?;
    let numbers = range.split(':').map(str::parse::<f64>).collect::<Result<Vec<_>, _>>().map_err(|_| refuse())?;
    match numbers[..] {
        [value] => Ok(Parameter { name: name.into(), start: value, stop: value, step: 1.0 }),
        [start, stop] => Ok(Parameter { name: name.into(), start, stop, step: 1.0 }),
        [start, stop, step] => Ok(Parameter { name: name.into(), start, stop, step }),
        _ => Err(refuse()),
    }
}

/// Ranges used where none are given.
fn default_parameters(strategy: StrategyArg) -> Vec<Parameter> {
    let range = |name: &str, start, stop, step| Parameter { name: name.into(), start, stop, step };
    match strategy {
        StrategyArg::SmaCrossover | StrategyArg::EmaCrossover => {
            vec![range("fast", 5.0, 20.0, 5.0), range("slow", 25.0, 60.0, 5.0)]
        }
        StrategyArg::RsiReversion => {
            vec![range("period", 7.0, 21.0, 7.0), range("lower", 20.0, 35.0, 5.0), range("upper", 60.0, 75.0, 5.0)]
        }
    }
}

/// The spec the arguments describe.
pub fn spec(args: &RunArgs) -> Result<StudySpec> {
    let given = match args.parameters.is_empty() {
        true => default_parameters(args.strategy),
        false => args.parameters.clone(),
    };
    let parameters =
        given.into_iter().map(|p| ParameterRange { name: p.name, start: p.start, stop: p.stop, step: p.step });
    let strategy = match args.strategy {
        StrategyArg::SmaCrossover => Strategy::SmaCrossover,
        StrategyArg::EmaCrossover => Strategy::EmaCrossover,
        StrategyArg::RsiReversion => Strategy::RsiReversion,
    };
    let objective = match args.objective {
        ObjectiveArg::Sharpe => Objective::Sharpe,
        ObjectiveArg::TotalReturn => Objective::TotalReturn,
        ObjectiveArg::Calmar => Objective::Calmar,
    };
    let search = if args.random.is_some() { Search::Random } else { Search::Grid };
    Ok(StudySpec {
        strategy: strategy.into(),
        parameters: parameters.collect(),
        search: search.into(),
        objective: objective.into(),
        instrument_keys: args.instruments.iter().map(ToString::to_string).collect(),
        timeframe: args.timeframe.to_string(),
        range: Some(convert::wire_range(args.range.range()?)),
        folds: args.folds,
        budget: args.random.unwrap_or_default(),
        seed: args.seed,
        fee_bp: args.fee_bp,
    })
}

/// A finished study with its best trials.
#[derive(Debug)]
pub struct Finished {
    pub study: Study,
    pub trials: Vec<Trial>,
}

/// Creates a study, watches it to its end, and fetches its best trials.
pub async fn run_to_end(
    connection: &Connection,
    id: Option<&str>,
    spec: StudySpec,
    progress: &ProgressBar,
) -> Result<Finished> {
    let mut client = OptimizerServiceClient::new(connection.channel()?);
    let explain = |status| connection.explain(status);
    let request = CreateStudyRequest { study_id: id.unwrap_or_default().to_owned(), spec: Some(spec) };
    let created = client.create_study(request).await.map_err(explain)?.into_inner().study.unwrap_or_default();
    let request = WatchStudyRequest { study_id: created.study_id.clone() };
    let mut updates = client.watch_study(request).await.map_err(explain)?.into_inner();
    let mut study = created;
    while let Some(update) = updates.message().await.map_err(explain)? {
        study = update.study.unwrap_or_default();
        progress.set_length(u64::from(study.trials_total));
        progress.set_position(u64::from(study.trials_done));
    }
    progress.finish_and_clear();
    let trials = best_trials(&mut client, connection, &study.study_id).await?;
    Ok(Finished { study, trials })
}

async fn best_trials(
    client: &mut OptimizerServiceClient<Channel>,
    connection: &Connection,
    study_id: &str,
) -> Result<Vec<Trial>> {
    let request = ListTrialsRequest { study_id: study_id.to_owned(), page_size: PRINTED_TRIALS, ..Default::default() };
    let answer = client.list_trials(request).await.map_err(|status| connection.explain(status))?;
    Ok(answer.into_inner().trials)
}

pub async fn run(connection: &Connection, command: &StudyCommand) -> Result<()> {
    let mut client = OptimizerServiceClient::new(connection.channel()?);
    let explain = |status| connection.explain(status);
    match command {
        StudyCommand::Run(args) => {
            let progress = if args.json { ProgressBar::hidden() } else { ProgressBar::new(0) };
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} trials, {elapsed}");
            progress.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            let finished = run_to_end(connection, args.id.as_deref(), spec(args)?, &progress).await?;
            print_study(&finished.study, &finished.trials, args.json)?;
            if finished.study.state() != StudyState::Completed {
                bail!("study {} ended {}: {}", finished.study.study_id, state(&finished.study), finished.study.error);
            }
        }
        StudyCommand::Show { study, json } => {
            let answer = client.get_study(GetStudyRequest { study_id: study.clone() }).await.map_err(explain)?;
            let trials = best_trials(&mut client, connection, study).await?;
            print_study(&answer.into_inner().study.unwrap_or_default(), &trials, *json)?;
        }
        StudyCommand::List { json } => {
            let request = ListStudiesRequest { page_size: 100, ..Default::default() };
            let answer = client.list_studies(request).await.map_err(explain)?.into_inner();
            if *json {
                return print_json(&answer, "candlemesh.optimizer.v1.ListStudiesResponse");
            }
            for study in &answer.studies {
                say_line!("{:<38} {:<10} {}/{}", study.study_id, state(study), study.trials_done, study.trials_total);
            }
        }
        StudyCommand::Cancel { study } => {
            let answer = client.cancel_study(CancelStudyRequest { study_id: study.clone() }).await.map_err(explain)?;
            let study = answer.into_inner().study.unwrap_or_default();
            say_line!("{} {}", study.study_id, state(&study));
        }
    }
    Ok(())
}

fn state(study: &Study) -> String {
    study.state().as_str_name().trim_start_matches("STUDY_STATE_").to_ascii_lowercase()
}

/// One line per trial, best first.
pub fn trial_line(trial: &Trial) -> String {
    let parameters: Vec<String> = trial.parameters.iter().map(|p| format!("{}={}", p.name, p.value)).collect();
    let overfit = trial.overfit.map_or("-".to_owned(), |value| format!("{value:.2}"));
    format!(
        "{:<28} objective {:>8.3}  return {:>8.2} %  drawdown {:>6.2} %  trades {:>4}  overfit {overfit}",
        parameters.join(" "),
        trial.objective,
        trial.total_return * 100.0,
        trial.max_drawdown * 100.0,
        trial.trade_count
    )
}

fn print_study(study: &Study, trials: &[Trial], json: bool) -> Result<()> {
    if json {
        let trials: Result<Vec<_>> =
            trials.iter().map(|trial| json_of(trial, "candlemesh.optimizer.v1.Trial")).collect();
        let study = json_of(study, "candlemesh.optimizer.v1.Study")?;
        say_line!("{}", serde_json::to_string_pretty(&serde_json::json!({ "study": study, "best": trials? }))?);
        return Ok(());
    }
    say_line!("study {}  {}  {}/{} trials", study.study_id, state(study), study.trials_done, study.trials_total);
    for trial in trials {
        say_line!("  {}", trial_line(trial));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_parse_with_and_without_step() {
        let parsed = parse_parameter("fast=5:50:5").unwrap();
        assert_eq!((parsed.start, parsed.stop, parsed.step), (5.0, 50.0, 5.0));
        assert_eq!(parse_parameter("fast=5").unwrap().stop, 5.0);
        for bad in ["fast", "fast=", "fast=1:2:3:4", "fast=a:b"] {
            assert!(parse_parameter(bad).is_err(), "{bad}");
        }
    }
}

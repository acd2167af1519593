//! Requests as domain queries: the one place where they are parsed. Every refusal names the request field.

use kernels::screen::{ScreenParams, Stage};
use kernels::sequence::{AnalysisParams, Kind, MoveParams, SequenceParams};
use kernels::trend::{TrendParams, VolatilityParams};
use market::{Date, InstrumentKey, TimeRange, Timeframe};
use proto::convert::{self, FieldError};
use proto::sequence::{
    AnalysisParameters, AnalyzeSequencesRequest, ExecuteGroupRequest, GetBollingerWidthRequest, GetTopScreenedRequest,
    GetTrendRequest, GetVolatilityRequest, ListAnalysesRequest, ListTradeIntentsRequest, RunFilterPipelineRequest,
    ScreenParameters, SequenceKind,
};

use crate::engine::Error;

/// Instruments of one screen that are named; the universe is as large as master data says.
pub(crate) const MAX_KEYS: usize = 10_000;
/// Bytes of a group id or an idempotency key: a UUID takes 36, and both are stored with every batch of intents.
const MAX_ID_BYTES: usize = 128;
const DEFAULT_PAGE_SIZE: usize = 100;

#[derive(Debug, Clone)]
pub(crate) struct AnalysisQuery {
    pub(crate) key: InstrumentKey,
    pub(crate) timeframe: Timeframe,
    pub(crate) range: TimeRange,
    pub(crate) params: AnalysisParams,
    /// The answer lists every move.
    pub(crate) has_moves: bool,
    pub(crate) is_kept: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct AnalysisFilter {
    pub(crate) key: InstrumentKey,
    pub(crate) range: TimeRange,
    pub(crate) pattern_kind: Option<Kind>,
    pub(crate) min_frequency: u32,
    pub(crate) limit: usize,
}

/// An instrument's candles at the end of a trading date, or now.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    pub(crate) key: InstrumentKey,
    pub(crate) timeframe: Timeframe,
    pub(crate) date: Option<Date>,
}

#[derive(Debug, Clone)]
pub(crate) struct TrendQuery {
    pub(crate) moment: Moment,
    pub(crate) params: TrendParams,
}

#[derive(Debug, Clone)]
pub(crate) struct VolatilityQuery {
    pub(crate) moment: Moment,
    pub(crate) window: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct ScreenQuery {
    /// `None`: the whole universe.
    pub(crate) keys: Option<Vec<InstrumentKey>>,
    /// `None`: the latest date with data.
    pub(crate) date: Option<Date>,
    pub(crate) params: ScreenParams,
}

#[derive(Debug, Clone)]
pub(crate) struct GroupQuery {
    pub(crate) group_id: String,
    pub(crate) date: Option<Date>,
    /// `None`: nothing is stored.
    pub(crate) idempotency_key: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct IntentPageQuery {
    pub(crate) group_id: Option<String>,
    /// Id of the last intent of the page before.
    pub(crate) after: Option<String>,
    pub(crate) limit: usize,
}

impl TryFrom<AnalyzeSequencesRequest> for AnalysisQuery {
    type Error = Error;

    fn try_from(request: AnalyzeSequencesRequest) -> Result<Self, Error> {
        Ok(AnalysisQuery {
            key: convert::instrument_key("instrument_key", &request.instrument_key)?,
            timeframe: convert::timeframe("timeframe", &request.timeframe, Some(Timeframe::D1))?,
            range: convert::time_range(request.range.as_ref())?,
            params: analysis_params(&request.parameters.unwrap_or_default())?,
            has_moves: request.include_moves,
            is_kept: request.store,
        })
    }
}

impl TryFrom<ListAnalysesRequest> for AnalysisFilter {
    type Error = Error;

    fn try_from(request: ListAnalysesRequest) -> Result<Self, Error> {
        let pattern_kind = match SequenceKind::try_from(request.pattern_kind) {
            Ok(SequenceKind::Unspecified) => None,
            Ok(SequenceKind::Strong) => Some(Kind::Strong),
            Ok(SequenceKind::Weak) => Some(Kind::Weak),
            Err(error) => return Err(FieldError::new("pattern_kind", error).into()),
        };
        Ok(AnalysisFilter {
            key: convert::instrument_key("instrument_key", &request.instrument_key)?,
            range: convert::time_range(request.range.as_ref())?,
            pattern_kind,
            min_frequency: request.min_frequency,
            limit: convert::page_size(request.page_size, DEFAULT_PAGE_SIZE)?,
        })
    }
}

impl TryFrom<GetTrendRequest> for TrendQuery {
    type Error = Error;

    fn try_from(request: GetTrendRequest) -> Result<Self, Error> {
        let default = TrendParams::default();
        let params = TrendParams {
            period: request.period.unwrap_or(default.period),
            window: request.window.unwrap_or(default.window),
            ..default
        };
        params.check().map_err(|error| refused("", error))?;
        Ok(TrendQuery { moment: moment(&request.instrument_key, &request.timeframe, &request.date)?, params })
    }
}

impl TryFrom<GetVolatilityRequest> for VolatilityQuery {
    type Error = Error;

    fn try_from(request: GetVolatilityRequest) -> Result<Self, Error> {
        let default = VolatilityParams::default();
        let params = VolatilityParams { window: request.window.unwrap_or(default.window), ..default };
        params.check().map_err(|error| refused("", error))?;
        let moment = moment(&request.instrument_key, &request.timeframe, &request.date)?;
        Ok(VolatilityQuery { moment, window: params.window })
    }
}

impl TryFrom<GetBollingerWidthRequest> for Moment {
    type Error = Error;

    fn try_from(request: GetBollingerWidthRequest) -> Result<Self, Error> {
        moment(&request.instrument_key, &request.timeframe, &request.date)
    }
}

impl TryFrom<RunFilterPipelineRequest> for ScreenQuery {
    type Error = Error;

    fn try_from(request: RunFilterPipelineRequest) -> Result<Self, Error> {
        let found = request.instrument_keys.len();
        if found > MAX_KEYS {
            return Err(Error::Limit {
                what: "instruments of a screen",
                found,
                limit: MAX_KEYS,
                way: "split the list",
            });
        }
        let keys = match found {
            0 => None,
            _ => Some(convert::instrument_keys("instrument_keys", &request.instrument_keys, MAX_KEYS)?),
        };
        if !matches!(request.preset.as_str(), "" | "default") {
            let reason = format!("'{}' is unknown; accepted: default", excerpt(&request.preset));
            return Err(FieldError::new("preset", reason).into());
        }
        let mut stages = Vec::new();
        for (index, name) in request.stages.iter().enumerate() {
            let stage: Stage = name.parse().map_err(|error| {
                FieldError::new(format!("stages[{index}]"), detail(&error).unwrap_or_else(|| error.to_string()))
            })?;
            stages.push(stage);
        }
        if stages.is_empty() {
            stages = Stage::ALL.to_vec();
        }
        let params = screen_params(&request.parameters.unwrap_or_default(), stages)?;
        Ok(ScreenQuery { keys, date: date(&request.date)?, params })
    }
}

impl TryFrom<GetTopScreenedRequest> for ScreenQuery {
    type Error = Error;

    fn try_from(request: GetTopScreenedRequest) -> Result<Self, Error> {
        Ok(ScreenQuery { keys: None, date: date(&request.date)?, params: ScreenParams::default() })
    }
}

impl TryFrom<ExecuteGroupRequest> for GroupQuery {
    type Error = Error;

    fn try_from(request: ExecuteGroupRequest) -> Result<Self, Error> {
        let group_id = id("group_id", request.group_id)?;
        // A dry run may carry a key; it claims nothing.
        let idempotency_key = match request.dry_run {
            true => None,
            false => Some(id("idempotency_key", request.idempotency_key)?),
        };
        Ok(GroupQuery { group_id, date: date(&request.date)?, idempotency_key })
    }
}

impl TryFrom<ListTradeIntentsRequest> for IntentPageQuery {
    type Error = Error;

    fn try_from(request: ListTradeIntentsRequest) -> Result<Self, Error> {
        let optional = |field, text: String| if text.is_empty() { Ok(None) } else { id(field, text).map(Some) };
        Ok(IntentPageQuery {
            group_id: optional("group_id", request.group_id)?,
            after: optional("page_token", request.page_token)?,
            limit: convert::page_size(request.page_size, DEFAULT_PAGE_SIZE)?,
        })
    }
}

fn moment(key: &str, timeframe: &str, on: &str) -> Result<Moment, Error> {
    Ok(Moment {
        key: convert::instrument_key("instrument_key", key)?,
        timeframe: convert::timeframe("timeframe", timeframe, Some(Timeframe::D1))?,
        date: date(on)?,
    })
}

fn date(text: &str) -> Result<Option<Date>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let refuse = |_| FieldError::new("date", format!("'{}' is not of the form YYYY-MM-DD", excerpt(text)));
    Ok(Some(market::parse_date(text).map_err(refuse)?))
}

fn id(field: &str, text: String) -> Result<String, Error> {
    if text.is_empty() || text.len() > MAX_ID_BYTES {
        let reason = format!("{} bytes given; accepted: 1 to {MAX_ID_BYTES}", text.len());
        return Err(FieldError::new(field, reason).into());
    }
    // PostgreSQL cannot hold it in a text.
    if text.contains('\0') {
        return Err(FieldError::new(field, "holds a NUL character").into());
    }
    Ok(text)
}

fn analysis_params(given: &AnalysisParameters) -> Result<AnalysisParams, Error> {
    let AnalysisParams { moves, trend, sequences } = AnalysisParams::default();
    let params = AnalysisParams {
        moves: MoveParams {
            volume_weight: given.volume_weight.unwrap_or(moves.volume_weight),
            strength_threshold: given.strength_threshold.unwrap_or(moves.strength_threshold),
            up_move_percent: given.up_move_percent.unwrap_or(moves.up_move_percent),
            down_move_percent: given.down_move_percent.unwrap_or(moves.down_move_percent),
            volume_window: given.volume_window.unwrap_or(moves.volume_window),
        },
        trend,
        sequences: SequenceParams {
            min_sequence_length: given.min_sequence_length.unwrap_or(sequences.min_sequence_length),
            max_gap_length: given.max_gap_length.unwrap_or(sequences.max_gap_length),
            forward_candles: given.forward_candles.unwrap_or(sequences.forward_candles),
        },
    };
    params.check().map_err(|error| refused("parameters.", error))?;
    Ok(params)
}

fn screen_params(given: &ScreenParameters, stages: Vec<Stage>) -> Result<ScreenParams, Error> {
    let default = ScreenParams::default();
    let params = ScreenParams {
        stages,
        min_candles: given.min_candles.unwrap_or(default.min_candles),
        min_price: given.min_price.unwrap_or(default.min_price),
        max_price: given.max_price.unwrap_or(default.max_price),
        min_volume: given.min_volume.unwrap_or(default.min_volume),
        ema_distance_percent: given.ema_distance_percent.unwrap_or(default.ema_distance_percent),
        rsi_bullish_min: given.rsi_bullish_min.unwrap_or(default.rsi_bullish_min),
        rsi_bearish_max: given.rsi_bearish_max.unwrap_or(default.rsi_bearish_max),
        min_strong_ratio: given.min_strong_ratio.unwrap_or(default.min_strong_ratio),
        lookback: given.lookback.unwrap_or(default.lookback),
        min_length: given.min_length.unwrap_or(default.min_length),
        long_weak_run: given.long_weak_run.unwrap_or(default.long_weak_run),
        ..default
    };
    params.check().map_err(|error| refused("parameters.", error))?;
    Ok(params)
}

/// A parameter a kernel refused, under the name it has in the request.
fn refused(prefix: &str, error: kernels::Error) -> FieldError {
    match (&error, detail(&error)) {
        (kernels::Error::Parameter { field, .. }, Some(reason)) => FieldError::new(format!("{prefix}{field}"), reason),
        _ => FieldError::new(prefix.trim_end_matches('.'), error),
    }
}

fn detail(error: &kernels::Error) -> Option<String> {
    match error {
        kernels::Error::Parameter { value, accepted, .. } => {
            Some(format!("'{}' given; accepted: {accepted}", excerpt(value)))
        }
        _ => None,
    }
}

/// Enough of a refused text to recognise it.
fn excerpt(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field<T: std::fmt::Debug>(parsed: Result<T, Error>) -> String {
        match parsed {
            Err(Error::Field(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn absent_fields_take_the_products_defaults() {
        let query: AnalysisQuery =
            AnalyzeSequencesRequest { instrument_key: "US|SPY".into(), ..Default::default() }.try_into().unwrap();
        assert_eq!((query.timeframe, query.range), (Timeframe::D1, TimeRange::ALL));
        assert_eq!(query.params, AnalysisParams::default());
        let query = ScreenQuery::try_from(RunFilterPipelineRequest::default()).unwrap();
        assert_eq!((query.keys, query.date, query.params), (None, None, ScreenParams::default()));
    }

    #[test]
    fn each_parameter_reaches_the_kernel_under_its_name() {
        let given = AnalysisParameters {
            volume_weight: Some(0.1),
            strength_threshold: Some(0.15),
            up_move_percent: Some(1.0),
            down_move_percent: Some(2.0),
            volume_window: Some(5),
            min_sequence_length: Some(1),
            max_gap_length: Some(9),
            forward_candles: Some(3),
        };
        let params = analysis_params(&given).unwrap();
        let moves = MoveParams {
            volume_weight: 0.1,
            strength_threshold: 0.15,
            up_move_percent: 1.0,
            down_move_percent: 2.0,
            volume_window: 5,
        };
        let sequences = SequenceParams { min_sequence_length: 1, max_gap_length: 9, forward_candles: 3 };
        assert_eq!((params.moves, params.sequences), (moves, sequences));
        let given = ScreenParameters {
            min_candles: Some(1),
            min_price: Some(2.0),
            max_price: Some(3.0),
            min_volume: Some(4.0),
            ema_distance_percent: Some(5.0),
            rsi_bullish_min: Some(60.0),
            rsi_bearish_max: Some(40.0),
            min_strong_ratio: Some(0.6),
            lookback: Some(7),
            min_length: Some(8),
            long_weak_run: Some(9),
        };
        let params = screen_params(&given, vec![Stage::Rsi]).unwrap();
        let expected = ScreenParams {
            stages: vec![Stage::Rsi],
            min_candles: 1,
            min_price: 2.0,
            max_price: 3.0,
            min_volume: 4.0,
            ema_distance_percent: 5.0,
            rsi_bullish_min: 60.0,
            rsi_bearish_max: 40.0,
            min_strong_ratio: 0.6,
            lookback: 7,
            min_length: 8,
            long_weak_run: 9,
            ..ScreenParams::default()
        };
        assert_eq!(params, expected);
    }

    #[test]
    fn refusals_name_field_value_and_what_is_accepted() {
        let analysis = |parameters| {
            let instrument_key = "US|SPY".into();
            let parameters = Some(parameters);
            AnalysisQuery::try_from(AnalyzeSequencesRequest { instrument_key, parameters, ..Default::default() })
        };
        let text = field(analysis(AnalysisParameters { volume_weight: Some(1.5), ..Default::default() }));
        assert_eq!(text, "parameters.volume_weight: '1.5' given; accepted: 0..=1");
        let text = field(analysis(AnalysisParameters { strength_threshold: Some(f64::NAN), ..Default::default() }));
        assert!(text.starts_with("parameters.strength_threshold: 'NaN'"), "{text}");
        let text = field(analysis(AnalysisParameters { forward_candles: Some(251), ..Default::default() }));
        assert!(text.starts_with("parameters.forward_candles: '251'"), "{text}");

        let screen = |request| field(ScreenQuery::try_from(request));
        let stages = vec!["basic".to_owned(), "volume".to_owned()];
        let text = screen(RunFilterPipelineRequest { stages, ..Default::default() });
        assert_eq!(text, "stages[1]: 'volume' given; accepted: basic, ema, rsi, strong_move");
        let text = screen(RunFilterPipelineRequest { preset: "bold".into(), ..Default::default() });
        assert_eq!(text, "preset: 'bold' is unknown; accepted: default");
        let text = screen(RunFilterPipelineRequest { date: "2024-02-30".into(), ..Default::default() });
        assert!(text.starts_with("date: '2024-02-30'"), "{text}");
        let parameters = Some(ScreenParameters { min_price: Some(2000.0), ..Default::default() });
        let text = screen(RunFilterPipelineRequest { parameters, ..Default::default() });
        assert!(text.starts_with("parameters.max_price: '1500'") && text.contains("min_price"), "{text}");

        let trend = GetTrendRequest { instrument_key: "US|SPY".into(), period: Some(1), ..Default::default() };
        assert_eq!(field(TrendQuery::try_from(trend)), "period: '1' given; accepted: 2..=1000");
        let volatility =
            GetVolatilityRequest { instrument_key: "US|SPY".into(), window: Some(1001), ..Default::default() };
        assert_eq!(field(VolatilityQuery::try_from(volatility)), "window: '1001' given; accepted: 2..=1000");
    }

    #[test]
    fn an_idempotency_key_is_needed_unless_nothing_is_stored() {
        let request = ExecuteGroupRequest { group_id: "g".into(), ..Default::default() };
        let text = field(GroupQuery::try_from(request.clone()));
        assert!(text.starts_with("idempotency_key: 0 bytes given"), "{text}");
        assert!(GroupQuery::try_from(ExecuteGroupRequest { dry_run: true, ..request }).is_ok());
        let text = field(GroupQuery::try_from(ExecuteGroupRequest { dry_run: true, ..Default::default() }));
        assert!(text.starts_with("group_id"), "{text}");
    }

    #[test]
    fn more_instruments_than_the_limit_are_refused() {
        let instrument_keys = (0..=MAX_KEYS).map(|index| format!("US|S{index}")).collect();
        let parsed = ScreenQuery::try_from(RunFilterPipelineRequest { instrument_keys, ..Default::default() });
        assert!(matches!(parsed, Err(Error::Limit { found: 10_001, limit: 10_000, .. })));
    }
}

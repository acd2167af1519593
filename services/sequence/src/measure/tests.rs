//! Trend, volatility and width of hand-built candles.

use kernels::trend::{Trend, TrendParams};
use market::BucketFrame;
use mesh::Fault;
use mesh::engine::Engines;
use mesh::source::{Buckets, MemorySource};
use store::Stores;
use tonic::Code;

use super::*;
use crate::Config;
use crate::candles::{REVISION, add, daily, key, on_dates};

const NAME: &str = "NSE_EQ|A";

fn measures(source: MemorySource) -> Measures {
    let source = Arc::new(source);
    let ports = Ports {
        candles: Arc::clone(&source) as _,
        master: source,
        screens: Stores::memory().screens,
        engines: Engines::BOTH,
        pool: Arc::new(CpuPool::new(1, 64).unwrap()),
    };
    Measures::new(Histories::new(&Config::default(), &ports), &ports)
}

fn over(frame: BucketFrame) -> Measures {
    let mut source = MemorySource::default();
    add(&mut source, NAME, "NSE", frame);
    measures(source)
}

fn at(date: Option<Date>) -> Moment {
    Moment { key: key(NAME), timeframe: Timeframe::D1, date }
}

fn trend_at(date: Option<Date>) -> TrendQuery {
    TrendQuery { moment: at(date), params: TrendParams::default() }
}

#[tokio::test]
async fn the_trend_of_a_date_knows_nothing_after_it() {
    let frame = daily(100.0, &[vec![1.0; 80], vec![-3.0; 60]].concat(), 1e6);
    let measures = over(frame.clone());
    let then = measures.trend(&trend_at(Some(frame.trading_date[79]))).await.unwrap();
    assert_eq!((then.date, then.figure.trend), (frame.trading_date[79], Trend::Bullish));
    assert_eq!((then.figure.share_above, then.figure.last_close), (1.0, frame.frame.close()[79]));
    let now = measures.trend(&trend_at(None)).await.unwrap();
    assert_eq!((now.date, now.figure.trend), (frame.trading_date[139], Trend::Bearish));
    // A Sunday answers with the Friday before.
    let sunday = Date::constant(2024, 5, 5);
    let friday = measures.trend(&trend_at(Some(sunday))).await.unwrap();
    assert_eq!(friday.date, Date::constant(2024, 5, 3));
}

#[tokio::test]
async fn too_few_candles_are_counted() {
    let frame = daily(100.0, &[1.0; 68], 1e6);
    let first = frame.trading_date[0];
    let measures = over(frame);
    let error = measures.trend(&trend_at(None)).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Code::FailedPrecondition, "TOO_FEW_CANDLES"));
    assert_eq!(error.to_string(), "trend of 'NSE_EQ|A' needs 69 candles of 1d, found 68");
    let error = measures.width(&at(Some(first))).await.unwrap_err();
    assert_eq!(error.to_string(), "bollinger width of 'NSE_EQ|A' needs 20 candles of 1d up to 2024-01-01, found 1");
    let query = VolatilityQuery { moment: at(None), window: 100 };
    let error = measures.volatility(&query).await.unwrap_err();
    assert_eq!(error.to_string(), "volatility of 'NSE_EQ|A' needs 101 candles of 1d, found 68");
    let unknown = Moment { key: key("NSE_EQ|NOBODY"), ..at(None) };
    assert_eq!(measures.width(&unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn volatility_is_that_of_the_definition() {
    let changes: Vec<f64> = (0..40).map(|day| if day % 3 == 0 { 2.0 } else { -0.5 }).collect();
    let frame = daily(100.0, &changes, 1e6);
    let measures = over(frame.clone());
    let found = measures.volatility(&VolatilityQuery { moment: at(None), window: 20 }).await.unwrap();
    let returns: Vec<f64> = frame.frame.close()[19..].windows(2).map(|pair| (pair[1] / pair[0]).ln()).collect();
    let mean = returns.iter().sum::<f64>() / 20.0;
    let variance = returns.iter().map(|each| (each - mean).powi(2)).sum::<f64>() / 19.0;
    assert!((found.figure.annualised - (variance * 252.0).sqrt()).abs() < 1e-12);
    assert!(found.figure.atr_percent > 0.0);

    let rows: Vec<_> = frame.trading_date.iter().map(|date| (*date, [-1.0, -1.0, -1.0, -1.0, 1.0])).collect();
    let negative = over(on_dates("NSE", &rows));
    let error = negative.volatility(&VolatilityQuery { moment: at(None), window: 20 }).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (Code::FailedPrecondition, "PRICES_NOT_POSITIVE"));
}

#[tokio::test]
async fn a_narrowing_series_is_a_squeeze() {
    // Swings that shrink: each width is below every earlier one.
    let swings: Vec<f64> = (0..100).map(|day| (8.0 - 0.07 * f64::from(day)) * [1.0, -1.0][day as usize % 2]).collect();
    let frame = daily(100.0, &swings, 1e6);
    let found = over(frame.clone()).width(&at(None)).await.unwrap();
    assert!(found.figure.is_squeeze && found.figure.contracting_count > 10, "{:?}", found.figure);
    let close = &frame.frame.close()[80..];
    let mean = close.iter().sum::<f64>() / 20.0;
    let deviation = (close.iter().map(|each| (each - mean).powi(2)).sum::<f64>() / 20.0).sqrt();
    assert!((found.figure.absolute - 4.0 * deviation).abs() < 1e-9);
}

#[tokio::test]
async fn a_week_that_is_not_over_is_not_known() {
    let mut source = MemorySource::default();
    // Mondays; each stands for its week.
    let mondays: Vec<Date> = Calendar::by_name("24x7")
        .unwrap()
        .trading_dates(Date::constant(2024, 1, 1), Date::constant(2025, 12, 31))
        .into_iter()
        .step_by(7)
        .collect();
    let rows: Vec<_> = mondays
        .iter()
        .enumerate()
        .map(|(week, date)| (*date, [100.0, 102.0, 98.0, 100.0 + week as f64 * 0.01, 1.0]))
        .collect();
    add(&mut source, NAME, "24x7", on_dates("24x7", &rows));
    let frame = source.buckets[&(key(NAME), Timeframe::D1)].frame.clone();
    source.buckets.insert((key(NAME), Timeframe::W1), Buckets { revision: REVISION, frame });
    let measures = measures(source);
    let weekly = |date| Moment { timeframe: Timeframe::W1, ..at(Some(date)) };
    let saturday = Date::constant(2025, 6, 7);
    let sunday = Date::constant(2025, 6, 8);
    assert_eq!(measures.width(&weekly(saturday)).await.unwrap().date, Date::constant(2025, 5, 26));
    assert_eq!(measures.width(&weekly(sunday)).await.unwrap().date, Date::constant(2025, 6, 2));
}

#[tokio::test]
async fn a_calendar_that_is_not_shipped_is_named() {
    let mut source = MemorySource::default();
    add(&mut source, NAME, "MARS", daily(100.0, &[1.0; 80], 1.0));
    let error = measures(source).trend(&trend_at(None)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.to_string().contains("MARS"), "{error}");
}

#[test]
fn a_year_has_the_exchanges_days_and_candles() {
    let per_year = |calendar: &str, timeframe, date: &str| {
        let calendar = Calendar::by_name(calendar).unwrap();
        candles_per_year(&calendar, timeframe, market::parse_date(date).unwrap())
    };
    assert_eq!(per_year("NSE", Timeframe::D1, "2024-03-01"), 252.0);
    assert_eq!(per_year("24x7", Timeframe::D1, "2024-03-01"), 365.0);
    // 375 minutes, also on a Saturday and on the one-hour Muhurat session of 2023-11-12.
    for date in ["2024-03-01", "2024-03-09", "2023-11-12"] {
        assert_eq!(per_year("NSE", Timeframe::M5, date), 252.0 * 75.0, "{date}");
    }
    assert_eq!(per_year("24x7", Timeframe::M1, "2024-03-01"), 525_600.0);
    assert_eq!(per_year("NYSE", Timeframe::W1, "2024-03-01"), 52.0);
    // The last candle of a session may be a short one.
    assert_eq!(per_year("NSE", Timeframe::H4, "2024-03-01"), 504.0);
}

//! The analyses over real daily candles of NSE shares.
//!
//! Data: folder `1d` below CANDLEMESH_TEST_DATA, default `../shared/data` beside the repository. Without it the tests print a line
//! and pass, unless CANDLEMESH_REQUIRE_TEST_DATA=1.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use kernels::backtest::{self, Costs, Strategy};
use kernels::screen::{ScreenParams, Verdict, screen};
use kernels::sequence::{AnalysisParams, Candles, Kind, analyze_columns, analyze_rows};
use kernels::trend::{TrendParams, VolatilityParams, volatility};
use kernels::width::{WidthParams, at_end};

#[derive(Default)]
struct Daily {
    name: String,
    open: Vec<f64>,
    high: Vec<f64>,
    low: Vec<f64>,
    close: Vec<f64>,
    volume: Vec<f64>,
}

impl Daily {
    fn read(path: &Path) -> Daily {
        let mut text = String::new();
        let file = File::open(path).expect("listed just before");
        GzDecoder::new(file).read_to_string(&mut text).expect("a gzip file");
        let mut daily = Daily { name: path.display().to_string(), ..Daily::default() };
        for line in text.lines().skip(1) {
            let fields: Vec<f64> = line.split(',').skip(2).map(|field| field.parse().expect("a number")).collect();
            daily.open.push(fields[0]);
            daily.high.push(fields[1]);
            daily.low.push(fields[2]);
            daily.close.push(fields[3]);
            daily.volume.push(fields[4]);
        }
        daily
    }

    fn candles(&self) -> Candles<'_> {
        Candles { open: &self.open, high: &self.high, low: &self.low, close: &self.close, volume: &self.volume }
    }
}

fn shares() -> Vec<Daily> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data").to_owned();
    let folder = PathBuf::from(std::env::var("CANDLEMESH_TEST_DATA").unwrap_or(default)).join("1d");
    let Ok(entries) = fs::read_dir(&folder) else {
        assert_ne!(std::env::var("CANDLEMESH_REQUIRE_TEST_DATA").as_deref(), Ok("1"), "no {}", folder.display());
        println!("skipped: no {}", folder.display());
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.retain(|path| path.to_string_lossy().contains("NSE_EQ"));
    paths.sort();
    assert!(!paths.is_empty(), "no NSE share in {}", folder.display());
    paths.iter().map(|path| Daily::read(path)).collect()
}

#[test]
fn rows_and_columns_agree_on_every_share() {
    for daily in shares() {
        let rows = analyze_rows(&daily.candles(), &AnalysisParams::default()).expect("clean candles");
        let columns = analyze_columns(&daily.candles(), &AnalysisParams::default()).expect("clean candles");
        assert_eq!(rows.moves, columns.moves, "{}", daily.name);
        assert_eq!(rows.sequences, columns.sequences, "{}", daily.name);
        assert_eq!(rows.patterns, columns.patterns, "{}", daily.name);
        for (a, b) in [
            (rows.metrics.quality, columns.metrics.quality),
            (rows.metrics.continuity, columns.metrics.continuity),
            (rows.metrics.momentum, columns.metrics.momentum),
            (rows.metrics.volume_trend, columns.metrics.volume_trend),
            (rows.metrics.volume_consistency, columns.metrics.volume_consistency),
            (rows.metrics.volume_strength, columns.metrics.volume_strength),
        ] {
            assert!((a - b).abs() <= 1e-9, "{}: {a} against {b}", daily.name);
        }
        assert!(rows.moves.iter().any(|each| each.is_strong), "{}", daily.name);
        let runs: u32 = rows.sequences.iter().map(|each| each.length).sum();
        assert!(runs as usize <= daily.close.len() && rows.sequences.iter().any(|each| each.kind == Kind::Weak));
    }
}

#[test]
fn figures_of_shares_are_plausible() {
    let (mut passed, mut rejected, mut squeezed) = (0, 0, 0);
    for daily in shares() {
        let found = volatility(&daily.candles(), &VolatilityParams::default());
        for share in [found.annualised, found.parkinson, found.atr_percent.map(|percent| percent / 10.0)] {
            assert!(share.is_some_and(|share| (0.02..1.5).contains(&share)), "{}: {found:?}", daily.name);
        }
        assert!(kernels::trend::at_end(&daily.close, &TrendParams::default()).is_some());
        for count in (60..daily.close.len()).step_by(7) {
            let width = at_end(&daily.close[..count], &WidthParams::default()).expect("enough candles");
            assert!((0.0..=1.0).contains(&width.normalised) && width.percentile <= 100.0, "{width:?}");
            squeezed += u32::from(width.is_squeeze);
            match screen(&daily.candles().first(count), &ScreenParams::default()) {
                Verdict::Passed(_) => passed += 1,
                Verdict::Rejected(rejection) => {
                    assert!(rejection.value.is_finite() && !rejection.reason.is_empty());
                    rejected += 1;
                }
            }
        }
    }
    println!("{passed} passed, {rejected} rejected, {squeezed} squeezed");
    assert!(rejected == 0 || squeezed > 0);
}

#[test]
fn a_sweep_over_a_share_is_finite_and_pays_its_fees() {
    let Some(daily) = shares().into_iter().next() else { return };
    let strategies: Vec<Strategy> =
        (2..20).flat_map(|fast| (20..60).map(move |slow| Strategy::SmaCrossover { fast, slow })).collect();
    let run = |fee_bp| {
        let costs = Costs { fee_bp, candles_per_year: 252.0 };
        backtest::run_many(&strategies, &daily.close, 0..daily.close.len(), &costs).expect("clean closes")
    };
    for (free, paid) in run(0.0).iter().zip(run(10.0)) {
        assert!(free.sharpe.is_finite() && (0.0..=1.0).contains(&free.max_drawdown));
        let kept = 0.999_f64.powi(2 * paid.trades as i32);
        assert!((paid.final_equity - free.final_equity * kept).abs() <= 1e-9 * free.final_equity);
    }
}

use super::*;

/// Daily closes and volumes; each candle opens at the close before it.
struct Daily {
    open: Vec<f64>,
    close: Vec<f64>,
    volume: Vec<f64>,
}

impl Daily {
    /// Changes in percent, from a close of 100, volume 400 000.
    fn new(changes: &[f64]) -> Daily {
        let (mut open, mut close) = (vec![], vec![]);
        let mut last = 100.0;
        for change in changes {
            open.push(last);
            last *= 1.0 + change / 100.0;
            close.push(last);
        }
        Daily { volume: vec![400_000.0; close.len()], open, close }
    }

    fn screen(&self, params: &ScreenParams) -> Verdict {
        screen(&self.candles(), params)
    }

    fn candles(&self) -> Candles<'_> {
        Candles { open: &self.open, high: &self.close, low: &self.close, close: &self.close, volume: &self.volume }
    }

    fn rejected(&self, params: &ScreenParams) -> (Stage, String, f64) {
        match self.screen(params) {
            Verdict::Rejected(each) => (each.stage, each.reason, each.value),
            passed => panic!("{passed:?}"),
        }
    }
}

/// 60 quiet days, then in turns of four days three strong ones by `percent` and a small step back: 75 days.
fn strong(percent: f64) -> Daily {
    let mut changes = vec![0.0; 60];
    (0..15).for_each(|day| changes.push(if day % 4 == 3 { -percent / 4.0 } else { percent }));
    Daily::new(&changes)
}

fn only(stages: &[Stage]) -> ScreenParams {
    ScreenParams { stages: stages.to_vec(), ..ScreenParams::default() }
}

#[test]
fn a_rising_and_a_falling_instrument_pass() {
    let relaxed = ScreenParams { lookback: 20, ..ScreenParams::default() };
    for (percent, side) in [(5.0, Side::Bullish), (-5.0, Side::Bearish)] {
        let Verdict::Passed(passed) = strong(percent).screen(&relaxed) else { panic!("{side:?}") };
        assert_eq!((passed.side, passed.row.side), (side, Some(side)));
        assert_eq!(passed.row.strong_move_count, 12);
        // 5 % of the opens; a fall is measured from the lower close.
        let percent = if percent > 0.0 { 5.0 } else { 100.0 * 5.0 / 95.0 };
        assert!((passed.row.strength - 0.7 * percent / 10.0).abs() < 1e-9, "volume is ordinary");
        assert_eq!(passed.row.mean_volume, 400_000.0);
        assert!(passed.row.distance_percent.unwrap().abs() > 3.0);
    }
}

#[test]
fn distance_and_rsi_are_those_of_the_definitions() {
    let daily = strong(5.0);
    let Verdict::Passed(passed) = daily.screen(&only(&[Stage::Basic, Stage::Ema, Stage::Rsi])) else { panic!() };
    let mut ema = daily.close[..50].iter().sum::<f64>() / 50.0;
    daily.close[50..].iter().for_each(|close| ema += (close - ema) * 2.0 / 51.0);
    let last = daily.close[74];
    assert!((passed.row.distance_percent.unwrap() - (last - ema) / ema * 100.0).abs() < 1e-9);
    let (mut gain, mut loss) = (0.0, 0.0);
    for (row, pair) in daily.close.windows(2).enumerate() {
        let change = pair[1] - pair[0];
        let share = if row < 14 { 1.0 / 14.0 } else { 1.0 };
        let kept = if row < 14 { 1.0 } else { 13.0 / 14.0 };
        let step = if row < 14 { 1.0 } else { 1.0 / 14.0 };
        gain = gain * kept + change.max(0.0) * share * step;
        loss = loss * kept + (-change).max(0.0) * share * step;
    }
    assert!((passed.row.rsi.unwrap() - 100.0 * gain / (gain + loss)).abs() < 1e-9);
    assert_eq!(passed.row.last_close, last);
}

#[test]
fn each_rejection_names_stage_value_and_threshold() {
    let params = ScreenParams::default();
    let mut cheap = strong(5.0);
    cheap.close.iter_mut().for_each(|close| *close /= 10.0);
    let dear = ScreenParams { max_price: 50.0, ..params.clone() };
    let mut thin = strong(5.0);
    thin.volume = vec![299_999.0; 75];
    let falling = {
        let mut changes = vec![2.0; 60];
        changes.extend([-1.5; 13]);
        Daily::new(&changes)
    };
    let high_rsi = ScreenParams { rsi_bullish_min: 99.0, ..params.clone() };
    let one_by_one = Daily::new(&[vec![0.0; 60], [5.0, 0.0].repeat(10)].concat());
    let paused = Daily::new(&[vec![0.0; 60], vec![5.0; 4], vec![0.0; 6], vec![5.0; 2]].concat());
    let short = ScreenParams { lookback: 12, ..params.clone() };
    for (daily, params, stage, value, parts) in [
        (&Daily::new(&[1.0; 9]), &params, Stage::Basic, 9.0, ["9 candles", "10"]),
        (&cheap, &params, Stage::Basic, cheap.close[74], ["below", "20.00"]),
        (&strong(5.0), &dear, Stage::Basic, strong(5.0).close[74], ["above", "50.00"]),
        (&thin, &params, Stage::Basic, 299_999.0, ["299999", "300000"]),
        (&Daily::new(&[1.0; 20]), &params, Stage::Ema, 20.0, ["20 candles", "50"]),
        (&Daily::new(&[0.0; 60]), &params, Stage::Ema, 0.0, ["0.000 %", "within 3 %"]),
        (&one_by_one, &params, Stage::StrongMove, 1.0, ["1 days", "shorter than 2"]),
        (&paused, &short, Stage::StrongMove, 1.0, ["1 runs of more than 5 days", "more than 0"]),
        (
            &Daily::new(&[vec![0.0; 60], vec![1.0; 20]].concat()),
            &params,
            Stage::StrongMove,
            0.0,
            ["0 of 60", "below 0.1"],
        ),
    ] {
        let (at, reason, found) = daily.rejected(params);
        assert_eq!(at, stage, "{reason}");
        assert!((found - value).abs() < 1e-9, "{reason}: {found} against {value}");
        assert!(parts.iter().all(|part| reason.contains(part)), "{reason}");
    }
    let (at, reason, rsi) = strong(5.0).rejected(&high_rsi);
    assert!(at == Stage::Rsi && rsi < 99.0 && reason.contains("bullish") && reason.contains("below 99"), "{reason}");
    // Still above its average, but without strength: the side is kept, the stage refuses.
    let (at, reason, rsi) = falling.rejected(&params);
    assert!(at == Stage::Rsi && rsi < 50.0 && reason.contains("below 50"), "{reason}");
}

#[test]
fn long_pauses_are_allowed_one_for_three_strong_runs() {
    let mut changes = vec![0.0; 60];
    for _ in 0..2 {
        changes.extend([5.0, 5.0, 0.0]);
    }
    changes.extend([0.0; 5]);
    let params = ScreenParams { lookback: 13, ..ScreenParams::default() };
    // Runs in the lookback: 2 strong, 1, 2 strong, then a pause of 6 and a third strong run of 2.
    changes.extend([5.0, 5.0]);
    let three = Daily::new(&changes);
    assert!(matches!(three.screen(&params), Verdict::Passed(_)));
    // One candle less to look at keeps all three runs; from row 4 on there are two.
    let (_, reason, _) = three.rejected(&ScreenParams { lookback: 10, ..params });
    assert!(reason.contains("a third of 2 strong runs"), "{reason}");
}

#[test]
fn stages_run_in_order_and_alone() {
    let flat = Daily::new(&[0.0; 60]);
    assert!(matches!(flat.screen(&only(&[Stage::Basic])), Verdict::Passed(_)));
    assert_eq!(flat.rejected(&only(&[Stage::StrongMove, Stage::Ema])).0, Stage::Ema);
    assert_eq!(only(&[Stage::Rsi, Stage::Basic, Stage::Rsi]).ordered_stages(), [Stage::Basic, Stage::Rsi]);
    // Without the ema stage, the rsi gives the side; without both, the mean close does.
    for stages in [&[Stage::Rsi][..], &[Stage::Basic]] {
        let Verdict::Passed(passed) = strong(-5.0).screen(&only(stages)) else { panic!() };
        assert_eq!(passed.side, Side::Bearish);
    }
    for stage in Stage::ALL {
        assert_eq!(stage.name().parse::<Stage>().unwrap(), stage);
    }
    assert!("bogus".parse::<Stage>().unwrap_err().to_string().contains("bogus"));
}

#[test]
fn a_run_for_an_earlier_day_does_not_see_later_candles() {
    let daily = strong(5.0);
    let params = ScreenParams { lookback: 20, ..ScreenParams::default() };
    for count in [0, 1, 49, 60, 66, 74, 75] {
        let cut = Daily {
            open: daily.open[..count].to_vec(),
            close: daily.close[..count].to_vec(),
            volume: daily.volume[..count].to_vec(),
        };
        assert_eq!(screen(&daily.candles().first(count), &params), cut.screen(&params));
    }
}

#[test]
fn degenerate_input_is_rejected_with_a_reason() {
    let params = ScreenParams::default();
    assert_eq!(Daily::new(&[]).rejected(&params), (Stage::Basic, "no candles".to_owned(), 0.0));
    let mut broken = strong(5.0);
    broken.close[7] = f64::NAN;
    let (_, reason, value) = broken.rejected(&params);
    assert!(reason.contains("[7]") && value.is_finite(), "{reason}");
    broken.volume.pop();
    assert!(broken.rejected(&params).1.contains("[7]"));
    let mut negative = strong(5.0);
    negative.close.iter_mut().for_each(|close| *close = -*close);
    assert!(negative.rejected(&only(&[Stage::Ema])).1.contains("not positive"));
}

#[test]
fn parameters_out_of_range_are_named() {
    let default = ScreenParams::default();
    assert_eq!(default.check(), Ok(()));
    for (params, field) in [
        (only(&[]), "stages"),
        (ScreenParams { max_price: 1.0, ..default.clone() }, "max_price"),
        (ScreenParams { min_volume: f64::NAN, ..default.clone() }, "min_volume"),
        (ScreenParams { rsi_bearish_max: 60.0, ..default.clone() }, "rsi_bearish_max"),
        (ScreenParams { lookback: 0, ..default.clone() }, "lookback"),
        (ScreenParams { min_strong_ratio: 2.0, ..default }, "min_strong_ratio"),
    ] {
        assert!(params.check().unwrap_err().to_string().contains(field));
    }
}

//! What holds for TradingView's profile beyond what holds for every definition.

use super::*;

/// Every candle moves, up or down, and trades.
fn moving(rows: usize) -> Market {
    let mut market = Market::constant(rows, 0.0, 1.0);
    let close = |row: usize| 15_000.0 + ((row * 7919) % 1009) as f64 * 0.05;
    for row in 0..rows {
        let (open, close) = (close(row.saturating_sub(1)), close(row));
        let values = [open, open.max(close) + 0.5, open.min(close) - 0.5, close, 1.0 + ((row * 31) % 97) as f64];
        market.columns.iter_mut().zip(values).for_each(|(column, value)| column[row] = value);
    }
    market
}

fn column(text: &str, market: &Market) -> Vec<f64> {
    compute_fused(&specs(&[text]), &market.all()).unwrap().remove(0).values
}

/// Values of all outputs at the last candle.
fn last(text: &str, market: &Market) -> Vec<f64> {
    let columns = compute_fused(&specs(&[text]), &market.all()).unwrap();
    columns.iter().map(|column| column.values[column.values.len() - 1]).collect()
}

/// Candles without range at these prices, with a volume of 1.
fn closes(prices: &[f64]) -> Market {
    let columns = [prices.to_vec(), prices.to_vec(), prices.to_vec(), prices.to_vec(), vec![1.0; prices.len()]];
    Market { columns, day: vec![0; prices.len()] }
}

#[test]
fn the_tables_are_of_the_catalogue_and_share_no_name() {
    let (mut same, mut other, mut none) = (0, 0, Vec::new());
    for info in catalogue() {
        assert_eq!(info.profile, Profile::TaLib);
        match info.in_profile(Profile::TradingView) {
            None => none.push(info.name),
            Some(found) if found.profile == Profile::TaLib => {
                same += 1;
                assert!(std::ptr::eq(info, found), "{}", info.name);
            }
            Some(found) => {
                other += 1;
                assert_eq!((found.name, found.outputs), (info.name, info.outputs));
                // What one position means, it means in both.
                let names = |info: &Info| info.parameters.iter().map(|one| one.name).collect::<Vec<_>>();
                assert!(names(found).starts_with(&names(info)), "{}", info.name);
                let default: Spec = info.name.parse().unwrap();
                let there: Spec = format!("{}@tradingview", info.name).parse().unwrap();
                assert!(there.cost() >= default.cost(), "{there}");
                assert_eq!(there.lookback(), found.default_lookback(), "{there}");
            }
        }
    }
    none.sort_unstable();
    let undefined = "adxr aroon aroonosc beta correl kama macdfix minus_dm plus_dm t3 trima";
    assert_eq!((same, other, none.join(" ").as_str()), (31, 26, undefined));
}

#[test]
fn the_first_defined_row_is_the_lookback() {
    let market = moving(1500);
    for spec in every_indicator().into_iter().filter(|spec| spec.info().profile == Profile::TradingView) {
        let columns = compute_fused(std::slice::from_ref(&spec), &market.all()).unwrap();
        let undefined = |column: &Column| column.values.iter().take_while(|value| value.is_nan()).count();
        assert_eq!(columns.iter().map(undefined).min(), Some(spec.lookback()), "{spec}");
        for column in &columns {
            let defined = &column.values[undefined(column)..];
            assert!(defined.iter().all(|value| value.is_finite()), "{}", column.name);
        }
    }
}

#[test]
fn lines_of_one_indicator_show_as_soon_as_each_can() {
    let market = moving(100);
    for (text, wanted) in [
        ("stoch:14,3,4@tradingview", vec![15, 18]),
        ("stochf:5,3@tradingview", vec![4, 6]),
        ("stochrsi:14,10,3,2@tradingview", vec![24, 26]),
        ("macd@tradingview", vec![25, 33, 33]),
        ("macdext:12,26,9,0@tradingview", vec![25, 33, 33]),
        ("macdext:12,26,9,1@tradingview", vec![25, 33, 33]),
        ("keltner@tradingview", vec![20, 19, 20]),
        ("keltner:20,5,2@tradingview", vec![19, 19, 19]),
    ] {
        let columns = compute_fold(&specs(&[text]), &market.all()).unwrap();
        let undefined = columns.iter().map(|column| column.values.iter().filter(|value| value.is_nan()).count());
        assert_eq!(undefined.collect::<Vec<_>>(), wanted, "{text}");
    }
}

#[test]
fn unmoving_prices_have_named_answers() {
    let market = Market::constant(700, 123.45, 10.0);
    for text in "stoch stochf stochrsi cmo cci willr ultosc bop bbands_percent mfi plus_di minus_di dx adx".split(' ') {
        let values = last(&format!("{text}@tradingview"), &market);
        assert!(values.iter().all(|value| value.is_nan()), "{text} {values:?}");
    }
    for (text, wanted) in [("rsi", 100.0), ("rsi:2", 100.0), ("atr", 0.0), ("natr", 0.0), ("obv", 0.0), ("adosc", 0.0)]
    {
        assert_eq!(last(&format!("{text}@tradingview"), &market), [wanted], "{text}");
    }
    assert_eq!(last("sar@tradingview", &market), [123.45]);
    assert_eq!(last("supertrend@tradingview", &market), [123.45, 1.0]);
    let values = last("keltner@tradingview", &market);
    assert!(values.iter().all(|value| (value / 123.45 - 1.0).abs() < 1e-13), "{values:?}");
    for text in ["macd", "macdext", "ppo", "trix"] {
        let values = last(&format!("{text}@tradingview"), &market);
        assert!(values.iter().all(|value| value.abs() < 1e-9), "{text} {values:?}");
    }
}

#[test]
fn without_volume_flow_is_undefined_and_totals_stand_still() {
    let mut market = Market::random(6, 800);
    market.columns[4].fill(0.0);
    assert!(column("mfi@tradingview", &market).iter().all(|value| value.is_nan()));
    for (text, lookback) in [("obv@tradingview", 0), ("adosc@tradingview", 9)] {
        assert!(column(text, &market)[lookback..].iter().all(|value| *value == 0.0), "{text}");
    }
}

#[test]
fn one_definition_is_one_set_of_values_and_a_refusal_names_the_profile() {
    let market = Market::random(21, 700);
    for text in ["sma:9", "ema:9", "dema:9", "tema:9", "apo", "bbands", "hma:16", "vwap", "tsf"] {
        let bits = |text: &str| column(text, &market).into_iter().map(f64::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(text), bits(&format!("{text}@tradingview")));
    }
}

#[test]
fn seeds_are_forgotten() {
    let market = Market::random(22, 3000);
    for text in "macd macdext:5,9,4,1 atr natr adx plus_di minus_di dx adosc".split(' ') {
        let there = last(&format!("{text}@tradingview"), &market);
        for (one, other) in last(text, &market).into_iter().zip(there) {
            assert!((one - other).abs() <= 1e-9 * one.abs().max(1.0), "{text} {one} {other}");
        }
    }
    // From the first touch of a band on it is one line; the direction has the other sign.
    let [value, direction] = last("supertrend", &market)[..] else { panic!("two outputs") };
    let [there, other] = last("supertrend@tradingview", &market)[..] else { panic!("two outputs") };
    assert!((value / there - 1.0).abs() < 1e-9 && direction == -other, "{value} {there} {direction} {other}");
    // Volume is counted from another candle on.
    let shift = market.columns[4][0];
    assert_eq!(last("obv", &market)[0] - shift, last("obv@tradingview", &market)[0]);
}

#[test]
fn averages_begin_at_the_mean_of_their_own_period() {
    let market = closes(&[4.0, 8.0, 2.0, 10.0]);
    // Ranges 0, 4, 6 and 8: none is left out.
    assert_eq!(column("atr:2@tradingview", &market)[1..], [2.0, 4.0, 6.0]);
    let near = |name: &str, text: &str, market: &Market, wanted: [f64; 2]| {
        let columns = compute_fold(&specs(&[text]), &market.all()).unwrap();
        let values = &columns.iter().find(|column| column.name == name).unwrap().values;
        assert!(values[..2].iter().all(|value| value.is_nan()), "{values:?}");
        assert!(values[2..].iter().zip(wanted).all(|(value, wanted)| (value - wanted).abs() < 1e-12), "{values:?}");
    };
    // Fast, alpha 2/3: 6, 10/3, 70/9. Slow, alpha 1/2: 14/3, 22/3.
    let lines = [10.0 / 3.0 - 14.0 / 3.0, 70.0 / 9.0 - 22.0 / 3.0];
    near("macd:2,3,2@tradingview.macd", "macd:2,3,2@tradingview", &market, lines);
    near("ppo:2,3@tradingview", "ppo:2,3@tradingview", &market, [lines[0] / 14.0 * 300.0, lines[1] / 22.0 * 300.0]);
    // The same averages, of a line that goes as the closes do: on the low all that trades is subtracted, on the high added.
    let mut market = Market { columns: [2.0, 3.0, 2.0, 3.0, 0.0].map(|value| vec![value; 4]), day: vec![0; 4] };
    market.columns[3] = vec![3.0, 3.0, 2.0, 3.0];
    market.columns[4] = vec![4.0, 4.0, 6.0, 8.0];
    near("adosc:2,3@tradingview", "adosc:2,3@tradingview", &market, lines);
}

#[test]
fn a_quotient_of_nothing_is_undefined() {
    assert!(last("ppo:2,3@tradingview", &closes(&[0.0; 5]))[0].is_nan());
}

#[test]
fn without_a_fall_strength_is_full_and_without_a_rise_it_is_none() {
    let rises: Vec<f64> = (0..20).map(|row| 100.0 + f64::from(row)).collect();
    let falls: Vec<f64> = rises.iter().rev().copied().collect();
    assert_eq!(last("rsi:5@tradingview", &closes(&rises)), [100.0]);
    assert_eq!(last("rsi:5@tradingview", &closes(&falls)), [0.0]);
    assert_eq!(last("cmo:5@tradingview", &closes(&rises)), [100.0]);
    // Plain sums: 3 up and 1 down.
    assert_eq!(last("cmo:2@tradingview", &closes(&[1.0, 4.0, 3.0])), [50.0]);
}

#[test]
fn averages_leave_flat_windows_out() {
    // Places 50, none, 100 and 0 in ranges of one candle.
    let low_high_close = [(0.0, 2.0, 1.0), (5.0, 5.0, 5.0), (0.0, 2.0, 2.0), (0.0, 2.0, 0.0), (3.0, 3.0, 3.0)];
    let mut market = closes(&[0.0; 5]);
    for (row, (low, high, close)) in low_high_close.into_iter().enumerate() {
        (market.columns[1][row], market.columns[2][row], market.columns[3][row]) = (high, low, close);
    }
    let k = column("stoch:1,2,1@tradingview", &market);
    assert!(k[..2].iter().all(|value| value.is_nan()));
    assert_eq!(k[2..], [75.0, 50.0, 50.0]);
}

#[test]
fn direction_outlives_a_standstill() {
    let rises = (0..30).map(f64::from).map(|low| (low, low + 2.0));
    let still = std::iter::repeat_n((31.0, 31.0), 20_000);
    let (lows, highs): (Vec<f64>, Vec<f64>) = rises.chain(still).unzip();
    let mut market = closes(&highs);
    market.columns[2] = lows;
    // Long enough for the smoothed range to be nothing at all: it halves with every candle, and the movement with it.
    let before = column("plus_di:2@tradingview", &market)[40];
    assert!(before > 10.0);
    assert!((last("plus_di:2@tradingview", &market)[0] / before - 1.0).abs() < 1e-9);
    assert_eq!(last("minus_di:2@tradingview", &market), [0.0]);
    assert_eq!(last("dx:2@tradingview", &market), [100.0]);
}

#[test]
fn a_stop_is_passed_to_turn_and_not_touched() {
    let rows = [(10.0, 12.0, 11.0), (11.0, 13.0, 12.0), (12.0, 14.0, 13.0)];
    let stops = |rows: &[(f64, f64, f64)]| {
        let mut market = closes(&vec![0.0; rows.len()]);
        for (row, (low, high, close)) in rows.iter().enumerate() {
            (market.columns[1][row], market.columns[2][row], market.columns[3][row]) = (*high, *low, *close);
        }
        column("sar:0.02,0.2@tradingview", &market)
    };
    // From 10 towards 13, but held by the lows of the two candles before: the first one's is 10.
    let long = stops(&rows);
    assert!(long[0].is_nan());
    assert_eq!(long[1..], [10.0, 10.0]);
    // The third candle's high is a new extreme: the factor is 0.04.
    let stop = 10.0 + 0.04 * (14.0 - 10.0);
    let with = |low: f64| stops(&[rows[0], rows[1], rows[2], (low, 13.5, 13.0)])[3];
    assert!((with(stop + 0.01) - stop).abs() < 1e-12);
    assert_eq!(with(stop - 0.01), 14.0);
    // Closing no higher, the second candle is short under the first high.
    assert_eq!(stops(&[rows[0], (9.0, 11.5, 11.0)])[1], 12.0);
}

#[test]
fn a_close_without_a_logarithm_is_left_out() {
    let with = column("trix:2@tradingview", &closes(&[5.0, 6.0, 7.0, 5.0, 9.0, 0.0, -1.0, 7.0]));
    let without = column("trix:2@tradingview", &closes(&[5.0, 6.0, 7.0, 5.0, 9.0, 7.0]));
    assert!(with[5].is_nan() && with[6].is_nan() && with[7].is_finite());
    assert_eq!((with[4], with[7]), (without[4], without[5]));
}

#[test]
fn scaled_prices_scale_what_is_a_price_and_leave_what_is_a_ratio() {
    let market = Market::random(23, 900);
    let mut scaled = Market { columns: market.columns.clone(), day: market.day.clone() };
    scaled.columns[..4].iter_mut().flatten().for_each(|price| *price *= 4.0);
    let scaling = "macd macdext atr keltner sar";
    let fixed = "rsi stoch stochf stochrsi cmo cci willr ultosc bop ppo adx plus_di minus_di dx natr bbands_percent obv adosc mfi";
    for (text, factor) in scaling.split(' ').map(|text| (text, 4.0)).chain(fixed.split(' ').map(|text| (text, 1.0))) {
        let specs = specs(&[&format!("{text}@tradingview")]);
        let (one, four) =
            (compute_fused(&specs, &market.all()).unwrap(), compute_fused(&specs, &scaled.all()).unwrap());
        for (x, y) in one.iter().zip(&four).flat_map(|(one, four)| one.values.iter().zip(&four.values)) {
            assert!(x.is_nan() && y.is_nan() || x * factor == *y, "{text} {x} {y}");
        }
    }
}

#[test]
fn oscillators_stay_within_their_bounds() {
    let market = Market::random(24, 5000);
    let percent = (0.0, 100.0);
    for (text, (least, most)) in [
        ("rsi:2", percent),
        ("stoch", percent),
        ("stochf", percent),
        ("stochrsi", percent),
        ("adx", percent),
        ("dx", percent),
        ("plus_di", percent),
        ("mfi", percent),
        ("ultosc", percent),
        ("cmo:3", (-100.0, 100.0)),
        ("willr:3", (-100.0, 0.0)),
        ("bop", (-1.0, 1.0)),
    ] {
        for column in compute_fused(&specs(&[&format!("{text}@tradingview")]), &market.all()).unwrap() {
            let mut defined = column.values.iter().filter(|value| !value.is_nan());
            assert!(defined.all(|value| (least - 1e-9..=most + 1e-9).contains(value)), "{}", column.name);
            assert!(column.values.iter().filter(|value| !value.is_nan()).count() > 3000, "{}", column.name);
        }
    }
}

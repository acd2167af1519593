use super::*;

mod profiles;

/// A market of random moves: runs of flat closes, minutes without volume, several days.
struct Market {
    columns: [Vec<f64>; 5],
    day: Vec<i32>,
}

impl Market {
    fn random(seed: u64, rows: usize) -> Self {
        let mut state = seed.wrapping_add(0x9e37_79b9);
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as f64 / (1_u64 << 31) as f64
        };
        let mut market = Self { columns: std::array::from_fn(|_| Vec::new()), day: Vec::new() };
        let mut close = 15_000.0;
        for row in 0..rows {
            let open = close;
            let is_quiet = next() < 0.3;
            close += if is_quiet { 0.0 } else { ((next() - 0.5) * 200.0).round() * 0.05 };
            let reach = if is_quiet { 0.0 } else { 0.05 * (next() * 40.0).round() };
            let volume = if next() < 0.2 { 0.0 } else { (next() * 1e5).round() };
            let row_values = [open, open.max(close) + reach, open.min(close) - reach, close, volume];
            market.columns.iter_mut().zip(row_values).for_each(|(column, value)| column.push(value));
            market.day.push((row / 375) as i32);
        }
        market
    }

    fn constant(rows: usize, price: f64, volume: f64) -> Self {
        let mut columns: [Vec<f64>; 5] = std::array::from_fn(|_| vec![price; rows]);
        columns[4] = vec![volume; rows];
        Self { columns, day: vec![3; rows] }
    }

    fn inputs(&self, rows: usize) -> Inputs<'_> {
        let [open, high, low, close, volume] = self.columns.each_ref().map(|column| &column[..rows]);
        Inputs::new(open, high, low, close, volume, &self.day[..rows]).unwrap()
    }

    fn all(&self) -> Inputs<'_> {
        self.inputs(self.day.len())
    }
}

fn specs(texts: &[&str]) -> Vec<Spec> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Every indicator in every profile, one with the same definition in both once.
fn definitions() -> Vec<&'static Info> {
    let all = catalogue().iter().flat_map(|info| Profile::ALL.map(|profile| (profile, info.in_profile(profile))));
    all.filter_map(|(profile, info)| info.filter(|info| info.profile == profile)).collect()
}

fn every_indicator() -> Vec<Spec> {
    let default = |info: &Info| format!("{}@{}", info.name, info.profile.name()).parse().unwrap();
    let mut specs: Vec<Spec> = definitions().into_iter().map(default).collect();
    specs.extend(self::specs(&D3_SET));
    specs.extend(self::specs(&[
        "sma:1",
        "sma:700",
        "ema:1",
        "ema:600",
        "rsi:2",
        "atr:1",
        "bbands:2,1.5",
        "bbands:333,2",
        "macd:3,5,1",
        "macd:2,600,2",
        "adx:2",
        "adx:300",
        "plus_di:3",
        "minus_di:515",
        "stoch:1,1,1",
        "stoch:5,1,4",
        "stoch:200,30,2",
        "wma:2",
        "dema:2",
        "tema:2",
        "trima:2",
        "trima:101",
        "kama:2",
        "kama:300",
        "t3:2,0",
        "t3:100,1",
        "hma:2",
        "hma:3",
        "hma:97",
        "vwma:1",
        "vwma:200",
        "linearreg:2",
        "tsf:333",
        "stddev:2,0.5",
        "var:1",
        "correl:1",
        "correl:300",
        "beta:1",
        "beta:300",
        "minmax:2",
        "adosc:2,600@tradingview",
        "rsi:2@tradingview",
        "rsi:300@tradingview",
        "atr:1@tradingview",
        "atr:600@tradingview",
        "macd:3,5,1@tradingview",
        "macd:2,600,2@tradingview",
        "macdext:2,3,1,0@tradingview",
        "macdext:2,3,1,1@tradingview",
        "trix:1@tradingview",
        "trix:300@tradingview",
        "stoch:5,1,4@tradingview",
        "stoch:200,30,2@tradingview",
        "stochrsi:2,5,1,1@tradingview",
        "adx:2@tradingview",
        "adx:300@tradingview",
        "supertrend:2,1@tradingview",
        "keltner:2,1,1@tradingview",
        "keltner:9,300,1@tradingview",
        "mfi:200@tradingview",
    ]));
    specs
}

fn same_bits(a: &[Column], b: &[Column]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert_eq!((&a.name, a.values.len()), (&b.name, b.values.len()));
        for (row, (x, y)) in a.values.iter().zip(&b.values).enumerate() {
            assert!(x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()), "{} row {row}: {x} and {y}", a.name);
        }
    }
}

#[test]
fn fused_equals_fold_to_the_bit_at_every_length() {
    let market = Market::random(1, 3000);
    let specs = every_indicator();
    for rows in [0, 1, 2, 3, 13, 14, 15, 27, 28, 34, 511, 512, 513, 1024, 1025, 3000] {
        let inputs = market.inputs(rows);
        same_bits(&compute_fold(&specs, &inputs).unwrap(), &compute_fused(&specs, &inputs).unwrap());
    }
    // Alone, a spec shares nothing, and gives the same.
    let together = compute_fused(&specs, &market.all()).unwrap();
    let alone: Vec<Column> =
        specs.iter().flat_map(|spec| compute_fused(std::slice::from_ref(spec), &market.all()).unwrap()).collect();
    same_bits(&together, &alone);
}

#[test]
fn windows_of_every_length_are_those_of_the_fold() {
    let market = Market::random(10, 200);
    let texts: Vec<String> =
        (2..=130).flat_map(|n| [format!("sma:{n}"), format!("bbands:{n},1"), format!("stoch:{n},2,3")]).collect();
    let specs: Vec<Spec> = texts.iter().map(|text| text.parse().unwrap()).collect();
    same_bits(&compute_fold(&specs, &market.all()).unwrap(), &compute_fused(&specs, &market.all()).unwrap());
}

#[test]
fn a_day_of_any_length_resets_vwap() {
    let mut market = Market::random(2, 1300);
    let specs = specs(&["vwap", "ema:9", "obv"]);
    for days in [1, 2, 511, 513] {
        market.day.iter_mut().enumerate().for_each(|(row, day)| *day = -((row / days) as i32));
        let fused = compute_fused(&specs, &market.all()).unwrap();
        same_bits(&compute_fold(&specs, &market.all()).unwrap(), &fused);
        let (mut turnover, mut volume) = (0.0, 0.0);
        for row in 0..1300 {
            let [_, high, low, close, traded] = market.columns.each_ref().map(|column| column[row]);
            if row % days == 0 {
                (turnover, volume) = (0.0, 0.0);
            }
            turnover += (high + low + close) / 3.0 * traded;
            volume += traded;
            let got = fused[0].values[row];
            assert!(if volume > 0.0 { (got / (turnover / volume) - 1.0).abs() < 1e-12 } else { got.is_nan() });
        }
    }
}

#[test]
fn values_depend_on_the_past_only() {
    let market = Market::random(3, 1500);
    let specs = every_indicator();
    let whole = compute_fused(&specs, &market.all()).unwrap();
    for rows in [40, 600, 1400] {
        let mut prefix = whole.clone();
        prefix.iter_mut().for_each(|column| column.values.truncate(rows));
        same_bits(&prefix, &compute_fused(&specs, &market.inputs(rows)).unwrap());
    }
}

#[test]
fn a_restored_state_goes_on_to_the_bit() {
    let market = Market::random(11, 1300);
    for spec in every_indicator() {
        let outputs = spec.outputs().len();
        assert!(outputs <= fused::MOST_OUTPUTS, "{spec}");
        let (mut kept, mut out, mut again) = (Machine::new(&spec), vec![0.0; outputs], vec![0.0; outputs]);
        let mut restored = kept.clone();
        for (index, row) in market.all().rows().enumerate() {
            // Often while the windows fill, then now and then.
            if index < 60 || index % 97 == 0 {
                restored = Machine::restore(&spec, &kept.save()).unwrap();
                assert_eq!(restored.seen(), index as u64);
            }
            kept.push(&row, &mut out);
            restored.push(&row, &mut again);
            let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&out), bits(&again), "{spec} row {index}");
        }
        assert!(Machine::restore(&spec, &[1, 2, 3]).is_err(), "{spec}");
    }
}

#[test]
fn undefined_values_are_exactly_the_lookback() {
    let mut market = Market::random(4, 1500);
    market.columns[4].iter_mut().for_each(|volume| *volume += 1.0);
    for spec in every_indicator().into_iter().filter(|spec| spec.info().profile == Profile::TaLib) {
        for column in compute_fused(std::slice::from_ref(&spec), &market.all()).unwrap() {
            let undefined = column.values.iter().filter(|value| value.is_nan()).count();
            assert_eq!(undefined, spec.lookback(), "{}", column.name);
            assert!(column.values[..undefined].iter().all(|value| value.is_nan()), "{}", column.name);
            assert!(column.values[undefined..].iter().all(|value| value.is_finite()), "{}", column.name);
        }
    }
}

#[test]
fn every_parameter_alters_the_result() {
    // Long enough for a run of new highs that is rare, and for the sixth day.
    let market = Market::random(5, 2200);
    for info in definitions() {
        for changed in 0..info.parameters.len() {
            let text = |is_changed: bool| {
                let values: Vec<String> = (info.parameters.iter().enumerate())
                    .map(|(index, parameter)| match parameter.default {
                        default if index != changed || !is_changed => default.to_string(),
                        default if parameter.is_integer => (default + 1.0).to_string(),
                        // Less, since what is seldom reached need not show when there is more of it.
                        default => (default / 2.0).to_string(),
                    })
                    .collect();
                format!("{}:{}@{}", info.name, values.join(","), info.profile.name())
            };
            // Many rows: the highest of 30 candles often is that of 31. As bits, since no NaN equals itself.
            let last = |text: String| -> Vec<u64> {
                let columns = compute_fused(&specs(&[&text]), &market.all()).unwrap();
                columns.iter().flat_map(|column| &column.values[300..]).map(|value| value.to_bits()).collect()
            };
            assert_ne!(last(text(false)), last(text(true)), "{info:?} {}", info.parameters[changed].name);
        }
    }
}

#[test]
fn unmoving_prices_have_named_answers() {
    let market = Market::constant(700, 123.45, 10.0);
    let last = |text: &str| -> Vec<f64> {
        let columns = compute_fused(&specs(&[text]), &market.all()).unwrap();
        columns.iter().map(|column| column.values[699]).collect()
    };
    let near = |text: &str| assert!((last(text)[0] / 123.45 - 1.0).abs() < 1e-13, "{text} {:?}", last(text));
    ["sma:9", "ema:50", "vwap", "sma:700", "ema:600"].into_iter().for_each(near);
    assert_eq!(last("bbands:20,2"), [123.45, 123.45, 123.45, 0.0, 0.0]);
    for text in ["rsi", "atr", "adx", "plus_di", "minus_di", "tr"] {
        assert_eq!(last(text), [0.0], "{text}");
    }
    assert_eq!(last("stoch"), [0.0, 0.0]);
    assert_eq!(last("obv"), [10.0]);
    assert!(last("macd").iter().all(|value| value.abs() < 1e-11));
}

#[test]
fn without_volume_vwap_is_undefined_and_obv_stands_still() {
    let mut market = Market::random(6, 800);
    market.columns[4].fill(0.0);
    let columns = compute_fused(&specs(&["vwap", "obv"]), &market.all()).unwrap();
    assert!(columns[0].values.iter().all(|value| value.is_nan()));
    assert!(columns[1].values.iter().all(|value| *value == 0.0));
}

#[test]
fn scaled_prices_scale_the_averages_and_leave_the_oscillators() {
    let market = Market::random(7, 900);
    let mut scaled = Market { columns: market.columns.clone(), day: market.day.clone() };
    // A power of two scales without rounding, so equality is exact.
    scaled.columns[..4].iter_mut().flatten().for_each(|price| *price *= 4.0);
    let scaling = "sma:9 ema:9 atr bbands vwap macd vwap_anchored:1 keltner donchian plus_dm minus_dm sar supertrend";
    let fixed = "rsi adx plus_di stoch obv dx adxr natr bbands_percent mfi ad adosc";
    let texts: Vec<&str> = scaling.split(' ').chain(fixed.split(' ')).collect();
    let specs = specs(&texts);
    let (one, four) = (compute_fused(&specs, &market.all()).unwrap(), compute_fused(&specs, &scaled.all()).unwrap());
    for (one, four) in one.iter().zip(&four) {
        let is_ratio = ["bbands.width_normalized", "supertrend.direction"].contains(&one.name.as_str());
        let is_fixed = is_ratio || fixed.split(' ').any(|text| Some(text) == one.name.split('.').next());
        let factor = if is_fixed { 1.0 } else { 4.0 };
        for (x, y) in one.values.iter().zip(&four.values) {
            assert!(x.is_nan() && y.is_nan() || x * factor == *y, "{} {x} {y}", one.name);
        }
    }
}

#[test]
fn oscillators_stay_within_their_bounds() {
    let market = Market::random(8, 5000);
    let bounded = ["rsi:2", "rsi", "adx", "plus_di", "minus_di", "stoch", "dx", "adxr", "mfi", "mfi:2"];
    for column in compute_fused(&specs(&bounded), &market.all()).unwrap() {
        let defined = column.values.iter().filter(|value| !value.is_nan());
        // Averages of numbers up to 100 may round past it.
        assert!(defined.clone().all(|value| (0.0..=100.0 + 1e-9).contains(value)), "{}", column.name);
        assert!(defined.count() > 4000);
    }
}

#[test]
fn buffers_are_reused_and_wrong_ones_refused() {
    let market = Market::random(9, 600);
    let specs = specs(&D3_SET);
    let mut out = vec![vec![1.0; 900]; 13];
    compute_fused_into(&specs, &market.all(), &mut out).unwrap();
    let wanted = compute_fold(&specs, &market.all()).unwrap();
    let got: Vec<Column> =
        wanted.iter().zip(out).map(|(column, values)| Column { name: column.name.clone(), values }).collect();
    same_bits(&wanted, &got);
    let error = compute_fused_into(&specs, &market.all(), &mut []).unwrap_err();
    assert_eq!(error, Error::BufferCount { found: 0, expected: 13 });
    let mut inputs = market.all();
    inputs.day = &[];
    assert_eq!(
        compute_fold(&specs, &inputs).unwrap_err(),
        Error::UnequalLengths { column: "day", found: 0, expected: 600 }
    );
}

#[test]
fn a_stop_is_heard_at_every_block_and_changes_nothing_before() {
    let market = Market::random(10, 5 * lanes::BLOCK);
    // Lanes, narrow windows and a true range in blocks; a wide window and a state machine by themselves.
    for texts in [&["ema:9", "sma:9", "tr"][..], &["sma:300"], &["wma:9"]] {
        let specs = specs(texts);
        let asked = std::cell::Cell::new(0);
        let after = |count: usize| {
            let asked = &asked;
            asked.set(0);
            move || asked.replace(asked.get() + 1) >= count
        };
        for compute in [compute_fold_until, compute_fused_until] {
            let whole = compute(&specs, &market.all(), &after(usize::MAX)).unwrap();
            let questions = asked.get();
            assert!(questions >= 2, "{texts:?}: {questions}");
            same_bits(&whole, &compute_fold(&specs, &market.all()).unwrap());
            for count in 0..questions {
                assert_eq!(compute(&specs, &market.all(), &after(count)).unwrap_err(), Error::Stopped);
                assert_eq!(asked.get(), count + 1, "{texts:?}: asked again after a yes");
            }
        }
    }
}

/// Numbers below a bound, from a seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % bound
    }

    /// An indicator of the whole catalogue, in any of its profiles, with parameters that a request may have: mostly small, some long.
    fn spec(&mut self) -> Spec {
        loop {
            let (info, profile) = (&catalogue()[self.below(catalogue().len())], Profile::ALL[self.below(2)]);
            let Some(info) = info.in_profile(profile) else { continue };
            let values: Vec<String> = (info.parameters.iter())
                .map(|parameter| match self.below(4) {
                    0 => parameter.default.to_string(),
                    kind if parameter.is_integer => {
                        let reach = if kind == 1 { 300 } else { 30 };
                        (parameter.min + self.below(reach) as f64).min(parameter.max).to_string()
                    }
                    _ => {
                        let hundredths = self.below(((parameter.max.min(5.0) - parameter.min) * 100.0) as usize + 1);
                        ((parameter.min * 1e4).round() / 1e4 + hundredths as f64 / 100.0).min(parameter.max).to_string()
                    }
                })
                .collect();
            // What parameters must be to each other is for the spec to know.
            let parameters = format!("{}:{}", info.name, values.join(","));
            if let Ok(spec) = format!("{}@{}", parameters.trim_end_matches(':'), profile.name()).parse() {
                return spec;
            }
        }
    }

    /// A market of any length, with days of any length, now and then one price or no volume at all.
    fn market(&mut self, seed: u64) -> Market {
        let rows = [self.below(4), self.below(60), self.below(700), self.below(2500)][self.below(4)];
        let mut market = match self.below(8) {
            0 => Market::constant(rows, 77.7, [0.0, 5.0][self.below(2)]),
            _ => Market::random(seed, rows),
        };
        let length = 1 + self.below(800);
        market.day.iter_mut().enumerate().for_each(|(row, day)| *day = (row / length) as i32);
        market
    }
}

#[test]
fn random_requests_are_alike_in_every_form() {
    let mut draw = Draw(20_240_101);
    let mut seen = std::collections::BTreeSet::new();
    for request in 0..250 {
        let specs: Vec<Spec> = (0..1 + draw.below(8)).map(|_| draw.spec()).collect();
        seen.extend(specs.iter().map(|spec| (spec.info().name, spec.info().profile)));
        let market = draw.market(request);
        let inputs = market.all();
        let wanted = compute_fold(&specs, &inputs).unwrap();
        same_bits(&wanted, &compute_fused(&specs, &inputs).unwrap());
        assert!(!wanted.iter().any(|column| column.values.iter().any(|value| value.is_infinite())), "{specs:?}");

        let mut pieces: Vec<Column> =
            wanted.iter().map(|column| Column { name: column.name.clone(), values: Vec::new() }).collect();
        let mut fused = Fused::new(&specs);
        // Twice: nothing of the first run may be left in the second.
        for _ in 0..2 {
            pieces.iter_mut().for_each(|column| column.values.clear());
            let take = |first: usize, columns: &[Vec<f64>]| {
                assert_eq!(first, pieces[0].values.len());
                pieces.iter_mut().zip(columns).for_each(|(all, piece)| all.values.extend(piece));
            };
            fused.for_each_piece(&inputs, take).unwrap();
            same_bits(&wanted, &pieces);
        }

        // A state saved anywhere and taken up again goes on as if nothing had been.
        let cut = if inputs.is_empty() { 0 } else { draw.below(inputs.len()) };
        let mut machines = Machines::new(&specs);
        let mut now = vec![0.0; machines.columns()];
        for (index, row) in inputs.rows().enumerate() {
            if index == cut {
                machines = Machines::restore(&specs, &machines.save()).unwrap();
                assert_eq!(machines.seen(), index as u64);
            }
            machines.push(&row, &mut now);
            for (value, wanted) in now.iter().zip(&wanted) {
                let (name, wanted) = (&wanted.name, wanted.values[index]);
                assert!(value.to_bits() == wanted.to_bits() || value.is_nan() && wanted.is_nan(), "{name} {index}");
            }
        }
        let mut column = 0;
        for spec in &specs {
            let outputs = spec.outputs().len();
            let (mut machine, mut now) = (Machine::new(spec), vec![0.0; outputs]);
            for (index, row) in inputs.rows().enumerate() {
                if index == cut {
                    machine = Machine::restore(spec, &machine.save()).unwrap();
                }
                machine.push(&row, &mut now);
                for (value, wanted) in now.iter().zip(&wanted[column..]) {
                    let wanted = wanted.values[index];
                    assert!(value.to_bits() == wanted.to_bits() || value.is_nan() && wanted.is_nan(), "{spec} {index}");
                }
            }
            column += outputs;
        }
    }
    assert_eq!(seen.len(), definitions().len(), "not drawn at all: some of the catalogue");
}

#[test]
fn pieces_longer_than_a_buffer_join_without_a_seam() {
    let market = Market::random(12, 10_000);
    let specs = every_indicator();
    let wanted = compute_fold(&specs, &market.all()).unwrap();
    let mut got: Vec<Column> =
        wanted.iter().map(|column| Column { name: column.name.clone(), values: Vec::new() }).collect();
    let mut pieces = 0;
    let take = |_: usize, columns: &[Vec<f64>]| {
        pieces += 1;
        got.iter_mut().zip(columns).for_each(|(all, piece)| all.values.extend(piece));
    };
    Fused::new(&specs).for_each_piece(&market.all(), take).unwrap();
    same_bits(&wanted, &got);
    assert!(pieces > 2, "{pieces}");
}

#[test]
fn instruments_of_several_lengths_are_each_as_alone() {
    let markets: Vec<Market> = [1300, 0, 3, 513, 2000].into_iter().map(|rows| Market::random(13, rows)).collect();
    let inputs: Vec<Inputs<'_>> = markets.iter().map(Market::all).collect();
    let specs = specs(&D3_SET);
    let mut fused = Fused::new(&specs);
    let mut out = vec![vec![5.0; 7]; inputs.len() * fused.columns()];
    fused.compute_many_into(&inputs, &mut out).unwrap();
    for (inputs, out) in inputs.iter().zip(out.chunks(fused.columns())) {
        let wanted = compute_fold(&specs, inputs).unwrap();
        let got = wanted.iter().zip(out);
        let got: Vec<Column> =
            got.map(|(column, values)| Column { name: column.name.clone(), values: values.clone() }).collect();
        same_bits(&wanted, &got);
    }
    let error = fused.compute_many_into(&inputs, &mut out[1..]).unwrap_err();
    assert_eq!(error, Error::BufferCount { found: 64, expected: 65 });
}

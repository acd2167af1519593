//! Candles, indicators and quotes, against naive definitions written here.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use candlemesh_tests::answers::{Candles, Column, Indicators, IntradayQuotes, MultiCandles, Quotes};
use candlemesh_tests::made_up;
use candlemesh_tests::rest::{candles_path, indicators_path};
use market::{Candle, Date, Millis};
use serde_json::json;

use super::{MINUTES, OTHER, SESSIONS, Scenario, UNKNOWN};

/// Both engines may differ by rounding only.
const TOLERANCE: f64 = 1e-9;

/// Minutes of one bucket put together: open first, high max, low min, close last, volume sum.
struct Bucket {
    open_time: Millis,
    candle: Candle,
    minutes: u32,
}

/// Naive resampling of NSE minutes: buckets of `width` minutes from each session's open.
fn resample(minutes: &[Candle], width: i64) -> Result<Vec<Bucket>> {
    let mut buckets: BTreeMap<Millis, Bucket> = BTreeMap::new();
    let opens: Vec<Millis> = made_up::dates(SESSIONS)?.into_iter().map(made_up::session_open).collect::<Result<_>>()?;
    for minute in minutes {
        let open = opens.iter().rev().find(|open| **open <= minute.open_time).context("before every session")?;
        let width_ms = width * 60_000;
        let open_time = open + (minute.open_time - open) / width_ms * width_ms;
        match buckets.get_mut(&open_time) {
            None => {
                buckets.insert(open_time, Bucket { open_time, candle: *minute, minutes: 1 });
            }
            Some(bucket) => {
                bucket.candle.high = bucket.candle.high.max(minute.high);
                bucket.candle.low = bucket.candle.low.min(minute.low);
                bucket.candle.close = minute.close;
                bucket.candle.volume += minute.volume;
                bucket.minutes += 1;
            }
        }
    }
    Ok(buckets.into_values().collect())
}

fn equals(answer: &Candles, buckets: &[Bucket]) -> Result<()> {
    ensure!(answer.candles.len() == buckets.len(), "{} candles, not {}", answer.candles.len(), buckets.len());
    for (ours, bucket) in answer.candles.iter().zip(buckets) {
        ensure!(ours.open_time == market::format_millis(bucket.open_time), "{ours:?}");
        let Candle { open, high, low, close, volume, .. } = bucket.candle;
        let values = [ours.open, ours.high, ours.low, ours.close, ours.volume];
        ensure!(values == [open, high, low, close, volume], "{ours:?} is not {:?}", bucket.candle);
        ensure!(ours.open_interest.is_none(), "open interest of a source without: {ours:?}");
        ensure!(ours.source_count == bucket.minutes && ours.source_count <= ours.expected_count, "{ours:?}");
        ensure!(ours.closed && ours.complete == (ours.source_count == ours.expected_count), "{ours:?}");
    }
    Ok(())
}

fn simple_average(closes: &[f64], n: usize) -> Column {
    (0..closes.len()).map(|i| (i + 1 >= n).then(|| closes[i + 1 - n..=i].iter().sum::<f64>() / n as f64)).collect()
}

fn is_near(a: &Column, b: &Column) -> bool {
    let near = |(a, b): (&Option<f64>, &Option<f64>)| match (a, b) {
        (Some(a), Some(b)) => (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()).max(1.0),
        (a, b) => a == b,
    };
    a.len() == b.len() && a.iter().zip(b).all(near)
}

impl Scenario {
    pub(super) async fn candles(&self) -> Result<()> {
        for (timeframe, width) in [("1m", 1), ("5m", 5), ("15m", 15), ("1h", 60), ("1d", 1440)] {
            let expected = resample(&self.minutes, width)?;
            for engine in ["v1", "v2"] {
                let answer = self.rest.with_engine(engine).get(&candles_path(MINUTES, timeframe)).await?;
                let what = format!("{timeframe} {engine}");
                ensure!(answer.engine() == Some(engine), "{what}: answered by {:?}", answer.engine());
                let answer: Candles = answer.ok()?;
                ensure!(answer.engine == engine && answer.timeframe == timeframe, "{what}: {}", answer.engine);
                ensure!(answer.instrument_key == MINUTES && answer.revision > 0, "{what}");
                equals(&answer, &expected).context(what)?;
                let dated = answer.candles.iter().all(|candle| candle.trading_date.is_some());
                ensure!(dated == (timeframe == "1d"), "only daily candles carry a trading date");
            }
        }
        // A half-open part, and the other spelling of the timeframe.
        let (start, end) = (self.minutes[0].open_time, self.minutes[0].open_time + 600_000);
        let range = format!("?start={}&end={}", market::format_millis(start), market::format_millis(end));
        let part: Candles = self.rest.get(&(candles_path(MINUTES, "5minute") + &range)).await?.ok()?;
        equals(&part, &resample(&self.minutes, 5)?[..2])
    }

    pub(super) async fn several_timeframes(&self) -> Result<()> {
        let body = json!({ "timeframes": ["5m", "1d"], "indicators": ["sma:9"] });
        let path = candles_path(OTHER, "multi");
        for engine in ["v1", "v2"] {
            let answer: MultiCandles = self.rest.with_engine(engine).post(&path, &body).await?.ok()?;
            ensure!(answer.timeframes.len() == 2, "{engine}: {:?}", answer.timeframes.keys());
            for (timeframe, width) in [("5m", 5), ("1d", 1440)] {
                let candles = answer.timeframes.get(timeframe).context("missing")?;
                equals(candles, &resample(&self.other, width)?).with_context(|| format!("{timeframe} {engine}"))?;
            }
        }
        Ok(())
    }

    pub(super) async fn indicators(&self) -> Result<()> {
        let specs =
            ["sma:9", "ema:50", "rsi:14", "atr:14", "bbands:20,2", "vwap", "macd", "adx:14", "stoch:14,3,3", "obv"];
        let path = indicators_path(MINUTES, "5m");
        let body = json!({ "indicators": specs });
        let v1: Indicators = self.rest.with_engine("v1").post(&path, &body).await?.ok()?;
        let v2: Indicators = self.rest.with_engine("v2").post(&path, &body).await?.ok()?;
        ensure!((v1.engine.as_str(), v2.engine.as_str()) == ("v1", "v2"), "{} {}", v1.engine, v2.engine);
        ensure!(v1.open_time == v2.open_time, "engines answer other rows");
        ensure!(v1.columns.keys().eq(v2.columns.keys()), "{:?} {:?}", v1.columns.keys(), v2.columns.keys());
        for (name, column) in &v1.columns {
            ensure!(is_near(column, &v2.columns[name]), "engines differ in {name}");
        }
        for output in ["upper", "middle", "lower", "width", "width_normalized"] {
            ensure!(v1.columns.contains_key(&format!("bbands:20,2.{output}")), "no {output}: {:?}", v1.columns.keys());
        }
        let buckets = resample(&self.minutes, 5)?;
        let closes: Vec<f64> = buckets.iter().map(|bucket| bucket.candle.close).collect();
        let sma = v1.columns.get("sma:9").context("no sma:9")?;
        ensure!(is_near(sma, &simple_average(&closes, 9)), "sma:9 is not the mean of the last nine closes");

        let again: Indicators = self.rest.with_engine("v2").post(&path, &body).await?.ok()?;
        ensure!(again.cached, "the second call was not answered from the cache");
        ensure!(again.columns == v2.columns && again.open_time == v2.open_time, "the cache changed the answer");
        Ok(())
    }

    pub(super) async fn quotes(&self) -> Result<()> {
        let body = json!({ "instrument_keys": [OTHER, UNKNOWN, MINUTES], "indicators": ["sma:2"] });
        let answer: Quotes = self.rest.post("/api/v1/market/quotes", &body).await?.ok()?;
        let keys: Vec<&str> = answer.quotes.iter().map(|quote| quote.instrument_key.as_str()).collect();
        ensure!(keys == [OTHER, MINUTES], "{keys:?}");
        ensure!(answer.errors.len() == 1 && answer.errors[0].instrument_key == UNKNOWN, "{:?}", answer.errors);
        ensure!(answer.errors[0].reason.contains(UNKNOWN), "{:?}", answer.errors);

        let days = resample(&self.minutes, 1440)?;
        let [.., before, day] = days.as_slice() else { anyhow::bail!("{} days", days.len()) };
        let quote = &answer.quotes[1];
        let last = self.minutes.last().context("no minutes")?;
        ensure!(quote.last_price == last.close && quote.time == market::format_millis(last.open_time), "{quote:?}");
        let ohlcv = [quote.open, quote.high, quote.low, quote.close, quote.volume];
        let Candle { open, high, low, close, volume, .. } = day.candle;
        ensure!(ohlcv == [open, high, low, close, volume], "{quote:?}");
        ensure!(quote.previous_close == Some(before.candle.close), "{quote:?}");
        let change = quote.change.context("no change")?;
        ensure!((change - (close - before.candle.close)).abs() < TOLERANCE, "{quote:?}");
        let percent = quote.change_percent.context("no change_percent")?;
        ensure!((percent - change / before.candle.close * 100.0).abs() < TOLERANCE, "{quote:?}");
        let sma = quote.indicators.as_ref().and_then(|values| values.get("sma:2").copied().flatten());
        let sma = sma.context("no sma:2")?;
        ensure!((sma - (before.candle.close + close) / 2.0).abs() < TOLERANCE, "{quote:?}");
        Ok(())
    }

    pub(super) async fn intraday_quotes(&self) -> Result<()> {
        let date: Date = made_up::dates(SESSIONS)?[1];
        let start = made_up::session_open(date)?;
        let end = start + 3_600_000;
        let body = json!({
            "instrument_keys": [MINUTES, OTHER, UNKNOWN],
            "timeframe": "15m",
            "start": market::format_millis(start),
            "end": market::format_millis(end),
        });
        let answer: IntradayQuotes = self.rest.post("/api/v1/market/intraday-quotes", &body).await?.ok()?;
        ensure!(answer.errors.len() == 1 && answer.errors[0].instrument_key == UNKNOWN, "{:?}", answer.errors);
        for (quote, minutes) in answer.quotes.iter().zip([&self.minutes, &self.other]) {
            let all = resample(minutes, 15)?;
            let hour: Vec<f64> =
                all.iter().filter(|bucket| (start..end).contains(&bucket.open_time)).map(|b| b.candle.close).collect();
            let closes: Vec<f64> = quote.candles.iter().map(|candle| candle.close).collect();
            ensure!(closes == hour && hour.len() == 4, "{}: {closes:?}", quote.instrument_key);
        }
        let keys: Vec<&str> = answer.quotes.iter().map(|quote| quote.instrument_key.as_str()).collect();
        ensure!(keys == [MINUTES, OTHER], "{keys:?}");
        Ok(())
    }
}

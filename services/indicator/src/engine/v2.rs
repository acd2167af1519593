//! The fast engine: all indicators in one pass over columns, answers kept in the cache.
//!
//! The cache holds answers in canonical form (specs sorted, each once), so that `rsi` and `RSI:14` in any order meet the same entry; the
//! requested names and order are put back on the way out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kernels::indicator::{Column, Inputs, Spec, compute_fused_until};
use market::TimeRange;
use mesh::cache::migrate::Layout;
use mesh::cache::{Cache, Source};
use mesh::source::MasterData;
use mesh::{Cancel, CpuPool, Priority};
use prost::Message;
use proto::indicator::{ComputeIndicatorsResponse, WarmUp};
use rollout::Engine;

use super::series::{AllSeries, Left, Series, Start, advance};
use super::{Answer, Compute, Error, History, Pinned, Table, compute_table, cost, measured, width};

/// Entries that could not be read and were computed instead.
const UNREADABLE_ENTRIES: &str = "candlemesh_indicator_unreadable_entries_total";

/// Part of the key: raised when the encoding of entries changes.
const ENTRY_VERSION: u32 = 3;
/// Largest answer kept: 300 000 rows of the D3 set. A larger one would push out too many others.
const MAX_ENTRY_BYTES: usize = 32 * 1024 * 1024;
/// Entries up to this size are decoded where they arrive, in some ten microseconds; larger ones on the pool.
const MAX_INLINE_BYTES: usize = 64 * 1024;
/// Looks at the cache per request. A caller that shares another's computation shares its failure, also when only the other's deadline
/// was short; so it looks once more.
const ATTEMPTS: usize = 2;

#[derive(Debug)]
pub(super) struct V2 {
    pub(super) history: History,
    pub(super) pool: Arc<CpuPool>,
    pub(super) master: Arc<dyn MasterData>,
    /// `None` where caching is switched off.
    pub(super) kept: Option<Kept>,
}

/// What is kept between requests.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) answers: Cache,
    pub(super) series: AllSeries,
}

/// A table of canonical columns, with its encoding where that is small enough to keep.
#[derive(Debug)]
struct Computed {
    table: Table,
    took: Duration,
    entry: Option<Bytes>,
}

/// Why the cache got nothing to keep.
#[derive(Debug)]
enum Miss {
    Failed(Error),
    TooLarge,
}

#[tonic::async_trait]
impl Compute for V2 {
    async fn compute(&self, pinned: &Pinned<'_>) -> Result<Answer, Error> {
        let canonical = canonical(&pinned.query.specs)?;
        let (table, source, took) = match &self.kept {
            Some(kept) => self.look_up(kept, pinned, &canonical).await?,
            None => self.compute_whole(pinned, &canonical).await?.fresh(),
        };
        let columns = arrange(&pinned.query.specs, &canonical, table.columns);
        Ok(pinned.answer(Table { columns, ..table }, source, took))
    }
}

impl V2 {
    async fn look_up(
        &self,
        kept: &Kept,
        pinned: &Pinned<'_>,
        canonical: &Arc<[Spec]>,
    ) -> Result<(Table, Source, Duration), Error> {
        let key = entry_key(pinned, canonical, pinned.revision, pinned.query.range);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut is_leader = false;
            let mut computed = None;
            let compute = async {
                is_leader = true;
                let fresh = self.compute_on(kept, pinned, canonical).await.map_err(Miss::Failed)?;
                let entry = fresh.entry.clone();
                computed = Some(fresh);
                entry.ok_or(Miss::TooLarge)
            };
            let found = kept.answers.get_or_compute(&key, compute).await;
            if let Some(computed) = computed {
                return Ok(computed.fresh());
            }
            match found {
                Ok((entry, source)) => match self.read(entry, canonical).await? {
                    Some(table) => return Ok((table, source, Duration::ZERO)),
                    None => metrics::counter!(UNREADABLE_ENTRIES).increment(1),
                },
                Err(miss) => match &*miss {
                    Miss::TooLarge => {}
                    Miss::Failed(error) if is_leader || attempt == ATTEMPTS => return Err(error.clone()),
                    Miss::Failed(_) => continue,
                },
            }
            return Ok(self.compute_whole(pinned, canonical).await?.fresh());
        }
    }

    /// Computes on what earlier computations of the series have left, as far as it holds at the pinned revision.
    async fn compute_on(&self, kept: &Kept, pinned: &Pinned<'_>, canonical: &Arc<[Spec]>) -> Result<Computed, Error> {
        let key = series_key(pinned, canonical);
        let (mut series, computed, left) = match kept.series.get(&key).await {
            Some(known) if known.revision() > pinned.revision => return self.compute_whole(pinned, canonical).await,
            Some(known) => match self.brought_up(&known, pinned).await {
                Some(series) => {
                    let (computed, left) = self.compute_again(kept, pinned, canonical, &series).await?;
                    (series, computed, left)
                }
                None => (Series::at(pinned.revision), self.compute_whole(pinned, canonical).await?, Left::default()),
            },
            None => (Series::at(pinned.revision), self.compute_whole(pinned, canonical).await?, Left::default()),
        };
        series.add(pinned.query.range, left);
        kept.series.keep(key, series).await;
        Ok(computed)
    }

    /// What of a series holds at the pinned revision. `None` where it cannot be known; then nothing is taken for granted.
    async fn brought_up(&self, known: &Series, pinned: &Pinned<'_>) -> Option<Series> {
        if known.revision() == pinned.revision {
            return Some(known.clone());
        }
        match self.master.first_change(&pinned.query.key, known.revision(), pinned.revision).await {
            Ok(first) => Some(known.advanced(pinned, first?)),
            Err(error) => {
                tracing::debug!(%error, "ingestion does not say what changed; the whole series is computed");
                None
            }
        }
    }

    /// Computes from the latest state that holds, with the rows of an earlier answer before it; else from the first candle, leaving states.
    async fn compute_again(
        &self,
        kept: &Kept,
        pinned: &Pinned<'_>,
        canonical: &Arc<[Spec]>,
        series: &Series,
    ) -> Result<(Computed, Left), Error> {
        for start in series.starts(pinned.query.range) {
            let earlier = match start.earlier {
                None => None,
                Some((revision, range, _)) => {
                    let key = entry_key(pinned, canonical, revision, range);
                    let Some(entry) = kept.answers.peek(&key).await else { continue };
                    let Some(table) = self.read(entry, canonical).await? else { continue };
                    Some(table)
                }
            };
            return self.compute_from(kept, pinned, canonical, start, earlier).await;
        }
        if series.has_states() {
            // They lie behind the beginning of the range; to leave them again would cost more than columns do.
            return Ok((self.compute_whole(pinned, canonical).await?, Left::default()));
        }
        let history = self.history.take(pinned, cost(canonical)).await?;
        let (specs, range, calendar) = (Arc::clone(canonical), pinned.query.range, Arc::clone(&pinned.calendar));
        let timeframe = pinned.query.timeframe;
        let task = move |cancel: &Cancel| {
            let (count, place) = (history.frame.len() * width(&specs), (&*calendar, timeframe));
            let stop = || cancel.is_cancelled();
            let (outcome, took) = measured(Engine::V2, count, || advance(&specs, None, &history, range, place, &stop));
            let (table, left) = outcome?;
            let entry = encode(&table);
            Ok((Computed { table, took, entry }, left))
        };
        self.pool.run_at(Priority::current(), task).await?
    }

    async fn compute_from(
        &self,
        kept: &Kept,
        pinned: &Pinned<'_>,
        canonical: &Arc<[Spec]>,
        start: Start,
        earlier: Option<Table>,
    ) -> Result<(Computed, Left), Error> {
        let range = pinned.query.range;
        let is_whole = start.earlier.is_some_and(|(_, _, until)| until >= range.end());
        let (Some(snapshot), false) = (start.snapshot, is_whole) else {
            // Nothing changed before the end of the range: the answer is that of the earlier revision.
            let task = move || {
                let table = earlier.unwrap_or_default().between(range.start(), range.end());
                let entry = encode(&table);
                (Computed { table, took: Duration::ZERO, entry }, Left::default())
            };
            let (computed, left) = self.pool.run(task).await?;
            kept.series.count(computed.table.before + computed.table.open_time.len() as u64);
            return Ok((computed, left));
        };
        let rest = TimeRange::new(snapshot.at(), range.end()).map_err(|error| Error::range(&error))?;
        let history = self.history.between(pinned, rest).await?;
        // As much is refused as would be without the state: an answer must not depend on what is kept.
        self.history.check(history.frame.len() + snapshot.seen() as usize, cost(canonical))?;
        kept.series.count(snapshot.seen());
        let (specs, calendar, timeframe) =
            (Arc::clone(canonical), Arc::clone(&pinned.calendar), pinned.query.timeframe);
        let task = move |cancel: &Cancel| {
            let (count, place) = (history.frame.len() * width(&specs), (&*calendar, timeframe));
            let stop = || cancel.is_cancelled();
            let new = TimeRange::new(range.start().max(snapshot.at()), range.end());
            let new = new.map_err(|error| Error::range(&error))?;
            let (outcome, took) =
                measured(Engine::V2, count, || advance(&specs, Some(&snapshot), &history, new, place, &stop));
            let (mut table, left) = outcome?;
            if let Some(earlier) = earlier {
                table = earlier.between(range.start(), snapshot.at()).followed_by(table);
            }
            let entry = encode(&table);
            Ok((Computed { table, took, entry }, left))
        };
        self.pool.run_at(Priority::current(), task).await?
    }

    /// Computes over columns, from the first candle.
    async fn compute_whole(&self, pinned: &Pinned<'_>, canonical: &Arc<[Spec]>) -> Result<Computed, Error> {
        let history = self.history.take(pinned, cost(canonical)).await?;
        let (specs, range, keep) = (Arc::clone(canonical), pinned.query.range, self.kept.is_some());
        let task = move |cancel: &Cancel| {
            let stop = || cancel.is_cancelled();
            let kernel = |inputs: &Inputs<'_>| compute_fused_until(&specs, inputs, &stop);
            let (table, took) = compute_table(Engine::V2, &specs, &history, range, kernel)?;
            let entry = if keep { encode(&table) } else { None };
            Ok(Computed { table, took, entry })
        };
        self.pool.run_at(Priority::current(), task).await?
    }

    async fn read(&self, entry: Bytes, canonical: &Arc<[Spec]>) -> Result<Option<Table>, Error> {
        if entry.len() <= MAX_INLINE_BYTES {
            return Ok(decode(entry, canonical));
        }
        let canonical = Arc::clone(canonical);
        Ok(self.pool.run(move || decode(entry, &canonical)).await?)
    }
}

impl Computed {
    fn fresh(self) -> (Table, Source, Duration) {
        (self.table, Source::Computed, self.took)
    }
}

/// The specs by their canonical spelling, sorted, each once.
pub(crate) fn canonical(specs: &[Spec]) -> Result<Arc<[Spec]>, Error> {
    let mut spellings: Vec<String> = specs.iter().map(Spec::to_string).collect();
    spellings.sort_unstable();
    spellings.dedup();
    Ok(spellings.iter().map(|spelling| spelling.parse()).collect::<Result<_, kernels::Error>>()?)
}

/// Begins the keys of all entries of this encoding.
pub(crate) fn entry_prefix() -> String {
    format!("indicator/v2/{ENTRY_VERSION}/")
}

/// The key under which an entry of this encoding, or of the one before, is looked for now, and how it lies in Redis. Keys of the one before
/// do not name their store, which must therefore be given.
pub fn entry_renamed(key: &str, store: Option<&str>) -> Option<(String, Layout)> {
    if key.starts_with(&entry_prefix()) {
        return Some((key.to_owned(), Layout::Current));
    }
    // The second encoding is the third without version and packing around it.
    let rest = key.strip_prefix("indicator/v2/2/")?;
    Some((format!("{}{}/{rest}", entry_prefix(), store?), Layout::ChecksumAndValue))
}

/// Every input of the answer at a revision and for a range. The instrument comes last: it alone may hold a slash.
fn entry_key(pinned: &Pinned<'_>, canonical: &[Spec], revision: u64, range: TimeRange) -> String {
    key_with(pinned, canonical, &format!("{}/{}/{revision}", range.start(), range.end()))
}

/// Every input of a series but its candles.
fn series_key(pinned: &Pinned<'_>, canonical: &[Spec]) -> String {
    key_with(pinned, canonical, "series")
}

fn key_with(pinned: &Pinned<'_>, canonical: &[Spec], data: &str) -> String {
    let (query, calendar) = (pinned.query, &pinned.calendar);
    let specs: Vec<&str> = canonical.iter().map(Spec::label).collect();
    format!(
        "{}{}/{}/{}/{}/{}/{data}/{}/{}",
        entry_prefix(),
        pinned.store,
        kernels::indicator::REVISION,
        calendar.name(),
        calendar.revision(),
        query.timeframe,
        specs.join(";"),
        query.key,
    )
}

/// `None` for a table too large to keep.
fn encode(table: &Table) -> Option<Bytes> {
    if table.open_time.len().saturating_mul((table.columns.len() + 1) * size_of::<f64>()) > MAX_ENTRY_BYTES {
        return None;
    }
    let columns = table.columns.iter().map(|column| proto::convert::wire_column(&column.name, column.values.clone()));
    let message = ComputeIndicatorsResponse {
        open_time_ms: table.open_time.clone(),
        columns: columns.collect(),
        warm_ups: vec![WarmUp { candles_used: table.before, ..Default::default() }],
        ..Default::default()
    };
    Some(message.encode_to_vec().into())
}

/// `None` for bytes that are not a table of these columns.
fn decode(entry: Bytes, canonical: &[Spec]) -> Option<Table> {
    let message = ComputeIndicatorsResponse::decode(entry).ok()?;
    let rows = message.open_time_ms.len();
    let names: Vec<String> = canonical.iter().flat_map(Spec::columns).collect();
    let fits = message.columns.len() == names.len()
        && message.columns.iter().zip(&names).all(|(column, name)| column.name == *name && column.values.len() == rows);
    if !fits {
        return None;
    }
    let mut columns = Vec::with_capacity(names.len());
    for mut column in message.columns {
        for range in &column.null_ranges {
            column.values.get_mut(range.start as usize..range.end as usize)?.fill(f64::NAN);
        }
        columns.push(Column { name: column.name, values: column.values });
    }
    Some(Table { before: message.warm_ups.first()?.candles_used, open_time: message.open_time_ms, columns })
}

/// Gives canonical columns the names and the order of the request; values are copied only where two labels mean the same.
fn arrange(requested: &[Spec], canonical: &[Spec], columns: Vec<Column>) -> Vec<Column> {
    let mut columns = columns.into_iter();
    let mut of_spec: Vec<Vec<Vec<f64>>> = canonical
        .iter()
        .map(|spec| columns.by_ref().take(spec.outputs().len()).map(|column| column.values).collect())
        .collect();
    let place = |spec: &Spec| {
        let spelling = spec.to_string();
        let found = canonical.iter().position(|known| known.label() == spelling);
        found.expect("the canonical specs are made from the requested ones")
    };
    let places: Vec<usize> = requested.iter().map(place).collect();
    let mut arranged = Vec::new();
    for (index, (spec, &place)) in requested.iter().zip(&places).enumerate() {
        let values = match places[index + 1..].contains(&place) {
            true => of_spec[place].clone(),
            false => std::mem::take(&mut of_spec[place]),
        };
        arranged.extend(spec.columns().into_iter().zip(values).map(|(name, values)| Column { name, values }));
    }
    arranged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(texts: &[&str]) -> Arc<[Spec]> {
        canonical(&texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Spec>>()).unwrap()
    }

    fn table() -> Table {
        let column = |name: &str, values: [f64; 3]| Column { name: name.into(), values: values.into() };
        let columns = vec![column("obv", [1.0, -2.0, 0.0]), column("sma:2", [f64::NAN, 2.5, f64::NAN])];
        Table { before: 7, open_time: vec![-60_000, 0, 60_000], columns }
    }

    #[test]
    fn an_entry_returns_to_the_bit_with_undefined_values() {
        let back = decode(encode(&table()).unwrap(), &specs(&["obv", "sma:2"])).unwrap();
        assert_eq!(back.open_time, table().open_time);
        for (a, b) in back.columns.iter().zip(table().columns) {
            let same = a.values.iter().zip(&b.values).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(a.name == b.name && same, "{a:?}");
        }
    }

    #[test]
    fn an_entry_that_does_not_fit_is_unreadable() {
        let entry = encode(&table()).unwrap();
        assert!(decode(entry.clone(), &specs(&["obv", "sma:3"])).is_none());
        assert!(decode(entry.clone(), &specs(&["obv"])).is_none());
        assert!(decode(entry.slice(..entry.len() - 1), &specs(&["obv", "sma:2"])).is_none());
        let mut message = ComputeIndicatorsResponse::decode(entry).unwrap();
        message.columns[1].null_ranges[0].end = 9;
        assert!(decode(message.encode_to_vec().into(), &specs(&["obv", "sma:2"])).is_none());
    }

    #[test]
    fn canonical_specs_do_not_depend_on_spelling_or_order() {
        let labels = |texts: &[&str]| specs(texts).iter().map(|spec| spec.label().to_owned()).collect::<Vec<_>>();
        assert_eq!(labels(&["RSI", "ema:9", "rsi:14"]), ["ema:9", "rsi:14"]);
        assert_eq!(labels(&["bbands:20, 2.0"]), ["bbands:20,2"]);
    }
}

//! The fast engine: all indicators in one pass over columns, answers kept in the cache.
//!
//! The cache holds answers in canonical form (specs sorted, each once), so that `rsi` and `RSI:14` in any order meet the same entry; the
//! requested names and order are put back on the way out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kernels::indicator::{Column, Spec, compute_fused};
use mesh::CpuPool;
use mesh::cache::{Cache, Source};
use prost::Message;
use proto::indicator::{ComputeIndicatorsResponse, WarmUp};
use rollout::Engine;

use super::{Answer, Compute, Error, History, Pinned, Table, compute_table, cost};

/// Entries that could not be read and were computed instead.
const UNREADABLE_ENTRIES: &str = "candlemesh_indicator_unreadable_entries_total";

/// Part of the key: raised when the encoding of entries changes.
const ENTRY_VERSION: u32 = 2;
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
    /// `None` where caching is switched off.
    pub(super) cache: Option<Cache>,
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
        let (table, source, took) = match &self.cache {
            Some(cache) => self.look_up(cache, pinned, &canonical).await?,
            None => self.compute_canonical(pinned, &canonical).await?.fresh(),
        };
        let columns = arrange(&pinned.query.specs, &canonical, table.columns);
        Ok(pinned.answer(Table { columns, ..table }, source, took))
    }
}

impl V2 {
    async fn look_up(
        &self,
        cache: &Cache,
        pinned: &Pinned<'_>,
        canonical: &Arc<[Spec]>,
    ) -> Result<(Table, Source, Duration), Error> {
        let key = entry_key(pinned, canonical);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut is_leader = false;
            let mut computed = None;
            let compute = async {
                is_leader = true;
                let fresh = self.compute_canonical(pinned, canonical).await.map_err(Miss::Failed)?;
                let entry = fresh.entry.clone();
                computed = Some(fresh);
                entry.ok_or(Miss::TooLarge)
            };
            let found = cache.get_or_compute(&key, compute).await;
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
            return Ok(self.compute_canonical(pinned, canonical).await?.fresh());
        }
    }

    async fn compute_canonical(&self, pinned: &Pinned<'_>, canonical: &Arc<[Spec]>) -> Result<Computed, Error> {
        let history = self.history.take(pinned, cost(canonical)).await?;
        let (specs, range, keep) = (Arc::clone(canonical), pinned.query.range, self.cache.is_some());
        let task = move || {
            let (table, took) = compute_table(Engine::V2, history, range, |inputs| compute_fused(&specs, inputs))?;
            let entry = if keep { encode(&table) } else { None };
            Ok(Computed { table, took, entry })
        };
        self.pool.run(task).await?
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

/// Every input of the answer. The instrument comes last: it alone may hold a slash.
fn entry_key(pinned: &Pinned<'_>, canonical: &[Spec]) -> String {
    let (query, calendar) = (pinned.query, &pinned.calendar);
    let specs: Vec<&str> = canonical.iter().map(Spec::label).collect();
    format!(
        "indicator/v2/{ENTRY_VERSION}/{}/{}/{}/{}/{}/{}/{}/{}/{}",
        kernels::indicator::REVISION,
        calendar.name(),
        calendar.revision(),
        query.timeframe,
        query.range.start(),
        query.range.end(),
        pinned.revision,
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

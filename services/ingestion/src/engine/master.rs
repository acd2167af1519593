//! Master data: instruments and groups of them.

use std::collections::BTreeMap;

use market::{Calendar, Instrument, InstrumentKey};
use store::Group;

use super::{Engine, Error, Result};

/// Groups there may be, since they are listed in one answer.
const MAX_GROUPS: usize = 1000;
/// Keys in one answer that lists groups: 48 MB at the longest keys, inside the largest message.
const MAX_LISTED_KEYS: usize = 500_000;
/// Groups read from the store at a time.
const GROUP_PAGE: usize = 100;

impl Engine {
    /// Creates or replaces an instrument. Its calendar is free until candles are stored by it.
    ///
    /// The candles decide, not the catalog: they are stored first, so the catalog may know nothing of them or, after a put at the same
    /// time as this, another calendar. The next call with the candles' own calendar mends that.
    pub(crate) async fn put_instrument(&self, instrument: Instrument) -> Result<Instrument> {
        let _alone = self.catalog_writes.lock().await;
        let stored_by = self.stores.candles.calendar(&instrument.key).await?;
        if let Some(known) = stored_by.filter(|known| *known != instrument.calendar) {
            let (key, given) = (instrument.key, instrument.calendar);
            return Err(Error::CalendarInUse { key, known, given });
        }
        self.stores.catalog.upsert_instrument(&instrument).await?;
        Ok(instrument)
    }

    /// Creates instruments that candles were delivered of, where there is none yet: what a PutInstrument says, here or in another
    /// replica, is never undone.
    pub(super) async fn create_instruments<'a>(
        &self,
        unknown: impl Iterator<Item = (&'a InstrumentKey, &'a Calendar)>,
    ) -> Result<()> {
        let new: BTreeMap<&InstrumentKey, Instrument> =
            unknown.map(|(key, calendar)| (key, first_seen(key, calendar.name()))).collect();
        if new.is_empty() {
            return Ok(());
        }
        let new: Vec<Instrument> = new.into_values().collect();
        let created = self.stores.catalog.insert_instruments(&new).await?;
        tracing::info!(created, first = %new[0].key, "instruments seen for the first time");
        Ok(())
    }

    pub(crate) async fn instrument(&self, key: &InstrumentKey) -> Result<Instrument> {
        if let Some(found) = self.stores.catalog.instrument(key).await? {
            return Ok(found);
        }
        // Its first candles are durable, and may be heard of, before the catalog has it: it is what it will be there.
        let stored_by = self.stores.candles.calendar(key).await?;
        stored_by.map(|calendar| first_seen(key, &calendar)).ok_or_else(|| Error::UnknownInstrument(key.clone()))
    }

    /// A page of instruments after a key, and whether there are more.
    pub(crate) async fn instruments(
        &self,
        after: Option<&InstrumentKey>,
        page_size: usize,
        segment: Option<&str>,
    ) -> Result<(Vec<Instrument>, bool)> {
        let mut page = self.stores.catalog.list_instruments(after, page_size + 1, segment).await?;
        let has_more = page.len() > page_size;
        page.truncate(page_size);
        Ok((page, has_more))
    }

    pub(crate) async fn put_group(&self, group: Group) -> Result<Group> {
        let _alone = self.catalog_writes.lock().await;
        if self.stores.catalog.group(&group.id).await?.is_none() {
            let given = self.stores.catalog.list_groups(None, MAX_GROUPS).await?.len() + 1;
            if given > MAX_GROUPS {
                return Err(Error::Limit { field: "groups", given, limit: MAX_GROUPS });
            }
        }
        self.stores.catalog.put_group(&group).await?;
        Ok(group)
    }

    pub(crate) async fn group(&self, id: &str) -> Result<Group> {
        self.stores.catalog.group(id).await?.ok_or_else(|| Error::UnknownGroup(id.to_owned()))
    }

    /// Every group, ordered by id.
    pub(crate) async fn groups(&self) -> Result<Vec<Group>> {
        let mut groups: Vec<Group> = Vec::new();
        let mut keys = 0;
        loop {
            let after = groups.last().map(|group| group.id.clone());
            let page = self.stores.catalog.list_groups(after.as_deref(), GROUP_PAGE).await?;
            let is_last = page.len() < GROUP_PAGE;
            keys += page.iter().map(|group| group.instrument_keys.len()).sum::<usize>();
            if keys > MAX_LISTED_KEYS {
                return Err(Error::Limit {
                    field: "instrument keys of all groups",
                    given: keys,
                    limit: MAX_LISTED_KEYS,
                });
            }
            groups.extend(page);
            if is_last {
                return Ok(groups);
            }
        }
    }

    pub(crate) async fn delete_group(&self, id: &str) -> Result<()> {
        if self.stores.catalog.delete_group(id).await? { Ok(()) } else { Err(Error::UnknownGroup(id.to_owned())) }
    }
}

fn first_seen(key: &InstrumentKey, calendar: &str) -> Instrument {
    Instrument {
        key: key.clone(),
        name: String::new(),
        exchange: exchange_of(key).to_owned(),
        currency: String::new(),
        tick_size: 0.0,
        calendar: calendar.to_owned(),
    }
}

/// Exchange of a key: its segment up to the first underscore.
pub(crate) fn exchange_of(key: &InstrumentKey) -> &str {
    let segment = key.segment();
    segment.split_once('_').map_or(segment, |(exchange, _)| exchange)
}

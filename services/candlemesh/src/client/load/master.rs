//! Master data that a manifest has of an instrument, and what the mesh knows of it.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use formats::Entry;
use market::{Calendar, InstrumentKey};
use proto::ingestion::ingestion_service_client::IngestionServiceClient;
use proto::ingestion::{GetInstrumentRequest, PutInstrumentRequest};
use proto::wire::Instrument;
use tonic::Code;

use crate::client::{Channel, Connection};

/// What a manifest says of an instrument; empty, or 0, where it says nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Master {
    pub name: String,
    pub exchange: String,
    pub currency: String,
    pub tick_size: f64,
    pub calendar: Option<&'static str>,
}

impl Master {
    pub(super) fn of(entry: &Entry) -> Master {
        Master {
            name: entry.symbol.clone(),
            exchange: entry.exchange.clone(),
            currency: entry.currency.clone(),
            tick_size: entry.tick_size,
            calendar: entry.calendar,
        }
    }
}

/// Asks for and completes master data.
pub(super) struct Masters<'a> {
    pub(super) connection: &'a Connection,
    pub(super) channel: Channel,
    /// Of instruments not seen before, whatever the manifest says.
    pub(super) calendar: Option<&'a str>,
    pub(super) given: &'a HashMap<InstrumentKey, Master>,
}

impl Masters<'_> {
    /// The calendar an instrument has, or will have, and what is known of it.
    ///
    /// Errors: another one was given than the instrument has; nobody says which calendar a new one has.
    pub(super) async fn calendar(&self, key: &InstrumentKey) -> Result<(Arc<Calendar>, Option<Instrument>)> {
        let given = match self.calendar {
            Some(name) => Some(Calendar::by_name(name).context("--calendar")?),
            None => self.given.get(key).and_then(|master| master.calendar).map(Calendar::by_name).transpose()?,
        };
        let known = self.known(key).await?;
        let calendar = match (&known, given) {
            (Some(known), Some(given)) if known.calendar != given.name() => {
                bail!("{key} is known with calendar {}, not {}", known.calendar, given.name())
            }
            (Some(known), _) => Calendar::by_name(&known.calendar)?,
            (None, Some(given)) => given,
            (None, None) => match Calendar::for_key(key) {
                Ok(calendar) => calendar,
                Err(error) => bail!("{error}: pass it with --calendar, or in a manifest's column calendar"),
            },
        };
        Ok((calendar, known))
    }

    /// [`calendar`](Self::calendar), which is noted of a new instrument where it was given, with all else that is.
    pub(super) async fn introduce(&self, key: &InstrumentKey) -> Result<Arc<Calendar>> {
        let (calendar, known) = self.calendar(key).await?;
        let master = self.given.get(key).cloned().unwrap_or_default();
        if known.is_none() && (self.calendar.is_some() || master.calendar.is_some()) {
            let instrument_key = key.to_string();
            let Master { name, exchange, currency, tick_size, .. } = master;
            let calendar = calendar.name().to_owned();
            self.put(Instrument { instrument_key, name, exchange, currency, tick_size, calendar }).await?;
        }
        Ok(calendar)
    }

    /// Gives an instrument what the manifest has and it has not yet.
    pub(super) async fn complete(&self, key: &InstrumentKey) -> Result<()> {
        let Some(master) = self.given.get(key) else { return Ok(()) };
        // Without it every row was refused, so that nothing is known of it.
        let Some(known) = self.known(key).await? else { return Ok(()) };
        let or = |known: &str, given: &str| if known.is_empty() { given.to_owned() } else { known.to_owned() };
        let complete = Instrument {
            name: or(&known.name, &master.name),
            exchange: or(&known.exchange, &master.exchange),
            currency: or(&known.currency, &master.currency),
            tick_size: if known.tick_size == 0.0 { master.tick_size } else { known.tick_size },
            ..known.clone()
        };
        if complete == known {
            return Ok(());
        }
        self.put(complete).await
    }

    async fn known(&self, key: &InstrumentKey) -> Result<Option<Instrument>> {
        let mut client = IngestionServiceClient::new(self.channel.clone());
        match client.get_instrument(GetInstrumentRequest { instrument_key: key.to_string() }).await {
            Ok(answer) => Ok(Some(answer.into_inner().instrument.unwrap_or_default())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.connection.explain(status)),
        }
    }

    async fn put(&self, instrument: Instrument) -> Result<()> {
        let mut client = IngestionServiceClient::new(self.channel.clone());
        let request = PutInstrumentRequest { instrument: Some(instrument) };
        client.put_instrument(request).await.map_err(|status| self.connection.explain(status))?;
        Ok(())
    }
}

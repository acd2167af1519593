//! Which rows lie outside the sessions of their calendar: many do where the zone of the stamps is a wrong one.

use std::collections::BTreeMap;
use std::sync::Arc;

use formats::Chunk;
use market::{Calendar, InstrumentKey, Millis, TradingDay};

/// Instruments named in notes; the others are counted.
const NAMED: usize = 3;

/// Rows of a file by instrument.
#[derive(Debug, Default)]
pub(super) struct Sessions(BTreeMap<InstrumentKey, Counted>);

#[derive(Debug)]
struct Counted {
    calendar: Arc<Calendar>,
    day: Option<TradingDay>,
    rows: u64,
    outside: u64,
}

impl Sessions {
    /// Counts the rows of a chunk. Candles of a day and wider are named by their date, which no zone moves far.
    pub(super) fn count(&mut self, chunk: &Chunk, calendar: &Arc<Calendar>) {
        if chunk.timeframe.width_ms().is_none() {
            return;
        }
        // The key is cloned once per instrument and file.
        if !self.0.contains_key(&chunk.instrument) {
            let counted = Counted { calendar: Arc::clone(calendar), day: None, rows: 0, outside: 0 };
            self.0.insert(chunk.instrument.clone(), counted);
        }
        if let Some(counted) = self.0.get_mut(&chunk.instrument) {
            chunk.rows.iter().for_each(|row| counted.row(row.open_time));
        }
    }

    /// What a reader of the report should know, where most rows of an instrument lie outside.
    pub(super) fn notes(&self) -> Vec<String> {
        let striking: Vec<_> = self.0.iter().filter(|(_, counted)| counted.outside * 2 > counted.rows).collect();
        let note = |(key, counted): &(&InstrumentKey, &Counted)| {
            let (outside, rows, calendar) = (counted.outside, counted.rows, counted.calendar.name());
            format!(
                "{key}: {outside} of {rows} rows lie outside the sessions of {calendar}; is the zone of their stamps right?"
            )
        };
        let mut notes: Vec<String> = striking.iter().take(NAMED).map(note).collect();
        if striking.len() > NAMED {
            notes.push(format!("so do most rows of {} more instruments", striking.len() - NAMED));
        }
        notes
    }
}

impl Counted {
    fn row(&mut self, at: Millis) {
        let day = match self.day.take() {
            Some(day) if day.start <= at && at < day.end => day,
            _ => self.calendar.day_at(at),
        };
        self.rows += 1;
        self.outside += u64::from(!day.sessions.iter().any(|session| session.open <= at && at < session.close));
        self.day = Some(day);
    }
}

#[cfg(test)]
mod tests {
    use market::{Candle, Timeframe};

    use super::*;

    fn chunk(key: &str, timeframe: Timeframe, first: &str, rows: i64) -> Chunk {
        let first = market::parse_millis(first).unwrap();
        let candle = |row| Candle {
            open_time: first + row * 60_000,
            open: 1.0,
            high: 1.0,
            low: 1.0,
            close: 1.0,
            volume: 1.0,
            open_interest: None,
        };
        let rows: Vec<Candle> = (0..rows).map(candle).collect();
        Chunk { instrument: key.parse().unwrap(), timeframe, lines: vec![0; rows.len()], rows }
    }

    #[test]
    fn local_times_taken_for_utc_are_noted_and_right_ones_are_not() {
        let nse = Calendar::by_name("NSE").unwrap();
        let mut sessions = Sessions::default();
        // A session of 375 minutes from 09:15 in Mumbai; the same minutes as if they were of Greenwich; days.
        sessions.count(&chunk("NSE_EQ|RIGHT", Timeframe::M1, "2016-08-16T03:45:00Z", 375), &nse);
        sessions.count(&chunk("NSE_EQ|WRONG", Timeframe::M1, "2016-08-16T09:15:00Z", 375), &nse);
        sessions.count(&chunk("NSE_EQ|DAYS", Timeframe::D1, "2016-08-15T18:30:00Z", 1), &nse);
        let notes = sessions.notes();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].starts_with("NSE_EQ|WRONG: 330 of 375 rows lie outside the sessions of NSE"), "{notes:?}");
        let always = Calendar::by_name("24x7").unwrap();
        let mut sessions = Sessions::default();
        sessions.count(&chunk("CRYPTO|X", Timeframe::M1, "2016-08-14T03:45:00Z", 10), &always);
        assert_eq!(sessions.notes(), [""; 0]);
    }
}

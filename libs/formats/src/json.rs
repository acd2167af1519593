//! Candle answers of Kite Connect and Upstox: `{"status": ..., "data": {"candles": [[stamp, o, h, l, c, v, oi], ...]}}`.

use std::fmt;
use std::io::Read;

use market::{Candle, InstrumentKey};
use serde::de::{Deserialize, DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::chunker::{Chunker, Flow, Row, Stop};
use crate::stamp::{self, Stamp};
use crate::text::reason_of;
use crate::{FileSpec, Format, InputError, Stamps, display};

/// Largest answer read. The longest a vendor gives, sixty days of minutes, is under 2 MiB.
const MAX_JSON_BYTES: u64 = 64 * 1024 * 1024;
/// Values of a candle; more are counted, not kept.
const MAX_VALUES: usize = 7;
/// Longest text kept: stamps are under 30 bytes, and this much of a message is shown.
const MAX_TEXT_CHARS: usize = 200;
/// Kite writes offsets as +0530, Upstox as +05:30; both are read under either name.
const UPSTOX_OFFSET: &str = "+05:30";

/// Reads a whole answer; the line of a row is its number in the list.
pub(crate) fn read(
    spec: &FileSpec,
    instrument: Option<&InstrumentKey>,
    text: impl Read,
    chunker: &mut Chunker<'_>,
) -> Result<Format, Stop> {
    let file = display(&spec.path);
    let Some(instrument) = instrument else { return Err(InputError::NoInstrument { file }.into()) };
    chunker.stamps = spec.stamps.unwrap_or(Stamps::Open);
    let mut answer = Answer {
        spec,
        instrument,
        chunker,
        format: None,
        rows: 0,
        found: false,
        status: String::new(),
        message: String::new(),
        stopped: None,
    };
    // One byte more, so that an answer of just this length is not taken for a longer one.
    let mut limited = std::io::BufReader::new(text.take(MAX_JSON_BYTES + 1));
    let mut deserializer = serde_json::Deserializer::from_reader(&mut limited);
    let outcome = Top(&mut answer).deserialize(&mut deserializer).and_then(|()| deserializer.end());
    let too_long = limited.get_ref().limit() == 0;
    if let Some(stop) = answer.stopped.take() {
        return Err(stop);
    }
    let rows = answer.rows;
    if let Err(error) = outcome {
        let reason = match error.io_error_kind() {
            Some(kind) => reason_of(&kind.into()),
            None if error.is_eof() && too_long => {
                format!("the JSON is longer than {} MiB, no answer of a vendor is: split it", MAX_JSON_BYTES >> 20)
            }
            None if error.is_eof() => "the JSON ends early: fetch it again".to_owned(),
            None => format!("is not the JSON of a candle answer: {error}"),
        };
        return Err(answer.chunker.fail(InputError::Broken { file, line: rows + 1, reason }));
    }
    if !answer.found {
        let (status, message) = (&answer.status, &answer.message);
        let reason = match status.is_empty() && message.is_empty() {
            true => "has no list data.candles; Kite Connect and Upstox answers are read".to_owned(),
            false => format!("has no list data.candles: the vendor answered status '{status}' {message}"),
        };
        return Err(InputError::Unreadable { file, reason }.into());
    }
    Ok(match (spec.format, answer.format) {
        (Format::Auto, found) => found.unwrap_or(Format::Kite),
        (named, _) => named,
    })
}

struct Answer<'a, 's> {
    spec: &'a FileSpec,
    instrument: &'a InstrumentKey,
    chunker: &'a mut Chunker<'s>,
    format: Option<Format>,
    rows: u64,
    found: bool,
    status: String,
    message: String,
    stopped: Option<Stop>,
}

impl Answer<'_, '_> {
    fn row(&mut self, row: &Values) -> Flow {
        self.rows += 1;
        match self.candle(row) {
            Ok(row) => self.chunker.push(self.instrument, self.rows, row),
            Err(reason) => self.chunker.bad_row(self.rows, reason),
        }
    }

    fn candle(&mut self, row: &Values) -> Result<Row, String> {
        if !(6..=MAX_VALUES).contains(&row.count) {
            return Err(format!("{} values, a candle is a list of 6 or 7", row.count));
        }
        let Cell::Text(text) = &row.cells[0] else { return Err("timestamp is not a text".to_owned()) };
        self.format.get_or_insert(if text.ends_with(UPSTOX_OFFSET) { Format::Upstox } else { Format::Kite });
        let when = stamp::parse(text, Stamp::Text, self.spec.zone.as_ref())?;
        let number = |index: usize, name: &str| match &row.cells[index] {
            Cell::Number(value) => Ok(*value),
            Cell::Text(text) => Err(format!("{name} '{text}' is not a number")),
            _ => Err(format!("{name} is not a number")),
        };
        let open_interest = match row.cells.get(6) {
            None | Some(Cell::Null) => None,
            Some(_) => Some(number(6, "open_interest")?),
        };
        let candle = Candle {
            open_time: when.at,
            open: number(1, "open")?,
            high: number(2, "high")?,
            low: number(3, "low")?,
            close: number(4, "close")?,
            volume: number(5, "volume")?,
            open_interest,
        };
        Ok(Row { candle, date: when.date })
    }
}

/// A value of a candle; what is nested is passed over.
enum Cell {
    Text(String),
    Number(f64),
    Null,
    Other,
}

/// The first values of a list, and how many it has.
#[derive(Default)]
struct Values {
    cells: Vec<Cell>,
    count: usize,
}

struct CellVisitor;

impl<'de> Visitor<'de> for CellVisitor {
    type Value = Cell;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a number")
    }
    fn visit_str<E>(self, text: &str) -> Result<Cell, E> {
        Ok(Cell::Text(text.chars().take(MAX_TEXT_CHARS).collect()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Cell, E> {
        Ok(Cell::Number(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Cell, E> {
        Ok(Cell::Number(value as f64))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Cell, E> {
        Ok(Cell::Number(value as f64))
    }
    fn visit_unit<E>(self) -> Result<Cell, E> {
        Ok(Cell::Null)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Cell, E> {
        Ok(Cell::Other)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Cell, A::Error> {
        while values.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Cell::Other)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Cell, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Cell::Other)
    }
}

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Cell, D::Error> {
        deserializer.deserialize_any(CellVisitor)
    }
}

struct ValuesVisitor;

impl<'de> Visitor<'de> for ValuesVisitor {
    type Value = Values;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a candle as a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Values, A::Error> {
        let mut row = Values::default();
        while row.cells.len() < MAX_VALUES {
            let Some(cell) = values.next_element()? else { break };
            row.cells.push(cell);
        }
        row.count = row.cells.len();
        while values.next_element::<IgnoredAny>()?.is_some() {
            row.count += 1;
        }
        Ok(row)
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Values, D::Error> {
        deserializer.deserialize_seq(ValuesVisitor)
    }
}

/// The answer's outer object.
struct Top<'b, 'a, 's>(&'b mut Answer<'a, 's>);
/// Its `data`.
struct Data<'b, 'a, 's>(&'b mut Answer<'a, 's>);
/// The list of candles, read one by one.
struct Candles<'b, 'a, 's>(&'b mut Answer<'a, 's>);

impl<'de> DeserializeSeed<'de> for Top<'_, '_, '_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with data.candles")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "data" => map.next_value_seed(Data(self.0))?,
                "status" => self.0.status = short(map.next_value()?),
                "message" => self.0.message = short(map.next_value()?),
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(())
    }
}

fn short(value: Cell) -> String {
    match value {
        Cell::Text(text) => text,
        _ => String::new(),
    }
}

impl<'de> DeserializeSeed<'de> for Data<'_, '_, '_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Data<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with candles")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "candles" => map.next_value_seed(Candles(self.0))?,
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Candles<'_, '_, '_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Candles<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of candles")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        self.0.found = true;
        while let Some(row) = rows.next_element::<Values>()? {
            if let Err(stop) = self.0.row(&row) {
                self.0.stopped = Some(stop);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

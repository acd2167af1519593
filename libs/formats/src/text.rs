//! Reads the lines of a text by a layout.

use std::io::{ErrorKind, Read};

use market::{Candle, InstrumentKey, Millis, Timeframe};

use crate::chunker::{Chunker, Flow, Row};
use crate::layout::{Layout, Rows};
use crate::lines::{Headed, Line, Lines, MAX_LINE_BYTES, split};
use crate::stamp::{self, When};
use crate::ticks::MinuteBuilder;
use crate::{FileSpec, Format, InputError, Zone, display};

/// What Barchart writes below the last row.
const TRAILER: &str = "Downloaded from Barchart";

/// Reads a whole text.
pub(crate) fn read<R: Read>(
    spec: &FileSpec,
    instrument: Option<&InstrumentKey>,
    layout: &Layout,
    text: Headed<R>,
    chunker: &mut Chunker<'_>,
) -> Flow {
    let file = display(&spec.path);
    if instrument.is_none() && layout.key.is_none() {
        return Err(InputError::NoInstrument { file }.into());
    }
    if layout.rows == Rows::Trades && spec.timeframe.is_some_and(|timeframe| timeframe != Timeframe::M1) {
        let reason = "trades build candles of 1m: pass --timeframe 1m; wider ones are aggregated from those".to_owned();
        return Err(InputError::Unreadable { file, reason }.into());
    }
    if spec.zone.is_none() && layout.zone.is_none() && layout.day.is_some() {
        let reason = "times are since local midnight: pass --zone, for example --zone America/New_York".to_owned();
        return Err(InputError::Unreadable { file, reason }.into());
    }
    chunker.stamps = spec.stamps.unwrap_or(layout.stamps);
    if layout.rows == Rows::Trades {
        chunker.hint = Some(Timeframe::M1);
    }
    let mut reader = Reader {
        layout,
        zone: spec.zone.as_ref().or(layout.zone.as_ref()),
        instrument: instrument.cloned(),
        symbol: None,
        held: None,
        has_volume: false,
        minutes: MinuteBuilder::default(),
    };
    let mut lines = Lines::new(text);
    let mut bounds = Vec::new();
    // Lines that are not blank, as the layout counts its header.
    let mut written: u64 = 0;
    loop {
        let (number, line) = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(error) => {
                reader.end(chunker)?;
                let reason = reason_of(&error);
                return Err(chunker.fail(InputError::Broken { file, line: lines.number() + 1, reason }));
            }
        };
        if !matches!(line, Line::Text(text) if text.trim().is_empty()) {
            written += 1;
        }
        match line {
            Line::NotText => chunker.bad_row(number, "is not UTF-8 text")?,
            Line::TooLong => {
                chunker.bad_row(number, format!("is longer than {MAX_LINE_BYTES} bytes, no row of candles is"))?;
            }
            Line::Text(text) if written <= layout.header_lines || text.trim().is_empty() => {}
            Line::Text(text) if layout.format == Format::Barchart && text.contains(TRAILER) => trailer(text, chunker),
            Line::Text(text) => {
                split(text, layout.separator, &mut bounds);
                let fields = Fields { text, bounds: &bounds };
                reader.line(number, &fields, chunker)?;
            }
        }
    }
    reader.last_of_download(chunker)?;
    reader.end(chunker)
}

/// Why a read failed, in words.
pub(crate) fn reason_of(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => "the file is truncated: fetch it again".to_owned(),
        ErrorKind::InvalidInput | ErrorKind::InvalidData => {
            format!("the compressed data is damaged ({error}): fetch it again")
        }
        _ => error.to_string(),
    }
}

/// Barchart writes stamps in the zone it names at the foot, and ends with the minute then under way.
fn trailer(text: &str, chunker: &mut Chunker<'_>) {
    let made = text.trim().trim_matches('"');
    chunker.notes.push(format!("the last row may have been forming still: '{made}'; load a later export too"));
    if !text.contains("CST") && !text.contains("CDT") {
        chunker.notes.push(format!("the last line '{}' does not name Central time: check --zone", text.trim()));
    }
}

/// A line cut at its separators.
struct Fields<'a> {
    text: &'a str,
    bounds: &'a [(usize, usize)],
}

impl<'a> Fields<'a> {
    fn get(&self, column: usize) -> Option<&'a str> {
        self.bounds.get(column).map(|(from, to)| &self.text[*from..*to]).filter(|field| !field.is_empty())
    }

    fn number(&self, column: usize, name: &str) -> Result<f64, String> {
        let text = self.get(column).ok_or_else(|| format!("{name} is missing"))?;
        text.parse().map_err(|_| format!("{name} '{}' is not a number", shortened(text)))
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

struct Reader<'a> {
    layout: &'a Layout,
    zone: Option<&'a Zone>,
    instrument: Option<InstrumentKey>,
    symbol: Option<String>,
    /// The row before, where the last one may have to be refused.
    held: Option<(u64, InstrumentKey, Row)>,
    has_volume: bool,
    minutes: MinuteBuilder,
}

impl Reader<'_> {
    fn line(&mut self, line: u64, fields: &Fields<'_>, chunker: &mut Chunker<'_>) -> Flow {
        let row = self.row(fields, chunker);
        match row {
            Err(reason) => chunker.bad_row(line, reason),
            Ok((key, row)) if self.layout.rows == Rows::Trades => self.minutes.trade(&key, line, row, chunker),
            Ok((key, row)) if self.layout.format == Format::Yfinance => {
                self.has_volume |= row.candle.volume > 0.0;
                match self.held.replace((line, key, row)) {
                    Some((line, key, row)) => chunker.push(&key, line, row),
                    None => Ok(()),
                }
            }
            Ok((key, row)) => chunker.push(&key, line, row),
        }
    }

    fn row(&mut self, fields: &Fields<'_>, chunker: &mut Chunker<'_>) -> Result<(InstrumentKey, Row), String> {
        let layout = self.layout;
        let count = fields.bounds.len();
        // Which of the fields is one too many, nobody can say.
        if count > layout.most_fields {
            return Err(match layout.header_lines {
                0 => format!("{count} fields, a line of {} has {}", layout.format, layout.most_fields),
                _ => format!("{count} fields under a header of {}", layout.most_fields),
            });
        }
        if count < layout.least_fields {
            return Err(format!("{count} fields, a line of {} has at least {}", layout.format, layout.least_fields));
        }
        let key = self.key(fields)?;
        let When { at, date } = self.when(fields)?;
        if chunker.hint.is_none()
            && let Some(close) = layout.close_time.and_then(|column| fields.get(column))
        {
            chunker.hint = stamp::parse(close, layout.stamp, None).ok().and_then(|close| width(at, close.at));
        }
        let [open, high, low, close] = layout.ohlc;
        let price = |column: usize, name: &str| Ok::<f64, String>(fields.number(column, name)? / layout.scale);
        let volume = match layout.volume {
            // Years without a volume column have fewer fields.
            Some(column) if column >= count && count >= layout.least_fields && layout.least_fields > 0 => 0.0,
            Some(column) => fields.number(column, "volume")?,
            None => 0.0,
        };
        let open_interest = match layout.open_interest {
            Some(column) if fields.get(column).is_some() => Some(fields.number(column, "open_interest")?),
            _ => None,
        };
        let candle = Candle {
            open_time: at,
            open: price(open, "open")?,
            high: price(high, "high")?,
            low: price(low, "low")?,
            close: price(close, "close")?,
            volume,
            open_interest,
        };
        Ok((key, Row { candle, date }))
    }

    fn key(&mut self, fields: &Fields<'_>) -> Result<InstrumentKey, String> {
        if let Some(column) = self.layout.symbol {
            let symbol = fields.get(column).unwrap_or_default();
            let first = self.symbol.get_or_insert_with(|| symbol.to_owned());
            if first != symbol {
                return Err(format!(
                    "symbol '{}' under rows of '{first}': split the file by symbol",
                    shortened(symbol)
                ));
            }
        }
        if let Some(column) = self.layout.key {
            // An empty field is no word of the row before, nor of the instrument given for the file.
            let text = fields.get(column).ok_or("key is missing")?;
            if self.instrument.as_ref().is_none_or(|key| key.as_str() != text) {
                self.instrument = Some(text.parse().map_err(|error: market::Error| error.to_string())?);
            }
        }
        self.instrument.clone().ok_or_else(|| "key is missing".to_owned())
    }

    fn when(&self, fields: &Fields<'_>) -> Result<When, String> {
        let layout = self.layout;
        let text = fields.get(layout.time).ok_or("timestamp is missing")?;
        let when = match (layout.day, layout.time_of_day) {
            (Some(day), _) => {
                let zone = self.zone.ok_or("pass --zone")?;
                stamp::since_midnight(text, day, zone)?
            }
            (None, Some(column)) => {
                let time = fields.get(column).ok_or("time is missing")?;
                stamp::parse(&format!("{text} {time}"), layout.stamp, self.zone)?
            }
            (None, None) => stamp::parse(text, layout.stamp, self.zone)?,
        };
        match layout.trading_date.and_then(|column| fields.get(column)) {
            Some(date) => {
                let date = market::parse_date(date).map_err(|error| error.to_string())?;
                Ok(When { date: stamp::midnight(date), ..when })
            }
            None => Ok(when),
        }
    }

    /// A download made during the session ends with the minute then under way, whose volume is not known yet.
    fn last_of_download(&mut self, chunker: &mut Chunker<'_>) -> Flow {
        match &self.held {
            Some((line, _, row)) if row.candle.volume == 0.0 && self.has_volume => {
                let line = *line;
                self.held = None;
                chunker.bad_row(line, "the last row, of volume 0, was still forming when the file was downloaded")
            }
            _ => Ok(()),
        }
    }

    /// Hands over what is held back.
    fn end(&mut self, chunker: &mut Chunker<'_>) -> Flow {
        if let Some((line, key, row)) = self.held.take() {
            chunker.push(&key, line, row)?;
        }
        self.minutes.finish(chunker)
    }
}

/// The timeframe of a candle by its first and last instant, in milliseconds or microseconds before the next one.
fn width(open: Millis, close: Millis) -> Option<Timeframe> {
    let width = close.checked_sub(open)?.checked_add(1)?;
    const DAY_MS: Millis = 86_400_000;
    match width {
        DAY_MS => Some(Timeframe::D1),
        width if width == 7 * DAY_MS => Some(Timeframe::W1),
        width if (28 * DAY_MS..=31 * DAY_MS).contains(&width) => Some(Timeframe::Mo1),
        width => Timeframe::ALL.into_iter().find(|timeframe| timeframe.width_ms() == Some(width)),
    }
}

//! Updates as the bytes of their messages, made once for everybody.
//!
//! Written by hand: the generated types would take three allocations for each update, and a copy for each subscriber.

use bytes::{BufMut, Bytes, BytesMut};
use market::{Date, Millis};
use prost::encoding::{WireType, encode_key, encode_varint};

use super::cursor::{Cursor, Place, Position, Progress};
use super::event::{Filter, Update};

/// Size at which a message is cut: below the 4 MiB that clients accept unless told otherwise, and large enough that frames cost nothing.
const MESSAGE_BYTES: usize = 1024 * 1024;

/// A message on its way, and where its reader stands after it.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) bytes: Bytes,
    pub(super) cursor: Cursor,
}

impl Message {
    /// One without updates, which says that the stream is alive.
    pub(super) fn empty(cursor: impl Into<Cursor>) -> Message {
        finish(BytesMut::new(), cursor.into())
    }

    /// The one that ends the beginning of a stream.
    pub(super) fn caught_up(cursor: impl Into<Cursor>) -> Message {
        let mut bytes = BytesMut::new();
        put_number(3, 1, &mut bytes);
        finish(bytes, cursor.into())
    }
}

/// The updates of one step, encoded.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    bytes: BytesMut,
    /// End of each update in `bytes`.
    ends: Vec<usize>,
    scratch: Vec<u8>,
    candle: Vec<u8>,
    date: Option<(Date, String)>,
}

impl Encoded {
    /// Encodes updates as they are told at `now`.
    pub(super) fn of(updates: &[Update], now: Millis) -> Encoded {
        let mut encoded = Encoded { ends: Vec::with_capacity(updates.len()), ..Encoded::default() };
        for update in updates {
            encoded.push(update, now);
        }
        encoded
    }

    fn push(&mut self, update: &Update, now: Millis) {
        let Encoded { bytes, ends, scratch, candle, date } = self;
        candle.clear();
        let state = &update.candle;
        let is_closed = state.range.end() <= now;
        put_time(1, state.candle.open_time, candle);
        let prices = [state.candle.open, state.candle.high, state.candle.low, state.candle.close, state.candle.volume];
        for (field, value) in (2..).zip(prices) {
            put_double(field, value, candle);
        }
        if let Some(interest) = state.candle.open_interest {
            encode_key(7, WireType::SixtyFourBit, candle);
            candle.put_f64_le(interest);
        }
        put_number(8, u64::from(is_closed), candle);
        put_number(9, u64::from(is_closed && state.is_full), candle);
        put_number(10, u64::from(state.source_count), candle);
        put_number(11, u64::from(state.expected_count), candle);
        if !matches!(date, Some((known, _)) if *known == state.trading_date) {
            *date = Some((state.trading_date, market::format_date(state.trading_date)));
        }
        if let Some((_, text)) = date {
            put_text(12, text, candle);
        }
        scratch.clear();
        put_text(1, update.key.as_str(), scratch);
        put_text(2, update.timeframe.as_str(), scratch);
        put_number(3, update.event as u64, scratch);
        put_block(4, candle, scratch);
        put_number(5, update.revision, scratch);
        put_block(1, scratch, bytes);
        ends.push(bytes.len());
    }

    /// The messages of a filter, each standing where [`Cuts`] says.
    pub(super) fn messages(
        &self,
        updates: &[Update],
        filter: &Filter,
        wants: &[bool],
        cuts: &Cuts<'_>,
    ) -> Vec<Message> {
        let (mut messages, mut current, mut start) = (Vec::new(), BytesMut::new(), 0);
        let mut last = None;
        for (index, update) in updates.iter().enumerate() {
            let end = self.ends[index];
            if wants[index] && filter.wants_event(update.event) {
                if let Some(last) = last
                    && current.len() + (end - start) > MESSAGE_BYTES
                {
                    messages.push(finish(std::mem::take(&mut current), cuts.between(filter, last, update)));
                }
                current.extend_from_slice(&self.bytes[start..end]);
                last = Some(update);
            }
            start = end;
        }
        if let Some(last) = last {
            messages.push(finish(current, cuts.after(filter, last)));
        }
        messages
    }
}

/// The changes that one put made of an instrument, which are told together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group {
    /// The sequence before the first.
    pub(super) before: u64,
    /// That of the last.
    pub(super) end: u64,
}

/// Where readers stand between the messages of some updates, and after the last.
#[derive(Debug)]
pub(super) enum Cuts<'a> {
    /// Of a step of the hub.
    Step {
        before: Position,
        after: Position,
        /// By change, of those that made the updates; none where no change did.
        groups: &'a [Group],
    },
    /// Of a part of a resumption from one place to another.
    Resumption { from: Position, to: Position },
    /// Of what moves nobody.
    Still(&'a Cursor),
}

impl Cuts<'_> {
    /// The place of a reader that has everything before `next`. Where a whole is cut, it stands where it would if it were resuming
    /// over it; so wholes are told in the order of resumptions.
    fn between(&self, filter: &Filter, last: &Update, next: &Update) -> Cursor {
        let Cuts::Step { before, after, groups } = self else { return self.after(filter, last) };
        let at = |sequence| Position { sequence, ..*after };
        match (groups.get(last.change), groups.get(next.change)) {
            (Some(group), Some(next)) if group == next => amid(at(group.before), at(group.end), filter, last),
            (_, Some(next)) => at(next.before).into(),
            (_, None) => amid(*before, *after, filter, last),
        }
    }

    /// The place of a reader that has everything, of which `last` is the last.
    fn after(&self, filter: &Filter, last: &Update) -> Cursor {
        match self {
            Cuts::Step { after, .. } => (*after).into(),
            Cuts::Resumption { from, to } => amid(*from, *to, filter, last),
            Cuts::Still(cursor) => (*cursor).clone(),
        }
    }
}

fn amid(from: Position, to: Position, filter: &Filter, last: &Update) -> Cursor {
    let (key, open_time) = (last.key.clone(), last.candle.candle.open_time);
    let last = Place { key, timeframe: last.timeframe, open_time };
    Cursor { position: from, progress: Some(Progress { to, filter: filter.fingerprint(), last }) }
}

fn finish(mut bytes: BytesMut, cursor: Cursor) -> Message {
    put_text(2, &cursor.to_string(), &mut bytes);
    Message { bytes: bytes.freeze(), cursor }
}

fn put_block(field: u32, block: &[u8], out: &mut impl BufMut) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(block.len() as u64, out);
    out.put_slice(block);
}

fn put_text(field: u32, text: &str, out: &mut impl BufMut) {
    put_block(field, text.as_bytes(), out);
}

/// Default values are left out, as the generated code does.
fn put_number(field: u32, value: u64, out: &mut impl BufMut) {
    if value != 0 {
        encode_key(field, WireType::Varint, out);
        encode_varint(value, out);
    }
}

fn put_double(field: u32, value: f64, out: &mut impl BufMut) {
    if value.to_bits() != 0 {
        encode_key(field, WireType::SixtyFourBit, out);
        out.put_f64_le(value);
    }
}

fn put_time(field: u32, at: Millis, out: &mut impl BufMut) {
    let mut stamp = [0; 24];
    let mut rest = &mut stamp[..];
    // Negative numbers take ten bytes as varints; two fields fit in any case.
    put_number(1, at.div_euclid(1000) as u64, &mut rest);
    put_number(2, at.rem_euclid(1000) as u64 * 1_000_000, &mut rest);
    let length = 24 - rest.len();
    put_block(field, &stamp[..length], out);
}

#[cfg(test)]
mod tests {
    use market::{Candle, TimeRange, Timeframe};
    use prost::Message as _;
    use proto::aggregation::{CandleEvent, CandleUpdate, WatchCandlesResponse};
    use proto::convert::timestamp;
    use proto::wire::BucketCandle;

    use super::*;
    use crate::live::bucket::Candled;
    use crate::live::event::Timeframes;

    fn update(change: usize, at: Millis, key: &str) -> Update {
        let candle = Candle {
            open_time: at,
            open: 1.5,
            high: 2.0,
            low: -0.0,
            close: 0.0,
            volume: 7.0,
            open_interest: Some(0.0),
        };
        let candle = Candled {
            range: TimeRange::new(at, at + 60_000).unwrap(),
            candle,
            trading_date: market::parse_date("1969-12-31").unwrap(),
            source_count: 300,
            expected_count: 0,
            is_full: true,
        };
        Update {
            change,
            key: key.parse().unwrap(),
            timeframe: Timeframe::M5,
            event: CandleEvent::Correction,
            candle,
            revision: u64::MAX,
        }
    }

    fn filter() -> Filter {
        Filter { keys: None, timeframes: Timeframes::of(Timeframe::M5), closed_only: false }
    }

    #[test]
    fn the_bytes_read_as_the_message_they_stand_for() {
        for (at, now, closed) in [(-1_001, 58_999, true), (1_704_067_200_000, 0, false)] {
            let updates = [update(0, at, "US|SPY")];
            let place = Position { sequence: 9, watermark: 10 };
            let cuts = Cuts::Step { before: place, after: place, groups: &[] };
            let messages = Encoded::of(&updates, now).messages(&updates, &filter(), &[true], &cuts);
            let want = WatchCandlesResponse {
                caught_up: false,
                updates: vec![CandleUpdate {
                    instrument_key: "US|SPY".into(),
                    timeframe: "5m".into(),
                    event: CandleEvent::Correction as i32,
                    candle: Some(BucketCandle {
                        open_time: Some(timestamp(at)),
                        open: 1.5,
                        high: 2.0,
                        low: -0.0,
                        close: 0.0,
                        volume: 7.0,
                        open_interest: Some(0.0),
                        closed,
                        complete: closed,
                        source_count: 300,
                        expected_count: 0,
                        trading_date: "1969-12-31".into(),
                    }),
                    revision: u64::MAX,
                }],
                cursor: place.to_string(),
            };
            let got = WatchCandlesResponse::decode(messages[0].bytes.clone()).unwrap();
            assert_eq!(got, want);
            assert!(got.updates[0].candle.as_ref().unwrap().low.is_sign_negative());
        }
    }

    #[test]
    fn who_stands_in_a_step_has_whole_groups_or_resumes_within_one() {
        let before = Position { sequence: 50, watermark: 1 };
        let after = Position { sequence: 20_000, watermark: 2 };
        // Two updates a change; of two changes a group.
        let updates: Vec<Update> = (0..20_000).map(|index| update(index / 2, 60_000, &format!("US|{index}"))).collect();
        let group = |change: u64| Group { before: 99 + change / 2 * 2, end: 101 + change / 2 * 2 };
        let groups: Vec<Group> = (0..10_000).map(group).collect();
        for groups in [&groups[..], &[]] {
            let cuts = Cuts::Step { before, after, groups };
            let messages = Encoded::of(&updates, 0).messages(&updates, &filter(), &vec![true; updates.len()], &cuts);
            assert!(messages.len() > 1 && messages.iter().all(|message| message.bytes.len() < MESSAGE_BYTES + 200));
            assert_eq!(messages.last().unwrap().cursor, after.into());
            let mut told = 0;
            for message in &messages[..messages.len() - 1] {
                told += WatchCandlesResponse::decode(message.bytes.clone()).unwrap().updates.len();
                let Cursor { position, progress } = &message.cursor;
                let last = progress.as_ref().map(|progress| progress.last.key.as_str());
                let want = format!("US|{}", told - 1);
                if groups.is_empty() {
                    assert_eq!((*position, last), (before, Some(want.as_str())));
                    continue;
                }
                let whole = (position.sequence - 99) as usize * 2;
                assert!(whole <= told && told - whole < 4, "{whole} of {told}");
                assert_eq!((position.watermark, last), (2, (told > whole).then_some(want.as_str())));
                let to = progress.as_ref().map(|progress| progress.to);
                let end = Position { sequence: position.sequence + 2, watermark: 2 };
                assert_eq!(to, (told > whole).then_some(end));
            }
        }
    }
}

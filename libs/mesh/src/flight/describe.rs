//! What a client learns of a frame before it reads it: schema, rows, and the tickets of its parts.

use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use arrow_schema::SchemaRef;
use market::{Millis, TimeRange};
use prost::Message;
use proto::wire::FrameTicket;
use tonic::Status;

use super::ListCriteria;

/// Rows of a part: 50 MB, a tenth of a second of work, so that asking for parts costs nothing beside reading them.
const PART_ROWS: u64 = 1_000_000;
/// Most parts of a frame: more streams at once than any client has cores.
const MAX_PARTS: u64 = 32;
/// Parts are cut at midnights (UTC), close to where stored blocks end.
const DAY_MS: Millis = 24 * 60 * 60 * 1000;

/// A frame, described.
#[derive(Debug, Clone)]
pub struct Description {
    pub schema: SchemaRef,
    /// Rows, where counting them costs nothing.
    pub rows: Option<u64>,
    /// Tickets of one revision whose frames, one after the other, are the frame.
    pub parts: Vec<FrameTicket>,
}

/// A page of frames, each with the ticket that names it.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    pub flights: Vec<(FrameTicket, Description)>,
    /// What asks for the next page; `None` at the end.
    pub next: Option<ListCriteria>,
}

impl Description {
    pub(super) fn info(&self, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
        let endpoint =
            |part: &FrameTicket| FlightEndpoint::new().with_ticket(Ticket { ticket: part.encode_to_vec().into() });
        // -1 is the protocol's word for not known.
        let rows = self.rows.and_then(|rows| i64::try_from(rows).ok()).unwrap_or(-1);
        let info = FlightInfo::new()
            .try_with_schema(&self.schema)
            .map_err(|error| Status::internal(error.to_string()))?
            .with_descriptor(descriptor)
            .with_endpoints(self.parts.iter().map(endpoint).collect())
            .with_total_records(rows)
            .with_total_bytes(-1)
            .with_ordered(true);
        Ok(info)
    }
}

/// Ranges of equal length that together are `range`: one, or as many as make parts of about a million rows.
///
/// `rows` lie between `first` and `last`, as evenly as is known.
pub fn time_parts(range: TimeRange, rows: u64, first: Millis, last: Millis) -> Vec<TimeRange> {
    let (start, end) = (range.start().max(first), range.end().min(last.saturating_add(1)));
    let (held, asked) = (last.saturating_sub(first).max(1), end.saturating_sub(start));
    if asked <= 0 {
        return vec![range];
    }
    let rows = (rows as f64 * (asked as f64 / held as f64)).ceil() as u64;
    let parts = rows.div_ceil(PART_ROWS).clamp(1, MAX_PARTS);
    let cut = |part: u64| {
        let at = start + (asked as f64 * (part as f64 / parts as f64)) as Millis;
        at - at.rem_euclid(DAY_MS)
    };
    let mut bounds = vec![range.start()];
    bounds.extend((1..parts).map(cut));
    bounds.push(range.end());
    bounds.dedup();
    let between = |pair: &[Millis]| TimeRange::new(pair[0], pair[1]).ok();
    let ranges: Vec<TimeRange> = bounds.windows(2).filter_map(between).collect();
    // Cuts that are no ranges would lose rows: then there are no cuts.
    if ranges.len() + 1 == bounds.len() { ranges } else { vec![range] }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the numbers, parts touch, cover the range, and are not more than allowed.
    #[test]
    fn parts_are_the_range_cut() {
        let year = 365 * DAY_MS;
        let ranges = [TimeRange::ALL, TimeRange::new(0, 40 * year).unwrap(), TimeRange::new(5, 7).unwrap()];
        for range in ranges {
            for (rows, first, last) in
                [(0, 0, 0), (999_999, 0, year), (4_500_000, 0, year), (u64::MAX, -year, year), (3_000_000, 0, 1)]
            {
                let parts = time_parts(range, rows, first, last);
                assert_eq!((parts[0].start(), parts[parts.len() - 1].end()), (range.start(), range.end()));
                assert!(parts.windows(2).all(|pair| pair[0].end() == pair[1].start()), "{parts:?}");
                assert!(parts.len() <= MAX_PARTS as usize);
            }
        }
        assert_eq!(time_parts(TimeRange::ALL, 4_500_000, 0, year).len(), 5);
        assert_eq!(time_parts(TimeRange::ALL, 999_999, 0, year).len(), 1);
        // A tenth of the time is a tenth of the rows.
        assert_eq!(time_parts(TimeRange::new(0, year / 10).unwrap(), 4_500_000, 0, year).len(), 1);
    }
}

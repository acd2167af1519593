//! The indicators, by what they measure. Each is one state machine and one entry of the catalogue.

mod averages;
mod bands;
mod direction;
mod momentum;
mod oscillators;
#[cfg(test)]
mod probe;
mod statistics;
mod volume;

use super::catalogue::Info;

/// The catalogue's order.
pub(super) const ALL: [&[Info]; 7] = [
    &averages::ENTRIES,
    &oscillators::ENTRIES,
    &momentum::ENTRIES,
    &direction::ENTRIES,
    &bands::ENTRIES,
    &volume::ENTRIES,
    &statistics::ENTRIES,
];

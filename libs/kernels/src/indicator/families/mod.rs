//! The indicators, by what they measure. Each is one state machine and one entry of the catalogue; what is another thing in TradingView's
//! profile has an entry of its own in [`mod@tradingview`].

mod averages;
mod bands;
mod direction;
mod momentum;
mod oscillators;
#[cfg(test)]
mod probe;
mod statistics;
mod tradingview;
mod volume;

use super::catalogue::{Info, find};

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

/// An indicator in TradingView's profile: `None` where that has no definition of it.
pub(super) fn tradingview(name: &str) -> Option<&'static Info> {
    let other = tradingview::ENTRIES.iter().copied().flatten().find(|info| info.name == name);
    other.or_else(|| if tradingview::SAME.contains(&name) { find(name) } else { None })
}

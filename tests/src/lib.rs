//! Servers, data and clients of the end-to-end tests: a mesh in process or as processes, what is put into it, and what is
//! asked of it.
//!
//! Map: [`in_process`] and [`processes`] run a mesh; [`postgres`] and [`redis`] the servers it needs ([`server_process`] is how a
//! server is run, [`slow_link`] what may come between, [`topologies`] Redis as several servers); [`rest`] and [`answers`] speak to it; [`made_up`] makes candles from a seed, [`oracle`] reads those of
//! `../shared/data` with the values that others computed from them; [`traffic`] is load that goes on through faults, [`witness`] knows
//! what it may see; [`watching`] follows live candles through them, [`listener`] knows what it must hear; [`python`] finds an
//! interpreter for `tests/clients`.

pub mod answers;
pub mod in_process;
pub mod listener;
pub mod made_up;
pub mod oracle;
pub mod postgres;
pub mod processes;
pub mod python;
pub mod redis;
pub mod rest;
pub mod server_process;
pub mod slow_link;
pub mod topologies;
pub mod traffic;
pub mod watching;
pub mod witness;

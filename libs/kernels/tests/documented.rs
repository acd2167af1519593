//! The tables of indicators in `docs/indicators.md` are those of the catalogue. `UPDATE_DOCS=1 cargo test -p candlemesh-kernels --test
//! documented` writes them.

#![allow(clippy::unwrap_used, reason = "functions of a test: a missing file is a failure")]

use std::path::Path;

use kernels::indicator::{Info, Parameter, Profile, catalogue};

const HEAD: &str = "| indicator | parameters (default; range) | outputs | reads | lookback |\n|---|---|---|---|---|\n";

const PROFILE_HEAD: &str = "| indicator | definition | parameters (default; range), where others | lookback; by default |\n|---|---|---|---|\n";

fn parameters(info: &Info) -> String {
    let parameter = |parameter: &Parameter| {
        format!("{} ({}; {}..{})", parameter.name, parameter.default, parameter.min, parameter.max)
    };
    info.parameters.iter().map(parameter).collect::<Vec<_>>().join(", ")
}

fn row(info: &Info) -> String {
    let outputs = if info.outputs.len() > 1 { info.outputs.join(", ") } else { String::new() };
    let (inputs, lookback) = (info.inputs.join(", "), info.default_lookback());
    format!("| `{}` {} | {} | {outputs} | {inputs} | {lookback} |\n", info.name, info.summary, parameters(info))
}

/// An indicator that is another thing in TradingView's profile.
fn profile_row(info: &Info) -> Option<String> {
    let other = info.in_profile(Profile::TradingView).filter(|other| other.profile == Profile::TradingView)?;
    let parameters = if other.parameters == info.parameters { String::new() } else { parameters(other) };
    let lookbacks = (other.default_lookback(), info.default_lookback());
    Some(format!("| `{}` | {} | {parameters} | {}; {} |\n", info.name, other.summary, lookbacks.0, lookbacks.1))
}

/// Replaces what follows the head up to an empty line, or the end.
fn with_table(page: &str, head: &str, rows: &str) -> String {
    let (text, rest) = page.split_once(head).unwrap();
    // The table may have no row yet.
    let end = if rest.starts_with('\n') { 0 } else { rest.find("\n\n").map_or(rest.len(), |end| end + 1) };
    format!("{text}{head}{rows}{}", &rest[end..])
}

#[test]
fn the_page_lists_the_catalogue() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/indicators.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let whole: String = catalogue().iter().map(row).collect();
    let different: String = catalogue().iter().filter_map(profile_row).collect();
    let wanted = with_table(&with_table(&page, PROFILE_HEAD, &different), HEAD, &whole);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, wanted).unwrap();
        return;
    }
    assert!(page == wanted, "docs/indicators.md is not up to date; run this test with UPDATE_DOCS=1");
}

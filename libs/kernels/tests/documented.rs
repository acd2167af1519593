//! The table of indicators in `docs/indicators.md` is that of the catalogue. `UPDATE_DOCS=1 cargo test -p candlemesh-kernels --test
//! documented` writes it.

#![allow(clippy::unwrap_used, reason = "functions of a test: a missing file is a failure")]

use std::path::Path;

use kernels::indicator::{Info, Parameter, catalogue};

const HEAD: &str = "| indicator | parameters (default; range) | outputs | reads | lookback |\n|---|---|---|---|---|\n";

fn row(info: &Info) -> String {
    let parameter = |parameter: &Parameter| {
        format!("{} ({}; {}..{})", parameter.name, parameter.default, parameter.min, parameter.max)
    };
    let parameters: Vec<String> = info.parameters.iter().map(parameter).collect();
    let outputs = if info.outputs.len() > 1 { info.outputs.join(", ") } else { String::new() };
    let (inputs, lookback) = (info.inputs.join(", "), info.default_lookback());
    format!("| `{}` {} | {} | {outputs} | {inputs} | {lookback} |\n", info.name, info.summary, parameters.join(", "))
}

#[test]
fn the_page_lists_the_catalogue() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/indicators.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (text, table) = page.split_once(HEAD).unwrap();
    let wanted: String = catalogue().iter().map(row).collect();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{text}{HEAD}{wanted}")).unwrap();
        return;
    }
    assert!(table == wanted, "docs/indicators.md is not up to date; run this test with UPDATE_DOCS=1");
}

//! The commands of the README, one after the other as they stand there.

use anyhow::{Context, Result, ensure};
use candlemesh_tests::processes::{Up, command, run};

use crate::program;

const README: &str = include_str!("../../../README.md");

/// The lines of code below a line of text that begins so.
fn block(text: &str) -> Result<Vec<&str>> {
    let (_, rest) = README.split_once(text).with_context(|| format!("the README has no '{text}'"))?;
    let lines = rest.lines().skip(1).skip_while(|line| !line.starts_with("    "));
    Ok(lines.take_while(|line| line.starts_with("    ")).map(str::trim).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_works_from_top_to_bottom() -> Result<()> {
    let up = Up::start(program()).await?;
    let folder = up.data_dir().parent().context("no folder")?.to_path_buf();
    let (gateway, bin) = (up.gateway()?, folder.join("bin"));
    std::fs::create_dir(&bin)?;
    std::os::unix::fs::symlink(program(), bin.join("candlemesh"))?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH")?);
    let shell = async |line: &str| {
        let mut shell = command(std::path::Path::new("bash"));
        shell.args(["-c", line]).current_dir(&folder).env("PATH", &path).env("CANDLEMESH_GATEWAY_URL", &gateway);
        run(shell).await
    };
    let lines = block("and beside it, in the same folder")?;
    ensure!(lines.len() > 10, "{lines:?}");
    for line in lines {
        let ended = shell(line).await?;
        ensure!(ended.status.success(), "{line}: {ended:?}");
    }
    // The first question by REST is answered with candles.
    let asked = block("REST, on the same port")?[0].replace("http://127.0.0.1:8080", &gateway);
    let url = asked.trim_start_matches("curl ").trim_matches('\'').trim_start_matches(&gateway).to_owned();
    let answer: serde_json::Value = candlemesh_tests::rest::Rest::to(&gateway).get(&url).await?.ok()?;
    ensure!(answer["candles"].as_array().is_some_and(|candles| !candles.is_empty()), "{url}: {answer}");
    up.stop().await
}
